"""Mutation run over seqtrain/nn/norms: does a test turn red when a line is wrong?

    pip install cosmic-ray
    python scripts/mutate_norms.py                  # again until nothing is left
    python scripts/mutate_norms.py --fresh          # after new tests: the survivors meet them
    python scripts/mutate_norms.py --report

Cosmic Ray makes the mutants. All happens in a copy, build/mutation-norms/, where the tests run once
under coverage. A mutant then costs the tests that enter its function, those that found others
first, then the quickest, in a fork of a process that has collected them. Results are kept, one line
each, in build/mutation-norms.jsonl, and a later call goes on from there. One core, nothing in
parallel.

Left out is kernels/, whose loops are compiled and whose oracle is the plain form itself.
"""

import argparse
import ast
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType, ModuleType

from norm_mutants import Mutant, found_again, mutants

ROOT = Path(__file__).parents[1]
PACKAGE = Path("seqtrain/nn/norms")
TESTS = Path("tests/nn/norms")
COPY = ROOT / "build" / "mutation-norms"
ORIGINAL = COPY / "original"
ENTERED = COPY / "entered.json"
RESULTS = ROOT / "build" / "mutation-norms.jsonl"
KILLER = COPY / "killer.txt"
TIMEOUT = 150
LEFT_OUT = {"__init__"}

# A failing property is not made smaller first: that it fails is all that counts.
PROFILE = """
from hypothesis import Phase
phases = [Phase.explicit, Phase.generate]
settings.register_profile("mutation", deadline=None, phases=phases, database=None)
settings.load_profile("mutation")
"""

# Coverage does not see these work, for the ranks are processes of their own. So survivors of the
# modules that they are about meet them last, whatever their function. Two ranks find what three do.
UNSEEN = {"2 ranks": {"moments", "batch", "batch_functional", "standardize", "calibrate"}}
# What torch.compile makes of a mutant takes longest and is seen least.
NEVER = ("3 ranks", "nccl", "test_traced.py")


