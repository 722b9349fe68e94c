"""From the pictures of a source to the images a network reads: crop, flip, background, size, and cameras to match."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.object_source import Views

Augmentation = Literal["crop", "flip", "background", "zoom"]


@dataclass(frozen=True)
class ViewTransform:
    """How pictures become images.

    In training, ``augment`` names what is random: ``crop``, where the crop lies (3D-R2N2); ``flip``, left to right, one
    in two (3D-R2N2); ``background``, one colour a picture, its channels drawn from ``background_range`` (3D-R2N2);
    ``zoom``, a square of 75 to 100 % of the picture's area (Occupancy Networks' first model). Each picture is drawn for
    itself. Elsewhere nothing is: the crop is the centre, the background ``background``.

    Attributes:
        image_size: height and width of the images; ``None`` keeps what the crop leaves.
        crop: edge of a square cut from the picture before it is resized; ``None`` takes all of it.
        background: grey level behind pictures with alpha.
        background_range: lowest and highest level of a random background.
        augment: what is random in training.
    """

    image_size: int | None = None
    crop: int | None = None
    background: int = 255
    background_range: tuple[int, int] = (225, 255)
    augment: frozenset[Augmentation] = frozenset()

    def __post_init__(self) -> None:
        low, high = self.background_range
        if not 0 <= low <= high <= 255 or not 0 <= self.background <= 255:
            raise ValueError(
                f"background is {self.background}, background_range {low} to {high}; expected levels from 0 to 255"
            )
        unknown = self.augment - {"crop", "flip", "background", "zoom"}
        if unknown:
            raise ValueError(f"augment: {sorted(unknown)} is none of crop, flip, background, zoom")
        if "crop" in self.augment and self.crop is None:
            raise ValueError("augment: a random crop needs its size; set crop, or leave 'crop' out of augment")
        if {"zoom", "crop"} <= self.augment or (self.crop and "zoom" in self.augment):
            raise ValueError(
                "augment: 'zoom' cuts a square of random size and 'crop' one of size crop; use one of them"
            )
        if "zoom" in self.augment and self.image_size is None:
            raise ValueError("augment: 'zoom' leaves squares of any size; set image_size, to which they are resized")

    def __call__(
        self, views: Views, where: str, generator: np.random.Generator | None = None, *, with_masks: bool = True
    ) -> dict[str, Tensor]:
        """Images of one object.

        Args:
            views: its pictures.
            where: their object, for errors.
            generator: of what is random; ``None`` for evaluation.
            with_masks: make masks of the alpha.

        Returns:
            ``images`` (V, 3, H, W) in [0, 1]; ``masks`` (V, H, W) where wanted and there is alpha; ``intrinsics``,
            ``camera_to_world`` where known. A flipped image keeps its pose and has a negative focal length in x: points
            are still where it shows them.

        Raises:
            ValueError: the crop is larger than the picture, or the background cannot be replaced.
        """
        drawn = self.drawn(views, where, generator)
        are_even = len({picture.shape for picture in drawn.pictures}) == 1
        groups = [drawn.pictures] if are_even else [[picture] for picture in drawn.pictures]
        backgrounds = drawn.backgrounds.split([len(group) for group in groups])
        images = [
            finished(torch.from_numpy(np.stack(group)), behind, self.image_size, with_masks=with_masks)
            for group, behind in zip(groups, backgrounds, strict=True)
        ]
        return split_channels(torch.cat(images)) | drawn.cameras

    def drawn(self, views: Views, where: str, generator: np.random.Generator | None = None) -> "DrawnViews":
        """All that is random about the images of one object, decided; what ``finished`` then does is the same for all.

        Args, errors: as for the call.
        """
        height, width = views.pixels.shape[1:3]
        self._check(views, where, generator)
        pictures, backgrounds, intrinsics = [], [], []
        for number, pixels in enumerate(views.pixels):
            top, left, side_y, side_x = self._window(height, width, generator)
            picture = pixels[top : top + side_y, left : left + side_x]
            backgrounds.append(self._background(picture.shape[2], generator))
            is_flipped = generator is not None and "flip" in self.augment and generator.random() < 0.5
            pictures.append(np.ascontiguousarray(picture[:, ::-1] if is_flipped else picture))
            if views.intrinsics is not None:
                edge_y, edge_x = (self.image_size or side for side in (side_y, side_x))
                scale = (edge_x / side_x, edge_y / side_y)
                intrinsics.append(_moved(views.intrinsics[number], left, top, scale, edge_x if is_flipped else None))
        cameras = {}
        if views.intrinsics is not None:
            poses = np.ascontiguousarray(views.camera_to_world, dtype=np.float32)
            cameras = {
                "intrinsics": torch.from_numpy(np.stack(intrinsics)),
                "camera_to_world": torch.from_numpy(poses),
            }
        return DrawnViews(pictures, torch.from_numpy(np.stack(backgrounds)), cameras)

    def _check(self, views: Views, where: str, generator: np.random.Generator | None) -> None:
        height, width, channels = views.pixels.shape[1:]
        if "background" in self.augment and generator is not None and channels < 4:
            raise ValueError(
                f"{where}: its pictures have no alpha channel, so that their background cannot be replaced; take "
                "'background' out of augment"
            )
        if self.crop is not None and self.crop > min(height, width):
            raise ValueError(f"{where}: a crop of {self.crop} pixels from a picture of {width}x{height}; take less")

    def _window(self, height: int, width: int, generator: np.random.Generator | None) -> tuple[int, int, int, int]:
        # top, left, height, width of what is cut out
        if generator is not None and "zoom" in self.augment:
            side = round(min(height, width) * float(np.sqrt(generator.uniform(0.75, 1))))
            top, left = generator.integers(height - side + 1), generator.integers(width - side + 1)
            return int(top), int(left), side, side
        if self.crop is None:
            return 0, 0, height, width
        spare = np.array([height - self.crop, width - self.crop])
        if generator is not None and "crop" in self.augment:
            # as in 3D-R2N2 the last place of all is never drawn, so 137 pixels leave ten places for 127
            top, left = generator.integers(np.maximum(spare, 1))
        else:
            top, left = spare // 2
        return int(top), int(left), self.crop, self.crop

    def _background(self, num_channels: int, generator: np.random.Generator | None) -> np.ndarray:
        level = np.full(3, self.background)
        if num_channels == 4 and generator is not None and "background" in self.augment:
            level = generator.integers(self.background_range[0], self.background_range[1] + 1, size=3)
        return level.astype(np.float32) / 255


@dataclass(frozen=True)
class DrawnViews:
    """Pictures of one object as they were cut, before anything is computed with them.

    Attributes:
        pictures: one for each view, (H, W, C) uint8, of several sizes where squares of several sizes are cut.
        backgrounds: (V, 3) colour behind pictures with alpha, in [0, 1].
        cameras: ``intrinsics`` and ``camera_to_world`` of the finished images, where known.
    """

    pictures: list[np.ndarray]
    backgrounds: Tensor
    cameras: dict[str, Tensor]


def finished(pictures: Tensor, backgrounds: Tensor, size: int | None, *, with_masks: bool) -> Tensor:
    """Images in [0, 1] of pictures, on the device that they are on.

    Args:
        pictures: (N, H, W, C) uint8, C 3, or 4 with straight alpha.
        backgrounds: (N, 3) colour behind those with alpha, in [0, 1].
        size: height and width of the images; ``None`` keeps the pictures'.
        with_masks: keep the alpha where there is one.

    Returns:
        (N, 3, S, S) colours over the background, or (N, 4, S, S) with the alpha behind them.
    """
    images = pictures.permute(0, 3, 1, 2).float() / 255
    if images.shape[1] == 4:
        behind, alpha = backgrounds[:, :, None, None], images[:, 3:]
        images = behind + alpha * (images[:, :3] - behind)
        images = torch.cat([images, alpha], dim=1) if with_masks else images
    if size is None or images.shape[2:] == (size, size):
        return images.contiguous()
    return torch.nn.functional.interpolate(images, (size, size), mode="bilinear", antialias=True).contiguous()


def split_channels(images: Tensor) -> dict[str, Tensor]:
    """``images`` (..., 3, H, W) and, of a fourth channel, ``masks`` (..., H, W)."""
    parts = {"images": images[..., :3, :, :]}
    return parts | {"masks": images[..., 3, :, :]} if images.shape[-3] == 4 else parts


def _moved(
    intrinsics: np.ndarray, left: int, top: int, scale: tuple[float, float], flipped_width: int | None
) -> np.ndarray:
    moved = np.array(intrinsics, dtype=np.float32)
    moved[0, 2] -= left
    moved[1, 2] -= top
    moved[:2] *= np.array(scale, dtype=np.float32)[:, None]
    if flipped_width is not None:
        moved[0] = -moved[0]
        moved[0, 2] += flipped_width
    return moved
