"""The hash grid as a module: its sizes, its determinism, how it is called, and what it refuses."""

import logging
import threading

import pytest
import torch
from torch import Tensor

from ops.hash_grid import backends
from ops.hash_grid.grid import HashGrid
from ops.hash_grid.layout import grid_layout

DEMO = {
    "num_levels": 8,
    "features_per_level": 2,
    "log2_table_size": 16,
    "base_resolution": 16,
    "finest_resolution": 256,
}
TINY = {"num_levels": 3, "features_per_level": 2, "log2_table_size": 8, "base_resolution": 4, "finest_resolution": 16}


def test_default_layout_has_the_published_number_of_parameters() -> None:
    layout = grid_layout()
    assert layout.num_entries * layout.features_per_level == 365_396_032
    assert layout.is_hashed == (False,) * 6 + (True,) * 10


def test_whole_resolutions_survive_rounding() -> None:
    # 32 * 1.3195...^5 is 128 and its 15th power 2048, up to the last bits
    layout = grid_layout()
    assert layout.resolutions == (32, 43, 56, 74, 98, 128, 169, 223, 295, 389, 512, 676, 892, 1177, 1553, 2048)
    assert (layout.scales[0], layout.scales[5], layout.scales[10], layout.scales[15]) == (31.0, 127.0, 511.0, 2047.0)


def test_levels_lie_one_after_the_other_in_multiples_of_eight() -> None:
    layout = grid_layout()
    entries = [stop - start for start, stop in zip(layout.offsets[:-1], layout.offsets[1:], strict=True)]
    assert entries[:2] == [32**3, 79512]  # 43^3 is 79507
    assert entries[6:] == [2**22] * 10


def test_module_states_its_sizes() -> None:
    grid = HashGrid(**DEMO)
    assert grid.num_output_features == 16
    assert grid.level_resolutions == [16, 24, 36, 53, 79, 116, 173, 256]
    assert grid.table.shape == (grid.layout.num_entries, 2)


def test_table_starts_small_and_depends_on_the_global_seed() -> None:
    tables = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        tables.append(HashGrid(**TINY).table.detach())
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])
    assert 0.9e-4 < tables[0].abs().max() <= 1e-4
    assert abs(tables[0].mean()) < 1e-5


def _gradients(grid: HashGrid, points: Tensor, num_threads: int) -> list[Tensor]:
    threads_before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        grid.table.grad = None
        features = grid(points)
        (features * torch.linspace(-1, 1, features.numel()).reshape(features.shape)).sum().backward()
        first = grid.table.grad
        grid.table.grad = None
        encoded, jacobian = grid.encode_with_jacobian(points)
        (encoded.square().sum() + jacobian.square().sum()).backward()
        return [features.detach(), first, encoded.detach(), jacobian.detach(), grid.table.grad]
    finally:
        torch.set_num_threads(threads_before)


def test_numba_results_are_bit_identical_between_runs_and_thread_counts() -> None:
    torch.manual_seed(0)
    grid = HashGrid(**DEMO, backend="numba")
    # many points to an entry, so that another order of summation would show; no multiple of a task's points
    points = torch.rand(4000, 5, 3) - 0.5
    expected = _gradients(grid, points, num_threads=1)
    for num_threads in (1, 2, 2, 3):
        for found, value in zip(_gradients(grid, points, num_threads), expected, strict=True):
            assert torch.equal(found, value)


def test_numba_may_be_called_from_several_threads_at_once() -> None:
    grid = HashGrid(**TINY, backend="numba")
    points = torch.rand(20_000, 3)
    expected = grid(points).detach()
    agrees = []

    def call_often() -> None:
        agrees.append(all(torch.equal(grid(points).detach(), expected) for _ in range(5)))

    threads = [threading.Thread(target=call_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert agrees == [True] * 4


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_encodes_without_autograd(backend: str, mode: type) -> None:
    grid = HashGrid(**TINY, backend=backend)
    points = torch.rand(2, 7, 3)
    with mode():
        features = grid(points + 0)
        jacobian = grid.encode_with_jacobian(points + 0)[1]
    assert not features.requires_grad
    assert torch.equal(features, grid(points).detach())
    assert jacobian.shape == (2, 7, 3, 6)


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_nan_points_give_nan_features(backend: str) -> None:
    grid = HashGrid(**TINY, backend=backend)
    points = torch.zeros(3, 3)
    points[1, 2] = torch.nan
    features = grid(points)
    assert features[1].isnan().all()
    assert features[[0, 2]].isfinite().all()


def test_derivatives_beyond_the_second_are_refused_rather_than_zero() -> None:
    grid = HashGrid(**TINY, backend="numba")
    points = torch.rand(5, 3, requires_grad=True)
    (first,) = torch.autograd.grad(grid(points).square().sum(), points, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), points, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        second.square().sum().backward()


def test_automatic_choice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    backends._automatic.cache_clear()
    grid = HashGrid(**TINY)
    with caplog.at_level(logging.INFO, logger="bottega"):
        grid(torch.rand(4, 3))
        grid(torch.rand(4, 3))
    assert [record.message for record in caplog.records] == [
        "Hash grid: cpu tensors of torch.float32 use the numba backend."
    ]


def test_without_numba_the_reference_is_taken_and_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(backends._MODULES, "numba", "ops.hash_grid.not_installed")
    backends._import.cache_clear()
    backends._automatic.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, logger="bottega"):
            HashGrid(**TINY)(torch.rand(4, 3))
        assert "use the reference backend (numba, which is many times faster, cannot be imported" in caplog.text
        with pytest.raises(ValueError, match="backend 'numba' needs the library numba, which cannot be imported"):
            HashGrid(**TINY, backend="numba")
    finally:
        backends._import.cache_clear()
        backends._automatic.cache_clear()


def test_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="backend is 'cuda', expected one of auto, reference, numba, triton"):
        HashGrid(**TINY, backend="cuda")


def test_half_precision_is_refused_by_name_and_served_by_auto() -> None:
    with pytest.raises(ValueError, match=r"'numba' computes in float32 or float64, but the table is torch\.bfloat16"):
        HashGrid(**TINY, backend="numba").bfloat16()(torch.rand(4, 3, dtype=torch.bfloat16))
    assert HashGrid(**TINY).bfloat16()(torch.rand(4, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("points", "active_levels", "message"),
    [
        (torch.zeros(4, 2), None, r"points have shape \(4, 2\), expected \(\.\.\., 3\)"),
        (torch.zeros(4, 3, dtype=torch.float64), None, r"points are torch\.float64 on cpu, but the table is"),
        (torch.zeros(4, 3), 0, "active_levels is 0, expected 1 to 3"),
        (torch.zeros(4, 3), 4, "active_levels is 4, expected 1 to 3"),
    ],
)
def test_misfitting_input_is_refused(points: Tensor, active_levels: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HashGrid(**TINY)(points, active_levels)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_levels": 0}, "num_levels is 0"),
        ({"num_levels": 1}, "finest_resolution is 16, expected base_resolution"),
        ({"finest_resolution": 3}, "finest_resolution is 3, expected base_resolution"),
        ({"base_resolution": 1}, "base_resolution is 1, expected at least 2"),
        ({"log2_table_size": 31}, "log2_table_size is 31, expected 3 to 30"),
        ({"bound": 0.0}, "bound is 0.0, expected a positive finite number"),
    ],
)
def test_impossible_sizes_are_refused(sizes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HashGrid(**(TINY | sizes))
