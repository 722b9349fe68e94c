"""One experiment on many scans: each is fitted and tested by itself, then one table gathers all.

A scan is whatever ``--vary`` names: a scan of DTU, an object of OmniObject3D or ShapeNet, a folder of photographs. All
of a sweep is in one folder, ``<run_root>/<name>/``: the runs of each scan, ``logs/<scan>.log``, ``table.md`` and
``table.csv``. The same command again goes on where it was stopped and leaves out what is finished.
"""

import argparse
import json
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if "SLURM_JOB_ID" in os.environ:
    # SIGUSR1 waits here until it is asked for, and in the commands until they listen
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})

from callbacks.files import file_name, write_whole
from callbacks.gather import complaints, csv_text, line_of, markdown, score_names
from callbacks.requeue import LEFT_EARLY, requeue

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Sweep:
    """What is done to which scans; the folder's ``sweep.json``.

    Attributes:
        folder: of all that belongs to it.
        configs: of the experiment, in their order.
        vary: key of the config that a scan is a value of.
        scans: their names.
        arguments: more of them for ``main.py fit``.
    """

    folder: Path
    configs: list[str]
    vary: str
    scans: list[str]
    arguments: list[str]

    def __post_init__(self) -> None:
        names = [file_name(scan) for scan in self.scans]
        same = [scan for scan, name in zip(self.scans, names, strict=True) if names.count(name) > 1]
        if same or not self.scans:
            problem = f"{', '.join(same)} would share a folder" if same else "none was given"
            raise ValueError(f"--scans: {problem}; expected one or more names that differ as file names")

    @classmethod
    def load(cls, folder: Path) -> "Sweep":
        """The sweep of a folder.

        Raises:
            ValueError: none was begun there.
        """
        path = folder / "sweep.json"
        if not path.is_file():
            raise ValueError(f"{path}: no such file; begin with python sweep.py run --config CONFIG --scans SCAN [...]")
        return cls(folder=folder, **json.loads(path.read_text(encoding="utf-8")))

    def save(self) -> None:
        """Begin the sweep, or go on with the one that is there.

        Raises:
            ValueError: that is another one.
        """
        path = self.folder / "sweep.json"
        if path.is_file() and (there := Sweep.load(self.folder)) != self:
            differing = [name for name, value in asdict(self).items() if value != asdict(there)[name]]
            raise ValueError(
                f"{self.folder}: a sweep with other {', '.join(differing)} was begun here ({path}); give this one "
                "another --name, or the same arguments to go on with that one"
            )
        write_whole(path, json.dumps({k: v for k, v in asdict(self).items() if k != "folder"}, indent=2) + "\n")

    def runs(self, scan: str) -> Path:
        """Folder of a scan's runs."""
        return self.folder / file_name(scan)

    def log(self, scan: str) -> Path:
        """What the commands of a scan print."""
        return self.folder / f"logs/{file_name(scan)}.log"

    def state_file(self, scan: str) -> Path:
        """What has been done for a scan."""
        return self.folder / f"state/{file_name(scan)}.json"

    def state(self, scan: str) -> dict[str, Any]:
        """``status``, "unfinished", "finished" or "failed"; ``is_fitted``; and ``fit_seconds``."""
        path = self.state_file(scan)
        empty = {"status": "unfinished", "is_fitted": False, "fit_seconds": 0.0}
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else empty

    def command(self, scan: str, stage: str) -> list[str]:
        """The command of a stage; fit goes on from the newest checkpoint of the scan if there is one."""
        runs = self.runs(scan)
        words = [sys.executable, str(HERE / "main.py"), stage]
        if stage == "test":
            return [*words, "--run_root", str(runs), "--trainer.devices", "1", "--trainer.num_nodes", "1"]
        words += [word for config in self.configs for word in ("--config", config)]
        words += [f"--{self.vary}", scan, "--run_root", str(runs.parent), "--run_name", runs.name]
        if any(runs.glob("**/checkpoints/last.ckpt")):
            words += ["--ckpt_path", "last"]
        return [*words, "--trainer.devices", "1", *self.arguments]


