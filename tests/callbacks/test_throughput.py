import csv
import time
from pathlib import Path

import pytest

from callbacks.throughput import Throughput, batch_items, resident_memory
from tests.callbacks.toy import ToyMethod, loader, trainer

WAIT = 0.02


class SlowMethod(ToyMethod):
    """Takes its time to validate."""

    def validation_step(self, *batch):
        time.sleep(0.3)


def _logged(folder: Path, **kwargs: object) -> list[dict[str, str]]:
    data = loader(8, batch_size=2)
    collate = data.collate_fn
    data.collate_fn = lambda samples: (time.sleep(WAIT), collate(samples))[1]
    settings = {"max_steps": 8, "log_every_n_steps": 2, "val_check_interval": 1, "num_sanity_val_steps": 0}
    trainer(folder, [Throughput()], **settings | kwargs).fit(SlowMethod(), data, loader(1))
    rows = list(csv.DictReader((folder / "run/test/metrics.csv").open()))
    return [row for row in rows if row.get("speed/steps_per_s")]


def test_waiting_for_data_is_told_from_work_and_validation_is_neither(tmp_path):
    rows = _logged(tmp_path)
    assert [int(row["step"]) for row in rows] == [1, 3, 5, 7]
    for row in rows[1:]:
        seconds = 1 / float(row["speed/steps_per_s"])
        assert WAIT <= float(row["speed/data_wait_s"]) < seconds
        assert seconds < 0.25  # a validation takes 0.3 s
        assert float(row["speed/data_wait_share"]) == pytest.approx(float(row["speed/data_wait_s"]) / seconds)
        assert float(row["speed/objects_per_s"]) == pytest.approx(2 / seconds, rel=1e-4)
        assert 0.1 < float(row["speed/memory_gib"]) < 100
        assert float(row["train/lr"]) == pytest.approx(0.1)


def test_who_profiles_keeps_the_profiler(tmp_path):
    rows = _logged(tmp_path, profiler="simple", max_steps=2)
    assert rows
    assert not any(row.get("speed/data_wait_s") for row in rows)


def test_items_of_a_batch_are_rays_or_objects_or_unknown():
    assert batch_items({"origins": [0] * 5, "object_index": [0]}) == (5, "rays")
    assert batch_items({"object_index": [0] * 3}) == (3, "objects")
    assert batch_items([1, 2]) == (0, None)


def test_memory_grows_with_what_is_kept():
    before = resident_memory()
    kept = bytearray(b"x") * 2**26
    assert resident_memory() - before > len(kept) / 2
