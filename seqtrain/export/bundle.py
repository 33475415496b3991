"""A trained model as one folder or zip archive that loads anywhere, and reads itself again.

Nothing in it is pickled, and no setting names code. ``bundle.json`` is read without Hydra;
settings that only training reads may come and go between versions.
"""

import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

import seqtrain
from seqtrain.build import build_model
from seqtrain.config import ENCODERS, RunConfig, config_to_dict
from seqtrain.data.fasta import Record
from seqtrain.data.files import sync, whole_file
from seqtrain.data.schema import (
    anything,
    check_fields,
    integer,
    list_of,
    mapping,
    read_json,
    record,
    text,
)
from seqtrain.errors import CheckpointError, ConfigError, DataError, ExportError
from seqtrain.evaluation.predict import Predictor
from seqtrain.evaluation.score import TrainingPart
from seqtrain.export.archive import opened
from seqtrain.export.card import model_card
from seqtrain.export.parity import Parity, difference
from seqtrain.export.program import Runner
from seqtrain.training.calibration import Calibration
from seqtrain.training.checkpoint import LoadedRun, load_run
from seqtrain.training.saved import check_report, check_resolved, check_state, check_summary
from seqtrain.training.sums import SUMS, Place, check_sums, digest, read_sums, write_sums
from seqtrain.training.weights import check_weights

FORMAT = 1
"""Raised when a bundle of before can no longer be read as it is."""

MANIFEST = "bundle.json"
WEIGHTS = "model.safetensors"
_COPIED = ("summary.json", "training_part.npz")
_LONGEST_EXAMPLE = 400
_MOST_EXAMPLE_BYTES = 32 << 20

_SECTIONS = ("data", "tokenizer", "batching", "encoder", "norm", "task", "optim", "trainer")
"""Groups of settings that every bundle has; those that came later may be missing."""

_manifest = record(
    {
        "format": integer(-(2**31)),
        "tokenizer": mapping(text),
        "vocab": list_of(text, most=256),
        "labels": mapping(anything),
        "settings": record(
            dict.fromkeys(_SECTIONS, mapping(anything)),
            {each.name: mapping(anything) for each in fields(RunConfig)},
        ),
        "state": mapping(anything),
        "data": mapping(anything),
    }
)
_example_list = list_of(record({"id": text, "sequence": text, "expected": anything}), 1, 100)


def open_run(path: Path, *, calibrated: bool = True) -> LoadedRun:
    """The model of a run directory or of a bundle, on the host, in evaluation mode.

    Args:
        path: What training or an export made.
        calibrated: By the temperatures that came with it, if any; False: as trained.

    Raises:
        CheckpointError: It is neither, damaged, or of a later format.
    """
    with opened(path) as root:
        if is_bundle(path):
            _check_sums(root, path)
            run = _load_bundle(root, path)
        else:
            run = load_run(path)
    return run if calibrated else run.calibrated(None)


def _check_sums(root: Place, path: Path) -> None:
    """Refuse a model that is not the one that was exported."""
    fix = f"The bundle is damaged, or of pieces of several: {path}. Copy or export it anew."
    sums = read_sums(root)
    if sums is None:
        raise CheckpointError(f"{path}: has no {SUMS}, which every bundle has. {fix}")
    present = [name for name in _COPIED if (root / name).exists() or name in sums]
    check_sums(root, sums, fix, [MANIFEST, WEIGHTS, *present])


def is_bundle(path: Path) -> bool:
    """True if this is meant to be an exported bundle, not a run directory."""
    return path.is_file() or (path / MANIFEST).is_file()


def read_summary(path: Path) -> dict[str, Any] | None:
    """The final numbers of a run directory or a bundle; None for a run that has not ended.

    Raises:
        CheckpointError: They are damaged.
    """
    with opened(path) as root:
        file = root / "summary.json"
        if not file.is_file():
            return None
        try:
            return dict(check_summary(read_json(file)))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file}: is damaged: {error}. Copy it anew.") from error


def read_training_part(path: Path) -> TrainingPart:
    """Lengths and targets of the training part of a run directory or a bundle.

    Raises:
        CheckpointError: They are missing or damaged.
    """
    with opened(path) as root:
        return TrainingPart.read(root / "training_part.npz")


