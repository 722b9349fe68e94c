"""DTU's scans as NeuS, IDR, MonoSDF and 2DGS prepared them, with sparse points and the official truth where present.

The layouts are told in ``dtu_layouts``. All have an npz file with, for every photograph, ``world_mat`` (dataset's
frame, mm, to pixels) and ``scale_mat`` (normalised to dataset's frame); where the latter is missing, the normalised
frame is found from the masks, or else from the cameras. The file counts pixels from the centre of the first one, which
is (0, 0) there and (0.5, 0.5) here.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import scipy.io
import torch
import trimesh
from PIL import Image
from torch import Tensor

from datamodules.colmap_model import PYCOLMAP
from datamodules.dtu_layouts import (
    fit_to_pictures,
    image_paths_of,
    is_of_another_shape,
    mask_paths_of,
    masks_of_alpha,
    read_sized_masks,
)
from datamodules.normalization import normalization_from_cameras_and_points
from datamodules.photographs import read_images
from datamodules.scene import Scene, SparsePoints
from datamodules.scene_module import SceneDataModule
from datamodules.silhouettes import similarity_to_sphere, sphere_of_masks
from datamodules.sparse_points import filter_points, read_tracks
from ops.cameras import decompose_projection
from ops.types import Observation

CAMERA_FILES = ("cameras_sphere.npz", "cameras.npz")
MASK_FILL = 0.9
SPARSE_POINTS = ("sparse_points.npz", "sparse/0", "sfm_pts/points.npy")


class DTU(SceneDataModule):
    """One scan of DTU, or any scene in its layout.

    Args:
        root: Folder with the scans, or the folder of one scan.
        scan: Its number, or its folder's name.
        downscale: Whole factor by which photographs and masks are made smaller, by area averaging.
        sparse_points: Points to read, .npz, COLMAP folder or .npy; null looks for sparse_points.npz, sparse/0 and
            sfm_pts/points.npy in the scan.
        official_root: Folder of the official evaluation data, with Points/stl and SampleSet; null goes without truth.
        **kwargs: How batches are drawn, see ``SceneDataModule``.
    """

    provides = frozenset(
        {"rays", "ray_masks", "sparse_points", "images", "masks", "intrinsics", "camera_to_world", "image_index"}
        | {"surface_points", "normalized_to_dataset", "observations"}
    )
    remedies: ClassVar[dict[str, str]] = {
        "ray_masks": "put one mask an image into mask/",
        "masks": "put one mask an image into mask/",
        "sparse_points": "triangulate some with python -m datamodules.prepare.triangulate",
        "surface_points": "set official_root to the folder of the official evaluation data",
    }

    def __init__(
        self,
        root: str,
        scan: int | str,
        downscale: int = 1,
        sparse_points: str | None = None,
        official_root: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root, self.scan, self.downscale = Path(root), scan, downscale
        self.sparse_points = Path(sparse_points) if sparse_points else None
        self.official_root = Path(official_root) if official_root else None

    def load_scene(self) -> Scene:
        """Read photographs, cameras and whatever else of the scan is there and read by the method."""
        folder = find_scan(self.root, self.scan)
        scene = read_scan(folder, self.downscale)
        if self.official_root:
            scene = with_truth(scene, self.official_root, _scan_number(folder.name) or self.scan)
        points = self._sparse_points(folder, scene)
        return scene if points is None else dataclasses.replace(scene, sparse_points=points)

    def _sparse_points(self, folder: Path, scene: Scene) -> SparsePoints | None:
        found = [self.sparse_points] if self.sparse_points else [folder / name for name in SPARSE_POINTS]
        path = next((path for path in found if path.exists()), None)
        if path is None:
            if self.sparse_points:
                raise ValueError(f"{scene.name}: there are no sparse points at {self.sparse_points}")
            return None
        if path.is_dir() and not PYCOLMAP and "sparse_points" not in self.reads:
            return None  # they would only be measured with
        points = filter_points(read_tracks(path, scene), scene)
        if len(points.points) == 0:
            raise ValueError(f"{scene.name}: none of the sparse points of {path} lies on the object")
        return points


def _scan_number(name: str) -> int | None:
    match = re.search(r"scan_?(\d+)", name)
    return int(match[1]) if match else None


def find_scan(root: Path, scan: int | str) -> Path:
    """The folder of one scan.

    Raises:
        ValueError: no such folder; what was looked for and what is there is said.
    """
    if not root.is_dir():
        raise ValueError(f"DTU: the root {root} is no folder; expected one with scans such as dtu_scan24/ in it")
    if _has_cameras(root):
        number = _scan_number(root.name)
        if number is not None and str(scan) not in (str(number), root.name, f"scan{number}"):
            raise ValueError(f"DTU: the root {root} is scan {number} itself, but scan {scan!r} was asked for")
        return root
    candidates = [root / name for name in (f"dtu_scan{scan}", f"scan{scan}", str(scan))]
    for candidate in candidates:
        if _has_cameras(candidate):
            return candidate
    found = sorted(path.name for path in root.iterdir() if path.is_dir() and _has_cameras(path))
    names, files = ", ".join(f"{path.name}/" for path in candidates), " or ".join(CAMERA_FILES)
    if not found:
        raise ValueError(f"DTU: no scan in {root}; looked for {names}, or any other folder, with {files} in it")
    raise ValueError(
        f"DTU: no scan {scan!r} in {root}; looked for {names} with {files} in it; found {', '.join(found)}"
    )


def scans_in(root: Path) -> list[Path]:
    """Folders of all scans in a root, or the root where it is one itself.

    Raises:
        ValueError: there are none.
    """
    if root.is_dir() and _has_cameras(root):
        return [root]
    found = sorted(path for path in root.iterdir() if _has_cameras(path)) if root.is_dir() else []
    if not found:
        raise ValueError(
            f"DTU: no scans in {root}; expected folders such as dtu_scan24/ with {' or '.join(CAMERA_FILES)} in them"
        )
    return found


def _has_cameras(folder: Path) -> bool:
    return any((folder / name).is_file() for name in CAMERA_FILES)


def read_scan(folder: Path, downscale: int = 1) -> Scene:
    """Read photographs, masks and cameras of one scan.

    Args:
        folder: the scan's.
        downscale: whole factor by which photographs and masks are made smaller.

    Returns:
        The scene with the protocol's full-size masks and projections, without truth and sparse points.

    Raises:
        ValueError: a file is missing or broken, counts or sizes differ, or a camera is none.
    """
    name = scan_name(folder)
    image_paths, projections, normalized_to_dataset = read_files(folder, name)
    images, size = read_images(image_paths, downscale)
    full_masks, are_cut = full_masks_of(folder, image_paths, size, name)
    names = [path.name for path in image_paths]
    projections = fit_to_pictures(projections, image_paths, size, are_cut, name)
    if normalized_to_dataset is None:
        normalized_to_dataset = normalization(projections, size, full_masks, names, name)
    intrinsics, camera_to_world = decomposed(projections @ normalized_to_dataset, names, name)
    intrinsics[:, :2] /= downscale
    observation = Observation(projections=projections)
    if full_masks is not None:
        observation["masks"] = full_masks > 127
    return Scene(
        name=name,
        category="dtu",
        images=images,
        intrinsics=intrinsics.float(),
        camera_to_world=camera_to_world.float(),
        normalized_to_dataset=normalized_to_dataset,
        image_names=names,
        masks=_reduced(full_masks, downscale),
        observation=observation,
    )


def scan_name(folder: Path) -> str:
    """What a scan is called, whatever its folder is."""
    number = _scan_number(folder.name)
    return folder.name if number is None else f"scan{number}"


def read_files(folder: Path, name: str) -> tuple[list[Path], Tensor, Tensor | None]:
    """A scan's photographs, and its cameras as they are in the file; see ``read_cameras``.

    Raises:
        ValueError: a file is missing, a camera is none, or there are not as many cameras as photographs.
    """
    image_paths = image_paths_of(folder)
    if not image_paths:
        raise ValueError(
            f"DTU {name}: no PNG or JPEG in image/ or images/ of {folder}, and no *_rgb.png in the folder itself"
        )
    camera_file = next(folder / file for file in CAMERA_FILES if (folder / file).is_file())
    projections, normalized_to_dataset = read_cameras(camera_file, name)
    if len(image_paths) != len(projections):
        raise ValueError(
            f"DTU {name}: {len(image_paths)} images but {len(projections)} cameras in {camera_file.name}; check that "
            f"{image_paths[0].parent.name}/ is complete"
        )
    decomposed(projections, [path.name for path in image_paths], name)
    return image_paths, projections, normalized_to_dataset


def full_masks_of(
    folder: Path, image_paths: list[Path], size: tuple[int, int], name: str
) -> tuple[Tensor | None, bool]:
    """Masks in the size of the images, and whether the images are cut out of what the mask files show."""
    mask_paths = mask_paths_of(folder)
    if not mask_paths:
        return masks_of_alpha(image_paths, size), False
    if len(mask_paths) != len(image_paths):
        raise ValueError(f"DTU {name}: {len(image_paths)} images but {len(mask_paths)} masks; one an image is needed")
    if (folder / "sparse/0").is_dir() and is_of_another_shape(mask_paths[0], size):
        # 2DGS' masks are of the full size, its pictures are cut and have alpha
        masks = masks_of_alpha(image_paths, size)
        if masks is not None:
            return masks, True
    # Neither names nor numbers need to agree, 000.png masks 000000.png: the order does
    return read_sized_masks(mask_paths, size, name), False


def _reduced(masks: Tensor | None, downscale: int) -> Tensor | None:
    if masks is None or downscale == 1:
        return masks
    height, width = (edge // downscale * downscale for edge in masks.shape[1:])
    return torch.from_numpy(
        np.stack([np.asarray(Image.fromarray(mask[:height, :width]).reduce(downscale)) for mask in masks.numpy()])
    )


def normalization(
    projections: Tensor, size: tuple[int, int], masks: Tensor | None, names: list[str], name: str
) -> Tensor:
    """The normalised frame where no ``scale_mat`` says it: the sphere that the masks, or else the cameras, are of."""
    intrinsics, poses = decomposed(projections, names, name)
    if masks is not None:
        center, radius = sphere_of_masks(masks, intrinsics, poses, f"DTU {name}")
        return torch.from_numpy(similarity_to_sphere(center, radius / MASK_FILL))
    sizes = np.tile(size, (len(poses), 1))
    return torch.from_numpy(normalization_from_cameras_and_points(poses.numpy(), intrinsics.numpy(), sizes, None))


def read_cameras(path: Path, name: str) -> tuple[Tensor, Tensor | None]:
    """Read an npz file of cameras.

    Args:
        path: ``cameras_sphere.npz`` or ``cameras.npz``.
        name: the scan, for errors.

    Returns:
        ``projections`` (V, 3, 4), dataset's frame to pixels with the first centre at (0.5, 0.5), and
        ``normalized_to_dataset`` (4, 4), both float64; ``None`` for the latter where the file has no ``scale_mat``.

    Raises:
        ValueError: a matrix is missing, or photographs are normalised differently.
    """
    with np.load(path, allow_pickle=False) as file:
        num_views = sum(re.fullmatch(r"world_mat_\d+", key) is not None for key in file.files)
        is_normalized = any(key.startswith("scale_mat_") for key in file.files)
        missing = [
            f"{kind}_mat_{view}"
            for view in range(num_views)
            for kind in ("world", "scale")[: 1 + is_normalized]
            if f"{kind}_mat_{view}" not in file.files
        ]
        if missing or num_views == 0:
            raise ValueError(
                f"DTU {name}: {path.name} has no {(missing or ['world_mat_0'])[0]}; expected it for each image"
            )
        world = torch.from_numpy(np.stack([file[f"world_mat_{view}"][:3] for view in range(num_views)])).double()
        world[:, :2] += 0.5 * world[:, 2:]
        if not is_normalized:
            return world, None
        scale = torch.from_numpy(np.stack([file[f"scale_mat_{view}"] for view in range(num_views)])).double()
    if not torch.allclose(scale, scale[:1], rtol=1e-5, equal_nan=True):
        raise ValueError(
            f"DTU {name}: the scale_mat of {path.name} differs between images; one normalisation is needed"
        )
    return world, scale[0]


def decomposed(projections: Tensor, image_names: list[str], name: str) -> tuple[Tensor, Tensor]:
    """Intrinsics (V, 3, 3) and poses (V, 4, 4) of (V, 3, 4) projections, float64; a camera that is none is named."""
    cameras = []
    for view, (projection, image_name) in enumerate(zip(projections, image_names, strict=True)):
        try:
            cameras.append(decompose_projection(projection.numpy()))
        except ValueError as error:
            raise ValueError(f"DTU {name}: the camera of {image_name} (world_mat_{view}): {error}") from error
    intrinsics, poses = zip(*cameras, strict=True)
    return torch.from_numpy(np.stack(intrinsics)), torch.from_numpy(np.stack(poses))


def with_truth(scene: Scene, official_root: Path, scan: int | str) -> Scene:
    """Add the scanned points, the observed volume and the ground plane of the official evaluation data.

    Args:
        scene: a scan.
        official_root: with ``Points/stl`` and ``ObsMask`` or ``SampleSet/MVS Data/ObsMask`` in it.
        scan: its number.

    Raises:
        ValueError: a file is not there.
    """
    points_path = official_root / f"Points/stl/stl{int(scan):03d}_total.ply"
    folders = [official_root / "SampleSet/MVS Data/ObsMask", official_root / "ObsMask"]
    volume_folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    volume_path, plane_path = volume_folder / f"ObsMask{scan}_10.mat", volume_folder / f"Plane{scan}.mat"
    for path in (points_path, volume_path, plane_path):
        if not path.is_file():
            raise ValueError(
                f"DTU scan {scan}: official_root has no {path}; see roboimagedata.compute.dtu.dk for the data"
            )
    volume, plane = scipy.io.loadmat(volume_path), scipy.io.loadmat(plane_path)
    observation = Observation(
        **scene.observation,
        volume=torch.from_numpy(volume["ObsMask"].astype(bool)),
        volume_bounds=torch.from_numpy(volume["BB"].astype(np.float64)),
        volume_step=float(volume["Res"].item()),
        plane=torch.from_numpy(plane["P"].astype(np.float64).ravel()),
    )
    points = torch.from_numpy(np.array(trimesh.load(points_path, process=False).vertices))
    dataset_to_normalized = torch.linalg.inv(scene.normalized_to_dataset)
    points = points @ dataset_to_normalized[:3, :3].T + dataset_to_normalized[:3, 3]
    return dataclasses.replace(scene, surface_points=points.float(), observation=observation)
