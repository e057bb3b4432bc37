"""Compare the label rule with targets that are computed here from rendered texts.

`expected_target` follows docs/label-rule.md and shares no code with the package. It renders the
served prompt (the earlier messages with the generation prompt) and the answered text (with the
turn). The target is the answered text after the served prompt, up to its stop token.
"""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_sft.data.drops import Drop
from lora_sft.data.examples.conversation import Conversation, Message, PlainText, PromptCompletion
from lora_sft.data.labelled_row import IGNORED_LABEL
from lora_sft.data.labels.labelling import Labeller
from lora_sft.errors import DataError
from tests import tiny
from tests.data.sections import make_chat, make_data

CHAT = make_chat("Who are you?", "A fox.", "What is 2 + 2?", " 4\n\nYes. ")
TEMPLATES = (
    tiny.CHATML,
    tiny.LLAMA3,
    tiny.THINK_DROPPED_FROM_HISTORY,
    tiny.EOS_AFTER_CONVERSATION,
    tiny.PROMPT_OPENS_THINKING,
    tiny.NO_END_OF_TURN,
)
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}


def label(tokenizer, example, **data):
    if isinstance(example, list):
        messages = [
            Message(
                row["role"],
                row.get("content"),
                tuple(row.get("tool_calls", ())),
                train=row.get("train"),
            )
            for row in example
        ]
        example = Conversation(tuple(messages))
    labeller = Labeller(make_data(**data), tokenizer, {tokenizer.eos_token_id})
    return labeller.label([("rows.jsonl:1", example)])[0]


@cache
def load_template(template):
    eos = "<|im_end|>" if "im_end" in template else "<|eot|>" if "<|eot|>" in template else "</s>"
    return tiny.make_tokenizer(template, eos_token=eos)


def expected_target(tokenizer, messages, index, stop):
    prompt = tokenizer.apply_chat_template(
        messages[:index], tokenize=False, add_generation_prompt=True
    )
    text = tokenizer.apply_chat_template(messages[: index + 1], tokenize=False)
    assert text.startswith(prompt)
    answer = text[len(prompt) :]
    return answer[: answer.index(stop) + len(stop)]


def check_labels_are_exactly_the_turns(row):
    assert row.labels[0] == IGNORED_LABEL
    learned = {i for turn in row.turns for i in range(turn.start, turn.end)}
    for i, (token, label) in enumerate(zip(row.input_ids, row.labels, strict=True)):
        assert label == (token if i in learned else IGNORED_LABEL)


def decode_turns(tokenizer, row):
    return [tokenizer.decode(row.input_ids[turn.start : turn.end]) for turn in row.turns]


@pytest.mark.parametrize(
    ("template", "stop"),
    [
        (tiny.CHATML, "<|im_end|>"),
        (tiny.LLAMA3, "<|eot|>"),
        (tiny.EOS_AFTER_CONVERSATION, "<|eot|>"),
        (tiny.THINK_DROPPED_FROM_HISTORY, "<|im_end|>"),
    ],
)
@pytest.mark.parametrize("contents", [CHAT[:2], CHAT, CHAT[:3], make_chat("é☃", "🦊é́", "x", "")])
def test_the_learned_text_is_the_text_that_the_served_model_must_produce(template, stop, contents):
    eos = "<|im_end|>" if "im_end" in template else "</s>"
    tokenizer = tiny.make_tokenizer(template, eos_token=eos)
    rows = label(tokenizer, contents)
    answers = [i for i, message in enumerate(contents) if message["role"] == "assistant"]
    assert len(rows) == 1
    row = rows[0]
    check_labels_are_exactly_the_turns(row)
    assert [turn.message for turn in row.turns] == answers
    assert {turn.role for turn in row.turns} == {"assistant"}
    expected = [expected_target(tokenizer, contents, index, stop) for index in answers]
    assert decode_turns(tokenizer, row) == expected
    if row.built == "rendered":
        ids = tokenizer.apply_chat_template(contents, tokenize=True, return_dict=False)
        assert row.input_ids == ids


def test_the_newline_after_the_stop_is_never_learned():
    tokenizer = tiny.make_tokenizer(tiny.CHATML)
    (row,) = label(tokenizer, CHAT)
    for turn in row.turns:
        assert row.input_ids[turn.end - 1] == tokenizer.eos_token_id
        assert tokenizer.decode([row.input_ids[turn.end]]) == "\n"
        assert row.labels[turn.end] == IGNORED_LABEL


