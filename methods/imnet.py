"""IM-Net (Chen and Zhang, CVPR 2019, arXiv:1812.02822): an implicit decoder behind a voxel or an image encoder.

First an autoencoder: 64^3 voxels become a code, and a multilayer perceptron gives the occupancy of any point beside
that code. It learns from points of a 16^3, then a 32^3, then a 64^3 grid. Then, for single images, an encoder of
images learns to give the codes that the frozen autoencoder gives to the voxels of what they show.

As in the authors' PyTorch release, which replaces the hard clip of the output by a leaky one and has a smaller decoder
than the paper's first. What differs from it: codes are computed as they are needed and not stored, colour images are
made grey here, and values are taken at the corners of cells, not at their centres, when a mesh is extracted.

Parameters: decoder 3,054,593; autoencoder 10,003,713; image encoder 17,462,976. Letters: B objects, M query points,
C length of the code.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from losses.occupancy import occupancy_squared_error
from methods.objects import ObjectMethod, check_image_size, check_voxel_resolution, single_view
from methods.weights import load_weights
from ops.mise import ObjectsField, extract_mise_batch, field_of
from ops.object_groups import map_groups
from ops.schedules import Schedule
from ops.types import Field, ObjectBatch, Shape

SLOPE = 0.02
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class VoxelEncoder(nn.Module):
    """Convolutions that halve the grid down to 4^3, each with instance normalisation, and one over what is left.

    Args:
        resolution: R of the voxels, a power of two, at least 8.
        width: channels of the first convolution; the next ones have twice as many each.
        code_size: C.
    """

    def __init__(self, resolution: int, width: int, code_size: int) -> None:
        super().__init__()
        num_halvings = int(math.log2(resolution / 4))
        channels = [1, *(width * 2**i for i in range(num_halvings))]
        self.convs = nn.ModuleList(nn.Conv3d(i, o, 4, stride=2, padding=1, bias=False) for i, o in pairwise(channels))
        self.convs.append(nn.Conv3d(channels[-1], code_size, 4))
        for conv in self.convs:
            nn.init.xavier_uniform_(conv.weight)
        nn.init.zeros_(self.convs[-1].bias)

    def forward(self, voxels: Tensor) -> Tensor:
        """(B, R, R, R) -> (B, C) in (0, 1)."""
        x = voxels.to(self.convs[0].weight)[:, None]
        for conv in self.convs[:-1]:
            x = F.leaky_relu(F.instance_norm(conv(x)), SLOPE)
        return self.convs[-1](x).flatten(1).sigmoid()


class ImageBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation and a shortcut, with leaky rectifiers.

    Args:
        in_channels: channels that come in.
        out_channels: channels that leave; the map is halved where they differ.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        stride = 1 if in_channels == out_channels else 2
        self.conv_1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm_1 = nn.BatchNorm2d(out_channels)
        self.conv_2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm_2 = nn.BatchNorm2d(out_channels)
        self.shortcut = None
        if stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / stride, W / stride)."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        x = F.leaky_relu(self.norm_1(self.conv_1(x)), SLOPE)
        return F.leaky_relu(self.norm_2(self.conv_2(x)) + shortcut, SLOPE)


class ImageEncoder(nn.Module):
    """A residual network over a grey, inverted image of an object on white, so that the background is 0.

    Args:
        image_size: pixels along the edge of an image, a multiple of 32; 128 as published.
        width: channels of the first convolution; 64 as published.
        code_size: C.
    """

    def __init__(self, image_size: int, width: int, code_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 7, stride=2, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(width)
        widths = [width * factor for factor in (1, 1, 1, 2, 2, 4, 4, 8, 8)]
        self.blocks = nn.ModuleList(ImageBlock(i, o) for i, o in pairwise(widths))
        self.last_conv = nn.Conv2d(widths[-1], widths[-1], 4, stride=2, padding=1, bias=False)
        self.last_norm = nn.BatchNorm2d(widths[-1])
        self.project = nn.Conv2d(widths[-1], code_size, image_size // 32)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
        self.register_buffer("luma", torch.tensor(LUMA).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) sRGB in [0, 1] -> (B, C) in (0, 1)."""
        x = 1 - (images * self.luma).sum(1, keepdim=True)
        x = F.leaky_relu(self.norm(self.conv(x)), SLOPE)
        for block in self.blocks:
            x = block(x)
        x = F.leaky_relu(self.last_norm(self.last_conv(x)), SLOPE)
        return self.project(x).flatten(1).sigmoid()


