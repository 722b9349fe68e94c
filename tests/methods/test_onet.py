import math
import re

import pytest
import torch
from torch import nn

from methods.objects import object_generators
from methods.occupancy_networks import ConditionalNorm, LatentEncoder, PointCode, VoxelCode, official_names
from methods.onet import OccupancyNetwork
from tests.methods.ellipsoids import batch_for, ellipsoids, fit, loader, one_from_three_sides, part_of, small, trainer

CONDITIONS = ("image", "points", "voxels", "nothing")


def _count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_networks_have_the_published_sizes():
    with torch.device("meta"):
        image = OccupancyNetwork()
        points = OccupancyNetwork(conditioned_on="points", code_size=512)
        voxels = VoxelCode(256)
    assert (_count(image), _count(image.decoder)) == (13_414_465, 2_106_625)
    assert _count(points.decoder) == 3_548_417
    convolutions = [(1, 32), (32, 64), (64, 128), (128, 256), (256, 512)]
    assert _count(voxels) == sum(27 * i * o + o for i, o in convolutions) + 512 * 8 * 256 + 256


def test_conditional_norm_is_plain_at_first_and_affine_in_the_code_later(generator):
    norm = ConditionalNorm(3, 5)
    x, code = torch.randn(2, 7, 5, generator=generator), torch.randn(2, 3, generator=generator)
    plain = (x - x.mean((0, 1))) / (x.var((0, 1), unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(norm(x, code), plain)
    nn.init.normal_(norm.gamma.weight)
    nn.init.normal_(norm.beta.weight)
    expected = plain * (code @ norm.gamma.weight.T + 1)[:, None] + (code @ norm.beta.weight.T)[:, None]
    torch.testing.assert_close(norm(x, code), expected)


@pytest.mark.parametrize("encoder", [PointCode(4, 8), LatentEncoder(4, 8)])
def test_encoders_of_points_do_not_see_their_order(encoder, generator):
    points = torch.randn(2, 20, 3, generator=generator)
    order = torch.randperm(20, generator=generator)
    if isinstance(encoder, PointCode):
        torch.testing.assert_close(encoder(points[:, order]), encoder(points))
    else:
        occupancy = points[..., 0] > 0
        torch.testing.assert_close(encoder(points[:, order], occupancy[:, order]), encoder(points, occupancy))


@pytest.mark.parametrize("condition", CONDITIONS)
def test_method_reads_what_its_encoder_and_its_loss_need(condition):
    source = {"image": {"images"}, "points": {"surface_points"}, "voxels": {"voxels"}, "nothing": set()}[condition]
    assert small(f"onet_{condition}").reads == source | {"query_points", "query_occupancy"}


@pytest.mark.parametrize("condition", CONDITIONS)
def test_one_object_is_overfitted(condition, tmp_path):
    batch = one_from_three_sides(image_size=64, num_points=1000)
    model = small(f"onet_{condition}", coarse_resolution=16)
    fit(model, tmp_path, 120, batch)
    if condition == "nothing":
        # what the posterior says of the shape; the prior's samples are of many shapes
        model.test_code = lambda batch: model.latent_encoder(batch["query_points"], batch["query_occupancy"])[0]
    radii = batch["surface_points"][0].abs().amax(0)
    for shape in model.reconstruct(batch):
        assert not shape.is_empty
        assert ((shape.vertices / radii).square().sum(-1).sqrt() - 1).abs().mean() < 0.12
    logged = trainer(tmp_path, 1).validate(model, loader(batch), verbose=False)[0]
    assert logged["val/point_iou"] > 0.8


def test_field_is_the_level_minus_the_logit_and_negative_inside():
    model = small("onet_image", threshold=0.2).eval()
    assert model.level == pytest.approx(math.log(0.2 / 0.8))
    batch = batch_for("onet_image", num_objects=1)
    code = model.test_code(batch)
    logits = model.decoder(batch["query_points"], code)
    values = model.field(code)(batch["query_points"][0])
    torch.testing.assert_close(values, model.level - logits[0])
    assert torch.equal(values < 0, logits[0].sigmoid() > 0.2)


def test_loss_is_the_sum_over_points_and_the_mean_over_objects(monkeypatch):
    monkeypatch.setattr(OccupancyNetwork, "log_dict", lambda *_, **__: None)
    model, batch = small("onet_image"), batch_for("onet_image", num_objects=3)
    model.eval()  # batch statistics would differ from the test's
    loss = model.training_step(batch, 0)
    logits = model.decoder(batch["query_points"], model.encoder(batch["images"][:, 0]))
    p = logits.sigmoid()
    terms = torch.where(batch["query_occupancy"], -p.log(), -(1 - p).log())
    torch.testing.assert_close(loss, terms.sum() / 3)


def test_unconditional_loss_adds_the_divergence_from_the_prior(monkeypatch):
    logged = {}
    model, batch = small("onet_nothing"), batch_for("onet_nothing")
    monkeypatch.setattr(model, "log_dict", logged.update)
    loss = model.training_step(batch, 0)
    mean, log_std = model.latent_encoder(batch["query_points"], batch["query_occupancy"])
    posterior = torch.distributions.Normal(mean, log_std.exp())
    kl = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(-1).mean()
    torch.testing.assert_close(logged["train/kl"], kl.detach())
    torch.testing.assert_close(loss.detach(), logged["train/kl"] + logged["train/cross_entropy"])


def test_unconditional_shapes_are_those_of_their_index():
    model = small("onet_nothing").eval()
    batch = batch_for("onet_nothing", 4)
    codes = model.test_code(batch)
    assert not torch.equal(codes[0], codes[1])
    assert torch.equal(model.test_code(part_of(batch, slice(1, 2))), codes[1:])


def test_point_encoder_reads_a_noisy_draw_of_the_surface(monkeypatch):
    model, seen = small("onet_points", point_noise=0.005, num_input_points=2000), []
    monkeypatch.setattr(model.encoder, "forward", lambda points: seen.append(points) or torch.zeros(2, 8))
    batch = ellipsoids(num_objects=2, num_points=5000)
    model.code(batch, object_generators(batch, 2))
    (points,) = seen
    assert points.shape == (2, 2000, 3)
    radii = batch["surface_points"].abs().amax(1, keepdim=True)
    distance = ((points / radii).norm(dim=-1) - 1) * radii.mean(-1)
    assert 0.003 < distance.std() < 0.007
    assert len(points[0].unique(dim=0)) == 2000


def test_point_iou_is_one_for_the_truth_and_for_nothing_in_nothing(tmp_path):
    model, batch = small("onet_image"), batch_for("onet_image", num_objects=2)
    batch["query_occupancy"][1] = False
    truth = batch["query_occupancy"]
    answers = iter(truth.float().mul(20).sub(10).split(1))
    model.decoder.forward = lambda *_: next(answers)
    logged = trainer(tmp_path, 1).validate(model, loader(batch), verbose=False)[0]
    assert logged["val/point_iou"] == 1


def _official(model):
    """A state dict under the authors' names, with their convolutions of kernel 1 in the decoder."""
    twins = {"encoder.fc"} if model.conditioned_on == "points" else {"encoder.fc_c"}
    inverse = {
        new: old
        for old, new in official_names().items()
        if old not in twins and not re.search(r"fc_(gamma|beta)$", old)
    }
    state = {}
    for name, tensor in model.state_dict().items():
        new = max((new for new in inverse if name.startswith(f"{new}.")), key=len)
        is_conv = name.startswith("decoder") and tensor.dim() == 2 and model.encoder is not None
        state[inverse[new] + name.removeprefix(new)] = tensor[..., None] if is_conv else tensor
    return state


EXPECTED_NAMES = {
    "image": {
        "encoder.features.layer1.0.conv1.weight", "encoder.fc.bias", "decoder.fc_p.weight",
        "decoder.block3.bn_1.conv_gamma.weight", "decoder.block0.bn_0.bn.running_mean", "decoder.bn.conv_beta.bias",
        "decoder.block4.fc_1.weight", "decoder.fc_out.bias", "decoder.bn.bn.num_batches_tracked",
    },
    "points": {"encoder.fc_pos.weight", "encoder.block_2.fc_1.bias", "encoder.block_4.shortcut.weight",
               "encoder.fc_c.bias"},
    "voxels": {"encoder.conv_in.weight", "encoder.conv_0.weight", "encoder.conv_3.bias", "encoder.fc.weight"},
    "nothing": {"encoder_latent.fc_pos.weight", "encoder_latent.fc_0.weight", "encoder_latent.fc_1.weight",
                "encoder_latent.fc_3.bias", "encoder_latent.fc_mean.weight", "encoder_latent.fc_logstd.bias",
                "decoder.fc_z.weight", "decoder.block0.fc_0.weight", "decoder.fc_out.weight"},
}  # fmt: skip


@pytest.mark.parametrize("condition", CONDITIONS)
def test_official_state_dicts_load_under_their_own_names(condition, tmp_path):
    trained = small(f"onet_{condition}")
    for parameter in trained.parameters():
        parameter.data.normal_()
    state = _official(trained)
    assert state.keys() >= EXPECTED_NAMES[condition]
    assert len(state) == len(trained.state_dict())
    torch.save({"model": state, "optimizer": {}, "it": 5}, tmp_path / "official.pt")
    model = small(f"onet_{condition}", weights=str(tmp_path / "official.pt"))
    model.load_initial_weights()
    for name, value in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_imagenet_weights_load_with_torchvisions_names_and_without_the_classifier(tmp_path):
    source = small("onet_image").encoder.resnet.state_dict()
    source = {name: torch.rand_like(value.float()).to(value.dtype) for name, value in source.items()}
    torch.save(source | {"fc.weight": torch.ones(1000, 32), "fc.bias": torch.ones(1000)}, tmp_path / "resnet18.pth")
    model = small("onet_image", encoder_weights=str(tmp_path / "resnet18.pth"))
    model.load_initial_weights()
    assert all(torch.equal(model.encoder.resnet.state_dict()[name], value) for name, value in source.items())


def test_random_image_encoder_is_said_once(tmp_path, caplog):
    model, batch = small("onet_image"), batch_for("onet_image")
    with caplog.at_level("INFO"):
        for _ in range(2):
            trainer(tmp_path, 1).fit(model, loader(batch))
    assert sum("starts from random weights" in record.message for record in caplog.records) == 1


def test_settings_that_contradict_are_refused():
    with pytest.raises(ValueError, match=r"threshold: 0, expected an occupancy between 0 and 1"):
        small("onet_image", threshold=0)
    with pytest.raises(ValueError, match="of an image encoder, but the model reads voxels"):
        small("onet_voxels", encoder_weights="resnet18.pth")
    with pytest.raises(ValueError, match="voxel_resolution: 24, expected a multiple of 16"):
        small("onet_voxels", voxel_resolution=24)


def test_refinement_moves_vertices_to_the_level_also_in_inference_mode(tmp_path):
    batch = one_from_three_sides(image_size=64, num_points=1000)
    model = fit(small("onet_voxels"), tmp_path, 60, batch)
    errors = []
    for steps in (0, 40):
        model.refinement_steps = steps
        with torch.inference_mode():
            shape = model.reconstruct(part_of(batch, slice(0, 1)))[0]
            field = model.field(model.test_code(part_of(batch, slice(0, 1))))
            errors.append(field(shape.vertices).abs().mean().item())
    assert errors[1] < 0.8 * errors[0]
