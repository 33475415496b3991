"""Change valid files at random, read them, and report whatever is not an error for the user.

    python scripts/fuzz_readers.py [--seconds 60] [--seed 0] [--slow 5] [--readers fasta ...]

A small valid file of each kind is changed by hypothesis: bytes flipped, cut, doubled, numbers and
names replaced, and values of JSON and YAML by others of any type. A reader must either read it or
raise a SeqtrainError; a traceback, or more than SLOW seconds, is reported with the file.
Checksums are made anew after each change, as a stranger would. Ends with status 1 if any was found.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from seqtrain.data.fasta import scan_fasta
from seqtrain.data.prepare import prepare_data
from seqtrain.data.store import open_store
from seqtrain.errors import SeqtrainError
from seqtrain.evaluation.applicability import TrainingRange
from seqtrain.export.bundle import open_run, read_summary, read_training_part, verify_bundle
from seqtrain.training.sums import SUMS, digest, write_sums

Reader = Callable[[Path], Any]

LISTING = ("fasta", "headers", "labels", "states")
"""Readers whose errors list the records, one a line."""

ODD = [
    None,
    True,
    -1,
    0,
    1,
    3,
    10**9,
    10**400,
    1e308,
    0.5,
    "",
    "x",
    "\ud800",
    "&a",
    [],
    [1],
    {},
    {"a": 1},
]
PIECES = [b"\x00", b"\n", b"\r", b">", b"\t", b",", b'"', b"\xff", b"\xef\xbb\xbf", b"nan", b"-1"]
PIECES += [
    b"1e999",
    b"9" * 400,
    b"[" * 300,
    b"{",
    b"&a [*a]",
    b"label=",
    b"|",
    b";",
    b"\xe2\x80\xae",
]


def write_inputs(folder: Path) -> None:
    """A valid file for each reader, and a trained run with its bundle, made by the program."""
    from typer.testing import CliRunner

    from seqtrain.cli.main import app

    letters = "ACDEFGHIKLMNPQRSTVWY"
    sequences = [letters[i % 20 :] + letters[: 3 + i % 17] for i in range(40)]
    records = "".join(f">r{i} label={'ab'[i % 2]} note\n{s}\n" for i, s in enumerate(sequences))
    (folder / "fasta").write_text(records)
    rows = "".join(f"r{i}\t{'ab'[i % 2]}\t{'train' if i % 4 else 'valid'}\n" for i in range(40))
    (folder / "labels").write_text("id\tlabel\tsplit\n" + rows)
    states = "".join(f">r{i}\n{'hc' * len(s)}\n"[: len(s) + 10] for i, s in enumerate(sequences))
    (folder / "states").write_text(states)
    small = ["encoder.embed_dim=8", "encoder.num_layers=1", "trainer.max_epochs=1"]
    small += ["trainer.device=cpu", "-q"]
    for command in (
        ["train", "--train", str(folder / "fasta"), "-o", str(folder / "run"), *small],
        ["export", str(folder / "run"), "-o", str(folder / "bundle"), "-q"],
        ["export", str(folder / "run"), "-o", str(folder / "bundle.zip"), "-q"],
        ["data", "tokenize", str(folder / "fasta"), "-o", str(folder / "store")],
    ):
        CliRunner().invoke(app, command, catch_exceptions=False)


def use(path: Path) -> None:
    """Open a run or a bundle, and all that the verbs read of it."""
    TrainingRange.from_report(open_run(path).data)
    read_summary(path)
    read_training_part(path)


def readers(folder: Path) -> dict[str, tuple[Path, Reader]]:
    """By name: the file to change, and what reads it."""
    run, bundle, fasta = folder / "run", folder / "bundle", str(folder / "fasta")

    def resummed(place: Path, inner: Path) -> Callable[[Path], None]:
        def read(_: Path) -> None:
            write_sums(
                inner,
                {f.name: [digest(f)] for f in inner.iterdir() if f.is_file() and f.name != SUMS},
            )
            use(place)

        return read

    best = run / "checkpoints" / "best"
    found: dict[str, tuple[Path, Reader]] = {
        "fasta": (folder / "fasta", lambda path: list(scan_fasta([str(path)]))),
        "headers": (folder / "fasta", lambda path: prepare_data(train=[str(path)])),
        "labels": (
            folder / "labels",
            lambda path: prepare_data(train=[fasta], labels=[str(path)]),
        ),
        "states": (
            folder / "states",
            lambda path: prepare_data(train=[fasta], labels=[str(path)]),
        ),
        "store": (folder / "store", open_store),
        "zip": (folder / "bundle.zip", use),
        "sums": (bundle / SUMS, lambda _: use(bundle)),
        "weights": (best / "model.safetensors", resummed(run, best)),
        "state": (best / "state.json", resummed(run, best)),
        "examples": (bundle / "examples.json", lambda _: verify_bundle(bundle)),
    }
    for name in (
        "config.yaml",
        "data.json",
        "summary.json",
        "calibration.json",
        "training_part.npz",
    ):
        found[name.partition(".")[0]] = (run / name, resummed(run, run))
    for name in ("bundle.json", "model.safetensors"):
        found[f"bundle {name}"] = (bundle / name, resummed(bundle, bundle))
    return found


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value within nested objects and lists."""
    yield path
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in list(items)[:50]:
        yield from places(inner, (*path, key))


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """``value`` with another one at a place."""
    if not path:
        return new
    inner = value[path[0]]
    value[path[0]] = put(inner, path[1:], new)
    return value


