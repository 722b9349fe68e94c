"""Triton kernels of :mod:`ops.rendering`; the functions are those of :mod:`ops.rendering_kernels`.

Opacities are made sample by sample. A program composites one ray, whose samples it holds in registers: transmittances
and what is behind each sample are scans over them, so that nothing is divided by a transmittance, which may be 0. No
value goes to the host, and sums are taken in the same order every time.

``TRITON_INTERPRET=1``, set before triton is imported, runs the same kernels slowly on CPU tensors, for tests.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_SAMPLES_PER_PROGRAM = 256


def surface_alpha(
    sdf: Tensor, gradient: Tensor, directions: Tensor, lengths: Tensor, inv_s: Tensor, ratio: float
) -> Tensor:
    """(R, S) opacities; see :func:`ops.rendering.surface_alpha`."""
    alpha = torch.empty_like(sdf)
    if sdf.numel():
        with torch.cuda.device_of(sdf):  # Triton launches on the current device, which need not be the tensors'
            _alpha_kernel[(triton.cdiv(sdf.numel(), _SAMPLES_PER_PROGRAM),)](
                *(sdf, gradient, directions, lengths, inv_s, alpha),
                *(sdf.numel(), sdf.shape[1], 1 - ratio),
                BLOCK=_SAMPLES_PER_PROGRAM,
            )
    return alpha


def surface_alpha_backward(
    grad: Tensor, sdf: Tensor, gradient: Tensor, directions: Tensor, lengths: Tensor, inv_s: Tensor, ratio: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by sdf, gradient and inv_s."""
    grad_sdf, grad_gradient = torch.empty_like(sdf), torch.empty_like(gradient)
    num_programs = triton.cdiv(sdf.numel(), _SAMPLES_PER_PROGRAM)
    grad_inv_s = sdf.new_empty(num_programs)
    if num_programs:
        with torch.cuda.device_of(sdf):
            _alpha_backward_kernel[(num_programs,)](
                *(grad, sdf, gradient, directions, lengths, inv_s),
                *(grad_sdf, grad_gradient, grad_inv_s),
                *(sdf.numel(), sdf.shape[1], 1 - ratio),
                BLOCK=_SAMPLES_PER_PROGRAM,
            )
    return grad_sdf, grad_gradient, grad_inv_s.sum()


