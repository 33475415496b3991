import gzip
import io
import sys
import zipfile
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqtrain.data.fasta import Record
from seqtrain.data.header_splits import split_name
from seqtrain.data.label_column import column_words
from seqtrain.data.label_table import header_labels, read_labels
from seqtrain.errors import DataError, LabelError


@pytest.fixture
def write(tmp_path):
    def write(content: str | bytes, name: str = "labels.tsv") -> str:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


def message_of(*paths: str, **options: str) -> str:
    with pytest.raises(LabelError) as caught:
        read_labels(paths, **options)
    return str(caught.value)


cells = st.text(alphabet="abc 12,;|\"'é", max_size=6).map(str.strip).filter(bool)


@given(
    rows=st.dictionaries(cells, st.tuples(cells, cells), min_size=1, max_size=6),
    delimiter=st.sampled_from("\t,;"),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    mark=st.sampled_from(["", "\ufeff"]),
    packed=st.booleans(),
)
def test_tables_are_read_whatever_their_delimiter(
    tmp_path_factory, rows, delimiter, newline, mark, packed
):
    def quoted(cell: str) -> str:
        return '"' + cell.replace('"', '""') + '"'

    lines = [["id", "split", "label"], *([key, part, value] for key, (value, part) in rows.items())]
    text = mark + newline.join(delimiter.join(map(quoted, line)) for line in lines)
    path = tmp_path_factory.mktemp("labels") / "labels"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    table = read_labels([path])
    assert table.values == {key: value for key, (value, _) in rows.items()}
    assert table.splits == {key: part for key, (_, part) in rows.items()}
    places = list(map(table.place, rows))
    assert places == [(str(path), line) for line in range(2, len(rows) + 2)]
    assert table.kind == "table"


def test_blank_lines_count_as_lines_and_hold_no_label(write):
    table = read_labels([write("\n\nid\tlabel\n\na\tx\n  \t \nb\ty\n")])
    assert table.values == {"a": "x", "b": "y"}
    assert [table.place(key)[1] for key in "ab"] == [5, 7]


def test_tables_may_be_many(write):
    first, second = write("id,label\na,x\n", "a.csv"), write("name\ty\tset\nb\tz\tdev\n", "b.tsv")
    table = read_labels([first, second])
    assert table.values == {"a": "x", "b": "z"}
    assert [table.place(key) for key in "ab"] == [(first, 2), (second, 2)]
    assert table.splits == {"b": "dev"}


def test_same_table_twice_is_refused(write):
    path = write("id,label\na,x\n")
    with pytest.raises(DataError, match="is given twice"):
        read_labels([path, path])


def test_standard_input_may_hold_the_labels(monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"id\tlabel\na\tx\n")))
    assert read_labels(["-"]).values == {"a": "x"}


@pytest.mark.parametrize(
    ("header", "options", "columns"),
    [
        ("id\tlabel", {}, ("id", "label", "")),
        ("id\ttarget\tsplit", {}, ("id", "target", "split")),
        ("id\tlabel\tdup_in_train\tfold\tsplit", {}, ("id", "label", "split")),
        ("fold\tAccession\tClass\tPARTITION", {}, ("Accession", "Class", "PARTITION")),
        ("header\tactivity", {}, ("header", "activity", "")),
        ("activity\tid", {}, ("id", "activity", "")),
        ("label\tsequence_name", {}, ("sequence_name", "label", "")),
        ("set\theader\tactivity", {}, ("header", "activity", "set")),
        ("id\tlabel\tpH", {"label_column": "pH"}, ("id", "pH", "")),
        ("a\tb\tc", {"id_column": "c", "label_column": "a"}, ("c", "a", "")),
        ("id\tlabel\tfold", {"split_column": "fold"}, ("id", "label", "fold")),
    ],
)
def test_columns_are_found_by_name_or_taken_as_told(write, header, options, columns):
    path = write(header + "\n" + "\t".join("x" * len(header.split("\t"))) + "\n")
    assert read_labels([path], **options).columns == columns


def test_column_that_cannot_be_told_is_asked_for(write):
    path = write("id\tph\ttm\tsplit\na\t1\t2\ttrain\n")
    assert message_of(path) == (
        f"{path}: which column holds the label? Columns: id, ph, tm, split. "
        "Name it with --label-column."
    )
    assert "which column holds the label" in message_of(write("id\tsplit\na\ttrain\n"))


