"""Photographs and masks from files: read once, made smaller by area averaging, refused with a name where broken."""

import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})
EXIF_ORIENTATION = 0x0112


def list_photographs(folder: Path) -> list[Path]:
    """Image files of a folder in the order of their numbers: 2.png comes before 10.png."""
    files = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    return sorted(files, key=lambda path: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", path.name)])


def read_images(paths: list[Path], downscale: int = 1) -> tuple[Tensor, tuple[int, int]]:
    """Read photographs of one size.

    Args:
        paths: the files.
        downscale: whole factor by which they are made smaller; rows and columns that do not fill a pixel are cut.

    Returns:
        (V, H, W, 3) uint8 sRGB, and the (height, width) of the files.

    Raises:
        ValueError: a file is broken, or of another size than the first.
    """
    return _read(paths, "RGB", downscale)


def read_masks(paths: list[Path], downscale: int = 1) -> tuple[Tensor, tuple[int, int]]:
    """Read masks as ``read_images`` reads photographs: (V, H, W) uint8 coverage."""
    return _read(paths, "L", downscale)


def read_photograph(path: Path, is_upright: bool = False) -> np.ndarray:
    """Read one photograph of whatever depth: 16 bits are rounded down to 8, grey becomes colour, alpha is kept.

    Args:
        path: the file.
        is_upright: turn it as its EXIF data say; otherwise its rows are the sensor's.

    Returns:
        (H, W, 3) uint8 sRGB, or (H, W, 4) where there is alpha.

    Raises:
        ValueError: the file is broken, or holds numbers that are no colours.
    """
    image = _decoded(path)
    if is_upright:
        image = ImageOps.exif_transpose(image)
    return np.asarray(_eight_bit(image, path).convert("RGBA" if _has_alpha(image) else "RGB"))


def has_alpha(path: Path) -> bool:
    """Whether a file has an alpha channel, from its header alone."""
    try:
        with Image.open(path) as file:
            return _has_alpha(file)
    except (OSError, SyntaxError) as error:
        raise _unreadable(path, error) from error


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def photograph_size(path: Path) -> tuple[tuple[int, int], int]:
    """(height, width) of a file as it lies, and its EXIF orientation (1 is upright), from its header alone."""
    try:
        with Image.open(path) as file:
            return (file.height, file.width), int(file.getexif().get(EXIF_ORIENTATION, 1))
    except (OSError, SyntaxError) as error:
        raise _unreadable(path, error) from error


def _read(paths: list[Path], mode: str, downscale: int) -> tuple[Tensor, tuple[int, int]]:
    if downscale < 1:
        raise ValueError(f"downscale is {downscale}, expected a whole factor of at least 1")
    # decoding holds no interpreter lock
    with ThreadPoolExecutor() as pool:
        pixels, sizes = zip(*pool.map(partial(_read_one, mode=mode, downscale=downscale), paths), strict=True)
    for path, size in zip(paths, sizes, strict=True):
        if size != sizes[0]:
            raise ValueError(
                f"{path} has {size[1]}x{size[0]} pixels, but {paths[0].name} has {sizes[0][1]}x{sizes[0][0]}; "
                "all photographs of a scene must have one size"
            )
    return torch.from_numpy(np.stack(pixels)), sizes[0]


def _read_one(path: Path, mode: str, downscale: int) -> tuple[np.ndarray, tuple[int, int]]:
    image = _eight_bit(_decoded(path), path).convert(mode)
    return np.asarray(shrunk(image, downscale, path)), (image.height, image.width)


def shrunk(image: Image.Image, downscale: int, path: Path) -> Image.Image:
    """The image made smaller by a whole factor; rows and columns that do not fill a pixel are cut."""
    width, height = image.size
    if min(width, height) < downscale:
        raise ValueError(f"{path} has {width}x{height} pixels, too few to be made {downscale} times smaller")
    if downscale == 1:
        return image
    return image.reduce(downscale, box=(0, 0, width // downscale * downscale, height // downscale * downscale))


def _decoded(path: Path) -> Image.Image:
    try:
        with Image.open(path) as file:
            file.load()
            return file
    # Pillow's word for a broken chunk is SyntaxError
    except (OSError, SyntaxError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} cannot be read as an image ({error}); copy or download it again")


def _eight_bit(image: Image.Image, path: Path) -> Image.Image:
    """The image with 8 bits a channel; Pillow's own conversion of 16 bits cuts everything above 255 to white."""
    if image.mode == "F":
        raise ValueError(f"{path} holds floating-point numbers, expected colours of 8 or 16 bits; convert it to PNG")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    return image