def test_the_stop_token_is_learned_even_if_it_is_also_the_padding_token():
    tokenizer = tiny.make_tokenizer(tiny.CHATML, pad_token="<|im_end|>")
    (row,) = label(tokenizer, CHAT)
    assert row.labels.count(tokenizer.pad_token_id) == 2


def test_the_templates_own_end_of_turn_is_a_stop_token_without_being_named():
    tokenizer = tiny.make_tokenizer(tiny.LLAMA3, eos_token="</s>")
    labeller = Labeller(make_data(), tokenizer, {tokenizer.eos_token_id})
    expected = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|eot|>")}
    assert labeller.stop_token_ids == expected


def test_a_separator_before_the_end_of_turn_is_learned_and_does_not_end_the_turn():
    template = tiny.LLAMA3.replace("'<|eot|>' -}}", "'<|endoftext|><|eot|>' -}}")
    for eos in ("</s>", "<|eot|>"):
        tokenizer = tiny.make_tokenizer(template, eos_token=eos)
        (row,) = label(tokenizer, CHAT)
        assert decode_turns(tokenizer, row)[0] == "A fox.<|endoftext|><|eot|>"


def test_an_answer_with_another_end_in_history_is_learned_as_served():
    template = tiny.LLAMA3.replace(
        "'<|eot|>' -}}",
        "('<|eot|>' if loop.last and message.role == 'assistant' else '<|endoftext|>') -}}",
    )
    tokenizer = tiny.make_tokenizer(template, eos_token="</s>")
    rows = label(tokenizer, CHAT)
    assert [decode_turns(tokenizer, row) for row in rows] == [
        ["A fox.<|eot|>"],
        ["4\n\nYes.<|eot|>"],
    ]


THOUGHTS = make_chat("a", "<think>one</think> b", "c", "<think>two</think> d", "e", "f")


def test_rewritten_history_gives_one_row_per_turn_as_served():
    tokenizer = tiny.make_tokenizer(tiny.THINK_DROPPED_FROM_HISTORY)
    rows = label(tokenizer, THOUGHTS)
    assert [row.turns[0].message for row in rows] == [1, 3, 5]
    for row in rows:
        index = row.turns[0].message
        served = THOUGHTS[: index + 1]
        assert row.input_ids == tokenizer.apply_chat_template(served, return_dict=False)
        expected = expected_target(tokenizer, THOUGHTS, index, "<|im_end|>")
        assert decode_turns(tokenizer, row) == [expected]
        check_labels_are_exactly_the_turns(row)
    assert "<think>two</think>" in tokenizer.decode(rows[1].input_ids)
    assert "<think>one</think>" not in tokenizer.decode(rows[1].input_ids)


def test_rewritten_history_can_keep_the_last_turn_or_be_an_error():
    tokenizer = tiny.make_tokenizer(tiny.THINK_DROPPED_FROM_HISTORY)
    rows = label(tokenizer, THOUGHTS, rewritten_history="last")
    assert [row.turns[0].message for row in rows] == [5]
    with pytest.raises(DataError, match="renders earlier turns differently"):
        label(tokenizer, THOUGHTS, rewritten_history="error")


@pytest.mark.parametrize(
    ("template", "messages", "reason", "detail"),
    [
        (
            tiny.PROMPT_OPENS_THINKING,
            [CHAT[0], {"role": "assistant", "content": "Let me see", "tool_calls": [CALL]}],
            "not_prefix_stable",
            "<think>",
        ),
        (tiny.NO_SPECIAL_TOKENS, CHAT, "no_stop_token", "fox"),
        ("{%- if false -%}{%- endif -%}", CHAT, "no_stop_token", "ends in ''"),
        (tiny.CHATML, make_chat("a <|im_end|> b", "c"), "special_tokens", "<|im_end|>"),
        (tiny.CHATML, make_chat("only asked"), "no_target", ""),
        (tiny.TEXT_LOST_BESIDE_CALLS, [{"role": "odd", "content": "a"}], "template_refused", "no"),
        (
            tiny.TEXT_LOST_BESIDE_CALLS,
            [CHAT[0], {"role": "assistant", "content": "Let me see", "tool_calls": [CALL]}],
            "content_lost",
            "Let me see",
        ),
        (
            tiny.EOS_AFTER_CONVERSATION,
            [CHAT[0], {"role": "assistant", "content": "", "tool_calls": [CALL]}],
            "content_lost",
            "get_weather",
        ),
        (tiny.CHATML, make_chat("a", "half \ud800 a pair"), "malformed", "surrogate"),
    ],
)
def test_a_drop_has_the_right_reason_and_detail(template, messages, reason, detail):
    eos = "<|im_end|>" if "im_end" in template else "</s>"
    result = label(tiny.make_tokenizer(template, eos_token=eos), messages)
    assert isinstance(result, Drop)
    assert result.reason == reason
    assert detail in result.detail


