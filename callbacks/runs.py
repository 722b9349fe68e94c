"""What a run's folder holds, read back: settings, objects and their scores, facts, and the run that it goes on from."""

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

RESULTS = ("test", "predict")
"""Folders of a run with what a command made of it, the one that is shown first."""
MARKS = ("config.yaml", "metrics.csv", "checkpoints", "environment.json", "test/objects.csv", "objects.csv")
"""A folder with one of these is a run."""


@dataclass(frozen=True)
class Run:
    """One run as its files tell it; what is missing is empty.

    Attributes:
        folder: the run's own.
        results: where ``objects.csv``, ``panels/`` and ``shapes/`` of the newest test lie, or of a prediction.
        name: ``<experiment>``, or ``<experiment> / version_<n>``.
        objects: rows of ``objects.csv``.
        record: ``scores.json``, what the scores are.
        settings: ``config.yaml`` of the training, keys joined by dots.
        environments: command -> ``environment.json``.
        notes: what was looked for and is not there, as sentences.
    """

    folder: Path
    results: Path
    name: str
    objects: list[dict[str, str]] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    environments: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def method(self) -> str:
        """Class of the method, without its module."""
        return str(self.record.get("method") or self.settings.get("model.class_path") or "").rsplit(".", 1)[-1]

    @property
    def num_empty(self) -> int:
        return sum(row.get("is_empty") == "True" for row in self.objects)

    @property
    def splits(self) -> list[str]:
        return [split for split in dict.fromkeys(row.get("split", "") for row in self.objects) if split]


def find_runs(paths: list[Path]) -> list[Path]:
    """Folders of runs: a run itself, of an experiment its newest tested version, of a tree that of every experiment.

    Raises:
        ValueError: a path is no folder, or holds no run.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            raise ValueError(
                f"{path}: no such folder; expected a run (<experiment>/version_<n>), an experiment or runs/"
            )
        runs = _runs_of(path)
        if not runs:
            raise ValueError(
                f"{path}: holds no run; expected config.yaml, metrics.csv or test/objects.csv in it, "
                "version_* folders, or folders of experiments with those"
            )
        found += runs
    return list(dict.fromkeys(found))


def _runs_of(path: Path) -> list[Path]:
    if path.name in RESULTS and _is_run(path.parent):
        return [path.parent]
    if _is_run(path):
        return [path]
    versions = sorted((one for one in path.glob("version_*") if _is_run(one)), key=_version)
    if versions:
        tested = [one for one in versions if (one / "test/objects.csv").is_file()]
        return [max(tested, key=lambda run: (run / "test/objects.csv").stat().st_mtime) if tested else versions[-1]]
    return [run for one in sorted(path.iterdir()) if one.is_dir() and one.name not in RESULTS for run in _runs_of(one)]


def _is_run(folder: Path) -> bool:
    return any((folder / mark).exists() for mark in MARKS)


def _version(folder: Path) -> tuple[int, str]:
    number = folder.name.removeprefix("version_")
    return (int(number) if number.isdigit() else -1, folder.name)


def newest_test(run: Path) -> Path:
    """``objects.csv`` of a run, or of the newest tested version of an experiment.

    Raises:
        ValueError: nothing was tested there.
    """
    found = [*run.glob("test/objects.csv"), *run.glob("version_*/test/objects.csv")]
    if not found:
        raise ValueError(f"{run}: has no test/objects.csv, nor has any version_* in it; run: python main.py test")
    return max(found, key=lambda path: path.stat().st_mtime)


def run_name(folder: Path) -> str:
    """``<experiment> / version_<n>``, or the folder's name where it is no version."""
    folder = folder.resolve()
    return f"{folder.parent.name} / {folder.name}" if folder.name.startswith("version_") else folder.name


def read_run(folder: Path, results: Path | None = None) -> Run:
    """Read a run.

    Args:
        folder: the run's own.
        results: where the results lie, if not in its ``test`` or ``predict``.

    Raises:
        ValueError: a file is broken; it names the file.
    """
    if results is None:
        existing = [folder / name for name in RESULTS if (folder / name).is_dir()]
        results = next(iter(existing), folder)
    objects = read_objects(results / "objects.csv")
    record = _read_json(results / "scores.json")
    notes = []
    if not objects:
        notes.append("It was not tested: python main.py test --ckpt_path <run>/checkpoints/last.ckpt")
    elif not record:
        notes.append("There is no scores.json beside objects.csv: by which protocol it was scored is not written down.")
    if not (folder / "metrics.csv").is_file():
        notes.append("There is no metrics.csv of a training.")
    environments = {name: _read_json(folder / name / "environment.json") for name in ("", "validate", *RESULTS)}
    environments = {name or "fit": content for name, content in environments.items() if content}
    return Run(folder, results, run_name(folder), objects, record, _settings(folder), environments, notes)


def read_objects(path: Path) -> list[dict[str, str]]:
    """Rows of a table of objects; none where there is no such file.

    Raises:
        ValueError: it is no table of objects, or a line of it is broken.
    """
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows, 2):
        if not {"object_index", "object_id", "is_empty"} <= row.keys():
            raise ValueError(f"{path}: has no column object_id or is_empty; expected a table of objects; test again")
        if None in row or None in row.values():
            raise ValueError(f"{path}: line {number} has not as many cells as the first; test again")
    return rows


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: is no JSON ({error}); remove it, or run its command again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds {type(content).__name__}, expected an object of JSON; run its command again")
    return content


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "config.yaml"
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is no YAML ({' '.join(str(error).split())}); restore it or remove it") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected settings as keys and values, found {type(content).__name__}")
    return _flat(content)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def lineage(run: Run) -> list[Path]:
    """Folders of the run and of all that it goes on from, the oldest first.

    The checkpoint that a run was resumed from is in its ``environment.json`` (``continues``), and in the settings of
    its ``fit``. A folder of runs may have been moved since: a version is also looked for beside the one that names it.
    """
    folders, checkpoint = [run.folder], _resumed_from(run)
    while checkpoint:
        named = Path(checkpoint).parent.parent
        beside = folders[0].resolve().parent / named.name
        older = next((one for one in (beside, named) if _is_run(one)), None)
        if older is None or older.resolve() in [one.resolve() for one in folders]:
            break
        folders.insert(0, older)
        checkpoint = _resumed_from(read_run(older, older))
    return folders


def _resumed_from(run: Run) -> str | None:
    environment = run.environments.get("fit", {})
    checkpoint = environment["continues"] if "continues" in environment else run.settings.get("ckpt_path")
    return checkpoint if isinstance(checkpoint, str) else None


def training_seconds(folders: list[Path]) -> float | None:
    """From the first file of each training to its last checkpoint, summed; ``None`` where that is not known.

    Copying a run without its files' times makes this wrong; nothing else in a run says it.
    """
    total = 0.0
    for folder in folders:
        begun, ended = folder / "config.yaml", list(folder.glob("checkpoints/*.ckpt"))
        seconds = max((one.stat().st_mtime for one in ended), default=0.0) - (
            begun.stat().st_mtime if begun.is_file() else 0.0
        )
        if not ended or not begun.is_file() or seconds < 1:
            return None
        total += seconds
    return total