@pytest.mark.parametrize("option", ["id_column", "label_column"])
def test_unknown_column_gets_the_nearest_name(write, option):
    path = write("id\tactivity\na\t1\n")
    message = message_of(path, **{option: "activty"})
    assert message.startswith(f"{path}: there is no column 'activty'. Columns: id, activity.")
    assert "Did you mean 'activity'?" in message


@pytest.mark.parametrize(
    ("rows", "line", "reason"),
    [
        ("a,x\nb,y,z\n", 3, "record 'b' (2nd, line 3): expected 2 cells as in the header, found 3"),
        ("a,x\nb\n", 3, "record 'b' (2nd, line 3): expected 2 cells as in the header, found 1"),
        ("a,x\n,y\n", 3, "record '' (2nd, line 3): the id is blank"),
        ("a,x\nb,y\na,x\n", 4, "record 'a' (3rd, line 4): the id was used before, on line 2;"),
    ],
)
def test_bad_row_is_told_with_its_line(write, rows, line, reason):
    path = write("id,label\n" + rows)
    assert message_of(path).startswith(f"{path}: {reason}")


def test_ragged_row_is_named_by_its_id_column(write):
    told = message_of(write("label,fold,id\nx,1,a\ny,2,b,3\nz\n"))
    assert "record 'b' (2nd, line 3): expected 3 cells as in the header, found 4." in told
    assert "record '' (3rd, line 4): expected 3 cells as in the header, found 1." in told


def test_all_bad_rows_of_all_files_are_told_at_once(write):
    first = write("id,label\na,x\nb\n,x\n", "a.csv")
    second = write("id,label\n" + "a,y\n" * 12, "b.csv")
    lines = message_of(first, second).splitlines()
    assert lines[0] == f"{first}: 2 records cannot be used:"
    assert lines[3] == f"{second}: 12 records cannot be used:"
    assert f"on line 2 of {first}" in lines[4]
    assert lines[-1] == "  and 2 more."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty, expected labels"),
        ("\n \n", "is empty, expected labels"),
        ("idlabel\nab\n", "expected a header line with tabs or commas"),
        ('id,label\na,"x\nb,y\n', "Is a quote left open?"),
        (b"id,label\na,\0\n", "line 2 holds binary data"),
        (gzip.compress(b"id,label\na,x\n", mtime=0)[:-9], "cut short"),
        (">a\nHH\n>\nH\n", "record '' (2nd, line 3): the id is blank"),
        (">a\nHH\n>a\nH\n", "record 'a' (2nd, line 3): the id was used before, on line 1"),
    ],
)
def test_unusable_file_is_told(write, content, message):
    path = write(content)
    told = message_of(path)
    assert told.startswith(f"{path}: ")
    assert message in told


def test_missing_file_is_a_label_error(tmp_path):
    assert message_of(str(tmp_path / "x.tsv")) == f"{tmp_path / 'x.tsv'}: no such file."


def test_labels_fasta_keeps_letters_and_case_as_written(write):
    table = read_labels([write("\n>a protein one\nHHhh\n12--\n>b\nNN nn\n")])
    assert table.values == {"a": "HHhh12--", "b": "NNnn"}
    assert [table.place(key)[1] for key in "ab"] == [2, 5]
    assert table.kind == "fasta"
    assert table.splits == {}


def test_mask_in_a_header_marks_residues_that_were_not_measured(write):
    path = write(">a TARGET SET=train MASK=0110\nHCHC\n>b\nHH\n")
    assert read_labels([path]).values == {"a": "-CH-", "b": "HH"}
    assert header_labels([record("TARGET=HCHC SET=train MASK=0110")]).values == {"r0": "-CH-"}
    assert header_labels([record("label=amp MASK=0110")]).values == {"r0": "amp"}
    for mask in ("011", "01x0"):
        path = write(f">a MASK={mask}\nHCHC\n")
        assert f"MASK={mask}: expected 4 digits 0 or 1" in message_of(path)


def test_tables_and_labels_fasta_do_not_mix(write):
    assert "not as both" in message_of(write("id,label\na,x\n"), write(">a\nHH\n", "b.fasta"))


def record(description: str, place: int = 0) -> Record:
    return Record(f"r{place}", description, "ACGT", "train.fasta", 2 * place + 1, place)


