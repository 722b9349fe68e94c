import json
import shutil
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from datamodules.binvox import write_binvox
from datamodules.packed import PackedObjects
from datamodules.prepare.shapenet import pack_shapenet
from datamodules.prepare.shapenet_layouts import write_imnet, write_onet, write_r2n2
from datamodules.shapenet import ShapeNet, find_layout, open_shapenet
from datamodules.shapenet_trees import ONetTree, R2N2Tree
from ops.cameras import project
from tests.datamodules.toy_objects import small_objects

HAS_H5PY = find_spec("h5py") is not None
needs_h5py = pytest.mark.skipif(not HAS_H5PY, reason="h5py is not installed")

WRITTEN = small_objects(("chair", "solid"), num_views=24, num_points=300)
LAYOUTS = ["r2n2", "onet", *(pytest.param(name, marks=needs_h5py) for name in ("im-net", "implicit-decoder"))]
READS = {
    "r2n2": {"images", "masks", "intrinsics", "camera_to_world", "voxels"},
    "onet": {"images", "camera_to_world", "query_points", "query_occupancy", "surface_points", "voxels"},
    "im-net": {"images", "query_points", "query_occupancy", "voxels"},
    "implicit-decoder": {"query_points", "query_occupancy", "voxels"},
}


def settings_of(layout: str) -> dict:
    is_imnet = layout in ("im-net", "implicit-decoder")
    return {"query_resolution": 32, "voxel_resolution": 64} if is_imnet else {}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The small objects in a layout, written once."""
    folder, done = tmp_path_factory.mktemp("layouts"), {}

    def write(layout: str) -> Path:
        if layout not in done:
            done[layout] = folder / layout
            if layout == "r2n2":
                write_r2n2(WRITTEN, folder / layout)
            elif layout == "onet":
                write_onet(WRITTEN, folder / layout)
            else:
                write_imnet(WRITTEN, folder / layout, layout)
        return done[layout]

    return write


def opened(root: Path, layout: str, **settings: object) -> ShapeNet:
    data = ShapeNet(str(root), **{"reads": READS[layout], "batch_size": 4, **settings_of(layout), **settings})
    data.setup()
    return data


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_was_written_in_a_layout_is_read_back(written: Callable[[str], Path], layout: str) -> None:
    data = opened(written(layout), layout, eval_views=[0, 5])
    batch = next(iter(data.test_dataloader()))
    assert READS[layout] <= set(batch)
    by_name = {name.object_id: index for index, name in enumerate(WRITTEN.objects)}
    for i, name in enumerate(batch["object_id"]):
        index = by_name[name]
        resolution = data.voxel_resolution
        assert np.array_equal(batch["voxels"][i].numpy(), WRITTEN.voxels(index, resolution))
        if "images" in batch:
            expected = WRITTEN.pixels(index, [0, 5]).astype(np.float32) / 255
            over_white = torch.from_numpy(1 + expected[..., 3:] * (expected[..., :3] - 1)).permute(0, 3, 1, 2)
            grey = over_white.mean(1) - batch["images"][i].mean(1)
            # exact in PNG files, near in JPEGs, only as grey in IM-Net's arrays
            assert grey.abs().mean() < {"r2n2": 1e-6, "onet": 0.01}.get(layout, 0.05)
        if "camera_to_world" in batch:
            intrinsics, poses = WRITTEN.cameras(index, [0, 5])
            assert torch.allclose(batch["camera_to_world"][i], torch.from_numpy(poses), atol=1e-5)
            if layout == "onet":  # the other layout knows no picture size but Choy's
                assert torch.allclose(batch["intrinsics"][i], torch.from_numpy(intrinsics), atol=1e-5)
        if layout == "onet":
            points, occupancy = WRITTEN.queries(index, None, slice(None))
            assert np.array_equal(batch["query_points"][i].numpy(), points.astype(np.float32))
            assert np.array_equal(batch["query_occupancy"][i].numpy(), occupancy)
            surface, _ = WRITTEN.surface(index, slice(None))
            assert np.array_equal(batch["surface_points"][i].numpy(), surface.astype(np.float16).astype(np.float32))


@needs_h5py
def test_imnets_points_are_where_they_were_in_the_newer_layout_and_in_their_cell_in_the_older(
    written: Callable[[str], Path],
) -> None:
    for layout, tolerance in (("im-net", 0), ("implicit-decoder", 0.5 / 32)):
        data = opened(written(layout), layout, eval_query_points=4096)
        batch = next(iter(data.test_dataloader()))
        by_name = {name.object_id: index for index, name in enumerate(WRITTEN.objects)}
        for i, name in enumerate(batch["object_id"]):
            points, occupancy = WRITTEN.queries(by_name[name], 32, slice(None))
            assert abs(batch["query_points"][i].numpy() - points).max() <= tolerance
            agree = (batch["query_occupancy"][i].numpy() == occupancy).mean()
            assert agree == 1 if layout == "im-net" else agree > 0.7


@pytest.mark.parametrize("images", ["files", "pixels"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_objects_give_the_same_batches_bit_for_bit(
    written: Callable[[str], Path], tmp_path: Path, layout: str, images: str
) -> None:
    pack_shapenet(written(layout), tmp_path / "packed", images=images)
    tree, packed = (opened(root, layout, num_views=2) for root in (written(layout), tmp_path / "packed"))
    assert isinstance(packed.source, PackedObjects)
    assert tree.positions == packed.positions
    assert tree.split_name == packed.split_name
    loaders = [(data.train_dataloader(), data.val_dataloader(), data.test_dataloader()) for data in (tree, packed)]
    for one, other in zip(*loaders, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a.keys() == b.keys()
            for key in a:
                assert torch.equal(a[key], b[key]) if isinstance(a[key], Tensor) else a[key] == b[key], key


def test_normals_that_no_method_reads_are_not_read_and_points_are_the_same(
    written: Callable[[str], Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(written("onet"), tmp_path / "tree")
    pack_shapenet(copy, tmp_path / "packed")
    reads = {"surface_points"}
    expected = next(iter(opened(copy, "onet", reads=reads | {"surface_normals"}).train_dataloader()))
    for path in copy.rglob("pointcloud.npz"):
        with np.load(path) as file:
            kept = {name: file[name] for name in file.files if name != "normals"}
        np.savez(path, **kept)
    packed = opened(tmp_path / "packed", "onet", reads=reads)
    del packed.source._open["surface_normals"]
    for data in (opened(copy, "onet", reads=reads), packed):
        assert torch.equal(next(iter(data.train_dataloader()))["surface_points"], expected["surface_points"])


@needs_h5py
def test_packing_unpacks_each_block_of_an_hdf5_file_once_and_training_on_it_is_warned_of(
    written: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import h5py

    root = shutil.copytree(written("im-net"), tmp_path / "blocks")
    path = root / "all_vox256_img_train.hdf5"
    with h5py.File(written("im-net") / path.name) as whole, h5py.File(path, "w") as file:
        for key, array in whole.items():
            chunks = (7, *(max(1, size // 2) for size in array.shape[1:]))
            file.create_dataset(key, data=array[:], chunks=chunks, compression="gzip")
    reads: list[tuple] = []
    original = h5py.Dataset.__getitem__
    monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda array, rows: (reads.append(rows), original(array, rows))[1])
    pack_shapenet(root, tmp_path / "packed")
    # 16 models are three blocks of 7, in each of 8 arrays
    blocks = [(rows.start, rows.stop) for rows in reads if isinstance(rows, slice) and rows.stop in (7, 14, 21)]
    assert sorted(blocks) == sorted([(0, 7), (7, 14), (14, 21)] * 8)
    tree, packed = opened(written("im-net"), "im-net"), opened(tmp_path / "packed", "im-net")
    for one, other in zip(tree.train_dataloader(), packed.train_dataloader(), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in READS["im-net"])
    # a row of pixels, of voxels and of points_32, each in blocks of 7 rows
    rows = {"images": 24 * 24 * 24, "voxels": 64**3, "query_points": 4096 * 3}
    monkeypatch.setattr("datamodules.shapenet.SLOW_OBJECT", 7 * sum(rows.values()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened(root, "im-net", reads=set(rows))
    monkeypatch.setattr("datamodules.shapenet.SLOW_OBJECT", 7 * sum(rows.values()) - 1)
    with pytest.warns(UserWarning, match=r"to read one object \d+ MB are unpacked, .*; pack it once"):
        opened(root, "im-net", reads=set(rows))


def test_points_drawn_from_either_are_rows_of_the_whole_npz_file(
    written: Callable[[str], Path], tmp_path: Path
) -> None:
    pack_shapenet(written("onet"), tmp_path / "packed")
    rows = np.random.default_rng(0).integers(300, size=1000)
    for source in (open_shapenet(written("onet")), PackedObjects(tmp_path / "packed")):
        index = source.index_of["chair", "chair_0003"]
        with np.load(written("onet") / "03001627/chair_0003/points.npz", allow_pickle=False) as file:
            points, occupancy = file["points"][rows], np.unpackbits(file["occupancies"])[:300][rows]
        drawn_points, drawn_occupancy = source.queries(index, None, rows)
        assert np.array_equal(drawn_points, points)
        assert np.array_equal(drawn_occupancy, occupancy.astype(bool))
        with np.load(written("onet") / "03001627/chair_0003/pointcloud.npz", allow_pickle=False) as file:
            for drawn, kept in zip(source.surface(index, rows), (file["points"], file["normals"]), strict=True):
                assert np.array_equal(drawn, kept[rows])


def test_splits_are_those_of_the_layout_or_those_asked_for(written: Callable[[str], Path], tmp_path: Path) -> None:
    own = opened(written("onet"), "onet")
    assert own.split_name == "onet"
    stages = WRITTEN.splits()["synthetic"]
    for stage, members in own.positions.items():
        expected = {WRITTEN.objects[index].object_id for index in stages[stage]}
        assert {own.source.objects[index].object_id for index in members} == expected
    by_names = opened(written("onet"), "onet", split="r2n2", val_share=0)
    assert by_names.split_name == "r2n2"
    assert {stage: len(members) for stage, members in by_names.positions.items()} == {"train": 16, "val": 0, "test": 4}
    (tmp_path / "mine.json").write_text(json.dumps({"train": ["chair/chair_0003"], "test": ["chair/chair_0001"]}))
    mine = opened(written("onet"), "onet", split=str(tmp_path / "mine.json"))
    assert mine.split_name == "mine"
    batch = next(iter(mine.test_dataloader()))
    assert batch["object_id"] == ["chair_0001"]
    assert batch["split"] == ["mine/test"]
    with pytest.raises(ValueError, match=r"split 'pix2vox': .* knows onet, r2n2; give one of them.*json file"):
        opened(written("onet"), "onet", split="pix2vox")


def test_categories_go_by_name_or_number(written: Callable[[str], Path]) -> None:
    for name in ("chair", "03001627"):
        batch = next(iter(opened(written("onet"), "onet", categories=[name]).test_dataloader()))
        assert set(batch["category"]) == {"chair"}
    with pytest.raises(ValueError, match=r"categories: .* has no sofa; it has 00000000, chair"):
        opened(written("onet"), "onet", categories=["sofa"])


def test_the_layout_is_found_or_refused(written: Callable[[str], Path], tmp_path: Path) -> None:
    assert find_layout(written("r2n2")) == "r2n2"
    assert find_layout(written("onet")) == "onet"
    (tmp_path / "a.hdf5").touch()
    assert find_layout(tmp_path) == find_layout(tmp_path / "a.hdf5") == "imnet"
    (tmp_path / "objects.json").touch()
    with pytest.raises(ValueError, match="looks like packed and imnet; set layout"):
        find_layout(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="nothing known is there; expected ShapeNetRendering/"):
        find_layout(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"there is nothing at .*none; set root to .*cvgl.stanford.edu"):
        open_shapenet(tmp_path / "none")


def test_reading_what_a_copy_lacks_names_method_copy_and_remedy(written: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match=r"R2N2 reads 'masks', which .*onet does not have; the renderings of 3D-R2N2"):
        opened(written("onet"), "onet", reads={"masks"}, reader="R2N2")
    with pytest.raises(ValueError, match=r"ONet reads 'query_points', which .*r2n2 does not have; Occupancy Networks'"):
        opened(written("r2n2"), "r2n2", reads={"query_points"}, reader="ONet")


def damaged(root: Path, tmp_path: Path, file: str, content: bytes | None) -> Path:
    """A copy of one model's tree in which a file is replaced or missing."""
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    if content is None:
        (copy / file).unlink()
    else:
        (copy / file).write_bytes(content)
    return copy


