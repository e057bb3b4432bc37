"""Generate answers: greedy answers to many prompts, or one answer piece by piece."""

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
from lora_sft.model.computing import computing_errors


def make_generation_config(
    tokenizer: PreTrainedTokenizerBase,
    stop_token_ids: Sequence[int],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
) -> GenerationConfig:
    """Return a config for answers that end at any stop token.

    With a temperature of 0 the answer is greedy, else it is sampled.
    """
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
    """Return the greedy answers to tokenised prompts, in the order of the prompts.

    An answer does not contain the prompt, and it contains its stop token. Prompts of similar length
    share a batch. They are padded on the left, with an attention mask.
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
    """Return the token ids up to the first stop token. The rest is padding."""
    stops = set(config.eos_token_id or ())
    for position, token in enumerate(ids):
        if token in stops:
            return ids[: position + 1]
    return ids


class AnswerStream:
    """The answer to one prompt, piece by piece, generated in a thread.

    If the reader stops reading, or if `stop` is called, generation ends at the next token. A signal
    handler may call `stop`. It must not raise an exception instead. An exception could interrupt
    the queue of the pieces while the queue holds its lock. Then the thread would wait forever.

    Attributes:
        was_cut: After the last piece: whether the answer ended at the token limit.
        is_stopped: Whether `stop` was called.
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
                with computing_errors(str(self._model.config.name_or_path)):
                    self._generate(streamer)
            except BaseException as error:  # raised in the reader, which would wait forever
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
        self.is_stopped = True  # without a lock: a signal handler can interrupt any line

    def _generate(self, streamer: TextIteratorStreamer) -> None:
        ids_BT = torch.tensor([self._prompt_ids], device=self._model.device)
        output_BT = self._model.generate(
            input_ids=ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            generation_config=self._config,
            streamer=streamer,
            stopping_criteria=StoppingCriteriaList([_StopOnRequest(self)]),
        )
        answer = output_BT[0, len(self._prompt_ids) :].tolist()
        stops = set(self._config.eos_token_id or ())
        self.was_cut = len(answer) >= self._config.max_new_tokens and answer[-1] not in stops


class _StopOnRequest(StoppingCriteria):
    """Ends a generation after `AnswerStream.stop` was called."""

    def __init__(self, stream: AnswerStream) -> None:
        self._stream = stream

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        """Return one flag per sequence, shape (B,)."""
        return torch.full(
            (input_ids.shape[0],),
            self._stream.is_stopped,
            device=input_ids.device,
            dtype=torch.bool,
        )