class ImplicitDecoder(nn.Module):
    """Occupancies of points beside a code: seven linear layers, with a leaky clip to [0, 1] at the end.

    Args:
        code_size: C.
        width: an eighth of the features of the widest layer; 128 as published.
        init_std: deviation of the initial weights; 0.02 as published, for layers of 1024 features.
    """

    def __init__(self, code_size: int, width: int, init_std: float) -> None:
        super().__init__()
        sizes = [3 + code_size, *(width * factor for factor in (8, 8, 8, 4, 2, 1)), 1]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(sizes))
        for layer in self.layers:
            nn.init.normal_(layer.weight, mean=0.0 if layer.out_features > 1 else 1e-5, std=init_std)
            nn.init.zeros_(layer.bias)

    def forward(self, points: Tensor, codes: Tensor) -> Tensor:
        """(B, M, 3) points and (B, C) codes -> (B, M) occupancies, a little outside [0, 1] at most."""
        first = self.layers[0]
        # what is linear in the code is the same for all points of an object
        of_code = F.linear(codes, first.weight[:, 3:], first.bias)
        x = F.linear(points, first.weight[:, :3]) + of_code[:, None]
        for layer in self.layers[1:]:
            x = layer(F.leaky_relu(x, SLOPE))
        x = x.squeeze(-1)
        return torch.maximum(torch.minimum(x, 0.01 * x + 0.99), 0.01 * x)


def official_names() -> dict[str, str]:
    """Names of the authors' state dicts -> names here, for ``methods.weights.load_weights``.

    =====================================  ==============================
    czq142857/IM-NET-pytorch               here
    =====================================  ==============================
    encoder.conv_{i}                       encoder.convs.{i - 1}
    generator.linear_{i}                   decoder.layers.{i - 1}
    img_encoder.conv_0, .bn_0              image_encoder.conv, .norm
    img_encoder.res_{i}.conv_{j}, .bn_{j}  image_encoder.blocks.{i - 1}.conv_{j}, .norm_{j}
    img_encoder.res_{i}.conv_s, .bn_s      image_encoder.blocks.{i - 1}.shortcut.0, .shortcut.1
    img_encoder.conv_9, .bn_9              image_encoder.last_conv, .last_norm
    img_encoder.conv_10                    image_encoder.project
    =====================================  ==============================
    """
    names = {f"encoder.conv_{i}": f"encoder.convs.{i - 1}" for i in range(1, 6)}
    names |= {f"generator.linear_{i}": f"decoder.layers.{i - 1}" for i in range(1, 8)}
    names |= {
        "img_encoder.conv_0": "image_encoder.conv",
        "img_encoder.bn_0": "image_encoder.norm",
        "img_encoder.conv_9": "image_encoder.last_conv",
        "img_encoder.bn_9": "image_encoder.last_norm",
        "img_encoder.conv_10": "image_encoder.project",
    }
    for i in range(1, 9):
        old, new = f"img_encoder.res_{i}", f"image_encoder.blocks.{i - 1}"
        names |= {f"{old}.conv_{j}": f"{new}.conv_{j}" for j in (1, 2)}
        names |= {f"{old}.bn_{j}": f"{new}.norm_{j}" for j in (1, 2)}
        names |= {f"{old}.conv_s": f"{new}.shortcut.0", f"{old}.bn_s": f"{new}.shortcut.1"}
    return names


