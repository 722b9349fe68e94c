import torch

from ops.sampling import (
    hierarchical_distances,
    importance_distances,
    invert_cdf,
    section_weights,
    sections,
    stratified_distances,
)


def test_stratified_distances_stay_in_their_bins(generator):
    near, far = torch.tensor([1.0, 0.0]), torch.tensor([2.0, 8.0])
    middles = stratified_distances(near, far, 4, None)
    torch.testing.assert_close(middles, torch.tensor([[1.125, 1.375, 1.625, 1.875], [1.0, 3, 5, 7]]))
    jittered = stratified_distances(near, far, 4, generator)
    assert ((jittered - middles).abs() <= (far - near)[:, None] / 8).all()
    assert not torch.equal(jittered, middles)


def test_inverse_cdf_undoes_the_cdf_of_a_piecewise_constant_density():
    edges = torch.tensor([[0.0, 1, 3, 4]])
    weights = torch.tensor([[1.0, 2, 1]]) * 1000
    quantiles = torch.tensor([[0.125, 0.25, 0.5, 0.75, 1.0]])
    torch.testing.assert_close(
        invert_cdf(edges, weights, quantiles), torch.tensor([[0.5, 1, 2, 3, 4]]), rtol=0, atol=1e-4
    )


def test_inverse_cdf_without_mass_spreads_evenly_over_intervals():
    out = invert_cdf(torch.tensor([[0.0, 1, 2]]), torch.zeros(1, 2), torch.tensor([[0.25, 0.75]]))
    torch.testing.assert_close(out, torch.tensor([[0.5, 1.5]]))


def test_section_weights_peak_where_the_sdf_changes_sign():
    distances = torch.linspace(0, 2, 41)[None]
    weights = section_weights(distances, 1.03 - distances, 200.0)
    assert weights.argmax().item() == 20  # between 1.00 and 1.05
    assert weights.sum() > 0.95


def test_hierarchical_samples_close_in_on_the_surface_and_keep_their_order():
    near, far = torch.zeros(3), torch.full((3,), 2.0)
    surface = torch.tensor([0.3, 1.01, 1.7])
    distances = hierarchical_distances(lambda t: surface[:, None] - t, near, far, 16, 8, 4, None)
    assert distances.shape == (3, 48)
    assert (distances.diff(dim=-1) >= 0).all()
    near_surface = (distances - surface[:, None]).abs() < 0.02
    assert (near_surface.sum(-1) >= 16).all()  # a uniform 48 would put one or two there


def test_hierarchical_sampling_evaluates_each_new_sample_once_and_the_last_never():
    asked = []

    def sdf_at(distances):
        asked.append(distances.shape[1])
        return 1 - distances

    hierarchical_distances(sdf_at, torch.zeros(2), torch.ones(2), 64, 16, 4, None)
    assert asked == [64, 16, 16, 16]


def test_sections_tile_the_ray_from_the_first_sample_to_its_end():
    distances = torch.tensor([[0.5, 1.0, 1.25]])
    torch.testing.assert_close(sections(distances, torch.tensor([2.0])), torch.tensor([[0.5, 0.25, 0.75]]))


def test_importance_distances_in_one_pass_are_the_quantiles_of_the_section_weights(generator):
    distances = torch.rand(40, 25, generator=generator, dtype=torch.float64).sort(dim=-1).values
    sdf = torch.rand(40, 1, generator=generator, dtype=torch.float64) - distances
    sdf[::4] += 5  # past everything
    quantiles = (torch.arange(9, dtype=torch.float64) + 0.5).expand(40, 9) / 9
    for inv_s in (5.0, 60.0, 1e6):
        expected = invert_cdf(distances, section_weights(distances, sdf, inv_s), quantiles)
        found = importance_distances(distances.float(), sdf.float(), inv_s, quantiles.float())
        assert (found.diff(dim=-1) >= 0).all()
        # at a sharpness without bound an interval is on or off, and rounding of the input decides which
        assert (found - expected).abs().max() < (1e-4 if inv_s < 100 else 0.05)


def test_importance_distances_hand_a_nan_on_in_its_ray_alone_and_take_no_rays(generator):
    distances = torch.rand(3, 12, generator=generator).sort(dim=-1).values
    sdf = 0.5 - distances
    sdf[1, 4] = torch.nan
    found = importance_distances(distances, sdf, 20.0, torch.full((3, 5), 0.5))
    assert found.isnan().any(-1).tolist() == [False, True, False]
    assert importance_distances(distances[:0], sdf[:0], 20.0, torch.zeros(0, 5)).shape == (0, 5)
