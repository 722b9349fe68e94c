from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.synthetic import SyntheticObjects
from datamodules.synthetic_objects import ProceduralObjects, cell_points
from ops.cameras import project
from tests.datamodules.toy_objects import small_objects

SMALL = {"objects_per_category": 10, "pictures": 3, "picture_size": 32, "categories": ["chair", "table"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SyntheticObjects:
    root = tmp_path_factory.mktemp("objects")
    data = SyntheticObjects(root=str(root), eval_views=[0, 1, 2], reads={"images", "voxels"}, batch_size=4, **SMALL)
    data.setup()
    return data


def test_surface_points_fall_on_the_mask_and_cover_it(data: SyntheticObjects) -> None:
    for batch in data.test_dataloader():
        for i, view in np.ndindex(len(batch["object_id"]), 3):
            pixels, depth = project(
                batch["surface_points"][i], batch["intrinsics"][i, view], batch["camera_to_world"][i, view]
            )
            column, row = pixels.floor().long().T
            assert (depth > 0).all()
            inside = (pixels >= 0).all(1) & (pixels < 32).all(1)
            assert inside.float().mean() > 0.95  # Choy's cameras come close
            mask = batch["masks"][i, view]
            # within a pixel, since four samples can miss what is thinner
            near = torch.nn.functional.max_pool2d(mask[None], 3, stride=1, padding=1)[0]
            assert (near[row[inside], column[inside]] > 0).float().mean() > 0.99
            shown = torch.zeros(32, 32, dtype=torch.bool)
            shown[row[inside], column[inside]] = True
            assert (shown | (mask < 1)).float().mean() > 0.99


def test_points_occupancy_and_voxels_are_those_of_the_solid(data: SyntheticObjects) -> None:
    batch = next(iter(data.test_dataloader()))
    for i, name in enumerate(batch["object_id"]):
        index = [known.object_id for known in data.procedural.objects].index(name)
        solid = data.procedural.solid(index)
        points = batch["query_points"][i].numpy()
        assert np.array_equal(solid.contains(points), batch["query_occupancy"][i].numpy())
        assert abs(points).max() <= 0.5503
        assert solid.level(batch["surface_points"][i].double()).abs().max() < 1e-7
        assert np.array_equal(solid.voxels(32), batch["voxels"][i].numpy())
        # the box is centred with a longest edge of 1
        low, high = batch["surface_points"][i].amin(0), batch["surface_points"][i].amax(0)
        assert (high - low).max().item() == pytest.approx(1, abs=0.02)


def test_splits_go_by_the_last_digit_of_the_name(data: SyntheticObjects) -> None:
    assert {stage: len(members) for stage, members in data.positions.items()} == {"train": 14, "val": 2, "test": 4}
    digits = {"train": "0123456", "val": "7", "test": "89"}
    for stage, members in data.positions.items():
        assert {data.source.objects[index].object_id[-1] for index in members} == set(digits[stage])


def test_a_larger_collection_holds_the_smaller_one() -> None:
    small, large = small_objects(("lamp",), 10), small_objects(("bench", "lamp"), 20)
    large_index = large.index_of["lamp", "lamp_0004"]
    assert np.array_equal(small.voxels(4, 32), large.voxels(large_index, 32))
    assert small.encoded_view(4, 1) == large.encoded_view(large_index, 1)
    assert np.array_equal(small.surface(4, slice(None))[0], large.surface(large_index, slice(None))[0])


def test_objects_are_made_once_and_other_settings_are_kept_apart(data: SyntheticObjects) -> None:
    root = data.path.parent
    written = (data.path / "objects.json").stat().st_mtime_ns
    again = SyntheticObjects(root=str(root), **SMALL)
    again.prepare_data()
    assert (data.path / "objects.json").stat().st_mtime_ns == written
    assert [path.name for path in root.iterdir()] == [data.path.name]
    paths = {SyntheticObjects(root=str(root), **{**SMALL, "picture_size": size}).path for size in (32, 48)}
    assert len(paths) == 2


def test_other_seeds_make_other_objects() -> None:
    one, other = (ProceduralObjects(["chair"], 10, seed=seed) for seed in (0, 1))
    assert not np.array_equal(one.voxels(0, 32), other.voxels(0, 32))


def test_cell_points_take_the_surface_first_and_every_cell_once() -> None:
    source = small_objects()
    solid = source.solid(0)
    every = cell_points(solid, 16, 4096, np.random.default_rng(0))
    cells = np.floor((every + 0.5) * 16).astype(int)
    assert len(np.unique(cells, axis=0)) == 4096
    steps = (every + 0.5) * 256 - 0.5
    assert np.allclose(steps, steps.round())
    # a slow look at the neighbours of each chosen cell
    grid = np.pad(solid.voxels(32), 1, mode="edge")
    num_near = sum(len(np.unique(grid[i : i + 3, j : j + 3, k : k + 3])) == 2 for i, j, k in np.ndindex(32, 32, 32))
    chosen = np.floor((cell_points(solid, 32, num_near, np.random.default_rng(0)) + 0.5) * 32).astype(int)
    assert all(len(np.unique(grid[i : i + 3, j : j + 3, k : k + 3])) == 2 for i, j, k in chosen)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"categories": ["piano"]}, "no procedural piano; there are bench, cabinet"),
        ({"objects_per_category": 9}, "objects_per_category is 9, .* expected 10"),
        ({"categories": []}, "of 0 categories; expected .* at least one category"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SyntheticObjects(root=str(tmp_path), **settings)
