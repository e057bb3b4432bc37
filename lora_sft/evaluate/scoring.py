"""Score a model on a held-out split. An adapter is compared with its base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from transformers import PreTrainedTokenizerBase

from lora_sft.evaluate.generation import generate_answers, make_generation_config
from lora_sft.evaluate.held_out import Question, make_questions
from lora_sft.evaluate.metrics import load_metric
from lora_sft.evaluate.token_loss import compute_loss
from lora_sft.model.base_model import CausalModel
from lora_sft.recipe import EvaluateSection

Scores = dict[str, float]


@dataclass(frozen=True)
class Sample:
    """One held-out question with its reference and the answer of each model."""

    prompt: str
    reference: str
    answers: Mapping[str, str]


@dataclass(frozen=True)
class Evaluation:
    """The scores on one split, by model: `base` and `adapter`, or only `model`."""

    split: str
    rows: int
    scores: Mapping[str, Scores]
    samples: Sequence[Sample]

    def to_dict(self) -> dict[str, Any]:
        """Return the evaluation as the JSON document of the command line."""
        samples = [
            {"prompt": sample.prompt, "reference": sample.reference, **sample.answers}
            for sample in self.samples
        ]
        return {"split": self.split, "rows": self.rows, **self.scores, "samples": samples}

    def to_table(self) -> Table:
        """Return a table with one line per metric and one column per model."""
        table = Table(title=f"{self.split}: {self.rows} held-out rows", title_justify="left")
        table.add_column("metric")
        for name in self.scores:
            table.add_column(name, justify="right")
        for metric in next(iter(self.scores.values())):
            cells = [_format_score(metric, scores[metric]) for scores in self.scores.values()]
            table.add_row(metric, *cells)
        return table


def _format_score(metric: str, value: float) -> str:
    return f"{value:.4f}" if metric == "loss" else f"{100 * value:.1f} %"


def evaluate_split(
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    split: str,
    section: EvaluateSection,
    stop_token_ids: Sequence[int],
) -> Evaluation:
    """Score `model` on labelled `rows`. If it has an adapter, its base is scored too."""
    metrics = {key: load_metric(key) for key in section.metrics}
    questions = make_questions(rows)
    references = _decode(tokenizer, [question.reference_ids for question in questions])
    scores: dict[str, Scores] = {}
    answers: dict[str, list[str]] = {}
    for name in ("base", "adapter") if hasattr(model, "disable_adapter") else ("model",):
        with model.disable_adapter() if name == "base" else nullcontext():
            loss = compute_loss(model, rows, section.batch_size, tokenizer.pad_token_id or 0)
            answers[name] = _answer_questions(model, tokenizer, questions, section, stop_token_ids)
        task = {key: metric(answers[name], references) for key, metric in metrics.items()}
        scores[name] = {"loss": loss, **task}
    return Evaluation(
        split,
        len(rows),
        scores,
        _pick_samples(tokenizer, questions, references, answers, section.num_samples),
    )


def _answer_questions(
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    section: EvaluateSection,
    stop_token_ids: Sequence[int],
) -> list[str]:
    """Return generated answers to all questions.

    Without metrics, only the questions that are shown as samples are answered.
    """
    asked = questions if section.metrics else questions[: section.num_samples]
    config = make_generation_config(tokenizer, stop_token_ids, section.max_new_tokens)
    prompts = [question.prompt_ids for question in asked]
    return _decode(tokenizer, generate_answers(model, prompts, config, section.batch_size))


def _decode(tokenizer: PreTrainedTokenizerBase, sequences: Sequence[Sequence[int]]) -> list[str]:
    return [str(tokenizer.decode(list(ids), skip_special_tokens=True)) for ids in sequences]


def _pick_samples(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    references: Sequence[str],
    answers: Mapping[str, Sequence[str]],
    count: int,
) -> list[Sample]:
    prompts = _decode(tokenizer, [question.prompt_ids for question in questions[:count]])
    return [
        Sample(
            prompt.strip(),
            references[index].strip(),
            {name: texts[index].strip() for name, texts in answers.items()},
        )
        for index, prompt in enumerate(prompts)
    ]
