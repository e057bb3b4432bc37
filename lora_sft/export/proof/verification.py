"""Does the merged model answer like the model it was made from? Measured, on logits.

The one question that decides an export's exit code: the merged folder, reloaded from disk by
plain transformers, against the base it was merged onto plus the adapter, both computed in
float32 so that nothing but the merge itself can differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from lora_sft.data.labelled_row import IGNORED_LABEL
from lora_sft.model.base_model import CausalModel

# What rounding the merged weights to the dtype may cost, with an order of magnitude of room: a
# right bfloat16 merge of a much changed 260 k model had a mean KL of 3.6e-4 nats and a top-1
# agreement of 0.945 (near ties flip). These bounds catch a merge that lost the adapter or took
# another base; a single lost module may hide below them, which only comparing tensors would show.
TOLERANCES: dict[str, tuple[float, float]] = {  # dtype: (largest mean KL in nats, least top-1)
    "float32": (1e-6, 0.999),
    "float16": (1e-4, 0.98),
    "bfloat16": (5e-3, 0.90),
}

# A merge may lose at most this share of what the adapter changed (both as mean KL), so that the
# bounds above cannot hide the loss of a small adapter; below the floor it is float noise.
LARGEST_SHARE_OF_EFFECT = 0.1
NOISE_KL = 1e-6

PROMPTS = (
    "The capital of France is",
    "Explain in one sentence why the sky is blue.",
    "Write a Python function that adds two numbers.",
    "Translate to German: Where is the train station?",
    "Once upon a time, there was a little girl who",
    "List three fruits and their colours:",
    "If 3 apples cost 2 dollars, how much do 12 apples cost?",
    "My order 48213 arrived broken. What should I do?",
)


@dataclass(frozen=True)
class LogitDifference:
    """Distance of two models' next-token distributions over the same positions."""

    prompts: int
    positions: int
    max_abs_logit_difference: float
    mean_kl: float
    top1_agreement: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def find_tolerance(dtype: str, effect_kl: float) -> tuple[float, float]:
    """(largest mean KL in nats, least top-1 agreement) for an export of `dtype`.

    `effect_kl` is the mean KL between base + adapter and the base alone.
    """
    largest_kl, least_top1 = TOLERANCES[dtype]
    return min(largest_kl, max(LARGEST_SHARE_OF_EFFECT * effect_kl, NOISE_KL)), least_top1


def make_prompts(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of the built-in prompts: as chats where there is a template, and as plain text."""
    plain = [list(tokenizer(text)["input_ids"]) for text in PROMPTS]
    if not tokenizer.chat_template:
        return plain
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in PROMPTS
    ]
    return [*map(list, chats), *plain]


@torch.inference_mode()
def compute_logits(model: CausalModel, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Float32 logits [T, V] of every prompt, one prompt a forward (no padding to argue about)."""
    model.eval()
    return [
        model(input_ids=torch.tensor([list(ids)], device=model.device)).logits[0].float().cpu()
        for ids in prompts
    ]


def compare_logits(
    reference: Sequence[torch.Tensor], other: Sequence[torch.Tensor]
) -> LogitDifference:
    """KL(reference || other) in nats a position, top-1 agreement, largest logit difference."""
    kl_sum, equal, positions, largest = 0.0, 0, 0, 0.0
    for left_TV, right_TV in zip(reference, other, strict=True):
        log_p, log_q = left_TV.double().log_softmax(-1), right_TV.double().log_softmax(-1)
        kl_sum += float((log_p.exp() * (log_p - log_q)).sum())
        equal += int((left_TV.argmax(-1) == right_TV.argmax(-1)).sum())
        positions += left_TV.shape[0]
        largest = max(largest, float((left_TV - right_TV).abs().max()))
    return LogitDifference(
        len(reference), positions, largest, max(kl_sum / positions, 0.0), equal / positions
    )


@torch.inference_mode()
def continue_greedily(
    model: CausalModel, prompts: Sequence[Sequence[int]], num_tokens: int
) -> list[list[int]]:
    """The most likely continuation of each prompt, at most `num_tokens` long."""
    from transformers import GenerationConfig

    greedy = GenerationConfig(max_new_tokens=num_tokens, do_sample=False, pad_token_id=0)
    continued = []
    for ids in prompts:
        given = torch.tensor([list(ids)], device=model.device)
        found = model.eval().generate(
            input_ids=given, attention_mask=torch.ones_like(given), generation_config=greedy
        )
        continued.append(found[0, len(ids) :].tolist())
    return continued


def compute_loss(logits: Sequence[torch.Tensor], labels: Sequence[Sequence[int]]) -> float:
    """Mean negative log-likelihood in nats of the learned tokens (not `IGNORED_LABEL`)."""
    total, count = 0.0, 0
    for logits_TV, row in zip(logits, labels, strict=True):
        wanted_T = torch.tensor(row[1:])
        is_target = wanted_T != IGNORED_LABEL
        log_p_TV = logits_TV[:-1].double().log_softmax(-1)
        chosen_T = log_p_TV.gather(1, wanted_T.clamp(min=0).unsqueeze(1)).squeeze(1)
        total -= float(chosen_T[is_target].sum())
        count += int(is_target.sum())
    return total / count if count else 0.0
