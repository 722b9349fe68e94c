from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.image_folder import ImageFolder, cut_out, framed


def picture(width: int = 90, height: int = 60, mode: str = "RGBA") -> Image.Image:
    """A red rectangle of 30x20 pixels with its corner at (50, 10), on nothing or on plain green."""
    image = Image.new("RGBA", (width, height), (0, 255, 0, 0))
    image.paste((255, 0, 0, 255), (50, 10, 80, 30))
    if mode == "RGB":
        plain = Image.new("RGBA", image.size, (0, 255, 0, 255))
        image = Image.alpha_composite(plain, image).convert("RGB")
    return image


def batches(root: Path, **settings: object) -> list[dict]:
    data = ImageFolder(str(root), **{"reads": {"images", "voxels"}, "picture_size": 40, "fill": 0.75, **settings})
    data.setup()
    return list(data.predict_dataloader())


def check_framed(batch: dict, tolerance: float = 0.0) -> None:
    mask, image = batch["masks"][0, 0], batch["images"][0, 0]
    rows, columns = (mask > 0.5).nonzero().T
    # 30x20 pixels become 30x20 of 40x40, in the middle
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (5, 34, 10, 29)
    inside = (mask == 1).nonzero().T
    assert torch.allclose(image[0][tuple(inside)], torch.ones(inside.shape[1]), atol=0.03 + tolerance)
    assert image[1][tuple(inside)].max() < 0.03 + tolerance
    assert torch.allclose(image[:, mask == 0], torch.ones(3, 1), atol=1e-6)  # white, whatever was there


def test_transparency_cuts_out_and_the_object_is_framed(tmp_path: Path) -> None:
    picture().save(tmp_path / "my chair.png")
    (batch,) = batches(tmp_path)
    check_framed(batch)
    assert batch["object_id"] == ["my_chair"]
    assert torch.equal(batch["normalized_to_dataset"], torch.eye(4)[None])


def test_a_mask_beside_the_pictures_cuts_out(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    noise = np.random.default_rng(0).integers(256, size=(60, 90, 3), dtype=np.uint8)
    noise[10:30, 50:80] = [255, 0, 0]
    Image.fromarray(noise).save(tmp_path / "a.png")
    picture().getchannel("A").save(tmp_path / "masks/a.png")
    (batch,) = batches(tmp_path)
    check_framed(batch)


def test_a_plain_background_is_told_from_the_object(tmp_path: Path) -> None:
    picture(mode="RGB").save(tmp_path / "a.jpg", quality=97, subsampling=0)
    (batch,) = batches(tmp_path)
    check_framed(batch, tolerance=0.1)


def test_an_object_at_the_edge_is_centred_as_well(tmp_path: Path) -> None:
    picture().crop((50, 10, 90, 60)).save(tmp_path / "a.png")
    (batch,) = batches(tmp_path)
    check_framed(batch)


def test_a_camera_held_upright_turns_its_picture(tmp_path: Path) -> None:
    turned = picture().rotate(90, expand=True)
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned.save(tmp_path / "a.png", exif=exif)
    (batch,) = batches(tmp_path)
    check_framed(batch)


def test_every_picture_is_an_object_in_order_and_subfolders_are_objects_of_several(tmp_path: Path) -> None:
    for name in ("b2", "b10", "b1"):
        picture().save(tmp_path / f"{name}.png")
    shown = [name for batch in batches(tmp_path, batch_size=2) for name in batch["object_id"]]
    assert shown == ["b1", "b2", "b10"]
    several = tmp_path / "several"
    for name in ("lamp", "sofa"):
        (several / name).mkdir(parents=True)
        for view in range(3):
            picture().save(several / name / f"{view}.png")
    (batch,) = batches(several)
    assert batch["object_id"] == ["lamp", "sofa"]
    assert batch["images"].shape == (2, 3, 3, 40, 40)
    assert batches(several, eval_views=[1])[0]["images"].shape == (2, 1, 3, 40, 40)


def test_images_come_in_the_size_that_the_method_learnt(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    (batch,) = batches(tmp_path, picture_size=137, crop=127, image_size=64, background=240)
    assert batch["images"].shape == (1, 1, 3, 64, 64)
    assert torch.allclose(batch["images"][0, 0, :, 0, 0], torch.full((3,), 240 / 255))


def test_colours_of_what_was_cut_away_do_not_bleed_in() -> None:
    image = picture(300, 200)
    image = image.resize((900, 600), Image.Resampling.NEAREST)
    out = framed(image, 0.7, 32).astype(int)
    assert out[..., 1][out[..., 3] > 10].max() < 10  # green was only where nothing is


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "no PNG or JPEG there"),
        (
            lambda root: Image.fromarray(np.random.default_rng(0).integers(256, size=(9, 9, 3), dtype=np.uint8)).save(
                root / "a.png"
            ),
            r"a.png has no transparency, no mask in .*masks and no plain background; cut the object out",
        ),
        (lambda root: Image.new("RGBA", (9, 9)).save(root / "a.png"), r"a.png: nothing is marked as object"),
        (lambda root: Image.new("RGB", (9, 9)).save(root / "a.png"), r"a.png: nothing is marked as object"),
        (lambda root: (root / "a.png").write_bytes(b"no"), r"a.png cannot be read as an image"),
        (
            lambda root: (
                picture().save(root / "a.png"),
                (root / "masks").mkdir(),
                Image.new("L", (5, 6)).save(root / "masks/a.png"),
            ),
            r"masks/a.png has 5x6 pixels, its picture 90x60",
        ),
        (
            lambda root: (
                (root / "b").mkdir(),
                picture().save(root / "a.png"),
                picture().save(root / "b/0.png"),
                picture().save(root / "b/1.png"),
            ),
            "a has 1 pictures and b has 2; predict them from separate folders",
        ),
    ],
    ids=["empty", "no mask", "transparent", "plain", "broken", "mask size", "counts"],
)
def test_what_cannot_be_framed_is_refused_by_name(tmp_path: Path, make, message: str) -> None:
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        batches(tmp_path)


def test_settings_that_cannot_be_are_refused(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="IMNet reads voxels and no images, so that it cannot predict from pictures"):
        batches(tmp_path, reads={"voxels"}, reader="IMNet")
    with pytest.raises(ValueError, match=r"fill is 1\.5"):
        batches(tmp_path, fill=1.5)
    with pytest.raises(ValueError, match=r"eval_views \[2\]: objects .* have 1 pictures"):
        batches(tmp_path, eval_views=[2])
    with pytest.raises(ValueError, match="none is no folder"):
        batches(tmp_path / "none")
    with pytest.raises(ValueError, match="no truth to train on"):
        ImageFolder(str(tmp_path)).train_dataloader()


def test_real_renderings_are_framed_as_they_are(test_data: Path) -> None:
    path = test_data / "shapenet_r2n2_3obj/kache/rendering/00.png"
    alpha = np.asarray(cut_out(path).getchannel("A")) > 127
    rows, columns = np.nonzero(alpha)
    fill = (max(np.ptp(rows), np.ptp(columns)) + 1) / 137
    again = framed(cut_out(path), fill, 137)[..., 3] > 127
    # the same picture but for where it stood
    moved = np.roll(alpha, (68 - (rows.min() + rows.max()) // 2, 68 - (columns.min() + columns.max()) // 2), (0, 1))
    assert (moved & again).sum() / (moved | again).sum() > 0.9


def test_categories_that_the_method_was_trained_on_do_not_matter(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    (batch,) = batches(tmp_path, categories=["chair"])
    assert batch["object_id"] == ["a"]
