from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.photographs import has_alpha, list_photographs, photograph_size, read_images, read_photograph


def test_sixteen_bits_are_rounded_down_to_eight_and_not_cut_to_white(tmp_path: Path) -> None:
    levels = np.arange(0, 65536, 683, dtype=np.uint16).reshape(8, 12)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    pixels = read_photograph(tmp_path / "deep.png")
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.repeat((levels // 256)[..., None], 3, axis=2))
    assert np.array_equal(read_images([tmp_path / "deep.png"])[0][0], pixels)


def test_grey_palette_and_cmyk_become_colour_and_alpha_is_kept(tmp_path: Path) -> None:
    grey = Image.fromarray(np.arange(96, dtype=np.uint8).reshape(8, 12))
    for name, image in (("l", grey), ("p", grey.convert("P")), ("rgb", grey.convert("RGB"))):
        image.save(tmp_path / f"{name}.png")
        assert read_photograph(tmp_path / f"{name}.png")[..., 1].tolist() == np.asarray(grey).tolist()
        assert not has_alpha(tmp_path / f"{name}.png")
    grey.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    assert np.abs(read_photograph(tmp_path / "cmyk.jpg")[..., 0].astype(int) - np.asarray(grey)).max() < 12
    grey.putalpha(77)
    grey.save(tmp_path / "la.png")
    assert read_photograph(tmp_path / "la.png")[0, 0].tolist() == [0, 0, 0, 77]
    assert has_alpha(tmp_path / "la.png")


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (-1, -1)), (6, (0, -1)), (8, (-1, 0))])
def test_exif_turns_a_photograph_upright_only_where_it_is_asked_for(
    tmp_path: Path, orientation: int, corner: tuple[int, int]
) -> None:
    pixels = np.zeros((20, 30, 3), dtype=np.uint8)
    pixels[:4, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert photograph_size(tmp_path / "turned.png") == ((20, 30), orientation)
    assert read_photograph(tmp_path / "turned.png").shape == (20, 30, 3)
    upright = read_photograph(tmp_path / "turned.png", is_upright=True)
    assert upright.shape == ((30, 20, 3) if orientation > 4 else (20, 30, 3))
    assert upright[corner].tolist() == [255] * 3


def test_a_truncated_or_foreign_file_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    for name in ("cut.png", "cut.jpg"):
        Image.fromarray(noise).save(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=rf"{name} cannot be read as an image .*; copy or download it again"):
            read_photograph(tmp_path / name)
    (tmp_path / "text.png").write_text("not found")
    with pytest.raises(ValueError, match=r"text.png cannot be read as an image"):
        photograph_size(tmp_path / "text.png")
    Image.fromarray(noise[..., 0].astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match=r"float.tif holds floating-point numbers"):
        read_photograph(tmp_path / "float.tif")


def test_photographs_are_listed_by_number_and_hidden_files_are_not(tmp_path: Path) -> None:
    for name in ("10.png", "2.JPG", "._2.JPG", "notes.txt", "1.webp"):
        (tmp_path / name).touch()
    assert [path.name for path in list_photographs(tmp_path)] == ["1.webp", "2.JPG", "10.png"]
