"""Networks that PyTorch compiles."""

from collections.abc import Sequence

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn


class Compiled(Callback):
    """Has ``torch.compile`` make kernels of some networks of a method, at the first batch, which takes minutes.

    The functions are the same but for rounding and checkpoints have the same content. Numbers of rows are compiled as
    unknown ones: rays that pass nothing leave a bundle before the networks see it, so they change from step to step.

    Args:
        networks: submodules by name, such as ``color_network``.
        mode: of ``torch.compile``; "reduce-overhead" records CUDA graphs, one for each number of rows.
        backend: of ``torch.compile``.

    Raises:
        ValueError: no network is named.
    """

    def __init__(self, networks: Sequence[str], mode: str | None = None, backend: str = "inductor") -> None:
        if isinstance(networks, str) or not networks:
            raise ValueError(f"networks: {networks!r}, expected names of submodules, such as [color_network]")
        self.networks, self.mode, self.backend = list(networks), mode, backend

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Mark the networks.

        Raises:
            ValueError: the method has no such network.
        """
        if stage == "fit":
            compile_networks(pl_module, self.networks, self.mode, self.backend)


def compile_networks(
    module: nn.Module, networks: Sequence[str], mode: str | None = None, backend: str = "inductor"
) -> None:
    """Have submodules compiled in place at their next call.

    Raises:
        ValueError: one of them does not exist; it names those that do.
    """
    known = dict(module.named_children())
    for name in networks:
        if name not in known:
            raise ValueError(
                f"networks: {type(module).__name__} has no submodule {name!r}; expected some of {', '.join(known)}"
            )
        known[name].compile(mode=mode, backend=backend, dynamic=True)