RENDERING = "ShapeNetRendering/03001627/chair_0000/rendering"


@pytest.mark.parametrize(
    ("layout", "file", "content", "message"),
    [
        ("r2n2", f"{RENDERING}/03.png", None, r"03.png is missing; download or unpack"),
        ("r2n2", f"{RENDERING}/03.png", b"\x89PNG no", r"03.png cannot be read as an image"),
        ("r2n2", f"{RENDERING}/rendering_metadata.txt", b"1 2 0 1 25\n", r"metadata.txt: 1 cameras, expected 24"),
        ("r2n2", "ShapeNetVox32/03001627/chair_0000/model.binvox", b"#binv", r"model.binvox is no binvox file"),
        ("onet", "03001627/chair_0000/img_choy2016/003.jpg", None, r"003.jpg is missing"),
        ("onet", "03001627/chair_0000/points.npz", b"PK..", r"points.npz cannot be read: .*; download or unpack"),
        ("onet", "03001627/chair_0000/pointcloud.npz", None, r"pointcloud.npz is missing"),
        ("onet", "03001627/val.lst", None, r"chair has no val.lst; download"),
    ],
)
def test_a_missing_or_damaged_file_is_named(
    written: Callable[[str], Path], tmp_path: Path, layout: str, file: str, content: bytes | None, message: str
) -> None:
    root = damaged(written(layout), tmp_path, file, content)
    with pytest.raises(ValueError, match=message):  # noqa: PT012, some files are read at once, others with their object
        source = opened(root, layout).source
        index = source.index_of["chair", "chair_0000"]
        source.views(index, range(24))
        source.voxels(index, 32)
        source.surface(index, slice(None))
        source.queries(index, None, slice(None))


