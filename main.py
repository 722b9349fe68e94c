"""The one program: ``python main.py {fit,validate,test,predict} --config configs/<experiment>.yaml``.

Methods and datasets are named in the YAML by ``class_path`` and never here, so one from another package plugs in too.
A run lives in ``<run_root>/<run_name>/version_<n>/``; what ``test`` makes of it goes into its subfolder ``test/``.
"""

import logging
import os
import shlex
import signal
import sys
import warnings
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# torch's idle OpenMP threads would otherwise spin against the hash grid's: a factor of 2 to 20 on a busy CPU
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# but for some microseconds, in which most operations follow the one before: a sixth of a step of the demo
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

if "SLURM_JOB_ID" in os.environ:
    # SIGUSR1, which would end the process, waits until somebody listens (callbacks.preemption)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})

import yaml
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

from launch import cluster
from launch.errors import plain_error, plain_usage_error
from launch.runs import (
    changed_settings,
    is_first_process,
    new_version,
    newest_checkpoint,
    place_loggers,
    remove_if_empty,
    run_of,
    writable,
)

ROOT = Path(__file__).parent
COMMANDS = ("fit", "validate", "test", "predict")


class Parser(LightningArgumentParser):
    """A parser whose error is one line, not a page of all flags."""

    def error(self, message: str, ex: Exception | None = None) -> None:
        """Say what is wrong and exit with status 2."""
        if not self.exit_on_error or os.environ.get("BOTTEGA_TRACEBACK"):
            super().error(message, ex)
        self.exit(2, f"error: {plain_usage_error(message)}\n")


