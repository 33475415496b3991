"""Masked language modelling from a FASTA file to numbers, and what it promises."""

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared_data import error_of
from tiny_models import TOKENIZER, tiny_model
from tiny_training import tiny_trainer

from seqtrain.compose import load_config
from seqtrain.data.batching import Batch, collate
from seqtrain.data.corruption import Corruption
from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.for_model import read_for_model
from seqtrain.data.labels import IGNORE
from seqtrain.data.prepare import prepare_data
from seqtrain.errors import ConfigError, DataError
from seqtrain.evaluation.runs import evaluate_run
from seqtrain.pipeline import Plan, plan_run, train_run
from seqtrain.training.checkpoint import LoadedRun, load_run
from seqtrain.training.objective import Objective
from seqtrain.training.outputs import predict_outputs, score_outputs
from seqtrain.training.run_dir import RunDir

PERIOD = "ACDEFGHIKLMNPQRSTVWY"
SMALL = (
    "encoder.embed_dim=32",
    "encoder.num_layers=3",
    "trainer.num_threads=1",
    "trainer.device=cpu",
    "batching.max_tokens=512",
    "data.test_fraction=0.2",
)


def write_periodic(path: Path, num_records: int = 150) -> Path:
    """Every letter follows from its neighbours: all are turns of one cycle."""
    rng = random.Random(0)
    endless = PERIOD * 5
    with path.open("w") as file:
        for i in range(num_records):
            begin, length = rng.randrange(20), rng.randint(5, 60)
            file.write(f">r{i}\n{endless[begin : begin + length]}\n")
    return path


def plan_of(path: Path, *overrides: str) -> Plan:
    values = {"data.train": [str(path)]}
    return plan_run(load_config("mlm", [*SMALL, *overrides], values=values))


