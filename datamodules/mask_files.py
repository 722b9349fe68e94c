"""Which file masks which photograph: people name masks in many ways, and a wrong pair is worse than none."""

import re
from collections import Counter
from pathlib import Path

from pytorch_lightning.utilities.rank_zero import rank_zero_info

from datamodules.photographs import has_alpha, list_photographs

MASK_FOLDERS = ("masks", "mask", "matting")


def find_masks(root: Path, images: list[Path], given: Path | None = None) -> list[Path] | None:
    """The mask of every photograph, or ``None`` where the scene has no folder of masks.

    Names are tried in this order, and one way must do for all: the photograph's own name with any suffix, below the
    same subfolder or not; the whole name with a suffix behind it (``x.jpg.png``); the name with ``mask`` or ``alpha``
    before or behind it; the number in it (``000.png`` masks ``000000.png``); and where there are as many masks as
    photographs beside these ones, their order.

    Args:
        root: the scene's folder.
        images: V photographs, some of those in their folder or all.
        given: folder of the masks, if the user said so.

    Raises:
        ValueError: a photograph has no mask, or it cannot be told which.
    """
    if given is not None and not given.is_dir():
        raise ValueError(f"photos: there is no folder of masks {given}; check masks, or leave it out")
    folder = given or next((root / name for name in MASK_FOLDERS if (root / name).is_dir()), None)
    if folder is None:
        return None
    masks = [path for place in (folder, *_subfolders(folder)) for path in list_photographs(place)]
    if not masks:
        raise ValueError(f"photos: the folder of masks {folder} holds no image; remove it, or set masks to 'none'")
    by_name = _by_name(images, masks)
    if by_name is not None:
        return by_name
    by_number = _by_number(images, masks)
    if by_number is not None:
        rank_zero_info(f"masks: {_named(by_number[0], images[0])}, and the others likewise by their numbers")
        return by_number
    beside = list_photographs(images[0].parent)
    for photographs in (images, beside):
        if len(masks) == len(photographs) and set(images) <= set(photographs):
            pairs = dict(zip(photographs, masks, strict=True))
            rank_zero_info(
                f"masks: the names in {folder} are not those of the photographs; as there are as many, they are "
                f"taken in order: {_named(pairs[images[0]], images[0])}, {_named(pairs[images[-1]], images[-1])}"
            )
            return [pairs[image] for image in images]
    unmatched = [image.name for image in images if image.stem not in {mask.stem for mask in masks}]
    raise ValueError(
        f"photos: {len(images)} photographs but {len(masks)} masks in {folder}, and {len(unmatched)} photographs have "
        f"none of their name ({', '.join(unmatched[:3])}); give each one a mask of its name, or set masks to 'none'"
    )


def all_have_alpha(images: list[Path]) -> bool:
    """Whether every photograph has an alpha channel; it is said where only some have."""
    count = sum(has_alpha(path) for path in images)
    if 0 < count < len(images):
        rank_zero_info(f"masks: {count} of {len(images)} photographs have an alpha channel; not all, so none is used")
    return count == len(images)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_dir())


def _by_name(images: list[Path], masks: list[Path]) -> list[Path] | None:
    keys = (
        lambda path: "/".join([*path.parts[-2:-1], path.stem]),  # cam1/0001 for a photograph and its mask alike
        lambda path: path.stem,
        lambda path: Path(path.stem).stem if Path(path.stem).suffix else path.stem,
        lambda path: re.sub(r"^(mask|alpha)[_-]?|[_-]?(mask|alpha)$", "", path.stem, flags=re.IGNORECASE),
    )
    for key in keys:
        found: dict[str, Path] = {}
        twice = Counter(map(key, masks))
        for mask in masks:
            found.setdefault(key(mask), mask)
        # x.jpg.png is reduced to x, but a photograph r_0.5.png must not lose its .5
        wanted = [key(image) if key is keys[0] or key is keys[3] else image.stem for image in images]
        if all(twice[name] == 1 for name in wanted) and len(set(wanted)) == len(wanted):
            return [found[name] for name in wanted]
    return None


def _by_number(images: list[Path], masks: list[Path]) -> list[Path] | None:
    image_numbers, mask_numbers = ([_number(path) for path in paths] for paths in (images, masks))
    if None in image_numbers or None in mask_numbers:
        return None
    if len(set(image_numbers)) < len(images) or len(set(mask_numbers)) < len(masks):
        return None
    by_number = dict(zip(mask_numbers, masks, strict=True))
    return [by_number[number] for number in image_numbers] if set(image_numbers) <= set(mask_numbers) else None


def _number(path: Path) -> int | None:
    # one number only: of 2024_0001 nobody knows which is meant
    numbers = re.findall(r"\d+", path.stem)
    return int(numbers[0]) if len(numbers) == 1 else None


def _named(mask: Path, image: Path) -> str:
    return f"{mask.name} masks {image.name}"
