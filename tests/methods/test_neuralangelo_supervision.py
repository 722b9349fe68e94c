"""What supervises Neuralangelo beyond the paper, argument by argument."""

import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import Trainer
from torch.utils.data import DataLoader

from datamodules.rays import RayDataset
from datamodules.scene import Scene
from datamodules.synthetic import make_scene
from losses.patches import patch_loss
from ops.rays import points_along
from ops.scenes import SCENES
from ops.schedules import RiseAndFall, WarmupThenDecay
from tests.methods.test_neuralangelo import SphereRays, _batch, _rays, _small


def _logged(model, batch):
    """Terms of one training step, by name, and its loss."""
    logged = {}
    model.log_dict = logged.update
    loss = model.training_step(batch, 0)
    return {name.removeprefix("train/"): float(value) for name, value in logged.items()}, loss


@pytest.fixture(scope="module")
def photographed():
    """Rays of a small statue with masks, points and source views."""
    arrays = make_scene(SCENES["statue"], num_views=16, image_size=64, num_surface_points=400)
    arrays = {name: arrays[name] for name in ("images", "masks", "intrinsics", "camera_to_world", "depth")}
    names = [str(view) for view in range(16)]
    scene = Scene("statue", "test", normalized_to_dataset=torch.eye(4).double(), image_names=names, **arrays)
    return RayDataset(
        scene, list(range(16)), {"rays", "ray_masks", "source_images"}, rays_per_batch=256, images_per_batch=4,
        foreground_share=1.0, mask_margin=0, num_sources=6,
    )  # fmt: skip


# -------- masks and backgrounds


def test_random_colours_are_put_behind_render_and_photograph_alike(generator):
    model = _small(background="random")
    batch = _batch(generator)
    # past the sphere: the render is the backdrop, and so is a photograph whose mask is empty
    batch["origins"] = torch.tensor([0.0, 5, -3]).repeat(64, 1)
    batch["directions"] = torch.tensor([0.0, 0, 1]).repeat(64, 1)
    terms, _ = _logged(model, batch | {"ray_masks": torch.zeros(64)})
    assert terms["color"] == 0
    terms, _ = _logged(model, batch | {"ray_masks": torch.ones(64)})
    assert terms["color"] > 0.5  # the photograph's own colours against random ones
    first = model.render_rays(batch["origins"], batch["directions"], 0, generator=generator)["color"]
    second = model.render_rays(batch["origins"], batch["directions"], 0, generator=generator)["color"]
    assert not torch.equal(first, second)
    assert first.min() >= 0
    assert first.max() <= 1


def test_views_before_a_random_background_are_shown_over_black(generator):
    model = _small(background="random")
    rays = model.render_rays(torch.tensor([[0.0, 5, -3]]), torch.tensor([[0.0, 0, 1]]), step=100)
    assert rays["color"].tolist() == [[0, 0, 0]]


def test_mask_loss_does_not_depend_on_the_background(generator):
    batch = _batch(generator)
    terms = [_logged(_small(background=b, mask_weight=0.1), batch)[0] for b in ("nerf++", "black", "random", "masked")]
    assert terms[0]["mask"] > 0
    assert all(term["mask"] == pytest.approx(terms[0]["mask"], rel=1e-5) for term in terms)


def test_logarithm_of_the_transmittance_is_finite_where_nothing_passes(generator):
    model = _small(s_var=8.0)
    rays = model.render_rays(*_rays(generator, spread=0.05), step=100)
    log_transmittance = rays["log_transmittance"]
    assert log_transmittance.median() < -11  # NeuS's opacity lets 1e-5 pass
    assert log_transmittance.isfinite().all()
    torch.testing.assert_close(rays["transmittance"], log_transmittance.exp())


def test_opacities_and_patches_keep_their_precision_where_autocast_lowers_the_networks(photographed):
    terms = []
    for enabled in (False, True):
        model = _small(mask_weight=0.1, patch_weight=0.5, grid_backend="reference")
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logged, loss = _logged(model, photographed.batch(0))
        loss.backward()
        assert loss.dtype == torch.float32
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        terms.append(logged)
    for name in ("color", "mask", "patch"):
        assert terms[1][name] == pytest.approx(terms[0][name], rel=0.05), name


def test_mask_floor_is_how_wrong_a_ray_can_be(generator):
    batch = _batch(generator, spread=0.05) | {"ray_masks": torch.zeros(64)}
    low, high = (_logged(_small(mask_weight=0.1, mask_floor=f, s_var=8.0), batch)[0]["mask"] for f in (1e-8, 0.1))
    assert high == pytest.approx(2.302585, rel=0.05)  # -log 0.1: all but a few rays are opaque and given up
    assert low > 10


@pytest.mark.parametrize("floor", [0.0, 0.5])
def test_a_floor_that_is_no_opacity_is_refused(floor):
    with pytest.raises(ValueError, match=r"mask_floor is .* between 0 and one half"):
        _small(mask_floor=floor)


# -------- points


