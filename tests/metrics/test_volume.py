import math

import numpy as np
import pytest
import torch
import trimesh

from metrics.volume import VolumeIoU, VoxelIoU
from ops.types import ObjectBatch, Reconstruction, Shape
from ops.voxels import shape_from_voxels, voxel_centers


def rows_of(metric: VoxelIoU | VolumeIoU, reconstruction: dict, batch: ObjectBatch) -> dict[int, dict[str, float]]:
    metric.update(Reconstruction(**reconstruction), batch)
    return metric.rows()


def voxel_batch(voxels: torch.Tensor) -> ObjectBatch:
    return ObjectBatch(voxels=voxels, object_index=torch.arange(len(voxels)))


def box(size: float, center: tuple[float, float, float] = (0, 0, 0)) -> Shape:
    mesh = trimesh.creation.box((size, size, size))
    return Shape(torch.tensor(mesh.vertices + np.array(center), dtype=torch.float32), torch.tensor(mesh.faces).long())


def query_batch(truth: Shape, count: int = 20_000) -> ObjectBatch:
    points = torch.rand(1, count, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    half = truth.vertices.amax(0)
    return ObjectBatch(
        query_points=points, query_occupancy=(points.abs() < half).all(-1), object_index=torch.tensor([0])
    )


def test_iou_at_each_threshold_equals_a_count_by_hand(generator: torch.Generator) -> None:
    probabilities = torch.rand(3, 5, 5, 5, generator=generator)
    truth = torch.rand(3, 5, 5, 5, generator=generator) < 0.3
    rows = rows_of(VoxelIoU([0.3, 0.45]), {"voxels": probabilities, "shapes": []}, voxel_batch(truth))
    for i, row in rows.items():
        for t, name in ((0.3, "voxel_iou_0_3"), (0.45, "voxel_iou_0_45")):
            p, v = (probabilities[i] > t).numpy(), truth[i].numpy()
            assert row[name] == pytest.approx(np.sum(p & v) / np.sum(p | v))
        chance = np.where(truth[i], probabilities[i], 1 - probabilities[i])
        assert row["voxel_cross_entropy"] == pytest.approx(-np.log(chance).mean(), rel=1e-5)
        assert math.isnan(row["voxel_iou_chosen"])


def test_the_threshold_itself_is_empty_and_two_empty_volumes_agree() -> None:
    probabilities = torch.full((2, 4, 4, 4), 0.4)
    truth = torch.zeros(2, 4, 4, 4, dtype=torch.bool)
    truth[1, 0] = True
    rows = rows_of(VoxelIoU([0.3, 0.4]), {"voxels": probabilities}, voxel_batch(truth))
    assert (rows[0]["voxel_iou_0_4"], rows[0]["voxel_iou_0_3"]) == (1, 0)
    assert (rows[1]["voxel_iou_0_4"], rows[1]["voxel_iou_0_3"]) == (0, 0.25)


def test_saturated_probabilities_have_a_finite_cross_entropy() -> None:
    truth = torch.zeros(1, 4, 4, 4, dtype=torch.bool)
    rows = rows_of(VoxelIoU(), {"voxels": torch.ones(1, 4, 4, 4)}, voxel_batch(truth))
    assert rows[0]["voxel_cross_entropy"] == pytest.approx(-math.log(1e-7))
    assert rows_of(VoxelIoU(), {"voxels": (~truth).float()}, voxel_batch(~truth))[0]["voxel_cross_entropy"] == 0


def test_the_threshold_is_chosen_on_validation_remembered_and_then_used_unchanged() -> None:
    # validation is best at 0.3, the test set would be at 0.5
    truth = torch.zeros(1, 4, 4, 4, dtype=torch.bool)
    truth[:, :2] = True
    validation = torch.where(truth, 0.35, 0.25)
    test = torch.where(truth, 0.9, 0.4)
    metric = VoxelIoU()
    metric.update({"voxels": validation}, voxel_batch(truth))
    assert metric.choose_threshold() == 0.3
    metric.reset()
    restored = VoxelIoU()
    restored.load_state_dict(metric.state_dict())
    for same in (metric, restored):
        row = rows_of(same, {"voxels": test}, voxel_batch(truth))[0]
        assert row["voxel_iou_chosen_threshold"] == 0.3
        assert row["voxel_iou_chosen"] == row["voxel_iou_0_3"] == 0.5
        assert row["voxel_iou_0_5"] == 1
    assert rows_of(VoxelIoU([0.4], 0.45), {"voxels": test}, voxel_batch(truth))[0]["voxel_iou_chosen"] == 1


def test_the_choice_is_by_distinct_objects_takes_the_smallest_of_equals_and_stays_without_any() -> None:
    metric = VoxelIoU([0.5, 0.2, 0.4])
    assert math.isnan(metric.choose_threshold())
    truth = torch.zeros(2, 4, 4, 4, dtype=torch.bool)
    truth[:, 0] = True
    # 0.2 suits the first object; 0.4 and 0.5 the second, which comes three times
    probabilities = torch.stack([torch.where(truth[0], 0.3, 0.1), torch.where(truth[1], 0.9, 0.3)])
    for order in ([0, 1], [1, 1]):
        metric.update(
            {"voxels": probabilities[order]}, ObjectBatch(voxels=truth[order], object_index=torch.tensor(order))
        )
    # means: 0.2 has (1 + 0.25) / 2, the others (0 + 1) / 2; with repetitions the others would win
    assert metric.choose_threshold() == 0.2
    metric.reset()
    assert metric.choose_threshold() == 0.2
    ties = VoxelIoU([0.5, 0.4])
    ties.update({"voxels": probabilities[1:]}, voxel_batch(truth[1:]))
    assert ties.choose_threshold() == 0.4


def test_a_reconstruction_without_voxels_has_no_score() -> None:
    metric = VoxelIoU()
    row = rows_of(metric, {"shapes": [Shape.empty()]}, voxel_batch(torch.zeros(1, 4, 4, 4, dtype=torch.bool)))[0]
    assert all(math.isnan(value) for value in row.values())
    assert math.isnan(metric.choose_threshold())


def test_bad_voxels_and_thresholds_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"Object 0: predicted voxels of shape \(8, 8, 8\) but true ones of \(4, 4, 4\)"
    ):
        VoxelIoU().update({"voxels": torch.zeros(1, 8, 8, 8)}, voxel_batch(torch.zeros(1, 4, 4, 4)))
    for thresholds, chosen in (([], None), ([1.0], None), ([0.4], -0.1)):
        with pytest.raises(ValueError, match="expected probabilities below 1"):
            VoxelIoU(thresholds, chosen)


