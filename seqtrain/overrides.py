"""Settings given as ``KEY=VALUE``: forms that are refused, and errors in words."""

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

from seqtrain.config import CnnConfig, RunConfig, TransformerConfig
from seqtrain.errors import ConfigError

_SYNONYMS = {
    "optim.lr": "learning_rate learningrate base_lr max_lr eta",
    "optim.weight_decay": "wd l2 decay",
    "optim.clip_norm": "grad_clip clip clipping gradient_clip max_grad_norm gradient_clip_val",
    "optim.warmup_fraction": "warmup warmup_steps warmup_ratio warmup_epochs",
    "batching.max_sequences": "batch_size batchsize bs",
    "batching.max_tokens": "tokens_per_batch token_budget",
    "trainer.max_epochs": "epochs num_epochs n_epochs epoch max_epoch",
    "trainer.patience": "early_stopping early_stopping_patience early_stop",
    "trainer.monitor": "metric monitor_metric",
    "trainer.device": "gpu gpus cuda accelerator",
    "trainer.num_threads": "threads num_workers workers n_jobs cpus",
    "trainer.precision": "fp16 bf16 amp mixed_precision half dtype",
    "trainer.seed": "random_seed random_state",
    "trainer.accumulate": "accumulate_grad_batches gradient_accumulation_steps grad_accum",
    "encoder.embed_dim": "hidden hidden_dim hidden_size d_model channels width dim",
    "encoder.num_layers": "layers depth n_layers num_blocks blocks",
    "encoder.num_heads": "heads n_heads nhead attention_heads",
    "encoder.dropout": "dropout_rate p_dropout drop",
    "encoder.pretrained": "checkpoint init_from finetune_from weights",
    "data.valid_fraction": "val_fraction validation_fraction val_split val_size valid_size",
    "data.test_fraction": "test_split test_size",
    "data.split_method": "split method",
    "data.label_column": "target label target_column label_col",
    "data.max_length": "max_len max_seq_len max_seq_length truncate",
    "task.class_weights": "class_weight balanced weights_per_class",
    "task.label_smoothing": "smoothing",
}
_KEYS_OF = {word: key for key, words in _SYNONYMS.items() for word in words.split()}

_FILE = re.compile(r"\.(fa|fas|fasta|faa|fna|ffn|tsv|csv|txt|arrow|parquet|gz|bz2|xz|zip)$", re.I)
_TABLE = re.compile(r"\.(tsv|csv|txt)(\.\w+)?$", re.I)
_KINDS = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}


def override_key(override: str) -> str:
    """The setting or group that an override names."""
    return override.lstrip("+~").partition("=")[0].partition("@")[0]


def check_overrides(overrides: Sequence[str], choices: Callable[[str], Sequence[str]]) -> None:
    """Refuse what is no setting, and forms that would do nothing.

    Args:
        overrides: As they are given.
        choices: Returns the choices of a group, or none if it has no files.

    Raises:
        ConfigError: says what to write.
    """
    for item in overrides:
        key, equals, value = item.lstrip("+").partition("=")
        if re.match(r"~?hydra[./]", key):
            raise ConfigError(f"{item}: seqtrain has no settings of Hydra's own. Leave it out.")
        if item.startswith("~"):
            name = override_key(item)
            chosen = "" if name in _groups() else f", or write {name}=null to have it chosen"
            raise ConfigError(f"{item}: settings cannot be deleted. Leave it out{chosen}.")
        if not equals or not re.fullmatch(r"[\w.@/-]+", key):
            raise ConfigError(_no_setting(item))
        if key == "experiment":
            raise ConfigError(f"{item}: an experiment is chosen with -n {value}.")
        if key in _groups() and re.fullmatch(r"\s*(|null|\{\s*\}|\[.*\])\s*", value):
            names = choices(key)
            expected = f"expected one of {', '.join(names)}" if names else "sets nothing"
            raise ConfigError(
                f"{item}: {expected}. Single settings are given as {key}.KEY=VALUE; "
                "`seqtrain config show` lists them all."
            )


def _groups() -> set[str]:
    return {item.name for item in dataclasses.fields(RunConfig)}


def _is_file(text: str) -> bool:
    return bool(_FILE.search(text)) or "/" in text or Path(text).is_file()


def _no_setting(item: str) -> str:
    if _is_file(item):
        option = "--labels" if _TABLE.search(item) else "--train"
        return f"{item}: is a file, not a setting. Did you mean {option} {item}?"
    near = f"{item}.KEY" if item in _groups() else nearest_setting(item)
    hint = f" Did you mean {near}=...?" if near else ""
    return f"{item}: expected a setting as KEY=VALUE, such as trainer.max_epochs=20.{hint}"