def test_huber_delta_is_what_is_forgiven(generator):
    batch = _batch(generator) | {"sparse_points": 0.4 * F.normalize(torch.randn(50, 3, generator=generator), dim=-1)}
    terms = {}
    for form, delta in (("l1", 0.01), ("huber", 1e-6), ("huber", 0.01), ("huber", 1.0)):
        model = _small(sparse_weight=1.0, sparse_loss=form, huber_delta=delta)
        terms[form, delta], _ = _logged(model, batch)
    l1 = terms["l1", 0.01]["sparse"]
    assert terms["huber", 1e-6]["sparse"] == pytest.approx(l1, rel=1e-3)
    assert terms["huber", 1.0]["sparse"] < terms["huber", 0.01]["sparse"] < l1


@pytest.mark.parametrize("name", ["sparse", "patch"])
def test_weights_follow_their_schedule_and_nothing_else(name):
    schedule = RiseAndFall(start=0.1, full=0.2, fall=0.5, end=0.7)
    model = _small(**{f"{name}_weight": 2.0, f"{name}_schedule": schedule}, max_steps=1000)
    short = _small(**{f"{name}_weight": 2.0, f"{name}_schedule": schedule}, max_steps=10)
    constant = _small(**{f"{name}_weight": 2.0})
    weight = f"{name}_weight"
    assert [getattr(model, weight)(step) for step in (0, 150, 300, 600, 800)] == pytest.approx([0, 1, 2, 1, 0])
    assert [getattr(short, weight)(step) for step in (3, 6, 8)] == pytest.approx([2, 1, 0])
    assert getattr(constant, weight)(0) == getattr(constant, weight)(99) == 2


def test_what_weighs_nothing_now_is_not_computed(generator):
    model = _small(sparse_weight=1.0, sparse_schedule=RiseAndFall(start=0.5, full=0.5))
    terms, _ = _logged(model, _batch(generator))  # the batch has no points
    assert "sparse" not in terms


# -------- patches


def test_patches_are_read_where_they_weigh_something():
    assert _small(patch_weight=0.5).reads == {"rays", "source_images"}
    assert _small(background="random").reads == {"rays", "ray_masks"}
    assert _small(exposure="gain", num_images=3).reads == {"rays"}


def test_patch_loss_reaches_the_surface_and_only_the_surface(photographed):
    model = _small(patch_weight=1.0, patch_rays=64)
    rays_of = model.render_rays
    found = {}

    def keep(*args, **kwargs):
        found.update(rays_of(*args, **kwargs))
        return found

    model.render_rays = keep
    terms, loss = _logged(model, photographed.batch(0))
    assert 0 < terms["patch"] <= 2
    assert loss.item() == pytest.approx(
        terms["color"] + 0.1 * terms["eikonal"] + terms["curvature_weight"] * terms["curvature"] + terms["patch"]
    )
    patch = model._patch_loss(found, photographed.batch(0))
    patch.backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert touched == {
        "sdf_network.hidden.bias", "sdf_network.sdf.bias", "sdf_network.sdf.weight",
        "sdf_network.hidden.parametrizations.weight.original0", "sdf_network.hidden.parametrizations.weight.original1",
    }  # fmt: skip


def _true_samples(batch):
    """Samples of the true field along the rays of a batch."""
    scene = SCENES["statue"]
    distances = torch.linspace(1.8, 4.0, 200).expand(len(batch["origins"]), -1)
    points = points_along(batch["origins"], batch["directions"], distances)
    gradient = scene.normals(points.view(-1, 3)).view(points.shape)
    return torch.arange(len(points)), distances, scene.sdf(points), gradient


def test_arguments_of_the_patch_loss_are_passed_on(photographed):
    batch = photographed.batch(1)
    index, *samples = _true_samples(batch)
    samples = dict(zip(("distances", "sdf", "gradient"), samples, strict=True))
    values = set()
    for changes in ({}, {"patch_size": 5}, {"patch_best": 1}, {"patch_rays": 9}):
        model = _small(patch_weight=1.0, **changes)
        loss = model._patch_loss({"index": index, **samples}, batch).item()
        expected = patch_loss(
            batch, index, *samples.values(), patch_size=changes.get("patch_size", 11),
            num_best=changes.get("patch_best", 4), max_rays=changes.get("patch_rays", 512),
        )  # fmt: skip
        assert loss == pytest.approx(expected.item())
        values.add(round(loss, 6))
    assert len(values) == 4


def test_rays_off_the_foreground_or_past_the_surface_are_not_compared(photographed):
    batch = photographed.batch(0)
    samples = _true_samples(batch)
    assert patch_loss(batch, *samples, patch_size=5) > 0
    assert patch_loss(batch | {"ray_masks": torch.zeros(256)}, *samples, patch_size=5) == 0
    index, distances, sdf, gradient = samples
    assert patch_loss(batch, index, distances, sdf + 5, gradient, patch_size=5) == 0
    outside = batch | {"origins": batch["origins"] * 3}  # everything is crossed outside of the unit sphere
    assert patch_loss(outside, *samples, patch_size=5) == 0
    none = torch.zeros(0, dtype=torch.int64)
    assert patch_loss(batch, none, distances[:0], sdf[:0], gradient[:0]) == 0


