"""Ids met before are found, wherever they are kept."""

import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from traced_memory import most_memory

from seqtrain.data import places
from seqtrain.data.fasta import Record, Reject, scan_fasta
from seqtrain.data.places import Places
from seqtrain.errors import DataError

IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=3)


@given(st.lists(IDS, max_size=60), st.sampled_from([1, 2, 7]), st.sampled_from([1, 8, 2**12]))
def test_the_first_place_of_each_id_is_kept(names: list[str], most: int, bits: int) -> None:
    """However few ids memory holds, and however often the filter is wrong."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(places, "IN_MEMORY", most)
        patch.setattr(places, "FILTER_BITS", max(bits, 8))
        with closing(Places()) as met:
            found = [met.first(name, place) for place, name in enumerate(names)]
    assert found == [
        names.index(name) if name in names[:place] else None for place, name in enumerate(names)
    ]


def test_memory_does_not_grow_with_the_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "IN_MEMORY", 2**10)
    monkeypatch.setattr(places, "FILTER_BITS", 2**20)

    def meet(number: int) -> None:
        with closing(Places()) as met:
            for place in range(number):
                met.first(f"{place}", place)

    assert most_memory(partial(meet, 2**14)) < 1.1 * most_memory(partial(meet, 2**11))


def test_a_repeated_id_names_its_first_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "IN_MEMORY", 2)
    one, two = tmp_path / "one.fasta", tmp_path / "two.fasta"
    one.write_text(">a\nAC\n>b\nAC\n>c\nAC\n", encoding="utf-8")
    two.write_text(">d\nAC\n>b\nAC\n>d\nAC\n", encoding="utf-8")
    items = list(scan_fasta([one, two]))
    assert [item.id for item in items if isinstance(item, Record)] == ["a", "b", "c", "d"]
    reasons = [item.reason for item in items if isinstance(item, Reject)]
    assert f"on line 3 of {one};" in reasons[0]
    assert "on line 1;" in reasons[1]


def test_a_full_disk_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def make_small_file() -> sqlite3.Connection:
        file = make_file()
        file.execute("PRAGMA max_page_count = 2")
        return file

    make_file = places._make_file
    monkeypatch.setattr(places, "_make_file", make_small_file)
    monkeypatch.setattr(places, "IN_MEMORY", 2**10)
    with closing(Places()) as met:
        for place in range(2**10 - 1):
            met.first(f"id {place}", place)
        with pytest.raises(DataError, match=r"temporary files has no room.*full.*TMPDIR"):
            met.first("the last that memory holds", 0)
