import json
import os
import re
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from datamodules import listing
from datamodules.listing import cache_folder, listed_folders

NUMBERS = re.compile(r"\d{4}")
THERE = [("0001", "a"), ("0001", "b"), ("0002", "c")]


def _settle(root: Path) -> None:
    """Make every category look as if nothing had changed for an hour, each change at a time of its own."""
    for number, folder in enumerate(sorted(root.iterdir())):
        os.utime(folder, (time.time() - 3600 + number,) * 2)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Two categories, long unchanged, one file among the objects and one folder that is no category."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("0001/a", "0001/b", "0002/c", "others/d"):
        (tmp_path / "data" / name).mkdir(parents=True)
    (tmp_path / "data/0001/train.lst").touch()
    _settle(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def looks(monkeypatch):
    """Folders whose entries were read."""
    seen, real = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: seen.append(Path(path).name) or real(path))
    return seen


def test_a_second_listing_reads_no_category_and_equals_the_first(root, looks):
    assert listed_folders(root, NUMBERS) == THERE
    assert sorted(looks) == ["0001", "0002", "data"]
    looks.clear()
    assert listed_folders(root, NUMBERS) == THERE
    assert looks == ["data"]


def test_an_added_object_is_seen_and_only_its_category_read_again(root, looks):
    listed_folders(root, NUMBERS)
    (root / "0002/new").mkdir()
    looks.clear()
    assert listed_folders(root, NUMBERS) == [*THERE, ("0002", "new")]
    assert looks == ["data", "0002"]


def test_a_removed_object_is_gone(root):
    listed_folders(root, NUMBERS)
    (root / "0001/a").rmdir()
    assert listed_folders(root, NUMBERS) == THERE[1:]


def test_categories_come_and_go(root):
    listed_folders(root, NUMBERS)
    (root / "0003/e").mkdir(parents=True)
    shutil.rmtree(root / "0001")
    assert listed_folders(root, NUMBERS) == [("0002", "c"), ("0003", "e")]
    assert listed_folders(root, NUMBERS) == [("0002", "c"), ("0003", "e")]


def test_a_category_that_another_of_the_same_time_replaces_is_read_again(root):
    listed_folders(root, NUMBERS)
    status = (root / "0001").stat()
    (root / "0001").rename(root / "old")
    (root / "0001/z").mkdir(parents=True)
    os.utime(root / "0001", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert listed_folders(root, NUMBERS) == [("0001", "z"), ("0002", "c")]


def test_a_folder_that_changed_just_now_is_not_remembered(root):
    # a second change within one tick of the clock would leave its time as it is
    os.utime(root / "0001")
    listed_folders(root, NUMBERS)
    status = (root / "0001").stat()
    (root / "0001/late").mkdir()
    os.utime(root / "0001", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert ("0001", "late") in listed_folders(root, NUMBERS)


def test_a_link_whose_target_goes_is_no_object_any_more(root, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (root / "0001/linked").symlink_to(tmp_path / "elsewhere")
    _settle(root)
    assert ("0001", "linked") in listed_folders(root, NUMBERS)
    (tmp_path / "elsewhere").rmdir()
    assert listed_folders(root, NUMBERS) == THERE


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"version": 1', '"version": 0'),
        lambda text: json.dumps({"version": 1, "folders": [["0001", {"state": [1, 2]}]]}),
        lambda text: re.sub(r'\["a", "b"\]', "[7]", text),
    ],
    ids=["cut short", "a list", "another version", "a key missing", "names that are none"],
)
def test_a_damaged_cache_is_made_anew(root, damage):
    listed_folders(root, NUMBERS)
    (cache,) = cache_folder().iterdir()
    good = cache.read_text()
    cache.write_text(damage(good))
    assert cache.read_text() != good
    assert listed_folders(root, NUMBERS) == THERE
    assert cache.read_text() == good


def test_a_cache_that_cannot_be_written_is_done_without(root, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert listed_folders(root, NUMBERS) == THERE


def test_processes_that_start_at_once_leave_one_whole_cache(root):
    with ProcessPoolExecutor(3, mp_context=get_context("fork")) as pool:
        results = list(pool.map(listed_folders, [root] * 6, [NUMBERS] * 6))
    assert results == [THERE] * 6
    (cache,) = cache_folder().iterdir()  # and nothing unfinished
    assert len(listing._read(cache)) == 2


def test_two_collections_do_not_share_what_is_remembered(root, tmp_path):
    listed_folders(root, NUMBERS)
    shutil.copytree(root, tmp_path / "copy")
    (tmp_path / "copy/0001/a").rmdir()
    _settle(tmp_path / "copy")
    assert listed_folders(tmp_path / "copy", NUMBERS) == THERE[1:]
    assert listed_folders(root, NUMBERS) == THERE
