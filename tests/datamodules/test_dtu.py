import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
import trimesh
from PIL import Image

from datamodules.dtu import DTU, find_scan, read_cameras, read_scan
from datamodules.prepare.neus_layout import write_neus_layout
from ops.cameras import pixel_centers, pixel_rays, project
from tests.datamodules.toy import HEIGHT, WIDTH, make_scene

NORMALIZED_TO_DATASET = torch.tensor(
    [[50.0, 0, 0, 10], [0, 50, 0, -20], [0, 0, 50, 600], [0, 0, 0, 1]], dtype=torch.float64
)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """Scan 24 in the NeuS layout, five photographs."""
    images = torch.randint(256, (5, HEIGHT, WIDTH, 3), generator=torch.Generator().manual_seed(0)).byte()
    write_neus_layout(make_scene(images=images, normalized_to_dataset=NORMALIZED_TO_DATASET), tmp_path / "dtu_scan24")
    return tmp_path / "dtu_scan24"


def change_cameras(scan: Path, **changes: np.ndarray | None) -> None:
    with np.load(scan / "cameras_sphere.npz") as file:
        cameras = {**file, **changes}
    np.savez(scan / "cameras_sphere.npz", **{key: value for key, value in cameras.items() if value is not None})


@pytest.mark.parametrize("asked", [24, "24", "dtu_scan24", "scan24"])
def test_a_scan_is_found_by_number_or_name_in_root_or_as_root(scan: Path, asked: int | str) -> None:
    if asked != "scan24":
        assert find_scan(scan.parent, asked) == scan
    assert find_scan(scan, asked) == scan


def test_the_layouts_of_neus_and_idr_read_the_same(scan: Path, tmp_path: Path) -> None:
    idr = tmp_path / "idr" / "scan24"
    shutil.copytree(scan, idr)
    (idr / "cameras_sphere.npz").rename(idr / "cameras.npz")
    (idr / "image").rename(idr / "images")
    one, other = read_scan(scan), read_scan(find_scan(tmp_path / "idr", 24))
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.masks, other.masks)
    assert torch.equal(one.camera_to_world, other.camera_to_world)
    assert one.name == other.name == "scan24"


def test_a_pixel_counted_from_its_centre_gains_half_a_pixel(scan: Path) -> None:
    projections, normalized_to_dataset = read_cameras(scan / "cameras_sphere.npz", "scan24")
    with np.load(scan / "cameras_sphere.npz") as file:
        world_mat = torch.from_numpy(file["world_mat_3"])
    point = torch.tensor([10.0, -20.0, 600.0, 1.0], dtype=torch.float64)
    theirs, ours = world_mat[:3] @ point, projections[3] @ point
    assert torch.allclose(ours[:2] / ours[2], theirs[:2] / theirs[2] + 0.5)
    assert torch.equal(normalized_to_dataset, NORMALIZED_TO_DATASET)


def test_every_photograph_keeps_its_own_intrinsics(scan: Path) -> None:
    assert torch.allclose(read_scan(scan).intrinsics, make_scene().intrinsics, atol=1e-4)
    assert read_scan(scan).intrinsics[:, 0, 2].unique().numel() == 5


