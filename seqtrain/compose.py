"""The one door to Hydra and OmegaConf: from ``conf/`` and overrides to plain dataclasses, and back.

Nothing after :func:`load_config` sees a ``DictConfig``.
"""

import copy
import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from seqtrain.config import (
    ENCODERS,
    EncoderConfig,
    RunConfig,
    config_to_dict,
    one_of,
)
from seqtrain.data.schema import read_bounded
from seqtrain.errors import ConfigError
from seqtrain.overrides import check_overrides, explain, override_key

_MOST_SAVED_BYTES = 8 << 20
_DEEPEST = 20


def package_dir(name: str) -> Path:
    """The folder ``conf`` or ``data``: inside an installed wheel, else beside the package."""
    here = Path(__file__).parent
    inside = here / {"conf": "conf", "data": "bundled"}[name]
    return inside if inside.is_dir() else here.parent / name


def load_config(
    name: str = "config",
    overrides: Sequence[str] = (),
    *,
    config_dir: str | Path | None = None,
    values: Mapping[str, Any] | None = None,
    like: RunConfig | None = None,
) -> RunConfig:
    """The composed, checked settings as plain dataclasses.

    Args:
        name: A config, or an experiment (``experiment/NAME.yaml``).
        overrides: ``key=value`` in Hydra's grammar.
        config_dir: A folder of the user's own, searched before ``conf/``.
        values: Settings by dotted key, set on the composed config. Paths go in here: an override
            string would misread ``a,b=c.fasta``.
        like: A run whose encoder (without its dropout), norm and tokenizer (without its alphabet)
            stand where the defaults stood: what files and overrides say still goes before them.

    Raises:
        ConfigError: unknown name or key (with the nearest one), wrong type, contradiction.
    """
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.compose import compose
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    _register_schema(like)
    folders = config_folders(config_dir)
    path = _find(name, folders)
    # An experiment is put over the default config; any other file stands for itself.
    primary, extra = (
        (path.stem, []) if path.parent in folders else ("config", [f"+experiment={path.stem}"])
    )
    choices = partial(_choices, folders=folders)
    check_overrides(overrides, choices)
    search_path = create_config_search_path(str(folders[-1].resolve()))
    if config_dir:
        search_path.prepend("user", str(folders[0].resolve()))
    GlobalHydra.instance().clear()
    try:
        Hydra.create_main_hydra2("seqtrain", search_path)
        groups = [] if like is None else _groups_like(like, path, overrides)
        composed = compose(primary, [*extra, *groups, *overrides])
        for key, value in (values or {}).items():
            OmegaConf.update(composed, key, _literal(value))
        config = _to_dataclasses(composed)
        config.check_widths()
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, overrides, choices)) from error
    except (YAMLError, ValueError) as error:  # a file that is no YAML; a group set to a number
        what = " ".join([name, *overrides])
        raise ConfigError(f"{what}: {' '.join(str(error).split())}") from error
    finally:
        GlobalHydra.instance().clear()
    return config


def config_folders(config_dir: str | Path | None) -> list[Path]:
    """Where settings are looked for, in order."""
    own = [Path(config_dir)] if config_dir else []
    if own and not own[0].is_dir():
        raise ConfigError(f"--config-dir {config_dir}: no such folder.")
    return [*own, package_dir("conf")]


def config_to_yaml(config: RunConfig) -> str:
    """The settings as YAML that :func:`read_run_config` reads back."""
    import yaml

    text: str = yaml.safe_dump(config_to_dict(config), sort_keys=False, allow_unicode=True)
    return text