@pytest.fixture(scope="module")
def periodic(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunDir, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("periodic")
    path, run = write_periodic(folder / "x.fasta"), RunDir(folder / "run")
    summary = train_run(plan_of(path, "trainer.max_epochs=25", "optim.lr=1e-2"), run)
    return path, run, summary


Periodic = tuple[Path, RunDir, dict[str, Any]]


class TestLearning:
    def test_a_periodic_language_is_learnt_far_below_its_letters_frequencies(
        self, periodic: Periodic
    ) -> None:
        _, _, summary = periodic
        test = summary["test"]
        assert test["baselines"]["unigram"]["perplexity"] == pytest.approx(20, rel=0.02)
        assert test["metrics"]["perplexity"]["value"] < 2
        assert test["metrics"]["accuracy"]["value"] > 0.9
        assert test["alarms"] == []
        assert summary["monitor"] == "perplexity"

    def test_what_is_not_trained_raises_the_alarm(self, tmp_path: Path) -> None:
        rng = random.Random(1)
        lines = (f">r{i}\n{''.join(rng.choices('ACDE', k=30))}\n" for i in range(40))
        (tmp_path / "x.fasta").write_text("".join(lines))
        plan = plan_of(tmp_path / "x.fasta", "trainer.max_epochs=1", "optim.lr=1e-7")
        summary = train_run(plan, RunDir(tmp_path / "run"))
        assert any("unigram" in alarm for alarm in summary["test"]["alarms"])

    def test_perplexity_is_exp_of_the_mean_surprise_by_hand(self, periodic: Periodic) -> None:
        path, run, _ = periodic
        loaded = load_run(run.path)
        dataset = read_for_model([str(path)], loaded.tokenizer, loaded.codec).dataset
        scored, _ = evaluate_run(loaded, dataset, None)
        temperature = loaded.model.head.temperature.item()
        surprise: list[float] = []
        for i in range(len(dataset)):
            tokens = torch.from_numpy(dataset.residues(i).astype(np.int64))[None]
            with torch.no_grad():
                logits = loaded.model(tokens, torch.tensor([tokens.shape[1]]))[0].double()
            for row, target in zip(logits / temperature, dataset.target(i).tolist(), strict=True):
                if target != IGNORE:
                    surprise.append(float(row.logsumexp(0) - row[target]))
        wanted = np.exp(np.mean(surprise))
        assert scored.metrics["perplexity"].value == pytest.approx(wanted, rel=1e-4)


class TestPromise:
    """Nothing that is said of a record depends on the others, or on the run that asks."""

    def test_a_record_is_scored_alone_as_in_its_file(
        self, periodic: Periodic, tmp_path: Path
    ) -> None:
        path, run, _ = periodic
        loaded = load_run(run.path)
        whole = read_for_model([str(path)], loaded.tokenizer, loaded.codec).dataset
        _, outputs = evaluate_run(loaded, whole, None)
        records = path.read_text().split(">")[1:]
        for i in (0, 7, 149):
            (tmp_path / f"{i}.fasta").write_text(f">{records[i]}")
            alone = read_for_model(
                [str(tmp_path / f"{i}.fasta")], loaded.tokenizer, loaded.codec
            ).dataset
            assert alone.residues(0).tolist() == whole.residues(i).tolist()
            assert alone.target(0).tolist() == whole.target(i).tolist()
            _, found = evaluate_run(loaded, alone, None)
            wanted = outputs.values[whole.offsets[i] : whole.offsets[i + 1]]
            np.testing.assert_allclose(found.values, wanted, atol=2e-5)

    @given(
        lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8),
        seed=st.integers(0, 99),
        encoder=st.sampled_from(["cnn", "transformer"]),
    )
    @settings(max_examples=10)
    def test_packed_and_padded_batches_score_alike(
        self, lengths: list[int], seed: int, encoder: str
    ) -> None:
        rng = np.random.default_rng(seed)
        tokens = [rng.integers(1, TOKENIZER.vocab_size, n).astype(np.uint8) for n in lengths]
        dataset = SequenceDataset.from_lists([str(i) for i in range(len(tokens))], tokens)
        hidden = Corruption.for_evaluation(TOKENIZER)(dataset)
        model = tiny_model(encoder, task="mlm", seed=seed)
        forms = [
            predict_outputs(model, hidden, Objective("mlm"), max_tokens=size, packed=packed)
            for size, packed in itertools.product((1, 60, 1000), (True, False))
        ]
        scores = [score_outputs(each, hidden, "mlm", 20) for each in forms]
        for each, score in zip(forms[1:], scores[1:], strict=True):
            np.testing.assert_allclose(each.values, forms[0].values, atol=2e-5)
            assert score == pytest.approx(scores[0], rel=1e-3, nan_ok=True)

    def test_evaluation_hides_the_same_whatever_the_run(self, tmp_path: Path) -> None:
        path = write_periodic(tmp_path / "x.fasta", 40)
        parts = [
            plan_of(path, f"trainer.seed={seed}", "data.test_fraction=0", f"task.mask_fraction={f}")
            for seed, f in ((0, 0.15), (0, 0.4))
        ]
        assert parts[0].data.valid.fingerprint() == parts[1].data.valid.fingerprint()
        other = plan_of(path, "trainer.seed=5", "data.test_fraction=0").data
        again = read_for_model([str(path)], other.tokenizer, other.codec).dataset
        rows = [list(again.ids).index(name) for name in other.valid.ids]
        assert again.subset(rows).fingerprint() == other.valid.fingerprint()