def _load_bundle(root: Place, path: Path) -> LoadedRun:
    try:
        saved = read_json(root / MANIFEST)
        _manifest(saved, MANIFEST)
        if not 0 < saved["format"] <= FORMAT:
            raise CheckpointError(
                f"{path}: expected a bundle of format {FORMAT} or before, found "
                f"{saved['format']!r}. Install seqtrain {saved.get('seqtrain')!r:.40} or later."
            )
        config = _settings(saved["settings"])
        report = {**saved["data"], "tokenizer": saved["tokenizer"], "labels": saved["labels"]}
        tokenizer, codec = check_report(report)
        check_state(saved["state"])
        check_resolved(config, codec.task)
        if list(tokenizer.vocab) != saved["vocab"]:
            raise ConfigError("this version gives other tokens to the letters")
        check_weights(root / WEIGHTS, config, tokenizer, codec)
        model = build_model(config, tokenizer, codec)
        model.load_state_dict(load((root / WEIGHTS).read_bytes()))
        run = LoadedRun(model.eval(), config, tokenizer, codec, saved["data"], saved["state"])
        found = saved.get("calibration")  # bundles of before it have none
        return run.calibrated(None if found is None else Calibration.from_dict(found))
    except PermissionError as error:
        raise CheckpointError(f"{error.filename}: cannot be read: {error.strerror}.") from error
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: the bundle is damaged: {error}.") from error
    except (SafetensorError, ConfigError) as error:
        raise CheckpointError(f"{path}: the bundle cannot be read: {error}") from error


def _settings(saved: Mapping[str, Mapping[str, Any]]) -> RunConfig:
    """The settings, without those that this version no longer has and that only training reads."""
    name = str(saved["encoder"].get("name"))
    if name not in ENCODERS:
        raise ValueError(f"settings.encoder.name: expected one of {', '.join(ENCODERS)}")
    config = RunConfig(encoder=ENCODERS[name]())
    for section in fields(config):
        part, values = getattr(config, section.name), saved.get(section.name, {})
        if section.name in ("trainer", "optim"):
            known = {field.name for field in fields(part)}
            values = {name: value for name, value in values.items() if name in known}
        check_fields(type(part), values, f"settings.{section.name}")
        setattr(config, section.name, type(part)(**values))
    config.check_widths()
    return config


