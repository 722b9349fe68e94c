"""Point Set Generation Network (Fan et al., CVPR 2017, arXiv:1612.00603): an image becomes 1024 points.

Two predictors share an encoder. A fully connected one gives 256 points that may lie anywhere; a convolutional one
gives a point at each pixel of a small map, 768 in all, which suits smooth surfaces. The two-branch network here is the
authors' for images of 128 pixels, the hourglass their larger one for images of 192 by 256 with a mask. A vector of
noise beside the image and the best of n guesses as the loss let it answer an ambiguous image in more than one way.

What differs from the authors' code: colours are RGB, not BGR; points live in the batch's object frame, not in the
camera's; square images are widened to the hourglass's 3:4 by repeating their border; weight decay is the optimizer's,
with the same gradient.

Parameters: two-branch 42,892,137; hourglass 70,509,683. Letters: B objects, N points, C channels, Z noise.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from losses.points import chamfer, earth_movers
from methods.objects import ObjectMethod, check_image_size, in_dataset_frame, object_generators, single_view
from methods.weights import load_weights
from ops.schedules import Schedule
from ops.types import ObjectBatch, Reconstruction, Shape


class Downward(nn.Sequential):
    """Convolutions, each with a rectifier, of which the first halves the map.

    Args:
        in_channels: channels that come in.
        channels: of the convolutions.
        kernel_size: of the first; the others have 3.
        stride: of the first.
    """

    def __init__(self, in_channels: int, channels: Sequence[int], kernel_size: int = 3, stride: int = 2) -> None:
        layers: list[nn.Module] = []
        for i, out_channels in enumerate(channels):
            size, step = (kernel_size, stride) if i == 0 else (3, 1)
            layers += [nn.Conv2d(in_channels, out_channels, size, step, padding=size // 2), nn.ReLU()]
            in_channels = out_channels
        super().__init__(*layers)


class Upward(nn.Module):
    """A map doubled by a transposed convolution, plus a lateral map of that size, then convolutions.

    Args:
        in_channels: channels that come in.
        lateral_channels: channels of the lateral map.
        out_channels: channels that leave.
        num_convs: convolutions after the sum.
    """

    def __init__(self, in_channels: int, lateral_channels: int, out_channels: int, num_convs: int = 1) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, out_channels, 5, stride=2, padding=2, output_padding=1)
        self.lateral = nn.Conv2d(lateral_channels, out_channels, 3, padding=1)
        self.convs = Downward(out_channels, [out_channels] * num_convs, stride=1)

    def forward(self, x: Tensor, lateral: Tensor) -> Tensor:
        """(B, C, H, W) and (B, C', 2H, 2W) -> (B, C'', 2H, 2W)."""
        return self.convs(F.relu(self.up(x) + self.lateral(lateral)))


class TwoBranchNetwork(nn.Module):
    """The network for square images of 128 pixels: 256 fully connected and 768 convolutional points.

    Args:
        width: channels of the first convolutions; 32 as published.
        image_size: pixels along the edge of an image, a multiple of 32.
        noise_size: Z, 0 for none.
    """

    in_channels = 3

    def __init__(self, width: int = 32, image_size: int = 128, noise_size: int = 0) -> None:
        super().__init__()
        w, self.image_size = width, image_size
        self.down = nn.ModuleList(
            [
                Downward(3, [w, w], stride=1),
                Downward(w, [2 * w] * 3),
                Downward(2 * w, [4 * w] * 3),
                Downward(4 * w, [8 * w] * 3),
                Downward(8 * w, [16 * w] * 4),
                Downward(16 * w, [16 * w], kernel_size=5),
            ]
        )
        self.noise = nn.Linear(noise_size, 16 * w) if noise_size else None
        self.bottleneck = nn.Linear(16 * w * (image_size // 32) ** 2, 64 * w)
        self.hidden = nn.Linear(64 * w, 32 * w)
        self.free_points = nn.Linear(32 * w, 256 * 3)
        self.up = nn.ModuleList([Upward(16 * w, 16 * w, 8 * w), Upward(8 * w, 8 * w, 4 * w, num_convs=2)])
        # 16 x 16 places of three points each
        self.map_points = nn.Conv2d(4 * w, 9, 3, padding=1)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """(B, 3, S, S) images in [0, 1] and (B, Z) noise -> (B, 256 + 3 (S / 8)^2, 3) points."""
        maps = _maps(self.down, images)
        bottom = _with_noise(maps.pop(), self.noise, noise)
        hidden = F.relu(self.hidden(F.relu(self.bottleneck(bottom.flatten(1)))))
        free_points = self.free_points(hidden).view(len(images), -1, 3)
        x = bottom
        for up in self.up:
            x = up(x, maps.pop())
        map_points = self.map_points(x).permute(0, 2, 3, 1).reshape(len(images), -1, 3)
        return torch.cat([free_points, map_points], dim=1)


class HourglassNetwork(nn.Module):
    """The network for images of 192 by 256 pixels and their masks, which goes down and up twice.

    Args:
        width: channels of the first convolutions; 16 as published.
        image_size: pixels along the short edge of an image, a multiple of 192; the long edge is 4/3 of it.
        noise_size: Z, 0 for none.
    """

    in_channels = 4

    def __init__(self, width: int = 16, image_size: int = 192, noise_size: int = 0) -> None:
        super().__init__()
        w, self.image_size = width, image_size
        widths = [w, 2 * w, 4 * w, 8 * w, 16 * w, 32 * w, 32 * w]
        counts, kernels = [2, 3, 3, 3, 3, 4, 1], [3, 3, 3, 3, 5, 5, 5]
        self.down = nn.ModuleList(
            Downward(i, [o] * n, k, stride=2 if j else 1)
            for j, (i, o, n, k) in enumerate(zip([4, *widths[:-1]], widths, counts, kernels, strict=True))
        )
        self.noise = nn.Linear(noise_size, 32 * w) if noise_size else None
        size = 32 * w * (image_size // 64) * (image_size // 48)
        self.bottleneck, self.second_bottleneck = nn.Linear(size, 128 * w), nn.Linear(size, 128 * w)
        outs = [16 * w, 8 * w, 4 * w, 2 * w, w]
        self.up = nn.ModuleList(
            Upward(i, lateral, o) for i, lateral, o in zip([32 * w, *outs[:-1]], widths[-2:0:-1], outs, strict=True)
        )
        ins, outs = [w, 2 * w, 4 * w, 8 * w, 16 * w], [2 * w, 4 * w, 8 * w, 16 * w, 32 * w]
        self.second_down = nn.ModuleList(
            nn.Conv2d(i, o, k, stride=2, padding=k // 2) for i, o, k in zip(ins, outs, [3, 3, 3, 5, 5], strict=True)
        )
        # lateral maps from the way up, and at the bottom from the first bottom
        self.second_lateral = nn.ModuleList(nn.Conv2d(o, o, 3, padding=1) for o in outs)
        self.second_convs = nn.ModuleList(Downward(o, [o], stride=1) for o in outs)
        self.second_up = nn.ModuleList(
            [Upward(32 * w, 16 * w, 16 * w), Upward(16 * w, 8 * w, 8 * w), Upward(8 * w, 4 * w, 4 * w)]
        )
        self.hidden = nn.Linear(128 * w, 64 * w)
        self.free_points = nn.Linear(64 * w, 256 * 3)
        self.map_points = nn.Conv2d(4 * w, 3, 3, padding=1)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """(B, 4, S, 4/3 S) images and masks in [0, 1] and (B, Z) noise -> (B, 256 + (S / 8) (S / 6), 3) points."""
        maps = _maps(self.down, images)
        bottom = _with_noise(maps.pop(), self.noise, noise)
        code = self.bottleneck(bottom.flatten(1))
        x, laterals = bottom, [bottom]
        for up in self.up:
            x = up(x, maps.pop())
            laterals.append(x)
        laterals.pop()
        second_maps = []
        for down, lateral, convs in zip(self.second_down, self.second_lateral, self.second_convs, strict=True):
            x = convs(F.relu(down(x) + lateral(laterals.pop())))
            second_maps.append(x)
        code = F.relu(code + self.second_bottleneck(second_maps.pop().flatten(1)))
        free_points = self.free_points(F.relu(self.hidden(code))).view(len(images), -1, 3)
        for up in self.second_up:
            x = up(x, second_maps.pop())
        map_points = self.map_points(x).permute(0, 2, 3, 1).reshape(len(images), -1, 3)
        return torch.cat([free_points, map_points], dim=1)


def initialize(network: nn.Module) -> None:
    """Weights that keep the spread of values through rectifiers, by He et al. (arXiv:1502.01852); biases of 0.

    PyTorch's own would leave little of an image after twenty layers. The layers that give points keep those.
    """
    for name, module in network.named_modules():
        if name in ("free_points", "map_points") or not isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            continue
        if isinstance(module, nn.ConvTranspose2d):
            # a place of the doubled map gets a quarter of the kernel's 25 weights from each channel
            nn.init.normal_(module.weight, std=(2 / (module.in_channels * 25 / 4)) ** 0.5)
        else:
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(module.bias)


def _maps(layers: nn.ModuleList, x: Tensor) -> list[Tensor]:
    """What each of the layers gives, one after the other."""
    maps = []
    for layer in layers:
        x = layer(x)
        maps.append(x)
    return maps


def _with_noise(bottom: Tensor, layer: nn.Linear | None, noise: Tensor | None) -> Tensor:
    """The bottom map with a linear function of the noise added at every place, so that both predictors see it."""
    return bottom if layer is None or noise is None else bottom + layer(noise)[..., None, None]


class PSGN(ObjectMethod):
    """A point set from one image of an object.

    Args:
        optimizer: makes the optimizer of all parameters.
        lr_schedule: factor on the learning rate for every progress; constant where not given.
        max_steps: length of the run; linked to trainer.max_steps.
        network: two branches for square images, or the hourglass for images with masks.
        width: channels of the first convolutions: 32 of the two-branch network, 16 of the hourglass.
        image_size: pixels along the (short) edge of an image: 128 or 192 as published.
        loss: distance between the predicted and the true set.
        loss_weight: factor on the distance; the authors' 10,000 keeps the weight decay small beside it.
        min_of: guesses a training object, of which only the best is corrected; more than 1 needs noise.
        noise_size: length of the noise vector; 0 makes the network deterministic.
        num_samples: shapes that test and predict draw of each object; the first of them is scored.
        conv_decay: weight decay of convolutions.
        linear_decay: weight decay of fully connected layers.
        epsilon: of the auction behind the earth mover's distance: how far from the best assignment it may end.
        weights: checkpoint of this method to start from.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=3e-5),
        lr_schedule: Schedule | None = None,
        max_steps: int = 300_000,
        network: Literal["two_branch", "hourglass"] = "two_branch",
        width: int = 32,
        image_size: int = 128,
        loss: Literal["chamfer", "earth_movers"] = "chamfer",
        loss_weight: float = 1e4,
        min_of: int = 1,
        noise_size: int = 0,
        num_samples: int = 1,
        conv_decay: float = 1e-6,
        linear_decay: float = 1e-4,
        epsilon: float = 0.005,
        weights: str | None = None,
    ) -> None:
        super().__init__(lambda _: optimizer(self._parameter_groups()), lr_schedule, max_steps)
        if max(min_of, num_samples) > 1 and not noise_size:
            raise ValueError(
                f"min_of is {min_of} and num_samples {num_samples}, but without noise all guesses are the same one; "
                "set noise_size, 128 say"
            )
        unit = {"two_branch": 32, "hourglass": 192}[network]
        if image_size % unit:
            raise ValueError(f"image_size: {image_size}, but the {network} network needs a multiple of {unit}")
        self.network = {"two_branch": TwoBranchNetwork, "hourglass": HourglassNetwork}[network](
            width, image_size, noise_size
        )
        initialize(self.network)
        self.image_size, self.loss, self.loss_weight, self.epsilon = image_size, loss, loss_weight, epsilon
        self.min_of, self.noise_size, self.num_samples = min_of, noise_size, num_samples
        self.conv_decay, self.linear_decay, self.weights = conv_decay, linear_decay, weights

    @property
    def reads(self) -> frozenset[str]:
        """An image, with its mask for the hourglass, and the points that the loss compares with."""
        masks = {"masks"} if self.network.in_channels == 4 else set()
        return frozenset({"images", "surface_points"} | masks)

    def load_initial_weights(self) -> None:
        """Load ``weights`` where given."""
        if self.weights is not None:
            load_weights(self, self.weights, {"": ""})

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Points of each object.

        Args:
            images: (B, 3, S, S), or (B, 4, S, S) with the mask for the hourglass.
            noise: (B, Z); ``None`` takes none.

        Returns:
            (B, N, 3) points in the normalised frame.
        """
        check_image_size(images, self.image_size, type(self).__name__)
        if self.network.in_channels == 4:
            margin = self.image_size // 6  # on both sides: 3:4
            images = F.pad(images, (margin, margin, 0, 0), mode="replicate")
        return self.network(images, noise)

    def training_step(self, batch: ObjectBatch, batch_idx: int) -> Tensor:
        """One batch of objects, each guessed ``min_of`` times; the gradient flows through the best guess."""
        generator = self.step_generator()
        images = self._images(batch)
        noise = None
        if self.noise_size:
            noise = torch.randn(
                self.min_of * len(images), self.noise_size, generator=generator, device=images.device
            ).to(images)
        points = self(images.repeat(self.min_of, 1, 1, 1), noise)
        truth = batch["surface_points"]
        distances = self._distance(points, truth.repeat(self.min_of, 1, 1), generator).unflatten(0, (self.min_of, -1))
        distance = distances.amin(0).mean()
        loss = self.loss_weight * distance
        self.log_training(batch_idx, {"loss": loss, self.loss: distance})
        return loss

    def _distance(self, points: Tensor, truth: Tensor, generator: torch.Generator | None) -> Tensor:
        """(B,) distances between (B, N, 3) guesses and (B, M, 3) truths, normalised unit."""
        if self.loss == "chamfer":
            to_truth, to_points = chamfer(points, truth, squared=True)
            return (to_truth + to_points) / 2
        count = points.shape[1]
        if truth.shape[1] < count:
            raise ValueError(
                f"num_surface_points: {truth.shape[1]} true points, but the earth mover's distance assigns one to each "
                f"of {count} predicted ones; set --data.init_args.num_surface_points={count} or more"
            )
        if truth.shape[1] > count:
            # an assignment needs as many on both sides
            chosen = torch.randperm(truth.shape[1], generator=generator, device=truth.device)[:count]
            truth = truth[:, chosen]
        return earth_movers(points, truth, epsilon=self.epsilon)

    def validation_step(self, batch: ObjectBatch, batch_idx: int) -> Reconstruction:
        """The points of each object, and their distance to the truth where it is at hand."""
        points = self._sampled_points(batch, 1)[0]
        if "surface_points" in batch:
            # a Chamfer distance also where another loss trains: it takes any number of true points
            to_truth, to_points = chamfer(points, batch["surface_points"], squared=True)
            mean = ((to_truth + to_points) / 2).mean()
            self.log("val/chamfer", mean, batch_size=len(points), sync_dist=True)
        return {"shapes": in_dataset_frame([Shape(p) for p in points.cpu()], batch)}

    def test_step(self, batch: ObjectBatch, batch_idx: int) -> Reconstruction:
        """The first sample of each object as its shape, and all samples, in the dataset's frame and unit."""
        return self._samples_in_dataset_frame(batch)

    def predict_step(self, batch: ObjectBatch, batch_idx: int) -> Reconstruction:
        """As for test."""
        return self._samples_in_dataset_frame(batch)

    @torch.no_grad()
    def reconstruct(self, batch: ObjectBatch) -> list[Shape]:
        """One point set for each object."""
        return [Shape(points) for points in self._sampled_points(batch, 1)[0].cpu()]

    def _samples_in_dataset_frame(self, batch: ObjectBatch) -> Reconstruction:
        sets = self._sampled_points(batch, self.num_samples).cpu()
        samples = [in_dataset_frame([Shape(points) for points in each], batch) for each in sets]
        return {"shapes": samples[0], "samples": [list(of_object) for of_object in zip(*samples, strict=True)]}

    @torch.no_grad()
    def _sampled_points(self, batch: ObjectBatch, num_samples: int) -> Tensor:
        """(num_samples, B, N, 3); an object's samples are a function of its index."""
        images = self._images(batch)
        if not self.noise_size:
            return self(images).expand(num_samples, -1, -1, -1)
        noise = torch.stack(
            [torch.randn(num_samples, self.noise_size, generator=g) for g in object_generators(batch, len(images))],
            dim=1,
        ).to(images)  # (num_samples, B, Z)
        return torch.stack([self(images, each) for each in noise])

    def _images(self, batch: ObjectBatch) -> Tensor:
        """(B, 3, S, S) images, or (B, 4, S, S) with their masks."""
        images = single_view(batch)
        return torch.cat([images, batch["masks"][:, :1]], dim=1) if self.network.in_channels == 4 else images

    def _parameter_groups(self) -> list[dict[str, object]]:
        decays: dict[int, list[nn.Parameter]] = {1: [], 2: [], 4: []}
        for parameter in self.parameters():
            decays[parameter.dim()].append(parameter)
        biases, linear, convs = decays[1], decays[2], decays[4]
        return [
            {"params": convs, "weight_decay": self.conv_decay},
            {"params": linear, "weight_decay": self.linear_decay},
            {"params": biases, "weight_decay": 0.0},
        ]
