"""Shapes as small GLB files for a viewer in a page: positions in 16 bits, colours, normals in 8 bits.

Written here because trimesh writes positions and colours as floats, three times the size. glTF 2.0 with
KHR_mesh_quantization; colours are linear light, as glTF has them.
"""

import json
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metrics.shape_files import linear_from_srgb
from ops.meshes import face_normals_and_areas
from ops.types import Shape

GREY = (0.56, 0.54, 0.5)
UINT32, UINT16, INT8 = 5125, 5123, 5120
POINT_RADIUS = 0.015  # of a shape in the unit sphere

OCTAHEDRON = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
OCTAHEDRON_FACES = torch.tensor(
    [[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]]
)


@dataclass(frozen=True)
class Rows:
    """Values of three components, in ``rows`` (n, 3 or 4: padded), and what glTF calls their type."""

    rows: np.ndarray
    code: int
    normalized: bool = False


def glb_bytes(shape: Shape) -> bytes:
    """A GLB of a mesh or a point set that lies about in the unit sphere.

    Args:
        shape: not empty; without colours it is grey. Blocky shapes, of voxels, are lit face by face, others smoothly.
            A point is a small octahedron, which is seen at any size.
    """
    is_smooth = shape.faces is not None and not _is_blocky(shape)
    shape = _points_as_mesh(shape) if shape.faces is None else shape
    columns, node = _mesh_columns(shape, is_smooth)
    return _file(columns, shape.faces.cpu().numpy().ravel(), node, has_colors=shape.vertex_colors is not None)


def _points_as_mesh(shape: Shape) -> Shape:
    # not EXT_mesh_gpu_instancing, a tenth of the size: model-viewer 4.4 draws it, but reports an error
    vertices = shape.vertices.detach().cpu().double()[:, None] + POINT_RADIUS * OCTAHEDRON.double()
    faces = OCTAHEDRON_FACES + 6 * torch.arange(len(vertices))[:, None, None]
    colors = None if shape.vertex_colors is None else shape.vertex_colors.cpu().repeat_interleave(6, 0)
    return Shape(vertices.view(-1, 3), faces.view(-1, 3), colors)


def _mesh_columns(shape: Shape, is_smooth: bool) -> tuple[dict[str, Rows], dict[str, Any]]:
    """Attributes of the vertices, and the node that takes their whole numbers to where they belong."""
    vertices = shape.vertices.detach().cpu().double()
    low = vertices.amin(0)
    step = max((vertices.amax(0) - low).max().item() / 65535, 1e-12)
    positions = ((vertices - low) / step).round().clamp(0, 65535)
    columns = {"POSITION": Rows(_padded(positions.numpy(), np.uint16), UINT16)}
    if is_smooth:
        columns["NORMAL"] = Rows(_padded((127 * vertex_normals(shape)).round().numpy(), np.int8), INT8, normalized=True)
    if shape.vertex_colors is not None:
        columns["COLOR_0"] = Rows(_light(shape.vertex_colors), UINT16, normalized=True)
    return columns, {"mesh": 0, "scale": [step] * 3, "translation": low.tolist()}


def _light(colors: Tensor) -> np.ndarray:
    light = linear_from_srgb(colors.detach().cpu().double().clamp(0, 1).numpy())
    return _padded(np.round(65535 * light), np.uint16)


def vertex_normals(shape: Shape) -> Tensor:
    """(N, 3) unit normals, means over the faces around by area; up where a vertex has none."""
    normals, areas = face_normals_and_areas(Shape(shape.vertices.detach().cpu(), shape.faces.cpu()))
    sums = torch.zeros(len(shape.vertices), 3, dtype=torch.float64)
    for corner in shape.faces.cpu().unbind(1):
        sums.index_add_(0, corner, normals * areas[:, None])
    sums[sums.norm(dim=1) < 1e-12 * max(float(areas.max()), 1e-300)] = torch.tensor([0.0, 1.0, 0.0]).double()
    return torch.nn.functional.normalize(sums, dim=1)


def _is_blocky(shape: Shape) -> bool:
    normals, areas = face_normals_and_areas(Shape(shape.vertices.detach().cpu(), shape.faces.cpu()))
    return float(areas[normals.abs().amax(1) > 0.999].sum()) > 0.95 * float(areas.sum())


def _padded(rows: np.ndarray, kind: type) -> np.ndarray:
    # a vertex has to begin at a multiple of four bytes
    return np.pad(rows, ((0, 0), (0, 1))).astype(kind)


def _file(columns: dict[str, Rows], indices: np.ndarray, node: dict[str, Any], *, has_colors: bool) -> bytes:
    binary, views, accessors = b"", [], []

    def add(rows: np.ndarray, code: int, kind: str, **more: Any) -> int:
        nonlocal binary
        stride = {"byteStride": rows.strides[0]} if kind == "VEC3" else {}
        views.append({"buffer": 0, "byteOffset": len(binary), "byteLength": rows.nbytes, **stride})
        accessors.append(
            {"bufferView": len(views) - 1, "componentType": code, "count": len(rows), "type": kind, **more}
        )
        binary += rows.tobytes() + bytes(-rows.nbytes % 4)
        return len(accessors) - 1

    def add_rows(name: str, column: Rows) -> int:
        more: dict[str, Any] = {"normalized": True} if column.normalized else {}
        if name == "POSITION":
            seen = column.rows[:, :3].astype(np.float64)
            more |= {"min": seen.min(0).tolist(), "max": seen.max(0).tolist()}
        return add(column.rows, column.code, "VEC3", **more)

    attributes = {name: add_rows(name, column) for name, column in columns.items()}
    kind, code = (np.uint16, UINT16) if indices.max() < 65535 else (np.uint32, UINT32)
    primitive = {"attributes": attributes, "indices": add(indices.astype(kind), code, "SCALAR"), "material": 0}
    extensions = ["KHR_mesh_quantization"]
    grey = (1.0, 1.0, 1.0) if has_colors else tuple(linear_from_srgb(np.array(GREY)).tolist())
    material = {
        "pbrMetallicRoughness": {"baseColorFactor": [*grey, 1.0], "metallicFactor": 0.0, "roughnessFactor": 0.9}
    }
    tree = {
        "asset": {"version": "2.0"},
        "extensionsUsed": extensions,
        "extensionsRequired": extensions,
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [node],
        "meshes": [{"primitives": [primitive]}],
        # both sides, since an open surface is seen from behind too
        "materials": [{**material, "doubleSided": True}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(binary)}],
    }
    text = json.dumps(tree, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    length = 12 + 8 + len(text) + 8 + len(binary)
    parts = [struct.pack("<4sII", b"glTF", 2, length), struct.pack("<I4s", len(text), b"JSON"), text]
    return b"".join([*parts, struct.pack("<I4s", len(binary), b"BIN\0"), binary])
