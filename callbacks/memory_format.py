"""Convolutions whose weights lie in memory with the channels last, as tensor cores and oneDNN like them."""

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn


class ChannelsLast(Callback):
    """Orders the weights of 2D and 3D convolutions with the channels last, and with them what they compute.

    The network is the same function but for rounding, and checkpoints have the same content: a run may be resumed with
    the callback or without it. It pays with half precision on a GPU.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        order_weights(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # after a checkpoint was loaded, whose copy keeps the order that is here; weights may have been assigned
        order_weights(pl_module)


def order_weights(module: nn.Module) -> None:
    """Put the channels of the weights of all convolutions last, in place."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Conv3d | nn.ConvTranspose3d):
            layer.weight.data = layer.weight.data.contiguous(memory_format=formats[layer.weight.dim()])
