"""Compiled loops of :mod:`ops.rendering`, :mod:`ops.sampling` and :mod:`ops.sdf_grid` for float32 tensors on a CPU.

The loops over the samples of a ray that cost most are written without a branch, so that the compiler turns them into
vector instructions, and bring their own exponential. Machine code is cached beside this file.
"""

from collections.abc import Callable

import numpy as np
import torch
from numba import njit
from torch import Tensor

from ops.threads import for_ranges

# samples that are worth waking a thread for
_MIN_SAMPLES = 16384
_ZERO, _HALF, _ONE, _FLOOR = np.float32(0), np.float32(0.5), np.float32(1), np.float32(1e-5)
# below, the exponential is no longer a normal number
_LOWEST = np.float32(-87)
_LOG2_E = np.float32(1 / np.log(2))
# log 2 in two parts, the first with so few digits that its products with whole numbers are exact
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(np.log(2) - 0.693359375)
# a float32 this large has no digits behind the point, and its last bits count: adding it rounds to a whole number
_ROUNDER = np.float32(1.5 * 2**23)
_ROUNDER_BITS = np.int32(_ROUNDER.view(np.int32))
_BIAS, _MANTISSA_BITS = np.int32(127), np.int32(23)
# a product of transmittances that falls below this goes into the sum of logarithms before it underflows
_SMALL = 1e-200
# the harmless part of "fast": NaN and infinity stay what they are
_OPTIONS = {"nogil": True, "cache": True, "error_model": "numpy", "fastmath": {"contract", "nsz"}}

_fitted = np.polynomial.Chebyshev.interpolate(np.exp, 6, domain=[-np.log(2) / 2, np.log(2) / 2])
_E0, _E1, _E2, _E3, _E4, _E5, _E6 = (np.float32(c) for c in _fitted.convert(kind=np.polynomial.Polynomial).coef)


@njit(inline="always")
def _exp_of_minus_abs(x):
    t = -abs(x)
    t = _LOWEST if t < _LOWEST else t  # a NaN is not less
    shifted = t * _LOG2_E + _ROUNDER
    n = shifted - _ROUNDER
    r = (t - n * _LN2_HIGH) - n * _LN2_LOW
    p = _E0 + r * (_E1 + r * (_E2 + r * (_E3 + r * (_E4 + r * (_E5 + r * _E6)))))
    exponent = np.int32(np.int32(np.float32(shifted).view(np.int32) - _ROUNDER_BITS) + _BIAS)
    return p * np.int32(exponent << _MANTISSA_BITS).view(np.float32)


@njit(inline="always")
def _sigmoid(x):
    e = _exp_of_minus_abs(x)
    return (e if x < _ZERO else _ONE) / (_ONE + e)


@njit(inline="always")
def _half_drop(cosine, length, half_open):
    # half_open: share of the opacity that back-facing surfaces keep, one minus the annealing's ratio
    ajar, front = _HALF - _HALF * cosine, -cosine
    ajar = _ZERO if ajar < _ZERO else ajar
    front = _ZERO if front < _ZERO else front
    return -_HALF * length * (ajar * half_open + front * (_ONE - half_open))


@njit(**_OPTIONS)
def _alpha(sdf, gradient, directions, lengths, inv_s, half_open, alpha):
    """sdf, lengths, alpha (n, S); gradient (n, S, 3); directions (n, 3)."""
    for n in range(len(sdf)):
        dx, dy, dz = directions[n, 0], directions[n, 1], directions[n, 2]
        values, gradients, sizes, out = sdf[n], gradient[n], lengths[n], alpha[n]
        for i in range(values.size):
            out[i] = gradients[i, 0] * dx + gradients[i, 1] * dy + gradients[i, 2] * dz
        for i in range(values.size):
            drop = _half_drop(out[i], sizes[i], half_open)
            entering, leaving = _sigmoid((values[i] - drop) * inv_s), _sigmoid((values[i] + drop) * inv_s)
            a = (entering - leaving) / (entering + _FLOOR)
            out[i] = _ZERO if a < _ZERO else (_ONE if a > _ONE else a)


