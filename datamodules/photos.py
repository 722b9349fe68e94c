"""Any photographs: with a COLMAP model, with a transforms.json, or bare, when structure from motion is done first."""

import dataclasses
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from pytorch_lightning.utilities.rank_zero import rank_zero_info, rank_zero_warn

from datamodules.colmap_model import MODEL_FOLDERS, find_model, is_model, needs_pycolmap, read_colmap_model
from datamodules.mask_files import all_have_alpha, find_masks
from datamodules.normalization import normalization_from_cameras_and_points
from datamodules.posed_photographs import (
    ImageFinder,
    Pictures,
    PosedPhotographs,
    chosen_downscale,
    photograph_folder,
    read_pictures,
)
from datamodules.prepare.structure_from_motion import FOLDER, Matching, Settings, structure_from_motion
from datamodules.prepare.triangulate import triangulate
from datamodules.scene import Scene, SparsePoints
from datamodules.scene_module import SceneDataModule, split_views
from datamodules.silhouettes import normalization_from_masks, similarity_to_sphere
from datamodules.sparse_points import filter_points, read_tracks
from datamodules.tracks import Tracks, save_tracks
from datamodules.transforms_json import FILES, find_transforms, read_transforms
from ops.types import Observation

Cameras = Literal["auto", "colmap", "transforms", "sfm"]
BACKGROUNDS = {"white": 255, "black": 0}


