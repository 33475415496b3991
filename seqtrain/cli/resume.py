"""The settings of a run that is resumed: its own, but for files that moved and longer training."""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqtrain.errors import CheckpointError

if TYPE_CHECKING:
    from seqtrain.config import RunConfig
    from seqtrain.training.run_dir import RunDir

FILES = ("data.train", "data.valid", "data.test", "data.labels", "data.splits")
GROWING = ("trainer.max_epochs", "trainer.patience")
FREE = (*FILES, *GROWING, "trainer.num_threads")
"""Settings that may differ from those the run began with."""


def resumed_config(
    run: "RunDir",
    saved: "RunConfig",
    composed: "RunConfig",
    plain: "RunConfig",
    overrides: Sequence[str],
) -> "RunConfig":
    """The settings that a run goes on with.

    Args:
        run: For messages.
        saved: The run's own.
        composed: From all that the user gave now.
        plain: From nothing given: where ``composed`` is the same, the user gave nothing.
        overrides: What the user gave as ``key=value``.

    Raises:
        CheckpointError: A setting was given that differs and must not.
    """
    given = given_settings(composed, plain, overrides)
    differing = _differing(given, saved)
    refused = sorted(differing.keys() - set(FREE))
    if refused:
        raise CheckpointError(
            f"{run.path}: --resume continues with the settings of the run, but you gave others: "
            f"{', '.join(_change(key, saved, differing[key]) for key in refused)}. Leave them out, "
            "or use another --run-dir."
        )
    for key in GROWING:
        _check_growth(run, key, saved, differing)
    config = copy.deepcopy(saved)
    for key, value in differing.items():
        section, name = key.split(".")
        setattr(getattr(config, section), name, value)
    return config


def given_settings(
    composed: "RunConfig", plain: "RunConfig", overrides: Sequence[str]
) -> dict[str, Any]:
    """Settings given by the user, by dotted name: in an override, or unlike the default."""
    from seqtrain.config import config_to_dict
    from seqtrain.pipeline import flatten

    found, default = flatten(config_to_dict(composed)), flatten(config_to_dict(plain))
    named = {item.lstrip("+~").partition("=")[0] for item in overrides}
    given = {k: v for k, v in found.items() if k in named or k not in default or v != default[k]}
    if "encoder.name" in given:
        # The rest of an encoder comes with its name: only what was named with it was given.
        given = {k: v for k, v in given.items() if not _comes_along(k, named)}
    return {key: value for key, value in given.items() if value is not None}


def _comes_along(key: str, named: set[str]) -> bool:
    return key.startswith("encoder.") and key != "encoder.name" and key not in named


def _differing(given: dict[str, Any], saved: "RunConfig") -> dict[str, Any]:
    from seqtrain.config import config_to_dict
    from seqtrain.pipeline import flatten

    before = flatten(config_to_dict(saved))
    return {key: value for key, value in given.items() if before.get(key) != value}


def _change(key: str, saved: "RunConfig", value: Any) -> str:
    section, name = key.split(".", 1)
    before = getattr(getattr(saved, section), name, None)
    return f"{key}={value} (the run has {before})"


def _check_growth(run: "RunDir", key: str, saved: "RunConfig", differing: dict[str, Any]) -> None:
    """A run may train for longer than it was to, not for less."""
    if key not in differing:
        return
    name = key.split(".")[1]
    before, now = getattr(saved.trainer, name), differing[key]
    without_end = name == "patience" and now == 0
    if without_end or (now > before and not (name == "patience" and before == 0)):
        return
    raise CheckpointError(
        f"{run.path}: {key}={now}: the run has {before}, and --resume can only raise it. Give "
        "more, leave it out, or use another --run-dir."
    )


def trains_on(config: "RunConfig", saved: "RunConfig") -> bool:
    """True if a run is to train for longer than it was to."""
    before, now = saved.trainer, config.trainer
    return (now.max_epochs, now.patience) != (before.max_epochs, before.patience)


def check_files(run: "RunDir", config: "RunConfig", saved: "RunConfig") -> None:
    """Refuse files of the run that are gone, by the option that gives their new place.

    Raises:
        CheckpointError: Names the first.
    """
    for key, path in _paths(config):
        if path == "-" or path.startswith("bundled:") or Path(path).exists():
            continue
        if path not in dict.fromkeys(p for k, p in _paths(saved) if k == key):
            continue  # a path given now: reading it says what is wrong
        option = key.replace("data.", "--")
        raise CheckpointError(
            f"{run.path}: {path}, which this run reads ({key}), is not there. Put it back, or give "
            f"its new place with {option}; the contents must be the same."
        )


def _paths(config: "RunConfig") -> Iterator[tuple[str, str]]:
    for key in FILES:
        for path in getattr(config.data, key.removeprefix("data.")):
            yield key, path


def warnings_of(run: "RunDir", config: "RunConfig", saved: "RunConfig") -> list[str]:
    """Differences of a resumed run: another number of threads, or a longer schedule."""
    import torch

    from seqtrain.training.device import choose_device
    from seqtrain.training.restore import read_state

    state = read_state(run)
    threads = config.trainer.num_threads or torch.get_num_threads()
    before = state.get("threads", threads)
    found = []
    if threads != before and choose_device(config.trainer.device).type == "cpu":
        found.append(
            f"the run began on {_threads(before)} and continues on {_threads(threads)}: sums are "
            "taken in another order, so its weights will differ in the last digits from those of "
            f"an uninterrupted run. For the same, give trainer.num_threads={before}"
        )
    old, new = saved.trainer.max_epochs, config.trainer.max_epochs
    if old != new:
        epoch = state.get("progress", {}).get("epoch", 0)
        found.append(
            f"trains on after epoch {epoch}, up to {new} epochs in place of {old}: from here on "
            f"the learning rate is that of a run of {new} epochs, so it goes up where the schedule "
            f"of {old} had already come down"
        )
    return found


def _threads(number: int) -> str:
    return f"{number} CPU thread" + "s" * (number != 1)
