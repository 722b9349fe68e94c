"""3D-R2N2 (Choy et al., ECCV 2016, arXiv:1604.00449): a recurrent network that refines voxels with every view it sees.

Each image becomes a vector; a grid of recurrent cells, 4 along each axis, takes it in; a decoder unfolds the grid into
32^3 occupancies. The paper's text has LSTM cells without output gates; the code that its authors released has GRU
cells, in a plain or in a residual network. Both are here, the LSTM from its equations, as none was released.

What differs from the released code: the softmax over an empty and an occupied channel is taken as the sigmoid of their
difference, which is the same number, and training goes on where theirs stops, at a loss above 2.

Parameters of the published networks: LSTM-1 and GRU-1 30,929,314; LSTM-3 and GRU-3 32,207,266; residual GRU-3
35,968,706. Letters: B objects, V views, C channels, N cells along an axis of the recurrent grid, R voxels along one.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from losses.voxels import voxel_cross_entropy
from methods.objects import ObjectMethod, check_image_size, check_voxel_resolution, in_dataset_frame
from methods.weights import load_weights
from ops.schedules import Schedule, WarmupThenSteps
from ops.types import ObjectBatch, Reconstruction, Shape
from ops.voxels import shape_from_voxels

GRID_SIZE = 4  # N
NUM_UNPOOLINGS = 3
RESOLUTION = GRID_SIZE * 2**NUM_UNPOOLINGS  # R
Skip = Literal["none", "identity", "convolution"]
# of the six blocks of the residual encoder; in the released code the fourth has none, and the fifth is no identity
ENCODER_SKIPS: tuple[Skip, ...] = ("none", "convolution", "convolution", "none", "convolution", "identity")


class Block2d(nn.Module):
    """One convolution of the encoder, or two with a shortcut past them.

    Args:
        in_channels: channels that come in.
        out_channels: channels that leave.
        kernel_size: of the first convolution.
        slope: of the leaky rectifiers.
        is_residual: whether there is a second convolution.
        skip: what the shortcut is.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, slope: float, is_residual: bool, skip: Skip
    ) -> None:
        super().__init__()
        self.slope, self.skip = slope, skip
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.second = nn.Conv2d(out_channels, out_channels, 3, padding=1) if is_residual else None
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if skip == "convolution" else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)."""
        out = F.leaky_relu(self.conv(x), self.slope)
        if self.second is not None:
            out = F.leaky_relu(self.second(out), self.slope)
        if self.skip == "none":
            return out
        return out + (x if self.shortcut is None else self.shortcut(x))


class ImageEncoder(nn.Module):
    """Six blocks, each with a max pooling, then one fully connected layer.

    Args:
        image_size: pixels along the edge of an image.
        channels: of the six blocks.
        feature_size: length of the vector.
        slope: of the leaky rectifiers.
        is_residual: two convolutions a block.
    """

    def __init__(
        self, image_size: int, channels: Sequence[int], feature_size: int, slope: float, is_residual: bool
    ) -> None:
        super().__init__()
        if len(channels) != len(ENCODER_SKIPS):
            raise ValueError(f"encoder_channels: {len(channels)} numbers, expected {len(ENCODER_SKIPS)}")
        if is_residual and channels[4] != channels[5]:
            raise ValueError(
                f"encoder_channels: the last two are {channels[4]} and {channels[5]}, but a residual network adds one "
                "to the other; make them equal"
            )
        self.slope = slope
        self.blocks = nn.ModuleList()
        map_size, in_channels = image_size, 3
        for i, out_channels in enumerate(channels):
            skip = ENCODER_SKIPS[i] if is_residual else "none"
            self.blocks.append(Block2d(in_channels, out_channels, 3 if i else 7, slope, is_residual, skip))
            map_size, in_channels = map_size // 2 + 1, out_channels
        self.linear = nn.Linear(in_channels * map_size**2, feature_size)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] -> (B, F)."""
        x = images
        for block in self.blocks:
            # padded as in the released code, so that 127 pixels become 64, 33, 17, 9, 5, 3
            x = F.max_pool2d(block(x), 2, padding=1)
        return F.leaky_relu(self.linear(x.flatten(1)), self.slope)


