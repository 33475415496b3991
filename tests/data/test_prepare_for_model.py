"""Files for a trained model; real files."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from prepared_data import AMINO_ACIDS, Folder

from seqtrain.data.for_model import read_for_model
from seqtrain.data.lengths import LengthRule
from seqtrain.data.prepare import PreparedData, prepare_data
from seqtrain.errors import DataError, FastaError, LabelError


def trained(folder: Folder, alphabet: str = AMINO_ACIDS) -> PreparedData:
    rng = random.Random(3)
    records = {f"r{n}": "".join(rng.choices(alphabet, k=30)) for n in range(20)}
    labels = folder.table({key: "ab"[n % 2] for n, key in enumerate(records)})
    return prepare_data(train=[folder.fasta("train.fa", records)], labels=[labels])


def test_model_reads_a_file_as_training_read_it(folder):
    data = trained(folder)
    other, labels = folder.path / "train.fa", folder.path / "labels.tsv"
    dataset = read_for_model([str(other)], data.tokenizer, data.codec, labels=[str(labels)]).dataset
    assert list(dataset.ids) == list(data.ids)
    ids = list(dataset.ids)
    chosen = dataset.subset([ids.index(key) for key in data.train.ids])
    assert chosen.fingerprint() == data.train.fingerprint()


def test_model_takes_labels_from_headers_and_refuses_unknown_ones(folder):
    data = trained(folder)
    good = folder.write("good.fa", ">x label=b\nMKV\n>y label=a\nMKVL\n")
    assert read_for_model([good], data.tokenizer, data.codec).dataset.targets.tolist() == [1, 0]
    bad = folder.write("bad.fa", ">x label=b\nMKV\n>y label=c\nMKVL\n")
    with pytest.raises(LabelError, match=r"record 'y' \(2nd, line 3\).*'c' is not among"):
        read_for_model([bad], data.tokenizer, data.codec)


def test_model_reads_names_as_training_did(folder):
    rng = random.Random(3)
    records = {f"r{n}": "".join(rng.choices(AMINO_ACIDS, k=30)) for n in range(20)}
    labels = folder.table({key: ["a;", "b;"][n % 2] for n, key in enumerate(records)})
    data = prepare_data(train=[folder.fasta("train.fa", records)], labels=[labels])
    assert data.codec.classes == ("a", "b")
    fasta = folder.write("x.fa", ">x label='b;'\nMKV\n>y label=a\nMKVL\n")
    assert read_for_model([fasta], data.tokenizer, data.codec).dataset.targets.tolist() == [1, 0]


def test_model_refuses_missing_labels_or_leaves_them_out(folder):
    data = trained(folder)
    fasta = folder.write("x.fa", ">x label=b\nMKV\n>y label=NA\nMKVL\n>z\nMKA\n")
    with pytest.raises(LabelError, match=r"2 records cannot be used(.|\n)*with --on-error skip"):
        read_for_model([fasta], data.tokenizer, data.codec)
    found = read_for_model([fasta], data.tokenizer, data.codec, on_error="skip")
    assert list(found.dataset.ids) == ["x"]
    assert [each.id for each in found.rejects] == ["y", "z"]
    assert "'NA' is a missing value" in found.rejects[0].reason
    assert list(found.rows()) == [0, *found.rejects]


def test_mask_in_headers_of_sequences_is_said_not_to_be_read(folder):
    data = trained(folder)
    fasta = folder.write("x.fa", ">x MASK=011\nMKV\n>y\nMKVL\n")
    labels = folder.table({"x": "a", "y": "b"})
    found = read_for_model([fasta], data.tokenizer, data.codec, labels=[labels])
    assert any("MASK=... in the headers of the sequences is not read" in n for n in found.notes)


def test_labels_in_headers_that_a_table_contradicts_are_told(folder):
    data = trained(folder)
    fasta = folder.write("x.fa", ">x label=a\nMKV\n>y label=b\nMKVL\n")
    notes = []
    for other in ("b", "a"):
        labels = folder.table({"x": "a", "y": other})
        found = read_for_model([fasta], data.tokenizer, data.codec, labels=[labels])
        notes.append(" ".join(found.notes))
    assert "another label" not in notes[0]
    assert "1 records, such as 'y', have another label in their headers" in notes[1]


def test_model_applies_its_length_limit(folder):
    data = trained(folder)
    fasta = folder.write("x.fa", ">x label=b\nMKVLA\n>y label=a\nMK\n")
    read = read_for_model(
        [fasta], data.tokenizer, data.codec, lengths=LengthRule(3, "truncate")
    ).dataset
    assert read.lengths.tolist() == [3, 2]


def test_protein_model_refuses_nucleotides_and_the_other_way_round(folder):
    dna = folder.write("dna.fa", ">x label=a\n" + "ACGT" * 300 + "\n")
    protein = folder.write("protein.fa", ">x label=a\n" + AMINO_ACIDS * 60 + "\n")
    model = trained(folder)
    with pytest.raises(DataError, match="look like dna; the model was trained on protein"):
        read_for_model([dna], model.tokenizer, model.codec)
    model = trained(folder, "ACGT")
    with pytest.raises(FastaError, match="look like protein, but are read as dna"):
        read_for_model([protein], model.tokenizer, model.codec)


def test_model_refuses_files_that_play_two_parts_or_hold_another_kind_of_label(folder):
    model = trained(folder)
    fasta = folder.write("x.fa", ">x label=a\nMK\n")
    with pytest.raises(FastaError, match="is given twice"):
        read_for_model([fasta], model.tokenizer, model.codec, labels=[fasta])
    residues = folder.write("labels.fa", ">x\nHH\n")
    with pytest.raises(LabelError, match="holds one letter per residue, but classification"):
        read_for_model([fasta], model.tokenizer, model.codec, labels=[residues])


def test_short_poly_alanine_is_no_reason_to_refuse(folder):
    model = trained(folder)
    fasta = folder.write("x.fa", ">x label=a\nAAAAAAGG\n")
    assert len(read_for_model([fasta], model.tokenizer, model.codec).dataset) == 1


def test_preparing_data_does_not_import_torch():
    code = "import sys, seqtrain.data.prepare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Real data.

REAL = {
    "amplify_amp": ("classification", "protein", 2, (None, None, 1670)),
    "deeprt_swath": ("regression", "protein", 1, (None, None, 14658)),
    "esol_solubility": ("regression", "protein", 1, (None, None, 783)),
    "mipepid_sorf": ("classification", "dna", 2, (None, None, 1390)),
    "multipep_open": ("multilabel", "protein", 20, (13865, 4601, 4632)),
    "nrc_ncrna13": ("classification", "dna", 13, (5670, 650, 2600)),
    "tmbed_topology": ("residue_classification", "protein", 5, (None, None, 1307)),
    "wheat_coding_potential": ("classification", "dna", 2, (2799, 400, 800)),
}


def real_files(folder: Path) -> dict[str, list[str]]:
    files = {part: [folder / f"{part}.fasta"] for part in ("train", "valid", "test")}
    residues = folder / "labels.fasta"
    files["labels"] = [residues if residues.exists() else folder / "labels.tsv"]
    return {part: [str(p) for p in paths if p.exists()] for part, paths in files.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_data_prepare_without_an_option(real_data, name):
    task, alphabet, num_outputs, sizes = REAL[name]
    files = real_files(real_data / name)
    if name == "deeprt_swath":  # its 117,270 training records would take half a minute here
        files["train"] = files.pop("valid")
    data = prepare_data(**files)
    assert (data.codec.task, data.tokenizer.alphabet.name) == (task, alphabet)
    assert data.codec.num_outputs == num_outputs
    for part, size in zip((data.train, data.valid, data.test), sizes, strict=True):
        assert size is None or len(part) == size
    test = read_for_model(files["test"], data.tokenizer, data.codec, labels=files["labels"]).dataset
    assert test.fingerprint() == data.test.fingerprint()


def test_real_split_column_stands_in_for_files(real_data):
    folder = real_data / "esol_solubility"
    everything = [str(folder / "train.fasta"), str(folder / "test.fasta")]
    data = prepare_data(train=everything, labels=[str(folder / "labels.tsv")])
    assert len(data.test) == 783
    assert "labels.tsv, column 'split'" in data.report["split"]["how"]


def test_real_topology_ignores_unknown_residues(real_data):
    files = real_files(real_data / "tmbed_topology")
    data = prepare_data(**files, ignore_labels=["U"])
    assert data.codec.classes == ("B", "H", "N", "S")
    assert data.report["parts"]["test"]["ignored_residues"] == int((data.test.targets < 0).sum())
    assert (data.test.targets >= 0).sum() == 750037
