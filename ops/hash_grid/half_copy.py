"""A half-precision copy of the table, from which features can be read at half the bytes."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook


class HalfCopy:
    """The table rounded to float16, taken again where the table has changed since: in training, once a step.

    A copy costs one pass, which reads 4 bytes and writes 2 a parameter: 2.2 GB for Neuralangelo's 365 M, and 0.7 GB of
    memory. The table may have changed where an optimizer of PyTorch's kind has made a step, or where its version is
    another, which counts all operations on it but those of fused optimizers. What writes past both (through ``.data``,
    or a kernel of one's own outside an optimizer) has to call ``torch.autograd.graph.increment_version(table)``.

    Neither copied nor pickled with the module that holds it, and no part of its ``state_dict``.
    """

    optimizer_steps = 0  # of all optimizers of this process

    def __init__(self) -> None:
        self._copy: Tensor | None = None
        self._table: Any = None
        self._state: tuple[Any, ...] = ()

    def of(self, table: Tensor, dtype: torch.dtype) -> Tensor:
        """The rounded table, kept in ``dtype``: float16, or what is computed in where kernels cannot read that."""
        state = HalfCopy.optimizer_steps, table._version, table.data_ptr(), table.dtype, table.device, dtype
        if self._copy is None or self._table() is not table or state != self._state:
            self._copy = None  # before the next one, so that there is never room for two
            # made in inference mode, it could not be trained on later
            with torch.inference_mode(False), torch.no_grad():
                self._copy = table.to(torch.float16).to(dtype).contiguous()
            self._table, self._state = weakref.ref(table), state
        return self._copy

    def __reduce__(self) -> tuple[type["HalfCopy"], tuple[()]]:
        return HalfCopy, ()


def _count_step(*_: Any) -> None:
    HalfCopy.optimizer_steps += 1


register_optimizer_step_post_hook(_count_step)
