"""Let a model speak: greedy answers to many prompts, or one answer as it comes."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    TextIteratorStreamer,
)

from lora_sft.model.base_model import CausalModel


def make_generation_config(
    tokenizer: PreTrainedTokenizerBase, stop_token_ids: Sequence[int], max_new_tokens: int
) -> GenerationConfig:
    """Greedy decoding that ends at any of the stop tokens."""
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(stop_token_ids) or None,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
    )


@torch.inference_mode()
def generate_answers(
    model: CausalModel,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    batch_size: int,
) -> list[list[int]]:
    """Greedy continuations of tokenised prompts, without the prompt, stop token included.

    Prompts of like length share a batch, padded on the left with an attention mask; the order
    of the answers is the order of the prompts.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        width = max(len(prompts[index]) for index in batch)
        ids_BT = torch.full((len(batch), width), config.pad_token_id)
        mask_BT = torch.zeros_like(ids_BT)
        for place, index in enumerate(batch):
            length = len(prompts[index])
            ids_BT[place, width - length :] = torch.tensor(prompts[index])
            mask_BT[place, width - length :] = 1
        output = model.generate(
            input_ids=ids_BT.to(model.device),
            attention_mask=mask_BT.to(model.device),
            generation_config=config,
        )
        for place, index in enumerate(batch):
            answers[index] = cut_at_stop(output[place, width:].tolist(), config)
    return answers


def cut_at_stop(ids: list[int], config: GenerationConfig) -> list[int]:
    """Drop the padding that follows the first stop token."""
    stops = set(config.eos_token_id or ())
    for position, token in enumerate(ids):
        if token in stops:
            return ids[: position + 1]
    return ids


def stream_answer(
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[int],
    config: GenerationConfig,
) -> Iterator[str]:
    """The greedy answer to one prompt, piece by piece as it is made."""
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    ids = torch.tensor([list(prompt_ids)], device=model.device)
    failures: list[BaseException] = []

    def generate() -> None:
        try:
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=config,
                streamer=streamer,
            )
        except BaseException as error:  # carried to the reader, who would wait for ever
            failures.append(error)
            streamer.end()

    worker = threading.Thread(target=generate, daemon=True)
    worker.start()
    yield from streamer
    worker.join()
    if failures:
        raise failures[0]
