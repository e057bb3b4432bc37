"""`lora-sft serve` and clients that are malformed, foreign, too large or too slow.

The servers have shorter limits of time, so that no test waits long.
"""

from __future__ import annotations

import http.client
import json
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

WHY = "THE SERVER IS NOT TESTED: install the extra `serve` (fastapi, uvicorn)"
pytest.importorskip("fastapi", reason=WHY)
pytest.importorskip("uvicorn", reason=WHY)

from lora_sft.serve.request_body import MAX_BODY_BYTES  # noqa: E402
from tests.serve.models import make_answering_model  # noqa: E402
from tests.serve.servers import serving, start_server, wait_for_address  # noqa: E402

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES = [{"role": "user", "content": "hi"}]
GOOD: dict[str, dict[str, Any]] = {
    CHAT: {"messages": MESSAGES, "max_tokens": 2},
    TEXT: {"prompt": "hi", "max_tokens": 2},
    RESPONSES: {"input": "hi", "max_output_tokens": 2},
}
# A request that sets `slow` renders for hours.
SLOW_PART = (
    "{%- if slow -%}{%- for i in range(99999) -%}{%- for j in range(99999) -%}"
    "{%- endfor -%}{%- endfor -%}{%- endif -%}{{- greeting or '' -}}"
)
SLOW = {**GOOD[CHAT], "chat_template_kwargs": {"slow": True}}
LIMITS = {
    "listening.SILENCE_SECONDS": 1,
    "listening.REQUEST_SECONDS": 3,
    "listening.STOP_SECONDS": 1,
    "prompt_workers.PROMPT_SECONDS": 3,
}
HEAD = (
    f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    "Content-Length: 1000\r\n"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_answering_model(tmp_path_factory.mktemp("models") / "m", context_tokens=100_000)
    template = folder / "chat_template.jinja"
    template.write_text(SLOW_PART + template.read_text())
    return folder


@pytest.fixture(scope="module")
def port(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Start one server for all tests. At its end, its log must hold no traceback."""
    home = tmp_path_factory.mktemp("hostile") / "home"
    with serving(model, home, limits=LIMITS) as address:
        yield read_port(address)


def read_port(address: str) -> int:
    return int(address.removesuffix("/v1").rpartition(":")[2])


def send(port: int, method: str, path: str, raw: bytes | None = None, **headers: str) -> Any:
    """Return the status and the JSON document of an answer, or its text."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, raw, names)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, json.loads(text) if text.startswith("{") else text


def post(port: int, path: str, body: object) -> Any:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return send(port, "POST", path, raw, Content_Type="application/json")


def get_refusal(port: int, path: str, body: object) -> str:
    """Return the message of a refused request. Its error must have OpenAI's format."""
    status, document = post(port, path, body)
    assert status == 400, (path, body, status, document)
    assert document["error"]["type"] == "invalid_request_error"
    return str(document["error"]["message"])


def check_answers(port: int) -> None:
    begun = time.monotonic()
    assert post(port, CHAT, GOOD[CHAT])[0] == 200
    assert time.monotonic() - begun < 10


# --- the form of a body ---------------------------------------------------------------------------

NOT_A_FLOAT = ("x", "", [], {}, True, -1, 10**400, float("nan"), float("inf"))
NOT_A_COUNT = ("x", 1.5, [], {}, False, 0, -1, 2**63, 10**400)
NOT_A_TEXT = (3, True, {"text": "x"}, [3], [None], [["x"]])
NOT_A_LIST_OF_OBJECTS = ("x", 3, {}, [3], [None], ["x"], [["x"]])
NOT_AN_OBJECT = ("x", 3, [], [{}])
WRONG_VALUES: dict[str, tuple[object, ...]] = {
    "model": (3, ["m"], {}),
    "stream": ("x", 3, []),
    "temperature": (*NOT_A_FLOAT, 1e-30, 1e9),
    "top_p": (*NOT_A_FLOAT, 2),
    "seed": ("x", 1.5, [], True, 2**63, -(10**400)),
}
WRONG_TEMPLATE_VALUES: dict[str, tuple[object, ...]] = {
    "tools": (*NOT_A_LIST_OF_OBJECTS, [{"function": "x"}], [{"function": ["name"]}]),
    "chat_template_kwargs": NOT_AN_OBJECT,
    "parallel_tool_calls": ("x", 3, []),
    "generation_config": ("{", '{"max_new_tokens": 2}', 3, {"max_new_tokens": 2}),
    "chat_template": ("{{ 1 }}",),
}
WRONG_STOP_VALUES: dict[str, tuple[object, ...]] = {
    "max_tokens": NOT_A_COUNT,
    "frequency_penalty": ("x", [], True, -1, -2, 3, float("nan")),
    "stop": (3, {}, [3], [None], "", [""], [["x"]]),
}
WRONG: dict[str, dict[str, tuple[object, ...]]] = {
    CHAT: {
        **WRONG_VALUES,
        **WRONG_TEMPLATE_VALUES,
        **WRONG_STOP_VALUES,
        "messages": (None, [], *NOT_A_LIST_OF_OBJECTS),
        "max_completion_tokens": NOT_A_COUNT,
        "logit_bias": ("x", 3, [], {"x": 1}, {"-1": 1}, {"5": "x"}, {"5": 1e9}, {"99999999": 1}),
    },
    TEXT: {**WRONG_VALUES, **WRONG_STOP_VALUES, "prompt": (None, "", *NOT_A_TEXT), "suffix": (3,)},
    RESPONSES: {
        **WRONG_VALUES,
        **WRONG_TEMPLATE_VALUES,
        "input": (None, [], 3, {}, [3], [None], ["x"], [["x"]], [{"role": 3}], [{"type": "x"}]),
        "instructions": NOT_A_TEXT,
        "max_output_tokens": NOT_A_COUNT,
    },
}

# Messages that name no field.
OTHER_MESSAGES = ("the body is not JSON", "the prompt is empty", "this model reads only text")

# Messages that name no field.
OTHER_MESSAGES = ("the body is not JSON", "the prompt is empty", "this model reads only text")


@pytest.mark.parametrize("path", [CHAT, TEXT, RESPONSES])
def test_a_field_of_a_wrong_type_or_size_is_refused_by_its_name(port, path):
    count = 0
    for name, values in WRONG[path].items():
        for value in values:
            for stream in (False, True) if name != "stream" else (value,):
                message = get_refusal(port, path, {**GOOD[path], "stream": stream, name: value})
                if not any(text in message for text in OTHER_MESSAGES):
                    assert name in message, (value, message)
                count += 1
    assert count > 60
    check_answers(port)


WRONG_MESSAGES = {
    "[0].role": [{}, {"content": "x"}, {"role": None}, {"role": 3}, {"role": ["user"]}],
    "[0].content": [
        {"role": "user", "content": content}
        for content in (3, True, {}, [1], [None], ["x"], [{"text": None}], [{"text": 3}])
    ],
    "[0].tool_calls": [
        {"role": "assistant", "tool_calls": calls}
        for calls in (
            *("x", {}, [3], [None], [{}], [{"function": 3}], [{"function": {}}]),
            [{"function": {"name": 3}}],
            *(
                [{"function": {"name": "f", "arguments": arguments}}]
                for arguments in (3, ["x"], "{", "x", "NaN", "[" * 100_000)
            ),
            [{"name": "f", "arguments": "{"}],
        )
    ],
}


@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_message_is_refused_by_the_path_of_the_field(port, stream):
    for path, messages in WRONG_MESSAGES.items():
        for message in messages:
            body = {"messages": [message], "max_tokens": 2, "stream": stream}
            assert f"messages{path}" in get_refusal(port, CHAT, body), message
            if path != "[0].tool_calls" and "role" in message:
                body = {"input": [message], "max_output_tokens": 2, "stream": stream}
                assert f"input{path}" in get_refusal(port, RESPONSES, body), message


@pytest.mark.parametrize(
    "item",
    [
        {"type": "function_call"},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{"},
        {"type": "function_call", "call_id": "1", "name": 3, "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1"},
        {"type": "function_call_output", "call_id": "1", "output": 3},
        {"type": "reasoning", "content": [3]},
        {"type": "reasoning", "content": [{}]},
        {"type": ["reasoning"]},
        {"type": "item_reference", "id": "1"},
        {"type": "reasoning", "content": [{"text": "alone"}]},
    ],
)
def test_a_wrong_item_of_the_responses_api_is_refused(port, item):
    for items in ([item], [MESSAGES[0], item], [MESSAGES[0], item, MESSAGES[0]]):
        if item.get("content") != [{"text": "alone"}] or len(items) == 1:
            get_refusal(port, RESPONSES, {"input": items})


@pytest.mark.parametrize(
    "raw",
    [
        *(b"", b"null", b"[]", b"3", b'"x"', b"{", b"\xff\xfe", b"NaN", b"\x00"),
        *(b'{"messages": ' + b"[" * 100_000, b'{"a":' * 100_000),
        *(b'{"model": "\xff"}', b'{"model": "\\ud800"}', '{"prompt": "x"}'.encode("utf-16")),
        b'{"prompt": "x", "seed": ' + b"9" * 10_000 + b"}",
    ],
    ids=lambda raw: repr(raw[:20]),
)
def test_a_body_that_is_not_a_json_object_is_refused(port, raw):
    for path in GOOD:
        get_refusal(port, path, raw)


def test_a_body_must_be_declared_as_json(port):
    raw = json.dumps(GOOD[CHAT]).encode()
    assert send(port, "POST", CHAT, raw, Content_Type="text/plain")[0] == 400
    assert send(port, "POST", CHAT, raw)[0] == 400
    assert send(port, "POST", CHAT, raw, Content_Type="application/json; charset=utf-8")[0] == 200


# --- the limits of a body -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        {"stop": ["x" * 9] * 17},
        {"stop": "x" * 300},
        {"messages": MESSAGES * 2000},
        {"messages": [{"role": "user", "content": [{"text": "x"}] * 2000}]},
        {"messages": [{"role": "user", "content": "x" * 1_000_001}]},
        {"tools": [{"type": "function", "function": {"name": "f"}}] * 200},
        {"logit_bias": dict.fromkeys(map(str, range(2000)), 1)},
        {"chat_template_kwargs": dict.fromkeys(map(str, range(2000)), 1)},
        {"model": "m" * 1_000_000},
        {"x" * 1_000_000: 1},
    ],
    ids=lambda body: next(iter(body))[:20],
)
def test_too_many_or_too_long_values_are_refused(port, body):
    assert len(get_refusal(port, CHAT, {**GOOD[CHAT], **body})) < 300
    check_answers(port)


def test_a_text_far_beyond_the_context_is_refused_before_it_is_tokenised(port):
    long = {"role": "user", "content": "ab " * 300_000}
    begun = time.monotonic()
    message = get_refusal(port, CHAT, {"messages": [long] * 6})
    assert "characters, and the model's context is 100,000 tokens" in message
    assert time.monotonic() - begun < 2


def test_a_body_that_is_declared_too_large_is_refused_before_it_arrives(port):
    head = HEAD.replace("1000", str(MAX_BODY_BYTES + 1))
    with connect(port, head + "\r\n") as client:
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_body_of_pieces_is_refused_when_it_becomes_too_large(port):
    head = HEAD.replace("Content-Length: 1000", "Transfer-Encoding: chunked")
    piece = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    with connect(port, head + "\r\n") as client:
        for _ in range(MAX_BODY_BYTES // 0x100000 + 1):
            client.sendall(piece)
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")


# --- the template ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("chat_template", "messages", "tools", "documents", "add_generation_prompt", "tokenize"),
        *("tokenizer_kwargs", "continue_final_message", "eos_token", "raise_exception", "unread"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, RESPONSES])
def test_a_request_can_set_only_variables_that_the_template_reads(port, path, name):
    message = get_refusal(port, path, {**GOOD[path], "chat_template_kwargs": {name: "x"}})
    assert name in message
    assert "can set greeting, slow" in message


def test_a_variable_that_the_template_reads_changes_the_prompt(port):
    def count(path: str, **variables: object) -> int:
        document = post(port, path, {**GOOD[path], "chat_template_kwargs": variables})[1]
        return int(document["usage"]["prompt_tokens" if path == CHAT else "input_tokens"])

    for path in (CHAT, RESPONSES):
        assert count(path, greeting="Welcome to Oslo.") > count(path)


def test_an_error_of_the_template_is_an_error_of_the_request(port):
    body = {**GOOD[CHAT], "chat_template_kwargs": {"greeting": ["no text"]}}
    assert post(port, CHAT, body)[0] == 200, "the template prints a list"
    message = {"role": "user", "content": "x", "tool_calls": [{"name": "f"}]}
    assert "the chat template refuses" in get_refusal(port, CHAT, {"messages": [message]})


def test_health_and_other_requests_are_answered_while_a_prompt_is_made(port):
    with ThreadPoolExecutor() as threads:
        slow = threads.submit(post, port, CHAT, SLOW)
        time.sleep(0.5)
        begun = time.monotonic()
        assert send(port, "GET", "/health")[0] == 200
        assert time.monotonic() - begun < 2
        check_answers(port)
        status, document = slow.result(timeout=30)
    assert status == 400
    assert document["error"]["type"] == "invalid_request_error"


# --- the name of the server -----------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/unknown"])
@pytest.mark.parametrize(
    "name",
    [
        *("pages.example", "pages.example:8000", "localhost.pages.example", "127.0.0.1.example"),
        *("localhost:80@pages.example", "pages.example#localhost", "0.0.0.0", "[::2]", ""),
    ],
)
def test_a_foreign_name_of_the_server_is_refused(port, path, name):
    status, document = send(port, "GET", path, Host=name)
    assert status == 421
    assert document["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("name", ["localhost", "LocalHost:1", "127.0.0.1", "[::1]:8000"])
def test_a_name_of_this_computer_is_answered(port, name):
    assert send(port, "GET", "/v1/models", Host=name)[0] == 200


# --- slow clients and clients that leave ----------------------------------------------------------


def connect(port: int, text: str) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=10)
    client.sendall(text.encode())
    return client


def wait_for_end(client: socket.socket) -> None:
    """Read until the server closes the connection. Fail if it does not do so within 10 seconds."""
    try:
        while client.recv(65536):
            pass
    except ConnectionError:
        pass


@pytest.mark.parametrize(
    "text",
    [
        "",
        "PO",
        HEAD,
        HEAD + "\r\n{",
        HEAD.replace(CHAT, "/unknown") + "\r\n{",
        HEAD.replace("1000", str(MAX_BODY_BYTES + 1)) + "\r\n{",
        f"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n{HEAD}\r\n{{",
    ],
    ids=["nothing", "half a line", "half a head", "half a body", "404", "413", "second request"],
)
def test_a_client_that_does_not_finish_its_request_is_disconnected(port, text):
    begun = time.monotonic()
    with connect(port, text) as client:
        wait_for_end(client)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(("text", "more"), [(HEAD, "a: b\r\n"), (HEAD + "\r\n", " ")])
def test_a_client_that_sends_single_bytes_is_disconnected(port, text, more):
    begun, is_connected = time.monotonic(), True
    with connect(port, text) as client:
        while is_connected and time.monotonic() - begun < 10:
            time.sleep(0.3)
            try:
                client.sendall(more.encode())
            except ConnectionError:
                is_connected = False
    assert not is_connected


def test_bytes_that_are_not_http_leave_no_traceback(port):
    """The server's log is read at its end. The body is malformed after the answer."""
    head = "POST /unknown HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connect(port, head) as client:
        assert client.recv(100).startswith(b"HTTP/1.1 404 ")
        client.sendall(b"no length\r\n")
        wait_for_end(client)
    with connect(port, head.replace("/unknown", CHAT) + "no length\r\n") as client:
        assert client.recv(100).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("stream", [False, True])
def test_the_answer_to_a_client_that_left_is_not_continued(port, stream):
    raw = json.dumps({"messages": MESSAGES, "max_tokens": 90_000, "stream": stream})
    with connect(port, HEAD.replace("1000", str(len(raw))) + "\r\n" + raw):
        time.sleep(1)
    check_answers(port)


# --- the end --------------------------------------------------------------------------------------


def test_sigterm_ends_the_server_whatever_it_does(model, tmp_path):
    server, log = start_server(model, tmp_path / "home", limits={"listening.STOP_SECONDS": 1})
    try:
        port = read_port(wait_for_address(server, log))
        endless = {"messages": MESSAGES, "max_tokens": 90_000}
        with ThreadPoolExecutor() as threads, connect(port, HEAD + "\r\n{"):
            answers = [
                threads.submit(post, port, CHAT, body)
                for body in (endless, {**endless, "stream": True}, SLOW, SLOW)
            ]
            time.sleep(2)
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=10) == -signal.SIGTERM
            for answer in answers:
                answer.exception(timeout=10)
    finally:
        server.kill()
    assert "Traceback" not in log.read_text(), log.read_text()


@pytest.mark.parametrize(
    ("options", "status"), [(["--host", "127.0.0.1"], 200), ([], 421)], ids=["host", "no host"]
)
def test_only_with_a_host_a_foreign_name_is_answered(command, model, monkeypatch, options, status):
    from fastapi.testclient import TestClient

    apps: list[Any] = []
    monkeypatch.setattr("lora_sft.serve.listening.run_endpoint", lambda app, _: apps.append(app))
    outcome = command("serve", model, "--port", 0, "--backend", "transformers", *options)
    assert outcome.code == 0
    client = TestClient(apps[0], base_url="http://pages.example")
    assert client.get("/v1/models").status_code == status