def read_run_config(path: Path) -> RunConfig:
    """The settings saved in a run directory.

    Raises:
        ConfigError: the file is no YAML, or holds a setting that this version does not know.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        saved = _plain_yaml(read_bounded(path, _MOST_SAVED_BYTES).decode("utf-8"))
        if not isinstance(saved, dict):
            raise ValueError("expected settings by section")
        return _to_dataclasses(OmegaConf.create(_literal(saved)))
    except (OmegaConfBaseException, yaml.YAMLError, OSError, ValueError, RecursionError) as error:
        problem = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{path}: not the settings of a seqtrain run: {problem:.300}") from error


def _plain_yaml(content: str) -> Any:
    """The value of a YAML document without anchors and aliases.

    A page of them can stand for more items than any memory holds. What is read is what
    :func:`config_to_yaml` writes, which has none.
    """
    import yaml

    depth = 0
    for event in yaml.parse(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ValueError("it holds an anchor or alias (& or *), which no saved settings do")
        if depth > _DEEPEST:
            raise ValueError("nested too deeply")
    return yaml.load(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _literal(value: Any) -> Any:
    """``value`` with every text to be taken as it stands: a file may be called ``${x}.fasta``."""
    match value:
        case str():
            return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
        case list():
            return [_literal(item) for item in value]
        case dict():
            return {key: _literal(item) for key, item in value.items()}
    return value


def _to_dataclasses(composed: Any) -> RunConfig:
    """Merged anew over the schema, because ``+typo=1`` composes without a word."""
    from omegaconf import OmegaConf

    plain = OmegaConf.create(OmegaConf.to_container(composed))
    name = OmegaConf.select(plain, "encoder.name") if OmegaConf.is_dict(plain) else None
    if name is None:
        raise ConfigError(
            "no encoder is chosen. A config of your own begins with `defaults: [config, _self_]`."
        )
    one_of(str(name), "encoder", list(ENCODERS))
    schema = OmegaConf.structured(RunConfig(encoder=ENCODERS[name]()))
    config = OmegaConf.to_object(OmegaConf.merge(schema, plain))
    assert isinstance(config, RunConfig)
    return config


def list_configs(config_dir: str | Path | None = None) -> dict[str, list[tuple[str, str]]]:
    """Every choice, by group: (name, first comment line of its file).

    Raises:
        ConfigError: there is no such folder.
    """
    folders = config_folders(config_dir)
    found: dict[str, dict[str, str]] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*.yaml")):
            group = path.parent.relative_to(folder).as_posix()
            found.setdefault(group, {}).setdefault(path.stem, _first_comment(path))
    return {group: sorted(names.items()) for group, names in sorted(found.items())}


def _first_comment(path: Path) -> str:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# @"):
            return line.lstrip("# ")
    return ""


def _register_schema(like: RunConfig | None) -> None:
    from hydra.core.config_store import ConfigStore

    schema = RunConfig()
    encoders = {name: node() for name, node in ENCODERS.items()}
    if like is not None:
        # Its alphabet is not that of other sequences: these tell their own, and it has to fit.
        schema.tokenizer = dataclasses.replace(like.tokenizer, alphabet=None)
        schema.norm = copy.copy(like.norm)
        encoders[like.encoder.name] = dataclasses.replace(
            like.encoder, dropout=EncoderConfig.dropout, pretrained=None
        )
    store = ConfigStore.instance()
    store.store(name="schema", node=schema)
    for name, node in encoders.items():
        store.store(group="encoder", name=f"{name}_schema", node=node)


def _groups_like(like: RunConfig, path: Path, overrides: Sequence[str]) -> list[str]:
    """Choices of encoder and norm as in ``like``, where neither file nor override makes one."""
    said = {override_key(override).removesuffix(".name") for override in overrides}
    if path != package_dir("conf") / "config.yaml":  # what that one chooses are the defaults
        said |= _groups_in(path)
    wanted = {"encoder": like.encoder.name, "norm": like.norm.name}
    return [f"{group}={name}" for group, name in wanted.items() if group not in said]


def _groups_in(path: Path) -> set[str]:
    """Groups that a file chooses in its list of defaults."""
    import yaml

    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    listed = (content.get("defaults") or []) if isinstance(content, dict) else []
    chosen = [item for item in listed if isinstance(item, dict)]
    return {key.removeprefix("override ").lstrip("/") for item in chosen for key in item}


def _find(name: str, folders: Sequence[Path]) -> Path:
    """The file of a config or an experiment."""
    name = name.removesuffix(".yaml").removeprefix("experiment/")
    for folder in folders:
        for path in (folder / "experiment" / f"{name}.yaml", folder / f"{name}.yaml"):
            if path.is_file():
                return path
    known = sorted(
        {p.stem for f in folders for p in [*f.glob("*.yaml"), *f.glob("experiment/*.yaml")]}
    )
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise ConfigError(f"no config named {name!r}; there are: {', '.join(known)}.{hint}")


def _choices(group: str, folders: Sequence[Path]) -> list[str]:
    """Names of the files of a group."""
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})