class Worker:
    """Fits and tests scans, one command at a time, and can be told to stop from another thread.

    Args:
        sweep: what to do.
        device: number of the GPU that its commands see; ``None`` shows them all.
        is_slurm_task: whether this is a task of an array, whose commands are the task's.
    """

    def __init__(self, sweep: Sweep, device: str | None = None, is_slurm_task: bool = False) -> None:
        self.sweep, self.device, self.is_slurm_task = sweep, device, is_slurm_task
        self.stopping = threading.Event()

    def do(self, scan: str) -> str:
        """Bring one scan to its end.

        Returns:
            Its status: "finished" or "failed", or "unfinished" where the worker was stopped or is to go on later.
        """
        state = self.sweep.state(scan)
        if state["status"] == "finished":
            return "finished"
        was_fitted = state["is_fitted"]
        if not was_fitted:
            started = time.monotonic()
            status = self._run(scan, "fit", may_requeue=False)  # which does so itself
            state["fit_seconds"] += time.monotonic() - started
            if status != 0:
                return self._ended(scan, state, status)
            state["is_fitted"] = True
            self._note(scan, state)
        # a test begins from its beginning, so a new start helps only one that had less than all of this one's time
        status = self._run(scan, "test", may_requeue=not was_fitted)
        return self._ended(scan, state, status)

    def _ended(self, scan: str, state: dict[str, Any], status: int) -> str:
        has_left = self.stopping.is_set() or status == LEFT_EARLY
        state["status"] = "finished" if status == 0 else "unfinished" if has_left else "failed"
        self._note(scan, state)
        return state["status"]

    def _note(self, scan: str, state: dict[str, Any]) -> None:
        write_whole(self.sweep.state_file(scan), json.dumps(state) + "\n")

    def _run(self, scan: str, stage: str, may_requeue: bool) -> int:
        """Run a command of a scan, its words and its output at the end of the log; its exit status."""
        command = self.sweep.command(scan, stage)
        environment = dict(os.environ)
        if not self.is_slurm_task:
            environment = {k: v for k, v in environment.items() if not k.startswith("SLURM_")}
        if self.device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.device
        log = self.sweep.log(scan)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(f"$ {shlex.join(command)}\n")
            file.flush()
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )
            try:
                while process.poll() is None and not self.stopping.is_set():
                    if self.is_slurm_task and signal.sigtimedwait({signal.SIGUSR1}, 0.2):
                        self._pass_on(process, may_requeue)
                    elif not self.is_slurm_task:
                        self.stopping.wait(0.2)
            finally:
                if process.poll() is None:
                    process.terminate()
                    try:
                        process.wait(60)
                    except subprocess.TimeoutExpired:
                        process.kill()
        return process.wait()

    def _pass_on(self, process: subprocess.Popen[bytes], may_requeue: bool) -> None:
        process.send_signal(signal.SIGUSR1)
        if may_requeue:
            print(f"SIGUSR1 in a test: {requeue()}", flush=True)
            self.stopping.set()


