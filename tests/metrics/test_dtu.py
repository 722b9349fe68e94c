"""DTU's protocol against a slow restatement of it, on a sphere of 20 mm seen by six cameras."""

import math
import warnings

import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial import cKDTree

from metrics.dtu import DTUScore, distances_to_scan, in_volume
from ops.types import ObjectBatch, Observation, Shape

CENTER = np.array([12.0, -30.0, 600.0])
SIZE = (120, 160)
RADIUS = 20.0
DENSITY = 1.5


def sphere(radius: float = RADIUS, subdivisions: int = 4, shift: float = 0.0) -> Shape:
    mesh = trimesh.creation.icosphere(subdivisions, radius)
    vertices = torch.tensor(mesh.vertices + CENTER + [shift, 0, 0], dtype=torch.float32)
    return Shape(vertices, torch.tensor(mesh.faces, dtype=torch.int64))


def joined(a: Shape, b: Shape) -> Shape:
    return Shape(torch.cat([a.vertices, b.vertices]), torch.cat([a.faces, b.faces + len(a.vertices)]))


def projections() -> np.ndarray:
    """Cameras at 200 mm along both ways of each axis; a foreground disk of 2/3 of the sphere's silhouette."""
    matrices = []
    for axis in range(3):
        for sign in (-1, 1):
            z = sign * np.eye(3)[axis]
            rotation = np.stack([np.roll(np.abs(z), 1), np.cross(z, np.roll(np.abs(z), 1)), z])
            extrinsics = np.concatenate([rotation, (-rotation @ (CENTER - 200 * z))[:, None]], axis=1)
            intrinsics = np.array([[300.0, 0, SIZE[1] / 2 + 0.3], [0, 300, SIZE[0] / 2 - 0.2], [0, 0, 1]])
            matrices.append(intrinsics @ extrinsics)
    return np.stack(matrices)


def observation() -> Observation:
    generator = np.random.default_rng(3)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    masks = np.stack([(x - 80) ** 2 + (y - 60) ** 2 < r**2 for r in (20, 30, 40, 20, 25, 30)])
    bounds = np.stack([CENTER - 24.0, CENTER + 23.0])
    return Observation(
        masks=torch.from_numpy(masks),
        projections=torch.from_numpy(projections()),
        volume=torch.from_numpy(generator.random((17, 16, 17)) > 0.3),
        volume_bounds=torch.from_numpy(bounds),
        volume_step=3.0,
        plane=torch.tensor([0.1, -0.2, 1.0, -595.0], dtype=torch.float64),
    )


def batch_of(observation: Observation, index: int = 0, num_points: int = 3000) -> ObjectBatch:
    directions = np.random.default_rng(4).normal(size=(num_points, 3))
    points = directions / np.linalg.norm(directions, axis=1, keepdims=True) * 0.5
    matrix = np.eye(4)
    matrix[:3, :3] *= 2 * RADIUS
    matrix[:3, 3] = CENTER
    return ObjectBatch(
        surface_points=torch.tensor(points[None], dtype=torch.float32),
        normalized_to_dataset=torch.tensor(matrix[None]),
        observations=[observation],
        object_index=torch.tensor([index]),
        object_id=["scan24"],
    )


def score(shape: Shape, batch: ObjectBatch, **kwargs) -> dict[str, float]:
    metric = DTUScore(**{"density": DENSITY, **kwargs})
    metric.update({"shapes": [shape]}, batch)
    return next(iter(metric.rows().values()))


