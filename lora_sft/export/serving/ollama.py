"""Make an Ollama `Modelfile` for a merged model or an adapter: template, stop tokens, parameters.

Ollama renders prompts with a Go template. A Jinja template is a program, so it cannot be translated
in general. But most chat templates write an opening, then turns with a fixed prefix and suffix per
role, and then the start of the answer. These pieces are found by rendering marked messages.

The pieces are put together again and compared with the Jinja template on several conversations. If
all renderings are equal, the pieces become a Go template. Otherwise the Modelfile has a note and no
TEMPLATE, and Ollama guesses a template. Texts that begin or end with spaces are not compared: some
templates trim them, and Ollama's Go templates cannot.

Source: https://docs.ollama.com/modelfile and Ollama's template engine (`template.Execute`).
`.System` holds the system texts and `.Messages` all turns. Ollama's runner adds the bos token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from transformers import PreTrainedTokenizerBase

from lora_sft.data.templates.prompt_text import render_prompt
from lora_sft.data.templates.rendering import TemplateRefusal, depends_on_date
from lora_sft.shown_text import make_one_line

Chat = Sequence[tuple[str, str]]
# The marked messages. The spellings are wrong so that no template contains them.
SYSTEM, QUESTION, ANSWER, SECOND = "Sysstem", "Kwestion", "Ansswer", "Fraage"
PROOF_CHATS: tuple[Chat, ...] = (
    (("user", "Hi"),),
    (("user", "One\ntwo."), ("assistant", 'Yes — "that\'s" it.'), ("user", "Go on")),
    tuple((("user", "assistant")[turn % 2], f"text {turn}") for turn in range(5)),
    (("system", "Be brief."), ("user", "Hi")),
    (("system", "Be brief.\n\nBe kind."), ("user", "a"), ("assistant", "b"), ("user", "c")),
)
PARAMETERS = {  # name in generation_config.json -> name in a Modelfile
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
NO_TEMPLATE = (
    "the chat template is not a plain loop over turns, so there is no TEMPLATE; "
    "Ollama will guess one"
)
GREEDY = {"temperature": 0}  # Ollama's default is 0.8


@dataclass(frozen=True)
class ChatPieces:
    """The texts that a chat template writes around the texts of the messages.

    Attributes:
        opening: The text before the first turn if there is no system text.
        before_answer: The text that starts the answer.
        joins_system: Whether the first question is in the same turn as the system text.
    """

    opening: str
    before_system: str
    after_system: str
    before_user: str
    after_user: str
    before_assistant: str
    after_assistant: str
    before_answer: str
    joins_system: bool

    def render(self, chat: Chat) -> str:
        """Return the prompt for an answer to `chat`, as the Go template renders it."""
        system = next((text for role, text in chat if role == "system"), None)
        parts = (
            [self.opening] if system is None else [self.before_system, system, self.after_system]
        )
        for index, (role, text) in enumerate(chat):
            if role == "user":
                joined = self.joins_system and system is not None and index == 1
                parts += ["" if joined else self.before_user, text, self.after_user]
            elif role == "assistant":
                parts += [self.before_assistant, text, self.after_assistant]
        return "".join([*parts, self.before_answer])

    def to_go_template(self) -> str:
        """Return the Go template. It holds every piece unchanged and trims no spaces."""
        go = {
            name: _write_literal(text) for name, text in vars(self).items() if isinstance(text, str)
        }
        before_user = go["before_user"]
        if self.joins_system:
            before_user = f"{{{{ if not (and $.System (eq $i 1)) }}}}{before_user}{{{{ end }}}}"
        return (
            f"{{{{ if .System }}}}{go['before_system']}{{{{ .System }}}}{go['after_system']}"
            f"{{{{ else }}}}{go['opening']}{{{{ end }}}}"
            "{{ range $i, $_ := .Messages }}"
            "{{ $last := eq (len (slice $.Messages $i)) 1 }}"
            f'{{{{ if eq .Role "user" }}}}{before_user}{{{{ .Content }}}}{go["after_user"]}'
            f'{{{{ else if eq .Role "assistant" }}}}{go["before_assistant"]}{{{{ .Content }}}}'
            f"{{{{ if not $last }}}}{go['after_assistant']}{{{{ end }}}}{{{{ end }}}}"
            f'{{{{ if and $last (ne .Role "assistant") }}}}{go["before_answer"]}{{{{ end }}}}'
            "{{ end }}"
        )


def make_modelfile(
    tokenizer: PreTrainedTokenizerBase, generation: Mapping[str, Any], adapter_base: str | None
) -> tuple[str, list[str]]:
    """Return the Modelfile, and a note for each thing that it cannot hold.

    Args:
        tokenizer: The exported tokenizer, with the exported template.
        generation: The content of `generation_config.json`.
        adapter_base: The base model of an adapter; None for a merged model.
    """
    lines = ["# ollama create NAME -f Modelfile   (docs: lora-sft docs/serving.md)"]
    if adapter_base is None:
        lines.append("FROM .")
    else:
        name = make_one_line(adapter_base.rstrip("/").rsplit("/", 1)[-1])
        lines += [f"# Put the base model {name} into a folder `base` beside this file, or link it."]
        lines += ["FROM ./base", "ADAPTER ."]
    notes = []
    pieces = find_chat_pieces(tokenizer)
    template = pieces.to_go_template() if pieces is not None else None
    if tokenizer.chat_template and (template is None or '"""' in template):
        notes.append(NO_TEMPLATE)
    elif template is not None:
        lines.append(f'TEMPLATE """{template}"""')
        if depends_on_date(tokenizer):
            notes.append(f"TEMPLATE always shows the date {date.today().isoformat()}")
    lines[1:1] = [f"# {note}." for note in notes]
    lines += [f"PARAMETER stop {_quote(text)}" for text in list_stop_texts(tokenizer, generation)]
    lines += [f"PARAMETER {name} {value}" for name, value in find_parameters(generation).items()]
    return "\n".join(lines) + "\n", [f"Modelfile: {note}" for note in notes]


