"""How a SLURM job puts itself back into the queue. Nothing heavy is imported: ``sweep.py`` uses it, too."""

import os
import subprocess

LEFT_EARLY = 75
"""Exit status of a run that saved, stopped, and is to go on later (EX_TEMPFAIL)."""


def job_name() -> str:
    """What ``scontrol`` calls this job; one task of an array has a name of its own."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def requeue() -> str:
    """Requeue this process's job, if it is one, and say what was done or is to be done by hand."""
    if "SLURM_JOB_ID" not in os.environ:
        return "--ckpt_path last goes on from there"
    command = ["scontrol", "requeue", job_name()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        problem = done.stderr.strip() if done.returncode else None
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem is None:
        return f"job {command[-1]} is in the queue again"
    return (
        f"but {' '.join(command)} failed: {problem}; was the job submitted with --requeue? "
        "Submit it again with --ckpt_path last"
    )
