"""Ellipsoids as small batches of objects, and the small methods that tests train on them."""

import itertools

import torch
import torch.nn.functional as F
from pytorch_lightning import Trainer
from torch.utils.data import DataLoader

from methods.imnet import IMNetAutoencoder, IMNetSVR
from methods.onet import OccupancyNetwork
from methods.psgn import PSGN
from methods.r2n2 import R2N2

QUERY = {"coarse_resolution": 8, "upsampling_steps": 1}
R2N2_SIZES = {
    "image_size": 31, "encoder_channels": (4, 4, 4, 8, 8, 8), "feature_size": 32, "grid_channels": 8,
    "decoder_channels": (8, 8, 8, 4),
}  # fmt: skip
IMNET_SIZES = {"code_size": 8, "voxel_resolution": 8, "encoder_width": 4, "decoder_width": 4, **QUERY}


def _adam(lr):
    return lambda parameters: torch.optim.Adam(parameters, lr=lr)


def _r2n2(**changes):
    return R2N2(**(R2N2_SIZES | {"optimizer": _adam(3e-3), "lr_schedule": None} | changes))


def _psgn(**changes):
    return PSGN(**({"optimizer": _adam(1e-3), "width": 2, "image_size": 32} | changes))


def _onet(**changes):
    sizes = {
        "optimizer": _adam(1e-2), "code_size": 8, "hidden_size": 16, "latent_size": 4, "image_width": 4,
        "point_hidden_size": 8, "voxel_width": 2,
        "voxel_resolution": 16, "num_input_points": 30, "threshold": 0.5, **QUERY,
    }  # fmt: skip
    return OccupancyNetwork(**(sizes | changes))


def _autoencoder(**changes):
    return IMNetAutoencoder(**(IMNET_SIZES | {"optimizer": _adam(3e-3), "init_std": 0.2} | changes))


def _svr(**changes):
    model = IMNetSVR(**(IMNET_SIZES | {"optimizer": _adam(1e-3), "image_size": 32, "image_width": 4} | changes))
    if model.autoencoder is None:
        model.load_initial_weights = lambda: None  # random codes are as good as any to regress to
        for layer in model.decoder.layers:
            layer.weight.data *= 10
    return model


# name -> how it is made, and the images and voxels it reads
METHODS = {
    "r2n2_lstm": (lambda **kw: _r2n2(recurrence="lstm", residual=False, kernel_size=1, **kw), 31, 32),
    "r2n2_gru": (lambda **kw: _r2n2(recurrence="gru", residual=False, **kw), 31, 32),
    "r2n2_residual": (lambda **kw: _r2n2(**kw), 31, 32),
    "psgn": (_psgn, 32, 16),
    "psgn_noise": (lambda **kw: _psgn(noise_size=4, min_of=2, **kw), 32, 16),
    "psgn_hourglass": (lambda **kw: _psgn(network="hourglass", **({"image_size": 192} | kw)), 192, 16),
    "onet_image": (lambda **kw: _onet(**kw), 32, 16),
    "onet_points": (lambda **kw: _onet(conditioned_on="points", **kw), 32, 16),
    "onet_voxels": (lambda **kw: _onet(conditioned_on="voxels", **kw), 32, 16),
    "onet_nothing": (lambda **kw: _onet(conditioned_on="nothing", **kw), 32, 16),
    "imnet_autoencoder": (_autoencoder, 32, 8),
    "imnet_svr": (_svr, 32, 8),
}


def small(name, **changes):
    """A small model with the same random weights every time."""
    torch.manual_seed(0)
    return METHODS[name][0](**changes)


def ellipsoids(seed=0, num_objects=2, image_size=32, resolution=16, num_views=1, num_points=256):
    """A batch of random ellipsoids about the origin, with all the truth there is.

    View v looks along axis v % 3 and shows the silhouette, shaded by its thickness, on white.
    """
    generator = torch.Generator().manual_seed(seed)
    radii = 0.2 + 0.25 * torch.rand(num_objects, 3, generator=generator)

    def level(points):  # (B, ..., 3) -> (B, ...), below 1 inside
        return (points / radii.view(-1, *[1] * (points.dim() - 2), 3)).square().sum(-1)

    axis = (torch.arange(resolution) + 0.5) / resolution - 0.5
    centers = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).expand(num_objects, -1, -1, -1, -1)
    query_points = 1.1 * (torch.rand(num_objects, num_points, 3, generator=generator) - 0.5)
    directions = F.normalize(torch.randn(num_objects, num_points, 3, generator=generator), dim=-1)
    return {
        "images": torch.stack([_picture(radii, v % 3, image_size) for v in range(num_views)], dim=1),
        "masks": torch.stack([(_picture(radii, v % 3, image_size)[:, 0] < 1).float() for v in range(num_views)], dim=1),
        "voxels": level(centers) < 1,
        "surface_points": directions * radii[:, None],
        "query_points": query_points,
        "query_occupancy": level(query_points) < 1,
        "normalized_to_dataset": torch.diag(torch.tensor([2.0, 2, 2, 1])).expand(num_objects, 4, 4),
        "object_index": 10 * seed + torch.arange(num_objects),
    }


def batch_for(name, seed=0, **changes):
    """Ellipsoids in the sizes that a small model reads."""
    _, image_size, resolution = METHODS[name]
    return ellipsoids(seed, image_size=image_size, resolution=resolution, **changes)


def one_from_three_sides(**sizes):
    """One ellipsoid as a batch of three objects that look different: batch normalisation wants them to."""
    batch = ellipsoids(num_objects=1, num_views=3, **sizes)
    images, masks = batch["images"].transpose(0, 1), batch["masks"].transpose(0, 1)
    same_for_all = {key: value.repeat(3, *[1] * (value.dim() - 1)) for key, value in batch.items()}
    return same_for_all | {"images": images, "masks": masks, "object_index": torch.arange(3)}


def part_of(batch, index):
    """The batch of some of its objects."""
    return {key: value[index] for key, value in batch.items()}


def trainer(folder, max_steps, **changes):
    """A quiet trainer whose epochs end with the loader."""
    settings = {
        "default_root_dir": folder, "accelerator": "cpu", "max_steps": max_steps, "logger": False,
        "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    return Trainer(**(settings | changes))


def loader(*batches):
    """The batches, one after the other."""
    return DataLoader(list(batches), batch_size=None)


def fit(model, folder, num_steps, batch):
    """Train on one batch again and again; the model, ready to be tested."""
    trainer(folder, num_steps).fit(model, loader(*itertools.repeat(batch, num_steps)))
    return model.eval()


def same(value, other):
    """Whether two nested results are the same to the last bit."""
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(same(value[key], other[key]) for key in value)
    if isinstance(value, list):
        return len(value) == len(other) and all(map(same, value, other))
    if isinstance(value, torch.Tensor):
        return torch.equal(value, other)
    return value is other if value is None else same(vars(value), vars(other))


def _picture(radii, axis, size):
    """(B, 3, S, S): white, and where the ellipsoid is, the darker the thicker it is along the axis."""
    others = [a for a in range(3) if a != axis]
    position = (torch.arange(size) + 0.5) / size - 0.5
    grid = torch.stack(torch.meshgrid(position, position, indexing="ij"), dim=-1)
    inside = 1 - (grid / radii[:, None, None, others]).square().sum(-1)
    thickness = radii[:, axis, None, None] * inside.clamp(min=0).sqrt()
    return (1 - (inside > 0) * (0.2 + thickness))[:, None].expand(-1, 3, -1, -1).contiguous()