class Photos(SceneDataModule):
    """Photographs of one object or place, from whatever is in their folder.

    Args:
        root: Folder of the scene.
        images: Folder of the photographs; null looks into images/, image/, input/, rgb/ and the root itself.
        masks: Folder of masks; null looks for masks/, mask/ and matting/ and then for an alpha channel; "alpha" takes
            the alpha channel; "none" goes without.
        cameras: Where the cameras come from: a transforms.json, a COLMAP model, or structure from motion, which is
            done when training starts; "auto" takes the first of these that is there, and says which.
        camera_path: The .json file or the folder of the COLMAP model; null looks for transforms.json,
            transforms_train.json, sparse/0, sparse, colmap/sparse/0.
        downscale: Whole factor by which photographs are made smaller; null takes the smallest that leaves the longest
            edge 1600 pixels or less.
        background: What photographs with an alpha channel are laid on.
        inside_out: The cameras stand inside what is reconstructed, as in a room.
        normalization: Where the unit sphere is: "given" by the transforms.json, "computed" from masks of a whole object
            or else from cameras and points, "auto" for the first of these that is there, "none" where the scene lies in
            the unit sphere as it is; or centre and radius by hand, [x, y, z, r] in the frame of the cameras.
        sfm_folder: Where structure from motion keeps its result; null is structure_from_motion/ in the root.
        matching: Which photographs it compares; "sequential" is for videos.
        max_image_size: Longest edge of the photographs in which it looks for features.
        num_threads: Its threads; -1 is all cores.
        **kwargs: How batches are drawn, see ``SceneDataModule``. Views of a transforms_test.json are always held out,
            ``held_out`` holds out others beside them.
    """

    provides = frozenset(
        {"rays", "ray_masks", "sparse_points", "images", "masks", "intrinsics", "camera_to_world", "image_index"}
        | {"normalized_to_dataset", "observations"}
    )
    remedies: ClassVar[dict[str, str]] = {
        "ray_masks": "put one mask a photograph into masks/, or model the background (--model.init_args.background)",
        "masks": "put one mask a photograph into masks/",
        "sparse_points": "a fit triangulates them first; or set --model.init_args.sparse_weight=0",
    }

    def __init__(
        self,
        root: str,
        *,
        images: str | None = None,
        masks: str | None = None,
        cameras: Cameras = "auto",
        camera_path: str | None = None,
        downscale: int | None = None,
        background: Literal["white", "black"] = "white",
        inside_out: bool = False,
        normalization: Literal["auto", "given", "computed", "none"] | list[float] = "auto",
        sfm_folder: str | None = None,
        matching: Matching = "auto",
        max_image_size: int = Settings.max_image_size,
        num_threads: int = -1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root, self.masks, self.cameras = Path(root), masks, cameras
        self.images = Path(images) if images else None
        self.camera_path = Path(camera_path) if camera_path else None
        self.downscale, self.background, self.inside_out = downscale, BACKGROUNDS[background], inside_out
        self.normalization = normalization
        self.sfm_folder = Path(sfm_folder) if sfm_folder else self.root / FOLDER
        self.settings = Settings(matching, max_image_size, num_threads)
        self._test_views: list[int] = []

    def prepare_data(self) -> None:
        """Structure from motion where there are no cameras, sparse points where there are but cameras; done once."""
        kind, _ = self._camera_source()
        if kind == "sfm":
            structure_from_motion(photograph_folder(self.root, self.images), self.sfm_folder, self.settings)
        elif kind == "transforms" and "sparse_points" in self.reads and find_model(self.root) is None:
            self._triangulate(self.load_scene())

    def load_scene(self) -> Scene:
        """Read cameras, photographs and masks, and place the unit sphere."""
        photographs = self._posed_photographs()
        self._test_views = photographs.test_views
        pictures = self._pictures(photographs)
        normalized_to_dataset = self._normalized_to_dataset(photographs, pictures)
        scene = _scene(self.root.resolve().name, photographs, pictures, normalized_to_dataset, self.inside_out)
        points = self._sparse_points(photographs, scene)
        return scene if points is None else dataclasses.replace(scene, sparse_points=points)

    def split(self, scene: Scene) -> tuple[list[int], list[int]]:
        """The dataset's own test views are held out, and of the others those of the rule ``held_out``."""
        others = [view for view in range(len(scene.images)) if view not in self._test_views]
        if isinstance(self.held_out, int):
            chosen = [others[position] for position in split_views(scene.name, len(others), self.held_out)[1]]
        else:
            chosen = super().split(scene)[1]
        held_out = sorted({*chosen, *self._test_views})
        train = [view for view in others if view not in held_out]
        if not train:
            raise ValueError(f"{scene.name}: all {len(held_out)} views are held out and none is left to train on")
        return train, held_out

    def _camera_source(self) -> tuple[Literal["colmap", "transforms", "sfm"], Path]:
        """What tells the cameras, and its file or folder.

        Raises:
            ValueError: what was asked for is not there.
        """
        if not self.root.is_dir():
            raise ValueError(f"photos: the root {self.root} is no folder; expected one with photographs in it")
        given_file = self.camera_path if self.camera_path and self.camera_path.suffix == ".json" else None
        given_folder = self.camera_path if self.camera_path and not given_file else None
        found = {
            "transforms": None if given_folder else find_transforms(self.root, given_file),
            "colmap": None if given_file else find_model(self.root, given_folder),
        }
        if self.cameras == "sfm" or (self.cameras == "auto" and not any(found.values()) and not self.camera_path):
            return "sfm", self.sfm_folder / "sparse"
        kind = self.cameras if self.cameras != "auto" else next((kind for kind in found if found[kind]), "colmap")
        path = found[kind]
        if path is None:
            names = {"transforms": FILES, "colmap": MODEL_FOLDERS}[kind]
            looked_for = self.camera_path or f"{', '.join(names)} in {self.root}"
            what = "transforms.json" if kind == "transforms" else "COLMAP model"
            raise ValueError(
                f"photos: no {what}: looked for {looked_for}; check root and camera_path, or set cameras to 'sfm'"
            )
        return kind, path

    def _posed_photographs(self) -> PosedPhotographs:
        kind, path = self._camera_source()
        finder = ImageFinder(self.root, self.images)
        if kind == "transforms":
            rank_zero_info(f"cameras: {path}")
            return read_transforms(path, finder)
        if kind == "colmap":
            rank_zero_info(f"cameras: the COLMAP model {path}")
            return read_colmap_model(path, finder)
        if not is_model(path):
            raise ValueError(
                f"photos: there are no cameras in {self.root} and no model in {self.sfm_folder} yet; run "
                f"python -m datamodules.prepare.structure_from_motion --root {self.root}"
            )
        rank_zero_info(f"cameras: structure from motion, {path}")
        return read_colmap_model(path, finder, is_upright=True)

    def _pictures(self, photographs: PosedPhotographs) -> Pictures:
        masks = self._mask_paths(photographs)
        alpha_is_mask = masks is None and self.masks in (None, "alpha") and all_have_alpha(photographs.paths)
        if self.masks == "alpha" and not alpha_is_mask:
            raise ValueError(f"photos: masks is 'alpha', but not every photograph of {self.root} has an alpha channel")
        downscale = chosen_downscale(photographs, self.downscale)
        pictures = read_pictures(photographs, masks, downscale, alpha_is_mask, self.background)
        if alpha_is_mask and _is_opaque(pictures):
            rank_zero_info("masks: none; the alpha channel is opaque everywhere")
            return dataclasses.replace(pictures, masks=None)
        origin = masks[0].parent if masks else "the alpha channel" if alpha_is_mask else "none"
        rank_zero_info(f"masks: {origin}")
        return pictures

    def _mask_paths(self, photographs: PosedPhotographs) -> list[Path] | None:
        if self.masks in ("none", "alpha"):
            return None
        given = Path(self.masks) if self.masks else None
        if given is not None and not given.is_absolute() and not given.is_dir():
            given = self.root / given
        named = photographs.mask_paths
        if given is None and named and all(named):
            return named
        if given is None and any(named):
            rank_zero_warn(f"masks: {photographs.source} names masks of some photographs only, or they are not there")
        return find_masks(self.root, photographs.paths, given)

    def _normalized_to_dataset(self, photographs: PosedPhotographs, pictures: Pictures) -> np.ndarray:
        """(4, 4) float64: where the unit sphere is in the frame of the cameras."""
        if self.normalization == "none":
            return np.eye(4)
        sphere = photographs.sphere
        if not isinstance(self.normalization, str):
            sphere = np.array(self.normalization, dtype=np.float64)
            if sphere.shape != (4,) or not sphere[3] > 0:
                raise ValueError(f"normalization is {self.normalization}, expected [x, y, z, radius], radius > 0")
        elif self.normalization == "given" and sphere is None:
            raise ValueError(
                f"{photographs.source} gives no sphere_center and sphere_radius, nor aabb_range; set normalization to "
                "'computed', or to [x, y, z, radius]"
            )
        if sphere is not None and self.normalization != "computed":
            return similarity_to_sphere(sphere[:3], sphere[3])
        # first, since it refuses cameras of another convention, in which masks would only seem not to fit
        matrix = normalization_from_cameras_and_points(
            photographs.camera_to_world,
            pictures.intrinsics,
            pictures.sizes.numpy(),
            _points(photographs),
            inside_out=self.inside_out,
        )
        if pictures.masks is None or self.inside_out:
            return matrix
        poses = torch.from_numpy(photographs.camera_to_world)
        tighter = normalization_from_masks(pictures.masks, pictures.sizes, torch.from_numpy(pictures.intrinsics), poses)
        return matrix if tighter is None else tighter

    def _sparse_points(self, photographs: PosedPhotographs, scene: Scene) -> SparsePoints | None:
        tracks = photographs.tracks
        if tracks is not None:
            tracks = dataclasses.replace(tracks, points=_normalized(tracks.points, scene.normalized_to_dataset.numpy()))
        elif "sparse_points" in self.reads:
            found = [find_model(self.root), self._triangulated(scene)]
            tracks = next((read_tracks(path, scene) for path in found if path is not None and path.exists()), None)
        if tracks is None:
            return None
        points = filter_points(tracks, scene)
        if len(points.points) == 0 and "sparse_points" in self.reads:
            raise ValueError(
                f"{scene.name}: none of the {len(tracks.points)} sparse points of {photographs.source} lies on the "
                "object; check the normalisation and the masks"
            )
        return points if len(points.points) else None

    def _triangulated(self, scene: Scene) -> Path:
        """The file of points that were triangulated with these very cameras."""
        cameras = scene.normalized_to_dataset @ scene.camera_to_world.double()
        content = json.dumps([scene.image_names, cameras.numpy().round(6).tolist(), self.split(scene)[0]])
        return self.sfm_folder / f"sparse_points_{hashlib.sha256(content.encode()).hexdigest()[:8]}.npz"

    def _triangulate(self, scene: Scene) -> None:
        """Triangulate the photographs as they were loaded, upright and without distortion."""
        path = self._triangulated(scene)
        if path.exists():
            return
        needs_pycolmap("triangulating sparse points (for a run without them, set --model.init_args.sparse_weight=0)")
        # held-out views must not teach through points either
        views, _ = self.split(scene)
        names = [f"{view:06d}.png" for view in views]
        with tempfile.TemporaryDirectory() as folder:
            for view, name in zip(views, names, strict=True):
                height, width = scene.size_of(view)
                Image.fromarray(scene.images[view, :height, :width].numpy()).save(Path(folder) / name)
            seen = dataclasses.replace(
                scene,
                images=scene.images[views],
                intrinsics=scene.intrinsics[views],
                camera_to_world=scene.camera_to_world[views],
                image_names=names,
            )
            tracks = triangulate(seen, Path(folder))
        entries = np.stack([np.array(views)[tracks.entry_views], tracks.view_point_index], axis=-1)
        tracks = Tracks.from_entries(tracks.points, tracks.errors, entries, len(scene.images))
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.stem}.{os.getpid()}.npz")
        save_tracks(partial, tracks, scene.image_names)
        os.replace(partial, path)


