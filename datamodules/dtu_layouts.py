"""How four groups lay DTU's scans out: which files there are, and which camera belongs to the pictures found.

- NeuS: ``dtu_scan24/{image,mask,cameras_sphere.npz}``; IDR: ``scan24/{image,mask,cameras.npz}``
- MonoSDF: ``scan24/000000_rgb.png`` (or ``images/``) with ``cameras.npz``: the cameras are those of the full size,
  1600x1200, the pictures its middle square made smaller, or all of it made smaller
- 2DGS: ``scan24/images/`` with alpha, undistorted and cut to another size, with ``mask/`` and ``cameras.npz`` of the
  full size and a COLMAP model in ``sparse/0`` that knows the pictures' intrinsics
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.colmap_model import PYCOLMAP
from datamodules.photographs import list_photographs
from ops.cameras import decompose_projection

IMAGE_FOLDERS = ("image", "images")
MASK_FOLDERS = ("mask", "masks")
FULL_SIZE = (1200, 1600)


def image_paths_of(folder: Path) -> list[Path]:
    """The photographs of one scan, in order."""
    found = _listed(folder, IMAGE_FOLDERS)
    return found or [path for path in list_photographs(folder) if path.stem.endswith("_rgb")]


def mask_paths_of(folder: Path) -> list[Path]:
    """The masks of one scan, in order; none where there are none."""
    found = _listed(folder, MASK_FOLDERS)
    if found:
        return found
    arrays = sorted(folder.glob("*_mask.npy"))
    return arrays or [path for path in list_photographs(folder) if path.stem.endswith("_mask")]


def _listed(folder: Path, names: tuple[str, ...]) -> list[Path]:
    present = [folder / name for name in names if (folder / name).is_dir()]
    return list_photographs(present[0]) if present else []


def read_sized_masks(paths: list[Path], size: tuple[int, int], name: str) -> Tensor:
    """Masks brought to the size of their photographs, (V, H, W) uint8.

    Raises:
        ValueError: one is broken, or of another shape than its photograph.
    """
    masks = []
    with ThreadPoolExecutor() as pool:  # decoding holds no interpreter lock
        read = list(pool.map(_mask, paths))
    for path, mask in zip(paths, read, strict=True):
        if _is_of_another_shape(mask, size):
            raise ValueError(
                f"DTU {name}: the masks have {mask.width}x{mask.height} pixels, the images {size[1]}x{size[0]} "
                f"({path}): they show another part of the scene; each mask must be of its image's shape"
            )
        if mask.size != (size[1], size[0]):
            mask = mask.resize((size[1], size[0]), Image.Resampling.BOX)
        masks.append(np.asarray(mask))
    return torch.from_numpy(np.stack(masks))


def is_of_another_shape(path: Path, size: tuple[int, int]) -> bool:
    """Whether a mask shows another part of the scene than a photograph of (height, width)."""
    return _is_of_another_shape(_mask(path), size)


def _is_of_another_shape(mask: Image.Image, size: tuple[int, int]) -> bool:
    # sizes are whole numbers, so shapes agree to a pixel only
    return abs(mask.width * size[0] / (mask.height * size[1]) - 1) > max(0.002, 1 / min(*mask.size, *size))


def _mask(path: Path) -> Image.Image:
    try:
        if path.suffix != ".npy":
            with Image.open(path) as file:
                return file.convert("L")
        array = np.load(path, allow_pickle=False)
    # Pillow's word for a broken chunk is SyntaxError
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}); copy or download it again") from error
    array = array.squeeze()
    if array.ndim != 2:
        raise ValueError(f"{path}: an array of shape {array.shape}, expected (H, W)")
    return Image.fromarray(((array > 0.5 * max(float(array.max()), 1e-9)) * 255).astype(np.uint8))


def masks_of_alpha(paths: list[Path], size: tuple[int, int]) -> Tensor | None:
    """Alpha of the photographs as masks, (V, H, W) uint8; ``None`` where there is none, or all of it is opaque."""
    with Image.open(paths[0]) as file:
        if "A" not in file.getbands():
            return None
    masks = np.zeros((len(paths), *size), np.uint8)
    for mask, path in zip(masks, paths, strict=True):
        with Image.open(path) as file:
            mask[:] = np.asarray(file.convert("RGBA").getchannel("A"))
    return None if masks.min() == 255 else torch.from_numpy(masks)


def fit_to_pictures(
    projections: Tensor, paths: list[Path], size: tuple[int, int], has_masks_of_another_shape: bool, name: str
) -> Tensor:
    """Cameras of the pictures that are there, from those of the full size where the pictures are parts of it.

    Nothing in the files says which size the cameras are for. It is seen from where the principal point would fall.

    Args:
        projections: (V, 3, 4) as in the file.
        paths: the pictures.
        size: their (height, width).
        has_masks_of_another_shape: the pictures are cut, so that COLMAP's model has to say how.
        name: of the scan, for errors.

    Returns:
        (V, 3, 4).

    Raises:
        ValueError: nobody can say which camera the pictures have.
    """
    height, width = size
    model = paths[0].parent.parent / "sparse/0"
    if model.is_dir() and has_masks_of_another_shape:
        return _with_intrinsics_of(model, projections, paths, size, name)
    centers = _principal_points(projections)
    if not (centers > torch.tensor([width, height])).any():
        return projections
    full_height, full_width = FULL_SIZE
    change = torch.eye(3, dtype=torch.float64)
    if abs(width / height - full_width / full_height) < 0.01:
        change[0, 0] = change[1, 1] = width / full_width
    elif width == height:
        change[0, 0] = change[1, 1] = height / full_height
        change[0, 2] = -(full_width - full_height) / 2 * change[0, 0]
    else:
        x, y = centers[0].tolist()
        raise ValueError(
            f"DTU {name}: the images have {width}x{height} pixels, but the principal point is ({x:.0f}, {y:.0f}), "
            f"outside; of {full_width}x{full_height} only images of its shape and its middle square are known"
        )
    return change @ projections


def _principal_points(projections: Tensor) -> Tensor:
    # (V, 2), without a full decomposition: K is upper triangular, so K K^T's last column is (cx, cy, 1)
    left = projections[:, :, :3]
    product = left @ left.mT
    return product[:, :2, 2] / product[:, 2:, 2]


def _with_intrinsics_of(
    model: Path, projections: Tensor, paths: list[Path], size: tuple[int, int], name: str
) -> Tensor:
    if not PYCOLMAP:
        raise ModuleNotFoundError(
            f"DTU {name}: images and masks differ in shape, so the intrinsics are COLMAP's in {model}, which needs "
            "pycolmap: pip install pycolmap"
        )
    import pycolmap

    images = {Path(image.name).stem: image for image in pycolmap.Reconstruction(str(model)).images.values()}
    out = []
    for path, projection in zip(paths, projections, strict=True):
        image = images.get(path.stem)
        if image is None or (image.camera.height, image.camera.width) != size:
            found = "no such image" if image is None else f"{image.camera.width}x{image.camera.height} pixels for it"
            raise ValueError(
                f"DTU {name}: {path.name} has {size[1]}x{size[0]} pixels and {model} has {found}; pictures and model "
                "must be of one preparation"
            )
        intrinsics = torch.from_numpy(decompose_projection(projection.numpy())[0])
        theirs = torch.from_numpy(np.asarray(image.camera.calibration_matrix(), dtype=np.float64))
        out.append(theirs @ torch.linalg.inv(intrinsics) @ projection)
    return torch.stack(out)
