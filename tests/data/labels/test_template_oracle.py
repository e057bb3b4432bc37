"""Compare the label rule with every chat template of TRL that has a training version.

The expected targets are computed here, from the served prompt and the answered text. They share no
code with the package.

A second comparison uses the training version of each template. Its generation markers were placed
by hand. Each way in which the two may differ has a name below; any other difference fails.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import trl

from lora_sft.data.drops import Drop
from lora_sft.data.examples.conversation import Conversation, Message
from lora_sft.data.labels.labelling import Labeller
from tests.data.sections import make_data
from tests.tiny import make_tokenizer

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
FAMILIES = sorted(
    path.name.removesuffix("_training.jinja") for path in TEMPLATES.glob("*_training.jinja")
)
NUM_FAMILIES = 31  # in trl 1.16; the test fails if an upgrade has fewer

# The stop tokens of each family's own tokenizer and generation config. The eos comes first.
STOPS = {
    "cohere": ["<|END_OF_TURN_TOKEN|>"],
    "cohere2": ["<|END_OF_TURN_TOKEN|>"],
    "deepseek_r1_distill": ["<｜end▁of▁sentence｜>"],
    "deepseekv3": ["<｜end▁of▁sentence｜>"],
    "diffusion_gemma": ["<turn|>", "<|tool_response>"],
    "gemma": ["<end_of_turn>"],
    "gemma3": ["<end_of_turn>"],
    "glm4moe": ["<|endoftext|>", "<|user|>", "<|observation|>"],
    "gptoss": ["<|return|>", "<|call|>"],
    "idefics3": ["<end_of_utterance>"],
    "llama3": ["<|eot_id|>"],
    "llava_next": ["</s>"],
    "muse_glimmer": ["<|eot|>"],
    "phi3": ["<|end|>"],
    "phi3_5": ["<|end|>"],
    "smolvlm": ["<end_of_utterance>"],
}
CHATML_STOPS = ["<|im_end|>"]
READS_PARTS = {"idefics3", "llava_next", "smolvlm"}
CONTROL_TOKEN = re.compile(r"<\|[a-zA-Z_0-9]+\|?>|<｜[^｜']+｜>|<[a-z]+_of_[a-z]+>|<[a-z_]+\|>")

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "the weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "a city"}},
        },
    },
}


def call(city: str, name: str) -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": {"city": city}}
    return {"type": "function", "id": name, "function": function}


def result(content: str, name: str) -> dict[str, Any]:
    return {"role": "tool", "content": content, "tool_call_id": name, "name": "get_weather"}


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def answer(content: str, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


BANK: dict[str, list[dict[str, Any]]] = {
    "one turn": [user("Who are you?"), answer("I am fine.")],
    "two turns": [user("Hello"), answer("I am fine."), user("What is 2 + 2?"), answer("4 Yes.")],
    "system": [{"role": "system", "content": "Be brief."}, user("Hello"), answer("Yes.")],
    "reasoning": [
        user("Hello"),
        answer("Yes.", reasoning_content="think hard"),
        user("And?"),
        answer("No.", reasoning_content="more thought"),
    ],
    "inline thinking": [user("Hello"), answer("<think>\nhmm\n</think>\n\nYes.")],
    "thinking in its field": [user("Hello"), answer("Yes.", reasoning_content="hmm")],
    "tool call": [
        user("The weather?"),
        {"role": "assistant", "tool_calls": [call("Paris", "abcdefghi")]},
        result("sunny", "abcdefghi"),
        answer("It is sunny."),
    ],
    "parallel calls": [
        user("The weather?"),
        {
            "role": "assistant",
            "tool_calls": [call("Paris", "abcdefghi"), call("Rome", "abcdefghj")],
        },
        result("sunny", "abcdefghi"),
        result("rain", "abcdefghj"),
        answer("Sun and rain."),
    ],
    "cut before the answer": [user("Hello"), answer("Yes."), user("And then?")],
}


def read_template(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text()


@cache
def load_family(family: str) -> Any:
    """Return a small tokenizer with the family's template and every control token in it."""
    template = read_template(family)
    stops = STOPS.get(family, CHATML_STOPS)
    tokenizer = make_tokenizer(template)
    texts = template + read_template(f"{family}_training")
    names = sorted({*CONTROL_TOKEN.findall(texts), *stops, "<|endoftext|>"})
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    tokenizer.eos_token = stops[0]
    return tokenizer


