import torch

from ops.encodings import fourier_encoding, inverted_sphere, spherical_harmonics


def test_spherical_harmonics_are_orthonormal():
    # a product rule that integrates polynomials of degree 6 exactly: Gauss in z, equal steps in azimuth
    nodes, weights = (torch.tensor(v) for v in __import__("numpy").polynomial.legendre.leggauss(8))
    azimuth = torch.arange(16, dtype=torch.float64) * (2 * torch.pi / 16)
    z, phi = torch.meshgrid(nodes, azimuth, indexing="ij")
    ring = (1 - z**2).sqrt()
    directions = torch.stack([ring * phi.cos(), ring * phi.sin(), z], dim=-1).reshape(-1, 3)
    measure = (weights[:, None] * 2 * torch.pi / 16).expand_as(z).reshape(-1)
    values = spherical_harmonics(directions)
    torch.testing.assert_close(values.T @ (measure[:, None] * values), torch.eye(16, dtype=torch.float64))


def test_fourier_encoding_keeps_its_input_and_turns_each_octave():
    encoded = fourier_encoding(torch.tensor([[0.5, 0.25]]), 2)
    expected = [0.5, 0.25, 1, 0.5**0.5, 0, 1, 0, 0.5**0.5, -1, 0]  # x, sin pi x, sin 2 pi x, cos pi x, cos 2 pi x
    torch.testing.assert_close(encoded, torch.tensor([expected]), atol=1e-6, rtol=0)


def test_inverted_sphere_splits_direction_and_inverse_distance():
    torch.testing.assert_close(inverted_sphere(torch.tensor([0.0, 4, 0])), torch.tensor([0.0, 1, 0, 0.25]))
