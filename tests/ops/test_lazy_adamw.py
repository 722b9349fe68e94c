"""The lazy AdamW is the dense one: of bare tables, through a network, through checkpoints, and what it refuses."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from main import main
from ops import lazy_adamw_history
from ops.hash_grid.grid import HashGrid
from ops.lazy_adamw import LazyAdamW
from tests.small_runs import saved, small_place
from tests.toy_run import differing, state

TINY = {"num_levels": 3, "features_per_level": 2, "log2_table_size": 8, "base_resolution": 4, "finest_resolution": 16}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def _pair(dtype: torch.dtype = torch.float64, backend: str = "numba", **settings: object) -> tuple[list, list]:
    """A grid with a lazy optimizer, and its copy with a dense one."""
    grid = HashGrid(**TINY, bound=1.0, backend=backend).to(dtype)
    twin = copy.deepcopy(grid)
    return [grid, LazyAdamW(grid.parameters(), backend=backend, **settings)], [
        twin,
        torch.optim.AdamW(twin.parameters(), **settings),
    ]


def _train(pairs: list[list], steps: range, lr: Callable[[int], float] = lambda i: 1e-2, spread: float = 0.8) -> None:
    """Few points a step, so that a row waits for tens to hundreds of steps; what all grids show stays the same."""
    for i in steps:
        source = torch.Generator().manual_seed(i)
        grid = pairs[0][0]
        at = (torch.rand(2, 3, generator=source, dtype=torch.float64) * 2 - 1) * spread * (1 if i % 3 else 0.05)
        pull = torch.randn(2, 6, generator=source, dtype=torch.float64) * 10 ** (-6 * float(torch.rand(1)))
        seen = []
        for grid, optimizer in pairs:
            for group in optimizer.param_groups:
                group["lr"] = lr(i)
            features = grid(at.to(grid.table))
            optimizer.zero_grad()
            (features * pull.to(grid.table)).sum().backward()
            optimizer.step()
            seen.append(features.detach())
        _assert_close(seen[0], seen[1])


def _assert_close(found: Tensor, expected: Tensor) -> None:
    expected = expected.detach()
    tolerance = TOLERANCE[expected.dtype] * expected.abs().max().item()
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=max(tolerance, TOLERANCE[expected.dtype] * 1e-2))


def _assert_same_state(lazy: list, dense: list) -> None:
    lazy[1].flush()
    _assert_close(lazy[0].table.detach(), dense[0].table.detach())
    found, expected = lazy[1].state[lazy[0].table], dense[1].state[dense[0].table]
    assert found.keys() == expected.keys()
    for name in expected:
        _assert_close(found[name], expected[name])


def _uneven(i: int) -> float:
    """Zero at first, as in a warm-up, then different at every step."""
    return 1e-2 * (i % 7) / 3 if i < 200 else 1e-3 * (1 + i % 2)


@pytest.mark.parametrize(("eps", "weight_decay"), [(1e-15, 0.0), (1e-8, 1e-2), (1e-4, 1e-2)])
@pytest.mark.parametrize(
    ("dtype", "backend"), [(torch.float64, "numba"), (torch.float32, "numba"), (torch.float64, "reference")]
)
def test_equals_dense_adamw(dtype: torch.dtype, backend: str, eps: float, weight_decay: float) -> None:
    steps = 40 if backend == "reference" else 260
    lazy, dense = _pair(dtype, backend, eps=eps, weight_decay=weight_decay)
    start = lazy[0].table.detach().clone()
    _train([lazy, dense], range(steps), _uneven)
    if steps > 200:
        missed = lazy[1]._rows[lazy[0].table].stamps >> 1
        assert steps - int(missed[missed > 0].min()) > 200  # rows that have waited for longer than momentum lasts
    _assert_same_state(lazy, dense)
    never = ~dense[1].state[dense[0].table]["exp_avg_sq"].any(dim=1)
    assert never.any()
    if weight_decay:
        assert (lazy[0].table[never].abs() < start[never].abs()).all()
    else:
        assert torch.equal(lazy[0].table[never], start[never])


@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.5, 0.9), (0.95, 0.999)])
def test_equals_dense_adamw_at_other_betas(betas: tuple[float, float]) -> None:
    lazy, dense = _pair(betas=betas, eps=1e-6)
    _train([lazy, dense], range(80))
    _assert_same_state(lazy, dense)


def test_equals_dense_adamw_where_all_rows_are_read() -> None:
    lazy, dense = _pair()
    points = torch.rand(2000, 3, dtype=torch.float64) * 2 - 1
    for _ in range(10):
        for grid, optimizer in (lazy, dense):
            optimizer.zero_grad()
            grid(points).square().sum().backward()
            optimizer.step()
    _assert_same_state(lazy, dense)


def test_a_history_that_is_full_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy_adamw_history, "CAPACITY", 420)
    monkeypatch.setattr(lazy_adamw_history, "_SMALLEST_DECAY", 0.8)
    lazy, dense = _pair(weight_decay=0.5)
    _train([lazy, dense], range(120))
    assert lazy[1]._rows[lazy[0].table].history.steps < 60
    _assert_same_state(lazy, dense)


def test_settings_may_change_on_the_way() -> None:
    lazy, dense = _pair()
    _train([lazy, dense], range(60))
    for _, optimizer in (lazy, dense):
        optimizer.param_groups[0] |= {"betas": (0.8, 0.99), "eps": 1e-5, "weight_decay": 0.1}
    _train([lazy, dense], range(60, 120))
    _assert_same_state(lazy, dense)


def test_expansions_and_sums_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = []
    for tolerance in (0.0, 1e-16):
        torch.manual_seed(0)
        lazy, dense = _pair(eps=1e-8)
        lazy[1]._rows[lazy[0].table].history.tolerance = tolerance
        _train([lazy, dense], range(80))
        lazy[1].flush()
        tables.append(lazy[0].table.detach())
    assert not torch.equal(*tables)
    _assert_close(*tables)


def test_readers_see_what_the_dense_optimizer_has_made() -> None:
    lazy, dense = _pair()
    points = torch.rand(50, 3, dtype=torch.float64) * 2 - 1
    _train([lazy, dense], range(40))
    with torch.inference_mode():
        _assert_close(lazy[0](points), dense[0](points))
        _assert_close(lazy[0].encode_with_jacobian(points)[1], dense[0].encode_with_jacobian(points)[1])
    _train([lazy, dense], range(40, 80))
    for read in (lambda grid: grid.state_dict()["table"], lambda grid: copy.deepcopy(grid).table):
        _assert_close(read(lazy[0]), read(dense[0]))
        _train([lazy, dense], range(80, 85))


def test_a_copy_of_a_grid_has_a_life_of_its_own() -> None:
    lazy, dense = _pair()
    _train([lazy, dense], range(20))
    grid = copy.deepcopy(lazy[0])
    twin = copy.deepcopy(grid)
    pairs = [[grid, LazyAdamW(grid.parameters())], [twin, torch.optim.AdamW(twin.parameters())]]
    assert len(pairs[0][1]._rows) == 1
    _train(pairs, range(20, 60))
    _train([lazy, dense], range(20, 60))
    _assert_same_state(*pairs)
    _assert_same_state(lazy, dense)


def test_weights_that_are_loaded_stay() -> None:
    lazy, dense = _pair()
    _train([lazy, dense], range(30))
    weights = {"table": torch.rand_like(lazy[0].table)}
    for grid, _ in (lazy, dense):
        grid.load_state_dict(weights)
    assert torch.equal(lazy[0].state_dict()["table"], weights["table"])
    _train([lazy, dense], range(30, 60))
    _assert_same_state(lazy, dense)


def test_gradients_add_up_until_the_step() -> None:
    lazy, dense = _pair()
    points = torch.rand(3, 8, 3, dtype=torch.float64) * 2 - 1
    for set_to_none in (True, False, True, False):
        for grid, optimizer in (lazy, dense):
            optimizer.zero_grad(set_to_none=set_to_none)
            grid(points[0]).sum().backward()
            (grid(points[1]).sum() * grid(points[2]).square().sum()).backward()
            optimizer.step()
    _assert_same_state(lazy, dense)


def test_gradients_that_are_thrown_away_leave_nothing() -> None:
    lazy, dense = _pair()
    _train([lazy, dense], range(10))
    for grid, optimizer in (lazy, dense):
        grid(torch.rand(8, 3, dtype=torch.float64)).sum().backward()
        optimizer.zero_grad()
        optimizer.step()  # of nothing: not counted
    _train([lazy, dense], range(10, 20))
    _assert_same_state(lazy, dense)


def test_a_scaler_divides_and_skips_as_for_the_dense_optimizer() -> None:
    lazy, dense = _pair(torch.float32)
    for grid, optimizer in (lazy, dense):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for i in range(20):
            points = torch.rand(4, 3, generator=torch.Generator().manual_seed(i)) * 2 - 1
            loss = grid(points).sum() * (torch.inf if i == 7 else 1.0)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    assert dense[1].state[dense[0].table]["step"] == 19
    _assert_same_state(lazy, dense)


def test_a_network_trains_as_with_the_dense_optimizer() -> None:
    losses = []
    for make in (LazyAdamW, torch.optim.AdamW):
        torch.manual_seed(0)
        grid, network = HashGrid(**TINY, bound=1.0).double(), nn.Sequential(nn.Linear(6, 16), nn.Softplus()).double()
        optimizer = make([*network.parameters(), *grid.parameters()], lr=1e-2, fused=True)
        of_run = []
        for i in range(100):
            points = torch.rand(8, 3, generator=torch.Generator().manual_seed(i), dtype=torch.float64) * 2 - 1
            loss = (network(grid(points)).mean(dim=1) - points.norm(dim=1)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            of_run.append(loss.item())
        losses.append(of_run)
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert sum(losses[0][-20:]) < 0.5 * sum(losses[0][:20])


def test_states_go_from_one_optimizer_to_the_other_and_back() -> None:
    lazy, dense = _pair()
    _train([lazy, dense], range(40))
    states = [copy.deepcopy(optimizer.state_dict()) for _, optimizer in (lazy, dense)]
    dense[0].load_state_dict(lazy[0].state_dict())
    dense[1].load_state_dict(states[0])
    lazy[1].load_state_dict(states[1])
    _train([lazy, dense], range(40, 80))
    _assert_same_state(lazy, dense)


def test_a_fit_that_is_resumed_ends_as_the_straight_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_place(tmp_path)
    config = yaml.safe_load((tmp_path / "small.yaml").read_text())
    settings = {"lr": 1e-2, "weight_decay": 1e-2}
    config["model"]["init_args"]["optimizer"] = {"class_path": "ops.lazy_adamw.LazyAdamW", "init_args": settings}
    often = {"every_n_train_steps": 5, "keep_all": True}
    checkpoint = {"class_path": "callbacks.checkpoint.Checkpoint", "init_args": often}
    config["trainer"] |= {"callbacks": [checkpoint], "max_steps": 10, "limit_val_batches": 0}
    (tmp_path / "lazy.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    main(["fit", "--config", "lazy.yaml"])
    straight = tmp_path / "runs/lazy/version_0/checkpoints"
    main(["fit", "--config", "lazy.yaml", "--ckpt_path", str(straight / "step5.ckpt")])
    resumed = tmp_path / "runs/lazy/version_1/checkpoints/last.ckpt"
    assert saved(resumed)["global_step"] == 10
    assert differing(state(resumed), state(straight / "last.ckpt")) == []


def test_what_cannot_be_kept_up_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = HashGrid(**TINY)
    for settings, message in [
        ({"betas": (0.99, 0.9)}, r"betas are \(0\.99, 0\.9\), expected 0 < beta1 < sqrt\(beta2\)"),
        ({"betas": (0.0, 0.9)}, r"betas are \(0\.0, 0\.9\)"),
        ({"eps": 0.0}, r"eps is 0\.0, expected a positive number"),
        ({"lr": 1.0, "weight_decay": 1.0}, r"lr 1\.0 times weight_decay 1\.0 is 1\.0, expected less than 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            LazyAdamW(grid.parameters(), **settings)
    optimizer = LazyAdamW(grid.parameters())
    state = torch.optim.AdamW(grid.parameters(), amsgrad=True).state_dict()
    with pytest.raises(ValueError, match="amsgrad or maximize is set in the state that was loaded"):
        optimizer.load_state_dict(state)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"2 processes train together.*torch\.optim\.AdamW"):
        LazyAdamW(grid.parameters())


def test_a_table_read_past_its_grid_is_refused() -> None:
    grid = HashGrid(**TINY)
    optimizer = LazyAdamW(grid.parameters())
    (grid(torch.rand(4, 3)).sum() + grid.table.square().sum()).backward()
    with pytest.raises(ValueError, match="rows of the hash table have a gradient, but its grid did not read them"):
        optimizer.step()


def test_the_older_of_two_optimizers_is_refused() -> None:
    grid = HashGrid(**TINY)
    older, newer = LazyAdamW(grid.parameters()), LazyAdamW(grid.parameters())
    grid(torch.rand(4, 3)).sum().backward()
    newer.step()
    with pytest.raises(ValueError, match="another one was made of the same hash table"):
        older.step()


def test_a_backward_pass_after_the_step_is_refused() -> None:
    grid = HashGrid(**TINY, backend="numba")
    optimizer = LazyAdamW(grid.parameters())
    loss = grid(torch.rand(4, 3)).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_rows_that_only_a_tap_reads_are_up_to_date() -> None:
    pairs = _pair(lr=1e-2, weight_decay=0.1)
    _train(pairs, range(40))
    at = torch.rand(6, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64) * 2 - 1
    offsets = 0.3 * torch.eye(3, dtype=torch.float64)
    _assert_close(*(pair[0].encode_stencil(at, offsets) for pair in pairs))


def test_a_copy_in_half_precision_is_refused() -> None:
    grid = HashGrid(**TINY, bound=1.0, backend="numba", precision="half")
    optimizer = LazyAdamW(grid.parameters(), lr=1e-2)
    optimizer.zero_grad()
    with pytest.raises(ValueError, match=r"lazy optimizer.*grid_precision to full"):
        grid(torch.zeros(1, 3))