def test_an_npz_file_of_another_size_or_content_is_refused(written: Callable[[str], Path], tmp_path: Path) -> None:
    root = damaged(written("onet"), tmp_path, "03001627/val.lst", b"chair_0007")
    path = root / "03001627/chair_0001/points.npz"
    np.savez(path, points=np.zeros((7, 3), np.float16), occupancies=np.zeros(1, np.uint8))
    source = ONetTree(root)
    index = source.index_of["chair", "chair_0001"]
    with pytest.raises(ValueError, match=r"points.npz: 7 points, but 300 in the first model"):
        source.queries(index, None, slice(None))
    np.savez(path, points=np.zeros((300, 3), np.float16), occupancies=np.zeros(5, np.uint8))
    with pytest.raises(ValueError, match=r"points.npz: 5 occupancies of 300 points"):
        source.queries(index, None, slice(None))
    np.savez(path, points=np.zeros((300, 3), np.float16))
    with pytest.raises(ValueError, match=r"points.npz cannot be read: it has no 'occupancies' but points"):
        source.queries(index, None, slice(None))


def test_models_without_voxels_are_left_out_aloud(written: Callable[[str], Path], tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(written("r2n2"), root)
    shutil.rmtree(root / "ShapeNetVox32/03001627/chair_0000")
    with pytest.warns(UserWarning, match="1 models have only renderings or only voxels"):
        source = open_shapenet(root)
    assert ("chair", "chair_0000") not in source.index_of
    shutil.rmtree(root / "ShapeNetVox32")
    with pytest.raises(ValueError, match=r"ShapeNetVox32 is missing; unpack ShapeNetVox32.tgz"):
        R2N2Tree(root)


@needs_h5py
def test_hdf5_files_that_fit_neither_layout_are_refused(written: Callable[[str], Path], tmp_path: Path) -> None:
    import h5py

    root = tmp_path / "copy"
    shutil.copytree(written("implicit-decoder"), root)
    with h5py.File(root / "all_vox256_img_train.hdf5", "r+") as file:
        file["points_64"][0] = file["points_64"][0] * 3
    with pytest.raises(ValueError, match=r"largest coordinates of .* are \[15, 31, 1\d\d\]; expected"):
        open_shapenet(root)
    (root / "all_vox256_img_train.txt").write_text("a\n")
    with pytest.raises(ValueError, match=r"train.txt: 1 names of 16 models"):
        open_shapenet(root)
    (root / "all_vox256_img_train.hdf5").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"train.hdf5 cannot be read as hdf5"):
        open_shapenet(root)