def test_a_thinking_block_that_the_prompt_opens_is_closed_before_the_answer():
    tokenizer = tiny.make_tokenizer(tiny.PROMPT_OPENS_THINKING)
    (row,) = label(tokenizer, make_chat("a", "<think>\nhmm\n</think>\n\nYes.", "b", "No."))
    assert decode_turns(tokenizer, row) == [  # here history shows the first turn as it is served
        "hmm\n</think>\n\nYes.<|im_end|>",
        "\n</think>\n\nNo.<|im_end|>",
    ]
    rows = label(tokenizer, make_chat("a", "Yes.", "b", "No."))  # here history differs
    assert [decode_turns(tokenizer, row) for row in rows] == [
        ["\n</think>\n\nYes.<|im_end|>"],
        ["\n</think>\n\nNo.<|im_end|>"],
    ]
    for each in (row, *rows):
        assert each.built == "spliced"
        prompt = tokenizer.decode(each.input_ids[: each.turns[-1].start])
        assert prompt.endswith("<|im_start|>assistant\n<think>\n")
        check_labels_are_exactly_the_turns(each)


def test_an_answer_follows_its_served_prompt_if_the_answered_text_loses_the_system_message():
    tokenizer = load_template(tiny.SYSTEM_BEFORE_LAST_USER)
    system = {"role": "system", "content": "Be brief."}
    rows = label(tokenizer, [system, *make_chat("a", "A fox.", "b", "Yes.")])
    assert [decode_turns(tokenizer, row) for row in rows] == [[" A fox.<|eot|>"], [" Yes.<|eot|>"]]
    for row in rows:
        assert row.built == "spliced"
        assert "Be brief." in tokenizer.decode(row.input_ids[: row.turns[0].start])
        check_labels_are_exactly_the_turns(row)


def test_a_turn_without_an_end_learns_the_token_that_begins_the_next_turn():
    tokenizer = tiny.make_tokenizer(tiny.NO_END_OF_TURN, eos_token="</s>")
    (row,) = label(tokenizer, make_chat("a", "A fox.", "b", "Yes."))
    assert decode_turns(tokenizer, row) == ["A fox.<|h|>", "Yes.<|h|>"]
    assert row.built == "spliced"
    assert tokenizer.convert_ids_to_tokens(row.input_ids[-1]) == "<|h|>"
    (cut,) = label(tokenizer, make_chat("a", "A fox.", "b"))
    assert decode_turns(tokenizer, cut) == ["A fox.<|h|>"]


def test_a_row_is_dropped_if_the_template_leaves_out_a_tool_argument():
    tokenizer = tiny.make_tokenizer(tiny.FIRST_CALL_ONLY)
    other = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Rôme"}}}
    (row,) = label(tokenizer, [CHAT[0], {"role": "assistant", "tool_calls": [other]}])
    assert "Rôme" in decode_turns(tokenizer, row)[0]
    dropped = label(tokenizer, [CHAT[0], {"role": "assistant", "tool_calls": [CALL, other]}])
    assert isinstance(dropped, Drop)
    assert dropped.reason == "content_lost"
    assert "Rôme" in dropped.detail


def test_a_tool_call_is_learned_with_its_markup():
    tokenizer = tiny.make_tokenizer(tiny.CHATML)
    messages = [
        CHAT[0],
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "sunny"},
        {"role": "assistant", "content": "It is sunny."},
    ]
    (row,) = label(tokenizer, messages)
    first, second = decode_turns(tokenizer, row)
    assert first.startswith("<tool_call>{")
    assert "get_weather" in first
    assert first.endswith("</tool_call><|im_end|>")
    assert second == "It is sunny.<|im_end|>"


