from pathlib import Path

import pytest
import torch

from ops.ranks import map_on_ranks
from tests.ranks import on_ranks, printed


def _squares(rank: int, num_items: int) -> None:
    torch.distributed.init_process_group("gloo")
    worked_on = []

    def square(item: int) -> dict[str, torch.Tensor]:
        worked_on.append(item)
        return {"square": torch.full((2, 3), float(item**2)), "item": torch.tensor(item)}

    results = map_on_ranks(square, range(num_items))
    torch.save((results, worked_on), f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("num_items", [1, 7])
def test_every_rank_has_all_results_and_has_worked_on_its_share(num_items, tmp_path):
    assert on_ranks(_squares, tmp_path, num_items) == [0, 0], printed(tmp_path)
    for rank in (0, 1):
        results, worked_on = torch.load(Path(tmp_path, f"{rank}.pt"), weights_only=True)
        assert [result["item"] for result in results] == list(range(num_items))
        assert all((result["square"] == k**2).all() for k, result in enumerate(results))
        assert len(worked_on) == -(-num_items // 2)


def test_one_process_does_all():
    results = map_on_ranks(lambda item: {"item": torch.tensor(item)}, [3, 1])
    assert [int(result["item"]) for result in results] == [3, 1]