def find_tools(messages: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    return [WEATHER] if any("tool_calls" in message for message in messages) else None


def as_served(family: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages as a client sends them: vision models get typed parts."""
    if family not in READS_PARTS:
        return messages
    parts = [[{"type": "text", "text": each["content"]}] for each in messages]
    return [{**each, "content": part} for each, part in zip(messages, parts, strict=True)]


def render(family: str, name: str, count: int, *, served: bool) -> str:
    """Render the first `count` messages of a conversation of the bank with transformers."""
    return str(
        load_family(family).apply_chat_template(
            as_served(family, BANK[name][:count]),
            tools=find_tools(BANK[name]),
            tokenize=False,
            add_generation_prompt=served,
        )
    )


def label(family: str, messages: list[dict[str, Any]], **data: Any) -> Any:
    tokenizer = load_family(family)
    read = tuple(
        Message(
            each["role"],
            each.get("content"),
            tuple(each.get("tool_calls", ())),
            {k: v for k, v in each.items() if k not in ("role", "content", "tool_calls", "train")},
            each.get("train"),
        )
        for each in messages
    )
    stops = {tokenizer.convert_tokens_to_ids(stop) for stop in STOPS.get(family, CHATML_STOPS)}
    labeller = Labeller(make_data(loss_on="assistant", **data), tokenizer, stops)
    conversation = Conversation(read, tuple(find_tools(messages) or ()))
    return labeller.label([("bank", conversation)])[0]


def read_learned(family: str, rows: Any) -> dict[int, str]:
    """Return the learned text of each message, by the message's index."""
    decode = load_family(family).decode
    return {
        turn.message: decode(row.input_ids[turn.start : turn.end])
        for row in rows
        for turn in row.turns
    }


def find_expected(family: str, name: str, index: int) -> str | None:
    """Return the answered text after the served prompt, up to and including its first stop token.

    Returns: None if the answered text does not begin with the served prompt.
    """
    prompt = render(family, name, index, served=True)
    text = render(family, name, index + 1, served=False)
    if not text.startswith(prompt):
        return None
    rest = text[len(prompt) :]
    ends = [rest.index(s) + len(s) for s in STOPS.get(family, CHATML_STOPS) if s in rest]
    return rest[: min(ends)] if ends else rest  # GLM ends no turn in a stop token


@cache
def label_bank() -> dict[tuple[str, str], Any]:
    return {
        (family, name): label(family, messages)
        for family in FAMILIES
        for name, messages in BANK.items()
    }


def list_learned() -> dict[tuple[str, str], Any]:
    return {key: rows for key, rows in label_bank().items() if not isinstance(rows, Drop)}


def test_every_family_learns_conversations_and_most_of_the_bank_is_learned() -> None:
    assert len(FAMILIES) >= NUM_FAMILIES
    assert {family for family, _ in list_learned()} == set(FAMILIES)
    assert len(list_learned()) >= 182  # of 248; a test below has the reasons for the others


def test_the_learned_text_follows_the_served_prompt_and_ends_with_the_stop_token() -> None:
    compared = 0
    for (family, name), rows in list_learned().items():
        for index, learned in read_learned(family, rows).items():
            expected = find_expected(family, name, index)
            if expected is None:
                continue
            compared += 1
            if family == "glm4moe":  # the appended stop is the token that begins the next turn
                after_call = "tool_calls" in BANK[name][index]
                expected += "<|observation|>" if after_call else "<|user|>"
            if name == "inline thinking" and learned != expected:
                # The package moved the inline reasoning to its field.
                expected = find_expected(family, "thinking in its field", index)
            assert learned == expected, (family, name, index)
    assert compared >= 210


def test_every_answer_is_learned_and_no_question_is_learned() -> None:
    for (family, name), rows in list_learned().items():
        answers = {i for i, each in enumerate(BANK[name]) if each["role"] == "assistant"}
        assert set(read_learned(family, rows)) == answers, (family, name)
        for row in rows:
            learned = "".join(read_learned(family, [row]).values())
            asked = [each["content"] for each in BANK[name] if each["role"] in ("user", "system")]
            assert not any(question in learned for question in asked), (family, name)


# The same answer three times. The first one is not learned; the other two have reasoning.
SAME_ANSWERS = [
    user("First?"),
    answer("Same.", train=False),
    user("Second?"),
    answer("<think>\nA thought.\n</think>\n\nSame."),
    user("Third?"),
    answer("<think>\nAnother thought.\n</think>\n\nSame."),
]


@pytest.mark.parametrize("thinking", [True, False])
def test_in_place_finds_each_of_several_equal_answers_in_every_family(thinking: bool) -> None:
    messages = [each if thinking else strip_thinking(each) for each in SAME_ANSWERS]
    learned = {}
    for family in FAMILIES:
        rows = label(family, messages, rewritten_history="in_place")
        if isinstance(rows, Drop):
            assert rows.reason in ("content_lost", "template_refused"), (family, rows)
            continue
        (row,) = rows
        decode = load_family(family).decode
        assert [turn.message for turn in row.turns] == [3, 5], family
        for turn, questions in zip(row.turns, (2, 3), strict=True):
            text, before = decode(row.input_ids[turn.start : turn.end]), row.input_ids[: turn.start]
            assert "Same." in text, family
            assert "?" not in text, (family, text)
            assert decode(before).count("?") == questions, family
        learned[family] = row
    assert len(learned) >= (23 if thinking else 30), sorted(set(FAMILIES) - set(learned))


def strip_thinking(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "content": message["content"].rpartition("</think>")[2].strip()}


def test_each_row_begins_with_the_served_prompt() -> None:
    tokenizers = {family: load_family(family) for family in FAMILIES}
    for (family, name), rows in list_learned().items():
        for row in rows:
            last = row.turns[-1]
            prompt = render(family, name, last.message, served=True)
            found = tokenizers[family].decode(row.input_ids[: last.start])
            # In a row with several turns, earlier reasoning may differ from the served prompt.
            if name not in ("reasoning", "inline thinking") or len(row.turns) == 1:
                assert found == prompt, (family, name)


SPLICED = {
    "deepseek_r1_distill", "deepseekv3", "nemotron_3_5_lightning", "nemotron_3_nano",
    "nemotron_3_super", "nemotron_3_ultra",
}  # fmt: skip


def find_closing(family: str) -> str:
    """Return the text that a template writes between reasoning and answer.

    For a template that drops all reasoning, this is a closing mark on its own line.
    """
    prompt = render(family, "thinking in its field", 1, served=True)
    text = render(family, "thinking in its field", 2, served=False)
    if not text.startswith(prompt):
        return "\n</think>\n\n"
    thought, _, rest = text[len(prompt) :].partition("hmm")
    return thought + rest.partition("Yes.")[0]


def test_a_turn_is_spliced_if_the_template_drops_the_thinking_block_of_the_prompt() -> None:
    spliced = {
        family
        for (family, name), rows in list_learned().items()
        if name == "one turn" and rows[0].built == "spliced"
    }
    assert spliced == SPLICED | {"glm4moe"}  # GLM's stop token is appended
    for family in sorted(SPLICED):
        stop = STOPS.get(family, CHATML_STOPS)[0]
        rows = label_bank()[family, "one turn"]
        assert read_learned(family, rows) == {1: f"{find_closing(family)}I am fine.{stop}"}
    reasoned = label_bank()["deepseek_r1_distill", "reasoning"]
    stop = STOPS["deepseek_r1_distill"][0]
    assert read_learned("deepseek_r1_distill", reasoned) == {
        1: f"think hard\n</think>\n\nYes.{stop}",
        3: f"more thought\n</think>\n\nNo.{stop}",
    }


EXACT_TEXTS = {
    ("qwen3", "two turns"): ["<think>\n\n</think>\n\nI am fine.<|im_end|>"],
    ("gptoss", "two turns"): ["<|channel|>final<|message|>I am fine.<|return|>"],
    ("gptoss", "tool call"): [
        ' to=functions.get_weather<|channel|>commentary json<|message|>{"city": "Paris"}<|call|>',
        "<|channel|>final<|message|>It is sunny.<|return|>",
    ],
    ("phi3", "two turns"): ["I am fine.<|end|>", "4 Yes.<|end|>"],
    ("glm4moe", "reasoning"): ["\n<think>think hard</think>\nYes.<|user|>"],
    ("nemotron_3_nano", "tool call"): [
        "\n</think>\n<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n"
        "</function>\n</tool_call>\n<|im_end|>",
    ],
    ("diffusion_gemma", "tool call"): [
        '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>}<tool_call|><|tool_response>',
        "<|turn>model\nIt is sunny.<turn|>",
    ],
}


@pytest.mark.parametrize(("key", "first_row"), EXACT_TEXTS.items(), ids=" ".join)
def test_the_exact_learned_texts_of_unusual_templates(
    key: tuple[str, str], first_row: list[str]
) -> None:
    rows = label_bank()[key]
    assert list(read_learned(key[0], rows[:1]).values()) == first_row


@pytest.mark.parametrize(
    ("family", "name", "reason", "detail"),
    [
        ("gptoss", "parallel calls", "content_lost", "Rome"),  # it renders the first call only
        ("llama3", "tool call", "content_lost", "get_weather"),
        ("qwen2_5", "reasoning", "content_lost", "think hard"),
        ("qwen3_5_nothink", "reasoning", "content_lost", "closed its thinking block"),
        ("gemma", "system", "template_refused", "System role not supported"),
    ],
)
def test_a_conversation_that_cannot_be_learned_is_dropped_with_its_reason(
    family: str, name: str, reason: str, detail: str
) -> None:
    drop = label_bank()[family, name]
    assert isinstance(drop, Drop)
    assert drop.reason == reason
    assert detail in drop.detail


def call_weather(**fields: Any) -> list[dict[str, Any]]:
    """Return a question, a call with these fields, its result, and an answer with reasoning."""
    called = {"role": "assistant", "tool_calls": [call("Paris", "abcdefghi")], **fields}
    return [
        user("The weather?"),
        called,
        result("sunny", "abcdefghi"),
        answer("It is sunny.", reasoning_content="so sunny"),
    ]


@pytest.mark.parametrize("thought", ["reasoning_content", "content"])
def test_an_answer_keeps_its_markup_if_the_template_rewrites_the_call_before_it(
    thought: str,
) -> None:
    """gpt-oss drops the reasoning or the content of a call once a final answer follows."""
    rows = label("gptoss", call_weather(**{thought: "I should call."}))
    assert [row.built for row in rows] == ["spliced"]  # one row holds the call and the answer
    learned = read_learned("gptoss", rows)
    assert learned[1].startswith("<|channel|>analysis<|message|>I should call.<|end|>")
    assert learned[3] == (
        "<|channel|>analysis<|message|>so sunny<|end|>"
        "<|start|>assistant<|channel|>final<|message|>It is sunny.<|return|>"
    )


def test_a_row_is_dropped_if_the_message_before_the_answer_is_rendered_with_another_end() -> None:
    drop = label("diffusion_gemma", call_weather(content="Let me look."))
    assert isinstance(drop, Drop)
    assert (drop.reason, drop.detail.partition(" the ")[0]) == (
        "not_prefix_stable", "before message 3",
    )  # fmt: skip


@pytest.mark.parametrize("family", ["qwen3_5_think", "deepseek_r1_distill"])
def test_in_place_an_answer_that_begins_like_a_thinking_mark_is_found(family: str) -> None:
    page = [user("A page?"), answer("<html>hi</html>"), user("More?"), answer("<b>x</b>")]
    rows = label(family, page, rewritten_history="in_place")
    stop = STOPS.get(family, CHATML_STOPS)[0]
    assert read_learned(family, rows) == {
        1: f"<html>hi</html>{stop}", 3: f"\n</think>\n\n<b>x</b>{stop}",
    }  # fmt: skip


@pytest.mark.parametrize("content", ["user", "s", ">", "one\nuser"])
def test_an_appended_stop_is_found_if_the_answer_is_a_part_of_it(content: str) -> None:
    rows = label("glm4moe", [user("Hello"), answer(content)])
    assert read_learned("glm4moe", rows) == {1: f"\n<think></think>\n{content}<|user|>"}


# The ways in which a training template learns other text than the served model must produce, and
# the families that have each of them. No other difference is accepted.
NEWLINE_AFTER_STOP = "learns the newline after the stop"
GIVEN_HEADER = "learns the header that the generation prompt gives"
DEEPSEEK_HEADER = "<｜Assistant｜>"
EXCEPTIONS: dict[str, set[str]] = {
    NEWLINE_AFTER_STOP: {
        "diffusion_gemma", "gemma", "gemma3", "idefics3", "lfm2", "lfm2_v2",
        "nemotron_3_5_lightning", "nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra", "phi3",
        "phi3_5", "qwen2_5",
        "qwen2_5_vl", "qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6", "qwen3_8",
        "qwen3_instruct_2507", "qwen3_vl", "smolvlm",
    },
    GIVEN_HEADER: {
        "deepseek_r1_distill", "deepseekv3", "gptoss", "muse_glimmer", "nemotron_3_5_lightning",
        "nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra", "qwen2_5", "qwen3_5_nothink",
        "qwen3_5_think", "qwen3_6", "qwen3_8",
    },
    "lacks the closing </think> after the prompt's <think>": SPLICED,
    "ends earlier turns in <|end|>, not <|return|>": {"gptoss"},
    "loses the reasoning of earlier turns": {
        "deepseek_r1_distill", "deepseekv3", "diffusion_gemma", "glm4moe", "gptoss",
        "nemotron_3_5_lightning", "nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra",
    },
    "lacks <|tool_response>, which ends a call": {"diffusion_gemma"},
    "lacks the answer's header after a tool result": {"diffusion_gemma"},
}  # fmt: skip


def read_training_texts(family: str, name: str) -> list[str]:
    """Return the texts that the training template marks as learned."""
    messages, tokenizer = BANK[name], load_family(family)
    given = tokenizer.apply_chat_template(
        as_served(family, messages),
        tools=find_tools(messages),
        chat_template=read_template(f"{family}_training"),
        return_assistant_tokens_mask=True,
        return_dict=True,
    )
    texts: list[str] = []
    current: list[int] = []
    for token, learned in zip(
        [*given["input_ids"], 0], [*given["assistant_masks"], 0], strict=True
    ):
        if learned:
            current.append(token)
        elif current:
            texts.append(tokenizer.decode(current))
            current = []
    return texts


def strip_given_parts(family: str, name: str, index: int, theirs: str) -> tuple[str, set[str]]:
    """Return a training template's text without header and final newline, and the parts removed."""
    differences = set()
    body = theirs.rstrip("\n")
    if body != theirs:
        differences.add(NEWLINE_AFTER_STOP)
    if family in ("phi3", "phi3_5"):  # they also learn the eos that ends the conversation
        body = body.removesuffix("\n<|end|>")
    prompt = render(family, name, index, served=True)
    given = next((i for i in range(len(prompt)) if body.startswith(prompt[i:])), len(prompt))
    if given < len(prompt):
        differences.add(GIVEN_HEADER)
        body = body[len(prompt) - given :]
    if body.startswith(DEEPSEEK_HEADER):  # DeepSeek's text lacks the <think> of the prompt
        differences.add(GIVEN_HEADER)
        body = body.removeprefix(DEEPSEEK_HEADER)
    return body, differences


def name_differences(family: str, name: str, index: int, ours: str, theirs: str) -> set[str]:
    """Return the names of the differences between our text and the training template's text."""
    body, differences = strip_given_parts(family, name, index, theirs)
    stop = next((s for s in STOPS.get(family, CHATML_STOPS) if ours.endswith(s)), "")
    if body == ours:
        return differences
    if family == "gptoss" and body.endswith("<|end|>"):
        differences.add("ends earlier turns in <|end|>, not <|return|>")
        body = body.removesuffix("<|end|>") + stop
    if family == "diffusion_gemma" and ours == f"{body}<|tool_response>":
        return differences | {"lacks <|tool_response>, which ends a call"}
    if family == "diffusion_gemma" and ours == f"<|turn>model\n{body}":
        return differences | {"lacks the answer's header after a tool result"}
    reasoning = BANK[name][index].get("reasoning_content", "")
    if reasoning and reasoning in ours and reasoning not in body:
        return differences | {"loses the reasoning of earlier turns"}
    if family in SPLICED and ours.endswith(body.removeprefix("<think></think>")):
        return differences | {"lacks the closing </think> after the prompt's <think>"}
    return differences if body == ours else differences | {f"UNNAMED: {body!r}, not {ours!r}"}


def test_the_training_templates_learn_the_same_text_except_for_named_differences() -> None:
    found: dict[str, set[str]] = {}
    compared = 0
    for (family, name), rows in list_learned().items():
        if name == "inline thinking":
            continue
        learned = read_learned(family, rows)
        training_texts = read_training_texts(family, name)
        assert len(training_texts) == len(learned), (family, name)
        for (index, ours), theirs in zip(sorted(learned.items()), training_texts, strict=True):
            compared += 1
            for difference in name_differences(family, name, index, ours, theirs):
                found.setdefault(difference, set()).add(family)
    assert compared >= 230
    assert len(EXCEPTIONS) <= 10
    unnamed = {name for name in found if name.startswith("UNNAMED")}
    assert unnamed == set()
    assert found == EXCEPTIONS
