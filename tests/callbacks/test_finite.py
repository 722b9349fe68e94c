"""The guard against losses and weights that are not finite."""

from functools import partial

import pytest
import torch

from callbacks.checkpoint import Checkpoint
from callbacks.checkpoint_file import CheckpointFiles
from callbacks.finite import StopAtNonFinite, _batch_words
from tests.toy_run import Noisy, fit


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
def test_a_loss_that_is_no_number_stops_the_run_and_names_step_term_and_objects(tmp_path, bad):
    message = (
        rf"step 4: train/prior is {bad}, train/loss is .*, the loss is .*; the batch was number_\d, number_\d; "
        rf"the last good checkpoint is .*last\.ckpt\. A lower learning rate"
    )
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, None, [StopAtNonFinite(), Checkpoint(1)], partial(Noisy, bad_step=3, bad=bad))
    content = CheckpointFiles().load_checkpoint(tmp_path / "version_0/checkpoints/last.ckpt")
    assert content["global_step"] == 3
    assert all(weight.isfinite().all() for weight in content["state_dict"].values())


def test_losses_that_are_looked_at_together_name_the_first_bad_step_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(StopAtNonFinite, "_is_waiting_free", staticmethod(lambda *_: False))
    guard = StopAtNonFinite(every_n_steps=5)
    with pytest.raises(ValueError, match=r"step 3: train/prior is nan.*no checkpoint had been written yet"):
        fit(tmp_path, None, [guard, Checkpoint(100)], partial(Noisy, bad_step=2, bad="nan"), limit_val_batches=0)
    # before a checkpoint there is no waiting for the fifth
    with pytest.raises(ValueError, match=r"step 3: .*version_1/checkpoints/last\.ckpt"):
        fit(tmp_path, None, [StopAtNonFinite(5), Checkpoint(2)], partial(Noisy, bad_step=2, bad="nan"))
    assert CheckpointFiles().load_checkpoint(tmp_path / "version_1/checkpoints/last.ckpt")["global_step"] == 2


def test_weights_that_a_gradient_has_spoilt_are_not_saved(tmp_path):
    with pytest.raises(ValueError, match=r"step 4: weights are not finite \(net\.0\.weight\), although the loss is"):
        fit(tmp_path, None, [StopAtNonFinite(), Checkpoint(1)], partial(Noisy, bad_step=3, bad="gradient"))
    assert CheckpointFiles().load_checkpoint(tmp_path / "version_0/checkpoints/last.ckpt")["global_step"] == 3


def test_a_batch_of_rays_is_named_by_scene_and_photographs():
    class Scene:
        name, image_names = "scan24", ["a.png", "b.png", "c.png"]

    class Trainer:
        datamodule = type("Data", (), {"scene": Scene()})()

    batch = {"image_index": torch.tensor([2, 0, 2])}
    assert _batch_words(Trainer(), batch) == "rays of scan24 from a.png, c.png"
    Trainer.datamodule = None
    assert _batch_words(Trainer(), batch) == "rays from photograph 0, photograph 2"
    assert _batch_words(Trainer(), {"object_id": list("abcdefg")}) == "a, b, c, d, e and 2 more"


def test_finite_losses_change_nothing(tmp_path):
    runs = [fit(tmp_path, None, [*guards, Checkpoint(1)]) for guards in ([], [StopAtNonFinite()])]
    rows = [(run / "metrics.csv").read_text() for run in runs]
    assert rows[0] == rows[1]


def test_an_interval_of_no_steps_is_refused():
    with pytest.raises(ValueError, match="every_n_steps is 0, expected at least 1"):
        StopAtNonFinite(0)
