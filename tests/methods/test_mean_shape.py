import pytest
import torch

from losses.points import chamfer
from methods.mean_shape import MeanShape
from ops.types import ObjectBatch
from tests.methods.ellipsoids import loader, trainer


def _batch(seed: int = 0) -> ObjectBatch:
    """Four objects of 8^3 voxels, each voxel occupied with a probability of its own."""
    generator = torch.Generator().manual_seed(seed)
    probability = torch.linspace(0, 1, 8**3).reshape(8, 8, 8)
    return ObjectBatch(
        voxels=torch.rand(4, 8, 8, 8, generator=generator) < probability,
        surface_points=torch.randn(4, 50, 3, generator=generator) * 0.1,
        object_index=torch.arange(4),
        normalized_to_dataset=torch.diag(torch.tensor([2.0, 2, 2, 1])).expand(4, 4, 4),
    )


def test_voxels_become_the_mean_of_the_training_voxels(tmp_path):
    batch = _batch()
    model = MeanShape(voxel_resolution=8, max_steps=200)
    trainer(tmp_path, 200).fit(model, loader(batch))
    error = (model.constant.sigmoid() - batch["voxels"].float().mean(0)).abs()
    assert error.max() < 0.02


def test_points_come_closer_than_any_one_training_object(tmp_path):
    batch = _batch()
    model = MeanShape(representation="points", num_points=64, max_steps=200)
    trainer(tmp_path, 200).fit(model, loader(batch))
    truth = batch["surface_points"]

    def mean_chamfer(points: torch.Tensor) -> float:
        return sum(d.mean().item() for d in chamfer(points.expand(len(truth), -1, -1), truth))

    with torch.no_grad():
        # an object is at no distance from itself, which flatters it
        assert mean_chamfer(model.constant) < min(mean_chamfer(one) for one in truth)


@pytest.mark.parametrize("representation", ["voxels", "points"])
def test_answers_every_object_alike_in_its_dataset_frame(representation):
    model = MeanShape(representation=representation, voxel_resolution=8, num_points=20)
    model.constant.data.uniform_(-0.9, 0.9)
    batch = _batch()
    here, out = model.reconstruct(batch), model.test_step(batch, 0)
    assert len(here) == len(out["shapes"]) == 4
    for shape, moved in zip(here, out["shapes"], strict=True):
        assert torch.equal(shape.vertices, here[0].vertices)
        torch.testing.assert_close(moved.vertices, 2 * shape.vertices)
    assert ("voxels" in out) == (representation == "voxels")


def test_voxels_of_another_resolution_are_refused():
    with pytest.raises(ValueError, match=r"voxel_resolution=16"):
        MeanShape(voxel_resolution=16).training_step(_batch(), 0)
    with pytest.raises(ValueError, match=r"threshold: 1\.5"):
        MeanShape(threshold=1.5)
