"""Splits: groups stay together, a held-out row is in one split, duplicates are counted."""

import pytest

from lora_sft.data.corpus import build_corpus
from lora_sft.errors import DataError
from tests import tiny
from tests.data.sections import make_chat, make_data, make_dataset, make_split, write_jsonl


def make_row(index, **columns):
    return {"messages": make_chat(f"What is {index}?", f"It is {index}."), **columns}


def build(*datasets, **data):
    tokenizer = tiny.make_tokenizer()
    return build_corpus(make_data(*datasets, **data), tokenizer, {tokenizer.eos_token_id})


def write(tmp_path, name, rows):
    return make_dataset(write_jsonl(tmp_path / name, rows))


GROUPED = [make_row(index, conversation=index // 5) for index in range(200)]


def find_groups(split):
    return {row // 5 for row in split["row"]}


def test_rows_of_one_group_share_a_split(tmp_path):
    grouped = {"group_by": "conversation"}
    corpus = build(
        write(tmp_path, "rows.jsonl", GROUPED),
        validation=make_split(fraction=0.3, **grouped),
        test=make_split(fraction=0.3, **grouped),
    )
    splits = [find_groups(split) for split in (corpus.train, corpus.validation, corpus.test)]
    assert all(splits)
    assert sum(map(len, splits)) == len(set.union(*splits)) == 40
    alone = build(
        write(tmp_path, "rows.jsonl", GROUPED), validation=make_split(fraction=0.3, **grouped)
    )
    assert alone.validation["row"][:] == corpus.validation["row"][:]


def test_a_group_is_the_same_as_number_and_as_text_and_in_any_order(tmp_path):
    validation = make_split(fraction=0.3, group_by="conversation")
    as_text = [{**row, "conversation": str(row["conversation"])} for row in GROUPED]
    first = build(write(tmp_path, "a.jsonl", GROUPED), validation=validation)
    other = build(write(tmp_path, "b.jsonl", as_text[::-1]), validation=validation)
    assert find_groups(first.validation) == {(199 - row) // 5 for row in other.validation["row"]}


def test_a_repeat_below_one_still_draws_row_by_row(tmp_path):
    dataset = make_dataset(write_jsonl(tmp_path / "a.jsonl", GROUPED), repeat=0.5)
    corpus = build(dataset, validation=make_split(fraction=0.2, group_by="conversation"))
    groups = find_groups(corpus.train)
    assert len(groups) > len(corpus.train) / 4
    assert not groups & find_groups(corpus.validation)


def test_a_row_without_its_group_names_itself(tmp_path):
    rows = [*GROUPED[:3], make_row(3)]
    with pytest.raises(DataError, match='no "conversation" to group by') as caught:
        build(
            write(tmp_path, "a.jsonl", rows),
            validation=make_split(fraction=0.3, group_by="conversation"),
        )
    assert caught.value.where == "a.jsonl:4"
    assert "messages" in caught.value.fix


def test_a_data_set_of_its_own_needs_no_group(tmp_path):
    own = make_split(datasets=[write(tmp_path, "test.jsonl", [make_row(500)])])
    grouped = make_split(fraction=0.3, group_by="conversation")
    corpus = build(write(tmp_path, "a.jsonl", GROUPED), validation=grouped, test=own)
    assert len(corpus.test) == 1


def test_a_row_in_two_splits_is_an_error_that_names_both(tmp_path):
    train = write(tmp_path, "train.jsonl", [make_row(index, id=index) for index in range(10)])
    test = make_split(datasets=[write(tmp_path, "test.jsonl", [make_row(50), make_row(7, id="x")])])
    with pytest.raises(DataError, match="in two splits, train and test") as caught:
        build(train, test=test)
    assert caught.value.where == "train.jsonl:8 and test.jsonl:2"
    assert "data.overlap: drop" in caught.value.fix


def test_the_same_example_in_another_format_overlaps_too(tmp_path):
    alpaca = {"instruction": "What is 7?", "output": "It is 7."}
    test = make_split(datasets=[write(tmp_path, "test.jsonl", [alpaca])])
    with pytest.raises(DataError, match="in two splits"):
        build(write(tmp_path, "train.jsonl", [make_row(7)]), test=test)


def test_what_overlaps_can_be_dropped_where_it_is_least_missed(tmp_path):
    train = write(tmp_path, "train.jsonl", [make_row(index) for index in range(10)])
    validation = write(tmp_path, "validation.jsonl", [make_row(3), make_row(4), make_row(50)])
    test = write(tmp_path, "test.jsonl", [make_row(4), make_row(5)])
    held_out = {
        "validation": make_split(datasets=[validation]),
        "test": make_split(datasets=[test]),
    }
    corpus = build(train, overlap="drop", **held_out)
    assert [len(corpus.train), len(corpus.validation), len(corpus.test)] == [7, 2, 2]
    assert corpus.accounts["train"].dropped == {"overlap": 3}
    example = corpus.accounts["train"].examples["overlap"]
    assert example == "train.jsonl:4 (validation holds it: validation.jsonl:1)"
    assert corpus.accounts["validation"].dropped == {"overlap": 1}
    with pytest.raises(DataError, match="in two splits"):
        build(train, **held_out)


def test_rows_held_out_by_fraction_may_not_be_in_a_test_set_either(tmp_path):
    rows = [make_row(index) for index in range(40)]
    train, fraction = write(tmp_path, "train.jsonl", rows), make_split(fraction=0.3)
    held_out = build(train, validation=fraction).validation["row"][0]
    test = make_split(datasets=[write(tmp_path, "test.jsonl", [rows[held_out]])])
    with pytest.raises(DataError, match="two splits, validation and test"):
        build(train, validation=fraction, test=test)


@pytest.mark.parametrize(("duplicates", "kept"), [("keep", 6), ("drop", 4)])
def test_duplicates_are_kept_or_dropped_and_counted(tmp_path, duplicates, kept):
    first = write(tmp_path, "a.jsonl", [make_row(1), make_row(2), make_row(1, id=5), make_row(3)])
    second = write(tmp_path, "b.jsonl", [make_row(2), make_row(4)])
    corpus = build(first, second, duplicates=duplicates)
    account = corpus.accounts["train"]
    assert len(corpus.train) == account.kept == kept
    assert account.read == 6
    if duplicates == "drop":
        assert account.dropped == {"duplicate": 2}
        assert account.examples["duplicate"] == "a.jsonl:3 (the same as a.jsonl:1)"
        assert corpus.fingerprint == build(first, second, duplicates="drop").fingerprint
