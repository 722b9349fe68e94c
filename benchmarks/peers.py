"""A training step of the shape methods against that of the public PyTorch code, on the same batch.

    python -m benchmarks.peers --onet ../occupancy_networks --imnet ../IM-NET-pytorch --r2n2 ../3D-R2N2-PyTorch
    python -m benchmarks.peers --onet ../occupancy_networks --device cuda --batch_size 64

Of the checkouts only the networks are imported, as they are, and trained with Adam and the loss of their own code:

- https://github.com/autonomousvision/occupancy_networks (the authors'; from images it needs torchvision);
- https://github.com/czq142857/IM-NET-pytorch (the authors'); from images it regresses to codes that were computed
  before, where ours computes them in every step;
- https://github.com/heromanba/3D-R2N2-PyTorch (a port; the authors' is in Theano); it needs easydict.

A step is forward, loss, backward and optimizer on noise that is in memory already. Sides take turns, the fastest round
of each counts; on a CPU it is the time of the process's threads. Parameters are counted on both sides.
"""

import argparse
import collections.abc
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.machine import machine
from benchmarks.shape_methods import NAMES, config_of, method_of, random_batch
from benchmarks.shape_steps import seconds, step_of

Batch = dict[str, Tensor]
Loss = Callable[[], Tensor]
NUM_INPUT_POINTS = 300  # of configs/pointcloud/onet.yaml there
FORMS = {"half": False, "channels_last": False, "compiled": False, "is_small": False}


def bare_package(name: str, folder: Path) -> None:
    """Stand in for a package without running its ``__init__``, which may need what must be compiled."""
    package = ModuleType(name)
    package.__path__ = [str(folder)]
    sys.modules[name] = package


def onet(name: str, root: Path, batch: Batch) -> tuple[nn.Module, Loss]:
    """Occupancy Networks' network for that input, and its loss on the batch."""
    for package in ("im2mesh", "im2mesh.onet", "im2mesh.encoder", "im2mesh.utils"):
        bare_package(package, root / package.replace(".", "/"))
    kd_tree = ModuleType("im2mesh.utils.libkdtree")
    kd_tree.KDTree = None  # for its metrics alone
    sys.modules[kd_tree.__name__] = kd_tree
    models = import_module("im2mesh.onet.models")
    if name == "onet":
        conv = import_module("im2mesh.encoder.conv")
        untrained = conv.models.resnet18
        conv.models.resnet18 = lambda pretrained: untrained()
        encoder, inputs = conv.Resnet18(c_dim=256), batch["images"][:, 0]
    elif name == "onet_points":
        encoder = import_module("im2mesh.encoder.pointnet").ResnetPointnet(c_dim=512, hidden_dim=512)
        inputs = batch["surface_points"][:, :NUM_INPUT_POINTS]  # ours draws as many
    else:
        encoder, inputs = import_module("im2mesh.encoder.voxels").VoxelEncoder(c_dim=256), batch["voxels"].float()
    decoder = models.decoder_dict["cbatchnorm"](z_dim=0, c_dim=512 if name == "onet_points" else 256)
    device = inputs.device
    network = models.OccupancyNetwork(decoder, encoder, device=device)
    points, occupancy = batch["query_points"], batch["query_occupancy"].float()
    code = torch.empty(len(points), 0, device=device)

    def loss() -> Tensor:
        logits = network.decode(points, code, network.encode_inputs(inputs)).logits
        return F.binary_cross_entropy_with_logits(logits, occupancy, reduction="none").sum(-1).mean()

    return network, loss


def imnet(name: str, root: Path, batch: Batch) -> tuple[nn.Module, Loss]:
    """IM-Net's autoencoder, or its encoder of images."""
    sys.path.insert(0, str(root))
    if name == "imnet":
        network = import_module("modelSVR").im_network(64, 128, 256, 3).img_encoder.to(batch["images"].device)
        grey = batch["images"][:, 0].mean(1, keepdim=True)
        codes = torch.rand(len(grey), 256, device=grey.device)
        return network, lambda: F.mse_loss(network(grey), codes)
    voxels = batch["voxels"][:, None].float()
    network = import_module("modelAE").im_network(32, 128, 256, 3).to(voxels.device)
    points, occupancy = batch["query_points"], batch["query_occupancy"][..., None].float()
    return network, lambda: F.mse_loss(network(voxels, None, points, is_training=True)[1], occupancy)


