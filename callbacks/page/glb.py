"""Shapes as small GLB files for a viewer in a page: positions in 16 bits, colours, normals in 8 bits.

Written here because trimesh writes positions and colours as floats, three times the size. glTF 2.0 with
KHR_mesh_quantization; colours are linear light, as glTF has them.
"""

import json
import struct

import numpy as np
import torch
from torch import Tensor

from metrics.shape_files import linear_from_srgb
from ops.meshes import face_normals_and_areas
from ops.types import Shape

GREY = (0.56, 0.54, 0.5)
FLOAT, UINT32, UINT16, INT8 = 5126, 5125, 5123, 5120
POINT_RADIUS = 0.012  # of a shape in the unit sphere

OCTAHEDRON = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
OCTAHEDRON_FACES = torch.tensor(
    [[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]]
)


def glb_bytes(shape: Shape) -> bytes:
    """A GLB of a mesh that lies about in the unit sphere.

    Args:
        shape: not empty; without colours it is grey. Blocky shapes, of voxels, are lit face by face, others smoothly.
    """
    vertices = shape.vertices.detach().cpu().double()
    faces = shape.faces.cpu()
    low = vertices.amin(0)
    step = max((vertices.amax(0) - low).max().item() / 65535, 1e-12)
    positions = ((vertices - low) / step).round().clamp(0, 65535)
    columns = {"POSITION": (_padded(positions.numpy(), np.uint16), UINT16, "VEC3", False)}
    if not _is_blocky(shape):
        normals = (127 * vertex_normals(shape)).round().numpy()
        columns["NORMAL"] = (_padded(normals, np.int8), INT8, "VEC3", True)
    if shape.vertex_colors is not None:
        light = linear_from_srgb(shape.vertex_colors.detach().cpu().double().clamp(0, 1).numpy())
        columns["COLOR_0"] = (_padded(np.round(65535 * light), np.uint16), UINT16, "VEC3", True)
    kind, code = (np.uint16, UINT16) if len(vertices) <= 65535 else (np.uint32, UINT32)
    node = {"mesh": 0, "scale": [step] * 3, "translation": low.tolist()}
    return _file(columns, faces.numpy().astype(kind).ravel(), code, node, positions, shape.vertex_colors is not None)


def points_as_mesh(shape: Shape, radius: float = POINT_RADIUS) -> Shape:
    """Every point of a set as a small octahedron, which any viewer shows at any size."""
    count = len(shape.vertices)
    vertices = shape.vertices.detach().cpu().double()[:, None] + radius * OCTAHEDRON.double()
    faces = OCTAHEDRON_FACES + 6 * torch.arange(count)[:, None, None]
    colors = None if shape.vertex_colors is None else shape.vertex_colors.cpu().repeat_interleave(6, 0)
    return Shape(vertices.view(-1, 3), faces.view(-1, 3), colors)


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


def _file(
    columns: dict[str, tuple[np.ndarray, int, str, bool]],
    indices: np.ndarray,
    index_code: int,
    node: dict[str, object],
    positions: Tensor,
    has_colors: bool,
) -> bytes:
    binary, views, accessors, attributes = b"", [], [], {}
    for name, (rows, code, kind, normalized) in columns.items():
        views.append({"buffer": 0, "byteOffset": len(binary), "byteLength": rows.nbytes, "byteStride": rows.strides[0]})
        accessor = {"bufferView": len(accessors), "componentType": code, "count": len(rows), "type": kind}
        if name == "POSITION":
            accessor |= {"min": positions.amin(0).tolist(), "max": positions.amax(0).tolist()}
        accessors.append(accessor | ({"normalized": True} if normalized else {}))
        attributes[name] = len(accessors) - 1
        binary += rows.tobytes()
    views.append({"buffer": 0, "byteOffset": len(binary), "byteLength": indices.nbytes})
    accessors.append(
        {"bufferView": len(accessors), "componentType": index_code, "count": len(indices), "type": "SCALAR"}
    )
    binary += indices.tobytes()
    binary += bytes(-len(binary) % 4)
    grey = (1.0, 1.0, 1.0) if has_colors else tuple(linear_from_srgb(np.array(GREY)).tolist())
    material = {"pbrMetallicRoughness": {"baseColorFactor": [*grey, 1.0], "metallicFactor": 0.0, "roughnessFactor": 0.9}}
    tree = {
        "asset": {"version": "2.0"},
        "extensionsUsed": ["KHR_mesh_quantization"],
        "extensionsRequired": ["KHR_mesh_quantization"],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [node],
        "meshes": [{"primitives": [{"attributes": attributes, "indices": len(accessors) - 1, "material": 0}]}],
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
