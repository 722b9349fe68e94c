"""OmniObject3D's videos: frames with COLMAP's cameras and mattes, as a scene."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.colmap_model import PYCOLMAP
from datamodules.one_object import projections
from datamodules.photographs import SUFFIXES, read_images
from datamodules.scene import Scene
from datamodules.silhouettes import similarity_to_sphere, sphere_of_masks
from ops.types import Observation

FILL = 0.9
REMEDY = "unpack the object's archive of videos_processed again"


def read_video(folder: Path, name: str, category: str, *, rescaled: bool = False, downscale: int = 1) -> Scene:
    """The frames of a video that COLMAP placed.

    The dataset's frame is COLMAP's: how it lies to the scan is unknown, so there is no truth. The normalised frame is
    the sphere that the mattes are of.

    Args:
        folder: ``standard/`` of the object.
        name: of the object.
        category: of the object.
        rescaled: take ``poses_bounds_rescaled.npy``, meant to be of real size, which users of the data doubt.
        downscale: whole factor by which frames and mattes are made smaller.

    Raises:
        ValueError: a file is missing or broken, or counts differ.
    """
    where = f"{category}/{name}, video"
    paths = _in_order_of_names(folder / "images")
    matrix, poses, size = read_poses_bounds(folder / ("poses_bounds_rescaled.npy" if rescaled else "poses_bounds.npy"))
    paths = _registered(paths, len(poses), folder)
    images, full_size = read_images(paths, downscale)
    matrix[:, 0] *= full_size[1] / size[1]
    matrix[:, 1] *= full_size[0] / size[0]
    matrix[:, :2] /= downscale
    masks = read_mattes(folder / "matting", paths, full_size, downscale)
    intrinsics, posed_cameras = torch.from_numpy(matrix), torch.from_numpy(poses)
    center, radius = sphere_of_masks(masks, intrinsics, posed_cameras, where)
    normalized_to_dataset = similarity_to_sphere(center, radius / FILL)
    poses[:, :3, 3] = (poses[:, :3, 3] - center) / (radius / FILL)
    similarity = torch.from_numpy(normalized_to_dataset)
    return Scene(
        name=name,
        category=category,
        images=images,
        intrinsics=intrinsics.float(),
        camera_to_world=torch.from_numpy(poses).float(),
        normalized_to_dataset=similarity,
        image_names=[path.name for path in paths],
        masks=masks,
        observation=Observation(
            masks=masks > 127, projections=projections(intrinsics, torch.from_numpy(poses), similarity)
        ),
    )


def read_poses_bounds(path: Path) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Cameras as LLFF keeps them: rows of a 3x5 matrix [down, right, back, position, (height, width, focal)], 2 bounds.

    Returns:
        ``intrinsics`` (V, 3, 3) and ``camera_to_world`` (V, 4, 4), OpenCV axes, float64, and the (height, width) that
        they are for.

    Raises:
        ValueError: the file is missing or holds something else.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing; {REMEDY}")
    try:
        rows = np.load(path, allow_pickle=False).astype(np.float64)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}); {REMEDY}") from error
    if rows.ndim != 2 or rows.shape[1] != 17 or not np.isfinite(rows).all():
        raise ValueError(f"{path}: an array of shape {rows.shape}, expected (V, 17) finite numbers as LLFF's; {REMEDY}")
    matrices = rows[:, :15].reshape(-1, 3, 5)
    down, right, back, position = (matrices[:, :, column] for column in range(4))
    heights, widths, focals = matrices[:, :, 4].T
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3] = np.stack([right, down, -back, position], axis=-1)
    if abs(np.linalg.det(poses[:, :3, :3]) - 1).max() > 1e-3 or (focals <= 0).any() or len({*widths}) > 1:
        raise ValueError(f"{path}: its rows are no cameras in LLFF's order (down, right, back); {REMEDY}")
    intrinsics = np.zeros((len(rows), 3, 3))
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = focals
    intrinsics[:, 0, 2], intrinsics[:, 1, 2], intrinsics[:, 2, 2] = widths / 2, heights / 2, 1
    return intrinsics, poses, (int(heights[0]), int(widths[0]))


def _in_order_of_names(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is missing; {REMEDY}")
    # LLFF sorts names as text: 10.png comes before 9.png
    return sorted((path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES), key=lambda path: path.name)


def _registered(paths: list[Path], num_poses: int, folder: Path) -> list[Path]:
    """The frames that have a pose: all, or those that COLMAP's model names."""
    if len(paths) == num_poses:
        return paths
    model = sparse_model(folder)
    if model is not None and PYCOLMAP:
        import pycolmap

        names = {Path(image.name).name for image in pycolmap.Reconstruction(str(model)).images.values()}
        chosen = [path for path in paths if path.name in names]
        if len(chosen) == num_poses:
            return chosen
    raise ValueError(
        f"{folder}: {len(paths)} images but {num_poses} poses in poses_bounds.npy, and "
        + ("which are posed is said by sparse/, but pycolmap is missing: pip install pycolmap" if model and not PYCOLMAP
           else "no COLMAP model in sparse/ says which are posed")
    )  # fmt: skip


def sparse_model(folder: Path) -> Path | None:
    """Folder of COLMAP's model, if there is one."""
    for model in (folder / "sparse/0", folder / "sparse"):
        if any((model / f"images{suffix}").is_file() for suffix in (".bin", ".txt")):
            return model
    return None


def read_mattes(folder: Path, paths: list[Path], size: tuple[int, int], downscale: int) -> Tensor:
    """(V, H, W) uint8 coverage from mattes: their alpha where they have any, else their brightness.

    Which of the two the files hold, and their size, is not documented; a matte is matched by its frame's name, or else
    by order, and brought to the frame's size.

    Raises:
        ValueError: mattes are missing, or of another shape than the frames.
    """
    files = _in_order_of_names(folder)
    by_stem = {path.stem: path for path in files}
    found = [by_stem.get(path.stem) for path in paths]
    if None in found:
        if len(files) != len(paths):
            missing = paths[found.index(None)]
            raise ValueError(
                f"{folder}: no matte of {missing.name}, and {len(files)} mattes for {len(paths)} frames; {REMEDY}"
            )
        found = files
    masks = []
    for path in found:
        try:
            with Image.open(path) as file:
                matte = file.getchannel("A") if "A" in file.getbands() else file.convert("L")
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{path} cannot be read as an image ({error}); {REMEDY}") from error
        if abs(matte.width / matte.height * size[0] / size[1] - 1) > 0.02:
            raise ValueError(
                f"{path} has {matte.width}x{matte.height} pixels, its frame {size[1]}x{size[0]}: it shows another part"
            )
        if matte.size != (size[1], size[0]):
            matte = matte.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        height, width = (edge // downscale * downscale for edge in size)
        masks.append(np.asarray(matte.reduce(downscale, box=(0, 0, width, height))))
    return torch.from_numpy(np.stack(masks))
