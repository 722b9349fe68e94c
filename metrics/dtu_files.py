"""DTU's truth and cameras from its files, for meshes that come from elsewhere."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import torch
from PIL import Image

from metrics.shape_files import read_shape
from ops.types import Observation


def read_truth(root: Path, scan: int) -> tuple[torch.Tensor, Observation]:
    """The scan's points (N, 3) float64, mm, and what the scanner observed.

    Args:
        root: of the official evaluation data, with ``Points/stl`` and ``ObsMask`` or ``SampleSet/MVS Data/ObsMask``.
        scan: its number.

    Raises:
        ValueError: no such folder or scan, or a broken file.
    """
    folders = [root / "SampleSet/MVS Data/ObsMask", root / "ObsMask"]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise ValueError(
            f"DTU: {root} holds none of the official evaluation data; expected Points/stl/ and ObsMask/, or SampleSet/ "
            f"of roboimagedata.compute.dtu.dk"
        )
    points = root / f"Points/stl/stl{scan:03d}_total.ply"
    files = points, folder / f"ObsMask{scan}_10.mat", folder / f"Plane{scan}.mat"
    missing = [str(path.relative_to(root)) for path in files if not path.is_file()]
    if missing:
        numbers = sorted(int(re.search(r"ObsMask(\d+)_10", path.name)[1]) for path in folder.glob("ObsMask*_10.mat"))
        known = f"it has the scans {', '.join(map(str, numbers))}" if numbers else "it has no scan at all"
        raise ValueError(f"DTU scan {scan}: {root} has no {', '.join(missing)}; {known}")
    volume, plane = _variables(files[1], "ObsMask", "BB", "Res"), _variables(files[2], "P")
    observation = Observation(
        volume=torch.from_numpy(volume["ObsMask"].astype(bool)),
        volume_bounds=torch.from_numpy(volume["BB"].astype(np.float64)),
        volume_step=float(volume["Res"].item()),
        plane=torch.from_numpy(plane["P"].astype(np.float64).ravel()),
    )
    return read_shape(points).vertices, observation


def read_views(folder: Path) -> Observation:
    """Masks and projections of a scan as NeuS and IDR prepared it: ``mask/*.png`` and ``cameras_sphere.npz``.

    Raises:
        ValueError: a file is missing, or counts differ.
    """
    cameras = next((p for n in ("cameras_sphere.npz", "cameras.npz") if (p := folder / n).is_file()), None)
    masks = next((p for n in ("mask", "masks") if (p := folder / n).is_dir()), None)
    if cameras is None or masks is None:
        lacks = "cameras_sphere.npz" if cameras is None else "mask/"
        raise ValueError(f"DTU: {folder} has no {lacks}; culling needs mask/*.png and cameras_sphere.npz of the scan")
    paths = sorted(path for path in masks.iterdir() if path.suffix.lower() in (".png", ".jpg"))
    with np.load(cameras, allow_pickle=False) as file:
        names = sorted((n for n in file.files if re.fullmatch(r"world_mat_\d+", n)), key=lambda n: int(n[10:]))
        matrices = np.stack([file[name][:3] for name in names]).astype(np.float64) if names else np.zeros((0, 3, 4))
    if len(paths) != len(matrices) or not paths:
        raise ValueError(
            f"DTU: {folder} has {len(paths)} masks but {len(matrices)} cameras; each mask needs its camera"
        )
    # in these files the centre of the first pixel is (0, 0)
    matrices[:, :2] += 0.5 * matrices[:, 2:]
    images = [np.asarray(Image.open(path).convert("L")) > 127 for path in paths]
    sizes = {image.shape for image in images}
    if len(sizes) > 1:
        raise ValueError(f"DTU: the masks of {masks} differ in size: {sorted(sizes)}")
    return Observation(masks=torch.from_numpy(np.stack(images)), projections=torch.from_numpy(matrices))


def _variables(path: Path, *names: str) -> dict[str, Any]:
    try:
        content = scipy.io.loadmat(path)
    except (OSError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{path}: cannot be read as a .mat file ({error}); unpack it again") from error
    missing = [name for name in names if name not in content]
    if missing:
        raise ValueError(f"{path}: no {', '.join(missing)} in it; expected {', '.join(names)}")
    return content