@pytest.mark.parametrize(
    ("description", "value", "split"),
    [
        ("label=amp split=train", "amp", "train"),
        ("SET=test TARGET=0.5", "0.5", "test"),
        ("Target=a;b other=1", "a;b", None),
        ("organism=x;label=amp", "amp", None),
        ('len=3 label="two words" set=dev', "two words", "dev"),
        ("label=a,b|c", "a,b|c", None),
    ],
)
def test_header_attributes_are_read_in_any_case(description, value, split):
    table = header_labels([record(description)])
    assert table.values == {"r0": value}
    assert table.splits == ({"r0": split} if split else {})
    assert table.kind == "header"


def test_header_labels_keep_the_place_of_the_record():
    table = header_labels([record("no attribute"), record("label=x", 1), record("mylabel=x", 2)])
    assert table.values == {"r1": "x"}
    assert table.place("r1") == ("train.fasta", 3)


def test_other_header_keys_can_be_asked_for():
    table = header_labels([record("label=x pH=7 fold=1")], "ph", "fold")
    assert (table.values, table.splits) == ({"r0": "7"}, {"r0": "1"})


def test_empty_label_is_read_as_none(write):
    assert header_labels([record("label= split=train")]).values == {"r0": ""}
    assert read_labels([write("id,label\na,x\nb, \n")]).values == {"a": "x", "b": ""}
    assert read_labels([write(">a\nHH\n>b\n")]).values == {"a": "HH", "b": ""}


@pytest.mark.parametrize(
    ("description", "value"),
    [
        ("label=alpha;taxon=9606;source=lab", "alpha"),
        ("label=alpha|OX=9606", "alpha"),
        ("label=alpha,split=train", "alpha"),
        ("label=alpha, split=train", "alpha"),
        ("label=a;b;taxon=9606", "a;b"),
        ("label=a;b;", "a;b"),
        ("[label=two words] [split=test]", "two words"),
        ("label='two words' OS=x", "two words"),
        ('label="a;b=c" OS=x', "a;b=c"),
        ("x;label=alpha;split=test", "alpha"),
        ("label=alpha.", "alpha."),
        ("label=alpha label=alpha", "alpha"),
    ],
)
def test_next_key_ends_a_header_label(description, value):
    assert header_labels([record(description)]).values == {"r0": value}


@pytest.mark.parametrize(
    "description", ["label=a label=b", "Label=a [label=b]", "label=a target=1"]
)
def test_different_labels_in_one_header_are_refused(description):
    with pytest.raises(LabelError, match=r"record 'r0'.*the header holds several labels, 'a' and"):
        header_labels([record(description)])


def test_label_key_that_is_asked_for_is_the_only_one_read():
    assert header_labels([record("label=a target=1")], "target").values == {"r0": "1"}
    assert header_labels([record("label=a target=1")], "label").values == {"r0": "a"}


@pytest.mark.parametrize(
    ("header", "options", "message"),
    [
        (
            "id,label,label",
            {},
            "'label' (column 2) and 'label' (column 3) could both hold the labels",
        ),
        ("id,label,label", {"label_column": "label"}, "Rename or remove all but one."),
        ("id,Label,label", {}, "Name it with --label-column."),
        ("id,label,target", {}, "'label' (column 2) and 'target' (column 3) could both hold"),
        ("id,id,label", {}, "'id' (column 1) and 'id' (column 2) could both hold the record ids"),
        ("id,label,split,Split", {}, "could both hold the splits. Name it with --split-column."),
        (
            ",protein_id,label",
            {},
            "which column holds the record ids? Columns: (one without a name)",
        ),
        ("label,split", {}, "which column holds the record ids?"),
    ],
)
def test_columns_that_could_both_be_meant_are_refused(write, header, options, message):
    row = ",".join("x" * len(header.split(",")))
    assert message in message_of(write(f"{header}\n{row}\n"), **options)


@pytest.mark.parametrize(
    ("header", "options", "values"),
    [
        (",label", {}, {"v0": "v1"}),
        (",label,split", {}, {"v0": "v1"}),
        (",id,label", {}, {"v1": "v2"}),
        (",protein_id,label", {"id_column": "protein_id"}, {"v1": "v2"}),
        ("id,name,label", {}, {"v0": "v2"}),
        ("id,Label,label", {"label_column": "Label"}, {"v0": "v1"}),
        ("class,id,activity", {}, {"v1": "v0"}),
    ],
)
def test_index_of_a_data_frame_is_the_id_where_no_other_can_be(write, header, options, values):
    row = ",".join(f"v{i}" for i in range(len(header.split(","))))
    assert read_labels([write(f"{header}\n{row}\n")], **options).values == values