def test_loss_on_chooses_the_turns():
    tokenizer = tiny.make_tokenizer()

    def learned(example, **data):
        result = label(tokenizer, example, **data)
        return [] if isinstance(result, Drop) else [turn.message for turn in result[0].turns]

    assert learned(CHAT) == [1, 3]
    assert learned(CHAT, loss_on="last_assistant") == [3]
    assert learned([CHAT[0], {**CHAT[1], "train": False}, *CHAT[2:]]) == [3]
    assert learned([CHAT[1], *CHAT]) == [2, 4], "an answer that opens the conversation is context"
    assert learned([*CHAT, CHAT[1]]) == [1, 3, 4], "two answers in a row are both learned"
    split = Conversation(tuple(Message(**message) for message in CHAT), completion_start=2)
    assert learned(split) == [3]
    assert learned(split, loss_on="assistant") == [1, 3]
    with pytest.raises(DataError, match="loss_on: completion"):
        learned(CHAT, loss_on="completion")


def test_loss_on_all_learns_every_token_but_the_first():
    (row,) = label(tiny.make_tokenizer(), CHAT, loss_on="all")
    assert row.labels[1:] == row.input_ids[1:]
    with pytest.raises(DataError, match="train: false"):
        label(tiny.make_tokenizer(), [CHAT[0], {**CHAT[1], "train": False}], loss_on="all")


def test_special_tokens_in_content_can_be_an_error_or_be_allowed():
    tokenizer = tiny.make_tokenizer()
    hostile = make_chat("a<|im_start|>b", "c")
    with pytest.raises(DataError, match=r"<\|im_start\|>") as caught:
        label(tokenizer, hostile, special_tokens_in_content="error")
    assert caught.value.where == "rows.jsonl:1"
    (row,) = label(tokenizer, hostile, special_tokens_in_content="allow")
    assert decode_turns(tokenizer, row) == ["c<|im_end|>"]


def test_an_answer_with_a_stop_token_in_its_own_text_is_dropped_as_content_lost():
    hostile = make_chat("a", "b<|im_end|>c")
    result = label(tiny.make_tokenizer(), hostile, special_tokens_in_content="allow")
    assert result.reason == "content_lost"


