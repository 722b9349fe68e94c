"""Pack a tree of small files into few large ones.

``python -m datamodules.prepare.shapenet --root ShapeNet --output packed`` reads any layout that ``ShapeNet`` reads, and
``--data.root packed`` reads what it writes, with the same samples bit for bit: no million of files to open, points that
are drawn without reading the rest, and one copy in memory for all workers of a machine.
"""

import argparse
import time
from pathlib import Path
from typing import get_args

from datamodules.packed import pack
from datamodules.shapenet import Layout, open_shapenet
from datamodules.splits import split_of_file


def pack_shapenet(
    root: Path,
    output: Path,
    *,
    layout: Layout | None = None,
    splits: list[Path] | None = None,
    val_share: float = 0.05,
    images: str = "files",
    progress: bool = False,
) -> None:
    """Pack a collection with every split that is known of it.

    Args:
        root: what to pack.
        output: folder to make.
        layout: of the root; found where not given.
        splits: json files, kept under their names, before the splits that the layout knows.
        val_share: of the training names, for validation, in splits that have none.
        images: ``files`` or ``pixels``, see ``pack``.
        progress: print a line now and then.

    Raises:
        ValueError: something is missing or damaged, by name.
    """
    source = open_shapenet(root, layout, val_share)
    named = dict(split_of_file(path, source.objects) for path in splits or [])
    pack(source, output, images=images, splits=named | source.splits(), progress=progress)


def main() -> None:
    """Pack a tree of small files into few large ones, which are read faster."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--root", required=True, type=Path, help="as for datamodules.shapenet.ShapeNet")
    parser.add_argument("--output", required=True, type=Path, help="folder to make")
    parser.add_argument("--layout", choices=get_args(Layout)[:3], help="found where not given")
    parser.add_argument("--split", type=Path, nargs="*", default=[], help="json files of splits to keep with it")
    parser.add_argument("--val_share", type=float, default=0.05, help="of training names, where a split has no val")
    parser.add_argument("--images", choices=["files", "pixels"], default="files", help="as they are, or decoded")
    arguments = parser.parse_args()
    start = time.monotonic()
    pack_shapenet(
        arguments.root,
        arguments.output,
        layout=arguments.layout,
        splits=arguments.split,
        val_share=arguments.val_share,
        images=arguments.images,
        progress=True,
    )
    size = sum(path.stat().st_size for path in arguments.output.iterdir())
    print(f"wrote {size / 2**20:.0f} MiB into {arguments.output} in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
