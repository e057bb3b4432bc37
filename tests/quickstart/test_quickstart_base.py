"""The shipped base model loads offline, has the recorded checksums, and knows English."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import lora_sft

QUICKSTART = Path(lora_sft.__file__).parent / "quickstart"
BASE = QUICKSTART / "base"
MAX_FOLDER_BYTES = 8_000_000
MAX_PLAIN_TEXT_LOSS = 1.5  # natural logarithm, per token; uniform guessing gives 7.6
ODD_TEXTS = (
    "",
    " leading and trailing ",
    "tabs\tand\r\nline ends\n\n",
    "naïve café, Größe, Ελλάδα, Привет",
    "漢字かな交じり文 한국어 العربية",
    "👩‍👩‍👧‍👦 🇳🇱 🙂",
    "\x00\x01\x7f\u200b\ufeff\u2028",
    "e\u0301 is not \u00e9",
    "a  b   c 1234567890 ,. ' ' n't",
)
CONVERSATION = [
    {"role": "system", "content": "You help in a small shop."},
    {"role": "user", "content": "Hello, where is order 48213?"},
    {"role": "assistant", "content": "  It is on its way. "},
    {"role": "user", "content": "Thank you.\n"},
    {"role": "assistant", "content": "You are welcome."},
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(BASE, local_files_only=True)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(BASE, local_files_only=True).eval()


@torch.no_grad()
def compute_plain_text_loss(model: Any, tokenizer: Any) -> float:
    """Return the mean loss per token over the held-out texts."""
    losses, num_tokens = 0.0, 0
    for line in (QUICKSTART / "data" / "plain_text.jsonl").read_text("utf-8").splitlines():
        input_ids = tokenizer(json.loads(line)["text"], return_tensors="pt")["input_ids"]
        num_targets = input_ids.shape[1] - 1
        losses += model(input_ids=input_ids, labels=input_ids).loss.item() * num_targets
        num_tokens += num_targets
    assert num_tokens > 2000
    return losses / num_tokens


@torch.no_grad()
def answer(model: Any, tokenizer: Any, question: str) -> str:
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**prompt, max_new_tokens=40, do_sample=False)
    return str(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :]))


def test_the_checksums_match_the_shipped_files() -> None:
    lines = (BASE / "SHA256SUMS").read_text("utf-8").splitlines()
    recorded = {name: digest for digest, name in (line.split("  ") for line in lines)}
    shipped = {path.name for path in BASE.iterdir()} - {"SHA256SUMS"}
    assert set(recorded) == shipped
    assert {"model.safetensors", "tokenizer.json", "chat_template.jinja"} <= shipped
    for name, digest in recorded.items():
        assert hashlib.sha256((BASE / name).read_bytes()).hexdigest() == digest


def test_the_folder_and_the_model_are_small(model: Any) -> None:
    assert sum(path.stat().st_size for path in BASE.iterdir()) < MAX_FOLDER_BYTES
    assert 1_000_000 <= model.num_parameters() <= 5_000_000
    assert model.config.tie_word_embeddings
    assert model.config.max_position_embeddings >= 512


def test_every_width_is_a_multiple_of_64_as_4bit_layers_on_a_cpu_need(model: Any) -> None:
    linears = [m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    assert len(linears) == 7 * model.config.num_hidden_layers + 1
    for linear in linears:
        assert linear.in_features % 64 == 0
        assert linear.out_features % 64 == 0


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_decoding_the_tokens_of_any_text_returns_the_text(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_each_digit_is_one_token(tokenizer: Any) -> None:
    assert tokenizer.is_fast
    assert tokenizer.tokenize("48213") == list("48213")


def test_the_padding_token_is_not_a_stop_token(model: Any, tokenizer: Any) -> None:
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.pad_token_id not in model.generation_config.eos_token_id
    assert tokenizer.eos_token_id in model.generation_config.eos_token_id
    assert len(tokenizer) == model.config.vocab_size


def test_a_longer_conversation_starts_with_the_shorter_one(tokenizer: Any) -> None:
    def render(num_messages: int, prompt: bool) -> str:
        messages = CONVERSATION[:num_messages]
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        )

    for i, message in list(enumerate(CONVERSATION))[1:]:
        is_reply = message["role"] == "assistant"
        longer = render(i + 1, prompt=False)
        assert longer.startswith(render(i, prompt=is_reply))
        assert longer.endswith(message["content"] + tokenizer.eos_token)


def test_the_chat_template_refuses_an_unknown_role(tokenizer: Any) -> None:
    with pytest.raises(Exception, match="unknown role: tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_the_base_knows_english_and_a_random_model_does_not(model: Any, tokenizer: Any) -> None:
    torch.manual_seed(0)
    random_model = AutoModelForCausalLM.from_config(model.config).eval()
    assert compute_plain_text_loss(model, tokenizer) < MAX_PLAIN_TEXT_LOSS
    assert compute_plain_text_loss(random_model, tokenizer) > math.log(len(tokenizer)) - 0.5


def test_the_base_answers_in_prose_and_stops(model: Any, tokenizer: Any) -> None:
    question = "Hi, my order 48213 was for a copper kettle. Could you repeat the order number?"
    assert answer(model, tokenizer, question) == "The order number is 48213." + tokenizer.eos_token


def test_the_base_cannot_do_the_task(model: Any, tokenizer: Any) -> None:
    lines = (QUICKSTART / "data" / "test.jsonl").read_text("utf-8").splitlines()[:20]
    for line in lines:
        question, expected = json.loads(line)["messages"]
        assert "{" not in answer(model, tokenizer, question["content"])
        assert "{" in expected["content"]
