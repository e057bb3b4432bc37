"""What lies at the output's place is replaced by the run that made it, and is never lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lora_sft.errors import ExportError
from lora_sft.export.staging import (
    Owner,
    check_output_is_free,
    mark_as_made_by,
    put_in_place,
    staged_output,
)


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    (tmp_path / "run").mkdir()
    return Owner("id", tmp_path / "run")


def put_model(output: Path, owner: Owner, text: str) -> None:
    with staged_output(output) as staged:
        (staged / "model.safetensors").write_text(text)
        (staged / "README.md").write_text("card")
        (staged / "sub").mkdir()
        (staged / "sub" / "a").write_text("a")
        mark_as_made_by(staged, owner)
        put_in_place(staged, output, owner)


def read_model(output: Path) -> str:
    return (output / "model.safetensors").read_text()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("README.md", "mine", "was changed since the merge: README.md"),  # of the same size
        ("model.safetensors", "requantised", "was changed since the merge: model.safetensors"),
        ("sub/mine", "mine", "holds what the merge did not write: sub/mine"),
        ("model.gguf", "mine", "holds what the merge did not write: model.gguf"),
    ],
)
def test_what_somebody_edited_or_put_into_a_merge_is_never_deleted(
    tmp_path, owner, name, text, said
):
    output = tmp_path / "merged"
    put_model(output, owner, "1")
    (output / name).write_text(text)
    os.utime(output / name, (1, 1))
    for attempt in (check_output_is_free, lambda *at: put_model(*at, "2")):
        with pytest.raises(ExportError, match=said) as refused:
            attempt(output, owner)
        assert refused.value.exit_code == 7
    assert (output / name).read_text() == text
    (output / name).unlink()
    put_model(output, owner, "2")
    assert read_model(output) == "2"
