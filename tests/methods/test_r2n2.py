import math

import pytest
import torch

from methods.r2n2 import ENCODER_SKIPS, R2N2, Block3d, GRUCell, ImageEncoder, LSTMCell, VoxelDecoder, unpool
from tests.methods.ellipsoids import R2N2_SIZES, batch_for, fit, small


def _count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("settings", "encoder", "decoder", "total"),
    [
        ({"recurrence": "lstm", "kernel_size": 1, "residual": False}, 4_550_656, 1_163_298, 30_929_314),
        ({"recurrence": "gru", "kernel_size": 1, "residual": False}, 4_550_656, 1_163_298, 30_929_314),
        ({"recurrence": "lstm", "kernel_size": 3, "residual": False}, 4_550_656, 1_163_298, 32_207_266),
        ({"recurrence": "gru", "kernel_size": 3, "residual": False}, 4_550_656, 1_163_298, 32_207_266),
        ({}, 7_252_832, 2_222_562, 35_968_706),
    ],
)
def test_networks_have_the_published_sizes(settings, encoder, decoder, total):
    with torch.device("meta"):
        model = R2N2(**settings)
    assert (_count(model.encoder), _count(model.decoder), _count(model)) == (encoder, decoder, total)
    assert tuple(model(torch.zeros(2, 3, 3, 127, 127, device="meta")).shape) == (2, 32, 32, 32)


