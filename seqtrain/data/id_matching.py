"""Record ids matched with the ids of a table where they are written in two ways.

Ids match exactly, or else by the first of these rules that fits: the accession within an id of
UniProt or NCBI, the letter case of a PDB code, a version suffix on one side, letter case, one field
of the id. A rule counts only where it fits one record with one id, and the run says how often it
was used.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from seqtrain.errors import LabelError

MAX_SHOWN = 5
"""Number of ids that a message names."""

_VERSION = re.compile(r"(.*[A-Za-z].*)\.\d{1,3}")
_PDB = re.compile(r"\d[A-Za-z0-9]{3}(?![A-Za-z0-9])")
_SEPARATORS = re.compile(r"[|,;]")
_DATABASES = frozenset(
    ("sp", "tr", "gi", "ref", "gb", "emb", "dbj", "tpg", "tpe", "tpd", "pir", "prf", "pdb")
) | {"lcl", "gnl"}


class Rule(NamedTuple):
    """A way to read an id, so that two ways to write it become one."""

    words: str
    keys: Callable[[str], Iterable[str]]
    """Keys of an id; two ids fit when they share one."""
    fits: Callable[[str, str], bool] = lambda _, __: True
    """A further condition on the two ids."""


class IdMatch(NamedTuple):
    """Records that are found in a table under an id of another form."""

    names: dict[str, str]
    """Id in the table by record id; exact matches are left out."""
    notes: list[str]
    """One line per rule used, with the count and an example."""


def match_ids(records: Collection[str], known: Collection[str], where: str) -> IdMatch:
    """Ids of a table for the records that it does not name exactly.

    Args:
        records: Ids of all records.
        known: Ids in the table; quick to look up.
        where: The table, for messages.

    Raises:
        LabelError: A record fits several ids, or several records fit one.
    """
    names: dict[str, str] = {}
    notes: list[str] = []
    open_records = [record for record in records if record not in known]
    if not open_records:
        return IdMatch(names, notes)
    used = set(records)
    open_names = [name for name in known if name not in used]
    for rule in RULES:
        if not (open_records and open_names):
            break
        found = _one_to_one(rule, open_records, open_names, where)
        if found:
            record, name = next(iter(found.items()))
            notes.append(
                f"{where}: {len(found):,} of {len(records):,} record ids are matched by "
                f"{rule.words} (record {record!r} is {name!r} there)"
            )
            names |= found
            taken = set(found.values())
            open_records = [record for record in open_records if record not in found]
            open_names = [name for name in open_names if name not in taken]
    return IdMatch(names, notes)


def listed(ids: Sequence[str]) -> str:
    """The first few ids, quoted, and that there are more."""
    shown = ", ".join(map(repr, ids[:MAX_SHOWN]))
    return shown + (", ..." if len(ids) > MAX_SHOWN else "")


def _one_to_one(
    rule: Rule, records: Sequence[str], names: Sequence[str], where: str
) -> dict[str, str]:
    """The ids that the rule gives to records, each to one alone."""
    names_of = defaultdict(list)
    for name in names:
        for key in rule.keys(name):
            names_of[key].append(name)
    fitting = {}
    takers = defaultdict(list)
    for record in records:
        found = dict.fromkeys(
            name for key in rule.keys(record) for name in names_of.get(key, ()) if name != record
        )
        if candidates := [name for name in found if rule.fits(record, name)]:
            fitting[record] = candidates
            for name in candidates:
                takers[name].append(record)
    ambiguous = list(_ambiguous(fitting, takers))
    if ambiguous:
        more = f"\n  and {len(ambiguous) - MAX_SHOWN} more." * (len(ambiguous) > MAX_SHOWN)
        raise LabelError(
            f"{where}: ids match in several ways by {rule.words}:\n  "
            + "\n  ".join(ambiguous[:MAX_SHOWN])
            + more
            + "\nWrite these ids as they are in the FASTA file."
        )
    return {record: candidates[0] for record, candidates in fitting.items()}


def _ambiguous(fitting: dict[str, list[str]], takers: dict[str, list[str]]) -> Iterator[str]:
    for record, candidates in fitting.items():
        if len(candidates) > 1:
            yield f"record {record!r} could be {' or '.join(map(repr, candidates[:2]))}."
    for name, records in takers.items():
        if len(records) > 1 and all(len(fitting[record]) == 1 for record in records):
            yield f"{name!r} could be record {' or '.join(map(repr, records[:2]))}."


def _same_version(record: str, name: str) -> bool:
    """True if at most one of the two has a version, or both have the same."""
    versions = {_accession(name)[len(_unversioned(_accession(name))) :] for name in (record, name)}
    return len(versions - {""}) < 2


def _accession(name: str) -> str:
    """The accession in an id such as ``sp|ACC|NAME`` or ``gi|1|ref|ACC|``; others as they are."""
    if "|" not in name:
        return name
    fields = [field for field in name.split("|") if field]
    if len(fields) > 2 and fields[0].lower() == "gi":
        fields = fields[2:]
    if len(fields) < 2 or fields[0].lower() not in _DATABASES:
        return name
    match fields[0].lower():
        case "pdb":
            return "_".join(fields[1:3])
        case "gnl":
            return fields[-1]
    return fields[1]


def _unversioned(name: str) -> str:
    found = _VERSION.fullmatch(name)
    return found[1] if found else name


def _pdb_case(name: str) -> str:
    """The id with its PDB code in lower case, the chain as it is."""
    accession = _accession(name)
    found = _PDB.match(accession)
    return accession[:4].lower() + accession[4:] if found else accession


def _fields(name: str) -> set[str]:
    """Fields between bars, commas or semicolons, without the names of databases."""
    return {field for field in _SEPARATORS.split(name) if field.lower() not in _DATABASES} - {""}


def _only_one_has_fields(record: str, name: str) -> bool:
    return bool(_SEPARATORS.search(record)) != bool(_SEPARATORS.search(name))


RULES = (
    Rule("the accession within the id", lambda name: (_accession(name),)),
    Rule("the PDB code, in any letter case", lambda name: (_pdb_case(name),)),
    Rule(
        "the accession without its version",
        lambda name: (_unversioned(_accession(name)),),
        _same_version,
    ),
    Rule("the id in any letter case", lambda name: (name.casefold(),)),
    Rule(
        "the accession without its version, in any letter case",
        lambda name: (_unversioned(_accession(name)).casefold(),),
        _same_version,
    ),
    Rule("one field of the id", _fields, _only_one_has_fields),
)
"""In the order in which they are tried."""
