"""OmniObject3D, on procedural objects that are written in its layout."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from datamodules.blender_depth import points_of_depth
from datamodules.exr import read_exr, write_exr
from datamodules.omniobject3d import OmniObject3D, OmniObject3DScene
from datamodules.omniobject3d_files import find_objects, read_frames, read_pictures
from datamodules.prepare.omniobject3d import prepare_scans
from datamodules.prepare.omniobject3d_layout import VIDEO_SIMILARITY, write_omniobject3d
from ops.cameras import project
from tests.datamodules.toy_objects import small_objects

SIZE = 48


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five chairs and five solids; of the chairs the scans are prepared."""
    folder = tmp_path_factory.mktemp("omniobject3d")
    objects = small_objects(("chair", "solid"), 5)
    write_omniobject3d(objects, folder, num_views=8, image_size=SIZE, mesh_resolution=28)
    prepare_scans(find_objects(folder), folder / "prepared", num_points=600)
    return folder


@pytest.fixture
def root(written: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    shutil.copytree(written, tmp_path / "data")
    return tmp_path / "data"


def scene_of(root: Path, **kwargs: object):
    data = OmniObject3DScene(str(root), "chair_0001", **kwargs)
    data.setup()
    return data.scene


def share_in_masks(points: torch.Tensor, scene) -> float:
    """Of points in the picture, how many are on the foreground or a pixel beside it: chairs have thin legs."""
    shares = []
    wide = torch.nn.functional.max_pool2d(scene.masks.float(), 3, stride=1, padding=1)
    for mask, matrix, pose in zip(wide, scene.intrinsics, scene.camera_to_world, strict=True):
        x, y = project(points, matrix, pose)[0].floor().long().T
        seen = (x >= 0) & (y >= 0) & (x < mask.shape[1]) & (y < mask.shape[0])
        shares.append((mask[y[seen], x[seen]] > 0).float().mean())
    return float(torch.stack(shares).mean())


def test_all_kinds_of_files_of_an_object_are_found_together(written: Path) -> None:
    found = find_objects(written)
    assert [(entry.category, entry.object_id) for entry in found][:2] == [
        ("chair", "chair_0000"),
        ("chair", "chair_0001"),
    ]
    assert len(found) == 10
    assert all(len(entry.paths) == 5 for entry in found)
    assert found[0].paths["raw_scans"].name == "Scan.obj"
    assert find_objects(written)[0].paths["point_clouds"].name == "pcd_1024.ply"


def test_levels_that_archives_leave_out_do_not_matter(root: Path) -> None:
    (root / "blender_renders/chair/chair_0000").rename(root / "blender_renders/chair_0000")
    inner = root / "blender_renders/chair/chair_0001"
    for path in list((inner / "render").iterdir()):
        path.rename(inner / path.name)
    (inner / "render").rmdir()
    inside = root / "OpenXD-OmniObject3D-New/raw"
    inside.mkdir(parents=True)
    for path in list(root.iterdir()):
        if path.name not in ("OpenXD-OmniObject3D-New", "prepared"):
            path.rename(inside / path.name)
    found = {entry.object_id: entry for entry in find_objects(inside.parent)}
    assert found["chair_0000"].category == found["chair_0001"].category == "chair"
    for name in ("chair_0000", "chair_0001"):
        assert len(read_frames(found[name].paths["blender_renders"]).paths) == 8


def test_the_object_is_off_centre_where_it_was_rendered_and_fills_the_sphere_in_memory(written: Path) -> None:
    scene = scene_of(written)
    matrix = scene.normalized_to_dataset
    assert matrix[:3, 3].norm() > 0.3
    in_render_frame = scene.surface_points.double() @ matrix[:3, :3].T + matrix[:3, 3]
    assert in_render_frame.abs().max() == pytest.approx(0.99, abs=0.01)
    assert in_render_frame.norm(dim=1).max() > 1.05  # it sticks out of the unit sphere there
    assert scene.surface_points.norm(dim=1).max() == pytest.approx(0.9, abs=0.01)
    assert share_in_masks(scene.surface_points, scene) > 0.97
    assert scene.images[scene.masks == 0].max() == 0


@pytest.mark.parametrize("source", ["depth", "masks"])
def test_without_a_scan_depth_or_masks_find_the_same_sphere(written: Path, source: str) -> None:
    exact, found = (
        scene_of(written).normalized_to_dataset,
        scene_of(written, normalization=source).normalized_to_dataset,
    )
    assert float(found[0, 0] / exact[0, 0]) == pytest.approx(1, abs=0.08)
    assert (found[:3, 3] - exact[:3, 3]).norm() < 0.1


@pytest.mark.parametrize("planar", [True, False])
def test_whichever_depth_blender_wrote_becomes_distance_along_the_ray(
    written: Path, tmp_path: Path, planar: bool
) -> None:
    root = tmp_path / "one"
    write_omniobject3d(
        small_objects(("chair",), 2), root, num_views=8, image_size=64, mesh_resolution=28, planar_depth=planar
    )
    scene = scene_of(root, with_depth=True)
    vertices = trimesh.load(root / "raw_scans/chair/chair_0001/Scan/Scan.obj", process=False).vertices
    upright = vertices[:, [0, 2, 1]] * [1, -1, 1] * (0.99 / np.abs(vertices).max())
    inverse = np.linalg.inv(scene.normalized_to_dataset.numpy())
    surface = trimesh.Trimesh(
        upright @ inverse[:3, :3].T + inverse[:3, 3],
        trimesh.load(root / "raw_scans/chair/chair_0001/Scan/Scan.obj", process=False).faces,
    )
    for view in (0, 5):
        seen = points_of_depth(scene.depth[view].numpy(), scene.intrinsics[view], scene.camera_to_world[view], every=5)
        assert np.abs(trimesh.proximity.closest_point_naive(surface, seen)[1]).max() < 2e-4
        assert (np.isfinite(scene.depth[view].numpy()) == (scene.masks[view] > 127).numpy()).all()


def test_downscaling_does_not_let_the_background_bleed_in(written: Path) -> None:
    full, half = scene_of(written, background="white"), scene_of(written, background="white", downscale=2)
    blocks = full.images.float().reshape(8, SIZE // 2, 2, SIZE // 2, 2, 3).mean(dim=(2, 4))
    assert (half.images.float() - blocks).abs().max() < 4  # pictures with alpha are rounded twice
    assert torch.allclose(half.intrinsics[:, 0, 0] * 2, full.intrinsics[:, 0, 0])


def test_the_24_views_have_a_frame_of_their_own_and_no_truth(written: Path) -> None:
    scene = scene_of(written, views="blender_renders_24_views")
    assert scene.images.shape[0] == 24
    assert scene.surface_points is None
    assert scene.normalized_to_dataset[0, 0] < 0.7
    with pytest.raises(
        ValueError, match=r"N reads 'surface_points', which chair_0001 does not .*views blender_renders"
    ):
        OmniObject3DScene(
            str(written), "chair_0001", views="blender_renders_24_views", reads={"rays", "surface_points"}, reader="N"
        ).setup()


def test_a_video_is_a_scene_in_colmaps_frame(written: Path) -> None:
    scene = scene_of(written, views="videos_processed")
    blender = scene_of(written)
    # the wall stays behind the object, the mattes are the renderings' alpha
    assert scene.images[scene.masks == 0].float().mean() > 80
    assert torch.equal(scene.masks, blender.masks)
    between = (
        torch.linalg.inv(scene.normalized_to_dataset)
        @ torch.from_numpy(VIDEO_SIMILARITY)
        @ blender.normalized_to_dataset
    )
    points = blender.surface_points.double() @ between[:3, :3].T + between[:3, 3]
    assert share_in_masks(points.float(), scene) > 0.97
    assert 0.8 < points.norm(dim=1).max() < 1
    rescaled = scene_of(written, views="videos_processed", rescaled=True)
    assert rescaled.normalized_to_dataset[0, 0] == pytest.approx(
        0.1 * float(scene.normalized_to_dataset[0, 0]), rel=1e-3
    )


def test_a_videos_sparse_points_are_on_the_object(written: Path) -> None:
    pytest.importorskip("pycolmap", reason="COLMAP models are read by pycolmap")
    scene = scene_of(written, views="videos_processed", reads={"rays", "sparse_points"})
    assert len(scene.sparse_points.points) > 30
    assert share_in_masks(scene.sparse_points.points, scene) > 0.97


def test_frames_that_colmap_left_out_are_left_out(root: Path) -> None:
    pytest.importorskip("pycolmap", reason="COLMAP models are read by pycolmap")
    folder = root / "videos_processed/chair/chair_0001/standard"
    Image.new("RGB", (SIZE, SIZE)).save(folder / "images/frame_00003b.png")
    assert len(scene_of(root, views="videos_processed").images) == 8
    shutil.rmtree(folder / "sparse")
    with pytest.raises(ValueError, match=r"9 images but 8 poses in poses_bounds\.npy, and no COLMAP model"):
        scene_of(root, views="videos_processed")


READS = {"images", "masks", "voxels", "query_points", "query_occupancy", "surface_points", "surface_normals"}


def test_objects_fill_every_key_and_agree_with_each_other(written: Path) -> None:
    data = OmniObject3D(
        str(written), batch_size=4, eval_batch_size=2, num_views=2, eval_views=[0, 3], num_surface_points=300,
        reads=READS | {"intrinsics", "camera_to_world"}, eval_surface_points=600, eval_query_points=600,
    )  # fmt: skip
    data.setup()
    assert data.split_name == "sorted"
    assert [len(data.positions[stage]) for stage in ("train", "val", "test")] == [6, 2, 2]
    batch = next(iter(data.train_dataloader()))
    assert set(batch) >= READS
    shown = next(iter(data.test_dataloader()))
    for row in range(2):
        points = shown["surface_points"][row]
        assert points.abs().amax(0).max() == pytest.approx(0.5, abs=0.01)
        for view in range(2):
            pixels, _ = project(points, shown["intrinsics"][row, view], shown["camera_to_world"][row, view])
            x, y = pixels.floor().long().T
            seen = (x >= 0) & (y >= 0) & (x < SIZE) & (y < SIZE)
            wide = torch.nn.functional.max_pool2d(shown["masks"][row, view][None], 3, stride=1, padding=1)[0]
            assert (wide[y[seen], x[seen]] > 0).float().mean() > 0.97
        # occupied voxels and inner query points are of the same solid
        cells = ((shown["query_points"][row] + 0.5) * 32).floor().long()
        inside = ((cells >= 0) & (cells < 32)).all(1)
        occupied = shown["voxels"][row][tuple(cells[inside].T)]
        assert (occupied == shown["query_occupancy"][row][inside]).float().mean() > 0.93
        in_render_frame = points.double() @ shown["normalized_to_dataset"][row, :3, :3].double().T
        in_render_frame += shown["normalized_to_dataset"][row, :3, 3]
        assert in_render_frame.abs().max() == pytest.approx(0.99, abs=0.02)
        name = f"{shown['category'][row]}/{shown['object_id'][row]}"
        scan = trimesh.load(written / f"raw_scans/{name}/Scan/Scan.obj", process=False).vertices
        height = np.ptp(scan[:, 1]) * 0.99 / np.abs(scan).max()
        assert float(in_render_frame[:, 2].max() - in_render_frame[:, 2].min()) == pytest.approx(height, rel=0.02)


def test_the_solid_itself_is_what_the_scan_says(written: Path) -> None:
    data = OmniObject3D(str(written), reads={"query_points", "query_occupancy"})
    source = data.load_source()
    solids = small_objects(("chair", "solid"), 5)
    for index in (1, 7):
        points, occupancy = source.queries(index, None, slice(None))
        # marching cubes round off what is thinner than a cell
        assert (solids.solid(index).contains(points.astype(np.float64)) == occupancy).mean() > 0.95
        assert occupancy.any()
        for resolution in (32, 64):
            overlap = solids.voxels(index, resolution), source.voxels(index, resolution)
            assert (overlap[0] & overlap[1]).sum() / (overlap[0] | overlap[1]).sum() > 0.6


def test_categories_and_splits_choose(written: Path, tmp_path: Path) -> None:
    data = OmniObject3D(str(written), categories=["solid"], reads={"voxels"})
    data.setup()
    assert {name.category for name in data.source.objects} == {"solid"}
    (tmp_path / "mine.json").write_text(json.dumps({"train": ["chair/chair_0003"], "test": ["solid/solid_0001"]}))
    data = OmniObject3D(str(written), split=str(tmp_path / "mine.json"), reads={"voxels"})
    data.setup()
    assert data.split_name == "mine"
    assert [data.source.objects[index].object_id for index in data.positions["train"]] == ["chair_0003"]
    with pytest.raises(ValueError, match=r"categories: .* has no apple; it has chair, solid"):
        OmniObject3D(str(written), categories=["apple"]).setup()
    with pytest.raises(ValueError, match="split 'onet': OmniObject3D knows sorted; give that or a json file"):
        OmniObject3D(str(written), split="onet").setup()


def open_scan(root: Path, name: str) -> None:
    """Take a tenth of the faces out of a scan."""
    path = root / f"raw_scans/chair/{name}/Scan/Scan.obj"
    lines = path.read_text().splitlines()
    faces = [line for line in lines if line.startswith("f ")]
    path.write_text("\n".join([line for line in lines if not line.startswith("f ")] + faces[len(faces) // 10 :]))


def test_scans_that_are_not_watertight_are_left_out_aloud_where_the_inside_is_read(root: Path) -> None:
    shutil.rmtree(root / "prepared")
    open_scan(root, "chair_0002")
    few = {"prepared_points": 50, "categories": ["chair"]}
    data = OmniObject3D(str(root), reads={"voxels"}, **few)
    with pytest.warns(UserWarning, match="1 of 5 objects lack voxels in part and are left out, chair/chair_0002"):
        data.setup()
    assert len(data.source.objects) == 4
    for kwargs in ({"reads": {"surface_points"}}, {"reads": {"voxels"}, "keep_open": True}):
        data = OmniObject3D(str(root), **kwargs, **few)
        data.setup()
        assert len(data.source.objects) == 5


def test_without_scans_point_clouds_are_the_surface_and_place_the_cameras(root: Path) -> None:
    shutil.rmtree(root / "raw_scans")
    shutil.rmtree(root / "prepared")
    data = OmniObject3D(
        str(root), batch_size=1, num_surface_points=200, reads={"images", "surface_points", "camera_to_world"}
    )
    data.setup()
    assert "surface_normals" not in data.source.keys
    assert data.source.num_surface_points(0) == 1024
    scene = scene_of(root)
    assert scene.surface_normals is None
    assert share_in_masks(scene.surface_points, scene) > 0.97
    with pytest.raises(ValueError, match=r"R reads 'voxels', which .* does not have; unpack raw_scans/"):
        OmniObject3D(str(root), reads={"voxels"}, reader="R").setup()


def test_pictures_without_alpha_have_no_masks(root: Path) -> None:
    for path in (root / "blender_renders").rglob("images/*.png"):
        with Image.open(path) as image:
            image.convert("RGB").save(path)
    assert scene_of(root).masks is None
    shutil.rmtree(root / "raw_scans")
    shutil.rmtree(root / "point_clouds")
    assert scene_of(root).surface_points is None  # depth still says where it is
    shutil.rmtree(root / "blender_renders/chair/chair_0001/render/depths")
    with pytest.raises(
        ValueError, match="where the object is cannot be known from anything; there is no scan, no depth"
    ):
        scene_of(root)


def transforms(root: Path, change: Callable[[dict], object]) -> None:
    path = root / "blender_renders/chair/chair_0001/render/transforms.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


BROKEN_TRANSFORMS = {
    "no angle": (lambda c: c.pop("camera_angle_x"), r"expected camera_angle_x and frames .*KeyError"),
    "angle": (lambda c: c.update(camera_angle_x=4), "camera_angle_x is 4.0 .* expected an angle between 0 and pi"),
    "nan": (
        lambda c: c["frames"][2].update(transform_matrix=[[float("nan")] * 4] * 4),
        "transform_matrix of frame 2 is no camera's pose",
    ),
    "mirrored": (
        lambda c: c["frames"][0].update(transform_matrix=np.diag([1.0, 1, -1, 1]).tolist()),
        "transform_matrix of frame 0 is no camera's pose",
    ),
    "3x4": (
        lambda c: [frame.update(transform_matrix=frame["transform_matrix"][:3]) for frame in c["frames"]],
        r"the 8 transform_matrix are an array of \(8, 3, 4\)",
    ),
    "scales": (lambda c: c["frames"][1].update(scale=2.0), "frames with different scale"),
    "picture": (lambda c: c["frames"][4].update(file_path="x/r_99"), r"r_99\.png is missing, as 1 of the 8 pictures"),
    "no frames": (lambda c: c.update(frames=[]), "the 0 transform_matrix are an array of"),
}  # fmt: skip


@pytest.mark.parametrize("problem", BROKEN_TRANSFORMS)
def test_a_broken_transforms_json_says_what_is_wrong(root: Path, problem: str) -> None:
    change, message = BROKEN_TRANSFORMS[problem]
    transforms(root, change)
    with pytest.raises(ValueError, match=message):
        scene_of(root)


def test_files_that_are_damaged_or_missing_are_named(root: Path) -> None:
    render = root / "blender_renders/chair/chair_0001/render"
    (render / "images/r_3.png").write_bytes((render / "images/r_3.png").read_bytes()[:90])
    with pytest.raises(ValueError, match=r"r_3\.png cannot be read as an image"):
        scene_of(root)
    Image.new("RGBA", (SIZE, SIZE + 2)).save(render / "images/r_3.png")
    with pytest.raises(ValueError, match=r"r_3\.png has 48x50 pixels, but r_0\.png has 48x48"):
        scene_of(root)
    (render / "transforms.json").write_text("{")
    with pytest.raises(ValueError, match=r"transforms\.json: expected camera_angle_x and frames"):
        scene_of(root)
    (root / "raw_scans/chair/chair_0002/Scan/Scan.obj").write_text("v 0 0 0\n")
    with pytest.raises(ValueError, match=r"chair_0002/Scan/Scan\.obj has no faces|cannot be read"):
        OmniObject3DScene(str(root), "chair_0002").setup()


def test_depth_maps_that_do_not_fit_their_cameras_are_refused(root: Path) -> None:
    depths = root / "blender_renders/chair/chair_0001/render/depths"
    for path in depths.iterdir():
        write_exr(path, {"V": read_exr(path)["V"] * 0.8})
    with pytest.raises(
        ValueError, match="the depth maps agree with the cameras neither as distances along the axis nor"
    ):
        scene_of(root, normalization="depth")
    write_exr(depths / "r_2_depth0001.exr", {"V": np.zeros((5, 5), np.float32)})
    with pytest.raises(ValueError, match=r"r_2_depth0001\.exr: channels V of shape \(5, 5\), expected one of depth of"):
        scene_of(root, normalization="depth")
    (depths / "r_2_depth0001.exr").unlink()
    with pytest.raises(ValueError, match=r"has no r_2_depth\*\.exr; unpack"):
        scene_of(root, normalization="depth")
    with pytest.raises(ValueError, match="downscale is 2, but depth cannot be averaged over edges"):
        OmniObject3DScene(str(root), "chair_0001", downscale=2, with_depth=True)


def test_a_scan_of_another_object_is_noticed(root: Path) -> None:
    scan = root / "raw_scans/chair/chair_0001/Scan/Scan.obj"
    lines = [line.split() for line in scan.read_text().splitlines()]
    # lying instead of standing
    scan.write_text(
        "\n".join(
            f"v {x} {z} {y}" if k == "v" else f"f {x} {z} {y}" for k, x, y, z in [l for l in lines if len(l) == 4]
        )
    )
    with pytest.raises(
        ValueError, match=r"only \d+% of the scan lie inside the masks; scan and renderings are not of one"
    ):
        scene_of(root)
    shutil.rmtree(root / "prepared")
    transforms(root, lambda c: [frame.update(scale=frame["scale"] * 2) for frame in c["frames"]])
    few = {"prepared_points": 50, "categories": ["chair"], "reads": {"camera_to_world", "images"}}
    source = OmniObject3D(str(root), **few).load_source()
    with pytest.raises(ValueError, match=r"asks for .*; scan and renderings are not of one object"):
        source.cameras(1, [0])
    shutil.copy(scan, root / "raw_scans/chair/chair_0000/Scan/Scan.obj")
    shutil.rmtree(root / "prepared")
    with pytest.raises(
        ValueError, match=r"only .* of the scan of chair/chair_0000 lie inside the masks|scan was multiplied"
    ):
        OmniObject3D(str(root), **few).load_source()


def test_a_wrong_root_or_object_says_what_there_is(written: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the root .*nowhere is no folder; expected a folder with blender_renders/"):
        OmniObject3D(str(tmp_path / "nowhere")).setup()
    with pytest.raises(ValueError, match=r"nothing of it is in .*; expected a folder with blender_renders/"):
        find_objects(tmp_path)
    (tmp_path / "raw_scans/apple").mkdir(parents=True)
    (tmp_path / "raw_scans/apple/apple_001.tar.gz").touch()
    with pytest.raises(ValueError, match=r"holds archives only, .*apple_001\.tar\.gz for one; unpack them"):
        find_objects(tmp_path)
    with pytest.raises(ValueError, match=r"object_id 'apple_001': .* has none; it has chair_0000, .* and 2 more"):
        OmniObject3DScene(str(written), "apple_001").setup()


def test_pictures_that_an_object_has_not_are_named(root: Path) -> None:
    shutil.rmtree(root / "blender_renders/chair/chair_0001")
    with pytest.raises(
        ValueError, match=r"chair_0001 has no blender_renders in .*; of pictures it has blender_renders_24"
    ):
        scene_of(root, views="blender_renders")
    assert len(scene_of(root).images) == 24
    with pytest.raises(ValueError, match="normalization is 'scan', but how the video of chair_0001 lies to its scan"):
        scene_of(root, views="videos_processed", normalization="scan")


BROKEN_VIDEOS = {
    "poses": (lambda f: (f / "poses_bounds.npy").unlink(), r"poses_bounds\.npy is missing"),
    "shape": (lambda f: np.save(f / "poses_bounds.npy", np.zeros((8, 15))), r"shape \(8, 15\), expected \(V, 17\)"),
    "nan": (lambda f: np.save(f / "poses_bounds.npy", np.full((8, 17), np.nan)), "finite numbers as LLFF's"),
    "zeros": (lambda f: np.save(f / "poses_bounds.npy", np.zeros((8, 17))), "its rows are no cameras in LLFF's order"),
    "text": (lambda f: (f / "poses_bounds.npy").write_text("no"), r"poses_bounds\.npy cannot be read"),
    "no mattes": (lambda f: shutil.rmtree(f / "matting"), "matting is missing"),
    "matte": (lambda f: (f / "matting/frame_00002.png").unlink(), r"no matte of frame_00002\.png, and 7 mattes for 8"),
    "matte's shape": (
        lambda f: Image.new("L", (SIZE, 24)).save(f / "matting/frame_00002.png"), "48x24 pixels, its frame 48x48",
    ),
    "empty": (
        lambda f: [Image.new("L", (SIZE, SIZE)).save(path) for path in (f / "matting").iterdir()],
        "0 of 8 masks have something in them",
    ),
}  # fmt: skip


@pytest.mark.parametrize("problem", BROKEN_VIDEOS)
def test_a_broken_video_says_what_is_wrong(root: Path, problem: str) -> None:
    change, message = BROKEN_VIDEOS[problem]
    change(root / "videos_processed/chair/chair_0001/standard")
    with pytest.raises(ValueError, match=message):
        scene_of(root, views="videos_processed")


def test_mattes_with_alpha_and_of_another_size_are_the_same_mattes(root: Path) -> None:
    before = scene_of(root, views="videos_processed").masks
    for number, path in enumerate(sorted((root / "videos_processed/chair/chair_0001/standard/matting").iterdir())):
        with Image.open(path) as matte:
            rgba = Image.new("RGBA", matte.size, "white")
            rgba.putalpha(matte)
        rgba.resize((SIZE * 2, SIZE * 2), Image.Resampling.NEAREST).save(path.with_name(f"{number:04d}.png"))
        path.unlink()
    after = scene_of(root, views="videos_processed").masks
    assert ((after > 127) == (before > 127)).float().mean() > 0.99


def test_a_picture_too_small_is_named(written: Path) -> None:
    paths = read_frames(find_objects(written)[0].paths["blender_renders"]).paths
    with pytest.raises(ValueError, match=r"r_0\.png has too few pixels to be made 100 times smaller"):
        read_pictures(paths, 100)
    with pytest.raises(ValueError, match="downscale is 0, expected a whole factor"):
        read_pictures(paths, 0)