def write_bundle(run: Path, path: Path) -> None:
    """Write a run's model and all that is known of it as a folder, or an archive if ``.zip``.

    Args:
        run: A run directory or a bundle.
        path: What is written; there must be nothing yet.

    Raises:
        CheckpointError: ``run`` holds no model.
        ExportError: ``path`` exists, or cannot be written.
    """
    loaded = open_run(run)
    if path.exists():
        raise ExportError(f"{path}: exists already. Remove it, or choose another --output.")
    folder = path.with_name(path.name + ".unpacked")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _write_files(run, loaded, folder)
        if path.suffix == ".zip":
            _pack(folder, path)
        else:
            folder.rename(path)
    except OSError as error:
        raise ExportError(f"{path}: cannot be written: {error.strerror}.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_files(run: Path, loaded: LoadedRun, folder: Path) -> None:
    manifest = {
        "format": FORMAT,
        "seqtrain": seqtrain.__version__,
        "tokenizer": loaded.tokenizer.to_dict(),
        "vocab": loaded.tokenizer.vocab,
        "labels": loaded.codec.to_dict(),
        "settings": config_to_dict(loaded.config),
        "calibration": loaded.calibration and json.loads(loaded.calibration.to_json()),
        "state": loaded.state,
        "data": loaded.data,
    }
    text = _without_folders(json.dumps(manifest, indent=1), loaded)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    weights = {k: v.detach().contiguous().cpu() for k, v in loaded.model.state_dict().items()}
    (folder / WEIGHTS).write_bytes(save(weights))
    with opened(run) as root:
        for name in _COPIED:
            if (root / name).is_file():
                (folder / name).write_bytes((root / name).read_bytes())
    card = model_card(loaded, read_summary(run))
    (folder / "README.md").write_text(_without_folders(card, loaded), encoding="utf-8")
    examples = json.dumps(_examples(loaded), indent=1)
    (folder / "examples.json").write_text(examples + "\n", encoding="utf-8")
    write_sums(folder, {file.name: [digest(file)] for file in folder.iterdir()})
    for file in (*folder.iterdir(), folder):
        sync(file)


def _without_folders(text: str, loaded: LoadedRun) -> str:
    """File names without their folders: where somebody keeps files is nobody else's business."""
    files = loaded.data.get("files", {}).values()
    paths = [file["path"] for group in files for file in group]
    paths += [loaded.config.encoder.pretrained or ""]
    folders = {str(Path(path).parent) + os.sep for path in paths if os.sep in path}
    for folder in sorted(folders, key=len, reverse=True):
        text = text.replace(json.dumps(folder)[1:-1], "")
    return text


def _pack(folder: Path, path: Path) -> None:
    with (
        whole_file(path) as partial,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for file in sorted(folder.iterdir()):
            # The same bundle gives the same archive: its dates would tell two apart.
            entry = zipfile.ZipInfo(file.name)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, file.read_bytes())


def _examples(loaded: LoadedRun) -> list[dict[str, Any]]:
    """Random sequences with their results. Training records would say what one may not share."""
    lengths = loaded.data.get("parts", {}).get("train", {}).get("lengths") or {}
    wanted = [
        1,
        *(min(int(lengths.get(k, 50)), _LONGEST_EXAMPLE) for k in ("min", "median", "max")),
    ]
    draw = np.random.default_rng(0)
    letters = list(loaded.tokenizer.alphabet.letters)
    sequences = ["".join(draw.choice(letters, size)) for size in wanted]
    found = _predict(loaded, sequences)
    return [
        {"id": f"example_{number}", "sequence": sequence, "expected": values.tolist()}
        for number, (sequence, values) in enumerate(zip(sequences, found, strict=True), 1)
    ]


def _predict(loaded: LoadedRun, sequences: list[str]) -> list[np.ndarray]:
    records = (Record(f"example_{i}", "", s, "", i, i) for i, s in enumerate(sequences, 1))
    predictor = Predictor.of(
        [loaded], torch.device("cpu"), max_tokens=2 * _LONGEST_EXAMPLE, overlong="whole"
    )
    return [np.asarray(prediction.values) for prediction in predictor(records)]


def read_bundle_program(path: Path) -> Runner:
    """What computes the results of a bundle's model, from padded tokens on the CPU."""
    model = open_run(path).model

    @torch.inference_mode()
    def run(tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        logits = model(torch.from_numpy(tokens), torch.from_numpy(lengths))
        results: np.ndarray = model.head.readout(logits).numpy()  # type: ignore[operator]
        return results

    return run


class Verification(NamedTuple):
    """What :func:`verify_bundle` found."""

    files: dict[str, str]
    """``ok``, ``changed``, ``missing`` or ``not listed``, by name."""
    examples: Parity
    """Results of the example records now, against those of the export."""

    @property
    def passed(self) -> bool:
        """True if all files and all results are as they were."""
        return set(self.files.values()) == {"ok"} and self.examples.passed


def verify_bundle(path: Path) -> Verification:
    """Compare a bundle's files with their checksums, and its results with those it came with.

    Raises:
        CheckpointError: It is no bundle, or the model cannot be loaded.
    """
    with opened(path) as root:
        sums = read_sums(root)
        if sums is None or not (root / MANIFEST).is_file():
            raise CheckpointError(f"{path}: not a bundle: expected {MANIFEST} and {SUMS} in it.")
        names = {file.name for file in root.iterdir() if not file.name.startswith(".")} - {SUMS}
        states = dict.fromkeys(sorted(names), "not listed")
        for name, digests in sums.items():
            file = root / name
            is_same = file.is_file() and _digest(file) in digests
            states[name] = "ok" if is_same else "changed" if file.is_file() else "missing"
        loaded = _load_bundle(root, path)
        try:
            examples = read_json(root / "examples.json", _MOST_EXAMPLE_BYTES)
            _example_list(examples, "examples.json")
            found = _verify_examples(loaded, examples)
        except (OSError, ValueError, TypeError, OverflowError, DataError) as error:
            raise CheckpointError(f"{path}: examples.json is damaged: {error}.") from error
    return Verification(states, found)


def _digest(file: Place) -> str | None:
    """SHA-256 of a file; None where its archive is damaged."""
    try:
        return digest(file)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError):
        return None


def _verify_examples(loaded: LoadedRun, examples: list[dict[str, Any]]) -> Parity:
    found = _predict(loaded, [example["sequence"] for example in examples])
    apart = [
        difference(values, np.asarray(example["expected"], values.dtype), loaded.codec)
        for values, example in zip(found, examples, strict=True)
    ]
    worst = int(np.argmax(apart))
    return Parity(len(apart), apart[worst], examples[worst]["id"])
