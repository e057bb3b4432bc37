"""`lora-sft chat` as a person uses it: turns, one message, a pipe, Ctrl-C at a terminal."""

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
from lora_sft.serve.speaker import Sampling, find_target, load_speaker
from tests.serve.models import make_shouting_adapter, make_shouting_model
from tests.tiny import CHATML

# The prompt says which arguments the template was given, and counts the turns.
TALKING = (
    CHATML
    + "{{- 'thinking' if enable_thinking is defined and enable_thinking else 'plain' -}}"
    + "{{- messages | length -}}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shouting_model(tmp_path_factory.mktemp("models") / "shouting")


def test_one_message_is_answered_and_nothing_else_is_on_stdout(command, model):
    outcome = command("chat", model, "--message", "Where is Oslo?", "--max-new-tokens", 6)
    assert outcome.code == 0
    assert outcome.stdout.strip()
    assert outcome.stdout.endswith("\n")
    assert "cut at the token limit" in outcome.stderr
    again = command("chat", model, "--message", "Where is Oslo?", "--max-new-tokens", 6)
    assert again.stdout == outcome.stdout, "greedy answers are the same every time"
    longer = command("chat", model, "--message", "Where is Oslo?", "--max-new-tokens", 12)
    assert longer.stdout.startswith(outcome.stdout.rstrip("\n"))


def test_a_dash_reads_the_whole_of_stdin_as_one_message(command, model, monkeypatch):
    whole = "First line.\nSecond line."
    monkeypatch.setattr("sys.stdin", io.StringIO(whole))
    piped = command("chat", model, "--message", "-", "--max-new-tokens", 6)
    written = command("chat", model, "--message", whole, "--max-new-tokens", 6)
    assert piped.stdout == written.stdout


def test_every_line_of_a_pipe_is_a_turn_that_remembers_the_ones_before(command, model, monkeypatch):
    def say(*lines: str) -> list[str]:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        outcome = command("chat", model, "--max-new-tokens", 6)
        assert outcome.code == 0
        return outcome.stdout.splitlines()

    first, second = say("Hello", "Hello")
    assert say("Hello", "/reset", "Hello") == [first, first]
    assert second != first
    assert say("Hello", "/exit", "Hello") == [first]


def test_sampling_follows_its_seed(command, model):
    def say(*options: object) -> str:
        arguments = ("--message", "Hello", "--max-new-tokens", 8, *options)
        return command("chat", model, *arguments).stdout

    assert say("--temperature", 1.5, "--seed", 1) == say("--temperature", 1.5, "--seed", 1)
    assert len({say("--temperature", 1.5, "--seed", seed) for seed in range(4)}) > 1


def test_the_template_is_given_the_arguments_and_the_system_message(command, model, tmp_path):
    from lora_sft.serve.speaker import find_target, load_speaker

    (model / "chat_template.jinja").write_text(TALKING)
    speaker = load_speaker(find_target(model))
    ids = speaker.make_prompt([{"role": "user", "content": "Hi"}], {"enable_thinking": True})
    assert speaker.tokenizer.decode(ids).endswith("thinking1")
    ask = ("chat", model, "--message", "Hi", "--max-new-tokens", 8)
    answers = {
        command(*ask).stdout,
        command(*ask, "--chat-template-kwargs", '{"enable_thinking": true}').stdout,
        command(*ask, "--system", "Be brief.").stdout,
    }
    assert len(answers) == 3
    (model / "chat_template.jinja").write_text(CHATML)


def test_an_adapter_folder_is_talked_to_on_its_base(command, model, tmp_path):
    adapter = make_shouting_adapter(model, tmp_path / "adapter")
    ask = ("--message", "Where is Oslo?", "--max-new-tokens", 8)
    assert command("chat", adapter, *ask).code == 0
    assert command("chat", adapter, *ask).stdout != command("chat", model, *ask).stdout


def test_a_conversation_past_the_context_is_refused(command, model):
    outcome = command("chat", model, "--message", "x " * 600)
    assert outcome.code == 4
    assert "the model's context is 512" in outcome.stderr


@pytest.mark.parametrize("text", ["enable_thinking", "[1]", "enable_thinking=true"])
def test_template_arguments_that_are_no_json_object_are_refused(command, model, text):
    outcome = command("chat", model, "--chat-template-kwargs", text)
    assert outcome.code == 2
    assert "is no JSON object" in outcome.stderr


class LastPiece:
    """An answer in the middle of which somebody presses Ctrl-C."""

    was_cut = False
    is_stopped = False

    def __iter__(self):
        yield "so far"
        signal.raise_signal(signal.SIGINT)
        assert self.is_stopped  # and nothing was raised here, where a lock may be held

    def stop(self):
        self.is_stopped = True


def test_ctrl_c_is_raised_when_the_answer_has_ended(capsys):
    speaker = SimpleNamespace(answer=lambda *_: LastPiece())
    chat = Chat(speaker, Sampling(8), {}, None)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        chat.say("Hello")
    assert capsys.readouterr().out == "so far\n"
    assert chat._messages[-1] == {"role": "assistant", "content": "so far"}
    assert signal.getsignal(signal.SIGINT) is before


def test_an_answer_ends_at_its_next_token_when_it_is_stopped(tmp_path):
    model = make_shouting_model(tmp_path / "endless", context_tokens=1_000_000)
    speaker = load_speaker(find_target(model))
    stream = speaker.answer([{"role": "user", "content": "Hello"}], Sampling(1_000_000), {})
    pieces = iter(stream)
    assert next(pieces)
    stream.stop()
    assert len(list(pieces)) < 1000


def test_ctrl_c_stops_an_answer_at_a_terminal_and_then_leaves(tmp_path):
    """The first Ctrl-C ends the answer under way and the chat goes on; the second one leaves."""
    model = make_shouting_model(tmp_path / "endless", context_tokens=1_000_000)
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
    time.sleep(1.0)  # a signal between the prompt and the read of the line waits for the line
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
