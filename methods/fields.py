"""Networks over points in space that more than one surface method is made of.

Letters: H hidden features; A features of the awake levels of a hash grid; C channels.
"""

import math
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from ops.derivatives import derivatives_from_taps, tap_offsets
from ops.encodings import fourier_encoding, inverted_sphere
from ops.hash_grid.grid import HashGrid
from ops.rays import points_along
from ops.rendering import alpha_from_density, composite_sections
from ops.sampling import stratified_distances
from ops.softplus import softplus, softplus_jet


class SDFNetwork(nn.Module):
    """Signed distance and a feature vector for every point; starts as a sphere.

    Under autocast only the feature is in low precision: distances at taps a quarter of a cell apart differ by less than
    bfloat16 resolves.

    Args:
        grid: encoding of the points.
        hidden_size: H, width of the hidden and of the feature layer.
        inside_out: positive inside the initial sphere, for rooms.
        initial_radius: of that sphere, normalised unit.
    """

    def __init__(self, grid: HashGrid, hidden_size: int, inside_out: bool, initial_radius: float = 0.5) -> None:
        super().__init__()
        self.grid = grid
        hidden = nn.Linear(3 + grid.num_output_features, hidden_size)
        feature = nn.Linear(hidden_size, hidden_size)
        self.sdf = nn.Linear(hidden_size, 1)
        for layer in (hidden, feature):
            nn.init.normal_(layer.weight, std=math.sqrt(2 / hidden_size))
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(hidden.weight[:, 3:])  # a function of the bare point at first, whatever the table holds
        # softplus layers of these weights average to |x|: SAL (arXiv:1911.10414), Theorem 1
        nn.init.normal_(self.sdf.weight, mean=math.sqrt(math.pi / hidden_size), std=1e-4)
        nn.init.constant_(self.sdf.bias, -initial_radius)
        if inside_out:
            self.sdf.weight.data.neg_()
            self.sdf.bias.data.neg_()
        self.hidden, self.feature = weight_norm(hidden), weight_norm(feature)

    def forward(self, points: Tensor, active_levels: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """(..., 3) points -> (...) signed distances; a lower ``dtype`` than the points' is for placing samples."""
        # no cache: training would find weights in it that were cast without a gradient
        with torch.autocast(points.device.type, dtype, enabled=dtype.itemsize < 4, cache_enabled=False):
            return self._sdf(self._hidden(points, self.grid(points, active_levels)))

    def with_numerical_derivatives(
        self, points: Tensor, active_levels: int, num_taps: int, epsilon: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """sdf (...), gradient (..., 3), Laplacian (...), feature (..., H); centre and taps go through in one call."""
        with _full_precision(points):
            offsets = tap_offsets(num_taps, epsilon, like=points)
            encoded = self.grid.encode_stencil(points, offsets, active_levels)
            # apart from here on: to select the centre among hidden units would cost all of them a gradient of zeros
            center, taps = encoded.split([1, num_taps], dim=-2)  # (..., 1, A), (..., T, A)
            hidden = self._hidden(points, center.squeeze(-2))  # (..., H)
            sdf = self._sdf(hidden)
            tap_sdf = self._sdf(self._hidden(points[..., None, :] + offsets, taps))  # (..., T)
            gradient, laplacian = derivatives_from_taps(sdf, tap_sdf, epsilon)
        return sdf, gradient, laplacian, self._feature(hidden)

    def with_analytic_derivatives(self, points: Tensor, active_levels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same by carrying first and second derivatives forward through the layers; exact inside a cell.

        A trilinear interpolant has no second derivative along an axis, so the Laplacian comes from the softplus alone.
        """
        with _full_precision(points):
            encoded, jacobian = self.grid.encode_with_jacobian(points, active_levels)  # (..., A), (..., 3, A)
            weight = self.hidden.weight[:, : 3 + encoded.shape[-1]]
            affine = torch.cat([self.hidden.bias[None], weight[:, :3].T])
            # rows: the encoding, and its derivatives along x, y and z
            rows = torch.cat([encoded[..., None, :], jacobian], dim=-2)  # (..., 4, A)
            shape, size = points.shape[:-1], len(weight)
            # sizes in full: of no points at all, -1 says nothing
            jet = F.linear(rows, weight[:, 3:]).view(shape.numel(), 4, size)
            flat = points.view(shape.numel(), 3)
            value, gradient, laplacian, hidden = softplus_jet(jet, flat, affine, self.sdf.weight[0], beta=100)
            sdf = (value + self.sdf.bias).view(shape)
        return sdf, gradient.view(*shape, 3), laplacian.view(shape), self._feature(hidden.view(*shape, size))

    def _hidden(self, points: Tensor, encoded: Tensor) -> Tensor:
        """(..., 3) points and their encoding (..., A) -> (..., H)."""
        rows = torch.cat([points, encoded], dim=-1)
        # sleeping levels have no column in the input, so theirs in the weight are left out too
        return softplus(F.linear(rows, self.hidden.weight[:, : rows.shape[-1]], self.hidden.bias), beta=100)

    def _sdf(self, hidden: Tensor) -> Tensor:
        # matrix times vector: the gradient of a layer one wide is a matrix product that BLAS is slow at
        return hidden @ self.sdf.weight[0] + self.sdf.bias

    def _feature(self, hidden: Tensor) -> Tensor:
        return softplus(self.feature(hidden), beta=100)


def _full_precision(points: Tensor) -> AbstractContextManager[Any]:
    return torch.autocast(points.device.type, enabled=False)


class ColorNetwork(nn.Module):
    """Colour of a surface point from its position, viewing direction, normal, feature and photograph (IDR's form)."""

    def __init__(self, feature_size: int, hidden_size: int, num_layers: int, appearance_size: int) -> None:
        super().__init__()
        sizes = [3 + 16 + 3 + feature_size + appearance_size, *[hidden_size] * num_layers]
        self.layers = nn.ModuleList(weight_norm(nn.Linear(i, o)) for i, o in pairwise(sizes))
        self.rgb = weight_norm(nn.Linear(sizes[-1], 3))

    def forward(self, points: Tensor, harmonics: Tensor, normals: Tensor, feature: Tensor, code: Tensor) -> Tensor:
        """All (..., C) with C = 3, 16, 3, H and the code's size -> (..., 3) sRGB."""
        first, *others = self.layers
        # to a multiple of 16: BLAS libraries take twice as long for the 86 channels as for 96
        padding = -first.in_features % 16
        x = torch.cat(
            [points, harmonics, normals, feature, code, points.new_zeros(*points.shape[:-1], padding)], dim=-1
        )
        x = F.relu(F.linear(x, F.pad(first.weight, (0, padding)), first.bias))
        for layer in others:
            x = F.relu(layer(x))
        return self.rgb(x).sigmoid()


class BackgroundNetwork(nn.Module):
    """NeRF++ (arXiv:2010.07492): density and colour outside the unit sphere, in inverted coordinates."""

    num_frequencies = 10
    skip = 4

    def __init__(self, hidden_size: int, num_layers: int, appearance_size: int) -> None:
        super().__init__()
        size = 4 + 8 * self.num_frequencies
        widths = [size, *[hidden_size] * (num_layers - 1)]
        widths[min(self.skip, num_layers - 1)] += size if num_layers > self.skip else 0
        self.layers = nn.ModuleList(nn.Linear(width, hidden_size) for width in widths)
        self.density = nn.Linear(hidden_size, 1)
        self.feature = nn.Linear(hidden_size, hidden_size)
        self.rgb = nn.Sequential(
            nn.Linear(hidden_size + 16 + appearance_size, hidden_size // 2), nn.ReLU(), nn.Linear(hidden_size // 2, 3)
        )

    def forward(self, points: Tensor, harmonics: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        """(..., 3) points outside the sphere -> (...) density, (..., 3) sRGB."""
        encoded = x = fourier_encoding(inverted_sphere(points), self.num_frequencies)
        for i, layer in enumerate(self.layers):
            x = F.relu(layer(torch.cat([x, encoded], dim=-1) if i == self.skip else x))
        density = F.softplus(self.density(x)).squeeze(-1)
        return density, self.rgb(torch.cat([self.feature(x), harmonics, code], dim=-1)).sigmoid()

    def colors_behind(
        self,
        origins: Tensor,
        directions: Tensor,
        far: Tensor,
        harmonics: Tensor,
        code: Tensor,
        num_samples: int,
        generator: torch.Generator | None,
    ) -> Tensor:
        """(R, 3) colours of what is behind the unit sphere, which rays leave at (R,) distances ``far``."""
        ones = torch.ones_like(far)
        inverse = stratified_distances(0 * ones, ones, num_samples, generator).flip(-1)
        distances = far[:, None] / (inverse + 1e-5)
        points = points_along(origins, directions, distances)
        density, colors = self(points, *(x[:, None].expand(-1, num_samples, -1) for x in (harmonics, code)))
        lengths = F.pad(distances.diff(dim=-1), (0, 1), value=1e10)
        return composite_sections(alpha_from_density(density, lengths), colors)[0]
