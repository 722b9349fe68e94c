"""What every method that learns from many objects must do; what is special to one is tested beside its name."""

import functools

import pytest
import torch
from torch import nn

from callbacks.memory_format import ChannelsLast, order_weights
from methods.objects import object_generators
from ops.nearest import nearest_distances
from tests.methods.ellipsoids import METHODS, batch_for, ellipsoids, loader, part_of, same, small, trainer

TRAINED = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """By name: a model that has seen a little, and a threshold at which its shapes are not empty; not to be changed."""
    return functools.cache(lambda name: _trained(name, tmp_path_factory.mktemp(name)))


def _trained(name, folder):
    model = small(name)
    batches = [batch_for(name, seed) for seed in range(2 if name == "psgn_hourglass" else 8)]
    trainer(folder, len(batches)).fit(model, loader(*batches))
    model.eval()
    batch = batch_for(name, 7, num_objects=1)
    with torch.no_grad():
        if name.startswith("r2n2"):
            model.threshold = model(batch["images"]).sigmoid().median().item()
        elif name.startswith("imnet"):
            model.threshold = model.decoder(batch["query_points"], model.code(batch)).median().item()
        elif name.startswith("onet"):
            model.threshold = 0.5
            logits = model.level - model.field(model.test_code(batch))(batch["query_points"])
            model.threshold = logits.sigmoid().median().item()
    return model


@TRAINED
def test_gradients_are_finite_and_reach_every_trained_parameter(name, monkeypatch):
    model = small(name).train()
    for key in ("log", "log_dict"):
        monkeypatch.setattr(model, key, lambda *_, **__: None)
    monkeypatch.setattr(type(model), "global_step", 0)
    for parameter in model.parameters():
        # layers that start at zero hide those before them
        parameter.data += 0.01 * torch.randn(parameter.shape)
    batch = batch_for(name, num_views=2 if name.startswith("r2n2") else 1)
    loss = model.training_step({key: batch[key] for key in model.reads}, 0)
    loss.backward()
    assert loss.isfinite()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            # without a second view, or with a best guess alone, some are zero; none may be all of the network
    assert sum(p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad) > 5


@TRAINED
def test_prediction_depends_on_nothing_of_an_earlier_batch(name, trained):
    model = trained(name)
    first, second = batch_for(name, 7), batch_for(name, 8)
    with torch.no_grad():
        expected = model.test_step(first, 0)
        model.test_step(second, 0)
        assert same(model.test_step(first, 0), expected)
        assert not expected["shapes"][0].is_empty
        assert same(model.test_step(first, 0)["shapes"], expected["shapes"])


@TRAINED
def test_objects_of_a_batch_come_out_as_one_by_one(name, trained):
    model = trained(name)
    batch = batch_for(name, 7, num_objects=3)
    with torch.no_grad():
        together = model.reconstruct(batch)
        alone = [model.reconstruct(part_of(batch, slice(i, i + 1)))[0] for i in range(3)]
    assert len(together) == 3
    assert not together[0].is_empty
    for shape, other in zip(together, alone, strict=True):
        assert shape.is_empty == other.is_empty
        if not shape.is_empty:
            # other last digits in another batch may turn single cells of an untrained field
            assert len(shape.vertices) == pytest.approx(len(other.vertices), rel=0.005)
            distances, _ = nearest_distances(shape.vertices, other.vertices)
            assert distances.quantile(0.99) < 1e-3


@TRAINED
def test_a_resumed_run_ends_bit_for_bit_as_a_straight_one(name, tmp_path):
    # where a resumed stream of batches goes on is the dataset's; all that is random in a step is the method's
    batches = loader(*[batch_for(name)] * 6)
    straight = small(name)
    trainer(tmp_path, 6).fit(straight, batches)
    half = trainer(tmp_path, 3)
    half.fit(small(name), batches)
    half.save_checkpoint(tmp_path / "half.ckpt")
    torch.rand(3)  # the global generator is not where it was
    resumed = small(name)
    trainer(tmp_path, 6).fit(resumed, batches, ckpt_path=tmp_path / "half.ckpt")
    assert resumed.global_step == 6
    for key, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


@TRAINED
def test_a_step_in_half_precision_is_near_one_in_full_and_shapes_come_out_of_it(name, tmp_path):
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        run = trainer(tmp_path, 1, precision=precision)
        model = small(name)
        run.fit(model, loader(batch_for(name)))
        losses[precision] = run.callback_metrics["train/loss"]
        assert all(parameter.isfinite().all() for parameter in model.parameters())
    # bfloat16 has eight bits, so 0.4 % a number; a difference of codes behind a batch norm of two objects has fewer
    tolerance = 0.2 if name == "imnet_svr" else 0.03
    torch.testing.assert_close(losses["bf16-mixed"], losses["32-true"], rtol=tolerance, atol=0, check_dtype=False)
    (predicted,) = run.predict(model, loader(batch_for(name)))
    assert len(predicted["shapes"]) == len(batch_for(name)["object_index"])
    assert all(shape.vertices.isfinite().all() for shape in predicted["shapes"])