def run(sweep: Sweep, devices: list[str | None]) -> bool:
    """Do all scans here, as many at a time as there are devices; whether all are finished."""
    free: queue.Queue[Worker] = queue.Queue()
    workers = [Worker(sweep, device) for device in devices]
    for worker in workers:
        free.put(worker)

    def do(scan: str) -> None:
        worker = free.get()
        try:
            if worker.stopping.is_set():
                return
            if sweep.state(scan)["status"] == "finished":
                print(f"{scan}: finished before", flush=True)
                return
            print(f"{scan}: started, see {sweep.log(scan)}", flush=True)
            started = time.monotonic()
            status = worker.do(scan)
            print(f"{scan}: {status} after {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
        finally:
            free.put(worker)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    with ThreadPoolExecutor(len(workers)) as pool:
        try:
            for done in [pool.submit(do, scan) for scan in sweep.scans]:
                done.result()
        except KeyboardInterrupt:
            for worker in workers:
                worker.stopping.set()
            print("stopping; the same command goes on from here", file=sys.stderr)
        finally:
            signal.signal(signal.SIGTERM, before)
    return gather(sweep)


def one(sweep: Sweep, index: int) -> int:
    """Do the scan of one task of an array; the task's exit status."""
    if not 0 <= index < len(sweep.scans):
        raise ValueError(f"{sweep.folder}: scan number {index}, but there are {len(sweep.scans)}, counted from 0")
    scan, worker = sweep.scans[index], Worker(sweep, is_slurm_task=True)
    signal.signal(signal.SIGTERM, lambda *_: worker.stopping.set())
    print(f"{scan}: started, see {sweep.log(scan)}", flush=True)
    status = worker.do(scan)
    print(f"{scan}: {status}", flush=True)
    return {"finished": 0, "failed": 1}.get(status, LEFT_EARLY)


def submit(sweep: Sweep, options: list[str], at_once: int) -> None:
    """Submit an array of all scans and, after it, a job that gathers them."""
    environment = os.environ | {"PYTHON": sys.executable}
    script, folder = HERE / "configs/slurm", str(sweep.folder)
    tasks = f"--array=0-{len(sweep.scans) - 1}%{at_once or len(sweep.scans)}"

    def sbatch(*arguments: str) -> str:
        done = subprocess.run(
            ["sbatch", "--parsable", *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            raise ValueError(f"sbatch {shlex.join(arguments)} failed; what it said is above")
        return done.stdout.strip().split(";")[0]

    array = sbatch(tasks, *options, str(script / "sweep.sbatch"), folder)
    table = sbatch(f"--dependency=afterany:{array}", str(script / "gather.sbatch"), folder)
    print(
        f"array {array} does {len(sweep.scans)} scans, then job {table} writes {folder}/table.md; squeue --me shows it"
    )


def gather(sweep: Sweep, scores: list[str] | None = None) -> bool:
    """Write the table of what there is and print it; whether all scans are finished."""
    lines = [line_of(s, sweep.runs(s), sweep.state_file(s), sweep.log(s)) for s in sweep.scans]
    table, missing = markdown(lines, score_names(lines, scores)), complaints(lines)
    note = "".join(["\nWithout scores, and in no mean:\n\n", *(f"- {each}\n" for each in missing)]) if missing else ""
    write_whole(sweep.folder / "table.md", table + note)
    write_whole(sweep.folder / "table.csv", csv_text(lines))
    print(table + note, end="", flush=True)
    return not missing


def _devices(asked: list[str] | None, num_workers: int | None) -> list[str | None]:
    """One entry a worker: the GPU it is shown, or ``None`` for a worker on the CPU."""
    if asked:
        return list(asked)
    if num_workers is not None:
        return [None] * num_workers
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        import torch.cuda  # only here is it known how many there are

        return [str(k) for k in range(torch.cuda.device_count())] or [None]
    return list(filter(None, visible.split(","))) or [None]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="subcommand", required=True)
    for name, text in (
        ("run", "do all scans here, one a GPU; what is not known here goes to main.py fit"),
        ("submit", "do them as a SLURM job array, and gather them in a job after it"),
    ):
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument("--config", action="append", required=True, help="of the experiment; may be repeated")
        command.add_argument("--scans", nargs="+", required=True, help="names, or one file with a name a line")
        command.add_argument("--vary", default="data.init_args.scan", help="key of the config that takes the name")
        command.add_argument("--name", help="folder of the sweep; <config>_sweep where not given")
        command.add_argument("--run_root", default="runs", help="folder that holds it")
    run_command, submit_command = commands.choices["run"], commands.choices["submit"]
    run_command.add_argument("--devices", nargs="+", help="GPUs to use, one worker each; all where not given")
    run_command.add_argument("--workers", type=int, help="workers that share whatever there is, for CPUs")
    submit_command.add_argument("--sbatch", default="", help='for the array, "--gpus=1 --cpus-per-task=8" for instance')
    submit_command.add_argument("--at_once", type=int, default=0, help="most tasks at a time; 0 is no limit")
    task = commands.add_parser("one", help="do one scan, as a task of an array")
    task.add_argument("folder", type=Path, help="of the sweep")
    task.add_argument("index", type=int, help="number of the scan, from 0")
    table = commands.add_parser("gather", help="write table.md and table.csv of what there is")
    table.add_argument("folder", type=Path, help="of the sweep")
    table.add_argument("--scores", nargs="+", help="columns of the Markdown table; the CSV file has all")
    return parser


def _begun(given: argparse.Namespace, arguments: list[str]) -> Sweep:
    scans = given.scans
    if len(scans) == 1 and Path(scans[0]).is_file():
        lines = (line.split("#")[0].strip() for line in Path(scans[0]).read_text(encoding="utf-8").splitlines())
        scans = [line for line in lines if line]
    name = given.name or f"{Path(given.config[0]).stem}_sweep"
    sweep = Sweep(Path(given.run_root, name), given.config, given.vary, scans, arguments)
    sweep.save()
    return sweep


def main(arguments: list[str] | None = None) -> int:
    """One command; its exit status is 0 if every scan that it is about is finished."""
    parser = _parser()
    given, rest = parser.parse_known_args(arguments)
    if rest and given.subcommand in ("one", "gather"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        if given.subcommand == "run":
            return 0 if run(_begun(given, rest), _devices(given.devices, given.workers)) else 1
        if given.subcommand == "submit":
            submit(_begun(given, rest), shlex.split(given.sbatch), given.at_once)
            return 0
        sweep = Sweep.load(given.folder)
        if given.subcommand == "one":
            return one(sweep, given.index)
        return 0 if gather(sweep, given.scores) else 1
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
