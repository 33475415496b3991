"""Losses as sums and what they are over, so that batches of any make-up add up exactly.

Ignored positions (target -100, or NaN where numbers are wanted) are taken out by selection before
any arithmetic: whatever their logits hold, NaN included, reaches neither the loss nor a gradient.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor

from seqtrain.data.labels import IGNORE


def sequence_loss(
    task: str,
    logits: Float[Tensor, "B ..."],
    targets: Num[Tensor, "B ..."],
    *,
    class_weights: Float[Tensor, " K"] | None = None,
    label_smoothing: float = 0.0,
    loss: str = "mse",
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Sum of the losses of a batch and their total weight, both float32 or wider.

    Sums of batches divided by the sum of their weights are the loss of the whole, as torch's
    ``reduction="mean"`` gives it for all records at once. Nothing but ignored targets gives
    a sum of 0 that still has a gradient (of zeros), and a weight of 0.

    Args:
        task: ``classification``, ``residue_classification``, ``mlm``: cross entropy; the weight
            is the number of targets, or the sum of their class weights. ``multilabel``: binary
            cross entropy; the weight is the number of labels, B * K. ``regression``: the weight
            is B. ``residue_regression``: the weight is the number of targets.
        logits: ``(B, K)``; for residues ``(B, L, K)``; for regression ``(B,)`` or ``(B, 1)``, of
            residues ``(B, L)``.
        targets: int64 ``(B,)`` or ``(B, L)``, -100 is ignored; for multi-label 0 or 1 ``(B, K)``;
            for regression values ``(B,)`` or ``(B, L)``, scaled to unit variance, NaN is ignored.
        class_weights: Weight of each class; for multi-label, of each label's positives.
        label_smoothing: Share of the target spread evenly over the classes, or for multi-label
            over yes and no.
        loss: Of regression: ``mse``, or ``huber`` with delta 1 (Huber 1964).

    Raises:
        ValueError: The task or loss is not known, the shapes do not fit, or regression is given
            class weights or label smoothing.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    match task:
        case "classification" | "residue_classification" | "mlm":
            return _cross_entropy(wide, targets, class_weights, label_smoothing)
        case "multilabel":
            return _binary_cross_entropy(wide, targets, class_weights, label_smoothing)
        case "regression" | "residue_regression":
            if class_weights is not None or label_smoothing:
                raise ValueError("class weights and label smoothing mean nothing in regression")
            return _regression_loss(wide, targets, loss)
        case _:
            raise ValueError(f"no loss for task {task!r}")


def class_weights_from_counts(
    counts: Num[Tensor, " K"], kind: str = "balanced"
) -> Float[Tensor, " K"]:
    """Weights of classes by how often each occurs in training, float32.

    Args:
        counts: Records (or residues) of each class.
        kind: ``balanced``: ``n / (K * count)``, as scikit-learn's ``compute_class_weight``, with n
            and K over the classes that occur; a class that does not gets 1.

    Raises:
        ValueError: The kind is not known.
    """
    if kind != "balanced":
        raise ValueError(f"unknown class weights {kind!r}; expected 'balanced'")
    wide = counts.to(torch.float64)
    occurs = wide > 0
    balanced = wide.sum() / (occurs.sum() * wide)
    return torch.where(occurs, balanced, 1.0).float()


def _cross_entropy(
    logits: Tensor, targets: Tensor, class_weights: Tensor | None, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    if logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"expected targets of shape {tuple(logits.shape[:-1])}, received {tuple(targets.shape)}"
        )
    kept = targets != IGNORE
    # cross_entropy's own ignore_index leaves the loss clean but gives softmax(NaN) * 0 backward.
    clean = torch.where(kept[..., None], logits, logits.new_zeros(()))
    weights = None if class_weights is None else class_weights.to(logits.dtype)
    total = F.cross_entropy(
        clean.flatten(0, -2),
        targets.flatten(),
        weights,
        ignore_index=IGNORE,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    if weights is None:
        return total, kept.sum().to(logits.dtype)
    of_targets = weights[targets.clamp(min=0)]
    return total, torch.where(kept, of_targets, 0).sum()


def _binary_cross_entropy(
    logits: Tensor, targets: Tensor, positive_weights: Tensor | None, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    if logits.shape != targets.shape:
        raise ValueError(
            f"expected targets of shape {tuple(logits.shape)}, received {tuple(targets.shape)}"
        )
    smooth = targets.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / 2
    weights = None if positive_weights is None else positive_weights.to(logits.dtype)
    total = F.binary_cross_entropy_with_logits(logits, smooth, pos_weight=weights, reduction="sum")
    return total, logits.new_full((), logits.numel())


def _regression_loss(logits: Tensor, targets: Tensor, loss: str) -> tuple[Tensor, Tensor]:
    values = logits.squeeze(-1) if logits.ndim == targets.ndim + 1 else logits
    if values.shape != targets.shape:
        raise ValueError(
            f"expected targets of shape {tuple(values.shape)}, received {tuple(targets.shape)}"
        )
    kept = ~targets.isnan()
    wanted = torch.where(kept, targets.to(values.dtype), 0)
    values = torch.where(kept, values, 0)
    match loss:
        case "mse":
            total = F.mse_loss(values, wanted, reduction="sum")
        case "huber":
            total = F.huber_loss(values, wanted, reduction="sum")
        case _:
            raise ValueError(f"unknown regression loss {loss!r}; expected 'mse' or 'huber'")
    return total, kept.sum().to(values.dtype)
