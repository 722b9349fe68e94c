"""A ball of 12 mm in the file formats of DTU's evaluation data, and the public evaluator's procedure restated."""

from pathlib import Path

import numpy as np
import scipy.io
import trimesh
from PIL import Image
from scipy.spatial import cKDTree

CENTER = np.array([12.0, -30.0, 600.0])
RADIUS = 12.0


def write_official(root: Path, scan: int = 7) -> None:
    """``Points/stl/stl007_total.ply`` and ``SampleSet/MVS Data/ObsMask/{ObsMask7_10,Plane7}.mat``."""
    generator = np.random.default_rng(0)
    directions = generator.normal(size=(40_000, 3))
    points = CENTER + RADIUS * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    folder = root / "Points/stl"
    folder.mkdir(parents=True)
    trimesh.PointCloud(points).export(folder / f"stl{scan:03d}_total.ply")
    folder = root / "SampleSet/MVS Data/ObsMask"
    folder.mkdir(parents=True)
    volume = np.ones((15, 14, 15), np.uint8)
    volume[:, :, 11:] = 0  # as if the top had not been seen
    scipy.io.savemat(
        folder / f"ObsMask{scan}_10.mat",
        {"ObsMask": volume, "BB": np.stack([CENTER - 14, CENTER + 14.0]), "Res": np.array([[2.0]]), "Margin": 10},
    )
    scipy.io.savemat(folder / f"Plane{scan}.mat", {"P": np.array([[0.1], [-0.2], [1.0], [-600.0 + 1.0]])})


def write_views(folder: Path, num_views: int = 4) -> None:
    """``mask/000.png`` and ``cameras_sphere.npz`` of cameras around the upright axis; disks that hold the ball."""
    (folder / "mask").mkdir(parents=True)
    cameras = {}
    y, x = np.mgrid[:120, :160]
    for k in range(num_views):
        forward = np.array([np.cos(np.pi * k / 2), np.sin(np.pi * k / 2), 0])
        rotation = np.stack([np.cross(forward, [0, 0, -1]), [0, 0, -1.0], forward])
        extrinsics = np.concatenate([rotation, (-rotation @ (CENTER - 200 * forward))[:, None]], axis=1)
        cameras[f"world_mat_{k}"] = np.eye(4)
        cameras[f"world_mat_{k}"][:3] = np.array([[300.0, 0, 79.5], [0, 300, 59.5], [0, 0, 1]]) @ extrinsics
        cameras[f"scale_mat_{k}"] = np.diag([20.0, 20, 20, 1])
        cameras[f"scale_mat_{k}"][:3, 3] = CENTER
        disk = (x - 79.5) ** 2 + (y - 59.5) ** 2 < 20**2
        Image.fromarray((255 * disk).astype(np.uint8)).save(folder / "mask" / f"{k:03d}.png")
    np.savez(folder / "cameras_sphere.npz", **cameras)


def public_evaluator(mesh: Path, root: Path, scan: int, seed: int) -> tuple[float, float, float]:
    """What ``eval.py`` of jzhangbs/DTUeval-python (MIT) does, from its description, with a k-d tree's neighbour lists.

    Its shuffle has no seed; here it has another one than ours.
    """
    density, patch, max_dist = 0.2, 60, 20
    loaded = trimesh.load(mesh, process=False)
    vertices, corners = np.asarray(loaded.vertices), np.asarray(loaded.vertices)[np.asarray(loaded.faces)]
    samples = [vertices]
    for a, b, c in corners:
        one, two = b - a, c - a
        doubled = np.linalg.norm(np.cross(one, two))
        if doubled == 0:
            continue
        lengths = np.linalg.norm(one), np.linalg.norm(two)
        step = density * np.sqrt(lengths[0] * lengths[1] / doubled)
        counts = int(lengths[0] // step), int(lengths[1] // step)
        i, j = np.meshgrid(np.arange(counts[0] + 1) + 0.5, np.arange(counts[1] + 1) + 0.5, indexing="ij")
        i, j = i / max(counts[0], 1e-7), j / max(counts[1], 1e-7)
        inside = i + j < 1
        samples.append(a + i[inside][:, None] * one + j[inside][:, None] * two)
    points = np.concatenate(samples)
    np.random.default_rng(seed).shuffle(points, axis=0)
    keep = np.ones(len(points), bool)
    for n, neighbours in enumerate(cKDTree(points).query_ball_point(points, density)):
        if keep[n]:
            keep[neighbours] = False
            keep[n] = True
    points = points[keep]
    files = root / "SampleSet/MVS Data/ObsMask"
    observed, plane = (
        scipy.io.loadmat(files / f"ObsMask{scan}_10.mat"),
        scipy.io.loadmat(files / f"Plane{scan}.mat")["P"],
    )
    box = observed["BB"].astype(np.float32)
    points = points[((points >= box[:1] - patch) & (points < box[1:] + 2 * patch)).all(1)]
    cells = np.around((points - box[:1]) / observed["Res"]).astype(np.int32)
    within = ((cells >= 0) & (cells < observed["ObsMask"].shape)).all(1)
    seen = points[within][observed["ObsMask"][tuple(cells[within].T)].astype(bool)]
    truth = np.asarray(trimesh.load(root / f"Points/stl/stl{scan:03d}_total.ply").vertices)
    above = truth[(plane.reshape(1, 4) * np.concatenate([truth, np.ones((len(truth), 1))], 1)).sum(1) > 0]
    to_truth, to_mesh = cKDTree(truth).query(seen)[0], cKDTree(points).query(above)[0]
    accuracy, completeness = to_truth[to_truth < max_dist].mean(), to_mesh[to_mesh < max_dist].mean()
    return accuracy, completeness, (accuracy + completeness) / 2
