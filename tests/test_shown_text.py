"""Text that is shown is printable, and holds no password, query or token."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_sft.errors import LONGEST_PART_CHARACTERS, Fault, RecipeError
from lora_sft.shown_text import (
    HIDDEN,
    LONGEST_CHARACTERS,
    escape_controls,
    escape_json,
    hide_secrets,
    make_one_line,
)


@given(st.text())
def test_make_one_line_returns_a_short_printable_line(text):
    line = make_one_line(text)
    assert line.isprintable()
    assert len(line) <= LONGEST_CHARACTERS * len(r"\U0010ffff")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('"http://h/r.jsonl?sig=CANARY" is listed twice', '"http://h/r.jsonl" is listed twice'),
        ("see (https://me:CANARY@h/a#CANARY).", "see (https://h/a)."),
        ("403, message='No', url='http://h/r?t=CANARY'", "403, message='No', url='http://h/r'"),
        ("'s3://k:CANARY@b/x' -> 's3://b/y'", "'s3://b/x' -> 's3://b/y'"),
        (
            "retries exceeded with url: /v1/rows?op=GET&t=CANARY",
            "retries exceeded with url: /v1/rows",
        ),
        ("zip://a::http://u:CANARY@h/b.zip: gone", "zip://a::http://h/b.zip: gone"),
        ("the token hf_abcdefghijklmnopqrstCANARY is old", f"the token {HIDDEN} is old"),
        ("rows/a?b.jsonl#1: a@b, really?", "rows/a?b.jsonl#1: a@b, really?"),
        ("lora_sft://quickstart/base", "lora_sft://quickstart/base"),
        ("what? x=1", "what? x=1"),
    ],
)
def test_secrets_are_taken_out_of_a_sentence(text, shown):
    assert hide_secrets(text) == shown


@given(
    secret=st.text(
        st.characters(exclude_categories=["Z", "C"], exclude_characters="@"), min_size=1
    ),
    around=st.sampled_from(["{}", "cannot read {}", "'{}': no", "a {} b", "x::{}", "({})."]),
)
def test_a_password_of_any_characters_is_hidden(secret, around):
    marked = f"XQ{secret}QX"
    text = around.format(f"http://me:{marked}@host/rows.jsonl")
    assert marked not in hide_secrets(text)
    assert marked not in hide_secrets(around.format(f"http://host/rows.jsonl?sig={marked}"))


def test_the_token_of_the_environment_is_hidden(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "CANARY-token")
    monkeypatch.setenv("WANDB_API_KEY", "x")  # too short to be a secret
    assert hide_secrets("401 for CANARY-token at x") == f"401 for {HIDDEN} at x"


def test_every_error_is_three_printable_lines_without_secrets():
    error = RecipeError('"\x1b[2J\x9b1m\u202e\n" at http://h?t=CANARY', "a\rb.yaml:1", "y" * 10**6)
    lines = str(error).splitlines()
    assert [line[:7] for line in lines] == ["error: ", "where: ", "fix:   "]
    assert all(line.isprintable() for line in lines)
    assert "CANARY" not in str(error)
    assert "CANARY" not in repr(error)
    assert len(Fault(error.what, error.where, error.fix).fix) == LONGEST_PART_CHARACTERS
    assert r"\x1b[2J\x9b1m\u202e\n" in error.what


def test_text_of_several_lines_keeps_its_lines_and_letters():
    text = "one\n\ttwo \u200d\u200f \x1b]0;title\x07\x9b\x7f\r"
    assert escape_controls(text) == "one\n\ttwo \u200d\u200f \\x1b]0;title\\x07\\x9b\\x7f\\r"


@given(st.dictionaries(st.text(), st.text()))
def test_escaped_json_is_the_same_document(document):
    text = escape_json(json.dumps(document, ensure_ascii=False))
    assert json.loads(text) == document
    assert not any(character in text for character in "\x1b\x7f\x80\x9b")
