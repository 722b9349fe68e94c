import torch

from ops.rays import points_along, unit_sphere_intersection
from ops.rendering import alpha_from_sdf, annealed_slope
from ops.sdf_grid import SdfGrid


def _sphere(points):
    return points.norm(dim=-1) - 0.5


def _grid():
    grid = SdfGrid(48)
    grid.update(_sphere)
    return grid


def test_cached_distances_are_those_of_the_field_between_vertices(generator):
    points = torch.rand(500, 3, generator=generator) * 1.8 - 0.9
    points = points[points.norm(dim=-1) > 0.2]  # the centre is a kink
    torch.testing.assert_close(_grid()(points), _sphere(points), atol=2e-3, rtol=0)


def test_look_ups_along_rays_are_those_at_their_points_also_outside(generator):
    grid = SdfGrid(9)
    grid.values.copy_(torch.rand(grid.values.shape, generator=generator))
    origins, directions = torch.randn(2, 50, 3, generator=generator)
    distances = 3 * torch.rand(50, 20, generator=generator)
    points = points_along(origins, directions, distances)
    assert (points.abs() > 1).any(-1).float().mean() > 0.2
    torch.testing.assert_close(grid.along(origins, directions, distances), grid(points), rtol=1e-4, atol=2e-6)
    corner = points_along(torch.ones(1, 3), torch.zeros(1, 3), torch.zeros(1, 1))
    assert grid.along(torch.ones(1, 3), torch.zeros(1, 3), torch.zeros(1, 1)) == grid(corner)
    grid.along(torch.full((1, 3), torch.nan), torch.full((1, 3), torch.inf), torch.ones(1, 1))  # stays in bounds


def test_axes_are_not_swapped():
    grid = SdfGrid(16)
    grid.update(lambda points: points[:, 0] + 10 * points[:, 1] + 100 * points[:, 2])
    torch.testing.assert_close(grid(torch.tensor([0.1, 0.2, -0.3])), torch.tensor(0.1 + 2 - 30), atol=1e-3, rtol=0)


def test_a_band_update_evaluates_only_near_the_cached_surface():
    grid, asked = _grid(), []

    def moved(points):
        asked.append(len(points))
        return points.norm(dim=-1) - 0.52

    before = grid.values.clone()
    grid.update(moved, band=3)
    assert 0 < asked[0] < 0.15 * grid.values.numel()
    changed = grid.values != before
    assert changed.sum() == asked[0]
    torch.testing.assert_close(grid.values[changed], before[changed] - 0.02, atol=1e-6, rtol=0)


def test_sections_gather_at_the_surface_and_rays_past_it_are_skipped():
    origins = torch.tensor([[0.0, 0, -3], [0.0, 0.95, -3], [0.3, 0, -3]])
    directions = torch.tensor([[0.0, 0, 1]]).expand(3, 3)
    near, far, hits = unit_sphere_intersection(origins, directions)
    assert hits.all()
    edges, occupied = _grid().section_edges(origins, directions, near, far, 16, torch.tensor(500.0), None)
    assert occupied.tolist() == [True, False, True]
    assert (edges.diff(dim=-1) >= 0).all()
    points = points_along(origins, directions, edges)
    assert (_sphere(points[0]).abs() < 0.1).float().mean() > 0.6
    surface = torch.tensor([2.5, 3 - (0.25 - 0.09) ** 0.5])
    assert (edges[[0, 2], 0] < surface).all()
    assert (edges[[0, 2], -1] > surface).all()


def test_sections_that_tile_the_ray_give_grazing_rays_the_opacity_they_should_have(generator):
    """A section centred on its sample, but as long as the way to the next one, counts some opacity twice: speckle."""
    closest = 0.5 + 0.03 * torch.rand(400, generator=generator)
    origins = torch.stack([closest, torch.zeros(400), torch.full((400,), -3.0)], dim=-1)
    directions = torch.tensor([[0.0, 0, 1]]).expand(400, 3)
    near, far, _ = unit_sphere_intersection(origins, directions)
    inv_s = torch.tensor(300.0)
    edges, _ = _grid().section_edges(origins, directions, near, far, 64, inv_s, generator)

    def transmittance(distances):
        points = points_along(origins, directions, distances)
        slope = annealed_slope((points * directions[:, None]).sum(-1) / points.norm(dim=-1), 1.0)
        return (1 - alpha_from_sdf(_sphere(points), slope, edges.diff(dim=-1), inv_s)).prod(dim=-1)

    # the ray enters from far outside and is never deeper than where it comes closest
    expected = torch.sigmoid(inv_s * (closest - 0.5))
    tiled = (transmittance((edges[:, 1:] + edges[:, :-1]) / 2) - expected).abs()
    centred = (transmittance(edges[:, :-1]) - expected).abs()
    assert tiled.mean() < 0.005
    assert centred.mean() > 3 * tiled.mean()
