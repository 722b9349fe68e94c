"""Benchmarks run in their smallest sizes, are all listed, and draw what they measured."""

import io
import re
import runpy
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

from benchmarks import all as every
from benchmarks import peers
from benchmarks.alternatives import NeusStyle
from benchmarks.growth import axis, extraction, objects, pages, rays
from benchmarks.growth.axis import Growth

ROOT = Path(__file__).parents[1]
SQUARE = Growth("Squares", "edge", (1, 10, 100), (1, 10), lambda n: lambda: {"area": n**2, "edge": n}, ("area",), "m²")


def test_every_script_is_run_by_make_bench_or_left_out_with_a_reason():
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"all", "machine", "shape_methods"}
    scripts |= {f"growth.{name}" for name in pages.AXES}
    assert set(every.BENCHMARKS) <= scripts
    assert not set(every.BENCHMARKS) & set(every.LEFT_OUT)
    assert scripts - set(every.BENCHMARKS) - set(every.LEFT_OUT) == set()
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^bench: .*\n\t.*-m benchmarks\.all$", makefile, re.MULTILINE)


@pytest.mark.parametrize("name", every.BENCHMARKS)
def test_a_listed_benchmark_takes_the_flags_it_is_given(name, monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.delitem(sys.modules, f"benchmarks.{name}", raising=False)  # runpy warns of modules that are there
    with redirect_stdout(shown), pytest.raises(SystemExit) as stop:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    assert stop.value.code == 0
    words = every.BENCHMARKS[name] + every.ON_CUDA.get(name, [])
    for flag in (word for word in words if word.startswith("--")):
        assert re.search(rf"{flag}(?![\w-])", shown.getvalue()), flag


@pytest.mark.parametrize("growth", [rays.GROWTH, extraction.GROWTH, objects.GROWTH], ids=lambda growth: growth.axis)
def test_an_axis_is_measured_at_its_small_sizes(growth, capsys):
    text = axis.run(growth, ["--small"])
    rows = [line for line in text.splitlines() if re.match(r"\| \d", line)]
    assert len(rows) == len(growth.small)
    assert set(growth.plotted) <= set(text.splitlines()[2].strip("| ").split(" | "))
    assert text.splitlines()[0] in capsys.readouterr().out


def test_slope_of_a_square_is_two():
    rows = axis.measure(SQUARE, SQUARE.sizes, repeats=1)
    lines = axis.table(SQUARE, SQUARE.sizes, rows).splitlines()
    assert [line.strip("| ").split(" | ")[-1] for line in lines[3:]] == ["2.00", "2.00"]


def test_of_several_turns_the_least_counts():
    values = iter([3.0, 5.0, 2.0, 4.0])
    growth = Growth("", "", (1, 2), (1, 2), lambda _: lambda: {"s": next(values)}, ("s",), "s")
    assert axis.measure(growth, growth.sizes, repeats=2) == [{"s": 2.0}, {"s": 4.0}]


def test_a_plot_is_small_and_says_axis_unit_and_machine(tmp_path):
    pytest.importorskip("matplotlib")
    rows = axis.measure(SQUARE, SQUARE.sizes, repeats=1)
    axis.plot(SQUARE, SQUARE.sizes, rows, tmp_path / "square.svg", "2026-01-01, a machine")
    content = (tmp_path / "square.svg").read_text()
    assert len(content) < 60_000
    for text in ("edge", "m²", "Squares", "2026-01-01, a machine"):
        assert text in content


@pytest.mark.parametrize("occupancy_resolution", [0, 8])
def test_the_mlp_that_is_compared_takes_a_step_that_reaches_all_of_it(occupancy_resolution, generator):
    model = NeusStyle(
        mlp_size=48, gradient="analytic", curvature_weight=0.0, background="black", max_steps=10, num_levels=2,
        log2_table_size=8, base_resolution=4, finest_resolution=8, sdf_hidden_size=8, color_hidden_size=8,
        color_layers=1, occupancy_resolution=occupancy_resolution, num_coarse_samples=8, num_fine_samples=4,
    )  # fmt: skip
    model.log_dict = lambda *_, **__: None
    origins = torch.nn.functional.normalize(torch.randn(16, 3, generator=generator), dim=-1) * 2
    batch = {"origins": origins, "directions": -origins / 2, "colors": torch.rand(16, 3, generator=generator)}
    model.on_train_batch_start(batch, 0)
    model.training_step(batch, 0).backward()
    assert all(p.grad.isfinite().all() for p in model.sdf_network.parameters())
    assert all(p.grad.abs().sum() > 0 for n, p in model.sdf_network.named_parameters() if "bias" not in n)


def test_a_section_of_the_page_is_renewed_and_the_rest_stays():
    page = "# A\n<!-- growth:rays -->\nold\n<!-- /growth:rays -->\nB\n"
    new = pages.renewed(page, "rays", r"new \1")
    assert new == "# A\n<!-- growth:rays -->\nnew \\1\n<!-- /growth:rays -->\nB\n"
    with pytest.raises(ValueError, match="growth:levels"):
        pages.renewed(page, "levels", "")


def test_the_page_has_a_section_for_every_axis():
    page = pages.PAGE.read_text(encoding="utf-8")
    for name in pages.AXES:
        assert pages.renewed(page, name, "") != page or f"<!-- growth:{name} -->\n\n" in page


def test_the_help_loads_no_module_that_only_a_run_needs():
    heavy = ["wandb", "numba", "trimesh", "pycolmap", "mcubes", "h5py"]
    heavy += ["methods", "datamodules", "callbacks", "metrics", "losses", "ops"]
    code = (
        "import runpy, sys; sys.argv = ['main.py', '--help']\n"
        "try: runpy.run_path('main.py', run_name='__main__')\n"
        f"finally: print('loaded:', [name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "loaded: []" in done.stdout, done.stdout[-300:]


@pytest.mark.parametrize(
    ("words", "message"),
    [([], "name at least one checkout"), (["--onet", "nowhere"], "nowhere: no such folder; expected a checkout")],
)
def test_public_code_is_asked_for_by_its_folder(words, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["peers", *words])
    with pytest.raises(SystemExit):
        peers.main()
    assert message in capsys.readouterr().err
