"""Flip single bits in the files of a finished run, and count those that are found on opening.

    python scripts/flip_bits.py RUN [--flips 200] [--seed 0]

RUN is copied first. Flips in checkpoints/last are tried by looking for a checkpoint to resume from,
all others by opening the run. Prints too what it costs to sync one checkpoint to disk.
"""

import argparse
import random
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

from seqtrain.errors import CheckpointError, SeqtrainWarning
from seqtrain.export.bundle import open_run
from seqtrain.training import checkpoint
from seqtrain.training.restore import newest_whole
from seqtrain.training.run_dir import RunDir

UNCOVERED = ("metrics.jsonl", ".lock", "report.html")


def is_found(run: Path, file: Path) -> bool:
    """True if the damage is refused, or another checkpoint is taken and that is said."""
    try:
        if "last" not in file.parts:
            open_run(run)
            return False
        with warnings.catch_warnings():
            warnings.simplefilter("error", SeqtrainWarning)
            newest_whole(RunDir(run))
    except (CheckpointError, SeqtrainWarning):
        return True
    return False


def time_syncing(run: Path, times: int = 20) -> tuple[float, float]:
    """Median milliseconds of writing a checkpoint with and without waiting for the disk."""
    model = open_run(run).model
    sync, found = checkpoint.sync, []
    for replacement in (sync, lambda _: None):
        checkpoint.sync = replacement
        taken = []
        for _ in range(times):
            began = time.perf_counter()
            checkpoint.save_checkpoint(run / "timed", model, {}, {})
            taken.append(1000 * (time.perf_counter() - began))
        found.append(statistics.median(taken))
    checkpoint.sync = sync
    return found[0], found[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw, missed = random.Random(options.seed), []
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(shutil.copytree(options.run, Path(temporary) / "run"))
        files = [run / name for name in sorted(p.name for p in run.iterdir() if p.is_file())]
        files = [file for file in files if file.name not in UNCOVERED]
        files += sorted((run / "checkpoints").rglob("*.*")) + sorted(run.rglob("*/*/SHA256SUMS"))
        for number in range(options.flips):
            file = files[number % len(files)]
            raw = file.read_bytes()
            place = draw.randrange(8 * len(raw))
            flipped = bytearray(raw)
            flipped[place // 8] ^= 1 << place % 8
            file.write_bytes(flipped)
            if not is_found(run, file):
                missed.append(f"{file.relative_to(run)}: bit {place}")
            file.write_bytes(raw)
        synced, unsynced = time_syncing(run)
    print("\n".join(missed))
    print(f"{options.flips - len(missed)} of {options.flips} found, in {len(files)} files")
    print(f"a checkpoint: {synced:.1f} ms, without syncing {unsynced:.1f} ms")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
