"""Each user has one key, which only this user can read."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from lora_sft.user_key import KEY_BYTES, find_key_file, read_key, read_or_make_key


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.delenv("LORA_SFT_KEY_FILE")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_key_lies_in_the_configuration_folder_or_where_the_variable_says(home, monkeypatch):
    assert find_key_file() == home / ".config" / "lora-sft" / "key"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "settings"))
    assert find_key_file() == home / "settings" / "lora-sft" / "key"
    monkeypatch.setenv("LORA_SFT_KEY_FILE", str(home / "shared.key"))
    assert find_key_file() == home / "shared.key"


def test_a_new_key_is_private_and_stays_the_same(home):
    key = read_or_make_key()
    assert len(key) == KEY_BYTES
    assert stat.S_IMODE(find_key_file().stat().st_mode) == 0o600
    assert stat.S_IMODE(find_key_file().parent.stat().st_mode) == 0o700
    assert read_or_make_key() == read_key() == key


def test_processes_that_start_together_get_one_key(home):
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: read_or_make_key(), range(8)))
    assert len(set(keys)) == 1
    assert [path.name for path in find_key_file().parent.iterdir()] == ["key"]


@pytest.mark.parametrize("content", [b"", b"short"])
def test_a_file_that_is_too_short_is_no_key_and_is_not_replaced(home, content):
    find_key_file().parent.mkdir(parents=True)
    find_key_file().write_bytes(content)
    with pytest.raises(OSError, match="at least 32 bytes"):
        read_or_make_key()
    assert find_key_file().read_bytes() == content
