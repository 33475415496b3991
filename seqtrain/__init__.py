"""Sequence encoders whose results never depend on what a sequence was batched with."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seqtrain.api import TrainedModel, load_model

__version__ = "0.1.0"
__all__ = ["TrainedModel", "__version__", "load_model"]


def __getattr__(name: str) -> Any:
    # Only when asked for: torch takes seconds to import, and `seqtrain --version` needs none of it.
    if name in ("TrainedModel", "load_model"):
        from seqtrain import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
