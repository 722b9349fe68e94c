"""What needs no download: photographs of an analytic scene, and a collection of procedural objects; seconds to make.

``python -m datamodules.synthetic --scene knot --output DIR`` writes one in the NeuS layout, which ``DTU`` reads.
"""

import argparse
import hashlib
import math
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from datamodules import choy, packed, synthetic_objects
from datamodules.object_source import ObjectSource
from datamodules.objects import ObjectDataModule
from datamodules.packed import PackedObjects, pack
from datamodules.prepare.neus_layout import write_neus_layout
from datamodules.scene import Scene
from datamodules.scene_module import SceneDataModule
from datamodules.synthetic_objects import ProceduralObjects
from ops import analytic_surfaces, cameras, furniture, scenes, solid_kernels, solids, sphere_tracing
from ops.analytic_surfaces import sample_analytic_surface
from ops.cameras import look_at
from ops.furniture import CATEGORIES
from ops.scenes import SCENES, AnalyticScene
from ops.sphere_tracing import photograph
from ops.types import Observation

SceneName = Literal["knot", "statue"]

# millimetres, and off the origin, so that nobody mistakes one frame for the other unnoticed
MILLIMETRES = 85.0
CENTER_MM = (120.0, -40.0, 610.0)

VIEWS_AT_ONCE = 6


class SyntheticScene(SceneDataModule):
    """An analytic, coloured thing with thin, concave and holed parts, photographed from all sides.

    Args:
        scene: Which thing.
        num_views: Photographs taken of it, held-out ones included.
        image_size: Width and height of a photograph in pixels.
        background: What is behind the thing.
        num_surface_points: Samples of the true surface, uniform by area.
        root: Folder that keeps what was made, so that it is made once.
        held_out: Views never trained on, by index, or every n-th (0, n, 2n, ...); validation and test show them.
        **kwargs: How batches are drawn, see ``SceneDataModule``.
    """

    provides = frozenset(
        {"rays", "ray_masks", "images", "masks", "intrinsics", "camera_to_world", "image_index"}
        | {"surface_points", "surface_normals", "normalized_to_dataset", "observations"}
    )

    def __init__(
        self,
        scene: SceneName = "knot",
        num_views: int = 42,
        image_size: int = 160,
        background: Literal["black", "white"] = "black",
        num_surface_points: int = 100_000,
        root: str = "data/synthetic",
        held_out: list[int] | int | None = 7,
        **kwargs: Any,
    ) -> None:
        super().__init__(held_out=held_out, **kwargs)
        if scene not in SCENES:
            raise ValueError(f"there is no synthetic scene {scene!r}; there are {', '.join(SCENES)}")
        self.scene_name, self.background = scene, background
        self.num_views, self.image_size, self.num_surface_points = num_views, image_size, num_surface_points
        self.path = Path(root) / f"{scene}_{num_views}x{image_size}_{self._checksum()}.npz"

    def _checksum(self) -> str:
        # what is kept holds only as long as the code that made it
        digest = hashlib.sha256(
            repr((self.scene_name, self.num_views, self.image_size, self.num_surface_points)).encode()
        )
        digest.update(Path(__file__).read_bytes())
        for module in (analytic_surfaces, cameras, scenes, sphere_tracing):
            digest.update(Path(module.__file__).read_bytes())
        return digest.hexdigest()[:12]

    def prepare_data(self) -> None:
        """Photograph the scene and sample its surface, unless that was done before."""
        if self.path.exists() and zipfile.is_zipfile(self.path):
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        arrays = make_scene(SCENES[self.scene_name], self.num_views, self.image_size, self.num_surface_points)
        # written beside and renamed: another process sees all of it or nothing
        partial = self.path.with_suffix(f".{os.getpid()}.tmp")
        with partial.open("wb") as file:
            np.savez(file, **{name: array.numpy() for name, array in arrays.items()})
        os.replace(partial, self.path)

    def load_scene(self) -> Scene:
        """Read the scene, making it first where it is not there."""
        self.prepare_data()
        with np.load(self.path, allow_pickle=False) as file:
            arrays = {name: torch.from_numpy(file[name]) for name in file.files}
        images, masks = arrays["images"], arrays["masks"]
        if self.background == "white":
            images = images + (255 - masks)[..., None]
        normalized_to_dataset = torch.diag(torch.tensor([MILLIMETRES] * 3 + [1.0], dtype=torch.float64))
        normalized_to_dataset[:3, 3] = torch.tensor(CENTER_MM)
        return Scene(
            name=self.scene_name,
            category="synthetic",
            images=images,
            intrinsics=arrays["intrinsics"],
            camera_to_world=arrays["camera_to_world"],
            normalized_to_dataset=normalized_to_dataset,
            image_names=[f"{view:06d}.png" for view in range(len(images))],
            masks=masks,
            surface_points=arrays["surface_points"],
            surface_normals=arrays["surface_normals"],
            observation=Observation(
                masks=masks > 127,
                projections=projections(arrays["intrinsics"], arrays["camera_to_world"], normalized_to_dataset),
            ),
            depth=arrays["depth"],
        )

    def write_neus_layout(self, folder: str | Path) -> None:
        """Write ``image/``, ``mask/`` and ``cameras_sphere.npz`` as NeuS and the DTU DataModule read them."""
        write_neus_layout(self.scene or self.load_scene(), Path(folder))


