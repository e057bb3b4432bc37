"""A template that never ends, or that fills the memory, is stopped. Real templates never are."""

from __future__ import annotations

import ast
import copy
import json
import os
import re
import resource
import time
from importlib.resources import files
from pathlib import Path

import pytest

import lora_sft
from lora_sft.data.templates import render_budget
from lora_sft.data.templates.prompt_text import render_prompt, tokenize_prompt
from lora_sft.data.templates.render_budget import TemplateOverBudget
from lora_sft.data.templates.rendering import ChatRenderer, TemplateRefusal
from lora_sft.data.templates.template_environment import compile_template
from lora_sft.errors import DataError
from lora_sft.export.proof.verification import make_prompts
from lora_sft.export.serving import ollama, serving_files
from lora_sft.serve.loaded_model import LoadedModel
from tests.data.templates.template_bombs import BOMBS, loop_twice
from tests.tiny import CHATML, make_tokenizer

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
MOST_SECONDS, MOST_MIB = 5, 500
HARD_LIMIT_BYTES = 8 * 2**30  # of addresses; a bomb that is not stopped gets a MemoryError
HEADROOM = 20
TEMPLATES = sorted(
    path for path in files("trl").joinpath("chat_templates").iterdir() if path.suffix == ".jinja"
)


def run_bomb(template: str) -> dict:
    """Render a template in a process of its own. Return the error, its CPU seconds and its MiB."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (2 * MOST_SECONDS,) * 2)
        resource.setrlimit(resource.RLIMIT_AS, (HARD_LIMIT_BYTES,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.process_time()
        try:
            compile_template(template).render(messages=CHAT, tools=None)
            found = "rendered"
        except BaseException as error:
            found = type(error).__name__
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        seconds = time.process_time() - start
        os.write(writer, json.dumps({"error": found, "s": seconds, "mib": used / 1024}).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(process, 0)
    with os.fdopen(reader) as answer:
        return json.loads(answer.read() or '{"error": "killed"}')


def test_the_bank_has_many_bombs():
    assert len(BOMBS) >= 80


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_stopped_in_five_seconds_and_500_mib(name):
    outcome = run_bomb(BOMBS[name])
    assert outcome["error"] == "TemplateOverBudget"
    assert outcome["s"] < MOST_SECONDS
    assert outcome["mib"] < MOST_MIB


def make_conversation(turns: int, characters: int, as_parts: bool) -> list[dict]:
    text = ("The quick brown fox. " * (characters // 20))[:characters]
    messages = []
    for turn in range(turns // 2):
        messages.append({"role": "user", "content": f"{turn} {text}"})
        messages.append({"role": "assistant", "content": f"<think>\nhm\n</think>\n\n{text}"})
    if as_parts:
        messages = [
            {**each, "content": [{"type": "text", "text": each["content"]}]} for each in messages
        ]
    return messages


def make_tools(count: int) -> list[dict]:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": []}
    return [
        {
            "type": "function",
            "function": {"name": f"f{number}", "description": "A call", "parameters": parameters},
        }
        for number in range(count)
    ]


def render_within_a_share(monkeypatch, template, messages, tools) -> bool:
    """Render with a budget that is HEADROOM times smaller. Return whether the template can."""
    for name in ("RENDER_WORK", "WORK_PER_INPUT", "REREADING_WORK"):
        monkeypatch.setattr(render_budget, name, getattr(render_budget, name) / HEADROOM)
    try:
        text = compile_template(template).render(
            messages=messages, tools=tools, documents=None, bos_token="<b>", eos_token="<e>"
        )
    except TemplateOverBudget:
        raise
    except Exception:
        return False  # the template refuses these messages
    return bool(text)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_a_real_template_needs_a_twentieth_of_the_budget(monkeypatch, path):
    rendered = 0
    for as_parts in (False, True):
        if not as_parts and ("idefics" in path.stem or "smolvlm" in path.stem):
            continue  # they read a text as a list of characters, and lora-sft gives them parts
        for tools in (None, make_tools(20)):
            messages = make_conversation(100, 1_000, as_parts)
            with monkeypatch.context() as patch:
                rendered += render_within_a_share(patch, path.read_text(), messages, tools)
    assert rendered


@pytest.mark.parametrize(
    ("name", "turns", "characters", "num_tools"),
    [
        ("gemma4", 1_000, 40, 0),
        ("qwen3", 2_000, 300, 0),
        ("qwen3", 10, 100_000, 0),
        ("lfm2", 4, 100, 500),
        ("qwen3", 4, 100, 500),
    ],
)
def test_a_huge_conversation_needs_a_twentieth_of_the_budget(
    monkeypatch, name, turns, characters, num_tools
):
    (path,) = (path for path in TEMPLATES if path.stem == name)
    messages = make_conversation(turns, characters, as_parts=False)
    tools = make_tools(num_tools) or None
    assert render_within_a_share(monkeypatch, path.read_text(), messages, tools)


def test_a_long_answer_is_not_too_long_a_text():
    messages = [{"role": "user", "content": "x" * 3_000_000}]
    assert "x" * 3_000_000 in render_prompt(make_tokenizer(CHATML), messages, {})


BOMB = "\n\n" + BOMBS["nested loops"]


def test_the_error_names_the_template_and_its_line(tmp_path):
    tokenizer = make_tokenizer(BOMB)
    tokenizer.name_or_path = "some/model"
    with pytest.raises(DataError) as caught:
        render_prompt(tokenizer, CHAT, {})
    assert caught.value.where == "the tokenizer's own template: some/model, line 3"
    assert "asks for too much work" in caught.value.what
    assert "data.chat_template" in caught.value.fix
    renderer = ChatRenderer(tokenizer, {}, chat_template="mine.jinja")
    with pytest.raises(DataError) as caught:
        renderer.find_end_of_turn(re.compile("x"), re.compile("x"))
    assert caught.value.where == "data.chat_template: mine.jinja, line 3"


def test_a_process_of_the_preparation_can_send_the_error():
    error = TemplateOverBudget("its loops are too long", 3).at("data.chat_template: a.jinja")
    again = copy.copy(error)  # as pickle does
    assert str(again) == str(error)
    assert again.exit_code == 3


def make_prompt_of_server(tokenizer):
    return LoadedModel("m", None, tokenizer, [], None).make_prompt(CHAT, {})


DOORS = {
    "serve and chat": make_prompt_of_server,
    "verification": make_prompts,
    "export": lambda tokenizer: serving_files.make_prompt(tokenizer, [("user", "a")], {}),
    "Modelfile": ollama.find_chat_pieces,
    "requests": lambda tokenizer: tokenize_prompt(tokenizer, CHAT),
}


@pytest.mark.parametrize("door", DOORS)
def test_every_command_stops_at_a_bomb(door):
    with pytest.raises(TemplateOverBudget):
        DOORS[door](make_tokenizer(BOMB))


def test_a_refusal_of_the_template_is_not_a_bomb():
    tokenizer = make_tokenizer("{{ raise_exception('no') }}")
    with pytest.raises(TemplateRefusal, match="TemplateError: no"):
        render_prompt(tokenizer, CHAT, {})
    assert serving_files.make_prompt(tokenizer, [("user", "a")], {}) == "TemplateError: no"


@pytest.mark.parametrize("served", [False, True])
def test_a_prompt_is_the_text_of_transformers(served):
    tokenizer = make_tokenizer(
        CHATML + "{{ tools }}{{ documents }}{{ x }}{{ messages[0].keys()|list }}{{ bos_token }}"
    )
    tools, chat = make_tools(2), [{**CHAT[0], "name": None}, CHAT[1]]
    expected = tokenizer.apply_chat_template(
        chat, tools, add_generation_prompt=served, tokenize=False, x={"a": [1, None]}
    )
    variables = {"x": {"a": [1, None]}}
    assert render_prompt(tokenizer, chat, variables, tools, served=served) == expected
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert tokenize_prompt(tokenizer, chat) == ids


# These render or compile a template. The page of the preview is a template of lora-sft itself.
RENDERING = {
    "apply_chat_template",
    "render_jinja_template",
    "from_string",
    "_compile_jinja_template",
}
DOOR = "data/templates/template_environment.py"
OWN_PAGE = "data/preview/page.py"


def test_no_other_file_renders_a_template_without_a_budget():
    package, found = Path(lora_sft.__file__).parent, set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if name in RENDERING or name.endswith("Environment"):
                    found.add(path.relative_to(package).as_posix())
    assert found == {DOOR, OWN_PAGE}


def test_the_date_of_a_prompt_is_the_current_one():
    text = compile_template("{{ strftime_now('%Y') }}").render(messages=CHAT)
    assert text == time.strftime("%Y")


def test_loops_that_end_are_rendered():
    assert compile_template(loop_twice("").replace("99999", "99")).render(messages=CHAT) == ""
