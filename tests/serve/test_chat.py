"""`lora-sft chat`: several turns, one message, input from a pipe, and Ctrl-C at a terminal."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from lora_sft.cli.chat import Chat
from lora_sft.serve.loaded_model import Sampling, find_model_folder, load_model
from tests.serve.models import make_answering_adapter, make_answering_model
from tests.tiny import CHATML

# A prompt of this template ends with the value of `enable_thinking` and the number of messages.
TEMPLATE_WITH_ARGUMENT = (
    CHATML
    + "{{- 'thinking' if enable_thinking is defined and enable_thinking else 'plain' -}}"
    + "{{- messages | length -}}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_answering_model(tmp_path_factory.mktemp("models") / "answering")


def test_the_option_message_prints_only_the_answer(command, model):
    outcome = command("chat", model, "--message", "Where is Oslo?", "--max-new-tokens", 6)
    assert outcome.code == 0
    assert outcome.stdout.strip()
    assert outcome.stdout.endswith("\n")
    assert "cut at the token limit" in outcome.stderr
    again = command("chat", model, "--message", "Where is Oslo?", "--max-new-tokens", 6)
    assert again.stdout == outcome.stdout, "greedy decoding is not repeatable"
    longer = command("chat", model, "--message", "Where is Oslo?", "--max-new-tokens", 12)
    assert longer.stdout.startswith(outcome.stdout.rstrip("\n"))


def test_the_option_message_with_a_dash_reads_all_of_stdin(command, model, monkeypatch):
    whole = "First line.\nSecond line."
    monkeypatch.setattr("sys.stdin", io.StringIO(whole))
    piped = command("chat", model, "--message", "-", "--max-new-tokens", 6)
    written = command("chat", model, "--message", whole, "--max-new-tokens", 6)
    assert piped.stdout == written.stdout


def test_each_line_of_a_pipe_is_a_user_message_of_one_conversation(command, model, monkeypatch):
    def chat(*lines: str) -> list[str]:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        outcome = command("chat", model, "--max-new-tokens", 6)
        assert outcome.code == 0
        return outcome.stdout.splitlines()

    first, second = chat("Hello", "Hello")
    assert chat("Hello", "/reset", "Hello") == [first, first]
    assert second != first
    assert chat("Hello", "/exit", "Hello") == [first]


def test_equal_seeds_give_equal_answers(command, model):
    def answer(*options: object) -> str:
        arguments = ("--message", "Hello", "--max-new-tokens", 8, *options)
        return command("chat", model, *arguments).stdout

    assert answer("--temperature", 1.5, "--seed", 1) == answer("--temperature", 1.5, "--seed", 1)
    assert len({answer("--temperature", 1.5, "--seed", seed) for seed in range(4)}) > 1


def test_the_chat_template_gets_the_arguments_and_the_system_message(command, model, tmp_path):
    from lora_sft.serve.loaded_model import find_model_folder, load_model

    (model / "chat_template.jinja").write_text(TEMPLATE_WITH_ARGUMENT)
    loaded = load_model(find_model_folder(model))
    ids = loaded.make_prompt([{"role": "user", "content": "Hi"}], {"enable_thinking": True})
    assert loaded.tokenizer.decode(ids).endswith("thinking1")
    ask = ("chat", model, "--message", "Hi", "--max-new-tokens", 8)
    answers = {
        command(*ask).stdout,
        command(*ask, "--chat-template-kwargs", '{"enable_thinking": true}').stdout,
        command(*ask, "--system", "Be brief.").stdout,
    }
    assert len(answers) == 3
    (model / "chat_template.jinja").write_text(CHATML)


def test_an_adapter_answers_differently_from_its_base(command, model, tmp_path):
    adapter = make_answering_adapter(model, tmp_path / "adapter")
    ask = ("--message", "Where is Oslo?", "--max-new-tokens", 8)
    assert command("chat", adapter, *ask).code == 0
    assert command("chat", adapter, *ask).stdout != command("chat", model, *ask).stdout


def test_a_conversation_longer_than_the_context_is_refused(command, model):
    outcome = command("chat", model, "--message", "x " * 600)
    assert outcome.code == 4
    assert "the model's context is 512" in outcome.stderr


@pytest.mark.parametrize("text", ["enable_thinking", "[1]", "enable_thinking=true"])
def test_template_arguments_that_are_not_a_json_object_are_refused(command, model, text):
    outcome = command("chat", model, "--chat-template-kwargs", text)
    assert outcome.code == 2
    assert "is not a JSON object" in outcome.stderr


class InterruptedAnswer:
    """An answer stream. Ctrl-C is pressed after its first piece."""

    was_cut = False
    is_stopped = False

    def __iter__(self):
        yield "so far"
        signal.raise_signal(signal.SIGINT)
        assert self.is_stopped  # and nothing was raised here, where a library may hold a lock

    def stop(self):
        self.is_stopped = True


def test_ctrl_c_raises_only_after_the_answer_has_ended(capsys):
    model = SimpleNamespace(answer=lambda *_: InterruptedAnswer())
    chat = Chat(model, Sampling(8), {}, None)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        chat.say("Hello")
    assert capsys.readouterr().out == "so far\n"
    assert chat._messages[-1] == {"role": "assistant", "content": "so far"}
    assert signal.getsignal(signal.SIGINT) is before


def test_a_stopped_answer_ends_at_its_next_token(tmp_path):
    model = make_answering_model(tmp_path / "endless", context_tokens=1_000_000)
    loaded = load_model(find_model_folder(model))
    stream = loaded.answer([{"role": "user", "content": "Hello"}], Sampling(1_000_000), {})
    pieces = iter(stream)
    assert next(pieces)
    stream.stop()
    assert len(list(pieces)) < 1000


def test_at_a_terminal_ctrl_c_stops_an_answer_and_then_ends_the_chat(tmp_path):
    """The first Ctrl-C stops the running answer, and the chat continues. The second one ends it."""
    model = make_answering_model(tmp_path / "endless", context_tokens=1_000_000)
    leader, follower = pty.openpty()
    chat = subprocess.Popen(
        [sys.executable, "-m", "lora_sft", "chat", str(model), "--max-new-tokens", "100000"],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    os.close(follower)
    seen = read_until(leader, "> ")
    os.write(leader, b"Hello\n")
    time.sleep(1.0)
    chat.send_signal(signal.SIGINT)
    seen += read_until(leader, "\n> ", after="Hello")
    assert chat.poll() is None
    time.sleep(1.0)  # so that the process reads its input; an earlier signal would wait for a line
    chat.send_signal(signal.SIGINT)
    assert chat.wait(timeout=60) == 130
    assert "Traceback" not in seen
    os.close(leader)


def read_until(descriptor: int, mark: str, *, after: str = "", seconds: float = 60) -> str:
    end, text = time.monotonic() + seconds, ""
    while time.monotonic() < end:
        if not select.select([descriptor], [], [], 1.0)[0]:
            continue
        text += os.read(descriptor, 65536).decode(errors="replace")
        if mark in (text.rpartition(after)[2] if after else text):
            return text
    raise AssertionError(text)