class BottegaCLI(LightningCLI):
    """LightningCLI that links a method to its data and gives every run its folder."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Two arguments of our own, and what the method tells the data."""
        parser.add_argument("--run_root", type=str, default="runs", help="folder that holds all runs")
        parser.add_argument("--run_name", type=str | None, default=None, help="folder of this run; the config's name")
        parser.link_arguments("trainer.max_steps", "model.init_args.max_steps")
        parser.link_arguments("model", "data.init_args.reads", lambda model: set(model.reads), apply_on="instantiate")
        parser.link_arguments("model", "data.init_args.reader", lambda model: type(model).__name__, "instantiate")

    def before_instantiate_classes(self) -> None:
        """Find the checkpoint that is meant, leave out what is switched off, and give the run its folder."""
        config = self.config[self.subcommand]
        if config.run_name is None:
            config.run_name = Path(str(config.config[0])).stem if config.config else "run"
        runs = Path(config.run_root, config.run_name)
        config.weights_only = True  # a checkpoint is data; code in one is never run
        if self.subcommand == "test":
            config.verbose = False  # the scores' own table says it better
        self._choose_checkpoint(config, runs)
        self._leave_out(config.trainer)
        cluster.check_port(str(config.trainer.strategy))
        run = None if self.subcommand == "fit" else run_of(config.ckpt_path)
        folder, version = (run, self.subcommand) if run else (runs, None)
        is_written = isinstance(config.trainer.logger, list) and not config.trainer.fast_dev_run
        if is_written and is_first_process():
            version = new_version(folder) if run is None else writable(folder / version).name
        place_loggers(config.trainer.logger, folder, version)

    def _choose_checkpoint(self, config: Any, runs: Path) -> None:
        if config.ckpt_path == "auto":
            config.ckpt_path = cluster.first_process_decides(runs, lambda: cluster.own_checkpoint(runs))
        elif config.ckpt_path == "last" or (config.ckpt_path is None and self.subcommand != "fit"):
            config.ckpt_path = cluster.first_process_decides(runs, lambda: str(newest_checkpoint(runs)))
            print(f"{self.subcommand}: checkpoint {config.ckpt_path}")

    def _leave_out(self, trainer: Any) -> None:
        if trainer.logger is False:
            # there is no folder of a run to write to; Lightning would take the present one
            self.save_config_callback = None
            if trainer.enable_checkpointing is None:
                trainer.enable_checkpointing = False
        no_bar = trainer.enable_progress_bar is False
        # Lightning refuses a default callback beside the flag that switches it off
        switched_off = {
            "ProgressBar": no_bar,
            "RichProgressBar": no_bar,
            "Checkpoint": trainer.enable_checkpointing is False or trainer.fast_dev_run,
        }
        callbacks = [each for each in trainer.callbacks or [] if not switched_off.get(_class_name(each))]
        # checkpoints last of all, so that they hold what the others came to: the best score, for instance
        trainer.callbacks = sorted(callbacks, key=lambda each: _class_name(each) == "Checkpoint")

    def instantiate_classes(self) -> None:
        """Make everything and tell the loggers what they log; a run that never comes to be leaves no folder."""
        with self._no_empty_folder():
            super().instantiate_classes()
        names = [type(self.model).__name__, type(self.datamodule).__name__]
        for logger in self.trainer.loggers:
            if hasattr(logger, "place"):
                logger.place(Path(self.trainer.log_dir), self.subcommand, names)

    def _run_subcommand(self, subcommand: str) -> None:
        with self._no_empty_folder():
            super()._run_subcommand(subcommand)

    @contextmanager
    def _no_empty_folder(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            remove_if_empty(self.config[self.subcommand].trainer.logger)
            raise

    def after_instantiate_classes(self) -> None:
        """Tell the method what was set otherwise when the checkpoint was written."""
        config = self.config[self.subcommand]
        run = run_of(config.ckpt_path) if config.ckpt_path else None
        if run is not None:
            trained = yaml.safe_load((run / "config.yaml").read_text())
            self.model.changed_settings = changed_settings(trained.get("model"), config.model.as_dict(), "model")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer; under SLURM with settings that belong to the place, not to the experiment."""
        config = self.config[self.subcommand]
        return super().instantiate_trainer(**kwargs, **cluster.trainer_settings(Path(config.run_root, config.run_name)))

    def _parse_ckpt_path(self) -> None:
        """Lightning would read the whole checkpoint for hyperparameters, of which our runs save none."""


def _class_name(callback: Any) -> str:
    return callback.class_path.rsplit(".", 1)[-1]


def with_config_of_run(args: list[str]) -> list[str]:
    """Arguments with the run's own ``--config`` put in where a command other than ``fit`` was given none.

    Without ``--ckpt_path`` it is the newest run, and which one is printed.
    """
    given = {arg.split("=")[0] for arg in args}
    if not given & set(COMMANDS[1:]) or given & {"--config", "-c", "--help", "-h", "--model"}:
        return args
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("command")
    parser.add_argument("--ckpt_path", default="last")
    parser.add_argument("--run_root", default="runs")
    known, rest = parser.parse_known_args(args)
    checkpoint = Path(known.ckpt_path)
    if known.ckpt_path == "last":
        checkpoint = newest_checkpoint(Path(known.run_root))
        print(f"{known.command}: no checkpoint was named; taking that of the newest run, {checkpoint.parent.parent}")
    run = run_of(checkpoint)
    if run is None:
        problem = "no config.yaml in its run folder" if checkpoint.is_file() else "no such file"
        raise ValueError(
            f"--ckpt_path {checkpoint}: {problem}; expected <run>/checkpoints/<name>.ckpt of a run folder, or type "
            f"python main.py {known.command} --config <experiment>.yaml --ckpt_path <checkpoint>"
        )
    return [known.command, "--config", str(run / "config.yaml"), "--ckpt_path", str(checkpoint), *rest]


def main(args: list[str] | None = None) -> BottegaCLI:
    """Run one command: that of the command line, or of ``args`` when called from Python."""
    warnings.filterwarnings("ignore", "LightningCLI's args parameter is intended")
    warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    warnings.filterwarnings("ignore", "Experiment logs directory .* exists and is not empty")
    warnings.filterwarnings("ignore", "The `srun` command is available on your system but is not used")
    logging.getLogger("lightning_fabric.utilities.seed").setLevel(logging.WARNING)
    if args is None:
        sys.argv[1:] = with_config_of_run(sys.argv[1:])
    else:
        args = with_config_of_run(args)
    # for callbacks/environment.py, which records it
    os.environ["BOTTEGA_COMMAND"] = shlex.join(sys.argv[1:] if args is None else args)
    defaults = {"default_config_files": [str(ROOT / "configs" / "defaults.yaml")]}
    status = 1
    try:
        cli = BottegaCLI(
            LightningModule,
            LightningDataModule,
            parser_class=Parser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={command: defaults for command in COMMANDS},
            auto_configure_optimizers=False,
            args=args,
        )
        status = 0
        return cli
    finally:
        # the next run of this process would otherwise log into this one's
        wandb = sys.modules.get("wandb")
        if wandb is not None and wandb.run is not None:
            wandb.finish(exit_code=status)


def run_from_shell() -> None:
    """``main``, whose errors become a sentence and an exit status where the user can do something about them."""
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        sentence = plain_error(error)
        if sentence is None or os.environ.get("BOTTEGA_TRACEBACK"):
            raise
        sys.exit(f"error: {sentence}\n(set BOTTEGA_TRACEBACK=1 to see where it was raised)")


if __name__ == "__main__":
    run_from_shell()
