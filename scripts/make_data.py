"""Make the bundled data sets from published facts, or measure what their labels can be read from.

    python scripts/make_data.py             # writes data/motifs and data/promoters
    python scripts/make_data.py --report    # prints the table of data/README.md

Every sequence is background with one true motif, that of its class, and one *decoy* of every other
motif: the same conserved residues, in another order or at other distances. Residues, neighbouring
residues and lengths are therefore alike in all classes, and only the spacing tells them apart.

Writing needs the standard library alone, and ``random.Random`` gives the same files everywhere;
the report needs numpy and scikit-learn.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random
from typing import NamedTuple

DATA = Path(__file__).resolve().parent.parent / "data"
SPLITS = ("train", "valid", "test")
LINE = 60

# Percent of all residues in UniProtKB/Swiss-Prot, from its release statistics.
SWISS_PROT = {
    "A": 8.25, "R": 5.53, "N": 4.06, "D": 5.46, "C": 1.38, "Q": 3.93, "E": 6.71, "G": 7.07,
    "H": 2.27, "I": 5.91, "L": 9.64, "K": 5.79, "M": 2.41, "F": 3.86, "P": 4.74, "S": 6.65,
    "T": 5.36, "W": 1.10, "Y": 2.92, "V": 6.85,
}  # fmt: skip
# Intergenic DNA of Escherichia coli is richer in A+T than its genes; rounded percent.
INTERGENIC = {"A": 29.0, "C": 21.0, "G": 21.0, "T": 29.0}


@dataclass(frozen=True)
class Recipe:
    """What a data set is made of; lengths are in residues, ``per_class`` counts sequences."""

    name: str
    background: Mapping[str, float]
    patterns: Mapping[str, str]  # class -> motif in PROSITE's notation, where x is any residue
    decoy_gaps: tuple[int, int]  # between the conserved parts of a decoy
    median_length: float
    lengths: tuple[int, int]
    per_class: Mapping[str, int]
    seed: int


MOTIFS = Recipe(
    name="motifs",
    background=SWISS_PROT,
    patterns={  # PROSITE PS00017, PS00028, PS00190 and PS00198
        "p_loop": "[AG]-x(4)-G-K-[ST]",
        "zinc_finger": "C-x(2,4)-C-x(3)-[LIVMFYWC]-x(8)-H-x(3,5)-H",
        "heme_c": "C-{CPWHF}-{CPWR}-C-H-{CFYW}",
        "ferredoxin": "C-x-{P}-C-{C}-x-C-{CP}-x-{C}-C-[PEG]",
    },
    decoy_gaps=(2, 9),
    median_length=110,
    lengths=(60, 900),
    per_class={"train": 600, "valid": 75, "test": 150},
    seed=17,
)
PROMOTERS = Recipe(
    name="promoters",
    background=INTERGENIC,
    patterns={  # -35 and -10 boxes (Hawley & McClure 1983); -24 and -12 (Barrios et al. 1999)
        "sigma70": "T-T-G-A-C-[AT]-x(16,18)-T-A-[AT]-A-[AT]-T",
        "sigma54": "[CT]-T-G-G-C-A-[CT]-[AG]-x(4)-T-T-G-C-[AT]",
    },
    decoy_gaps=(2, 24),
    median_length=140,
    lengths=(60, 900),
    per_class={"train": 400, "valid": 50, "test": 200},
    seed=54,
)
RECIPES = {recipe.name: recipe for recipe in (MOTIFS, PROMOTERS)}


class Record(NamedTuple):
    """One made sequence with its class and its part of the data."""

    id: str
    sequence: str
    label: str
    split: str


class Piece(NamedTuple):
    """One element of a pattern: between ``low`` and ``high`` residues out of ``letters``."""

    letters: str
    low: int
    high: int
    conserved: bool


def parse_pattern(pattern: str, alphabet: str) -> list[Piece]:
    pieces = []
    for element in pattern.split("-"):
        parts = re.fullmatch(r"(x|[A-Z]|\[[A-Z]+\]|\{[A-Z]+\})(?:\((\d+)(?:,(\d+))?\))?", element)
        if parts is None:
            raise ValueError(f"{element!r} in {pattern!r} is not PROSITE's notation")
        token, low, high = parts[1], int(parts[2] or 1), int(parts[3] or parts[2] or 1)
        excluded = token[0] in "x{"
        letters = "".join(a for a in alphabet if (a in token) != excluded)
        pieces.append(Piece(letters, low, high, conserved=not excluded))
    return pieces


def pattern_regex(pieces: Sequence[Piece]) -> re.Pattern[str]:
    return re.compile("".join(f"[{p.letters}]{{{p.low},{p.high}}}" for p in pieces))


class Sampler:
    """Draws sequences of one recipe, reproducibly."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.alphabet = "".join(recipe.background)
        self.pieces = {c: parse_pattern(p, self.alphabet) for c, p in recipe.patterns.items()}
        self.regexes = {c: pattern_regex(pieces) for c, pieces in self.pieces.items()}
        self.rng = Random(recipe.seed)

    def residues(self, number: int, letters: str = "") -> str:
        """Residues out of ``letters`` (else the alphabet), as frequent as in the background."""
        letters = letters or self.alphabet
        weights = [self.recipe.background[a] for a in letters]
        return "".join(self.rng.choices(letters, weights, k=number))

    def piece(self, piece: Piece) -> str:
        """One reading of an element of a pattern."""
        return self.residues(self.rng.randint(piece.low, piece.high), piece.letters)

    def motif(self, label: str) -> str:
        """One reading of the motif of a class."""
        return "".join(map(self.piece, self.pieces[label]))

    def decoy(self, label: str) -> str:
        """The conserved runs of a motif, shuffled and spaced so that it is none."""
        runs = [""]
        for piece in self.pieces[label]:
            if piece.conserved:
                runs[-1] += self.piece(piece)
            elif runs[-1]:
                runs.append("")
        runs = [run for run in runs if run]
        while True:
            self.rng.shuffle(runs)
            gaps = [self.residues(self.rng.randint(*self.recipe.decoy_gaps)) for _ in runs[1:]]
            decoy = runs[0] + "".join(gap + run for gap, run in zip(gaps, runs[1:], strict=True))
            if not self.regexes[label].search(decoy):
                return decoy

    def sequence(self, label: str, length: int) -> str:
        """Background with the elements anywhere in it; no other class's motif, not even by chance.

        Drawn anew as a whole until that holds, so a short sequence gets elements that fit in it.
        """
        while True:
            elements = [self.motif(c) if c == label else self.decoy(c) for c in self.pieces]
            room = length - sum(map(len, elements))
            if room < 0:
                continue
            self.rng.shuffle(elements)
            cuts = sorted(self.rng.randint(0, room) for _ in elements)
            background = self.residues(room)
            parts = [background[a:b] for a, b in zip([0, *cuts], [*cuts, room], strict=True)]
            sequence = parts[0] + "".join(
                element + part for element, part in zip(elements, parts[1:], strict=True)
            )
            if [c for c, regex in self.regexes.items() if regex.search(sequence)] == [label]:
                return sequence

    def lengths(self, number: int) -> list[int]:
        """Log-normal lengths inside the recipe's range."""
        low, high = self.recipe.lengths
        drawn: list[int] = []
        while len(drawn) < number:
            length = round(self.recipe.median_length * self.rng.lognormvariate(0, 0.6))
            if low <= length <= high:
                drawn.append(length)
        return drawn

    def records(self) -> Iterator[Record]:
        """All records, in mixed order; within a part every class has the very same lengths."""
        number = count(1)
        for split in SPLITS:
            lengths = self.lengths(self.recipe.per_class[split])
            wanted = [(label, length) for label in self.pieces for length in lengths]
            self.rng.shuffle(wanted)
            for label, length in wanted:
                record_id = f"{self.recipe.name.removesuffix('s')}-{next(number):04d}"
                yield Record(record_id, self.sequence(label, length), label, split)


