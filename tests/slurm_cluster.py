"""A real SLURM of two nodes on one machine, for tests: its own folder, its own ports, and nothing left behind.

No munge, no cgroups, no systemd; it takes Debian's ``slurm-wlm`` and about two seconds to start. It runs as whoever
starts it, and signals, requeues and loses nodes as a large one does.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

NODES = ("n1", "n2")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue", "sinfo")
INSTALL = "apt-get install -y --no-install-recommends slurm-wlm"
CONFIGURATION = """\
ClusterName=toy
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=0,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=20
MinJobAge=3600
SlurmctldTimeout=60
SlurmdTimeout=120
"""


def missing_programs() -> list[str]:
    """What of SLURM is not installed here."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


class SlurmCluster:
    """Two nodes of two CPUs each, up inside a ``with`` block.

    Args:
        folder: for state, logs and what jobs print; new or empty.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        # n1 and n2 are names of nobody's, so processes meet at the loopback address
        self.environment |= {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "MASTER_ADDR": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
            "PYTHON": sys.executable,
        }
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        for name in ("state", "spool", "log"):
            (self.folder / name).mkdir(parents=True)
        controller_port, *node_ports = _free_ports(1 + len(NODES))
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        facts = {"host": socket.gethostname().split(".")[0], "user": user, "folder": self.folder}
        lines = [CONFIGURATION.format(controller_port=controller_port, **facts)]
        for node, port in zip(NODES, node_ports, strict=True):
            address = f"NodeHostname={node} NodeAddr=127.0.0.1 Port={port}"
            lines.append(f"NodeName={node} {address} CPUs=2 RealMemory=1000 State=UNKNOWN\n")
        lines.append(f"PartitionName=main Nodes={','.join(NODES)} Default=YES MaxTime=INFINITE State=UP\n")
        (self.folder / "slurm.conf").write_text("".join(lines))
        try:
            self._start("slurmctld", "-c")
            for node in NODES:
                self.start_node(node)
            self._wait_until(lambda: self._idle_nodes() == len(NODES), 60, "two idle nodes")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(AssertionError, subprocess.SubprocessError, TimeoutError):
            self.say("scancel", "--user", self.say("id", "-un"))
            # a daemon that is stopped during a step leaves the step's own daemon behind
            self._wait_until(lambda: not self.say("squeue", "-h"), 60, "an empty queue")
            self._wait_until(lambda: self._idle_nodes() == len(NODES), 60, "two idle nodes")
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            daemon.wait(60)

    def start_node(self, node: str) -> None:
        """Start the daemon of a node."""
        self._start("slurmd", "-N", node)

    def submit(self, *arguments: str | Path, cwd: Path, **environment: str) -> str:
        """Submit a batch script, as ``sbatch`` would with these arguments, and return the job's number."""
        return self.say("sbatch", "--parsable", *map(str, arguments), cwd=cwd, **environment).split(";")[0]

    def signal(self, job: str, name: str) -> None:
        """Send a signal to the job's processes, as SLURM does before a time limit."""
        self.say("scancel", f"--signal={name}", job)

    def requeue(self, job: str) -> None:
        """What happens to a job whose node is lost."""
        self.say("scontrol", "requeue", job)

    def facts(self, job: str) -> dict[str, str]:
        """What the controller knows of a job: JobState, Restarts, ExitCode and more."""
        words = self.say("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, job: str, timeout: float = 600) -> dict[str, str]:
        """Wait until a job has ended for good; its facts."""
        self._wait_until(
            lambda: self.facts(job)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED", "CONFIGURING"),
            timeout, f"an end of job {job}",
        )  # fmt: skip
        return self.facts(job)

    def wait_for(self, job: str, is_there: Callable[[], object], what: str, timeout: float = 600) -> None:
        """Wait for something that a job brings about."""

        def is_over() -> bool:
            return bool(is_there()) or self.facts(job)["JobState"] in ("FAILED", "CANCELLED", "COMPLETED", "TIMEOUT")

        self._wait_until(is_over, timeout, what)
        if not is_there():
            raise AssertionError(f"job {job} is {self.facts(job)['JobState']} without {what}")

    def processes(self, job: str, rank: int) -> list[int]:
        """Processes of one rank of a job, and what they have started."""
        names = [f"SLURM_CONF={self.folder / 'slurm.conf'}", f"SLURM_JOB_ID={job}", f"SLURM_PROCID={rank}"]
        return [pid for pid, variables in _environments() if all(name.encode() in variables for name in names)]

    def leftovers(self) -> list[int]:
        """Processes that were started for or by this cluster."""
        name = f"SLURM_CONF={self.folder / 'slurm.conf'}".encode()
        return [pid for pid, variables in _environments() if name in variables]

    def _start(self, program: str, *arguments: str) -> None:
        log = (self.folder / f"log/{program}{len(self._daemons)}.log").open("wb")
        with log:
            command = [program, "-D", *arguments, "-f", str(self.folder / "slurm.conf")]
            self._daemons.append(
                subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, start_new_session=True)
            )

    def say(self, *command: str, cwd: Path | None = None, **environment: str) -> str:
        """What a command prints that speaks to this cluster."""
        done = subprocess.run(
            command, cwd=cwd, env=self.environment | environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def _idle_nodes(self) -> int:
        with contextlib.suppress(AssertionError, subprocess.SubprocessError):
            return sum(map(int, self.say("sinfo", "-h", "-t", "idle", "-o", "%D").split()))
        return 0

    def _wait_until(self, is_true: Callable[[], bool], timeout: float, what: str) -> None:
        deadline = time.monotonic() + timeout
        while not is_true():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what} did not come within {timeout} s; see {self.folder}/log")
            time.sleep(0.2)


def _environments() -> Iterator[tuple[int, list[bytes]]]:
    """Numbers of all processes that may be looked at, with their variables."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield int(folder.name), (folder / "environ").read_bytes().split(b"\0")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
