"""Values that the shell completes; nothing is loaded for them before it asks.

``ctx`` is the context of the words before, of a class that is Typer's own.
"""

from collections.abc import Callable, Iterator
from typing import Any

from seqtrain.errors import SeqtrainError

Completed = list[tuple[str, str]]
"""Value and explanation."""

NOT_SET = (".", "experiment", "launcher")
"""Folders of conf/ that are no groups of settings."""


def one_of(*names: str) -> Callable[[], list[str]]:
    """A completion of an option that takes one of a few words."""
    return lambda: list(names)


def config_names(ctx: Any) -> Completed:
    """Configs and experiments, with what they are for."""
    found = _configs(ctx)
    return [*found.get(".", []), *found.get("experiment", [])]


def settings(ctx: Any, incomplete: str) -> Completed:
    """Settings as ``KEY=``; after the sign, the choices of a group."""
    key, equals, _ = incomplete.partition("=")
    if not equals:
        words = ctx.params.get("overrides") or []
        if words[-1:] == ["="]:  # bash takes the sign for the end of a word
            return _choices(ctx, words[-2])
        return [(f"{name}=", "") for name in _keys(ctx)]
    return [(f"{key}={name}", comment) for name, comment in _choices(ctx, key)]


def _choices(ctx: Any, group: str) -> Completed:
    return [] if group in NOT_SET else _configs(ctx).get(group, [])


def _keys(ctx: Any) -> Iterator[str]:
    from seqtrain.overrides import all_settings

    yield from (group for group in _configs(ctx) if group not in NOT_SET)
    yield from all_settings()


def _configs(ctx: Any) -> dict[str, Completed]:
    from seqtrain.compose import list_configs

    try:
        return list_configs(ctx.params.get("config_dir"))
    except (SeqtrainError, OSError):  # a shell has no place for a message
        return list_configs()
