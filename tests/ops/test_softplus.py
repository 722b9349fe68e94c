import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ops import softplus as module
from ops.softplus import softplus, softplus_jet

BETA = 100.0


def test_values_are_nearer_to_the_exact_ones_than_those_of_torch(generator: torch.Generator) -> None:
    x = torch.cat([torch.randn(20_000, generator=generator) * scale for scale in (0.001, 0.05, 1.0)])
    exact = F.softplus(x.double(), beta=BETA, threshold=1e9)
    error = (softplus(x, BETA) - exact).abs()
    assert error.max() < 3e-8 * x.abs().max()
    assert (error[x.abs() < 0.1] < 1.5e-8).all()
    # small values keep their digits down to the cut at exp(-20)
    left = (x < 0) & (x > -0.19)
    assert (error[left] / exact[left]).max() < 1e-5


@pytest.mark.parametrize("shape", [(), (1,), (3, 5, 7), (300, 1000)])
def test_gradients_are_those_of_torch_for_any_shape(shape: tuple[int, ...], generator: torch.Generator) -> None:
    x = (0.05 * torch.randn(shape, generator=generator)).requires_grad_()
    grad = torch.randn(shape, generator=generator)
    (ours,) = torch.autograd.grad(softplus(x, BETA), x, grad)
    torch.testing.assert_close(ours, grad * torch.sigmoid(BETA * x.detach()), rtol=1e-5, atol=1e-6)


def test_a_transposed_tensor_is_read_in_its_own_order() -> None:
    x = torch.linspace(-0.1, 0.1, 12).view(3, 4).T.requires_grad_()
    torch.testing.assert_close(softplus(x, BETA), F.softplus(x, beta=BETA), rtol=1e-5, atol=1e-7)
    (grad,) = torch.autograd.grad(softplus(x, BETA)[1].sum(), x)
    assert grad[0].abs().max() == 0 < grad[1].abs().min()


def test_the_second_derivative_is_there() -> None:
    x = torch.linspace(-0.05, 0.05, 11, requires_grad=True)
    (first,) = torch.autograd.grad(softplus(x, BETA).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    s = torch.sigmoid(BETA * x)
    torch.testing.assert_close(second, BETA * s * (1 - s))


def test_nan_and_infinity_stay_what_they_are() -> None:
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0], requires_grad=True)
    value = softplus(x, BETA)
    assert value[0].isnan()
    assert value[1] == torch.inf
    assert value[2:].isfinite().all()
    assert torch.autograd.grad(value.sum(), x)[0][0].isnan()


def jet_of(num_points: int, num_units: int, generator: torch.Generator) -> list[Tensor]:
    shapes = (num_points, 4, num_units), (num_points, 3), (4, num_units), (num_units,)
    return [0.1 * torch.randn(shape, generator=generator) for shape in shapes]


def test_a_jet_is_value_gradient_and_laplacian_of_the_network_it_stands_for(generator: torch.Generator) -> None:
    """Units of affine functions of the point; autograd differentiates the whole twice."""
    points = torch.randn(50, 3, generator=generator).double().requires_grad_()
    inner, weight = (torch.randn(shape, generator=generator).double() for shape in ((4, 8), (8,)))
    affine = 0.5 * inner
    inputs = (inner - affine)[0] + points @ (inner - affine)[1:]
    jet = torch.cat([inputs[:, None], (inner - affine)[1:].expand(50, 3, 8)], dim=1)
    units = F.softplus(inner[0] + points @ inner[1:], beta=3)
    (gradient,) = torch.autograd.grad((units @ weight).sum(), points, create_graph=True)
    axes = [torch.autograd.grad(gradient[:, axis].sum(), points, retain_graph=True)[0][:, axis] for axis in range(3)]
    for precise, bound in ((torch.float64, 1e-9), (torch.float32, 2e-5)):
        given = (tensor.detach().to(precise) for tensor in (jet, points, affine, weight))
        found = softplus_jet(*given, beta=3)
        for ours, expected in zip(found, (units @ weight, gradient, sum(axes), units), strict=True):
            torch.testing.assert_close(ours.double(), expected.detach(), rtol=bound, atol=bound)


def test_gradients_of_a_jet_are_those_of_autograd(generator: torch.Generator, monkeypatch) -> None:
    jet, points, affine, weight = jet_of(2500, 24, generator)
    leaves = [tensor.requires_grad_() for tensor in (jet, affine, weight)]
    grads = [torch.randn(shape, generator=generator) for shape in ((2500,), (2500, 3), (2500,), (2500, 24))]
    grads[2] *= 0.01
    ours = torch.autograd.grad(softplus_jet(jet, points, affine, weight, BETA), leaves, grads)
    monkeypatch.setattr(module, "_is_compiled", lambda x: False)
    exact = [tensor.detach().double().requires_grad_() for tensor in leaves]
    values = softplus_jet(exact[0], points.double(), *exact[1:], BETA)
    expected = torch.autograd.grad(values, exact, [grad.double() for grad in grads])
    for found, right in zip(ours, expected, strict=True):
        torch.testing.assert_close(found.double(), right, rtol=1e-4, atol=2e-6 * float(right.abs().max()))


@pytest.mark.parametrize("num_points", [0, 1, 1024, 5000])
def test_the_number_of_threads_changes_no_bit(num_points: int, generator: torch.Generator) -> None:
    jet, points, affine, weight = jet_of(num_points, 16, generator)
    results, before = [], torch.get_num_threads()
    for num_threads in (1, 3):
        torch.set_num_threads(num_threads)
        leaves = [tensor.clone().requires_grad_() for tensor in (jet, affine, weight)]
        values = softplus_jet(leaves[0], points, *leaves[1:], BETA)
        results.append([*values, *torch.autograd.grad(sum(value.sum() for value in values), leaves)])
    torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
