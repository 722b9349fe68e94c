import copy

import pytest
import torch

from callbacks.compiled import Compiled
from methods.neuralangelo import Neuralangelo

SMALL = {
    "num_levels": 3, "features_per_level": 2, "log2_table_size": 8, "base_resolution": 4, "finest_resolution": 16,
    "sdf_hidden_size": 8, "color_hidden_size": 8, "color_layers": 1, "background_hidden_size": 8,
    "background_layers": 2, "max_steps": 10, "num_coarse_samples": 8, "num_fine_samples": 4, "num_rounds": 1,
}  # fmt: skip
NETWORKS = ["color_network", "background_network"]


def _step(model, num_rays):
    generator = torch.Generator().manual_seed(0)
    origins = torch.tensor([0.0, 0.0, -3.0]).expand(num_rays, 3)
    targets = torch.rand(num_rays, 3, generator=generator) - 0.5
    batch = {
        "origins": origins,
        "directions": torch.nn.functional.normalize(targets - origins, dim=-1),
        "colors": torch.rand(num_rays, 3, generator=generator),
        "image_index": torch.zeros(num_rays, dtype=torch.int64),
    }
    model.log_dict = lambda *_, **__: None
    loss = model.training_step(batch, 0)
    loss.backward()
    return loss.detach()


def test_compiled_networks_compute_the_same_and_leave_checkpoints_as_they_are():
    torch.manual_seed(0)
    plain = Neuralangelo(**SMALL)
    compiled = copy.deepcopy(plain)
    # no kernels, which need a compiler: the networks are traced, and run as they were traced
    Compiled(NETWORKS, backend="eager").setup(None, compiled, "fit")
    for num_rays in (16, 23):
        torch.testing.assert_close(_step(compiled, num_rays), _step(plain, num_rays))
    for (name, one), other in zip(compiled.named_parameters(), plain.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad)
    assert compiled.state_dict().keys() == plain.state_dict().keys()


def test_only_training_is_compiled(monkeypatch):
    model = Neuralangelo(**SMALL)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *_, **__: pytest.fail("compiled"))
    Compiled(NETWORKS).setup(None, model, "test")


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        ([], r"networks: \[\], expected names"),
        ("color_network", r"networks: 'color_network', expected names"),
        (["colour"], r"Neuralangelo has no submodule 'colour'; expected some of sdf_network, color_network"),
    ],
)
def test_bad_names_are_refused(networks, message):
    with pytest.raises(ValueError, match=message):
        Compiled(networks).setup(None, Neuralangelo(**SMALL), "fit")
