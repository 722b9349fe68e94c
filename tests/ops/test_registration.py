import numpy as np
import pytest

from ops.registration import iterative_closest_points, similarity_between, voxel_means


def similarity(angle: float, scale: float, shift: list[float]) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    matrix = np.eye(4)
    matrix[:3, :3] = scale * np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    matrix[:3, 3] = shift
    return matrix


def moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def test_voxel_means_equal_a_dictionary_of_cells() -> None:
    points = np.random.default_rng(0).normal((3, -2, 5), 1, size=(500, 3))
    cells: dict[tuple[int, ...], list[np.ndarray]] = {}
    for point in points:
        cells.setdefault(tuple(np.floor((point - (points.min(0) - 0.2)) / 0.4).astype(int)), []).append(point)
    expected = np.array([np.mean(members, axis=0) for members in cells.values()])
    result = voxel_means(points, 0.4)
    assert len(result) == len(expected)
    np.testing.assert_allclose(result[np.lexsort(result.T)], expected[np.lexsort(expected.T)], atol=1e-12)


def test_the_similarity_between_moved_points_is_the_move_and_never_a_reflection() -> None:
    points, matrix = np.random.default_rng(1).normal(size=(40, 3)), similarity(1.1, 2.5, [1, -2, 3])
    np.testing.assert_allclose(similarity_between(points, moved(points, matrix)), matrix, atol=1e-12)
    mirrored = similarity_between(points, points * [1, 1, -1])
    assert np.linalg.det(mirrored[:3, :3]) > 0


def test_iterative_closest_points_bring_a_slightly_moved_surface_back() -> None:
    generator = np.random.default_rng(2)
    target = generator.uniform(-1, 1, size=(4000, 3))
    target[:, 2] = 0.3 * np.sin(3 * target[:, 0]) * np.cos(2 * target[:, 1])
    matrix = similarity(0.02, 1.01, [0.02, -0.01, 0.015])
    source = moved(target[::2], np.linalg.inv(matrix))
    result = iterative_closest_points(source, target, 0.2, max_iterations=100)
    assert np.abs(moved(source, result) - target[::2]).max() < 1e-3
    # all have a partner from the start: by the share alone it stops at once
    once = iterative_closest_points(source, target, 0.2, 100, error_tolerance=np.inf)
    assert np.abs(moved(source, once) - target[::2]).max() > 0.01


@pytest.mark.parametrize("source", [np.zeros((0, 3)), np.full((10, 3), 99.0)])
def test_without_partners_nothing_moves(source: np.ndarray) -> None:
    target = np.random.default_rng(3).normal(size=(10, 3))
    np.testing.assert_array_equal(iterative_closest_points(source, target, 0.5), np.eye(4))
