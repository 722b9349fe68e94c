"""One object of a collection as a scene: its pictures are the photographs, their alpha is the mask.

So a method that reads rays, Neuralangelo, reconstructs a model of ShapeNet from its 24 renderings, or any object of
another collection whose cameras are known.
"""

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.object_source import ObjectSource, Views
from datamodules.objects import ObjectDataModule
from datamodules.scene import Scene
from datamodules.scene_module import SceneDataModule
from ops.types import Observation

Background = Literal["black", "white"]


class OneObject(SceneDataModule):
    """One object of a collection, seen in all its pictures.

    The frame is that of the collection: the object is centred and its longest edge is 1.

    Args:
        objects: The collection, any DataModule of objects; what it would draw batches with is not used.
        object_id: Which object, by its name or by ``category/name``; null is the first of the test split.
        background: What is put behind pictures with alpha.
        **kwargs: How batches are drawn, see ``SceneDataModule``.
    """

    provides = frozenset(
        {"rays", "ray_masks", "images", "masks", "intrinsics", "camera_to_world", "image_index"}
        | {"surface_points", "surface_normals", "normalized_to_dataset", "observations"}
    )
    remedies: ClassVar[dict[str, str]] = {
        "ray_masks": "the collection's pictures have no alpha channel, 3D-R2N2's renderings have one",
    }

    def __init__(
        self,
        objects: ObjectDataModule,
        object_id: str | None = None,
        background: Background = "black",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.objects, self.object_id, self.background = objects, object_id, background
        # so that a collection whose objects have not all the same files opens those that have these
        objects.reads = frozenset({"images", "intrinsics", "camera_to_world"})

    def prepare_data(self) -> None:
        """Make the collection, where it is one that is made."""
        self.objects.prepare_data()

    def load_scene(self) -> Scene:
        """Read the object's pictures, cameras and surface."""
        source = self.objects.load_source()
        index = self._index(source)
        name = source.objects[index]
        where = f"{source.name}, {name.category} {name.object_id}"
        if not {"images", "intrinsics", "camera_to_world"} <= source.keys:
            raise ValueError(
                f"{self.reader} reads rays, but {source.name} has {', '.join(sorted(source.keys)) or 'nothing'}: rays "
                "need pictures with cameras (of ShapeNet's layouts, r2n2 and onet have them)"
            )
        surface, normals = None, None
        if "surface_points" in source.keys:
            count = min(self.objects.eval_surface_points, source.num_surface_points(index))
            surface, normals = source.surface(index, slice(0, count))
        return scene_of_views(
            source.views(index, range(source.num_views)),
            name.object_id,
            name.category,
            where,
            source.normalized_to_dataset(index),
            self.background,
            surface_points=_floats(surface),
            surface_normals=None if normals is None else torch.nn.functional.normalize(_floats(normals), dim=1),
        )

    def _index(self, source: ObjectSource) -> int:
        if self.object_id is None:
            positions = self.objects.load_split(source)[1]
            return next(iter(positions.get("test") or range(len(source.objects))))
        asked = self.object_id.rpartition("/")
        found = [
            index
            for index, name in enumerate(source.objects)
            if name.object_id == asked[2] and asked[0] in ("", name.category)
        ]
        if len(found) == 1:
            return found[0]
        names = [f"{name.category}/{name.object_id}" for name in source.objects]
        if found:
            raise ValueError(
                f"object_id {self.object_id!r}: {source.name} has several, {', '.join(names[i] for i in found)}; give "
                "one of them"
            )
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise ValueError(f"object_id {self.object_id!r}: {source.name} has none; it has {', '.join(names[:5])}{more}")


def scene_of_views(
    views: Views,
    name: str,
    category: str,
    where: str,
    normalized_to_dataset: np.ndarray,
    background: Background,
    *,
    image_names: list[str] | None = None,
    **known: Any,
) -> Scene:
    """A scene of pictures whose alpha, where they have it, is the mask.

    Args:
        views: pictures and cameras, in the normalised frame.
        name: of the scene.
        category: of the object.
        where: the object, for errors.
        normalized_to_dataset: (4, 4).
        background: what is put behind the object.
        image_names: for errors; counted where not given.
        **known: of the other fields of ``Scene``.

    Raises:
        ValueError: the cameras are unknown.
    """
    if views.intrinsics is None or views.camera_to_world is None:
        raise ValueError(f"{where}: its cameras are unknown, and without them there are no rays")
    pixels = torch.from_numpy(np.ascontiguousarray(views.pixels))
    images, masks = (pixels, None) if pixels.shape[-1] == 3 else over_background(pixels, background)
    intrinsics, poses = (torch.from_numpy(np.array(a)) for a in (views.intrinsics, views.camera_to_world))
    matrix = torch.from_numpy(normalized_to_dataset)
    observation = Observation(projections=projections(intrinsics, poses, matrix))
    if masks is not None:
        observation["masks"] = masks > 127
    return Scene(
        name=name,
        category=category,
        images=images,
        intrinsics=intrinsics.float(),
        camera_to_world=poses.float(),
        normalized_to_dataset=matrix,
        image_names=image_names or [f"picture {view}" for view in range(len(images))],
        masks=masks,
        observation=observation,
        **known,
    )


def over_background(pixels: Tensor, background: Background) -> tuple[Tensor, Tensor]:
    """(V, H, W, 4) uint8 with straight alpha -> (V, H, W, 3) uint8 over black or white, and (V, H, W) coverage."""
    images = torch.empty_like(pixels[..., :3])
    for image, picture in zip(
        images, pixels, strict=True
    ):  # one at a time: a hundred large ones in float are gigabytes
        alpha = picture[..., 3:].float() / 255
        image.copy_((picture[..., :3] * alpha + (255 * (1 - alpha) if background == "white" else 0)).round())
    return images, pixels[..., 3].clone()


def projections(intrinsics: Tensor, camera_to_world: Tensor, normalized_to_dataset: Tensor) -> Tensor:
    """(V, 3, 4) float64 projections of points in the dataset's frame, the third coordinate being the depth there.

    Args:
        intrinsics: (V, 3, 3).
        camera_to_world: (V, 4, 4) in the normalised frame.
        normalized_to_dataset: (4, 4) similarity.
    """
    moved = posed(normalized_to_dataset.numpy(), camera_to_world.double().numpy())
    return intrinsics.double() @ torch.linalg.inv(torch.from_numpy(moved))[:, :3]


def posed(similarity: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """(V, 4, 4) rigid poses of the same cameras in the frame that a (4, 4) similarity leads to."""
    moved = similarity @ poses
    moved[:, :3, :3] /= np.cbrt(np.linalg.det(similarity[:3, :3]))
    return moved


def _floats(array: np.ndarray | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(array.astype(np.float32))
