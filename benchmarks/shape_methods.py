"""The shape methods as their configs have them: what each reads, at which batch size, and a batch of random numbers."""

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from methods.imnet import IMNetAutoencoder, IMNetSVR
from methods.objects import ObjectMethod
from methods.onet import OccupancyNetwork
from methods.psgn import PSGN
from methods.r2n2 import R2N2

NAMES = ("r2n2", "psgn", "onet", "onet_points", "onet_voxels", "imnet_autoencoder", "imnet")
CLASSES = {cls.__name__: cls for cls in (R2N2, PSGN, OccupancyNetwork, IMNetAutoencoder, IMNetSVR)}
CONFIGS = Path(__file__).parents[1] / "configs"
MEAN_VIEWS = 3  # of 3D-R2N2's one to five
SMALL = {
    "R2N2": {"encoder_channels": (4, 4, 4, 8, 8, 8), "feature_size": 8, "grid_channels": 4},
    "PSGN": {"width": 2},
    "OccupancyNetwork": {"image_width": 4, "hidden_size": 8, "point_hidden_size": 8, "voxel_width": 2},
    "IMNetAutoencoder": {"encoder_width": 2, "decoder_width": 2},
    "IMNetSVR": {"encoder_width": 2, "decoder_width": 2, "image_width": 4},
}
"""Sizes of networks that only show that a benchmark runs."""


def config_of(name: str) -> dict[str, Any]:
    """``configs/<name>_shapenet.yaml`` as it is."""
    return yaml.safe_load((CONFIGS / f"{name}_shapenet.yaml").read_text())


def method_of(name: str, *, is_small: bool = False) -> ObjectMethod:
    """The network of a config with the same random weights every time, without what it would be started from."""
    section = config_of(name)["model"]
    cls = CLASSES[section["class_path"].rpartition(".")[2]]
    sizes = SMALL[cls.__name__] if is_small else {}
    if is_small and cls is R2N2:
        sizes = sizes | {"decoder_channels": (4, 4, 4, 4)}
    torch.manual_seed(0)
    method = cls(**({key: value for key, value in section.get("init_args", {}).items() if key != "weights"} | sizes))
    # random codes are as good as any to regress to
    method.load_initial_weights = lambda: None
    return method


def random_batch(name: str, batch_size: int, device: str) -> dict[str, Tensor]:
    """A batch of noise in the sizes of a config, with what any of the methods reads of it."""
    data = config_of(name)["data"]["init_args"]
    generator = torch.Generator().manual_seed(0)
    size = data.get("image_size") or data.get("crop") or 137
    views = MEAN_VIEWS if isinstance(data.get("num_views"), list) else 1
    resolution = data.get("voxel_resolution", 32)
    shapes = {
        "images": (views, 3, size, size),
        "voxels": (resolution,) * 3,
        "surface_points": (data.get("num_surface_points", 2048), 3),
        "query_points": (data.get("num_query_points", 2048), 3),
        "query_occupancy": (data.get("num_query_points", 2048),),
    }
    batch = {}
    for key in sorted(method_reads(name)):
        values = torch.rand(batch_size, *shapes[key], generator=generator)
        if key in ("voxels", "query_occupancy"):
            values = values < 0.2
        batch[key] = (values - 0.5 if key.endswith("points") else values).to(device)
    return batch


def method_reads(name: str) -> frozenset[str]:
    """What the method of a config reads."""
    with torch.device("meta"):
        return method_of(name).reads
