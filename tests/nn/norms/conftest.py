"""Where and how the norms are tested: both paths of the batch norm, every device there is."""

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from seqtrain.nn.norms import rows
from seqtrain.nn.norms.kernels import cpu


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


@pytest.fixture(params=["rows", "masked", "fused"])
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Gathered rows, all positions under the mask, or the compiled loops of the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "fused":
            patch.setattr(cpu, "SMALLEST", 0)
        if request.param == "masked":
            patch.setattr(rows, "_pays", lambda *_: False)
        yield request.param


# Kept from test to test: what torch.compile leaves in torch's own modules refers to them.
_unchecked: dict[str, ModuleType] = {}


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package imported without shape checks, which torch.compile cannot trace.

    Its operators have a namespace of their own: torch frees an operator whose name is registered
    anew, and the checked package would go on calling it.
    """
    register = torch.library.custom_op

    def beside(name: str, *arguments: Any, **options: Any) -> Any:
        return register(name.replace("seqtrain::", "seqtrain_unchecked::"), *arguments, **options)

    monkeypatch.setattr(torch.library, "custom_op", beside)

    def of_package() -> list[str]:
        return [name for name in sys.modules if name.split(".")[0] == "seqtrain"]

    checked = {name: sys.modules.pop(name) for name in of_package()}
    finders = sys.meta_path[:]
    sys.meta_path[:] = [f for f in finders if not type(f).__module__.startswith("jaxtyping")]
    sys.modules.update(_unchecked)
    torch._dynamo.reset()
    yield
    sys.meta_path[:] = finders
    _unchecked.update({name: sys.modules.pop(name) for name in of_package()})
    sys.modules.update(checked)


@pytest.fixture
def threads() -> Iterator[None]:
    """Two threads, even for a few rows."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)
