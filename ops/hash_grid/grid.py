"""A learnable multiresolution hash encoding (Müller et al., arXiv:2201.05989) with three interchangeable backends.

``reference`` is plain PyTorch and the definition; ``numba`` is for CPU tensors, ``triton`` for CUDA tensors.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ops.hash_grid import autograd, reference
from ops.hash_grid.autograd import Kernels
from ops.hash_grid.backends import Backend, check_installed, choose_kernels
from ops.hash_grid.half_copy import HalfCopy
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
        precision: ``half`` reads features from a copy rounded to float16, taken once a step (see
            :class:`ops.hash_grid.half_copy.HalfCopy`); the table, all arithmetic and gradients keep their dtype. It
            saves bytes on GPUs; elsewhere the rounded values are kept in the table's dtype, for equal results only.

    Raises:
        ValueError: If a size is out of its range, the precision is unknown, or the backend asked for is not installed.
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
        precision: Literal["full", "half"] = "full",
    ) -> None:
        super().__init__()
        check_installed(backend)
        if precision not in ("full", "half"):
            raise ValueError(f"Hash grid: precision is {precision!r}, expected full or half.")
        self.backend = backend
        self._half_copy = HalfCopy() if precision == "half" else None
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
            points: (..., 3) in the table's dtype, normalised frame.
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
        kernels, values = self._kernels_and_values()
        if kernels is None:
            features = reference.encode(flat, values, self.layout, active_levels)
        else:
            features = autograd.encode(flat, self.table, values, self.layout, active_levels, kernels)
        return features.reshape(*points.shape[:-1], features.shape[-1])

    def encode_stencil(self, points: Tensor, offsets: Tensor, active_levels: int | None = None) -> Tensor:
        """Features of points and of taps around them, those of a tap being of ``points + offset`` in the table's dtype.

        The same as :meth:`forward` of all of them, but corners that a tap shares with its centre are read, and their
        gradients written, once. Differentiable once (the reference: to any order).

        Args:
            points: (..., 3) as in :meth:`forward`.
            offsets: (T, 3) in the table's dtype, from a centre to its taps; T may be 0.
            active_levels: As in :meth:`forward`.

        Returns:
            (..., 1 + T, A), the centre first.

        Raises:
            ValueError: As :meth:`forward`, or if the offsets do not fit.
        """
        active_levels = self._checked_levels(points, active_levels)
        if offsets.dim() != 2:
            raise ValueError(f"Hash grid: offsets have shape {tuple(offsets.shape)}, expected (T, 3).")
        self._check_points(offsets, "offsets")
        flat = points.reshape(-1, 3).contiguous()
        stencil = torch.cat([flat.unsqueeze(1), flat.unsqueeze(1) + offsets], dim=1)  # (N, 1 + T, 3)
        self._bring_up_to_date(stencil.reshape(-1, 3), active_levels)
        kernels, values = self._kernels_and_values()
        if kernels is None:
            features = reference.encode(stencil.reshape(-1, 3), values, self.layout, active_levels)
        else:
            features = autograd.encode_stencil(
                flat, offsets.contiguous(), self.table, values, self.layout, active_levels, kernels
            )
        return features.reshape(*points.shape[:-1], 1 + len(offsets), features.shape[-1])

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
        kernels, values = self._kernels_and_values()
        if kernels is None:
            features, jacobian = reference.encode_with_jacobian(flat, values, self.layout, active_levels)
        else:
            features, jacobian = autograd.encode_with_jacobian(
                flat, self.table, values, self.layout, active_levels, kernels
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
            if self._half_copy is not None:
                raise ValueError(
                    "Hash grid: a lazy optimizer changes rows when they are read, which the copy in half precision "
                    "would not see; set grid_precision to full, or take torch.optim.AdamW"
                )
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

    def _kernels_and_values(self) -> tuple[Kernels | None, Tensor]:
        """Who looks features up, ``None`` for the reference, and in what: the table or its copy in half precision.

        To the reference, which autograd differentiates, the copy's gradient is the table's.
        """
        kernels = choose_kernels(self.backend, self.table.device, self.table.dtype)
        if self._half_copy is None:
            return kernels, self.table.contiguous()
        if kernels is not None and kernels.READS_HALF:
            return kernels, self._half_copy.of(self.table, torch.float16)
        rounded = self._half_copy.of(self.table, self.table.dtype)
        return kernels, rounded if kernels else self.table + (rounded - self.table).detach()

    def _check_points(self, points: Tensor, name: str) -> None:
        if points.shape[-1:] != (3,):
            raise ValueError(f"Hash grid: {name} have shape {tuple(points.shape)}, expected (..., 3).")
        if points.dtype != self.table.dtype or points.device != self.table.device:
            raise ValueError(
                f"Hash grid: {name} are {points.dtype} on {points.device}, but the table is {self.table.dtype} on "
                f"{self.table.device}; convert the {name} or move the module."
            )

    def _checked_levels(self, points: Tensor, active_levels: int | None) -> int:
        """The number of levels to look up, once everything fits."""
        self._check_points(points, "points")
        if active_levels is None:
            return self.layout.num_levels
        if not 1 <= active_levels <= self.layout.num_levels:
            raise ValueError(f"Hash grid: active_levels is {active_levels}, expected 1 to {self.layout.num_levels}.")
        return active_levels