def test_a_packed_folder_that_is_incomplete_is_refused(written: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    pack_shapenet(written("onet"), folder)
    with pytest.raises(ValueError, match="packed is there already"):
        pack_shapenet(written("onet"), folder)
    (folder / "query_points.npy").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"query_points.npy has 5 bytes, expected \d+; copy or pack"):
        PackedObjects(folder)
    (folder / "query_points.npy").unlink()
    with pytest.raises(ValueError, match=r"query_points.npy is missing"):
        PackedObjects(folder)
    (folder / "objects.json").write_text('{"version": 0}')
    with pytest.raises(ValueError, match="version 0, expected 1"):
        PackedObjects(folder)


def silhouettes(batch: dict, points: Callable[[int], Tensor]) -> list[float]:
    """Intersection over union of each picture's foreground with where points of the object project to."""
    shares = []
    size = batch["images"].shape[-1]
    for i, view in np.ndindex(*batch["images"].shape[:2]):
        pixels, _ = project(points(i), batch["intrinsics"][i, view], batch["camera_to_world"][i, view])
        column, row = pixels.floor().long().clamp(0, size - 1).T
        shown = torch.zeros(size, size, dtype=torch.bool)
        shown[row, column] = True
        seen = batch["masks"][i, view] > 0.5 if "masks" in batch else batch["images"][i, view].mean(0) < 0.98
        shares.append(((shown & seen).sum() / (shown | seen).sum()).item())
    return shares


