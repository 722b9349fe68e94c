"""Neuralangelo (Li et al., CVPR 2023, arXiv:2306.03092): a signed distance field on a hash grid, coarse to fine.

A hash-grid SDF is rendered as in NeuS; its gradient comes from finite differences whose step shrinks as finer levels
of the grid wake up, and a curvature loss smooths it meanwhile. Outside the unit sphere stands a NeRF++ background.

What differs from the paper's code: rays that miss the sphere are left out before any arithmetic instead of being
cleaned up after it; sleeping levels are not looked up; the analytic gradient comes with the true Laplacian; and, where
asked for, samples come from a cached lattice of the SDF instead of four rounds of up-sampling. Where asked for, too,
masks (NeuS, arXiv:2106.10689), structure-from-motion points and patches of neighbouring photographs (both Geo-NeuS,
arXiv:2205.15848) supervise the surface, and every photograph has an exposure of its own.

Letters: R rays; S samples a ray; H hidden features; A features of the awake levels. The default is the paper's DTU
network: 365.4 M table parameters and about 1.1 M in the networks.
"""

from typing import Literal, TypedDict

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from losses.images import color_l1, mask_cross_entropy
from losses.patches import patch_loss
from losses.surfaces import curvature, eikonal, zero_at_points
from methods.appearance import Exposure, PhotographCodes
from methods.base import Method
from methods.coarse_to_fine import CoarseToFine
from methods.fields import BackgroundNetwork, ColorNetwork, SDFNetwork
from methods.views import render_views
from ops.encodings import spherical_harmonics
from ops.hash_grid.grid import HashGrid
from ops.isosurface import extract_surface
from ops.rays import points_along, unit_sphere_intersection
from ops.rendering import composite_sections, surface_alpha
from ops.sampling import hierarchical_distances, sections
from ops.schedules import Schedule, WarmupThenSteps
from ops.sdf_grid import SdfGrid
from ops.types import ObjectBatch, RayBatch, Reconstruction, Renders, Shape


class RayRender(TypedDict):
    """What a bundle of rays sees. M of the R rays pass something that may be opaque."""

    color: Tensor  # (R, 3)
    background: Tensor  # (R, 3) what is behind the unit sphere
    transmittance: Tensor  # (R,) light that passes the foreground
    log_transmittance: Tensor  # (R,) its logarithm, exact where the other rounds to 0 or 1
    depth: Tensor  # (R,) weighted distance of the foreground
    normal: Tensor  # (R, 3) weighted foreground normals
    index: Tensor  # (M,) those rays
    distances: Tensor  # (M, S) of their samples
    sdf: Tensor  # (M, S)
    gradient: Tensor  # (M, S, 3) of the SDF at the samples
    laplacian: Tensor  # (M, S)


