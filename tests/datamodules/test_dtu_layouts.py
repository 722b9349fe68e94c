"""The same scan in the layouts of four groups, and scans that lack something."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
import trimesh
from PIL import Image

from datamodules.dtu import DTU, read_scan
from datamodules.dtu_objects import DTUObjects
from datamodules.prepare.neus_layout import write_neus_layout
from datamodules.synthetic import SyntheticScene

FULL_HEIGHT, FULL_WIDTH = 1200, 1600


@pytest.fixture(scope="module")
def knot(tmp_path_factory: pytest.TempPathFactory) -> SyntheticScene:
    made = tmp_path_factory.mktemp("made")
    scene = SyntheticScene(num_views=8, image_size=48, num_surface_points=3000, root=str(made))
    scene.setup()
    return scene


@pytest.fixture
def scan(knot: SyntheticScene, tmp_path: Path) -> Path:
    """Eight square photographs of a knot, in the NeuS layout; millimetres."""
    write_neus_layout(knot.scene, tmp_path / "dtu_scan24")
    return tmp_path / "dtu_scan24"


def rewrite_cameras(scan: Path, change: np.ndarray | None = None, *, drop: str = "nothing") -> None:
    with np.load(scan / "cameras_sphere.npz") as file:
        cameras = {key: value.copy() for key, value in file.items() if not key.startswith(drop)}
    for key, value in cameras.items():
        if key.startswith("world_mat") and change is not None:
            value[:3] = change @ value[:3]
    (scan / "cameras_sphere.npz").unlink()
    np.savez(scan / "cameras.npz", **cameras)


def to_full_size(middle_square: bool, size: int = 48) -> np.ndarray:
    """What makes cameras of a small square those of 1600x1200, of which it is the middle; in pixels from centres."""
    scale = FULL_HEIGHT / size
    shift = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    offset = (FULL_WIDTH - FULL_HEIGHT) / 2 if middle_square else 0
    return np.linalg.inv(shift) @ np.array([[scale, 0, offset], [0, scale, 0], [0, 0, 1]]) @ shift


def assert_same_cameras(one, other, atol: float = 1e-4) -> None:
    assert torch.allclose(one.intrinsics, other.intrinsics, atol=atol * one.images.shape[1])
    assert torch.allclose(one.camera_to_world, other.camera_to_world, atol=atol)


def test_monosdf_pictures_are_the_middle_square_of_the_full_size(scan: Path) -> None:
    before = read_scan(scan)
    rewrite_cameras(scan, to_full_size(middle_square=True))
    for view, path in enumerate(sorted((scan / "image").iterdir())):
        path.rename(scan / f"{view:06d}_rgb.png")
    for view, mask in enumerate(before.masks):
        np.save(scan / f"{view:06d}_mask.npy", (mask > 127).numpy()[None].astype(np.float32))
    shutil.rmtree(scan / "image")
    shutil.rmtree(scan / "mask")
    after = read_scan(scan)
    assert torch.equal(after.images, before.images)
    assert torch.equal(after.masks > 127, before.masks > 127)
    assert_same_cameras(after, before)
    assert torch.allclose(after.observation["projections"], before.observation["projections"], rtol=1e-4, atol=1e-2)


def test_pictures_made_smaller_than_their_cameras_are_noticed(scan: Path, knot: SyntheticScene) -> None:
    folder = scan.parent / "scan40"
    (folder / "images").mkdir(parents=True)
    for view, image in enumerate(knot.scene.images.numpy()):
        wide = np.zeros((48, 64, 3), np.uint8)
        wide[:, :48] = image
        Image.fromarray(wide).save(folder / f"images/{view:04d}.png")
    shutil.copy(scan / "cameras_sphere.npz", folder / "cameras_sphere.npz")
    before = read_scan(folder)
    rewrite_cameras(folder, to_full_size(middle_square=False))
    assert_same_cameras(read_scan(folder), before)


def test_pictures_of_no_known_part_are_refused(scan: Path) -> None:
    rewrite_cameras(scan, to_full_size(middle_square=True))
    for path in (scan / "image").iterdir():
        with Image.open(path) as image:
            image.crop((0, 0, 48, 40)).save(path)
    shutil.rmtree(scan / "mask")
    with pytest.raises(
        ValueError, match=r"scan24: the images have 48x40 pixels, but the principal point is .* outside"
    ):
        read_scan(scan)


def write_2dgs(scan: Path, margin: int = 4) -> None:
    """Pictures cut by a margin at the left, alpha as masks, and a COLMAP model that knows their intrinsics."""
    scene = read_scan(scan)
    (scan / "image").rename(scan / "images")
    model = scan / "sparse/0"
    model.mkdir(parents=True)
    cameras, images = [], []
    for view, path in enumerate(sorted((scan / "images").iterdir())):
        rgba = torch.cat([scene.images[view], scene.masks[view][..., None]], dim=-1)[:, margin:].numpy()
        Image.fromarray(np.ascontiguousarray(rgba)).save(path)
        (fx, _, cx), (_, fy, cy) = scene.intrinsics[view, :2].tolist()
        cameras.append(f"{view + 1} PINHOLE {48 - margin} 48 {fx} {fy} {cx - margin} {cy}\n")
        x, y, z = (-scene.camera_to_world[view, :3, :3].T @ scene.camera_to_world[view, :3, 3]).tolist()
        rotation = trimesh.transformations.quaternion_from_matrix(scene.camera_to_world[view].double().numpy().T)
        images.append(f"{view + 1} {' '.join(map(str, rotation))} {x} {y} {z} {view + 1} {path.name}\n\n")
    (model / "cameras.txt").write_text("".join(cameras))
    (model / "images.txt").write_text("".join(images))
    (model / "points3D.txt").write_text("")


def test_2dgs_pictures_have_colmaps_intrinsics_and_their_own_alpha(scan: Path) -> None:
    pytest.importorskip("pycolmap", reason="COLMAP models are read by pycolmap")
    before = read_scan(scan)
    write_2dgs(scan)
    after = read_scan(scan)
    assert after.images.shape == (8, 48, 44, 3)
    assert torch.equal(after.masks, before.masks[:, :, 4:])
    expected = before.intrinsics.clone()
    expected[:, 0, 2] -= 4
    assert torch.allclose(after.intrinsics, expected, atol=1e-3)
    assert torch.allclose(after.camera_to_world, before.camera_to_world, atol=1e-5)


def test_2dgs_pictures_of_another_model_are_named(scan: Path) -> None:
    pytest.importorskip("pycolmap", reason="COLMAP models are read by pycolmap")
    write_2dgs(scan)
    path = scan / "sparse/0/cameras.txt"
    path.write_text(path.read_text().replace("PINHOLE 44", "PINHOLE 43"))
    with pytest.raises(ValueError, match=r"scan24: 000000\.png has 44x48 pixels and .* has 43x48 pixels for it"):
        read_scan(scan)


def test_without_scale_mat_the_masks_say_where_the_object_is(scan: Path, knot: SyntheticScene) -> None:
    rewrite_cameras(scan, drop="scale_mat")
    data = DTU(str(scan), 24)
    data.setup()
    to_millimetres = knot.scene.normalized_to_dataset
    points = knot.scene.surface_points.double() @ to_millimetres[:3, :3].T + to_millimetres[:3, 3]
    inverse = torch.linalg.inv(data.scene.normalized_to_dataset)
    radius = (points @ inverse[:3, :3].T + inverse[:3, 3]).norm(dim=1).max()
    assert 0.8 < radius < 0.97


def test_without_scale_mat_and_masks_the_cameras_say_it(scan: Path, knot: SyntheticScene) -> None:
    rewrite_cameras(scan, drop="scale_mat")
    shutil.rmtree(scan / "mask")
    data = DTU(str(scan), 24)
    data.setup()
    assert data.scene.masks is None
    exact, found = knot.scene.normalized_to_dataset, data.scene.normalized_to_dataset
    # all that is known is what the cameras look at, and that it fits into their pictures
    assert 0.8 < found[0, 0] / exact[0, 0] < 1.6
    assert (found[:3, 3] - exact[:3, 3]).norm() < 0.1 * exact[0, 0]


def test_a_scale_mat_that_only_some_photographs_have_is_missed(scan: Path) -> None:
    rewrite_cameras(scan, drop="scale_mat_3")
    with pytest.raises(ValueError, match=r"cameras\.npz has no scale_mat_3; expected it for each image"):
        read_scan(scan)


@pytest.fixture
def official(knot: SyntheticScene, tmp_path: Path) -> Path:
    """The knot's surface as a structured-light cloud, on a floor that reaches far beyond it."""
    to_millimetres = knot.scene.normalized_to_dataset.numpy()
    points = knot.scene.surface_points.double().numpy() @ to_millimetres[:3, :3].T + to_millimetres[:3, 3]
    lowest = points[:, 2].min() - 1
    floor = np.random.default_rng(0).uniform(-300, 300, (500, 3)) + to_millimetres[:3, 3]
    floor[:, 2] = lowest
    (tmp_path / "Points/stl").mkdir(parents=True)
    trimesh.PointCloud(np.concatenate([points, floor])).export(tmp_path / "Points/stl/stl024_total.ply")
    (tmp_path / "ObsMask").mkdir()
    scipy.io.savemat(tmp_path / "ObsMask/Plane24.mat", {"P": np.array([[0], [0], [1], [-lowest - 0.5]])})
    return tmp_path


