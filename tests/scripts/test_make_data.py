"""The bundled data: what the script makes, what the files promise, what gives nothing away."""

import dataclasses
import importlib.util
import re
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "data"

# Written anew from the sources that data/README.md cites, not taken from the script.
PATTERNS = {
    "motifs": {
        "p_loop": r"[AG].{4}GK[ST]",
        "zinc_finger": r"C.{2,4}C.{3}[LIVMFYWC].{8}H.{3,5}H",
        "heme_c": r"C[^CPWHF][^CPWR]CH[^CFYW]",
        "ferredoxin": r"C.[^P]C[^C].C[^CP].[^C]C[PEG]",
    },
    "promoters": {
        "sigma70": r"TTGAC[AT].{16,18}TA[AT]A[AT]T",
        "sigma54": r"[CT]TGGCA[CT][AG].{4}TTGC[AT]",
    },
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = ROOT / "scripts" / "make_data.py"
    spec = importlib.util.spec_from_file_location("make_data", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_data"] = module  # dataclasses look their module up here
    spec.loader.exec_module(module)
    return module


def read(path: Path) -> dict[str, str]:
    """Header line to sequence, by the simplest reader there is."""
    blocks = path.read_text().split(">")[1:]
    return {b.split("\n", 1)[0]: b.split("\n", 1)[1].replace("\n", "") for b in blocks}


def bundled(name: str) -> list[tuple[str, str, str]]:
    """(sequence, label, split) of every record as the files give them."""
    if name == "promoters":
        records = read(DATA / "promoters" / "promoters.fasta")
        fields = {h: dict(f.split("=") for f in h.split()[1:]) for h in records}
        return [(s, fields[h]["label"], fields[h]["split"]) for h, s in records.items()]
    rows = [line.split("\t") for line in (DATA / "motifs/labels.tsv").read_text().splitlines()]
    table = {record_id: (label, split) for record_id, label, split in rows[1:]}
    records = [
        (sequence, *table.pop(record_id), part)
        for part in ("train", "valid", "test")
        for record_id, sequence in read(DATA / "motifs" / f"{part}.fasta").items()
    ]
    assert rows[0] == ["id", "label", "split"]
    assert table == {}, "labels without a record"
    assert all(split == part for *_, split, part in records)
    return [(sequence, label, split) for sequence, label, split, _ in records]


def test_the_script_makes_the_committed_files_byte_for_byte(
    script: ModuleType, tmp_path: Path
) -> None:
    script.main(["-o", str(tmp_path)])
    made = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    kept = {p.relative_to(DATA): p.read_bytes() for p in DATA.rglob("*") if p.is_file()}
    assert made == {path: text for path, text in kept.items() if path.name != "README.md"}


def test_everything_bundled_is_smaller_than_a_megabyte() -> None:
    assert sum(p.stat().st_size for p in DATA.rglob("*") if p.is_file()) < 1_000_000


@pytest.mark.parametrize("name", PATTERNS)
def test_every_sequence_holds_the_motif_of_its_class_and_no_other(name: str) -> None:
    for sequence, label, _ in bundled(name):
        assert [c for c, p in PATTERNS[name].items() if re.search(p, sequence)] == [label]


@pytest.mark.parametrize("name", PATTERNS)
def test_within_a_part_all_classes_have_the_same_lengths(name: str) -> None:
    lengths: dict[tuple[str, str], list[int]] = {}
    for sequence, label, split in bundled(name):
        lengths.setdefault((split, label), []).append(len(sequence))
    assert len(lengths) == 3 * len(PATTERNS[name])
    for split in ("train", "valid", "test"):
        alike = {tuple(sorted(v)) for (part, _), v in lengths.items() if part == split}
        assert len(alike) == 1


@pytest.mark.parametrize("name", PATTERNS)
def test_lengths_spread_more_than_tenfold(name: str) -> None:
    lengths = [len(sequence) for sequence, *_ in bundled(name)]
    assert max(lengths) > 10 * min(lengths)


@pytest.mark.parametrize("name", PATTERNS)
def test_no_sequence_is_in_it_twice(name: str) -> None:
    counts = Counter(sequence for sequence, *_ in bundled(name))
    assert max(counts.values()) == 1


@pytest.mark.parametrize("name", PATTERNS)
def test_pairs_of_residues_score_at_chance(name: str) -> None:
    """Nearest class mean over 2-mer counts: another model than the report's, same verdict."""
    records = bundled(name)
    alphabet = sorted({a for sequence, *_ in records for a in sequence})
    place = {a + b: i for i, (a, b) in enumerate((a, b) for a in alphabet for b in alphabet)}
    x = np.zeros((len(records), len(place)))
    for row, (sequence, *_) in zip(x, records, strict=True):
        for pair in pairwise(sequence):
            row[place["".join(pair)]] += 1 / len(sequence)
    labels = np.array([label for _, label, _ in records])
    test = np.array([split == "test" for *_, split in records])
    classes = np.unique(labels)
    scaled = (x - x[~test].mean(0)) / (x[~test].std(0) + 1e-9)
    means = np.stack([scaled[~test & (labels == c)].mean(0) for c in classes])
    nearest = ((scaled[test][:, None] - means) ** 2).sum(-1).argmin(1)
    accuracy = float((classes[nearest] == labels[test]).mean())
    chance = 1 / len(classes)
    assert accuracy < chance + 4 * (chance * (1 - chance) / test.sum()) ** 0.5


@pytest.mark.slow
def test_the_report_is_the_table_of_the_readme(script: ModuleType) -> None:
    readme = (DATA / "README.md").read_text()
    for line in script.report().splitlines():
        name, *cells = line.strip("| ").split(" | ")
        written = re.search(rf"^\| {re.escape(name)} \|(.*)\|$", readme, re.MULTILINE)
        if "-mer" in name or "boosting" in name:
            assert written is not None
            scores = [float(cell) for cell in written[1].split("|")]
            assert [float(cell) for cell in cells] == pytest.approx(scores, abs=0.02)
        else:
            assert line in readme


def test_a_pattern_is_read_as_prosite_writes_it(script: ModuleType) -> None:
    pieces = script.parse_pattern("[AG]-x(4)-{CP}-x(2,3)-K", "ACGKP")
    assert [tuple(piece) for piece in pieces] == [
        ("AG", 1, 1, True),
        ("ACGKP", 4, 4, False),
        ("AGK", 1, 1, False),
        ("ACGKP", 2, 3, False),
        ("K", 1, 1, True),
    ]


def test_an_unknown_notation_is_refused(script: ModuleType) -> None:
    with pytest.raises(ValueError, match="PROSITE"):
        script.parse_pattern("A-b-C", "ABC")


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32))
def test_a_decoy_has_the_motifs_conserved_residues_but_not_the_motif(
    script: ModuleType, seed: int
) -> None:
    sampler = script.Sampler(dataclasses.replace(script.MOTIFS, seed=seed))
    decoy = sampler.decoy("heme_c")
    assert not re.search(PATTERNS["motifs"]["heme_c"], decoy)
    assert "CH" in decoy
    assert decoy.count("C") >= 2
    assert {decoy[:2], decoy[-2:]} & {"CH"}, "the runs are the two ends"
