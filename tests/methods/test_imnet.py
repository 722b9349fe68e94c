import pytest
import torch
import torch.nn.functional as F

from methods.imnet import ImageEncoder, IMNetAutoencoder, IMNetSVR, ImplicitDecoder, VoxelEncoder, official_names
from tests.methods.ellipsoids import (
    IMNET_SIZES,
    batch_for,
    ellipsoids,
    fit,
    loader,
    one_from_three_sides,
    small,
    trainer,
)


def _count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_networks_have_the_published_sizes():
    with torch.device("meta"):
        autoencoder, svr = IMNetAutoencoder(), IMNetSVR()
        assert tuple(svr.image_encoder(torch.zeros(2, 3, 128, 128, device="meta")).shape) == (2, 256)
        assert tuple(svr.encoder(torch.zeros(2, 64, 64, 64, device="meta")).shape) == (2, 256)
    assert (_count(autoencoder.decoder), _count(autoencoder)) == (3_054_593, 10_003_713)
    assert _count(svr.image_encoder) == 17_462_976


def test_decoder_is_the_perceptron_over_point_and_code(generator):
    decoder = ImplicitDecoder(5, 2, init_std=1.5)
    points, codes = torch.randn(2, 9, 3, generator=generator), torch.rand(2, 5, generator=generator)
    x = torch.cat([points, codes[:, None].expand(-1, 9, -1)], dim=-1)
    for layer in decoder.layers[:-1]:
        x = F.leaky_relu(layer(x), 0.02)
    x = decoder.layers[-1](x)[..., 0]
    expected = torch.where(x > 1, 0.99 + 0.01 * x, torch.where(x < 0, 0.01 * x, x))
    torch.testing.assert_close(decoder(points, codes), expected)
    assert (x > 1).any()
    assert (x < 0).any()


def test_images_are_grey_and_inverted_so_that_white_is_nothing():
    encoder = ImageEncoder(32, 2, 4)
    seen = []
    encoder.conv.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    encoder(torch.ones(2, 3, 32, 32))
    assert seen[0].shape == (2, 1, 32, 32)
    assert seen[0].abs().max() < 1e-6
    encoder(torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(2, 3, 32, 32))
    torch.testing.assert_close(seen[1], torch.full((2, 1, 32, 32), 1 - 0.299))


def test_codes_are_between_zero_and_one_and_of_each_object_alone():
    encoder = VoxelEncoder(16, 4, 8)
    voxels = ellipsoids(num_objects=3, resolution=16)["voxels"]
    codes = encoder(voxels)
    assert ((codes > 0) & (codes < 1)).all()
    torch.testing.assert_close(encoder(voxels[1:2]), codes[1:2], atol=1e-5, rtol=1e-4)


def test_field_is_empty_outside_the_unit_cube_and_negative_inside_the_shape():
    model = small("imnet_autoencoder").eval()
    model.decoder.forward = lambda points, _: torch.full(points.shape[:2], 0.9)
    field = model.field(torch.zeros(1, 8))
    points = torch.tensor([[0.0, 0, 0], [0.49, -0.49, 0.49], [0.51, 0, 0], [0, 0, -0.6]])
    torch.testing.assert_close(field(points), torch.tensor([-0.4, -0.4, 0.5, 0.5]))


def _mean_level_error(shape, batch):
    radii = batch["surface_points"][0].abs().amax(0)
    return ((shape.vertices / radii).square().sum(-1).sqrt() - 1).abs().mean()


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """Checkpoint of an autoencoder that knows one ellipsoid, and the ellipsoid."""
    folder = tmp_path_factory.mktemp("autoencoder")
    torch.manual_seed(0)
    batch = one_from_three_sides(image_size=32, resolution=8, num_points=1000)
    model = small("imnet_autoencoder", coarse_resolution=16, decoder_width=8, init_std=0.15)
    run = trainer(folder, 250)
    run.fit(model, loader(*[batch] * 250))
    run.save_checkpoint(folder / "autoencoder.ckpt")
    return folder / "autoencoder.ckpt", batch