@njit(**_OPTIONS)
def _alpha_backward(grad, sdf, gradient, directions, lengths, inv_s, half_open, grad_sdf, grad_gradient, grad_inv_s):
    """As above, with the gradients of each, that by inv_s as (n,) float64 sums."""
    scratch = np.empty((3, sdf.shape[1]), np.float32)
    cosines, by_cosine, by_inv_s = scratch[0], scratch[1], scratch[2]
    for n in range(len(sdf)):
        dx, dy, dz = directions[n, 0], directions[n, 1], directions[n, 2]
        values, gradients, sizes, grads, out = sdf[n], gradient[n], lengths[n], grad[n], grad_sdf[n]
        for i in range(values.size):
            cosines[i] = gradients[i, 0] * dx + gradients[i, 1] * dy + gradients[i, 2] * dz
        for i in range(values.size):
            cosine = cosines[i]
            drop = _half_drop(cosine, sizes[i], half_open)
            entering, leaving = _sigmoid((values[i] - drop) * inv_s), _sigmoid((values[i] + drop) * inv_s)
            inverse = _ONE / (entering + _FLOOR)
            a = (entering - leaving) * inverse
            g = grads[i] if a >= _ZERO and a <= _ONE else _ZERO
            by_entering = g * (leaving + _FLOOR) * inverse * inverse * entering * (_ONE - entering)
            by_leaving = -g * inverse * leaving * (_ONE - leaving)
            out[i] = inv_s * (by_entering + by_leaving)
            by_inv_s[i] = by_entering * (values[i] - drop) + by_leaving * (values[i] + drop)
            opening = (_HALF * half_open if cosine < _ONE else _ZERO) + (_ONE - half_open if cosine < _ZERO else _ZERO)
            by_cosine[i] = inv_s * (by_leaving - by_entering) * _HALF * sizes[i] * opening
        for i in range(values.size):
            grad_gradient[n, i, 0] = by_cosine[i] * dx
            grad_gradient[n, i, 1] = by_cosine[i] * dy
            grad_gradient[n, i, 2] = by_cosine[i] * dz
        total = 0.0
        for i in range(values.size):
            total += by_inv_s[i]
        grad_inv_s[n] = total


@njit(**_OPTIONS)
def _composite(alpha, values, pixels, log_transmittance):
    """alpha (n, S), values (n, S, C) -> pixels (n, C), log_transmittance (n,)."""
    for n in range(len(alpha)):
        light, product, logarithm = _ONE, 1.0, 0.0
        pixel = pixels[n]
        pixel[:] = _ZERO
        for i in range(alpha.shape[1]):
            a = alpha[n, i]
            weight = light * a
            for c in range(pixel.size):
                pixel[c] += weight * values[n, i, c]
            light *= _ONE - a
            # in float64 the product keeps the digits of small opacities, and one logarithm a ray is enough
            product *= 1.0 - np.float64(a)
            if product < _SMALL:
                logarithm += np.log(product)
                product = 1.0
        log_transmittance[n] = logarithm + np.log(product)


@njit(**_OPTIONS)
def _composite_backward(alpha, values, grad_pixels, grad_log, grad_alpha, grad_values):
    """The gradients of both; nothing is divided by a transmittance, which may be 0."""
    for n in range(len(alpha)):
        light, pixel = _ONE, grad_pixels[n]
        lights = grad_alpha[n]
        for i in range(lights.size):
            lights[i] = light
            light *= _ONE - alpha[n, i]
        behind = _ZERO  # what the gradient makes of all that is farther away
        for i in range(lights.size - 1, -1, -1):
            a, light, here = alpha[n, i], lights[i], _ZERO
            for c in range(pixel.size):
                here += pixel[c] * values[n, i, c]
            weight = light * a
            for c in range(pixel.size):
                grad_values[n, i, c] = weight * pixel[c]
            # zero even where a section is opaque and the logarithm has no derivative
            by_log = grad_log[n] / (_ONE - a) if grad_log[n] != _ZERO else _ZERO
            grad_alpha[n, i] = light * (here - behind) - by_log
            behind = a * here + (_ONE - a) * behind


