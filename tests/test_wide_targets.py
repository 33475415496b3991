"""Regressions whose targets are large beside their spread lose nothing to float32."""

import csv
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from seqtrain.compose import load_config
from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.labels import LabelCodec
from seqtrain.evaluation.runs import evaluate_run, write_outputs
from seqtrain.nn.heads import RegressionHead
from seqtrain.pipeline import Plan, plan_run, train_run
from seqtrain.training.checkpoint import RunDir, load_run

OFFSET = 1e8


def plan(folder: Path, offset: float) -> Plan:
    """A run on targets that count tryptophans, moved by an offset that float32 rounds to 8."""
    rng = random.Random(0)
    rows, fasta = ["id\ttarget"], ""
    for i in range(80):
        sequence = "".join(rng.choices("ACDWW", k=rng.randint(5, 20)))
        fasta += f">r{i}\n{sequence}\n"
        rows.append(f"r{i}\t{offset + sequence.count('W') / len(sequence) + i / 10_000:.7f}")
    (folder / "a.fasta").write_text(fasta)
    (folder / "a.tsv").write_text("\n".join(rows) + "\n")
    values: dict[str, Any] = {
        "data.train": [str(folder / "a.fasta")],
        "data.labels": [str(folder / "a.tsv")],
    }
    small = ("data=files", "encoder.embed_dim=8", "encoder.num_layers=1", "trainer.max_epochs=6")
    small += (
        "optim.lr=0.03",
        "trainer.num_threads=1",
        "trainer.device=cpu",
        "batching.max_tokens=128",
    )
    return plan_run(load_config("config", [*small, "data.test_fraction=0.2"], values=values))


def test_an_offset_of_the_targets_changes_no_score(tmp_path: Path) -> None:
    summaries = []
    for name, offset in (("near", 0.0), ("far", OFFSET)):
        (tmp_path / name).mkdir()
        plan_ = plan(tmp_path / name, offset)
        summaries.append(train_run(plan_, RunDir(tmp_path / name / "run")))
    near, far = ({k: v["value"] for k, v in s["test"]["metrics"].items()} for s in summaries)
    assert near["r2"] > 0.2
    assert far == pytest.approx(near, rel=1e-3, abs=1e-4)
    for name in ("majority", "length_only"):
        wanted, found = (s["test"]["baselines"][name] for s in summaries)
        assert found == pytest.approx(wanted, rel=1e-3, abs=1e-4, nan_ok=True)
    loaded = load_run(tmp_path / "far" / "run")
    data = plan(tmp_path / "far", OFFSET).data
    _, outputs = evaluate_run(loaded, data.valid, None)
    for ending in ("tsv", "parquet"):
        write_outputs(tmp_path / f"p.{ending}", outputs, data.valid, loaded)
    lines = [
        line for line in (tmp_path / "p.tsv").read_text().splitlines() if not line.startswith("#")
    ]
    written = [float(row["prediction"]) for row in csv.DictReader(lines, delimiter="\t")]
    np.testing.assert_allclose(written, outputs.values, atol=1e-3)
    assert np.std(outputs.values) > 0.01
    column = pq.read_table(tmp_path / "p.parquet")["prediction"].to_numpy()
    np.testing.assert_array_equal(column, outputs.values)


def test_wide_head_scales_and_reads_out_what_float32_cannot_hold() -> None:
    head = RegressionHead(2, 0, mean=OFFSET, std=0.5, wide=True)
    targets = torch.tensor([OFFSET, OFFSET + 0.25], dtype=torch.float64)
    scaled = head.scale(targets)
    assert (scaled.dtype, scaled.tolist()) == (torch.float32, [0.0, 0.5])
    torch.testing.assert_close(head.readout(scaled), targets, rtol=0, atol=0)


@pytest.mark.parametrize(("mean", "std", "wide"), [(40.0, 3.0, False), (-1e8, 1.0, True)])
def test_codec_tells_whether_float32_is_enough(mean: float, std: float, wide: bool) -> None:
    assert LabelCodec("regression", mean=mean, std=std).is_wide is wide


def test_fingerprint_tells_targets_apart_that_float32_does_not() -> None:
    def fingerprint(*targets: float) -> str:
        return SequenceDataset.from_lists(
            ["a", "b"], [np.array([1], np.uint8)] * 2, list(targets)
        ).fingerprint()

    assert fingerprint(OFFSET, OFFSET + 1) != fingerprint(OFFSET, OFFSET + 2)
    narrow = SequenceDataset.from_lists(
        ["a", "b"], [np.array([1], np.uint8)] * 2, np.array([0.1, 0.2], np.float32)
    )
    assert fingerprint(0.1, 0.2) == narrow.fingerprint(), "as in runs of before"
