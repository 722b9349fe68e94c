"""The guard against runs that go on with numbers that are none."""

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.results import gathered

MAX_NAMED = 5


@dataclass(frozen=True)
class Step:
    """What is kept of a step until its loss has been looked at.

    Attributes:
        number: optimizer steps taken when it ended.
        terms: what its loss is made of, or everything that was logged in it, and the loss.
        batch: names and indices of what it was trained on.
    """

    number: int
    terms: dict[str, Tensor]
    batch: dict[str, Any]


class StopAtNonFinite(Callback):
    """Stops the run where a loss is NaN or infinite, and lets no checkpoint with such weights be written.

    On a GPU a look at a loss waits for the step to end, so the losses of several steps are looked at together; the step
    is named all the same. Before a checkpoint all losses and weights are looked at, which costs one pass over them.

    Args:
        every_n_steps: steps whose losses are looked at together on a GPU or with several processes; else it is one.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}, expected at least 1 step")
        self.every_n_steps = every_n_steps
        self._steps: deque[Step] = deque()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if not isinstance(loss, Tensor):
            return
        logged = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("train/")}
        terms = getattr(pl_module, "terms", None) or logged
        terms = {**terms, "the loss": loss.detach()}
        names = {key: batch[key] for key in ("object_id", "image_index") if isinstance(batch, dict) and key in batch}
        self._steps.append(Step(trainer.global_step, terms, names))
        if self._is_waiting_free(trainer, pl_module) or len(self._steps) >= self.every_n_steps:
            self._look(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to save what is not finite.

        Raises:
            ValueError: on every rank; a loss or a weight is not finite.
        """
        self._look(trainer)
        weights = [(name, weight) for name, weight in pl_module.named_parameters() if weight.is_floating_point()]
        is_good = _are_finite([weight for _, weight in weights])
        bad = [name for (name, _), good in zip(weights, is_good, strict=True) if not good]
        if bad := max(gathered(bad), key=len):
            raise ValueError(
                f"step {trainer.global_step}: weights are not finite ({_some(bad)}), although the loss is; a gradient "
                f"or the optimizer overflowed; {_remedy(trainer)}"
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look(trainer)

    @staticmethod
    def _is_waiting_free(trainer: Trainer, pl_module: LightningModule) -> bool:
        return pl_module.device.type == "cpu" and trainer.world_size == 1

    def _look(self, trainer: Trainer) -> None:
        steps, self._steps = list(self._steps), deque()
        # one wait for all of them
        is_good = _are_finite([step.terms["the loss"] for step in steps])
        bad = [step for step, good in zip(steps, is_good, strict=True) if not good]
        if trainer.world_size == 1 and not bad:
            return
        messages = gathered(_message(trainer, bad[0]) if bad else None)
        found = [(rank, message) for rank, message in enumerate(messages) if message is not None]
        if found:
            rank, message = found[0]
            where = f" (on rank {rank})" if trainer.world_size > 1 else ""
            raise ValueError(f"{message}{where}; {_remedy(trainer)}")


def _are_finite(values: list[Tensor]) -> list[bool]:
    return torch.stack([value.detach().isfinite().all() for value in values]).tolist() if values else []


def _message(trainer: Trainer, step: Step) -> str:
    terms = {name: value for name, value in step.terms.items() if not bool(torch.isfinite(value).all())}
    words = ", ".join(f"{name} is {value.item():g}" for name, value in terms.items())
    return f"step {step.number}: {words}; the batch was {_batch_words(trainer, step.batch)}"


def _batch_words(trainer: Trainer, batch: dict[str, Any]) -> str:
    if "object_id" in batch:
        return _some(list(batch["object_id"]))
    if "image_index" not in batch:
        return "of unnamed objects"
    scene = getattr(trainer.datamodule, "scene", None)
    names, indices = getattr(scene, "image_names", None), batch["image_index"].unique().tolist()
    of_scene = f" of {scene.name}" if hasattr(scene, "name") else ""
    return f"rays{of_scene} from {_some([names[i] if names else f'photograph {i}' for i in indices])}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def _remedy(trainer: Trainer) -> str:
    checkpoint = getattr(trainer.checkpoint_callback, "last_model_path", "") or trainer.ckpt_path
    kept = f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint had been written yet"
    return f"{kept}. A lower learning rate, trainer.gradient_clip_val or full precision may help"
