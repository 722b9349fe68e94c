import numpy as np
import pytest
import torch
import trimesh

from ops.culling import CULLINGS, Culling, cull, dilate, disk, opencv_ellipse, view_of_points
from ops.types import Observation, Shape


def element(half_widths: tuple[int, ...]) -> np.ndarray:
    reach = len(half_widths) // 2
    x = np.arange(-reach, reach + 1)
    return np.abs(x)[None] <= np.array(half_widths)[:, None]


def dilated_by_loop(mask: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    grown, reach = np.zeros_like(mask), len(kernel) // 2
    for y, x in np.argwhere(mask):
        for dy, dx in np.argwhere(kernel) - reach:
            if 0 <= y + dy < mask.shape[0] and 0 <= x + dx < mask.shape[1]:
                grown[y + dy, x + dx] = True
    return grown


def pinhole(offset: float = 0.0) -> np.ndarray:
    """Looks along z from the origin; (x, y, 1) falls on our pixel (10 x + offset, 10 y + offset)."""
    return np.array([[10.0, 0, offset, 0], [0, 10, offset, 0], [0, 0, 1, 0]])


@pytest.mark.parametrize("half_widths", [disk(0), disk(3), opencv_ellipse(9)], ids=["point", "disk", "ellipse"])
@pytest.mark.parametrize("shape", [(30, 40), (5, 40), (30, 4)])
def test_dilation_equals_a_slow_loop(half_widths: tuple[int, ...], shape: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).random(shape) > 0.97
    np.testing.assert_array_equal(dilate(mask, half_widths), dilated_by_loop(mask, element(half_widths)))


def test_an_empty_mask_stays_empty() -> None:
    assert not dilate(np.zeros((20, 30), bool), opencv_ellipse(101)).any()


@pytest.mark.parametrize("radius", [1, 5, 12, 15, 24])
def test_disk_is_all_offsets_within_the_radius(radius: int) -> None:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    np.testing.assert_array_equal(element(disk(radius)), x**2 + y**2 <= radius**2)


def test_disk_dilation_equals_skimages() -> None:
    morphology = pytest.importorskip("skimage.morphology")
    mask = np.random.default_rng(1).random((120, 160)) > 0.999
    np.testing.assert_array_equal(element(disk(12)), morphology.disk(12).astype(bool))
    np.testing.assert_array_equal(dilate(mask, disk(12)), morphology.dilation(mask, morphology.disk(12)))


def test_ellipse_is_a_little_fuller_than_the_disk() -> None:
    # r = 2: rows reach to round(2 sqrt(1 - y^2 / 4)) = 0, round(1.73) = 2, 2, 2, 0; a disk's to 0, 1, 2, 1, 0
    assert opencv_ellipse(5) == (0, 2, 2, 2, 0)
    assert disk(2) == (0, 1, 2, 1, 0)
    assert len(opencv_ellipse(101)) == 101
    assert sum(opencv_ellipse(101)) > sum(disk(50))


NEAREST = Culling(disk(0), "nearest", rounds_first=True, least_views=0, largest=None)
INNER = Culling(disk(0), "nearest", rounds_first=False, least_views=0, largest=None)
BILINEAR = Culling(disk(0), "bilinear", rounds_first=False, least_views=0, largest=None)


@pytest.mark.parametrize(
    ("x", "nearest", "inner", "bilinear"),
    # the mask is column 2 of 4 columns, whose centres are at 0.5, 1.5, 2.5, 3.5; pairs are (in image, in mask)
    [
        (2.5, (True, True), (True, True), (True, True)),
        (1.5, (True, False), (True, False), (True, False)),
        (1.6, (True, False), (True, False), (True, True)),
        (2.9, (True, True), (True, True), (True, True)),
        (3.4, (True, False), (True, False), (True, True)),
        (3.5, (True, False), (True, False), (True, False)),
        (3.6, (True, False), (False, False), (False, False)),
        (0.3, (True, False), (False, False), (False, False)),
        (4.2, (False, False), (False, False), (False, False)),
    ],
)
def test_half_pixels_of_the_lookups(x: float, nearest: tuple, inner: tuple, bilinear: tuple) -> None:
    mask = np.zeros((3, 4), bool)
    mask[:, 2] = True
    points = np.array([[x / 10, 0.15, 1.0]])
    for culling, expected in ((NEAREST, nearest), (INNER, inner), (BILINEAR, bilinear)):
        in_image, in_mask = view_of_points(points, mask, pinhole(), culling)
        assert (in_image[0], in_mask[0]) == expected, culling


def test_points_behind_the_camera_are_outside_the_image() -> None:
    in_image, in_mask = view_of_points(np.array([[-0.1, -0.1, -1]]), np.ones((3, 4), bool), pinhole(), NEAREST)
    assert not in_image[0]
    assert not in_mask[0]


def observation_of(masks: np.ndarray, offsets: list[float]) -> Observation:
    projections = torch.from_numpy(np.stack([pinhole(o) for o in offsets]))
    return Observation(masks=torch.from_numpy(masks), projections=projections)


@pytest.mark.filterwarnings("ignore:DTU's culling is defined")
def test_the_variants_differ_as_their_table_says() -> None:
    masks = np.zeros((3, 200, 300), bool)
    masks[:2, 100, 100] = True
    masks[2] = True
    # the third camera sees nothing of the left half: its image begins there
    observation = observation_of(masks, [0.0, 0.0, -100.0])
    pixels = {
        "mask": (100, 100),
        "11 off": (111, 100),
        "14 off": (114, 100),
        "20 off": (120, 100),
        "45 off": (145, 100),
    }
    pixels |= {"outside": (-50, 100), "seen once": (350, 100)}
    points = torch.tensor([[(x + 0.5) / 10, (y + 0.5) / 10, 1] for x, y in pixels.values()])
    kept = {}
    for variant, culling in CULLINGS.items():
        left = cull(Shape(points), observation, culling).vertices
        kept[variant] = {name for name, point in zip(pixels, points, strict=True) if (left == point).all(1).any()}
    everywhere = {"mask", "11 off"}
    outside = {"outside", "seen once"}
    assert kept["neus"] == everywhere | outside | {"14 off", "20 off", "45 off"}
    assert kept["neuralwarp"] == everywhere
    assert kept["geoneus"] == everywhere | {"14 off"}
    assert kept["monosdf"] == everywhere | outside
    assert kept["2dgs"] == everywhere | outside | {"14 off", "20 off"}


def two_spheres() -> Shape:
    fine, big = trimesh.creation.icosphere(3, 0.5), trimesh.creation.icosphere(1, 2.0)
    fine.apply_translation([4, 0, 0])
    mesh = trimesh.util.concatenate([fine, big])
    vertices = torch.tensor(mesh.vertices, dtype=torch.float32) + torch.tensor([10.0, 8, 10])
    return Shape(vertices, torch.tensor(mesh.faces, dtype=torch.int64))


@pytest.mark.filterwarnings("ignore:DTU's culling is defined")
def test_components_are_chosen_by_area_or_by_faces_or_not() -> None:
    observation = observation_of(np.ones((2, 200, 300), bool), [0.0, 0.0])
    shape = two_spheres()
    left = {name: len(cull(shape, observation, culling).faces) for name, culling in CULLINGS.items()}
    fine, big = 1280, 80
    assert left == {"neus": fine, "neuralwarp": big, "geoneus": fine, "monosdf": fine + big, "2dgs": fine + big}


def test_masks_of_another_size_than_the_protocols_warn() -> None:
    with pytest.warns(UserWarning, match="1200 x 1600 pixels, not 20 x 30"):
        cull(Shape(torch.ones(1, 3)), observation_of(np.ones((2, 20, 30), bool), [0.0, 0.0]), CULLINGS["neus"])
