"""The rows of one hash table under AdamW, each brought up to date only when it is read.

A row that was up to date at step s has moments m and v; at a later step j, without a gradient, m_j = b1^(j-s) m,
v_j = b2^(j-s) v and p_j = d_j p_(j-1) - lr_j / (1 - b1^j) m_j / (sqrt(v_j / (1 - b2^j)) + eps), where
d_j = 1 - lr_j weight_decay. With D_j the product of d up to j, G_j = lr_j sqrt(1 - b2^j) / (1 - b1^j) / D_j,
e_j = eps sqrt(1 - b2^j) and q = b1 / sqrt(b2), that is

    p_t = D_t (p_s / D_s - m sum_k q^k G_(s+k) / (sqrt(v) + e_(s+k) b2^(-k/2))),    k = 1 .. t - s.

The sum is cut after K terms. By Cauchy and Schwarz no step is longer than C lr, C = (1 - b1) / sqrt((1 - b2)(1 - q^2)),
so what is cut off is below C lr q^K / (1 - q); K makes that less than the rounding of one learning rate. With AdamW's
defaults it is 200 in float32.

Of the terms' denominators only e_j b2^(-k/2) differs, mostly by a few per cent. Expanded about its weighted mean, the
sum needs four central moments, the same for all rows of one s (:class:`ops.lazy_adamw_history.History`): so a row costs
the same whatever it has missed. Where the remainder may be above rounding, the terms are added up one by one.

The backend ``reference`` always adds up, in plain PyTorch, and is the definition; ``numba`` and ``triton`` do as above.
"""

import importlib
from collections.abc import MutableMapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from ops.hash_grid.backends import Backend, choose_kernels
from ops.lazy_adamw_history import History, Step


class RowKernels(Protocol):
    """What a backend implements; all of it changes tensors in place."""

    def prepare(self, rows: "LazyRows", points: Tensor, active_levels: int, will_learn: bool) -> None:
        """Bring the rows up to date that (N, 3) points read; list them for the next step if they will learn."""

    def step(self, rows: "LazyRows", grad: Tensor, step: Step) -> None:
        """Take the step on listed rows, and strike them off the list."""

    def replay_all(self, rows: "LazyRows") -> None:
        """Bring all rows up to date."""


class LazyRows:
    """Keeps account of a table's rows; it is the table's attribute ``lazy_rows``, where the grid finds it.

    Args:
        table: (E, F), of a :class:`ops.hash_grid.grid.HashGrid`.
        states: the optimizer's state; the table's is looked up at every use, as it may be replaced.
        group: the optimizer's settings for the table.
        backend: as the grid's.

    Attributes:
        stamps: (E,) int32, of each row twice the step of the history at which it was up to date; plus 1 where listed.
        listed: (E,) int32, for each level, from the number of its first row on: rows that the next step changes.
        counts: (L,) int32, how many these are.
    """

    def __init__(
        self,
        table: nn.Parameter,
        states: MutableMapping[Tensor, dict[str, Tensor]],
        group: dict[str, Any],
        backend: Backend,
    ) -> None:
        if (previous := getattr(table, "lazy_rows", None)) is not None:
            previous.flush()
        self.table, self.layout = table, table.grid_layout
        self._states, self._backend = states, backend
        self.stamps = torch.zeros(len(table), dtype=torch.int32, device=table.device)
        self.listed = torch.empty_like(self.stamps)
        self.counts = self.stamps.new_zeros(self.layout.num_levels)
        self.history = self._new_history(group)
        table.lazy_rows = self

    @property
    def weights(self) -> Tensor:
        """(E, F) the table, unseen by autograd: for a reader, a row brought up to date has not changed."""
        return self.table.data

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        """The first and the second, (E, F)."""
        state = self._states[self.table]
        return state["exp_avg"], state["exp_avg_sq"]

    def prepare(self, points: Tensor, active_levels: int) -> None:
        """Bring the rows up to date that (N, 3) points read on the coarsest levels."""
        will_learn = torch.is_grad_enabled() and self.table.requires_grad
        if will_learn or self.history.steps:
            self._allocate()
            with torch.no_grad():
                self._kernels.prepare(self, points.detach(), active_levels, will_learn)

    def step(self, grad: Tensor, group: dict[str, Any]) -> None:
        """AdamW's step, in which rows that were not read take part when they are.

        Raises:
            ValueError: another optimizer has taken over the table, or it was read otherwise than through its grid.
        """
        if self.table.lazy_rows is not self:
            raise ValueError(
                "LazyAdamW: another one was made of the same hash table, and only the newest knows which rows are "
                "read; use that, or make no second"
            )
        if self.history.is_over or (self.history.betas, self.history.eps) != (group["betas"], group["eps"]):
            self.flush()
            self.history = self._new_history(group)
        self._allocate()
        if self.history.steps == 0:
            self._check_listed(grad)
        self._kernels.step(self, grad, self.history.append(float(group["lr"]), group["weight_decay"]))
        self._states[self.table]["step"] += 1
        # a backward pass of before the step would not find what the forward pass has read
        torch.autograd.graph.increment_version(self.table)

    @torch.no_grad()
    def flush(self) -> None:
        """Bring all rows up to date, and begin a new history."""
        if self.history.steps:
            self._kernels.replay_all(self)
            self.stamps &= 1
            self.history.restart()

    def _new_history(self, group: dict[str, Any]) -> History:
        first = int(self._states[self.table].get("step", 0))
        return History(group["betas"], group["eps"], first, self.table.dtype, self.table.device)

    def _allocate(self) -> None:
        state = self._states[self.table]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = (torch.zeros_like(self.table.data) for _ in range(2))

    def _check_listed(self, grad: Tensor) -> None:
        """Look, once a history, whether the gradient is where it should be."""
        unread = ((self.stamps & 1) == 0) & (grad != 0).any(dim=1)
        if unread.any():
            raise ValueError(
                f"LazyAdamW: {int(unread.sum())} rows of the hash table have a gradient, but its grid did not read "
                "them since the last step; read the table through its grid alone, or set optimizer to torch.optim.AdamW"
            )

    @property
    def _kernels(self) -> RowKernels:
        kernels = choose_kernels(self._backend, self.table.device, self.table.dtype)
        name = "reference" if kernels is None else cast(Any, kernels).__name__.rpartition(".")[2].partition("_")[0]
        # where it is used: numba and triton take a second to import
        return cast(RowKernels, importlib.import_module(f"ops.lazy_adamw_{name}"))
