"""Photographs and masks from files: read once, made smaller by area averaging, refused with a name where broken."""

import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})


def list_photographs(folder: Path) -> list[Path]:
    """Image files of a folder in the order of their numbers: 2.png comes before 10.png."""
    files = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES]
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
    try:
        with Image.open(path) as file:
            image = file.convert(mode)
    # Pillow's word for a broken chunk is SyntaxError
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}); copy or download it again") from error
    width, height = image.size
    if min(width, height) < downscale:
        raise ValueError(f"{path} has {width}x{height} pixels, too few to be made {downscale} times smaller")
    if downscale > 1:
        box = (0, 0, width // downscale * downscale, height // downscale * downscale)
        image = image.reduce(downscale, box=box)
    return np.asarray(image), (height, width)