WORD_ACROSS_THE_BORDER = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + ' T' + message.content + '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant T' -}}{%- endif -%}
"""


def test_a_token_that_crosses_the_border_is_split_as_it_is_served():
    tokenizer = tiny.make_tokenizer(WORD_ACROSS_THE_BORDER)
    chat = make_chat("a", "he fox", "b", "he dog")
    (row,) = label(tokenizer, chat)
    assert row.built == "boundary"
    assert row.input_ids != tokenizer.apply_chat_template(chat, return_dict=False)
    prompt = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, return_dict=False)
    assert row.input_ids[: row.turns[0].start] == prompt
    assert decode_turns(tokenizer, row) == ["he fox<|im_end|>", "he dog<|im_end|>"]
    assert tokenizer.decode(row.input_ids) == tokenizer.apply_chat_template(chat, tokenize=False)
    check_labels_are_exactly_the_turns(row)


def test_a_template_that_writes_bos_twice_is_an_error():
    with pytest.raises(DataError, match="twice"):
        label(tiny.make_tokenizer("{{- bos_token -}}" + tiny.LLAMA3), CHAT)


def test_the_error_for_a_missing_chat_template_suggests_the_plain_template():
    with pytest.raises(DataError) as caught:
        label(tiny.make_tokenizer(None), CHAT)
    assert "data.chat_template: plain" in caught.value.fix


def test_template_arguments_of_a_row_override_those_of_the_recipe():
    template = "{{- style -}}" + tiny.CHATML
    tokenizer = tiny.make_tokenizer(template)
    messages = tuple(Message(**message) for message in CHAT[:2])
    example = Conversation(messages, template_kwargs={"style": "mine"})
    (row,) = label(tokenizer, example, chat_template_kwargs={"style": "theirs"})
    assert tokenizer.decode(row.input_ids).startswith("mine<|im_start|>")


def test_a_completion_is_learned_with_eos_and_its_prompt_is_not_learned():
    tokenizer = tiny.make_tokenizer(None)
    (row,) = label(tokenizer, PromptCompletion("What is 2 + 2?", " 4"))
    check_labels_are_exactly_the_turns(row)
    assert row.input_ids == [*tokenizer.encode("What is 2 + 2? 4"), tokenizer.eos_token_id]
    assert decode_turns(tokenizer, row) == [" 4<|im_end|>"]
    assert (row.turns[0].message, row.built) == (None, "rendered")


def test_a_prompts_trailing_spaces_move_to_the_completion():
    tokenizer = tiny.make_tokenizer(None)
    (row,) = label(tokenizer, PromptCompletion("text || ", "The"))
    assert decode_turns(tokenizer, row) == [" The<|im_end|>"]
    assert row.built == "boundary"


def test_a_completion_that_would_merge_with_its_prompt_is_tokenised_separately():
    tokenizer = tiny.make_tokenizer(None)
    assert len(tokenizer.encode("The")) < len(tokenizer.encode("T")) + len(tokenizer.encode("he"))
    (row,) = label(tokenizer, PromptCompletion("T", "he"))
    assert row.input_ids[: row.turns[0].start] == tokenizer.encode("T")
    assert decode_turns(tokenizer, row) == ["he<|im_end|>"]
    assert row.built == "boundary"


def test_the_whole_of_a_plain_text_is_learned():
    tokenizer = tiny.make_tokenizer(None)
    (row,) = label(tokenizer, PlainText("Hello there"))
    assert row.labels[1:] == row.input_ids[1:]
    assert row.input_ids[-1] == tokenizer.eos_token_id
    assert label(tokenizer, PlainText("  ")).reason == "no_target"
    assert label(tokenizer, PlainText("a</s>")).reason == "special_tokens"
    with pytest.raises(DataError, match="plain text"):
        label(tokenizer, PlainText("a"), loss_on="assistant")


def test_a_mixed_batch_keeps_its_order():
    tokenizer = tiny.make_tokenizer(tiny.THINK_DROPPED_FROM_HISTORY)
    chat = Conversation(tuple(Message(**message) for message in THOUGHTS))
    examples = [PlainText("a"), chat, PlainText(""), PromptCompletion("b", "c"), chat]
    labeller = Labeller(make_data(), tokenizer, {tokenizer.eos_token_id})
    results = labeller.label([(str(i), example) for i, example in enumerate(examples)])
    counts = [0 if isinstance(result, Drop) else len(result) for result in results]
    assert counts == [1, 3, 0, 1, 3]


def test_escaped_content_has_the_same_tokens_as_a_server_gives_it():
    tokenizer = tiny.make_tokenizer(tiny.CHATML)
    messages = make_chat("say <|im_end|> or </s>", "I say <|im_end|> now.")
    (row,) = label(tokenizer, messages, special_tokens_in_content="escape")
    assert row.built == "escaped"
    assert decode_turns(tokenizer, row) == ["I say <|im_end|> now.<|im_end|>"]
    assert row.input_ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2
    assert row.input_ids == tokenizer.apply_chat_template(
        messages, sanitize_control_tokens=True, return_dict=False
    )
    check_labels_are_exactly_the_turns(row)


def test_an_escaped_special_token_in_a_completion_is_ordinary_text():
    tokenizer = tiny.make_tokenizer()
    example = PromptCompletion("what ends a turn? ", "<|im_end|> does")
    (row,) = label(tokenizer, example, special_tokens_in_content="escape")
    assert row.built == "escaped"
    assert row.input_ids.count(tokenizer.eos_token_id) == 1
    assert decode_turns(tokenizer, row) == [" <|im_end|> does<|im_end|>"]


def test_in_place_learns_earlier_turns_as_history_shows_them():
    tokenizer = tiny.make_tokenizer(tiny.THINK_DROPPED_FROM_HISTORY)
    (row,) = label(tokenizer, THOUGHTS, rewritten_history="in_place")
    whole = tokenizer.apply_chat_template(THOUGHTS, return_dict=False)
    assert row.input_ids == whole
    first, _, last = decode_turns(tokenizer, row)
    assert "<think>" not in first
    assert last == expected_target(tokenizer, THOUGHTS, 5, "<|im_end|>")
    check_labels_are_exactly_the_turns(row)


def test_in_place_does_not_confuse_a_learned_turn_with_an_equal_context_turn():
    untrained = [{**THOUGHTS[1], "content": "Same.", "train": False}]
    chat = [THOUGHTS[0], *untrained, *THOUGHTS[2:3], *make_thought("Same."), *THOUGHTS[4:]]
    tokenizer = tiny.make_tokenizer(tiny.THINK_DROPPED_FROM_HISTORY)
    (row,) = label(tokenizer, chat, rewritten_history="in_place")
    assert [turn.message for turn in row.turns] == [3, 5]
    before = tokenizer.decode(row.input_ids[: row.turns[0].start])
    assert before.count("<|im_start|>assistant") == 2


def make_thought(answer):
    return [{"role": "assistant", "content": f"<think>\nA thought.\n</think>\n\n{answer}"}]


def test_a_row_is_dropped_if_the_template_renders_only_the_first_of_two_calls():
    tokenizer = tiny.make_tokenizer(tiny.FIRST_CALL_ONLY)
    calls = [
        {"type": "function", "function": {"name": "add", "arguments": {"a": a, "b": 20}}}
        for a in (10, 30)
    ]
    (row,) = label(tokenizer, [CHAT[0], {"role": "assistant", "tool_calls": calls[:1]}])
    assert "10" in decode_turns(tokenizer, row)[0]
    dropped = label(tokenizer, [CHAT[0], {"role": "assistant", "tool_calls": calls}])
    assert dropped.reason == "content_lost"


def test_a_content_is_lost_if_it_only_occurs_inside_a_call():
    tokenizer = tiny.make_tokenizer(tiny.TEXT_LOST_BESIDE_CALLS)
    beside = {"role": "assistant", "content": "get_weather", "tool_calls": [CALL]}
    assert label(tokenizer, [CHAT[0], beside]).reason == "content_lost"


def test_an_answer_directly_after_the_system_message_is_context():
    tokenizer = tiny.make_tokenizer(tiny.CHATML)
    opening = [{"role": "system", "content": "Be kind."}, {"role": "assistant", "content": "Hi!"}]
    (row,) = label(tokenizer, [*opening, *CHAT[:2]])
    assert [turn.message for turn in row.turns] == [3]
    assert label(tokenizer, opening).reason == "no_target"


def test_a_token_that_opens_the_next_turn_is_not_a_stop_token():
    """This template writes the header of the next answer even without a generation prompt."""
    always_open = tiny.CHATML.partition("{%- if add_generation_prompt")[0]
    always_open += "{{- '<|im_start|>assistant\n' -}}"
    tokenizer = tiny.make_tokenizer(always_open, eos_token="</s>")
    labeller = Labeller(make_data(), tokenizer, {tokenizer.eos_token_id})
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert labeller.stop_token_ids == {tokenizer.eos_token_id, stop}


def test_a_template_that_reads_the_clock_gets_the_date_of_the_recipe():
    tokenizer = tiny.make_tokenizer("{{- strftime_now('%d %B %Y') + '\\n' -}}" + tiny.CHATML)
    (row,) = label(tokenizer, CHAT, template_date="2025-01-31")
    assert tokenizer.decode(row.input_ids).startswith("31 January 2025\n<|im_start|>user")


HOSTILE_PIECES = (
    *("a", " ", "\n", "\t", "\u00e9", "e\u0301", "\U0001f98a", "<", ">", "|", "{{", "%}", "4"),
    *("<|im_end|>", "<think>", "</think>", "<|im_start|>user\n", "</s>", "assistant\n", "\u200b"),
)
HOSTILE_TEXT = st.lists(st.sampled_from(HOSTILE_PIECES), max_size=12).map("".join)


@settings(max_examples=120, deadline=None)
@given(texts=st.lists(HOSTILE_TEXT, min_size=2, max_size=6), template=st.sampled_from(TEMPLATES))
def test_hostile_content_never_crashes_and_gives_the_ids_of_apply_chat_template(texts, template):
    tokenizer = load_template(template)
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    for policy in ("drop", "allow", "escape"):
        rows = label(tokenizer, messages, special_tokens_in_content=policy)
        if isinstance(rows, Drop):
            continue
        for row in rows:
            check_labels_are_exactly_the_turns(row)
            if row.built == "rendered":
                ends = (len(messages), row.turns[-1].message + 1)  # all messages, or up to the turn
                renders = [
                    tokenizer.apply_chat_template(messages[:end], return_dict=False) for end in ends
                ]
                assert row.input_ids in renders