def test_channels_last_refuses_what_would_corrupt_memory():
    with pytest.raises(ValueError, match=r"1 x 1 convolution of 4 channels.*fewer than 16"):
        order_weights(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 16, 1, stride=2)))


@pytest.mark.parametrize("name", ["r2n2_residual"])
def test_channels_last_changes_no_more_than_rounding_and_resumes_bit_for_bit(name, tmp_path):
    batches, callbacks = loader(*[batch_for(name)] * 4), [ChannelsLast()]
    plain, straight, resumed = small(name), small(name), small(name)
    trainer(tmp_path, 1).fit(plain, batches)
    first = trainer(tmp_path, 1, callbacks=callbacks)
    first.fit(straight, batches)
    for one, other in zip(plain.parameters(), straight.parameters(), strict=True):
        # a first step of Adam has the sign of the gradient, and where that is next to nothing any sign
        assert ((one - other).abs() < 1e-5).float().mean() > 0.99
    first.save_checkpoint(tmp_path / "first.ckpt")
    straight = small(name)
    trainer(tmp_path, 3, callbacks=callbacks).fit(straight, batches)
    trainer(tmp_path, 3, callbacks=callbacks).fit(resumed, batches, ckpt_path=tmp_path / "first.ckpt")
    for key, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    weights = [p for p in resumed.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert weights
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)


@TRAINED
def test_shapes_leave_in_the_frame_of_the_dataset(name, trained):
    model = trained(name)
    batch = batch_for(name, 7)
    with torch.no_grad():
        for shape, raw in zip(model.test_step(batch, 0)["shapes"], model.reconstruct(batch), strict=True):
            torch.testing.assert_close(shape.vertices, 2 * raw.vertices)


@TRAINED
def test_training_reads_nothing_but_what_the_method_declares(name, tmp_path):
    model = small(name)
    batch = batch_for(name)
    trainer(tmp_path, 1).fit(model, loader({key: batch[key] for key in model.reads}))
    assert model.global_step == 1


@pytest.mark.parametrize("name", ["r2n2_gru", "psgn", "onet_points", "imnet_autoencoder"])
def test_a_run_starts_from_given_weights_once_and_a_checkpoint_needs_none(name, tmp_path):
    first = trainer(tmp_path, 2)
    first.fit(small(name), loader(batch_for(name), batch_for(name, 1)))
    first.save_checkpoint(tmp_path / "first.ckpt")
    model = small(name, weights=str(tmp_path / "first.ckpt"))
    rates = []
    model.on_train_start = lambda: rates.append({k: v.clone() for k, v in model.state_dict().items()})
    second = trainer(tmp_path, 1)
    second.fit(model, loader(batch_for(name)))
    for key, value in first.model.state_dict().items():
        assert torch.equal(rates[0][key], value), key
    trained = {key: value.clone() for key, value in model.state_dict().items()}
    second.test(model, loader(batch_for(name)), verbose=False)
    assert all(torch.equal(value, trained[key]) for key, value in model.state_dict().items())
    second.save_checkpoint(tmp_path / "second.ckpt")
    elsewhere = small(name, weights=str(tmp_path / "moved.ckpt"))
    trainer(tmp_path, 1).test(elsewhere, loader(batch_for(name)), ckpt_path=tmp_path / "second.ckpt", verbose=False)
    with pytest.raises(ValueError, match=r"moved\.ckpt: no such file"):
        trainer(tmp_path, 1).fit(small(name, weights=str(tmp_path / "moved.ckpt")), loader(batch_for(name)))


def test_randomness_of_an_object_is_a_function_of_its_index():
    batch = ellipsoids(seed=3)
    first, second = (torch.rand(3, generator=g) for g in object_generators(batch, 2))
    assert not torch.equal(first, second)
    (again,) = object_generators(part_of(batch, slice(1, 2)), 1)
    assert torch.equal(torch.rand(3, generator=again), second)


@pytest.mark.parametrize(("name", "change"), [("r2n2_gru", "num_objects"), ("psgn", "size"), ("imnet_svr", "size")])
def test_images_of_another_size_are_refused_with_the_setting(name, change):
    model, size = small(name), METHODS[name][1]
    batch = ellipsoids(image_size=size + 33, resolution=METHODS[name][2])
    with pytest.raises(ValueError, match=rf"{size + 33}x{size + 33} pixels.*made for {size}x{size}.*image_size={size}"):
        model.reconstruct(batch)


@pytest.mark.parametrize("name", ["onet_voxels", "imnet_autoencoder"])
def test_voxels_of_another_resolution_are_refused_with_the_setting(name):
    model, resolution = small(name), METHODS[name][2]
    with pytest.raises(ValueError, match=rf"voxels are 64\^3.*made for {resolution}\^3.*voxel_resolution={resolution}"):
        model.reconstruct(ellipsoids(resolution=64))


@pytest.mark.parametrize("name", ["psgn", "onet_image", "imnet_svr"])
def test_methods_of_one_view_refuse_to_train_on_several(name, tmp_path):
    with pytest.raises(ValueError, match=r"2 views of each object, but the method learns from one; set .*num_views=1"):
        trainer(tmp_path, 1).fit(small(name), loader(batch_for(name, num_views=2)))
