"""Windows into a run beside its CSV log: TensorBoard, and Weights & Biases, never a reason for a run to stop."""

import netrc
import os
import sys
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import pytorch_lightning.loggers
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities.rank_zero import rank_zero_warn


class WandbLogger(pytorch_lightning.loggers.WandbLogger):
    """A W&B run for every command, named after its folder; fits, resumed fits and tests of one name are one group.

    A resumed fit is a run of its own, like its folder: W&B cannot take steps back that a checkpoint lies behind, and
    offline it cannot go on with a run at all. The group and the step as x-axis draw them as one line.

    Without an account or a network the run goes on offline and says what to type later.

    Args:
        mode: online, offline (``wandb sync`` sends it later) or off. The environment variable WANDB_MODE wins over
            online.
        project: the project at W&B.
        entity: user or team; null is the account's own.
        upload_checkpoint: keep the last checkpoint at W&B, as an artifact.
        tags: beside the names of the method and of the dataset.
        name: of the run; main.py and the folder set it.
        save_dir: where W&B's own files lie; the folder of the run.
        version: identity of an earlier W&B run that is to go on instead.
    """

    def __init__(
        self,
        mode: Literal["online", "offline", "off"] = "online",
        project: str = "bottega",
        entity: str | None = None,
        upload_checkpoint: bool = False,
        tags: list[str] | None = None,
        name: str | None = None,
        save_dir: str | None = None,
        version: str | None = None,
    ) -> None:
        # Lightning's own `offline` would change WANDB_MODE for all of the process, and forbids artifacts
        modes = {"online": {}, "offline": {"mode": "offline"}, "off": {"mode": "disabled"}}
        super().__init__(
            name=name, save_dir=save_dir or ".", version=version, project=project, log_model=upload_checkpoint,
            entity=entity, tags=list(tags or ()), **modes[mode],
        )  # fmt: skip
        del self._wandb_init["anonymous"]  # W&B warns of it, even where it is not set

    def place(self, folder: Path, command: str, tags: list[str]) -> None:
        """Name the run after the folder of its results, before it begins.

        Args:
            folder: ``…/<run_name>/version_<n>``, or a folder in it.
            command: fit, validate, test or predict; the job type.
            tags: names of the method and of the dataset.
        """
        if self._experiment is not None:
            return
        versions = [k for k, part in enumerate(folder.parts) if part.startswith("version_") and k > 0]
        first = versions[-1] - 1 if versions else len(folder.parts) - 1
        known = self._wandb_init
        known |= {"name": "/".join(folder.parts[first:]), "group": folder.parts[first], "job_type": command}
        known |= {"dir": str(folder), "tags": [*tags, *known["tags"]]}
        self._save_dir = str(folder)

    @property
    def address(self) -> str:
        """Where the run is to be looked at: its page, or the command that makes one of it."""
        run = self.experiment
        if run.disabled:
            return "W&B is off"
        return f"wandb sync {os.path.relpath(Path(run.dir).parent)}" if run.offline else run.url

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, which begins when it is first asked for."""
        if self._experiment is None:
            import wandb  # takes seconds, so only where it is used

            Path(self._wandb_init["dir"]).mkdir(parents=True, exist_ok=True)
            # a terminal's bar, redrawn four times a second, is no log; what W&B says of itself, callbacks.summary says
            console = "off" if sys.stdout.isatty() else "auto"
            offline = "offline" in (self._wandb_init.get("mode"), os.environ.get("WANDB_MODE"))
            self._wandb_init["settings"] = wandb.Settings(quiet=True, silent=offline, console=console)
            if not offline and self._wandb_init.get("mode") is None and not has_account():
                # W&B would ask, and wait for somebody to type an answer
                self._go_offline("there is no account here")
            try:
                return super().experiment
            except (wandb.errors.UsageError, wandb.errors.CommError) as error:
                self._go_offline(str(error).splitlines()[0])
        return super().experiment

    def _go_offline(self, reason: str) -> None:
        rank_zero_warn(
            f"W&B is not reached ({reason}); this run goes on offline, `wandb sync` sends it later. "
            "`wandb login` gives a key, WANDB_MODE=offline makes no attempt"
        )
        self._wandb_init["mode"] = "offline"

    def finalize(self, status: str) -> None:
        """Hand over the checkpoint and end the W&B run, so that a later command of this process has one of its own."""
        super().finalize(status)
        if self._experiment is not None:
            self._experiment.finish(exit_code=0 if status == "success" else 1)


class TensorBoardLogger(pytorch_lightning.loggers.TensorBoardLogger):
    """Scalars, panels and the configuration for TensorBoard, in the folder of the run.

    Args:
        save_dir: where there is no folder of a run.
        name: of a folder in it; main.py sets it.
        version: of a folder in that.
    """

    def __init__(self, save_dir: str = ".", name: str | None = None, version: int | str | None = None) -> None:
        super().__init__(save_dir=save_dir, name=name or "", version=version, default_hp_metric=False)

    def place(self, folder: Path, command: str, tags: list[str]) -> None:
        """Let the events lie in the folder of the results, whichever number Lightning would have given them."""
        self._root_dir, self._name, self._version = str(folder.parent), "", folder.name


def has_account() -> bool:
    """Whether W&B knows where to log to, or need not; without an account it would wait for somebody to type one."""
    if os.environ.get("WANDB_MODE", "online") not in ("online", "shared"):
        return True
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    files = [os.environ.get("NETRC", ""), "~/.netrc", "~/_netrc"]
    path = next((path for path in map(os.path.expanduser, files) if path and os.path.isfile(path)), None)
    return path is not None and netrc.netrc(path).authenticators(host or "") is not None
