import pytest
import torch

from losses.points import chamfer
from methods.psgn import PSGN, HourglassNetwork, TwoBranchNetwork
from tests.methods.ellipsoids import batch_for, ellipsoids, fit, part_of, same, small


def _convs(sizes):
    """Parameters of convolutions, from (in, out, kernel) each."""
    return sum(i * o * k * k + o for i, o, k in sizes)


def _linears(sizes):
    return sum(i * o + o for i, o in sizes)


def _up(i, lateral, o, convs=1):
    return [(i, o, 5), (lateral, o, 3)] + [(o, o, 3)] * convs


def test_two_branch_network_has_the_layers_of_the_128_pixel_setting():
    down = [(3, 32, 3), (32, 32, 3)]
    for i, o in ((32, 64), (64, 128), (128, 256)):
        down += [(i, o, 3), (o, o, 3), (o, o, 3)]
    down += [(256, 512, 3), *[(512, 512, 3)] * 3, (512, 512, 5)]
    up = [*_up(512, 512, 256), *_up(256, 256, 128, convs=2), (128, 9, 3)]
    expected = _convs(down + up) + _linears([(512 * 4 * 4, 2048), (2048, 1024), (1024, 768)])
    with torch.device("meta"):
        network = TwoBranchNetwork()
        assert network(torch.zeros(2, 3, 128, 128)).shape == (2, 256 + 768, 3)
    assert sum(p.numel() for p in network.parameters()) == expected == 42_892_137


def test_hourglass_has_the_layers_of_the_192_by_256_setting():
    widths, counts, kernels = [16, 32, 64, 128, 256, 512, 512], [2, 3, 3, 3, 3, 4, 1], [3, 3, 3, 3, 5, 5, 5]
    convs, last = [], 4
    for width, count, kernel in zip(widths, counts, kernels, strict=True):
        convs += [(last, width, kernel)] + [(width, width, 3)] * (count - 1)
        last = width
    for lateral, width in zip(widths[-2:0:-1], [256, 128, 64, 32, 16], strict=True):
        convs += _up(last, lateral, width)
        last = width
    for width, kernel in zip([32, 64, 128, 256, 512], [3, 3, 3, 5, 5], strict=True):
        convs += [(last, width, kernel), (width, width, 3), (width, width, 3)]
        last = width
    for width in (256, 128, 64):
        convs += _up(last, width, width)
        last = width
    convs += [(64, 3, 3)]
    linears = [(3 * 4 * 512, 2048)] * 2 + [(2048, 1024), (1024, 768)]
    with torch.device("meta"):
        network = HourglassNetwork()
        assert network(torch.zeros(2, 4, 192, 256)).shape == (2, 256 + 24 * 32, 3)
    assert sum(p.numel() for p in network.parameters()) == _convs(convs) + _linears(linears) == 70_509_683


@pytest.mark.parametrize("loss", ["chamfer", "earth_movers"])
def test_one_object_is_overfitted(loss, tmp_path):
    batch = ellipsoids(num_objects=1, image_size=32, num_points=400)
    model = small("psgn", loss=loss, width=4, optimizer=lambda p: torch.optim.Adam(p, lr=3e-3))
    before = _chamfer(model.eval(), batch)
    fit(model.train(), tmp_path, 60, batch)
    assert _chamfer(model, batch) < 0.05 * before
    assert model.reconstruct(batch)[0].faces is None


def _chamfer(model, batch):
    points = torch.stack([shape.vertices for shape in model.reconstruct(batch)])
    return sum(chamfer(points, batch["surface_points"]))[0].item()


def test_best_of_n_is_the_plain_loss_for_one_and_falls_with_n(monkeypatch):
    # 4 objects of 4 numbers: torch draws in blocks of 16, so that the noise of fewer guesses begins that of more
    batch, losses = batch_for("psgn_noise", num_objects=4), []
    monkeypatch.setattr(PSGN, "log_dict", lambda *_, **__: None)
    monkeypatch.setattr(PSGN, "global_step", 0)
    for n in (1, 2, 4, 8):
        model = small("psgn", noise_size=4, min_of=n)
        model.network.noise.weight.data *= 100  # guesses that differ
        losses.append(model.training_step(batch, 0))
    noise = torch.randn(4, 4, generator=small("psgn").step_generator())
    points = small_with_noise()(batch["images"][:, 0], noise)
    to_truth, to_points = chamfer(points, batch["surface_points"])
    torch.testing.assert_close(losses[0], 1e4 * (to_truth + to_points).mean() / 2)
    assert losses[0] > losses[1] >= losses[2] >= losses[3]


