"""An Ollama `Modelfile` for a merged folder or an adapter: template, stop tokens, parameters.

Ollama writes its prompts with a Go template, and a Jinja template is a program, so there is no
general translation. What there is: most chats are an opening, then turns of a role's own prefix
and suffix, then what opens the answer. Those pieces are found by rendering marked messages, put
together again, and compared with the Jinja template on conversations of several shapes. Where
every one is equal the Go template says the same; where one is not, the Modelfile has no TEMPLATE
(Ollama then guesses one) and says so. Texts with blanks at their ends are not compared: templates
that trim them cannot be followed, Go templates in Ollama have no trim.

Source: https://docs.ollama.com/modelfile and the template engine of Ollama (`template.Execute`):
`.System` holds the system texts, `.Messages` all turns, and bos is added by the runner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from transformers import PreTrainedTokenizerBase

from lora_sft.data.templates.rendering import TEMPLATE_FAULTS, depends_on_date

Chat = Sequence[tuple[str, str]]
SYSTEM, QUESTION, ANSWER, SECOND = "Sysstem", "Kwestion", "Ansswer", "Fraage"
PROVED_ON: tuple[Chat, ...] = (
    (("user", "Hi"),),
    (("user", "One\ntwo."), ("assistant", 'Yes — "that\'s" it.'), ("user", "Go on")),
    tuple((("user", "assistant")[turn % 2], f"text {turn}") for turn in range(5)),
    (("system", "Be brief."), ("user", "Hi")),
    (("system", "Be brief.\n\nBe kind."), ("user", "a"), ("assistant", "b"), ("user", "c")),
)
PARAMETERS = {  # generation_config.json: Modelfile
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
NO_TEMPLATE = (
    "the chat template is no plain loop of turns, so there is no TEMPLATE; Ollama will guess one"
)
GREEDY = {"temperature": 0}  # Ollama samples at 0.8 unless told otherwise


@dataclass(frozen=True)
class ChatPieces:
    """What a template writes around texts: the opening with and without a system text, turns."""

    opening: str
    before_system: str
    after_system: str
    before_user: str
    after_user: str
    before_assistant: str
    after_assistant: str
    before_answer: str
    joins_system: bool  # the first question stands in the turn that the system text opened

    def render(self, chat: Chat) -> str:
        """The prompt before an answer to `chat`, as the Go template of these pieces writes it."""
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
        """The same as a Go template; every piece stands in it as it is, no blank is trimmed."""
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
    """The Modelfile, and a sentence for what it does not hold.

    `tokenizer` has the exported template; `generation` is `generation_config.json`;
    `adapter_base` names the base where the folder holds an adapter.
    """
    lines = ["# ollama create NAME -f Modelfile   (docs: lora-sft docs/serving.md)"]
    if adapter_base is None:
        lines.append("FROM .")
    else:
        name = adapter_base.rstrip("/").rsplit("/", 1)[-1]
        lines += [f"# Put the base, {name}, into the folder `base` beside this file, or link it."]
        lines += ["FROM ./base", "ADAPTER ."]
    notes = []
    pieces = find_chat_pieces(tokenizer)
    template = pieces.to_go_template() if pieces is not None else None
    if tokenizer.chat_template and (template is None or '"""' in template):
        notes.append(NO_TEMPLATE)
    elif template is not None:
        lines.append(f'TEMPLATE """{template}"""')
        if depends_on_date(tokenizer):
            notes.append(f"TEMPLATE tells one day for ever: {date.today().isoformat()}")
    lines[1:1] = [f"# {note}." for note in notes]
    lines += [f"PARAMETER stop {_quote(text)}" for text in list_stop_texts(tokenizer, generation)]
    lines += [f"PARAMETER {name} {value}" for name, value in find_parameters(generation).items()]
    return "\n".join(lines) + "\n", [f"Modelfile: {note}" for note in notes]


def find_parameters(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling as the generation config has it; without `do_sample`, greedy as everywhere else."""
    if not generation.get("do_sample"):
        return GREEDY
    return {
        theirs: generation[ours]
        for ours, theirs in PARAMETERS.items()
        if generation.get(ours) is not None
    }


def list_stop_texts(tokenizer: PreTrainedTokenizerBase, generation: Mapping[str, Any]) -> list[str]:
    """The stop tokens as text, in the order of their ids."""
    eos = generation.get("eos_token_id")
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    return [str(tokenizer.decode([token], skip_special_tokens=False)) for token in ids]


def find_chat_pieces(tokenizer: PreTrainedTokenizerBase) -> ChatPieces | None:
    """The pieces that give back what the template renders, or None where there are none."""
    if not tokenizer.chat_template:
        return None
    try:
        pieces = _guess_pieces(tokenizer)
        proved = all(pieces.render(chat) == _render(tokenizer, chat) for chat in PROVED_ON)
    except (*TEMPLATE_FAULTS, NotALoop):
        return None
    return pieces if proved else None


class NotALoop(Exception):
    """A marked text is missing from the rendering, or stands there twice."""


def _guess_pieces(tokenizer: PreTrainedTokenizerBase) -> ChatPieces:
    """Cut four renderings at their marked texts; whether the pieces fit is proved afterwards."""
    one = (("user", QUESTION),)
    more = (*one, ("assistant", ANSWER), ("user", SECOND))
    start, _ = _cut(_render(tokenizer, one), QUESTION)
    _, after_user = _cut(_render(tokenizer, one, served=False), QUESTION)
    _, between, again, rest = _cut(_render(tokenizer, more), QUESTION, ANSWER, SECOND)
    _, _, after_assistant = _cut(_render(tokenizer, more[:2], served=False), QUESTION, ANSWER)
    if not again.startswith(after_assistant) or not start.endswith(
        again.removeprefix(after_assistant)
    ):
        after_assistant = _common_start(again, after_assistant)
    before_user = again.removeprefix(after_assistant)
    if not (between.startswith(after_user) and rest.startswith(after_user)):
        after_user = _common_start(between, rest)
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
    """The template's text, without a leading bos, which Ollama's runner adds itself."""
    messages = [{"role": role, "content": text} for role, text in chat]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=served)
    return str(text).removeprefix(tokenizer.bos_token or "")


def _cut(text: str, *marks: str) -> list[str]:
    """The texts before, between and after the marks.

    Raises: NotALoop where a mark is not there exactly once, in this order.
    """
    parts = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found or mark in text:
            raise NotALoop(mark)
        parts.append(before)
    return [*parts, text]


def _common_start(left: str, right: str) -> str:
    length = next(
        (index for index, (a, b) in enumerate(zip(left, right, strict=False)) if a != b),
        min(len(left), len(right)),
    )
    return left[:length]


def _write_literal(text: str) -> str:
    """Text of a Go template: only opening braces mean something there."""
    return text.replace("{{", '{{ "{{" }}')


def _quote(text: str) -> str:
    return f'"""{text}"""' if '"' in text or "\n" in text else f'"{text}"'