def test_columns_are_told_with_the_reason(write):
    path = write("Sequence name,class,activity\na,x,1\n")
    assert column_words(read_labels([path])) == [
        f"{path}, label column 'class' (by its name), id column 'Sequence name' (the first "
        "column left)"
    ]
    assert column_words(read_labels([path], label_column="activity")) == [
        f"{path}, label column 'activity' (--label-column), id column 'Sequence name' (the "
        "first column left)"
    ]


@pytest.mark.parametrize("line", ["sep=;", '"sep=;"', "SEP=;", "\nsep=;"])
def test_separator_line_of_excel_is_obeyed(write, line):
    table = read_labels([write(f"{line}\nid;label\na;x,1\nb;y,2\n")])
    assert table.values == {"a": "x,1", "b": "y,2"}
    assert table.place("b")[1] == 4 + line.count("\n")
    assert read_labels([write("sep=,\nid,label\na,x\n")]).values == {"a": "x"}


@pytest.mark.parametrize(
    ("content", "values"),
    [
        ("id;label, unit\na;x\nb;y\n", {"a": "x", "b": "y"}),
        ("id;name,label\na;1,x\nb;2,y\n", {"a;1": "x", "b;2": "y"}),
        ("id,label;unit\na,x\nb,y\n", {"a": "x", "b": "y"}),
    ],
)
def test_rows_decide_between_comma_and_semicolon(write, content, values):
    assert read_labels([write(content)], label_column=None).values == values


def test_cell_of_any_length_is_read(write):
    long = ",".join(["0.123456"] * 30_000)
    assert read_labels([write(f"id\tlabel\na\t{long}\n")]).values == {"a": long}


def test_excel_workbook_is_called_so(write):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
    path = write(stream.getvalue(), "labels.xlsx")
    assert "found an Excel workbook (.xlsx); save the sheet as CSV (UTF-8)" in message_of(path)


def test_spreadsheet_of_open_document_is_called_so(write):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("mimetype", "application/vnd.oasis.opendocument.spreadsheet")
    path = write(stream.getvalue(), "labels.ods")
    assert "found a spreadsheet (.ods); save the sheet as CSV (UTF-8)" in message_of(path)


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("train", ["train", "Training", " TRAIN "]),
        ("valid", ["valid", "val", "dev", "Validation"]),
        ("test", ["test", "TESTING"]),
        (None, ["", "holdout", "test_extra_negatives", "0"]),
    ],
)
def test_names_of_splits_are_normalised(name, texts):
    assert {split_name(text) for text in texts} == {name}


def test_repeated_ids_of_several_tables_are_told_with_their_places(write):
    first = write("id,label\na,x\nb,y\na,\n", "a.csv")
    second = write("id,label\nc,x\nb,y\nc,z\n", "b.csv")
    message = message_of(first, second)
    assert "record 'a' (3rd, line 4): the id was used before, on line 2; one" in message
    assert f"record 'b' (2nd, line 3): the id was used before, on line 3 of {first}; one" in message
    assert "record 'c' (3rd, line 4): the id was used before, on line 2; one" in message


def in_headers(*notes: str) -> list[Record]:
    return [Record(f"r{i}", note, "MKV", "a.fa", 2 * i + 1, i) for i, note in enumerate(notes)]


def test_labels_of_several_words_that_a_blank_cuts_are_told():
    notes = ["label=cell wall", "label=cell membrane split=train", "label=nucleus"] * 4
    found = header_labels(in_headers(*notes))
    assert set(found.values.values()) == {"cell", "nucleus"}
    (said,) = found.notes
    assert "'cell' is read of 'cell wall', and 8 records in all" in said
    assert said.endswith('put quotes around it: label="cell wall"')


@pytest.mark.parametrize(
    "note", ["label=a protein {} of man", 'label="cell wall" {}', "label=a;x={} y"]
)
def test_descriptions_behind_a_label_are_not_taken_for_a_part_of_it(note):
    assert header_labels(in_headers(*(note.format(i) for i in range(12)))).notes == []
