"""A folder of the user's own pictures of objects, for ``predict``: cut out and framed as ShapeNet's renderings are."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch.utils.data import DataLoader

from datamodules import choy
from datamodules.object_source import ObjectName, ObjectSource
from datamodules.objects import ObjectDataModule
from datamodules.photographs import list_photographs

MASK_FOLDERS = ("masks", "mask")
# what JPEG makes of a plain background
PLAIN_TOLERANCE = 12


class ImageFolder(ObjectDataModule):
    """Pictures of objects: files in a folder, each its own object, or subfolders, each one object seen several times.

    What is object and what is background must be known: from transparency, from a mask of the same name in ``masks/``
    beside the pictures, or because the background is one plain colour. The object is then centred on a square, as large
    as in the renderings that methods learn from.

    Args:
        root: The folder.
        fill: Share of the square's edge that the longer side of the object takes; in Choy's renderings 0.55 to 0.9.
        picture_size: Edge of that square in pixels, before ``crop`` and ``image_size``.
        eval_views: Which pictures of each object to show, counted from 0; null is all.
        **kwargs: How batches are made, see ``ObjectDataModule``; give those that the method was trained with.
    """

    provides = frozenset({"images", "masks", "normalized_to_dataset"})

    def __init__(
        self,
        root: str,
        fill: float = 0.7,
        picture_size: int = choy.IMAGE_SIZE,
        eval_views: list[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(eval_views=eval_views, **kwargs)
        self.categories = None  # they come along with the settings of the training and mean nothing here
        if not 0 < fill <= 1 or picture_size < 1:
            raise ValueError(
                f"fill is {fill} and picture_size {picture_size}, expected a share up to 1 and a size of at least 1"
            )
        self.root, self.fill, self.picture_size, self.shown_views = Path(root), fill, picture_size, eval_views

    def load_source(self) -> ObjectSource:
        """List the pictures."""
        source = PictureSource(self.root, self.fill, self.picture_size)
        self.eval_views = list(range(source.num_views)) if self.shown_views is None else self.shown_views
        return source

    def load_split(self, source: ObjectSource) -> tuple[str, dict[str, list[int]]]:
        """Everything is for prediction."""
        return "own pictures", {"test": list(range(len(source.objects)))}

    def check_reads(self, available: frozenset[str], name: str) -> None:
        # what else a method reads to learn, it does not need to predict
        if "images" not in self.reads:
            raise ValueError(
                f"{self.reader} reads {', '.join(sorted(self.reads)) or 'nothing'} and no images, so that it cannot "
                "predict from pictures; take a method that reads images"
            )

    def _check_settings(self, source: ObjectSource) -> None:
        wrong = [view for view in self.eval_views if not 0 <= view < source.num_views]
        if wrong or not self.eval_views:
            raise ValueError(f"eval_views {self.eval_views}: objects of {source.name} have {source.num_views} pictures")

    def train_dataloader(self) -> DataLoader:
        """Nothing to train on.

        Raises:
            ValueError: always.
        """
        raise ValueError("a folder of pictures has no truth to train on; use it with predict")


class PictureSource(ObjectSource):
    """The pictures of a folder, framed.

    Raises:
        ValueError: the folder is none or has no pictures, or objects have different numbers of them.
    """

    keys = frozenset({"images", "masks"})

    def __init__(self, root: Path, fill: float, size: int) -> None:
        self.name, self.fill, self.size = str(root), fill, size
        if not root.is_dir():
            raise ValueError(f"{root} is no folder; set root to the folder of your pictures")
        folders = [path for path in sorted(root.iterdir()) if path.is_dir() and path.name not in MASK_FOLDERS]
        groups = {path.stem: [path] for path in list_photographs(root)}
        groups |= {folder.name: pictures for folder in folders if (pictures := list_photographs(folder))}
        if not groups:
            raise ValueError(f"{root}: no PNG or JPEG there, nor in its subfolders")
        counts = {name: len(pictures) for name, pictures in groups.items()}
        if len(set(counts.values())) > 1:
            few, many = min(counts, key=counts.get), max(counts, key=counts.get)
            raise ValueError(
                f"{root}: {few} has {counts[few]} pictures and {many} has {counts[many]}; predict them from separate "
                "folders, every object of one has as many"
            )
        self._groups, self.num_views = list(groups.values()), next(iter(counts.values()))
        self.objects = [ObjectName(re.sub(r"\s+", "_", name), "picture") for name in groups]

    def splits(self) -> dict[str, dict[str, list[int]]]:
        """None."""
        return {}

    def pixels(self, index: int, views: Sequence[int]) -> np.ndarray:
        """See ``ObjectSource``."""
        return np.stack([framed(cut_out(self._groups[index][view]), self.fill, self.size) for view in views])


def cut_out(path: Path) -> Image.Image:
    """A picture with alpha: its own, that of its mask, or where it differs from a plain background.

    Raises:
        ValueError: it cannot be read, its mask has another size or is empty, or there is no way to tell the object.
    """
    picture = _opened(path)
    masks = [
        found
        for folder in MASK_FOLDERS
        for suffix in (".png", ".jpg", ".jpeg")
        if (found := path.parent / folder / f"{path.stem}{suffix}").is_file()
    ]
    has_alpha = "A" in picture.getbands() or "transparency" in picture.info
    rgba = picture.convert("RGBA")
    if masks:
        mask = _opened(masks[0]).convert("L")
        if mask.size != rgba.size:
            raise ValueError(
                f"{masks[0]} has {mask.width}x{mask.height} pixels, its picture {rgba.width}x{rgba.height}; make them "
                "equal"
            )
        rgba.putalpha(mask)
    elif not has_alpha or rgba.getchannel("A").getextrema()[0] == 255:
        rgba.putalpha(Image.fromarray(_differs_from_border(np.asarray(rgba)[..., :3], path)))
    if rgba.getchannel("A").getextrema()[1] < 128:
        raise ValueError(f"{masks[0] if masks else path}: nothing is marked as object; check its mask or transparency")
    return rgba


def framed(picture: Image.Image, fill: float, size: int) -> np.ndarray:
    """(size, size, 4) uint8: the object centred, its longer side ``fill`` of the edge, transparent around it."""
    alpha = np.asarray(picture.getchannel("A")) > 127
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    edge = round(max(bottom - top, right - left) / fill)
    canvas = Image.new("RGBA", (edge, edge))
    canvas.paste(picture, ((edge - int(left + right)) // 2, (edge - int(top + bottom)) // 2))
    # Pillow resizes colours weighted by alpha, so no background bleeds in
    return np.asarray(canvas.resize((size, size), Image.Resampling.BICUBIC))


def _opened(path: Path) -> Image.Image:
    try:
        with Image.open(path) as file:
            # phones write how the camera was held instead of turning the picture
            return ImageOps.exif_transpose(file).copy()
    # Pillow's word for a broken chunk is SyntaxError
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}); copy it again") from error


def _differs_from_border(colors: np.ndarray, path: Path) -> np.ndarray:
    border = np.concatenate([colors[0], colors[-1], colors[:, 0], colors[:, -1]]).astype(int)
    plain = np.median(border, axis=0)
    if abs(border - plain).max() > PLAIN_TOLERANCE:
        raise ValueError(
            f"{path} has no transparency, no mask in {path.parent / MASK_FOLDERS[0]} and no plain background; cut the "
            f"object out (PNG with transparency), or put a mask there, white on the object, named {path.stem}.png"
        )
    return ((abs(colors - plain).max(-1) > PLAIN_TOLERANCE) * 255).astype(np.uint8)
