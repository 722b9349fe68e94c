import math
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules import choy
from ops.cameras import look_at, project


def test_cameras_are_proper_look_at_the_origin_and_keep_up_up() -> None:
    views = choy.draw_views(50, np.random.default_rng(0))
    poses = torch.from_numpy(choy.camera_to_world(views, scale=0.8))
    for pose, (azimuth, elevation, ratio) in zip(poses, views, strict=True):
        position = pose[:3, 3]
        assert position.norm().item() == pytest.approx(ratio * 1.75 / 0.8)
        assert math.degrees(math.asin(position[1] / position.norm())) == pytest.approx(elevation)
        assert math.degrees(math.atan2(position[2], position[0])) % 360 == pytest.approx(azimuth)
        up = torch.tensor([0, 1.0, 0], dtype=torch.float64)
        assert torch.allclose(pose, look_at(position, torch.zeros(3, dtype=torch.float64), up))


def test_an_object_seen_from_its_own_size_appears_the_same_at_every_scale() -> None:
    views, intrinsics = np.array([[40.0, 27.0, 0.7]]), torch.from_numpy(choy.intrinsics())
    point = torch.tensor([[0.3, -0.2, 0.5]], dtype=torch.float64)
    pixels = [
        project(scale * point, intrinsics, torch.from_numpy(choy.camera_to_world(views, edge))[0])[0]
        for scale, edge in ((1.0, 0.8), (0.8, 1.0))
    ]
    assert torch.allclose(*pixels)


def test_the_focal_length_is_the_lens_over_the_sensor() -> None:
    assert choy.intrinsics()[0, 0] == pytest.approx(149.84375)
    assert choy.intrinsics()[0, 2] == 68.5


def test_metadata_is_read_back_as_written(tmp_path: Path) -> None:
    views = choy.draw_views(24, np.random.default_rng(0))
    choy.write_metadata(tmp_path / "m.txt", views)
    assert np.array_equal(choy.read_metadata(tmp_path / "m.txt"), views)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "found 'nothing'"),
        ("1 2 3\n", "expected lines of five numbers .* found '1 2 3'"),
        ("1 2 0 x 25\n", "expected lines of five numbers"),
        ("1 2 0 0 25\n", "expected lines of five numbers"),
        ("1 2 0 0.7 25\n1 2 0 0.7\n", "expected lines of five numbers"),
        ("1 2 5 0.7 25\n", "cameras turned about their axis"),
    ],
)
def test_broken_metadata_is_refused_by_name(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "m.txt").write_text(content)
    with pytest.raises(ValueError, match=f"m.txt.*{message}"):
        choy.read_metadata(tmp_path / "m.txt")
    with pytest.raises(ValueError, match=r"other.txt is missing; .*ShapeNetRendering"):
        choy.read_metadata(tmp_path / "other.txt")
