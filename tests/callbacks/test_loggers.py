"""What reaches Weights & Biases and TensorBoard, read back from the files that they leave."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import trimesh
from pytorch_lightning.loggers import CSVLogger

from callbacks import wandb_media
from callbacks.checkpoint import Checkpoint
from callbacks.draw import Draw
from callbacks.environment import Environment
from callbacks.loggers import TensorBoardLogger, WandbLogger
from callbacks.score import Score
from callbacks.summary import Summary
from callbacks.throughput import Throughput
from callbacks.wandb_media import matt_glb, object3d
from ops.types import Shape
from tests.callbacks.toy import COLORS, CORNERS, FACES, Brightness, Size, ToyMethod, loader, trainer

BLOCK = 2**15


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A machine that knows no key and no mode."""
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.chdir(tmp_path)
    wandb = pytest.importorskip("wandb")
    wandb.teardown()  # it reads the environment once a process
    yield
    wandb.teardown()


def _records(run: Path) -> list[Any]:
    """All records of a finished W&B run; its service writes on for a moment after the run has ended."""
    deadline = time.monotonic() + 30
    while True:
        records = list(_records_so_far(run))
        if any(record.HasField("exit") for record in records) or time.monotonic() > deadline:
            return records
        time.sleep(0.1)


def _records_so_far(run: Path) -> Iterator[Any]:
    """Records of a W&B run file: blocks of 32 KiB, in them checksum, length, kind and a piece of a record in turn."""
    from wandb.proto import wandb_internal_pb2

    content, place, pieces = next(run.glob("*.wandb")).read_bytes(), 7, b""
    while place + 7 <= len(content):
        if (left := BLOCK - place % BLOCK) < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        pieces += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pieces)
            yield record
            pieces = b""


def _history(run: Path) -> set[str]:
    kinds = (record.history for record in _records(run) if record.HasField("history"))
    return {item.key or item.nested_key[0] for history in kinds for item in history.item}


def _callbacks() -> list[Any]:
    return [Environment(), Summary(), Throughput(), Score([Size(), Brightness()]), Draw(size=32), Checkpoint()]


def _run(folder: Path, logger: Any, command: str, **kwargs: Any) -> None:
    """A fit or a test of toy objects, with the configuration that main.py would have saved."""
    results = folder / "toys/version_0" / ("" if command == "fit" else command)
    results.mkdir(parents=True, exist_ok=True)
    (results / "config.yaml").write_text("model: {class_path: toys.ToyMethod}")
    csv = CSVLogger(results.parent, name="", version=results.name)
    logger.place(results, command, ["ToyMethod", "Toys"])
    run = trainer(folder, _callbacks(), logger=[csv, logger], log_every_n_steps=1, **kwargs)
    if command == "fit":
        run.fit(ToyMethod(), loader(2), loader(3))
    else:
        run.test(ToyMethod(empty=(1,)), loader(5), verbose=False)


def test_a_fit_at_wandb_has_its_losses_speed_panels_config_group_and_checkpoint(tmp_path):
    pytest.importorskip("wandb")
    logger = WandbLogger(mode="offline", project="things", upload_checkpoint=True, tags=["mine"])
    _run(tmp_path, logger, "fit", max_steps=2)
    (run,) = tmp_path.glob("toys/version_0/wandb/offline-run-*")
    assert {
        "train/loss", "train/lr", "speed/steps_per_s", "speed/objects_per_s", "speed/data_wait_share",
        "speed/memory_gib", "val/brightness", "val/views", "trainer/global_step",
    } <= _history(run)  # fmt: skip
    (about,) = (record.run for record in _records(run) if record.HasField("run"))
    assert (about.display_name, about.run_group, about.job_type) == ("toys/version_0", "toys", "fit")
    assert list(about.tags) == ["ToyMethod", "Toys", "mine"]
    config = {item.key: item.value_json for r in _records(run) if r.HasField("config") for item in r.config.update}
    assert json.loads(config["model"]) == {"class_path": "toys.ToyMethod"}
    assert "torch" in json.loads(config["environment"])["versions"]
    (artifact,) = (record.artifact for record in _records(run) if record.HasField("artifact"))
    assert artifact.type == "model"
    known = json.loads((tmp_path / "toys/version_0/environment.json").read_text())
    assert known["wandb"]["id"] == about.run_id


