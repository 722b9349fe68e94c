import ast
import json
from pathlib import Path

import pytest

from callbacks.throughput import Throughput
from callbacks.workspace import main, read_description

ROOT = Path(__file__).parents[2]


def _keys() -> set[str]:
    panels = [panel for section in read_description()["sections"] for panel in section["panels"]]
    return {key for panel in panels for key in (*panel.get("keys", ()), *panel.get("media", ()))}


def test_every_value_that_a_method_or_the_clock_logs_by_name_has_a_place():
    texts = {Throughput.__doc__}
    for path in (ROOT / "methods").glob("*.py"):
        texts |= {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
    words = {word.strip("`,.") for text in texts if isinstance(text, str) for word in text.split()}
    logged = {word for word in words if word.startswith(("train/", "val/", "speed/")) and word[-1] not in "/…"}
    assert {"train/loss", "speed/steps_per_s", "train/lr", "val/chamfer"} <= logged
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
