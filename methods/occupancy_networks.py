"""Encoders and decoders of Occupancy Networks: an image, points or voxels become a code; code and point an occupancy.

After Mescheder et al., CVPR 2019, arXiv:1812.03828, supplementary. 1x1 convolutions over points are linear layers
here, which is the same function. Letters: B objects, M points, C length of the code, H hidden features, Z latent code.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.resnet import ResNet18


class ResidualBlock(nn.Module):
    """x + W1 relu(W0 relu(x)), where the sum takes a linear map of x if sizes differ.

    Args:
        in_size: features that come in.
        out_size: features that leave.
    """

    def __init__(self, in_size: int, out_size: int) -> None:
        super().__init__()
        hidden_size = min(in_size, out_size)
        self.linear_0, self.linear_1 = nn.Linear(in_size, hidden_size), nn.Linear(hidden_size, out_size)
        self.shortcut = nn.Linear(in_size, out_size, bias=False) if in_size != out_size else None
        nn.init.zeros_(self.linear_1.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_size) -> (..., out_size)."""
        change = self.linear_1(F.relu(self.linear_0(F.relu(x))))
        return (x if self.shortcut is None else self.shortcut(x)) + change


class ImageCode(nn.Module):
    """ResNet-18 and a linear layer.

    Args:
        code_size: C.
        width: channels of the first convolution; 64 as published.
    """

    def __init__(self, code_size: int, width: int = 64) -> None:
        super().__init__()
        self.resnet = ResNet18(width)
        self.project = nn.Linear(self.resnet.feature_size, code_size)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) sRGB in [0, 1] -> (B, C)."""
        return self.project(self.resnet(images))


class PointCode(nn.Module):
    """PointNet of residual blocks, each of which sees the maximum over all points beside its own.

    Args:
        code_size: C.
        hidden_size: H.
    """

    def __init__(self, code_size: int, hidden_size: int = 512) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 2 * hidden_size)
        self.blocks = nn.ModuleList(ResidualBlock(2 * hidden_size, hidden_size) for _ in range(5))
        self.project = nn.Linear(hidden_size, code_size)

    def forward(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> (B, C)."""
        x = self.embed(points)
        for block in self.blocks[:-1]:
            x = _with_maximum(block(x))
        return self.project(F.relu(self.blocks[-1](x).amax(1)))


