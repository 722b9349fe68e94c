import torch

from ops.rendering import alpha_from_density, alpha_from_sdf, annealed_slope, composite, weights_from_alpha


def test_neus_alpha_of_a_plane_telescopes_to_the_ratio_of_logistics(generator):
    edges = torch.rand(4, 41, generator=generator, dtype=torch.float64).sort(dim=-1).values * 2
    slope = -torch.rand(4, 1, generator=generator, dtype=torch.float64) - 0.2
    middle, lengths = (edges[:, 1:] + edges[:, :-1]) / 2, edges.diff(dim=-1)
    sdf = 0.5 + slope * middle  # a plane met at an angle
    for inv_s in (5.0, 30.0):
        alpha = alpha_from_sdf(sdf, slope.expand_as(sdf), lengths, inv_s)
        ends = torch.sigmoid((0.5 + slope * edges[:, [0, -1]]) * inv_s)
        expected = ends[:, 1] / ends[:, 0]
        # the 1e-5 in the formula's denominator lets a little light through each section
        torch.testing.assert_close((1 - alpha).prod(-1), expected, rtol=0, atol=2e-3)


def test_alpha_is_zero_where_the_distance_does_not_fall():
    slope = annealed_slope(torch.tensor([0.3, 1.0]), ratio=1.0)
    assert (alpha_from_sdf(torch.zeros(1, 2), slope[None], torch.ones(1, 2), 10.0) == 0).all()


def test_annealed_slope_moves_from_half_open_to_front_facing_only():
    cosine = torch.tensor([-1.0, 0.0, 1.0])
    torch.testing.assert_close(annealed_slope(cosine, 0.0), torch.tensor([-1.0, -0.5, 0.0]))
    torch.testing.assert_close(annealed_slope(cosine, 1.0), torch.tensor([-1.0, 0.0, 0.0]))
    torch.testing.assert_close(annealed_slope(cosine, 0.5), torch.tensor([-1.0, -0.25, 0.0]))


def test_weights_equal_the_slow_loop_and_leave_the_transmittance(generator):
    alpha = torch.rand(5, 7, generator=generator, dtype=torch.float64)
    weights = weights_from_alpha(alpha)
    for ray in range(5):
        light = 1.0
        for sample in range(7):
            torch.testing.assert_close(weights[ray, sample], alpha[ray, sample] * light)
            light *= 1 - alpha[ray, sample]
        torch.testing.assert_close(1 - weights[ray].sum(), torch.as_tensor(light))
    values = torch.rand(5, 7, 3, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(composite(weights, values), torch.einsum("rs,rsc->rc", weights, values))


def test_constant_density_over_a_length_absorbs_like_beer_and_lambert():
    alpha = alpha_from_density(torch.full((1, 4), 2.0), torch.full((1, 4), 0.25))
    torch.testing.assert_close((1 - alpha).prod(), torch.tensor(-2.0).exp())
