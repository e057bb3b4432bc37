"""Find sentences that a reader may have to read twice: the sentences, and a list of patterns.

The patterns find examples; the meaning decides. Each pattern names a construction and shows two
sentences: one that it must match, and the plain one that replaced it.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
CODE = ("lora_sft", "tests", "tools", "benchmarks")
PAGES = ("*.md", "docs/**/*.md", "recipes/**/*.md", "ds_configs/*.md", "benchmarks/**/*.md")
RECIPES = ("recipes/**/*.yaml", "docs/*.yaml")
# A message is a string that people read: an argument of one of these calls, or of any `...Error`.
SPEAKERS = frozenset(("say", "print", "add_command", "add_argument", "Fault", "RowDropped", "Drop"))
SENTENCE_END = re.compile(r"(?<=[.!?:;])\s+(?=[A-Z`\"'(])")
_FENCED = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^#+ .*$", re.MULTILINE)  # a title is not a sentence
_HARD_TO_READ = re.compile(r"(?<=\| hard to read \| plain \|\n)(\|.*\n)+")  # CONTRIBUTING's pairs
ITEM_HEAD = re.compile(r"^(\s*[-*|#>]+\s*|\s*\w+: (?=[A-Z]))")


@dataclass(frozen=True)
class Sentence:
    """One sentence of the project, and where it is."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}  {self.text}"


@dataclass(frozen=True)
class Pattern:
    """One construction that is hard to read, as a regular expression over a sentence.

    Attributes:
        name: A short description of the construction.
        expression: Found anywhere in a sentence; upper and lower case are the same.
        old: A sentence of this project that had it.
        plain: The same thing said plainly. No pattern matches it.
    """

    name: str
    expression: str
    old: str
    plain: str

    def finds(self, text: str) -> bool:
        """Return whether the construction is in a sentence."""
        return re.search(self.expression, text, re.IGNORECASE) is not None