def fasta(records: Sequence[Record], *, attributes: bool = False) -> str:
    lines = []
    for r in records:
        lines.append(f">{r.id} label={r.label} split={r.split}" if attributes else f">{r.id}")
        lines += [r.sequence[i : i + LINE] for i in range(0, len(r.sequence), LINE)]
    return "\n".join(lines) + "\n"


def table(records: Sequence[Record]) -> str:
    rows = ["id\tlabel\tsplit", *(f"{r.id}\t{r.label}\t{r.split}" for r in records)]
    return "\n".join(rows) + "\n"


def make_files() -> dict[str, str]:
    """The text of every file, by its path inside ``data/``."""
    motifs, promoters = (list(Sampler(recipe).records()) for recipe in (MOTIFS, PROMOTERS))
    files = {
        f"motifs/{split}.fasta": fasta([r for r in motifs if r.split == split]) for split in SPLITS
    }
    files["motifs/labels.tsv"] = table(motifs)
    files["promoters/promoters.fasta"] = fasta(promoters, attributes=True)
    return files


def measure(records: Sequence[Record]) -> dict[str, float]:
    """Test accuracy of what knows only the length or the composition; ``C`` chosen on valid."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    parts = {split: [r for r in records if r.split == split] for split in SPLITS}
    y = {split: [r.label for r in part] for split, part in parts.items()}
    lengths = {split: [[len(r.sequence)] for r in part] for split, part in parts.items()}
    scores = {"majority class": max(map(y["test"].count, set(y["train"]))) / len(y["test"])}
    booster = HistGradientBoostingClassifier(random_state=0).fit(lengths["train"], y["train"])
    scores["length alone, gradient boosting"] = booster.score(lengths["test"], y["test"])
    for k in (1, 2, 3):
        counter = CountVectorizer(analyzer="char", ngram_range=(k, k), lowercase=False)
        counter.fit(r.sequence for r in parts["train"])
        x = {split: counter.transform(r.sequence for r in parts[split]) for split in SPLITS}
        models = [
            make_pipeline(
                StandardScaler(with_mean=False), LogisticRegression(C=c, max_iter=2000)
            ).fit(x["train"].astype(float), y["train"])
            for c in (1e-4, 1e-3, 1e-2, 1e-1)
        ]
        best = max(models, key=lambda model: model.score(x["valid"].astype(float), y["valid"]))
        name = f"{k}-mer counts, logistic regression"
        scores[name] = best.score(x["test"].astype(float), y["test"])
    return scores


def report() -> str:
    """A Markdown table of sizes, lengths and baselines, one column per data set."""
    import numpy as np

    columns = []
    for recipe in RECIPES.values():
        sampler = Sampler(recipe)
        records = list(sampler.records())
        lengths = np.array([len(r.sequence) for r in records])
        test = [r for r in records if r.split == "test"]
        found = [[c for c, x in sampler.regexes.items() if x.search(r.sequence)] for r in test]
        patterns = sum(f == [r.label] for f, r in zip(found, test, strict=True)) / len(test)
        columns.append(
            {
                "train / valid / test": " / ".join(
                    str(sum(r.split == split for r in records)) for split in SPLITS
                ),
                "classes": str(len(recipe.patterns)),
                "lengths min / median / max": f"{lengths.min()} / {np.median(lengths):.0f} / "
                f"{lengths.max()}",
                "residues": f"{lengths.sum():,}",
                **{name: f"{score:.3f}" for name, score in measure(records).items()},
                "the patterns themselves": f"{patterns:.3f}",
            }
        )
    rows = [f"| | {' | '.join(RECIPES)} |", "|---|" + "---|" * len(columns)]
    rows += [f"| {key} | {' | '.join(c[key] for c in columns)} |" for key in columns[0]]
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=DATA, help="folder (%(default)s)")
    parser.add_argument("--report", action="store_true", help="print the table, write nothing")
    options = parser.parse_args(arguments)
    if options.report:
        print(report())
        return
    for name, text in make_files().items():
        path = options.output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii", newline="\n")
        print(f"{path}: {len(text):,} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
