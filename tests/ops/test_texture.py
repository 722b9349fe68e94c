"""Texture atlases: what the picture shows at a place of the surface is the colour there."""

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from ops.meshes import face_normals_and_areas
from ops.texture import XATLAS, textured
from ops.types import Shape

pytestmark = pytest.mark.skipif(not XATLAS, reason="xatlas is not installed: pip install xatlas")


def sphere(subdivisions: int = 4) -> Shape:
    mesh = trimesh.creation.icosphere(subdivisions, 0.5)
    offset = torch.tensor([100.0, -20.0, 600.0])
    return Shape(torch.tensor(np.array(mesh.vertices)).float() + offset, torch.tensor(np.array(mesh.faces)))


def waves(points: Tensor) -> Tensor:
    """Colours that the 642 vertices of a sphere are too few for."""
    return 0.5 + 0.4 * torch.sin(25 * points.double())


def at_random_places(result, num_points: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """Points on the faces, and what a viewer shows there: bilinear interpolation between texels, by a loop."""
    generator = np.random.default_rng(0)
    faces = result.shape.faces.numpy()
    areas = face_normals_and_areas(result.shape)[1].numpy()
    chosen = generator.choice(len(faces), num_points, p=areas / areas.sum())
    weights = generator.dirichlet([1, 1, 1], num_points)[:, :, None]
    points = (result.shape.vertices.double().numpy()[faces[chosen]] * weights).sum(1)
    uv = (result.uv.double().numpy()[faces[chosen]] * weights).sum(1)
    texture = result.texture.double().numpy() / 255
    height, width = texture.shape[:2]
    colors = []
    for u, v in uv:
        x, y = u * width - 0.5, (1 - v) * height - 0.5
        i, j = int(np.floor(y)), int(np.floor(x))
        rows, columns = np.clip([i, i + 1], 0, height - 1), np.clip([j, j + 1], 0, width - 1)
        a, b = y - i, x - j
        patch = texture[np.ix_(rows, columns)]
        colors.append(np.einsum("i,j,ijc->c", [1 - a, a], [1 - b, b], patch))
    return points, np.array(colors)


def test_the_texture_has_the_colours_of_the_field_at_random_places() -> None:
    result = textured(sphere(), waves, size=512)
    points, shown = at_random_places(result)
    wanted = waves(torch.from_numpy(points)).numpy()
    error = np.abs(shown - wanted).max(1)
    # vertex colours would be off by a tenth: waves of 0.25 between vertices 0.04 apart
    assert np.quantile(error, 0.99) < 0.02
    assert error.max() < 0.06, error.max()


def test_without_a_field_the_texture_interpolates_the_vertex_colours() -> None:
    shape = sphere(2)
    shape.vertex_colors = torch.rand(len(shape.vertices), 3, generator=torch.Generator().manual_seed(0))
    result = textured(shape, size=512)
    generator = np.random.default_rng(1)
    faces = result.shape.faces.numpy()[generator.integers(len(result.shape.faces), size=500)]
    # at the middle of a face, that is inside of its chart
    middles = result.uv.double().numpy()[faces].mean(1)
    height, width = result.texture.shape[:2]
    rows, columns = ((1 - middles[:, 1]) * height).astype(int), (middles[:, 0] * width).astype(int)
    texels = result.texture.numpy()[rows, columns] / 255
    wanted = result.shape.vertex_colors.numpy()[faces].mean(1)
    assert np.abs(texels - wanted).max() < 0.1
    assert np.abs(texels - wanted).mean() < 0.02


def test_the_surface_stays_and_charts_do_not_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ops.texture.FACES_OF_A_PIECE", 300)  # of 1280, so that there are several pieces
    shape = sphere(3)
    result = textured(shape, waves, size=256)
    corners = {tuple(sorted(map(tuple, c))) for c in shape.vertices[shape.faces].tolist()}
    assert {tuple(sorted(map(tuple, c))) for c in result.shape.vertices[result.shape.faces].tolist()} == corners
    assert len(result.shape.faces) == len(shape.faces)
    outward = result.shape.vertices - shape.vertices.mean(0)
    assert ((outward * result.normals).sum(1) / outward.norm(dim=1)).min() > 0.99
    assert result.uv.min() >= 0
    assert result.uv.max() <= 1
    flat = torch.cat([result.uv, torch.zeros(len(result.uv), 1)], 1)
    # triangles that do not overlap fill less than the square
    assert 0.4 < face_normals_and_areas(Shape(flat, result.shape.faces))[1].sum() <= 1


def test_what_cannot_have_a_texture_is_refused() -> None:
    shape = sphere(1)
    with pytest.raises(ValueError, match="needs a mesh with faces"):
        textured(Shape(shape.vertices), waves)
    with pytest.raises(ValueError, match="needs a mesh with faces"):
        textured(Shape.empty(), waves)
    with pytest.raises(ValueError, match="has none, and its method no colour field"):
        textured(shape)


def test_without_xatlas_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ops.texture.XATLAS", False)
    with pytest.raises(ModuleNotFoundError, match="pip install xatlas"):
        textured(sphere(1), waves)
