"""Kill real runs of the program at random instants, and see that nothing is lost.

    python scripts/kill_training.py [--kills 100] [--seed 0] [--jobs training predict ...]

Each job is done once undisturbed. Then it is started again and again, killed by SIGKILL after a
random part of the time that it takes, and continued until it is complete. Its files must then be
those of the undisturbed one, byte for byte, and nothing may be left over. Each process is a fork of
this one, so that it need not load torch anew. Ends with status 1 if anything differed.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
LEFTOVERS = (".partial", ".old", ".unpacked", ".rows", ".partial.json")
MOST_TRIES = 500


@dataclass(frozen=True)
class Job:
    """Something that the program does, and that can be continued."""

    name: str
    start: Callable[[Path], list[str]]
    """The command, with everything that it writes under a folder."""
    results: Callable[[Path], list[Path]]
    """Files that must come out the same."""
    restart: Callable[[Path], list[str]] | None = None
    """The command that continues; None: the first one again."""
    can_restart: Callable[[Path], bool] = lambda _: False
    """True if there is anything to continue."""


def write_data(folder: Path, draw: random.Random) -> None:
    """Small files of records and labels for several tasks."""
    records, rows = [], {"classes": [], "numbers": [], "multi": [], "residues": []}
    for i in range(60):
        sequence = "".join(draw.choices(LETTERS, k=draw.randint(5, 60)))
        records.append(f">r{i}\n{sequence}\n")
        rows["classes"].append(f"r{i}\t{'W' if 'W' in sequence else 'A'}\n")
        rows["numbers"].append(f"r{i}\t{sequence.count('A') / len(sequence) + i / 1e4:.5f}\n")
        found = [letter for letter in "CHM" if letter in sequence] or ["none"]
        rows["multi"].append(f"r{i}\t{';'.join(found)}\n")
        states = "".join("h" if letter in "ALMEK" else "c" for letter in sequence)
        rows["residues"].append(f">r{i}\n{states}\n")
    (folder / "train.fasta").write_text("".join(records))
    for name in ("classes", "numbers", "multi"):
        (folder / f"{name}.tsv").write_text("id\tlabel\n" + "".join(rows[name]))
    (folder / "residues.fasta").write_text("".join(rows["residues"]))
    lines = ("".join(draw.choices(LETTERS, k=draw.randint(5, 60))) for _ in range(4000))
    (folder / "many.fasta").write_text("".join(f">m{i}\n{s}\n" for i, s in enumerate(lines)))


def training_jobs(data: Path) -> Iterator[Job]:
    """Trainings of several encoders, tasks, batchings and saving habits."""
    small = ["encoder.embed_dim=8", "encoder.num_layers=2", "trainer.num_threads=1"]
    small += ["trainer.device=cpu", "batching.max_tokens=256", "trainer.max_epochs=3"]
    kinds = {
        "cnn, classes, packed": ["--labels", "classes.tsv", "trainer.checkpoint_minutes=0"],
        "cnn, numbers, bucketed": ["--labels", "numbers.tsv", "batching.kind=bucketed"],
        "transformer, several labels, random": [
            *("--labels", "multi.tsv", "encoder=transformer", "batching.kind=random"),
            *("task=multilabel", "trainer.checkpoint_minutes=0"),
        ],
        "transformer, residues, two batches a step": [
            *("--labels", "residues.fasta", "encoder=transformer", "trainer.accumulate=2"),
            "trainer.checkpoint_minutes=0",
        ],
        "cnn, hidden letters, packed": ["task=mlm", "trainer.checkpoint_minutes=0"],
    }
    for name, options in kinds.items():
        given = [str(data / o) if (data / o).is_file() else o for o in options]
        files = ["--train", str(data / "train.fasta")]

        def start(folder: Path, words: Sequence[str] = (*files, *given, *small)) -> list[str]:
            return ["train", "-q", "-o", str(folder / "run"), *words]

        yield Job(
            f"train: {name}",
            start,
            lambda folder: sorted((folder / "run" / "checkpoints").rglob("model.safetensors")),
            lambda folder: ["train", "-q", "--resume", "-o", str(folder / "run")],
            lambda folder: (folder / "run" / "config.yaml").exists(),
        )


def other_jobs(data: Path, model: Path, wanted: Sequence[str]) -> Iterator[Job]:
    """Predictions, a store and a comparison."""
    fasta = str(data / "many.fasta")
    if "predict" in wanted:

        def predict(folder: Path) -> list[str]:
            return ["predict", str(model), fasta, "-o", str(folder / "p.tsv"), "-q"]

        yield Job(
            "predict --resume",
            predict,
            lambda folder: [folder / "p.tsv"],
            lambda folder: [*predict(folder), "--resume"],
            lambda folder: (folder / "p.tsv.partial").exists(),
        )
    if "tokenize" in wanted:
        yield Job(
            "data tokenize",
            lambda folder: ["data", "tokenize", fasta, "-o", str(folder / "s.arrow")],
            lambda folder: [folder / "s.arrow"],
        )
    if "compare" in wanted:
        words = ["--train", str(data / "train.fasta"), "--labels", str(data / "classes.tsv")]
        words += ["--norms", "masked_batch,none", "--batching", "packed", "--seeds", "1", "-q"]
        words += ["encoder.embed_dim=8", "encoder.num_layers=1", "trainer.max_epochs=2"]
        words += ["batching.max_tokens=256", "trainer.num_threads=1", "trainer.device=cpu"]
        yield Job(
            "compare-norms --resume",
            lambda folder: ["compare-norms", *words, "-o", str(folder / "c")],
            lambda folder: sorted((folder / "c").rglob("outputs.npy")),
            lambda folder: ["compare-norms", *words, "-o", str(folder / "c"), "--resume"],
            lambda folder: (folder / "c" / "comparison.json").exists(),
        )


def load() -> None:
    """Import what the verbs import, before the first fork."""
    import seqtrain.board
    import seqtrain.cli.main
    import seqtrain.compare.run
    import seqtrain.evaluation.writing
    import seqtrain.export.bundle
    import seqtrain.pipeline  # noqa: F401


def run(arguments: Sequence[str], log: Path, seconds: float | None = None) -> int | None:
    """Exit status of the program; None if it was killed after so many seconds."""
    child = os.fork()
    if child == 0:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.argv = ["seqtrain", *arguments]
        status = 70
        try:
            from seqtrain.cli.main import main

            main()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    began = time.monotonic()
    while seconds is not None and time.monotonic() - began < seconds:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    if seconds is not None:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return None if code == -signal.SIGKILL else code


def digests(job: Job, folder: Path) -> dict[str, str]:
    """SHA-256 of the results, by place."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in job.results(folder)
    }


