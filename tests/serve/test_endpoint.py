"""`lora-sft serve` and the OpenAI client, with an empty home folder and without a network."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

WHY = "THE SERVER IS NOT TESTED: install the extra `serve` (openai, fastapi, uvicorn)"
openai = pytest.importorskip("openai", reason=WHY)
pytest.importorskip("fastapi", reason=WHY)
pytest.importorskip("uvicorn", reason=WHY)

from tests.serve.models import make_answering_adapter, make_answering_model  # noqa: E402
from tests.serve.servers import serving  # noqa: E402

QUESTION = [{"role": "user", "content": "Where is Oslo?"}]
KEY = "sk-of-the-test"


def connect(address: str, key: str = KEY) -> Any:
    return openai.OpenAI(base_url=address, api_key=key, max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_answering_model(tmp_path_factory.mktemp("models") / "short-name")


@pytest.fixture(scope="module")
def address(merged: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a server that requires a key. The key is in the environment, not in the arguments."""
    home = tmp_path_factory.mktemp("serve") / "home"
    with serving(merged, home, LORA_SFT_API_KEY=KEY) as found:
        yield found
    assert KEY not in home.with_name("home.log").read_text()


def test_the_api_lists_the_model_under_its_short_name(address):
    assert re.match(r"http://127\.0\.0\.1:\d+/v1$", address)
    client = connect(address)
    assert [model.id for model in client.models.list().data] == ["short-name"]
    assert client.models.retrieve("short-name").owned_by == "lora-sft"


def test_a_streamed_answer_equals_an_answer_that_is_not_streamed(address):
    client = connect(address)
    plain = client.chat.completions.create(model="short-name", messages=QUESTION, max_tokens=12)
    stream = client.chat.completions.create(
        model="short-name", messages=QUESTION, max_tokens=12, stream=True
    )
    chunks = list(stream)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert plain.choices[0].message.role == "assistant"
    assert plain.choices[0].message.content == "".join(pieces) != ""
    assert plain.choices[0].finish_reason == chunks[-1].choices[0].finish_reason == "length"
    assert plain.usage.completion_tokens == 12
    assert plain.model == "short-name"


def test_the_server_gives_the_greedy_answer_of_the_model(address, merged):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(merged)
    ids = tokenizer.apply_chat_template(
        QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    model = AutoModelForCausalLM.from_pretrained(merged)
    output = model.generate(ids, max_new_tokens=12, do_sample=False)
    expected = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    answer = connect(address).chat.completions.create(
        model="short-name", messages=QUESTION, max_tokens=12
    )
    assert answer.choices[0].message.content == expected
    assert answer.usage.prompt_tokens == ids.shape[1]


def test_a_temperature_turns_sampling_on_and_a_seed_repeats_the_answer(address):
    client = connect(address)

    def ask(**settings: object) -> str:
        answer = client.chat.completions.create(
            model="short-name", messages=QUESTION, max_tokens=12, **settings
        )
        return str(answer.choices[0].message.content)

    assert ask(temperature=1.5, seed=1) == ask(temperature=1.5, seed=1)
    assert len({ask(temperature=1.5, seed=seed) for seed in range(4)}) > 1
    assert ask(temperature=0) == ask()


def test_the_completions_and_responses_apis_answer_too(address):
    client = connect(address)
    text = client.completions.create(model="short-name", prompt="Hello", max_tokens=5)
    assert text.choices[0].text
    response = client.responses.create(model="short-name", input="Hello", max_output_tokens=5)
    assert response.output_text


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_ends_the_answer_and_is_its_last_part(address, stream):
    client = connect(address)

    def ask(**settings: object) -> str:
        settings = {"model": "short-name", "prompt": "Hello", "max_tokens": 40, **settings}
        if not settings.get("stream"):
            return str(client.completions.create(**settings).choices[0].text)
        return "".join(chunk.choices[0].text for chunk in client.completions.create(**settings))

    whole = ask()
    stop = whole[12:17]
    stopped = ask(stop=["never in it", stop], stream=stream)
    assert stop in stopped
    assert whole.startswith(stopped)
    assert len(stopped) < len(whole)
    assert ask(stop=[], stream=stream) == whole


def test_an_answer_never_exceeds_the_context(address):
    long = [{"role": "user", "content": "x " * 200}]
    client = connect(address)
    answer = client.chat.completions.create(model="short-name", messages=long, max_tokens=1000)
    assert answer.usage.total_tokens == 512
    with pytest.raises(openai.BadRequestError, match="the model's context is 512"):
        client.chat.completions.create(
            model="short-name", messages=[{"role": "user", "content": "x " * 600}]
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 2}, "this server does not support: n"),
        ({"logprobs": True, "top_logprobs": 3}, "logprobs, top_logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "reads only text",
        ),
        ({"messages": [{"content": "no role"}]}, r"messages\[0\].role: Field required"),
    ],
)
def test_a_request_with_an_unsupported_field_is_refused(address, settings, message):
    request = {"model": "short-name", "messages": QUESTION, **settings}
    with pytest.raises(openai.BadRequestError, match=message):
        connect(address).chat.completions.create(**request)


def test_another_model_or_another_path_gives_status_404(address):
    client = connect(address)
    with pytest.raises(openai.NotFoundError, match="this server has 'short-name'"):
        client.chat.completions.create(model="gpt-4", messages=QUESTION)
    for path in ("load_model", "reset", "docs"):  # transformers' own server has these
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(address.replace("v1", path), data=b"{}", timeout=10)


def test_the_server_requires_the_key(address):
    with pytest.raises(openai.AuthenticationError, match="missing or wrong"):
        connect(address, "another").models.list()
    with urllib.request.urlopen(address.replace("v1", "health"), timeout=10) as answer:
        assert answer.status == 200


def test_a_served_adapter_answers_differently_from_its_base(tmp_path):
    from fastapi.testclient import TestClient

    from lora_sft.serve.endpoint import build_app
    from lora_sft.serve.loaded_model import find_model_folder, load_model

    base = make_answering_model(tmp_path / "base")
    adapter = make_answering_adapter(base, tmp_path / "my-adapter")
    app = build_app(load_model(find_model_folder(adapter)))
    client = TestClient(app, base_url="http://localhost")
    assert client.get("/v1/models").json()["data"][0]["id"] == "my-adapter"
    request = {"messages": QUESTION, "max_tokens": 12}
    answer = client.post("/v1/chat/completions", json=request).json()
    text = answer["choices"][0]["message"]["content"]
    assert text == greedy_text(base, adapter)
    assert text != greedy_text(base, None)


def greedy_text(base: Path, adapter: Path | None) -> str:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    ids = tokenizer.apply_chat_template(
        QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    output = model.generate(input_ids=ids, max_new_tokens=12, do_sample=False)
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
