"""What docs/clusters.md tells a reader to type exists; tests/test_slurm.py types it."""

import re
import shlex
from pathlib import Path

import yaml

import sweep

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/clusters.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
LINES = [shlex.split(line) for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
TABLE = re.findall(r"`(--(?:vary|scans)[^`]*)`", PAGE)


def test_batch_scripts_and_configs_that_are_submitted_exist():
    submitted = [words for words in LINES if words[0] == "sbatch"]
    assert submitted
    for words in submitted:
        script, config = [word for word in words[1:] if not word.startswith("-")]
        directives = re.findall(r"^#SBATCH (\S+)$", (ROOT / script).read_text(), re.MULTILINE)
        assert {"--requeue", "--signal=SIGUSR1@120", "--open-mode=append"} <= set(directives)
        assert not any(option.startswith("--ntasks=") for option in words + directives)  # Lightning refuses it
        assert (ROOT / config).is_file()


def test_sweeps_that_are_shown_parse_and_leave_nothing_over():
    shown = [words[2:] for words in LINES if words[:2] == ["python", "sweep.py"]]
    base = ["run", "--config", "configs/neuralangelo_dtu.yaml"]
    shown += [base + shlex.split(arguments) for arguments in TABLE if "--scans" in arguments]
    assert len(shown) >= 6
    for words in shown:
        given, rest = sweep._parser().parse_known_args(words)
        assert rest == []
        for config in getattr(given, "config", []):
            assert (ROOT / config).is_file()


def test_time_out_on_the_page_is_that_of_the_overlay():
    overlay = yaml.safe_load((ROOT / "configs/overlays/ddp.yaml").read_text())
    minutes = int(re.search(r"waits (\d+) minutes for another", PAGE)[1])
    assert overlay["trainer"]["strategy"]["init_args"]["timeout"] == f"0:{minutes}:00"


def test_bytes_of_the_exchange_on_the_page_are_those_of_the_published_table():
    gigabytes = 4 * 365.4e6 / 1e9
    assert f"{gigabytes:.2f} GB of gradient" in PAGE
    links = {"NVLink": 400, "PCIe": 25, "InfiniBand HDR": 25, "InfiniBand NDR": 50, "Ethernet": 1.25}
    for name, bandwidth in links.items():
        (row,) = re.findall(rf"^\| {name}.*\|$", PAGE, re.MULTILINE)
        cells = [cell.split() for cell in row.strip("|").split("|")[1:]]
        shown = [float(number) * {"ms": 1e-3, "s": 1}[unit] for number, unit in cells]
        for seconds, (ranks, share) in zip(shown, ((2, 1), (8, 1), (8, 0.5)), strict=True):
            exact = 2 * (ranks - 1) / ranks * gigabytes * share / bandwidth
            assert abs(seconds / exact - 1) < 0.03, row
