"""Cameras and points of bare photographs, by COLMAP's incremental structure from motion (through pycolmap).

``python -m datamodules.prepare.structure_from_motion --root FOLDER`` does by hand what ``Photos`` does when its folder
has photographs and no cameras. The result lies in ``FOLDER/structure_from_motion``: a database of features and matches,
which a run that was stopped goes on with; ``sparse``, the model; and ``registered.json``, of what it was made. It is
made again only where the photographs have changed, and then new ones alone are looked at.
"""

import argparse
import itertools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from PIL import Image

from datamodules.colmap_model import is_model, needs_pycolmap
from datamodules.photographs import list_photographs, photograph_size, read_photograph
from datamodules.posed_photographs import photograph_folder

if TYPE_CHECKING:
    import pycolmap

FOLDER = "structure_from_motion"
Matching = Literal["auto", "exhaustive", "sequential"]

MIN_PHOTOGRAPHS = 3
MAX_IMAGE_SIZE = 1600
PEAK_THRESHOLD = 0.003
"""COLMAP's 0.0067 leaves smooth things, statues for one, with too few features."""
MAX_EXHAUSTIVE = 80
"""More photographs than this are matched in the order of their names: every pair would take hours on two cores."""
MAX_GUIDED = 40
"""Up to so many, pairs are searched again along their epipolar lines: it doubles the points, for a second a pair."""
OVERLAP = 8
AT_ONCE = {"photographs": 4, "pairs": 40}
ADVICE = (
    "Photographs that COLMAP can place show the thing from all sides in small steps (10 to 15 degrees, 20 or more of "
    "them), sharp, with one focal length, and with texture on the thing or around it"
)


@dataclass(frozen=True)
class Settings:
    """How structure from motion is done.

    Attributes:
        matching: every pair, or each photograph with the next ones in order; ``auto`` goes by their number.
        max_image_size: features are found in photographs made smaller to this longest edge.
        num_threads: -1 is all cores.
    """

    matching: Matching = "auto"
    max_image_size: int = MAX_IMAGE_SIZE
    num_threads: int = -1

    def pairs(self, names: list[str]) -> Iterator[tuple[str, str]]:
        """The pairs of photographs that are matched."""
        if self.is_exhaustive(names):
            yield from itertools.combinations(names, 2)
            return
        for first, name in enumerate(names):
            # the next ones, and some at doubling distances, which close loops
            far = [2**power for power in range(OVERLAP.bit_length(), len(names).bit_length())]
            for step in [*range(1, OVERLAP + 1), *(step for step in far if step > OVERLAP)]:
                if first + step < len(names):
                    yield name, names[first + step]

    def is_exhaustive(self, names: list[str]) -> bool:
        """Whether every pair is matched."""
        return self.matching == "exhaustive" or (self.matching == "auto" and len(names) <= MAX_EXHAUSTIVE)


def structure_from_motion(images: Path, output: Path, settings: Settings = Settings()) -> Path:
    """Find where the photographs of a folder were taken.

    Args:
        images: their folder.
        output: where features, matches and the model are kept.
        settings: how.

    Returns:
        The folder of the COLMAP model of the upright photographs.

    Raises:
        ModuleNotFoundError: pycolmap is not installed.
        ValueError: too few photographs, one that is broken, or too few that could be placed.
    """
    paths = list_photographs(images)
    if len(paths) < MIN_PHOTOGRAPHS:
        raise ValueError(
            f"{images} holds {len(paths)} photographs, structure from motion needs at least {MIN_PHOTOGRAPHS}. {ADVICE}"
        )
    names = [path.name for path in paths]
    stamp = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in paths}
    model = output / "sparse"
    if is_model(model) and _remembered(output / "registered.json").get("photographs") == stamp:
        known = _remembered(output / "registered.json")
        report(f"{model} is of these {len(paths)} photographs already: {len(known['registered'])} registered")
        return model
    needs_pycolmap("structure from motion")
    import pycolmap

    pycolmap.logging.minloglevel = pycolmap.logging.Level.ERROR.value
    _make(output)
    _forget_changed(output, stamp)
    upright = _upright_copies(paths, output)
    database = output / "database.db"
    _extract(database, upright, paths, settings)
    _match(database, names, settings)
    registered = _map(database, upright, model, names, settings)
    missing = [name for name in names if name not in registered]
    _write_json(output / "registered.json", {"photographs": stamp, "registered": registered, "missing": missing})
    return model


