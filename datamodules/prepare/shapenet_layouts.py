"""Write objects as ShapeNet is distributed: in 3D-R2N2's, Occupancy Networks' and IM-Net's layouts.

``python -m datamodules.prepare.shapenet_layouts --layout onet --output DIR`` writes the procedural objects, so that
whatever reads those layouts can be tried without a download.
"""

import argparse
import io
import json
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from datamodules import choy
from datamodules.binvox import write_binvox
from datamodules.packed import decoded
from datamodules.splits import STAGES, SYNSETS
from datamodules.synthetic_objects import ProceduralObjects
from ops.furniture import CATEGORIES

# procedural solids have no WordNet number; the readers take any that looks like one
_SYNSET_OF = {name: synset for synset, name in SYNSETS.items()} | {"solid": "00000000"}


def write_r2n2(objects: ProceduralObjects, root: Path) -> None:
    """Write ``ShapeNetRendering/`` and ``ShapeNetVox32/``; the frame of the cameras has boxes with diagonal 1."""
    for index, name in enumerate(objects.objects):
        synset = _SYNSET_OF[name.category]
        rendering = root / "ShapeNetRendering" / synset / name.object_id / "rendering"
        grid = root / "ShapeNetVox32" / synset / name.object_id / "model.binvox"
        for folder in (rendering, grid.parent):
            folder.mkdir(parents=True)
        for view in range(objects.num_views):
            (rendering / f"{view:02d}.png").write_bytes(objects.encoded_view(index, view))
        (rendering / "renderings.txt").write_text("".join(f"{view:02d}.png\n" for view in range(objects.num_views)))
        choy.write_metadata(rendering / "rendering_metadata.txt", objects.choy_views(index))
        write_binvox(grid, objects.voxels(index, 32), objects.scale(index))


def write_onet(objects: ProceduralObjects, root: Path) -> None:
    """Write the preprocessed tree with its lists; pictures are on white and JPEGs, so not exactly those rendered."""
    stages = objects.splits()["synthetic"]
    metadata = {}
    for category in sorted({name.category for name in objects.objects}):
        synset = _SYNSET_OF[category]
        metadata[synset] = {"id": synset, "name": category}
        (root / synset).mkdir(parents=True)
        for stage in STAGES:
            members = [objects.objects[index] for index in stages[stage]]
            names = [name.object_id for name in members if name.category == category]
            (root / synset / f"{stage}.lst").write_text("\n".join(names))
    (root / "metadata.yaml").write_text(json.dumps(metadata, indent=4))
    for index, name in enumerate(objects.objects):
        _write_onet_model(objects, index, root / _SYNSET_OF[name.category] / name.object_id)


