"""Compiled loops of :mod:`ops.softplus`; every array is contiguous float32.

Written without a branch, so that the compiler turns them into vector instructions; polynomials stand in for library
functions. Machine code is cached beside this file.
"""

from typing import Any

import numpy as np
from numba import njit

# beyond, log(1 + exp(-t)) is below the rounding of t
_CUT = np.float32(20)
_HALVINGS = 5
_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)
_SCALE = np.float32(2.0**-_HALVINGS)
# the harmless part of "fast": NaN and infinity stay what they are
_OPTIONS = {"nogil": True, "cache": True, "error_model": "numpy", "fastmath": {"contract", "nsz"}}
# sums over units may be taken in another, but always in the same order
_WITH_SUMS = _OPTIONS | {"fastmath": {"contract", "nsz", "reassoc"}}


def _chebyshev(function: Any, high: float, degree: int) -> tuple[np.float32, ...]:
    """Coefficients of the polynomial through the Chebyshev points of [0, high], constant first."""
    fitted = np.polynomial.Chebyshev.interpolate(function, degree, domain=[0, high])
    return tuple(np.float32(c) for c in fitted.convert(kind=np.polynomial.Polynomial).coef)


_E0, _E1, _E2, _E3, _E4, _E5, _E6 = _chebyshev(lambda u: np.exp(-u), float(_CUT) / 2**_HALVINGS, 6)
_L0, _L1, _L2, _L3, _L4, _L5, _L6, _L7, _L8, _L9 = _chebyshev(lambda e: np.log1p(e) / e, 1.0, 9)


@njit(inline="always")
def _exp_of_minus(t):
    u = _SCALE * (t if t < _CUT else _CUT)
    p = _E0 + u * (_E1 + u * (_E2 + u * (_E3 + u * (_E4 + u * (_E5 + u * _E6)))))
    p *= p
    p *= p
    p *= p
    p *= p
    return p * p


@njit(inline="always")
def _log_of_one_plus(e):
    tail = _L4 + e * (_L5 + e * (_L6 + e * (_L7 + e * (_L8 + e * _L9))))
    return e * (_L0 + e * (_L1 + e * (_L2 + e * (_L3 + e * tail))))


@njit(**_OPTIONS)
def forward(x, out, beta):
    """out = softplus(x), both (n,)."""
    inverse = _ONE / beta
    for i in range(x.size):
        v = x[i]
        e = _exp_of_minus(beta * abs(v))
        out[i] = (_ZERO if v < _ZERO else v) + inverse * _log_of_one_plus(e)


@njit(**_OPTIONS)
def backward(grad, x, grad_x, beta):
    """grad_x = grad * softplus'(x), all (n,)."""
    for i in range(x.size):
        v = x[i]
        e = _exp_of_minus(beta * abs(v))
        # a NaN is on neither side; zero * v hands it on
        grad_x[i] = grad[i] * ((e if v < _ZERO else _ONE) / (_ONE + e)) + _ZERO * v


@njit(**_WITH_SUMS)
def jet_forward(jet, points, form, units, affine, weight, beta):
    """jet (n, 4, H), points (n, 3), affine (4, H) -> form (n, 5): value, gradient, Laplacian; and units (n, H)."""
    inverse = _ONE / beta
    bias, by_x, by_y, by_z = affine[0], affine[1], affine[2], affine[3]
    for n in range(len(jet)):
        inputs, along_x, along_y, along_z = jet[n, 0], jet[n, 1], jet[n, 2], jet[n, 3]
        px, py, pz, unit = points[n, 0], points[n, 1], points[n, 2], units[n]
        value, x, y, z, laplacian = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
        for h in range(weight.size):
            a = inputs[h] + (bias[h] + px * by_x[h] + py * by_y[h] + pz * by_z[h])
            w, dx, dy, dz = weight[h], along_x[h] + by_x[h], along_y[h] + by_y[h], along_z[h] + by_z[h]
            e = _exp_of_minus(beta * abs(a))
            inverse_sum = _ONE / (_ONE + e)
            s = (_ZERO if a < _ZERO else a) + inverse * _log_of_one_plus(e)
            first = w * (e if a < _ZERO else _ONE) * inverse_sum
            unit[h] = s
            value += w * s
            x += first * dx
            y += first * dy
            z += first * dz
            laplacian += w * (beta * e * inverse_sum * inverse_sum) * (dx * dx + dy * dy + dz * dz)
        form[n, 0], form[n, 1], form[n, 2], form[n, 3], form[n, 4] = value, x, y, z, laplacian


