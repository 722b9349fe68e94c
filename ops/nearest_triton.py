"""Nearest neighbours of batched point sets on GPU, by all pairs, in Triton.

A program holds a block of queries and walks over the points. Every cell of its tile of pairs remembers the least
distance that it has seen, so that the loop has no reduction and nothing of N x M is ever written; the tile is reduced
once at the end. Where there are too few queries to fill a GPU, the points are split among programs as well.

A pair takes nine instructions (three differences, three products and sums, a comparison and what it selects). A GPU of
132 x 128 lanes at 1.7 GHz issues 29e12 a second, so that it needs 3 ms for 1e5 x 1e5 points at the very best and 3 s
for the clouds of a DTU scan, 3e6 x 3e6. All of them take 12 bytes a point of memory.

``TRITON_INTERPRET=1``, set before triton is imported, runs the same kernel slowly on CPU tensors, for tests.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

QUERIES = 32  # of a program's tile; a thread holds one column of 16 pairs, without spilling registers
POINTS = 64
PROGRAMS = 1024  # enough to fill the largest GPUs, below which points are split


@torch.no_grad()
def nearest_neighbours(queries: Tensor, points: Tensor, num_programs: int = PROGRAMS) -> tuple[Tensor, Tensor]:
    """Squared distance from every query to its nearest point, of those as near the first one.

    Distances are those of the differences of coordinates, without the expansion into products.

    Args:
        queries: (B, N, 3) float32 or float64.
        points: (B, M, 3), same device and dtype, M at least 1.
        num_programs: fewest programs to aim at. The result does not depend on it.

    Returns:
        (B, N) squared distances and (B, N) int64 indices into the points. A query that is not finite gets any index; a
        point that is not finite is nobody's neighbour.
    """
    num_objects, num_queries = queries.shape[:2]
    num_blocks = triton.cdiv(points.shape[1], POINTS)
    # one coordinate after another, so that a warp reads 32 in a row; points that are infinitely far need no mask
    targets = points.new_full((num_objects, 3, num_blocks * POINTS), torch.inf)
    targets[:, :, : points.shape[1]] = points.transpose(1, 2)
    tiles = triton.cdiv(num_queries, QUERIES)
    num_splits = min(num_blocks, triton.cdiv(num_programs, max(tiles * num_objects, 1)))
    blocks_a_split = triton.cdiv(num_blocks, num_splits)
    num_splits = triton.cdiv(num_blocks, blocks_a_split)
    squared = queries.new_empty(num_splits, num_objects, num_queries)
    indices = torch.empty(squared.shape, dtype=torch.int32, device=queries.device)
    if squared.numel():
        # objects beside their tiles: the other axes of a launch are limited to 65,535
        with torch.cuda.device_of(queries):  # Triton launches on the current device, which need not be the tensors'
            _nearest_kernel[tiles * num_objects, num_splits](
                queries.contiguous(),
                targets,
                squared,
                indices,
                num_queries,
                num_blocks,
                blocks_a_split,
                tiles,
                QUERIES=QUERIES,
                POINTS=POINTS,
            )
    if num_splits == 1:
        return squared[0], indices[0].long()
    # the first of equal ones, as splits are in the order of the points
    best = squared.argmin(0, keepdim=True)
    return squared.gather(0, best)[0], indices.gather(0, best)[0].long()


@triton.jit(do_not_specialize=["num_queries", "num_blocks", "blocks_a_split", "tiles"])
def _nearest_kernel(
    queries_ptr,
    targets_ptr,
    squared_ptr,
    indices_ptr,
    num_queries,
    num_blocks,
    blocks_a_split,
    tiles,
    QUERIES: tl.constexpr,
    POINTS: tl.constexpr,
):
    program = tl.program_id(0)
    split = tl.program_id(1)
    member = (program // tiles).to(tl.int64)
    n = (program % tiles) * QUERIES + tl.arange(0, QUERIES)
    is_query = n < num_queries
    query_ptrs = queries_ptr + (member * num_queries + n) * 3
    x = tl.load(query_ptrs, mask=is_query, other=0.0)[:, None]
    y = tl.load(query_ptrs + 1, mask=is_query, other=0.0)[:, None]
    z = tl.load(query_ptrs + 2, mask=is_query, other=0.0)[:, None]

    width = num_blocks.to(tl.int64) * POINTS
    lane = tl.arange(0, POINTS)
    target_ptrs = targets_ptr + member * 3 * width + lane
    best = tl.full((QUERIES, POINTS), float("inf"), dtype=x.dtype)
    best_block = tl.zeros((QUERIES, POINTS), dtype=tl.int32) + split * blocks_a_split
    for block in range(split * blocks_a_split, tl.minimum((split + 1) * blocks_a_split, num_blocks)):
        ptrs = target_ptrs + block * POINTS
        dx = x - tl.load(ptrs)[None, :]
        dy = y - tl.load(ptrs + width)[None, :]
        dz = z - tl.load(ptrs + 2 * width)[None, :]
        distance = dx * dx + dy * dy + dz * dz
        is_nearer = distance < best
        best = tl.where(is_nearer, distance, best)
        best_block = tl.where(is_nearer, block, best_block)

    least = tl.min(best, axis=1)
    # of equal distances the first; a query that is not finite equals none of its distances
    index = tl.where(best == least[:, None], best_block * POINTS + lane[None, :], 2147483647)
    first = tl.min(index, axis=1)
    first = tl.where(first == 2147483647, 0, first)
    result = (split.to(tl.int64) * (tl.num_programs(0) // tiles) + member) * num_queries + n
    tl.store(squared_ptr + result, least, mask=is_query)
    tl.store(indices_ptr + result, first, mask=is_query)
