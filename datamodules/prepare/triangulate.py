"""Triangulate SIFT features of a scan's photographs with its known cameras.

``python -m datamodules.prepare.triangulate --root DATA --scan 24`` writes ``sparse_points.npz`` into the scan: what
the sparse-point loss reads, and a measure of a reconstruction that never saw the truth.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from lightning_utilities.core.imports import RequirementCache

from datamodules.dtu import find_scan, image_paths_of, read_scan
from datamodules.scene import Scene
from datamodules.sparse_points import MAX_REPROJECTION_ERROR, MIN_TRACK_LENGTH
from datamodules.tracks import Tracks, save_tracks

if TYPE_CHECKING:
    import pycolmap

_PYCOLMAP = RequirementCache("pycolmap")


def triangulate(scene: Scene, image_folder: Path) -> Tracks:
    """Points seen in two photographs or more.

    Args:
        scene: cameras and names of the photographs, at the size of the files.
        image_folder: where the files are.

    Returns:
        Points in the dataset's frame.

    Raises:
        ModuleNotFoundError: pycolmap is not installed.
        ValueError: nothing could be triangulated.
    """
    if not _PYCOLMAP:
        raise ModuleNotFoundError("triangulating needs pycolmap: pip install pycolmap")
    import pycolmap

    pycolmap.logging.minloglevel = pycolmap.logging.Level.ERROR.value
    start = time.monotonic()

    def report(what: str) -> None:
        print(f"{time.monotonic() - start:6.1f} s  {what}", flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        database_path = Path(scratch) / "database.db"
        report(f"finding SIFT features in {len(scene.images)} photographs")
        reader = pycolmap.ImageReaderOptions(camera_model="PINHOLE")
        pycolmap.extract_features(
            database_path, image_folder, scene.image_names, pycolmap.CameraMode.PER_IMAGE, reader_options=reader
        )
        posed = _posed_reconstruction(scene, database_path)
        report("matching every pair of them")
        pycolmap.match_exhaustive(database_path)
        report("triangulating")
        model = pycolmap.triangulate_points(posed, database_path, image_folder, scratch)
        tracks = _tracks(model, scene)
    report(f"{len(tracks.points)} points")
    return tracks


def _posed_reconstruction(scene: Scene, database_path: Path) -> "pycolmap.Reconstruction":
    """Write the known intrinsics into the database; return its images, posed, without points."""
    import pycolmap

    model = pycolmap.Reconstruction()
    with pycolmap.Database.open(database_path) as database:
        view_of_name = {name: view for view, name in enumerate(scene.image_names)}
        images = database.read_all_images()
        for image in images:
            camera = database.read_camera(image.camera_id)
            intrinsics = scene.intrinsics[view_of_name[image.name]].double()
            # COLMAP too counts pixels from the corner; its pinhole has no skew, and DTU's is 1e-4 pixels
            camera.params = [intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]]
            camera.has_prior_focal_length = True
            database.update_camera(camera)
            model.add_camera(camera)
        for rig in database.read_all_rigs():
            model.add_rig(rig)
        # the database's own frames, since the triangulator looks images up by their numbers there
        view_of_frame = {image.frame_id: view_of_name[image.name] for image in images}
        for frame in database.read_all_frames():
            pose = scene.normalized_to_dataset @ scene.camera_to_world[view_of_frame[frame.frame_id]].double()
            rotation = pose[:3, :3] / scene.normalized_to_dataset[:3, 0].norm()
            matrix = np.hstack([rotation.T.numpy(), -(rotation.T @ pose[:3, 3])[:, None].numpy()])
            frame.rig_from_world = pycolmap.Rigid3d(matrix)
            model.add_frame(frame)
        for image in images:
            model.add_image(image)
            model.register_frame(image.frame_id)
    return model


def _tracks(model: "pycolmap.Reconstruction", scene: Scene) -> Tracks:
    points = list(model.points3D.values())
    if not points:
        raise ValueError(f"{scene.name}: no point could be triangulated; are the cameras those of the photographs?")
    view_of_name = {name: view for view, name in enumerate(scene.image_names)}
    view_of_id = {image.image_id: view_of_name[image.name] for image in model.images.values()}
    entries = [(view_of_id[e.image_id], number) for number, point in enumerate(points) for e in point.track.elements]
    xyz, errors = np.array([point.xyz for point in points]), np.array([point.error for point in points])
    return Tracks.from_entries(xyz, errors, np.array(entries), len(scene.images))


def main() -> None:
    """Triangulate SIFT features of a scan with its known cameras."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--root", required=True, type=Path, help="folder with the scans, or of one scan")
    parser.add_argument("--scan", required=True, help="number or folder name")
    parser.add_argument(
        "--output", type=Path, help="file to write; sparse_points.npz in the scan's folder if not given"
    )
    parser.add_argument("--overwrite", action="store_true", help="do it again where the file is there")
    arguments = parser.parse_args()
    folder = find_scan(arguments.root, arguments.scan)
    output = arguments.output or folder / "sparse_points.npz"
    if output.exists() and not arguments.overwrite:
        print(f"{output} is there already; --overwrite makes it again")
        return
    scene = read_scan(folder)
    tracks = triangulate(scene, image_paths_of(folder)[0].parent)
    good = (tracks.lengths >= MIN_TRACK_LENGTH) & (tracks.errors <= MAX_REPROJECTION_ERROR)
    print(
        f"{good.sum()} of them in at least {MIN_TRACK_LENGTH} photographs and at most {MAX_REPROJECTION_ERROR} px off; "
        f"their median reprojection error is {np.median(tracks.errors[good]):.3f} px"
    )
    partial = output.with_name(f"{output.stem}.{os.getpid()}.npz")
    save_tracks(partial, tracks, scene.image_names)
    os.replace(partial, output)
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
