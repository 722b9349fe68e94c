"""Tanks and Temples' F-score: its crop volume, closed forms, and a refinement that forgives a small misplacement."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from metrics.tanks_and_temples import THRESHOLDS, TanksAndTemplesScore, read_crop_volume
from ops.types import ObjectBatch, Shape

AXIS_BOX = {"orthogonal_axis": "Y", "axis_min": -1.0, "axis_max": 2.0}


def crop_file(path: Path, **changes) -> Path:
    """An L-shaped prism along y, as Open3D writes it: x and z in [0, 4] without the corner above (2, 2)."""
    corners = [[0, 9, 0], [4, 9, 0], [4, 9, 2], [2, 9, 2], [2, 9, 4], [0, 9, 4]]
    facts = {"class_name": "SelectionPolygonVolume", "version_major": 1, "version_minor": 0}
    path.write_text(json.dumps({**facts, **AXIS_BOX, "bounding_polygon": corners, **changes}))
    return path


def plane(step: float, height: float = 0.0, size: float = 1.0) -> np.ndarray:
    axis = np.arange(0, size, step)
    x, y = np.meshgrid(axis, axis, indexing="ij")
    return np.stack([x.ravel(), y.ravel(), np.full(x.size, height)], 1)


def score(given: np.ndarray | Shape, truth: np.ndarray, **kwargs) -> dict[str, float]:
    metric = TanksAndTemplesScore(**kwargs)
    shape = given if isinstance(given, Shape) else Shape(torch.from_numpy(given))
    batch = ObjectBatch(surface_points=torch.from_numpy(truth)[None], object_index=torch.tensor([0]))
    metric.update({"shapes": [shape]}, batch)
    return metric.rows()[0]


def test_the_volume_is_the_prism_over_its_polygon(tmp_path: Path) -> None:
    volume = read_crop_volume(crop_file(tmp_path / "Barn.json"))
    points = np.random.default_rng(0).uniform(-2, 5, size=(5000, 3))
    x, y, z = points.T
    in_l = (x > 0) & (z > 0) & (x < 4) & (z < 4) & ~((x > 2) & (z > 2))
    np.testing.assert_array_equal(volume.contains(points), in_l & (y >= -1) & (y <= 2))
    turned = read_crop_volume(
        crop_file(tmp_path / "Z.json", orthogonal_axis="z", bounding_polygon=[[0, 0, 7], [1, 0, 7], [0, 1, 7]])
    )
    assert turned.contains(np.array([[0.2, 0.3, 0.0], [0.8, 0.3, 0.0], [0.2, 0.3, 2.1]])).tolist() == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"orthogonal_axis": "W"}, "is no selection volume"),
        ({"bounding_polygon": [[0, 0, 0], [1, 0, 0]]}, r"shape \(2, 3\), expected"),
        ({"axis_min": None}, "is no selection volume"),
    ],
)
def test_a_broken_volume_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TanksAndTemplesScore("Barn", crop=str(crop_file(tmp_path / "Barn.json", **changes)))
    with pytest.raises(ValueError, match=r"there is no .*missing\.json"):
        TanksAndTemplesScore("Barn", crop=str(tmp_path / "missing.json"))


def test_precision_and_recall_are_shares_strictly_below_the_threshold() -> None:
    truth = plane(0.02)
    half = np.concatenate([truth[truth[:, 0] < 0.5] + [0, 0, 0.004], truth[truth[:, 0] < 0.25] + [0, 0, 0.5]])
    row = score(half, truth, scene="Barn", refine=False)
    assert row["tanks_precision"] == pytest.approx(2 / 3, abs=0.02)
    assert row["tanks_recall"] == pytest.approx(0.5, abs=0.02)
    assert row["tanks_f_score"] == pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5), abs=0.02)
    exactly = score(truth + np.array([0, 0, 0.25]), truth, threshold=0.25, refine=False)
    assert exactly["tanks_precision"] == 0


def test_thresholds_are_those_of_the_toolbox() -> None:
    assert THRESHOLDS["Ignatius"] == 0.003
    assert THRESHOLDS["Truck"] == THRESHOLDS["Caterpillar"] == 0.005
    assert TanksAndTemplesScore("Courthouse").facts["settings"] == {
        **{"scene": "Courthouse", "threshold": 0.025, "crop": None, "refine": True, "points": "vertices"}
    }


def test_what_lies_outside_of_the_volume_counts_neither_way(tmp_path: Path) -> None:
    crop = str(crop_file(tmp_path / "Barn.json"))
    inside = np.random.default_rng(1).uniform([0.1, -0.9, 0.1], [1.9, 1.9, 3.9], size=(3000, 3))
    stray = np.random.default_rng(2).uniform([2.1, 0, 2.1], [3.9, 1, 3.9], size=(500, 3))
    row = score(
        np.concatenate([inside, stray]),
        np.concatenate([inside, stray[:100] + 0.3]),
        scene="Barn",
        crop=crop,
        refine=False,
    )
    assert row["tanks_f_score"] == 1
    assert score(stray, inside, scene="Barn", crop=crop)["tanks_f_score"] == 0
    with pytest.raises(ValueError, match="no point of the truth lies in the volume"):
        score(inside, stray, scene="Barn", crop=crop)


def test_the_refinement_forgives_what_a_rough_alignment_leaves() -> None:
    generator = np.random.default_rng(3)
    truth = generator.uniform(-1, 1, size=(20_000, 3))
    truth[:, 2] = 0.3 * np.sin(4 * truth[:, 0]) * np.cos(3 * truth[:, 1])
    misplaced = (truth + generator.normal(0, 0.001, truth.shape)) * 1.01 + [0.02, -0.03, 0.02]
    rough = score(misplaced, truth, scene="Barn", refine=False)["tanks_f_score"]
    refined = score(misplaced, truth, scene="Barn")["tanks_f_score"]
    assert rough < 0.6 < 0.9 < refined


def test_a_mesh_stands_for_its_vertices_or_also_for_the_centres_of_its_faces() -> None:
    square = Shape(torch.tensor([[0.0, 0, 0], [3, 0, 0], [3, 3, 0]]), torch.tensor([[0, 1, 2]]))
    truth = np.array([[0.0, 0, 0], [3, 0, 0], [3, 3, 0], [2, 1, 0]])
    assert score(square, truth, threshold=0.1, refine=False)["tanks_recall"] == 0.75
    assert score(square, truth, threshold=0.1, refine=False, points="vertices_and_centers")["tanks_recall"] == 1


def test_an_empty_shape_scores_nothing_and_a_scene_has_to_be_named() -> None:
    truth = plane(0.1)
    assert score(Shape.empty(), truth, scene="Truck") == dict.fromkeys(TanksAndTemplesScore.columns, 0.0)
    with pytest.raises(ValueError, match=r"scene: 'barn', expected one of Barn"):
        TanksAndTemplesScore("barn")
    with pytest.raises(ValueError, match="no scene; set it to one of"):
        score(truth, truth)
