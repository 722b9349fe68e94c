"""Occupancy Networks (Mescheder et al., CVPR 2019, arXiv:1812.03828): a surface as where an occupancy is one half.

A decoder gives the occupancy of any point, conditioned on the code of an image, of a few noisy points or of coarse
voxels; or on a latent code alone, trained as a variational autoencoder. The mesh comes from marching cubes on a lattice
that is refined only near the surface (MISE).

What differs from the authors' code: one network is chosen by its input, where theirs may combine a code with a latent
one; the points that a point encoder reads are drawn from the batch's surface points.

Parameters with an image encoder 13,414,465, of which the decoder 2,106,625. Letters: B objects, M query points, N input
points, C length of the code, Z of the latent code.
"""

import math
from typing import Literal

import torch
from pytorch_lightning.cli import OptimizerCallable
from pytorch_lightning.utilities.rank_zero import rank_zero_info
from torch import Tensor

from losses.occupancy import gaussian_kl, occupancy_cross_entropy
from methods.objects import ObjectMethod, check_voxel_resolution, object_generators, single_view
from methods.occupancy_networks import (
    ConditionalDecoder,
    ImageCode,
    LatentDecoder,
    LatentEncoder,
    PointCode,
    VoxelCode,
    official_names,
)
from methods.weights import load_weights
from ops.mise import ObjectsField, extract_mise_batch, field_of, refine_vertices_batch
from ops.object_groups import map_groups
from ops.schedules import Schedule
from ops.types import Field, ObjectBatch, Shape


