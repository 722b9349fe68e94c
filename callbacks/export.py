"""Shapes in the formats that other programs read: ``python -m callbacks.export MESH --formats '[obj, glb]'``.

SaveShapes writes the same beside its .ply of every object. All files are in one frame and unit, the dataset's own; no
axis is turned, also not in .glb, whose viewers take y for up. Vertex colours are sRGB in .ply and .obj, and light
(linear) in .glb, as glTF has it; textures are sRGB everywhere.
"""

import io
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import trimesh
from jsonargparse import ArgumentParser
from PIL import Image
from torch import Tensor

from callbacks.results import write_whole
from callbacks.turntable import animation_bytes, turntable_frames
from metrics.shape_files import linear_from_srgb, read_shape
from ops.meshes import largest_component, merge_vertices
from ops.texture import TexturedShape, textured
from ops.types import ObjectBatch, Shape
from ops.visual_hull import cropped_to_visual_hull

SUFFIXES = (
    ".obj",
    ".mtl",
    "_texture.png",
    ".glb",
    "_turntable.webp",
    "_turntable.gif",
    "_voxels.npz",
    "_voxels.binvox",
)
"""Of all files that an export may write beside the .ply."""


@dataclass
class Export:
    """What is made of every shape beside its .ply.

    Args:
        formats: files of the shape; a .ply is written in any case.
        texture: whether .obj and .glb have a texture instead of vertex colours; it needs xatlas and takes about 0.1 ms
            a face. Its colours are the method's colour field's, or else the vertex colours'.
        texture_size: longest edge of the texture, about, texels.
        turntable: kind of the animated picture of the turning shape; null makes none.
        turntable_frames: pictures in one turn.
        turntable_size: edge of the picture, pixels.
        largest_only: whether only the part with the most faces is written.
        crop_to_hull: whether what lies outside of the masks of the photographs is cut off.
        hull_margin: radius by which the masks are grown before, pixels.
        voxels: files of the voxels, of methods that return them: .npz with the occupancies, .binvox with those of at
            least one half.
    """

    formats: list[Literal["ply", "obj", "glb"]] = field(default_factory=lambda: ["ply"])
    texture: bool = False
    texture_size: int = 2048
    turntable: Literal["webp", "gif"] | None = None
    turntable_frames: int = 48
    turntable_size: int = 400
    largest_only: bool = False
    crop_to_hull: bool = False
    hull_margin: int = 2
    voxels: list[Literal["npz", "binvox"]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.texture and not {"obj", "glb"} & set(self.formats):
            raise ValueError(f"texture: formats are {self.formats}, but only obj and glb carry a texture; add one")

    def prepared(self, shape: Shape, batch: ObjectBatch, i: int) -> Shape:
        """The shape as it is to be written: cropped, its largest part.

        Raises:
            ValueError: it is to be cropped, and the dataset has no masks.
        """
        if self.crop_to_hull and not shape.is_empty:
            shape = cropped_to_visual_hull(shape, *hull_views(batch, i), self.hull_margin)
        return largest_component(shape) if self.largest_only else shape

    def write(
        self, shape: Shape, stem: Path, color_field: Callable[[Tensor], Tensor] | None = None, up: Tensor | None = None
    ) -> list[Path]:
        """Write the files of a shape that is not empty, except its .ply.

        Args:
            shape: in the dataset's frame.
            stem: the files' path without their endings.
            color_field: (n, 3) points in the dataset's frame -> (n, 3) sRGB in [0, 1].
            up: (3,) axis of the turntable; y where not given.
        """
        written = {}
        # points have nothing that a texture could lie on
        has_texture = self.texture and shape.faces is not None
        unwrapped = textured(shape, color_field, size=self.texture_size) if has_texture else None
        for kind in self.formats:
            if kind != "ply":
                written |= file_contents(shape if unwrapped is None else unwrapped, kind, stem.name)
        if self.turntable is not None:
            up = torch.tensor([0.0, 1.0, 0.0]) if up is None else up
            frames = turntable_frames(shape, up, num_frames=self.turntable_frames, size=self.turntable_size)
            written[f"_turntable.{self.turntable}"] = animation_bytes(frames, self.turntable)
        return _written(stem, written)

    def write_voxels(self, voxels: Tensor, stem: Path, to_dataset: Tensor | None) -> list[Path]:
        """Write (R, R, R) occupancies over [-0.5, 0.5]^3 of the normalised frame, and what leads into the dataset's."""
        occupancy = voxels.detach().cpu().float().numpy()
        written = {}
        if "npz" in self.voxels:
            content, matrix = io.BytesIO(), np.eye(4) if to_dataset is None else to_dataset.double().cpu().numpy()
            np.savez_compressed(content, occupancy=occupancy.astype(np.float16), normalized_to_dataset=matrix)
            written["_voxels.npz"] = content.getvalue()
        if "binvox" in self.voxels:
            # the format's scale is the edge of the grid and its translate the lowest corner; trimesh writes R - 1 cells
            place = np.diag([1 / max(len(occupancy) - 1, 1)] * 3 + [1.0])
            place[:3, 3] = -0.5
            written["_voxels.binvox"] = trimesh.voxel.VoxelGrid(occupancy >= 0.5, place).export(file_type="binvox")
        return _written(stem, written)


def remove_exports(stem: Path) -> None:
    """Remove what an earlier export may have left of an object."""
    for suffix in SUFFIXES:
        stem.with_name(stem.name + suffix).unlink(missing_ok=True)


def hull_views(batch: ObjectBatch, i: int) -> tuple[Tensor, Tensor]:
    """Masks (V, H, W) and projections (V, 3, 4) from the dataset's frame of all photographs that are known.

    Raises:
        ValueError: the dataset has no masks.
    """
    observation = batch["observations"][i] if "observations" in batch else {}
    if "masks" in observation and "projections" in observation:
        return observation["masks"], observation["projections"]
    if "masks" not in batch or "camera_to_world" not in batch:
        raise ValueError("crop_to_hull: the dataset has no masks; give it some, or leave crop_to_hull out")
    world_to_camera = torch.linalg.inv(batch["camera_to_world"][i].double())
    if "normalized_to_dataset" in batch:
        world_to_camera = world_to_camera @ torch.linalg.inv(batch["normalized_to_dataset"][i].double())
    return batch["masks"][i], batch["intrinsics"][i].double() @ world_to_camera[:, :3]


def up_axis(batch: ObjectBatch, i: int) -> Tensor | None:
    """(3,) which way is up for an object's cameras, in the dataset's frame; ``None`` without cameras.

    People hold cameras level: up is at right angles to the cameras' axes to the right, as far as those differ, and
    else the mean of their upward axes, which leans towards where most of them stand.
    """
    if "camera_to_world" not in batch:
        return None
    poses = batch["camera_to_world"][i].double().cpu()
    up = -poses[:, :3, 1].mean(0)
    right = poses[:, :3, 0]
    spread, axes = torch.linalg.eigh(right.T @ right / len(right))
    if spread[1] > 0.02 and spread[0] < 0.2 * spread[1]:
        up = axes[:, 0] * torch.sign(axes[:, 0] @ up)
    return up if "normalized_to_dataset" not in batch else batch["normalized_to_dataset"][i].double().cpu()[:3, :3] @ up


def first_camera(batch: ObjectBatch, i: int) -> Tensor | None:
    """(3,) position of an object's first camera, in the dataset's frame; ``None`` without cameras."""
    if "camera_to_world" not in batch:
        return None
    position = batch["camera_to_world"][i, 0, :3, 3].double().cpu()
    if "normalized_to_dataset" not in batch:
        return position
    matrix = batch["normalized_to_dataset"][i].double().cpu()
    return matrix[:3, :3] @ position + matrix[:3, 3]


def file_contents(shape: Shape | TexturedShape, kind: Literal["ply", "obj", "glb"], name: str) -> dict[str, bytes]:
    """The files of one format: ending -> content.

    Args:
        shape: with its texture, or without.
        kind: the format.
        name: of the files, by which an .obj refers to the others.
    """
    if isinstance(shape, TexturedShape):
        return _textured_contents(shape, kind, name)
    vertices = shape.vertices.detach().cpu().numpy()
    colors = None if shape.vertex_colors is None else shape.vertex_colors.detach().cpu().double().clamp(0, 1).numpy()
    if kind == "glb" and colors is not None:
        colors = linear_from_srgb(colors)
    bytes_of_colors = None if colors is None else (colors * 255).round().astype(np.uint8)
    if shape.faces is None:
        points = trimesh.PointCloud(vertices, bytes_of_colors)
        return {f".{kind}": _bytes(points if kind != "glb" else trimesh.Scene(points), kind)}
    # process=True would merge and reorder vertices
    mesh = trimesh.Trimesh(vertices, shape.faces.cpu().numpy(), process=False)
    if kind == "glb":
        if colors is not None:
            # in floats: eight bits of light are too few for dark colours
            mesh.vertex_attributes["_COLOR_0"] = colors.astype(np.float32)
        return {".glb": trimesh.exchange.gltf.export_glb(trimesh.Scene(mesh), tree_postprocessor=_rename_colors)}
    if bytes_of_colors is not None:
        mesh.visual.vertex_colors = bytes_of_colors
    return {f".{kind}": _bytes(mesh, kind)}


def _textured_contents(textured_shape: TexturedShape, kind: str, name: str) -> dict[str, bytes]:
    shape = textured_shape.shape
    picture = Image.fromarray(textured_shape.texture.numpy())
    mesh = trimesh.Trimesh(
        shape.vertices.detach().cpu().numpy(),
        shape.faces.cpu().numpy(),
        vertex_normals=textured_shape.normals.numpy(),
        process=False,
    )
    if kind == "glb":
        # not a metal and not a mirror: the colours are all there is to know
        material = trimesh.visual.material.PBRMaterial(
            baseColorTexture=picture, metallicFactor=0.0, roughnessFactor=1.0
        )
        mesh.visual = trimesh.visual.TextureVisuals(textured_shape.uv.numpy(), material=material)
        return {".glb": mesh.export(file_type="glb", include_normals=True)}
    if kind == "ply":
        raise ValueError("A .ply carries no texture here; write .obj or .glb")
    mesh.visual = trimesh.visual.TextureVisuals(textured_shape.uv.numpy(), image=picture)
    text, others = trimesh.exchange.obj.export_obj(
        mesh, include_normals=True, return_texture=True, mtl_name=f"{name}.mtl"
    )
    (old,) = set(others) - {f"{name}.mtl"}
    material = others[f"{name}.mtl"].decode().replace(old, f"{name}_texture.png")
    return {".obj": text.encode(), ".mtl": material.encode(), "_texture.png": others[old]}


def _bytes(thing: trimesh.Trimesh | trimesh.PointCloud | trimesh.Scene, kind: str) -> bytes:
    content = thing.export(file_type=kind)
    return content.encode() if isinstance(content, str) else content


def _rename_colors(tree: dict[str, Any]) -> None:
    # trimesh takes floats for attributes of one's own only, whose names begin with an underscore
    for mesh in tree["meshes"]:
        attributes = mesh["primitives"][0]["attributes"]
        if "_COLOR_0" in attributes:
            attributes["COLOR_0"] = attributes.pop("_COLOR_0")


def _written(stem: Path, contents: dict[str, bytes]) -> list[Path]:
    paths = []
    for suffix, content in contents.items():
        paths.append(stem.with_name(stem.name + suffix))
        write_whole(paths[-1], content)
    return paths


AXES = {"x": (1, 0, 0), "y": (0, 1, 0), "z": (0, 0, 1), "-x": (-1, 0, 0), "-y": (0, -1, 0), "-z": (0, 0, -1)}


def main(args: list[str] | None = None) -> list[Path]:
    """Convert a mesh; returns the files."""
    parser = ArgumentParser(prog="python -m callbacks.export", description="Write a mesh in other formats.")
    parser.add_argument("mesh", type=Path, help="the mesh: .ply, .obj, .glb, .stl, .off")
    parser.add_argument("--output", type=Path | None, default=None, help="folder; <mesh>_export beside the mesh")
    parser.add_argument("--up", type=Literal[tuple(AXES)], default="y", help="axis that the turntable turns about")
    parser.add_class_arguments(Export, skip={"crop_to_hull", "hull_margin", "voxels"})
    given = parser.parse_args(args)
    options = {one.name: given[one.name] for one in fields(Export) if one.name in given}
    export = Export(**options)
    # before the parts are told: files repeat a vertex for every block, face or texture coordinate
    shape = export.prepared(merge_vertices(read_shape(given.mesh)), {}, 0)
    if shape.is_empty:
        raise ValueError(f"{given.mesh}: a mesh with no faces to export ({len(shape.vertices)} vertices)")
    folder = given.output or given.mesh.with_name(f"{given.mesh.stem}_export")
    stem = folder / given.mesh.stem
    files = _written(stem, file_contents(shape, "ply", stem.name)) if "ply" in export.formats else []
    files += export.write(shape, stem, up=torch.tensor(AXES[given.up], dtype=torch.float64))
    print("\n".join(f"{path}  {path.stat().st_size / 2**20:.2f} MiB" for path in files))
    return files


if __name__ == "__main__":
    try:
        main()
    except (ValueError, ModuleNotFoundError) as error:
        if os.environ.get("BOTTEGA_TRACEBACK"):
            raise
        sys.exit(f"error: {error}")
