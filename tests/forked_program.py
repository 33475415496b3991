"""The program in a process of its own that need not load torch anew: a fork of the tests' process.

Loading torch takes two seconds, and the tests of the command line start the program hundreds of
times. A fork has its own standard streams, folder, environment and exit status, as a new process
has. What depends on a fresh start is tested by ``subprocess``: see ``cli/test_startup.py``.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

TIMEOUT = 120
"""Seconds after which the program is killed."""


def run_forked(
    arguments: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    stdin: str | None = None,
    env: Mapping[str, str],
) -> subprocess.CompletedProcess[str]:
    """Run ``seqtrain`` with these arguments; as ``subprocess.run`` with captured text.

    Raises:
        subprocess.TimeoutExpired: It took longer than ``TIMEOUT``.
    """
    import seqtrain.cli.main
    import seqtrain.pipeline  # noqa: F401  # what the fork need not load

    words = [str(argument) for argument in arguments]
    with (
        tempfile.TemporaryFile() as source,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        source.write((stdin or "").encode())
        source.seek(0)
        child = os.fork()
        if child == 0:
            _become(words, (source, out, err), cwd, env)
        status = _wait(child, words)
        return subprocess.CompletedProcess(words, status, _text(out), _text(err))


def _become(
    words: list[str], streams: Sequence[IO[bytes]], cwd: Path | None, env: Mapping[str, str]
) -> None:
    """Turn this fork into the program; never returns."""
    status = 70
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream.fileno(), number)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
        os.environ.clear()
        os.environ.update(env)
        if cwd is not None:
            os.chdir(cwd)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        warnings.resetwarnings()
        sys.argv = ["seqtrain", *words]
        status = _main()
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


def _main() -> int:
    from seqtrain.cli.main import main

    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _wait(child: int, words: list[str]) -> int:
    """Exit status of the fork; minus the number of the signal that ended it."""
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise subprocess.TimeoutExpired(words, TIMEOUT)


def _text(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode()
