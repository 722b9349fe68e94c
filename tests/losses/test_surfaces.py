import pytest
import torch

from losses.surfaces import curvature, eikonal, zero_at_points


def test_eikonal_of_unit_gradients_is_zero_and_grows_with_the_square():
    assert eikonal(torch.tensor([[0.0, 1, 0], [0.6, 0, 0.8]])).item() == pytest.approx(0, abs=1e-12)
    assert eikonal(torch.tensor([[3.0, 0, 0]])).item() == pytest.approx(4)


def test_missed_samples_count_in_the_denominator():
    gradient = torch.tensor([[3.0, 0, 0], [1.0, 0, 0]])
    assert eikonal(gradient, num_samples=8).item() == pytest.approx(0.5)
    assert curvature(torch.tensor([-4.0, 2]), num_samples=12).item() == pytest.approx(0.5)


def test_no_sample_at_all_costs_nothing():
    assert eikonal(torch.zeros(0, 16, 3)).item() == 0
    assert curvature(torch.zeros(0, 16)).item() == 0
    assert zero_at_points(torch.zeros(0)).item() == 0


def test_point_loss_is_the_mean_distance_and_huber_agrees_far_out():
    sdf = torch.tensor([-0.2, 0.4])
    assert zero_at_points(sdf).item() == pytest.approx(0.3)
    assert zero_at_points(sdf, "huber", huber_delta=0.01).item() == pytest.approx(0.3 - 0.005)
    assert zero_at_points(torch.tensor([0.004]), "huber", huber_delta=0.01).item() == pytest.approx(0.0008)
