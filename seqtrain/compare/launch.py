"""Arms as jobs of their own: local processes or SLURM, through submitit."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqtrain.compare.plan import Comparison, check_same_start
from seqtrain.compare.run import Result, Tell, collect, is_finished, run_arm
from seqtrain.errors import ConfigError

LAUNCHERS = ("local", "processes", "slurm")
POLL_SECONDS = 0.5
DEFAULTS: Mapping[str, Any] = {"timeout_min": 240, "cpus_per_task": 2, "mem_gb": 8}


def launch_arms(
    comparison: Comparison,
    folder: Path,
    launcher: str,
    *,
    num_jobs: int = 2,
    resources: Mapping[str, Any] | None = None,
    tell: Tell = lambda *_: None,
) -> list[Result]:
    """Every unfinished arm as a job; waits for all of them.

    Args:
        comparison: What to train.
        folder: From ``open_comparison``; on SLURM one that all nodes see.
        launcher: ``processes`` or ``slurm``.
        num_jobs: Arms at the same time.
        resources: As submitit's ``update_parameters`` takes them; added to the defaults.
        tell: As ``run_arms`` has it, when an arm is submitted.

    Raises:
        ConfigError: submitit is not installed, there is no SLURM, or it refuses the resources.
    """
    executor = _executor(folder / "jobs", launcher, {**DEFAULTS, **(resources or {})})
    arms = comparison.arms()
    waiting = [arm for arm in arms if not is_finished(folder, arm)]
    for seed in sorted({arm.seed for arm in waiting}):
        check_same_start(comparison, seed)
    began, total = time.monotonic(), len(waiting)
    running: list[Any] = []
    try:
        while waiting or running:
            running = [job for job in running if not job.done()]
            done = total - len(waiting) - len(running)
            left = (time.monotonic() - began) / done * (total - done) if done else None
            while waiting and len(running) < num_jobs:
                arm = waiting.pop(0)
                tell(arm, arms.index(arm) + 1, len(arms), left)
                running.append(executor.submit(run_arm, comparison.plan(arm), arm, folder))
            time.sleep(POLL_SECONDS)
    except BaseException:
        for job in running:
            job.cancel()
        raise
    return collect(comparison, folder)


def _executor(folder: Path, launcher: str, resources: Mapping[str, Any]) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise ConfigError(
            f"--launcher {launcher}: needs submitit. Install it: pip install 'seqtrain[launch]'."
        ) from error
    cluster = {"processes": "local", "slurm": "slurm"}[launcher]
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(name="seqtrain-compare", **resources)
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        raise ConfigError(f"--launcher {launcher}: {error}") from error
    return executor
