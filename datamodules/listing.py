"""Which objects a tree of folders holds, remembered from one start to the next.

A collection such as ShapeNet is a folder a category with a folder an object in it. Reading 50,000 names is quick where
the disk is near and takes long where a network lies between, so what was read is kept in the user's cache folder
(``$XDG_CACHE_HOME/bottega``, else ``~/.cache/bottega``). A category is read again when its folder has changed: the time
of that moves whenever an object is added, removed or renamed. What lies deeper is not looked at.
"""

import hashlib
import json
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

VERSION = 1
SETTLED_SECONDS = 60.0
"""A folder may change twice within one tick of its file system's clock, which may be another machine's: only for a
change that is older than this is it sure that the look came after it."""


def listed_folders(root: Path, category: re.Pattern[str]) -> list[tuple[str, str]]:
    """(category, object) of the folders two levels below a root, sorted.

    A damaged cache is made anew, and one that cannot be written is done without.

    Args:
        root: the folder of the categories.
        category: what their names match in full; other entries of the root are passed over.
    """
    cache = cache_folder() / f"listing-{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:24]}.json"
    known, found = _read(cache), {}
    for entry in os.scandir(root):
        if not (category.fullmatch(entry.name) and entry.is_dir()):
            continue
        status = os.stat(entry.path)
        state = [status.st_mtime_ns, status.st_ino]
        remembered = known.get(entry.name)
        if remembered is None or remembered["state"] != state:
            is_settled = time.time() - status.st_mtime > SETTLED_SECONDS
            names, has_links = _folders_in(entry.path)
            # where a link leads to may change without its folder
            remembered = {"state": state if is_settled and not has_links else None, "names": names}
        found[entry.name] = remembered
    settled = {name: each for name, each in found.items() if each["state"]}
    if settled != known:
        _write(cache, settled)
    return sorted((name, each) for name in found for each in found[name]["names"])


def cache_folder() -> Path:
    """Where this project keeps what it could find out again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bottega"


def _folders_in(folder: str) -> tuple[list[str], bool]:
    """Names of the folders in a folder, and whether there are links in it; most file systems need no look at each."""
    names, has_links = [], False
    with os.scandir(folder) as entries:
        for entry in entries:
            has_links |= entry.is_symlink()
            if entry.is_dir():
                names.append(entry.name)
    return sorted(names), has_links


def _read(cache: Path) -> dict[str, dict]:
    try:
        content = json.loads(cache.read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            return {}
        folders = {name: {"state": list(each["state"]), "names": each["names"]} for name, each in content["folders"]}
        is_sound = all(isinstance(name, str) for each in folders.values() for name in each["names"])
        return folders if is_sound else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _write(cache: Path, folders: dict[str, dict]) -> None:
    # whole or not at all, also where several processes start at once
    unfinished = cache.with_name(f"{cache.name}.{uuid4().hex}.tmp")
    with suppress(OSError):
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_text(json.dumps({"version": VERSION, "folders": list(folders.items())}), encoding="utf-8")
            os.replace(unfinished, cache)
        finally:
            unfinished.unlink(missing_ok=True)