class Neuralangelo(Method):
    """Neuralangelo on the photographs of one scene.

    Args:
        optimizer: makes the optimizer of all parameters; the paper's is AdamW, lr 1e-3, weight decay 1e-2.
        lr_schedule: factor on the learning rate for every progress.
        max_steps: length of the run; linked to trainer.max_steps.
        num_levels: levels of the hash grid.
        features_per_level: features of a level.
        log2_table_size: logarithm of the largest number of entries of a level.
        base_resolution: vertices an axis of the coarsest level, over [-bound, bound].
        finest_resolution: the same of the finest level.
        bound: half the edge of the grid's cube; the object fills the unit sphere.
        grid_backend: kernels of the hash grid.
        grid_precision: of the features that are read; the table itself and its gradient stay in full precision.
        sdf_hidden_size: width of the SDF network and of its feature.
        color_hidden_size: width of the colour network.
        color_layers: its hidden layers.
        background: what is outside the unit sphere: a network; a plain colour that the photographs really show;
            "random" colours that are put behind the photographs, too, by their masks; or "masked" where nothing is
            modelled and only pixels inside the masks have a colour loss. The last two are rendered over black.
        background_hidden_size: width of the background network.
        background_layers: its layers.
        appearance_size: length of a code of each photograph, which the colours depend on; 0 for none. Views that were
            not trained on, and meshes, are coloured by the mean code of those that were.
        exposure: correction of each photograph's colours, for cameras that choose their exposure themselves: a gain a
            channel, an affine map, or none. Views that were not trained on are shown at the mean correction.
        num_images: the most photographs a scene may have, where there are codes or exposures.
        inside_out: the cameras are inside what is reconstructed, and inside the unit sphere; rooms, for instance.
        initial_radius: of the sphere that the surface starts as; of a room, it should hold the cameras.
        s_var: logarithm of the initial sharpness s.
        s_scale: how much faster than its parameter that logarithm moves; NeuS takes 10, for shorter runs.
        gradient: how the SDF is differentiated: 4 or 6 taps, or analytically.
        epsilon_in_cells: distance of the taps, in cells of the finest level that the schedule has reached.
        num_coarse_samples: stratified samples a ray.
        num_fine_samples: samples added a round.
        num_rounds: rounds of up-sampling.
        sampling_dtype: precision in which the SDF network is evaluated where that only places samples.
        num_background_samples: samples a ray outside the sphere.
        occupancy_resolution: vertices an axis of the cached SDF; 0 samples as the paper does.
        num_grid_samples: sections a ray where the cached SDF places them.
        num_grid_eval_samples: the same when views are rendered.
        occupancy_every: steps between refreshes of the cached SDF near the surface; all of it every tenth time.
        eikonal_weight: weight of the unit-gradient loss.
        curvature_weight: largest weight of the Laplacian loss.
        mask_weight: weight of the mask loss, on the foreground's opacity alone; the scene must have masks.
        mask_floor: how near to right or wrong a ray is left alone; an opaque section passes 1e-5, less has no effect.
        sparse_weight: largest weight of the sparse-point loss; the scene must have points.
        sparse_schedule: factor on it for every progress; constant where not given.
        sparse_loss: its form.
        huber_delta: distance below which "huber" forgives, normalised unit.
        patch_weight: largest weight of the patch consistency loss; 0 for none.
        patch_schedule: factor on it for every progress; constant where not given.
        patch_size: edge of its windows in pixels, odd.
        patch_best: sources that count for a ray, those most alike; in the others the point may be hidden.
        patch_rays: most rays of a batch that it compares.
        initial_levels: levels that are awake from the start.
        level_fraction: part of the run after which each further level wakes up.
        warmup_fraction: part of the run before the levels start to count and over which the curvature weight rises.
        anneal_fraction: part of the run over which back-facing surfaces lose their opacity; 0 for none.
        mesh_resolution: marching cubes cells an axis over [-1, 1].
        mesh_largest_only: keep only the largest component.
        eval_chunk_size: rays rendered at once; halves itself where memory is short.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=1e-2),
        lr_schedule: Schedule | None = WarmupThenSteps(),
        max_steps: int = 500_000,
        num_levels: int = 16,
        features_per_level: int = 8,
        log2_table_size: int = 22,
        base_resolution: int = 32,
        finest_resolution: int = 2048,
        bound: float = 2.0,
        grid_backend: Literal["auto", "reference", "numba", "triton"] = "auto",
        grid_precision: Literal["full", "half"] = "full",
        sdf_hidden_size: int = 256,
        color_hidden_size: int = 256,
        color_layers: int = 4,
        background: Literal["nerf++", "black", "white", "random", "masked"] = "nerf++",
        background_hidden_size: int = 256,
        background_layers: int = 8,
        appearance_size: int = 0,
        exposure: Literal["none", "gain", "affine"] = "none",
        num_images: int = 0,
        inside_out: bool = False,
        initial_radius: float = 0.5,
        s_var: float = 3.0,
        s_scale: float = 1.0,
        gradient: Literal["numerical_4", "numerical_6", "analytic"] = "numerical_4",
        epsilon_in_cells: float = 0.25,
        num_coarse_samples: int = 64,
        num_fine_samples: int = 16,
        num_rounds: int = 4,
        sampling_dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        num_background_samples: int = 32,
        occupancy_resolution: int = 0,
        num_grid_samples: int = 16,
        num_grid_eval_samples: int = 64,
        occupancy_every: int = 50,
        eikonal_weight: float = 0.1,
        curvature_weight: float = 5e-4,
        mask_weight: float = 0.0,
        mask_floor: float = 1e-3,
        sparse_weight: float = 0.0,
        sparse_schedule: Schedule | None = None,
        sparse_loss: Literal["l1", "huber"] = "l1",
        huber_delta: float = 0.01,
        patch_weight: float = 0.0,
        patch_schedule: Schedule | None = None,
        patch_size: int = 11,
        patch_best: int = 4,
        patch_rays: int = 512,
        initial_levels: int = 4,
        level_fraction: float = 0.01,
        warmup_fraction: float = 0.01,
        anneal_fraction: float = 0.1,
        mesh_resolution: int = 512,
        mesh_largest_only: bool = False,
        eval_chunk_size: int = 4096,
    ) -> None:
        super().__init__(optimizer, lr_schedule, max_steps)
        if (appearance_size or exposure != "none") and not num_images:
            raise ValueError("appearance_size, exposure: codes need num_images, the most photographs a scene may have")
        if not 0 < mask_floor < 0.5:
            raise ValueError(f"mask_floor is {mask_floor}; expected an opacity between 0 and one half, NeuS's is 1e-3")
        sizes = num_levels, features_per_level, log2_table_size, base_resolution, finest_resolution, bound
        grid = HashGrid(*sizes, grid_backend, grid_precision)
        self.sdf_network = SDFNetwork(grid, sdf_hidden_size, inside_out, initial_radius)
        self.color_network = ColorNetwork(sdf_hidden_size, color_hidden_size, color_layers, appearance_size)
        self.background_network = None
        if background == "nerf++":
            self.background_network = BackgroundNetwork(background_hidden_size, background_layers, appearance_size)
        self.appearance = PhotographCodes(num_images, appearance_size) if appearance_size else None
        self.exposure = Exposure(exposure, num_images) if exposure != "none" else None
        self.s_var = nn.Parameter(torch.tensor(s_var / s_scale))
        self.s_scale = s_scale
        self.sdf_grid = SdfGrid(occupancy_resolution) if occupancy_resolution else None

        self.coarse_to_fine = CoarseToFine(
            num_levels=num_levels,
            base_resolution=base_resolution,
            finest_resolution=finest_resolution,
            bound=bound,
            initial_levels=initial_levels,
            warmup_steps=max(round(warmup_fraction * max_steps), 1),
            steps_per_level=max(round(level_fraction * max_steps), 1),
            epsilon_in_cells=epsilon_in_cells,
            largest_curvature_weight=curvature_weight,
            anneal_steps=anneal_fraction * max_steps,
        )
        self.background, self.gradient = background, gradient
        self.num_coarse_samples, self.num_fine_samples = num_coarse_samples, num_fine_samples
        self.num_rounds = num_rounds
        self.sampling_dtype, self.num_background_samples = getattr(torch, sampling_dtype), num_background_samples
        self.num_grid_samples, self.num_grid_eval_samples = num_grid_samples, num_grid_eval_samples
        self.occupancy_every = occupancy_every
        self.eikonal_weight = eikonal_weight
        self.mask_weight, self.mask_floor = mask_weight, mask_floor
        self.max_sparse_weight, self.sparse_schedule = sparse_weight, sparse_schedule
        self.sparse_loss, self.huber_delta = sparse_loss, huber_delta
        self.max_patch_weight, self.patch_schedule = patch_weight, patch_schedule
        self.patch_size, self.patch_best, self.patch_rays = patch_size, patch_best, patch_rays
        self.inside_out, self.num_images = inside_out, num_images
        self.mesh_resolution, self.mesh_largest_only = mesh_resolution, mesh_largest_only
        self.eval_chunk_size = eval_chunk_size

    @property
    def reads(self) -> frozenset[str]:
        """Rays, and what the losses that are switched on compare with."""
        masks = {"ray_masks"} if self.mask_weight or self.background in ("masked", "random") else set()
        points = {"sparse_points"} if self.max_sparse_weight else set()
        photographs = {"source_images"} if self.max_patch_weight else set()
        return frozenset({"rays"} | masks | points | photographs)

    def sparse_weight(self, step: int) -> float:
        """Weight of the sparse-point loss."""
        return self.max_sparse_weight * (self.sparse_schedule(step / self.max_steps) if self.sparse_schedule else 1.0)

    def patch_weight(self, step: int) -> float:
        """Weight of the patch consistency loss."""
        return self.max_patch_weight * (self.patch_schedule(step / self.max_steps) if self.patch_schedule else 1.0)

    @property
    def inv_s(self) -> Tensor:
        """Sharpness s of the logistic, one over the normalised unit."""
        return (self.s_scale * self.s_var).exp()

    def render_rays(
        self,
        origins: Tensor,
        directions: Tensor,
        step: int,
        image_index: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> RayRender:
        """Render a bundle of rays.

        Args:
            origins, directions: (R, 3), normalised frame, directions unit.
            step: sets every schedule.
            image_index: (R,) photographs the rays belong to; the mean code is used where not given.
            generator: jitter of the samples in training; ``None`` renders a view, without jitter.
        """
        near, far, seen = unit_sphere_intersection(origins, directions)
        (index,) = seen.nonzero(as_tuple=True)
        distances, lengths, occupied = self._samples(
            origins[index], directions[index], near[index], far[index], step, generator
        )
        index = index[occupied]
        points = points_along(origins[index], directions[index], distances)
        sdf, gradient, laplacian, feature = self._surface(points, step)

        # opacities are differences of sigmoids: in the rays' own precision, also where autocast lowered the network's
        sdf, gradient = sdf.to(distances), gradient.to(distances)
        alpha = surface_alpha(
            sdf, gradient, directions[index], lengths, self.inv_s, self.coarse_to_fine.cosine_ratio(step)
        )  # (M, S)
        normals = F.normalize(gradient, dim=-1)
        harmonics = spherical_harmonics(directions)
        code = self._appearance_code(image_index, len(origins))
        colors = self.color_network(
            points, _per_sample(harmonics[index], points), normals, feature, _per_sample(code[index], points)
        )
        seen_values = torch.cat([colors, distances[..., None], normals], dim=-1)
        pixels, log_transmittance = composite_sections(alpha, seen_values)
        values = origins.new_zeros(len(origins), 7).index_copy(0, index, pixels.to(origins))
        # the transmittance itself, and one minus it, would lose the digits that the mask loss lives on
        log_transmittance = torch.zeros_like(near).index_copy(0, index, log_transmittance)
        transmittance = log_transmittance.exp()
        behind = self._background_color(origins, directions, torch.where(seen, far, 1), harmonics, code, generator)
        return {
            "color": self._composited(values[:, :3], transmittance, behind, image_index),
            "background": behind,
            "transmittance": transmittance,
            "log_transmittance": log_transmittance,
            "depth": values[:, 3],
            "normal": values[:, 4:],
            "index": index,
            "distances": distances,
            "sdf": sdf,
            "gradient": gradient,
            "laplacian": laplacian,
        }

    def _samples(
        self,
        origins: Tensor,
        directions: Tensor,
        near: Tensor,
        far: Tensor,
        step: int,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Distances and section lengths (M, S) on those rays that pass something, and which those are."""
        if self.sdf_grid is not None:
            count = self.num_grid_eval_samples if generator is None else self.num_grid_samples
            edges, is_occupied = self.sdf_grid.section_edges(
                origins, directions, near, far, count, self.inv_s.detach(), generator
            )
            edges = edges[is_occupied]
            return (edges[:, 1:] + edges[:, :-1]) / 2, edges.diff(dim=-1), is_occupied

        def sdf_at(distances: Tensor) -> Tensor:
            points = points_along(origins, directions, distances)
            return self.sdf_network(points, self.coarse_to_fine.active_levels(step), self.sampling_dtype).to(distances)

        distances = hierarchical_distances(
            sdf_at, near, far, self.num_coarse_samples, self.num_fine_samples, self.num_rounds, generator
        )
        return distances, sections(distances, far), torch.ones_like(near, dtype=torch.bool)

    def _surface(self, points: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        levels = self.coarse_to_fine.active_levels(step)
        if self.gradient == "analytic":
            return self.sdf_network.with_analytic_derivatives(points, levels)
        num_taps = 4 if self.gradient == "numerical_4" else 6
        return self.sdf_network.with_numerical_derivatives(points, levels, num_taps, self.coarse_to_fine.epsilon(step))

    def _appearance_code(self, image_index: Tensor | None, num_rays: int) -> Tensor:
        if self.appearance is None:
            return self.s_var.new_zeros(num_rays, 0)
        return self.appearance(image_index, num_rays)

    def _composited(self, color: Tensor, transmittance: Tensor, behind: Tensor, image_index: Tensor | None) -> Tensor:
        """(R, 3) foreground over background, exposed as their photographs; a plain backdrop is as it is."""
        through = transmittance[:, None] * behind
        if self.exposure is None:
            return color + through
        if self.background_network is None:
            return self.exposure(color, 1 - transmittance, image_index) + through
        return self.exposure(color + through, torch.ones_like(transmittance), image_index)

    def _background_color(
        self,
        origins: Tensor,
        directions: Tensor,
        far: Tensor,
        harmonics: Tensor,
        code: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        """(R, 3) colour behind the unit sphere."""
        if self.background == "random" and generator is not None:
            return torch.rand(directions.shape, generator=generator, device=directions.device, dtype=directions.dtype)
        if self.background_network is None:
            return torch.full_like(directions, 1.0 if self.background == "white" else 0.0)
        return self.background_network.colors_behind(
            origins, directions, far, harmonics, code, self.num_background_samples, generator
        )

    def on_train_batch_start(self, batch: RayBatch, batch_idx: int) -> None:
        """Refresh the cached SDF where there is one.

        Raises:
            ValueError: a ray is of a photograph that has no code.
        """
        has_codes = self.appearance is not None or self.exposure is not None
        if has_codes and int(batch["image_index"].max()) >= self.num_images:
            raise ValueError(
                f"num_images is {self.num_images}, but the scene has a photograph number "
                f"{int(batch['image_index'].max())}, counted from 0; set num_images to the number of photographs"
            )
        if self.sdf_grid is not None and self.global_step % self.occupancy_every == 0:
            is_full = self.global_step % (10 * self.occupancy_every) == 0
            levels = self.coarse_to_fine.active_levels(self.global_step)
            self.sdf_grid.update(
                lambda points: self.sdf_network(points, levels, self.sampling_dtype), band=None if is_full else 4
            )

    def training_step(self, batch: RayBatch, batch_idx: int) -> Tensor:
        """One bundle of rays."""
        step = self.global_step
        # a function of run, step and rank alone: a resumed run jitters as a straight one, two ranks differently
        generator = torch.Generator(self.device)
        generator.manual_seed(hash((torch.initial_seed(), step, self.global_rank)) % 2**63)
        rays = self.render_rays(batch["origins"], batch["directions"], step, batch.get("image_index"), generator)

        num_samples = len(batch["origins"]) * rays["laplacian"].shape[-1]
        terms = {
            "color": self._color_loss(rays, batch),
            "eikonal": eikonal(rays["gradient"], num_samples),
            "curvature": curvature(rays["laplacian"], num_samples),
        }
        loss = (
            terms["color"]
            + self.eikonal_weight * terms["eikonal"]
            + self.coarse_to_fine.curvature_weight(step) * terms["curvature"]
        )
        if self.mask_weight:
            terms["mask"] = mask_cross_entropy(rays["log_transmittance"], batch["ray_masks"], self.mask_floor)
            loss = loss + self.mask_weight * terms["mask"]
        if sparse_weight := self.sparse_weight(step):
            sdf = self.sdf_network(batch["sparse_points"], self.coarse_to_fine.active_levels(step))
            terms["sparse"] = zero_at_points(sdf, self.sparse_loss, self.huber_delta)
            loss = loss + sparse_weight * terms["sparse"]
        if patch_weight := self.patch_weight(step):
            terms["patch"] = self._patch_loss(rays, batch)
            loss = loss + patch_weight * terms["patch"]
        self.log_training(batch_idx, {"loss": loss} | terms, self._schedules(step))
        return loss

    def _schedules(self, step: int) -> dict[str, float | Tensor]:
        """What changes as the run goes on, and the sharpness that it leads to."""
        schedules = {
            "inv_s": self.inv_s.detach(),
            "active_levels": float(self.coarse_to_fine.active_levels(step)),
            "epsilon": self.coarse_to_fine.epsilon(step),
            "curvature_weight": self.coarse_to_fine.curvature_weight(step),
            "cosine_ratio": self.coarse_to_fine.cosine_ratio(step),
        }
        if self.max_sparse_weight:
            schedules["sparse_weight"] = self.sparse_weight(step)
        if self.max_patch_weight:
            schedules["patch_weight"] = self.patch_weight(step)
        return schedules

    def _patch_loss(self, rays: RayRender, batch: RayBatch) -> Tensor:
        return patch_loss(
            batch,
            *(rays[name] for name in ("index", "distances", "sdf", "gradient")),
            patch_size=self.patch_size,
            num_best=self.patch_best,
            max_rays=self.patch_rays,
        )

    def _color_loss(self, rays: RayRender, batch: RayBatch) -> Tensor:
        color = rays["color"]
        if self.background == "random":
            coverage = batch["ray_masks"][:, None]
            return color_l1(color, coverage * batch["colors"] + (1 - coverage) * rays["background"])
        if self.background != "masked":
            return color_l1(color, batch["colors"])
        inside = batch["ray_masks"] > 0.5
        # as a mean over all rays times their share, so that a batch with few rays inside is not given more weight
        return color_l1(color * inside[:, None], batch["colors"] * inside[:, None])

    def validation_step(self, batch: ObjectBatch, batch_idx: int) -> Reconstruction:
        """Held-out views; scores and pictures are made of them by callbacks."""
        return {"renders": self.render(batch)}

    @torch.no_grad()
    def render(self, batch: ObjectBatch) -> Renders:
        """The views of the batch, at the size of its images."""
        return render_views(lambda *rays: self.render_rays(*rays, self.step), batch, self.eval_chunk_size)

    @torch.no_grad()
    def reconstruct(self, batch: ObjectBatch) -> list[Shape]:
        """The zero level set inside the unit sphere, coloured as seen along its normals; one scene, so one shape."""
        levels = self.coarse_to_fine.active_levels(self.step)
        shape = extract_surface(
            lambda points: self.sdf_network(points, levels),
            self.mesh_resolution,
            keep_largest=self.mesh_largest_only,
            color_field=self.color_field,
            keep=lambda points: points.norm(dim=-1) < 1,
            device=self.device,
            on_ranks=True,
        )
        return [shape] * len(batch.get("object_index", [0]))

    @torch.no_grad()
    def color_field(self, points: Tensor) -> Tensor:
        """(n, 3) sRGB in [0, 1] of points (n, 3) of the surface, normalised frame, as seen along their normals."""
        _, gradient, _, feature = self._surface(points, self.step)
        normals = F.normalize(gradient, dim=-1)
        code = self._appearance_code(None, len(points))
        return self.color_network(points, spherical_harmonics(-normals), normals, feature, code)


def _per_sample(values: Tensor, points: Tensor) -> Tensor:
    """(R, C) values of rays -> (R, S, C), the same for each of the (R, S, 3) samples."""
    return values[:, None].expand(-1, points.shape[1], -1)
