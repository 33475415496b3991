"""Small files of records and labels, and what becomes of them."""

import random
from pathlib import Path

import pytest

from seqtrain.data.prepare import PreparedData, prepare_data
from seqtrain.errors import SeqtrainError

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"


class Folder:
    """Writes small files and prepares them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, content: str) -> str:
        (self.path / name).write_text(content)
        return str(self.path / name)

    def fasta(self, name: str, records: dict[str, str]) -> str:
        return self.write(name, "".join(f">{key}\n{seq}\n" for key, seq in records.items()))

    def table(self, rows: dict[str, object], header: str = "id\tlabel") -> str:
        lines = [header, *("\t".join([key, *_cells(value)]) for key, value in rows.items())]
        return self.write("labels.tsv", "\n".join(lines) + "\n")


def _cells(value: object) -> list[str]:
    return [str(cell) for cell in value] if isinstance(value, tuple) else [str(value)]


def peptides(count: int, prefix: str = "p", seed: int = 0) -> dict[str, str]:
    rng = random.Random(f"{prefix}{seed}")
    return {
        f"{prefix}{n}": "".join(rng.choices(AMINO_ACIDS, k=rng.randint(5, 30)))
        for n in range(count)
    }


def error_of(kind: type[SeqtrainError], **settings) -> str:
    with pytest.raises(kind) as caught:
        prepare_data(**settings)
    return str(caught.value)


def parts_of(data: PreparedData) -> dict[str, list[str]]:
    parts = {"train": data.train, "valid": data.valid, "test": data.test}
    return {name: list(part.ids) for name, part in parts.items() if part is not None}
