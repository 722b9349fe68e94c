"""The one vocabulary: what a dataset yields, what a method returns.

A key that a dataset cannot fill is absent, never ``None``; the same key means the same thing everywhere. Everything
lives in the *normalised frame*, in which the object or scene lies inside the unit sphere about the origin, until a
shape leaves a method: shapes that are scored, saved and drawn are in the dataset's own frame and unit.

Letters: B objects, V views, R rays, N surface samples, M query points, P sparse points, A evaluation views, I grey
photographs of a ray batch, S sources of a photograph.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

Field = Callable[[Tensor], Tensor]
"""(..., 3) points in the normalised frame -> (...) values: negative inside, zero on the surface, positive outside."""


class Observation(TypedDict, total=False):
    """What an official protocol knows of how one object was seen, in the *dataset's* frame and unit (DTU: mm)."""

    masks: Tensor  # (A, H, W) bool: foreground of every photograph, held out or not
    projections: Tensor  # (A, 3, 4) float64: dataset frame -> pixels; the centre of the top-left pixel is (0.5, 0.5)
    volume: Tensor  # (X, Y, Z) bool: DTU's ObsMask, where the scanner could see
    volume_bounds: Tensor  # (2, 3) float64: DTU's BB, lowest and highest corner of the volume
    volume_step: float  # DTU's Res, the edge of one voxel
    plane: Tensor  # (4,) float64: DTU's ground plane; truth with plane . [x, 1] > 0 is counted


class ObjectBatch(TypedDict, total=False):
    """One or more objects, each with photographs of it, truth about it, or both."""

    images: Tensor  # (B, V, 3, H, W) float, sRGB in [0, 1]
    masks: Tensor  # (B, V, H, W) float, foreground coverage in [0, 1]
    intrinsics: Tensor  # (B, V, 3, 3) float, pixels; the centre of the top-left pixel is (0.5, 0.5)
    camera_to_world: Tensor  # (B, V, 4, 4) float, OpenCV axes (x right, y down, z forward), normalised frame
    image_index: Tensor  # (B, V) int, which photograph of the scene, for per-image codes
    image_sizes: Tensor  # (B, V, 2) int, height and width; the rest is padding. Absent where all fill images
    voxels: Tensor  # (B, R, R, R) bool, [x, y, z] over [-0.5, 0.5]^3, voxel i centred at -0.5 + (i + 0.5) / R
    surface_points: Tensor  # (B, N, 3) float, samples of the true surface
    surface_normals: Tensor  # (B, N, 3) float, unit, outward
    sparse_points: Tensor  # (B, P, 3) float, triangulated from all photographs; measures surfaces without a truth
    query_points: Tensor  # (B, M, 3) float
    query_occupancy: Tensor  # (B, M) bool, true is inside
    normalized_to_dataset: Tensor  # (B, 4, 4) float, similarity into the dataset's own frame and unit
    observations: list[Observation]  # B of them, for protocols that need more than truth
    object_index: Tensor  # (B,) int, position in the split
    object_id: list[str]  # B names, for tables and files
    category: list[str]  # B names
    split: list[str]  # B names of the split that each object is tested in, as in "r2n2/test"


class RayBatch(TypedDict, total=False):
    """Pixels of one scene, as rays in the normalised frame."""

    origins: Tensor  # (R, 3) float
    directions: Tensor  # (R, 3) float, unit
    colors: Tensor  # (R, 3) float, sRGB in [0, 1]
    ray_masks: Tensor  # (R,) float, foreground coverage in [0, 1]
    image_index: Tensor  # (R,) int, which photograph
    sparse_points: Tensor  # (P, 3) float, structure-from-motion points visible in the very images these rays come from
    pixels: Tensor  # (R, 2) float, where in its photograph each ray is, x and y; this and the rest for "source_images"
    reference_row: Tensor  # (R,) int, which of the source images each ray comes from
    source_rows: Tensor  # (R, S) int, which of them show the same surface, best first
    source_images: Tensor  # (I, H, W) uint8 grey
    source_sizes: Tensor  # (I, 2) int, height and width of what is in the top left of each; the rest is padding
    source_intrinsics: Tensor  # (I, 3, 3) float, pixels
    source_camera_to_world: Tensor  # (I, 4, 4) float, OpenCV axes, normalised frame


class Renders(TypedDict, total=False):
    """Views that a method rendered through the cameras of an ObjectBatch; keys as far as the method has them."""

    images: Tensor  # (B, V, 3, H, W) float, sRGB in [0, 1]
    opacity: Tensor  # (B, V, H, W) float in [0, 1], of the foreground alone
    depth: Tensor  # (B, V, H, W) float, distance along the unit ray, normalised frame
    normals: Tensor  # (B, V, 3, H, W) float, world axes, weighted by opacity


class Reconstruction(TypedDict, total=False):
    """What ``test_step`` and ``predict_step`` return and what callbacks score, save and draw."""

    shapes: "list[Shape]"  # B of them, in the dataset's frame and unit
    renders: Renders  # absent where the method renders no views
    voxels: Tensor  # (B, R, R, R) float in [0, 1], occupancies in the normalised frame, laid out as an ObjectBatch's
    samples: "list[list[Shape]]"  # several shapes of each object, frame as above, where a method is asked for them


@dataclass(eq=False)  # not frozen: Lightning moves predictions between devices field by field
class Shape:
    """A triangle mesh, or a point set where ``faces`` is ``None``. Empty is a result, not an error.

    Attributes:
        vertices: (N, 3) float positions.
        faces: (F, 3) int64 indices, counter-clockwise seen from outside; ``None`` for a point set.
        vertex_colors: (N, 3) float, sRGB in [0, 1]; ``None`` where unknown.
    """

    vertices: Tensor
    faces: Tensor | None = None
    vertex_colors: Tensor | None = None

    @property
    def is_empty(self) -> bool:
        """Nothing to score: no vertex, or a mesh without a face."""
        return len(self.vertices) == 0 or (self.faces is not None and len(self.faces) == 0)

    @staticmethod
    def empty() -> "Shape":
        """A mesh without vertices and faces."""
        return Shape(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 3))

    def transformed(self, matrix: Tensor) -> "Shape":
        """This shape with every vertex sent through a (4, 4) affine map that keeps handedness."""
        matrix = matrix.to(self.vertices)
        return Shape(self.vertices @ matrix[:3, :3].T + matrix[:3, 3], self.faces, self.vertex_colors)