class IMNetAutoencoder(ObjectMethod):
    """Voxels to a code and back to a surface.

    Args:
        optimizer: makes the optimizer of all parameters.
        lr_schedule: factor on the learning rate for every progress; constant where not given.
        max_steps: length of the run; linked to trainer.max_steps.
        code_size: C.
        voxel_resolution: of the voxels that are read, a power of two.
        encoder_width: channels of the voxel encoder's first convolution.
        decoder_width: an eighth of the features of the decoder's widest layer.
        init_std: deviation of the decoder's initial weights; narrow layers need a larger one.
        threshold: occupancy on the surface.
        coarse_resolution: cells along an axis of MISE's first lattice.
        upsampling_steps: times that its cells are halved near the surface; two give 256 cells.
        weights: checkpoint of this method, or the authors' autoencoder, to start from.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=5e-5, betas=(0.5, 0.999)),
        lr_schedule: Schedule | None = None,
        max_steps: int = -1,
        code_size: int = 256,
        voxel_resolution: int = 64,
        encoder_width: int = 32,
        decoder_width: int = 128,
        init_std: float = 0.02,
        threshold: float = 0.5,
        coarse_resolution: int = 64,
        upsampling_steps: int = 2,
        weights: str | None = None,
    ) -> None:
        super().__init__(optimizer, lr_schedule, max_steps)
        if voxel_resolution < 8 or voxel_resolution & (voxel_resolution - 1):
            raise ValueError(f"voxel_resolution: {voxel_resolution}, expected a power of two, at least 8")
        self.encoder = VoxelEncoder(voxel_resolution, encoder_width, code_size)
        self.decoder = ImplicitDecoder(code_size, decoder_width, init_std)
        self.voxel_resolution, self.threshold = voxel_resolution, threshold
        self.coarse_resolution, self.upsampling_steps, self.weights = coarse_resolution, upsampling_steps, weights

    @property
    def reads(self) -> frozenset[str]:
        """Voxels, and query points with their occupancies."""
        return frozenset({"voxels", "query_points", "query_occupancy"})

    def load_initial_weights(self) -> None:
        """Load ``weights`` where given."""
        if self.weights is not None:
            load_weights(self, self.weights, official_names() | {name: name for name in self.state_dict()})

    def code(self, batch: ObjectBatch) -> Tensor:
        """The (B, C) code of the batch's voxels."""
        check_voxel_resolution(batch["voxels"], self.voxel_resolution, type(self).__name__)
        return self.encoder(batch["voxels"])

    def training_step(self, batch: ObjectBatch, batch_idx: int) -> Tensor:
        """Mean squared error of the occupancies of query points."""
        predicted = self.decoder(batch["query_points"], self.code(batch))
        loss = occupancy_squared_error(predicted, batch["query_occupancy"])
        self.log_training(batch_idx, {"loss": loss})
        return loss

    def validation_step(self, batch: ObjectBatch, batch_idx: int) -> None:
        """The same error on held-out objects."""
        pairs = zip(batch["query_points"].split(1), self.code(batch).split(1), strict=True)
        predicted = torch.cat([self.decoder(*pair) for pair in pairs])
        error = occupancy_squared_error(predicted, batch["query_occupancy"])
        self.log("val/squared_error", error, batch_size=len(predicted), sync_dist=True)

    @torch.no_grad()
    def reconstruct(self, batch: ObjectBatch) -> list[Shape]:
        """The mesh on which the occupancy is ``threshold``, closed at the border of the unit cube."""
        codes = self.code(batch)
        return extract_mise_batch(
            self.fields(codes),
            len(codes),
            coarse_resolution=self.coarse_resolution,
            upsampling_steps=self.upsampling_steps,
            # one coarse cell beyond the cube on either side, for a surface that reaches its border
            bounds=0.5 * (1 + 2 / self.coarse_resolution),
            device=self.device,
        )

    def field(self, code: Tensor) -> Field:
        """The threshold minus the occupancy for one object's (1, C) code; outside the unit cube all is empty."""
        return field_of(self.fields(code))

    def fields(self, codes: Tensor) -> ObjectsField:
        """The same for the (B, C) codes of several objects."""

        def values(points: Tensor, objects: Tensor) -> Tensor:
            occupancy = map_groups(self.decoder, points, objects, codes)
            # no point outside was ever trained on
            is_outside = (points.abs() > 0.5).any(-1)
            return self.threshold - torch.where(is_outside, occupancy.clamp(max=0), occupancy)

        return values