@njit(inline="always")
def _cell(coordinate, last, last_cell):
    position = (coordinate + _ONE) * (_HALF * last)
    # a NaN is not greater, and may not become an index
    position = position if position > _ZERO else _ZERO
    position = last if position > last else position
    cell = min(int(position), last_cell)
    return cell, position - np.float32(cell)


@njit(**_OPTIONS)
def _interpolate_along(origins, directions, distances, sdf, lattice):
    """Trilinear values of a lattice (G, G, G) over [-1, 1]^3, indexed [z, y, x], clamped to it: (n, P)."""
    last, last_cell = np.float32(len(lattice) - 1), len(lattice) - 2
    for n in range(len(distances)):
        for p in range(distances.shape[1]):
            t = distances[n, p]
            i, x = _cell(origins[n, 0] + directions[n, 0] * t, last, last_cell)
            j, y = _cell(origins[n, 1] + directions[n, 1] * t, last, last_cell)
            k, z = _cell(origins[n, 2] + directions[n, 2] * t, last, last_cell)
            v00 = lattice[k, j, i] + x * (lattice[k, j, i + 1] - lattice[k, j, i])
            v01 = lattice[k, j + 1, i] + x * (lattice[k, j + 1, i + 1] - lattice[k, j + 1, i])
            v10 = lattice[k + 1, j, i] + x * (lattice[k + 1, j, i + 1] - lattice[k + 1, j, i])
            v11 = lattice[k + 1, j + 1, i] + x * (lattice[k + 1, j + 1, i + 1] - lattice[k + 1, j + 1, i])
            near, far = v00 + y * (v01 - v00), v10 + y * (v11 - v10)
            sdf[n, p] = near + z * (far - near)


@njit(**_OPTIONS)
def _importance(distances, sdf, quantiles, out, inv_s):
    """distances and sdf (n, K + 1), quantiles and out (n, N)."""
    num_intervals = distances.shape[1] - 1
    slopes, alpha = np.empty(num_intervals + 1, np.float32), np.empty(num_intervals, np.float32)
    cdf = np.empty(num_intervals + 1, np.float64)
    slopes[0], cdf[0] = _ZERO, 0.0
    for n in range(len(distances)):
        edges, values = distances[n], sdf[n]
        for i in range(num_intervals):
            slopes[i + 1] = (values[i + 1] - values[i]) / (edges[i + 1] - edges[i] + _FLOOR)
        for i in range(num_intervals):
            slope = slopes[i] if slopes[i] < slopes[i + 1] else slopes[i + 1]
            drop = _HALF * slope * (edges[i + 1] - edges[i])
            middle = _HALF * (values[i] + values[i + 1])
            entering, leaving = _sigmoid((middle - drop) * inv_s), _sigmoid((middle + drop) * inv_s)
            a = (entering - leaving) / (entering + _FLOOR)
            alpha[i] = _ZERO if a < _ZERO else (_ONE if a > _ONE else a)
        light = _ONE
        for i in range(num_intervals):
            cdf[i + 1] = cdf[i] + (alpha[i] * light + _FLOOR)
            light *= _ONE - alpha[i]
        total, upper = cdf[num_intervals], 1
        for q in range(quantiles.shape[1]):
            mass = quantiles[n, q] * total
            while upper < num_intervals and cdf[upper] <= mass:
                upper += 1
            fraction = (mass - cdf[upper - 1]) / (cdf[upper] - cdf[upper - 1])
            fraction = 0.0 if fraction < 0.0 else (1.0 if fraction > 1.0 else fraction)
            low, high = edges[upper - 1], edges[upper]
            distance = low + (high - low) * np.float32(fraction)
            out[n, q] = high if distance > high else distance