def test_scans_are_objects_whose_points_lie_where_their_pictures_show_them(scan: Path, official: Path) -> None:
    reads = {"images", "masks", "surface_points", "intrinsics", "camera_to_world"}
    data = DTUObjects(
        str(scan.parent), official_root=str(official), split=None, batch_size=1, num_surface_points=800, reads=reads
    )
    source = data.load_source()
    assert source.objects[0].object_id == "scan24"
    assert source.num_surface_points(0) == 3000  # neither the floor beneath nor that beyond
    views = [0, 5]
    pixels, (intrinsics, poses) = source.pixels(0, views), source.cameras(0, views)
    points = torch.from_numpy(source.surface(0, slice(None))[0])
    assert points.norm(dim=1).max() < 0.5
    for picture, matrix, pose in zip(pixels, intrinsics, poses, strict=True):
        from ops.cameras import project

        x, y = project(points, torch.from_numpy(matrix), torch.from_numpy(pose))[0].floor().long().T
        assert (picture[y, x, 3] > 0).mean() > 0.97
    in_millimetres = points.numpy() @ source.normalized_to_dataset(0)[:3, :3].T + source.normalized_to_dataset(0)[:3, 3]
    assert np.abs(in_millimetres - in_millimetres.mean(0)).max() < 85


def test_a_batch_of_scans_leads_back_to_millimetres(scan: Path, official: Path) -> None:
    shutil.copytree(scan, scan.parent / "scan25")
    shutil.copy(official / "Points/stl/stl024_total.ply", official / "Points/stl/stl025_total.ply")
    data = DTUObjects(
        str(scan.parent), official_root=str(official), batch_size=1, image_size=32, crop=40,
        reads={"images", "surface_points"}, eval_surface_points=100,
    )  # fmt: skip
    data.setup()
    (batch,) = list(data.train_dataloader())
    assert batch["images"].shape == (1, 1, 3, 32, 32)
    shown = next(iter(data.test_dataloader()))
    assert shown["normalized_to_dataset"][0, 0, 0] == 2 * 85
    assert shown["masks"].shape == (1, 1, 32, 32)


