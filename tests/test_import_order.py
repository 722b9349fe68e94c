"""Who may import whom: arrows go one folder down or one file right, and nothing goes back."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "ops": {"ops"},
    "losses": {"losses", "ops"},
    "metrics": {"metrics", "ops"},
    "methods": {"methods", "losses", "ops"},
    "datamodules": {"datamodules", "ops"},
    "callbacks": {"callbacks", "metrics", "ops"},
    "launch": {"launch"},
    "main.py": {"launch"},
}
LIGHTNING = {"main.py", "launch", "methods", "datamodules", "callbacks"}
TORCHMETRICS = {"metrics", "callbacks"}


def _imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_import_only_what_lies_below_them(room):
    files = [ROOT / room] if room.endswith(".py") else sorted((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        imported = _imports(path)
        assert imported & set(ALLOWED) <= ALLOWED[room], path
        assert room in LIGHTNING or not imported & {"pytorch_lightning", "lightning_fabric"}, path
        assert room in TORCHMETRICS or "torchmetrics" not in imported, path
        assert "wandb" not in imported or room == "callbacks", path


def test_init_files_are_empty():
    for room in ALLOWED:
        for path in (ROOT / room).rglob("__init__.py"):
            assert path.read_text() == "", path