def test_padded_pooling_gives_the_maps_of_the_paper():
    encoder = ImageEncoder(127, [2] * 6, 8, 0.1, is_residual=False)
    sizes = []
    for block in encoder.blocks:
        block.register_forward_hook(lambda _, args, __: sizes.append(args[0].shape[-1]))
    encoder.linear.register_forward_pre_hook(lambda _, args: sizes.append(math.isqrt(args[0].shape[-1] // 2)))
    encoder(torch.rand(1, 3, 127, 127))
    assert sizes == [127, 64, 33, 17, 9, 5, 3]


def _pre_activation(gate, feature, state):
    """W x + U * h + b with the convolution as a loop over the cells of a 4^3 grid."""
    weight, bias = gate.state.weight, gate.state.bias
    result = (gate.feature.weight @ feature).view_as(state)
    reach = weight.shape[-1] // 2
    padded = torch.nn.functional.pad(state, [reach] * 6)
    for x in range(4):
        for y in range(4):
            for z in range(4):
                window = padded[:, x : x + 2 * reach + 1, y : y + 2 * reach + 1, z : z + 2 * reach + 1]
                result[:, x, y, z] += (weight * window).sum((1, 2, 3, 4)) + bias
    return result


@pytest.mark.parametrize("kernel_size", [1, 3])
@torch.no_grad()
def test_lstm_without_output_gate_follows_its_equations(kernel_size, generator):
    cell = LSTMCell(5, 2, kernel_size).double()
    feature = torch.randn(5, generator=generator, dtype=torch.float64)
    hidden, memory = torch.randn(2, 2, 4, 4, 4, generator=generator, dtype=torch.float64)
    forget, add, candidate = (_pre_activation(g, feature, hidden) for g in (cell.forget, cell.input, cell.candidate))
    expected = forget.sigmoid() * memory + add.sigmoid() * candidate.tanh()
    new_hidden, new_memory = cell(feature[None], (hidden[None], memory[None]))
    torch.testing.assert_close(new_memory[0], expected)
    torch.testing.assert_close(new_hidden[0], expected.tanh())


@torch.no_grad()
def test_gru_follows_its_equations(generator):
    cell = GRUCell(5, 2, 3).double()
    feature = torch.randn(5, generator=generator, dtype=torch.float64)
    hidden = torch.randn(2, 4, 4, 4, generator=generator, dtype=torch.float64)
    update = _pre_activation(cell.update, feature, hidden).sigmoid()
    reset = _pre_activation(cell.reset, feature, hidden).sigmoid()
    expected = update * hidden + (1 - update) * _pre_activation(cell.candidate, feature, reset * hidden).tanh()
    torch.testing.assert_close(cell(feature[None], (hidden[None],) * 2)[0][0], expected)


def test_unpooling_puts_a_value_in_one_of_eight_cells_or_in_all(generator):
    grid = torch.rand(2, 3, 4, 4, 4, generator=generator)
    zero, nearest = unpool(grid, "zero"), unpool(grid, "nearest")
    assert zero.shape == nearest.shape == (2, 3, 8, 8, 8)
    assert torch.equal(zero[..., ::2, ::2, ::2], grid)
    assert (zero != 0).sum() == grid.numel()
    for corner in range(8):
        offset = [slice(corner >> bit & 1, None, 2) for bit in range(3)]
        assert torch.equal(nearest[..., offset[0], offset[1], offset[2]], grid)


def test_block_doubles_the_grid_and_convolves_it(generator):
    for unpooling in ("zero", "nearest"):
        block = Block3d(3, 5, 0.1, is_residual=False, unpooling=unpooling).double()
        grid = torch.randn(2, 3, 4, 4, 4, generator=generator, dtype=torch.float64)
        expected = torch.nn.functional.leaky_relu(block.conv(unpool(grid, unpooling)), 0.1)
        torch.testing.assert_close(block(grid), expected)
        (gradient,) = torch.autograd.grad(block(grid).square().sum(), block.conv.weight)
        (other,) = torch.autograd.grad(expected.square().sum(), block.conv.weight)
        torch.testing.assert_close(gradient, other)


def test_residual_shortcuts_are_those_of_the_released_code():
    encoder = ImageEncoder(31, [2, 3, 4, 5, 6, 6], 8, 0.01, is_residual=True)
    skips = [None if b.shortcut is None else b.shortcut.kernel_size for b in encoder.blocks]
    assert skips == [None, (1, 1), (1, 1), None, (1, 1), None]
    assert [ENCODER_SKIPS[i] for i in (0, 3, 5)] == ["none", "none", "identity"]
    decoder = VoxelDecoder(8, [8, 8, 4, 2], 0.01, is_residual=True, unpooling="zero")
    shortcuts = [b.shortcut and (b.shortcut.in_channels, b.shortcut.kernel_size[0]) for b in decoder.blocks]
    # of the last block it takes what the block's own first convolution gives
    assert shortcuts == [None, None, (8, 1), (2, 3)]


def test_prediction_can_be_read_after_each_view(tmp_path):
    model = small("r2n2_gru")
    images = batch_for("r2n2_gru", num_views=4)["images"]
    with torch.no_grad():
        after = model.logits_after_each_view(images)
        assert after.shape == (2, 4, 32, 32, 32)
        for view in range(4):
            torch.testing.assert_close(after[:, view], model(images[:, : view + 1]), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(after[:, 0], after[:, 3], atol=1e-3)


def test_sum_is_the_mean_times_the_number_of_voxels_and_the_mean_is_logged(monkeypatch):
    losses, means = [], []
    for reduction in ("mean", "sum"):
        model = small("r2n2_lstm", reduction=reduction)
        monkeypatch.setattr(model, "log_dict", lambda *_, **__: None)
        losses.append(model.training_step(batch_for("r2n2_lstm"), 0))
        means.append(model.terms["train/cross_entropy"])
    torch.testing.assert_close(losses[1], losses[0] * 32**3)
    torch.testing.assert_close(means[0], means[1])


def test_weight_decay_leaves_biases_alone():
    model = small("r2n2_residual", optimizer=lambda p: torch.optim.Adam(p, lr=1e-4, weight_decay=5e-5))
    weights, biases = model.configure_optimizers()["optimizer"].param_groups
    assert (weights["weight_decay"], biases["weight_decay"]) == (5e-5, 0)
    assert {p.dim() for p in biases["params"]} == {1}
    assert sum(p.numel() for group in (weights, biases) for p in group["params"]) == _count(model)


def test_defaults_lower_the_rate_where_the_released_code_does():
    with torch.device("meta"):
        model = R2N2()
    rates = [1e-4 * model.lr_schedule(step / model.max_steps) for step in (0, 20_000, 20_001, 59_999)]
    assert rates == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5])


def test_one_object_is_overfitted_from_any_number_of_views(tmp_path):
    model = small("r2n2_gru", optimizer=lambda p: torch.optim.Adam(p, lr=1e-2), decoder_channels=(8, 8, 4, 4))
    batch = batch_for("r2n2_gru", num_objects=1, num_views=2)
    fit(model, tmp_path, 60, batch)
    with torch.no_grad():
        outputs = model.test_step(batch, 0)
    predicted, truth = outputs["voxels"][0] > 0.4, batch["voxels"][0]
    iou = (predicted & truth).sum() / (predicted | truth).sum()
    assert iou > 0.9
    # the surface of the ellipsoid, in the dataset's frame, twice as large
    radii = batch["surface_points"][0].abs().amax(0)
    torch.testing.assert_close(outputs["shapes"][0].vertices.amax(0), 2 * radii, atol=0.08, rtol=0)
    assert outputs["shapes"][0].faces is not None


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="encoder_channels: 3 numbers, expected 6"):
        R2N2(**(R2N2_SIZES | {"encoder_channels": (1, 2, 3)}))
    with pytest.raises(ValueError, match="last two are 2 and 3, but a residual network adds"):
        R2N2(**(R2N2_SIZES | {"encoder_channels": (2, 2, 2, 2, 2, 3)}))
    with pytest.raises(ValueError, match="decoder_channels: 2 numbers, expected 4"):
        R2N2(**(R2N2_SIZES | {"decoder_channels": (1, 2)}))
    with pytest.raises(ValueError, match=r"threshold: 1\.5, expected an occupancy between 0 and 1"):
        small("r2n2_gru", threshold=1.5)
