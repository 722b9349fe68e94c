"""Convolutions whose weights lie in memory with the channels last, as tensor cores and oneDNN like them."""

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn

FEWEST_CHANNELS = 16


class ChannelsLast(Callback):
    """Orders the weights of 2D and 3D convolutions with the channels last, and with them what they compute.

    The network is the same function but for rounding, and checkpoints have the same content: a run may be resumed with
    the callback or without it.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        order_weights(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # after a checkpoint was loaded, whose copy keeps the order that is here; weights may have been assigned
        order_weights(pl_module)


def order_weights(module: nn.Module) -> None:
    """Put the channels of the weights of all convolutions last, in place.

    Raises:
        ValueError: on a CPU, a convolution that PyTorch 2.13 computes beside its memory in this order.
    """
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Conv3d | nn.ConvTranspose3d):
            _refuse_corruption(name, layer)
            layer.weight.data = layer.weight.data.contiguous(memory_format=formats[layer.weight.dim()])


def _refuse_corruption(name: str, layer: nn.Module) -> None:
    # float32 at 56 x 56 and more ends in "corrupted double-linked list", some steps later
    is_strided_point = max(layer.kernel_size) == 1 < max(layer.stride)
    if layer.weight.device.type == "cpu" and is_strided_point and layer.in_channels < FEWEST_CHANNELS:
        raise ValueError(
            f"ChannelsLast: {name} is a strided 1 x 1 convolution of {layer.in_channels} channels, fewer than "
            f"{FEWEST_CHANNELS}; with the channels last, PyTorch's CPU kernels write beside their memory there. Widen "
            "the network, train it on a GPU, or leave the callback out"
        )