def report(message: str) -> None:
    """One line of progress."""
    print(f"structure from motion: {message}", flush=True)


def _remembered(path: Path) -> dict[str, object]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _write_json(path: Path, content: dict[str, object]) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(content, indent=1))
    os.replace(partial, path)


def _make(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"structure from motion cannot write into {output} ({error.strerror}); name another folder for it: "
            "sfm_folder, or --output"
        ) from error


def _forget_changed(output: Path, stamp: dict[str, list[int]]) -> None:
    """Start anew where a photograph that the database knows has changed or gone; new ones are merely added."""
    seen_path = output / "photographs.json"
    seen = _remembered(seen_path)
    if any(stamp.get(name) != known for name, known in seen.items()):
        report("photographs were changed or removed since the last time; starting anew")
        shutil.rmtree(output)
        output.mkdir()
    _write_json(seen_path, stamp)


def _upright_copies(paths: list[Path], output: Path) -> Path:
    """The folder to read: that of the photographs, or one of upright copies where EXIF data turn any of them.

    Raises:
        ValueError: a file is broken; better now than after an hour.
    """
    turned = []
    for path in paths:
        read_photograph(path)
        if photograph_size(path)[1] != 1:
            turned.append(path)
    if not turned:
        return paths[0].parent
    folder = output / "upright"
    folder.mkdir(exist_ok=True)
    for path in paths:
        copy = folder / path.name
        if copy.exists():
            continue
        partial = folder / f"partial_{os.getpid()}{path.suffix}"
        if path in turned:
            Image.fromarray(read_photograph(path, is_upright=True)[..., :3]).save(partial, quality=95)
        else:
            shutil.copyfile(path, partial)
        os.replace(partial, copy)
    report(f"{len(turned)} photographs are turned by their EXIF data; working on upright copies in {folder}")
    return folder


def _in_portions(items: list, kind: Literal["photographs", "pairs"], what: str, work: Callable[[list], None]) -> None:
    """Work through a list a portion at a time, saying how far it is every few seconds."""
    start = said = time.monotonic()
    for first in range(0, len(items), AT_ONCE[kind]):
        work(items[first : first + AT_ONCE[kind]])
        done, now = min(first + AT_ONCE[kind], len(items)), time.monotonic()
        if done == len(items) or now - said > 5:
            left = (now - start) * (len(items) - done) / done
            report(f"{what} {done} of {len(items)} {kind}, {now - start:.0f} s" + (f", {left:.0f} s left" * (left > 1)))
            said = now


def _extract(database_path: Path, folder: Path, paths: list[Path], settings: Settings) -> None:
    """SIFT features of those photographs that have none yet; photographs of one size have one camera."""
    import pycolmap

    options = pycolmap.FeatureExtractionOptions(
        max_image_size=settings.max_image_size, num_threads=settings.num_threads
    )
    options.sift.peak_threshold = PEAK_THRESHOLD
    with pycolmap.Database.open(database_path) as database:
        camera_of_size = {(c.height, c.width): c.camera_id for c in database.read_all_cameras()}
        known = {i.name for i in database.read_all_images() if database.exists_keypoints(i.image_id)}
    by_size: dict[tuple[int, int], list[str]] = {}
    for path in paths:
        if path.name not in known:
            by_size.setdefault(photograph_size(folder / path.name)[0], []).append(path.name)
    if known:
        report(f"features of {len(known)} photographs are there already")
    names = [(size, name) for size, group in by_size.items() for name in group]

    def extract(portion: list[tuple[tuple[int, int], str]]) -> None:
        for size, group in itertools.groupby(portion, key=lambda item: item[0]):
            reader = pycolmap.ImageReaderOptions(camera_model="SIMPLE_RADIAL")
            if size in camera_of_size:
                reader.existing_camera_id = camera_of_size[size]
            pycolmap.extract_features(
                database_path, folder, [name for _, name in group], pycolmap.CameraMode.SINGLE, reader, options
            )
            with pycolmap.Database.open(database_path) as database:
                camera_of_size.update({(c.height, c.width): c.camera_id for c in database.read_all_cameras()})

    _in_portions(names, "photographs", "features of", extract)


