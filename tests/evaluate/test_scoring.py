"""Questions, loss and generated answers of held-out rows."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from lora_sft.evaluate.generation import cut_at_stop, generate_answers, make_generation_config
from lora_sft.evaluate.held_out import Question, make_questions
from lora_sft.evaluate.token_loss import compute_loss


@pytest.fixture(scope="module")
def model_and_tokenizer(tmp_path_factory):
    from tests.tiny import make_tiny_llama

    folder = make_tiny_llama(tmp_path_factory.mktemp("m") / "tiny")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


ROWS = [
    {"input_ids": [1, 40, 41, 42, 43], "labels": [-100, -100, 41, 42, -100]},
    {"input_ids": [1, 50, 51, 52, 53, 54, 55], "labels": [-100, 50, -100, -100, 53, 54, 55]},
]


def test_each_learned_span_is_a_question_whose_prompt_is_everything_before_it():
    assert make_questions(ROWS) == [
        Question((1, 40), (41, 42)),
        Question((1,), (50,)),
        Question((1, 50, 51, 52), (53, 54, 55)),
    ]


def test_the_loss_is_the_mean_over_learned_tokens_at_every_batch_size(model_and_tokenizer):
    model, _ = model_and_tokenizer
    nats, tokens = 0.0, 0
    for row in ROWS:
        log_probs = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        for position, label in enumerate(row["labels"]):
            if label != -100:
                nats -= log_probs[position - 1, label].item()
                tokens += 1
    assert tokens == 6
    for batch_size in (1, 2):
        assert compute_loss(model, ROWS, batch_size, pad_id=3) == pytest.approx(
            nats / tokens, rel=1e-5
        )


def test_answers_are_the_same_in_a_batch_and_one_by_one(model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    prompts = [[1, 40, 41], [1, 60, 61, 62, 63, 64], [1, 50]]
    config = make_generation_config(tokenizer, [tokenizer.eos_token_id], max_new_tokens=6)
    together = generate_answers(model, prompts, config, batch_size=3)
    one_by_one = [generate_answers(model, [prompt], config, batch_size=1)[0] for prompt in prompts]
    assert together == one_by_one
    assert all(together)


def test_an_answer_ends_at_its_first_stop_token():
    config = GenerationConfig(eos_token_id=[7, 9])
    assert cut_at_stop([5, 6, 9, 3, 7], config) == [5, 6, 9]
    assert cut_at_stop([5, 6], config) == [5, 6]
