import numpy as np
import pytest

from ops.furniture import CATEGORIES, make_solid
from ops.solid_kernels import ELLIPSOID, FRUSTUM


@pytest.mark.parametrize("category", CATEGORIES)
def test_objects_are_centred_unit_sized_and_differ(category: str) -> None:
    solids = [make_solid(category, [0, number]) for number in range(20)]
    for solid in solids:
        low, high = solid.bounds()
        assert np.allclose(low, -high)
        assert (high - low).max() == pytest.approx(1)
    grids = np.stack([solid.voxels(32) for solid in solids])
    assert all((grids[i] != grids[j]).any() for i in range(20) for j in range(i))


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_seed_makes_the_same_object_again(category: str) -> None:
    one, again, other = (make_solid(category, [3, seed]) for seed in (5, 5, 6))
    assert np.array_equal(one.sizes, again.sizes)
    assert np.array_equal(one.colors, again.colors)
    assert not np.array_equal(one.colors, other.colors)


@pytest.mark.parametrize("category", CATEGORIES)
def test_no_part_is_thinner_than_a_cell_of_a_grid_of_32(category: str) -> None:
    for number in range(50):
        solid = make_solid(category, [1, number])
        for kind, size in zip(solid.kinds, solid.sizes, strict=True):
            thickness = 2 * (size.min() if kind != FRUSTUM else min(size[:2].max(), size[2]))
            # a knob's ellipsoid may be small: it only decorates
            assert thickness > (0.045 if kind != ELLIPSOID else 0.03), (number, size)


@pytest.mark.parametrize("category", CATEGORIES)
def test_no_two_faces_coincide(category: str) -> None:
    # where two faces shared an area, samples there would have a normal that leads into the other part
    for number in range(10):
        solid = make_solid(category, [2, number])
        points, normals = solid.sample_surface(2000, np.random.default_rng(0))
        assert not solid.contains(points + 1e-7 * normals).any()
        assert solid.contains(points - 1e-7 * normals).all()


def test_furniture_stands_upright() -> None:
    chair = make_solid("chair", [0, 0]).voxels(32)
    # the back rises at -x, so the front is +x
    high = np.argwhere(chair[:, 24:])[:, 0].mean()
    assert high < 14
    lamp = make_solid("lamp", [0, 0]).voxels(32)
    assert lamp[:, 16].sum() < 0.5 * min(lamp[:, 1].sum(), lamp[:, 27].sum())


def test_an_unknown_category_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"no category 'piano' .*; there are bench, cabinet"):
        make_solid("piano", [0])
