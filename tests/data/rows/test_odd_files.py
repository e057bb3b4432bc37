"""Invalid and unusual files give an error of three lines with the place, or a counted drop.

Most tests call `build_corpus`. The tests of the printed error run the command line.
"""

import bz2
import gzip
import json
import lzma
import os
from datetime import datetime
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_sft.data.corpus.building import Corpus, build_corpus
from lora_sft.data.rows.plain_json import DEEPEST_NESTING
from lora_sft.data.rows.row_sources import read_rows
from lora_sft.errors import CapabilityError, DataError
from tests import tiny
from tests.data.sections import make_chat, make_data, make_dataset, write_jsonl

GOOD = {"messages": make_chat("Who?", "A fox.")}
GOOD_LINE = json.dumps(GOOD).encode() + b"\n"
TOKENIZER = tiny.make_tokenizer()
FUZZ = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def check_has_three_printable_lines(error):
    """Check that the error has three lines, and that any terminal can print them."""
    lines = str(error).splitlines()
    assert [line[:6] for line in lines] == ["error:", "where:", "fix:  "], lines
    assert all(line[6:].strip() for line in lines), lines
    str(error).encode()


def build_or_refuse(path, **fields) -> Corpus | DataError | CapabilityError:
    """Return the corpus of one file, or the error that refuses it. Other errors fail the test."""
    try:
        data = make_data(make_dataset(path, **fields))
        corpus = build_corpus(data, TOKENIZER, {TOKENIZER.eos_token_id})
    except (DataError, CapabilityError) as error:
        check_has_three_printable_lines(error)
        return error
    account = corpus.accounts["train"]
    assert account.kept == 0 or len(corpus.train)
    json.dumps(account.as_dict()).encode()
    "".join(account.examples.values()).encode()
    return corpus


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    return path


def pack_gzip(content: bytes) -> bytes:
    """Compress without the time, because every pytest worker must collect the same parameters."""
    return gzip.compress(content, mtime=0)


NESTED = b'{"messages": ' + b"[" * 900 + b"]" * 900 + b"}\n"
DEEP_ROW = b'{"text": "a", "x": ' + b'{"y": ' * 150 + b"1" + b"}" * 150 + b"}\n"


@pytest.mark.parametrize(
    ("name", "content", "where", "what"),
    [
        ("a.jsonl", b"\xff\xfe{\x00}\x00", "a.jsonl:1", "not valid UTF-8"),
        ("a.jsonl", GOOD_LINE + b"\x00" * 1000 + b"\n", "a.jsonl:2", "not valid JSON"),
        ("a.jsonl", GOOD_LINE + b'{"messages": "\xc3"}\n', "a.jsonl:2", "not valid UTF-8"),
        ("a.jsonl", GOOD_LINE + NESTED, "a.jsonl:2", "nested deeper than 100"),
        ("a.jsonl", GOOD_LINE + DEEP_ROW, "a.jsonl:2", "nested deeper than 100"),
        ("a.json", b"[" + DEEP_ROW + b"]", "a.json row 0", "nested deeper than 100"),
        ("a.jsonl", b'{"n": ' + b"9" * 5000 + b"}", "a.jsonl:1", "JSON of the row is not accepted"),
        ("a.jsonl", b'{"a": -Infinity}', "a.jsonl:1", "Infinity is not a JSON value"),
        ("a.jsonl", b'{"a": [-1e999]}', "a.jsonl:1", "the number -1e999 is too large"),
        ("a.jsonl", b'{"\\ud800": 1}', "a.jsonl", "no row format fits the columns \\ud800"),
        ("a.jsonl", b'{"a\\nb\\u2028": 1}', "a.jsonl", "no row format fits the columns a\\nb"),
        ("a.jsonl", b'{"a\\nb": 1, "a\\nb": 2}', "a.jsonl:1", 'the key "a\\nb" occurs more'),
        ("a.jsonl", b"  \n\r\n\n", "a.jsonl", "no rows"),
        ("a.jsonl", b"\xef\xbb\xbf", "a.jsonl", "no rows"),
        ("a.json", b"\xef\xbb\xbf[]", "a.json", "no rows"),
        ("a.json", b"[[]]", "a.json row 0", "an array, not an object"),
        ("a.json", b'[{"a": 1}, {"b', "a.json", "not valid JSON"),
        ("a.json", b"null", "a.json:1", "is null, not an object"),
        ("a.json", b'{"a": 1}\n{"b": ', "a.json:2", "not valid JSON"),
        ("a.csv", b'text\n"never closed\nmore\n', "a.csv:2", "unexpected end of data"),
        ("a.csv", b"text,text\na,b\n", "a.csv:1", 'the column name "text" occurs more than once'),
        ("a.csv", b"text\rold mac\r", "a.csv:1", "new-line character"),
        ("a.csv", b"text\n\x00\xff\n", "a.csv:2", "not valid UTF-8"),
        ("a.csv", b'"a\nb"\n1\n', "a.csv", "no row format fits the columns a\\nb"),
        ("a.tsv", b"text\tn\na\n", "a.tsv:2", "1 fields, but the header has 2"),
        ("a.parquet", b"", "a.parquet", "cannot be read"),
        ("a.arrow", b"", "a.arrow", "cannot be read"),
        ("a.jsonl.gz", b"", "a.jsonl.gz", "no rows"),
        ("a.jsonl.gz", GOOD_LINE, "a.jsonl.gz", "Not a gzipped file"),
        ("a.jsonl.gz", pack_gzip(GOOD_LINE) + b"garbage", "a.jsonl.gz:2", "Not a gzipped"),
        ("a.jsonl.gz", pack_gzip(b'{"a": \n'), "a.jsonl.gz:1", "not valid JSON"),
        ("a.parquet.gz", pack_gzip(b"PAR1"), "a.parquet.gz", "cannot be read"),
        ("a.txt", b"a", "a.txt", 'end in ".txt"'),
        ("a.tar.gz", b"a", "a.tar.gz", 'end in ".gz"'),
    ],
)
def test_an_invalid_file_is_refused_with_its_name_and_line(tmp_path, name, content, where, what):
    error = build_or_refuse(write(tmp_path, name, content))
    assert isinstance(error, DataError)
    assert (error.where, what in error.what) == (where, True), error.what


