import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import Trainer
from torch.utils.data import DataLoader, IterableDataset

from methods.neuralangelo import Neuralangelo
from ops.rays import points_along, unit_sphere_intersection
from ops.schedules import WarmupThenDecay

SMALL = {
    "num_levels": 6,
    "features_per_level": 2,
    "log2_table_size": 13,
    "base_resolution": 8,
    "finest_resolution": 64,
    "bound": 1.0,
    "sdf_hidden_size": 32,
    "color_hidden_size": 32,
    "color_layers": 1,
    "background_hidden_size": 32,
    "mesh_resolution": 64,
}


def _small(seed=0, **changes):
    torch.manual_seed(seed)
    return Neuralangelo(**(SMALL | {"background": "black", "max_steps": 100} | changes))


def _rays(generator, num_rays=64, spread=0.3):
    origins = 3 * F.normalize(torch.randn(num_rays, 3, generator=generator), dim=-1)
    directions = F.normalize(-origins + spread * 3 * torch.randn(num_rays, 3, generator=generator), dim=-1)
    return origins, directions


def _batch(generator, **kwargs):
    origins, directions = _rays(generator, **kwargs)
    count = len(origins)
    return {
        "origins": origins,
        "directions": directions,
        "colors": torch.rand(count, 3, generator=generator),
        "ray_masks": (torch.rand(count, generator=generator) > 0.5).float(),
        "image_index": torch.zeros(count, dtype=torch.int64),
    }


def test_default_network_has_the_published_size():
    with torch.device("meta"):
        model = Neuralangelo()
    table = model.sdf_network.grid.table.numel()
    assert round(table / 1e6, 1) == 365.4
    total = sum(parameter.numel() for parameter in model.parameters())
    assert 0.5e6 < total - table < 1.5e6  # the networks; logs of the paper's code print 366.7 M in all


def test_schedules_hold_the_published_table():
    with torch.device("meta"):
        model = Neuralangelo(s_var=1.4)
    growth = 64 ** (1 / 15)
    #        step   annealed active  1 / epsilon  curvature weight     cosine ratio
    table = [
        (0, 1, 4, 33, 0, 0),
        (2_500, 1, 4, 33, 2.5e-4, 0.05),
        (5_000, 1, 4, 33, 5e-4, 0.1),
        (14_999, 1, 4, 33, 5e-4, 0.29998),
        (15_000, 2, 4, 43, 5e-4 / growth, 0.3),
        (30_000, 5, 5, 98, 5e-4 / growth**4, 0.6),
        (50_000, 9, 9, 295, 5e-4 / growth**8, 1),
        (84_999, 15, 15, 1553, 5e-4 / growth**14, 1),
        (85_000, 16, 16, 2049, 5e-4 / 64, 1),
        (499_999, 16, 16, 2049, 7.8125e-6, 1),
    ]
    for step, annealed, active, resolution, curvature_weight, cosine_ratio in table:
        assert model.coarse_to_fine.annealed_levels(step) == annealed, step
        assert model.coarse_to_fine.active_levels(step) == active, step
        assert 1 / model.coarse_to_fine.epsilon(step) == pytest.approx(resolution), step
        assert model.coarse_to_fine.curvature_weight(step) == pytest.approx(curvature_weight), step
        assert model.coarse_to_fine.cosine_ratio(step) == pytest.approx(cosine_ratio), step
    rates = {0: 0, 2_500: 5e-4, 5_000: 1e-3, 300_000: 1e-3, 300_001: 1e-4, 400_001: 1e-5}
    for step, rate in rates.items():
        assert 1e-3 * model.lr_schedule(step / model.max_steps) == pytest.approx(rate), step


def test_a_shorter_run_goes_through_the_same_schedules():
    with torch.device("meta"):
        full, short = Neuralangelo().coarse_to_fine, Neuralangelo(max_steps=5_000).coarse_to_fine
    for step in range(0, 5_000, 25):
        for name in ("active_levels", "epsilon", "curvature_weight", "cosine_ratio"):
            assert getattr(short, name)(step) == pytest.approx(getattr(full, name)(100 * step)), (name, step)


@pytest.mark.parametrize("inside_out", [False, True])
def test_network_starts_as_a_sphere_of_radius_one_half(inside_out, generator):
    points = F.normalize(torch.randn(500, 3, generator=generator), dim=-1)
    # the softplus rounds the cone off at its tip, the centre
    points = points * (0.3 + 0.7 * torch.rand(500, 1, generator=generator))
    networks = [_small(sdf_hidden_size=256, inside_out=inside_out, seed=seed).sdf_network for seed in range(20)]
    sdf = torch.stack([network(points, 4).detach() for network in networks]) * (-1 if inside_out else 1)
    radius = points.norm(dim=-1)
    # a network of finite width scatters by about 0.09 of the radius; the mean over initialisations does not
    assert ((sdf - (radius - 0.5)) / radius).std() < 0.13
    torch.testing.assert_close(sdf.mean(0), radius - 0.5, atol=0.08, rtol=0)


