"""Metrics of translation: the corpus figures of sacrebleu, from 0 to 100.

A reference is the list of accepted translations of a row. Rows may have different numbers of them,
and an entry may be None. An answer of None counts as an empty text.

Sources:
    Post (2018), "A call for clarity in reporting BLEU scores", https://aclanthology.org/W18-6319
    https://github.com/mjpost/sacrebleu
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, TypeAlias

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

Accepted: TypeAlias = Sequence[str | None]
Streams: TypeAlias = list[tuple[Any, ...]]  # of str or None. The types of sacrebleu omit None.

# The first part of a language code, or an English name -> the tokenizer of sacrebleu.
TOKENIZERS = {
    **dict.fromkeys(("zh", "zho", "cmn", "chinese"), "zh"),
    **dict.fromkeys(("ja", "jpn", "japanese"), "ja-mecab"),
    **dict.fromkeys(("ko", "kor", "korean"), "ko-mecab"),
}
DEFAULT_TOKENIZER = "13a"


def bleu(
    answers: Sequence[str | None], references: Sequence[Accepted], *, target_lang: str | None
) -> float:
    """Return the BLEU of all answers together, from 0 to 100.

    The tokenizer follows `target_lang`: `zh`, `ja-mecab`, `ko-mecab`, and `13a` for all others. A
    tokenizer that is not installed is replaced by `13a`. `signature` names the one that was used.

    Source:
        Papineni et al. (2002), "BLEU: a method for automatic evaluation of machine translation",
        https://aclanthology.org/P02-1040
    """
    metric = _make_bleu(target_lang)
    return metric.corpus_score(_fill_empty(answers), _list_streams(references)).score


def chrf_pp(
    answers: Sequence[str | None], references: Sequence[Accepted], *, target_lang: str | None
) -> float:
    """Return the chrF++ of all answers together, from 0 to 100.

    chrF++ is chrF with words and pairs of words (`word_order` 2). It needs no tokenizer, so it does
    not depend on `target_lang`.

    Source:
        Popović (2017), "chrF++: words helping character n-grams", https://aclanthology.org/W17-4770
    """
    metric = _make_chrf()
    return metric.corpus_score(_fill_empty(answers), _list_streams(references)).score


def signature(
    answers: Sequence[str | None], references: Sequence[Accepted], *, target_lang: str | None
) -> str:
    """Return sacrebleu's description of how `bleu` and `chrf_pp` were computed.

    It names the versions, the tokenizer and the number of references, so that a reader can repeat
    the figures.
    """
    streams = _list_streams(references)
    metrics = {"BLEU": _make_bleu(target_lang, streams), "chrF2++": _make_chrf(streams)}
    return " ".join(f"{name}|{metric.get_signature()}" for name, metric in metrics.items())


def _make_bleu(target_lang: str | None, streams: Streams | None = None) -> BLEU:
    """Return sacrebleu's BLEU with the tokenizer of the language.

    `force` turns off a warning about texts that are tokenized already. It does not change a figure.
    """
    language = re.split("[-_]", target_lang or "")[0].lower()
    tokenizer = TOKENIZERS.get(language, DEFAULT_TOKENIZER)
    try:
        return BLEU(tokenize=tokenizer, force=True, references=streams)
    except RuntimeError:  # the packages of this tokenizer are not installed
        return BLEU(tokenize=DEFAULT_TOKENIZER, force=True, references=streams)


def _make_chrf(streams: Streams | None = None) -> CHRF:
    return CHRF(word_order=2, references=streams)


def _fill_empty(answers: Sequence[str | None]) -> list[str]:
    return [answer or "" for answer in answers]


def _list_streams(references: Sequence[Accepted]) -> Streams:
    """Return the first reference of each row, then the second of each row, and so on.

    sacrebleu takes references in this order. It ignores None, which stands for a reference that a
    row does not have. Each row must have one text: a row without references gets an empty text.
    """
    texts = [[text for text in accepted if text is not None] or [""] for accepted in references]
    return list(zip_longest(*texts))