@pytest.mark.parametrize("compress", [pack_gzip, bz2.compress, lzma.compress])
def test_the_error_for_an_incomplete_packed_file_names_the_line(tmp_path, compress):
    ending = {pack_gzip: ".gz", bz2.compress: ".bz2", lzma.compress: ".xz"}[compress]
    lines = [json.dumps({"text": os.urandom(30).hex()}).encode() for _ in range(3000)]
    content = compress(b"\n".join(lines))
    path = write(tmp_path, f"a.jsonl{ending}", content[: len(content) * 3 // 4])
    with pytest.raises(DataError, match="ended before") as caught:
        list(read_rows(make_dataset(path)))
    assert "incomplete" in caught.value.fix
    name, _, line = caught.value.where.partition(":")
    assert name == path.name
    assert compress is bz2.compress or int(line) > 100  # bzip2 packs all lines as one block


def test_an_incomplete_zstandard_file_is_refused(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    with pa.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write(GOOD_LINE * 100 + os.urandom(100_000).hex().encode())
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert isinstance(build_or_refuse(path), DataError)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b"\xef\xbb\xbf" + GOOD_LINE.replace(b"\n", b"\r\n") * 2),
        ("a.json", b"\xef\xbb\xbf\r\n" + GOOD_LINE * 2),
        ("a.JSONL", b"\n" + GOOD_LINE * 2 + b"\n\n"),
        ("a.json", b"[\r\n" + GOOD_LINE + b"," + GOOD_LINE + b"]"),
        ("a.jsonl.gz", pack_gzip(GOOD_LINE) + pack_gzip(GOOD_LINE)),
        ("a.csv", b"\xef\xbb\xbftext,n\r\nNaN,1\r\nnan,\r\n"),
        ("a.csv", b'text\n"a\x00b"\n"c ""d"""\n'),
    ],
)
def test_unusual_but_valid_files_are_read(tmp_path, name, content):
    corpus = build_or_refuse(write(tmp_path, name, content))
    assert isinstance(corpus, Corpus), corpus
    assert len(corpus.train) == 2


