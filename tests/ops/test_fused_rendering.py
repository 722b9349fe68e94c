"""The compiled kernels of rendering compute what plain PyTorch defines, in value and gradient."""

import importlib.util

import pytest
import torch
from torch import Tensor

from ops import rendering
from ops.rendering import composite_sections, surface_alpha

NEEDS_TRITON = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed: its kernels of rendering are not tested",
)
RATIO, CHANNELS = 0.25, 5


@pytest.fixture(params=["numba", pytest.param("triton", marks=NEEDS_TRITON)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the kernels of a backend run; on a CPU those for a GPU are interpreted."""
    if request.param == "numba" or torch.cuda.is_available():
        return "cpu" if request.param == "numba" else "cuda"
    from ops import rendering_triton

    monkeypatch.setattr(rendering, "_kernels", lambda tensor: rendering_triton)
    return "cpu"


def rays(num_rays: int, num_samples: int, inv_s: float = 40.0) -> dict[str, Tensor]:
    """Sections near a surface, front- and back-facing, as float64 leaves."""
    generator = torch.Generator().manual_seed(0)
    shape = (num_rays, num_samples)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    return {
        "sdf": 0.4 * draw(*shape) - 0.2,
        "gradient": 2 * draw(*shape, 3) - 1,
        "directions": torch.nn.functional.normalize(2 * draw(num_rays, 3) - 1, dim=-1),
        "lengths": 0.05 * draw(*shape),
        "inv_s": torch.tensor(inv_s, dtype=torch.float64),
        "values": draw(*shape, CHANNELS),
    }


def rendered(inputs: dict[str, Tensor], alpha_of, sections_of) -> dict[str, Tensor]:
    """Pixels, log-transmittance, and the gradients of one scalar of them by all that has one."""
    leaves = {name: inputs[name].clone().requires_grad_() for name in ("sdf", "gradient", "inv_s", "values")}
    alpha = alpha_of(
        *(leaves["sdf"], leaves["gradient"], inputs["directions"], inputs["lengths"], leaves["inv_s"]), RATIO
    )
    pixels, log_transmittance = sections_of(alpha, leaves["values"])
    channels = torch.arange(1, CHANNELS + 1).to(pixels)
    ((pixels * channels).sum() - log_transmittance.clamp(min=-20).sum()).backward()
    gradients = {f"gradient by {name}": leaf.grad for name, leaf in leaves.items()}
    return {"alpha": alpha.detach(), "pixels": pixels.detach(), "log": log_transmittance.detach(), **gradients}


def defined(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """By plain PyTorch in float64."""
    return rendered(inputs, rendering._plain_alpha, rendering._plain_composite)


def fused(inputs: dict[str, Tensor], device: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """By the kernels."""
    found = rendered(
        {name: tensor.to(device, dtype) for name, tensor in inputs.items()}, surface_alpha, composite_sections
    )
    return {name: tensor.cpu() for name, tensor in found.items()}


def largest_error(found: Tensor, expected: Tensor) -> float:
    """Of any entry, in units of the largest one."""
    return float((found.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


@pytest.mark.parametrize("shape", [(9, 16), (4, 1), (3, 37)])
def test_kernels_are_as_near_to_the_truth_as_plain_float32(device: str, shape: tuple[int, int]) -> None:
    inputs = rays(*shape)
    expected, found = defined(inputs), fused(inputs, device)
    plain = rendered(
        {name: tensor.float() for name, tensor in inputs.items()}, rendering._plain_alpha, rendering._plain_composite
    )
    for name, tensor in found.items():
        error = largest_error(tensor, expected[name])
        assert error < 5e-6, name
        assert error < 4 * largest_error(plain[name], expected[name]) + 5e-7, name


@NEEDS_TRITON
def test_triton_kernels_in_float64_agree_to_its_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    from ops import rendering_triton

    monkeypatch.setattr(rendering, "_kernels", lambda tensor: rendering_triton)
    inputs = rays(3, 6)
    expected, found = defined(inputs), fused(inputs, "cuda" if torch.cuda.is_available() else "cpu", torch.float64)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-7, atol=1e-10, msg=name)


@pytest.mark.parametrize("inv_s", [1e-3, 1e6])
def test_blunt_and_sharp_surfaces_and_sections_without_length(device: str, inv_s: float) -> None:
    inputs = rays(6, 16, inv_s)
    inputs["lengths"][0], inputs["lengths"][1, ::2] = 0, 0
    inputs["sdf"][2], inputs["sdf"][3], inputs["sdf"][4, ::2] = 1e-3, -1e-3, 0  # just outside, just inside, on it
    inputs = {name: tensor.float().double() for name, tensor in inputs.items()}
    expected, found = defined(inputs), fused(inputs, device)
    for name in ("alpha", "pixels", "log"):
        torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-3, atol=2e-6, msg=name)
    assert all(tensor.isfinite().all() for tensor in found.values())
    assert (found["alpha"][0] == 0).all()
    assert (found["pixels"][0] == 0).all()
    assert found["log"][0] == 0


@pytest.mark.parametrize("opacities", [[0.0] * 5, [1.0] * 5, [0.5, 1.0, 0.5, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0]])
def test_clear_and_opaque_sections_give_what_plain_torch_gives(device: str, opacities: list[float]) -> None:
    results = []
    for sections_of, place, dtype in (
        (rendering._plain_composite, "cpu", torch.float64),
        (composite_sections, device, torch.float32),
    ):
        alpha = torch.tensor([opacities], dtype=dtype, device=place, requires_grad=True)
        values = torch.arange(10.0).view(1, 5, 2).to(alpha).requires_grad_()
        pixels, log_transmittance = sections_of(alpha, values)
        (pixels * torch.tensor([1.0, -2.0]).to(pixels)).sum().backward()
        tensors = (pixels, log_transmittance, values.grad, alpha.grad)
        results.append([tensor.detach().cpu().double() for tensor in tensors])
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("opacity", [1e-9, 1e-7, 0.3, 0.99999])
def test_the_log_transmittance_keeps_its_digits_where_it_rounds_to_clear_or_opaque(device: str, opacity: float) -> None:
    alpha = torch.full((2, 128), opacity, device=device)
    _, log_transmittance = composite_sections(alpha, torch.ones(2, 128, 1, device=device))
    expected = torch.log1p(-alpha.double()).sum(-1).float()
    torch.testing.assert_close(log_transmittance, expected, rtol=1e-6, atol=1e-13)


def test_no_rays_give_no_pixels_and_no_gradient(device: str) -> None:
    found = fused(rays(0, 4), device)
    assert found["pixels"].shape == (0, CHANNELS)
    assert found["log"].shape == (0,)
    assert found["gradient by inv_s"] == 0


def test_a_nan_stays_in_its_ray_and_is_not_hidden(device: str) -> None:
    inputs = rays(4, 8)
    inputs["sdf"][1, 3], inputs["gradient"][2, 5, 1] = torch.nan, torch.nan
    found = fused(inputs, device)
    for name in ("pixels", "log", "gradient by sdf"):
        is_nan = found[name].view(4, -1).isnan().any(-1)
        assert is_nan.tolist() == [False, True, True, False], name
    assert found["gradient by inv_s"].isnan()


def test_second_derivatives_are_those_of_the_definition() -> None:
    def penalty(alpha_of, sections_of) -> tuple[Tensor, ...]:
        inputs = {name: tensor.float() for name, tensor in rays(3, 4).items()}
        leaves = [inputs[name].requires_grad_() for name in ("sdf", "gradient", "inv_s", "values")]
        sdf, gradient, inv_s, values = leaves
        pixels, _ = sections_of(alpha_of(sdf, gradient, inputs["directions"], inputs["lengths"], inv_s, RATIO), values)
        (by_sdf,) = torch.autograd.grad(pixels.sum(), sdf, create_graph=True)
        return torch.autograd.grad(by_sdf.square().sum(), leaves)

    for found, expected in zip(
        penalty(surface_alpha, composite_sections),
        penalty(rendering._plain_alpha, rendering._plain_composite),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_the_number_of_threads_changes_no_bit() -> None:
    inputs, threads = rays(3000, 16), torch.get_num_threads()
    found = []
    for num_threads in (1, 3):
        torch.set_num_threads(num_threads)
        found.append(fused(inputs, "cpu"))
    torch.set_num_threads(threads)
    for name in found[0]:
        assert torch.equal(found[0][name], found[1][name]), name


def test_layout_does_not_matter_and_derivatives_of_positions_are_the_definitions(generator: torch.Generator) -> None:
    inputs = {name: tensor.float() for name, tensor in rays(5, 6).items()}
    order = ("sdf", "gradient", "directions", "lengths")
    expected = surface_alpha(*(inputs[name] for name in order), inputs["inv_s"], RATIO)
    turned = [inputs[name].transpose(0, 1).contiguous().transpose(0, 1) for name in order]
    assert torch.equal(surface_alpha(*turned, inputs["inv_s"], RATIO), expected)
    lengths = inputs["lengths"].requires_grad_()
    surface_alpha(*(inputs[name] for name in order), inputs["inv_s"], RATIO).sum().backward()
    assert lengths.grad.abs().sum() > 0