def test_a_scan_that_does_not_exist_lists_those_that_do(scan: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no scan 37 in .*found dtu_scan24"):
        DTUObjects(str(scan.parent), scans=[24, 37]).load_source()
    with pytest.raises(ValueError, match=r"DTU: no scans in .*expected folders such as dtu_scan24/"):
        DTUObjects(str(tmp_path / "nowhere")).load_source()


def test_what_scans_cannot_give_is_said_once(scan: Path, official: Path) -> None:
    with pytest.raises(ValueError, match=r"R2N2 reads 'voxels', which DTUObjects does not have; DTU's scans see surf"):
        DTUObjects(str(scan.parent), reads={"images", "voxels"}, reader="R2N2").setup()
    with pytest.raises(ValueError, match=r"PSGN reads 'surface_points', .*; set official_root to the folder"):
        DTUObjects(str(scan.parent), reads={"images", "surface_points"}, reader="PSGN").setup()
    (official / "Points/stl/stl024_total.ply").unlink()
    with pytest.raises(ValueError, match=r"DTU scan24: official_root has no .*stl024_total\.ply"):
        DTUObjects(str(scan.parent), official_root=str(official)).load_source()
    with pytest.raises(ValueError, match="split 'r2n2': DTU knows sorted"):
        DTUObjects(str(scan.parent), split="r2n2").setup()


def test_points_of_another_scan_are_noticed(scan: Path, official: Path) -> None:
    trimesh.PointCloud(np.full((5, 3), 1e5)).export(official / "Points/stl/stl024_total.ply")
    with pytest.raises(ValueError, match=r"scan24: none of the 5 points of .* lies on the object"):
        DTUObjects(str(scan.parent), official_root=str(official)).load_source().surface(0, slice(None))


def test_the_real_scan_without_its_normalisation_finds_the_same_object(test_data: Path, tmp_path: Path) -> None:
    folder = test_data / "dtu_scan24_400x300"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    copy = tmp_path / "scan24"
    copy.mkdir()
    for name in ("image", "mask"):
        (copy / name).symlink_to(folder / name)
    with np.load(folder / "cameras_sphere.npz") as file:
        world = {key: value for key, value in file.items() if key.startswith("world_mat")}
        official = file["scale_mat_0"]
    np.savez(copy / "cameras.npz", **world)
    found = read_scan(copy, downscale=2).normalized_to_dataset.numpy()
    # IDR's sphere is a little larger than the house, and about another point of it
    assert 0.7 < found[0, 0] / official[0, 0] < 1.1
    assert np.linalg.norm(found[:3, 3] - official[:3, 3]) < 0.5 * official[0, 0]
