import warnings
from pathlib import Path

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from datamodules.scene import Scene
from tests.datamodules.toy import ToyData, make_scene


class Recorder(LightningModule):
    """Remembers the rays that it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = True
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[Tensor] = []

    def training_step(self, batch: dict, batch_index: int) -> Tensor:
        self.seen.append(batch["directions"])
        return self.weight.square()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(
    folder: Path,
    checkpoint: Path | None = None,
    *,
    num_workers: int = 0,
    images_on_device: bool | str = "auto",
    toy: Scene | None = None,
    **arguments: object,
) -> list[Tensor]:
    recorder = Recorder()
    saver = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[saver],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = ToyData(
            toy, num_workers=num_workers, images_per_batch=2, rays_per_batch=8, images_on_device=images_on_device
        )
        trainer.fit(recorder, data, ckpt_path=checkpoint, weights_only=True)
    return recorder.seen


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_steps": 6},
        {"max_steps": 6, "num_workers": 2},
        {"max_steps": 3, "accumulate_grad_batches": 2},
        {"max_steps": 6, "limit_train_batches": 2},
        {"max_steps": 6, "limit_train_batches": 3, "num_workers": 2},
    ],
    ids=["straight", "workers", "accumulating", "epochs", "epochs and workers"],
)
def test_a_resumed_run_draws_exactly_the_batches_of_a_straight_one(tmp_path: Path, arguments: dict) -> None:
    straight = train(tmp_path, **arguments)
    assert len(straight) == 6
    assert len({tuple(rays.flatten().tolist()) for rays in straight}) == 6  # epochs do not repeat one another
    steps_each = arguments.get("accumulate_grad_batches", 1)
    resumed = train(tmp_path / "again", tmp_path / f"step={2}.ckpt", **arguments)
    assert len(resumed) == 6 - 2 * steps_each
    for one, other in zip(resumed, straight[2 * steps_each :], strict=True):
        assert torch.equal(one, other)


def test_the_state_is_a_number_of_batches_and_moves_the_stream() -> None:
    data, again = ToyData(images_per_batch=None), ToyData(images_per_batch=None)
    data.setup()
    stream = iter(data.train_dataloader())
    batches = [next(stream) for _ in range(3)]
    again.load_state_dict({"batches_trained": 2})
    again.setup()
    assert again.state_dict() == {"batches_trained": 2, "normalized_to_dataset": torch.eye(4).tolist()}
    assert torch.equal(next(iter(again.train_dataloader()))["origins"], batches[2]["origins"])


def test_a_resumed_run_refuses_data_of_another_similarity_and_names_both(tmp_path: Path) -> None:
    train(tmp_path, max_steps=1)
    saved = torch.load(tmp_path / "step=1.ckpt", weights_only=True)["ToyData"]
    assert saved["normalized_to_dataset"] == torch.eye(4).tolist()
    moved = torch.tensor([[2.0, 0, 0, 5], [0, 2, 0, 0], [0, 0, 2, -1], [0, 0, 0, 1]], dtype=torch.float64)
    message = r"sphere of radius 1 about \(0, 0, 0\), but the data now gives radius 2 about \(5, 0, -1\).*train anew"
    with pytest.raises(ValueError, match=f"toy: the checkpoint was trained in the {message}"):
        train(tmp_path / "moved", tmp_path / "step=1.ckpt", toy=make_scene(normalized_to_dataset=moved), max_steps=2)
    # whichever of checkpoint and scene is loaded first
    data = ToyData(make_scene(normalized_to_dataset=moved))
    data.load_state_dict(saved)
    with pytest.raises(ValueError, match=message):
        data.setup("test")


def test_rounding_of_the_similarity_is_no_other_frame_and_old_checkpoints_have_none() -> None:
    scene = make_scene(normalized_to_dataset=torch.eye(4, dtype=torch.float64) * (1 + 1e-6))
    for saved in ({"batches_trained": 3, "normalized_to_dataset": torch.eye(4).tolist()}, {"batches_trained": 3}):
        data = ToyData(scene)
        data.load_state_dict(saved)
        data.setup()
        assert data.batches_trained() == 3
