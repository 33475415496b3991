"""Finds parts whose targets are all the same, where most metrics are not defined."""

import numpy as np

from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.labels import LabelCodec, is_regression, is_residue


def is_uniform(part: SequenceDataset, codec: LabelCodec) -> bool:
    """True if all targets of a part are the same; False of no targets and of letters."""
    targets = part.targets
    if targets is None or codec.task == "mlm" or not len(targets):
        return False
    if is_regression(codec.task):
        targets = targets[~np.isnan(targets)]
    elif is_residue(codec.task):
        targets = targets[targets >= 0]
    return len(np.unique(targets, axis=0)) < 2


def uniform_warning(name: str, part: SequenceDataset, codec: LabelCodec) -> list[str]:
    """A warning with the fix if a part to be scored is uniform; empty if it is not."""
    if not is_uniform(part, codec):
        return []
    what = "residues" if is_residue(codec.task) else "records"
    target = part.target(0)
    if is_residue(codec.task):
        kept = target[~np.isnan(target)] if is_regression(codec.task) else target[target >= 0]
        target = kept[0] if len(kept) else None
    if target is None:
        told = "without a label"
    elif is_regression(codec.task):
        told = f"of the value {float(target):g}"
    elif codec.task == "multilabel":
        told = f"of {codec.decode(target) or 'no class'}"
    else:
        told = f"of the class {codec.classes[int(target)]!r}"
    stops = ", and training stops early by the loss" if name == "valid" else ""
    return [
        f"all {what} of the {name} part are {told}: there mcc, r2, auroc and the like are not "
        f"defined{stops}. Give other files with --{name}, or a larger data.{name}_fraction"
    ]
