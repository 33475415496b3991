"""A small data set, settings that train on it in a second, and the installed program."""

import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

SMALL = (
    "encoder.embed_dim=8",
    "encoder.num_layers=2",
    "trainer.max_epochs=2",
    "trainer.num_threads=1",
    "trainer.device=cpu",
    "batching.max_tokens=512",
)
"""Settings of a training that takes a second or two."""

Program = Callable[..., subprocess.CompletedProcess[str]]


def command(*arguments: str | Path) -> list[str]:
    """The installed program with these arguments."""
    return [str(Path(sys.executable).with_name("seqtrain")), *map(str, arguments)]


def interrupt(number: signal.Signals, line: str, *arguments: str | Path) -> tuple[int, str]:
    """Start the program and send it a signal once a line of stderr matches.

    Returns:
        Its exit status, and what it wrote to stderr after that line.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        command(*arguments), env=environment, stderr=subprocess.PIPE, text=True
    )
    with started as process:
        assert process.stderr is not None
        assert any(re.match(line, written) for written in process.stderr), "no such line"
        process.send_signal(number)
        said = process.stderr.read()
        return process.wait(timeout=60), said


def write_records(folder: Path, num_records: int = 60, seed: int = 0) -> None:
    """``train.fasta``, ``test.fasta``, ``labels.tsv``: class W has a tryptophan, class A none."""
    rng = random.Random(seed)
    rows, records = ["id\tlabel"], []
    for i in range(num_records):
        letters = rng.choices("ACDEFGHIKLMNPQRSTVY", k=rng.randint(5, 80))
        if i % 2:
            letters[rng.randrange(len(letters))] = "W"
        rows.append(f"r{i}\t{'W' if i % 2 else 'A'}")
        records.append(f">r{i}\n{''.join(letters)}\n")
    (folder / "labels.tsv").write_text("\n".join(rows) + "\n")
    cut = num_records * 2 // 3
    (folder / "train.fasta").write_text("".join(records[:cut]))
    (folder / "test.fasta").write_text("".join(records[cut:]))
