"""What a command is about to do, in about ten lines, and how a fit ended; in place of Lightning's own remarks."""

import logging
import re
import shlex
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import yaml
from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.text import Text

from callbacks.environment import add_facts, main_arguments
from callbacks.results import results_folder, training_steps

# said by the summary, or by nobody who asked
_NOISE = re.compile(
    r"GPU available: |TPU available: |💡 Tip: |`Trainer\.\w+` stopped: |`Trainer\(.*\)` was configured so|"
    r"Restor(ing|ed all) states |Loaded model weights |You are using a CUDA device .* Tensor Cores|"
    r"LOCAL_RANK: \d+ - CUDA_VISIBLE_DEVICES|-+\ndistributed_backend="
)
_LOGGERS = (
    "pytorch_lightning.utilities.rank_zero",
    "lightning_fabric.utilities.rank_zero",
    "pytorch_lightning.accelerators.cuda",
)


class Summary(Callback):
    """Prints method, data, length, device, folders and what to type next; quiets Lightning where it says the same.

    The run's configuration is handed to the loggers that show one.
    """

    def __init__(self) -> None:
        self._started = 0.0
        for name in _LOGGERS:
            log = logging.getLogger(name)
            # one is enough, however many runs this process starts
            if _is_news not in log.filters:
                log.addFilter(_is_news)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.monotonic()
        self._start(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._start(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        took = timedelta(seconds=round(time.monotonic() - self._started))
        lines = [("done", f"step {trainer.global_step:,} after {took}")]
        checkpoint = getattr(trainer.checkpoint_callback, "last_model_path", "")
        if checkpoint:
            lines.append(("test", shlex.join(["python", "main.py", "test", "--ckpt_path", _relative(checkpoint)])))
        _print(lines)

    def _start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = results_folder(trainer)
        if not trainer.is_global_zero:
            return
        hand_over_config(trainer, folder)
        _print(summary_lines(trainer, pl_module, folder))


def _is_news(record: logging.LogRecord) -> bool:
    return _NOISE.match(record.getMessage()) is None


def summary_lines(trainer: Trainer, pl_module: LightningModule, folder: Path | None) -> list[tuple[str, str]]:
    """What is printed at the start of a command, as (label, text).

    Args:
        folder: of the command's results; ``None`` where nothing is written.
    """
    data = trainer.datamodule
    lines = [("method", _method(trainer, pl_module))]
    if data is not None:
        lines.append(("data", data.describe() if hasattr(data, "describe") else type(data).__name__))
    if trainer.state.fn == "fit":
        lines.append(("length", _length(trainer)))
    lines.append(("device", _device(trainer)))
    if trainer.ckpt_path is not None:
        verb = "continues" if trainer.state.fn == "fit" else "weights"
        lines.append((verb, f"step {training_steps(trainer, pl_module):,} of {_relative(trainer.ckpt_path)}"))
    lines.append(("folder", "nothing is written: there is no logger" if folder is None else _relative(folder)))
    if folder is not None:
        if trainer.state.fn == "fit" and trainer.checkpoint_callback is not None:
            lines.append(("resume", resume_command(main_arguments())))
        lines += [("dashboard", text) for text in dashboards(trainer, folder)]
    return lines


def resume_command(arguments: list[str]) -> str:
    """The command that goes on where a fit with these arguments of main.py stopped."""
    kept = []
    arguments = list(arguments)
    while arguments:
        argument = arguments.pop(0)
        if argument == "--ckpt_path":
            del arguments[:1]
        elif not argument.startswith("--ckpt_path="):
            kept.append(argument)
    return shlex.join(["python", "main.py", *kept, "--ckpt_path", "last"])


def dashboards(trainer: Trainer, folder: Path) -> list[str]:
    """How to look at a run while it goes on, a line each."""
    found = []
    for logger in trainer.loggers:
        kind = type(logger).__name__
        if kind == "WandbLogger":
            found.append(getattr(logger, "address", "at W&B"))
        elif kind == "TensorBoardLogger":
            found.append(f"tensorboard --logdir {_relative(folder.parent)}")
    if trainer.state.fn == "fit" and not found:
        found.append(f"python -m callbacks.report {_relative(folder)}")
    return found


def hand_over_config(trainer: Trainer, folder: Path | None) -> None:
    """Give W&B and TensorBoard the run's config.yaml; the CSV log has it as the file beside it."""
    path = None if folder is None else folder / "config.yaml"
    if path is None or not path.is_file():
        return
    for logger in trainer.loggers:
        if type(logger).__name__ == "WandbLogger":
            run = logger.experiment
            # so that whoever finds the folder finds the curves
            known = {"id": run.id, "name": run.name, "group": run.group, "project": run.project}
            environment = add_facts(folder / "environment.json", {"wandb": known})
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
            logger.log_hyperparams({**config, "folder": str(folder), "environment": environment})
        elif type(logger).__name__ == "TensorBoardLogger":
            text = path.read_text(encoding="utf-8")
            logger.experiment.add_text("config", "\n".join(f"    {line}" for line in text.splitlines()))


def _method(trainer: Trainer, pl_module: LightningModule) -> str:
    count = sum(parameter.numel() for parameter in pl_module.parameters())
    frozen = sum(parameter.numel() for parameter in pl_module.parameters() if not parameter.requires_grad)
    text = f"{type(pl_module).__name__}, {count:,} parameters" + (f" ({frozen:,} frozen)" if frozen else "")
    for optimizer in trainer.optimizers if trainer.state.fn == "fit" else []:
        group = optimizer.param_groups[0]
        text += f"; {type(optimizer).__name__}, learning rate {group.get('initial_lr', group['lr']):g}"
    return text


def _length(trainer: Trainer) -> str:
    steps = trainer.estimated_stepping_batches
    text = "no end is set" if steps == float("inf") else f"{steps:,.0f} steps"
    describe = getattr(trainer.datamodule, "describe_batch", None)
    batch = "" if describe is None else describe()
    if batch:
        text += f" of {batch}" + (f" in each of {trainer.world_size} processes" if trainer.world_size > 1 else "")
    every = trainer.val_check_batch
    if trainer.enable_validation and sum(trainer.num_val_batches) and every != float("inf"):
        text += f"; validation every {every:,}"
    return text


def _device(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        name = f"{torch.cuda.get_device_name(device)}, {memory:.0f} GiB"
    else:
        name = f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
    text = f"{name}; precision {trainer.precision}"
    if trainer.world_size > 1:
        text += f"; {trainer.world_size} processes on {trainer.num_nodes} node{'s' * (trainer.num_nodes > 1)}"
    return text


def _relative(path: str | Path) -> str:
    """As short as it can be typed from here."""
    path = Path(path)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _print(lines: list[tuple[str, Any]]) -> None:
    console = Console()
    for label, text in lines:
        # long lines stay whole, so that commands can be copied from a log
        console.print(Text.assemble((f"{label:<10} ", "bold"), text), soft_wrap=True)
