"""Train every arm of docs/study.md; stop it anywhere, start it again, and it goes on.

    python scripts/study.py FILES RESULTS [PART ...]

FILES holds one folder per real data set, as docs/study.md says where to get them. RESULTS gets one
comparison per part, each written by `seqtrain compare-norms --resume`. Parts are trained with
three seeds first, in the order below, and with five once all have three: which get five depends on
the time there is, and on no result.
"""

import argparse
import contextlib
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from make_controlled import Knobs, write_controlled

SEEDS = (3, 5)
LEARNING_RATE = {"cnn": 2e-3, "transformer": 1e-3}
"""At two sequences per batch; docs/study.md says how it was chosen."""
EPOCHS = {2: 8, 4: 12, 8: 16, 64: 32}
CONTROLLED_EPOCHS = {2: 12, 4: 20, 8: 28, 64: 40}
"""Motifs are found late; with fewer epochs only some seeds find them."""
PADDING_ONLY = ("--norms", "masked_batch,batch,leaky_batch")
SHORT = ("data.max_length=300", "data.overlong=skip")
CONTROLLED = {
    "none": Knobs(),
    "common": Knobs(common_share=0.7),
    "spread-0.25": Knobs(length_spread=0.25),
    "spread-0.5": Knobs(length_spread=0.5),
    "spread-1": Knobs(length_spread=1.0),
    "long": Knobs(long_share=0.1),
    "spread-0.5-common": Knobs(length_spread=0.5, common_share=0.7),
    "spread-1-common": Knobs(length_spread=1.0, common_share=0.7),
    "spread-1-commoner": Knobs(length_spread=1.0, common_share=0.9),
}


@dataclass(frozen=True)
class Part:
    """One comparison: a data set, an encoder, and how many sequences form a batch."""

    data: str
    encoder: str
    batch_size: int
    epochs: int
    records: int
    longest: int
    """Residues of the longest sequence, or a little more: so many positions a batch must hold."""
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The folder of its results."""
        return f"{self.data}-{self.encoder}-{self.batch_size}"

    def command(self, files: Path, results: Path, seeds: int) -> list[str]:
        """`seqtrain compare-norms` with everything that this part sets."""
        folder = files / self.data
        parts = [p for p in ("train", "valid", "test") if (folder / f"{p}.fasta").exists()]
        labels = "labels.fasta" if (folder / "labels.fasta").exists() else "labels.tsv"
        # Steps of a small batch are noisier: the rate goes with the root of the batch's size.
        rate = math.sqrt(self.batch_size / 2) * LEARNING_RATE[self.encoder]
        shape = ["encoder.kernel_size=5", "encoder.max_dilation=4"]
        return [
            *("seqtrain", "compare-norms", "--config-name", "study", "--resume"),
            *("--output", str(results / self.name)),
            *(word for p in parts for word in (f"--{p}", str(folder / f"{p}.fasta"))),
            *("--labels", str(folder / labels)),
            *("--seeds", str(seeds), "--records", str(self.records)),
            f"encoder={self.encoder}",
            *(shape if self.encoder == "cnn" else []),
            f"batching.max_sequences={self.batch_size}",
            f"batching.max_tokens={self.batch_size * self.longest}",
            f"trainer.max_epochs={self.epochs}",
            f"optim.lr={rate:.2g}",
            *self.options,
        ]


def parts() -> list[Part]:
    """What is trained; what tells most comes first."""

    def nrc(encoder: str, size: int, *norms: str) -> Part:
        # Attention over 1200 positions takes longer than all the rest of a step.
        short, longest = (SHORT, 300) if encoder == "transformer" else ((), 1200)
        epochs = EPOCHS[size] // (2 if (encoder, size) == ("transformer", 64) else 1)
        return Part("nrc_ncrna13", encoder, size, epochs, 1000, longest, (*norms, *short))

    def amplify(encoder: str, size: int) -> Part:
        epochs = EPOCHS[size] // (2 if encoder == "transformer" else 1)
        return Part("amplify_amp", encoder, size, epochs, 1000, 200, PADDING_ONLY)

    def controlled(knobs: str, size: int) -> Part:
        name = f"controlled-{knobs}"
        return Part(name, "cnn", size, CONTROLLED_EPOCHS[size], 1000, 3000, PADDING_ONLY)

    def wheat(encoder: str, size: int) -> Part:
        longest, epochs = (
            (500, EPOCHS[size] // 2) if encoder == "transformer" else (1500, EPOCHS[size])
        )
        cut = (f"data.max_length={longest}", "data.overlong=truncate")
        name = "wheat_coding_potential"
        return Part(name, encoder, size, epochs, 800, longest, (*PADDING_ONLY, *cut))

    def topology(encoder: str, size: int) -> Part:
        options = (*PADDING_ONLY, "data.ignore_labels=[U]", *SHORT)
        return Part("tmbed_topology", encoder, size, EPOCHS[size], 1000, 300, options)

    return [
        controlled("spread-1", 4),
        nrc("cnn", 2, *PADDING_ONLY),
        topology("cnn", 4),
        controlled("spread-1", 2),
        nrc("cnn", 64),
        *(amplify("cnn", size) for size in (2, 64)),
        controlled("spread-0.5", 4),
        amplify("transformer", 4),
        controlled("none", 4),
        nrc("cnn", 4, *PADDING_ONLY),
        controlled("spread-1-common", 64),
        wheat("cnn", 4),
        amplify("transformer", 64),
        topology("cnn", 64),
        *(controlled(k, 4) for k in ("spread-0.25", "spread-1-common", "spread-1-commoner")),
        controlled("spread-1-common", 8),
        nrc("cnn", 8, *PADDING_ONLY),
        nrc("transformer", 4, *PADDING_ONLY),
        *(amplify("cnn", size) for size in (4, 8)),
        *(controlled(k, 4) for k in ("long", "common", "spread-0.5-common")),
        wheat("cnn", 64),
        nrc("transformer", 64, *PADDING_ONLY),
        *(build("transformer", 4) for build in (topology, wheat)),
    ]


def make_controlled(folder: Path, knobs: Knobs) -> None:
    """Write the set unless it is there, whole or not at all: another study may run beside this."""
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        write_controlled(Path(made) / "set", knobs)
        with contextlib.suppress(OSError):  # the other one was faster
            (Path(made) / "set").rename(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, metavar="FILES")
    parser.add_argument("results", type=Path, metavar="RESULTS")
    parser.add_argument("parts", nargs="*", metavar="PART", help="all, if none is named")
    parser.add_argument("--seeds", type=int, help="so many at once, not three and then five")
    given = parser.parse_intermixed_args(arguments)
    for knobs in CONTROLLED:
        make_controlled(given.results / "data" / f"controlled-{knobs}", CONTROLLED[knobs])
    known = {part.name: part for part in parts()}
    for name in given.parts:
        if name not in known:
            parser.error(f"{name}: expected one of {', '.join(known)}")
    failed = []
    for seeds in SEEDS if given.seeds is None else (given.seeds,):
        for name in given.parts or known:
            print(f"== {name}, {seeds} seeds", flush=True)
            part = known[name]
            files = given.results / "data" if part.data.startswith("controlled") else given.files
            done = subprocess.run(part.command(files, given.results, seeds))
            failed += [name] if done.returncode else []
    for name in dict.fromkeys(failed):
        print(f"study: {name} did not end well; see above", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
