"""Fixed encodings of positions and directions."""

import torch
from torch import Tensor


def fourier_encoding(x: Tensor, num_frequencies: int) -> Tensor:
    """The input beside the sines and cosines of its octaves: NeRF (arXiv:2003.08934), Eq. 4, with the input kept.

    Args:
        x: (..., D) values.
        num_frequencies: L octaves; frequency k is 2^k pi.

    Returns:
        (..., D + 2 L D): x, then all sines, then all cosines, octave-major.
    """
    octaves = torch.pi * 2.0 ** torch.arange(num_frequencies, device=x.device, dtype=x.dtype)
    angles = (x[..., None, :] * octaves[:, None]).flatten(-2)
    return torch.cat([x, angles.sin(), angles.cos()], dim=-1)


def spherical_harmonics(directions: Tensor) -> Tensor:
    """The 16 real spherical harmonics of degree 0 to 3, orthonormal on the sphere, without Condon-Shortley phase.

    Args:
        directions: (..., 3) unit vectors.

    Returns:
        (..., 16), ordered by degree l, then by order m from -l to l.
    """
    x, y, z = directions.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    return torch.stack(
        [
            torch.full_like(x, 0.28209479177387814),  # 1/2 sqrt(1 / pi)
            0.4886025119029199 * y,  # sqrt(3 / (4 pi))
            0.4886025119029199 * z,
            0.4886025119029199 * x,
            1.0925484305920792 * x * y,  # 1/2 sqrt(15 / pi)
            1.0925484305920792 * y * z,
            0.31539156525252005 * (3 * zz - 1),  # 1/4 sqrt(5 / pi)
            1.0925484305920792 * x * z,
            0.5462742152960396 * (xx - yy),
            0.5900435899266435 * y * (3 * xx - yy),  # 1/4 sqrt(35 / (2 pi))
            2.890611442640554 * x * y * z,  # 1/2 sqrt(105 / pi)
            0.4570457994644658 * y * (5 * zz - 1),  # 1/4 sqrt(21 / (2 pi))
            0.3731763325901154 * z * (5 * zz - 3),  # 1/4 sqrt(7 / pi)
            0.4570457994644658 * x * (5 * zz - 1),
            1.445305721320277 * z * (xx - yy),
            0.5900435899266435 * x * (xx - 3 * yy),
        ],
        dim=-1,
    )


def inverted_sphere(points: Tensor) -> Tensor:
    """(..., 3) points outside the unit sphere as (..., 4) direction and inverse distance: NeRF++ (arXiv:2010.07492)."""
    radius = points.norm(dim=-1, keepdim=True)
    return torch.cat([points / radius, 1 / radius], dim=-1)
