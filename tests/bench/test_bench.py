"""Benchmarks measure what they say: the same records, the same model, the figures of their runs."""

import json
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from seqtrain.bench import norms, train
from seqtrain.bench.data import DataBench, bench_data
from seqtrain.bench.norms import NormBench, bench_norms, without_kernels
from seqtrain.bench.plain import bucketed_batches, pad_batch, random_batches
from seqtrain.bench.report import Figure, Report
from seqtrain.bench.synthetic import TOKENIZER, draw_dataset, draw_lengths, write_fasta
from seqtrain.bench.timing import ModelClock, alternate, paired_ratio
from seqtrain.bench.train import (
    TrainBench,
    bench_train,
    draw_batches,
    matrix_products,
    measure_rates,
)
from seqtrain.bench.trainers import packed_model, plain_model
from seqtrain.cli.main import app
from seqtrain.data.batching import collate
from seqtrain.data.fasta import scan_fasta
from seqtrain.nn.norms import MaskedBatchNorm1d

CPU = torch.device("cpu")


def by_name(report: Report) -> dict[str, Figure]:
    return {figure.name: figure for figure in report.figures}


class TestTiming:
    def test_cases_take_turns_and_warm_up_is_not_counted(self) -> None:
        order: list[str] = []
        cases = {name: lambda n=name: order.append(n) for name in "ab"}
        seconds = alternate(cases, 3, CPU, warm_up=2)
        assert order == ["a", "b"] * 5
        assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}

    def test_a_ratio_is_taken_within_each_repetition(self) -> None:
        assert paired_ratio(np.array([2.0, 20, 9]), np.array([1.0, 10, 3])) == 2

    def test_the_model_is_timed_from_forward_to_the_optimizers_step(self) -> None:
        """And in evaluation by its forward pass alone; what lies between steps is not counted."""
        model = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        clock = ModelClock(CPU)
        with clock.watching(model, optimizer):
            model(torch.ones(1, 2)).sum().backward()
            assert clock.seconds == 0
            optimizer.step()
            trained = clock.seconds
            model.eval()
            model(torch.ones(1, 2))
        assert 0 < trained < clock.seconds
        before = clock.seconds
        model(torch.ones(1, 2))
        assert clock.seconds == before


class TestSynthetic:
    def test_lengths_are_those_of_the_claim(self) -> None:
        lengths = draw_lengths(20_000)
        assert np.median(lengths) == pytest.approx(180, abs=4)
        assert (lengths.min(), lengths.max()) == (30, 1000)

    def test_the_fasta_file_holds_the_data_set(self, tmp_path: Path) -> None:
        dataset = draw_dataset(7)
        write_fasta(tmp_path / "a.fasta", dataset)
        records = list(scan_fasta([tmp_path / "a.fasta"]))
        assert [record.id for record in records] == list(dataset.ids)
        tokens = [TOKENIZER.encode(record.sequence) for record in records]  # type: ignore[union-attr]
        assert np.concatenate(tokens).tolist() == dataset.tokens.tolist()

    def test_equal_lengths_can_be_asked_for(self) -> None:
        assert draw_dataset(3, length=50).lengths.tolist() == [50, 50, 50]


class TestBaseline:
    @pytest.mark.parametrize("encoder", ["cnn", "transformer"])
    def test_it_is_as_large_as_the_model_it_stands_beside(self, encoder: str) -> None:
        sizes = []
        for model in (packed_model(encoder), plain_model(encoder, 1)):
            named = model.named_parameters()
            sizes.append(sum(p.numel() for name, p in named if "positions" not in name))
        assert sizes[0] == sizes[1]

    def test_without_padding_the_same_weights_give_the_same_logits(self) -> None:
        ours, plain = packed_model("cnn").eval(), plain_model("cnn", 1).eval()
        with torch.no_grad():
            for own, other in zip(plain.parameters(), ours.parameters(), strict=True):
                own.copy_(torch.randn_like(own) * 0.05)
                other.copy_(own)
            dataset = draw_dataset(4, length=60)
            tokens, _ = pad_batch(dataset, np.arange(4))
            batch = collate(dataset, np.arange(4), packed=True)
            torch.testing.assert_close(
                ours(batch.tokens, batch.lengths, True)[batch.index.argsort()],
                plain(tokens),
                rtol=1e-4,
                atol=1e-5,
            )

    def test_batches_hold_every_record_once_and_bucketed_ones_little_padding(self) -> None:
        lengths = draw_lengths(1000)
        for batches in (random_batches(1000, 32), bucketed_batches(lengths, 32)):
            assert sorted(np.concatenate(batches).tolist()) == list(range(1000))
            assert {len(batch) for batch in batches[:-1]} == {32}
        bucketed = bucketed_batches(lengths, 32)
        positions = sum(len(batch) * lengths[batch].max() for batch in bucketed)
        assert positions < 1.1 * lengths.sum()

    @pytest.mark.parametrize("number", [4, 11, 20])
    def test_packed_and_random_steps_hold_the_same_records_bucketed_ones_all_lengths(
        self, number: int
    ) -> None:
        dataset = draw_dataset(640)
        batches = draw_batches(dataset, number)
        assert {len(forms) for forms in batches.values()} == {number}
        assert batches["packed"] is batches["random"]
        means = [dataset.lengths[index].mean() for index in batches["bucketed"]]
        assert means == sorted(means)
        assert np.mean(means) == pytest.approx(dataset.lengths.mean(), rel=0.1)


