"""Let a model speak: greedy answers to many prompts, or one answer as it comes."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from lora_sft.model.base_model import CausalModel


def make_generation_config(
    tokenizer: PreTrainedTokenizerBase,
    stop_token_ids: Sequence[int],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
) -> GenerationConfig:
    """Decoding that ends at any of the stop tokens: greedy, or sampled from a temperature on."""
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": 0} if temperature else {}
    return GenerationConfig(
        do_sample=bool(temperature),
        **sampling,
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


class AnswerStream:
    """The answer to one prompt, piece by piece as it is made, on a thread of its own.

    Whoever stops reading stops the generation at its next token, and so does `stop`, which a
    signal's handler may call. A handler that raises would not do: between two lines of the queue
    that the pieces come by, its lock is never given back, and the thread waits for it for ever.
    `was_cut` says, once all is read, that the answer ended at the token limit.
    """

    was_cut = False
    is_stopped = False

    def __init__(
        self,
        model: CausalModel,
        tokenizer: PreTrainedTokenizerBase,
        prompt_ids: Sequence[int],
        config: GenerationConfig,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._prompt_ids = list(prompt_ids)
        self._config = config

    def __iter__(self) -> Iterator[str]:
        streamer = TextIteratorStreamer(self._tokenizer, skip_prompt=True, skip_special_tokens=True)
        failures = list[BaseException]()

        def generate() -> None:
            try:
                self._generate(streamer)
            except BaseException as error:  # carried to the reader, who would wait for ever
                failures.append(error)
                streamer.end()

        worker = threading.Thread(target=generate, daemon=True)
        worker.start()
        try:
            yield from (piece for piece in streamer if piece)
        finally:
            self.stop()
            worker.join()
        if failures:
            raise failures[0]

    def stop(self) -> None:
        """End the answer at its next token."""
        self.is_stopped = True  # no lock: this may interrupt any line

    def _generate(self, streamer: TextIteratorStreamer) -> None:
        ids_BT = torch.tensor([self._prompt_ids], device=self._model.device)
        output_BT = self._model.generate(
            input_ids=ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            generation_config=self._config,
            streamer=streamer,
            stopping_criteria=StoppingCriteriaList([_StopsWith(self)]),
        )
        answer = output_BT[0, len(self._prompt_ids) :].tolist()
        stops = set(self._config.eos_token_id or ())
        self.was_cut = len(answer) >= self._config.max_new_tokens and answer[-1] not in stops


class _StopsWith(StoppingCriteria):
    """Ends a generation once its reader wants no more of it."""

    def __init__(self, stream: AnswerStream) -> None:
        self._stream = stream

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        """One flag a sequence (B,)."""
        return torch.full(
            (input_ids.shape[0],),
            self._stream.is_stopped,
            device=input_ids.device,
            dtype=torch.bool,
        )
