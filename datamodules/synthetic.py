"""Photographs of an analytic scene, with exact cameras, masks, depth and surface: no download, seconds to make.

``python -m datamodules.synthetic --scene knot --output DIR`` writes one in the NeuS layout, which ``DTU`` reads.
"""

import argparse
import hashlib
import math
import os
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, get_args

import mcubes
import numpy as np
import torch
from torch import Tensor

from datamodules.prepare.neus_layout import write_neus_layout
from datamodules.scene import Scene, SceneDataModule
from ops import cameras, scenes, sphere_tracing
from ops.cameras import look_at, pixel_centers, pixel_rays
from ops.scenes import SCENES, AnalyticScene
from ops.sphere_tracing import march
from ops.types import Observation

SceneName = Literal["knot", "statue"]

RADIUS = 0.9
"""Every analytic scene lies within this distance of the origin."""

# millimetres, and off the origin, so that nobody mistakes one frame for the other unnoticed
MILLIMETRES = 85.0
CENTER_MM = (120.0, -40.0, 610.0)

VIEWS_AT_ONCE = 6


class SyntheticScene(SceneDataModule):
    """An analytic, coloured thing with thin, concave and holed parts, photographed from all sides.

    Args:
        scene: Which thing.
        num_views: Photographs taken of it, held-out ones included.
        image_size: Width and height of a photograph in pixels.
        background: What is behind the thing.
        num_surface_points: Samples of the true surface, uniform by area.
        root: Folder that keeps what was made, so that it is made once.
        held_out: Views never trained on, by index, or every n-th (0, n, 2n, ...); validation and test show them.
        **kwargs: How batches are drawn, see ``SceneDataModule``.
    """

    provides = frozenset(
        {"rays", "ray_masks", "images", "masks", "intrinsics", "camera_to_world", "image_index"}
        | {"surface_points", "surface_normals", "normalized_to_dataset", "observations"}
    )

    def __init__(
        self,
        scene: SceneName = "knot",
        num_views: int = 42,
        image_size: int = 160,
        background: Literal["black", "white"] = "black",
        num_surface_points: int = 100_000,
        root: str = "data/synthetic",
        held_out: list[int] | int | None = 7,
        **kwargs: Any,
    ) -> None:
        super().__init__(held_out=held_out, **kwargs)
        if scene not in SCENES:
            raise ValueError(f"there is no synthetic scene {scene!r}; there are {', '.join(SCENES)}")
        self.scene_name, self.background = scene, background
        self.num_views, self.image_size, self.num_surface_points = num_views, image_size, num_surface_points
        self.path = Path(root) / f"{scene}_{num_views}x{image_size}_{self._checksum()}.npz"

    def _checksum(self) -> str:
        # what is kept holds only as long as the code that made it
        digest = hashlib.sha256(
            repr((self.scene_name, self.num_views, self.image_size, self.num_surface_points)).encode()
        )
        for source in (__file__, scenes.__file__, sphere_tracing.__file__, cameras.__file__):
            digest.update(Path(source).read_bytes())
        return digest.hexdigest()[:12]

    def prepare_data(self) -> None:
        """Photograph the scene and sample its surface, unless that was done before."""
        if self.path.exists() and zipfile.is_zipfile(self.path):
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        arrays = make_scene(SCENES[self.scene_name], self.num_views, self.image_size, self.num_surface_points)
        # written beside and renamed: another process sees all of it or nothing
        with tempfile.NamedTemporaryFile(dir=self.path.parent, suffix=".tmp", delete=False) as file:
            np.savez(file, **{name: array.numpy() for name, array in arrays.items()})
        os.replace(file.name, self.path)

    def load_scene(self) -> Scene:
        """Read the scene, making it first where it is not there."""
        self.prepare_data()
        with np.load(self.path, allow_pickle=False) as file:
            arrays = {name: torch.from_numpy(file[name]) for name in file.files}
        images, masks = arrays["images"], arrays["masks"]
        if self.background == "white":
            images = images + (255 - masks)[..., None]
        normalized_to_dataset = torch.diag(torch.tensor([MILLIMETRES] * 3 + [1.0], dtype=torch.float64))
        normalized_to_dataset[:3, 3] = torch.tensor(CENTER_MM)
        return Scene(
            name=self.scene_name,
            category="synthetic",
            images=images,
            intrinsics=arrays["intrinsics"],
            camera_to_world=arrays["camera_to_world"],
            normalized_to_dataset=normalized_to_dataset,
            image_names=[f"{view:06d}.png" for view in range(len(images))],
            masks=masks,
            surface_points=arrays["surface_points"],
            surface_normals=arrays["surface_normals"],
            observation=Observation(
                masks=masks > 127,
                projections=projections(arrays["intrinsics"], arrays["camera_to_world"], normalized_to_dataset),
            ),
            depth=arrays["depth"],
        )

    def write_neus_layout(self, folder: str | Path) -> None:
        """Write ``image/``, ``mask/`` and ``cameras_sphere.npz`` as NeuS and the DTU DataModule read them."""
        write_neus_layout(self.scene or self.load_scene(), Path(folder))


