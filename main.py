"""The one program: ``python main.py {fit,validate,test,predict} --config configs/<experiment>.yaml``.

Methods and datasets are named in the YAML by ``class_path`` and never here, so one from another package plugs in too.
A run lives in ``<run_root>/<run_name>/version_<n>/``; what ``test`` makes of it goes into its subfolder ``test/``.
"""

import netrc
import os
import socket
import sys
import uuid
import warnings
from argparse import ArgumentParser
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# torch's idle OpenMP threads would otherwise spin against the hash grid's: a factor of 2 to 20 on a busy CPU
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import yaml
from pytorch_lightning import LightningDataModule, LightningModule
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from plain_errors import NO_WANDB_ACCOUNT, PORT_IN_USE, plain_error, plain_usage_error

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
        """Find the checkpoint that is meant, and send the loggers to the run's folder."""
        config = self.config[self.subcommand]
        if config.run_name is None:
            config.run_name = Path(str(config.config[0])).stem if config.config else "run"
        runs = Path(config.run_root, config.run_name)
        if config.ckpt_path == "last" or (config.ckpt_path is None and self.subcommand != "fit"):
            config.ckpt_path = str(newest_checkpoint(runs))
            print(f"{self.subcommand}: checkpoint {config.ckpt_path}")
        switched_off = {
            "RichProgressBar": config.trainer.enable_progress_bar is False,
            "Checkpoint": config.trainer.enable_checkpointing is False or config.trainer.fast_dev_run,
        }
        # Lightning refuses a default callback beside the flag that switches it off
        callbacks = [
            callback
            for callback in config.trainer.callbacks or []
            if not switched_off.get(callback.class_path.rsplit(".", 1)[-1])
        ]
        # last of all, so that it holds what the others came to: the best score, for instance
        config.trainer.callbacks = sorted(callbacks, key=lambda callback: callback.class_path.endswith(".Checkpoint"))
        config.weights_only = True  # a checkpoint is data; code in one is never run
        if self.subcommand == "test":
            config.verbose = False  # the scores' own table says it better
        run = None if self.subcommand == "fit" else run_of(config.ckpt_path)
        folder, version = (run, self.subcommand) if run else (runs, None)
        is_written = isinstance(config.trainer.logger, list) and not config.trainer.fast_dev_run
        check_port(str(config.trainer.strategy))
        if is_written and is_first_process():
            version = new_version(folder) if run is None else writable(folder / version).name
        place_loggers(config.trainer.logger, folder, version)

    def instantiate_classes(self) -> None:
        """Make everything; a run that never comes to be leaves no folder."""
        config = self.config[self.subcommand]
        try:
            super().instantiate_classes()
        except BaseException:
            for logger in config.trainer.logger if isinstance(config.trainer.logger, list) else []:
                folder = Path(logger.init_args.save_dir, logger.init_args.name, f"version_{logger.init_args.version}")
                with suppress(OSError):  # it is not empty, or there is none
                    folder.rmdir()
            raise

    def after_instantiate_classes(self) -> None:
        """Tell the method what was set otherwise when the checkpoint was written."""
        config = self.config[self.subcommand]
        run = run_of(config.ckpt_path) if config.ckpt_path else None
        if run is not None:
            trained = yaml.safe_load((run / "config.yaml").read_text())
            self.model.changed_settings = changed_settings(trained.get("model"), config.model.as_dict(), "model")

    def _parse_ckpt_path(self) -> None:
        """Lightning would read the whole checkpoint for hyperparameters, of which our runs save none."""


def is_first_process() -> bool:
    """Whether this is the one process among those of a run that makes folders."""
    return rank_zero_only.rank == 0 and int(os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", 0))) == 0


def check_port(strategy: str) -> None:
    """Refuse to start processes that could not find each other and would wait for half an hour.

    Raises:
        ValueError: the port that ``MASTER_PORT`` names is in use.
    """
    port = os.environ.get("MASTER_PORT", "")
    is_started_by_us = not os.environ.keys() & {"LOCAL_RANK", "RANK", "SLURM_PROCID"}
    if not (port.isdigit() and is_started_by_us and is_first_process() and strategy.startswith(("ddp", "fsdp"))):
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(port)))
        except OSError as error:
            raise ValueError(PORT_IN_USE.format(port)) from error


def new_version(runs: Path) -> int:
    """Make the next folder ``version_<n>`` for a run, and no other process gets the same n.

    Raises:
        ValueError: it cannot be made.
    """
    writable(runs)
    taken = [int(path.name[8:]) for path in runs.glob("version_*") if path.name[8:].isdigit()]
    version = max(taken, default=-1) + 1
    while True:
        try:
            (runs / f"version_{version}").mkdir()
            return version
        except FileExistsError:
            version += 1


def writable(folder: Path) -> Path:
    """The folder, made where it is not there.

    Raises:
        ValueError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{uuid.uuid4().hex}.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"{folder}/ cannot be written to ({error.strerror}); choose another place for runs with --run_root"
        ) from error
    return folder


def changed_settings(trained: Any, given: Any, key: str) -> list[str]:
    """Where two configurations differ, one line a key: what it is now and what it was in training."""
    if isinstance(trained, dict) and isinstance(given, dict):
        names = [name for name in trained if name in given]
        return [line for name in names for line in changed_settings(trained[name], given[name], f"{key}.{name}")]
    return [] if trained == given else [f"{key} is {given}, but was {trained}"]


def place_loggers(loggers: Any, folder: Path, version: str | None) -> None:
    """Send every logger of the config to ``folder`` and there to ``version``, or to the next free one."""
    for logger in loggers if isinstance(loggers, list) else []:
        is_wandb = "name" in logger.init_args and "project" in logger.init_args
        if is_wandb and not logger.init_args.get("offline") and not has_wandb_account():
            raise ValueError(NO_WANDB_ACCOUNT)
        logger.init_args.name = folder.name
        logger.init_args.save_dir = str(folder if is_wandb else folder.parent)
        logger.init_args.version = None if is_wandb else version  # W&B's version is the identity of its run


def has_wandb_account() -> bool:
    """Whether W&B knows where to log to, or need not; without an account it would wait for somebody to type one."""
    if os.environ.get("WANDB_MODE", "online") not in ("online", "shared"):
        return True
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    files = [os.environ.get("NETRC", ""), "~/.netrc", "~/_netrc"]
    path = next((path for path in map(os.path.expanduser, files) if path and os.path.isfile(path)), None)
    return path is not None and netrc.netrc(path).authenticators(host or "") is not None


def newest_checkpoint(folder: Path) -> Path:
    """The last checkpoint of the newest run below a folder; a ``ValueError`` where there is none."""
    found = sorted(folder.glob("**/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ValueError(
            f"no run below {folder}/ has a checkpoint (looked for **/checkpoints/last.ckpt); "
            "run `python main.py fit --config configs/<experiment>.yaml` first or give --ckpt_path"
        )
    return found[-1]


def run_of(checkpoint: str | Path) -> Path | None:
    """The folder of the run that a checkpoint lies in, if it lies in one."""
    folder = Path(checkpoint).parent.parent
    return folder if (folder / "config.yaml").is_file() else None


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
    if args is None:
        sys.argv[1:] = with_config_of_run(sys.argv[1:])
    else:
        args = with_config_of_run(args)
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
