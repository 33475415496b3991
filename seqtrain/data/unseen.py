"""Classes that occur outside the training part alone."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Shaped

from seqtrain.data.labels import UNMEASURED, LabelCodec, is_regression
from seqtrain.words import counted

MOST_SHOWN = 5
"""Classes that a message names."""

UNSEEN_HINT = (
    "\nAdd training records of these classes, take these records out, or set data.unseen=miss to "
    "count them as missed."
)
"""The ways out, for the end of a message."""


def unseen_classes(
    codec: LabelCodec, values: Sequence[str], parts: Shaped[np.ndarray, " N"]
) -> dict[str, int]:
    """Number of records outside train by class that the codec, fitted on train, lacks."""
    if codec.task == "mlm" or is_regression(codec.task):
        return {}
    known = {*codec.classes, *codec.ignore}
    known |= set(UNMEASURED) if codec.task == "residue_classification" else set()
    counts: Counter[str] = Counter()
    for i in np.flatnonzero(parts != "train").tolist():
        counts.update(codec.names(values[i]) - known)
    return dict(counts.most_common())


def unseen_words(counts: Mapping[str, int]) -> str:
    """Names of the classes with their numbers of records."""
    shown = [
        f"{name!r} ({counted(count, 'record')})"
        for name, count in list(counts.items())[:MOST_SHOWN]
    ]
    more = f" and {len(counts) - MOST_SHOWN:,} more" if len(counts) > MOST_SHOWN else ""
    return f"classes that no training record has: {', '.join(shown)}{more}"
