import numpy as np
import pytest
import torch
from torch import nn

from methods.weights import load_weights, read_state_dict


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.blocks = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ModuleList([nn.Linear(4, 4)])


NAMES = {"fc": "first", "bn": "norm", "block": "blocks.0"}


def _foreign():
    """The state dict of another program: other names, and a convolution of kernel 1 for a linear layer."""
    state = Network().state_dict()
    renamed = {
        key.replace("first", "fc").replace("norm", "bn").replace("blocks.0", "block"): value
        for key, value in state.items()
    }
    return renamed | {"fc.weight": renamed["fc.weight"][..., None]}


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model"])
def test_renamed_and_wrapped_tensors_arrive_where_they_belong(wrapper, tmp_path):
    foreign = _foreign()
    torch.save(foreign if wrapper is None else {wrapper: foreign, "epoch": 3}, tmp_path / "weights.pt")
    network = Network()
    load_weights(network, tmp_path / "weights.pt", NAMES)
    assert torch.equal(network.first.weight, foreign["fc.weight"][..., 0])
    assert torch.equal(network.norm.running_mean, foreign["bn.running_mean"])
    assert torch.equal(network.blocks[0].bias, foreign["block.bias"])


def test_numpy_scores_data_parallel_and_the_old_file_format_are_read(tmp_path):
    content = {
        "model": {f"module.{key}": value for key, value in _foreign().items()},
        "loss_val_best": np.float64(0.5), "epoch_it": np.int64(3),
    }  # fmt: skip
    for is_zip in (True, False):
        torch.save(content, tmp_path / "weights.pt", _use_new_zipfile_serialization=is_zip)
        assert read_state_dict(tmp_path / "weights.pt").keys() == _foreign().keys()


def test_files_from_before_batches_were_counted_load(tmp_path):
    foreign = {key: value for key, value in _foreign().items() if "num_batches" not in key}
    torch.save(foreign, tmp_path / "weights.pt")
    load_weights(Network(), tmp_path / "weights.pt", NAMES)


def test_longest_prefix_counts_and_ends_at_a_dot(tmp_path):
    torch.save({"a.b.weight": torch.ones(4, 3), "a.b.bias": torch.zeros(4), "a.c": torch.ones(1)}, tmp_path / "w.pt")
    layer = nn.Module()
    layer.first, layer.c = nn.Linear(3, 4), nn.Parameter(torch.zeros(1))
    load_weights(layer, tmp_path / "w.pt", {"a": "", "a.b": "first", "a.b.weigh": "nowhere", "a.c": "c"})
    assert layer.c.item() == 1
    assert layer.first.weight.sum() == 12


def test_what_the_file_has_for_others_is_ignored_and_what_it_may_lack_stays(tmp_path):
    foreign = {key: value for key, value in _foreign().items() if not key.startswith("block")}
    torch.save(foreign | {"classifier.weight": torch.ones(5)}, tmp_path / "weights.pt")
    network = Network()
    before = network.blocks[0].weight.clone()
    load_weights(network, tmp_path / "weights.pt", NAMES, ignored=("classifier",), optional=("blocks",))
    assert torch.equal(network.blocks[0].weight, before)


def test_another_size_is_refused_and_nothing_is_loaded(tmp_path):
    torch.save(_foreign() | {"block.weight": torch.ones(4, 7)}, tmp_path / "weights.pt")
    network = Network()
    before = network.first.weight.clone()
    message = (
        r"weights.pt: block.weight has shape \(4, 7\), but the model's blocks.0.weight has \(4, 4\); set the model"
    )
    with pytest.raises(ValueError, match=message):
        load_weights(network, tmp_path / "weights.pt", NAMES)
    assert torch.equal(network.first.weight, before)


def test_another_network_is_refused_by_names(tmp_path):
    foreign = _foreign()
    foreign["head.weight"] = foreign.pop("block.weight")
    torch.save(foreign, tmp_path / "weights.pt")
    message = "in the file alone head.weight; in the model alone blocks.0.weight; give the file of this method"
    with pytest.raises(ValueError, match=message):
        load_weights(Network(), tmp_path / "weights.pt", NAMES)


class Executes:
    def __reduce__(self):
        return (pytest.fail, ("the file was executed",))


def test_files_that_are_none_are_refused_without_being_executed(tmp_path):
    with pytest.raises(ValueError, match=r"absent.pt: no such file"):
        read_state_dict(tmp_path / "absent.pt")
    (tmp_path / "text.pt").write_text("<html>not found</html>")
    torch.save({"model": Executes()}, tmp_path / "code.pt")
    for name in ("text.pt", "code.pt"):
        with pytest.raises(ValueError, match=rf"{name}: not a file of tensors that can be read without executing"):
            read_state_dict(tmp_path / name)
    torch.save({"epoch": 3, "loss": torch.ones(1), "note": "x"}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="expected a state dict of named tensors, found keys epoch, loss, note"):
        read_state_dict(tmp_path / "other.pt")