def _points(photographs: PosedPhotographs) -> np.ndarray | None:
    tracks: Tracks | None = photographs.tracks
    return photographs.points if tracks is None else tracks.points


def _normalized(points: np.ndarray, normalized_to_dataset: np.ndarray) -> np.ndarray:
    return (points - normalized_to_dataset[:3, 3]) / normalized_to_dataset[0, 0]


def _is_opaque(pictures: Pictures) -> bool:
    rows = zip(pictures.masks, pictures.sizes.tolist(), strict=True)
    return all(bool((mask[:height, :width] == 255).all()) for mask, (height, width) in rows)


def _scene(
    name: str,
    photographs: PosedPhotographs,
    pictures: Pictures,
    normalized_to_dataset: np.ndarray,
    inside_out: bool,
) -> Scene:
    poses = photographs.camera_to_world.copy()
    poses[:, :3, 3] = _normalized(poses[:, :3, 3], normalized_to_dataset)
    is_one_size = bool((pictures.sizes == pictures.sizes[:1]).all())
    names = [path.name for path in photographs.paths]
    if len(set(names)) < len(names):  # train/r_0.png and test/r_0.png
        names = ["/".join(path.parts[-2:]) for path in photographs.paths]
    return Scene(
        name=name,
        category="photos",
        images=pictures.images,
        intrinsics=torch.from_numpy(pictures.intrinsics).float(),
        camera_to_world=torch.from_numpy(poses).float(),
        normalized_to_dataset=torch.from_numpy(normalized_to_dataset),
        image_names=names,
        masks=pictures.masks,
        observation=_observation(photographs, pictures) if pictures.masks is not None and is_one_size else None,
        inside_out=inside_out,
        image_sizes=None if is_one_size else pictures.sizes,
    )


def _observation(photographs: PosedPhotographs, pictures: Pictures) -> Observation:
    world_to_camera = np.linalg.inv(photographs.camera_to_world)[:, :3]
    return Observation(masks=pictures.masks > 127, projections=torch.from_numpy(pictures.intrinsics @ world_to_camera))
