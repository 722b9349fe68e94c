"""Every command of the README is run or, where it would take minutes, parsed by the program that it calls."""

import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from datamodules.synthetic import SyntheticScene
from main import main
from tests.datamodules.toy_photos import write_scene
from tests.test_configs import SMALL_DATA, SMALL_MODEL

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PROSE = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
INLINE = re.findall(r"`([^`\n]+)`", PROSE)

# sizes that make seconds of minutes; given last, so they win over the README's own flags
SMALL_RUN = ["--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false"]
SMALL_RAYS = [
    *["--model.init_args.log2_table_size=12", "--model.init_args.mesh_resolution=32"],
    *["--data.init_args.rays_per_batch=64", "--data.init_args.eval_downscale=1"],
]
SMALL_SCENE = {"image_size": 16, "num_surface_points": 2000}


def _commands() -> list[list[str]]:
    """The words of every command, without comments and variables set for it."""
    scripts = [text for language, text in BLOCKS if language == "bash"]
    lines = [line for text in scripts for line in text.replace("\\\n", " ").splitlines()]
    # commands within a sentence count where nothing is left for the reader to fill in
    lines += [code for code in INLINE if re.match(r"(python -m|python benchmarks/|make) ?", code) and "<" not in code]
    commands = [shlex.split(line, comments=True) for line in lines]
    for words in commands:
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
    return [words for words in commands if words]


def _kind(words: list[str]) -> str:
    """How a command is tested."""
    match words:
        case ["python", "main.py", *_]:
            return "main"
        case ["python", "-m", module, *_] if module.startswith(
            ("datamodules.", "benchmarks.", "callbacks.", "metrics.")
        ):
            return "program"
        case ["python", path, *_] if path.startswith(("benchmarks/", "sweep.py")):
            return "program"
        case ["make", *_]:
            return "make"
        case ["pip", "install", "-e", _]:
            return "pip"
        case ["conda", "env", "create", "-f", _]:
            return "conda"
    return "unknown"


def _of_kind(kind: str) -> list[list[str]]:
    return [words for words in _commands() if _kind(words) == kind]


