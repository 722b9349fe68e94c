"""LPIPS: how far apart two pictures are to a network (Zhang et al., CVPR 2018, arXiv:1801.03924), version 0.1.

The weights are two files that others ship. The linear layers come with torchmetrics. The network in front of them is
torchvision's, trained on ImageNet: its checkpoint is looked for where ``torch.hub`` keeps them, or given as a path.
Nothing is downloaded here; without the checkpoint there is no score, and that is said.
"""

from pathlib import Path
from typing import Literal

import torch
import torchmetrics
from torch import Tensor, nn

from metrics.images import without_padding
from metrics.per_object import PerObjectMetric
from ops.types import ObjectBatch, Reconstruction

LINEAR = Path(torchmetrics.__file__).parent / "functional/image/lpips_models"
BACKBONES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}
# pixels in [-1, 1] minus the first, over the second, are ImageNet's normalised ones
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


def alexnet_features() -> tuple[nn.Sequential, tuple[int, ...]]:
    """torchvision's AlexNet before its classifier, and after which of its layers features are compared."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    layers += [nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    for before, after in ((192, 384), (384, 256), (256, 256)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers), (1, 4, 7, 9, 11)


def vgg16_features() -> tuple[nn.Sequential, tuple[int, ...]]:
    """torchvision's VGG-16 before its last pooling, and after which of its layers features are compared."""
    layers: list[nn.Module] = []
    before = 3
    for after, repeats in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(repeats):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
            before = after
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers[:-1]), (3, 8, 15, 22, 29)


class LPIPS(nn.Module):
    """The distance of two batches of pictures.

    Args:
        network: ``alex`` or ``vgg``.
        backbone: state dict of torchvision's network; ``features.*`` are taken.
        linear: state dict of the linear layers, ``lin0`` to ``lin4``.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, network: Literal["alex", "vgg"], backbone: dict[str, Tensor], linear: dict[str, Tensor]) -> None:
        super().__init__()
        self.features, self.taps = alexnet_features() if network == "alex" else vgg16_features()
        # the checkpoint also holds the classifier
        wanted = {name: backbone.get(f"features.{name}") for name in self.features.state_dict()}
        missing = [f"features.{name}" for name, weight in wanted.items() if weight is None]
        if missing:
            raise ValueError(f"LPIPS: the checkpoint has no {missing[0]}; expected torchvision's for {network!r}")
        self.features.load_state_dict(wanted)
        for k in range(len(self.taps)):
            self.register_buffer(f"weights_{k}", linear[f"lin{k}.model.1.weight"][0], persistent=False)
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None], persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Distances (N,) of pictures (N, 3, H, W), sRGB in [0, 1]."""
        x = torch.cat([images, targets]).float()
        x = (2 * x - 1 - self.shift) / self.scale
        total, k = x.new_zeros(len(images)), 0
        for layer, module in enumerate(self.features):
            x = module(x)
            if layer == self.taps[k]:
                unit = x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt()
                a, b = unit.chunk(2)
                weighted = (a - b).square() * getattr(self, f"weights_{k}")
                total, k = total + weighted.sum(1).mean((1, 2)), min(k + 1, len(self.taps) - 1)
        return total


class LPIPSScore(PerObjectMetric):
    """``lpips_alex`` or ``lpips_vgg`` of rendered views, the mean over the views of an object; smaller is nearer.

    Whole pictures are compared, as published tables do. Where the checkpoint of the network is missing there is no
    such column, and the log says once what to put where.

    Args:
        network: ``alex``, which the authors advise for comparisons, or ``vgg``, which most tables of novel views have.
        backbone: torchvision's checkpoint of the network; null looks among those that ``torch.hub`` keeps.
    """

    needs = frozenset({"renders", "images"})
    unit = "LPIPS v0.1, whole images, mean over views"

    def __init__(self, network: Literal["alex", "vgg"] = "vgg", backbone: str | None = None) -> None:
        super().__init__()
        self.network, self.backbone = network, backbone
        self.columns = (f"lpips_{network}",)
        self.path = Path(torch.hub.get_dir(), "checkpoints", BACKBONES[network]) if backbone is None else Path(backbone)
        if backbone is not None and not self.path.is_file():
            raise ValueError(f"backbone: there is no {backbone}; expected torchvision's {BACKBONES[network]}")
        self._distance: list[LPIPS] = []  # in a list, so that its weights are no part of a checkpoint

    def obstacle(self) -> str | None:
        """What is missing, if the weights are."""
        if self.path.is_file():
            return None
        return f"{self.path} is missing; put torchvision's {BACKBONES[self.network]} there, or name it as backbone"

    def score(self, reconstruction: Reconstruction, batch: ObjectBatch, i: int) -> dict[str, float]:
        """Score of object ``i`` of the batch."""
        images = reconstruction["renders"]["images"][i]
        if not self._distance:
            weights = [torch.load(p, "cpu", weights_only=True) for p in (self.path, LINEAR / f"{self.network}.pth")]
            self._distance.append(LPIPS(self.network, *weights).to(images.device))
        targets = batch["images"][i].to(images)
        with torch.no_grad():
            # one view at a time: VGG's first layers of a large picture take a gigabyte
            pairs = [without_padding(batch, i, v, pair) for v, pair in enumerate(zip(images, targets, strict=True))]
            distances = [self._distance[0](x[None], y[None]) for x, y in pairs]
        return {self.columns[0]: torch.cat(distances).double().mean().item()}