def test_a_test_at_wandb_has_pictures_shapes_to_turn_and_a_table_of_all_objects(tmp_path):
    pytest.importorskip("wandb")
    _run(tmp_path, WandbLogger(mode="offline"), "test")
    (run,) = tmp_path.glob("toys/version_0/test/wandb/offline-run-*")
    assert {"test/views", "test/shape", "test/shape_3d", "test/objects", "test/size", "test/num_empty"} <= _history(run)
    media = run / "files/media"
    shapes = [trimesh.load(path, process=False, force="mesh") for path in media.rglob("*.glb")]
    # the fifth object is not drawn, and the second is empty
    assert sorted(shape.extents[0] for shape in shapes) == [2.0, 6.0, 8.0]
    table = json.loads(next(media.rglob("objects_*.table.json")).read_text())
    assert table["columns"][:3] == ["object_id", "category", "is_empty"]
    assert table["columns"][-5:] == ["picture", "shape", "size", "even_size", "brightness"]
    assert [row[0] for row in table["data"]] == [f"thing/{k}" for k in range(5)]
    pictures, clouds, sizes = (
        [row[table["columns"].index(name)] for row in table["data"]] for name in ("picture", "shape", "size")
    )
    assert [picture is None for picture in pictures] == [cloud is None for cloud in clouds]
    assert [picture is None for picture in pictures] == [False, True, False, False, True]
    assert sizes == [1.0, -1.0, 3.0, 4.0, 5.0]


def test_two_commands_of_one_process_are_two_runs(tmp_path):
    pytest.importorskip("wandb")
    for name in ("a", "b"):
        _run(tmp_path / name, WandbLogger(mode="offline"), "fit", max_steps=1)
    assert all(len(list(tmp_path.glob(f"{name}/toys/version_0/wandb/offline-run-*"))) == 1 for name in ("a", "b"))


def test_without_an_account_a_run_goes_on_offline_and_says_so(no_account, tmp_path):
    pytest.importorskip("wandb")
    with pytest.warns(UserWarning, match=r"not reached \(there is no account.*goes on offline.*WANDB_MODE=offline"):
        _run(tmp_path, WandbLogger(mode="online"), "fit", max_steps=1)
    assert len(list(tmp_path.glob("toys/version_0/wandb/offline-run-*"))) == 1


def test_switched_off_nothing_is_kept_for_wandb(no_account, tmp_path, capsys):
    pytest.importorskip("wandb")
    _run(tmp_path, WandbLogger(mode="off"), "fit", max_steps=1)
    assert "W&B is off" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.wandb"))


def test_a_mesh_for_wandb_is_matt_about_its_centre_and_not_too_large(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    content = matt_glb(Shape(CORNERS + 100, FACES, COLORS))
    tree = json.loads(content[20 : 20 + struct.unpack("<I", content[12:16])[0]])
    assert tree["materials"][0]["pbrMetallicRoughness"]["metallicFactor"] == 0
    assert {"POSITION", "NORMAL", "COLOR_0"} == set(tree["meshes"][0]["primitives"][0]["attributes"])
    monkeypatch.setattr(wandb_media, "MAX_FACES", 1000)
    sphere = trimesh.creation.icosphere(4)  # 5,120 faces
    object3d(Shape(torch.tensor(sphere.vertices), torch.tensor(sphere.faces)), "ball", tmp_path)
    few = trimesh.load(tmp_path / "ball.glb", process=False, force="mesh")
    assert 500 < len(few.faces) <= 1000
    assert len(object3d(Shape(torch.rand(50_000, 3)), "points", tmp_path)._path) > 0
    assert not (tmp_path / "points.glb").exists()


def test_tensorboard_has_scalars_pictures_and_the_config_beside_the_csv_log(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _run(tmp_path, TensorBoardLogger(), "fit", max_steps=2)
    events = EventAccumulator(str(tmp_path / "toys/version_0")).Reload()
    tags = events.Tags()
    assert {"train/loss", "speed/steps_per_s", "val/brightness"} <= set(tags["scalars"])
    assert "val_views/thing/0" in tags["images"]
    assert [event.step for event in events.Scalars("train/loss")] == [0, 1]
    assert "class_path" in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