PATTERNS = (
    Pattern(
        "a relative clause that is turned around",
        r"\bof (which|whom)\b|\bof whose\b",
        "this is asked after errors, of which a WORLD_SIZE that is none is one.",
        "It also runs after errors, and one of these errors is an invalid WORLD_SIZE.",
    ),
    Pattern(
        "'none' as a value",
        r"\b(that|which|it|they) (is|are|was|were) none\b|\b(is|are) none\.?$|\bnone of it\b"
        r"|\b(is|are) none of\b",
        "A loss that is no number on one process gives every process a norm that is none.",
        "If the loss is not finite on one process, the norm is not finite on any process.",
    ),
    Pattern(
        "'is no' with a noun in place of 'is not a'",
        r"\b(what|that|which|who) (is|are|was|were) no [a-z]+",
        "What is no number is refused where the world is read, and may be shown by then.",
        "`read_number` refuses a value that is not an integer.",
    ),
    Pattern(
        "a sentence whose subject is a clause with 'what'",
        r"^what (?!if\b)(?=[^?]*$)",
        "What a start that was killed had moved aside, to replace it, is put back first.",
        "Restore the folder that an interrupted merge renamed, before starting a new one.",
    ),
    Pattern(
        "a sentence whose subject is a clause with 'who' or 'whoever'",
        r"^who(ever)? (?=[^?]*$)|, for who\b|\bfor whoever\b",
        "Who leaves because of another's error leaves with that one's exit code.",
        "A process that leaves because of another's error returns that process's exit code.",
    ),
    Pattern(
        "a clause with 'and what'",
        r"\band what (it|they|he|she|is|are|was)\b",
        "What an answer thinks, wherever it says so, and what it says then.",
        "Return the reasoning and the visible answer of one assistant message.",
    ),
    Pattern(
        "'is then not so'",
        r"\bis then not so\b|\b(is|are) then (not|none|no)\b",
        "What the trainer says of the older place, that it is ignored, is then not so",
        "The trainer warns that the old path is ignored. The warning is wrong here.",
    ),
    Pattern(
        "'one' that stands for something named elsewhere",
        r"\b(when|if|where|until|while) one (comes|is|was|has|does)\b|\bone that it is\b"
        r"|\bsuch a one\b|\bthat one's\b|\bthe one that is\b",
        "For short waits, or with `meanwhile`, called when one comes, which makes them short",
        "Use it for short waits. For longer ones pass `meanwhile`: it is called when a signal "
        "arrives, and must end the wait.",
    ),
    Pattern(
        "'if any' for a column or a value that may be missing",
        r"\bif any\b|\bwhere any\b",
        "whether they are hashed, by the groups of which column if any.",
        "`group_column` is the column whose values are grouped, or None.",
    ),
    Pattern(
        "'alone' in place of 'only'",
        r"\b(one|those|these|\w+s) of (these|those|them) alone\b|\b(that|this|these|those) alone\b"
        r"|\bby itself alone\b",
        "without the empty ones of its reasoning fields: a template may read one of these alone",
        "Remove empty reasoning fields: some templates read only one of these fields.",
    ),
    Pattern(
        "'is there' in place of 'exists'",
        r"\b(is|are|was|were) there (twice|once|too|already|yet|and|or|alone|for ever)\b"
        r"|\b(is|are) not there\b|\bthat (is|are) there\b",
        "two calls of one function are there twice, or one of them is lost",
        "If an assistant calls the same function twice, both calls must be in the text.",
    ),
    Pattern(
        "'knows nothing of'",
        r"\bknows? (nothing|no|little) (of|about)\b|\bknows? of (no|none)\b",
        "it knows nothing of a lost terminal.",
        "A worker does not see that its terminal was closed.",
    ),
    Pattern(
        "'is due'",
        r"\b(is|are|was) due\b(?! to\b)",
        "A launcher that runs, and what it is due.",
        "A launcher process: forward signals to its workers, and end it when the run has ended.",
    ),
    Pattern(
        "an adjective without its noun",
        r"\bthese few\b|\bthe commonest\b|\bthe (few|many|rest) (come|go|are) (directly|so)\b",
        "These few come directly, the commonest without a call.",
        "Read the most frequent attributes directly, without a function call.",
    ),
    Pattern(
        "'that it is ... by'",
        r"\bthat it is \w+ by\b|\bthat they are \w+ by\b|\bwhat (it|they) (is|are) \w+ by\b",
        "one that it is drawn by, and one that it is compared by",
        "Two hashes: the first decides the split, the second finds duplicates.",
    ),
    Pattern(
        "'a' in place of 'per'",
        r"\b(tokens?|rows?|steps?|bytes|lines?|samples|seconds|passes|launches|files|numbers?|looks?"
        r"|once|twice|one|two|three) an? (step|second|minute|process|row|micro-batch|batch|token"
        r"|epoch|machine|rank|layer|line|record|test|device|GPU|pass|block|column|split|source|beat|metric"
        r"|parameter|element|document|sequence|head|expert)\b",
        "One look at the device a step, not one a micro-batch.",
        "The device is read once per step, not once per micro-batch.",
    ),
    Pattern(
        "an inversion",
        r"^(so|nor|neither|thus) (is|are|does|do|did|has|have|can|was|were|it is)\b"
        r"|\bto (it|them) (is|are)\b|\bgone (is|are)\b",
        "So it is with a SIGTERM, which a launcher sends to whoever is left.",
        "A SIGTERM is the same case: the launcher sends it to the remaining processes.",
    ),
    Pattern(
        "'said', 'told' and 'asked' of things",
        r"\b(is|are|was|were) (said|told|asked) (to|of|by|in|about|for|with|so|which|whether)\b"
        r"|\b(says|say|said|tells|tell) (so|otherwise|nothing|neither)\b",
        "Whether that is safe is asked of the model.",
        "The model decides whether that is safe.",
    ),
    Pattern(
        "'be had', 'be gone', 'let be', 'are alike'",
        r"\bto be had\b|\bis to be\b|\blet be\b|\b(is|are) alike\b|\ball alike\b|\bwhere (it|they) "
        r"stands?\b|\bas (it|they) (stands?|lies?)\b|\bas it is there\b",
        "A number that says what the recipe says is let be.",
        "A number that equals the recipe's is accepted.",
    ),
    Pattern(
        "an aphorism about people",
        r"\bnobody\b|\banybody\b|\beverybody\b|\bnone of our\b|\bvouch(es|ed)?\b|\bon its way out\b"
        r"|\bword on\b|\bits word\b|\bits own word\b",
        "Nobody vouches for one that lies there.",
        "A folder that is already there was not checked, so it is removed.",
    ),
)


