"""A trained model as one folder or zip archive that loads anywhere, and reads itself again.

Nothing in it is pickled, and no setting names code. ``bundle.json`` is read without Hydra;
settings that only training reads may come and go between versions.
"""

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from seqtrain.data.labels import LabelCodec
from seqtrain.data.tokenizer import Tokenizer
from seqtrain.errors import CheckpointError, ConfigError, ExportError
from seqtrain.evaluation.predict import Predictor
from seqtrain.evaluation.score import TrainingPart
from seqtrain.export.card import model_card
from seqtrain.export.parity import Parity, difference
from seqtrain.export.program import Runner
from seqtrain.training.calibration import Calibration
from seqtrain.training.checkpoint import LoadedRun, load_run

Place = Path | zipfile.Path

FORMAT = 1
"""Raised when a bundle of before can no longer be read as it is."""

MANIFEST = "bundle.json"
SUMS = "SHA256SUMS"
WEIGHTS = "model.safetensors"
_COPIED = ("summary.json", "training_part.npz")
_LONGEST_EXAMPLE = 400


@contextmanager
def opened(path: Path) -> Iterator[Place]:
    """The top folder of a run directory or a bundle, which may be a zip archive.

    Raises:
        CheckpointError: It is a file, but no such archive.
    """
    if not path.is_file():
        yield path
        return
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise CheckpointError(
            f"{path}: not a bundle: {error}. Name a run directory, or what "
            "`seqtrain export --format bundle` made."
        ) from error
    with archive:
        yield zipfile.Path(archive)


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
    if not (root / SUMS).is_file():
        return
    listed = _read_sums(root)
    for name in (MANIFEST, WEIGHTS):
        file = root / name
        if file.is_file() and listed.get(name) != _sha256(file):
            raise CheckpointError(
                f"{path}: {name} is not what was exported: its SHA-256 is not that in {SUMS}. The "
                "bundle is damaged, or of pieces of several. Copy or export it anew."
            )


def is_bundle(path: Path) -> bool:
    """Whether this is meant to be an exported bundle, not a run directory."""
    return path.is_file() or (path / MANIFEST).is_file()


def read_summary(path: Path) -> dict[str, Any] | None:
    """The final numbers of a run directory or a bundle; None for a run that has not ended."""
    with opened(path) as root:
        file = root / "summary.json"
        if not file.is_file():
            return None
        summary: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return summary


def read_training_part(path: Path) -> TrainingPart:
    """Lengths and targets of the training part of a run directory or a bundle.

    Raises:
        CheckpointError: They are missing or damaged.
    """
    with opened(path) as root:
        return TrainingPart.read(root / "training_part.npz")


def _load_bundle(root: Place, path: Path) -> LoadedRun:
    try:
        saved = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(saved.get("format"), int) or saved["format"] > FORMAT:
            raise CheckpointError(
                f"{path}: expected a bundle of format {FORMAT} or before, found "
                f"{saved.get('format')!r}. Install seqtrain {saved.get('seqtrain')} or later."
            )
        config = _settings(saved["settings"])
        tokenizer = Tokenizer.from_dict(saved["tokenizer"])
        codec = LabelCodec.from_dict(saved["labels"])
        if list(tokenizer.vocab) != saved["vocab"]:
            raise ConfigError("this version gives other tokens to the letters")
        model = build_model(config, tokenizer, codec)
        model.load_state_dict(load((root / WEIGHTS).read_bytes()))
        run = LoadedRun(model.eval(), config, tokenizer, codec, saved["data"], saved["state"])
        found = saved.get("calibration")  # bundles of before it have none
        return run.calibrated(Calibration.from_dict(found) if found else None)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: the bundle is damaged: {error!r}.") from error
    except (SafetensorError, ConfigError) as error:
        raise CheckpointError(f"{path}: the bundle cannot be read: {error}") from error


def _settings(saved: Mapping[str, Mapping[str, Any]]) -> RunConfig:
    """The settings, without those that this version no longer has and that only training reads."""
    config = RunConfig(encoder=ENCODERS[saved["encoder"]["name"]]())
    for section in fields(config):
        part, values = getattr(config, section.name), saved[section.name]
        known = {field.name for field in fields(part)}
        strange = sorted(values.keys() - known)
        if strange and section.name in ("encoder", "norm"):
            raise ConfigError(f"this version does not know {section.name}.{strange[0]}")
        kept = {name: value for name, value in values.items() if name in known}
        setattr(config, section.name, type(part)(**kept))
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
    folder = path.with_name(path.name + ".partial")
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
    lines = [f"{_sha256(file)}  {file.name}\n" for file in sorted(folder.iterdir())]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def _without_folders(text: str, loaded: LoadedRun) -> str:
    """File names without their folders: where somebody keeps files is nobody else's business."""
    files = loaded.data.get("files", {}).values()
    paths = [file["path"] for group in files for file in group]
    paths += [loaded.config.encoder.pretrained or ""]
    folders = {str(Path(path).parent) + os.sep for path in paths if os.sep in path}
    for folder in sorted(folders, key=len, reverse=True):
        text = text.replace(json.dumps(folder)[1:-1], "")
    return text


def _read_sums(root: Place) -> dict[str, str]:
    """Digests by file name."""
    lines = (root / SUMS).read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


def _sha256(file: Place) -> str:
    with file.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _pack(folder: Path, path: Path) -> None:
    partial = path.with_name(path.name + ".packing")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            # The same bundle gives the same archive: its dates would tell two apart.
            entry = zipfile.ZipInfo(file.name)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, file.read_bytes())
    os.replace(partial, path)


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
        """Whether all files and all results are as they were."""
        return set(self.files.values()) == {"ok"} and self.examples.passed


def verify_bundle(path: Path) -> Verification:
    """Compare a bundle's files with their checksums, and its results with those it came with.

    Raises:
        CheckpointError: It is no bundle, or the model cannot be loaded.
    """
    with opened(path) as root:
        if not (root / SUMS).is_file() or not (root / MANIFEST).is_file():
            raise CheckpointError(f"{path}: not a bundle: expected {MANIFEST} and {SUMS} in it.")
        sums = _read_sums(root)
        names = {file.name for file in root.iterdir() if not file.name.startswith(".")} - {SUMS}
        states = dict.fromkeys(sorted(names), "not listed")
        for name, digest in sums.items():
            file = root / name
            is_same = file.is_file() and _sha256(file) == digest
            states[name] = "ok" if is_same else "changed" if file.is_file() else "missing"
        examples = json.loads((root / "examples.json").read_text(encoding="utf-8"))
        loaded = _load_bundle(root, path)
    return Verification(states, _verify_examples(loaded, examples))


def _verify_examples(loaded: LoadedRun, examples: list[dict[str, Any]]) -> Parity:
    found = _predict(loaded, [example["sequence"] for example in examples])
    apart = [
        difference(values, np.asarray(example["expected"], values.dtype), loaded.codec)
        for values, example in zip(found, examples, strict=True)
    ]
    worst = int(np.argmax(apart))
    return Parity(len(apart), apart[worst], examples[worst]["id"])
