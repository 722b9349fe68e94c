"""Photographs whose cameras some file knows: found on disk, read, undistorted, and made into tensors of one size."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pytorch_lightning.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from datamodules.photographs import SUFFIXES, list_photographs, photograph_size, read_photograph, shrunk
from datamodules.tracks import Tracks
from datamodules.undistortion import Lens, pinhole_window, undistorted

IMAGE_FOLDERS = ("images", "image", "input", "rgb")
UNREADABLE = frozenset({".heic", ".heif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf"})
MAX_EDGE = 1600


@dataclass(frozen=True)
class PosedPhotographs:
    """What a file of cameras says of photographs, before any pixel is read. V photographs.

    Attributes:
        source: the file or folder with the cameras, for messages.
        paths: V image files.
        intrinsics: (V, 3, 3) float64 pixels of a photograph of ``sizes``.
        sizes: (V, 2) int64 height and width that the intrinsics are meant for; the file may be larger or smaller.
        lenses: V of them.
        camera_to_world: (V, 4, 4) float64, OpenCV axes, the dataset's frame.
        is_upright: the cameras are those of photographs turned as their EXIF data say.
        tracks: triangulated points, the dataset's frame; ``None`` where there are none.
        points: (P, 3) float64 points without tracks, the dataset's frame; ``None`` where there are none.
        mask_paths: files of masks that the file of cameras names, ``None`` where it names none for a photograph.
        test_views: photographs that the dataset holds out.
        sphere: centre and radius (4,) that the file gives for the scene, the dataset's frame.
    """

    source: Path
    paths: list[Path]
    intrinsics: np.ndarray
    sizes: np.ndarray
    lenses: list[Lens]
    camera_to_world: np.ndarray
    is_upright: bool = False
    tracks: Tracks | None = None
    points: np.ndarray | None = None
    mask_paths: list[Path | None] = field(default_factory=list)
    test_views: list[int] = field(default_factory=list)
    sphere: np.ndarray | None = None


@dataclass(frozen=True)
class Pictures:
    """Photographs as tensors, padded at the bottom and on the right to the largest.

    Attributes:
        images: (V, H, W, 3) uint8 sRGB.
        intrinsics: (V, 3, 3) float64 pixels, without distortion.
        masks: (V, H, W) uint8 coverage; ``None`` where there are none.
        sizes: (V, 2) int64 height and width of each.
    """

    images: Tensor
    intrinsics: np.ndarray
    masks: Tensor | None
    sizes: Tensor


def photograph_folder(root: Path, given: Path | None = None) -> Path:
    """The folder in which a scene's photographs lie.

    Raises:
        ValueError: there are none that can be read.
    """
    if not root.is_dir():
        raise ValueError(f"photos: the root {root} is no folder; expected one with photographs in it or in images/")
    candidates = [given] if given else [*(root / name for name in IMAGE_FOLDERS), root]
    for folder in candidates:
        if folder.is_dir() and list_photographs(folder):
            return folder
    looked_in = ", ".join(str(folder) for folder in candidates)
    raw = [path.name for f in candidates if f.is_dir() for path in f.iterdir() if path.suffix.lower() in UNREADABLE]
    if raw:
        raise ValueError(
            f"photos: {raw[0]} and {len(raw) - 1} more cannot be read here; convert them to JPEG or PNG first"
        )
    raise ValueError(f"photos: no image ({', '.join(sorted(SUFFIXES))}) in {looked_in}; check root and images")


class ImageFinder:
    """Finds the files that a file of cameras names, on the machine and in the folder where they are now.

    Args:
        root: the scene's folder.
        given: where the photographs are, if the user said so.
    """

    def __init__(self, root: Path, given: Path | None = None) -> None:
        self.root = root
        self.folders = [given] if given else [*(root / name for name in IMAGE_FOLDERS), root / "colmap/images", root]

    def find(self, name: str, base: Path | None = None) -> Path | None:
        """The file that ``name`` means, or ``None``.

        Args:
            name: as written: relative, or absolute on another machine; with or without suffix.
            base: what it is relative to, the scene's folder if not given.
        """
        # a file written on Windows
        path = Path(name.replace("\\", "/"))
        is_absolute = path.is_absolute() or ":" in path.parts[0] if path.parts else False
        candidates = [path] if is_absolute else [(base or self.root) / path]
        if is_absolute:
            candidates.append(self.root.joinpath(*path.parts[-2:]))
        else:
            candidates += [folder / path for folder in self.folders]
        candidates += [folder / path.name for folder in self.folders]
        return next((found for candidate in candidates for found in _with_suffix(candidate)), None)


def _with_suffix(path: Path) -> Iterator[Path]:
    if path.suffix.lower() in SUFFIXES and path.is_file():
        yield path
    # the whole name first: r_0.5 has no suffix
    stems = [path, *([path.with_suffix("")] if path.suffix.lower() in SUFFIXES else [])]
    for stem in stems:
        for suffix in sorted(SUFFIXES):
            for candidate in (stem.with_name(stem.name + suffix), stem.with_name(stem.name + suffix.upper())):
                if candidate.is_file():
                    yield candidate


def chosen_downscale(photographs: PosedPhotographs, downscale: int | None) -> int:
    """The given factor, or the smallest for which the longest edge has at most ``MAX_EDGE`` pixels; it says which."""
    if downscale is not None and downscale < 1:
        raise ValueError(f"downscale is {downscale}, expected a whole factor of at least 1, or null")
    longest = max(max(photograph_size(path)[0]) for path in photographs.paths)
    factor = -(-longest // MAX_EDGE) if downscale is None else downscale
    if factor > 1:
        rank_zero_info(f"photographs: {longest} pixels along the longest edge, made {factor} times smaller")
    return factor


def read_pictures(
    photographs: PosedPhotographs,
    mask_paths: list[Path] | None,
    downscale: int,
    alpha_is_mask: bool,
    background: int,
) -> Pictures:
    """Read, turn, shrink and undistort the photographs, and their masks in the same way.

    Args:
        photographs: which.
        mask_paths: V files of masks; ``None`` for none.
        downscale: whole factor by which they are made smaller.
        alpha_is_mask: their alpha channel is their mask.
        background: grey level on which what has alpha is laid.

    Raises:
        ValueError: a file is broken, its size is not the camera's, or that of its mask is not its own.
    """

    resized = [False] * len(photographs.paths)

    def read(view: int) -> tuple[np.ndarray, np.ndarray]:
        path = photographs.paths[view]
        pixels = _as_the_camera_saw(path, photographs.sizes[view], photographs.is_upright)
        mask = None
        if mask_paths is not None:
            mask, was_resized = read_mask(mask_paths[view], pixels.shape[:2], path)
            resized[view] = was_resized
        pixels = _with_mask(pixels, mask, alpha_is_mask, background)
        intrinsics = _rescaled(photographs.intrinsics[view], photographs.sizes[view], pixels.shape[:2], path)
        small = [np.asarray(shrunk(Image.fromarray(part), downscale, path)) for part in _parts(pixels)]
        pixels = np.concatenate([part.reshape(*part.shape[:2], -1) for part in small], axis=-1)
        return _straightened(pixels, photographs.lenses[view], intrinsics / np.array([[downscale], [downscale], [1]]))

    with ThreadPoolExecutor() as pool:
        pixels, intrinsics = zip(*pool.map(read, range(len(photographs.paths))), strict=True)
    if any(resized):
        example = resized.index(True)
        rank_zero_warn(
            f"masks: {sum(resized)} are of another size than their photographs, {mask_paths[example]} for instance, "
            "and were resized"
        )
    sizes = torch.tensor([array.shape[:2] for array in pixels])
    height, width = sizes.amax(0).tolist()
    has_masks = mask_paths is not None or alpha_is_mask
    images = torch.zeros(len(pixels), height, width, 3, dtype=torch.uint8)
    masks = torch.zeros(len(pixels), height, width, dtype=torch.uint8) if has_masks else None
    for view, array in enumerate(pixels):
        images[view, : array.shape[0], : array.shape[1]] = torch.from_numpy(array[..., :3])
        if masks is not None:
            masks[view, : array.shape[0], : array.shape[1]] = torch.from_numpy(array[..., 3])
    return Pictures(images, np.stack(intrinsics), _full_scale(masks), sizes)


def _as_the_camera_saw(path: Path, size: np.ndarray, is_upright: bool) -> np.ndarray:
    stored, orientation = photograph_size(path)
    if orientation >= 5 and stored[0] != stored[1]:
        # a quarter turn shows in the size that the camera is meant for
        is_upright = (size[0] > size[1]) != (stored[0] > stored[1])
    return read_photograph(path, is_upright)


def _with_mask(pixels: np.ndarray, mask: np.ndarray | None, alpha_is_mask: bool, background: int) -> np.ndarray:
    """(H, W, 3 or 4) colours over the background, and the mask where there is one."""
    if pixels.shape[2] == 4:
        alpha = pixels[..., 3:]
        weight = alpha.astype(np.float32) / 255
        pixels = np.round(background + weight * (pixels[..., :3] - np.float32(background))).astype(np.uint8)
        if alpha_is_mask:
            return np.concatenate([pixels, alpha], axis=-1)
    return pixels if mask is None else np.concatenate([pixels, mask[..., None]], axis=-1)


def _parts(pixels: np.ndarray) -> list[np.ndarray]:
    # Pillow would weight colours by a fourth channel
    return [pixels[..., :3], pixels[..., 3]] if pixels.shape[2] == 4 else [pixels]


def _rescaled(intrinsics: np.ndarray, meant: np.ndarray, actual: tuple[int, int], path: Path) -> np.ndarray:
    factors = np.array(actual) / meant
    # a pixel of rounding, wherever it happened
    if abs(factors[0] / factors[1] - 1) > 1.5 / min(*actual, *meant):
        raise ValueError(
            f"{path} has {actual[1]}x{actual[0]} pixels, but its camera is for {meant[1]}x{meant[0]}: not the same "
            "shape; are these the photographs that the cameras were computed from, uncropped?"
        )
    return intrinsics * np.array([[factors[1]], [factors[0]], [1]])


def _straightened(pixels: np.ndarray, lens: Lens, intrinsics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if lens.is_pinhole:
        return pixels, intrinsics
    pinhole, height, width = pinhole_window(lens, intrinsics, *pixels.shape[:2])
    return undistorted(pixels, lens, intrinsics, pinhole, height, width), pinhole


def read_mask(path: Path, size: tuple[int, int], photograph: Path) -> tuple[np.ndarray, bool]:
    """Read one mask at the size of its photograph.

    Args:
        path: grey or colour, foreground light; or with alpha, foreground opaque.
        size: (height, width) of the photograph.
        photograph: its file, for errors.

    Returns:
        (H, W) uint8 coverage, and whether it had to be resized for that.

    Raises:
        ValueError: the mask has another shape than its photograph.
    """
    pixels = read_photograph(path)
    has_alpha = pixels.shape[2] == 4 and (pixels[..., 3] < 255).any()
    mask = Image.fromarray(pixels[..., 3]) if has_alpha else Image.fromarray(pixels[..., :3]).convert("L")
    if (mask.height, mask.width) == tuple(size):
        return np.asarray(mask), False
    (height, width), factor = size, mask.height / size[0]
    if abs(factor / (mask.width / width) - 1) > 1.5 / min(mask.height, mask.width, *size):
        raise ValueError(
            f"the mask {path} has {mask.width}x{mask.height} pixels, {photograph.name} has {width}x{height}: not the "
            "same shape; each photograph needs a mask of its own size, or one of another scale"
        )
    resampling = Image.Resampling.BOX if factor > 1 else Image.Resampling.BILINEAR
    return np.asarray(mask.resize((width, height), resampling)), True


def _full_scale(masks: Tensor | None) -> Tensor | None:
    # masks that label the foreground 1
    return masks * 255 if masks is not None and masks.max() == 1 else masks
