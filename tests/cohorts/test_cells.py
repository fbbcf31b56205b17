from __future__ import annotations

import csv
import io
from pathlib import Path

import openpyxl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi.cohorts.cells import read_table
from wsi.errors import CohortError, ConfigError

TEXTS = ["0012", "1e5", "NA", "None", "nan", "NULL", "1.0", "TRUE", "é/ü"]


def write(folder: Path, text: str, name: str = "t.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_text_stays_text_in_every_dialect(tmp_path, encoding, delimiter, ending):
    lines = [delimiter.join(["slide_id", "label"])] + [f"{t}{delimiter}{t}" for t in TEXTS]
    table = read_table(write(tmp_path, ending.join(lines), encoding=encoding))
    assert table.columns == ("slide_id", "label")
    assert [line.cells["slide_id"] for line in table.lines] == TEXTS
    assert [line.cells["label"] for line in table.lines] == TEXTS
    assert [line.number for line in table.lines] == list(range(2, len(TEXTS) + 2))


def test_lines_are_counted_as_an_editor_counts_them(tmp_path):
    text = 'a,b\n1,"two\nlines"\n\n3,4\n'
    assert [line.number for line in read_table(write(tmp_path, text)).lines] == [2, 5]


def test_a_comma_inside_a_semicolon_table_is_no_delimiter(tmp_path):
    table = read_table(write(tmp_path, "slide_id;label\nx;a, b\ny;c,d,e\n"))
    assert [line.cells["label"] for line in table.lines] == ["a, b", "c,d,e"]


def test_excel_gives_the_same_text_and_keeps_padded_ids(tmp_path):
    book = openpyxl.Workbook()
    book.active.append(["slide_id", "n", "label"])
    book.active.append(["0012", 12, None])
    book.active.append([7, 2.5, " NA "])
    book.active["A3"].number_format = "0000"
    book.save(tmp_path / "t.xlsx")
    lines = read_table(tmp_path / "t.xlsx").lines
    assert lines[0].cells == {"slide_id": "0012", "n": "12", "label": ""}
    assert lines[1].cells == {"slide_id": "0007", "n": "2.5", "label": "NA"}
    assert [line.number for line in lines] == [2, 3]


def test_aliases_are_understood_in_any_case_and_the_canonical_name_wins(tmp_path):
    table = read_table(write(tmp_path, "FILENAME,PATIENT,Center,slide_id,Slide\na,b,c,d,e\n"))
    assert table.column("path") == "FILENAME"
    assert table.column("patient_id") == "PATIENT"
    assert table.column("site") == "Center"
    assert table.column("slide_id") == "slide_id"


def test_two_columns_for_one_thing_are_refused(tmp_path):
    table = read_table(write(tmp_path, "case_id,patient\na,b\n"))
    with pytest.raises(ConfigError, match="case_id, patient could all be patient_id"):
        table.column("patient_id")


def test_a_missing_column_suggests_the_nearest(tmp_path):
    table = read_table(write(tmp_path, "slide_di,patient\na,b\n"))
    with pytest.raises(ConfigError, match="did you mean 'slide_di'"):
        table.require("slide_id")


def test_a_missing_file_suggests_its_neighbour(tmp_path):
    write(tmp_path, "a\n1\n", name="slides.csv")
    with pytest.raises(ConfigError, match=r"did you mean 'slides\.csv'"):
        read_table(tmp_path / "slide.csv")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"a,b,a\n1,2,3\n", "column a twice"),
        (b"a\n\xff\xfe\n", "not UTF-8"),
        (b'a,b\n1,2\n"open,3\n', r"line 3: .*quotes"),
    ],
)
def test_broken_files_are_named(tmp_path, content, complaint):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(CohortError, match=complaint):
        read_table(path)


def test_a_false_excel_file_is_named(tmp_path):
    path = tmp_path / "t.xlsx"
    path.write_bytes(b"slide_id,label\n")
    with pytest.raises(CohortError, match="not a readable Excel"):
        read_table(path)


cells = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zs", "Zl", "Zp", "Cf"]),
    min_size=1,
    max_size=8,
)


@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=8), st.sampled_from(",;\t"))
def test_what_the_csv_module_writes_is_read_back(tmp_path_factory, rows, delimiter):
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows([("slide_id", "label"), *rows])
    path = write(tmp_path_factory.mktemp("csv"), text.getvalue())
    read = read_table(path).lines
    assert [(line.cells["slide_id"], line.cells["label"]) for line in read] == rows
