import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from callbacks.checkpoint import Checkpoint


class Line(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        return (self.weight - batch).square().sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("keep_all", [False, True])
@pytest.mark.parametrize("max_steps", [3, 10, 11])
def test_last_checkpoint_is_that_of_the_last_step(tmp_path, max_steps, keep_all):
    trainer = Trainer(
        max_steps=max_steps, accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Checkpoint(every_n_train_steps=5, keep_all=keep_all)],
    )  # fmt: skip
    trainer.fit(Line(), DataLoader(torch.ones(100, 1)))
    saved = {path.name: torch.load(path, weights_only=True)["global_step"] for path in tmp_path.glob("**/*.ckpt")}
    assert saved.pop("last.ckpt") == max_steps
    kept = [step for step in (5, 10) if step <= max_steps]
    assert saved == {f"step{step}.ckpt": step for step in (kept if keep_all else kept[-1:])}