def leftovers(folder: Path) -> list[str]:
    """Files and folders of the program's that a finished job should not leave."""
    return [str(p.relative_to(folder)) for p in folder.rglob("*") if p.name.endswith(LEFTOVERS)]


def kill_job(job: Job, folder: Path, kills: int, draw: random.Random) -> tuple[int, list[str]]:
    """Kill a job so many times; returns how often a process was met, and what was wrong."""
    undisturbed, log = folder / "undisturbed", folder / "log.txt"
    undisturbed.mkdir(parents=True)
    began = time.monotonic()
    if run(job.start(undisturbed), log):
        return 0, [f"failed undisturbed: {log.read_text()[-500:]}"]
    duration, expected = time.monotonic() - began, digests(job, undisturbed)
    wrong = [] if expected else ["no results"]
    done, place = 0, folder / "killed"
    for _ in range(MOST_TRIES):
        if done >= kills:
            break
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        status: int | None = None
        while status is None:
            command = job.restart if job.restart and job.can_restart(place) else job.start
            limit = draw.uniform(0, duration * 1.1) if done < kills else None
            log.write_bytes(b"")
            status = run(command(place), log, limit)
            done += status is None
        if status:
            wrong.append(f"could not be continued: {log.read_text()[-500:]}")
        elif digests(job, place) != expected:
            wrong.append("other results than undisturbed")
        wrong += [f"left over: {name}" for name in leftovers(place)]
    return done, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="of trainings; others: a tenth each")
    parser.add_argument("--seed", type=int, default=0)
    names = ["training", "predict", "tokenize", "compare"]
    parser.add_argument("--jobs", nargs="+", choices=names, default=names)
    options = parser.parse_args()
    draw, all_wrong, total = random.Random(options.seed), 0, 0
    load()
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "data"
        data.mkdir()
        write_data(data, draw)
        trainings = list(training_jobs(data))
        jobs = [(job, -(-options.kills // len(trainings))) for job in trainings]
        jobs = jobs if "training" in options.jobs else []
        model = Path(temporary) / "model"
        if "predict" in options.jobs and run(trainings[0].start(model), data / "log.txt"):
            raise SystemExit((data / "log.txt").read_text())
        few = max(1, options.kills // 10)
        jobs += [(job, few) for job in other_jobs(data, model / "run", options.jobs)]
        for number, (job, kills) in enumerate(jobs):
            done, wrong = kill_job(job, Path(temporary) / str(number), kills, draw)
            total, all_wrong = total + done, all_wrong + len(wrong)
            print(f"{job.name}: {done} kills, {len(wrong)} wrong", flush=True)
            for each in wrong:
                print(f"  {each}", flush=True)
    print(f"{total} kills, {all_wrong} wrong")
    return 1 if all_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