@njit(**_WITH_SUMS)
def jet_backward(jet, points, grad_form, grad_units, grad_jet, grad_sums, affine, weight, beta):
    """Gradients of the jet, (n, 4, H), and, added up in (5, H), of affine and weight.

    Several loops with few arrays each, through ``scratch``: before it takes the vector loop the program has to make
    sure that arrays do not overlap, and for many of them the compiler gives up.
    """
    inverse = _ONE / beta
    bias, by_x, by_y, by_z = affine[0], affine[1], affine[2], affine[3]
    scratch = np.empty((8, weight.size), np.float32)
    inputs, dxs, dys, dzs = scratch[0], scratch[1], scratch[2], scratch[3]
    units, firsts, seconds, alongs = scratch[4], scratch[5], scratch[6], scratch[7]
    for n in range(len(jet)):
        px, py, pz = points[n, 0], points[n, 1], points[n, 2]
        value, x, y, z, laplacian = grad_form[n, 0], grad_form[n, 1], grad_form[n, 2], grad_form[n, 3], grad_form[n, 4]
        to_inputs, to_x, to_y, to_z = grad_jet[n, 0], grad_jet[n, 1], grad_jet[n, 2], grad_jet[n, 3]
        this, grad_unit = jet[n, 0], grad_units[n]
        for h in range(weight.size):
            inputs[h] = this[h] + (bias[h] + px * by_x[h] + py * by_y[h] + pz * by_z[h])
        for h in range(weight.size):
            dxs[h] = jet[n, 1, h] + by_x[h]
        for h in range(weight.size):
            dys[h] = jet[n, 2, h] + by_y[h]
        for h in range(weight.size):
            dzs[h] = jet[n, 3, h] + by_z[h]
        for h in range(weight.size):
            a = inputs[h]
            e = _exp_of_minus(beta * abs(a))
            inverse_sum = _ONE / (_ONE + e)
            units[h] = (_ZERO if a < _ZERO else a) + inverse * _log_of_one_plus(e)
            firsts[h] = (e if a < _ZERO else _ONE) * inverse_sum
            seconds[h] = beta * e * inverse_sum * inverse_sum
        for h in range(weight.size):
            dx, dy, dz = dxs[h], dys[h], dzs[h]
            alongs[h] = x * dx + y * dy + z * dz
            inputs[h] = laplacian * (dx * dx + dy * dy + dz * dz)
        for h in range(weight.size):
            first, second = firsts[h], seconds[h]
            third = second * beta * (_ONE - _TWO * first)  # s'' = s' beta (1 - 2 s) of the logistic s
            to_inputs[h] = grad_unit[h] * first + weight[h] * (value * first + second * alongs[h] + third * inputs[h])
        for h in range(weight.size):
            grad_sums[4, h] += value * units[h] + firsts[h] * alongs[h] + seconds[h] * inputs[h]
        twice = _TWO * laplacian
        for h in range(weight.size):
            firsts[h] *= weight[h]
            seconds[h] *= twice * weight[h]
        for h in range(weight.size):
            to_x[h] = firsts[h] * x + seconds[h] * dxs[h]
        for h in range(weight.size):
            to_y[h] = firsts[h] * y + seconds[h] * dys[h]
        for h in range(weight.size):
            to_z[h] = firsts[h] * z + seconds[h] * dzs[h]
        for h in range(weight.size):
            grad_sums[0, h] += to_inputs[h]
        for h in range(weight.size):
            grad_sums[1, h] += px * to_inputs[h] + to_x[h]
        for h in range(weight.size):
            grad_sums[2, h] += py * to_inputs[h] + to_y[h]
        for h in range(weight.size):
            grad_sums[3, h] += pz * to_inputs[h] + to_z[h]
