"""The part of a page that says how its numbers came about: protocols, settings that differ, machine, commands."""

import json
import shlex
from html import escape
from pathlib import Path
from typing import Any

from callbacks.page.scores import Shown
from callbacks.page.tables import Cell, Column, table, text

MAX_SETTINGS = 60
COMMANDS = ("fit", "validate", "test", "predict")
IRRELEVANT = (
    *("run_name", "run_root", "ckpt_path", "trainer.logger", "trainer.callbacks"),
    *("trainer.enable_progress_bar", "trainer.log_every_n_steps"),
)


def comparability(shown: list[Shown]) -> list[str]:
    """Why the scores of some runs may not be compared, as sentences; nothing where they may."""
    tested = [one for one in shown if one.run.objects]
    notes = []
    objects = {tuple(sorted((row["object_id"], row.get("split", "")) for row in one.run.objects)) for one in tested}
    if len(objects) > 1:
        sets = [{row["object_id"] for row in one.run.objects} for one in tested]
        common = len(set.intersection(*sets))
        sizes = ", ".join(f"{one.name} {len(one.run.objects):,}" for one in tested)
        notes.append(f"These runs were not tested on the same objects ({sizes}; {common:,} in common).")
    by_protocol: dict[str, dict[str, list[str]]] = {}
    for one in tested:
        for protocol in _protocols(one):
            settings = json.dumps(protocol.get("settings", {}), sort_keys=True)
            by_protocol.setdefault(str(protocol.get("protocol")), {}).setdefault(settings, []).append(one.name)
    for name, groups in by_protocol.items():
        if len(groups) > 1:
            versions = [json.loads(settings) for settings in groups]
            keys = sorted({key for version in versions for key in version})
            differing = [key for key in keys if len({json.dumps(version.get(key)) for version in versions}) > 1]
            # a threshold that validation chose belongs to the run
            if set(differing) - {"chosen_threshold"}:
                notes.append(f"{name.rsplit('.', 1)[-1]} was not set alike in all runs: {', '.join(differing)}.")
    return notes


def protocol_list(shown: list[Shown]) -> str:
    """What every protocol is called, its unit and its settings, once for all runs that share them."""
    said: dict[tuple[str, str, str], list[str]] = {}
    for one in shown:
        for protocol in _protocols(one):
            settings = ", ".join(f"{key} {_plain(value)}" for key, value in protocol.get("settings", {}).items())
            name = str(protocol.get("protocol", "")).rsplit(".", 1)[-1]
            said.setdefault((name, str(protocol.get("unit", "")), settings), []).append(one.name)
    items = []
    for (name, unit, settings), names in said.items():
        of = f" ({', '.join(names)})" if len(names) < len(shown) else ""
        words = "; ".join(part for part in (unit, settings) if part)
        items.append(f"<li><strong>{escape(name)}</strong>{escape(of)}: {escape(words)}</li>")
    return f'<ul class="protocols">{"".join(items)}</ul>\n' if items else ""


def setting_table(shown: list[Shown]) -> str:
    """Settings that all runs have and that differ; of those that only some have, how many there are."""
    if len(shown) < 2:
        return ""
    settings = [
        {key: value for key, value in one.run.settings.items() if not key.startswith(IRRELEVANT)} for one in shown
    ]
    known = [one for one in settings if one]
    if len(known) < 2:
        return ""
    common = [key for key in known[0] if all(key in one for one in known)]
    differing = [key for key in common if len({_plain(one[key]) for one in known}) > 1]
    num_others = len({key for one in known for key in one} - set(common))
    columns = [Column("setting", False), *(Column(one.label, False) for one in shown)]
    rows = [
        [text(key.replace("init_args.", "")), *(text(_plain(one[key])) if key in one else Cell("") for one in settings)]
        for key in differing[:MAX_SETTINGS]
    ]
    content = table(columns, rows, caption="Settings that differ", classes="settings") if rows else ""
    summary = f"Settings that differ ({len(differing)})"
    more = [f"{len(differing) - MAX_SETTINGS} more differ."] if len(differing) > MAX_SETTINGS else []
    more += [] if rows else ["No setting that all of these runs have differs."]
    more += [f"{num_others} settings are in some of the runs only, whose methods or data have no others."] * (
        num_others > 0
    )
    content += f"<p>{' '.join(more)}</p>\n" if more else ""
    return f"<details{' open' if len(rows) <= 12 else ''}><summary>{summary}</summary>{content}</details>\n"


def reproduction(one: Shown) -> str:
    """Commands, versions, revision and machine of a run, as far as they were written down."""
    environments = one.run.environments
    facts: dict[str, str] = {}
    for folder, environment in environments.items():
        line = environment.get("command")
        words = line if isinstance(line, list) else str(line).split()
        # a test of a checkpoint that lies in no run has a folder as a training has
        command = next((word for word in words if word in COMMANDS), folder)
        if line:
            facts[f"{command}, command"] = f"<code>{escape(_command(line))}</code>"
        if environment.get("started"):
            facts[f"{command}, started"] = escape(_plain(environment["started"]))
        if environment.get("continues"):
            facts[f"{command}, went on from"] = f"<code>{escape(_plain(environment['continues']))}</code>"
    newest: dict[str, Any] = environments.get("fit") or next(iter(environments.values()), {})
    if newest.get("git_revision"):
        dirty = ", with changes that were not committed" if newest.get("git_dirty") else ""
        facts["revision"] = f"<code>{escape(_plain(newest['git_revision']))}</code>{dirty}"
    for key in ("versions", "hardware", "python", "slurm"):
        if newest.get(key):
            facts[key] = escape(_plain(newest[key]))
    if one.run.record.get("checkpoint"):
        facts["tested checkpoint"] = f"<code>{escape(str(one.run.record['checkpoint']))}</code>"
    if one.run.settings:
        folder = Path(one.run.name.replace(" / ", "/")) if one.run.folder.is_absolute() else one.run.folder
        again = f"python main.py fit --config {folder.as_posix()}/config.yaml"
        facts["to train it again"] = f"<code>{escape(again)}</code> at the same revision"
    if not environments:
        facts["not written down"] = (
            "This run has no environment.json: its commands, versions and machine are not known."
        )
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{content}</dd>" for name, content in facts.items())
    return f'<section class="facts"><h3>{one.label}</h3><dl class="lines">{lines}</dl></section>\n'


def _protocols(one: Shown) -> list[dict[str, Any]]:
    protocols = one.run.record.get("protocols", [])
    return [protocol for protocol in protocols if isinstance(protocol, dict)] if isinstance(protocols, list) else []


def _command(line: Any) -> str:
    return shlex.join(map(str, line)) if isinstance(line, list) else str(line)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "none"
    return "none" if value is None else str(value)
