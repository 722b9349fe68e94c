import torch

from ops.rays import points_along, unit_sphere_intersection


def test_ray_through_the_centre_enters_and_leaves_one_before_and_after_it():
    near, far, hits = unit_sphere_intersection(torch.tensor([[0.0, 0, -3]]), torch.tensor([[0.0, 0, 1]]))
    assert hits.item()
    torch.testing.assert_close(torch.cat([near, far]), torch.tensor([2.0, 4.0]))


def test_intersections_lie_on_the_sphere_and_misses_are_finite(generator):
    origins = 3 * torch.nn.functional.normalize(torch.randn(500, 3, generator=generator), dim=-1)
    directions = torch.nn.functional.normalize(-origins + 1.5 * torch.randn(500, 3, generator=generator), dim=-1)
    near, far, hits = unit_sphere_intersection(origins, directions)
    ends = points_along(origins, directions, torch.stack([near, far], dim=-1))[hits]
    assert 50 < hits.sum() < 450
    torch.testing.assert_close(ends.norm(dim=-1), torch.ones(int(hits.sum()), 2), atol=1e-5, rtol=0)
    assert (near[~hits] == 0).all()
    assert (far[~hits] == 0).all()
    closest = (origins + directions * -(origins * directions).sum(-1, keepdim=True)).norm(dim=-1)
    assert torch.equal(hits, (closest < 1) & ((origins * directions).sum(-1) < 0))


def test_ray_from_inside_starts_at_its_origin_and_sphere_behind_is_missed():
    near, far, hits = unit_sphere_intersection(
        torch.tensor([[0.5, 0, 0], [3.0, 0, 0]]), torch.tensor([[1.0, 0, 0], [1.0, 0, 0]])
    )
    assert hits.tolist() == [True, False]
    assert near.tolist() == [0, 0]
    torch.testing.assert_close(far, torch.tensor([0.5, 0]))