def composite(alpha: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels (R, C) and log-transmittance (R,); see :func:`ops.rendering.composite_sections`."""
    num_rays, num_samples, num_values = values.shape
    pixels, log_transmittance = alpha.new_empty(num_rays, num_values), alpha.new_empty(num_rays)
    if num_rays:
        with torch.cuda.device_of(alpha):
            _composite_kernel[(num_rays,)](
                *(alpha, values, pixels, log_transmittance, num_samples, num_values), **_block(num_samples, num_values)
            )
    return pixels, log_transmittance


def composite_backward(
    grad_pixels: Tensor, grad_log_transmittance: Tensor, alpha: Tensor, values: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients by alpha and values."""
    num_rays, num_samples, num_values = values.shape
    grad_alpha, grad_values = torch.empty_like(alpha), torch.empty_like(values)
    if num_rays:
        with torch.cuda.device_of(alpha):
            _composite_backward_kernel[(num_rays,)](
                *(grad_pixels, grad_log_transmittance, alpha, values, grad_alpha, grad_values),
                *(num_samples, num_values),
                **_block(num_samples, num_values),
            )
    return grad_alpha, grad_values


def _block(num_samples: int, num_values: int) -> dict[str, int]:
    block = max(triton.next_power_of_2(num_samples), 16)
    return {"BLOCK": block, "C": triton.next_power_of_2(max(num_values, 1)), "num_warps": min(max(block // 64, 1), 8)}


@triton.jit
def _sigmoid(x):
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (1.0 + e)


@triton.jit
def _load_sections(sdf_ptr, gradient_ptr, directions_ptr, lengths_ptr, inv_s_ptr, n, is_sample, num_samples, half_open):
    """Of samples n: sdf, half its drop over their sections, opacities of entering and leaving, and direction."""
    ray = n // num_samples
    dx = tl.load(directions_ptr + 3 * ray, mask=is_sample, other=0.0)
    dy = tl.load(directions_ptr + 3 * ray + 1, mask=is_sample, other=0.0)
    dz = tl.load(directions_ptr + 3 * ray + 2, mask=is_sample, other=0.0)
    gx = tl.load(gradient_ptr + 3 * n, mask=is_sample, other=0.0)
    gy = tl.load(gradient_ptr + 3 * n + 1, mask=is_sample, other=0.0)
    gz = tl.load(gradient_ptr + 3 * n + 2, mask=is_sample, other=0.0)
    sdf = tl.load(sdf_ptr + n, mask=is_sample, other=0.0)
    length = tl.load(lengths_ptr + n, mask=is_sample, other=0.0)
    inv_s = tl.load(inv_s_ptr)
    cosine = gx * dx + gy * dy + gz * dz
    # not maximum(), which hides NaN
    ajar = tl.where(cosine > 1, 0.0, 0.5 - 0.5 * cosine)
    front = tl.where(cosine > 0, 0.0, -cosine)
    drop = -0.5 * length * (ajar * half_open + front * (1.0 - half_open))
    entering, leaving = _sigmoid((sdf - drop) * inv_s), _sigmoid((sdf + drop) * inv_s)
    return sdf, length, inv_s, cosine, drop, entering, leaving, dx, dy, dz


@triton.jit(do_not_specialize=["num_numbers", "half_open"])
def _alpha_kernel(
    sdf_ptr,
    gradient_ptr,
    directions_ptr,
    lengths_ptr,
    inv_s_ptr,
    alpha_ptr,
    num_numbers,
    num_samples,
    half_open,
    BLOCK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_sample = n < num_numbers
    _, _, _, _, _, entering, leaving, _, _, _ = _load_sections(
        sdf_ptr, gradient_ptr, directions_ptr, lengths_ptr, inv_s_ptr, n, is_sample, num_samples, half_open
    )
    alpha = (entering - leaving) / (entering + 1e-5)
    alpha = tl.where(alpha < 0, 0.0, tl.where(alpha > 1, 1.0, alpha))
    tl.store(alpha_ptr + n, alpha, mask=is_sample)


@triton.jit(do_not_specialize=["num_numbers", "half_open"])
def _alpha_backward_kernel(
    grad_ptr,
    sdf_ptr,
    gradient_ptr,
    directions_ptr,
    lengths_ptr,
    inv_s_ptr,
    grad_sdf_ptr,
    grad_gradient_ptr,
    grad_inv_s_ptr,
    num_numbers,
    num_samples,
    half_open,
    BLOCK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_sample = n < num_numbers
    sdf, length, inv_s, cosine, drop, entering, leaving, dx, dy, dz = _load_sections(
        sdf_ptr, gradient_ptr, directions_ptr, lengths_ptr, inv_s_ptr, n, is_sample, num_samples, half_open
    )
    inverse = 1.0 / (entering + 1e-5)
    alpha = (entering - leaving) * inverse
    grad = tl.load(grad_ptr + n, mask=is_sample, other=0.0)
    grad = tl.where((alpha >= 0) & (alpha <= 1), grad, 0.0)
    by_entering = grad * (leaving + 1e-5) * inverse * inverse * entering * (1.0 - entering)
    by_leaving = -grad * inverse * leaving * (1.0 - leaving)
    tl.store(grad_sdf_ptr + n, inv_s * (by_entering + by_leaving), mask=is_sample)
    by_inv_s = by_entering * (sdf - drop) + by_leaving * (sdf + drop)
    tl.store(grad_inv_s_ptr + tl.program_id(0), tl.sum(tl.where(is_sample, by_inv_s, 0.0), axis=0))
    opening = tl.where(cosine < 1, 0.5, 0.0) * half_open + tl.where(cosine < 0, 1.0, 0.0) * (1.0 - half_open)
    by_cosine = inv_s * (by_leaving - by_entering) * 0.5 * length * opening
    tl.store(grad_gradient_ptr + 3 * n, by_cosine * dx, mask=is_sample)
    tl.store(grad_gradient_ptr + 3 * n + 1, by_cosine * dy, mask=is_sample)
    tl.store(grad_gradient_ptr + 3 * n + 2, by_cosine * dz, mask=is_sample)


@triton.jit
def _product(a, b):
    return a * b


@triton.jit
def _in_front_of(far_clear, far_light, near_clear, near_light):
    """Two neighbouring pieces of a ray as one: the light that passes, and the light that comes out in front.

    The farther piece comes first, as a reverse scan hands over what it has gathered before what is next.
    """
    return near_clear * far_clear, near_light + near_clear * far_light


@triton.jit
def _light_that_arrives(alpha_ptr, ray, s, num_samples):
    """Transmittance in front of each sample: the product over all that are nearer."""
    nearer = tl.load(alpha_ptr + ray * num_samples + s - 1, mask=(s > 0) & (s < num_samples), other=0.0)
    return tl.associative_scan(1.0 - nearer, 0, _product)


@triton.jit
def _composite_kernel(
    alpha_ptr,
    values_ptr,
    pixels_ptr,
    log_transmittance_ptr,
    num_samples,
    num_values,
    BLOCK: tl.constexpr,
    C: tl.constexpr,
):
    ray = tl.program_id(0).to(tl.int64)
    s, c = tl.arange(0, BLOCK), tl.arange(0, C)
    is_value = (s < num_samples)[:, None] & (c < num_values)[None, :]
    alpha = tl.load(alpha_ptr + ray * num_samples + s, mask=s < num_samples, other=0.0)
    weights = alpha * _light_that_arrives(alpha_ptr, ray, s, num_samples)
    where = (ray * num_samples + s)[:, None] * num_values + c[None, :]
    values = tl.load(values_ptr + where, mask=is_value, other=0.0)
    tl.store(pixels_ptr + ray * num_values + c, tl.sum(weights[:, None] * values, axis=0), mask=c < num_values)
    # log1p: the rounding of 1 - alpha is divided out again
    clear = 1.0 - alpha
    rounded = tl.where(clear == 1, 1.0, 1.0 - clear)
    logarithms = tl.where(clear == 1, -alpha, tl.log(clear) * (alpha / rounded))
    tl.store(log_transmittance_ptr + ray, tl.sum(logarithms, axis=0))


@triton.jit
def _composite_backward_kernel(
    grad_pixels_ptr,
    grad_log_ptr,
    alpha_ptr,
    values_ptr,
    grad_alpha_ptr,
    grad_values_ptr,
    num_samples,
    num_values,
    BLOCK: tl.constexpr,
    C: tl.constexpr,
):
    ray = tl.program_id(0).to(tl.int64)
    s, c = tl.arange(0, BLOCK), tl.arange(0, C)
    is_value = (s < num_samples)[:, None] & (c < num_values)[None, :]
    sample = ray * num_samples + s
    where = sample[:, None] * num_values + c[None, :]
    values = tl.load(values_ptr + where, mask=is_value, other=0.0)
    grad_pixel = tl.load(grad_pixels_ptr + ray * num_values + c, mask=c < num_values, other=0.0)
    alpha = tl.load(alpha_ptr + sample, mask=s < num_samples, other=0.0)
    light = _light_that_arrives(alpha_ptr, ray, s, num_samples)
    tl.store(grad_values_ptr + where, (alpha * light)[:, None] * grad_pixel[None, :], mask=is_value)

    here = tl.sum(values * grad_pixel[None, :], axis=1)
    # of the sample behind each one, so that the scan gives what the gradient makes of all that is farther away
    has_next = s + 1 < num_samples
    next_alpha = tl.load(alpha_ptr + sample + 1, mask=has_next, other=0.0)
    next_where = where + num_values
    next_values = tl.load(values_ptr + next_where, mask=is_value & has_next[:, None], other=0.0)
    next_here = tl.sum(next_values * grad_pixel[None, :], axis=1)
    _, behind = tl.associative_scan((1.0 - next_alpha, next_alpha * next_here), 0, _in_front_of, reverse=True)
    grad_log = tl.load(grad_log_ptr + ray)
    # zero even where a section is opaque and the logarithm has no derivative
    by_log = tl.where(grad_log != 0, grad_log / (1.0 - alpha), 0.0)
    tl.store(grad_alpha_ptr + sample, light * (here - behind) - by_log, mask=s < num_samples)