class IMNetSVR(IMNetAutoencoder):
    """A surface from one image, by regression to the codes of a trained and frozen autoencoder.

    Args:
        optimizer: makes the optimizer of the image encoder's parameters.
        lr_schedule: factor on the learning rate for every progress; constant where not given.
        max_steps: length of the run; linked to trainer.max_steps.
        autoencoder: checkpoint of an IMNetAutoencoder of the same sizes, or the authors'; not needed to go on from a
            checkpoint of this method.
        image_size: pixels along the edge of an image, a multiple of 32.
        image_width: channels of the image encoder's first convolution.
        code_size, voxel_resolution, encoder_width, decoder_width: as the autoencoder's.
        threshold, coarse_resolution, upsampling_steps: as for the autoencoder.
        weights: the authors' checkpoint for images, to test or to start from.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=5e-5, betas=(0.5, 0.999)),
        lr_schedule: Schedule | None = None,
        max_steps: int = -1,
        autoencoder: str | None = None,
        image_size: int = 128,
        image_width: int = 64,
        code_size: int = 256,
        voxel_resolution: int = 64,
        encoder_width: int = 32,
        decoder_width: int = 128,
        threshold: float = 0.5,
        coarse_resolution: int = 64,
        upsampling_steps: int = 2,
        weights: str | None = None,
    ) -> None:
        super().__init__(
            optimizer,
            lr_schedule,
            max_steps,
            code_size=code_size,
            voxel_resolution=voxel_resolution,
            encoder_width=encoder_width,
            decoder_width=decoder_width,
            threshold=threshold,
            coarse_resolution=coarse_resolution,
            upsampling_steps=upsampling_steps,
            weights=weights,
        )
        if image_size % 32:
            raise ValueError(f"image_size: {image_size}, expected a multiple of 32")
        # optimizers pass over parameters that get no gradient
        self.encoder.requires_grad_(False)
        self.decoder.requires_grad_(False)
        self.image_encoder = ImageEncoder(image_size, image_width, code_size)
        self.image_size, self.autoencoder = image_size, autoencoder

    @property
    def reads(self) -> frozenset[str]:
        """An image, and the voxels whose code it should have."""
        return frozenset({"images", "voxels"})

    def load_initial_weights(self) -> None:
        """Load ``weights``, or else the autoencoder's.

        Raises:
            ValueError: neither is given: there would be nothing to regress to.
        """
        names = official_names() | {name: name for name in self.state_dict()}
        if self.weights is not None:
            # the authors' file has no voxel encoder, as their codes are stored
            load_weights(self, self.weights, names, optional=("encoder",))
        elif self.autoencoder is not None:
            load_weights(self, self.autoencoder, names, optional=("image_encoder",))
        else:
            raise ValueError(
                "autoencoder: IMNetSVR learns the codes of a trained autoencoder, and none is given; train one with "
                "an imnet_autoencoder config and set --model.init_args.autoencoder=<run>/checkpoints/last.ckpt"
            )

    def code(self, batch: ObjectBatch) -> Tensor:
        """The (B, C) code of the batch's images."""
        images = single_view(batch)
        check_image_size(images, self.image_size, type(self).__name__)
        return self.image_encoder(images)

    def training_step(self, batch: ObjectBatch, batch_idx: int) -> Tensor:
        """Mean squared difference between the codes of image and voxels."""
        loss = self._code_error(batch)
        self.log_training(batch_idx, {"loss": loss})
        return loss

    def validation_step(self, batch: ObjectBatch, batch_idx: int) -> None:
        """The same for held-out objects."""
        self.log("val/code_error", self._code_error(batch), batch_size=len(batch["images"]), sync_dist=True)

    def _code_error(self, batch: ObjectBatch) -> Tensor:
        with torch.no_grad():
            wanted = super().code(batch)
        return F.mse_loss(self.code(batch), wanted)
