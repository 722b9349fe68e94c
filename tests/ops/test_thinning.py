import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from ops.thinning import even_points, lattice_points, thinned
from ops.types import Shape


def greedy(points: np.ndarray, radius: float) -> np.ndarray:
    keep = np.ones(len(points), bool)
    for n in range(len(points)):
        if keep[n]:
            near = ((points - points[n]) ** 2).sum(1) <= radius**2
            keep[near] = False
            keep[n] = True
    return keep


@pytest.mark.parametrize("radius", [0.02, 0.1, 0.7, 5.0])
def test_thinning_equals_the_greedy_loop(radius: float) -> None:
    points = np.random.default_rng(0).normal((100, -50, 600), size=(1500, 3))
    np.testing.assert_array_equal(thinned(points, radius), greedy(points, radius))


def test_points_at_exactly_the_radius_and_repeated_ones_go_as_in_the_loop() -> None:
    axis = np.arange(8.0)
    points = np.stack(np.meshgrid(axis, axis, axis), -1).reshape(-1, 3)
    points = np.random.default_rng(1).permutation(np.concatenate([points, points[:50]]))
    np.testing.assert_array_equal(thinned(points, 1.0), greedy(points, 1.0))
    # exact in binary, unlike 0.2, and so are its multiples
    np.testing.assert_array_equal(thinned(points * 0.25, 0.25), greedy(points * 0.25, 0.25))


def test_thinning_depends_on_the_order() -> None:
    points = np.array([[0.0, 0, 0], [0.8, 0, 0], [1.6, 0, 0]])
    assert thinned(points, 1.0).tolist() == [True, False, True]
    assert thinned(points[[1, 0, 2]], 1.0).tolist() == [True, False, False]


def by_loop(triangle: np.ndarray, density: float) -> list[np.ndarray]:
    v1, v2 = triangle[1] - triangle[0], triangle[2] - triangle[0]
    l1, l2 = np.sqrt((v1**2).sum()), np.sqrt((v2**2).sum())
    area = np.sqrt((np.cross(v1, v2) ** 2).sum())
    if area == 0:
        return []
    step = density * np.sqrt(l1 * l2 / area)
    n1, n2 = int(l1 / step), int(l2 / step)
    points = []
    for i in range(n1 + 1):
        for j in range(n2 + 1):
            if n1 > 0 and n2 > 0 and (i + 0.5) / n1 + (j + 0.5) / n2 < 1:
                points.append(triangle[0] + v1 * (i + 0.5) / n1 + v2 * (j + 0.5) / n2)
    return points


def test_lattice_equals_a_loop_over_triangles() -> None:
    corners = np.random.default_rng(2).normal(size=(40, 3, 3)) * np.geomspace(0.05, 3, 40)[:, None, None]
    corners[7, 2] = corners[7, 1]
    expected = np.concatenate([np.array(by_loop(t, 0.2)).reshape(-1, 3) for t in corners])
    points = lattice_points(corners, 0.2)
    assert len(points) > 1000
    np.testing.assert_allclose(points, expected, atol=1e-12)


def test_lattice_of_a_right_triangle_is_the_cells_below_its_diagonal() -> None:
    points = lattice_points(np.array([[[0.0, 0, 0], [3, 0, 0], [0, 3, 0]]]), 1.0)
    # (0.5, 0.5), (0.5, 1.5), (1.5, 0.5); those on the diagonal sum to 1 and are out
    assert points[:, :2].tolist() == [[0.5, 0.5], [0.5, 1.5], [1.5, 0.5]]


def test_even_points_are_apart_and_cover_the_mesh() -> None:
    vertices = torch.tensor([[0.0, 0, 0], [4, 0, 0], [4, 4, 0], [0, 4, 0]])
    shape = Shape(vertices, torch.tensor([[0, 1, 2], [0, 2, 3]]))
    points = even_points(shape, 0.25, np.random.default_rng(0))
    gaps = np.linalg.norm(points[:, None] - points[None], axis=-1) + 9 * np.eye(len(points))
    assert gaps.min() > 0.25
    axis = np.linspace(0.0, 4, 30)
    targets = np.stack([*np.meshgrid(axis, axis), np.zeros((30, 30))], -1).reshape(-1, 3)
    assert np.linalg.norm(targets[:, None] - points[None], axis=-1).min(1).max() < 0.75


def test_a_point_set_is_only_thinned() -> None:
    points = torch.tensor([[0.0, 0, 0], [0.1, 0, 0], [5, 0, 0]])
    assert len(even_points(Shape(points), 0.2, np.random.default_rng(0))) == 2


def test_a_mesh_far_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match="frame and unit"):
        lattice_points(1e5 * np.eye(3)[None], 0.2)


def _waves(cells: int) -> Shape:
    """A wavy square of 2 cells^2 faces, 300 wide."""
    x, y = np.meshgrid(np.linspace(0, 300, cells + 1), np.linspace(0, 300, cells + 1), indexing="ij")
    vertices = np.stack([x, y, 20 * np.sin(x / 30) * np.cos(y / 30)], -1).reshape(-1, 3)
    index = np.arange((cells + 1) ** 2).reshape(cells + 1, cells + 1)
    a, b, c, d = (part.ravel() for part in (index[:-1, :-1], index[1:, :-1], index[:-1, 1:], index[1:, 1:]))
    faces = np.concatenate([np.stack([a, b, c], 1), np.stack([b, d, c], 1)])
    return Shape(torch.from_numpy(vertices).float(), torch.from_numpy(faces))


def test_chunks_of_faces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = _waves(7)
    whole = even_points(shape, 3.0, np.random.default_rng(0))
    monkeypatch.setattr("ops.thinning.CHUNK", 5)
    np.testing.assert_array_equal(even_points(shape, 3.0, np.random.default_rng(0)), whole)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures peak memory as Linux reports it")
def test_memory_is_150_bytes_a_vertex_and_does_not_grow_with_what_faces_need_on_the_way() -> None:
    even_points(_waves(2), 50.0, np.random.default_rng(0))  # compiles
    shape = _waves(450)  # 405,000 faces; corners, edges and areas of all at once would be 120 MB
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    points = even_points(shape, 1.0, np.random.default_rng(0))
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    assert len(points) > 50_000
    # a chunk of faces takes 300 bytes a face, whatever the mesh
    used = peak - pages * os.sysconf("SC_PAGE_SIZE")
    assert used < 150 * (len(shape.vertices) + 90_000 / 1.0**2) + 300 * 2**17, used
