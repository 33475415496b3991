"""Temperature scaling: probabilities that match observed frequencies.

After Guo et al. 2017, arXiv:1706.04599: logits are divided by a temperature that makes the targets
of a part not trained on most likely. The most probable class stays the most probable one, and a
label above 0.5 stays above it.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from seqtrain.data import schema
from seqtrain.nn.model import SequenceModel

METHOD = "temperature scaling"
NUM_BINS = 15
HOTTEST = math.exp(3)
"""Temperatures are looked for between this and its inverse."""

_saved = schema.record(
    {
        **dict.fromkeys(("method", "part"), schema.text),
        "temperature": schema.list_of(schema.number(1e-6, 1e6), least=1),
        "records": schema.integer(),
        **dict.fromkeys(("error_before", "error_after"), schema.number(0, 1)),
    }
)


@dataclass(frozen=True)
class Calibration:
    """What makes a model's logits into probabilities that can be believed."""

    temperature: tuple[float, ...]
    """What logits are divided by: one for all classes, in a multi-label task one for each."""
    part: str
    """What it was fitted on: ``valid``."""
    records: int
    """Number of records of that part."""
    error_before: float
    """Expected calibration error on that part as trained."""
    error_after: float
    """The same with the temperature, on the very records that it was fitted to."""

    def words(self) -> str:
        """One phrase for the heading of a table."""
        low, high = min(self.temperature), max(self.temperature)
        several = f" to {high:.3g}" if len(self.temperature) > 1 else ""
        return f"calibrated by {METHOD} (T = {low:.3g}{several}, {self.part} part)"

    def to_json(self) -> str:
        """The text of ``calibration.json``."""
        return json.dumps({"method": METHOD, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_dict(cls, saved: Any) -> "Calibration":
        """What :meth:`to_json` wrote.

        Raises:
            ValueError: Something is missing, of the wrong type or out of range.
        """
        _saved(saved, "calibration")
        if saved["method"] != METHOD:
            raise ValueError(f"calibration.method: expected {METHOD}, found {saved['method']!r}")
        temperature = tuple(float(value) for value in saved["temperature"])
        others = {name: saved[name] for name in ("part", "records", "error_before", "error_after")}
        return cls(temperature, **others)


def calibration_words(calibrations: Sequence[Calibration | None]) -> str:
    """What to say of the probabilities of one model, or of the mean of several."""
    found = [each for each in calibrations if each is not None]
    if not found:
        return "uncalibrated"
    if len(calibrations) == 1:
        return found[0].words()
    return f"{len(found)} of {len(calibrations)} models calibrated by {METHOD}"


def set_temperature(model: SequenceModel, temperature: tuple[float, ...] = (1.0,)) -> None:
    """Have the readout of ``model`` divide its logits by this; 1 is as trained.

    Raises:
        ValueError: There are several, but not one for each class.
    """
    head = model.head
    if len(temperature) not in (1, head.linear.out_features):  # type: ignore[union-attr]
        raise ValueError(f"{len(temperature)} temperatures for {head.linear.out_features} classes")  # type: ignore[union-attr]
    before: Tensor = head.temperature  # type: ignore[assignment]
    head.temperature = torch.tensor(temperature, dtype=torch.float32, device=before.device)


def fit_temperature(
    task: str,
    logits: Float[np.ndarray, "N K"],
    targets: Integer[np.ndarray, " N"] | Float[np.ndarray, "N K"],
) -> tuple[float, ...]:
    """The most likely temperature; one for each label of a multi-label task.

    A priori ln T is normal around 0 with a standard deviation of 1. Against some hundred records
    that is nothing; but where a small part holds no error, likelihood alone would want T = 0.

    Args:
        task: ``classification``, ``residue_classification``, ``mlm`` or ``multilabel``.
        logits: One row per record, or per residue.
        targets: Classes, below 0 where one does not count; for multi-label 0 or 1.
    """
    slope = _label_slope if task == "multilabel" else _class_slope
    counted = slice(None) if task == "multilabel" else targets >= 0
    z, y = torch.from_numpy(logits[counted]), torch.from_numpy(targets[counted])
    size = z.shape[1] if task == "multilabel" else 1
    # The likelihood is concave in 1 / T, so that one change of sign is all there is to find.
    low = torch.full((size,), -math.log(HOTTEST), dtype=torch.float64)
    high = -low
    for _ in range(40):
        middle = (low + high) / 2  # ln of the sharpness 1 / T
        sharpness = middle.exp()
        rises = sharpness * slope(z, y, sharpness) + middle > 0
        low, high = torch.where(rises, low, middle), torch.where(rises, middle, high)
    return tuple((-(low + high) / 2).exp().tolist())


def _class_slope(z: Tensor, targets: Tensor, sharpness: Tensor) -> Tensor:
    """Derivative of the summed cross entropy by the sharpness, float64 ``(1,)``."""
    mean = ((z * sharpness.float()).softmax(-1) * z).sum(-1)
    return (mean - z.gather(1, targets[:, None])[:, 0]).sum(dtype=torch.float64)[None]


def _label_slope(z: Tensor, targets: Tensor, sharpness: Tensor) -> Tensor:
    """Derivative of each label's summed binary cross entropy by its sharpness, float64 ``(K,)``."""
    return (((z * sharpness.float()).sigmoid() - targets) * z).sum(0, dtype=torch.float64)


def readout(task: str, logits: Float[np.ndarray, "N K"]) -> Float[np.ndarray, "N K"]:
    """Probabilities of logits, float32."""
    z = torch.from_numpy(logits)
    probabilities: np.ndarray = (z.sigmoid() if task == "multilabel" else z.softmax(-1)).numpy()
    return probabilities


def as_trained(
    task: str, probabilities: Float[np.ndarray, "N K"], calibration: Calibration
) -> Float[np.ndarray, "N K"]:
    """What calibrated probabilities were before, float32."""
    p = probabilities.astype(np.float64).clip(np.finfo(np.float32).tiny, 1)
    logits = np.log(p)
    if task == "multilabel":
        logits -= np.log((1 - p).clip(np.finfo(np.float32).eps / 2))
    return readout(task, (logits * np.array(calibration.temperature)).astype(np.float32))


def calibration_error(
    task: str,
    probabilities: Float[np.ndarray, "N K"],
    targets: Integer[np.ndarray, " N"] | Float[np.ndarray, "N K"],
) -> float:
    """Expected calibration error: confidence against accuracy in 15 equal bins of confidence.

    Naeini et al. 2015; Guo et al. 2017. Of the most probable class; with multi-label tasks of
    each label's answer at 0.5. Targets below 0 do not count.
    """
    if task == "multilabel":
        confidence = np.maximum(probabilities, 1 - probabilities).reshape(-1)
        right = ((probabilities >= 0.5) == (targets > 0.5)).reshape(-1)
    else:
        counted = targets >= 0
        confidence = probabilities.max(axis=1)[counted]
        right = (probabilities.argmax(axis=1) == targets)[counted]
    bins = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    confident = np.bincount(bins, weights=confidence, minlength=NUM_BINS)
    correct = np.bincount(bins, weights=right, minlength=NUM_BINS)
    return float(np.abs(confident - correct).sum() / max(1, len(confidence)))