def test_the_products_are_those_of_the_flops_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    flops = {"torch.mm": 0, "oneDNN": 0}

    def count(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> None:
        flops["torch.mm"] += 2 * left.shape[0] * right.shape[0] * right.shape[1]
        assert out.shape == (left.shape[0], right.shape[1])

    def count_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> None:
        flops["oneDNN"] += 2 * x.shape[0] * weight.shape[0] * weight.shape[1]
        assert bias.shape == weight.shape[:1]

    monkeypatch.setattr(torch, "mm", count)
    monkeypatch.setattr(train, "linear", count_linear)
    monkeypatch.setattr(train, "HAS_ONEDNN", True)
    forms = matrix_products(TrainBench(), [100, 50])
    for multiply in forms.values():
        multiply()
    # 6 layers, kernel 5, 128 channels in and out, forward and two gradients.
    assert flops == dict.fromkeys(forms, 3 * 6 * 2 * 150 * 5 * 128 * 128)


def test_the_target_of_the_products_is_that_of_the_faster_library() -> None:
    shares = {"torch.mm": 1.3, "oneDNN": 0.6}
    rates = {name: np.ones(1) for name in ("packed", "random", "bucketed")}
    figures = {f.name: f for f in train._rate_figures("cnn", rates, shares, 0.5)}
    targets = [figures[f"packed over matrix products of the same flops, by {n}"] for n in shares]
    assert [figure.target for figure in targets] == [None, 0.7]


def test_the_reference_form_runs_without_kernels_and_they_are_put_back() -> None:
    before = dict(norms.KERNELS)
    norm, x = MaskedBatchNorm1d(4, channel_dim=-1), torch.randn(2, 5, 4)
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    with_kernels = norm(x, mask)
    with without_kernels():
        assert not norms.KERNELS
        torch.testing.assert_close(norm(x, mask), with_kernels)
    assert before == norms.KERNELS


def test_a_target_is_a_floor_or_a_ceiling() -> None:
    assert Figure("a", 0.4, "ratio", 0.45, at_most=True).holds
    assert not Figure("a", 0.5, "ratio", 0.45, at_most=True).holds
    assert Figure("a", 3.1, "ratio", 3.0).holds
    assert Figure("a", 3.1, "ratio").holds is None


def test_training_is_measured_from_end_to_end() -> None:
    settings = TrainBench(
        repetitions=1, num_batches=1, num_records=32, curve_steps=2, curve_seeds=2
    )
    figures = by_name(bench_train(settings))
    assert all(np.isfinite(figure.value) for figure in figures.values())
    assert figures["packed over plain random"].target == 3.0
    assert figures["packed over plain bucketed"].target == 1.3
    assert 0 < figures["share of training that is not the model"].value < 1


def test_the_transformer_has_the_same_targets_but_that_of_the_products() -> None:
    settings = TrainBench("transformer", repetitions=1, num_batches=1)
    figures = measure_rates(settings, draw_dataset(4, length=20))
    assert [figure.target for figure in figures if figure.target] == [3.0, 1.3]
    assert all(figure.value > 0 for figure in figures)


def test_norms_are_measured_from_end_to_end() -> None:
    figures = by_name(bench_norms(NormBench(repetitions=2, batch_size=2, length=16, channels=(8,))))
    targets = {f.name: f.target for f in figures.values() if f.target is not None}
    assert targets == {
        "C = 8, half padding: masked over nn.BatchNorm1d": 0.6,
        "C = 8, half padding: masked over torch's norm of all rows (B * L, C)": 1.0,
    }
    assert all(figure.value > 0 for figure in figures.values())


def test_data_is_measured_from_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqtrain.bench.data.PLANNED", 1000)
    figures = by_name(bench_data(DataBench(repetitions=1, num_records=40)))
    assert figures["predict over a padded loop in file order"].target == 3.0
    assert 0 < figures["share of predict that is the model"].value < 1


def test_the_verb_prints_figures_and_keeps_them_as_json(tmp_path: Path) -> None:
    path = tmp_path / "norms.json"
    asked = ["bench", "norms", "--repetitions", "1", "--channels", "4", "--json", str(path)]
    done = CliRunner().invoke(app, [*asked, "--length", "20"])
    assert done.exit_code == 0, done.output
    assert "C = 4, half padding: masked over nn.BatchNorm1d" in done.stdout
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert kept["bench"] == "norms"
    assert kept["settings"]["shape"] == "(32, 20, C)"
    assert kept["command"].split()[0] == "seqtrain"
    assert date.fromisoformat(kept["machine"]["date"]) <= date.today()
    assert kept["machine"]["threads"] == torch.get_num_threads()
    assert {figure["unit"] for figure in kept["figures"]} == {"ms", "ratio"}
    assert CliRunner().invoke(app, ["bench", "train", "--encoder", "rnn"]).exit_code == 2
