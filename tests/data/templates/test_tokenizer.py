"""The tokenizer is loaded with its template and tokens, and refused with a clear error."""

import json

import pytest

from lora_sft.data.templates.tokenizer import (
    find_stop_token_ids,
    load_saved_tokenizer,
    load_tokenizer,
)
from lora_sft.errors import DataError, ModelError
from tests.data.sections import make_chat, make_data, make_model, make_tokenizer_section
from tests.tiny import CHATML, make_tiny_llama, make_tokenizer


def load(folder, *, tokenizer=None, **data):
    section = make_tokenizer_section(**(tokenizer or {}))
    return load_tokenizer(make_model(folder), section, make_data(**data))


def save(folder, **arguments):
    make_tokenizer(**arguments).save_pretrained(folder)
    return folder


def test_the_tokenizers_template_is_used_unless_the_recipe_names_another(tmp_path):
    save(tmp_path)
    assert load(tmp_path).chat_template == CHATML
    template = tmp_path / "mine.jinja"
    template.write_text("mine")
    loaded = load(tmp_path, chat_template="mine.jinja", chat_template_location=str(template))
    assert loaded.chat_template == "mine"


def test_the_error_for_a_missing_tokenizer_lists_the_expected_files(tmp_path):
    with pytest.raises(ModelError) as caught:
        load(tmp_path)
    assert "tokenizer.json" in caught.value.what
    assert caught.value.where == str(tmp_path)
    assert caught.value.exit_code == 4


def test_an_invalid_tokenizer_file_gives_a_model_error(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError):
        load(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["", "[1]", '{"a": '])
def test_a_damaged_file_of_the_tokenizer_is_named(tmp_path, name, content):
    (save(tmp_path) / name).write_text(content)
    with pytest.raises(ModelError) as caught:
        load(tmp_path)
    assert caught.value.what.startswith(f"{name} ")
    assert caught.value.where == str(tmp_path / name)


def test_a_field_of_the_tokenizers_config_with_another_type_is_named(tmp_path):
    path = save(tmp_path) / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": {}}))
    with pytest.raises(ModelError, match="model_max_length must be a number or null, not"):
        load(tmp_path)


def test_a_saved_template_that_does_not_compile_is_an_error_of_the_model(tmp_path):
    (save(tmp_path) / "chat_template.jinja").write_text(CHATML[:60])
    with pytest.raises(ModelError, match="the chat template does not compile") as caught:
        load_saved_tokenizer(tmp_path)
    assert str(tmp_path) in caught.value.where


def test_the_recipe_can_name_another_tokenizer_and_its_tokens(tmp_path):
    save(tmp_path / "other")
    section = {"path": "other", "location": str(tmp_path / "other")}
    tokens = {"eos_token": "</s>", "pad_token": "<|eot|>"}
    loaded = load(tmp_path / "base", tokenizer=section | tokens)
    assert (loaded.eos_token, loaded.pad_token) == ("</s>", "<|eot|>")
    with pytest.raises(ModelError, match="not in the vocabulary"):
        load(tmp_path / "base", tokenizer=section | {"pad_token": "<nope>"})
    with pytest.raises(ModelError, match="new tokens"):
        load(tmp_path / "base", tokenizer=section | {"new_tokens": ["<a>"]})


def test_a_missing_pad_token_is_chosen_without_growing_the_vocabulary(tmp_path):
    save(tmp_path, pad_token=None)
    loaded = load(tmp_path)
    assert loaded.pad_token == "<pad>"
    assert len(loaded) == len(make_tokenizer())


def test_the_plain_template_is_prefix_stable_and_ends_in_eos(tmp_path):
    save(tmp_path, chat_template=None)
    loaded = load(tmp_path, chat_template="plain")
    chat = make_chat("Who?", "Me.", "Why?", "So.", system="Be kind")
    render = loaded.apply_chat_template
    for count in (2, 4):
        prompt = render(chat[:count], tokenize=False, add_generation_prompt=True)
        full = render(chat[: count + 1], tokenize=False)
        assert full == prompt + chat[count]["content"] + loaded.eos_token
    assert full.startswith(loaded.bos_token + "### System:\nBe kind\n\n### User:\nWho?\n\n")


def test_a_missing_template_file_gives_a_data_error(tmp_path):
    save(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path, chat_template=str(tmp_path / "gone.jinja"))


def test_stop_tokens_come_from_tokenizer_generation_config_and_recipe(tmp_path):
    make_tiny_llama(tmp_path)
    ids = {"eos_token_id": [7, 8]}
    (tmp_path / "generation_config.json").write_text(json.dumps(ids))
    tokenizer = make_tokenizer()
    found = find_stop_token_ids(tokenizer, make_model(tmp_path), ["<|eot|>"])
    eot = tokenizer.convert_tokens_to_ids("<|eot|>")
    assert found == {tokenizer.eos_token_id, 7, 8, eot}
    (tmp_path / "generation_config.json").unlink()
    assert find_stop_token_ids(tokenizer, make_model(tmp_path), []) == {tokenizer.eos_token_id}
    with pytest.raises(DataError, match="not in the vocabulary"):
        find_stop_token_ids(tokenizer, make_model(tmp_path), ["<nope>"])


def test_a_byte_order_mark_is_removed_from_the_template(tmp_path):
    save(tmp_path)
    template = tmp_path / "mine.jinja"
    template.write_bytes(b"\xef\xbb\xbfmine")
    assert load(tmp_path, chat_template=str(template)).chat_template == "mine"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("hello\n{% for m in messages %}{{ m.content }", "unexpected '}' (line 2)"),
        ("hello\n{{ messages | nofilter }}", "No filter named 'nofilter'. (line 2)"),
        ("{% for a in a %}" * 30 + "{% endfor %}" * 30, "too many statically nested blocks"),
    ],
)
def test_a_template_that_does_not_compile_is_refused_before_any_row_is_read(tmp_path, text, reason):
    save(tmp_path)
    template = tmp_path / "bad.jinja"
    template.write_text(text)
    location = str(template)
    with pytest.raises(DataError) as caught:
        load(tmp_path, chat_template="bad.jinja", chat_template_location=location)
    assert reason in caught.value.what
    assert caught.value.where == "data.chat_template: bad.jinja"
    assert len(str(caught.value.faults[0]).splitlines()) == 3


def test_the_error_names_the_tokenizers_template_that_does_not_compile(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = {"default": CHATML, "tool_use": "{% endfor %}"}
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    assert caught.value.where == f"the tokenizer's own template tool_use: {tmp_path}"
    assert "data.chat_template" in caught.value.fix
    assert "### Assistant" in load(tmp_path, chat_template="plain").chat_template