def _rough_network():
    model = _small(grid_backend="reference").double()
    network = model.sdf_network
    with torch.no_grad():
        network.grid.table.uniform_(-0.1, 0.1)
        network.hidden.parametrizations.weight.original1[:, 3:].normal_(std=0.3)
    return network


def test_analytic_derivatives_are_those_of_autograd_and_the_laplacian_is_the_trace(generator):
    network = _rough_network()
    points = torch.rand(40, 3, generator=generator, dtype=torch.float64) - 0.5
    sdf, gradient, laplacian, feature = network.with_analytic_derivatives(points, 5)

    points.requires_grad_()
    expected_sdf = network(points, 5)
    (expected,) = torch.autograd.grad(expected_sdf.sum(), points, create_graph=True)
    rows = [torch.autograd.grad(expected[:, a].sum(), points, retain_graph=True)[0][:, a] for a in range(3)]
    torch.testing.assert_close(sdf, expected_sdf)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(laplacian, sum(rows))
    assert laplacian.abs().median() > 0.1
    assert feature.shape == (40, 32)


@pytest.mark.parametrize("num_taps", [4, 6])
def test_numerical_derivatives_approach_the_analytic_ones_inside_a_cell(num_taps, generator):
    network = _rough_network()
    points = torch.rand(400, 3, generator=generator, dtype=torch.float64) - 0.5
    epsilon = 1e-5
    _, gradient, laplacian, _ = network.with_numerical_derivatives(points, 5, num_taps, epsilon)
    _, expected_gradient, expected_laplacian, _ = network.with_analytic_derivatives(points, 5)
    # a handful of stencils straddle the border of a cell, where the interpolant has a kink
    close = (laplacian - expected_laplacian).abs() < 0.05 * expected_laplacian.abs() + 0.02
    assert close.double().mean() > 0.97
    torch.testing.assert_close(gradient[close], expected_gradient[close], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("occupancy_resolution", [0, 24])
@pytest.mark.parametrize("background", ["nerf++", "black"])
@pytest.mark.parametrize("gradient", ["numerical_4", "analytic"])
def test_rays_that_miss_the_sphere_are_finite_in_value_and_gradient(
    background, occupancy_resolution, gradient, generator
):
    settings = {"occupancy_resolution": occupancy_resolution, "gradient": gradient}
    model = _small(background=background, mask_weight=0.1, **settings)
    model.log_dict = lambda *_, **__: None
    batch = _batch(generator)
    batch["origins"] = batch["origins"] + 5 * torch.linalg.cross(
        batch["directions"], F.normalize(torch.randn(64, 3, generator=generator), dim=-1)
    )
    batch["origins"][:2], batch["directions"][:2] = torch.tensor([0.0, 0, -3]), torch.tensor([0.0, 0, 1])
    _, _, hits = unit_sphere_intersection(batch["origins"], batch["directions"])
    assert 2 <= hits.sum() < 40
    for chosen in (slice(None), ~hits):  # some hit; none does
        part = {name: value[chosen] for name, value in batch.items()}
        model.on_train_batch_start(part, 0)
        loss = model.training_step(part, 0)
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_missed_rays_show_the_background_and_pass_all_light(generator):
    model = _small(background="white")
    rays = model.render_rays(torch.tensor([[0.0, 5, -3]]), torch.tensor([[0.0, 0, 1]]), step=100)
    assert rays["color"].tolist() == [[1, 1, 1]]
    assert rays["transmittance"].tolist() == [1]
    assert rays["gradient"].shape[0] == 0


def test_opaque_sphere_is_rendered_where_it_is(generator):
    model = _small(sdf_hidden_size=256)
    model.s_var.data.fill_(math.log(500))
    origins, directions = _rays(generator, 200, spread=0.1)
    rays = model.render_rays(origins, directions, step=100)
    hit = rays["transmittance"] < 0.01
    assert hit.sum() > 50
    points = points_along(origins[hit], directions[hit], rays["depth"][hit, None])[:, 0]
    assert model.sdf_network(points, 6).abs().max() < 0.02


@pytest.mark.parametrize("gradient", ["numerical_4", "numerical_6", "analytic"])
def test_every_loss_term_reaches_every_parameter_it_should(gradient, generator):
    model = _small(
        gradient=gradient, background="nerf++", appearance_size=4, num_images=3, mask_weight=0.1, sparse_weight=1.0
    )
    logged = {}
    model.log_dict = logged.update
    batch = _batch(generator) | {"sparse_points": torch.randn(10, 3, generator=generator) * 0.3}
    model.training_step(batch, 0).backward()
    assert {"train/color", "train/eikonal", "train/curvature", "train/mask", "train/sparse"} <= logged.keys()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # the table is behind columns of weights that start at zero
    assert without == ["sdf_network.grid.table"]


def test_method_reads_what_its_losses_compare_with():
    assert _small().reads == {"rays"}
    assert _small(mask_weight=0.1).reads == {"rays", "ray_masks"}
    assert _small(background="masked").reads == {"rays", "ray_masks"}
    assert _small(sparse_weight=1.0).reads == {"rays", "sparse_points"}


def test_codes_need_a_number_of_photographs():
    with pytest.raises(ValueError, match="codes need num_images"):
        _small(appearance_size=8)


class SphereRays(IterableDataset):
    """Rays at a sphere of radius 0.6 whose colour is its normal, seen without error, over black."""

    radius = 0.6

    def batch(self, index):
        generator = torch.Generator().manual_seed(index)
        origins, directions = _rays(generator, 256, spread=0.22)
        towards = -(origins * directions).sum(-1)
        half_chord = (towards**2 - 9 + self.radius**2).clamp(min=0).sqrt()
        hits = half_chord > 0
        normals = (origins + directions * (towards - half_chord)[:, None]) / self.radius
        colors = torch.where(hits[:, None], normals / 2 + 0.5, 0)
        return {"origins": origins, "directions": directions, "colors": colors, "ray_masks": hits.float()}

    def __iter__(self):
        index = 0
        while True:
            yield self.batch(index)
            index += 1


def test_a_sphere_is_fitted_to_sub_voxel_accuracy(tmp_path):
    model = _small(
        max_steps=250,
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0),
        lr_schedule=WarmupThenDecay(0.05, 0.03),
        s_scale=10,
        occupancy_resolution=32,
        occupancy_every=10,
        mask_weight=1.0,
        level_fraction=0.05,
    )
    trainer = Trainer(
        accelerator="cpu", max_steps=250, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(model, DataLoader(SphereRays(), batch_size=None))
    (shape,) = model.reconstruct({"object_index": torch.zeros(1)})
    radius = shape.vertices.norm(dim=-1)
    voxel = 2 / SMALL["mesh_resolution"]
    assert (radius - SphereRays.radius).abs().mean() < 0.25 * voxel
    assert (radius - SphereRays.radius).abs().max() < voxel
    # coloured as seen, that is by its normals
    error = (shape.vertex_colors - (shape.vertices / radius[:, None] / 2 + 0.5)).abs().mean()
    assert error < 0.05


@pytest.mark.parametrize("occupancy_resolution", [0, 24])
def test_samples_placed_in_reduced_precision_are_near_those_in_full(occupancy_resolution):
    placed = {}
    for dtype in ("float32", "bfloat16"):
        model = _small(sampling_dtype=dtype, occupancy_resolution=occupancy_resolution)
        origins, directions = _rays(torch.Generator().manual_seed(0))
        if occupancy_resolution:
            model.on_train_batch_start({}, 0)
        rays = model.render_rays(origins, directions, 50)
        placed[dtype] = rays["distances"]
        assert rays["sdf"].dtype == rays["distances"].dtype == torch.float32
    assert not torch.equal(placed["float32"], placed["bfloat16"])
    difference = (placed["float32"] - placed["bfloat16"]).abs()
    assert difference.mean() < 0.01  # of rays two units long; the network rounds distances to a part in 256


@pytest.mark.parametrize("gradient", ["numerical_4", "analytic"])
def test_autocast_lowers_colors_but_never_the_geometry(gradient, generator):
    model = _small(gradient=gradient)
    with torch.no_grad():
        model.sdf_network.hidden.parametrizations.weight.original1[:, 3:].normal_(std=0.3)
        model.sdf_network.grid.table.uniform_(-0.1, 0.1)
    points = torch.rand(200, 3, generator=generator) - 0.5
    batch = _batch(generator)
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            forward, (*geometry, feature) = model.sdf_network(points, 6), model._surface(points, 99)
            rays = model.render_rays(batch["origins"], batch["directions"], 99)
            loss = F.l1_loss(rays["color"].float(), batch["colors"]) + rays["laplacian"].square().mean()
        model.zero_grad()
        loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        found.append(
            ([forward, *geometry, rays["distances"], rays["gradient"]], feature.float(), rays["color"].float())
        )
    (exact, feature, color), (lowered, lowered_feature, lowered_color) = found
    for expected, value in zip(exact, lowered, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
    assert not torch.equal(lowered_feature, feature)
    assert 0 < (lowered_color - color).abs().max() < 0.02
