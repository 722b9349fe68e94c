import math

import pytest
import torch

from losses.voxels import voxel_cross_entropy


def test_it_is_the_cross_entropy_of_a_softmax_over_empty_and_occupied(generator: torch.Generator) -> None:
    channels = torch.randn(2, 2, 4, 4, 4, generator=generator)
    voxels = torch.rand(2, 4, 4, 4, generator=generator) < 0.3
    log_probabilities = channels.log_softmax(1)
    expected = [
        -sum(
            log_probabilities[b, int(voxels[b, i, j, k]), i, j, k] for i in range(4) for j in range(4) for k in range(4)
        )
        for b in range(2)
    ]
    loss = voxel_cross_entropy(channels[:, 1] - channels[:, 0], voxels, "sum")
    torch.testing.assert_close(loss, sum(expected) / 2)
    torch.testing.assert_close(voxel_cross_entropy(channels[:, 1] - channels[:, 0], voxels, "mean"), loss / 64)


def test_an_untrained_network_has_a_mean_of_ln_2_and_saturated_logits_stay_finite() -> None:
    voxels = torch.zeros(1, 8, 8, 8)
    assert voxel_cross_entropy(torch.zeros(1, 8, 8, 8), voxels).item() == pytest.approx(math.log(2))
    assert voxel_cross_entropy(torch.full((1, 8, 8, 8), 1e4), voxels, "sum").item() == pytest.approx(512e4)
    # a sum of this size is infinite in half precision
    assert voxel_cross_entropy(torch.full((1, 8, 8, 8), 1e4).half(), voxels, "sum").isfinite()


def test_bad_input_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"\(1, 8, 8, 8\), expected that of the logits, \(1, 4, 4, 4\).*voxel_resolution"
    ):
        voxel_cross_entropy(torch.zeros(1, 4, 4, 4), torch.zeros(1, 8, 8, 8))
    with pytest.raises(ValueError, match="reduction: 'none'"):
        voxel_cross_entropy(torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 4, 4), "none")
