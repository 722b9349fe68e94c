import pytest
import torch
from pytorch_lightning import Trainer
from torch.utils.data import DataLoader

from methods.base import Method
from ops.schedules import WarmupThenSteps
from ops.types import Shape


class OneVertex(Method):
    """A method whose shape is its only parameter."""

    reads = frozenset({"images"})

    def __init__(self, max_steps: int = 10, lr_schedule=None) -> None:
        super().__init__(lambda parameters: torch.optim.SGD(parameters, lr=1.0), lr_schedule, max_steps)
        self.position = torch.nn.Parameter(torch.zeros(3))
        self.steps_seen = []

    def training_step(self, batch, batch_idx):
        return (self.position - 1).square().sum()

    def reconstruct(self, batch):
        self.steps_seen.append(self.step)
        return [Shape(self.position.detach()[None])]


class Another(OneVertex):
    pass


def _batches(count=3):
    batch = {
        "object_index": torch.zeros(1, dtype=torch.int64),
        "normalized_to_dataset": torch.diag(torch.tensor([5.0, 5, 5, 1]))[None],
    }
    return DataLoader([batch] * count, batch_size=None)


def _trainer(tmp_path, **kwargs):
    return Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, **kwargs,
    )  # fmt: skip


def test_step_of_a_loaded_checkpoint_is_that_of_its_training(tmp_path):
    trainer = _trainer(tmp_path, max_steps=7)
    trainer.fit(OneVertex(), _batches())
    trainer.save_checkpoint(tmp_path / "seven.ckpt")
    model = OneVertex()
    _trainer(tmp_path).test(model, _batches(1), ckpt_path=tmp_path / "seven.ckpt", verbose=False)
    assert model.steps_seen == [7]  # Lightning's own global_step is 0 here


def test_checkpoint_opens_without_unpickling_code(tmp_path):
    trainer = _trainer(tmp_path, max_steps=2)
    trainer.fit(OneVertex(lr_schedule=WarmupThenSteps()), _batches())
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    content = torch.load(tmp_path / "two.ckpt", weights_only=True)
    assert content["global_step"] == 2
    assert "hyper_parameters" not in content  # they would overrule the command line


def test_checkpoint_of_another_method_is_refused_by_name(tmp_path):
    trainer = _trainer(tmp_path, max_steps=1)
    trainer.fit(Another(), _batches())
    trainer.save_checkpoint(tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"written by .*Another, but the model is .*OneVertex"):
        _trainer(tmp_path).test(OneVertex(), _batches(1), ckpt_path=tmp_path / "other.ckpt", verbose=False)


def test_shapes_leave_in_the_frame_of_the_dataset():
    model = OneVertex()
    model.position.data = torch.tensor([1.0, 2, 3])
    batch = next(iter(_batches()))
    assert model.predict_step(batch, 0)["shapes"][0].vertices.tolist() == [[5, 10, 15]]


def test_learning_rate_is_the_schedule_at_the_progress_of_the_run(tmp_path):
    model = OneVertex(max_steps=10, lr_schedule=WarmupThenSteps(warmup=0.5, milestones=[0.75]))
    rates = []
    model.on_train_batch_end = lambda *_: rates.append(model.optimizers().param_groups[0]["lr"])
    _trainer(tmp_path, max_steps=10).fit(model, _batches(10))
    # as set after each step for the next one
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 0.1, 0.1, 0.1])


def test_a_schedule_without_a_length_is_refused():
    with pytest.raises(ValueError, match=r"set trainer\.max_steps \(it is -1\)"):
        OneVertex(max_steps=-1, lr_schedule=WarmupThenSteps()).configure_optimizers()
