"""What a benchmark found: figures, what they are to reach, and the machine that gave them."""

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Figure:
    """One number."""

    name: str
    value: float
    unit: str
    """``ratio`` and ``share`` compare within this run; anything else is of this machine, today."""
    target: float | None = None
    """What it is to reach; none for a number that only explains another."""
    at_most: bool = False
    """The target is a ceiling."""

    @property
    def holds(self) -> bool | None:
        """True if the target is reached; None without one."""
        if self.target is None:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target


@dataclass(frozen=True)
class Report:
    """Figures of one benchmark."""

    bench: str
    settings: dict[str, Any]
    figures: Sequence[Figure]
    machine: dict[str, Any] = field(default_factory=lambda: describe_machine())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        figures = [{**asdict(figure), "holds": figure.holds} for figure in self.figures]
        return {
            "bench": self.bench,
            "machine": self.machine,
            "settings": self.settings,
            "figures": figures,
        }


def describe_machine(device: torch.device | None = None) -> dict[str, Any]:
    """What the figures depend on beside the code; a loaded machine says so by its load."""
    described = {
        "date": date.today().isoformat(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "torch": torch.__version__,
        "numba": _version("numba"),
        "python": platform.python_version(),
    }
    if device is not None and device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
        described["cuda"] = torch.version.cuda
        described["triton"] = _version("triton")
    return described


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The name of the processor, as Linux tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
