"""Batch plans: every record once, budgets kept, ranks even, and little padding."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqtrain.data.batching import collate, padding_share, plan_batches
from seqtrain.data.dataset import SequenceDataset

lengths_of = st.lists(st.integers(1, 200), min_size=0, max_size=120).map(
    lambda values: np.array(values, dtype=np.int64)
)
kinds = st.sampled_from(["random", "bucketed"])
caps = st.none() | st.integers(1, 9)
ranked = {
    "lengths": lengths_of,
    "kind": kinds,
    "max_tokens": st.integers(1, 600),
    "max_sequences": caps,
    "seed": st.integers(0, 2**32),
    "epoch": st.integers(0, 50),
    "world_size": st.integers(1, 7),
    "shuffle": st.booleans(),
}


def all_ranks(world_size, **arguments):
    return [
        plan_batches(rank=rank, world_size=world_size, **arguments) for rank in range(world_size)
    ]


def log_normal_lengths(count, seed=0):
    """Protein-like lengths: median 180, from 30 to 1000."""
    draws = np.random.default_rng(seed).lognormal(np.log(180), 0.7, count)
    return draws.clip(30, 1000).astype(np.int64)


@settings(deadline=None)
@given(**ranked)
def test_every_record_comes_exactly_once_over_all_ranks(**arguments):
    batches = [batch for rank in all_ranks(**arguments) for batch in rank]
    found = np.concatenate([np.empty(0, np.int64), *batches])
    assert sorted(found.tolist()) == list(range(len(arguments["lengths"])))


@settings(deadline=None)
@given(**ranked)
def test_budgets_hold_except_for_one_over_long_record_alone(**arguments):
    lengths = arguments["lengths"]
    for batch in (batch for rank in all_ranks(**arguments) for batch in rank):
        if len(batch) > 1:
            assert len(batch) * lengths[batch].max() <= arguments["max_tokens"]
        assert len(batch) <= (arguments["max_sequences"] or len(lengths))


@settings(deadline=None)
@given(**ranked)
def test_every_rank_gets_equally_many_batches_and_empty_ones_only_without_need(**arguments):
    ranks = all_ranks(**arguments)
    assert len({len(rank) for rank in ranks}) == 1
    sizes = [len(batch) for rank in ranks for batch in rank]
    if 0 in sizes:
        assert max(sizes) == 1


@settings(deadline=None)
@given(**ranked)
def test_same_arguments_give_the_same_plan(**arguments):
    for first, second in zip(all_ranks(**arguments), all_ranks(**arguments), strict=True):
        assert [a.tolist() for a in first] == [b.tolist() for b in second]


@settings(deadline=None)
@given(lengths=lengths_of.filter(lambda v: len(v) > 0), kind=kinds, cap=st.integers(1, 9))
def test_a_batch_is_closed_only_when_the_next_record_does_not_fit(lengths, kind, cap):
    plan = plan_batches(lengths, kind, max_tokens=500, max_sequences=cap, shuffle=False)
    for batch, following in pairwise(plan):
        grown = np.append(batch, following[0])
        assert len(grown) > cap or len(grown) * lengths[grown].max() > 500


@pytest.mark.parametrize("kind", ["random", "bucketed"])
@pytest.mark.parametrize("change", [{"epoch": 1}, {"seed": 1}])
def test_epochs_and_seeds_differ_in_order_and_in_who_shares_a_batch(kind, change):
    lengths = log_normal_lengths(3000)
    first = plan_batches(lengths, kind, max_tokens=8192)
    other = plan_batches(lengths, kind, max_tokens=8192, **change)
    batch_of = np.empty(3000, np.int64)
    for number, batch in enumerate(other):
        batch_of[batch] = number
    met_again = [
        np.mean(batch_of[batch][:, None] == batch_of[batch]) for batch in first if len(batch) > 9
    ]
    assert [batch.tolist() for batch in first] != [batch.tolist() for batch in other]
    assert np.mean(met_again) < 0.3


def test_bucketed_computes_far_fewer_padded_positions_than_random():
    lengths = log_normal_lengths(10_000)
    real = lengths.sum()
    computed = {
        kind: sum(
            len(batch) * lengths[batch].max()
            for batch in plan_batches(lengths, kind, max_tokens=16_384)
        )
        for kind in ("random", "bucketed")
    }
    assert computed["bucketed"] <= 1.05 * real
    assert computed["random"] >= 2.5 * real


def test_bucketed_batches_come_in_no_order_of_length():
    lengths = log_normal_lengths(10_000)
    plan = plan_batches(lengths, "bucketed", max_tokens=16_384)
    longest = np.array([lengths[batch].max() for batch in plan])
    assert abs(np.corrcoef(longest[:-1], longest[1:])[0, 1]) < 0.25


def test_bucketed_saves_padding_in_a_small_set_too():
    lengths = log_normal_lengths(600)
    plan = plan_batches(lengths, "bucketed", max_tokens=2048)
    assert padding_share(lengths, plan) < 0.15
    assert padding_share(lengths, plan_batches(lengths, "random", max_tokens=2048)) > 0.4


def test_without_shuffling_random_keeps_file_order_and_bucketed_sorts_by_length():
    lengths = log_normal_lengths(500)
    in_file_order = np.concatenate(plan_batches(lengths, "random", max_tokens=4096, shuffle=False))
    np.testing.assert_array_equal(in_file_order, np.arange(500))
    by_length = np.concatenate(plan_batches(lengths, "bucketed", max_tokens=4096, shuffle=False))
    np.testing.assert_array_equal(by_length, np.argsort(lengths, kind="stable"))


def test_ranks_share_the_batches_of_one_process_up_to_the_halved_ones():
    lengths = log_normal_lengths(2000)
    arguments = {"lengths": lengths, "kind": "bucketed", "max_tokens": 8192, "seed": 3}
    alone = {tuple(sorted(batch)) for batch in plan_batches(**arguments)}
    together = {
        tuple(sorted(batch)) for rank in all_ranks(world_size=4, **arguments) for batch in rank
    }
    assert len(together - alone) <= 2 * 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "sorted"},
        {"max_tokens": 0},
        {"max_sequences": 0},
        {"rank": 2, "world_size": 2},
        {"rank": -1},
    ],
)
def test_arguments_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="must"):
        plan_batches(np.array([3]), **{"kind": "random", "max_tokens": 9, **wrong})


def test_padding_share_counts_positions():
    lengths = np.array([4, 2, 3])
    assert padding_share(lengths, [np.array([0, 1]), np.array([2])]) == pytest.approx(2 / 11)
    assert padding_share(lengths, []) == 0.0


def ragged(kind, lengths, seed=0):
    rng = np.random.default_rng(seed)
    tokens = [rng.integers(1, 25, n).astype(np.uint8) for n in lengths]
    targets = {
        "none": None,
        "classes": rng.integers(0, 4, len(lengths)),
        "multilabel": rng.integers(0, 2, (len(lengths), 3)).astype(np.float32),
        "residue_classes": [rng.integers(0, 4, n) for n in lengths],
        "residue_values": [rng.normal(size=n).astype(np.float32) for n in lengths],
    }[kind]
    per_residue = kind.startswith("residue")
    ids = [f"r{i}" for i in range(len(lengths))]
    return SequenceDataset.from_lists(ids, tokens, targets, per_residue=per_residue)


@settings(deadline=None)
@given(
    kind=st.sampled_from(["none", "classes", "multilabel", "residue_classes", "residue_values"]),
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=10),
    extra=st.none() | st.integers(0, 12),
    data=st.data(),
)
def test_collate_matches_padding_each_record_by_hand(kind, lengths, extra, data):
    dataset = ragged(kind, lengths)
    chosen = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=12))
    longest = max(lengths[i] for i in chosen)
    width = longest + (extra or 0)
    batch = collate(dataset, np.array(chosen), pad_to=None if extra is None else width)
    assert batch.tokens.shape == batch.mask.shape == (len(chosen), width)
    assert batch.index.tolist() == chosen
    assert batch.lengths.tolist() == [lengths[i] for i in chosen]
    assert batch.num_residues == int(batch.mask.sum()) == sum(lengths[i] for i in chosen)
    for row, i in enumerate(chosen):
        gap = width - lengths[i]
        assert batch.tokens[row].tolist() == dataset.residues(i).tolist() + [0] * gap
        assert batch.mask[row].tolist() == [True] * lengths[i] + [False] * gap
        if kind == "none":
            assert batch.targets is None
            continue
        expected = torch.as_tensor(np.array(dataset.target(i)))
        if dataset.per_residue:
            filler = -100 if kind == "residue_classes" else float("nan")
            expected = torch.cat([expected, torch.full((gap,), filler, dtype=expected.dtype)])
        torch.testing.assert_close(batch.targets[row], expected, equal_nan=True, rtol=0, atol=0)


def test_batch_dtypes_are_int64_tokens_bool_mask_and_the_targets_own():
    batch = collate(ragged("residue_classes", [3, 1]), np.array([0, 1], dtype=np.int32))
    assert (batch.tokens.dtype, batch.mask.dtype) == (torch.int64, torch.bool)
    assert (batch.targets.dtype, batch.index.dtype) == (torch.int64, torch.int64)
    assert collate(ragged("multilabel", [3]), np.array([0])).targets.dtype == torch.float32


def test_collate_copies_so_that_a_batch_never_aliases_the_dataset():
    dataset = ragged("classes", [3, 4])
    before = dataset.fingerprint()
    batch = collate(dataset, np.array([0, 1]))
    batch.tokens.zero_()
    batch.targets.zero_()
    batch.index.zero_()
    assert dataset.fingerprint() == before


@pytest.mark.parametrize("packed", [False, True])
def test_making_a_batch_looks_at_no_other_record(packed, monkeypatch):
    """It took ten milliseconds of a step that there were five million records."""
    dataset = ragged("classes", [3, 1, 4, 1, 5])
    expected = collate(dataset, np.array([4, 0, 3]), packed=packed)
    whole = property(lambda _: pytest.fail("the lengths of all records were worked out"))
    monkeypatch.setattr(SequenceDataset, "lengths", whole)
    found = collate(dataset, np.array([4, 0, 3]), packed=packed)
    assert found.tokens.equal(expected.tokens)
    part = dataset.subset(np.array([4, 0]))
    assert part.tokens.tolist() == [*dataset.residues(4), *dataset.residues(0)]


def test_empty_batch_of_a_rank_without_records_collates():
    batch = collate(ragged("residue_classes", [3]), np.empty(0, np.int64))
    assert (len(batch), batch.num_residues, batch.padding_share) == (0, 0, 0.0)
    assert batch.targets.shape == (0, 0)


def test_pad_to_shorter_than_a_record_is_refused():
    with pytest.raises(ValueError, match="pad_to=2"):
        collate(ragged("none", [3]), np.array([0]), pad_to=2)


def test_batch_moves_but_its_lengths_and_index_stay_on_the_host():
    batch = collate(ragged("classes", [4, 2]), np.array([0, 1]))
    assert batch.padding_share == pytest.approx(2 / 8)
    moved = batch.to("meta")
    assert {t.device.type for t in (moved.tokens, moved.mask, moved.targets)} == {"meta"}
    assert {t.device.type for t in (moved.lengths, moved.index)} == {"cpu"}
    assert moved.num_residues == 6


@pytest.mark.parametrize("kind", ["none", "classes", "residue_classes"])
def test_packed_batch_holds_the_same_records_without_padding(kind):
    dataset = ragged(kind, [4, 9, 1, 9, 3])
    index = np.array([4, 0, 3, 2])
    packed = collate(dataset, index, packed=True)
    order = packed.index.tolist()
    assert sorted(order) == sorted(index.tolist())
    assert packed.lengths.tolist() == [9, 4, 3, 1]
    assert (packed.padding_share, packed.num_residues) == (0.0, 17)
    end_to_end = np.concatenate([dataset.residues(i) for i in order])
    assert packed.tokens.tolist() == [end_to_end.tolist()]
    if kind == "classes":
        assert packed.targets.tolist() == [dataset.target(i) for i in order]
    if kind == "residue_classes":
        targets = np.concatenate([dataset.target(i) for i in order])
        assert packed.targets.tolist() == [targets.tolist()]


def test_packed_plan_counts_residues_where_a_padded_one_counts_positions():
    lengths = np.array([10, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1])
    plan = plan_batches(lengths, "packed", max_tokens=20, shuffle=False)
    assert [batch.tolist() for batch in plan] == [list(range(11))]
    assert len(plan_batches(lengths, "random", max_tokens=20, shuffle=False)) > 1
