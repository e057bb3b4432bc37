"""A row that is too large is dropped and counted, and is never in memory as a whole."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_sft.data.drops import LARGEST_ROW_BYTES, TOO_LARGE
from lora_sft.data.rows import json_array, separated_rows, text_lines
from lora_sft.data.rows.row_sources import read_rows
from lora_sft.errors import DataError
from tests.conftest import make_rows, write_rows
from tests.data.sections import make_dataset, write_jsonl

HUGE = {"text": 'word, "and" [so] {on}\n' * (LARGEST_ROW_BYTES // 20)}
ROWS = [{"text": "one"}, HUGE, {"text": "two"}, HUGE]
WITH_SMALL_LIMITS = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def read(path, **fields):
    return list(read_rows(make_dataset(path, **fields)))


def write_kind(path, rows):
    """Write rows to a file whose ending tells the kind."""
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".arrow":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="") as file:
            delimiter = "," if path.suffix == ".csv" else "\t"
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        write_jsonl(path, rows)
    return path


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow"])
@pytest.mark.parametrize("is_packed", [False, True])
def test_a_row_that_is_too_large_is_dropped_and_the_others_are_read(tmp_path, kind, is_packed):
    path = write_kind(tmp_path / f"rows{kind}", ROWS)
    if is_packed:
        packed = tmp_path / f"rows{kind}.gz"
        packed.write_bytes(gzip.compress(path.read_bytes(), compresslevel=1))
        path = packed
    rows = read(path)
    assert [row.values.get("text") for row in rows] == ["one", None, "two", None]
    assert [row.drop for row in rows] == [None, TOO_LARGE, None, TOO_LARGE]
    assert [row.row for row in rows] == [0, 1, 2, 3]
    if kind == ".jsonl":
        assert [row.line for row in rows] == [1, 2, 3, 4]
    if kind == ".csv":
        lines_of_huge = HUGE["text"].count("\n") + 1
        assert [row.line for row in rows] == [2, 3, 3 + lines_of_huge, 4 + lines_of_huge]


def test_a_row_as_large_as_the_limit_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    fits = b'{"text": "' + b"w" * (LARGEST_ROW_BYTES - 12) + b'"}'
    assert len(fits) == LARGEST_ROW_BYTES
    for end in (b"\n", b"\r\n"):
        path.write_bytes(fits + end + fits.replace(b"w", b"ww", 1) + end + b'{"text": "last"}')
        assert [len(row.values.get("text", "")) for row in read(path)] == [len(fits) - 12, 0, 4]


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("a.jsonl.gz", b'{"text": "', b'"}\n{"text": "x"}\n'),
        ("a.jsonl.gz", b"", b'\n{"text": "x"}\n'),
        ("a.json.gz", b'[{"text": "', b'"}, {"text": "x"}]'),
        ("a.csv.gz", b"text\n", b"\nx\n"),
        ("a.csv.gz", b'text\n"', b'"\nx\n'),
    ],
)
def test_a_huge_line_in_a_small_file_is_never_in_memory(tmp_path, name, before, after):
    path = tmp_path / name
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(before)
        for _ in range(16):
            file.write(b"word " * (LARGEST_ROW_BYTES // 5))
        file.write(after)
    tracemalloc.start()
    rows = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [row.values.get("text") for row in rows] == [None, "x"]
    assert peak < 8 * LARGEST_ROW_BYTES


def test_an_array_in_one_line_is_not_held_in_memory(tmp_path):
    path = tmp_path / "a.json"
    row = json.dumps({"text": "x" * 10_000})
    path.write_text("[" + ", ".join([row] * 8_000) + "]")
    tracemalloc.start()
    assert sum(1 for _ in read_rows(make_dataset(path))) == 8_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 4


def test_pictures_of_a_table_are_not_counted(tmp_path):
    path = tmp_path / "a.parquet"
    picture = bytes(LARGEST_ROW_BYTES + 1)
    pq.write_table(pa.table({"text": ["a", "b"], "image": [picture, picture]}), path)
    assert [row.values["text"] for row in read(path)] == ["a", "b"]


def test_a_syntax_error_before_much_text_names_its_place(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"text": "a"},\n{"text": }, ' + json.dumps(HUGE) + "]")
    with pytest.raises(DataError, match="not valid JSON") as caught:
        read(path)
    assert caught.value.where == "a.json:2"
    path.write_text('[{"text": "a"},\n' + json.dumps(HUGE)[:-2])
    with pytest.raises(DataError, match="not valid JSON"):
        read(path)


def test_a_quoted_field_that_never_ends_is_refused_at_its_row(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text\nfine\n"' + "word\n" * (LARGEST_ROW_BYTES // 4))
    with pytest.raises(DataError, match="unexpected end of data") as caught:
        read(path)
    assert caught.value.where == "a.csv:3"


# --- against the readers of Python, with small limits ---------------------------------------------

TEXT = st.text(st.sampled_from('ab",\t\n\\[]{}é😀 '), max_size=40)


@WITH_SMALL_LIMITS
@given(
    fields=st.lists(st.tuples(TEXT, TEXT), max_size=6),
    size=st.integers(1, 9),
    quotes_all=st.booleans(),
)
def test_rows_of_csv_are_those_of_python_except_the_large_ones(
    tmp_path, monkeypatch, fields, size, quotes_all
):
    monkeypatch.setattr(text_lines, "PIECE_BYTES", size)
    monkeypatch.setattr(separated_rows, "LARGEST_ROW_BYTES", 30)
    records = [_write_record(pair, quotes_all) for pair in [("a", "b"), *fields, ("x", "y")]]
    (tmp_path / "a.csv").write_text("".join(records), newline="")
    expected = [
        None if len(record.encode()) > 32 else dict(zip("ab", pair, strict=True))
        for record, pair in zip(records[1:], [*fields, ("x", "y")], strict=True)
    ]
    assert [row.values or None for row in read(tmp_path / "a.csv")] == expected


def _write_record(pair, quotes_all):
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL if quotes_all else csv.QUOTE_MINIMAL).writerow(pair)
    return text.getvalue()


JSON = st.recursive(
    st.none() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@WITH_SMALL_LIMITS
@given(
    values=st.lists(JSON, min_size=1, max_size=5),
    size=st.integers(1, 9),
    indent=st.none() | st.just(1),
)
def test_rows_of_an_array_are_those_of_python_except_the_large_ones(
    tmp_path, monkeypatch, values, size, indent
):
    monkeypatch.setattr(text_lines, "PIECE_BYTES", size)
    monkeypatch.setattr(json_array, "LEAST_READ_CHARACTERS", size)
    monkeypatch.setattr(json_array, "LARGEST_ROW_BYTES", 40)
    elements = [json.dumps({"v": value}, indent=indent, ensure_ascii=False) for value in values]
    (tmp_path / "a.json").write_text("[" + " , ".join(elements) + "]")
    expected = [None if len(element.encode()) > 40 else json.loads(element) for element in elements]
    assert [row.values or None for row in read(tmp_path / "a.json")] == expected


# --- through the command line ---------------------------------------------------------------------


def write_chat(tmp_path, *, small):
    """Write rows. One row is too large."""
    huge = make_rows(1)[0]
    huge["messages"][0]["content"] = HUGE["text"]
    rows = [{**row, "topic": f"t{index}"} for index, row in enumerate(make_rows(small))]
    return write_rows(tmp_path / "chat.jsonl", [huge, *rows])


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["data.validation.group_by=topic"],
        ["data.datasets.0.rename_columns={topic: subject}"],
        ["data.datasets.0.repeat=1.5", "data.duplicates=drop"],
    ],
)
def test_a_row_that_is_too_large_is_counted_in_every_account(
    command, write_recipe, tmp_path, overrides
):
    recipe = write_recipe()
    path = write_chat(tmp_path, small=40)
    outcome = command("prepare", recipe, f"data.datasets.0.path={path}", *overrides, "--json")
    assert outcome.code == 0, outcome.stderr
    accounts = outcome.json["account"].values()
    assert sum(account["dropped"].get("too_large", 0) for account in accounts) == 1
    assert sum(account["read"] for account in accounts) == 41
    (example,) = [a["examples"]["too_large"] for a in accounts if "too_large" in a["examples"]]
    assert example.endswith(f"chat.jsonl:1 (more than {LARGEST_ROW_BYTES:,} bytes)")


@pytest.mark.parametrize("form", ["text", "json", "html"])
def test_a_preview_shows_a_row_that_is_too_large_as_dropped(command, write_recipe, tmp_path, form):
    recipe, out = write_recipe(), tmp_path / "preview"
    override = f"data.datasets.0.path={write_chat(tmp_path, small=2)}"
    outcome = command(
        "preview", recipe, override, "data.validation=null", "--format", form, "--out", out
    )
    assert outcome.code == 0, outcome.stderr
    text = out.read_text()
    assert "too_large" in text
    assert len(text) < 100_000
    if form == "json":
        rows = json.loads(text)["rows"]
        assert [(row["row"], row["line"], row["dropped"]) for row in rows] == [
            (0, 1, "too_large"),
            (1, 2, None),
            (2, 3, None),
        ]


def test_data_of_only_too_large_rows_is_refused_with_the_limit(command, write_recipe, tmp_path):
    recipe = write_recipe()
    override = f"data.datasets.0.path={write_chat(tmp_path, small=0)}"
    outcome = command("prepare", recipe, override, "data.validation=null")
    assert outcome.code == 3
    lines = outcome.stderr.strip().splitlines()[-3:]
    assert [line[:6] for line in lines] == ["error:", "where:", "fix:  "]
    assert "too_large 1" in lines[0]
    assert "4 MiB" in lines[2]
