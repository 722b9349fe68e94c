import warnings

import pytest
import torch
from torch import Tensor

from ops.chunks import ChunkSize, map_chunks


def limited(limit: int, sizes: list[int], error: type[Exception] = torch.OutOfMemoryError, text: str = "full"):
    def square(x: Tensor) -> Tensor:
        if len(x) > limit:
            raise error(text)
        sizes.append(len(x))
        return x**2

    return square


@pytest.mark.parametrize("chunk_size", [1, 3, 10, 100])
def test_chunks_joined_equal_one_call(chunk_size: int) -> None:
    x, y = torch.randn(10, 3), torch.randn(10)

    def fn(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"sum": x.sum(1) + y, "x": x}

    joined = map_chunks(fn, x, y, chunk_size=chunk_size)
    assert joined.keys() == {"sum", "x"}
    assert torch.equal(joined["x"], x)
    torch.testing.assert_close(joined["sum"], x.sum(1) + y)


def test_no_rows_keep_the_shape_of_a_row() -> None:
    assert map_chunks(lambda x: x[:, :2], torch.zeros(0, 3), chunk_size=8).shape == (0, 2)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (torch.OutOfMemoryError, "CUDA out of memory"),
        (RuntimeError, "DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes"),
        (RuntimeError, "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes. Error code 12"),
    ],
)
def test_out_of_memory_halves_the_chunk_and_says_so_once(error: type[Exception], text: str) -> None:
    sizes: list[int] = []
    x = torch.arange(1000.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        y = map_chunks(limited(300, sizes, error, text), x, chunk_size=1000)
    assert torch.equal(y, x**2)
    assert max(sizes) == 256  # 1000 -> 500 -> 256, the floor
    assert len(caught) == 1


def test_a_shared_chunk_size_remembers() -> None:
    sizes: list[int] = []
    size = ChunkSize(64, floor=2)
    fn = limited(10, sizes)
    with pytest.warns(UserWarning, match="64 rows"):
        map_chunks(fn, torch.zeros(64), chunk_size=size)
    assert size.rows == 8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        map_chunks(fn, torch.zeros(64), chunk_size=size)


@pytest.mark.filterwarnings("ignore:Out of memory")
def test_below_the_floor_the_error_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"only 256 rows.*smaller model") as caught:
        map_chunks(limited(3, []), torch.zeros(5000), chunk_size=4096)
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_other_errors_pass_through() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        map_chunks(lambda x: x @ torch.zeros(7, 7), torch.zeros(5, 3), chunk_size=2)


def test_unequal_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[3, 4\] rows"):
        map_chunks(lambda x, y: x, torch.zeros(3), torch.zeros(4), chunk_size=2)
