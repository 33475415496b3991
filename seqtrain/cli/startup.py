"""How the command gets to work sooner."""

import gc
import sys


def load_torch() -> None:
    """Load torch without looking for garbage among the million objects that it makes, all to stay.

    It takes a fifth less of the time; no later collection looks through them either.
    """
    if "torch" in sys.modules:
        return
    gc.disable()
    try:
        import torch  # noqa: F401
    finally:
        gc.freeze()
        gc.enable()
