import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules import synthetic
from datamodules.dtu import DTU, read_scan
from datamodules.synthetic import SyntheticScene, make_scene
from ops.cameras import pixel_centers, pixel_rays, project
from ops.scenes import SCENES

SMALL = {"num_views": 6, "image_size": 24, "num_surface_points": 2000, "held_out": [0]}


@pytest.fixture(scope="module", params=sorted(SCENES))
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SyntheticScene:
    data = SyntheticScene(request.param, root=str(tmp_path_factory.mktemp("synthetic")), **SMALL)
    data.setup()
    return data


def test_true_surface_points_are_on_the_surface_with_unit_outward_normals(data: SyntheticScene) -> None:
    sdf = SCENES[data.scene_name].sdf
    points, normals = data.scene.surface_points.double(), data.scene.surface_normals.double()
    assert points.shape == normals.shape == (2000, 3)
    assert sdf(points).abs().max() < 2e-7  # float32 positions
    assert torch.allclose(normals.norm(dim=-1), torch.ones(2000, dtype=torch.float64), atol=1e-6)
    # a step along the normal leaves, one against it enters; creases may differ
    assert (sdf(points + 1e-3 * normals) > 0).double().mean() > 0.995
    assert (sdf(points - 1e-3 * normals) < 0).double().mean() > 0.995


def test_depth_ends_on_the_surface_and_nothing_is_before_it(data: SyntheticScene) -> None:
    scene, sdf = data.scene, SCENES[data.scene_name].sdf
    for view in range(2):
        pixels = pixel_centers(24, 24)
        origins, directions = pixel_rays(pixels, scene.intrinsics[view], scene.camera_to_world[view])
        depth = scene.depth[view].flatten()
        hits = depth.isfinite()
        assert 20 < hits.sum() < 300
        points = origins[hits] + depth[hits, None] * directions[hits]
        assert sdf(points).abs().max() < 1e-3
        steps = torch.linspace(0, 0.999, 200)[:, None, None]
        assert (sdf(origins[hits] + steps * depth[hits, None] * directions[hits]) > 0).all()
        through = origins[~hits] + torch.linspace(1.5, 4.5, 400)[:, None, None] * directions[~hits]
        assert (sdf(through) > -1e-3).all()


def test_masks_cover_where_the_centre_hits_and_colours_stay_within_coverage(data: SyntheticScene) -> None:
    scene = data.scene
    hits = scene.depth.isfinite()
    assert (scene.masks[hits] > 0).float().mean() > 0.99
    assert (scene.masks[~hits] < 255).float().mean() > 0.99
    # a pixel is all, three quarters, half, a quarter or nothing
    assert set(scene.masks.unique().tolist()) <= {0, 63, 127, 191, 255}
    assert (scene.images <= scene.masks[..., None]).all()
    assert (scene.images[scene.masks == 255].float().std(dim=0) > 10).all()  # painted


def test_surface_points_fall_on_the_mask(data: SyntheticScene) -> None:
    scene = data.scene
    for view in range(6):
        pixels, depth = project(scene.surface_points, scene.intrinsics[view], scene.camera_to_world[view])
        x, y = pixels.floor().long().T
        assert (depth > 0).all()
        # within a pixel, since four samples can miss what is thinner
        near = torch.nn.functional.max_pool2d(scene.masks[view][None].float(), 3, stride=1, padding=1)[0]
        assert (near[y, x] > 0).float().mean() > 0.99


def test_a_white_background_differs_by_what_is_not_covered(data: SyntheticScene) -> None:
    white = SyntheticScene(data.scene_name, root=str(data.path.parent), background="white", **SMALL)
    assert white.path == data.path
    white.setup()
    expected = data.scene.images.int() + 255 - data.scene.masks[..., None].int()
    assert torch.equal(white.scene.images.int(), expected)


