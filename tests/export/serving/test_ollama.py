"""The Go template of a Modelfile renders like the Jinja template, or the Modelfile has none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trl

from lora_sft.export.serving.ollama import (
    NO_TEMPLATE,
    find_chat_pieces,
    list_stop_texts,
    make_modelfile,
)
from tests.export.go_template import execute
from tests.tiny import CHATML, EOS_AFTER_CONVERSATION, LLAMA3, make_tokenizer

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
LEAST_TRANSLATED = 30
# These conversations are not in PROOF_CHATS.
CHATS = (
    [("user", "Where is Oslo?")],
    [("user", "One."), ("assistant", "Two {{ .System }}."), ("user", "Three\n\nfour")],
    [("system", "You are terse."), ("user", "a"), ("assistant", "b"), ("user", "c")],
    [("system", "S"), *[("user", "q"), ("assistant", "r")] * 3, ("user", "last")],
)


def render_as_ollama(template: str, chat: list[tuple[str, str]]) -> str:
    """Render as Ollama does: `.System` is the system text, `.Messages` holds all turns."""
    messages = [{"Role": role, "Content": text} for role, text in chat]
    system = "\n\n".join(text for role, text in chat if role == "system")
    return execute(template, {"System": system, "Messages": messages})


def render_as_trained(tokenizer, chat: list[tuple[str, str]]) -> str:
    messages = [{"role": role, "content": text} for role, text in chat]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text.removeprefix(tokenizer.bos_token or "")  # Ollama's runner adds bos itself


def test_every_translated_template_renders_the_same_prompts():
    tokenizer, translated = make_tokenizer(), 0
    for path in sorted(TEMPLATES.glob("*.jinja")):
        tokenizer.chat_template = path.read_text(encoding="utf-8")
        pieces = None if "_training" in path.stem else find_chat_pieces(tokenizer)
        if pieces is None:
            continue
        translated += 1
        for chat in CHATS:
            assert render_as_ollama(pieces.to_go_template(), chat) == render_as_trained(
                tokenizer, chat
            ), path.name
    assert translated >= LEAST_TRANSLATED


@pytest.mark.parametrize("template", [CHATML, LLAMA3, EOS_AFTER_CONVERSATION])
def test_an_answer_that_ollama_continues_has_no_end_of_turn(template):
    tokenizer = make_tokenizer(template)
    pieces = find_chat_pieces(tokenizer)
    assert pieces is not None
    text = render_as_ollama(pieces.to_go_template(), [("user", "Hi"), ("assistant", "I am")])
    assert text.endswith(f"{pieces.before_assistant}I am")


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.role }}: {{ m.content | upper }}\n{% endfor %}assistant:",
        "{% for m in messages %}{% if loop.index < 3 %}{{ m.content }}{% endif %}{% endfor %}",
        "{{ messages | length }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}",
        "{{ raise_exception('never') }}",
    ],
)
def test_a_chat_template_that_is_not_a_loop_over_turns_gives_a_note_and_no_template(template):
    text, notes = make_modelfile(make_tokenizer(template), {}, None)
    assert "TEMPLATE " not in re.sub(r"#.*", "", text)
    assert NO_TEMPLATE in text
    assert notes == [f"Modelfile: {NO_TEMPLATE}"]


def test_braces_in_a_chat_template_are_escaped_in_the_go_template():
    braces = CHATML.replace("'<|im_start|>' + message.role", "'{{' + message.role + '}}'")
    tokenizer = make_tokenizer(braces)
    pieces = find_chat_pieces(tokenizer)
    assert pieces is not None
    assert '{{ "{{" }}user' in pieces.to_go_template()


def test_a_modelfile_has_weights_stop_tokens_and_sampling():
    tokenizer = make_tokenizer(CHATML)
    stops = tokenizer.convert_tokens_to_ids(["</s>", "<|im_end|>"])
    sampled = {"eos_token_id": stops, "do_sample": True, "temperature": 0.6, "top_p": 0.95}
    text, notes = make_modelfile(tokenizer, sampled, None)
    lines = text.splitlines()
    assert "FROM ." in lines
    assert not any(line.startswith("ADAPTER") for line in lines)
    assert 'PARAMETER stop "</s>"' in lines
    assert 'PARAMETER stop "<|im_end|>"' in lines
    assert "PARAMETER temperature 0.6" in lines
    assert "PARAMETER top_p 0.95" in lines
    assert notes == []
    greedy, _ = make_modelfile(tokenizer, {"eos_token_id": stops[0]}, None)
    assert "PARAMETER temperature 0" in greedy.splitlines()
    assert list_stop_texts(tokenizer, {}) == []


def test_the_modelfile_of_an_adapter_names_the_base_model_without_a_path():
    text, _ = make_modelfile(make_tokenizer(CHATML), {}, "/home/me/models/Qwen3-8B/")
    assert "FROM ./base\nADAPTER .\n" in text
    assert "Qwen3-8B" in text
    assert "/home/me" not in text


def test_a_note_says_that_a_modelfile_always_shows_the_same_date():
    clocked = "{{- 'Today is ' + strftime_now('%d %b %Y') + '. ' -}}" + CHATML
    text, notes = make_modelfile(make_tokenizer(clocked), {}, None)
    assert "Today is " in text
    assert "TEMPLATE always shows the date" in notes[0]
