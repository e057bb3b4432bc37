"""Source rows are read from every kind of file, and every error names its place."""

import base64
import bz2
import gzip
import json
import lzma
import sys
import tracemalloc
from datetime import date, time
from decimal import Decimal
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lora_sft.data.rows import json_array
from lora_sft.data.rows.data_files import COMPRESSIONS, KINDS
from lora_sft.data.rows.local_files import find_local_files
from lora_sft.data.rows.row_sources import READERS, read_rows
from lora_sft.errors import CapabilityError, DataError
from tests.data.sections import make_dataset, write_jsonl

ROWS = [{"text": f"row {index}", "n": index} for index in range(3)]


def read(location, **fields):
    return list(read_rows(make_dataset(location, **fields)))


def read_error(location, **fields):
    with pytest.raises(DataError) as caught:
        read(location, **fields)
    assert caught.value.fix
    return caught.value


def test_jsonl_rows_keep_their_order_their_line_and_the_path_of_the_recipe(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n  \n{"b": {"x": null}}\r\n{"a": 3}', encoding="utf-8")
    rows = read(path, path="../data/rows.jsonl")
    assert [(row.source, row.row, row.line) for row in rows] == [
        ("../data/rows.jsonl", 0, 1),
        ("../data/rows.jsonl", 1, 4),
        ("../data/rows.jsonl", 2, 5),
    ]
    assert [row.values for row in rows] == [{"a": 1}, {"b": {"x": None}}, {"a": 3}]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet", "rows.csv"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
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


def write_arrow(path, table, make_writer):
    with pa.OSFile(str(path), "wb") as sink, make_writer(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def write_kind(folder, kind, rows):
    """Write `rows` to a file of one kind, with the libraries that people use."""
    path = folder / f"rows{kind}"
    table = pa.Table.from_pylist(rows)
    if kind == ".parquet":
        pq.write_table(table, path, row_group_size=2)
    elif kind == ".arrow":
        write_arrow(path, table, pa.ipc.new_stream)
    elif kind in (".csv", ".tsv"):
        separator = "," if kind == ".csv" else "\t"
        lines = [separator.join(rows[0])] + [separator.join(map(str, row.values())) for row in rows]
        path.write_text("\n".join(lines) + "\n")
    elif kind == ".json":
        path.write_text(json.dumps(rows))
    else:
        write_jsonl(path, rows)
    return path


def pack(path, compression):
    """Pack the file, and add the ending of the compression to its name."""
    packed = path.with_name(path.name + compression)
    content = path.read_bytes()
    if compression == ".zst":
        with pa.CompressedOutputStream(str(packed), "zstd") as stream:
            stream.write(content)
    else:
        module = {".gz": gzip, ".bz2": bz2, ".xz": lzma}[compression]
        packed.write_bytes(module.compress(content))
    path.unlink()
    return packed


def test_every_kind_has_a_reader():
    assert set(READERS) == set(KINDS)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_file_of_any_kind_is_read(tmp_path, kind, compression):
    path = pack(write_kind(tmp_path, kind, ROWS), compression)
    for rows in (read(path), read(tmp_path), read(tmp_path / "*", path="*")):
        assert [(row.values["text"], str(row.values["n"])) for row in rows] == [
            ("row 0", "0"), ("row 1", "1"), ("row 2", "2"),
        ]  # fmt: skip
        assert rows[0].source.endswith(f"rows{kind}{compression}")


@pytest.mark.parametrize("make_writer", [pa.ipc.new_file, pa.ipc.new_stream])
def test_arrow_files_and_arrow_streams_are_both_read(tmp_path, make_writer):
    write_arrow(tmp_path / "a.arrow", pa.Table.from_pylist(ROWS), make_writer)
    assert [row.values for row in read(tmp_path / "a.arrow")] == ROWS


def test_only_rows_are_read_from_a_folder_of_save_to_disk(tmp_path):
    import datasets

    one = datasets.Dataset.from_list(ROWS)
    one.save_to_disk(tmp_path / "one", num_shards=2)
    assert [row.values for row in read(tmp_path / "one")] == ROWS
    splits = datasets.DatasetDict({"train": one, "test": one.select([1])})
    splits.save_to_disk(tmp_path / "both")
    assert len(read(tmp_path / "both")) == 3
    (row,) = read(tmp_path / "both", path="both", split="test")
    assert (row.source, row.values) == ("both/test/data-00000-of-00001.arrow", ROWS[1])
    error = read_error(tmp_path / "both", split="validation")
    assert "split: train, split: test" in error.fix


TOOLS = [
    {"name": "f", "parameters": {"city": {"type": "string"}}},
    {"name": "g", "parameters": {"limit": {"type": "integer", "enum": [1, 2]}}},
]


@pytest.mark.parametrize("kind", [".parquet", ".arrow", ".jsonl"])
def test_tools_and_arguments_do_not_get_keys_of_other_rows(tmp_path, kind):
    rows = [
        {"tools": [TOOLS[0]], "messages": [{"role": "assistant", "call": {"city": "Oslo"}}]},
        {"tools": TOOLS[1:], "messages": [{"role": "assistant", "call": {"limit": 2}}], "x": None},
    ]
    read_again = [row.values for row in read(write_kind(tmp_path, kind, rows))]
    assert [row["tools"] for row in read_again] == [[TOOLS[0]], TOOLS[1:]]
    assert [row["messages"] for row in read_again] == [row["messages"] for row in rows]


def test_a_map_and_a_json_cell_become_objects(tmp_path):
    columns = {
        "map": pa.array([[("a", 1), ("b", None)]], pa.map_(pa.string(), pa.int64())),
        "cells": pa.array([['{"a": null}']], pa.list_(pa.string())).cast(pa.list_(pa.json_())),
    }
    write_arrow(tmp_path / "a.arrow", pa.table(columns), pa.ipc.new_stream)
    (row,) = read(tmp_path / "a.arrow")
    assert row.values == {"map": {"a": 1, "b": None}, "cells": [{"a": None}]}


def test_times_and_decimals_of_a_table_become_text(tmp_path):
    columns = {
        "at": pa.array([5_000], pa.timestamp("us")),
        "ns": pa.array([5], pa.timestamp("ns", "UTC")),
        "took": pa.array([90_500], pa.duration("ms")),
        "every": pa.array([(1, 2, 3_500_000_000)], pa.month_day_nano_interval()),
        "uuid": pa.array([bytes(16)], pa.uuid()),
        "coded": pa.array([0], pa.date32()).dictionary_encode(),
        "deep": pa.array([[{"price": Decimal("12.50"), "on": date(2024, 5, 1), "no": None}]]),
        "times": pa.array([[("a", time(10, 30))]], pa.map_(pa.string(), pa.time64("us"))),
        "raw": pa.array([b"abc"]),
    }
    write_arrow(tmp_path / "a.arrow", pa.table(columns), pa.ipc.new_stream)
    (row,) = read(tmp_path / "a.arrow")
    assert row.values == {
        "at": "1970-01-01T00:00:00.005000",
        "ns": "1970-01-01T00:00:00.000000005+00:00",
        "took": "PT90.5S",
        "every": "P1M2DT3.5S",
        "uuid": "00000000-0000-0000-0000-000000000000",
        "coded": "1970-01-01",
        "deep": [{"price": "12.50", "on": "2024-05-01"}],
        "times": {"a": "10:30:00"},
        "raw": b"abc",
    }


def test_json_lines_in_a_json_file_are_read(tmp_path):
    assert [row.line for row in read(write_jsonl(tmp_path / "rows.json", ROWS))] == [1, 2, 3]


def test_a_tsv_is_split_at_tabs_and_quotes_may_span_lines(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text('a\tb\n"two\nlines"\t2\nx\t3\n', encoding="utf-8")
    assert [(row.line, row.values["a"]) for row in read(path)] == [(2, "two\nlines"), (4, "x")]


def test_columns_of_one_row_are_not_added_to_other_rows(tmp_path):
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


def test_the_error_names_the_invalid_line(tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", [{"text": "fine"}] * 1_016)
    with path.open("a") as stream:
        stream.write('{"text": "cut sho\n{"text": "fine"}\n')
    error = read_error(path)
    assert error.where == "train.jsonl:1017"
    assert "not valid JSON" in error.what
    assert error.exit_code == 3


@pytest.mark.parametrize(
    ("name", "content", "where", "what"),
    [
        ("a.jsonl", b'{"x": NaN}', "a.jsonl:1", "NaN"),
        ("a.jsonl", b'{"x": 1}\n{"x": 1, "x": 2}\n', "a.jsonl:2", 'the key "x" occurs more'),
        ("a.jsonl", b'{"x": 1}\n[1, 2]\n', "a.jsonl:2", "is an array, not an object"),
        ("a.jsonl", b'{"x": 1}\n{"x": "\xff"}\n', "a.jsonl:2", "not valid UTF-8"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1", "JSON of the row is not accepted"),
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
        ("a.csv", b"x,y\n1,2\n1,2,3\n", "a.csv:3", "3 fields, but the header has 2"),
        ("a.csv", b'x,y\n1,"2\n', "a.csv:2", "cannot be read"),
        ("a.csv", b"x,y\n1,\xe9\n", "a.csv:2", "not valid UTF-8"),
        ("a.parquet", b"PAR1 nothing", "a.parquet", "cannot be read"),
        ("a.arrow", b"ARROW1 nothing", "a.arrow", "cannot be read"),
        ("a.jsonl.gz", b"\x1f\x8b", "a.jsonl.gz", "ended before"),
        ("a.jsonl.xz", b"nothing", "a.jsonl.xz", "cannot be read"),
        ("a.jsonl.bz2", b"nothing", "a.jsonl.bz2", "cannot be read"),
        ("a.jsonl.zst", b"nothing", "a.jsonl.zst", "cannot be read"),
        ("a.jsonl.zip", b"PK", "a.jsonl.zip", 'end in ".zip"'),
        ("a.gz", b"", "a.gz", 'end in ".gz"'),
    ],
)
def test_the_error_for_an_unreadable_file_names_place_and_reason(
    tmp_path, name, content, where, what
):
    path = tmp_path / name
    path.write_bytes(content)
    error = read_error(path)
    assert error.where == where
    assert what in error.what


def test_a_missing_local_file_is_not_searched_on_the_hub(tmp_path):
    assert 'no file or folder "gone.jsonl"' in read_error(tmp_path / "gone.jsonl").what
    assert "no data files" in read_error(tmp_path).what
    assert "no data files" in read_error(tmp_path / "*.jsonl").what


@pytest.mark.parametrize(
    ("named", "what"),
    [
        ("gone.jsonl", '"gone.jsonl" matches no file'),
        ({"test": "a.jsonl"}, "data_files has no split train"),
        ({"train": 5}, "not a file name"),
    ],
)
def test_data_files_that_do_not_exist_are_refused(tmp_path, named, what):
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    assert what in read_error(tmp_path, data_files=named).what
    assert len(read(tmp_path, data_files=str(tmp_path / "a.jsonl"))) == 3


class IncompleteResponse(BaseHTTPRequestHandler):
    """Sends fewer bytes than its header states."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b'{"text": "a"}\n')

    def log_message(self, *arguments):
        pass


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.mark.parametrize("kind", [".jsonl", ".jsonl.gz", ".parquet", ".arrow"])
def test_rows_are_read_from_a_web_server(tmp_path, serve, kind):
    path = write_kind(tmp_path, kind.removesuffix(".gz"), ROWS)
    path = pack(path, ".gz") if kind.endswith(".gz") else path
    url = f"{serve(partial(Quiet, directory=tmp_path))}/{path.name}"
    rows = read(f"{url}?download=true", path=f"{url}?download=true")
    assert [row.values for row in rows] == ROWS
    assert {row.source for row in rows} == {url}


class Guarded(BaseHTTPRequestHandler):
    """Gives one row to who sends the right password, and redirects from `/moved/`."""

    elsewhere = ""

    def do_GET(self):
        login = self.headers.get("Authorization")
        if self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", f"{self.elsewhere}/rows.jsonl")
            self.send_header("Content-Length", "0")
        elif login == f"Basic {base64.b64encode(b'me:se@ret').decode()}":
            self.send_response(200)
            self.send_header("Content-Length", "15")
        else:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="rows"')
            self.send_header("Content-Length", "0")
        self.end_headers()
        if self.path == "/rows.jsonl":
            self.wfile.write(b'{"text": "one"}')

    def log_message(self, *arguments):
        pass


def with_login(base, login):
    return base.replace("http://", f"http://{login}@")


def test_the_user_and_the_password_of_an_address_are_sent(serve):
    url = with_login(serve(Guarded), "me:se%40ret") + "/rows.jsonl"
    (row,) = read(url, path=url)
    assert row.values == {"text": "one"}
    assert "se%40ret" not in row.where
    wrong = url.replace("se%40ret", "wrong")
    error = read_error(wrong, path=wrong)
    assert "401" in error.what
    assert "wrong" not in str(error)


def test_a_redirection_takes_the_password_to_no_other_server(serve):
    base = serve(Guarded)
    url = with_login(base, "me:se%40ret") + "/moved/rows.jsonl"
    Guarded.elsewhere = ""
    assert len(read(url, path=url)) == 1
    Guarded.elsewhere = base.replace("127.0.0.1", "localhost")
    assert "401" in read_error(url, path=url).what


@pytest.mark.parametrize(
    "address",
    [
        "http://me:canary@127.0.0.1:9/a.jsonl?sig=canary#canary",
        "http://127.0.0.1:9/a b.jsonl?sig=canary",
        "http://me:ca/nary@127.0.0.1:9/a.jsonl",
        "http://me:ca nary@127.0.0.1:9/a.jsonl",
        "http://me@canary@127.0.0.1:9/a.jsonl",
        "http://127.0.0.1:9/a.jsonl?sig=canary.zip",
        "http://127.0.0.1:9/a?sig=canary",
        "odd://me:canary@host/a.jsonl?sig=canary",
        "simplecache::http://me:canary@127.0.0.1:9/a.jsonl?sig=canary",
    ],
)
def test_an_error_shows_no_secret_of_an_address(address):
    with pytest.raises((DataError, CapabilityError)) as caught:
        read(address, path=address)
    shown = str(caught.value)
    assert not [part for part in ("canary", "nary@", "ca ") if part in shown], shown


def test_a_url_is_not_searched_on_this_machine():
    url = "https://example.org/a.jsonl?download=true"
    assert find_local_files(make_dataset(url, path=url)) is None


def test_a_failing_web_server_gives_a_data_error(tmp_path, serve):
    base = serve(partial(Quiet, directory=tmp_path))
    assert "404" in read_error(f"{base}/gone.jsonl", path=f"{base}/gone.jsonl").what
    cut = f"{serve(IncompleteResponse)}/a.jsonl"
    error = read_error(cut, path=cut)
    assert "986 bytes before the end" in error.what
    assert error.where == f"{cut}:2"
    closed = "http://127.0.0.1:9/a.jsonl"
    assert "refused" in read_error(closed, path=closed).what
    assert "no ending" in read_error(base, path=base).what


def test_urls_of_other_protocols_are_read_with_fsspec(tmp_path):
    for name in ("b.jsonl", "a.jsonl.gz"):
        write_kind(tmp_path, ".jsonl", [{"text": name}]).rename(tmp_path / name)
    pack(tmp_path / "a.jsonl.gz", ".gz").rename(tmp_path / "a.jsonl.gz")
    url = f"file://{tmp_path}"
    assert [row.values["text"] for row in read(url, path=url)] == ["a.jsonl.gz", "b.jsonl"]
    one = f"{url}/b.jsonl"
    assert [row.source for row in read(one, path=one)] == [one]
    globbed = f"{url}/*.gz"
    assert [row.source for row in read(globbed, path=globbed)] == [f"{url}/a.jsonl.gz"]
    gone = f"{url}/gone.jsonl"
    assert "No such file" in read_error(gone, path=gone).what
    assert "no data files" in read_error(f"{url}/*.csv", path=f"{url}/*.csv").what
    assert "cannot be read" in read_error("odd://a.jsonl", path="odd://a.jsonl").what


def test_the_error_names_a_protocol_whose_package_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(CapabilityError, match="s3:// needs a package"):
        read("s3://bucket/a.jsonl", path="s3://bucket/a.jsonl")


def test_a_split_of_a_local_file_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    assert len(read(path, split="train")) == 3
    assert 'no split "test"' in read_error(path, split="test").what


def test_a_column_is_renamed_in_every_row_that_has_it(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"q": 1, "k": 0}, {"q": 2, "a": 3}])
    rows = read(path, rename_columns={"q": "prompt", "a": "completion"})
    assert [row.values for row in rows] == [{"prompt": 1, "k": 0}, {"prompt": 2, "completion": 3}]


def test_renaming_a_missing_column_lists_the_existing_columns(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    error = read_error(path, rename_columns={"question": "prompt"})
    assert '"question"' in error.what
    assert "n, text" in error.fix


def test_renaming_to_an_existing_column_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    assert "already exists" in read_error(path, rename_columns={"n": "text"}).what


@pytest.mark.parametrize("late", [{"question": "theirs", "prompt": "ours"}, {"prompt": "ours"}])
def test_renaming_never_overwrites_a_column_of_a_later_row(tmp_path, late):
    rows = [{"question": str(index)} for index in range(150)] + [late]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    renames = {"rename_columns": {"question": "prompt"}}
    if len(late) == 1:
        assert read(path, **renames)[-1].values == late
        return
    error = read_error(path, **renames)
    assert error.where == "a.jsonl:151  rename_columns"
    assert '"question" to "prompt", but the row already has this column' in error.what


@pytest.mark.parametrize("before", [0, 150])
def test_renaming_may_replace_a_null(tmp_path, before):
    rows = [{"question": str(index)} for index in range(before)]
    rows += [{"question": "theirs", "prompt": None}, {"question": None, "prompt": None}]
    late = [{"prompt": "ours", "question": None}] if before else []
    path = write_jsonl(tmp_path / "a.jsonl", rows + late)
    values = [row.values for row in read(path, rename_columns={"question": "prompt"})]
    assert values[before:] == [
        {"prompt": "theirs"},
        {"prompt": None},
        *({"prompt": "ours"} for _ in late),
    ]


def test_renaming_two_columns_to_one_name_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    error = read_error(path, rename_columns={"n": "prompt", "text": "prompt"})
    assert 'two columns the name "prompt"' in error.what


def test_hub_rows_are_read_with_load_dataset(monkeypatch):
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


def test_the_error_for_a_missing_train_split_lists_the_splits(monkeypatch):
    import datasets

    splits = ["train_sft", "test_sft"]
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_, **__: splits)
    error = read_error("some/set", path="some/set")
    assert "split: train_sft, split: test_sft" in error.fix


def test_an_unreachable_hub_gives_a_data_error(monkeypatch):
    import datasets

    def refuse(*_, **__):
        raise ConnectionError("Couldn't reach the Hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    error = read_error("some/set", path="some/set", split="train", revision="abc")
    assert error.what.endswith("Couldn't reach the Hub")
    assert error.where == "some/set @ abc"


@pytest.mark.parametrize("chunk", [1, 7, 10**6])
def test_a_json_array_is_read_in_pieces(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(json_array, "LEAST_READ_CHARACTERS", chunk)
    rows = [{"text": 'a, [b] {c} "q" \\ \u2028 ' * index, "n": [{"x": None}]} for index in range(9)]
    for indent in (None, 1):
        path = tmp_path / "rows.json"
        path.write_text(json.dumps(rows, indent=indent))
        assert [row.values for row in read_rows(make_dataset(path))] == rows


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ('[\n{"a": 1},\n{"a": 2}\n{"a": 3}]', ":4", "delimiter"),
        ('[{"a": 1},\n]', ":2", "Expecting value"),
        ('[{"a": 1}]\n\n[', ":3", "Extra data"),
        ('[{"a": 1},\n{"a": ', ":2", "Expecting value"),
        ('[{"a": 1},\n{"a": "x', ":2", "Unterminated"),
        ('[{"a": 1}, {"a": 1, "a": 2}]', " row 1", "more than once"),
        ('[{"a": 1}, {"a": NaN}]', " row 1", "NaN"),
        ('[{"a": 1}, 3]', " row 1", "a number"),
        ("[]", "rows.json", "no rows"),
    ],
)
@pytest.mark.parametrize("chunk", [1, 10**6])
def test_the_error_in_a_json_array_names_its_place(tmp_path, monkeypatch, text, where, what, chunk):
    monkeypatch.setattr(json_array, "LEAST_READ_CHARACTERS", chunk)
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(DataError, match=what) as caught:
        list(read_rows(make_dataset(path)))
    assert caught.value.where.endswith(where)


def test_a_long_json_array_is_not_held_in_memory(tmp_path):
    path = tmp_path / "rows.json"
    row = json.dumps({"text": "x" * 1_000})
    path.write_text("[" + ",\n".join([row] * 20_000) + "]")
    tracemalloc.start()
    assert sum(1 for _ in read_rows(make_dataset(path))) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 2