def projections(intrinsics: Tensor, camera_to_world: Tensor, normalized_to_dataset: Tensor) -> Tensor:
    """(V, 3, 4) float64 projections, dataset frame to pixels with the first centre at (0.5, 0.5)."""
    dataset_to_camera = torch.linalg.inv(normalized_to_dataset @ camera_to_world.double())
    matrices = intrinsics.double() @ dataset_to_camera[:, :3]
    # the similarity's scale has entered every entry; without it the third coordinate is the depth in the dataset's unit
    return matrices * normalized_to_dataset[:3, 0].norm()


def make_scene(scene: AnalyticScene, num_views: int, image_size: int, num_surface_points: int) -> dict[str, Tensor]:
    """Photograph a scene and sample its surface.

    Returns:
        Arrays named as in ``Scene``; images are premultiplied, that is over black.
    """
    intrinsics, poses = camera_ring(num_views, image_size)
    # several views at once, since the last rays of each creep along silhouettes in many steps of little work
    groups = zip(intrinsics.split(VIEWS_AT_ONCE), poses.split(VIEWS_AT_ONCE), strict=True)
    num_threads = torch.get_num_threads()
    # thousands of short operations: sharing each among threads was measured ten times slower on a busy machine, so the
    # threads share the groups instead
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(num_threads) as pool:
            photographs = list(pool.map(lambda group: photograph(scene, *group, image_size), groups))
        points, normals = sample_analytic_surface(scene, num_surface_points, torch.Generator().manual_seed(0))
    finally:
        torch.set_num_threads(num_threads)
    images, masks, depth = (torch.cat(parts) for parts in zip(*photographs, strict=True))
    return {
        "images": images,
        "masks": masks,
        "depth": depth,
        "intrinsics": intrinsics,
        "camera_to_world": poses,
        "surface_points": points.float(),
        "surface_normals": normals.float(),
    }


def camera_ring(num_views: int, image_size: int) -> tuple[Tensor, Tensor]:
    """Cameras all around the origin, no two alike, so that taking one's intrinsics for another's shows.

    Returns:
        ``intrinsics`` (V, 3, 3) and ``camera_to_world`` (V, 4, 4), float32.
    """
    generator = torch.Generator().manual_seed(0)
    intrinsics, poses = [], []
    for view in range(num_views):
        jitter = torch.rand(6, generator=generator) * 2 - 1
        # a Fibonacci spiral: even over the sphere, and so is every n-th of it
        height = -0.8 + 1.75 * (view + 0.5) / num_views
        turn = view * math.pi * (3 - math.sqrt(5))
        out = math.sqrt(1 - height**2)
        direction = torch.tensor([out * math.cos(turn), out * math.sin(turn), height])
        poses.append(look_at((2.9 + 0.1 * jitter[0]) * direction, 0.02 * jitter[1:4], torch.tensor([0.0, 0.0, 1.0])))
        focal = image_size * (1.38 + 0.02 * jitter[4])
        center = image_size * (0.5 + 0.01 * jitter[4:6])
        intrinsics.append(torch.tensor([[focal, 0, center[0]], [0, focal, center[1]], [0, 0, 1]]))
    return torch.stack(intrinsics), torch.stack(poses)


