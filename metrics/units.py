"""Chamfer distances in the units of other papers' tables, from those of :mod:`metrics.surface`.

| convention     | distance  | directions | length 1 is                       | samples |
|----------------|-----------|------------|-----------------------------------|---------|
| ours           | both      | mean       | the dataset's unit (*)            | 100 000 |
| ``onet_x10``   | Euclidean | mean       | a tenth of the longest edge       | 100 000 |
| ``mesh_rcnn``  | squared   | sum        | a tenth of the longest edge       | 10 000  |
| ``pixel2mesh`` | squared   | sum        | ShapeNet's own unit over 0.57     | 10 000  |
| ``pytorch3d``  | squared   | sum        | as given                          | any     |

(*) of ShapeNet in its benchmark frame the longest edge of the object's bounding box.

Sources: Occupancy Networks (arXiv:1812.03828), supplementary and ``im2mesh/eval.py``; Mesh R-CNN,
``meshrcnn/utils/metrics.py`` for its own protocol and ``shapenet/evaluation/eval.py`` for that of Pixel2Mesh, whose own
tables print thousandths; ``pytorch3d.loss.chamfer_distance`` with its default norm of 2, where norm 1 is Manhattan.
A conversion changes the unit alone: fewer samples make distances larger, and averages over categories or over objects
differ.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Convention:
    """How others count: in which unit, whether squared, whether the two directions are summed.

    Attributes:
        scale: their unit lengths in one of ``per``.
        per: ``"edge"``, the longest edge of the object's bounding box; ``"shapenet"``, the unit of ShapeNet's files;
            ``"unit"``, the unit that distances come in.
    """

    scale: float
    per: Literal["edge", "shapenet", "unit"]
    squared: bool
    sums: bool


CONVENTIONS = {
    "onet_x10": Convention(10.0, "edge", squared=False, sums=False),
    "mesh_rcnn": Convention(10.0, "edge", squared=True, sums=True),
    "pixel2mesh": Convention(0.57, "shapenet", squared=True, sums=True),
    "pytorch3d": Convention(1.0, "unit", squared=True, sums=True),
}


def chamfer_in(
    convention: str, scores: Mapping[str, float], *, longest_edge: float = 1.0, shapenet_edge: float | None = None
) -> float:
    """A Chamfer distance as another paper's table would have it.

    Args:
        convention: a key of ``CONVENTIONS``.
        scores: ``chamfer_l1`` and ``chamfer_l2`` of an object as SurfaceScore gives them, or their means over objects
            if those share their edges.
        longest_edge: of the object's bounding box, in the unit of the scores; 1 for ShapeNet's benchmark frame.
        shapenet_edge: the same in the unit of ShapeNet's own files (``scale`` in the npz files of Occupancy Networks);
            only ``pixel2mesh`` asks for it.

    Raises:
        ValueError: for an unknown convention, and where an edge is missing or not positive.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention: {convention!r}, expected one of {list(CONVENTIONS)}")
    rule = CONVENTIONS[convention]
    if rule.per == "shapenet" and shapenet_edge is None:
        raise ValueError(
            f"{convention}: needs shapenet_edge, the longest edge of the object in the unit of ShapeNet's files"
        )
    edges = [longest_edge] if shapenet_edge is None else [longest_edge, shapenet_edge]
    if not all(edge > 0 for edge in edges):
        raise ValueError(f"edges: {edges}, expected positive lengths")
    scale = rule.scale
    if rule.per != "unit":
        scale /= longest_edge
    if rule.per == "shapenet":
        scale *= shapenet_edge
    distance = scores["chamfer_l2"] * scale**2 if rule.squared else scores["chamfer_l1"] * scale
    return 2 * distance if rule.sums else distance