def _match(database_path: Path, names: list[str], settings: Settings) -> None:
    """Matches of those pairs that have none yet."""
    import pycolmap

    with pycolmap.Database.open(database_path) as database:
        number = {image.name: image.image_id for image in database.read_all_images()}
        pairs = [
            pair
            for pair in settings.pairs(names)
            if set(pair) <= number.keys() and not database.exists_two_view_geometry(*(number[name] for name in pair))
        ]
    options = pycolmap.FeatureMatchingOptions(
        guided_matching=len(names) <= MAX_GUIDED, num_threads=settings.num_threads
    )
    how = "every pair" if settings.is_exhaustive(names) else f"each photograph with the next {OVERLAP} and some further"
    report(f"matching {how}")

    def match(portion: list[tuple[str, str]]) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            listing = Path(scratch) / "pairs.txt"
            listing.write_text("".join(f"{first} {second}\n" for first, second in portion))
            pycolmap.match_image_pairs(database_path, options, pycolmap.ImportedPairingOptions(match_list_path=listing))

    _in_portions(pairs, "pairs", "matches of", match)


def _map(database_path: Path, folder: Path, model_folder: Path, names: list[str], settings: Settings) -> list[str]:
    """Place the photographs one after the other; write the largest model and return the names of those in it."""
    import pycolmap

    # a fixed seed: what still differs between two runs is the order in which threads add
    options = pycolmap.IncrementalPipelineOptions(
        min_model_size=MIN_PHOTOGRAPHS, random_seed=0, num_threads=settings.num_threads
    )
    placed, said = 2, time.monotonic()

    def count() -> None:
        nonlocal placed, said
        placed += 1
        if time.monotonic() - said > 5:
            said = time.monotonic()
            report(f"{placed} photographs placed")

    report("placing the photographs")
    with tempfile.TemporaryDirectory(dir=model_folder.parent) as scratch:
        models = pycolmap.incremental_mapping(database_path, folder, scratch, options, next_image_callback=count)
        best = max(models.values(), key=lambda model: model.num_reg_images(), default=None)
        if best is None or best.num_reg_images() < MIN_PHOTOGRAPHS:
            raise ValueError(
                f"{folder}: none of the {len(names)} photographs could be placed: no {MIN_PHOTOGRAPHS} of them share "
                f"enough features. {ADVICE}"
            )
        written = Path(scratch) / "best"
        written.mkdir()
        best.write_binary(str(written))
        if model_folder.exists():
            shutil.rmtree(model_folder)
        os.replace(written, model_folder)
    registered = sorted(image.name for image in best.images.values() if image.has_pose)
    _say_result(best, registered, names, len(models))
    return registered


def _say_result(model: "pycolmap.Reconstruction", registered: list[str], names: list[str], num_models: int) -> None:
    missing = [name for name in names if name not in registered]
    report(
        f"{len(registered)} of {len(names)} photographs registered, {model.num_points3D()} points, mean reprojection "
        f"error {model.compute_mean_reprojection_error():.2f} px"
    )
    if missing:
        report(f"not registered and left out: {', '.join(missing)}")
    if num_models > 1:
        report(f"they fall into {num_models} groups that share no features; the largest is taken")
    if 2 * len(registered) < len(names):
        report(f"less than half of them. {ADVICE}")


def main() -> None:
    """Find where the photographs of a folder were taken."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--root", required=True, type=Path, help="folder with photographs, or with them in images/")
    parser.add_argument("--output", type=Path, help=f"where to keep the result; {FOLDER} in root if not given")
    parser.add_argument("--matching", choices=get_args(Matching), default="auto", help="which pairs are matched")
    parser.add_argument("--max_image_size", type=int, default=MAX_IMAGE_SIZE, help="longest edge for features")
    parser.add_argument("--num_threads", type=int, default=-1, help="threads; -1 is all cores")
    arguments = parser.parse_args()
    settings = Settings(arguments.matching, arguments.max_image_size, arguments.num_threads)
    images = photograph_folder(arguments.root)
    model = structure_from_motion(images, arguments.output or arguments.root / FOLDER, settings)
    report(f"the model is in {model}")


if __name__ == "__main__":
    main()
