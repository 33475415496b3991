"""`seqtrain embed`: records unlike the training are told, as `predict` tells them."""

from pathlib import Path

from small_program import Program


def test_records_of_another_alphabet_are_told(
    program: Program, run_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "dna.fasta"
    path.write_text("".join(f">d{i}\n{'ACGTTGCA' * 6}\n" for i in range(4)))
    done = program("embed", run_dir, path, "-o", tmp_path / "vectors.npz")
    assert done.returncode == 0, done.stderr
    assert "warning: 4 of 4 records (100.0%) do not look like protein" in done.stderr
