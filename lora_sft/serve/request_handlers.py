"""Answer requests to the three APIs with the request handlers of `transformers serve`.

`transformers serve` (5.23) itself does not fit, for four reasons. It lists the models of the hub's
cache: `/v1/models` fails in an empty home folder and never lists a local folder. It loads any model
that a request names. It silently ignores fields that it does not support. It renders the chat
template on the event loop, and lets a request replace it.

So only its parts for streaming, tool calls and the three formats of answers are taken. This file
checks the fields, makes the prompt and the generation config, and generates.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from fastapi import HTTPException
from fastapi.responses import Response
from transformers import StoppingCriteriaList
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.utils import GenerateManager, GenerationState

from lora_sft.log import say
from lora_sft.serve.loaded_model import LoadedModel
from lora_sft.serve.request_fields import (
    ChatFields,
    CompletionFields,
    RequestFields,
    ResponseFields,
    read_fields,
)
from lora_sft.serve.request_prompt import make_request_prompt
from lora_sft.serve.stopping import ClientLeft, StopTexts


class OneThreadGenerator(GenerateManager):
    """Generates for one request at a time, on one thread, also after a request was cancelled."""

    def async_submit(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        """Return a future of the result. A cancelled request does not cancel the future.

        transformers (5.23) would log an error when it sets the result of a cancelled future.
        """
        return asyncio.shield(asyncio.wrap_future(self.submit(fn, *args, **kwargs)))


class _OneModelHandler:
    """Makes a request handler of transformers serve one model and ignore no field."""

    fields: ClassVar[type[RequestFields]]

    def __init__(self, loaded: LoadedModel, generator: OneThreadGenerator) -> None:
        super().__init__(None, GenerationState())  # type: ignore[call-arg]
        self.loaded = loaded
        self.generator = generator

    def prepare(self, raw: bytes) -> tuple[dict[str, Any], list[int]]:
        """Return the checked fields of a body, and the token ids of its prompt.

        This may take long. Do not call it on the event loop.

        Raises: HTTPException (400, 404) or ModelError if the request cannot be answered.
        """
        body = read_fields(raw, self.fields)
        check_name(self.loaded, body.get("model"))
        self._check_biased_tokens(body.get("logit_bias", {}))
        prompt_ids = self.make_prompt(body)
        if not prompt_ids:
            raise HTTPException(400, "the prompt is empty")
        self.loaded.count_free_tokens(len(prompt_ids))
        return body, prompt_ids

    def make_prompt(self, body: dict[str, Any]) -> list[int]:
        """Return the token ids of the prompt. Every API has its own form of it."""
        raise NotImplementedError

    def list_own_arguments(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments that only this API's functions of transformers take."""
        return {"tools": body.get("tools")}

    async def answer(self, body: dict[str, Any], prompt_ids: Sequence[int]) -> Response:
        """Generate the answer to a prepared request."""
        client = ClientLeft()
        ids_BT = torch.tensor([prompt_ids], device=self.loaded.model.device)
        arguments = {
            "request_id": str(uuid.uuid4()),
            "model": self.loaded.model,
            "processor": self.loaded.tokenizer,
            "model_id": self.loaded.name,
            # transformers passes all of these to `model.generate`.
            "inputs": {
                "input_ids": ids_BT,
                "attention_mask": torch.ones_like(ids_BT),
                "stopping_criteria": self._list_criteria(body, client, len(prompt_ids)),
            },
            "gen_config": self._make_generation_config(body, len(prompt_ids)),
            "gen_manager": self.generator,
            **self.list_own_arguments(body),
        }
        try:
            if body.get("stream"):
                return self._streaming(**arguments)  # type: ignore[attr-defined]
            return await self._non_streaming(**arguments)  # type: ignore[attr-defined]
        except asyncio.CancelledError:
            client.has_left = True
            raise
        except (LookupError, RuntimeError, TypeError, ValueError) as error:
            # For example no memory, or a tool call of the model that is not JSON.
            say(f"error: a request got no answer: {type(error).__name__}: {error}")
            raise HTTPException(500, "the model could not answer; see the server's log") from error

    def _list_criteria(
        self, body: Mapping[str, Any], client: ClientLeft, prompt_tokens: int
    ) -> StoppingCriteriaList:
        texts = body.get("stop") or []
        if isinstance(texts, str):
            texts = [texts]
        stops = [StopTexts(self.loaded.tokenizer, texts, prompt_tokens)] if texts else []
        return StoppingCriteriaList([client, *stops])

    def _make_generation_config(self, body: dict[str, Any], prompt_tokens: int) -> Any:
        """Return the settings of the model with those of the request, within the context.

        transformers reads the fields. It does not switch sampling on for a temperature or top_p.
        """
        # `_list_criteria` reads `stop`. transformers accepts no integers as biases.
        read = {name: value for name, value in body.items() if name != "stop"}
        biases = {token: float(bias) for token, bias in read.pop("logit_bias", {}).items()}
        read |= {"logit_bias": biases} if biases else {}
        config = self._build_generation_config(  # type: ignore[attr-defined]
            read, self.loaded.model.generation_config
        )
        if body.get("temperature") or (body.get("top_p") and body.get("temperature") is None):
            config.do_sample = True
        room = self.loaded.count_free_tokens(prompt_tokens)
        if room is not None:
            config.max_new_tokens = min(config.max_new_tokens, room)
        return config

    def _check_biased_tokens(self, biases: Mapping[str, float]) -> None:
        vocabulary = self.loaded.model.config.get_text_config().vocab_size
        unknown = [token for token in biases if int(token) >= vocabulary]
        if unknown:
            raise HTTPException(
                400, f"logit_bias.{unknown[0]}: the model has only {vocabulary:,} tokens"
            )


class ChatHandler(_OneModelHandler, ChatCompletionHandler):
    """Answers requests to `/v1/chat/completions`."""

    fields = ChatFields

    def make_prompt(self, body: dict[str, Any]) -> list[int]:
        """Render the messages."""
        kwargs = body.get("chat_template_kwargs", {})
        return make_request_prompt(self.loaded, body["messages"], body.get("tools"), kwargs)


class TextHandler(_OneModelHandler, CompletionHandler):
    """Answers requests to `/v1/completions`."""

    fields = CompletionFields

    def make_prompt(self, body: dict[str, Any]) -> list[int]:
        """Tokenise the prompt. It is a text, and not a conversation."""
        return self.loaded.tokenize(body["prompt"])

    def list_own_arguments(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the text that follows the answer."""
        return {"suffix": body.get("suffix")}


class ResponsesHandler(_OneModelHandler, ResponseHandler):
    """Answers requests to `/v1/responses`."""

    fields = ResponseFields

    def make_prompt(self, body: dict[str, Any]) -> list[int]:
        """Convert the items of the input to messages, and render them."""
        messages = self._normalize_input(body)
        tools = self._normalize_tools(body.get("tools"))
        return make_request_prompt(
            self.loaded, messages, tools, body.get("chat_template_kwargs", {})
        )

    def list_own_arguments(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the whole request. The answer repeats some of its fields."""
        return {"body": body, "tools": self._normalize_tools(body.get("tools"))}


def check_name(loaded: LoadedModel, name: str | None) -> None:
    """Raise HTTPException (404) if a request names a model that is not served here."""
    if name not in (None, loaded.name):
        raise HTTPException(404, f"there is no model {name!r}; this server has {loaded.name!r}")
