"""Reading rows: every kind of file, and a named place for every fault."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lora_sft.data.row_sources import read_rows
from lora_sft.errors import DataError
from tests.data.sections import make_dataset, write_jsonl

ROWS = [{"text": f"row {index}", "n": index} for index in range(3)]


def read(location, **fields):
    return list(read_rows(make_dataset(location, **fields)))


def fail(location, **fields):
    with pytest.raises(DataError) as caught:
        read(location, **fields)
    assert caught.value.fix
    return caught.value


def test_jsonl_rows_keep_their_order_line_and_the_source_as_written(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n  \n{"b": {"x": null}}\r\n{"a": 2, "a": 3}', encoding="utf-8")
    rows = read(path, path="../data/rows.jsonl")
    assert [(row.source, row.row, row.line) for row in rows] == [
        ("../data/rows.jsonl", 0, 1),
        ("../data/rows.jsonl", 1, 4),
        ("../data/rows.jsonl", 2, 5),
    ]
    assert [row.values for row in rows] == [{"a": 1}, {"b": {"x": None}}, {"a": 3}]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet", "rows.csv"])
def test_the_same_rows_come_from_every_kind_of_file(tmp_path, name):
    path = tmp_path / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif name.endswith(".json"):
        path.write_text("\ufeff" + json.dumps(ROWS, indent=1), encoding="utf-8")
    elif name.endswith(".csv"):
        path.write_text("\ufefftext,n\n" + "".join(f"row {i},{i}\n" for i in range(3)), "utf-8")
    else:
        write_jsonl(path, ROWS)
    rows = read(path)
    assert [str(row.values["n"]) for row in rows] == ["0", "1", "2"]
    assert [row.values["text"] for row in rows] == ["row 0", "row 1", "row 2"]
    assert [row.row for row in rows] == [0, 1, 2]


def test_lines_under_a_json_name_are_read_as_lines(tmp_path):
    assert [row.line for row in read(write_jsonl(tmp_path / "rows.json", ROWS))] == [1, 2, 3]


def test_tabs_separate_a_tsv_and_quotes_may_span_lines(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text('a\tb\n"two\nlines"\t2\nx\t3\n', encoding="utf-8")
    assert [(row.line, row.values["a"]) for row in read(path)] == [(2, "two\nlines"), (4, "x")]


def test_columns_that_only_some_rows_have_are_not_filled_in(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"tools": {"x": 1}}, {"tools": {"y": 2}}])
    assert [row.values["tools"] for row in read(path)] == [{"x": 1}, {"y": 2}]


def test_a_folder_and_a_glob_give_their_files_in_sorted_order(tmp_path):
    for name in ("b.jsonl", "a.jsonl"):
        write_jsonl(tmp_path / name, [{"text": name}])
    (tmp_path / "README.md").write_text("not data")
    folder = read(tmp_path, path="corpus/")
    assert [(row.source, row.row) for row in folder] == [
        ("corpus/a.jsonl", 0),
        ("corpus/b.jsonl", 0),
    ]
    globbed = read(tmp_path / "*.jsonl", path="corpus/*.jsonl")
    assert [row.source for row in globbed] == ["corpus/a.jsonl", "corpus/b.jsonl"]
    named = read(tmp_path, path="corpus", data_files="b.jsonl")
    assert [row.source for row in named] == ["corpus/b.jsonl"]


def test_a_broken_line_names_itself(tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", [{"text": "fine"}] * 1_016)
    with path.open("a") as stream:
        stream.write('{"text": "cut sho\n{"text": "fine"}\n')
    error = fail(path)
    assert error.where == "train.jsonl:1017"
    assert "not valid JSON" in error.what
    assert error.exit_code == 3


@pytest.mark.parametrize(
    ("name", "content", "where", "what"),
    [
        ("a.jsonl", b'{"x": NaN}', "a.jsonl:1", "NaN"),
        ("a.jsonl", b'{"x": 1}\n[1, 2]\n', "a.jsonl:2", "is an array, not an object"),
        ("a.jsonl", b'{"x": 1}\n{"x": "\xff"}\n', "a.jsonl:2", "not valid UTF-8"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1", "not plain JSON"),
        ("a.jsonl", b'{"x": "\x00"}', "a.jsonl:1", "not valid JSON"),
        ("a.jsonl", b"", "a.jsonl", "no rows"),
        ("a.json", b"[]", "a.json", "no rows"),
        ("a.json", b'[{"x": 1},\n {"x": }]', "a.json:2", "not valid JSON"),
        ("a.json", b'[{"x": 1}, 2]', "a.json row 1", "is a number, not an object"),
        ("a.json", b'{"data":\n [{"x": 1}]}', "a.json", "neither an array"),
        ("a.json", b'{"x": 1\n{"x": 2}\n', "a.json:1", "not valid JSON"),
        ("a.csv", b"", "a.csv", "no rows"),
        ("a.csv", b"x,y\n", "a.csv", "no rows"),
        ("a.csv", b"x,x\n1,2\n", "a.csv:1", "more than once"),
        ("a.csv", b"x,y\n1,2\n1,2,3\n", "a.csv:3", "3 fields, the header 2"),
        ("a.csv", b'x,y\n1,"2\n', "a.csv:2", "cannot be read"),
        ("a.csv", b"x,y\n1,\xe9\n", "a.csv:2", "not valid UTF-8"),
        ("a.parquet", b"PAR1 nothing", "a.parquet", "cannot be read"),
        ("a.jsonl.gz", b"\x1f\x8b", "a.jsonl.gz", 'end in ".gz"'),
    ],
)
def test_a_file_that_cannot_be_read_says_where_and_why(tmp_path, name, content, where, what):
    path = tmp_path / name
    path.write_bytes(content)
    error = fail(path)
    assert error.where == where
    assert what in error.what


def test_a_missing_file_is_not_looked_for_on_the_hub(tmp_path):
    assert 'no file or folder "gone.jsonl"' in fail(tmp_path / "gone.jsonl").what
    assert "no data files" in fail(tmp_path).what
    assert "no data files" in fail(tmp_path / "*.jsonl").what
    assert "URL" in fail("https://x.org/a.jsonl", path="https://x.org/a.jsonl").what


def test_local_files_have_no_splits(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    assert len(read(path, split="train")) == 3
    assert 'no split "test"' in fail(path, split="test").what


def test_columns_are_renamed_where_a_row_has_them(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"q": 1, "k": 0}, {"q": 2, "a": 3}])
    rows = read(path, rename_columns={"q": "prompt", "a": "completion"})
    assert [row.values for row in rows] == [{"prompt": 1, "k": 0}, {"prompt": 2, "completion": 3}]


def test_a_rename_of_a_missing_column_lists_the_columns_that_are(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    error = fail(path, rename_columns={"question": "prompt"})
    assert '"question"' in error.what
    assert "n, text" in error.fix


def test_a_rename_onto_an_existing_column_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    assert "is there already" in fail(path, rename_columns={"n": "text"}).what


def test_hub_rows_come_through_load_dataset(monkeypatch):
    import datasets

    calls = []

    def load_dataset(path, **arguments):
        calls.append((path, arguments))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = read("some/set", path="some/set", split="train_sft", revision="abc", name="en")
    assert next((row.source, row.row, row.line) for row in rows) == ("some/set", 0, None)
    assert [row.values for row in rows] == ROWS
    wanted = {"name": "en", "split": "train_sft", "revision": "abc", "data_files": None}
    assert calls == [("some/set", wanted)]


def test_a_hub_set_without_a_train_split_names_its_splits(monkeypatch):
    import datasets

    splits = ["train_sft", "test_sft"]
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_, **__: splits)
    error = fail("some/set", path="some/set")
    assert "split: train_sft, split: test_sft" in error.fix


def test_a_hub_that_does_not_answer_is_a_data_error(monkeypatch):
    import datasets

    def refuse(*_, **__):
        raise ConnectionError("Couldn't reach the Hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    error = fail("some/set", path="some/set", split="train", revision="abc")
    assert error.what.endswith("Couldn't reach the Hub")
    assert error.where == "some/set @ abc"