# -------- photographs that differ in light


@pytest.mark.parametrize("changes", [{"appearance_size": 4}, {"exposure": "gain"}, {"exposure": "affine"}])
def test_more_photographs_than_codes_are_refused(changes, generator):
    model = _small(num_images=3, **changes)
    batch = _batch(generator)
    model.on_train_batch_start(batch | {"image_index": torch.tensor([2])}, 0)
    with pytest.raises(ValueError, match="num_images is 3, but the scene has a photograph number 3"):
        model.on_train_batch_start(batch | {"image_index": torch.tensor([0, 3])}, 0)


def test_exposures_need_a_number_of_photographs():
    with pytest.raises(ValueError, match="exposure: codes need num_images"):
        _small(exposure="gain")


@pytest.mark.parametrize("background", ["nerf++", "white"])
def test_exposure_changes_what_is_modelled_and_not_a_plain_backdrop(background, generator):
    model = _small(background=background, exposure="gain", num_images=2)
    model.exposure.codes.codes.data[1] = torch.tensor([2.0, 1, 0.5]).log()
    origins, directions = _rays(generator)
    origins[:10] += 5 * torch.linalg.cross(directions[:10], torch.tensor([[0.0, 0, 1]]))  # these miss the sphere
    with torch.no_grad():
        rays = [model.render_rays(origins, directions, 100, torch.full((64,), view)) for view in (0, 1)]
    through = rays[0]["transmittance"][:, None] * rays[0]["background"] * (background == "white")
    expected = (rays[0]["color"] - through) * torch.tensor([2.0, 1, 0.5]) + through
    torch.testing.assert_close(rays[1]["color"], expected)


def test_exposure_is_learnt_with_the_scene(generator):
    model = _small(exposure="affine", num_images=3, background="nerf++")
    _, loss = _logged(model, _batch(generator))
    loss.backward()
    assert model.exposure.codes.codes.grad[0].abs().sum() > 0
    assert model.exposure.codes.codes.grad[1:].abs().sum() == 0  # no ray of the batch is of these


# -------- from inside


@pytest.mark.parametrize("initial_radius", [0.4, 0.8])
def test_a_room_starts_as_a_sphere_of_the_radius_that_is_asked_for(initial_radius, generator):
    points = F.normalize(torch.randn(300, 3, generator=generator), dim=-1) * initial_radius
    networks = [_small(sdf_hidden_size=256, initial_radius=initial_radius, seed=seed).sdf_network for seed in range(10)]
    sdf = torch.stack([network(points, 4).detach() for network in networks])
    torch.testing.assert_close(sdf.mean(0), torch.zeros(300), atol=0.1, rtol=0)


def test_cameras_inside_see_the_walls_of_an_inside_out_scene_from_where_they_are(generator):
    model = _small(sdf_hidden_size=256, inside_out=True, initial_radius=0.7, s_var=6.0)
    assert model.inside_out
    origins = 0.3 * torch.rand(100, 3, generator=generator)
    directions = F.normalize(torch.randn(100, 3, generator=generator), dim=-1)
    with torch.no_grad():
        rays = model.render_rays(origins, directions, step=100)
        walls = origins + rays["depth"][:, None] * directions
        assert (rays["transmittance"] < 0.01).all()
        assert model.sdf_network(walls, 6).abs().max() < 0.03
    assert (rays["normal"] * directions).sum(-1).max() < 0  # walls face who looks at them


class RoomRays(SphereRays):
    """The same sphere from cameras inside of it."""

    def batch(self, index):
        generator = torch.Generator().manual_seed(index)
        origins = 0.6 * torch.rand(256, 3, generator=generator) - 0.3
        directions = F.normalize(torch.randn(256, 3, generator=generator), dim=-1)
        towards = -(origins * directions).sum(-1)
        distances = towards + (towards**2 - origins.square().sum(-1) + self.radius**2).sqrt()
        points = origins + directions * distances[:, None]
        colors = (torch.sin(9 * points) + points) / 4 + 0.5
        return {"origins": origins, "directions": directions, "colors": colors}


def test_a_room_is_fitted_from_inside(tmp_path):
    model = _small(
        max_steps=150,
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0),
        lr_schedule=WarmupThenDecay(0.05, 0.03),
        s_scale=10,
        inside_out=True,
        initial_radius=0.8,
        occupancy_resolution=32,
        occupancy_every=10,
        level_fraction=0.05,
    )
    trainer = Trainer(
        accelerator="cpu", max_steps=150, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(model, DataLoader(RoomRays(), batch_size=None))
    (shape,) = model.reconstruct({"object_index": torch.zeros(1)})
    # so few steps leave the walls rough, but on average they have come in to where they are
    radius = shape.vertices.norm(dim=-1)
    assert radius.median().item() == pytest.approx(RoomRays.radius, abs=0.03)
    assert radius.std() < 0.12