class TestTraining:
    def batches(self, folder: Path, **settings: Any) -> Iterator[tuple[Batch, SequenceDataset]]:
        trainer = tiny_trainer(folder, "mlm", **settings)
        plan = trainer._plan(0)
        for batch in itertools.chain.from_iterable(map(trainer._collate, [plan])):
            yield batch, trainer.train

    @pytest.mark.parametrize("batching", ["packed", "bucketed", "random"])
    def test_batches_hold_what_is_hidden_in_each_record_alone(
        self, tmp_path: Path, batching: str
    ) -> None:
        corruption = Corruption.for_training(TOKENIZER, 0.3, seed=4)
        seen = []
        for batch, train in self.batches(tmp_path, batching=batching):
            assert batch.targets is not None
            tokens, targets = batch.tokens[batch.mask], batch.targets[batch.mask]
            assert (batch.targets[~batch.mask] == IGNORE).all()
            ends = batch.lengths.cumsum(0).tolist()
            for record, end, length in zip(
                batch.index.tolist(), ends, batch.lengths.tolist(), strict=True
            ):
                alone = corruption(train.subset([record]), 0)
                assert tokens[end - length : end].tolist() == alone.tokens.tolist()
                assert targets[end - length : end].tolist() == alone.targets.tolist()
                seen.append(record)
        assert sorted(seen) == list(range(24))

    def test_each_epoch_hides_other_letters(self, tmp_path: Path) -> None:
        trainer = tiny_trainer(tmp_path, "mlm", batching="packed", max_tokens=10_000)
        order = [np.arange(24)]
        first = trainer._collate(order)[0].targets
        trainer.progress.epoch = 1
        second = trainer._collate(order)[0].targets
        assert not torch.equal(first, second)
        assert (first != IGNORE).sum() != 0 != (second != IGNORE).sum()

    def test_training_holds_every_letter_and_nothing_beside(self, tmp_path: Path) -> None:
        """Eight bytes of target for each residue would be most of the memory."""
        train = plan_of(write_periodic(tmp_path / "x.fasta", 30)).data.train
        assert train.tokens.max() <= 20
        assert train.targets is None

    @pytest.mark.parametrize("part", ["train", "valid", "test"])
    def test_a_part_without_a_letter_is_refused(self, tmp_path: Path, part: str) -> None:
        files = {}
        for name in ("train", "valid", "test"):
            letters = "XXBX" if name == part else "ACDE"
            (tmp_path / f"{name}.fasta").write_text(f">{name}\n{letters}\n")
            files[name] = [str(tmp_path / f"{name}.fasta")]
        message = error_of(DataError, **files, task="mlm", alphabet="protein")
        assert message.startswith(f"the {part} part holds no letter to hide")

    def test_records_without_a_letter_to_ask_for_train_and_score(self, tmp_path: Path) -> None:
        lines = (f">r{i}\n{'XX' if i % 2 else 'ACDE'}\n" for i in range(40))
        (tmp_path / "x.fasta").write_text("".join(lines))
        plan = plan_of(tmp_path / "x.fasta", "trainer.max_epochs=2", "batching.max_tokens=2")
        summary = train_run(plan, RunDir(tmp_path / "run"))
        assert np.isfinite(summary["test"]["metrics"]["perplexity"]["value"])