def slow_cull(shape: Shape, observation: Observation, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """NeuralWarp's rule vertex by vertex; the largest part by area through trimesh."""
    masks = observation["masks"].numpy()
    centers = [np.argwhere(mask) for mask in masks]
    keep = []
    for vertex in shape.vertices.double().numpy():
        views, ok = 0, True
        for mask, pixels_in_mask, projection in zip(masks, centers, observation["projections"].numpy(), strict=True):
            u, v, w = projection @ [*vertex, 1]
            x, y = u / w - 0.5, v / w - 0.5
            if not (0 <= x <= mask.shape[1] - 1 and 0 <= y <= mask.shape[0] - 1):
                continue
            views += 1
            value = 0.0
            for px, py in {
                (math.floor(x), math.floor(y)),
                (math.floor(x) + 1, math.floor(y)),
                (math.floor(x), math.floor(y) + 1),
                (math.floor(x) + 1, math.floor(y) + 1),
            }:
                grown = (((pixels_in_mask - [py, px]) ** 2).sum(1) <= radius**2).any()
                value += grown * max(0, 1 - abs(x - px)) * max(0, 1 - abs(y - py))
            ok = ok and value > 0
        keep.append(ok and views >= 2)
    faces = shape.faces.numpy()
    faces = faces[np.array(keep)[faces].all(1)]
    parts = trimesh.Trimesh(shape.vertices.double().numpy(), faces, process=False).split(only_watertight=False)
    best = max(parts, key=lambda part: part.area)
    # trimesh renumbers; give the faces back in the numbering and order of the mesh, on which the sample depends
    kept = {tuple(v) for v in np.asarray(best.vertices)}
    used = np.array([tuple(v) in kept for v in shape.vertices.double().numpy()])
    faces = faces[used[faces].all(1)]
    used = np.isin(np.arange(len(used)), faces)
    return shape.vertices.double().numpy()[used], (np.cumsum(used) - 1)[faces]


def slow_scores(vertices: np.ndarray, faces: np.ndarray, batch: ObjectBatch, index: int) -> tuple[float, float]:
    samples = list(vertices)
    for a, b, c in vertices[faces]:
        v1, v2 = b - a, c - a
        l1, l2 = np.linalg.norm(v1), np.linalg.norm(v2)
        step = DENSITY * math.sqrt(l1 * l2 / np.linalg.norm(np.cross(v1, v2)))
        n1, n2 = math.floor(l1 / step), math.floor(l2 / step)
        for i in range(n1 + 1):
            for j in range(n2 + 1):
                if n1 and n2 and (i + 0.5) / n1 + (j + 0.5) / n2 < 1:
                    samples.append(a + (i + 0.5) / n1 * v1 + (j + 0.5) / n2 * v2)
    samples = np.array(samples)[np.random.default_rng([0, index]).permutation(len(samples))]
    keep = np.ones(len(samples), bool)
    for n, near in enumerate(cKDTree(samples).query_ball_point(samples, DENSITY)):
        if keep[n]:
            keep[near] = False
            keep[n] = True
    samples = samples[keep]
    seen = batch["observations"][0]
    low, high = seen["volume_bounds"].numpy()
    near = np.array([p for p in samples if all(low - 60 <= p) and all(p < high + 120)])
    observed = []
    for p in near:
        i, j, k = (round(x) for x in ((p - low) / 3.0).tolist())
        inside = 0 <= i < 17 and 0 <= j < 16 and 0 <= k < 17
        if inside and seen["volume"][i, j, k]:
            observed.append(p)
    matrix = batch["normalized_to_dataset"][0].double().numpy()
    scan = batch["surface_points"][0].double().numpy() @ matrix[:3, :3].T + matrix[:3, 3]
    above = np.array([q for q in scan if seen["plane"].numpy() @ [*q, 1] > 0])
    accuracy = cKDTree(scan).query(np.array(observed))[0]
    completeness = cKDTree(near).query(above)[0]
    return accuracy[accuracy < 20].mean(), completeness[completeness < 20].mean()


def test_scores_without_culling_equal_the_slow_protocol() -> None:
    shape, batch = sphere(21.0, shift=0.4), batch_of(observation(), index=5)
    expected = slow_scores(shape.vertices.double().numpy(), shape.faces.numpy(), batch, 5)
    row = score(shape, batch, culling="none")
    assert row["dtu_none_accuracy_mm"] == pytest.approx(expected[0], rel=1e-9)
    assert row["dtu_none_completeness_mm"] == pytest.approx(expected[1], rel=1e-9)
    assert row["dtu_none_overall_mm"] == pytest.approx(sum(expected) / 2, rel=1e-9)
    # a sphere a millimetre too large, against scan points of finite density
    assert 1.0 < row["dtu_none_accuracy_mm"] < 1.5


@pytest.mark.filterwarnings("ignore:DTU's culling is defined")
def test_scores_with_culling_equal_the_slow_protocol() -> None:
    # far in front of the camera and beside the masks: a second sphere that must go
    shape = joined(sphere(21.0, subdivisions=3, shift=0.4), sphere(6.0, subdivisions=3, shift=40.0))
    batch = batch_of(observation())
    vertices, faces = slow_cull(shape, batch["observations"][0], radius=12)
    assert 0 < len(faces) < 1280
    expected = slow_scores(vertices, faces, batch, 0)
    row = score(shape, batch, culling="neuralwarp")
    assert list(row.values()) == pytest.approx([*expected, sum(expected) / 2], rel=1e-9)


def test_columns_carry_the_culling() -> None:
    assert DTUScore("2dgs").columns == ("dtu_2dgs_accuracy_mm", "dtu_2dgs_completeness_mm", "dtu_2dgs_overall_mm")
    with pytest.raises(ValueError, match=r"culling: 'colmap', expected one of \['none', 'neus'"):
        DTUScore("colmap")


def test_index_into_the_observed_volume_rounds_from_its_lowest_corner() -> None:
    volume = np.zeros((3, 4, 5), bool)
    volume[2, 0, 4] = True
    low = np.array([10.0, 20, 30])
    # step 2: voxel (2, 0, 4) is centred at (14, 20, 38)
    points = np.array([[14, 20, 38], [14.9, 19.1, 38.9], [15.1, 20, 38], [12.9, 20, 38], [14, 18.9, 38], [14, 20, 99]])
    assert in_volume(points, volume, low, 2.0).tolist() == [True, True, False, False, False, False]


def planar_observation(**changes) -> Observation:
    base = Observation(
        volume=torch.ones(11, 11, 11, dtype=torch.bool),
        volume_bounds=torch.tensor([[0.0, 0, 0], [10, 10, 10]], dtype=torch.float64),
        volume_step=1.0,
        plane=torch.tensor([0.0, 0, 1, 5], dtype=torch.float64),
    )
    return Observation(**{**base, **changes})


def test_completeness_sees_points_beside_the_volume_and_accuracy_does_not() -> None:
    scan = np.array([[5.0, 5, 5], [5, 5, -10]])
    points = np.array([[5.0, 5, 4], [50, 5, 5]])
    accuracy, completeness, median = distances_to_scan(points, scan, planar_observation(), 60, 20)
    # the second point is 40 mm beside the volume; the second point of the scan is below the plane
    assert (accuracy, completeness, median) == (1, 1, 1)
    nearer = np.array([[5.0, 5, 4], [5, 5, 30]])
    high_scan = np.array([[5.0, 5, 29]])
    # above the volume: it does not count as wrong, and it does complete the scan
    assert distances_to_scan(nearer, high_scan, planar_observation(), 60, 30)[:2] == (25, 1)


def test_points_beyond_the_patch_complete_nothing_and_the_patch_is_twice_as_wide_above() -> None:
    scan = np.array([[5.0, 5, -4]])
    for offset, counts in ((-59, True), (-61, False), (129, True), (130, False)):
        points = np.array([[5.0, 5, 5], [5.0, offset, 5]])
        reached = np.array([[5.0, offset + 1, 5]])
        completeness = distances_to_scan(points, np.concatenate([scan, reached]), planar_observation(), 60, 20)[1]
        assert completeness == pytest.approx(5 if counts else 9, abs=0.01), offset


def test_distances_from_the_limit_on_are_left_out_and_none_left_is_the_limit() -> None:
    scan = np.array([[0.0, 0, 0]])
    points = np.array([[1.0, 0, 0], [0, 0, 8]])
    assert distances_to_scan(points, scan, planar_observation(), 60, 8)[0] == 1
    assert distances_to_scan(points, scan, planar_observation(), 60, 9)[0] == 4.5
    assert distances_to_scan(points, scan, planar_observation(), 60, 1)[:2] == (1, 1)


@pytest.mark.filterwarnings("ignore:DTU's culling is defined")
def test_an_empty_shape_before_or_after_culling_scores_the_limit() -> None:
    batch = batch_of(observation())
    assert list(score(Shape.empty(), batch).values()) == [20, 20, 20]
    batch["observations"][0]["masks"] = torch.zeros(6, *SIZE, dtype=torch.bool)
    assert list(score(sphere(), batch).values()) == [20, 20, 20]


def test_another_frame_warns_with_both_boxes_and_the_right_one_does_not() -> None:
    batch = batch_of(observation())
    normalized = Shape((sphere().vertices - torch.tensor(CENTER, dtype=torch.float32)) / RADIUS, sphere().faces)
    with pytest.warns(
        UserWarning, match=r"scan24: frame mismatch: no overlap.*\[-1.0, -1.0, -1.0\].*\[35.0, -7.0, 623.0\]"
    ):
        assert score(normalized, batch, culling="none")["dtu_none_accuracy_mm"] == 20
    with pytest.warns(UserWarning, match=r"frame mismatch: the median distance to the scan is \d+.\d mm"):
        score(sphere(8.0), batch, culling="none")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score(sphere(), batch, culling="none")


def test_missing_evaluation_files_are_named() -> None:
    batch = batch_of(Observation(masks=observation()["masks"], projections=observation()["projections"]))
    with pytest.raises(ValueError, match=r"scan24 lacks volume.*ObsMask\{N\}_10.mat, ObsMask/Plane\{N\}.mat"):
        score(sphere(), batch)
    seen = observation()
    del seen["masks"]
    score(sphere(), batch_of(seen), culling="none")
    with pytest.raises(ValueError, match="lacks masks"):
        score(sphere(), batch_of(seen))


def test_scores_do_not_depend_on_the_seed_beyond_a_little_and_are_repeatable() -> None:
    batch = batch_of(observation())
    first, again, other = (score(sphere(20.5), batch, culling="none", seed=s)["dtu_none_overall_mm"] for s in (0, 0, 1))
    assert first == again
    assert first != other
    assert first == pytest.approx(other, rel=0.02)
