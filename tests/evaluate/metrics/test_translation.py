"""The metrics of translation, against numbers computed by hand."""

from __future__ import annotations

import math
from importlib.util import find_spec

import pytest

from lora_sft.evaluate.metrics.translation import bleu, chrf_pp, signature

ANSWER = "the cat sat on the mat"


def test_bleu_by_hand():
    # Common: 5 of 6 words, 4 of 5 pairs, 3 of 4 triples, 2 of 3 quadruples. The lengths are equal.
    expected = 100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** (1 / 4)
    score = bleu([ANSWER], [["the cat sat on the rug"]], target_lang="en")
    assert score == pytest.approx(expected)
    # The answer is shorter than its reference: brevity penalty exp(1 - 8 / 6).
    score = bleu([ANSWER], [["the cat sat on the mat all day"]], target_lang="en")
    assert score == pytest.approx(100 * math.exp(1 - 8 / 6))


def test_bleu_counts_over_all_rows_together():
    # 5 + 4 of 6 + 4 words, 4 + 3 of 5 + 3 pairs, 3 + 2 of 4 + 2 triples, 2 + 1 of 3 + 1 quadruples.
    expected = 100 * (9 / 10 * 7 / 8 * 5 / 6 * 3 / 4) ** (1 / 4)
    references = [["the cat sat on the rug"], ["we go home now"]]
    score = bleu([ANSWER, "we go home now"], references, target_lang=None)
    assert score == pytest.approx(expected)


def test_chrf_by_hand():
    # Of "ab" and "ac": 1 of 2 letters is common, 0 of 1 pair of letters, and 0 of 1 word.
    assert chrf_pp(["ab"], [["ac"]], target_lang="en") == pytest.approx(100 * (1 / 2 + 0 + 0) / 3)


@pytest.mark.parametrize("metric", [bleu, chrf_pp])
def test_equal_texts_score_100_and_texts_without_common_parts_score_0(metric):
    assert metric([ANSWER], [[ANSWER]], target_lang="de") == pytest.approx(100)
    assert metric(["xyz"], [["the cat"]], target_lang="de") == 0
    assert metric([None], [["the cat"]], target_lang="de") == 0
    assert metric([""], [["the cat"]], target_lang="de") == 0


@pytest.mark.parametrize("metric", [bleu, chrf_pp])
def test_rows_may_have_different_numbers_of_accepted_translations(metric):
    other = "a wholly different sentence of words"
    answers = [ANSWER, "we go home now", other]
    references = [["no match here", ANSWER], ["we go home now"], [None, "nothing", None, other]]
    assert metric(answers, references, target_lang="en") == pytest.approx(100)
    first_only = [[row[0]] for row in references]
    assert metric(answers, first_only, target_lang="en") < 90
    assert "nrefs:var" in signature(answers, references, target_lang="en")


def test_rows_with_one_more_none_score_as_without_it():
    answers, references = [ANSWER, "we go"], [["the cat sat on the rug"], ["we went"]]
    padded = [[None, *references[0]], [*references[1], None]]
    for metric in (bleu, chrf_pp, signature):
        assert metric(answers, padded, target_lang="en") == metric(
            answers, references, target_lang="en"
        )


@pytest.mark.parametrize("metric", [bleu, chrf_pp])
def test_a_row_without_any_translation_lowers_no_other_row_to_an_error(metric):
    answers = [ANSWER, "we go home now"]
    assert 0 < metric(answers, [[ANSWER], [None]], target_lang="en") <= 100
    assert 0 < metric(answers, [[], ["we go home now"]], target_lang="en") <= 100


def test_the_signature_names_what_is_needed_to_repeat_the_figures():
    text = signature([ANSWER], [[ANSWER]], target_lang="de")
    bleu_part, chrf_part = text.split(" ")
    assert bleu_part.startswith("BLEU|nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert chrf_part.startswith("chrF2++|nrefs:1|case:mixed|eff:yes|nc:6|nw:2|space:no|version:")


@pytest.mark.parametrize("language", ["zh", "ZH", "zh-CN", "zh_TW", "zho_Hans", "Chinese"])
def test_chinese_is_split_into_characters(language):
    answer, reference = "我喜欢红色的猫", "我喜欢红色的狗"
    # 6 of 7 characters, 5 of 6 pairs, 4 of 5 triples, 3 of 4 quadruples.
    expected = 100 * (6 / 7 * 5 / 6 * 4 / 5 * 3 / 4) ** (1 / 4)
    assert bleu([answer], [[reference]], target_lang=language) == pytest.approx(expected)
    assert "tok:zh" in signature([answer], [[reference]], target_lang=language)
    assert bleu([answer], [[reference]], target_lang="en") == 0


@pytest.mark.parametrize(
    ("language", "package", "mecab"),
    [
        ("ja", "MeCab", "ja-mecab"),
        ("jpn_Jpan", "MeCab", "ja-mecab"),
        ("ko-KR", "mecab_ko", "ko-mecab"),
    ],
)
def test_japanese_and_korean_use_mecab_where_it_is_installed(language, package, mecab):
    tokenizer = mecab if find_spec(package) else "13a"
    assert f"tok:{tokenizer}" in signature(["猫"], [["猫"]], target_lang=language)
    assert bleu(["a b c d"], [["a b c d"]], target_lang=language) == pytest.approx(100)


@pytest.mark.parametrize("language", [None, "", "en", "de", "jaw", "kok", "German"])
def test_all_other_languages_use_13a(language):
    assert "tok:13a" in signature(["a"], [["a"]], target_lang=language)