class VoxelCode(nn.Module):
    """Five 3D convolutions, all but the first halving the grid, and a linear layer.

    Args:
        code_size: C.
        width: channels of the first convolution, 32 as published; the next ones have twice as many each.
        resolution: R of the voxels, a multiple of 16.
    """

    def __init__(self, code_size: int, width: int = 32, resolution: int = 32) -> None:
        super().__init__()
        channels = [width * 2**i for i in range(5)]
        self.convs = nn.ModuleList(
            nn.Conv3d(i, o, 3, stride=2 if k else 1, padding=1)
            for k, (i, o) in enumerate(zip((1, *channels[:-1]), channels, strict=True))
        )
        self.project = nn.Linear(channels[-1] * (resolution // 16) ** 3, code_size)

    def forward(self, voxels: Tensor) -> Tensor:
        """(B, R, R, R) -> (B, C)."""
        x = voxels.to(self.project.weight)[:, None]
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.project(x.flatten(1))


class LatentEncoder(nn.Module):
    """Mean and logarithmic deviation of q(z | points, occupancies), a PointNet.

    Args:
        latent_size: Z.
        hidden_size: H.
    """

    def __init__(self, latent_size: int, hidden_size: int = 128) -> None:
        super().__init__()
        self.embed_points, self.embed_occupancy = nn.Linear(3, hidden_size), nn.Linear(1, hidden_size)
        sizes = (hidden_size, 2 * hidden_size, 2 * hidden_size)
        self.layers = nn.ModuleList(nn.Linear(size, hidden_size) for size in sizes)
        self.mean, self.log_std = nn.Linear(hidden_size, latent_size), nn.Linear(hidden_size, latent_size)

    def forward(self, points: Tensor, occupancy: Tensor) -> tuple[Tensor, Tensor]:
        """(B, M, 3) points and (B, M) occupancies -> two (B, Z)."""
        x = self.embed_points(points) + self.embed_occupancy(occupancy.to(points)[..., None])
        for layer in self.layers[:-1]:
            x = _with_maximum(layer(F.relu(x)))
        x = self.layers[-1](F.relu(x)).amax(1)
        return self.mean(x), self.log_std(x)


class ConditionalNorm(nn.Module):
    """Batch normalisation whose scale and shift are linear functions of a code.

    Args:
        code_size: C.
        size: features that are normalised.
    """

    def __init__(self, code_size: int, size: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(size, affine=False)
        self.gamma, self.beta = nn.Linear(code_size, size), nn.Linear(code_size, size)
        nn.init.zeros_(self.gamma.weight)
        nn.init.ones_(self.gamma.bias)
        nn.init.zeros_(self.beta.weight)
        nn.init.zeros_(self.beta.bias)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """(B, M, H) features and (B, C) codes -> (B, M, H)."""
        normalized = self.norm(x.flatten(0, 1)).view_as(x)
        return torch.addcmul(self.beta(code)[:, None], normalized, self.gamma(code)[:, None])


class ConditionalBlock(nn.Module):
    """Two linear layers over points, each behind a conditional batch normalisation, added to what comes in.

    Args:
        code_size: C.
        size: H.
    """

    def __init__(self, code_size: int, size: int) -> None:
        super().__init__()
        self.norm_0, self.norm_1 = ConditionalNorm(code_size, size), ConditionalNorm(code_size, size)
        self.linear_0, self.linear_1 = nn.Linear(size, size), nn.Linear(size, size)
        nn.init.zeros_(self.linear_1.weight)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """(B, M, H) features and (B, C) codes -> (B, M, H)."""
        change = self.linear_0(F.relu(self.norm_0(x, code)))
        return x + self.linear_1(F.relu(self.norm_1(change, code)))


class ConditionalDecoder(nn.Module):
    """Occupancy logits of points, conditioned on a code through every normalisation.

    Args:
        code_size: C.
        hidden_size: H.
    """

    def __init__(self, code_size: int, hidden_size: int = 256) -> None:
        super().__init__()
        self.embed_points = nn.Linear(3, hidden_size)
        self.blocks = nn.ModuleList(ConditionalBlock(code_size, hidden_size) for _ in range(5))
        self.norm = ConditionalNorm(code_size, hidden_size)
        self.logit = nn.Linear(hidden_size, 1)

    def forward(self, points: Tensor, code: Tensor) -> Tensor:
        """(B, M, 3) points and (B, C) codes -> (B, M)."""
        x = self.embed_points(points)
        for block in self.blocks:
            x = block(x, code)
        return self.logit(F.relu(self.norm(x, code))).squeeze(-1)


class LatentDecoder(nn.Module):
    """Occupancy logits of points, with a latent code added to what is known of each point.

    Args:
        latent_size: Z.
        hidden_size: H.
    """

    def __init__(self, latent_size: int, hidden_size: int = 128) -> None:
        super().__init__()
        self.embed_points, self.embed_latent = nn.Linear(3, hidden_size), nn.Linear(latent_size, hidden_size)
        self.blocks = nn.ModuleList(ResidualBlock(hidden_size, hidden_size) for _ in range(5))
        self.logit = nn.Linear(hidden_size, 1)

    def forward(self, points: Tensor, latent: Tensor) -> Tensor:
        """(B, M, 3) points and (B, Z) latent codes -> (B, M)."""
        x = self.embed_points(points) + self.embed_latent(latent)[:, None]
        for block in self.blocks:
            x = block(x)
        return self.logit(F.relu(x)).squeeze(-1)


def official_names() -> dict[str, str]:
    """Names of the authors' state dicts -> names here, for ``methods.weights.load_weights``.

    ======================================  =====================================
    autonomousvision/occupancy_networks     here
    ======================================  =====================================
    encoder.features.*  (torchvision)       encoder.resnet.*
    encoder.fc, encoder.fc_c                encoder.project
    encoder.fc_pos                          encoder.embed
    encoder.block_{i}.fc_{j}, .shortcut     encoder.blocks.{i}.linear_{j}, .shortcut
    encoder.conv_in, encoder.conv_{i}       encoder.convs.0, encoder.convs.{i + 1}
    encoder_latent.fc_pos, .fc_0            latent_encoder.embed_points, .embed_occupancy
    encoder_latent.fc_{i}                   latent_encoder.layers.{i - 1}
    encoder_latent.fc_mean, .fc_logstd      latent_encoder.mean, .log_std
    decoder.fc_p, .fc_z, .fc_out            decoder.embed_points, .embed_latent, .logit
    decoder.block{i}.fc_{j}                 decoder.blocks.{i}.linear_{j}
    decoder.block{i}.bn_{j}.bn              decoder.blocks.{i}.norm_{j}.norm
    decoder.block{i}.bn_{j}.conv_gamma      decoder.blocks.{i}.norm_{j}.gamma, and beta; fc_gamma in older files
    decoder.bn.*                            decoder.norm.*
    ======================================  =====================================
    """
    names = {
        "encoder.features": "encoder.resnet",
        "encoder.fc": "encoder.project",
        "encoder.fc_c": "encoder.project",
        "encoder.fc_pos": "encoder.embed",
        "encoder.conv_in": "encoder.convs.0",
        "encoder_latent.fc_pos": "latent_encoder.embed_points",
        "encoder_latent.fc_0": "latent_encoder.embed_occupancy",
        "encoder_latent.fc_mean": "latent_encoder.mean",
        "encoder_latent.fc_logstd": "latent_encoder.log_std",
        "decoder.fc_p": "decoder.embed_points",
        "decoder.fc_z": "decoder.embed_latent",
        "decoder.fc_out": "decoder.logit",
    }
    names |= {f"encoder.conv_{i}": f"encoder.convs.{i + 1}" for i in range(4)}
    names |= {f"encoder_latent.fc_{i}": f"latent_encoder.layers.{i - 1}" for i in range(1, 4)}
    norms = {"decoder.bn": "decoder.norm"}
    for i in range(5):
        names[f"encoder.block_{i}.shortcut"] = f"encoder.blocks.{i}.shortcut"
        for j in range(2):
            names[f"encoder.block_{i}.fc_{j}"] = f"encoder.blocks.{i}.linear_{j}"
            names[f"decoder.block{i}.fc_{j}"] = f"decoder.blocks.{i}.linear_{j}"
            norms[f"decoder.block{i}.bn_{j}"] = f"decoder.blocks.{i}.norm_{j}"
    for old, new in norms.items():
        names |= {f"{old}.bn": f"{new}.norm"}
        names |= {f"{old}.{kind}_{part}": f"{new}.{part}" for kind in ("conv", "fc") for part in ("gamma", "beta")}
    return names


def _with_maximum(x: Tensor) -> Tensor:
    """(B, N, H) -> (B, N, 2H): beside each point's features their maximum over all points."""
    return torch.cat([x, x.amax(1, keepdim=True).expand_as(x)], dim=-1)