@st.composite
def changed(draw: st.DrawFn, raw: bytes, name: str) -> bytes:
    """The bytes of a file after a few changes."""
    if name.endswith((".json", ".yaml")) and draw(st.booleans()):
        loads = json.loads if name.endswith("json") else yaml.safe_load
        value = loads(raw.decode())
        for _ in range(draw(st.integers(1, 2))):
            where = draw(st.sampled_from(list(places(value))))
            value = put(value, where, draw(st.sampled_from(ODD)))
        if name.endswith("json"):
            return json.dumps(value).encode()
        return yaml.safe_dump(value).encode("utf-8", "surrogatepass")
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(raw)))
        match draw(st.integers(0, 3)):
            case 0 if place < len(raw):
                raw = (
                    raw[:place]
                    + bytes([raw[place] ^ 1 << draw(st.integers(0, 7))])
                    + raw[place + 1 :]
                )
            case 1:
                raw = raw[:place] + draw(st.sampled_from(PIECES)) + raw[place:]
            case 2:
                raw = raw[:place] + raw[place + draw(st.integers(1, 200)) :]
            case _:
                raw = raw[:place] + raw[max(0, place - 60) :]
    return raw


def fuzz(
    name: str, file: Path, read: Reader, seconds: float, slow: float, start: int
) -> Counter[str]:
    """Outcomes by kind; those that are no error for the user are printed with the file."""
    raw, outcomes, end = file.read_bytes(), Counter[str](), time.monotonic() + seconds
    seen: set[str] = set()

    def one(content: bytes) -> None:
        if time.monotonic() > end:
            return
        file.write_bytes(content)
        began, said = time.monotonic(), ""
        try:
            read(file)
            outcome = "read"
        except SeqtrainError as error:
            outcome = "refused"
            if "\n" in str(error) and name not in LISTING:
                outcome, said = "several lines", str(error)
        except Exception:
            outcome, said = "traceback", traceback.format_exc()
        if time.monotonic() - began > slow:
            outcome, said = "slow", said or f"{time.monotonic() - began:.1f} s"
        outcomes[outcome] += 1
        kind = said.splitlines()[-1][:60] if said else ""
        if said and kind not in seen:
            seen.add(kind)
            print(f"{name}: {outcome}: {said[-1500:]}\n  {content[:600]!r}", flush=True)

    number = start
    while time.monotonic() < end:
        test = given(changed(raw, file.name))(one)
        test = settings(
            max_examples=50,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )(test)
        seed(number)(test)()
        number += 1
    file.write_bytes(raw)
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60, help="of all readers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slow", type=float, default=5, help="seconds that a reading may take")
    parser.add_argument("--readers", nargs="+", help="all if not given")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        original = Path(temporary) / "original"
        original.mkdir()
        write_inputs(original)
        names = options.readers or list(readers(original))
        for name in names:
            place = Path(temporary) / "copy"
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(original, place)
            file, read = readers(place)[name]
            found = fuzz(name, file, read, options.seconds / len(names), options.slow, options.seed)
            print(f"{name}: {dict(found)}", flush=True)
            total += found
    bad = total["traceback"] + total["slow"] + total["several lines"]
    print(f"{sum(total.values())} cases, {bad} that are no one-line error for the user")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