class TestData:
    def splits(self, path: Path, **settings: Any) -> Any:
        return prepare_data(train=[str(path)], task="mlm", alphabet="protein", **settings)

    def test_without_labels_the_parts_are_made_at_random(self, tmp_path: Path) -> None:
        data = self.splits(write_periodic(tmp_path / "x.fasta"), test_fraction=0.2)
        assert data.test is not None
        assert (len(data.train), len(data.valid), len(data.test)) == (105, 15, 30)
        assert "at random, without labels" in data.report["split"]["how"]
        assert data.report["label_source"] == "the residues themselves"
        assert data.report["warnings"] == []
        assert sum(data.report["parts"]["train"]["classes"].values()) == len(data.train.tokens)

    @pytest.mark.parametrize("method", ["random", "similarity"])
    def test_other_splits_need_no_labels_either(self, tmp_path: Path, method: str) -> None:
        rng = random.Random(0)
        lines = (f">r{i}\n{''.join(rng.choices(PERIOD, k=30))}\n" for i in range(40))
        (tmp_path / "x.fasta").write_text("".join(lines))
        data = self.splits(tmp_path / "x.fasta", split_method=method)
        assert len(data.valid) == 4

    @pytest.mark.parametrize("key", ["split", "fold"])
    def test_headers_name_the_parts(self, tmp_path: Path, key: str) -> None:
        parts = {"a": "train", "b": "valid", "c": "test", "d": "train"}
        lines = (f">{name} label=x {key}={part}\nACDE\n" for name, part in parts.items())
        (tmp_path / "x.fasta").write_text("".join(lines))
        data = self.splits(tmp_path / "x.fasta", split_column=None if key == "split" else key)
        assert dict(data.splits()) == parts

    def test_files_name_the_parts(self, tmp_path: Path) -> None:
        paths = {}
        for name in ("train", "valid"):
            paths[name] = [str(tmp_path / f"{name}.fasta")]
            (tmp_path / f"{name}.fasta").write_text(f">{name}\nACDE\n")
        data = prepare_data(**paths, task="mlm", alphabet="protein")
        assert dict(data.splits()) == {"train": "train", "valid": "valid"}

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"labels": ["l.tsv"]}, "data.labels=l.tsv"),
            ({"label_column": "y"}, "data.label_column=y"),
            ({"id_column": "y"}, "data.id_column=y"),
            ({"ignore_labels": ["U"]}, "data.ignore_labels=U"),
        ],
    )
    def test_labels_are_refused(self, tmp_path: Path, settings: Any, said: str) -> None:
        path = write_periodic(tmp_path / "x.fasta", 20)
        message = error_of(ConfigError, train=[str(path)], task="mlm", **settings)
        assert message.startswith(f"{said}: the task mlm takes no labels")

    def test_dna_and_its_ambiguity_codes(self, tmp_path: Path) -> None:
        (tmp_path / "x.fasta").write_text("".join(f">r{i}\nACGTNRACGT\n" for i in range(20)))
        for ambiguous in ("unknown", "keep"):
            data = prepare_data(train=[str(tmp_path / "x.fasta")], task="mlm", ambiguous=ambiguous)
            assert data.codec.classes == tuple("ACGT")
            assert data.report["parts"]["train"]["classes"] == dict.fromkeys("ACGT", 2 * 18)
            targets = data.valid.targets
            assert targets is not None
            assert (targets.reshape(-1, 10)[:, 4:6] == -100).all()
            assert data.valid.tokens.max() == data.tokenizer.vocab_size


def test_a_table_says_that_nothing_was_hidden_or_what_was(periodic: Periodic) -> None:
    path, run, _ = periodic
    lines = (run.path / "predictions" / "test.tsv").read_text().splitlines()
    assert lines[0].startswith(
        "# prediction: most probable letter of each residue; those in target"
    )
    sequences = dict(r.split("\n")[:2] for r in path.read_text().split(">")[1:])
    for line in lines[2:]:
        name, length, status, prediction, probabilities, target = line.split("\t")
        assert len(probabilities.split(",")) == int(length)
        assert status == "ok"
        assert int(length) == len(prediction) == len(target) == len(sequences[name])
        hidden = [i for i, letter in enumerate(target) if letter != "-"]
        assert hidden
        assert all(target[i] == sequences[name][i] for i in hidden)


def test_a_run_comes_back_as_it_was(periodic: Periodic) -> None:
    _, run, _ = periodic
    loaded: LoadedRun = load_run(run.path)
    assert loaded.codec.task == "mlm"
    assert loaded.model.encoder.embedding.num_embeddings == loaded.tokenizer.vocab_size + 1
    report = json.loads(run.data.read_text())
    assert report["pretrained"] is None


@pytest.mark.parametrize("fill", [float("nan"), 1e4])
def test_what_lies_in_the_padding_of_hidden_records_never_matters(fill: float) -> None:
    """The embedding of padding is poisoned; a model that reads it says so."""
    model = tiny_model("cnn", task="mlm")
    rng = np.random.default_rng(0)
    tokens = [rng.integers(1, 21, n).astype(np.uint8) for n in (3, 30)]
    hidden = Corruption.for_evaluation(TOKENIZER)(SequenceDataset.from_lists(["a", "b"], tokens))
    batch = collate(hidden, np.arange(2))
    with torch.no_grad():
        wanted = model(batch.tokens, batch.lengths)[batch.mask]
        model.encoder.embedding.weight[0] = fill
        found = model(batch.tokens, batch.lengths)[batch.mask]
    assert torch.equal(found, wanted)
