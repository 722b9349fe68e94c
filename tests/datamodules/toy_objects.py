"""Small collections of objects for the tests of the datasets."""

from datamodules.object_source import ObjectSource
from datamodules.objects import ObjectDataModule
from datamodules.synthetic_objects import ProceduralObjects

ALL_KEYS = ProceduralObjects.keys | {"normalized_to_dataset"}


def small_objects(
    categories: tuple[str, ...] = ("chair", "solid"),
    per_category: int = 10,
    num_views: int = 3,
    picture_size: int = 24,
    num_points: int = 400,
) -> ProceduralObjects:
    """Few objects with few, small pictures and few points."""
    points = {"num_surface_points": num_points, "num_query_points": num_points}
    return ProceduralObjects(categories, per_category, num_views, picture_size, **points)


class ToyObjects(ObjectDataModule):
    """A collection that is a source already."""

    provides = ALL_KEYS

    def __init__(self, toy: ObjectSource | None = None, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.toy = toy or small_objects()

    def load_source(self) -> ObjectSource:
        return self.toy

    def load_split(self, source: ObjectSource) -> tuple[str, dict[str, list[int]]]:
        return next(iter(source.splits().items()))