MALFORMED_ROWS = [
    {"messages": None},
    {"messages": {}},
    {"messages": 5},
    {"messages": [None]},
    {"messages": [[GOOD["messages"]]]},
    {"messages": [{"role": 5, "content": "a"}]},
    {"messages": [{"role": "user", "content": 1.5}]},
    {"messages": [{"role": "user", "content": {"a": 1}}]},
    {"messages": [{"role": "user", "content": [[]]}]},
    {"messages": [{"role": "user", "content": [{"type": ["text"]}]}]},
    {"messages": [{"role": "assistant", "tool_calls": {"name": "f"}}]},
    {"messages": [{"role": "assistant", "tool_calls": [{"function": "f"}]}]},
    {"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "\ud800"}]}]},
    {"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[" * 300}]}]},
    {"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"a": NaN}'}]}]},
    {"messages": "[" * 900 + "]" * 900},
    {"messages": [{"role": "user", "content": "a", "train": "maybe\nso"}]},
    {**GOOD, "tools": [1]},
    {**GOOD, "tools": "nonsense"},
    {**GOOD, "tools": 5},
    {**GOOD, "chat_template_kwargs": [1]},
    {"messages": make_chat("a\ud800", "b")},
    {"messages": make_chat("a", "b\udfff")},
]


def test_malformed_rows_among_valid_rows_are_counted(tmp_path):
    corpus = build_or_refuse(write_jsonl(tmp_path / "a.jsonl", [GOOD, *MALFORMED_ROWS, GOOD]))
    assert isinstance(corpus, Corpus), corpus
    account = corpus.accounts["train"]
    assert account.dropped == {"malformed": len(MALFORMED_ROWS)}
    assert account.read == len(MALFORMED_ROWS) + 2


@pytest.mark.parametrize("odd", ["\ud800", "a\nb\u2028c", "x" * 10_000, "\x1b[31m"])
def test_text_of_a_row_is_shown_in_one_printable_line(tmp_path, odd):
    rows = [{"conversations": [{"from": odd, "value": "a"}]}]
    error = build_or_refuse(write_jsonl(tmp_path / "a.jsonl", rows))
    assert isinstance(error, DataError)
    assert len(str(error)) < 1_000
    assert error.where.isprintable()


def make_invalid_string_array():
    """Return two strings. The second is not valid UTF-8, as a faulty program may write it."""
    offsets, data = pa.array([0, 1, 2], pa.int32()).buffers()[1], pa.py_buffer(b"a\xff")
    return pa.StringArray.from_buffers(2, offsets, data)


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_the_error_for_invalid_text_in_a_table_names_the_row(tmp_path, ending):
    table, path = pa.table({"text": make_invalid_string_array()}), tmp_path / f"a{ending}"
    if ending == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    error = build_or_refuse(path)
    assert isinstance(error, DataError)
    assert error.where == f"a{ending} row 1"


def test_a_table_with_two_columns_of_the_same_name_is_refused(tmp_path):
    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    with (
        pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)
    error = build_or_refuse(tmp_path / "a.arrow")
    assert isinstance(error, DataError)
    assert "more than once" in error.what


def test_unused_columns_of_unions_and_times_are_accepted(tmp_path):
    union = pa.UnionArray.from_sparse(
        pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(["a", "b"])]
    )
    columns = {"text": ["one", "two"], "odd": union, "when": pa.array([0, 1], pa.timestamp("us"))}
    table, path = pa.table(columns), tmp_path / "a.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    corpus = build_or_refuse(path)
    assert isinstance(corpus, Corpus), corpus
    assert len(corpus.train) == 2


def make_call(**arguments):
    call = {"type": "function", "function": {"name": "book", "arguments": arguments}}
    return [{"role": "user", "content": "Book."}, {"role": "assistant", "tool_calls": [call]}]