def nearest_setting(key: str) -> str | None:
    """The setting that somebody may have meant: by its last word, another word for it, or letters.

    Args:
        key: A setting that does not exist, by its dotted name.
    """
    keys = list(all_settings())
    last = key.rsplit(".", 1)[-1].lower().replace("-", "_")
    leaf = [name for name in keys if name.rsplit(".", 1)[-1] == last]
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    return next(iter([*leaf, *filter(None, [_KEYS_OF.get(last)]), *near]), None)


def all_settings() -> Iterator[str]:
    """Dotted names of all settings, those of every encoder included."""
    yield from dict.fromkeys(
        [
            *_fields(RunConfig),
            *_fields(CnnConfig, "encoder."),
            *_fields(TransformerConfig, "encoder."),
        ]
    )


def _fields(schema: type, prefix: str = "") -> Iterator[str]:
    for item in dataclasses.fields(schema):
        types = (item.type, *get_args(item.type))
        inner = next((found for found in types if dataclasses.is_dataclass(found)), None)
        if isinstance(inner, type):
            yield from _fields(inner, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}"


def explain(
    error: Exception, overrides: Sequence[str], choices: Callable[[str], Sequence[str]]
) -> str:
    """One message for the user of an error that composing the settings ended in.

    Args:
        error: What was raised.
        overrides: What was composed.
        choices: As in :func:`check_overrides`.
    """
    cause = error.__cause__ if error.__cause__ is not None else error
    text = " ".join(" ".join(str(each).split()) for each in (error, cause) if str(each))
    override = str(getattr(error, "override", None) or "") or _named(text, overrides)
    if unknown := re.search(r"Key '([^']+)' (?:is not in struct|not in '(\w+)')", text):
        full = re.search(r"full_key: ([\w.]+)", text)
        return _unknown(full[1] if full else unknown[1])
    if group := re.search(r"Could not find '([\w-]+)/([^']*)'", text):
        return _no_choice(group[1], group[2], choices(group[1]))
    if re.search(r"multirun|Sweep", text, re.IGNORECASE):
        return (
            f"{override}: expected one value, found several. Train once for each; a list is "
            "written [a,b], and a text that holds a comma in two kinds of quotes, as in "
            "'KEY=\"a,b\"'."
        )
    if re.search(r"override_grammar|LexerNoViableAlt|Error parsing override", text):
        return _unreadable(override)
    return _wrong_type(text, override) or _as_said(error, cause, override)


def _named(text: str, overrides: Sequence[str]) -> str:
    """The override that a message quotes."""
    return next((item for item in overrides if " ".join(item.split()) in text), "")


def _unknown(key: str) -> str:
    if key in all_settings():
        return f"{key!r} is a setting of another encoder than the one chosen. Leave it out."
    near = nearest_setting(key)
    hint = f" Did you mean {near!r}?" if near else ""
    return f"unknown setting {key!r}.{hint} `seqtrain config show` lists them all."


def _no_choice(group: str, name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{group}={name}: choose {_or(names)}.{hint}"


def _or(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else ", ".join(names)


def _unreadable(override: str) -> str:
    key, _, value = override.partition("=")
    is_list = value.startswith("[") and value.endswith("]")
    bare = value.strip("[]" if is_list else "\"'").replace('"', '\\"').replace("'", "'\\''")
    quoted = f'["{bare}"]' if is_list else f'"{bare}"'
    return (
        f"{override}: cannot be read: a sign of the value has a meaning of its own (one of "
        f"= , : {{ }} [ ] ( ) \" '). Put the text into two kinds of quotes: '{key}={quoted}'"
    )


def _wrong_type(text: str, override: str) -> str:
    """The expected type of a value, where the types do not fit."""
    key, _, value = override.partition("=")
    if found := re.search(r"could not be converted to (\w+)", text):
        return f"{override}: expected {_KINDS.get(found[1], found[1])}, found {value!r}."
    if "is not a valid bool" in text:
        return f"{override}: expected true or false, found {value!r}."
    if "is not a ListConfig" in text:
        return f"{override}: expected a list, such as {key}=[{value}]."
    if "is not a subclass of" in text:
        return f"{override}: {key} is a group of settings. Give single ones, {key}.KEY=VALUE."
    if found := re.search(r"Could not override '([^']+)'", text):
        return _unknown(override_key(override) if override else found[1])
    return ""


def _as_said(error: Exception, cause: BaseException, override: str) -> str:
    said = [str(each).split("\n    full_key")[0] for each in (error, cause)]
    where = [] if override in said[0] else [override]
    lines: Mapping[str, None] = dict.fromkeys(" ".join(each.split()) for each in [*where, *said])
    return ": ".join(lines)
