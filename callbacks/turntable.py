"""A shape that turns once about its upright axis, as an animated picture."""

import io
import math
from typing import Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from callbacks.panels import FIELD_OF_VIEW, picture
from ops.cameras import look_at
from ops.types import Shape


def turntable_frames(
    shape: Shape, up: Tensor, *, num_frames: int = 48, size: int = 400, elevation: float = 20.0
) -> list[Image.Image]:
    """Pictures from a circle about a shape, each (size, size) pixels, lit from the camera.

    Args:
        shape: not empty.
        up: (3,), the axis that it turns about.
        num_frames: pictures in one turn.
        size: edge, pixels.
        elevation: of the camera above the shape's middle, degrees.
    """
    vertices = shape.vertices.detach().cpu().double()
    # quantiles of some, so that a few stray pieces do not make the rest small
    some = vertices[:: max(1, len(vertices) // 100_000)]
    low, high = some.quantile(0.005, dim=0), some.quantile(0.995, dim=0)
    center, radius = (low + high) / 2, (high - low).norm().item() / 2 or 1.0
    # about the centre, since what is far from the origin has few digits left; of size 1, for the near plane
    colors = None if shape.vertex_colors is None else shape.vertex_colors.detach().cpu().float()
    faces = None if shape.faces is None else shape.faces.cpu()
    shape = Shape(((vertices - center) / radius).float(), faces, colors)
    up = F.normalize(up.detach().cpu().float(), dim=0)
    side = F.normalize(torch.linalg.cross(up, torch.eye(3)[up.abs().argmin()]), dim=0)
    front = torch.linalg.cross(side, up)
    distance, focal = 1.05 / math.sin(FIELD_OF_VIEW / 2), size / 2 / math.tan(FIELD_OF_VIEW / 2)
    pinhole = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    frames = []
    for k in range(num_frames):
        angle, lift = 2 * math.pi * k / num_frames, math.radians(elevation)
        direction = math.cos(lift) * (math.cos(angle) * front + math.sin(angle) * side) + math.sin(lift) * up
        pixels = picture(shape, pinhole, look_at(distance * direction, torch.zeros(3), up), size, size)
        frames.append(Image.fromarray((pixels.clamp(0, 1) * 255).round().to(torch.uint8).numpy()))
    return frames


def animation_bytes(frames: list[Image.Image], kind: Literal["webp", "gif"], seconds: float = 4.0) -> bytes:
    """Frames as an animated picture that repeats for ever; one turn takes ``seconds``."""
    content = io.BytesIO()
    duration = round(1000 * seconds / len(frames))
    options = {"quality": 85, "method": 4} if kind == "webp" else {"optimize": True}
    frames[0].save(content, format=kind, save_all=True, append_images=frames[1:], duration=duration, loop=0, **options)
    return content.getvalue()
