from pathlib import Path

import pytest

from datamodules import mask_files
from datamodules.mask_files import find_masks


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was said to the user."""
    messages: list[str] = []
    monkeypatch.setattr(mask_files, "rank_zero_info", messages.append)
    return messages


def touch(folder: Path, names: list[str]) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [folder / name for name in names]


@pytest.mark.parametrize(
    ("photographs", "masks"),
    [
        (["a.jpg", "b.jpg"], ["a.png", "b.png"]),
        (["a.jpg", "b.jpg"], ["a.jpg.png", "b.jpg.png"]),
        (["r_0.5.png", "r_0.png"], ["r_0.5.png", "r_0.png"]),
        (["a.jpg", "b.jpg"], ["a_mask.png", "b_mask.png"]),
        (["a.jpg", "b.jpg"], ["mask-a.png", "mask-b.png"]),
        (["left/1.jpg", "right/1.jpg"], ["left/1.png", "right/1.png"]),
        (["b.jpg"], ["a.png", "b.png", "c.png"]),
    ],
    ids=["stem", "suffix behind suffix", "dots", "behind", "before", "subfolders", "more masks"],
)
def test_masks_are_matched_by_name(tmp_path: Path, said: list[str], photographs: list[str], masks: list[str]) -> None:
    images = touch(tmp_path / "images", photographs)
    touch(tmp_path / "masks", masks)
    found = find_masks(tmp_path, images)
    expected = [tmp_path / "masks" / name for name in (masks if len(masks) == len(photographs) else ["b.png"])]
    assert found == expected
    assert said == []


def test_numbers_match_where_names_do_not(tmp_path: Path, said: list[str]) -> None:
    images = touch(tmp_path / "image", [f"{k:06d}.png" for k in (0, 2, 11)])
    touch(tmp_path / "mask", [f"{k:03d}.png" for k in range(12)])
    assert [path.name for path in find_masks(tmp_path, images)] == ["000.png", "002.png", "011.png"]
    assert said == ["masks: 000.png masks 000000.png, and the others likewise by their numbers"]


def test_order_is_the_last_resort_needs_equal_counts_and_is_said(tmp_path: Path, said: list[str]) -> None:
    images = touch(tmp_path / "images", ["a.jpg", "b.jpg", "c.jpg"])
    touch(tmp_path / "masks", ["left.png", "middle.png", "right.png"])
    # of the photographs one has no camera; its mask is counted all the same
    found = find_masks(tmp_path, [images[0], images[2]])
    assert [path.name for path in found] == ["left.png", "right.png"]
    assert "taken in order: left.png masks a.jpg, right.png masks c.jpg" in said[0]
    (tmp_path / "masks/right.png").unlink()
    with pytest.raises(ValueError, match=r"3 photographs but 2 masks in .*masks, and 3 .* \(a.jpg, b.jpg, c.jpg\)"):
        find_masks(tmp_path, images)


def test_a_folder_of_masks_is_looked_for_or_given(tmp_path: Path, said: list[str]) -> None:
    images = touch(tmp_path / "images", ["a.jpg"])
    assert find_masks(tmp_path, images) is None
    touch(tmp_path / "matting", ["a.png"])
    assert find_masks(tmp_path, images) == [tmp_path / "matting/a.png"]
    touch(tmp_path / "masks", ["a.png"])
    assert find_masks(tmp_path, images) == [tmp_path / "masks/a.png"]
    assert find_masks(tmp_path, images, tmp_path / "matting") == [tmp_path / "matting/a.png"]
    with pytest.raises(ValueError, match=r"there is no folder of masks .*nowhere"):
        find_masks(tmp_path, images, tmp_path / "nowhere")
    (tmp_path / "masks/a.png").unlink()
    with pytest.raises(ValueError, match="masks holds no image; remove it, or set masks to 'none'"):
        find_masks(tmp_path, images)