def list_sentences() -> list[Sentence]:
    """Return every sentence of docstrings, comments, messages and pages, in a fixed order."""
    found: list[Sentence] = []
    for folder in CODE:
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            found += _read_python(path)
    for pattern in PAGES:
        for path in sorted(REPOSITORY.glob(pattern)):
            found += _read_page(path)
    for pattern in RECIPES:
        for path in sorted(REPOSITORY.glob(pattern)):
            found += _read_recipe(path)
    return list(dict.fromkeys(found))


def _read_python(path: Path) -> Iterator[Sentence]:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    yield from _cut(path, _read_docstrings(tree))
    yield from _cut(path, _read_comments(text))
    yield from _cut(path, _read_messages(tree))


def _read_docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                first = node.body[0].lineno
                for offset, block in _split_blocks(docstring):
                    yield first + offset, block


def _split_blocks(text: str) -> Iterator[tuple[int, str]]:
    """Yield paragraphs and list items with the number of lines before each."""
    start, lines = 0, list[str]()
    for number, line in enumerate([*text.splitlines(), ""]):
        begins_item = ITEM_HEAD.match(line) is not None
        if (not line.strip() or begins_item) and lines:
            yield start, " ".join(each.strip() for each in lines)
            lines = []
        if line.strip():
            start = start if lines else number
            lines.append(line)


def _read_comments(text: str) -> Iterator[tuple[int, str]]:
    """Yield each comment; lines of one comment that follow each other are joined."""
    start, last, parts = 0, -1, list[str]()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        line, body = token.start[0], token.string.lstrip("#: ").rstrip("- ")
        if body.startswith(("type: ignore", "noqa", "!")):
            continue
        if line != last + 1 and parts:
            yield start, " ".join(parts)
            parts = []
        start, last = (start if parts else line), line
        parts.append(body)
    if parts:
        yield start, " ".join(parts)


def _read_messages(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _is_speaker(node.func):
            for argument in [*node.args, *(each.value for each in node.keywords)]:
                text = _read_string(argument)
                if " " in text:
                    yield argument.lineno, text


def _is_speaker(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in SPEAKERS or name.endswith(("Error", "Mismatch", "Loss", "Refusal"))


def _read_string(node: ast.expr) -> str:
    """Return a string literal, with a dash for each value that is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else "–" for part in node.values
        )
    return ""


def _read_page(path: Path) -> Iterator[Sentence]:
    text = path.read_text(encoding="utf-8")
    without_code = _FENCED.sub(lambda block: "\n" * block[0].count("\n"), text)
    without_code = _HEADING.sub("", _HARD_TO_READ.sub("", without_code))
    yield from _cut(path, ((1 + offset, block) for offset, block in _split_blocks(without_code)))


def _read_recipe(path: Path) -> Iterator[Sentence]:
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = ((number, line.partition("#")[2].strip()) for number, line in enumerate(lines, 1))
    yield from _cut(path, (each for each in comments if each[1]))


def _cut(path: Path, blocks: Iterator[tuple[int, str]]) -> Iterator[Sentence]:
    name = path.relative_to(REPOSITORY).as_posix()
    for line, block in blocks:
        for text in SENTENCE_END.split(ITEM_HEAD.sub("", block).strip()):
            if len(text.split()) > 1:
                yield Sentence(name, line, text)
