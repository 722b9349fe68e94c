"""AdamW that touches only those rows of a hash grid's table that a step reads, and yet equals the dense one.

Without a gradient a row of ``torch.optim.AdamW`` still moves: its moments shrink, its weights decay, and what is left
of its momentum carries it on. Here a row is left alone until it is read; then all that it missed is made up for at
once, so that whoever reads a row through its grid sees what the dense optimizer would have made of it, to rounding.
:mod:`ops.lazy_adamw_rows` says how.

A table is known by the layout that :class:`ops.hash_grid.grid.HashGrid` writes on it; all other parameters are AdamW's.
State and its names are those of AdamW, so that checkpoints go from one to the other and back.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ops.hash_grid.backends import Backend
from ops.lazy_adamw_rows import LazyRows


class LazyAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter, arXiv:1711.05101) whose hash tables are brought up to date where they are read.

    A table must be read through its grid alone, or after :meth:`flush`; ``state_dict`` of grid and optimizer, and
    copies of the grid, do that by themselves.

    Args:
        params: parameters, or groups of them.
        lr: learning rate; may change with every step.
        betas: decay of the two moments; the first must be below the root of the second.
        eps: added to the root of the second moment.
        weight_decay: part of a weight that a step at learning rate 1 would take away.
        fused: whether parameters that are no tables take torch's fused kernels.
        backend: kernels of the tables' rows, as those of :class:`ops.hash_grid.grid.HashGrid`.

    Raises:
        ValueError: a setting is out of its range, or several processes train together.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        fused: bool | None = None,
        backend: Backend = "auto",
    ) -> None:
        self.backend: Backend = backend
        self._rows: dict[nn.Parameter, LazyRows] = {}
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused)
        # else a GradScaler would leave it to us to divide by the scale
        self._step_supports_amp_scaling = False

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; tables among the parameters are taken into care."""
        super().add_param_group(param_group)
        self._adopt(self.param_groups[-1])

    def flush(self) -> None:
        """Bring all rows of all tables up to date; costs about a step of the dense optimizer."""
        for rows in self._rows.values():
            rows.flush()

    def state_dict(self) -> dict[str, Any]:
        """The state of a dense AdamW."""
        self.flush()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of this or of the dense AdamW; the tables' values are left as they are."""
        self.flush()
        super().load_state_dict(state_dict)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # also after a copy, which brings nothing but state and groups
        self.backend = getattr(self, "backend", "auto")
        self._rows = {}
        for group in self.param_groups:
            self._adopt(group)

    def _adopt(self, group: dict[str, Any]) -> None:
        for parameter in group["params"]:
            if hasattr(parameter, "grid_layout"):
                _check(group)
                self._rows[parameter] = LazyRows(parameter, self.state, group, self.backend)

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> bool:
        """Step the tables of a group, and let torch list the others, whose step follows."""
        others = []
        for parameter in group["params"]:
            rows = self._rows.get(parameter)
            if rows is None:
                others.append(parameter)
            elif parameter.grad is not None:
                _check(group)
                rows.step(parameter.grad, group)
        return super()._init_group(group | {"params": others}, *lists)


def _check(group: dict[str, Any]) -> None:
    if group["amsgrad"] or group["maximize"]:
        raise ValueError(
            "LazyAdamW: amsgrad or maximize is set in the state that was loaded, and has no lazy form; set optimizer "
            "to torch.optim.AdamW"
        )
    lr, weight_decay = float(group["lr"]), group["weight_decay"]
    if group["eps"] <= 0:
        raise ValueError(f"LazyAdamW: eps is {group['eps']}, expected a positive number; 1e-15 is as good as none")
    if lr * weight_decay >= 1:
        raise ValueError(
            f"LazyAdamW: lr {lr} times weight_decay {weight_decay} is {lr * weight_decay}, expected less than 1; a "
            "step would take all of a weight away"
        )
    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if is_distributed and (num_processes := torch.distributed.get_world_size()) > 1:
        raise ValueError(
            f"LazyAdamW: {num_processes} processes train together, and it knows only the rows that its own has read; "
            "set optimizer to torch.optim.AdamW, or train in one process"
        )
