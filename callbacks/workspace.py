"""Makes the dashboard that ``workspace.yaml`` describes at Weights & Biases: ``python -m callbacks.workspace``."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import yaml
from lightning_utilities.core.imports import RequirementCache

DESCRIPTION = Path(__file__).with_suffix(".yaml")
_AVAILABLE = RequirementCache("wandb-workspaces>=0.4")
PANEL_KEYS = {"plot": {"plot", "keys", "log"}, "media": {"media"}, "table": {"table"}}


def read_description(path: Path = DESCRIPTION) -> dict[str, Any]:
    """The sections and panels of a file like ``workspace.yaml``.

    Raises:
        ValueError: a panel is none of plot, media and table, or has keys that it does not know.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    for section in content["sections"]:
        for panel in section["panels"]:
            kind = next((kind for kind in PANEL_KEYS if kind in panel), None)
            unknown = set(panel) - PANEL_KEYS.get(kind, set())
            if kind is None or unknown:
                raise ValueError(
                    f"{path}, section {section['name']!r}: a panel of {sorted(panel)}; expected one of "
                    f"{', '.join(PANEL_KEYS)}, and beside plot its keys and log"
                )
    return content


def workspace(entity: str, project: str, description: dict[str, Any]) -> Any:
    """The ``wandb_workspaces`` object, which reaches the network when it is saved and not before.

    Args:
        entity: user or team at W&B.
        project: that the runs are logged to.
        description: see ``read_description``.
    """
    if not _AVAILABLE:
        raise ModuleNotFoundError(f'{_AVAILABLE}: pip install -e ".[wandb]"')
    import wandb_workspaces.workspaces as ws

    x_axis = description["x_axis"]
    sections = []
    for section in description["sections"]:
        panels, columns = [_panel(panel, x_axis) for panel in section["panels"]], section["columns"]
        layout = ws.SectionLayoutSettings(columns=columns, rows=-(-len(panels) // columns))
        settings = ws.SectionPanelSettings(x_axis=x_axis)
        sections.append(ws.Section(section["name"], panels, True, layout_settings=layout, panel_settings=settings))
    return ws.Workspace(
        entity=entity,
        project=project,
        name=description["name"],
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis=x_axis),
        # fits and tests of one name beside each other
        runset_settings=ws.RunsetSettings(groupby=[ws.Metric("Group"), ws.Metric("JobType")]),
    )


def _panel(panel: dict[str, Any], x_axis: str) -> Any:
    import wandb_workspaces.reports.v2 as wr

    if "plot" in panel:
        return wr.LinePlot(title=panel["plot"], x=x_axis, y=panel["keys"], log_y=panel.get("log", False))
    if "media" in panel:
        return wr.MediaBrowser(media_keys=panel["media"])
    return wr.WeavePanelSummaryTable(table_name=panel["table"])


def main(arguments: list[str] | None = None) -> None:
    """Make the dashboard of a project at W&B, or print what would be sent there."""
    parser = argparse.ArgumentParser(prog="python -m callbacks.workspace", description=main.__doc__)
    parser.add_argument("--entity", required=True, help="user or team at W&B")
    parser.add_argument("--project", default="bottega", help="project that the runs are logged to")
    parser.add_argument("--description", type=Path, default=DESCRIPTION, help="sections and panels, as workspace.yaml")
    parser.add_argument("--print", action="store_true", dest="only_print", help="print it as JSON and send nothing")
    given = parser.parse_args(arguments)
    made = workspace(given.entity, given.project, read_description(given.description))
    if given.only_print:
        print(json.dumps(json.loads(made._to_model().spec.model_dump_json(by_alias=True, exclude_none=True)), indent=2))
        return
    import wandb

    try:
        made.save()
    except (wandb.errors.UsageError, wandb.errors.CommError) as error:
        raise ValueError(
            f"W&B is not reached ({str(error).splitlines()[0]}); `wandb login` first, or --print to see the dashboard"
        ) from error
    print(made.url)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, ModuleNotFoundError) as error:
        if os.environ.get("BOTTEGA_TRACEBACK"):
            raise
        sys.exit(f"error: {error}")