def test_the_scene_is_made_once_and_always_the_same(data: SyntheticScene) -> None:
    written = data.path.stat().st_mtime_ns
    again = SyntheticScene(data.scene_name, root=str(data.path.parent), **SMALL)
    again.prepare_data()
    assert data.path.stat().st_mtime_ns == written
    assert [path.name for path in data.path.parent.iterdir()] == [data.path.name]
    made = make_scene(SCENES[data.scene_name], 6, 24, 2000)
    with np.load(data.path, allow_pickle=False) as file:
        for name in file.files:
            np.testing.assert_array_equal(file[name], made[name].numpy(), err_msg=name)


def test_other_settings_are_kept_apart(tmp_path: Path) -> None:
    paths = {SyntheticScene(root=str(tmp_path), **{**SMALL, "image_size": size}).path for size in (24, 32)}
    assert len(paths) == 2


def test_a_file_cut_short_is_made_again(data: SyntheticScene, tmp_path: Path) -> None:
    again = SyntheticScene(data.scene_name, root=str(tmp_path), **SMALL)
    again.path.write_bytes(data.path.read_bytes()[:-1000])
    again.setup()
    assert torch.equal(again.scene.images, data.scene.images)


def test_projections_lead_from_the_dataset_frame_to_the_pixels_of_the_normalised_one(data: SyntheticScene) -> None:
    scene = data.scene
    points = scene.surface_points.double()
    in_dataset = points @ scene.normalized_to_dataset[:3, :3].T + scene.normalized_to_dataset[:3, 3]
    assert not torch.allclose(points, in_dataset, atol=10)
    for view, projection in enumerate(scene.observation["projections"]):
        homogeneous = in_dataset @ projection[:, :3].T + projection[:, 3]
        intrinsics, pose = scene.intrinsics[view].double(), scene.camera_to_world[view].double()
        pixels, depth = project(points, intrinsics, pose)
        assert torch.allclose(homogeneous[:, :2] / homogeneous[:, 2:], pixels, atol=1e-4)
        assert torch.allclose(homogeneous[:, 2], depth * 85.0, rtol=1e-5)  # in millimetres


def test_the_dtu_reader_reads_back_what_was_written_in_the_neus_layout(data: SyntheticScene, tmp_path: Path) -> None:
    data.write_neus_layout(tmp_path / "scan7")
    names = [path.name for path in sorted((tmp_path / "scan7").rglob("*.*"))]
    assert {"000000.png", "005.png", "cameras_sphere.npz"} <= set(names)
    read = DTU(str(tmp_path), 7, held_out=[0])
    read.setup()
    ours, theirs = data.scene, read.scene
    assert torch.equal(ours.images, theirs.images)
    assert torch.equal(ours.masks, theirs.masks)
    assert torch.allclose(ours.normalized_to_dataset, theirs.normalized_to_dataset)
    assert torch.equal(ours.observation["masks"], theirs.observation["masks"])
    assert torch.allclose(ours.observation["projections"], theirs.observation["projections"], rtol=1e-5, atol=1e-3)
    pixels = pixel_centers(24, 24)
    for view in range(6):
        our_rays = pixel_rays(pixels, ours.intrinsics[view], ours.camera_to_world[view])
        their_rays = pixel_rays(pixels, theirs.intrinsics[view], theirs.camera_to_world[view])
        for one, other in zip(our_rays, their_rays, strict=True):
            assert torch.allclose(one, other, atol=1e-5)
    our_batch = next(iter(data.train_dataloader()))
    their_batch = next(iter(read.train_dataloader()))
    assert torch.equal(our_batch["colors"], their_batch["colors"])


def test_the_command_writes_the_neus_layout(
    data: SyntheticScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {
        "scene": data.scene_name,
        "num_views": 3,
        "image_size": 16,
        "root": tmp_path,
        "output": tmp_path / "scan9",
    }
    flags = [str(word) for name, value in arguments.items() for word in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", ["synthetic", *flags])
    synthetic.main()
    assert read_scan(tmp_path / "scan9").images.shape == (3, 16, 16, 3)


def test_an_unknown_scene_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="no synthetic scene 'teapot'; there are knot, statue"):
        SyntheticScene("teapot")
