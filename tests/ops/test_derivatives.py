import pytest
import torch

from ops.derivatives import derivatives_from_taps, tap_offsets


def _with_taps(field, points, num_taps, epsilon):
    taps = field(points[:, None] + tap_offsets(num_taps, epsilon, like=points))
    return derivatives_from_taps(field(points), taps, epsilon)


@pytest.mark.parametrize("num_taps", [4, 6])
def test_derivatives_of_a_quadratic_are_as_stated(num_taps, generator):
    a = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    b = torch.randn(3, generator=generator, dtype=torch.float64)
    points = torch.randn(50, 3, generator=generator, dtype=torch.float64)

    def field(x):
        return torch.einsum("...i,ij,...j->...", x, a, x) + x @ b + 2

    gradient, laplacian = _with_taps(field, points, num_taps, 0.1)
    hessian = a + a.T
    expected = points @ hessian + b
    if num_taps == 4:  # the known error of the cube's corners
        expected = expected + 0.1 / 3**0.5 * torch.stack([hessian[1, 2], hessian[0, 2], hessian[0, 1]])
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(laplacian, torch.full((50,), 2 * a.trace().item(), dtype=torch.float64))


@pytest.mark.parametrize("num_taps", [4, 6])
def test_derivatives_of_the_distance_to_a_sphere_converge(num_taps, generator):
    points = torch.nn.functional.normalize(torch.randn(200, 3, generator=generator, dtype=torch.float64), dim=-1) * 0.8
    errors = []
    for epsilon in (0.02, 0.01):
        gradient, laplacian = _with_taps(lambda x: x.norm(dim=-1) - 0.5, points, num_taps, epsilon)
        errors.append(((gradient - points / 0.8).abs().max(), (laplacian - 2 / 0.8).abs().max()))
    (gradient_coarse, laplacian_coarse), (gradient_fine, laplacian_fine) = errors
    order = {4: 1, 6: 2}[num_taps]
    assert gradient_coarse / gradient_fine == pytest.approx(2**order, rel=0.1)
    assert laplacian_coarse / laplacian_fine > 1.9**order
    assert gradient_fine < 0.01
    assert laplacian_fine < 0.1


def test_taps_are_at_the_stated_distance():
    for num_taps in (4, 6):
        offsets = tap_offsets(num_taps, 0.3, like=torch.zeros(1, dtype=torch.float64))
        torch.testing.assert_close(offsets.norm(dim=-1), torch.full((num_taps,), 0.3, dtype=torch.float64))
    with pytest.raises(ValueError, match="expected 4 or 6, got 5"):
        tap_offsets(5, 0.1, like=torch.zeros(1))