def _svr(path, **changes):
    sizes = IMNET_SIZES | {"coarse_resolution": 16, "decoder_width": 8, "image_size": 32, "image_width": 4}
    return IMNetSVR(
        optimizer=lambda p: torch.optim.Adam(p, lr=3e-3), autoencoder=str(path) if path else None, **(sizes | changes)
    )


def test_one_object_is_overfitted_by_the_autoencoder_and_then_from_its_image(autoencoder, tmp_path):
    path, batch = autoencoder
    known = small("imnet_autoencoder", coarse_resolution=16, decoder_width=8, weights=str(path))
    known.load_initial_weights()
    shape = known.eval().reconstruct(batch)[0]
    assert _mean_level_error(shape, batch) < 0.12
    model = _svr(path)
    fit(model, tmp_path, 100, batch)
    for shape in model.reconstruct({"images": batch["images"]}):
        assert _mean_level_error(shape, batch) < 0.15


def test_the_autoencoder_behind_the_images_stays_as_it_was(autoencoder, tmp_path):
    path, batch = autoencoder
    model = fit(_svr(path), tmp_path, 3, batch)
    trained = torch.load(path, weights_only=True)["state_dict"]
    for name, value in trained.items():
        assert torch.equal(model.state_dict()[name], value), name
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"image_encoder"}


def test_regression_without_an_autoencoder_or_with_one_of_another_size_is_refused(autoencoder, tmp_path):
    path, batch = autoencoder
    with pytest.raises(ValueError, match=r"none is given; train one with .*autoencoder=<run>/checkpoints/last\.ckpt"):
        trainer(tmp_path, 1).fit(_svr(None), loader(batch))
    with pytest.raises(
        ValueError, match=r"has shape \(8, 4, 4, 4, 4\), but the model's .* has \(9, 4, 4, 4, 4\); set the"
    ):
        trainer(tmp_path, 1).fit(_svr(path, code_size=9), loader(batch))


def _official(model):
    inverse = {new: old for old, new in official_names().items()}
    state = {}
    for name, tensor in model.state_dict().items():
        new = max((new for new in inverse if name.startswith(f"{new}.")), key=len)
        state[inverse[new] + name.removeprefix(new)] = tensor
    return state


def test_official_state_dicts_load_under_their_own_names(tmp_path):
    sizes = IMNET_SIZES | {"voxel_resolution": 64, "init_std": 0.3}
    trained = IMNetAutoencoder(**sizes)
    state = _official(trained)
    assert state.keys() == {
        *(f"encoder.conv_{i}.weight" for i in range(1, 6)), "encoder.conv_5.bias",
        *(f"generator.linear_{i}.{part}" for i in range(1, 8) for part in ("weight", "bias")),
    }  # fmt: skip
    torch.save(state, tmp_path / "IM_AE.pth")
    model = IMNetAutoencoder(**sizes, weights=str(tmp_path / "IM_AE.pth"))
    model.load_initial_weights()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in trained.state_dict().items())


def test_official_regression_loads_without_the_voxel_encoder_it_was_trained_with(tmp_path):
    trained = small("imnet_svr")
    state = {name: value for name, value in _official(trained).items() if not name.startswith("encoder")}
    assert {"img_encoder.res_3.conv_s.weight", "img_encoder.res_8.bn_2.running_var", "img_encoder.conv_10.bias"} <= (
        state.keys()
    )
    torch.save(state, tmp_path / "IM_SVR.pth")
    model = IMNetSVR(**IMNET_SIZES, image_size=32, image_width=4, weights=str(tmp_path / "IM_SVR.pth"))
    model.load_initial_weights()
    images = batch_for("imnet_svr")["images"]
    with torch.no_grad():
        assert torch.equal(model.eval().code({"images": images}), trained.eval().code({"images": images}))


def test_sizes_that_do_not_halve_are_refused():
    with pytest.raises(ValueError, match="voxel_resolution: 48, expected a power of two"):
        small("imnet_autoencoder", voxel_resolution=48)
    with pytest.raises(ValueError, match="image_size: 100, expected a multiple of 32"):
        small("imnet_svr", image_size=100)
