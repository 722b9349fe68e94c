"""What can go wrong around a run, and the sentence in which it ends."""

import os
import shutil
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import torch
import yaml
from lightning_fabric.utilities import device_parser
from torch.distributed import TCPStore

import main as program
from callbacks.loggers import has_account
from launch import runs
from launch.errors import plain_error, plain_usage_error
from launch.runs import changed_settings, new_version
from main import main

OUTSIDE = '''
import os, signal, torch
from torch.utils.data import DataLoader
from pytorch_lightning import LightningDataModule
from methods.base import Method


class Wide(Method):
    """A method with a size."""

    reads = frozenset()

    def __init__(self, max_steps: int = -1, width: int = 4) -> None:
        super().__init__(lambda p: torch.optim.SGD(p, lr=0.1), None, max_steps)
        self.net = torch.nn.Linear(2, width)

    def training_step(self, batch, batch_idx):
        return self.net(batch).square().mean()

    def reconstruct(self, batch):
        return []


class Deadly:
    """Its worker is killed at the third item, as the kernel does when memory runs out."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        if index == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.ones(2)


class Data(LightningDataModule):
    """Some numbers."""

    def __init__(self, num_workers: int = 0, reads: set[str] | None = None) -> None:
        super().__init__()
        self.num_workers = num_workers

    def train_dataloader(self):
        if self.num_workers:
            return DataLoader(Deadly(), batch_size=1, num_workers=self.num_workers)
        return DataLoader(torch.ones(10, 2), batch_size=1)
'''


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder outside the project with a method and data that train in no time."""
    (tmp_path / "bad_day.py").write_text(OUTSIDE)
    config = {
        "model": {"class_path": "bad_day.Wide"},
        "data": {"class_path": "bad_day.Data"},
        "trainer": {"accelerator": "cpu", "max_steps": 4, "limit_val_batches": 0, "enable_progress_bar": False},
    }
    (tmp_path / "wide.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("bad_day", None)


def _fit(*arguments: str) -> None:
    main(["fit", "--config", "wide.yaml", *arguments])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_where_there_is_none_is_one_sentence_and_no_traceback(workplace, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py", "fit", "--config", "wide.yaml", "--trainer.accelerator", "gpu"])
    with pytest.raises(SystemExit) as stop:
        program.run_from_shell()
    assert str(stop.value).startswith(
        "error: trainer.accelerator asks for a GPU, but torch finds none here; set --trainer"
    )
    assert not list(workplace.glob("runs/wide/*"))  # the number is not used up
    monkeypatch.setenv("BOTTEGA_TRACEBACK", "1")
    with pytest.raises(Exception, match="No supported gpu backend found") as raised:
        program.run_from_shell()
    assert plain_error(raised.value) is not None


def test_more_gpus_than_there_are_names_both_numbers(monkeypatch):
    monkeypatch.setattr(device_parser, "_get_all_available_gpus", lambda **_: [0])
    with pytest.raises(Exception, match="You requested gpu") as raised:
        device_parser._sanitize_gpu_ids([0, 1, 2], include_cuda=True)
    assert plain_error(raised.value) == "trainer.devices asks for GPUs [0, 1, 2], but there are [0]; ask for fewer"


def test_a_port_in_use_is_said_before_processes_wait_for_each_other(workplace, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(ValueError, match=rf"port {port} \(MASTER_PORT\).* is in use.*unset it"):
            _fit("--trainer.strategy", "ddp", "--trainer.devices", "2")
        assert not (workplace / "runs").exists()
        # and where somebody else started the processes
        with pytest.raises(RuntimeError) as raised:
            TCPStore("127.0.0.1", port, is_master=True)
    assert f"port {port} (MASTER_PORT)" in plain_error(raised.value)


def test_an_account_at_wandb_is_known_from_where_wandb_looks(workplace, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(workplace))
    assert not has_account()
    (workplace / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert has_account()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not has_account()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert has_account()


def test_a_folder_for_runs_that_cannot_be_written_to_is_named(workplace):
    (workplace / "file").touch()
    with pytest.raises(ValueError, match=r"file/runs/wide/ cannot be written to \(Not a directory\).*--run_root"):
        _fit("--run_root", "file/runs")
    _fit()
    run = workplace / "runs/wide/version_0"
    (run / "test").touch()
    with pytest.raises(ValueError, match=r"version_0/test/ cannot be written to \(File exists\)"):
        main(["test"])


def test_a_killed_loader_process_points_at_memory(workplace):
    # which of them depends on whether the process had something ready
    with pytest.raises((RuntimeError, ConnectionError, EOFError)) as raised:
        _fit("--data.init_args.num_workers", "1")
    # the signal of the death may come after the broken connection, and PyTorch raises wherever Python is then
    with suppress(RuntimeError):
        time.sleep(0.3)
    assert "killed, most likely because memory ran out; set --data.init_args.num_workers" in plain_error(raised.value)


def test_a_mistake_found_by_a_loader_process_is_one_sentence():
    text = (
        "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback:\n  File\nValueError: chair_1: is broken"
    )
    assert plain_error(ValueError(text)) == "chair_1: is broken"
    assert plain_error(KeyError("a fault of the program")) is None


def test_runs_started_in_the_same_moment_get_folders_of_their_own(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        versions = list(pool.map(lambda _: new_version(tmp_path / "runs"), range(64)))
    assert sorted(versions) == list(range(64))
    shutil.rmtree(tmp_path / "runs/version_3")
    assert new_version(tmp_path / "runs") == 64  # a number is not given twice while later ones are there


def test_only_the_first_process_of_a_run_makes_its_folder(workplace, monkeypatch):
    assert runs.is_first_process()
    monkeypatch.setenv("NODE_RANK", "1")
    assert not runs.is_first_process()
    monkeypatch.delenv("NODE_RANK")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not runs.is_first_process()


def test_weights_of_another_size_name_parameters_and_the_setting_that_changed(workplace):
    _fit()
    message = (
        r"its weights do not fit bad_day\.Wide: net\.weight is \(4, 2\) in the checkpoint but \(6, 2\) in the model; "
        r"net\.bias .*Settings that differ: model\.init_args\.width is 6, but was 4\. Give the config"
    )
    for command in (["fit", "--config", "wide.yaml", "--ckpt_path", "last"], ["test"]):
        with pytest.raises(ValueError, match=message):
            main([*command, "--model.init_args.width", "6"])


def test_settings_that_changed_are_those_of_both_configurations():
    trained = {"class_path": "a.B", "init_args": {"width": 4, "gone": 1, "nested": {"depth": [1, 2]}}}
    given = {"class_path": "a.B", "init_args": {"width": 4, "new": 1, "nested": {"depth": [1, 3]}}}
    assert changed_settings(trained, given, "model") == ["model.init_args.nested.depth is [1, 3], but was [1, 2]"]


def test_checkpoint_of_a_newer_version_says_so_and_a_repaired_one_does_not(workplace):
    _fit()
    path = workplace / "runs/wide/version_0/checkpoints/last.ckpt"
    content = torch.load(path, weights_only=True)
    major, minor, _ = content["version"].split(".")
    torch.save(content | {"version": f"{major}.{int(minor) + 1}.0"}, path)
    with pytest.raises(ValueError, match=rf"written by version {major}\.{int(minor) + 1}\.0 .*, but this is "):
        _fit("--ckpt_path", "last")
    torch.save(content | {"version": f"{major}.{minor}.99"}, path)
    _fit("--ckpt_path", "last")


def test_a_checkpoint_cut_off_says_what_to_type(workplace):
    _fit("--trainer.max_steps", "2")
    _fit("--trainer.max_steps", "3", "--ckpt_path", "last")
    last = "runs/wide/version_1/checkpoints/last.ckpt"
    os.truncate(last, 1000)
    message = (
        r"version_1/checkpoints/last\.ckpt: it is incomplete.*--ckpt_path runs/wide/version_0/checkpoints/step2\.ckpt$"
    )
    with pytest.raises(ValueError, match=message):
        _fit("--ckpt_path", "last")


def test_an_argument_that_does_not_exist_is_one_line_with_its_full_name(workplace, capsys):
    for flag in ("--data.nam_workers", "--data.init_args.nam_workers"):
        with pytest.raises(SystemExit) as stop:
            _fit(flag, "2")
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: --data.init_args.nam_workers: bad_day.Data has no argument 'nam_workers'")
        assert "--data.help bad_day.Data" in line
    assert plain_usage_error("something else") == "something else"
