"""Shapes from files that any program wrote, in the frame and unit that they are in."""

from pathlib import Path

import numpy as np
import torch
import trimesh
from torch import Tensor

from ops.meshes import sample_surface
from ops.types import Shape

MESHES = (".glb", ".gltf", ".obj", ".off", ".ply", ".stl")
POINTS = (".npy", ".npz", ".xyz")


def read_shape(path: Path) -> Shape:
    """Read a mesh, or a point set from a .ply that has no element ``face``.

    Vertices are not merged. Colours are sRGB: of vertices, or of the texture at the vertices.

    Args:
        path: one of ``MESHES``.

    Returns:
        The shape, vertices in float64; the nodes of a .glb are placed and joined.

    Raises:
        ValueError: no such file, an unknown format, a broken file, no vertex, or vertices that are not finite.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a mesh, {', '.join(MESHES)}")
    if path.suffix.lower() not in MESHES:
        raise ValueError(f"{path}: cannot read {path.suffix or 'a file without suffix'}, expected {', '.join(MESHES)}")
    try:
        scene = trimesh.load_scene(path, process=False)
        parts = scene.dump(concatenate=False)
    except (OSError, ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: cannot be read ({type(error).__name__}: {error}); export it again") from error
    is_linear = path.suffix.lower() in (".glb", ".gltf")
    shapes = [_shape_of(part, is_linear) for part in parts if len(getattr(part, "vertices", ()))]
    if not shapes:
        raise ValueError(f"{path}: no vertices; expected a mesh")
    with_faces = [shape for shape in shapes if shape.faces is not None]
    shape = _joined(with_faces or shapes)
    if not with_faces and not _is_point_file(path):
        shape.faces = torch.zeros(0, 3, dtype=torch.int64)
    num_broken = int((~torch.isfinite(shape.vertices)).any(1).sum())
    if num_broken:
        raise ValueError(
            f"{path}: {num_broken} of {len(shape.vertices)} vertices are not finite; the program that wrote it has "
            f"diverged, or the file is damaged"
        )
    if shape.faces is not None and len(shape.faces) and int(shape.faces.max()) >= len(shape.vertices):
        raise ValueError(f"{path}: a face names vertex {int(shape.faces.max())} of {len(shape.vertices)}; damaged file")
    return shape


def read_surface_points(path: Path, num_points: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """Points (N, 3) float64 of a true surface, and their unit normals or ``None``.

    Args:
        path: a mesh, which is sampled; or points: a .ply without faces, ``points`` and ``normals`` of a .npz, a .npy or
            a .xyz of three or six columns.
        num_points: samples of a mesh; points are taken as they are.
        generator: of the samples.

    Raises:
        ValueError: as ``read_shape``, or there are no points.
    """
    if path.suffix.lower() not in POINTS:
        shape = read_shape(path)
        return (shape.vertices, None) if shape.faces is None else sample_surface(shape, num_points, generator)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a mesh or points")
    try:
        if path.suffix.lower() == ".xyz":
            table = np.loadtxt(path, ndmin=2)
            arrays = {"points": table[:, :3], "normals": table[:, 3:6] if table.shape[1] >= 6 else None}
        else:
            content = np.load(path, allow_pickle=False)
            arrays = dict(content) if path.suffix.lower() == ".npz" else {"points": content}
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); expected an array of points") from error
    points, normals = arrays.get("points"), arrays.get("normals")
    if points is None or points.ndim != 2 or points.shape[1] != 3 or len(points) == 0:
        found = f"an array of shape {points.shape}" if points is not None else f"the arrays {', '.join(arrays)}"
        raise ValueError(f"{path}: {found}, expected points of shape (N, 3), N at least 1")
    if not np.isfinite(points).all():
        raise ValueError(f"{path}: {int((~np.isfinite(points)).any(1).sum())} points are not finite")
    points = torch.from_numpy(points.astype(np.float64))
    if normals is None:
        return points, None
    return points, torch.nn.functional.normalize(torch.from_numpy(normals.astype(np.float64)), dim=1)


def linear_from_srgb(colors: np.ndarray) -> np.ndarray:
    """Light from sRGB values, both in [0, 1] (IEC 61966-2-1)."""
    return np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)


def srgb_from_linear(colors: np.ndarray) -> np.ndarray:
    """sRGB values from light, both in [0, 1]."""
    return np.where(colors <= 0.0031308, colors * 12.92, 1.055 * colors ** (1 / 2.4) - 0.055)


def _is_point_file(path: Path) -> bool:
    if path.suffix.lower() != ".ply":
        return False
    with path.open("rb") as file:
        return b"element face" not in file.read(65536).partition(b"end_header")[0]


def _shape_of(part: trimesh.Trimesh | trimesh.PointCloud, is_linear: bool) -> Shape:
    vertices = torch.from_numpy(np.array(part.vertices, dtype=np.float64))
    faces = getattr(part, "faces", None)
    faces = None if faces is None or len(faces) == 0 else torch.from_numpy(np.array(faces, dtype=np.int64))
    visual = part.visual
    kind = visual.kind
    if kind == "texture":
        # glTF's textures are sRGB, unlike its vertex colours
        visual, is_linear = visual.to_color(), False
    if kind is None or len(visual.vertex_colors) != len(vertices):
        return Shape(vertices, faces)
    colors = np.asarray(visual.vertex_colors, dtype=np.float64)[:, :3] / 255
    colors = srgb_from_linear(colors) if is_linear else colors
    return Shape(vertices, faces, torch.from_numpy(colors).float())


def _joined(shapes: list[Shape]) -> Shape:
    starts = np.cumsum([0] + [len(shape.vertices) for shape in shapes]).tolist()
    faces = [shape.faces + start for shape, start in zip(shapes, starts, strict=False) if shape.faces is not None]
    colors = [shape.vertex_colors for shape in shapes if shape.vertex_colors is not None]
    return Shape(
        torch.cat([shape.vertices for shape in shapes]),
        torch.cat(faces) if faces else None,
        torch.cat(colors) if len(colors) == len(shapes) else None,
    )
