import csv
import gzip
import json
import sqlite3

import pandas as pd
import pytest

from sft_dist.data.formats import dialect
from sft_dist.data.formats.tables import read_table
from sft_dist.data.sources import load_rows
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import Data

# texts that readers like to take for something else
TEXTS = [
    "007",
    "1.10",
    "1e5",
    "100000",
    "2001-01-01",
    "90071992547409931",
    "90071992547409932",
    "True",
    "null",
    "NA",
    "nan",
]


def rows_of(path, name, streaming=False):
    return list(read_table(name, [str(path)], streaming))


def written(path, content, encoding="utf-8"):
    path.write_text(content, encoding=encoding)
    return path


@pytest.mark.parametrize("streaming", [False, True])
def test_four_formats_of_the_same_rows_are_the_same_rows(tmp_path, streaming):
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, [*TEXTS[1:], None], strict=True)]
    with open(tmp_path / "a.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows)
    written(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    with sqlite3.connect(tmp_path / "a.db") as database:
        database.execute("create table a (text TEXT, label TEXT)")
        database.executemany("insert into a values (:text, :label)", rows)
    formats = {"a.csv": "csv", "a.jsonl": "json", "a.parquet": "parquet"}
    read = [rows_of(tmp_path / name, kind, streaming) for name, kind in formats.items()]
    if not streaming:
        read.append(list(load_rows(Data(source=f"sqlite:///{tmp_path}/a.db#a"))["train"]))
    assert all(rows == other for other in read)


def test_texts_stay_texts_whatever_comes_first(tmp_path):
    """A column of numbers, then a word after more rows than a reader looks at."""
    labels = [str(number) for number in range(12_000)] + ["unknown"]
    file = written(tmp_path / "a.csv", "text,label\n" + "".join(f"t,{label}\n" for label in labels))
    assert [row["label"] for row in rows_of(file, "csv")] == labels


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_other_delimiters_of_a_csv_are_recognised(tmp_path, delimiter):
    lines = [["text", "label"], ["good, very", "pos"], ["bad", "neg, rather"]]
    file = written(tmp_path / "a.csv", "".join(delimiter.join(line) + "\n" for line in lines))
    assert rows_of(file, "csv") == [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


def test_excel_announces_the_delimiter_in_a_line_before_the_header(tmp_path):
    file = written(tmp_path / "a.csv", "sep=;\ntext;label\ngood;pos\n", "utf-8-sig")
    assert rows_of(file, "csv") == [{"text": "good", "label": "pos"}]


def test_backslashes_before_quotation_marks_are_recognised(tmp_path):
    file = written(tmp_path / "a.csv", 'text,label\n"He said \\"hi, you\\".",pos\n"C:\\\\dir",neg\n')
    assert [row["text"] for row in rows_of(file, "csv")] == ['He said "hi, you".', "C:\\dir"]


def test_backslashes_stay_where_quotation_marks_are_doubled(tmp_path):
    file = written(tmp_path / "a.csv", 'text,label\n"C:\\",pos\n"say ""hi""",neg\n')
    assert [row["text"] for row in rows_of(file, "csv")] == ["C:\\", 'say "hi"']


def test_blanks_around_the_names_of_columns_are_none_of_the_names(tmp_path):
    file = written(tmp_path / "a.csv", " text , label\ngood,pos\n")
    assert rows_of(file, "csv") == [{"text": "good", "label": "pos"}]


def test_two_columns_of_one_name_are_refused(tmp_path):
    file = written(tmp_path / "a.csv", "text,label,text\na,b,c\n")
    with pytest.raises(UserError, match="several columns have the name 'text'"):
        rows_of(file, "csv")


def test_rows_that_are_longer_than_the_header_are_refused(tmp_path):
    file = written(tmp_path / "a.csv", "text,label\n1,a,b\n2,c,d\n")
    with pytest.raises(UserError, match="line 2: expected 2 fields, found 3"):
        rows_of(file, "csv")


def test_a_text_that_excel_is_told_to_keep_is_that_text(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text('text,label\n="007",a\n"=""1,5""",b\n="a"&"b",c\n=1,d\n')
    rows = read_table("csv", [str(file)], False)
    assert list(rows["text"]) == ["007", "1,5", '="a"&"b"', "=1"]


@pytest.mark.parametrize("name", ["csv", "json"])
@pytest.mark.parametrize("streaming", [False, True])
def test_one_huge_line_of_a_packed_file_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch, name, streaming):
    monkeypatch.setattr(dialect, "MAX_LINE_BYTES", 10_000)
    rows = {"csv": "text\n" + "a" * 5_000 + "\nb\n", "json": '{"text": "a"}\n' * 5_000}
    file = tmp_path / f"a.{name}.gz"
    file.write_bytes(gzip.compress(rows[name].encode()))
    assert len(list(read_table(name, [str(file)], streaming))) == rows[name].count("\n") - (name == "csv")
    for content in (rows[name] + "c" * 20_000, "c" * 20_000):
        file.write_bytes(gzip.compress(content.encode()))
        with pytest.raises(UserError, match=r"a\.\w+\.gz has a line, or a document, of more than 10,000 bytes"):
            list(read_table(name, [str(file)], streaming))
