"""Compare two models by their logits, greedy continuations and losses, and set the tolerances.

`answer_check` compares the merged folder with base model + adapter. If they differ more than the
tolerances allow, the exit code is not 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from lora_sft.data.labelled_row import IGNORED_LABEL
from lora_sft.data.templates.prompt_text import tokenize_prompt
from lora_sft.model.base_model import CausalModel

# How much rounding the merged weights to the dtype may change the answers, with a margin of a
# factor of ten. Measured on a strongly changed model of 260 k parameters, merged correctly in
# bfloat16: mean KL 3.6e-4 nats, top-1 agreement 0.945 (two nearly equal logits may swap). These
# bounds find a merge that lost the adapter or used another base model. They can miss a single lost
# module, which the comparison of tensors finds.
TOLERANCES: dict[str, tuple[float, float]] = {  # dtype: (largest mean KL in nats, least top-1)
    "float32": (1e-6, 0.999),
    "float16": (1e-4, 0.98),
    "bfloat16": (5e-3, 0.90),
}

# A merge may lose at most this share of the adapter's effect (both measured as mean KL). Otherwise
# the bounds above would miss the loss of an adapter with a small effect. A mean KL below NOISE_KL
# is float noise.
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
    """The difference between the next-token distributions of two models at the same positions."""

    prompts: int
    positions: int
    max_abs_logit_difference: float
    mean_kl: float
    top1_agreement: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def find_tolerance(dtype: str, effect_kl: float) -> tuple[float, float]:
    """Return the largest mean KL in nats and the least top-1 agreement for an export in `dtype`.

    Args:
        effect_kl: The mean KL between the base model with and without the adapter.
    """
    largest_kl, least_top1 = TOLERANCES[dtype]
    return min(largest_kl, max(LARGEST_SHARE_OF_EFFECT * effect_kl, NOISE_KL)), least_top1


def make_prompts(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the token ids of the built-in prompts as plain text.

    If the tokenizer has a chat template, the same prompts as chats come first.
    """
    plain = [list(tokenizer(text)["input_ids"]) for text in PROMPTS]
    if not tokenizer.chat_template:
        return plain
    chats = [tokenize_prompt(tokenizer, [{"role": "user", "content": text}]) for text in PROMPTS]
    return [*chats, *plain]


@torch.inference_mode()
def compute_logits(model: CausalModel, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Return the float32 logits [T, V] of every prompt.

    Each prompt has its own forward pass, so that padding cannot change the result.
    """
    model.eval()
    return [
        model(input_ids=torch.tensor([list(ids)], device=model.device)).logits[0].float().cpu()
        for ids in prompts
    ]


def compare_logits(
    reference: Sequence[torch.Tensor], other: Sequence[torch.Tensor]
) -> LogitDifference:
    """Return how much the logits of two models differ.

    Units: `mean_kl` is KL(reference || other) in nats per position.
    """
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
    """Return the greedy continuation of each prompt, at most `num_tokens` long."""
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
    """Return the mean negative log-likelihood in nats of the tokens that have a label."""
    total, count = 0.0, 0
    for logits_TV, row in zip(logits, labels, strict=True):
        wanted_T = torch.tensor(row[1:])
        is_target = wanted_T != IGNORED_LABEL
        log_p_TV = logits_TV[:-1].double().log_softmax(-1)
        chosen_T = log_p_TV.gather(1, wanted_T.clamp(min=0).unsqueeze(1)).squeeze(1)
        total -= float(chosen_T[is_target].sum())
        count += int(is_target.sum())
    return total / count if count else 0.0
