from pathlib import Path

import pytest
import torch

from ops.isosurface import extract_surface
from ops.ranks import map_on_ranks, rows_on_ranks
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


def _extract(rank: int) -> None:
    torch.distributed.init_process_group("gloo")
    counts = []

    def field(points: torch.Tensor) -> torch.Tensor:
        counts.append(len(points))
        return points.norm(dim=-1) - 0.6 + 0.05 * (7 * points).sin().sum(-1)

    shape = extract_surface(field, 40, color_field=lambda points: points.abs(), chunk_size=4096, on_ranks=True)
    torch.save((shape.vertices, shape.faces, shape.vertex_colors, sum(counts)), f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_ranks_that_share_an_extraction_have_the_mesh_of_one(tmp_path):
    assert on_ranks(_extract, tmp_path) == [0, 0], printed(tmp_path)
    first, second = (torch.load(Path(tmp_path, f"{rank}.pt"), weights_only=True) for rank in (0, 1))
    assert all(torch.equal(one, other) for one, other in zip(first[:3], second[:3], strict=True))
    counts = []

    def field(points: torch.Tensor) -> torch.Tensor:
        counts.append(len(points))
        return points.norm(dim=-1) - 0.6 + 0.05 * (7 * points).sin().sum(-1)

    alone = extract_surface(field, 40, color_field=lambda points: points.abs(), chunk_size=4096)
    assert torch.equal(alone.faces, first[1])
    torch.testing.assert_close(alone.vertices, first[0])
    torch.testing.assert_close(alone.vertex_colors, first[2])
    assert first[3] + second[3] <= 1.01 * sum(counts) + 100
    assert abs(first[3] - second[3]) < 0.01 * sum(counts)


def _rows(rank: int) -> None:
    torch.distributed.init_process_group("gloo")
    results = [rows_on_ranks(lambda part: part.square(), torch.arange(float(n))[:, None]) for n in (0, 1, 2, 7)]
    torch.save(results, f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_rows_come_back_in_their_order_however_few_there_are(tmp_path):
    assert on_ranks(_rows, tmp_path, num_ranks=3) == [0, 0, 0], printed(tmp_path)
    for rank in range(3):
        results = torch.load(Path(tmp_path, f"{rank}.pt"), weights_only=True)
        assert [result.flatten().tolist() for result in results] == [[], [0], [0, 1], [float(k**2) for k in range(7)]]
