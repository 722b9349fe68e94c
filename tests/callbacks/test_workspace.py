import ast
import json
from pathlib import Path

import pytest
import torch

from callbacks.throughput import Throughput
from callbacks.workspace import main, read_description
from methods.base import Method
from methods.neuralangelo import Neuralangelo
from tests.methods.ellipsoids import METHODS, batch_for, small

ROOT = Path(__file__).parents[2]


def _keys() -> set[str]:
    panels = [panel for section in read_description()["sections"] for panel in section["panels"]]
    return {key for panel in panels for key in (*panel.get("keys", ()), *panel.get("media", ()))}


def test_every_value_that_is_logged_by_its_whole_name_has_a_place():
    texts = {Throughput.__doc__}
    for path in (ROOT / "methods").glob("*.py"):
        texts |= {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
    words = {word.strip("`,.") for text in texts if isinstance(text, str) for word in text.split()}
    logged = {word for word in words if word.startswith(("train/", "val/", "speed/")) and word[-1] not in "/…"}
    assert {"speed/steps_per_s", "train/lr", "val/chamfer"} <= logged
    assert logged <= _keys()


def _logged_in_a_step(model: Method, batch: dict[str, torch.Tensor]) -> set[str]:
    logged = set()
    model.log_dict = lambda values, **_: logged.update(values)
    model.training_step(batch, 0)
    return logged


@pytest.mark.parametrize("name", METHODS)
def test_every_value_of_a_step_of_a_shape_method_has_a_place(name, monkeypatch):
    model = small(name).train()
    monkeypatch.setattr(type(model), "global_step", 0)
    logged = _logged_in_a_step(model, batch_for(name))
    assert "train/loss" in logged
    assert logged <= _keys()


def test_every_value_of_a_step_of_neuralangelo_has_a_place(generator, monkeypatch):
    model = Neuralangelo(
        num_levels=2, features_per_level=2, log2_table_size=6, base_resolution=4, finest_resolution=8,
        sdf_hidden_size=8, color_hidden_size=8, color_layers=1, background="black", num_coarse_samples=8,
        num_fine_samples=4, mask_weight=1.0, sparse_weight=1.0, patch_weight=1.0, max_steps=10,
    )  # fmt: skip
    monkeypatch.setattr(model, "_patch_loss", lambda *_: torch.zeros(()))  # it would need photographs
    origins = torch.nn.functional.normalize(torch.randn(16, 3, generator=generator), dim=-1) * 2
    batch = {"origins": origins, "directions": -origins / 2, "colors": torch.rand(16, 3, generator=generator)}
    batch |= {"ray_masks": torch.ones(16), "sparse_points": torch.rand(4, 3, generator=generator)}
    logged = _logged_in_a_step(model, batch)
    assert {"train/mask", "train/sparse", "train/patch", "train/patch_weight", "train/inv_s"} <= logged
    assert logged <= _keys()


def test_a_panel_of_no_known_kind_is_refused(tmp_path):
    file = tmp_path / "w.yaml"
    file.write_text("name: x\nx_axis: s\nsections: [{name: A, columns: 1, panels: [{plot: x, keyz: [a]}]}]")
    with pytest.raises(ValueError, match=r"w\.yaml, section 'A': a panel of \['keyz', 'plot'\]; expected one of plot"):
        read_description(file)


def test_the_dashboard_is_sent_with_its_sections_in_order(monkeypatch, capsys):
    pytest.importorskip("wandb_workspaces")
    from wandb_workspaces.workspaces import internal
    from wandb_workspaces.workspaces.interface import Workspace

    sent = []
    monkeypatch.setattr(
        internal, "upsert_view2", lambda view: sent.append(view) or {"upsertView": {"view": {"name": "n", "id": "i"}}}
    )
    monkeypatch.setattr(Workspace, "url", "https://somewhere/")
    main(["--entity", "me", "--project", "things"])
    assert capsys.readouterr().out == "https://somewhere/\n"
    (view,) = sent
    assert (view.entity, view.project, view.display_name) == ("me", "things", "Bottega")
    content = json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True))
    sections = content["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == [one["name"] for one in read_description()["sections"]]
    text = json.dumps(content)
    assert all(f'"{key}"' in text for key in _keys())
    assert "test/objects" in text


def test_without_an_account_it_says_what_to_do(monkeypatch, tmp_path):
    pytest.importorskip("wandb_workspaces")
    wandb = pytest.importorskip("wandb")
    wandb.teardown()  # it reads the environment once a process
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(ValueError, match=r"W&B is not reached \(No API key configured.*wandb login"):
        main(["--entity", "me"])
