import numpy as np
import pytest
import torch

from datamodules.object_source import Views
from datamodules.views import ViewTransform
from ops.cameras import look_at, project

SIZE = 40
MARK = torch.tensor([[0.21, 0.13, 0.05]])


def marked(num_views: int = 3, channels: int = 4) -> Views:
    """Pictures that are transparent but for a red blob of 5x5 pixels, where the point MARK appears."""
    intrinsics = torch.tensor([[50.0, 0, 20], [0, 50.0, 20], [0, 0, 1]])
    pixels, poses = np.zeros((num_views, SIZE, SIZE, channels), np.uint8), []
    for view in range(num_views):
        position = torch.tensor([1.7, 0.4, 0.3 * view])
        poses.append(look_at(position, torch.zeros(3), torch.tensor([0, 1.0, 0])))
        (u, v), _ = (part[0] for part in project(MARK, intrinsics, poses[-1]))
        column, row = int(u), int(v)
        pixels[view, row - 2 : row + 3, column - 2 : column + 3] = [200, 0, 0, 255][:channels]
    return Views(pixels, np.tile(intrinsics.numpy(), (num_views, 1, 1)), torch.stack(poses).numpy())


@pytest.mark.parametrize(
    "transform",
    [
        ViewTransform(),
        ViewTransform(crop=33),
        ViewTransform(image_size=64, crop=36),
        ViewTransform(image_size=32),
        ViewTransform(crop=33, augment=frozenset({"crop"})),
        ViewTransform(crop=33, image_size=50, augment=frozenset({"crop", "flip", "background"})),
        ViewTransform(image_size=48, augment=frozenset({"zoom", "flip"})),
    ],
)
def test_a_point_projects_to_where_the_image_shows_it(transform: ViewTransform) -> None:
    for seed in range(5):
        out = transform(marked(), "toy", np.random.default_rng(seed))
        for image, mask, intrinsics, pose in zip(
            out["images"], out["masks"], out["intrinsics"], out["camera_to_world"], strict=True
        ):
            (u, v), _ = (part[0] for part in project(MARK, intrinsics, pose))
            assert mask[int(v), int(u)] > 0.9
            assert image[0, int(v), int(u)] > image[1, int(v), int(u)] + 0.5


def test_evaluation_takes_the_centre_over_the_plain_background() -> None:
    random = frozenset({"crop", "flip", "background"})
    transform = ViewTransform(crop=30, background=240, augment=random)
    out = transform(marked(), "toy")
    pixels = marked().pixels[:, 5:35, 5:35].astype(np.float32)
    over = 240 + pixels[..., 3:] / 255 * (pixels[..., :3] - 240)
    assert torch.allclose(out["images"], torch.from_numpy(over / 255).permute(0, 3, 1, 2), atol=1e-6)
    assert torch.equal(out["masks"], torch.from_numpy(pixels[..., 3] / 255))


def test_half_covered_pixels_blend_with_the_background() -> None:
    pixels = np.full((1, 2, 2, 4), [100, 50, 0, 51], np.uint8)
    out = ViewTransform(background=200)(Views(pixels), "toy")
    expected = torch.tensor([0.8 * 200 + 0.2 * 100, 0.8 * 200 + 0.2 * 50, 0.8 * 200]) / 255
    assert torch.allclose(out["images"][0, :, 0, 0], expected, atol=1e-6)
    assert set(out) == {"images", "masks"}


def test_a_random_crop_reaches_ten_places_of_137_pixels_and_a_flip_is_even() -> None:
    picture = np.zeros((1, 137, 137, 3), np.uint8)
    picture[0, :, :, 0], picture[0, :, :, 1] = np.arange(137)[None], np.arange(137)[:, None]
    transform = ViewTransform(crop=127, augment=frozenset({"crop", "flip"}))
    lefts, flips = [], 0
    for seed in range(400):
        image = (transform(Views(picture), "toy", np.random.default_rng(seed))["images"][0] * 255).round()
        lefts.append(int(image[0].min()))
        flips += int(image[0, 0, 0] > image[0, 0, -1])
    assert set(lefts) == set(range(10))
    assert 160 < flips < 240


def test_random_backgrounds_stay_in_their_range_and_differ_between_pictures() -> None:
    transform = ViewTransform(augment=frozenset({"background"}), background_range=(225, 255))
    empty = Views(np.zeros((20, 2, 2, 4), np.uint8))
    colors = transform(empty, "toy", np.random.default_rng(0))["images"][:, :, 0, 0] * 255
    assert colors.min() >= 225
    assert colors.max() <= 255.01
    assert len(colors.round().unique(dim=0)) > 15


def test_resizing_keeps_the_mean() -> None:
    picture = np.random.default_rng(0).integers(256, size=(1, 137, 137, 3), dtype=np.uint8)
    for size in (64, 224):
        image = ViewTransform(image_size=size)(Views(picture), "toy")["images"][0]
        assert image.shape == (3, size, size)
        assert torch.allclose(image.mean((1, 2)), torch.from_numpy(picture[0].mean((0, 1)) / 255).float(), atol=3e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augment": frozenset({"crop"})}, "a random crop needs its size; set crop"),
        ({"augment": frozenset({"zoom"})}, "set image_size"),
        ({"augment": frozenset({"zoom"}), "crop": 30, "image_size": 30}, "use one of them"),
        ({"augment": frozenset({"blur"})}, "'blur'.* none of crop, flip, background, zoom"),
        ({"background": 256}, "background is 256"),
        ({"background_range": (250, 225)}, "background_range 250 to 225"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViewTransform(**settings)


def test_what_the_pictures_cannot_give_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="chair 7: a crop of 41 pixels from a picture of 40x40"):
        ViewTransform(crop=41)(marked(), "chair 7")
    transform = ViewTransform(augment=frozenset({"background"}))
    with pytest.raises(ValueError, match=r"chair 7: its pictures have no alpha channel.*out of augment"):
        transform(marked(channels=3), "chair 7", np.random.default_rng(0))
    assert "masks" not in transform(marked(channels=3), "chair 7")