def photograph(scene: AnalyticScene, intrinsics: Tensor, poses: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Photographs of a scene, four samples a pixel.

    Args:
        scene: what is in front of the cameras.
        intrinsics: (V, 3, 3).
        poses: (V, 4, 4) camera to world.
        size: width and height in pixels.

    Returns:
        ``images`` (V, H, W, 3) uint8 over black, ``masks`` (V, H, W) uint8 coverage, ``depth`` (V, H, W) float32 along
        the rays through pixel centres, infinite where they meet nothing.
    """
    num_views = len(poses)
    centers = pixel_centers(size, size)
    offsets = torch.tensor([[-0.25, -0.25], [0.25, -0.25], [-0.25, 0.25], [0.25, 0.25]])
    blocks, block_of = _blocks(centers, size)

    def view_directions(pixels: Tensor) -> Tensor:
        rays = [pixel_rays(pixels, k, pose)[1] for k, pose in zip(intrinsics, poses, strict=True)]
        return torch.stack(rays)  # (V, R, 3)

    block_directions = view_directions(blocks)
    pixel_directions = view_directions(centers)
    sub_directions = view_directions((centers[:, None] + offsets).reshape(-1, 2)).reshape(num_views, -1, 4, 3)
    pixel_spread = 1.01 * (sub_directions - pixel_directions[:, :, None]).norm(dim=-1).max().item()
    block_spread = 1.01 * (pixel_directions - block_directions[:, block_of]).norm(dim=-1).max().item() + pixel_spread

    distances = poses[:, :3, 3].norm(dim=-1)
    near = (distances - RADIUS)[:, None].expand(-1, len(blocks))
    near = _trace(scene, poses, block_directions, near, block_spread)[:, block_of]
    near = _trace(scene, poses, pixel_directions, near, pixel_spread)
    depth = _trace(scene, poses, pixel_directions, near)
    sub_directions = sub_directions.reshape(num_views, -1, 3)
    t = _trace(scene, poses, sub_directions, near.repeat_interleave(4, dim=1))

    hits = t.isfinite()
    points = poses[:, None, :3, 3].expand_as(sub_directions)[hits] + t[hits][:, None] * sub_directions[hits]
    colors = torch.zeros(*t.shape, 3)
    colors[hits] = scene.shade(points, sub_directions[hits])
    images = (colors.reshape(num_views, size, size, 4, 3).mean(dim=3) * 255).round().byte()
    masks = (hits.float().reshape(num_views, size, size, 4).mean(dim=3) * 255).floor().byte()
    # rounded up where the mask is rounded down, a colour could outshine its coverage
    return torch.minimum(images, masks[..., None]), masks, depth.reshape(num_views, size, size)


def _trace(scene: AnalyticScene, poses: Tensor, directions: Tensor, near: Tensor, spread: float = 0.0) -> Tensor:
    # (V, R, 3) directions and (V, R) starts -> (V, R) distances
    centers = poses[:, None, :3, 3].expand_as(directions).reshape(-1, 3)
    far = (poses[:, :3, 3].norm(dim=-1) + RADIUS)[:, None].expand_as(near).reshape(-1)
    found = march(scene.sdf, centers, directions.reshape(-1, 3), near.reshape(-1), far, spread=spread)
    return found.reshape(near.shape)


def _blocks(centers: Tensor, size: int, edge: int = 8) -> tuple[Tensor, Tensor]:
    # centres of square blocks of pixels, and each pixel's block
    per_row = -(-size // edge)
    x, y = (centers / edge).long().unbind(dim=-1)
    return pixel_centers(per_row, per_row) * edge, y * per_row + x


def sample_analytic_surface(
    scene: AnalyticScene, num_points: int, generator: torch.Generator, resolution: int = 256
) -> tuple[Tensor, Tensor]:
    """Points on the very surface, uniform by area (to second order in the grid's spacing), and their normals.

    Args:
        scene: whose surface.
        num_points: how many.
        generator: of the draw.
        resolution: cells along an edge of the grid on which the areas are measured; a multiple of 8.

    Returns:
        ``points`` and unit outward ``normals``, each (num_points, 3) float64.
    """
    vertices, faces = mcubes.marching_cubes(_sampled_field(scene, resolution).numpy(), 0.0)
    vertices = torch.from_numpy(vertices) * (2 / resolution) - 1
    corners = vertices[torch.from_numpy(faces.astype(np.int64))]  # (F, 3, 3)
    edges = corners[:, 1:] - corners[:, :1]
    areas = torch.linalg.cross(edges[:, 0], edges[:, 1]).norm(dim=-1)
    # a few more than asked for: those that start across a crease may not settle on the surface
    num_drawn = num_points + num_points // 50 + 16
    uniform = torch.rand(num_drawn, 3, generator=generator, dtype=torch.float64)
    face = torch.searchsorted(areas.cumsum(0), uniform[:, 0] * areas.sum()).clamp(max=len(areas) - 1)
    root = uniform[:, 1].sqrt()
    weights = torch.stack([1 - root, root * (1 - uniform[:, 2]), root * uniform[:, 2]], dim=-1)
    points = _newton((corners[face] * weights[..., None]).sum(dim=1), scene)
    points = points[scene.sdf(points).abs() < 1e-9]
    if len(points) < num_points:
        raise ValueError(f"only {len(points)} of {num_drawn} samples settled on the analytic surface")
    return points[:num_points], scene.normals(points[:num_points])


def _newton(points: Tensor, scene: AnalyticScene, num_steps: int = 6) -> Tensor:
    for _ in range(num_steps):
        points = points.detach().requires_grad_()
        value = scene.sdf(points)
        (gradient,) = torch.autograd.grad(value.sum(), points)
        points = points - (value / gradient.square().sum(dim=-1))[:, None] * gradient
    return points.detach()


def _sampled_field(scene: AnalyticScene, resolution: int, block: int = 8) -> Tensor:
    # values at the vertices of a grid over [-1, 1]^3, exact near the surface and of the right sign elsewhere
    edge = 2 / resolution
    starts = torch.arange(0, resolution + 1, block)
    origins = torch.cartesian_prod(starts, starts, starts)
    middle = scene.sdf((origins + (block - 1) / 2) * edge - 1)
    # the field is 1-Lipschitz: a block whose middle is further from zero than a corner and a cell is far has no surface
    near = middle.abs() <= math.sqrt(3) * ((block - 1) / 2 + 1) * edge
    inner = torch.arange(block)
    within = torch.cartesian_prod(inner, inner, inner)
    values = middle[:, None].expand(-1, block**3).clone()
    for group in near.nonzero()[:, 0].split(256):
        values[group] = scene.sdf((origins[group, None] + within) * edge - 1)
    n = len(starts)
    grid = values.reshape(n, n, n, block, block, block).permute(0, 3, 1, 4, 2, 5).reshape((n * block,) * 3)
    return grid[: resolution + 1, : resolution + 1, : resolution + 1].contiguous()


def main() -> None:
    """Write one synthetic scene in the NeuS layout."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--scene", choices=get_args(SceneName), default="knot")
    parser.add_argument("--num_views", type=int, default=42)
    parser.add_argument("--image_size", type=int, default=160)
    parser.add_argument("--background", choices=["black", "white"], default="black")
    parser.add_argument("--root", default="data/synthetic", help="where scenes are kept")
    parser.add_argument("--output", required=True, help="folder to write")
    arguments = vars(parser.parse_args())
    output = arguments.pop("output")
    SyntheticScene(**arguments).write_neus_layout(output)
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
