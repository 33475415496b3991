"""Arms as jobs of their own: local processes or SLURM, through submitit."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqtrain.compare.plan import Comparison, check_same_start
from seqtrain.compare.run import Result, Tell, collect, is_finished, run_arm
from seqtrain.compose import config_folders
from seqtrain.errors import ConfigError

POLL_SECONDS = 0.5


def read_resources(launcher: str, config_dir: Path | None = None) -> dict[str, Any]:
    """What ``conf/launcher/NAME.yaml`` gives each arm, or the user's own file of that name.

    Raises:
        ConfigError: it holds something else than names and values.
    """
    import yaml

    for folder in config_folders(config_dir):
        path = folder / "launcher" / f"{launcher}.yaml"
        if path.is_file():
            break
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: expected names and values such as timeout_min: 60.")
    return found


def launch_arms(
    comparison: Comparison,
    folder: Path,
    launcher: str,
    *,
    num_jobs: int = 2,
    resources: Mapping[str, Any],
    tell: Tell = lambda *_: None,
) -> list[Result]:
    """Every unfinished arm as a job; waits for all of them.

    Args:
        comparison: What to train.
        folder: From ``open_comparison``; on SLURM one that all nodes see.
        launcher: ``processes`` or ``slurm``.
        num_jobs: Arms at the same time.
        resources: Of one arm, as submitit's ``update_parameters`` takes them.
        tell: As ``run_arms`` has it, when an arm is submitted.

    Raises:
        ConfigError: submitit is not installed, there is no SLURM, or it refuses the resources.
    """
    executor = _executor(folder / "jobs", launcher, resources)
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