def test_real_renderings_show_the_real_voxels(test_data: Path, tmp_path: Path) -> None:
    for name, synset in (("yizi", "03001627"), ("kache", "02958343"), ("bench", "02828884")):
        model = test_data / "shapenet_r2n2_3obj" / name
        shutil.copytree(model / "rendering", tmp_path / "ShapeNetRendering" / synset / name / "rendering")
        (tmp_path / "ShapeNetVox32" / synset / name).mkdir(parents=True)
        shutil.copy(model / "model.binvox", tmp_path / "ShapeNetVox32" / synset / name)
    (tmp_path / "all.json").write_text(json.dumps({"test": ["car/kache", "chair/yizi", "bench/bench"]}))
    data = ShapeNet(str(tmp_path), split=str(tmp_path / "all.json"), eval_views=[0, 7, 13, 20])
    data.setup()
    batch = next(iter(data.test_dataloader()))
    offsets = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0]) / 96] * 3)

    def cells(i: int) -> Tensor:
        return (((batch["voxels"][i].nonzero() + 0.5) / 32 - 0.5)[:, None] + offsets).reshape(-1, 3)

    assert min(silhouettes(batch, cells)) > 0.78


def test_real_pictures_of_onets_tree_show_the_real_points(test_data: Path) -> None:
    root = test_data / "shapenet_onet_3obj/ShapeNet"
    data = ShapeNet(str(root), split="r2n2", val_share=0, eval_views=[0, 7, 13, 20], reads={"images", "surface_points"})
    data.setup()
    assert data.source.keys == {"images", "intrinsics", "camera_to_world", "surface_points", "surface_normals"}
    data.positions["test"] = [0, 1, 2]
    batch = next(iter(data.test_dataloader()))
    assert batch["surface_points"].shape == (3, 100_000, 3)
    assert min(silhouettes(batch, lambda i: batch["surface_points"][i])) > 0.85


@needs_h5py
def test_imnets_own_sample_is_the_older_layout_and_its_points_agree_with_its_voxels(test_data: Path) -> None:
    data = ShapeNet(
        str(test_data / "imnet_samplechair/samplechair"), query_resolution=64, voxel_resolution=64, val_share=0
    )
    data.setup()
    assert data.source.layouts == ["implicit-decoder"]
    assert {stage: len(members) for stage, members in data.positions.items()} == {"train": 2, "val": 0, "test": 1}
    batch = next(iter(data.test_dataloader()))
    x, y, z = ((batch["query_points"][0] + 0.5) * 64).floor().long().T
    assert torch.equal(batch["voxels"][0][x, y, z], batch["query_occupancy"][0])


def test_a_binvox_of_another_size_is_refused_where_32_are_distributed(
    written: Callable[[str], Path], tmp_path: Path
) -> None:
    root = damaged(written("r2n2"), tmp_path, f"{RENDERING}/renderings.txt", b"")
    write_binvox(root / "ShapeNetVox32/03001627/chair_0000/model.binvox", np.ones((16, 16, 16), bool))
    source = R2N2Tree(root)
    with pytest.raises(ValueError, match=r"model.binvox: a grid of 16³, expected 32³"):
        source.voxels(source.index_of["chair", "chair_0000"], 32)