def _write_onet_model(objects: ProceduralObjects, index: int, folder: Path) -> None:
    pictures = folder / "img_choy2016"
    pictures.mkdir(parents=True)
    scale, location, views = objects.scale(index), np.zeros(3), range(objects.num_views)
    intrinsics, poses = objects.cameras(index, views)
    cameras = {}
    for view in views:
        pixels = decoded(objects.encoded_view(index, view), objects.name).astype(np.float32)
        alpha = pixels[..., 3:] / 255
        on_white = (pixels[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)
        Image.fromarray(on_white).save(pictures / f"{view:03d}.jpg", quality=95, subsampling=0)
        # from the frame of the renderer, where the object is `scale` large
        rotation = poses[view, :3, :3].astype(np.float64).T
        translation = -rotation @ poses[view, :3, 3].astype(np.float64) * scale
        cameras[f"world_mat_{view}"] = np.concatenate([rotation, translation[:, None]], axis=1)
        cameras[f"camera_mat_{view}"] = intrinsics[view].astype(np.float64)
    np.savez(pictures / "cameras.npz", **cameras)
    frame = {"loc": location, "scale": np.float64(scale)}
    points, normals = objects.surface(index, slice(None))
    np.savez(folder / "pointcloud.npz", points=points.astype(np.float16), normals=normals.astype(np.float16), **frame)
    points, occupancy = objects.queries(index, None, slice(None))
    np.savez(folder / "points.npz", points=points, occupancies=np.packbits(occupancy), **frame)
    write_binvox(folder / "model.binvox", objects.voxels(index, 32), scale)


def write_imnet(
    objects: ProceduralObjects, root: Path, flavour: Literal["im-net", "implicit-decoder"] = "im-net"
) -> None:
    """Write ``all_vox256_img_{train,test}.hdf5`` with their lists of names.

    The older layout counts coordinates in grids of 16, 32 and 64, which can only say in which cell a point is.

    Args:
        objects: what to write; validation objects are written with those for training.
        root: folder to write into.
        flavour: which of the two releases to write like.

    Raises:
        ModuleNotFoundError: h5py is not installed.
    """
    import h5py

    root.mkdir(parents=True, exist_ok=True)
    stages = objects.splits()["synthetic"]
    for stage, members in {"train": sorted(stages["train"] + stages["val"]), "test": stages["test"]}.items():
        arrays: dict[str, list[np.ndarray]] = {}
        for index in members:
            for key, array in _imnet_arrays(objects, index, flavour).items():
                arrays.setdefault(key, []).append(array)
        path = root / f"all_vox256_img_{stage}.hdf5"
        with h5py.File(path, "w") as file:
            for key, rows in arrays.items():
                file.create_dataset(key, data=np.stack(rows), compression="gzip", compression_opts=9)
        names = [objects.objects[index] for index in members]
        lines = [f"{_SYNSET_OF[name.category]}/{name.object_id}\n" for name in names]
        path.with_suffix(".txt").write_text("".join(lines))


def _imnet_arrays(objects: ProceduralObjects, index: int, flavour: str) -> dict[str, np.ndarray]:
    grid = objects.voxels(index, 64)
    arrays = {"voxels": grid[..., None].astype(np.uint8)}
    views = range(objects.num_views)
    pictures = [Image.open(io.BytesIO(objects.encoded_view(index, view))) for view in views]
    white = [Image.new("RGBA", picture.size, "white") for picture in pictures]
    arrays["pixels"] = np.stack(
        [np.asarray(Image.alpha_composite(*pair).convert("L")) for pair in zip(white, pictures, strict=True)]
    )
    for resolution in (16, 32, 64):
        points, occupancy = objects.queries(index, resolution, slice(None))
        edge = 256 if flavour == "im-net" else resolution
        cells = np.floor((points.astype(np.float64) + 0.5) * edge).astype(np.uint8)
        if flavour == "implicit-decoder":
            # there the value is the cell's
            occupancy = objects.voxels(index, resolution)[tuple(cells.T)]
        arrays[f"points_{resolution}"] = cells
        arrays[f"values_{resolution}"] = occupancy[:, None].astype(np.uint8)
    return arrays


def main() -> None:
    """Write procedural objects in a layout that ShapeNet is distributed in."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--layout", choices=["r2n2", "onet", "im-net", "implicit-decoder"], required=True)
    parser.add_argument("--objects_per_category", type=int, default=10)
    parser.add_argument("--categories", nargs="+", choices=CATEGORIES, default=list(CATEGORIES))
    parser.add_argument("--pictures", type=int, default=24, help="of each object")
    parser.add_argument("--num_points", type=int, default=100_000, help="of each kind and object")
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    arguments = parser.parse_args()
    objects = ProceduralObjects(
        arguments.categories,
        arguments.objects_per_category,
        arguments.pictures,
        num_surface_points=arguments.num_points,
        num_query_points=arguments.num_points,
    )
    if arguments.layout == "r2n2":
        write_r2n2(objects, arguments.output)
    elif arguments.layout == "onet":
        write_onet(objects, arguments.output)
    else:
        write_imnet(objects, arguments.output, arguments.layout)
    print(f"wrote {len(objects.objects)} objects into {arguments.output}")


if __name__ == "__main__":
    main()