def test_a_value_that_json_cannot_hold_is_never_learned_as_a_placeholder(tmp_path):
    when = datetime(2024, 5, 1, 10)
    rows = [
        {"messages": make_call(when=when, price=Decimal("12.50")), "image": b"\x89PNG"},
        {"messages": make_call(raw=b"abc"), "image": None},
        {"messages": make_call(share=float("inf")), "image": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    tokenizer = tiny.make_tokenizer()
    data = make_data(make_dataset(tmp_path / "a.parquet"))
    corpus = build_corpus(data, tokenizer, {tokenizer.eos_token_id})
    (ids,) = corpus.train["input_ids"]
    text = tokenizer.decode(ids)
    assert '"2024-05-01T10:00:00"' in text
    assert '"12.50"' in text
    account = corpus.accounts["train"]
    assert account.dropped == {"malformed": 2}
    place = "message 1.tool_calls[0].function.arguments.raw"
    assert f"{place} is of type bytes" in account.examples["malformed"]


def test_folders_without_rows_are_refused(tmp_path):
    (tmp_path / "folder.jsonl").mkdir()
    assert "no data files" in build_or_refuse(tmp_path / "folder.jsonl").what
    (tmp_path / "folder.jsonl" / "inner.jsonl").mkdir()
    assert "no data files" in build_or_refuse(tmp_path / "folder.jsonl").what
    assert "no data files" in build_or_refuse(tmp_path / "*.jsonl").what
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nothing.jsonl")
    assert "no file or folder" in build_or_refuse(tmp_path / "gone.jsonl").what


@pytest.fixture
def folder_with_a_link(tmp_path):
    """Return a folder with a file of rows and a link to such a file outside of it."""
    (tmp_path / "private.jsonl").write_bytes(GOOD_LINE)
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(GOOD_LINE)
    (folder / "link.jsonl").symlink_to("../private.jsonl")
    return folder


@pytest.mark.parametrize("kind", ["folder", "glob", "data_files", "linked folder", "file URL"])
def test_a_link_out_of_a_data_folder_is_refused(folder_with_a_link, tmp_path, kind):
    folder, fields = folder_with_a_link, {}
    path = {"glob": folder / "*.jsonl", "file URL": f"file://{folder}"}.get(kind, folder)
    if kind == "data_files":
        fields = {"data_files": ["a.jsonl", "li*.jsonl"]}
    if kind == "linked folder":
        (folder / "link.jsonl").unlink()
        (tmp_path / "home").mkdir()
        (tmp_path / "private.jsonl").rename(tmp_path / "home" / "private.jsonl")
        (folder / "more").symlink_to(tmp_path / "home", target_is_directory=True)
    refused = build_or_refuse(path, **fields)
    assert isinstance(refused, DataError), refused
    assert "a link to a file elsewhere" in refused.what
    assert "private.jsonl" in refused.what
    assert str(folder) in refused.where


def test_a_link_out_of_a_saved_data_set_is_refused(tmp_path):
    Dataset.from_list([GOOD]).save_to_disk(tmp_path / "private")
    DatasetDict({"train": Dataset.from_list([GOOD])}).save_to_disk(tmp_path / "saved")
    (private,) = (tmp_path / "private").glob("*.arrow")
    (tmp_path / "saved" / "train" / "more.arrow").symlink_to(private)
    assert "a link to a file elsewhere" in build_or_refuse(tmp_path / "saved").what


def test_a_link_that_the_recipe_names_is_read(folder_with_a_link, tmp_path):
    folder = folder_with_a_link
    alias = tmp_path / "alias"
    alias.symlink_to(folder, target_is_directory=True)
    (folder / "inner.jsonl").symlink_to("a.jsonl")
    for path, fields in (
        (folder / "link.jsonl", {}),
        (folder, {"data_files": "link.jsonl"}),
        (alias / "a*.jsonl", {}),
        (alias / "inner*", {}),
        (alias, {"data_files": ["inn*"]}),
    ):
        assert isinstance(build_or_refuse(path, **fields), Corpus), path


@pytest.mark.skipif(os.name != "posix", reason="only on POSIX can a file name be invalid Unicode")
def test_a_file_with_an_invalid_unicode_name_is_read(tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / os.fsdecode(b"\xff\n.jsonl")).write_bytes(GOOD_LINE)
    corpus = build_or_refuse(folder)
    assert isinstance(corpus, Corpus), corpus
    assert corpus.train["source"][0] == "rows/\\udcff\\n.jsonl"


# --- through the command line ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl.gz", pack_gzip(GOOD_LINE * 50)[:-20]),
        ("a.jsonl", b'{"\\ud800\\n": 1}'),
        ("a.jsonl", b'{"conversations": [{"from": "\\ud800\\u2028", "value": "a"}]}'),
        ("a.csv", b'text\n"never closed\n'),
        ("a.parquet", b"PAR1"),
        ("a.jsonl", GOOD_LINE + DEEP_ROW),
        ("a.jsonl", b'{"input_ids": [1, 2], "labels": [5, 5]}'),
    ],
)
def test_train_refuses_an_invalid_file_in_three_lines(
    command, write_recipe, tmp_path, name, content
):
    path = write(tmp_path, name, content)
    outcome = command("train", write_recipe(), f"data.datasets.0.path={path}")
    assert outcome.code == 3
    lines = outcome.stderr.strip().splitlines()
    assert [line[:6] for line in lines[-3:]] == ["error:", "where:", "fix:  "]
    assert "Traceback" not in outcome.stderr


