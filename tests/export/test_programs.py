"""ONNX graphs and torch programs say what seqtrain says, for any batch, length and padding."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jaxtyping
import numpy as np
import onnx
import pytest
import torch
from tiny_models import CODECS, TOKENIZER, draw_tokens, tiny_model
from tiny_runs import random_fasta, tiny_run
from typer.testing import CliRunner

from seqtrain.cli.main import app
from seqtrain.errors import ExportError
from seqtrain.export.bundle import open_run
from seqtrain.export.onnx import read_onnx, write_onnx
from seqtrain.export.parity import TOLERANCE, check_parity
from seqtrain.export.program import (
    Program,
    Runner,
    fold_norms,
    program_metadata,
    read_program,
    write_program,
)
from seqtrain.nn.blocks import ConvBlock
from seqtrain.training.calibration import Calibration
from seqtrain.training.checkpoint import LoadedRun

WRITERS: dict[str, tuple[Callable[[LoadedRun, Path], None], Callable[[Path], Runner], str]] = {
    "onnx": (write_onnx, read_onnx, "m.onnx"),
    "torch": (write_program, read_program, "m.pt2"),
}
MODELS = {
    "classes": ("classification", "cnn", "masked_batch"),
    "residues": ("residue_classification", "transformer", "masked_batch"),
    "values": ("regression", "cnn", "masked_layer"),
    "letters": ("mlm", "cnn", "masked_batch"),
}
CASES = [("onnx", "classes"), ("onnx", "residues"), ("torch", "values"), ("torch", "classes")]
CASES += [("onnx", "letters"), ("torch", "letters")]
CALIBRATION = Calibration((2.5,), "valid", 10, 0.2, 0.1)
DEPLOY = Path(__file__).parents[2] / "docs" / "deploy.md"


@contextmanager
def unchecked() -> Iterator[None]:
    """Tracing gives symbols for sizes, which the type checker does not take for numbers."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LoadedRun, Runner, Path]:
    """A model, what runs its export, and the exported file."""
    kind, name = request.param
    task, encoder, norm = MODELS[name]
    folder = tmp_path_factory.mktemp(kind)
    run = tiny_run(folder / "run", task, encoder, norm)
    if task != "regression":
        (run / "calibration.json").write_text(CALIBRATION.to_json())
    loaded = open_run(run)
    write, read, file = WRITERS[kind]
    with unchecked():
        write(loaded, folder / file)
    return loaded, read(folder / file), folder / file


@torch.inference_mode()
def of_seqtrain(loaded: LoadedRun, tokens: torch.Tensor, lengths: torch.Tensor) -> np.ndarray:
    """What the model itself says, padding left as it comes out."""
    results: np.ndarray = loaded.model.head.readout(loaded.model(tokens, lengths)).numpy()
    return results


def test_results_are_those_of_seqtrain_over_random_shapes_and_paddings(
    exported: tuple[LoadedRun, Runner, Path],
) -> None:
    loaded, run, _ = exported
    draw = np.random.default_rng(0)
    shares, worst = [], 0.0
    for seed in range(200):
        lengths = draw.integers(1, 40, size=draw.integers(1, 7)).tolist()
        width = round(max(lengths) / draw.uniform(0.1, 1))
        tokens, sizes = draw_tokens(lengths, seed, width)
        with unchecked():
            expected = of_seqtrain(loaded, tokens, sizes)
        found = run(tokens.numpy(), sizes.numpy())
        if loaded.model.pooling is None:
            real = np.arange(tokens.shape[1]) < sizes.numpy()[:, None]
            assert (found[~real] == 0).all()
            expected, found = expected[real], found[real]
        worst = max(worst, float(np.abs(found - expected).max()) / loaded.codec.std)
        shares.append(1 - sum(lengths) / tokens.numel())
    assert worst <= TOLERANCE
    assert min(shares) < 0.05
    assert max(shares) > 0.85


@pytest.mark.parametrize("exported", [("onnx", "classes"), ("torch", "classes")], indirect=True)
def test_probabilities_are_calibrated_and_the_file_says_so(
    exported: tuple[LoadedRun, Runner, Path],
) -> None:
    loaded, run, path = exported
    tokens, lengths = draw_tokens([9, 4])
    with torch.inference_mode():
        logits = loaded.model(tokens, lengths)
    found = run(tokens.numpy(), lengths.numpy())
    assert np.allclose(found, (logits / 2.5).softmax(-1), atol=1e-5)
    if path.suffix == ".onnx":
        about = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    else:
        extra = {"metadata.json": ""}
        torch.export.load(path, extra_files=extra)
        about = json.loads(extra["metadata.json"])
    assert "T = 2.5" in about["calibration"]


def test_results_do_not_depend_on_the_padding(exported: tuple[LoadedRun, Runner, Path]) -> None:
    loaded, run, _ = exported
    together, sizes = draw_tokens([7, 1, 19], pad_to=60)
    batch = run(together.numpy(), sizes.numpy())
    for i, size in enumerate(sizes.tolist()):
        alone = run(together[i : i + 1, :size].numpy(), sizes[i : i + 1].numpy())[0]
        of_batch = batch[i][:size] if loaded.model.pooling is None else batch[i]
        assert np.allclose(of_batch, alone, atol=1e-5)


