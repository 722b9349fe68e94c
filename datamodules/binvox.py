"""The binvox format (Patrick Min): a small text header, then runs of a value, the y coordinate fastest, then z, then x.

What the header calls ``translate`` does not place the grid in the files of 3D-R2N2, where it belongs to the model's
original position: the grid is centred. ``scale`` is the length of the whole grid's edge in the model's own frame.
"""

from pathlib import Path

import numpy as np


def read_binvox(path: Path) -> tuple[np.ndarray, float]:
    """Read a grid.

    Returns:
        ``voxels`` (R, R, R) bool indexed [x, y, z], and ``scale``, the length of the grid's edge.

    Raises:
        ValueError: no such file, no binvox file, or a broken one.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing; unpack the archive it came from again (R2N2: ShapeNetVox32.tgz)")
    content = path.read_bytes()
    resolution, scale, start = _header(content, path)
    runs = np.frombuffer(content, np.uint8, offset=start)
    counts = runs[1::2].astype(np.int64)
    if len(runs) % 2 or counts.sum() != resolution**3:
        raise ValueError(
            f"{path}: {counts.sum()} voxels in the file, {resolution**3} expected; it is cut short or damaged, unpack "
            "it again"
        )
    if runs[::2].max() > 1:
        raise ValueError(f"{path}: a voxel has the value {runs[::2].max()}, expected 0 or 1; unpack it again")
    grid = np.repeat(runs[::2].astype(bool), counts).reshape([resolution] * 3)
    return np.ascontiguousarray(grid.transpose(0, 2, 1)), scale


def write_binvox(path: Path, voxels: np.ndarray, scale: float = 1.0) -> None:
    """Write a grid, (R, R, R) bool indexed [x, y, z], centred; ``scale`` is the length of its edge."""
    values = voxels.transpose(0, 2, 1).astype(np.uint8).reshape(-1)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(values)) + 1, [len(values)]])
    runs = []
    for value, length in zip(values[starts[:-1]].tolist(), np.diff(starts).tolist(), strict=True):
        # a run's length is one byte
        runs += [value, 255] * (length // 255) + ([value, length % 255] if length % 255 else [])
    dims = " ".join(str(len(voxels)) for _ in range(3))
    corner = " ".join([f"{-scale / 2:.6g}"] * 3)
    header = f"#binvox 1\ndim {dims}\ntranslate {corner}\nscale {scale:.9g}\ndata\n"
    path.write_bytes(header.encode() + bytes(runs))


def _header(content: bytes, path: Path) -> tuple[int, float, int]:
    head, mark, _ = content.partition(b"\ndata\n")
    lines = head.decode("ascii", "replace").splitlines() or [""]
    fields = {line.split()[0]: line.split()[1:] for line in lines[1:] if line.strip()}
    dims, scale = fields.get("dim", []), fields.get("scale", ["1"])
    if not lines[0].startswith("#binvox") or not mark or len(dims) != 3 or not all(d.isdigit() for d in dims):
        raise ValueError(
            f"{path} is no binvox file: it begins {lines[0][:40]!r}, expected '#binvox 1' and a 'dim' line"
        )
    if len(set(dims)) != 1 or int(dims[0]) < 1:
        raise ValueError(f"{path}: a grid of {'x'.join(dims)}, expected one with three equal edges")
    try:
        length = float(scale[0])
    except (ValueError, IndexError):
        length = float("nan")
    if not length > 0:
        raise ValueError(f"{path}: the header's scale is {' '.join(scale)!r}, expected a positive number")
    return int(dims[0]), length, len(head) + len(mark)