def test_downscaling_averages_areas_and_keeps_every_ray(scan: Path) -> None:
    full, half = read_scan(scan), read_scan(scan, downscale=2)
    blocks = full.images.float().reshape(5, HEIGHT // 2, 2, WIDTH // 2, 2, 3).mean(dim=(2, 4))
    assert (half.images.float() - blocks).abs().max() <= 0.53  # Pillow rounds in fixed point
    # the corner that four pixels share is the centre of the pixel that replaces them
    small = pixel_centers(HEIGHT // 2, WIDTH // 2)
    for view in range(5):
        _, at_centers = pixel_rays(small, half.intrinsics[view], half.camera_to_world[view])
        _, at_corners = pixel_rays(small * 2, full.intrinsics[view], full.camera_to_world[view])
        assert torch.allclose(at_centers, at_corners, atol=1e-6)
    assert half.observation["masks"].shape == (5, HEIGHT, WIDTH)  # protocols cull at full size


def test_rows_that_fill_no_pixel_are_cut_and_rays_still_agree(scan: Path) -> None:
    full, fifth = read_scan(scan), read_scan(scan, downscale=5)
    assert fifth.images.shape == (5, 2, 3, 3)
    blocks = full.images[:, :10, :15].float().reshape(5, 2, 5, 3, 5, 3).mean(dim=(2, 4))
    assert (fifth.images.float() - blocks).abs().max() <= 0.53  # Pillow rounds in fixed point
    _, one = pixel_rays(torch.tensor([[2.5, 1.5]]), fifth.intrinsics[0], fifth.camera_to_world[0])
    _, other = pixel_rays(torch.tensor([[12.5, 7.5]]), full.intrinsics[0], full.camera_to_world[0])
    assert torch.allclose(one, other, atol=1e-6)


def test_photographs_are_ordered_by_number_not_by_letter(scan: Path) -> None:
    before = read_scan(scan)
    for number, path in enumerate(sorted((scan / "image").iterdir())):
        path.rename(scan / "image" / f"view{8 + number}.png")  # view8, view9, view10, ...
    assert torch.equal(read_scan(scan).images, before.images)


def test_a_folder_without_masks_has_none(scan: Path) -> None:
    shutil.rmtree(scan / "mask")
    data = DTU(str(scan), 24, held_out=[0])
    data.setup()
    assert "masks" not in next(iter(data.test_dataloader()))
    with pytest.raises(ValueError, match="N reads 'ray_masks', which scan24 does not have; put one mask an image into"):
        DTU(str(scan), 24, reads={"rays", "ray_masks"}, reader="N").setup()


def test_truth_is_read_into_the_normalised_frame(scan: Path, tmp_path: Path) -> None:
    official = tmp_path / "official"
    volumes = official / "SampleSet" / "MVS Data" / "ObsMask"
    volumes.mkdir(parents=True)
    (official / "Points" / "stl").mkdir(parents=True)
    points = np.random.default_rng(0).normal(size=(50, 3)) * 20 + [10, -20, 600]
    trimesh.PointCloud(points).export(official / "Points" / "stl" / "stl024_total.ply")
    volume, bounds = np.random.default_rng(1).random((4, 5, 6)) > 0.5, np.array([[-1.0, -2, 590], [20, 30, 640]])
    scipy.io.savemat(volumes / "ObsMask24_10.mat", {"ObsMask": volume.astype(np.uint8), "BB": bounds, "Res": 0.4})
    data = DTU(str(scan), 24, official_root=str(official))
    with pytest.raises(ValueError, match=r"official_root has no .*Plane24\.mat"):
        data.setup()
    scipy.io.savemat(volumes / "Plane24.mat", {"P": np.array([[0.1], [0.2], [0.3], [-4]])})
    data.setup()
    expected = torch.from_numpy((points - [10, -20, 600]) / 50).float()
    assert torch.allclose(data.scene.surface_points, expected, atol=1e-5)
    observation = next(iter(data.test_dataloader()))["observations"][0]
    assert torch.equal(observation["volume"], torch.from_numpy(volume))
    assert torch.equal(observation["volume_bounds"], torch.from_numpy(bounds))
    assert observation["volume_step"] == 0.4
    assert observation["plane"].tolist() == [0.1, 0.2, 0.3, -4]
    assert observation["projections"].shape == (5, 3, 4)


def test_sparse_points_of_a_scan_are_there_to_measure_with_though_no_loss_reads_them(scan: Path) -> None:
    (scan / "sfm_pts").mkdir()
    np.save(scan / "sfm_pts/points.npy", np.zeros((1, 3)))
    data = DTU(str(scan), 24, held_out=[1])
    data.setup()
    assert next(iter(data.test_dataloader()))["sparse_points"].shape == (1, 1, 3)
    with pytest.raises(ValueError, match="there are no sparse points at elsewhere"):
        DTU(str(scan), 24, sparse_points="elsewhere").setup()


def test_a_wrong_root_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the root .*nowhere is no folder"):
        DTU(str(tmp_path / "nowhere"), 24).setup()
    with pytest.raises(ValueError, match=r"no scan in .*looked for dtu_scan24/, scan24/, 24/.*cameras_sphere.npz"):
        DTU(str(tmp_path), 24).setup()


def test_a_wrong_scan_lists_those_there_are(scan: Path) -> None:
    with pytest.raises(ValueError, match=r"no scan 37 in .*found dtu_scan24"):
        DTU(str(scan.parent), 37).setup()
    with pytest.raises(ValueError, match="is scan 24 itself, but scan 37 was asked for"):
        DTU(str(scan), 37).setup()


def test_counts_that_differ_are_named(scan: Path) -> None:
    (scan / "image" / "000002.png").unlink()
    with pytest.raises(
        ValueError, match=r"DTU scan24: 4 images but 5 cameras in cameras_sphere\.npz; check that image/"
    ):
        read_scan(scan)
    change_cameras(scan, world_mat_4=None)
    with pytest.raises(ValueError, match="DTU scan24: 4 images but 5 masks"):
        read_scan(scan)
    shutil.rmtree(scan / "image")
    with pytest.raises(ValueError, match="DTU scan24: no PNG or JPEG in image/ or images/"):
        read_scan(scan)


def test_a_truncated_image_in_the_middle_is_named(scan: Path) -> None:
    path = scan / "image" / "000002.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"000002\.png cannot be read as an image .*download it again"):
        read_scan(scan)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"000002\.png cannot be read as an image"):
        read_scan(scan)


def test_sizes_that_differ_are_named(scan: Path) -> None:
    Image.new("RGB", (WIDTH + 1, HEIGHT)).save(scan / "image" / "000003.png")
    with pytest.raises(ValueError, match=r"000003\.png has 17x12 pixels, but 000000\.png has 16x12"):
        read_scan(scan)


def test_masks_of_another_size_are_brought_to_that_of_the_images(scan: Path) -> None:
    before = read_scan(scan)
    for path in (scan / "mask").iterdir():
        with Image.open(path) as mask:
            mask.resize((WIDTH * 2, HEIGHT * 2), Image.Resampling.NEAREST).save(path)
    after = read_scan(scan)
    assert torch.equal(after.masks, before.masks)
    assert torch.equal(after.observation["masks"], before.observation["masks"])


def test_masks_of_another_shape_are_named(scan: Path) -> None:
    for path in (scan / "mask").iterdir():
        Image.new("L", (WIDTH, WIDTH)).save(path)
    with pytest.raises(ValueError, match=r"DTU scan24: the masks have 16x16 pixels, the images 16x12 .*another part"):
        read_scan(scan)


@pytest.mark.parametrize(
    ("matrix", "problem"), [(np.full((4, 4), np.nan), "not finite"), (np.zeros((4, 4)), "singular")]
)
def test_a_camera_that_is_none_is_named(scan: Path, matrix: np.ndarray, problem: str) -> None:
    change_cameras(scan, world_mat_2=matrix)
    with pytest.raises(ValueError, match=rf"DTU scan24: the camera of 000002\.png \(world_mat_2\): .*{problem}"):
        read_scan(scan)


def test_cameras_without_or_with_several_normalisations_are_refused(scan: Path) -> None:
    change_cameras(scan, scale_mat_1=np.diag([51.0, 51, 51, 1]))
    with pytest.raises(ValueError, match=r"scale_mat of cameras_sphere\.npz differs between images"):
        read_scan(scan)
    change_cameras(scan, scale_mat_1=None)
    with pytest.raises(ValueError, match=r"cameras_sphere\.npz has no scale_mat_1"):
        read_scan(scan)


def test_a_wrong_normalisation_is_noticed(scan: Path) -> None:
    far = NORMALIZED_TO_DATASET.numpy().copy()
    far[:3, 3] += 1e5
    change_cameras(scan, **{f"scale_mat_{view}": far for view in range(5)})
    with pytest.raises(ValueError, match="no ray of any photograph meets the unit sphere"):
        DTU(str(scan), 24).setup()
    change_cameras(scan, **{f"scale_mat_{view}": np.diag([1e4, 1e4, 1e4, 1]) for view in range(5)})
    with pytest.raises(ValueError, match="all 5 cameras are inside the unit sphere"):
        DTU(str(scan), 24).setup()


def test_the_real_scan_looks_at_its_object(test_data: Path) -> None:
    folder = test_data / "dtu_scan24_400x300"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    data = DTU(str(folder), 24, held_out=8, reads={"rays", "ray_masks"})
    data.setup()
    scene = data.scene
    assert scene.images.shape == (49, 300, 400, 3)
    assert len(data.held_out_views) == 7
    distances = scene.camera_to_world[:, :3, 3].norm(dim=-1)
    assert 2.7 < distances.min() < distances.max() < 3.0
    assert torch.allclose(scene.intrinsics[:, 0, 0], torch.tensor(723.08), atol=0.05)  # 2892.3 at full size
    # the mask lies within the unit sphere's image, and the object is on the sphere's axis
    for view in range(0, 49, 12):
        origins, directions = pixel_rays(pixel_centers(300, 400), scene.intrinsics[view], scene.camera_to_world[view])
        closest = torch.linalg.cross(origins, directions).norm(dim=-1)
        assert (closest[scene.masks[view].flatten() > 127] < 1.01).all()
        center, _ = project(torch.zeros(1, 3), scene.intrinsics[view], scene.camera_to_world[view])
        x, y = center[0].long()
        assert scene.masks[view, y, x] == 255
