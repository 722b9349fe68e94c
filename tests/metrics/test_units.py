import pytest
import torch
from scipy.spatial import cKDTree

from metrics.surface import SurfaceScore
from metrics.units import CONVENTIONS, chamfer_in
from ops.types import ObjectBatch, Shape


@pytest.mark.parametrize("edge", [1.0, 0.4])
def test_conversions_equal_the_protocols_on_rescaled_points(edge: float) -> None:
    generator = torch.Generator().manual_seed(0)
    truth, prediction = (torch.rand(n, 3, generator=generator, dtype=torch.float64) for n in (400, 300))
    truth = edge * (truth - truth.amin(0)) / (truth.amax(0) - truth.amin(0))
    prediction = edge * prediction
    metric = SurfaceScore()
    batch = ObjectBatch(surface_points=truth[None], object_index=torch.tensor([0]))
    metric.update({"shapes": [Shape(prediction)]}, batch)
    row = metric.rows()[0]

    def distances(scale: float) -> tuple:
        x, y = (scale * points.numpy() for points in (prediction, truth))
        return cKDTree(y).query(x)[0], cKDTree(x).query(y)[0]

    shapenet_edge = 0.8
    a, b = distances(10 / edge)
    expected = {"onet_x10": (a.mean() + b.mean()) / 2, "mesh_rcnn": (a**2).mean() + (b**2).mean()}
    a, b = distances(0.57 * shapenet_edge / edge)
    expected["pixel2mesh"] = (a**2).mean() + (b**2).mean()
    a, b = distances(1)
    expected["pytorch3d"] = (a**2).mean() + (b**2).mean()
    assert expected.keys() == CONVENTIONS.keys()
    for name, value in expected.items():
        assert chamfer_in(name, row, longest_edge=edge, shapenet_edge=shapenet_edge) == pytest.approx(value), name


def test_bad_input_is_named() -> None:
    scores = {"chamfer_l1": 0.02, "chamfer_l2": 0.001}
    with pytest.raises(ValueError, match=r"'p2m', expected one of \['onet_x10'"):
        chamfer_in("p2m", scores)
    with pytest.raises(ValueError, match="pixel2mesh: needs shapenet_edge"):
        chamfer_in("pixel2mesh", scores)
    with pytest.raises(ValueError, match=r"edges: \[0\.0\]"):
        chamfer_in("onet_x10", scores, longest_edge=0.0)
