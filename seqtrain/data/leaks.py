"""Warnings of records that occur in several splits, at a cost that a training does not notice."""

import hashlib
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Int64, UInt64

from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.nearest import Effort, nearest_earlier
from seqtrain.data.similarity import IDENTITY

HASH_BYTES = 8
MAX_RESIDUES = 2_000_000
"""Near-copies are looked for in so many residues: about a second. Of more, records are drawn."""

_FAMILY = 0.9
"""From this share on, similar records are a family of variants, which no split can keep apart."""

_EFFORT = Effort(positions=2_000_000_000, meetings=30_000_000)


def record_hashes(dataset: SequenceDataset) -> UInt64[np.ndarray, " N"]:
    """A hash of the residues of each record; about a microsecond for each, and no memory beside."""
    data = memoryview(np.ascontiguousarray(dataset.tokens))  # type: ignore[arg-type]  # an array is one
    found = np.empty(len(dataset), np.uint64)
    begin = 0
    for i in range(len(dataset)):
        end = int(dataset.offsets[i + 1])
        digest = hashlib.blake2b(data[begin:end], digest_size=HASH_BYTES).digest()
        found[i] = int.from_bytes(digest, "little")
        begin = end
    return found


def leak_warnings(splits: Mapping[str, SequenceDataset]) -> list[str]:
    """One sentence for exact copies between two splits, and one for records that are similar.

    Args:
        splits: By name, the training part first; empty ones may be among them.
    """
    parts = {name: part for name, part in splits.items() if len(part)}
    hashes = {name: record_hashes(part) for name, part in parts.items()}
    names, warnings = list(parts), []
    copied = {name: np.zeros(len(part), bool) for name, part in parts.items()}
    for number, later in enumerate(names):
        for earlier in names[:number]:
            copies = np.isin(hashes[later], hashes[earlier])
            copied[later] |= copies
            if copies.any():
                warnings.append(
                    f"{copies.sum():,} of {len(copies):,} {later} records are exact copies of "
                    f"{earlier} records"
                )
    return warnings + _similar(parts, copied)


def _similar(
    parts: Mapping[str, SequenceDataset], copied: Mapping[str, Bool[np.ndarray, " _"]]
) -> list[str]:
    """Sentences on records that are similar to one of an earlier split, and no copy of one."""
    drawn = _draw(parts)
    taken = [parts[name].subset(chosen) for name, chosen in drawn.items()]
    together = SequenceDataset.concatenated(
        [SequenceDataset(part.ids, part.tokens, part.offsets) for part in taken]
    )
    home = np.repeat(np.arange(len(taken)), [len(part) for part in taken])
    if not len(together.tokens) or not home[-1]:
        return []
    found = nearest_earlier(together, home, effort=_EFFORT)
    is_copy = np.concatenate([copied[name][chosen] for name, chosen in drawn.items()])
    warnings = []
    for number, (name, part) in enumerate(parts.items()):
        count = int(((found.record >= 0) & ~is_copy & (home == number)).sum())
        if not count:
            continue
        is_part = bool(found.limits) or any(len(drawn[n]) < len(parts[n]) for n in parts)
        earlier = " or ".join(list(parts)[:number])
        advice = "data.split_method=similarity keeps such records together"
        if count >= _FAMILY * len(part):
            advice = "in a family of variants no split keeps them apart"
        warnings.append(
            f"{'at least ' * is_part}{count:,} of {len(part):,} {name} records are similar to "
            f"{earlier} records ({IDENTITY:.0%} or more of the residues equal): `data audit` shows "
            f"them; {advice}"
        )
    return warnings


def _draw(parts: Mapping[str, SequenceDataset]) -> dict[str, Int64[np.ndarray, " B"]]:
    """Records of each part: all, or by chance so many as there is room for, half of it train's."""
    if sum(len(part.tokens) for part in parts.values()) <= MAX_RESIDUES:
        return {name: np.arange(len(part)) for name, part in parts.items()}
    rng = np.random.default_rng(0)
    drawn = {}
    for number, (name, part) in enumerate(parts.items()):
        room = MAX_RESIDUES // 2 if number == 0 else MAX_RESIDUES // 2 // (len(parts) - 1)
        order = rng.permutation(len(part))
        drawn[name] = np.sort(order[np.cumsum(part.lengths[order]) <= room])
    return drawn
