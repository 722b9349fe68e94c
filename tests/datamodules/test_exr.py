from pathlib import Path

import numpy as np
import pytest

from datamodules.exr import read_exr, write_exr


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("height", [1, 16, 37])
def test_what_is_written_is_read_back_bit_for_bit(compressed: bool, height: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    # random bytes do not compress, so some blocks are kept as they are; rows of zeros do
    noise = generator.standard_normal((height, 11)).astype(np.float32)
    noise[: height // 2] = 0
    noise[-1, :2] = np.inf, -1e10
    channels = {"V": noise, "A": np.arange(height * 11, dtype=np.float32).reshape(height, 11)}
    write_exr(tmp_path / "a.exr", channels, compressed=compressed)
    read = read_exr(tmp_path / "a.exr")
    assert read.keys() == channels.keys()
    for name, values in channels.items():
        np.testing.assert_array_equal(read[name], values)


def test_files_that_are_none_or_damaged_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.exr is missing; download or unpack"):
        read_exr(tmp_path / "gone.exr")
    path = tmp_path / "bad.exr"
    path.write_bytes(b"\x89PNG not that")
    with pytest.raises(ValueError, match=r"bad\.exr is no OpenEXR image .*the first bytes are not those"):
        read_exr(path)
    write_exr(path, {"V": np.random.default_rng(0).random((40, 20)).astype(np.float32)})
    content = path.read_bytes()
    for length in (6, 40, 330, len(content) - 7):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"bad\.exr is no OpenEXR image or a damaged one"):
            read_exr(path)


def test_a_compression_that_is_not_read_is_named(tmp_path: Path) -> None:
    write_exr(tmp_path / "a.exr", {"V": np.zeros((4, 4), np.float32)}, compressed=False)
    content = (tmp_path / "a.exr").read_bytes()
    at = content.index(b"compression\0compression\0") + len(b"compression\0compression\0") + 4
    (tmp_path / "a.exr").write_bytes(content[:at] + b"\x04" + content[at + 1 :])
    with pytest.raises(ValueError, match=r"a\.exr is compressed by PIZ, expected ZIP, ZIPS or none; save it again"):
        read_exr(tmp_path / "a.exr")


def test_blenders_half_precision_depth_is_smooth_where_the_object_is(test_data: Path) -> None:
    found = sorted((test_data / "shapenet_onet_3obj").rglob("depth/*.exr"))
    if not found:
        pytest.skip("no depth maps in the test data")
    depth = read_exr(found[0])["R"]
    covered = np.isfinite(depth)
    assert depth.shape == (256, 256)
    assert 0.1 < covered.mean() < 0.9
    # a wrong order of bytes or rows would make noise of it
    both = covered[:, 1:] & covered[:, :-1]
    steps = np.abs(depth[:, 1:][both] - depth[:, :-1][both])
    assert np.median(steps) < 0.01 * np.median(depth[covered])