def surface_alpha(
    sdf: Tensor, gradient: Tensor, directions: Tensor, lengths: Tensor, inv_s: Tensor, ratio: float
) -> Tensor:
    """(R, S) opacities; see :func:`ops.rendering.surface_alpha`."""
    alpha = torch.empty_like(sdf)
    numbers = np.float32(inv_s.item()), np.float32(1 - ratio)
    _on_rays(lambda s, g, d, l, a: _alpha(s, g, d, l, *numbers, a), sdf, gradient, directions, lengths, alpha)
    return alpha


def surface_alpha_backward(
    grad: Tensor, sdf: Tensor, gradient: Tensor, directions: Tensor, lengths: Tensor, inv_s: Tensor, ratio: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by sdf, gradient and inv_s."""
    grad_sdf, grad_gradient = torch.empty_like(sdf), torch.empty_like(gradient)
    # a sum a ray, so that the total does not depend on the number of threads
    grad_inv_s = sdf.new_empty(len(sdf), dtype=torch.float64)
    numbers = np.float32(inv_s.item()), np.float32(1 - ratio)
    _on_rays(
        lambda gr, s, g, d, l, *out: _alpha_backward(gr, s, g, d, l, *numbers, *out),
        *(grad, sdf, gradient, directions, lengths),
        *(grad_sdf, grad_gradient, grad_inv_s),
    )
    return grad_sdf, grad_gradient, grad_inv_s.sum().to(inv_s)


def composite(alpha: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels (R, C) and log-transmittance (R,); see :func:`ops.rendering.composite_sections`."""
    pixels, log_transmittance = alpha.new_empty(len(alpha), values.shape[-1]), alpha.new_empty(len(alpha))
    _on_rays(_composite, alpha, values, pixels, log_transmittance)
    return pixels, log_transmittance


def composite_backward(
    grad_pixels: Tensor, grad_log_transmittance: Tensor, alpha: Tensor, values: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients by alpha and values."""
    grad_alpha, grad_values = torch.empty_like(alpha), torch.empty_like(values)
    _on_rays(_composite_backward, alpha, values, grad_pixels, grad_log_transmittance, grad_alpha, grad_values)
    return grad_alpha, grad_values


def interpolate_along(lattice: Tensor, origins: Tensor, directions: Tensor, distances: Tensor) -> Tensor:
    """(R, P) values of a lattice (G, G, G) along rays; see :meth:`ops.sdf_grid.SdfGrid.along`."""
    sdf, lattice_array = torch.empty_like(distances), lattice.contiguous().numpy()
    rays = [tensor.contiguous() for tensor in (origins, directions, distances)]
    _on_rays(lambda *arrays: _interpolate_along(*arrays, lattice_array), *rays, sdf)
    return sdf


def importance_distances(distances: Tensor, sdf: Tensor, inv_s: float, quantiles: Tensor) -> Tensor:
    """(R, N) distances; see :func:`ops.sampling.importance_distances`."""
    rays = [tensor.contiguous() for tensor in (distances, sdf, quantiles)]
    out = torch.empty_like(rays[2])
    _on_rays(lambda *arrays: _importance(*arrays, np.float32(inv_s)), *rays, out)
    return out


def _on_rays(kernel: Callable[..., None], *tensors: Tensor) -> None:
    """Run a kernel on tensors of R rays each; some rays on each thread."""
    arrays = [tensor.detach().numpy() for tensor in tensors]
    least = max(_MIN_SAMPLES // max(max(tensor[:1].numel() for tensor in tensors), 1), 1)
    # a slice and not its ends: of an index that starts at 0 the compiler knows that it is never negative
    for_ranges(len(arrays[0]), least, lambda *ends: kernel(*(array[slice(*ends)] for array in arrays)))
