"""Make a motif data set in which padding and the mean activation are as large as you turn them.

    python scripts/make_controlled.py OUT [--length-spread S] [--long-share Q] [--common-share C]

The task is that of the bundled motifs, one true motif against decoys of the
same residues, so that neither length nor composition tells the classes apart. Three knobs turn
what a plain batch norm sees of a batch with N positions, n of them real, in a channel of mean μ
and variance v; with r = N/n it takes the mean for μ/r and the variance for (v + μ²(1 - 1/r))/r:

    --length-spread   standard deviation of the log length: r above 1 and different in each batch
    --long-share      share of records ten times as long: a large r in batches that hold one
    --common-share    share of one residue in the background: channels with a large μ²/v

Writes OUT/train.fasta, valid.fasta, test.fasta and labels.tsv.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from make_data import MOTIFS, SPLITS, SWISS_PROT, Recipe, Sampler, fasta, table

COMMON = "L"
"""Conserved in no motif."""
LONG = 10
LONGEST = 3000


@dataclass(frozen=True)
class Knobs:
    """What is turned; with these values nothing is ever padded."""

    length_spread: float = 0.0
    long_share: float = 0.0
    common_share: float = SWISS_PROT[COMMON] / 100

    @property
    def recipe(self) -> Recipe:
        """The motif task with this background."""
        rest = sum(share for letter, share in SWISS_PROT.items() if letter != COMMON)
        scale = (1 - self.common_share) / rest
        background = {a: scale * share for a, share in SWISS_PROT.items()}
        return dataclasses.replace(
            MOTIFS,
            name="controlled",
            background=background | {COMMON: self.common_share},
            median_length=100,
            lengths=(60, LONGEST),
            per_class={"train": 250, "valid": 75, "test": 250},
        )


class ControlledSampler(Sampler):
    """Draws sequences whose lengths the knobs decide."""

    def __init__(self, knobs: Knobs) -> None:
        super().__init__(knobs.recipe)
        self.knobs = knobs

    def lengths(self, number: int) -> list[int]:
        """Log-normal lengths, cut off where the recipe's range ends, some of them ten times as
        long."""
        low, high = self.recipe.lengths
        median = self.recipe.median_length

        def one() -> int:
            factor = LONG if self.rng.random() < self.knobs.long_share else 1
            drawn = median * factor * self.rng.lognormvariate(0, self.knobs.length_spread)
            return min(max(round(drawn), low), high)

        return [one() for _ in range(number)]


def write_controlled(folder: Path, knobs: Knobs) -> None:
    """The four files of one data set; the same bytes each time."""
    records = list(ControlledSampler(knobs).records())
    folder.mkdir(parents=True, exist_ok=True)
    texts = {f"{s}.fasta": fasta([r for r in records if r.split == s]) for s in SPLITS}
    for name, text in {**texts, "labels.tsv": table(records)}.items():
        (folder / name).write_text(text, encoding="ascii", newline="\n")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, metavar="OUT")
    for field in dataclasses.fields(Knobs):
        option = "--" + field.name.replace("_", "-")
        parser.add_argument(option, type=float, default=field.default, help="(%(default)s)")
    given = vars(parser.parse_args(arguments))
    write_controlled(given.pop("output"), Knobs(**given))


if __name__ == "__main__":
    main()
