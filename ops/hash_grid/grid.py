"""A learnable multiresolution hash encoding (Müller et al., arXiv:2201.05989) with three interchangeable backends.

``reference`` is plain PyTorch and the definition; ``numba`` is for CPU tensors, ``triton`` for CUDA tensors.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ops.hash_grid import autograd, reference
from ops.hash_grid.backends import Backend, check_installed, choose_kernels
from ops.hash_grid.layout import grid_layout


class HashGrid(nn.Module):
    """Features of points, interpolated trilinearly in one table of learnt features over many resolutions.

    The defaults are Neuralangelo's: 365.4 M parameters, 1.46 GB in float32.

    Args:
        num_levels: Resolutions, growing geometrically.
        features_per_level: Features of one vertex of one level.
        log2_table_size: Levels with more vertices than two to this power share so many entries through a hash.
        base_resolution: Vertices along an axis of the coarsest level.
        finest_resolution: Vertices along an axis of the finest level.
        bound: The grid covers [-bound, bound]^3, normalised frame; points outside are clamped to it.
        backend: ``auto`` takes triton for CUDA tensors and numba for CPU tensors where they can be imported, otherwise
            the reference, and logs once which; any other is taken as asked for or refused.

    Raises:
        ValueError: If a size is out of its range, or the backend asked for is not installed.
    """

    def __init__(
        self,
        num_levels: int = 16,
        features_per_level: int = 8,
        log2_table_size: int = 22,
        base_resolution: int = 32,
        finest_resolution: int = 2048,
        bound: float = 2.0,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        check_installed(backend)
        self.backend = backend
        self.layout = grid_layout(
            num_levels, features_per_level, log2_table_size, base_resolution, finest_resolution, bound
        )
        # arXiv:2201.05989, Sec. 4: near zero, so that the networks decide at first, yet not all alike
        self.table = nn.Parameter(torch.empty(self.layout.num_entries, features_per_level).uniform_(-1e-4, 1e-4))
        self.table.grid_layout = self.layout  # by which ops.lazy_adamw knows the table

    @property
    def num_output_features(self) -> int:
        """Columns of the encoding with all levels active."""
        return self.layout.num_levels * self.layout.features_per_level

    @property
    def level_resolutions(self) -> list[int]:
        """Vertices along an axis of every level, coarse to fine."""
        return list(self.layout.resolutions)

    def forward(self, points: Tensor, active_levels: int | None = None) -> Tensor:
        """Features of points, differentiable twice (on the reference backend, to any order).

        Args:
            points: (..., 3) in the table's dtype, normalised frame. Centre and taps of one sample belong next to each
                other, (..., 5, 3): mostly they share a cell, whose corners are then in the cache.
            active_levels: Only so many levels, the coarsest, are looked up; all of them where ``None``.

        Returns:
            (..., A) with A = active_levels * features_per_level, level-major.

        Raises:
            ValueError: If the points' shape, dtype or device or the number of levels does not fit, or the backend asked
                for does not run on this device.
        """
        active_levels = self._checked_levels(points, active_levels)
        flat = points.reshape(-1, 3).contiguous()
        self._bring_up_to_date(flat, active_levels)
        kernels = choose_kernels(self.backend, self.table.device, self.table.dtype)
        if kernels is None:
            features = reference.encode(flat, self.table, self.layout, active_levels)
        else:
            features = autograd.encode(flat, self.table.contiguous(), self.layout, active_levels, kernels)
        return features.reshape(*points.shape[:-1], features.shape[-1])

    def encode_with_jacobian(self, points: Tensor, active_levels: int | None = None) -> tuple[Tensor, Tensor]:
        """Features and their first derivatives in one pass, differentiable once (the reference: to any order).

        Within a cell a feature's pure second derivatives are zero.

        Args:
            points: (..., 3) as in :meth:`forward`.
            active_levels: As in :meth:`forward`.

        Returns:
            Features, (..., A), and Jacobian, (..., 3, A), whose [..., a, :] is their derivative by coordinate a, per
            world unit; zero along an axis on which the point was clamped.

        Raises:
            ValueError: As :meth:`forward`.
        """
        active_levels = self._checked_levels(points, active_levels)
        flat = points.reshape(-1, 3).contiguous()
        self._bring_up_to_date(flat, active_levels)
        kernels = choose_kernels(self.backend, self.table.device, self.table.dtype)
        if kernels is None:
            features, jacobian = reference.encode_with_jacobian(flat, self.table, self.layout, active_levels)
        else:
            features, jacobian = autograd.encode_with_jacobian(
                flat, self.table.contiguous(), self.layout, active_levels, kernels
            )
        shape, width = points.shape[:-1], features.shape[-1]
        return features.reshape(*shape, width), jacobian.reshape(*shape, 3, width)

    def extra_repr(self) -> str:
        """Sizes, for ``print(module)``."""
        resolutions = self.layout.resolutions
        return (
            f"levels={len(resolutions)}, features_per_level={self.layout.features_per_level}, "
            f"resolutions={resolutions[0]}..{resolutions[-1]}, entries={self.layout.num_entries}, "
            f"bound={self.layout.bound}, backend={self.backend}"
        )

    def _bring_up_to_date(self, flat: Tensor, active_levels: int) -> None:
        """Before a look-up at (N, 3) points: an optimizer may have left rows behind that nobody read."""
        if (rows := getattr(self.table, "lazy_rows", None)) is not None:
            rows.prepare(flat, active_levels)

    def _flush(self) -> None:
        if (rows := getattr(self.table, "lazy_rows", None)) is not None:
            rows.flush()

    def _save_to_state_dict(self, *args: Any) -> None:
        self._flush()
        super()._save_to_state_dict(*args)

    def _load_from_state_dict(self, *args: Any) -> None:
        self._flush()  # or rows left behind would be moved on from where they are put
        super()._load_from_state_dict(*args)

    def __getstate__(self) -> dict[str, Any]:
        self._flush()
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.table.grid_layout = self.layout

    def _checked_levels(self, points: Tensor, active_levels: int | None) -> int:
        """The number of levels to look up, once everything fits."""
        if points.shape[-1:] != (3,):
            raise ValueError(f"Hash grid: points have shape {tuple(points.shape)}, expected (..., 3).")
        if points.dtype != self.table.dtype or points.device != self.table.device:
            raise ValueError(
                f"Hash grid: points are {points.dtype} on {points.device}, but the table is {self.table.dtype} on "
                f"{self.table.device}; convert the points or move the module."
            )
        if active_levels is None:
            return self.layout.num_levels
        if not 1 <= active_levels <= self.layout.num_levels:
            raise ValueError(f"Hash grid: active_levels is {active_levels}, expected 1 to {self.layout.num_levels}.")
        return active_levels
