"""Rows brought up to date in plain PyTorch, term by term: the definition that the fast backends are compared with."""

import torch
from torch import Tensor

from ops.hash_grid import reference
from ops.lazy_adamw_history import Step
from ops.lazy_adamw_rows import LazyRows


def prepare(rows: LazyRows, points: Tensor, active_levels: int, will_learn: bool) -> None:
    """See :class:`ops.lazy_adamw_rows.RowKernels`; the list is the stamps themselves."""
    # what the definition of the encoding reads, from a table of the rows' own numbers
    numbers = torch.arange(len(rows.table), device=points.device).unsqueeze(1)
    corners = reference._corners(points, numbers, rows.layout, active_levels)
    read = torch.cat([values.flatten() for values, _, _ in corners]).unique()
    _replay(rows, read)
    if will_learn:
        rows.stamps[read] |= 1


def step(rows: LazyRows, grad: Tensor, step: Step) -> None:
    """See :class:`ops.lazy_adamw_rows.RowKernels`."""
    listed = (rows.stamps & 1).nonzero().squeeze(1)
    first, second = (moment[listed] for moment in rows.moments)
    gradient = grad[listed]
    first.lerp_(gradient, step.one_minus_beta1)
    second.mul_(step.beta2).addcmul_(gradient, gradient, value=step.one_minus_beta2)
    denominator = second.sqrt() / step.root + step.eps
    weights = (rows.weights[listed] * step.decay).addcdiv_(first, denominator, value=-step.rate)
    _write(rows, listed, weights, first, second)
    rows.stamps[listed] = 2 * rows.history.steps


def replay_all(rows: LazyRows) -> None:
    """See :class:`ops.lazy_adamw_rows.RowKernels`."""
    _replay(rows, torch.arange(len(rows.table), device=rows.table.device))


def _replay(rows: LazyRows, read: Tensor) -> None:
    history, now = rows.history, rows.history.steps
    read = read[rows.stamps[read] >> 1 < now]
    if not len(read):
        return
    before = (rows.stamps[read] >> 1).long()
    missed = now - before
    weights, (first, second) = rows.weights[read], (moment[read] for moment in rows.moments)
    decay, gain, epsilon = history.values[:, :3].unbind(1)
    total, root = torch.zeros_like(weights), second.sqrt()
    for k in range(1, min(history.num_terms, int(missed.max())) + 1):
        j = (before + k).clamp(max=now)
        power, widening = history.powers[k, 2:]
        term = (power * gain[j])[:, None] / (root + (epsilon[j] * widening)[:, None])
        total += torch.where((k <= missed)[:, None], term, 0)
    weights = decay[now] * (weights / decay[before][:, None] - first * total)
    power1, power2 = history.powers[missed, :2, None].unbind(1)
    _write(rows, read, weights, first * power1, second * power2)
    rows.stamps[read] = 2 * now + (rows.stamps[read] & 1)


def _write(rows: LazyRows, at: Tensor, weights: Tensor, first: Tensor, second: Tensor) -> None:
    rows.weights[at] = weights
    for moment, values in zip(rows.moments, (first, second), strict=True):
        moment[at] = values