def test_volume_iou_of_boxes_is_the_quotient_of_their_volumes() -> None:
    row = rows_of(VolumeIoU(), {"shapes": [box(0.6)]}, query_batch(box(0.8)))[0]
    assert row["volume_iou"] == pytest.approx((0.6 / 0.8) ** 3, abs=0.02)
    assert rows_of(VolumeIoU(), {"shapes": [box(0.8)]}, query_batch(box(0.8)))[0]["volume_iou"] == 1
    assert rows_of(VolumeIoU(), {"shapes": [box(0.1, (0.45, 0, 0))]}, query_batch(box(0.8)))[0]["volume_iou"] < 0.01


def test_volume_iou_of_a_voxel_surface_at_the_centres_is_that_of_the_voxels(generator: torch.Generator) -> None:
    values, truth = torch.rand(2, 9, 9, 9, generator=generator)
    batch = ObjectBatch(
        query_points=voxel_centers(9).view(1, -1, 3),
        query_occupancy=(truth > 0.5).view(1, -1),
        voxels=(truth > 0.5)[None],
        object_index=torch.tensor([0]),
    )
    reconstruction = {"shapes": [shape_from_voxels(values, 0.4)], "voxels": values[None]}
    volume = rows_of(VolumeIoU(), reconstruction, batch)[0]["volume_iou"]
    assert volume == rows_of(VoxelIoU(), reconstruction, batch)[0]["voxel_iou_0_4"]


def test_volume_iou_is_taken_in_the_datasets_frame() -> None:
    matrix = torch.tensor([[0.0, -50, 0, 7], [50, 0, 0, -3], [0, 0, 50, 100], [0, 0, 0, 1]])
    batch = query_batch(box(0.8))
    plain = rows_of(VolumeIoU(), {"shapes": [box(0.6, (0.1, 0.2, 0))]}, batch)[0]
    batch["normalized_to_dataset"] = matrix[None]
    moved = rows_of(VolumeIoU(), {"shapes": [box(0.6, (0.1, 0.2, 0)).transformed(matrix)]}, batch)[0]
    assert moved["volume_iou"] == pytest.approx(plain["volume_iou"], abs=1e-4)


def test_an_empty_mesh_is_the_worst_and_a_point_set_has_no_volume() -> None:
    assert rows_of(VolumeIoU(), {"shapes": [Shape.empty()]}, query_batch(box(0.8)))[0]["volume_iou"] == 0
    assert rows_of(VolumeIoU(), {"shapes": [Shape.empty()]}, query_batch(box(0.0)))[0]["volume_iou"] == 1
    assert math.isnan(
        rows_of(VolumeIoU(), {"shapes": [Shape(torch.rand(9, 3))]}, query_batch(box(0.8)))[0]["volume_iou"]
    )