def r2n2(name: str, root: Path, batch: Batch) -> tuple[nn.Module, Loss]:
    """3D-R2N2's residual GRU."""
    sys.path.insert(0, str(root))
    collections.Iterable = collections.abc.Iterable  # where Python had it in 2020
    views = batch["images"].transpose(0, 1).contiguous()
    constants = import_module("lib.config").cfg.CONST
    constants.BATCH_SIZE, constants.N_VIEWS = views.shape[1], len(views)
    network = import_module("models.res_gru_net").ResidualGRUNet().to(views.device)
    truth = torch.stack([~batch["voxels"], batch["voxels"]], dim=1).float()
    return network, lambda: network(views, truth, test=False)


PEERS = {
    "r2n2": (r2n2, "r2n2"),
    "onet": (onet, "onet"),
    "onet_points": (onet, "onet"),
    "onet_voxels": (onet, "onet"),
    "imnet_autoencoder": (imnet, "imnet"),
    "imnet": (imnet, "imnet"),
}
"""What builds the public code's side of a method, and the argument that says where it is."""
NEEDS = {"onet": "torchvision", "r2n2": "easydict"}


def theirs(name: str, root: Path, batch: Batch) -> tuple[nn.Module, Callable[[], float]]:
    """The public network and one training step of it, as a function that gives the loss."""
    with redirect_stdout(StringIO()):
        network, loss_of = PEERS[name][0](name, root, batch)
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)

    def step() -> float:
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step()
        return loss.item()

    return network, step


def size(network: nn.Module) -> float:
    """Million parameters that are trained."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad) / 1e6


def compare(name: str, root: Path, batch_size: int, device: str, rounds: int) -> None:
    """Print one row."""
    network, step = theirs(name, root, random_batch(name, batch_size, device))
    sides = {"ours": step_of(name, batch_size, device, **FORMS), "theirs": step}
    for first in sides.values():
        first()
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, one in sides.items():
            times[side].append(1e3 * seconds(one, device))
    best = {side: min(turns) for side, turns in times.items()}
    print(
        f"| {name} | {batch_size} | {size(method_of(name)):.2f} and {size(network):.2f} M | {best['ours']:.0f} | "
        f"{best['theirs']:.0f} | {best['theirs'] / best['ours']:.2f} x |",
        flush=True,
    )


def main() -> None:
    """Print one row a method, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for argument in ("onet", "imnet", "r2n2"):
        parser.add_argument(f"--{argument}", type=Path, metavar="CHECKOUT", help="of the public code; left out without")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch_size", type=int, help="objects; the config's on a GPU and 4 on a CPU where not given")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    roots = {name: getattr(given, argument) for name, (_, argument) in PEERS.items() if getattr(given, argument)}
    if not roots:
        parser.error("name at least one checkout, such as --onet ../occupancy_networks")
    for root in roots.values():
        if not root.is_dir():
            parser.error(f"{root}: no such folder; expected a checkout of the public code")
    print(f"{machine(given.device)}, fastest of {given.rounds}\n")
    print("| | objects | parameters, ours and theirs | ours, ms a step | theirs | ours is faster |")
    print("|---|---:|---:|---:|---:|---:|")
    for name in [name for name in NAMES if name in roots]:
        if (needed := NEEDS.get(name)) and find_spec(needed) is None:
            print(f"| {name} | | not run: pip install {needed} | | | |")
            continue
        batch_size = given.batch_size or (
            config_of(name)["data"]["init_args"]["batch_size"] if given.device == "cuda" else 4
        )
        compare(name, roots[name], batch_size, given.device, given.rounds)


if __name__ == "__main__":
    main()
