"""Which objects make which batch, and what is drawn of each: pure functions of seed, place in the stream and rank.

Training is one endless stream of objects, round after round, each round all objects in another order. Batch number b of
rank r is the slice ``(b R + r) B`` to ``(b R + r + 1) B`` of it (R ranks, B objects a batch). So every object is seen
equally often, no rank repeats another's, workers change nothing, and a run resumed at batch b goes on as a straight
one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset, DistributedSampler

from ops.types import ObjectBatch

# what the numbers that follow a seed are for; no two kinds of draws share a seed
_ORDER, _OBJECT, _VIEWS = 0, 1, 2


@dataclass(frozen=True)
class Request:
    """A batch to be made.

    Attributes:
        positions: of its objects in their split.
        slots: of its objects in the endless stream; ``None`` for evaluation, where nothing is random.
        num_views: random views of each object; ``None`` for evaluation.
    """

    positions: tuple[int, ...]
    slots: tuple[int, ...] | None = None
    num_views: int | None = None


class BatchDataset(Dataset):
    """Batches by request, so that a worker makes whole ones."""

    def __init__(self, make: Callable[[Request], ObjectBatch], num_objects: int) -> None:
        self.make, self.num_objects = make, num_objects

    def __len__(self) -> int:
        return self.num_objects

    def __getitem__(self, request: Request) -> ObjectBatch:
        return self.make(request)


class StreamSampler(DistributedSampler):
    """Requests of training batches, going on where training stands.

    It is a ``DistributedSampler`` in name, which keeps Lightning from putting one of its own in its place.

    Args:
        num_objects: in the split.
        batch_size: objects a batch, for each rank.
        num_views: fewest and most views; one number is drawn a batch, the same on all ranks.
        seed: of everything.
        rank: this process.
        num_ranks: processes that train together.
        batches_trained: says how many batches were trained on.
    """

    def __init__(
        self,
        num_objects: int,
        batch_size: int,
        num_views: tuple[int, int],
        seed: int,
        rank: int,
        num_ranks: int,
        batches_trained: Callable[[], int],
    ) -> None:
        super().__init__(range(num_objects), num_replicas=1, rank=0, shuffle=False)
        self.num_objects, self.batch_size, self.num_views, self.seed = num_objects, batch_size, num_views, seed
        self.own_rank, self.num_ranks, self.batches_trained = rank, num_ranks, batches_trained

    def __len__(self) -> int:
        """Batches of an epoch; what a round leaves over begins the next one."""
        return max(1, self.num_objects // (self.batch_size * self.num_ranks))

    def __iter__(self) -> Iterator[Request]:
        first = self.batches_trained()
        return (self.request(number) for number in range(first, first + len(self)))

    def request(self, number: int) -> Request:
        """Batch number ``number`` of this rank."""
        first = (number * self.num_ranks + self.own_rank) * self.batch_size
        slots = tuple(range(first, first + self.batch_size))
        rounds = {turn: self._order(turn) for turn in {slot // self.num_objects for slot in slots}}
        positions = tuple(int(rounds[slot // self.num_objects][slot % self.num_objects]) for slot in slots)
        low, high = self.num_views
        num_views = int(np.random.default_rng([self.seed, _VIEWS, number]).integers(low, high + 1))
        return Request(positions, slots, num_views)

    def _order(self, turn: int) -> np.ndarray:
        if turn not in (cache := self.__dict__.setdefault("_orders", {})):
            cache.clear()
            cache[turn] = np.random.default_rng([self.seed, _ORDER, turn]).permutation(self.num_objects)
        return cache[turn]


class EvalSampler(DistributedSampler):
    """Requests that show every object of a split, shared out to ranks; each rank gets equally many batches.

    Where the objects do not fill the last batches of all ranks, some are shown twice; scores count each once.
    """

    def __init__(self, num_objects: int, batch_size: int, rank: int, num_ranks: int) -> None:
        super().__init__(range(num_objects), num_replicas=1, rank=0, shuffle=False)
        per_rank = -(-num_objects // num_ranks)
        mine = [position % num_objects for position in range(rank, per_rank * num_ranks, num_ranks)]
        self.requests = [Request(tuple(mine[i : i + batch_size])) for i in range(0, len(mine), batch_size)]

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)


def object_generator(seed: int, slot: int) -> np.random.Generator:
    """What is random about the object in a slot of the stream, whichever rank and worker draws it."""
    return np.random.default_rng([seed, _OBJECT, slot])
