"""Real rows with real tokenizers: exactly the answers and their stop tokens are learned.

The tests need the folder of real data (fixture `shared_data`). They are skipped if it is missing.
"""

import json

import pytest

from lora_sft.data.corpus.building import build_corpus
from lora_sft.data.labelled_row import IGNORED_LABEL
from lora_sft.data.templates.tokenizer import find_stop_token_ids, load_tokenizer
from tests.data.sections import (
    make_data,
    make_dataset,
    make_model,
    make_tokenizer_section,
    write_jsonl,
)

STOPS = {"qwen3": "<|im_end|>", "mistral-v3": "</s>"}
MAX_ROWS = 400


def load(shared_data, name, **data):
    folder = "models" if name.startswith("stories") else "tokenizers"
    model = make_model(shared_data / folder / name)
    tokenizer = load_tokenizer(model, make_tokenizer_section(), make_data(**data))
    return tokenizer, find_stop_token_ids(tokenizer, model, [])


def read_values(path):
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return json.loads(text)
    return [json.loads(line) for line in text.splitlines()]


def find_learned_texts(tokenizer, row):
    """Return the text of each run of learned tokens. Only the labels are used."""
    runs, previous = [], False
    for label in row["labels"]:
        is_target = label != IGNORED_LABEL
        if is_target and not previous:
            runs.append([])
        if is_target:
            runs[-1].append(label)
        previous = is_target
    return [tokenizer.decode(run) for run in runs]


def check_learned(tokenizer, split, answers_of_row, stop):
    """Check that each row learns its answers and their stop tokens, and nothing else.

    Returns: The number of learned answers.
    """
    seen = 0
    for row in split:
        answers = answers_of_row[row["row"]]
        learned = find_learned_texts(tokenizer, row)
        if len(learned) < len(answers):  # rewritten_history: expand gives one row per answer
            assert len(learned) == 1
            assert learned[0].removesuffix(stop).strip() in [each.strip() for each in answers]
        else:
            expected = [answer.strip() for answer in answers]
            assert [text.removesuffix(stop).strip() for text in learned] == expected
        assert all(text.endswith(stop) for text in learned)
        seen += len(learned)
    return seen


def build(shared_data, name, dataset, **data):
    if name == "qwen3":
        data["chat_template_kwargs"] = {"enable_thinking": False}
    tokenizer, stops = load(shared_data, name)
    corpus = build_corpus(make_data(dataset, max_length=8_192, **data), tokenizer, stops)
    return tokenizer, corpus


@pytest.mark.parametrize("name", STOPS)
def test_exactly_the_answers_of_gsm8k_are_learned(shared_data, tmp_path, name):
    rows = read_values(shared_data / "gsm8k" / "test.jsonl")[:MAX_ROWS]
    renames = {"question": "instruction", "answer": "output"}
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    tokenizer, corpus = build(shared_data, name, make_dataset(path, rename_columns=renames))
    answers = [[row["answer"]] for row in rows]
    assert check_learned(tokenizer, corpus.train, answers, STOPS[name]) == MAX_ROWS
    assert corpus.accounts["train"].dropped == {}


@pytest.mark.parametrize("name", STOPS)
def test_exactly_the_responses_of_toolformer_are_learned(shared_data, tmp_path, name):
    rows = read_values(shared_data / "toolformer" / "toolformer-sim0.6.json")[:MAX_ROWS]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    tokenizer, corpus = build(shared_data, name, make_dataset(path))
    answers = [[row["response"]] for row in rows]
    assert check_learned(tokenizer, corpus.train, answers, STOPS[name]) == MAX_ROWS


@pytest.mark.parametrize("name", STOPS)
def test_exactly_the_answers_of_sharegpt_are_learned(shared_data, name):
    path = shared_data / "sharegpt" / "dummy_conversation.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    answers = [
        [turn["value"] for turn in row["conversations"] if turn["from"] == "gpt"] for row in rows
    ]
    tokenizer, corpus = build(shared_data, name, make_dataset(path))
    num_answers = sum(map(len, answers))
    assert check_learned(tokenizer, corpus.train, answers, STOPS[name]) == num_answers
    assert corpus.accounts["train"].kept == len(rows) == 500


def list_paths(node, path=()):
    """Yield every path from the root of an OpenAssistant tree to a leaf, as messages."""
    role = "assistant" if node["role"] == "assistant" else "user"
    path = (*path, {"role": role, "content": node["text"]})
    if not node["replies"]:
        yield list(path)
    for reply in node["replies"]:
        yield from list_paths(reply, path)


@pytest.mark.parametrize("name", STOPS)
def test_exactly_the_answers_of_openassistant_threads_are_learned(shared_data, tmp_path, name):
    lines = (shared_data / "oasst" / "en_100_tree.jsonl").read_text(encoding="utf-8").splitlines()
    trees = [json.loads(line) for line in lines]
    threads = [path for tree in trees for path in list_paths(tree["prompt"])][:MAX_ROWS]
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": thread} for thread in threads])
    tokenizer, corpus = build(shared_data, name, make_dataset(path))
    answers = [[m["content"] for m in thread if m["role"] == "assistant"] for thread in threads]
    seen = check_learned(tokenizer, corpus.train, answers, STOPS[name])
    account = corpus.accounts["train"]
    assert account.read == len(threads)
    assert set(account.dropped) <= {"no_target", "content_lost", "special_tokens"}
    assert account.kept > 0.9 * len(threads)
    kept = set(corpus.train["row"])
    assert seen == sum(len(answers[row]) for row in kept)


def test_restaurant_texts_are_learned_by_a_real_base_model(shared_data):
    dataset = make_dataset(
        shared_data / "e2e_nlg" / "devset.csv", rename_columns={"mr": "prompt", "ref": "completion"}
    )
    tokenizer, stops = load(shared_data, "stories260K-hf")
    corpus = build_corpus(make_data(dataset), tokenizer, stops)
    account = corpus.accounts["train"]
    assert (account.read, account.kept) == (4_672, 4_672)
    first = corpus.train[0]
    assert first["input_ids"][0] == tokenizer.bos_token_id
    expected = "There is a place in the city centre, Alimentum, that is not family-friendly.</s>"
    assert find_learned_texts(tokenizer, first) == [expected]
    assert all(labels[-1] == tokenizer.eos_token_id for labels in corpus.train["labels"])


@pytest.mark.parametrize("name", ["gpt2", "stories260K-hf"])
def test_a_base_model_without_a_template_learns_conversations_with_the_plain_template(
    shared_data, name
):
    renames = {"question": "instruction", "answer": "output"}
    path = shared_data / "gsm8k" / "test.jsonl"
    tokenizer, stops = load(shared_data, name, chat_template="plain")
    data = make_data(make_dataset(path, rename_columns=renames), max_length=2_048)
    corpus = build_corpus(data, tokenizer, stops)
    answers = [[row["answer"]] for row in read_values(path)]
    seen = check_learned(tokenizer, corpus.train, answers, tokenizer.eos_token)
    assert seen == corpus.accounts["train"].kept == 1_319
