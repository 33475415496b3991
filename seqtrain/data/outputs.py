"""Guards what a command is to write: never over an input, never over a file of somebody else's.

Files are compared by device and inode, so links, relative paths and the letter case of a name on
file systems that ignore it make no difference.
"""

import os
import stat
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from seqtrain.data.files import STDIN, check_place, whole_file
from seqtrain.data.own_files import is_nobodys
from seqtrain.errors import ConfigError

RUN_FOLDERS = ("checkpoints", "tensorboard", "profile", "members", "predictions")
RUN_FILES = (
    "config.yaml",
    "data.json",
    "metrics.jsonl",
    "summary.json",
    "calibration.json",
    "splits.tsv",
    "training_part.npz",
    "report.html",
    "SHA256SUMS",
    ".lock",
)
_OF_THE_RUN = ("valid.tsv", "test.tsv")
"""In ``predictions/``, where others may be written beside them."""

_BESIDE = (".partial", ".partial.json", ".partial.rows")
"""Ends of the names under which a file is written before it takes its place."""

_Identity = tuple[int, int]


class Output(NamedTuple):
    """A file that a command is to write."""

    option: str
    """As the user names it."""
    path: Path | None
    """None: it is not written."""
    is_own: Callable[[Path], bool] = is_nobodys
    """True if a file that exists was made by this program, and may be replaced by a new one."""
    streams: bool = False
    """True if it may go to a device or a pipe."""


def check_outputs(
    outputs: Iterable[Output], inputs: Iterable[str | Path], *, overwrite: bool = False
) -> None:
    """Refuse, before any work, outputs that would destroy something.

    Args:
        outputs: What is to be written.
        inputs: What is read: files, run directories, bundles; ``-`` is standard input.
        overwrite: Whether files that the program did not make may be replaced. Inputs never are.

    Raises:
        ConfigError: An output is an input or belongs to one, is where no file can be, is named
            twice, or exists and was not made by this program.
    """
    wanted = [(output, output.path) for output in outputs if output.path is not None]
    read = list(inputs)
    for number, (output, path) in enumerate(wanted):
        if str(path) == STDIN:
            raise ConfigError(f"{output.option} -: expected the name of a file.")
        if not (output.streams and path.exists() and _is_stream(path)):
            check_place(path)
        for given in read:
            _refuse_input(output.option, path, given)
        for other, place in wanted[:number]:
            if _same(path, place):
                raise ConfigError(
                    f"{output.option} {path}: is the file of {other.option} too. Name two files."
                )
        if not overwrite and not _may_be_replaced(path, output.is_own):
            raise ConfigError(
                f"{output.option} {path}: exists already and was not written by this command. "
                "Move it away or choose another name, or replace it with --overwrite."
            )


def check_folder(
    option: str,
    folder: Path,
    inputs: Iterable[str | Path],
    names: Collection[str] | None = (*RUN_FOLDERS, *RUN_FILES),
) -> None:
    """Refuse a folder in which training would write over, or delete, one of its inputs.

    Args:
        option: As the user names the folder.
        folder: Where a run or a comparison goes.
        inputs: What is read; ``-`` is standard input.
        names: What is written or deleted in the folder; None: everything.

    Raises:
        ConfigError: An input is among it, by its name or by a link.
    """
    paths = [Path(given) for given in inputs if str(given) != STDIN]
    taken = {_identity(path) for path in _files_in(folder, names)} - {None}
    roots = {Path(os.path.abspath(folder)), folder.resolve()}
    for path in paths:
        places = {Path(os.path.abspath(path)), path.resolve()}
        if _identity(path) in taken or any(
            _is_among(place, root, names) for place in places for root in roots
        ):
            raise ConfigError(
                f"{path}: lies where {option} {folder} keeps files of its own, and would be lost. "
                f"Move it, or choose another {option}."
            )


def write_report(path: Path, text: str) -> None:
    """Write a text file whole or not at all; a device or a pipe takes it as it comes."""
    if path.exists() and _is_stream(path):
        path.write_text(text, encoding="utf-8")
        return
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _refuse_input(option: str, path: Path, given: str | Path) -> None:
    named = "standard input" if str(given) == STDIN else str(given)
    own, read = {_identity(place) for place in _written(path)} - {None}, _identity(given)
    if read is not None and read in own:
        raise ConfigError(
            f"{option} {path}: would overwrite {named}, which is an input. Choose another name."
        )
    folder = Path(given)
    if str(given) != STDIN and folder.is_dir() and _is_within(path, own, folder):
        raise ConfigError(
            f"{option} {path}: is part of {named}, which is an input. Choose another name."
        )


def _is_within(path: Path, own: Collection[_Identity | None], folder: Path) -> bool:
    """True if an output is, or comes to lie among, the files of a run directory or a bundle."""
    is_bundle, root = (folder / "bundle.json").is_file(), _identity(folder)
    target = path.resolve()
    inside = [target.relative_to(parent) for parent in target.parents if _identity(parent) == root]
    inside += [
        file.relative_to(folder)
        for file in (_all_files(folder) if own else ())
        if _identity(file) in own
    ]
    return any(is_bundle or _is_model_file(place) for place in inside)


def _written(path: Path) -> Iterator[Path]:
    """The file, and what may lie beside it until it is whole."""
    for place in {path, path.resolve()}:
        yield place
        yield from (place.with_name(place.name + end) for end in _BESIDE)


def _is_model_file(inside: Path) -> bool:
    """True if this path within a run directory is one that the run itself uses."""
    if inside.parts[0] == "predictions":
        return inside.name in _OF_THE_RUN
    return inside.parts[0] in (*RUN_FOLDERS, *RUN_FILES)


def _is_among(place: Path, folder: Path, names: Collection[str] | None) -> bool:
    """True if a file lies in a folder, and is or is in what has one of these names there."""
    if place == folder or not place.is_relative_to(folder):
        return False
    return names is None or place.relative_to(folder).parts[0] in names


def _files_in(folder: Path, names: Collection[str] | None) -> Iterator[Path]:
    if names is None:
        yield from _all_files(folder)
        return
    for name in names:
        yield folder / name
        yield from _all_files(folder / name)


def _all_files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names)


def _may_be_replaced(path: Path, is_own: Callable[[Path], bool]) -> bool:
    """Nothing is lost with a file that is empty, or made by the program."""
    if not path.exists() or _is_stream(path) or path.stat().st_size == 0:
        return True
    try:
        return is_own(path)
    except (OSError, ValueError):
        return False


def _is_stream(path: Path) -> bool:
    return not path.is_file() and not path.is_dir()


def _same(path: Path, other: Path) -> bool:
    found = _identity(path)
    return path.resolve() == other.resolve() or (found is not None and found == _identity(other))


def _identity(path: str | Path) -> _Identity | None:
    """Device and inode of an ordinary file or a folder; None for everything else."""
    with suppress(OSError, ValueError, AttributeError):
        found = os.fstat(sys.stdin.fileno()) if str(path) == STDIN else os.stat(path)
        if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode):
            return found.st_dev, found.st_ino
    return None
