import pytest
import torch

from methods.appearance import Exposure, PhotographCodes


def test_a_view_of_no_photograph_has_the_mean_code_of_those_that_were_trained_on():
    codes = PhotographCodes(5, 3)
    torch.testing.assert_close(codes(None, 2), codes.codes.mean(0).expand(2, 3))  # none was yet
    codes(torch.tensor([1, 3, 3]), 3)
    torch.testing.assert_close(codes(None, 2), codes.codes[[1, 3]].mean(0).expand(2, 3))


def test_rendering_a_photograph_is_not_training_on_it():
    codes = PhotographCodes(5, 3).eval()
    torch.testing.assert_close(codes(torch.tensor([4, 0]), 2), codes.codes[[4, 0]])
    assert not codes.trained.any()


def test_which_photographs_were_trained_on_is_kept_with_the_weights():
    codes, loaded = PhotographCodes(5, 3), PhotographCodes(5, 3)
    codes(torch.tensor([2]), 1)
    loaded.load_state_dict(codes.state_dict())
    torch.testing.assert_close(loaded(None, 1)[0], codes.codes[2])


@pytest.mark.parametrize("kind", ["gain", "affine"])
def test_an_exposure_starts_as_the_identity(kind, generator):
    color = torch.rand(6, 3, generator=generator)
    exposure = Exposure(kind, 4)
    assert torch.equal(exposure(color, torch.ones(6), torch.arange(6) % 4), color)
    assert torch.equal(exposure(color, torch.ones(6), None), color)


def test_a_gain_multiplies_channels_and_a_new_view_has_the_geometric_mean():
    exposure = Exposure("gain", 3)
    exposure.codes.codes.data[:2] = torch.tensor([[4.0, 1, 1], [0.25, 1, 9]]).log()
    color = torch.tensor([[0.1, 0.2, 0.05]] * 2)
    shown = exposure(color, torch.ones(2), torch.tensor([0, 1]))
    torch.testing.assert_close(shown, torch.tensor([[0.4, 0.2, 0.05], [0.025, 0.2, 0.45]]))
    torch.testing.assert_close(exposure(color[:1], torch.ones(1), None), torch.tensor([[0.1, 0.2, 0.15]]))


def test_an_affine_exposure_is_a_matrix_and_an_offset_where_the_scene_is(generator):
    exposure = Exposure("affine", 2)
    exposure.codes.codes.data.normal_(std=0.1, generator=generator)
    color, coverage = torch.rand(5, 3, generator=generator), torch.rand(5, generator=generator)
    shown = exposure(color, coverage, torch.ones(5, dtype=torch.int64))
    matrix, offset = exposure.codes.codes[1, :9].view(3, 3), exposure.codes.codes[1, 9:]
    for i in range(5):
        torch.testing.assert_close(shown[i], color[i] + matrix @ color[i] + coverage[i] * offset)


@pytest.mark.parametrize("kind", ["gain", "affine"])
def test_exposures_of_photographs_are_recovered_from_their_colours(kind, generator):
    color = torch.rand(300, 3, generator=generator)
    index = torch.arange(300) % 3
    gains = torch.tensor([[1.0, 1, 1], [0.5, 0.6, 0.7], [1.3, 1.2, 1.1]])
    exposure = Exposure(kind, 3)
    optimizer = torch.optim.Adam(exposure.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        (exposure(color, torch.ones(300), index) - gains[index] * color).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(exposure(color, torch.ones(300), index), gains[index] * color, atol=0.01, rtol=0)