class Gate(nn.Module):
    """W x + U * h + b on the grid, where * is a 3D convolution; b is shared by the cells.

    Args:
        feature_size: length of x.
        channels: C of h and of the result.
        kernel_size: of the convolution, 1 or 3.
    """

    def __init__(self, feature_size: int, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.feature = nn.Linear(feature_size, channels * GRID_SIZE**3, bias=False)
        self.state = nn.Conv3d(channels, channels, kernel_size, padding=kernel_size // 2)

    def forward(self, feature: Tensor, state: Tensor) -> Tensor:
        """(B, F) and (B, C, N, N, N) -> (B, C, N, N, N)."""
        return self.feature(feature).view_as(state) + self.state(state)


class LSTMCell(nn.Module):
    """LSTM without output gates, on a grid: 3D-R2N2 (arXiv:1604.00449), Section 4.2.

    Args:
        feature_size, channels, kernel_size: as for ``Gate``.
    """

    def __init__(self, feature_size: int, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.forget, self.input, self.candidate = (Gate(feature_size, channels, kernel_size) for _ in range(3))

    def forward(self, feature: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Hidden grid and memory (B, C, N, N, N) after one more view."""
        hidden, memory = state
        kept = self.forget(feature, hidden).sigmoid() * memory
        memory = kept + self.input(feature, hidden).sigmoid() * self.candidate(feature, hidden).tanh()
        return memory.tanh(), memory


class GRUCell(nn.Module):
    """Gated recurrent unit on a grid: 3D-R2N2 (arXiv:1604.00449), Section 4.2.

    Args:
        feature_size, channels, kernel_size: as for ``Gate``.
    """

    def __init__(self, feature_size: int, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.update, self.reset, self.candidate = (Gate(feature_size, channels, kernel_size) for _ in range(3))

    def forward(self, feature: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Hidden grid (B, C, N, N, N) after one more view; it is its own memory."""
        hidden, _ = state
        update = self.update(feature, hidden).sigmoid()
        candidate = self.candidate(feature, self.reset(feature, hidden).sigmoid() * hidden).tanh()
        hidden = update * hidden + (1 - update) * candidate
        return hidden, hidden


class Block3d(nn.Module):
    """One convolution of the decoder, or two with a shortcut past them, perhaps on a grid that is doubled before.

    Args:
        in_channels: channels that come in.
        out_channels: channels that leave.
        slope: of the leaky rectifiers.
        is_residual: whether there is a second convolution.
        unpooling: how the grid is doubled, see ``unpool``; "none" leaves it and makes the block the last one, whose
            shortcut is a 3x3x3 convolution of what its first convolution gives.
    """

    def __init__(self, in_channels: int, out_channels: int, slope: float, is_residual: bool, unpooling: str) -> None:
        super().__init__()
        self.slope, self.unpooling = slope, unpooling
        self.conv = nn.Conv3d(in_channels, out_channels, 3, padding=1)
        self.second, self.shortcut = None, None
        if is_residual:
            self.second = nn.Conv3d(out_channels, out_channels, 3, padding=1)
            if unpooling == "none":
                self.shortcut = nn.Conv3d(out_channels, out_channels, 3, padding=1)
            elif in_channels != out_channels:
                self.shortcut = nn.Conv3d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, C', D', H', W'), twice the size where the grid is doubled."""
        first = F.leaky_relu(self._first_conv(x), self.slope)
        if self.second is None:
            return first
        # the released code takes the last shortcut from the first convolution, not from the input
        skipped = first if self.unpooling == "none" else unpool(x, self.unpooling)
        out = F.leaky_relu(self.second(first), self.slope)
        return out + (skipped if self.shortcut is None else self.shortcut(skipped))

    def _first_conv(self, x: Tensor) -> Tensor:
        if self.unpooling == "none":
            return self.conv(x)
        # unpooling and convolution as one transposed convolution, which multiplies no zeros and no copies
        weight = self.conv.weight.flip(2, 3, 4).transpose(0, 1)
        if self.unpooling == "zero":
            return F.conv_transpose3d(x, weight, self.conv.bias, stride=2, padding=1, output_padding=1)
        # a copied value meets the sum of the weights that its copies meet
        weight = 8 * F.avg_pool3d(F.pad(weight, [1] * 6), 2, stride=1)
        return F.conv_transpose3d(x, weight, self.conv.bias, stride=2, padding=1)


class VoxelDecoder(nn.Module):
    """Four blocks, of which three double the grid, and a convolution to two channels: empty and occupied.

    Args:
        in_channels: C of the grid.
        channels: of the four blocks.
        slope: of the leaky rectifiers.
        is_residual: two convolutions a block.
        unpooling: "zero" or "nearest", see ``unpool``.
    """

    def __init__(
        self, in_channels: int, channels: Sequence[int], slope: float, is_residual: bool, unpooling: str
    ) -> None:
        super().__init__()
        if len(channels) != NUM_UNPOOLINGS + 1:
            raise ValueError(f"decoder_channels: {len(channels)} numbers, expected {NUM_UNPOOLINGS + 1}")
        unpoolings = [unpooling] * NUM_UNPOOLINGS + ["none"]
        self.blocks = nn.Sequential(
            *(
                Block3d(i, o, slope, is_residual, each)
                for i, o, each in zip((in_channels, *channels[:-1]), channels, unpoolings, strict=True)
            )
        )
        self.last = nn.Conv3d(channels[-1], 2, 3, padding=1)

    def forward(self, grid: Tensor) -> Tensor:
        """(B, C, N, N, N) -> logits (B, R, R, R)."""
        if grid.device.type == "cpu":
            # convolutions of few channels run twice as fast in this order
            grid = grid.contiguous(memory_format=torch.channels_last_3d)
        empty, occupied = self.last(self.blocks(grid)).unbind(1)
        return occupied - empty


def unpool(grid: Tensor, unpooling: str) -> Tensor:
    """(B, C, D, H, W) -> (B, C, 2D, 2H, 2W), with a value in the first of its eight new cells, or in all of them."""
    if unpooling == "nearest":
        return F.interpolate(grid, scale_factor=2, mode="nearest")
    larger = grid.new_zeros(*grid.shape[:2], *(2 * size for size in grid.shape[2:]))
    larger[..., ::2, ::2, ::2] = grid
    return larger


class R2N2(ObjectMethod):
    """Voxels from one or more images of an object, seen one after the other.

    The defaults are the released residual GRU-3 and its training.

    Args:
        optimizer: makes the optimizer; a weight decay leaves biases alone, as in the released code.
        lr_schedule: factor on the learning rate for every progress.
        max_steps: length of the run; linked to trainer.max_steps.
        recurrence: cell of the grid, the released code's GRU or the paper's text's LSTM.
        kernel_size: of the convolution within the grid, 1 or 3.
        residual: two convolutions a block and shortcuts.
        unpooling: how a decoder's grid is doubled: the value in one new cell and zeros elsewhere, or in all.
        slope: of the leaky rectifiers for negative values; 0.1 in the paper, 0.01 in the released code.
        reduction: whether the loss that is back-propagated is the mean over voxels, or their sum as the paper has it;
            the sum wants a learning rate 32,768 times smaller.
        threshold: occupancy from which a voxel belongs to the shape.
        image_size: pixels along the edge of an image.
        encoder_channels: of the six convolutions or residual blocks.
        feature_size: length of an image's vector.
        grid_channels: of the recurrent grid.
        decoder_channels: of the four convolutions or residual blocks before the last convolution.
        weights: checkpoint of this method to start from.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=1e-4, weight_decay=5e-5),
        lr_schedule: Schedule | None = WarmupThenSteps(warmup=0.0, milestones=(1 / 3,)),
        max_steps: int = 60_000,
        recurrence: Literal["lstm", "gru"] = "gru",
        kernel_size: Literal[1, 3] = 3,
        residual: bool = True,
        unpooling: Literal["zero", "nearest"] = "zero",
        slope: float = 0.01,
        reduction: Literal["mean", "sum"] = "mean",
        threshold: float = 0.4,
        image_size: int = 127,
        encoder_channels: Sequence[int] = (96, 128, 256, 256, 256, 256),
        feature_size: int = 1024,
        grid_channels: int = 128,
        decoder_channels: Sequence[int] = (128, 128, 64, 32),
        weights: str | None = None,
    ) -> None:
        super().__init__(lambda _: optimizer(self._parameter_groups()), lr_schedule, max_steps)
        if not 0 < threshold < 1:
            raise ValueError(f"threshold: {threshold}, expected an occupancy between 0 and 1")
        self.encoder = ImageEncoder(image_size, encoder_channels, feature_size, slope, residual)
        self.cell = (LSTMCell if recurrence == "lstm" else GRUCell)(feature_size, grid_channels, kernel_size)
        self.decoder = VoxelDecoder(grid_channels, decoder_channels, slope, residual, unpooling)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d | nn.Linear):
                # std sqrt(2 / n) with n the mean of the fans, as in the released code
                nn.init.xavier_normal_(module.weight, gain=math.sqrt(2))
                if module.bias is not None:
                    nn.init.constant_(module.bias, 0.1)
        self.reduction, self.threshold, self.image_size = reduction, threshold, image_size
        self.grid_channels, self.weights = grid_channels, weights

    @property
    def reads(self) -> frozenset[str]:
        """Images, and the voxels that the loss compares with."""
        return frozenset({"images", "voxels"})

    def load_initial_weights(self) -> None:
        """Load ``weights`` where given."""
        if self.weights is not None:
            load_weights(self, self.weights, {"": ""})

    def forward(self, images: Tensor) -> Tensor:
        """(B, V, 3, S, S) images -> (B, R, R, R) occupancy logits after the last view."""
        return self.decoder(self._grids(images)[-1])

    def logits_after_each_view(self, images: Tensor) -> Tensor:
        """(B, V, 3, S, S) images -> (B, V, R, R, R) occupancy logits after the first view, the second, and so on."""
        grids = torch.stack(self._grids(images), dim=1)
        return self.decoder(grids.flatten(0, 1)).unflatten(0, grids.shape[:2])

    def _grids(self, images: Tensor) -> list[Tensor]:
        """The hidden grid (B, C, N, N, N) after each of the views; every call starts from an empty one."""
        check_image_size(images, self.image_size, type(self).__name__)
        features = self.encoder(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        hidden = features.new_zeros(len(images), self.grid_channels, GRID_SIZE, GRID_SIZE, GRID_SIZE)
        state, grids = (hidden, hidden), []
        for feature in features.unbind(1):
            state = self.cell(feature, state)
            grids.append(state[0])
        return grids

    def training_step(self, batch: ObjectBatch, batch_idx: int) -> Tensor:
        """One batch of objects, as many views of each as the batch has."""
        check_voxel_resolution(batch["voxels"], RESOLUTION, type(self).__name__)
        loss = voxel_cross_entropy(self(batch["images"]), batch["voxels"], reduction=self.reduction)
        # the paper's tables give the mean, whatever was back-propagated
        mean = loss / RESOLUTION**3 if self.reduction == "sum" else loss
        terms = {"loss": loss, "cross_entropy": mean}
        self.log_training(batch_idx, terms, {"num_views": float(batch["images"].shape[1])})
        return loss

    def validation_step(self, batch: ObjectBatch, batch_idx: int) -> Reconstruction:
        """Occupancies, and their mean cross-entropy where the truth is at hand."""
        logits = self(batch["images"])
        if "voxels" in batch:
            check_voxel_resolution(batch["voxels"], RESOLUTION, type(self).__name__)
            mean = voxel_cross_entropy(logits, batch["voxels"], reduction="mean")
            self.log("val/cross_entropy", mean, batch_size=len(logits), sync_dist=True)
        return {"voxels": logits.sigmoid()}

    def test_step(self, batch: ObjectBatch, batch_idx: int) -> Reconstruction:
        """Shapes in the dataset's frame and unit, and the occupancies that they enclose."""
        voxels = self(batch["images"]).sigmoid()
        return {"shapes": in_dataset_frame(self._shapes(voxels), batch), "voxels": voxels}

    @torch.no_grad()
    def reconstruct(self, batch: ObjectBatch) -> list[Shape]:
        """The surface around the voxels that are occupied after the last view."""
        return self._shapes(self(batch["images"]).sigmoid())

    def _shapes(self, voxels: Tensor) -> list[Shape]:
        return [shape_from_voxels(occupancy, self.threshold) for occupancy in voxels.cpu()]

    def _parameter_groups(self) -> list[dict[str, object]]:
        weights = [p for p in self.parameters() if p.dim() > 1]
        biases = [p for p in self.parameters() if p.dim() <= 1]
        return [{"params": weights}, {"params": biases, "weight_decay": 0.0}]
