"""The visual hull of a ball seen by six cameras keeps the ball and removes what floats beside it."""

import numpy as np
import torch
import trimesh

from ops.types import Shape
from ops.visual_hull import cropped_to_visual_hull, inside_visual_hull

SIZE = 100


def views(radius: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Six cameras at a distance of 5, one on each side; masks of a ball about the origin, in closed form."""
    masks, projections = [], []
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    for axis in range(3):
        for sign in (-1.0, 1.0):
            forward = -sign * np.eye(3)[axis]
            right = np.roll(np.eye(3)[axis], 1)
            rotation = np.stack([right, np.cross(forward, right), forward])
            intrinsics = np.array([[150.0, 0, SIZE / 2], [0, 150, SIZE / 2], [0, 0, 1]])
            projections.append(intrinsics @ np.concatenate([rotation, [[0], [0], [5.0]]], 1))
            # the cone that touches the ball
            tangent = radius / np.sqrt(25 - radius**2)
            masks.append(((x - SIZE / 2) ** 2 + (y - SIZE / 2) ** 2) < (150 * tangent) ** 2)
    return torch.from_numpy(np.stack(masks)), torch.from_numpy(np.stack(projections))


def ball(center: tuple[float, float, float], radius: float) -> Shape:
    mesh = trimesh.creation.icosphere(3, radius)
    return Shape(torch.tensor(mesh.vertices + center).float(), torch.tensor(np.array(mesh.faces)))


def joined(a: Shape, b: Shape) -> Shape:
    return Shape(torch.cat([a.vertices, b.vertices]), torch.cat([a.faces, b.faces + len(a.vertices)]))


def test_the_object_stays_whole_and_a_floater_beside_it_goes() -> None:
    body, floater = ball((0, 0, 0), 0.99), ball((1.2, 0.8, 0.3), 0.1)
    cropped = cropped_to_visual_hull(joined(body, floater), *views(), margin=1)
    torch.testing.assert_close(cropped.vertices, body.vertices)
    torch.testing.assert_close(cropped.faces, body.faces)


def test_points_are_inside_where_all_cones_are() -> None:
    points = 3 * torch.rand(4000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1.5
    inside = inside_visual_hull(points, *views())
    tangent = 1 / np.sqrt(24)
    margin = 2 / 150  # of a pixel or two at the rim
    in_all, in_none = [], []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            depth = 5 - sign * points[:, axis]
            beside = torch.cat([points[:, :axis], points[:, axis + 1 :]], 1).norm(dim=1) / depth
            in_all.append(beside < tangent - margin)
            in_none.append(beside > tangent + margin)
    assert inside[torch.stack(in_all).all(0)].all()
    assert not inside[torch.stack(in_none).any(0)].any()
    # the hull of a ball from six sides is more than the ball, and what touches its corners stays
    assert inside.sum() > (points.norm(dim=1) < 1).sum()


def test_what_no_photograph_shows_is_not_in_the_hull_and_what_one_does_not_show_may_be() -> None:
    masks, projections = views()
    assert not inside_visual_hull(torch.tensor([[50.0, 50.0, 50.0]]), masks, projections)[0]
    # a photograph that looks elsewhere excludes nothing
    elsewhere = projections[:1].clone()
    elsewhere[0, 0] += 1000 * elsewhere[0, 2]
    more_masks = torch.cat([masks, torch.zeros_like(masks[:1])])
    assert inside_visual_hull(torch.zeros(1, 3), more_masks, torch.cat([projections, elsewhere]))[0]


def test_a_margin_keeps_more_and_point_sets_are_cropped_too() -> None:
    rim = torch.tensor([[1.04, 0.0, 0.0], [0.0, 0.0, 0.0], [1.4, 0.0, 0.0]])
    assert len(cropped_to_visual_hull(Shape(rim), *views()).vertices) == 1
    assert len(cropped_to_visual_hull(Shape(rim), *views(), margin=4).vertices) == 2
    assert cropped_to_visual_hull(Shape.empty(), *views()).is_empty
