"""Pictures of objects in a page: the panels that :mod:`callbacks.draw` wrote, small enough to send by mail."""

import base64
import io
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from callbacks.runs import Run

KINDS = ("views", "shape")
MAX_WIDTH = 1600
QUALITY = 80


@dataclass(frozen=True)
class Picture:
    """A panel as the text of a page.

    Attributes:
        path: the PNG.
        kind: ``views`` or ``shape``.
        stage: ``test``, or ``validation at step <n>``.
        source: a data URI; empty where the page has no room for it.
        width: pixels of what is embedded.
        height: as ``width``.
    """

    path: Path
    kind: str
    stage: str
    source: str
    width: int
    height: int


def panels_of(run: Run) -> dict[str, list[tuple[Path, str, str]]]:
    """(path, kind, stage) of the panels of every object, by its name in file names.

    They are those of the test, or where there are none those of the last validation.
    """
    tested = _panels(run.results / "panels", r"(test)_(.+)_(views|shape)\.png")
    if tested:
        return {name: [(path, kind, "test") for path, kind, _ in panels] for name, panels in tested.items()}
    validated = _panels(run.folder / "panels", r"val_step(\d+)_(.+)_(views|shape)\.png")
    last = max((int(step) for panels in validated.values() for _, _, step in panels), default=0)
    stage = f"validation at step {last:,}"
    of_last = {
        name: [(path, kind, stage) for path, kind, step in panels if int(step) == last]
        for name, panels in validated.items()
    }
    return {name: panels for name, panels in of_last.items() if panels}


def embedded(path: Path, kind: str, stage: str, room: int) -> Picture:
    """A panel at most ``MAX_WIDTH`` wide, without its pixels where they need more than ``room`` bytes.

    Raises:
        ValueError: the file is no picture.
    """
    content = io.BytesIO()
    try:
        with Image.open(path) as image:
            image = image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path}: is no whole picture ({error}); remove it, or test again") from error
    image.thumbnail((MAX_WIDTH, 10 * MAX_WIDTH), Image.Resampling.LANCZOS)
    image.save(content, format="WEBP", quality=QUALITY, method=4)
    text = f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"
    return Picture(path, kind, stage, text if len(text) <= room else "", image.width, image.height)


def _panels(folder: Path, pattern: str) -> dict[str, list[tuple[Path, str, str]]]:
    found: dict[str, list[tuple[Path, str, str]]] = {}
    for path in sorted(
        folder.glob("*.png"), key=lambda path: (-KINDS.index(k) if (k := _kind(path)) else 1, path.name)
    ):
        match = re.fullmatch(pattern, path.name)
        if match:
            step, name, kind = match.groups()
            found.setdefault(name, []).append((path, kind, step))
    return found


def _kind(path: Path) -> str:
    kind = path.stem.rsplit("_", 1)[-1]
    return kind if kind in KINDS else ""