def _make(*arguments: str) -> str:
    done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_command_is_of_a_kind_that_is_tested():
    assert {language for language, _ in BLOCKS} <= {"bash", "yaml", "python", ""}  # commands are in bash blocks
    assert [" ".join(words) for words in _of_kind("unknown")] == []
    assert _of_kind("main")
    assert _of_kind("make")


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder that looks to the README's commands like the checkout, with the data that they name, but small."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    scene = SyntheticScene(num_views=42, root=str(tmp_path / "made"), **SMALL_SCENE)
    scene.write_neus_layout(tmp_path / "data/dtu/dtu_scan24")
    write_scene(scene.load_scene(), tmp_path / "data/photos")
    (tmp_path / "data/dtu/dtu_scan24/sfm_pts").mkdir()
    np.save(tmp_path / "data/dtu/dtu_scan24/sfm_pts/points.npy", scene.load_scene().surface_points.numpy())
    (tmp_path / "my_pictures").mkdir()
    for k in range(2):
        picture = Image.new("RGBA", (40, 30))
        picture.paste((200, 100, 50, 255), (10, 5, 30 - k, 25))
        picture.save(tmp_path / f"my_pictures/{k}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _run_main(args: list[str], steps: int) -> None:
    """One command with its sizes cut, and what it must leave behind."""
    if args[0] != "fit":  # the sizes are in the config of the run
        cli = main(args)
        run = Path(cli.config[args[0]].ckpt_path).parents[1]
        assert list((run / args[0]).glob("shapes/*.ply"))
        if args[0] == "test":
            assert {"report.html", "objects.csv"} <= {path.name for path in (run / "test").iterdir()}
        return
    configs = [args[i + 1] for i, word in enumerate(args) if word == "--config"]
    content = yaml.safe_load(Path(configs[0]).read_text())
    model, data = (content[part]["class_path"] for part in ("model", "data"))
    sizes = SMALL_SCENE if data.endswith("SyntheticScene") else SMALL_DATA[data] if "Objects" in data else {}
    args = [*args, *(f"--data.init_args.{name}={value}" for name, value in sizes.items())]
    if model.endswith("Neuralangelo"):
        args += SMALL_RAYS
    else:
        args += [f"--model.init_args.{name}={value}" for name, value in SMALL_MODEL[model].items()]
    cli = main([*args, *SMALL_RUN, f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={steps}"])
    assert cli.trainer.global_step == steps
    assert cli.trainer.callback_metrics["train/loss"].isfinite()
    run = Path(cli.trainer.log_dir)
    assert run.parent == Path("runs", Path(configs[0]).stem)
    panels = {"panels"} if getattr(cli.datamodule, "held_out_views", None) else set()
    assert {"config.yaml", "metrics.csv", "checkpoints"} | panels <= {path.name for path in run.iterdir()}


def test_commands_of_the_one_program_run_in_their_order(workplace, capsys):
    for words in _of_kind("main"):
        args = words[2:]
        try:
            if "--print_config" in args:
                with pytest.raises(SystemExit) as stop:
                    main(args)
                assert stop.value.code == 0
                continue
            # a resumed run takes one step more, or it would have nothing to do
            _run_main(args, steps=3 if args[0] == "fit" and "--ckpt_path" in args else 2)
        except (Exception, SystemExit) as error:
            error.add_note(f"in the README's command: {' '.join(words)}")
            raise


def test_flags_that_the_text_names_are_keys_of_the_config(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(ROOT / "configs/neuralangelo_dtu.yaml"), "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    flags = {flag for code in INLINE for flag in re.findall(r"^--(\w+(?:\.\w+)+)", code)}
    assert flags
    for flag in flags:
        value = config
        for key in flag.split("."):
            assert key in value, flag
            value = value[key]


PROGRAMS = sorted({tuple(words) for words in _of_kind("program")})


@pytest.mark.parametrize("words", PROGRAMS, ids=" ".join)
def test_program_takes_the_flags_it_is_shown_with(words):
    # a wrong value stops argparse before it comes to the help; a flag it does not know does not, but is not in the help
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, *words[1:], "--help"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for flag in (word.split("=")[0] for word in words if word.startswith("--")):
        assert re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", done.stdout), f"{flag} is not in its help"


def test_targets_of_make_exist_and_the_demo_is_a_fit_and_a_test():
    targets = {tuple(words[1:]) for words in _of_kind("make")}
    assert {("demo",), ("demo-shapes",), ("test",)} <= targets
    for target in targets:
        _make(*target)
    fits = re.findall(r"main\.py fit --config configs/(\w+)_shapes\.yaml", _make("demo-shapes"))
    assert fits.index("imnet_autoencoder") < fits.index("imnet")  # whose checkpoint it takes
    assert {f"{name}_shapes.yaml" for name in fits} == {path.name for path in (ROOT / "configs").glob("*_shapes.yaml")}
    shown = _make("demo")
    assert re.search(r"main\.py fit --config configs/neuralangelo_demo\.yaml\n.*main\.py test\n", shown)


def test_installing_names_extras_and_files_that_exist():
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    requested = [words[-1] for words in _of_kind("pip")]
    for words in _of_kind("conda"):
        environment = yaml.safe_load((ROOT / words[-1]).read_text())
        assert environment["name"]
        (packages,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
        requested += [entry.removeprefix("-e ") for entry in packages if entry.startswith("-e ")]
    assert requested
    named = [set(re.fullmatch(r"\.\[([\w,]+)\]", package)[1].split(",")) for package in requested]
    assert all(names == named[0] <= extras for names in named)


def test_links_and_pictures_exist():
    links = [link for link in re.findall(r"\]\(([^)\s]+)", README) if not link.startswith(("http", "#"))]
    assert [link for link in links if not (ROOT / link.split("#")[0]).exists()] == []


def test_files_and_names_that_the_text_mentions_exist():
    (tour,) = (text for language, text in BLOCKS if language == "" and "main.py" in text)
    mentioned = []
    for line in tour.splitlines():
        first, _, rest = line.partition(" ")
        folder = ROOT / first if first.endswith("/") else ROOT
        mentioned += [(ROOT, first)] + [(folder, name) for name in re.findall(r"[\w/]+\.py|[\w/]+\.yaml|\w+/", rest)]
    for code in INLINE:
        names = re.findall(r"^[\w/]+\.(?:py|ya?ml|toml)$|^(?:configs|overlays|methods|ops|docs)/[\w/]*$", code)
        # config.yaml is a run's
        mentioned += [(ROOT, name) for name in names if name != "config.yaml"]
    assert len(mentioned) > 20
    places = ["", "configs", "configs/overlays"]
    missing = [name for folder, name in mentioned if not any((folder / place / name).exists() for place in places)]
    assert missing == []
    dotted = re.compile(r"(?:methods|datamodules|losses|ops|metrics|callbacks)(?:\.[a-z_]\w*)+\.[A-Z]\w*")
    for name in filter(dotted.fullmatch, INLINE):
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


def test_nothing_is_left_to_fill_in_and_no_path_is_of_one_machine():
    assert re.findall(r"@@.*|\bTODO\b|\bFIXME\b", README) == []
    assert re.findall(r"(?:^|[\s`(\"'=])(/\w[^\s`)]*|~/[^\s`)]*|[A-Z]:\\\S*)", README) == []