class Stopwatch:
    """A pytest plugin: how long each test that passed took, fixtures included."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    def pytest_collection_modifyitems(self, items: list) -> None:  # noqa: D102
        items[:] = [item for item in items if not any(part in item.nodeid for part in NEVER)]

    def pytest_runtest_logreport(self, report: object) -> None:  # noqa: D102
        if report.passed:
            self.seconds[report.nodeid] += report.duration


def run_pytest(arguments: list[str], plugin: object) -> int:
    """Pytest's exit code, without the shape checks of the ordinary run: a test has to find it."""
    import pytest

    options = ["--import-mode=importlib", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
    options += ["--override-ini=addopts=", "-Wignore::pytest.PytestAssertRewriteWarning"]
    files = [str(path) for path in sorted(TESTS.glob("test_*.py")) if "kernels" not in path.name]
    return int(pytest.main([*options, "-m", "not gpu", *arguments, *files], plugins=[plugin]))


def in_child(work: Callable[[], int], seconds: int) -> int:
    """Exit code of ``work`` in a fork; -1 after a timeout."""
    child = os.fork()
    if not child:
        signal.alarm(seconds)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        try:
            os._exit(work())
        except BaseException:
            os._exit(70)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else -1


def enter_tests() -> None:
    """Run all tests once; keep for each function the tests that enter it, and their seconds."""

    def work() -> int:
        from coverage import CoverageData

        stopwatch = Stopwatch()
        options = [f"--cov={PACKAGE}", "--cov-context=test", "--cov-report="]
        code = run_pytest(options, stopwatch)
        data = CoverageData(".coverage")
        data.read()
        entered = {}
        for path in PACKAGE.glob("*.py"):
            lines = data.contexts_by_lineno(str(path.resolve()))
            entered[path.stem] = {
                line: sorted({test.rpartition("|")[0] for test in tests if test})
                for line, tests in lines.items()
            }
        if code == 0:
            ENTERED.write_text(json.dumps({"seconds": stopwatch.seconds, "lines": entered}))
        return code

    assert in_child(work, 1200) == 0, "the tests fail without a mutant"


def function_at(path: Path, line: int) -> ast.FunctionDef | None:
    """The innermost function around a line."""
    found = None
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            # Walked from the outside in: the last to fit is the innermost.
            if start <= line <= node.end_lineno:
                found = node
    return found


def tests_of(mutant: Mutant, entered: dict, kills: Counter[str], budget: float) -> list[str]:
    """The tests that enter the mutant's function, or its module outside one.

    Those that have found most mutants first, then the quickest, as far as the budget goes.
    """
    path = ORIGINAL / f"{mutant.module}.py"
    function = function_at(path, mutant.line)
    first, last = 1, len(path.read_text().splitlines())
    if function is not None:
        first, last = function.body[0].lineno, function.end_lineno
    lines, seconds = entered["lines"][mutant.module], entered["seconds"]
    found = {test for n in range(first, last + 1) for test in lines.get(str(n), [])}
    ordered = sorted(
        (t for t in found & seconds.keys() if not any(part in t for part in UNSEEN)),
        key=lambda test: (-kills[test], seconds[test]),
    )
    # These read defaults and enter nothing; they take no time.
    wanted = [test for test in seconds if "test_signatures.py" in test]
    for test in ordered:
        if seconds[test] <= budget:
            budget -= seconds[test]
            wanted.append(test)
    return wanted


def unseen_tests(mutant: Mutant, entered: dict) -> list[str]:
    """What may find a mutant of this module without being seen to enter it."""
    wanted = [part for part, modules in UNSEEN.items() if mutant.module in modules]
    return [test for test in entered["seconds"] if any(part in test for part in wanted)]


def preload() -> None:
    """Import what every child needs, except what is to be mutated."""
    import hypothesis  # noqa: F401
    import pytest  # noqa: F401
    import torch
    import torch._dynamo
    import torch.distributed
    import torch.export
    import torch.nn.utils.fusion

    torch.set_num_threads(1)


def prepare() -> None:
    """The copy, made if there is none, and which tests enter what."""
    fresh = not ENTERED.exists()
    if fresh:
        shutil.rmtree(COPY, ignore_errors=True)
        for part in ("seqtrain", "tests", "conf", "pyproject.toml"):
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            COPY.mkdir(parents=True, exist_ok=True)
            copy(ROOT / part, COPY / part)
        shutil.copytree(ROOT / PACKAGE, ORIGINAL)
        with (COPY / "tests" / "conftest.py").open("a") as conftest:
            conftest.write(PROFILE)
    for path in ORIGINAL.glob("*.py"):
        shutil.copy2(path, COPY / PACKAGE)
    os.chdir(COPY)
    sys.path.insert(0, str(COPY))
    os.environ |= {"PYTHONPATH": str(COPY), "OMP_NUM_THREADS": "1"}
    preload()
    if fresh:
        enter_tests()
    # From here on: a mutant of the same size and second would pass for the one before it.
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"


class Mutations:
    """A pytest plugin: in place of running the tests, one mutant after the other meets some."""

    def __init__(self, minutes: float, budget: float) -> None:
        self.entered = json.loads(ENTERED.read_text())
        self.copy = ENTERED.stat().st_mtime
        self.before = {result["key"]: result for result in results()}
        self.kills: dict[str, Counter[str]] = defaultdict(Counter)
        for result in self.before.values():
            self.kills[result["module"]].update([result["killer"]] if result["killer"] else [])
        self.deadline = time.monotonic() + 60 * minutes
        self.budget = budget

    def pytest_runtestloop(self, session: object) -> bool:  # noqa: D102
        items = {item.nodeid: item for item in session.items}
        for mutant in self.todo():
            if time.monotonic() > self.deadline:
                return True
            kills = self.kills[mutant.module]
            tests = tests_of(mutant, self.entered, kills, self.budget)
            if mutant.key in self.before:
                tests += unseen_tests(mutant, self.entered)
            found = tried(mutant, [items[test] for test in tests]) | {"copy": self.copy}
            kills.update([found["killer"]] if found["killer"] else [])
            with RESULTS.open("a") as file:
                file.write(json.dumps(found) + "\n")
        print("nothing is left to do")
        return True

    def todo(self) -> Iterator[Mutant]:
        """Survivors of an older copy; then whatever has no result yet."""
        for result in self.before.values():
            if result["survived"] and result["copy"] != self.copy:
                mutant = found_again(ORIGINAL / f"{result['module']}.py", result)
                if mutant is not None:
                    yield mutant
        for path in sorted(ORIGINAL.glob("*.py")):
            if path.stem not in LEFT_OUT:
                yield from (m for m in mutants(path) if m.key not in self.before)


def tried(mutant: Mutant, items: list) -> dict:
    """What becomes of the tests with the mutant in place."""
    path = COPY / PACKAGE / f"{mutant.module}.py"

    def work() -> int:
        from _pytest.runner import runtestprotocol

        put_in_place(mutant)
        for item, following in zip(items, [*items[1:], None], strict=True):
            if any(r.failed for r in runtestprotocol(item, log=False, nextitem=following)):
                KILLER.write_text(item.nodeid)
                return 1
        return 0

    KILLER.write_text("")
    start = time.monotonic()
    # Also on disk, for the tests that import anew and for the ranks.
    path.write_text(mutant.source)
    try:
        if function_at(ORIGINAL / path.name, mutant.line) and mutant.operator != "RemoveDecorator":
            code = in_child(work, TIMEOUT) if items else 0
        else:
            code = run_anew(items) if items else 0
    finally:
        # With its time, so that the compiled original is taken for what it is.
        shutil.copy2(ORIGINAL / path.name, path)
    found = mutant._asdict() | {"tests": len(items), "exit": code, "killer": KILLER.read_text()}
    del found["source"]
    return found | {"survived": code == 0, "seconds": round(time.monotonic() - start, 1)}


def put_in_place(mutant: Mutant) -> None:
    """Give the functions of the imported module the code and the defaults of the mutated one.

    Everything that refers to them, by whatever name it was imported, then runs the mutant. A
    decorator, and what stands outside a function, is not reached by that.
    """
    name = f"{PACKAGE.as_posix().replace('/', '.')}.{mutant.module}"
    mutated = ModuleType(name)
    mutated.__file__ = str(COPY / PACKAGE / f"{mutant.module}.py")
    exec(compile(mutant.source, mutated.__file__, "exec"), mutated.__dict__)
    new = dict(functions(mutated))
    for place, function in functions(sys.modules[name]):
        function.__code__ = new[place].__code__
        function.__defaults__ = new[place].__defaults__
        function.__kwdefaults__ = new[place].__kwdefaults__


def functions(module: ModuleType) -> Iterator[tuple[str, FunctionType]]:
    """All that are written in a module, by where they stand in it."""
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    for space in (module, *classes):
        for value in list(vars(space).values()):
            function = inspect.unwrap(getattr(value, "__func__", value))
            if isinstance(function, FunctionType) and function.__module__ == module.__name__:
                yield function.__qualname__, function


def run_anew(items: list) -> int:
    """Pytest's exit code in a process that imports the mutant from disk."""
    options = [
        "-x",
        "-q",
        "--import-mode=importlib",
        "--override-ini=addopts=",
        "--hypothesis-seed=0",
    ]
    command = [sys.executable, "-m", "pytest", *options, *(item.nodeid for item in items)]
    return subprocess.run(
        command, capture_output=True, timeout=10 * TIMEOUT, check=False
    ).returncode


def results() -> list[dict]:
    """The last one of each mutant."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return list({found["key"]: found for found in map(json.loads, lines)}.values())


def report() -> None:
    sources = {path.stem: path.read_text().splitlines() for path in ORIGINAL.glob("*.py")}
    # A result of a line that has been changed since is none.
    found = [r for r in results() if r["diff"][0][1:] in sources[r["module"]]]
    total = Counter(result["module"] for result in found)
    survived = Counter(result["module"] for result in found if result["survived"])
    for module, count in sorted(total.items()):
        print(f"| {module} | {count} | {survived[module]} |")
    print(f"| all | {len(found)} | {survived.total()} |")
    for result in found:
        if result["survived"]:
            print(f"\n{result['module']}.py:{result['line']} {result['operator']}")
            print("\n".join(result["diff"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="when to stop (default 9)")
    parser.add_argument(
        "--budget", type=float, default=12.0, help="seconds of tests for a mutant (default 12)"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="a new copy, whose tests the survivors meet again"
    )
    parser.add_argument("--report", action="store_true", help="print what was found, run nothing")
    arguments = parser.parse_args()
    if arguments.fresh:
        shutil.rmtree(COPY, ignore_errors=True)
    if not arguments.report:
        prepare()
        run_pytest([], Mutations(arguments.minutes, arguments.budget))
    report()


if __name__ == "__main__":
    main()