def find_parameters(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sampling parameters of a generation config; greedy if `do_sample` is not set."""
    if not generation.get("do_sample"):
        return GREEDY
    return {
        theirs: generation[ours]
        for ours, theirs in PARAMETERS.items()
        if generation.get(ours) is not None
    }


def list_stop_texts(tokenizer: PreTrainedTokenizerBase, generation: Mapping[str, Any]) -> list[str]:
    """Return the stop tokens of a generation config as texts."""
    eos = generation.get("eos_token_id")
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    return [str(tokenizer.decode([token], skip_special_tokens=False)) for token in ids]


def find_chat_pieces(tokenizer: PreTrainedTokenizerBase) -> ChatPieces | None:
    """Return pieces that give the template's own renderings, or None if they cannot be found."""
    if not tokenizer.chat_template:
        return None
    try:
        pieces = _guess_pieces(tokenizer)
        proved = all(pieces.render(chat) == _render(tokenizer, chat) for chat in PROOF_CHATS)
    except (TemplateRefusal, NotALoopOfTurns):
        return None
    return pieces if proved else None


class NotALoopOfTurns(Exception):
    """A marked text is not in the rendering, or is in it twice."""


def _guess_pieces(tokenizer: PreTrainedTokenizerBase) -> ChatPieces:
    """Cut four renderings at their marked texts. `find_chat_pieces` checks the pieces."""
    one = (("user", QUESTION),)
    more = (*one, ("assistant", ANSWER), ("user", SECOND))
    start, _ = _cut(_render(tokenizer, one), QUESTION)
    _, after_user = _cut(_render(tokenizer, one, served=False), QUESTION)
    _, between, again, rest = _cut(_render(tokenizer, more), QUESTION, ANSWER, SECOND)
    _, _, after_assistant = _cut(_render(tokenizer, more[:2], served=False), QUESTION, ANSWER)
    if not again.startswith(after_assistant) or not start.endswith(
        again.removeprefix(after_assistant)
    ):
        after_assistant = _find_common_start(again, after_assistant)
    before_user = again.removeprefix(after_assistant)
    if not (between.startswith(after_user) and rest.startswith(after_user)):
        after_user = _find_common_start(between, rest)
    before_system, after_system, _ = _cut(
        _render(tokenizer, (("system", SYSTEM), *one)), SYSTEM, QUESTION
    )
    joins_system = not after_system.endswith(before_user)
    return ChatPieces(
        opening=start.removesuffix(before_user),
        before_system=before_system,
        after_system=after_system if joins_system else after_system.removesuffix(before_user),
        before_user=before_user,
        after_user=after_user,
        before_assistant=between.removeprefix(after_user),
        after_assistant=after_assistant,
        before_answer=rest.removeprefix(after_user),
        joins_system=joins_system,
    )


def _render(tokenizer: PreTrainedTokenizerBase, chat: Chat, *, served: bool = True) -> str:
    """Render the template. Remove a bos token at the start, because Ollama's runner adds it.

    Args:
        served: Whether the start of the answer is rendered too.
    """
    messages = [{"role": role, "content": text} for role, text in chat]
    text = render_prompt(tokenizer, messages, {}, served=served)
    return text.removeprefix(tokenizer.bos_token or "")


def _cut(text: str, *marks: str) -> list[str]:
    """Return the texts before, between and after the marks.

    Raises: NotALoopOfTurns if the text does not contain each mark exactly once, in this order.
    """
    parts = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found or mark in text:
            raise NotALoopOfTurns(mark)
        parts.append(before)
    return [*parts, text]


def _find_common_start(left: str, right: str) -> str:
    length = next(
        (index for index, (a, b) in enumerate(zip(left, right, strict=False)) if a != b),
        min(len(left), len(right)),
    )
    return left[:length]


def _write_literal(text: str) -> str:
    """Return `text` as a Go template writes it. Only two opening braces have a meaning there."""
    return text.replace("{{", '{{ "{{" }}')


def _quote(text: str) -> str:
    return f'"""{text}"""' if '"' in text or "\n" in text else f'"{text}"'
