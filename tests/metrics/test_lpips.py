"""LPIPS against torchmetrics' own, whose network torchvision would give; both with random weights."""

import logging
from pathlib import Path

import pytest
import torch
from torch import nn
from torchmetrics.functional.image import lpips as reference

from metrics.lpips import BACKBONES, LINEAR, LPIPS, LPIPSScore, alexnet_features, vgg16_features
from ops.types import ObjectBatch

CHANNELS = {"alex": [64, 192, 384, 256, 256], "vgg": [64, 128, 256, 512, 512]}


def checkpoint(network: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    features, _ = alexnet_features() if network == "alex" else vgg16_features()
    return {f"features.{k}": v for k, v in features.state_dict().items()} | {"classifier.1.weight": torch.zeros(2)}


@pytest.mark.parametrize("network", ["alex", "vgg"])
def test_distances_equal_those_of_torchmetrics(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = checkpoint(network)
    features, taps = alexnet_features() if network == "alex" else vgg16_features()
    features.load_state_dict({k.removeprefix("features."): v for k, v in weights.items() if "features" in k})
    monkeypatch.setattr(reference, "_get_tv_model_features", lambda net, pretrained: features)
    load = torch.load  # their weights were saved on a GPU
    monkeypatch.setattr(torch, "load", lambda path, *args, **kwargs: load(path, "cpu", weights_only=True))
    theirs = reference._LPIPS(pretrained=True, net=network)
    ours = LPIPS(network, weights, torch.load(LINEAR / f"{network}.pth", "cpu", weights_only=True))
    generator = torch.Generator().manual_seed(1)
    images, targets = (torch.rand(2, 3, 64, 80, generator=generator) for _ in range(2))
    with torch.no_grad():
        expected = theirs(images, targets, normalize=True).flatten()
        torch.testing.assert_close(ours(images, targets), expected, rtol=1e-4, atol=1e-7)
        assert ours(images, images).abs().max() == 0
    # the layers are torchvision's: its names, channels and where features are compared
    kinds = [type(layer) for layer in features]
    assert [kinds[tap] for tap in taps] == [nn.ReLU] * 5
    assert [features[tap - 1].out_channels for tap in taps] == CHANNELS[network]


def test_the_score_is_the_mean_over_views(tmp_path: Path) -> None:
    torch.save(checkpoint("alex"), tmp_path / "weights.pth")
    metric = LPIPSScore("alex", str(tmp_path / "weights.pth"))
    assert metric.obstacle() is None
    images = torch.rand(1, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    targets = images.clone()
    targets[0, 1] = 0
    batch = ObjectBatch(images=targets, object_index=torch.tensor([0]))
    metric.update({"renders": {"images": images}}, batch)
    distance = LPIPS("alex", checkpoint("alex"), torch.load(LINEAR / "alex.pth", "cpu", weights_only=True))
    expected = distance(images[0, 1:], targets[0, 1:]).item() / 2
    assert metric.rows()[0] == {"lpips_alex": pytest.approx(expected, rel=1e-5)}
    assert not [name for name in metric.state_dict() if "features" in name]


def test_without_weights_there_is_no_column_and_the_log_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from callbacks.score import Score
    from tests.callbacks.toy import Brightness, ToyMethod, loader, trainer

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with caplog.at_level(logging.INFO):
        trainer(tmp_path, [Score([Brightness(), LPIPSScore()])]).test(ToyMethod(), loader(5), verbose=False)
    said = [message for message in caplog.messages if "LPIPSScore" in message]
    assert len(said) == 1
    assert BACKBONES["vgg"] in said[0]
    header = (tmp_path / "run/test/objects.csv").read_text().splitlines()[0]
    assert "brightness" in header
    assert "lpips" not in header


def test_wrong_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no .*gone\.pth; expected torchvision's vgg16"):
        LPIPSScore("vgg", str(tmp_path / "gone.pth"))
    with pytest.raises(ValueError, match=r"has no features\.0\.weight; expected torchvision's for 'vgg'"):
        LPIPS("vgg", {}, {})
