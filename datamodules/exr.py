"""OpenEXR images of one part and whole scanlines, as Blender writes depth: uncompressed, ZIP or ZIPS.

The format is documented at openexr.com, "Technical Introduction" and "OpenEXR File Layout".
"""

import struct
import zlib
from pathlib import Path

import numpy as np

MAGIC = 20000630
# number in the file -> rows a block holds; other compressions (PIZ, DWA, ...) are not read
BLOCK_ROWS = {0: 1, 2: 1, 3: 16}
COMPRESSIONS = ("none", "RLE", "ZIPS", "ZIP", "PIZ", "PXR24", "B44", "B44A", "DWAA", "DWAB")
DTYPES = {0: np.dtype("<u4"), 1: np.dtype("<f2"), 2: np.dtype("<f4")}
TILED, MULTI_PART_OR_DEEP = 0x200, 0x1800


def read_exr(path: Path) -> dict[str, np.ndarray]:
    """The channels of an image.

    Returns:
        Their names and (H, W) float32 values; infinities stay what they are.

    Raises:
        ValueError: the file is missing, damaged, or of a kind that is not read.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing; download or unpack the dataset again")
    content = path.read_bytes()
    try:
        header, start = _header(content)
        return _pixels(content, header, start, path)
    except (struct.error, zlib.error, IndexError, KeyError) as error:
        raise ValueError(f"{path} is no OpenEXR image or a damaged one ({error!r}); download it again") from error


def _header(content: bytes) -> tuple[dict[str, bytes], int]:
    magic, version = struct.unpack_from("<II", content)
    if magic != MAGIC:
        raise KeyError("the first bytes are not those of OpenEXR")
    if version & (TILED | MULTI_PART_OR_DEEP):
        raise KeyError("tiles, several parts and deep pixels are not read, only scanlines")
    attributes, position = {}, 8
    while content[position]:
        name, position = _string(content, position)
        _, position = _string(content, position)
        (size,) = struct.unpack_from("<i", content, position)
        attributes[name] = content[position + 4 : position + 4 + size]
        position += 4 + size
    return attributes, position + 1


def _string(content: bytes, position: int) -> tuple[str, int]:
    end = content.find(b"\0", position)
    if end < 0:
        raise IndexError("the header does not end")
    return content[position:end].decode("latin-1"), end + 1


def _pixels(content: bytes, header: dict[str, bytes], start: int, path: Path) -> dict[str, np.ndarray]:
    left, top, right, bottom = struct.unpack("<4i", header["dataWindow"])
    width, height = right - left + 1, bottom - top + 1
    compression = header["compression"][0]
    if compression not in BLOCK_ROWS:
        name = COMPRESSIONS[compression] if compression < len(COMPRESSIONS) else str(compression)
        raise ValueError(f"{path} is compressed by {name}, expected ZIP, ZIPS or none; save it again with one of them")
    channels = _channels(header["channels"])
    out = {name: np.empty((height, width), np.float32) for name, _ in channels}
    row_bytes = width * sum(dtype.itemsize for _, dtype in channels)
    num_blocks = -(-height // BLOCK_ROWS[compression])
    for offset in struct.unpack_from(f"<{num_blocks}Q", content, start):
        row, size = struct.unpack_from("<ii", content, offset)
        num_rows = min(BLOCK_ROWS[compression], bottom + 1 - row)
        data = content[offset + 8 : offset + 8 + size]
        # a block that compression would have made larger is kept as it is
        if compression and size < num_rows * row_bytes:
            data = _unshuffled(zlib.decompress(data))
        if len(data) != num_rows * row_bytes or row < top:
            raise IndexError(f"the block of row {row} has {len(data)} bytes, expected {num_rows * row_bytes}")
        position = 0
        for y in range(row - top, row - top + num_rows):
            for name, dtype in channels:
                out[name][y] = np.frombuffer(data, dtype, width, position)
                position += width * dtype.itemsize
    return out


def _channels(content: bytes) -> list[tuple[str, np.dtype]]:
    channels, position = [], 0
    while content[position]:
        name, position = _string(content, position)
        kind, _, x_sampling, y_sampling = struct.unpack_from("<iIii", content, position)
        if (x_sampling, y_sampling) != (1, 1):
            raise KeyError(f"channel {name} has not every pixel")
        channels.append((name, DTYPES[kind]))
        position += 16
    return channels


def _unshuffled(data: bytes) -> bytes:
    # ZIP stores differences of neighbouring bytes (plus 128), of which the even ones come first
    coded = np.frombuffer(data, np.uint8).astype(np.int64)
    coded[1:] -= 128
    flat = coded.cumsum().astype(np.uint8)
    half = (len(flat) + 1) // 2
    out = np.empty_like(flat)
    out[0::2], out[1::2] = flat[:half], flat[half:]
    return out.tobytes()


def write_exr(path: Path, channels: dict[str, np.ndarray], *, compressed: bool = True) -> None:
    """Write (H, W) channels as 32-bit floats, by ZIP or uncompressed."""
    names = sorted(channels)
    height, width = channels[names[0]].shape
    kinds = b"".join(name.encode() + b"\0" + struct.pack("<iIii", 2, 0, 1, 1) for name in names) + b"\0"
    window, number = struct.pack("<4i", 0, 0, width - 1, height - 1), 3 if compressed else 0
    attributes = [
        ("channels", "chlist", kinds), ("compression", "compression", bytes([number])),
        ("dataWindow", "box2i", window), ("displayWindow", "box2i", window), ("lineOrder", "lineOrder", b"\0"),
        ("pixelAspectRatio", "float", struct.pack("<f", 1)), ("screenWindowCenter", "v2f", struct.pack("<2f", 0, 0)),
        ("screenWindowWidth", "float", struct.pack("<f", 1)),
    ]  # fmt: skip
    header = struct.pack("<II", MAGIC, 2)
    for name, kind, value in attributes:
        header += name.encode() + b"\0" + kind.encode() + b"\0" + struct.pack("<i", len(value)) + value
    header += b"\0"
    blocks = []
    for row in range(0, height, BLOCK_ROWS[number]):
        rows = range(row, min(row + BLOCK_ROWS[number], height))
        data = b"".join(channels[name][y].astype("<f4").tobytes() for y in rows for name in names)
        packed = zlib.compress(_shuffled(data)) if compressed else data
        data = min(data, packed, key=len)  # as it is where that is no longer, which is how a reader tells
        blocks.append(struct.pack("<ii", row, len(data)) + data)
    starts = np.cumsum([len(header) + 8 * len(blocks), *map(len, blocks)])[:-1]
    path.write_bytes(header + struct.pack(f"<{len(blocks)}Q", *starts.tolist()) + b"".join(blocks))


def _shuffled(data: bytes) -> bytes:
    flat = np.frombuffer(data, np.uint8)
    flat = np.concatenate([flat[0::2], flat[1::2]]).astype(np.int64)
    flat[1:] = np.diff(flat) + 128
    return flat.astype(np.uint8).tobytes()
