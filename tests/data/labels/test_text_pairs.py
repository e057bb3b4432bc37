"""Text pairs and texts end in exactly one eos, and an eos in the prompt stays in the prompt."""

import pytest
from tokenizers import processors

from lora_sft.data.examples.conversation import PlainText, PromptCompletion
from lora_sft.data.labels.labelling import Labeller
from tests import tiny
from tests.data.sections import make_data

EOS = "<|im_end|>"


def make_tokenizer(*, appends_eos=False):
    tokenizer = tiny.make_tokenizer(eos_token=EOS)
    if appends_eos:
        special = [(EOS, tokenizer.eos_token_id)]
        ending = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=special)
        tokenizer.backend_tokenizer.post_processor = ending
        assert tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id
    return tokenizer


def learn(tokenizer, example):
    """Return the text of the row, and the learned part of it."""
    data = make_data(special_tokens_in_content="allow")
    labeller = Labeller(data, tokenizer, {tokenizer.eos_token_id})
    ((row,),) = labeller.label([("rows.jsonl:1", example)])
    learned = [label for label in row.labels if label >= 0]
    return tokenizer.decode(row.input_ids), tokenizer.decode(learned)


@pytest.mark.parametrize("appends_eos", [False, True])
@pytest.mark.parametrize(
    ("example", "text", "learned"),
    [
        (PromptCompletion("Q: hi", "yes"), "Q: hiyes" + EOS, "yes" + EOS),
        (PromptCompletion("Q: hi" + EOS, "yes"), f"Q: hi{EOS}yes{EOS}", "yes" + EOS),
        (PromptCompletion("Q: hi", "yes" + EOS), "Q: hiyes" + EOS, "yes" + EOS),
        (PromptCompletion("Q: hi" + EOS, ""), f"Q: hi{EOS}{EOS}", EOS),
    ],
)
def test_a_pair_learns_its_completion_and_exactly_one_eos(appends_eos, example, text, learned):
    assert learn(make_tokenizer(appends_eos=appends_eos), example) == (text, learned)


@pytest.mark.parametrize("appends_eos", [False, True])
@pytest.mark.parametrize("text", ["once", "once" + EOS])
def test_a_text_ends_in_exactly_one_eos(appends_eos, text):
    whole, learned = learn(make_tokenizer(appends_eos=appends_eos), PlainText(text))
    assert whole == "once" + EOS
    assert whole.endswith(learned)
    assert learned.endswith(EOS)
