"""Whole photographs of a scene, rendered from a method's rays."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ops.cameras import pixel_centers, pixel_rays
from ops.chunks import map_chunks
from ops.ranks import map_on_ranks
from ops.types import ObjectBatch, Renders

RenderRays = Callable[[Tensor, Tensor], Mapping[str, Tensor]]


def render_views(render_rays: RenderRays, batch: ObjectBatch, chunk_size: int) -> Renders:
    """Render the views of a batch at the size of its images; all ranks are shown the same, so each renders a share.

    Args:
        render_rays: origins (R, 3) and unit directions (R, 3), normalised frame -> ``color`` (R, 3), ``transmittance``
            (R,), ``depth`` (R,) and ``normal`` (R, 3), and what else it likes.
        batch: images (B, V, 3, H, W), of which the size counts, and their cameras; without images nothing is rendered.
        chunk_size: rays at once; halves itself where memory is short.
    """
    if "images" not in batch:
        return {}
    num_objects, num_views, _, height, width = batch["images"].shape
    pixels = pixel_centers(height, width, device=batch["images"].device)

    def render_view(camera: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        def render_pixels(pixels: Tensor) -> dict[str, Tensor]:
            rays = render_rays(*pixel_rays(pixels, *camera))
            return {name: rays[name] for name in ("color", "transmittance", "depth", "normal")}

        return map_chunks(render_pixels, pixels, chunk_size=chunk_size)

    cameras = zip(batch["intrinsics"].flatten(0, 1), batch["camera_to_world"].flatten(0, 1), strict=True)
    views = map_on_ranks(render_view, list(cameras))
    stacked = {name: torch.stack([view[name] for view in views]) for name in views[0]}
    grid = (num_objects, num_views, height, width)
    return {
        "images": stacked["color"].view(*grid, 3).movedim(-1, -3).clamp(0, 1),
        "opacity": 1 - stacked["transmittance"].view(grid),
        "depth": stacked["depth"].view(grid),
        "normals": stacked["normal"].view(*grid, 3).movedim(-1, -3),
    }
