"""The controlled set: its knobs turn what they say, and networks show the closed form on it."""

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(scope="module")
def scripts() -> Iterator[tuple[ModuleType, ModuleType]]:
    """(make_controlled, padding_in_layers), which import each other from their folder."""
    before = sys.path.copy()
    sys.path.insert(0, str(SCRIPTS))
    yield import_module("make_controlled"), import_module("padding_in_layers")
    sys.path[:] = before


def lengths_and_letters(folder: Path) -> tuple[np.ndarray, str]:
    blocks = (folder / "train.fasta").read_text().split(">")[1:]
    sequences = ["".join(block.split("\n")[1:]) for block in blocks]
    return np.array([len(s) for s in sequences]), "".join(sequences)


def test_knobs_turn_lengths_padding_and_composition_each_alone(
    scripts: tuple[ModuleType, ModuleType], tmp_path: Path
) -> None:
    make, _ = scripts
    given = {
        "none": [],
        "spread": ["--length-spread", "0.8"],
        "long": ["--long-share", "0.1"],
        "common": ["--common-share", "0.7"],
    }
    for name, options in given.items():
        make.main([str(tmp_path / name), *options])
    found = {name: lengths_and_letters(tmp_path / name) for name in given}
    common = {name: letters.count("L") / len(letters) for name, (_, letters) in found.items()}
    lengths = {name: value for name, (value, _) in found.items()}
    assert set(lengths["none"]) == set(lengths["common"]) == {100}
    assert np.log(lengths["spread"]).std() == pytest.approx(0.65, abs=0.1)  # cut off at 60
    assert set(lengths["long"]) == {100, 1000}
    assert (lengths["long"] == 1000).mean() == pytest.approx(0.1, abs=0.04)
    assert max(common["none"], common["spread"], common["long"]) < 0.11
    assert common["common"] > 0.4


def test_neither_length_nor_class_frequency_tells_the_classes_apart(
    scripts: tuple[ModuleType, ModuleType], tmp_path: Path
) -> None:
    make, _ = scripts
    make.write_controlled(tmp_path, make.Knobs(length_spread=1.0, long_share=0.1))
    rows = [r.split("\t") for r in (tmp_path / "labels.tsv").read_text().splitlines()[1:]]
    label = {name: label for name, label, _ in rows}
    by_class: dict[str, list[int]] = {}
    for block in (tmp_path / "test.fasta").read_text().split(">")[1:]:
        name, *lines = block.split("\n")
        by_class.setdefault(label[name], []).append(len("".join(lines)))
    first, *others = (sorted(lengths) for lengths in by_class.values())
    assert len(others) == 3
    assert all(other == first for other in others)


@pytest.mark.parametrize(
    ("overrides", "tolerance"),
    [
        (["encoder=cnn", "encoder.kernel_size=1"], 1e-9),
        # Convolutions reach across the end of a sequence: a border that is no constant.
        (["encoder=cnn", "encoder.kernel_size=5", "encoder.max_dilation=4"], 0.25),
    ],
)
def test_every_norm_of_a_cnn_sees_the_closed_form(
    scripts: tuple[ModuleType, ModuleType], tmp_path: Path, overrides: list[str], tolerance: float
) -> None:
    make, layers = scripts
    plan = layers.plan_of(tmp_path, make.Knobs(length_spread=1.0, common_share=0.7), overrides)
    seen = [s for s, _ in zip(layers.watch(plan), range(30), strict=False)]
    assert {s.layer for s in seen} == {f"blocks.{i}.norm" for i in range(3)}
    assert layers.deviation(seen) < tolerance
    padded = [s for s in seen if s.r > 1.3]
    naive = max(float((s.all_var / s.var - 1).abs().max()) for s in padded)
    assert naive > 0.3, "padding must be seen, or the closed form says nothing"


def test_real_positions_leave_the_first_norm_of_a_transformer_as_the_padding_says(
    scripts: tuple[ModuleType, ModuleType], tmp_path: Path
) -> None:
    make, layers = scripts
    knobs = make.Knobs(length_spread=1.0, common_share=0.7)
    plan = layers.plan_of(tmp_path, knobs, ["encoder=transformer"])
    first = [s for s in layers.watch(plan) if s.layer == "blocks.0.attention_norm"]
    for s in first:
        # Zero-filled: mean mu/r and variance (v + mu^2 (1 - 1/r))/r, written out here again.
        variance = (s.var + s.mean**2 * (1 - 1 / s.r)) / s.r
        torch.testing.assert_close(s.all_mean, s.mean / s.r, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(s.all_var, variance, rtol=1e-6, atol=1e-9)
        scale = (variance + 1e-5).sqrt()
        torch.testing.assert_close(s.out_mean, (s.mean - s.mean / s.r) / scale, rtol=0, atol=1e-4)
        torch.testing.assert_close(s.out_std, s.var.sqrt() / scale, rtol=0, atol=1e-4)
    assert max(s.r for s in first) > 2 * min(s.r for s in first)