class OccupancyNetwork(ObjectMethod):
    """A mesh from an image, a point cloud or voxels; or one drawn from the shapes that training has shown.

    Args:
        optimizer: makes the optimizer of all parameters.
        lr_schedule: factor on the learning rate for every progress; constant where not given.
        max_steps: length of the run; linked to trainer.max_steps.
        conditioned_on: what the encoder reads; "nothing" is the unconditional form with a latent code.
        code_size: C; the authors' is 256 for images and voxels, 512 for points.
        hidden_size: features of the decoder's layers; the authors' is 256, and 128 where unconditional.
        latent_size: Z, where unconditional.
        image_width: channels of the ResNet's first convolution; 64 is ResNet-18.
        point_hidden_size: features of the point encoder's layers.
        voxel_width: channels of the voxel encoder's first convolution.
        voxel_resolution: of the voxels that are read, a multiple of 16.
        num_input_points: N, points that the point encoder reads.
        point_noise: standard deviation of the noise on them, normalised unit.
        threshold: occupancy on the surface; the authors found 0.2 best for images.
        coarse_resolution: cells along an axis of MISE's first lattice.
        upsampling_steps: times that its cells are halved near the surface.
        padding: share by which the lattice's cube exceeds the unit cube.
        refinement_steps: gradient steps that fit the mesh's vertices to the field and its normals; 0 for none.
        encoder_weights: state dict of torchvision's ResNet-18 trained on ImageNet; random where not given.
        weights: checkpoint of this method, or the authors' for the same input, to start from.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=1e-4),
        lr_schedule: Schedule | None = None,
        max_steps: int = -1,
        conditioned_on: Literal["image", "points", "voxels", "nothing"] = "image",
        code_size: int = 256,
        hidden_size: int = 256,
        latent_size: int = 128,
        image_width: int = 64,
        point_hidden_size: int = 512,
        voxel_width: int = 32,
        voxel_resolution: int = 32,
        num_input_points: int = 300,
        point_noise: float = 0.005,
        threshold: float = 0.2,
        coarse_resolution: int = 32,
        upsampling_steps: int = 2,
        padding: float = 0.1,
        refinement_steps: int = 0,
        encoder_weights: str | None = None,
        weights: str | None = None,
    ) -> None:
        super().__init__(optimizer, lr_schedule, max_steps)
        if not 0 < threshold < 1:
            raise ValueError(f"threshold: {threshold}, expected an occupancy between 0 and 1")
        if voxel_resolution % 16:
            raise ValueError(f"voxel_resolution: {voxel_resolution}, expected a multiple of 16")
        if encoder_weights is not None and conditioned_on != "image":
            raise ValueError(
                f"encoder_weights: they are of an image encoder, but the model reads {conditioned_on}; leave them out"
            )
        self.encoder, self.latent_encoder = None, None
        if conditioned_on == "nothing":
            self.latent_encoder = LatentEncoder(latent_size)
            self.decoder = LatentDecoder(latent_size, hidden_size)
        else:
            self.encoder = {
                "image": lambda: ImageCode(code_size, image_width),
                "points": lambda: PointCode(code_size, point_hidden_size),
                "voxels": lambda: VoxelCode(code_size, voxel_width, voxel_resolution),
            }[conditioned_on]()
            self.decoder = ConditionalDecoder(code_size, hidden_size)
        self.conditioned_on, self.latent_size, self.voxel_resolution = conditioned_on, latent_size, voxel_resolution
        self.num_input_points, self.point_noise = num_input_points, point_noise
        self.threshold, self.coarse_resolution, self.upsampling_steps = threshold, coarse_resolution, upsampling_steps
        self.bounds, self.refinement_steps = (1 + padding) / 2, refinement_steps
        self.encoder_weights, self.weights = encoder_weights, weights

    @property
    def reads(self) -> frozenset[str]:
        """What the encoder reads, and query points with their occupancies."""
        source = {"image": {"images"}, "points": {"surface_points"}, "voxels": {"voxels"}, "nothing": set()}
        return frozenset({"query_points", "query_occupancy"} | source[self.conditioned_on])

    def load_initial_weights(self) -> None:
        """Load ``weights``, or else ``encoder_weights`` where given."""
        if self.weights is not None:
            # names of a checkpoint of our own are in the module already
            names = official_names() | {name: name for name in self.state_dict()}
            load_weights(self, self.weights, names)
        elif self.encoder_weights is not None:
            load_weights(self.encoder.resnet, self.encoder_weights, {"": ""}, ignored=("fc",))
        elif self.conditioned_on == "image":
            rank_zero_info(
                "OccupancyNetwork: the image encoder starts from random weights; the paper starts from ImageNet's, "
                "torchvision's resnet18 as a file in --model.init_args.encoder_weights"
            )

    def code(self, batch: ObjectBatch, generators: list[torch.Generator]) -> Tensor:
        """The (B, C) code of what the batch shows of its objects.

        Args:
            batch: holds what the encoder reads.
            generators: the randomness of a point encoder's input: one for all objects, or one for each.
        """
        if self.conditioned_on == "image":
            return self.encoder(single_view(batch))
        if self.conditioned_on == "voxels":
            check_voxel_resolution(batch["voxels"], self.voxel_resolution, type(self).__name__)
            return self.encoder(batch["voxels"])
        points = batch["surface_points"]
        parts = [points] if len(generators) == 1 else points.split(1)
        return self.encoder(torch.cat([self._noisy_subset(p, g) for p, g in zip(parts, generators, strict=True)]))

    def _noisy_subset(self, points: Tensor, generator: torch.Generator) -> Tensor:
        """(B, N, 3) of (B, P, 3) points, drawn with replacement as the authors do, and moved a little."""
        shape, device = (len(points), self.num_input_points), generator.device
        chosen = torch.randint(points.shape[1], shape, generator=generator, device=device).to(points.device)
        noise = torch.randn(*shape, 3, generator=generator, device=device).to(points)
        return points.gather(1, chosen[..., None].expand(-1, -1, 3)) + self.point_noise * noise

    def training_step(self, batch: ObjectBatch, batch_idx: int) -> Tensor:
        """Cross-entropy summed over an object's query points, and the latent code's KL divergence."""
        generator = self.step_generator()
        points, occupancy = batch["query_points"], batch["query_occupancy"]
        terms = {}
        if self.latent_encoder is None:
            code = self.code(batch, [generator])
        else:
            mean, log_std = self.latent_encoder(points, occupancy)
            noise = torch.randn(mean.shape, generator=generator, device=mean.device).to(mean)
            code = mean + log_std.exp() * noise
            terms["kl"] = gaussian_kl(mean, log_std)
        terms["cross_entropy"] = occupancy_cross_entropy(self.decoder(points, code), occupancy)
        loss = sum(terms.values())
        self.log_training(batch_idx, {"loss": loss} | terms)
        return loss

    def validation_step(self, batch: ObjectBatch, batch_idx: int) -> None:
        """The intersection over union at held-out query points, by which the authors choose their checkpoint."""
        points, occupancy = batch["query_points"], batch["query_occupancy"]
        # object by object: a validation batch may hold all 100,000 points of each
        pairs = zip(points.split(1), self.test_code(batch).split(1), strict=True)
        logits = torch.cat([self.decoder(*pair) for pair in pairs])
        predicted = logits > self.level
        union = (predicted | occupancy).sum(-1)
        # nothing inside and nothing predicted is right
        iou = torch.where(union > 0, (predicted & occupancy).sum(-1) / union.clamp_min(1), 1.0)
        losses = {"val/cross_entropy": occupancy_cross_entropy(logits, occupancy), "val/point_iou": iou.mean()}
        self.log_dict(losses, batch_size=len(points), sync_dist=True)

    @property
    def level(self) -> float:
        """The logit on the surface."""
        return math.log(self.threshold / (1 - self.threshold))

    def test_code(self, batch: ObjectBatch) -> Tensor:
        """Codes that are a function of each object and its index alone; of the prior where nothing is read."""
        generators = object_generators(batch, _num_objects(batch))
        if self.latent_encoder is None:
            return self.code(batch, generators)
        codes = [torch.randn(1, self.latent_size, generator=generator) for generator in generators]
        return torch.cat(codes).to(self.device)

    @torch.no_grad()
    def reconstruct(self, batch: ObjectBatch) -> list[Shape]:
        """The mesh on which the occupancy is ``threshold``."""
        codes = self.test_code(batch)
        field = self.fields(codes)
        shapes = extract_mise_batch(
            field,
            len(codes),
            coarse_resolution=self.coarse_resolution,
            upsampling_steps=self.upsampling_steps,
            bounds=self.bounds,
            device=self.device,
        )
        if self.refinement_steps:
            generators = object_generators(batch, len(codes))
            shapes = refine_vertices_batch(
                shapes, field, generators, num_steps=self.refinement_steps, device=self.device
            )
        return shapes

    def field(self, code: Tensor) -> Field:
        """The level minus the logit, for one object's (1, C) code."""
        return field_of(self.fields(code))

    def fields(self, codes: Tensor) -> ObjectsField:
        """The level minus the logit, for the (B, C) codes of several objects."""
        # a copy: what inference mode made would take no part in the gradients of a refinement
        with torch.inference_mode(False):
            codes = codes.clone()
        return lambda points, objects: self.level - map_groups(self.decoder, points, objects, codes)


def _num_objects(batch: ObjectBatch) -> int:
    return len(next(value for value in batch.values() if isinstance(value, Tensor)))