class SyntheticObjects(ObjectDataModule):
    """Furniture and plain solids of seven categories, known exactly, with pictures by Choy's cameras.

    Args:
        root: Folder that keeps what was made, so that it is made once.
        objects_per_category: Objects of each category; seven in ten are for training, one for validation, two for test.
        pictures: Pictures of each object.
        picture_size: Their height and width in pixels.
        categories: Which of bench, cabinet, chair, lamp, sofa, solid and table; null is all.
        object_seed: Other seeds make other objects.
        **kwargs: How batches are drawn, see ``ObjectDataModule``.
    """

    provides = ProceduralObjects.keys | {"normalized_to_dataset"}

    def __init__(
        self,
        root: str = "data/synthetic",
        objects_per_category: int = 30,
        pictures: int = 24,
        picture_size: int = choy.IMAGE_SIZE,
        categories: list[str] | None = None,
        object_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(categories=categories, **kwargs)
        names = sorted(CATEGORIES if categories is None else set(categories))
        unknown = sorted(set(names) - set(CATEGORIES))
        if unknown:
            raise ValueError(
                f"categories: there are no procedural {', '.join(unknown)}; there are {', '.join(CATEGORIES)}"
            )
        if not names or not 10 <= objects_per_category <= 10_000:
            raise ValueError(
                f"objects_per_category is {objects_per_category}, of {len(names)} categories; expected 10 (one round "
                "of the split) to 10000, and at least one category"
            )
        self.procedural = ProceduralObjects(names, objects_per_category, pictures, picture_size, seed=object_seed)
        self.path = Path(root) / f"objects_{objects_per_category}x{len(names)}_{self._checksum()}"

    def _checksum(self) -> str:
        made = self.procedural
        digest = hashlib.sha256(repr((made.objects, made.num_views, made.picture_size, made.seed)).encode())
        for module in (choy, packed, synthetic_objects, furniture, solid_kernels, solids):
            digest.update(Path(module.__file__).read_bytes())
        return digest.hexdigest()[:12]

    def prepare_data(self) -> None:
        """Make the objects, unless that was done before."""
        if self.path.exists():
            return
        try:
            pack(self.procedural, self.path)
        except (OSError, ValueError):
            # another process made them in the meantime
            if not self.path.exists():
                raise

    def load_source(self) -> PackedObjects:
        """Open the objects, making them first where they are not there."""
        self.prepare_data()
        return PackedObjects(self.path)

    def load_split(self, source: ObjectSource) -> tuple[str, dict[str, list[int]]]:
        """The one split there is, by names."""
        return "synthetic", source.splits()["synthetic"]


def projections(intrinsics: Tensor, camera_to_world: Tensor, normalized_to_dataset: Tensor) -> Tensor:
    """(V, 3, 4) float64 projections, dataset frame to pixels with the first centre at (0.5, 0.5)."""
    dataset_to_camera = torch.linalg.inv(normalized_to_dataset @ camera_to_world.double())
    matrices = intrinsics.double() @ dataset_to_camera[:, :3]
    # the similarity's scale has entered every entry; without it the third coordinate is the depth in the dataset's unit
    return matrices * normalized_to_dataset[:3, 0].norm()


def make_scene(scene: AnalyticScene, num_views: int, image_size: int, num_surface_points: int) -> dict[str, Tensor]:
    """Photograph a scene and sample its surface.

    Returns:
        Arrays named as in ``Scene``; images are premultiplied, that is over black.
    """
    intrinsics, poses = camera_ring(num_views, image_size)
    # several views at once, since the last rays of each creep along silhouettes in many steps of little work
    groups = zip(intrinsics.split(VIEWS_AT_ONCE), poses.split(VIEWS_AT_ONCE), strict=True)
    num_threads = torch.get_num_threads()
    # thousands of short operations: sharing each among threads was measured ten times slower on a busy machine, so the
    # threads share the groups instead
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(num_threads) as pool:
            photographs = list(pool.map(lambda group: photograph(scene, *group, image_size), groups))
        points, normals = sample_analytic_surface(scene, num_surface_points, torch.Generator().manual_seed(0))
    finally:
        torch.set_num_threads(num_threads)
    images, masks, depth = (torch.cat(parts) for parts in zip(*photographs, strict=True))
    return {
        "images": images,
        "masks": masks,
        "depth": depth,
        "intrinsics": intrinsics,
        "camera_to_world": poses,
        "surface_points": points.float(),
        "surface_normals": normals.float(),
    }


def camera_ring(num_views: int, image_size: int) -> tuple[Tensor, Tensor]:
    """Cameras all around the origin, no two alike, so that taking one's intrinsics for another's shows.

    Returns:
        ``intrinsics`` (V, 3, 3) and ``camera_to_world`` (V, 4, 4), float32.
    """
    generator = torch.Generator().manual_seed(0)
    intrinsics, poses = [], []
    for view in range(num_views):
        jitter = torch.rand(6, generator=generator) * 2 - 1
        # a Fibonacci spiral: even over the sphere, and so is every n-th of it
        height = -0.8 + 1.75 * (view + 0.5) / num_views
        turn = view * math.pi * (3 - math.sqrt(5))
        out = math.sqrt(1 - height**2)
        direction = torch.tensor([out * math.cos(turn), out * math.sin(turn), height])
        poses.append(look_at((2.9 + 0.1 * jitter[0]) * direction, 0.02 * jitter[1:4], torch.tensor([0.0, 0.0, 1.0])))
        focal = image_size * (1.38 + 0.02 * jitter[4])
        center = image_size * (0.5 + 0.01 * jitter[4:6])
        intrinsics.append(torch.tensor([[focal, 0, center[0]], [0, focal, center[1]], [0, 0, 1]]))
    return torch.stack(intrinsics), torch.stack(poses)


def main() -> None:
    """Write one synthetic scene in the NeuS layout."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--scene", choices=get_args(SceneName), default="knot")
    parser.add_argument("--num_views", type=int, default=42)
    parser.add_argument("--image_size", type=int, default=160)
    parser.add_argument("--background", choices=["black", "white"], default="black")
    parser.add_argument("--root", default="data/synthetic", help="where scenes are kept")
    parser.add_argument("--output", required=True, help="folder to write")
    arguments = vars(parser.parse_args())
    output = arguments.pop("output")
    SyntheticScene(**arguments).write_neus_layout(output)
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
