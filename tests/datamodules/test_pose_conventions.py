import re

import numpy as np
import pytest
from numpy.random import Generator

from datamodules.pose_conventions import OPENGL_TO_OPENCV, convention_that_fits, read_as, score_of_poses
from tests.datamodules.test_normalization import CENTER, cameras, on_sphere, poses_towards, surface


@pytest.fixture
def rng() -> Generator:
    return np.random.default_rng(1)


def as_given(poses: np.ndarray, convention: str) -> np.ndarray:
    """Right poses as a file in that convention has them."""
    given = poses @ OPENGL_TO_OPENCV if "opengl" in convention else poses
    return np.linalg.inv(given) if "inverse" in convention else given


@pytest.mark.parametrize("convention", ["opengl", "inverse", "opengl inverse"])
@pytest.mark.parametrize("known", ["points", "center", "nothing"])
def test_the_convention_of_misread_poses_is_named(rng: Generator, convention: str, known: str) -> None:
    positions = CENTER + 3 * on_sphere(rng, 20)
    poses = poses_towards(positions, CENTER + 0.1 * rng.normal(size=(20, 3)))
    points = surface(rng) if known == "points" else None
    center = CENTER if known == "center" else None
    given = as_given(poses, convention)
    np.testing.assert_allclose(read_as(given, convention), poses, atol=1e-12)
    hint = convention_that_fits(*cameras(given), points, center)
    says = {
        "opengl": "camera to world with OpenGL's axes .*multiply each from the right",
        "inverse": r"world to camera: invert each \(",
        "opengl inverse": "world to camera with OpenGL's axes .*invert each and multiply",
    }
    assert re.search(says[convention], hint), hint
    # read rightly, there is nothing to say
    assert convention_that_fits(*cameras(poses), points, center) == ""


def test_the_score_is_the_share_of_what_pictures_show(rng: Generator) -> None:
    poses = poses_towards(CENTER + 3 * on_sphere(rng, 10), np.tile(CENTER, (10, 1)))
    assert score_of_poses(*cameras(poses), surface(rng)) == 1
    assert score_of_poses(*cameras(poses), None, CENTER) == 1
    assert score_of_poses(*cameras(poses), None) == pytest.approx(1)
    poses[:5] = poses[:5] @ OPENGL_TO_OPENCV
    assert score_of_poses(*cameras(poses), surface(rng)) == 0.5
    assert score_of_poses(*cameras(poses), None, CENTER) == 0.5


def test_nothing_is_advised_where_no_convention_helps(rng: Generator) -> None:
    poses = poses_towards(CENTER + 3 * on_sphere(rng, 10), np.tile(CENTER, (10, 1)))
    assert convention_that_fits(*cameras(poses), CENTER + 1000 + rng.normal(size=(50, 3))) == ""