# --- random input ---------------------------------------------------------------------------------


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
CALLS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "id": JSON,
            "function": st.fixed_dictionaries({}, optional={"name": JSON, "arguments": JSON})
            | JSON,
        },
    ),
    max_size=2,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(["user", "assistant", "system", "tool"]) | JSON,
            "from": st.sampled_from(["human", "gpt", "function_call"]) | JSON,
            "content": st.text() | JSON,
            "value": st.text() | JSON,
            "tool_calls": CALLS | JSON,
            "function_call": JSON,
            "reasoning_content": JSON,
            "train": JSON,
            "weight": st.sampled_from([0, 1, 0.5]) | JSON,
        },
    )
    | JSON,
    max_size=4,
)
NUMBERS = st.lists(st.integers(-200, 500) | JSON, max_size=6)
ROWS = st.lists(
    st.fixed_dictionaries({"messages": MESSAGES}, optional={"tools": CALLS | JSON})
    | st.fixed_dictionaries({"conversations": MESSAGES}, optional={"system": JSON})
    | st.fixed_dictionaries({"prompt": MESSAGES | JSON, "completion": MESSAGES | JSON})
    | st.fixed_dictionaries({"instruction": JSON, "output": JSON}, optional={"history": JSON})
    | st.fixed_dictionaries({"input_ids": NUMBERS}, optional={"labels": NUMBERS})
    | st.fixed_dictionaries({"text": JSON}),
    min_size=1,
    max_size=4,
)
FORMATS = st.sampled_from(
    ["auto", "messages", "sharegpt", "alpaca", "prompt_completion", "text", "tokenized"]
)


@FUZZ
@given(rows=ROWS, row_format=FORMATS)
def test_random_rows_are_kept_dropped_or_refused(tmp_path, rows, row_format):
    build_or_refuse(write_jsonl(tmp_path / "a.jsonl", rows), format=row_format)


@FUZZ
@given(rows=ROWS, row_format=FORMATS)
def test_a_table_of_random_rows_is_kept_dropped_or_refused(tmp_path, rows, row_format):
    try:
        table = pa.Table.from_pylist(rows)
        pq.write_table(table, tmp_path / "a.parquet")
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return  # no table can hold these rows
    build_or_refuse(tmp_path / "a.parquet", format=row_format)


ENDINGS = [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".jsonl.gz", ".jsonl.bz2",
           ".jsonl.xz", ".jsonl.zst", ".parquet.zst"]  # fmt: skip


@FUZZ
@given(content=st.binary(max_size=300), ending=st.sampled_from(ENDINGS))
def test_random_bytes_are_refused_or_read(tmp_path, content, ending):
    build_or_refuse(write(tmp_path, f"a{ending}", content))


def make_samples():
    """Return one valid file of each kind, as bytes."""
    with_tools = {"messages": make_chat("x", "y"), "tools": [{"name": "f"}]}
    table = pa.Table.from_pylist([GOOD, with_tools])
    parquet, stream, file = (pa.BufferOutputStream() for _ in range(3))
    pq.write_table(table, parquet)
    for make, sink in ((pa.ipc.new_stream, stream), (pa.ipc.new_file, file)):
        with make(sink, table.schema) as writer:
            writer.write_table(table)
    return {
        "a.parquet": parquet.getvalue().to_pybytes(),
        "stream.arrow": stream.getvalue().to_pybytes(),
        "file.arrow": file.getvalue().to_pybytes(),
        "a.jsonl.gz": pack_gzip(GOOD_LINE * 3),
        "a.jsonl.bz2": bz2.compress(GOOD_LINE * 3),
        "a.jsonl.xz": lzma.compress(GOOD_LINE * 3),
        "a.jsonl": GOOD_LINE * 3,
        "a.json": b"[" + GOOD_LINE + b"," + GOOD_LINE + b"]",
        "a.csv": b'text,n\n"a ""b""\nc",1\nd,2\n',
    }


SAMPLES = make_samples()


@FUZZ
@given(data=st.data(), name=st.sampled_from(sorted(SAMPLES)))
def test_a_damaged_file_is_refused_or_read(tmp_path, data, name):
    content = bytearray(SAMPLES[name])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    length = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    build_or_refuse(write(tmp_path, name, bytes(content[:length])))


def test_a_deeply_nested_row_passes_every_later_step(tmp_path):
    depth = DEEPEST_NESTING - 10
    deep = b'{"a": ' * depth + b"1" + b"}" * depth
    line = GOOD_LINE.rstrip(b"}\n") + b', "tools": [{"name": "f", "parameters": ' + deep + b"}]}\n"
    corpus = build_or_refuse(write(tmp_path, "a.jsonl", line))
    assert isinstance(corpus, Corpus), corpus