@pytest.mark.parametrize("encoder", ["cnn", "transformer"])
@pytest.mark.parametrize("norm", ["masked_batch", "batch", "leaky_batch", "layer"])
@pytest.mark.parametrize("task", CODECS)
def test_folding_changes_no_result(encoder: str, norm: str, task: str) -> None:
    model = tiny_model(encoder, norm, task=task)
    tokens, lengths = draw_tokens([7, 1, 19])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        assert torch.allclose(fold_norms(model)(tokens, lengths), model(tokens, lengths), atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_folded_convolutions_leave_zeros_at_padding() -> None:
    folded = fold_norms(tiny_model("cnn"))
    seen: list[torch.Tensor] = []
    for module in folded.modules():
        assert not isinstance(module, torch.nn.BatchNorm1d)
        if isinstance(module, ConvBlock):
            module.norm.register_forward_hook(lambda _m, _i, out: seen.append(out))
    tokens, lengths = draw_tokens([3, 9])
    folded(tokens, lengths)
    assert len(seen) == 3
    assert all((states[0, 3:] == 0).all() and (states[0, :3] != 0).any() for states in seen)


def test_residues_beyond_the_end_get_zeros() -> None:
    program = Program(tiny_model("cnn", task="residue_classification"))
    results = program(*draw_tokens([3, 9]))
    assert (results[0, 3:] == 0).all()
    assert torch.allclose(results[0, :3].sum(-1), torch.ones(3))
    numbers = Program(tiny_model("cnn", task="residue_regression"))(*draw_tokens([3, 9]))
    assert numbers.shape == (2, 9)
    assert (numbers[0, 3:] == 0).all()
    assert (numbers[0, :3] != 0).all()


@pytest.mark.parametrize("exported", [("onnx", "classes")], ids=["onnx"], indirect=True)
def test_an_onnx_file_says_what_goes_in_and_out(exported: tuple[LoadedRun, Runner, Path]) -> None:
    proto = onnx.load(exported[2])
    onnx.checker.check_model(proto, full_check=True)
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    }
    assert shapes == {
        "tokens": ["batch", "length"],
        "lengths": ["batch"],
        "probabilities": ["batch", 3],
    }
    assert not {"BatchNormalization", "Dropout"} & {node.op_type for node in proto.graph.node}


def test_an_exported_file_names_no_source_file(exported: tuple[LoadedRun, Runner, Path]) -> None:
    assert b"nn/model.py" not in exported[2].read_bytes()


@pytest.mark.parametrize("exported", [("onnx", "classes")], ids=["onnx"], indirect=True)
def test_the_example_of_the_documentation_runs(
    exported: tuple[LoadedRun, Runner, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, _, path = exported
    (code,) = re.findall(r"```python\n(import json\n.*?)```", DEPLOY.read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 22
    assert "torch" not in code
    assert "seqtrain" not in code
    monkeypatch.chdir(path.parent)
    names: dict[str, object] = {}
    exec(code.replace("model.onnx", path.name), names)
    sequence = "mk-vlX*AAG"
    tokens = torch.from_numpy(TOKENIZER.encode(sequence).astype(np.int64))[None]
    expected = of_seqtrain(loaded, tokens, torch.tensor([tokens.shape[1]]))
    assert np.allclose(names["predict"]([sequence]), expected, atol=1e-5)  # type: ignore[operator]
    assert names["classes"] == ["a", "b", "c"]


def test_metadata_hold_every_letter_that_is_read(tmp_path: Path) -> None:
    about = program_metadata(open_run(tiny_run(tmp_path, "regression")))
    letters = json.loads(about["letters"])
    assert set(letters.values()) == set(range(1, TOKENIZER.vocab_size))
    assert set(about["dropped"]) == set("-.*")
    assert (about["output"], about["task"]) == ("values", "regression")


def test_parity_names_the_record_that_differs(tmp_path: Path) -> None:
    loaded = open_run(tiny_run(tmp_path / "run"))
    fasta = random_fasta(tmp_path / "x.fasta", [9, 4, 30] * 4)

    def same(tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        return of_seqtrain(loaded, torch.from_numpy(tokens), torch.from_numpy(lengths))

    def other(tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        return same(tokens, lengths) + np.where(np.arange(len(lengths)) == 3, 2e-4, 0)[:, None]

    found = check_parity(loaded, same, [str(fasta)])
    assert found.records == 12
    assert found.passed
    found = check_parity(loaded, other, [str(fasta)])
    assert (found.id, found.passed) == ("r3", False)
    assert found.worst == pytest.approx(2e-4, rel=0.05)
    broken = check_parity(loaded, lambda t, n: np.full((len(n), 3), np.nan), [str(fasta)])
    assert (broken.worst, broken.passed) == (np.inf, False)


def test_export_checks_records_and_fails_when_they_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run(tmp_path / "run", norm="leaky_batch")  # depends on the padding: must be told
    fasta = random_fasta(tmp_path / "x.fasta", [2, 80, 5])
    command = ["export", str(run), "-o", str(tmp_path / "b"), "--check", str(fasta)]
    said = CliRunner().invoke(app, command)
    assert isinstance(said.exception, ExportError)
    assert "FAILED: largest difference" in said.stdout
    run = tiny_run(tmp_path / "good")
    command = ["export", str(run), "-o", str(tmp_path / "c"), "--check", str(fasta)]
    said = CliRunner().invoke(app, command, catch_exceptions=False)
    assert said.exit_code == 0
    assert "passed: largest difference" in said.stdout


def test_an_export_without_its_packages_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seqtrain.export.onnx.find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"pip install 'seqtrain\[onnx\]'"):
        write_onnx(open_run(tiny_run(tmp_path)), tmp_path / "m.onnx")
