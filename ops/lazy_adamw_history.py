"""What rows have missed: the steps of AdamW since all rows were last up to date, summed up for every row's last step.

Letters, and what they are good for, as in :mod:`ops.lazy_adamw_rows`: b1, b2, D, G, e, q, K; s is the step at which a
row was last up to date, j a later one, both counted from the beginning of the history.
"""

import math
from typing import NamedTuple

import numpy as np
import torch

CAPACITY = 4096
"""Steps of a history; then all rows are brought up to date, which costs about a step of the dense AdamW."""
COLUMNS = 9
"""Of a step j: D_j, G_j, e_j. Of rows last up to date at s: the sum of a_j = q^(j-s) G_j; the mean of
e_j b2^(-(j-s)/2), weighted by a_j; its second to fourth central moments, in powers of the mean; and a bound on what
follows them in the expansion."""
# decays are divided by each other, and beyond this would lose their range in float32
_SMALLEST_DECAY = math.exp(-20)


class Step(NamedTuple):
    """What AdamW's step multiplies with; named as in its formula."""

    decay: float  # 1 - lr weight_decay
    one_minus_beta1: float
    beta2: float
    one_minus_beta2: float
    rate: float  # lr / (1 - b1^t)
    root: float  # sqrt(1 - b2^t)
    eps: float


class History:
    """Steps that were taken.

    Args:
        betas: b1 and b2.
        eps: AdamW's.
        first: steps that were taken before.
        dtype: the table's; betas and decays are rounded to it, as in torch's AdamW.
        device: the table's.

    Attributes:
        steps: how many it holds.
        num_terms: K.
        tolerance: relative error that an expansion may have, the dtype's rounding.
        values: (CAPACITY + 1, COLUMNS), of every step.
        powers: (CAPACITY + 1, 4), of every number k of steps b1^k and b2^k, and up to K q^k and b2^(-k/2).

    Raises:
        ValueError: momentum would outlive the second moment, or the history.
    """

    def __init__(
        self, betas: tuple[float, float], eps: float, first: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.betas, self.eps = betas, eps
        self._first, self._dtype = first, dtype
        self.tolerance = torch.finfo(dtype).eps / 2
        # of m only its part 1 - b1 is written down, of v its part b2
        keep1, keep2 = 1 - self._rounded(1 - betas[0]), self._rounded(betas[1])
        self._q, self._widening = keep1 / math.sqrt(keep2), keep2**-0.5
        self.num_terms = _num_terms(betas, self.tolerance)
        count = np.arange(CAPACITY + 1.0)[:, None]
        bases = np.array([keep1, keep2, self._q, self._widening])
        exponents = np.where([True, True, False, False], count, np.minimum(count, self.num_terms))
        self.powers = torch.from_numpy(bases**exponents).to(device, dtype)
        self.values = torch.empty(CAPACITY + 1, COLUMNS, dtype=dtype, device=device)
        self._decay, self._gain, self._epsilon = np.empty((3, CAPACITY + 1))
        # of the distance of e from its first value, in units of that, whose powers then lose little to rounding
        self._raw_moments = np.empty((CAPACITY + 1, 7))
        self._begin()

    @property
    def is_over(self) -> bool:
        """Whether no further step fits."""
        return self.steps == CAPACITY or self._decay[self.steps] < _SMALLEST_DECAY

    def restart(self) -> None:
        """Begin anew, after all rows have been brought up to date."""
        self._first += self.steps
        self._begin()

    def append(self, lr: float, weight_decay: float) -> Step:
        """Take down one step; return what it multiplies with."""
        self.steps += 1
        last, beta1, beta2 = self.steps, *self.betas
        time = self._first + last
        correction1, root = 1 - beta1**time, math.sqrt(1 - beta2**time)
        decay = 1 - lr * weight_decay
        self._decay[last] = self._decay[last - 1] * self._rounded(decay)
        self._gain[last] = lr * root / correction1 / self._decay[last]
        self._epsilon[last] = self.eps * root
        self._raw_moments[last] = 0

        start = max(last - self.num_terms, 0)
        s = np.arange(start, last)
        missed = last - s
        weight = self._gain[last] * self._q**missed
        distance = self._epsilon[last] * self._widening**missed / self._nearest_epsilon(s) - 1
        self._raw_moments[s] += weight[:, None] * distance[:, None] ** np.arange(7)
        self._write(start)
        return Step(decay, 1 - beta1, beta2, 1 - beta2, lr / correction1, root, self.eps)

    def _begin(self) -> None:
        self.steps, self._decay[0], self._gain[0], self._epsilon[0], self._raw_moments[0] = 0, 1.0, 0.0, self.eps, 0.0
        self._write(0)

    def _write(self, start: int) -> None:
        """Work out the rows from ``start`` on."""
        s = np.arange(start, self.steps + 1)
        raw = self._raw_moments[s]
        # a learning rate of zero moves nothing: then any mean will do
        raw = np.where(raw[:, :1] > 0, raw, np.eye(1, 7)) / np.where(raw[:, :1] > 0, raw[:, :1], 1.0)
        shift = raw[:, 1]
        second, third, fourth, sixth = (_central_moment(raw, n) / (1 + shift) ** n for n in (2, 3, 4, 6))
        # |5th moment| by Cauchy and Schwarz, over the smallest that 1 + (e_j - mean) / (sqrt(v) + mean) can be
        remainder = np.sqrt(np.maximum(fourth, 0) * np.maximum(sixth, 1e-18)) * (1 + shift)
        mean = self._nearest_epsilon(s) * (1 + shift)
        columns = [self._decay[s], self._gain[s], self._epsilon[s], self._raw_moments[s, 0], mean]
        columns = np.stack([*columns, second, third, fourth, remainder], axis=1)
        self.values[start : self.steps + 1] = torch.from_numpy(columns).to(self._dtype)

    def _nearest_epsilon(self, s: np.ndarray) -> np.ndarray:
        """e b2^(-1/2) of the step after s, the smallest of all after it; of the last step, which has none, its own."""
        return self._epsilon[np.minimum(s + 1, self.steps)] * self._widening

    def _rounded(self, number: float) -> float:
        return torch.tensor(number, dtype=self._dtype).item()


def _central_moment(raw: np.ndarray, n: int) -> np.ndarray:
    """The n-th moment about the mean, from (S, 7) moments about another point, each over the zeroth."""
    return sum(math.comb(n, k) * raw[:, k] * (-raw[:, 1]) ** (n - k) for k in range(n + 1))


def _num_terms(betas: tuple[float, float], tolerance: float) -> int:
    beta1, beta2 = betas
    q = beta1 / math.sqrt(beta2)
    if beta1 > 0 and q < 1:
        longest = (1 - beta1) / math.sqrt((1 - beta2) * (1 - q**2))
        num_terms = math.ceil(math.log(tolerance * (1 - q) / longest) / math.log(q))
        if num_terms <= CAPACITY:
            return num_terms
    raise ValueError(
        f"LazyAdamW: betas are ({beta1}, {beta2}), expected 0 < beta1 < sqrt(beta2), and by enough that momentum ends "
        f"within {CAPACITY} steps; choose others or torch.optim.AdamW"
    )
