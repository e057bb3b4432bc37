"""Small models and tokenizers that the tests make themselves, so that they download nothing.

The tokenizers are byte-level BPE, trained on a few lines. They encode any text without loss. Each
chat template is a small copy of the template of a real model family, with one of its difficulties.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

VOCABULARY_TOKENS = 400
CORPUS = [
    "The quick brown fox jumps over the lazy dog. Who are you? What is 2 + 2?",
    "user assistant system tool\nHello there, how are you today?\nI am fine, thank you.",
    '{"name": "get_weather", "arguments": {"city": "Paris"}} <tool_call> </tool_call>',
    "### System:\n### User:\n### Assistant:\nYes. No. Maybe. 1 2 3 4 5 6 7 8 9 10",
]
SPECIAL_TOKENS = (
    "<unk>",
    "<s>",
    "</s>",
    "<pad>",
    "<|im_start|>",
    "<|im_end|>",
    "<|eot|>",
    "<|h|>",
    "<|/h|>",
    "<|endoftext|>",
)

# A newline follows the stop token.
CHATML = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') -}}
{%- for call in message.tool_calls or [] -%}
{{- '<tool_call>' + call.function | tojson + '</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

# The text begins with bos. A turn ends with a token that is not the tokenizer's eos. Content is
# trimmed.
LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
{{- '<|h|>' + message.role + '<|/h|>\\n\\n' + message.content | trim + '<|eot|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|h|>assistant<|/h|>\\n\\n' -}}{%- endif -%}
"""

# Only the last answer keeps its thinking, as in Qwen3.
THINK_DROPPED_FROM_HISTORY = """\
{%- for message in messages -%}
{%- set content = message.content -%}
{%- if message.role == 'assistant' and not loop.last -%}
{%- set content = content.split('</think>')[-1] | trim -%}
{%- endif -%}
{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

# The conversation ends with eos, but a turn does not, as in Phi-3.
EOS_AFTER_CONVERSATION = """\
{%- for message in messages -%}
{{- '<|h|>' + message.role + '<|/h|>\\n' + message.content + '<|eot|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|h|>assistant<|/h|>\\n' -}}
{%- else -%}{{- eos_token -}}{%- endif -%}
"""

# The prompt opens a thinking block, but a rendered answer has no such block, as in R1-distill.
PROMPT_OPENS_THINKING = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n<think>\\n' -}}{%- endif -%}
"""

# The system message is in the last user turn, and only if the conversation ends with that turn. A
# space precedes the answer. As in Mistral-7B-Instruct-v0.3.
SYSTEM_BEFORE_LAST_USER = """\
{%- for message in messages if message.role != 'system' -%}
{{- '<|h|>' + message.role + '<|/h|>' -}}
{%- if loop.last and message.role == 'user' and messages[0].role == 'system' -%}
{{- messages[0].content + '\\n\\n' -}}
{%- endif -%}
{{- (' ' if message.role == 'assistant' else '') + message.content + '<|eot|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|h|>assistant<|/h|>' -}}{%- endif -%}
"""

# No token ends an answer: the header of the next turn follows at once, as in GLM-4.
NO_END_OF_TURN = """\
{%- for message in messages -%}
{{- '<|h|>' + message.role + '\\n' + message.content -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|h|>assistant\\n' -}}{%- endif -%}
"""

# Headers are plain text, and no special token ends a turn.
NO_SPECIAL_TOKENS = """\
{%- for message in messages -%}
{{- '### ' + message.role + '\\n' + message.content + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '### assistant\\n' -}}{%- endif -%}
"""

# Of several parallel calls, only the first is rendered, as in gpt-oss.
FIRST_CALL_ONLY = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') -}}
{%- if message.tool_calls -%}{{- message.tool_calls[0].function | tojson -}}{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

# The text of a message with a tool call is lost, as in Llama-3.1. The role "odd" is refused.
TEXT_LOST_BESIDE_CALLS = """\
{%- for message in messages -%}
{%- if message.role == 'odd' -%}{{- raise_exception('no such role here') -}}{%- endif -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.tool_calls -%}{{- message.tool_calls[0].function | tojson -}}
{%- else -%}{{- message.content -}}{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def make_tokenizer(
    chat_template: str | None = CHATML,
    *,
    eos_token: str = "<|im_end|>",
    bos_token: str | None = "<s>",
    pad_token: str | None = "<pad>",
) -> PreTrainedTokenizerBase:
    """Return a byte-level tokenizer of about 400 tokens with one of the templates above."""
    backend = Tokenizer(models.BPE(unk_token=None))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_TOKENS,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS * 2, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos_token,
        eos_token=eos_token,
        unk_token="<unk>",
        pad_token=pad_token,
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def make_tiny_llama(
    folder: Path,
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    key_value_heads: int = 2,
    context_tokens: int = 512,
    tied: bool = False,
    chat_template: str | None = CHATML,
    seed: int = 0,
) -> Path:
    """Save a random Llama and its tokenizer to `folder`. `hidden` must be a multiple of 64."""
    import torch

    assert hidden % 64 == 0, "4-bit kernels on the CPU need widths that are multiples of 64"
    tokenizer = make_tokenizer(chat_template)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        max_position_embeddings=context_tokens,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
