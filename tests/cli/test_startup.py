"""Loading torch without the garbage collector, in a process of its own."""

import subprocess
import sys

import seqtrain


def run(code: str) -> str:
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_torch_is_loaded_without_a_collection_and_the_collector_runs_again() -> None:
    """What torch made is looked through by no later collection."""
    code = """
import gc, sys
from seqtrain.cli.startup import load_torch
collections = []
gc.callbacks.append(lambda phase, info: collections.append(phase))
load_torch()
assert not collections, collections
assert "torch" in sys.modules and gc.isenabled()
assert gc.get_freeze_count() > 100_000
assert len(gc.get_objects()) < 10_000
"""
    run(code)


def test_the_collector_runs_again_if_torch_cannot_be_loaded() -> None:
    code = """
import gc, sys
from seqtrain.cli.startup import load_torch
class Broken:
    def find_spec(self, name, *_):
        if name == "torch":
            raise ImportError("broken")
sys.meta_path.insert(0, Broken())
try:
    load_torch()
except ImportError:
    print(gc.isenabled())
"""
    assert run(code) == "True\n"


def test_a_second_call_leaves_the_objects_of_the_program_to_the_collector() -> None:
    code = """
import gc, torch
from seqtrain.cli.startup import load_torch
load_torch()
print(gc.get_freeze_count())
"""
    assert run(code) == "0\n"


def test_training_loads_no_compiler_before_one_is_asked_for() -> None:
    """Which would take a second and more: torch's, Triton's and Numba's."""
    code = """
import sys

import seqtrain
import seqtrain.build, seqtrain.pipeline
print({"torch._dynamo", "triton", "numba"} & sys.modules.keys())
"""
    assert run(code) == "set()\n"


def test_the_package_is_a_program_too() -> None:
    command = [sys.executable, "-m", "seqtrain", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"seqtrain {seqtrain.__version__}\n"
