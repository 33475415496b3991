"""Ids of two forms: matched where one rule fits one to one, refused where it fits in two ways."""

import pytest

from seqtrain.data.id_matching import match_ids
from seqtrain.errors import LabelError


@pytest.mark.parametrize(
    ("record", "name", "rule"),
    [
        ("sp|Q0A1B2|FAKE1_MADEUP", "Q0A1B2", "the accession within the id"),
        ("tr|A0A9X7|FAKE2_MADEUP", "A0A9X7", "the accession within the id"),
        ("Q0A1B2", "sp|Q0A1B2|FAKE1_MADEUP", "the accession within the id"),
        ("gi|123|ref|NP_001.2|", "NP_001.2", "the accession within the id"),
        ("ref|NP_001.2|", "NP_001.2", "the accession within the id"),
        ("lcl|contig7", "contig7", "the accession within the id"),
        ("pdb|1ABC|A", "1ABC_A", "the accession within the id"),
        ("gnl|lab|x7", "x7", "the accession within the id"),
        ("1ABC_A", "1abc_A", "the PDB code, in any letter case"),
        ("NP_001.2", "NP_001", "the accession without its version"),
        ("NP_001", "NP_001.2", "the accession without its version"),
        ("gi|123|ref|NP_001.2|", "NP_001", "the accession without its version"),
        ("geneA", "GENEA", "the id in any letter case"),
        ("sp|Q0A1B2|X", "q0a1b2", "the accession without its version, in any letter case"),
        ("sp|Q0A1B2|FAKE1_MADEUP", "FAKE1_MADEUP", "one field of the id"),
        ("rec000,label=alpha,split=test", "rec000", "one field of the id"),
        ("jgi|Aspnid1|4711|e_gw1", "4711", "one field of the id"),
    ],
)
def test_an_id_of_another_form_is_found_by_a_rule_that_is_said(record, name, rule):
    found = match_ids(["same", record], {"same", name, "other"}, "labels.tsv")
    assert found.names == {record: name}
    assert found.notes == [
        f"labels.tsv: 1 of 2 record ids are matched by {rule} (record {record!r} is {name!r} there)"
    ]


@pytest.mark.parametrize(
    ("record", "name"),
    [("NP_001.1", "NP_001.2"), ("1.5", "1"), ("sp|P1|X", "sp|P2|X"), ("1abc_A", "1abc_B")],
)
def test_other_ids_do_not_match(record, name):
    assert match_ids([record], {name}, "t").names == {}


def test_an_id_that_a_record_has_exactly_is_not_given_to_another():
    assert match_ids(["1abc_A", "1abc_a", "P1", "sp|P1|X"], {"1abc_A", "P1"}, "t").names == {}


def test_chains_that_differ_in_letter_case_stay_apart():
    found = match_ids(["1abc_A", "1abc_a"], {"1ABC_A", "1ABC_a"}, "t")
    assert found.names == {"1abc_A": "1ABC_A", "1abc_a": "1ABC_a"}


@pytest.mark.parametrize(
    ("records", "names", "said"),
    [
        (["geneA"], ["GENEA", "genea"], "record 'geneA' could be 'GENEA' or 'genea'."),
        (["sp|P1|A", "tr|P1|B"], ["P1"], "'P1' could be record 'sp|P1|A' or 'tr|P1|B'."),
        (["NP_1.1", "NP_1.2"], ["NP_1"], "'NP_1' could be record 'NP_1.1' or 'NP_1.2'."),
    ],
)
def test_two_candidates_are_shown_and_refused(records, names, said):
    with pytest.raises(LabelError) as caught:
        match_ids(records, dict.fromkeys(names), "labels.tsv")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("labels.tsv: ids match in several ways by ")
    assert lines[1].strip() == said
