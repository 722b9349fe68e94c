"""Sphere tracing of analytic fields, coarse to fine: a cone of rays first, then the rays in it; and photographs."""

import torch
from torch import Tensor

from ops.cameras import pixel_centers, pixel_rays
from ops.scenes import AnalyticScene
from ops.types import Field


def march(
    field: Field,
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    *,
    spread: float = 0.0,
    tolerance: float = 2e-5,
    max_steps: int = 512,
) -> Tensor:
    """Distances at which rays meet a surface (Hart, "Sphere tracing", The Visual Computer 12, 1996).

    With ``spread`` the ray is the axis of a cone that is ``spread * distance`` wide there, and the result is a distance
    up to which the whole cone is surely empty: where its rays may start (Crassin et al. call it cone marching).

    Args:
        field: a lower bound of the distance to the surface, zero on it.
        origins: (R, 3).
        directions: (R, 3) unit.
        near: (R,) where to start.
        far: (R,) where to give up.
        spread: width of the cone at distance 1.
        tolerance: a ray has arrived where the field is below this.
        max_steps: steps after which a ray, by then creeping along the surface, counts as arrived if it is within 1e-3.

    Returns:
        (R,) distances, infinite where the ray (or the cone) meets nothing before ``far``.
    """
    distances = torch.full_like(near, torch.inf)
    active = (near < far).nonzero()[:, 0]
    origin, direction, t, last = origins[active], directions[active], near[active], far[active]
    for step in range(max_steps):
        if len(active) == 0:
            break
        room = field(origin + t[:, None] * direction)
        # in a cone, stopping at twice its width instead of where it touches keeps the number of steps finite
        arrived = room < torch.clamp(2 * spread * t, min=tolerance if step < max_steps - 1 else 1e-3)
        distances[active[arrived]] = t[arrived]
        t = t + (room - spread * t) / (1 + spread)
        going = (~arrived & (t < last)).nonzero()[:, 0]
        active, origin, direction, t, last = (x[going] for x in (active, origin, direction, t, last))
    return distances


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
    near = (distances - scene.radius)[:, None].expand(-1, len(blocks))
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
    far = (poses[:, :3, 3].norm(dim=-1) + scene.radius)[:, None].expand_as(near).reshape(-1)
    found = march(scene.sdf, centers, directions.reshape(-1, 3), near.reshape(-1), far, spread=spread)
    return found.reshape(near.shape)


def _blocks(centers: Tensor, size: int, edge: int = 8) -> tuple[Tensor, Tensor]:
    # centres of square blocks of pixels, and each pixel's block
    per_row = -(-size // edge)
    x, y = (centers / edge).long().unbind(dim=-1)
    return pixel_centers(per_row, per_row) * edge, y * per_row + x
