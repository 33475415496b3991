"""Norms in tools that take a model apart: kept whole where that works, else refused."""

import functools
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar, cast

from torch import nn
from torch.fx import Proxy

Forward = TypeVar("Forward", bound=Callable[..., Any])


class Whole(nn.Module):
    """Mixin of the masked norms: ``torch.jit.script`` is refused in one sentence."""

    def __prepare_scriptable__(self) -> NoReturn:
        raise NotImplementedError(
            f"{type(self).__name__} cannot be scripted by torch.jit.script, which torch has "
            "deprecated: use torch.export or torch.compile"
        )


def whole_in_fx(forward: Forward) -> Forward:
    """``forward`` that ``torch.fx`` records as one call, as it does those of ``torch.nn``."""

    @functools.wraps(forward)
    def recorded(self: nn.Module, input: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(input, Proxy):
            path = input.tracer.path_of_module(self)  # type: ignore[attr-defined]
            return input.tracer.create_proxy("call_module", path, (input, *args), kwargs)
        return forward(self, input, *args, **kwargs)

    return cast("Forward", recorded)