def small_with_noise():
    model = small("psgn", noise_size=4)
    model.network.noise.weight.data *= 100
    return model


def test_only_the_best_guess_is_corrected(monkeypatch):
    monkeypatch.setattr(PSGN, "log_dict", lambda *_, **__: None)
    monkeypatch.setattr(PSGN, "global_step", 0)
    model, batch, guesses = small("psgn", noise_size=4, min_of=3), batch_for("psgn", num_objects=1), []
    forward = model.network.forward

    def spy(*inputs):
        guesses.append(forward(*inputs))
        guesses[-1].retain_grad()
        return guesses[-1]

    monkeypatch.setattr(model.network, "forward", spy)
    model.training_step(batch, 0).backward()
    (points,) = guesses
    distances = sum(chamfer(points.detach(), batch["surface_points"].expand(3, -1, -1)))
    is_corrected = points.grad.abs().sum((1, 2)) > 0
    assert is_corrected.tolist() == (distances == distances.min()).tolist()


def test_samples_of_an_object_differ_and_are_a_function_of_its_index():
    model = small_with_noise().eval()
    model.num_samples = 3
    batch = batch_for("psgn", 5)
    with torch.no_grad():
        outputs = model.predict_step(batch, 0)
        alone = model.predict_step(part_of(batch, slice(1, 2)), 0)
    assert [len(samples) for samples in outputs["samples"]] == [3, 3]
    first, second = outputs["samples"][0][:2]
    assert (first.vertices - second.vertices).abs().max() > 2e-3
    assert same([samples[0] for samples in outputs["samples"]], outputs["shapes"])
    for sample, other in zip(outputs["samples"][1], alone["samples"][0], strict=True):
        torch.testing.assert_close(sample.vertices, other.vertices, atol=5e-4, rtol=0)


def test_hourglass_sees_the_mask_and_the_border_of_the_image_on_either_side(monkeypatch):
    model, seen = small("psgn_hourglass").eval(), []
    assert model.reads == {"images", "masks", "surface_points"}
    batch = batch_for("psgn_hourglass", num_objects=1)
    monkeypatch.setattr(model.network, "forward", lambda images, _: seen.append(images) or torch.zeros(1, 1024, 3))
    model.reconstruct(batch)
    (widened,) = seen
    assert widened.shape == (1, 4, 192, 256)
    assert torch.equal(widened[:, :3, :, 32:-32], batch["images"][:, 0])
    assert torch.equal(widened[:, 3:, :, 32:-32], batch["masks"])
    assert torch.equal(widened[..., :32], widened[..., 32:33].expand(-1, -1, -1, 32))
    assert torch.equal(widened[..., -32:], widened[..., -33:-32].expand(-1, -1, -1, 32))


def test_weight_decay_is_that_of_each_kind_of_layer():
    model = small("psgn_noise")
    groups = model.configure_optimizers()["optimizer"].param_groups
    assert [group["weight_decay"] for group in groups] == [1e-6, 1e-4, 0]
    assert sum(p.numel() for g in groups for p in g["params"]) == sum(p.numel() for p in model.parameters())
    assert {p.dim() for p in groups[2]["params"]} == {1}


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="without noise all guesses are the same one; set noise_size"):
        small("psgn", min_of=2)
    with pytest.raises(ValueError, match="image_size: 100, but the two_branch network needs a multiple of 32"):
        small("psgn", image_size=100)
    model, batch = small("psgn", loss="earth_movers"), ellipsoids(num_points=100)
    with pytest.raises(ValueError, match=r"100 true points, .*one to each of 304 .*num_surface_points=304 or more"):
        model._distance(model(batch["images"][:, 0]), batch["surface_points"], None)
