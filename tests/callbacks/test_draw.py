"""Panels: which files, and what is where in them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from callbacks.draw import Draw
from callbacks.panels import DISTANCE_LIMIT, GUTTER, TITLE_SIZE, grid, picture, shape_cameras, shape_panel, view_panel
from ops.cameras import project
from ops.colormaps import HEAT
from ops.types import Shape
from tests.callbacks.toy import CORNERS, FACES, ToyMethod, collate, loader, sample, trainer

ROOT = Path(__file__).parents[2]


def _names(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "run" / "test" / "panels").iterdir())


def test_names_say_stage_step_object_and_kind(tmp_path: Path) -> None:
    draw = Draw(size=32)
    trainer(tmp_path, [draw]).validate(ToyMethod(), loader(1), verbose=False)
    trainer(tmp_path, [draw]).test(ToyMethod(), loader(2), verbose=False)
    tests = [f"test_thing_{k}_{kind}.png" for k in range(2) for kind in ("shape", "views")]
    assert _names(tmp_path) == [*tests, "val_step001000_thing_0_views.png"]


def test_max_objects_are_drawn_spread_over_all_and_an_empty_shape_has_no_picture(tmp_path: Path) -> None:
    trainer(tmp_path, [Draw(max_objects=3, size=32)]).test(ToyMethod(empty=(3,)), loader(7), verbose=False)
    assert _names(tmp_path) == [
        f"test_thing_{k}" for k in ("0_shape.png", "0_views.png", "3_views.png", "6_shape.png", "6_views.png")
    ]


def test_every_validation_of_a_fit_is_drawn_anew_and_the_sanity_check_is_not(tmp_path: Path) -> None:
    method = ToyMethod()
    method.__dict__.pop("step")  # then the trainer's counts
    fit = trainer(tmp_path, [Draw(size=32)], max_epochs=2, num_sanity_val_steps=1)
    fit.fit(method, loader(2), loader(1))
    assert _names(tmp_path) == [f"val_step00000{step}_thing_0_views.png" for step in (1, 2)]


@pytest.mark.parametrize("kwargs", [{"logger": False}, {"fast_dev_run": True}])
def test_without_a_logger_nothing_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kwargs: dict[str, bool]
) -> None:
    monkeypatch.chdir(tmp_path)
    trainer(tmp_path / "unused", [Draw()], **kwargs).test(ToyMethod(), loader(2), verbose=False)
    assert not list(tmp_path.rglob("*.png"))


def test_a_row_of_views_is_photograph_render_normals_and_error() -> None:
    batch = collate([sample(0)]) | {"images": torch.full((1, 2, 3, 40, 40), 0.2)}
    normals = torch.tensor([0.0, 0.0, 1.0])[:, None, None].expand(1, 2, 3, 40, 40)
    renders = {"images": torch.full((1, 2, 3, 40, 40), 0.7), "normals": normals}
    panel = np.asarray(view_panel(renders, batch, 0, max_views=1, size=40))
    middle = panel.shape[0] - 16 - 20
    cells = [panel[middle, 8 + 48 * k + 20].tolist() for k in range(4)]
    # an error of 0.5 is above the scale
    assert cells == [[51] * 3, [178] * 3, [128, 128, 255], [round(255 * c) for c in HEAT[-1]]]


def test_depth_is_bright_where_near_dark_where_far_and_white_where_nothing_is() -> None:
    batch = collate([sample(0)]) | {"images": torch.full((1, 1, 3, 40, 40), 0.2)}
    depth = torch.linspace(1, 3, 40).expand(1, 1, 40, 40)
    opacity = torch.full((1, 1, 40, 40), 0.8)
    opacity[..., :10, :] = 0.1
    renders = {"images": batch["images"], "opacity": opacity, "depth": depth * opacity}
    panel = np.asarray(view_panel(renders, batch, 0, max_views=1, size=40)).astype(int)
    cell = panel[-48:-8, 8 + 2 * 48 : 8 + 2 * 48 + 40].sum(-1)
    assert (cell[:10] == 3 * 255).all()
    assert (np.diff(cell[20]) <= 0).all()
    assert cell[20, 0] - cell[20, -1] > 300


def test_views_are_spread_evenly_and_limited() -> None:
    batch = collate([sample(0, num_views=7)])
    renders = {"images": batch["images"]}
    heights = [view_panel(renders, batch, 0, max_views=n, size=32).height for n in (1, 2, 7, 20)]
    row = heights[1] - heights[0]
    assert heights[2:] == [heights[0] + 6 * row] * 2


def test_the_first_picture_of_a_shape_is_taken_by_the_camera_of_the_photograph() -> None:
    batch = collate([sample(0)])
    point = torch.tensor([[0.3, 0.2, 0.1]])  # normalised frame
    pixel, _ = project(point, batch["intrinsics"][0, 0], batch["camera_to_world"][0, 0])
    to_shape = batch["normalized_to_dataset"][0].clone()
    to_shape[:3, 3] = torch.tensor([5.0, -7.0, 600.0])
    shape = Shape(point).transformed(to_shape)
    _, intrinsics, pose, height, width = shape_cameras(shape, batch, 0, to_shape, size=320)[0]
    assert (height, width) == (240, 320)  # the photograph has 24 by 32
    moved, _ = project(shape.vertices, intrinsics, pose)
    torch.testing.assert_close(moved, pixel * 10, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(pose[:3, :3] @ pose[:3, :3].T, torch.eye(3))


def test_without_photographs_a_shape_is_seen_from_where_they_were_taken() -> None:
    pose = torch.eye(4).repeat(6, 1, 1)
    directions = torch.nn.functional.normalize(torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    pose[:, :3, 3] = 3 * directions
    batch = {"camera_to_world": pose[None], "intrinsics": torch.eye(3).expand(1, 6, 3, 3)}
    cameras = shape_cameras(Shape(CORNERS - CORNERS.mean(0), FACES), batch, 0, torch.eye(4), size=64)
    assert [title for title, *_ in cameras] == ["as photograph 0", "as photograph 2", "as photograph 4"]
    seen_from = torch.stack([camera[2][:3, 3] for camera in cameras])
    torch.testing.assert_close(torch.nn.functional.normalize(seen_from, dim=1), directions[::2], atol=0.02, rtol=0)


@pytest.mark.parametrize("offset", [0.0, 4000.0])
@pytest.mark.parametrize("cameras", ["of photographs", "without photographs", "none"])
def test_a_shape_stands_in_the_middle_of_its_picture_from_every_side(offset: float, cameras: str) -> None:
    batch = {} if cameras == "none" else collate([sample(0)])
    if cameras == "without photographs":
        del batch["images"]
    shape = Shape(CORNERS * 30 + offset, FACES)
    to_shape = torch.diag(torch.tensor([60.0, 60.0, 60.0, 1.0]))
    to_shape[:3, 3] = offset
    for title, *camera in shape_cameras(shape, batch, 0, to_shape, size=64):
        seen = (picture(shape, *camera) < 1).any(-1)
        rows, columns = seen.any(1).nonzero(), seen.any(0).nonzero()
        assert rows.numel(), title
        center = torch.stack([rows.float().mean(), columns.float().mean()]) + 0.5
        assert (center - torch.tensor(seen.shape) / 2).abs().max() < 8, title
        # neither cut off nor tiny
        assert not seen[0].any()
        assert not seen[:, 0].any()
        assert seen.float().mean() > 0.04, title


def test_the_distance_panel_is_dark_on_the_truth_and_bright_far_from_it() -> None:
    # the truth is in the normalised frame, the shape in the dataset's
    to_dataset = torch.diag(torch.tensor([7.0, 7.0, 7.0, 1.0]))
    to_dataset[:3, 3] = torch.tensor([100.0, 200.0, 300.0])
    shape = Shape(CORNERS, FACES).transformed(to_dataset)
    width = 48 + 8
    near, far = CORNERS, CORNERS * (1 + 3 * DISTANCE_LIMIT)
    brightness = []
    for truth in (near, far):
        batch = {"surface_points": truth[None], "normalized_to_dataset": to_dataset[None]}
        panel = np.asarray(shape_panel(shape, batch, 0, size=48)).astype(float)
        cell = panel[32:-8, 8 + 3 * width : -8]
        brightness.append(cell[(cell < 250).any(-1)].mean())
    assert brightness[0] < 60 < 120 < brightness[1]


def test_cells_stand_side_by_side_large_ones_shrunk_and_small_ones_enlarged() -> None:
    cells = [("a", torch.zeros(100, 50, 3)), ("b", torch.zeros(12, 12, 3))]
    assert grid([cells, cells[:1]], size=50).size == (25 + 48 + 3 * GUTTER, GUTTER + 2 * (50 + TITLE_SIZE + 2 * GUTTER))


def test_drawing_does_not_import_wandb() -> None:
    code = "import sys, callbacks.draw, callbacks.report; sys.exit('wandb' in sys.modules)"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, timeout=120).returncode == 0
