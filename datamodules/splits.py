"""Which ShapeNet models are for training, validation and test: incompatible conventions, each by its name.

Results on one split say nothing about another: the test set of Pix2Vox shares about a fifth of its models with that of
3D-R2N2, as chance would have it, and the rest it shares with that training set.
"""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from datamodules.object_source import ObjectName

Split = dict[str, list[int]]
STAGES = ("train", "val", "test")

SYNSETS: dict[str, str] = {
    "02691156": "airplane",
    "02828884": "bench",
    "02933112": "cabinet",
    "02958343": "car",
    "03001627": "chair",
    "03211117": "display",
    "03636649": "lamp",
    "03691459": "speaker",
    "04090263": "rifle",
    "04256520": "sofa",
    "04379243": "table",
    "04401088": "phone",
    "04530566": "watercraft",
}
"""The thirteen categories of 3D-R2N2, by their WordNet numbers."""


def category_of(synset: str) -> str:
    """The category's name; a number that is none of the thirteen stays what it is."""
    return SYNSETS.get(synset, synset)


def sorted_split(objects: list[ObjectName], train_share: float, val_share: float) -> Split:
    """The first ``train_share`` of each category's sorted names is for training, the rest for test.

    The papers that split so (3D-R2N2 and IM-Net, 80 %) have no validation set. Ours is the last ``val_share`` of each
    category's training names; with 0 there is none.
    """
    split: Split = {stage: [] for stage in STAGES}
    for category in sorted({name.category for name in objects}):
        names = sorted((name.object_id, index) for index, name in enumerate(objects) if name.category == category)
        members = [index for _, index in names]
        num_train = int(len(members) * train_share)
        num_val = math.ceil(num_train * val_share)
        split["train"] += members[: num_train - num_val]
        split["val"] += members[num_train - num_val : num_train]
        split["test"] += members[num_train:]
    return split


def split_of_file(path: Path, objects: list[ObjectName]) -> tuple[str, Split]:
    """A split from a json file, in one of three forms.

    - Pix2Vox' ``ShapeNet.json``: a list with an entry a category, ``{"taxonomy_id": ..., "train": [...], ...}``
    - Mesh R-CNN's: ``{"train": {synset: {model: [views]}}, ...}``, or lists of models in place of the inner dicts;
      the views are not used
    - ``{"train": ["<synset or category>/<model>", ...], "val": [...], "test": [...]}``

    Returns:
        Its name, that of the file (``pix2vox`` for the first form), and the positions.

    Raises:
        ValueError: the file is missing or has another form, a model is in two stages, or none of them is there.
    """
    if not path.is_file():
        raise ValueError(f"split: there is no file {path}; give r2n2, onet, imnet or a json file")
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"split {path} is no json file ({error})") from error
    try:
        named = {stage: list(_models(content, stage)) for stage in STAGES}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"split {path}: expected Pix2Vox' list of categories, or a dict of train, val and test that holds synset "
            f"to models or names 'synset/model'; found a {type(content).__name__} ({error!r})"
        ) from error
    return "pix2vox" if isinstance(content, list) else path.stem, positions_of(named, objects, str(path))


def _models(content: Any, stage: str) -> Iterable[tuple[str, str]]:
    # (category, model) pairs of one stage
    if isinstance(content, list):
        return [(category_of(entry["taxonomy_id"]), model) for entry in content for model in entry[stage]]
    if "train" not in content and "test" not in content:
        raise KeyError("train")
    part = content.get(stage, [])
    if isinstance(part, dict):
        return [(category_of(synset), model) for synset, models in part.items() for model in models]
    pairs = [name.split("/") for name in part]
    return [(category_of(synset), model) for synset, model in pairs]


def positions_of(named: dict[str, list[tuple[str, str]]], objects: list[ObjectName], where: str) -> Split:
    """Positions of (category, model) names among the objects that are there; what is not is counted aloud.

    Raises:
        ValueError: a name is in two stages, or no name is there.
    """
    index_of = {(name.category, name.object_id): index for index, name in enumerate(objects)}
    seen: dict[tuple[str, str], str] = {}
    for stage, names in named.items():
        for name in names:
            if seen.setdefault(name, stage) != stage:
                raise ValueError(f"split {where}: {'/'.join(name)} is in both {seen[name]} and {stage}")
    present = {category for category, _ in index_of}
    missing = [name for name in seen if name[0] in present and name not in index_of]
    split = {stage: [index_of[name] for name in names if name in index_of] for stage, names in named.items()}
    if not any(split.values()):
        raise ValueError(f"split {where}: none of its {len(seen)} models is there; check root and categories")
    if missing:
        rank_zero_warn(
            f"split {where}: {len(missing)} of its models in categories that are here are missing, "
            f"{'/'.join(missing[0])} for one; scores are those of the others"
        )
    return split


def listed_split(read: Callable[[str, str], list[str] | None], objects: list[ObjectName], where: str) -> Split:
    """Occupancy Networks' split: a list of models for each category and stage.

    Args:
        read: the models of a (category, stage), ``None`` where there is no list.
        objects: all there are.
        where: for errors.

    Raises:
        ValueError: a list is missing.
    """
    named: dict[str, list[tuple[str, str]]] = {stage: [] for stage in STAGES}
    for category in sorted({name.category for name in objects}):
        for stage in STAGES:
            models = read(category, stage)
            if models is None:
                raise ValueError(
                    f"{where}: {category} has no {stage}.lst; download the preprocessed data of Occupancy Networks "
                    "again, or set split to r2n2 or a json file"
                )
            named[stage] += [(category, model) for model in models]
    return positions_of(named, objects, where)
