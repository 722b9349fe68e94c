import numpy as np
import pytest

from datamodules.colmap_model import lens_of
from datamodules.undistortion import Lens, pinhole_window, undistorted

INTRINSICS = np.array([[60.0, 0, 41], [0, 58, 29], [0, 0, 1]])
LENSES = {
    "radial": Lens((-0.2, 0.05)),
    "opencv": Lens((0.1, -0.03), (0.01, -0.02)),
    "rational": Lens((0.1, 0.02, 0.01), (0.001, 0.002), (0.05, 0.01, 0.02)),
    "fisheye": Lens((0.03, -0.01, 0.002, 0.001), is_fisheye=True),
}
POINTS = np.random.default_rng(0).uniform(-0.6, 0.6, (50, 2))


@pytest.mark.parametrize("lens", LENSES.values(), ids=LENSES)
def test_straightening_undoes_bending(lens: Lens) -> None:
    assert np.abs(lens.straighten(lens.bend(POINTS)) - POINTS).max() < 1e-8
    assert np.abs(lens.bend(POINTS) - POINTS).max() > 1e-3
    assert np.allclose(lens.bend(np.zeros((1, 2))), 0)


@pytest.mark.parametrize(
    ("model", "extra"),
    [
        ("SIMPLE_PINHOLE", []),
        ("SIMPLE_RADIAL", [-0.1]),
        ("RADIAL", [-0.1, 0.03]),
        ("OPENCV", [0.1, -0.05, 0.01, -0.02]),
        ("FULL_OPENCV", [0.1, -0.05, 0.01, -0.02, 0.02, 0.1, 0.03, 0.01]),
        ("SIMPLE_FISHEYE", []),
        ("SIMPLE_RADIAL_FISHEYE", [0.04]),
        ("RADIAL_FISHEYE", [0.04, -0.01]),
        ("OPENCV_FISHEYE", [0.04, -0.01, 0.002, 0.001]),
    ],
)
def test_lenses_project_as_colmap_does(tmp_path, model: str, extra: list[float]) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    camera = pycolmap.Camera.create_from_model_name(1, model, 60, 82, 58)
    params = camera.params
    for index, value in zip(camera.extra_params_idxs(), extra, strict=True):
        params[index] = value
    camera.params = params
    expected = camera.img_from_cam(np.hstack([POINTS, np.ones((len(POINTS), 1))]))
    bent = lens_of(camera, tmp_path).bend(POINTS)
    assert np.abs(bent * 60 + [41, 29] - expected).max() < 1e-6


def test_a_lens_that_is_not_known_says_what_to_do(tmp_path) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    with pytest.raises(ValueError, match="FOV cannot be undistorted here; run COLMAP's image_undistorter"):
        lens_of(pycolmap.Camera.create_from_model_name(1, "FOV", 60, 82, 58), tmp_path)


@pytest.mark.parametrize("lens", LENSES.values(), ids=LENSES)
def test_an_undistorted_photograph_shows_what_a_pinhole_would(lens: Lens) -> None:
    height, width = 58, 82
    # each pixel of the photograph shows the direction (x, y) that it looks in, as a colour
    rows, columns = np.mgrid[:height, :width] + 0.5
    bent = np.stack([(columns - 41) / 60, (rows - 29) / 58], axis=-1)
    colors = np.concatenate([128 + 120 * lens.straighten(bent), np.full((height, width, 1), 7)], axis=-1)
    photograph = np.round(colors).astype(np.uint8)
    pinhole, new_height, new_width = pinhole_window(lens, INTRINSICS, height, width)
    result = undistorted(photograph, lens, INTRINSICS, pinhole, new_height, new_width)
    assert result.shape == (new_height, new_width, 3)
    assert min(new_height, new_width) > 40
    rows, columns = np.mgrid[:new_height, :new_width] + 0.5
    expected = 128 + 120 * np.stack(
        [(columns - pinhole[0, 2]) / pinhole[0, 0], (rows - pinhole[1, 2]) / pinhole[1, 1]], axis=-1
    )
    # half a level of rounding twice, and half a pixel (a level and a bit) where the border is repeated
    difference = np.abs(result[..., :2] - expected)
    assert difference[1:-1, 1:-1].max() < 1.6
    assert difference.max() < 4
    assert (result[..., 2] == 7).all()


def test_no_distortion_leaves_every_pixel_where_it_is() -> None:
    assert Lens((0.0, 0.0), (0.0, 0.0)).is_pinhole
    assert not LENSES["opencv"].is_pinhole
    assert not Lens(is_fisheye=True).is_pinhole
    photograph = np.random.default_rng(0).integers(0, 256, (58, 82, 3), dtype=np.uint8)
    pinhole, height, width = pinhole_window(Lens(), INTRINSICS, 58, 82)
    assert (height, width) == (58, 82)
    assert np.allclose(pinhole, INTRINSICS)
    assert np.array_equal(undistorted(photograph, Lens(), INTRINSICS, pinhole, height, width), photograph)


def test_coefficients_that_fold_the_picture_are_refused() -> None:
    with pytest.raises(ValueError, match="folds the picture over itself; check the coefficients"):
        pinhole_window(Lens((-3.0,)), INTRINSICS, 58, 82)
