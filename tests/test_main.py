"""The command line as a user meets it. Commands run in this process; a few in one of their own, where exits matter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from main import main, with_config_of_run

ROOT = Path(__file__).parents[1]

OUTSIDE = '''
import torch
from torch.utils.data import DataLoader
from pytorch_lightning import LightningDataModule
from methods.base import Method
from ops.types import Shape


class Tetrahedron(Method):
    """A method that lives outside the project."""

    reads = frozenset({"images"})

    def __init__(self, max_steps: int = -1, size: float = 1.0) -> None:
        super().__init__(lambda p: torch.optim.SGD(p, lr=0.1), None, max_steps)
        self.size = torch.nn.Parameter(torch.tensor(size))

    def training_step(self, batch, batch_idx):
        self.log("train/size", self.size.detach())
        return (self.size - 2) ** 2

    def reconstruct(self, batch):
        corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]) * self.size.detach()
        faces = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
        return [Shape(corners, faces)] if self.step else [Shape.empty()]


class Another(Tetrahedron):
    """A second one with the same weights."""


class OneObject(LightningDataModule):
    """A dataset that lives outside the project."""

    def __init__(self, reads: set[str] | None = None) -> None:
        super().__init__()
        self.reads = reads

    def train_dataloader(self):
        batch = {"object_index": torch.tensor([0]), "object_id": ["it"], "category": ["thing"],
                 "surface_points": torch.rand(1, 500, 3)}
        return DataLoader([batch] * 5, batch_size=None)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader
'''


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder outside the project that holds a method and a dataset of its own and a config that names them."""
    (tmp_path / "outside.py").write_text(OUTSIDE)
    config = {
        "model": {"class_path": "outside.Tetrahedron"},
        "data": {"class_path": "outside.OneObject"},
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 4,
            "limit_val_batches": 0,
            "enable_progress_bar": False,
            "log_every_n_steps": 1,
        },
    }
    (tmp_path / "tetrahedron.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("outside", None)


def _command(*args, cwd):
    """The command in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(cwd), "COLUMNS": "200"}
    environment.pop("WANDB_SERVICE", None)  # it would join the service that an earlier test left in this process
    return subprocess.run(
        [sys.executable, ROOT / "main.py", *args], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


def test_a_method_from_outside_the_tree_fits_tests_and_predicts(workplace, capsys):
    cli = main(["fit", "--config", "tetrahedron.yaml"])
    assert cli.datamodule.reads == {"images"}  # linked from the method
    assert cli.model.max_steps == 4  # linked from the trainer
    run = workplace / "runs/tetrahedron/version_0"
    assert {"config.yaml", "metrics.csv", "checkpoints"} <= {path.name for path in run.iterdir()}

    cli = main(["test"])
    assert "taking that of the newest run, runs/tetrahedron/version_0" in capsys.readouterr().out
    assert cli.model.step == 4
    assert (run / "test/shapes/it.ply").is_file()
    assert (run / "test/objects.csv").is_file()
    assert (run / "metrics.csv").is_file()

    main(["predict", "--ckpt_path", str(run / "checkpoints/last.ckpt")])
    assert (run / "predict/shapes/it.ply").is_file()


def test_flags_win_over_the_config_of_the_run(workplace):
    main(["fit", "--config", "tetrahedron.yaml"])
    cli = main(["test", "--model.init_args.size", "7", "--trainer.max_steps", "9"])
    assert cli.model.max_steps == 9
    assert cli.config.test.model.init_args.size == 7


def test_a_run_goes_on_from_its_last_checkpoint_in_a_folder_of_its_own(workplace, capsys):
    main(["fit", "--config", "tetrahedron.yaml"])
    before = (workplace / "runs/tetrahedron/version_0/checkpoints/last.ckpt").read_bytes()
    cli = main(["fit", "--config", "tetrahedron.yaml", "--ckpt_path", "last", "--trainer.max_steps", "6"])
    assert "runs/tetrahedron/version_0/checkpoints/last.ckpt" in capsys.readouterr().out
    assert cli.trainer.global_step == 6
    after = torch.load("runs/tetrahedron/version_1/checkpoints/last.ckpt", weights_only=True)
    assert after["global_step"] == 6
    assert (workplace / "runs/tetrahedron/version_0/checkpoints/last.ckpt").read_bytes() == before


def test_commands_without_a_run_say_what_to_do(workplace):
    for command in ("validate", "test", "predict"):
        with pytest.raises(ValueError, match=r"no run below runs/ has a checkpoint.*fit --config"):
            main([command])
    with pytest.raises(ValueError, match=r"no run below runs/tetrahedron/ has a checkpoint"):
        main(["fit", "--config", "tetrahedron.yaml", "--ckpt_path", "last"])


def test_a_checkpoint_that_is_not_there_or_lies_outside_a_run_is_named(workplace):
    with pytest.raises(ValueError, match=r"--ckpt_path lost\.ckpt: no such file"):
        main(["test", "--ckpt_path", "lost.ckpt"])
    (workplace / "stray.ckpt").touch()
    with pytest.raises(ValueError, match=r"stray\.ckpt: no config\.yaml in its run folder.*--config"):
        main(["test", "--ckpt_path=stray.ckpt"])


def test_checkpoint_of_another_method_leaves_everything_as_it_was(workplace):
    main(["fit", "--config", "tetrahedron.yaml"])
    checkpoint = workplace / "runs/tetrahedron/version_0/checkpoints/last.ckpt"
    before = checkpoint.read_bytes()
    with pytest.raises(ValueError, match=r"written by outside\.Tetrahedron, but the model is outside\.Another"):
        main(["test", "--config", "tetrahedron.yaml", "--model", "outside.Another", "--ckpt_path", str(checkpoint)])
    assert checkpoint.read_bytes() == before


def test_config_of_the_run_is_put_in_only_where_no_model_was_named():
    for args in (["fit"], ["test", "--config", "x.yaml"], ["test", "-h"], ["test", "--config=x.yaml"], ["--help"], []):
        assert with_config_of_run(args) == args


def test_a_typo_fails_before_any_work_and_names_the_key(workplace, capsys):
    for wrong in (["--trainer.max_stepz", "3"], ["--model.init_args.sise", "3"], ["--sed", "1"]):
        with pytest.raises(SystemExit) as stop:
            main(["fit", "--config", "tetrahedron.yaml", *wrong])
        assert stop.value.code == 2
        assert wrong[0].lstrip("-").split(".")[-1] in capsys.readouterr().err
    assert not (workplace / "runs").exists()


def test_help_and_print_config_work(workplace, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--help"])
    assert stop.value.code == 0
    assert "--run_root" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(ROOT / "configs/neuralangelo_dtu.yaml"), "--print_config"])
    assert stop.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["class_path"] == "methods.neuralangelo.Neuralangelo"
    assert printed["trainer"]["max_steps"] == 500_000


def test_a_users_mistake_ends_in_one_line_and_an_empty_shape_in_failure(workplace):
    # a shape is empty at step 0, which is what this checkpoint holds
    main(["fit", "--config", "tetrahedron.yaml"])
    path = workplace / "runs/tetrahedron/version_0/checkpoints/last.ckpt"
    content = torch.load(path, weights_only=True) | {"global_step": 0}
    torch.save(content, path)
    predicted = _command("predict", cwd=workplace)
    assert predicted.returncode != 0
    assert "1 of 1 objects came out empty" in predicted.stderr
    assert not list(workplace.glob("runs/**/*.ply"))

    lost = _command("test", "--ckpt_path", "lost.ckpt", cwd=workplace)
    assert lost.returncode != 0
    assert "error: --ckpt_path lost.ckpt: no such file" in lost.stderr
    assert "Traceback" not in lost.stderr


def test_wandb_is_not_imported_until_it_is_asked_for(workplace):
    code = (
        "import sys; from main import main; main(['fit', '--config', 'tetrahedron.yaml'])\n"
        "assert 'wandb' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", code], cwd=workplace, check=True, env=os.environ | {"PYTHONPATH": f"{ROOT}:{workplace}"}
    )


def test_wandb_runs_offline_beside_the_csv_log(workplace):
    done = _command(
        "fit", "--config", "tetrahedron.yaml", "--config", str(ROOT / "configs/overlays/wandb.yaml"), cwd=workplace
    )
    assert done.returncode == 0, done.stderr
    assert (workplace / "runs/tetrahedron/version_0/metrics.csv").is_file()
    assert list((workplace / "runs/tetrahedron/version_0/wandb").glob("offline-run-*/*.wandb"))


def test_a_run_without_logger_writes_nothing_anywhere(workplace, capsys):
    there = set(workplace.rglob("*"))
    cli = main(["fit", "--config", "tetrahedron.yaml", "--trainer.logger", "false"])
    assert cli.trainer.global_step == 4
    assert "nothing is written" in capsys.readouterr().out
    assert {path for path in workplace.rglob("*") if "__pycache__" not in path.parts} == {
        path for path in there if "__pycache__" not in path.parts
    }


def test_the_folder_of_a_run_says_which_command_made_it(workplace):
    main(["fit", "--config", "tetrahedron.yaml", "--seed_everything", "3"])
    facts = json.loads((workplace / "runs/tetrahedron/version_0/environment.json").read_text())
    assert facts["command"] == ["python", "main.py", "fit", "--config", "tetrahedron.yaml", "--seed_everything", "3"]


def test_a_wrong_path_leaves_no_folder_of_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="the root nowhere is no folder"):
        main(["fit", "--config", str(ROOT / "configs/neuralangelo_photos.yaml"), "--data.root", "nowhere"])
    assert not list(tmp_path.glob("runs/*/version_*"))
