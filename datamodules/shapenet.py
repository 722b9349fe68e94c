"""ShapeNet as four groups distribute it: 3D-R2N2, Occupancy Networks, IM-Net, and packed by ourselves.

``python -m datamodules.prepare.shapenet`` packs any of the first three into few large files, which are read faster.
"""

from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from datamodules.object_source import PHOTOGRAPH_KEYS, ObjectSource
from datamodules.objects import QUERY_KEYS, SURFACE_KEYS, ObjectDataModule
from datamodules.packed import INDEX_FILE, PackedObjects
from datamodules.shapenet_hdf5 import IMNetFiles
from datamodules.shapenet_trees import SYNSET, ONetTree, R2N2Tree
from datamodules.splits import category_of, sorted_split, split_of_file

SLOW_OBJECT = 32_000_000
"""Bytes that are unpacked for one object, some 50 ms, from which on a user is told to pack."""
Layout = Literal["r2n2", "onet", "imnet", "packed"]


class ShapeNet(ObjectDataModule):
    """ShapeNet, or any collection in one of the layouts it is distributed in.

    Args:
        root: Folder with ShapeNetRendering/ and ShapeNetVox32/ (3D-R2N2), with <synset>/<model>/ (Occupancy Networks),
            with .hdf5 files or one of them (IM-Net), or a packed folder.
        layout: Which of these it is: r2n2, onet, imnet, packed; null looks.
        split: Which models are for what: r2n2 (sorted names, 80 % and 20 %), onet (its lists), imnet (its files), or a
            json file such as Pix2Vox' ShapeNet.json; null is the layout's own.
        val_share: Share of the training names that is for validation, where the split has no validation set (r2n2,
            imnet).
        categories: Names such as chair, or numbers such as 03001627; null is all.
        **kwargs: How batches are drawn, see ``ObjectDataModule``.
    """

    provides = PHOTOGRAPH_KEYS | SURFACE_KEYS | QUERY_KEYS | {"voxels", "normalized_to_dataset"}
    remedies: ClassVar[dict[str, str]] = {
        "masks": "the renderings of 3D-R2N2 have them, the JPEGs of Occupancy Networks have not",
        "surface_points": "Occupancy Networks' tree has them, or make them from meshes with datamodules.prepare.meshes",
        "query_points": "Occupancy Networks' tree and IM-Net's files have them, or make them from meshes with "
        "datamodules.prepare.meshes",
    }

    def __init__(
        self,
        root: str,
        layout: Layout | None = None,
        split: str | None = None,
        val_share: float = 0.05,
        categories: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            categories=None if categories is None else [category_of(name) for name in categories], **kwargs
        )
        self.root, self.layout, self.split, self.val_share = Path(root), layout, split, val_share
        if not 0 <= val_share < 1:
            raise ValueError(f"val_share is {val_share}, expected at least 0 and less than 1")

    def load_source(self) -> ObjectSource:
        """Open whichever layout is there; say where reading it would take longer than training."""
        source = open_shapenet(self.root, self.layout, self.val_share)
        if isinstance(source, IMNetFiles):
            arrays = {"images": "pixels", "voxels": "voxels"}
            if self.query_resolution in source.query_sets:
                arrays["query_points"] = f"points_{self.query_resolution}"
            size = source.unpacked_bytes([arrays[key] for key in self.reads & source.keys & arrays.keys()])
            if size > SLOW_OBJECT:
                rank_zero_warn(
                    f"{self.root}: to read one object {size / 1e6:.0f} MB are unpacked, as the file keeps many objects "
                    "in a block; pack it once, python -m datamodules.prepare.shapenet --root ROOT --output PACKED, and "
                    "set root to PACKED and layout to packed"
                )
        return source

    def load_split(self, source: ObjectSource) -> tuple[str, dict[str, list[int]]]:
        """The split that was asked for, or the first that the files know."""
        known = source.splits()
        if self.split is None and known:
            return next(iter(known.items()))
        if self.split is not None and self.split.endswith(".json"):
            return split_of_file(Path(self.split), source.objects)
        if self.split == "r2n2":
            return "r2n2", sorted_split(source.objects, 0.8, self.val_share)
        if self.split not in known:
            raise ValueError(
                f"split {self.split!r}: {source.name} knows {', '.join(known) or 'none'}; give one of them, r2n2, or a "
                "json file (Pix2Vox' is datasets/ShapeNet.json of its repository)"
            )
        return self.split, known[self.split]


def open_shapenet(root: Path, layout: Layout | None = None, val_share: float = 0.0) -> ObjectSource:
    """Open a collection in the layout that is named, or else is found.

    Raises:
        ValueError: nothing is there, or it is in no known layout.
    """
    if not root.exists():
        raise ValueError(
            f"ShapeNet: there is nothing at {root}; set root to the folder of ShapeNetRendering/ and ShapeNetVox32/ "
            "(cvgl.stanford.edu/data2), of Occupancy Networks' ShapeNet/ (its scripts/download_data.sh), of IM-Net's "
            ".hdf5 files, or to a packed one"
        )
    layout = layout or find_layout(root)
    if layout == "packed":
        return PackedObjects(root)
    if layout == "imnet":
        return IMNetFiles(root, val_share)
    if layout == "onet":
        return ONetTree(root, val_share)
    if layout != "r2n2":
        raise ValueError(f"layout is {layout!r}, expected one of {', '.join(get_args(Layout))}")
    tree = R2N2Tree(root, val_share)
    if tree.num_left_out:
        rank_zero_warn(f"{root}: {tree.num_left_out} models have only renderings or only voxels and are left out")
    return tree


def find_layout(root: Path) -> Layout:
    """Which layout a path holds, by the files that only that one has.

    Raises:
        ValueError: none, or several.
    """
    found: list[Layout] = []
    if root.is_file():
        found += ["imnet"] * (root.suffix == ".hdf5")
    else:
        names = {path.name for path in root.iterdir()}
        found += ["packed"] * (INDEX_FILE in names)
        found += ["r2n2"] * bool(names & {"ShapeNetRendering", "ShapeNetVox32"})
        found += ["onet"] * any(SYNSET.fullmatch(name) for name in names)
        found += ["imnet"] * any(name.endswith(".hdf5") for name in names)
    if len(found) == 1:
        return found[0]
    what = f"it looks like {' and '.join(found)}; set layout" if found else "nothing known is there"
    raise ValueError(
        f"ShapeNet: {root}: {what}; expected ShapeNetRendering/ and ShapeNetVox32/ (r2n2), folders such as 03001627/ "
        f"(onet), .hdf5 files (imnet), or {INDEX_FILE} (packed)"
    )
