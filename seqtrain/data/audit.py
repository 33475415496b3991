"""Audits data: duplicates, leaks between splits, labels predictable from length.

The baselines themselves are in :mod:`seqtrain.data.baselines`.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from seqtrain.data.baselines import (
    baselines,
    composition_baseline,
    length_only_baseline,
    majority_baseline,
)
from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.nearest import Effort, nearest_earlier
from seqtrain.data.scores import Scores
from seqtrain.data.similarity import IDENTITY, MIN_SHARED_WORDS, word_length

__all__ = [
    "Duplicates",
    "Leak",
    "LeakSearch",
    "alarms",
    "baselines",
    "composition_baseline",
    "find_duplicates",
    "find_leaks",
    "length_only_baseline",
    "majority_baseline",
    "search_leaks",
]

# The metric of each task that is near 0 (AUROC: 0.5) for any guess that ignores the record, and
# from where on length alone is called suspicious.
SUSPICIOUS = {
    "classification": ("mcc", 0.5),
    "multilabel": ("macro_auroc", 0.85),
    "regression": ("r2", 0.5),
}


class Duplicates(NamedTuple):
    """Records with exactly the same residues."""

    within: dict[str, list[str]]
    """By split: ids that repeat an earlier record of the same split."""
    between: dict[str, list[str]]
    """By pair of splits, as ``train/test``: ids of the second that occur in the first, too."""
    conflicting: list[list[str]]
    """Ids of equal records that do not all have the same target."""


class Leak(NamedTuple):
    """A record that resembles one of an earlier split."""

    id: str
    split: str
    nearest: str
    """Id of the most similar record that was found in an earlier split."""
    nearest_split: str
    identity: float
    """Share of equal residues, from 0 to 1: counted where both are of one length, else estimated
    for the shorter one."""


class LeakSearch(NamedTuple):
    """The leaks that were found, and how far the search went."""

    leaks: list[Leak]
    """Nearest first."""
    rule: str
    """The rule of similarity, in a user's words."""
    identity: float
    word_length: int
    limits: list[str]
    """Why there may be more; empty: these are all."""
    is_estimate: bool
    """True if words were sampled: then some may be missing and some be none."""

    def number(self, split: str) -> int:
        """Number of records of a split known to be similar to one of an earlier split."""
        return sum(leak.split == split for leak in self.leaks)

    def counted(self, split: str) -> str:
        """The same as text, which says if there may be more."""
        kind = "about " if self.is_estimate else "at least " if self.limits else ""
        return f"{kind}{self.number(split):,}"


def find_duplicates(splits: Mapping[str, SequenceDataset]) -> Duplicates:
    """Exact duplicates within and between splits, and those with different targets."""
    copies: dict[bytes, list[tuple[str, int]]] = defaultdict(list)
    for name, dataset in splits.items():
        for i in range(len(dataset)):
            digest = hashlib.blake2b(dataset.residues(i).tobytes(), digest_size=16).digest()
            copies[digest].append((name, i))
    within: dict[str, list[str]] = {name: [] for name in splits}
    names = list(splits)
    between: dict[str, list[str]] = {
        f"{first}/{second}": [] for k, second in enumerate(names) for first in names[:k]
    }
    conflicting = []
    for group in copies.values():
        if len(group) < 2:
            continue
        homes = list(dict.fromkeys(name for name, _ in group))
        for k, home in enumerate(homes):
            ids = [splits[name].ids[i] for name, i in group if name == home]
            within[home] += ids[1:]
            for earlier in homes[:k]:
                between[f"{earlier}/{home}"] += ids
        if len({_target_bytes(splits[name], i) for name, i in group}) > 1:
            conflicting.append([splits[name].ids[i] for name, i in group])
    return Duplicates(within, between, conflicting)


def _target_bytes(dataset: SequenceDataset, i: int) -> bytes:
    return b"" if dataset.targets is None else np.asarray(dataset.target(i)).tobytes()


def find_leaks(
    splits: Mapping[str, SequenceDataset], *, identity: float = IDENTITY, kmer: int | None = None
) -> list[Leak]:
    """Records that are similar to one of an earlier split, nearest first: see search_leaks."""
    return search_leaks(splits, identity=identity, kmer=kmer).leaks


def search_leaks(
    splits: Mapping[str, SequenceDataset],
    *,
    identity: float = IDENTITY,
    kmer: int | None = None,
    effort: Effort | None = None,
) -> LeakSearch:
    """Looks for records that are about ``identity`` alike or more to one of an earlier split.

    Exact duplicates and fragments are among them, with an identity of 1. How they are found is
    said in :mod:`seqtrain.data.nearest`. All splits share one tokenizer.

    Args:
        splits: By name, the training part first.
        identity: Share of equal residues that makes two records similar.
        kmer: Word length; chosen by alphabet and amount of data when not given.
        effort: What may be compared; some seconds' worth when not given.
    """
    names, datasets = list(splits), list(splits.values())
    together = SequenceDataset.concatenated(
        [SequenceDataset(part.ids, part.tokens, part.offsets) for part in datasets]
    )
    k = word_length(together) if kmer is None else kmer
    home = np.repeat(np.arange(len(names)), [len(part) for part in datasets])
    found = nearest_earlier(together, home, identity=identity, kmer=k, effort=effort)
    later = np.flatnonzero(found.record >= 0)
    leaks = [
        Leak(
            together.ids[i],
            names[home[i]],
            together.ids[found.record[i]],
            names[home[found.record[i]]],
            float(found.identity[i]),
        )
        for i in later[np.argsort(-found.identity[later], kind="stable")].tolist()
    ]
    return LeakSearch(leaks, similarity_rule(identity, k), identity, k, *found[2:])


def similarity_rule(identity: float, k: int) -> str:
    """The rule of similarity, in a user's words."""
    return (
        f"Two records are similar when {identity:.0%} of their residues or more are equal: counted "
        "position by position where both have the same length, else estimated from the words of "
        f"{k} residues that they share ({MIN_SHARED_WORDS} or more, {identity**k:.0%} of those of "
        "the shorter one). Short records that one insertion or deletion makes equal are similar."
    )


def alarms(scores: Mapping[str, Scores], task: str) -> list[str]:
    """One sentence if length alone predicts the target suspiciously well, otherwise nothing.

    The rule: the length-only baseline reaches a Matthews correlation of 0.5, for a regression an
    R² of 0.5, for several labels a macro AUROC of 0.85. Always answering the commonest class
    gives 0, 0 and 0.5, so an unbalanced set raises no alarm by itself. Families that differ in
    length by nature stay below; a negative set that was cut shorter than the positives does not.

    Args:
        scores: By baseline, as from :func:`baselines`; needs ``length_only``.
        task: What is predicted.
    """
    if task not in SUSPICIOUS or "length_only" not in scores:
        return []
    name, limit = SUSPICIOUS[task]
    found = scores["length_only"][name]
    if not found >= limit:
        return []
    figures = f"{name} {found:.3f}"
    if task == "classification" and "majority" in scores:
        figures += (
            f", accuracy {scores['length_only']['accuracy']:.3f} against "
            f"{scores['majority']['accuracy']:.3f} for the commonest class"
        )
    return [
        f"The length of a sequence alone predicts its label ({figures}): a good score here may "
        "come from counting residues. Hold the model against the length-only baseline, and match "
        "the lengths of the classes if you can."
    ]
