"""Make models with the shapes of real models and random weights.

Speed and memory depend on the shapes, not on the values of the weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# The logits of trained models of these families have a standard deviation of about 4.4. With
# transformers' initialisation (0.02) the softmax would be flat. A loss that skips small gradients
# would then look better than it is.
LOGITS_STD = 4.4
PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
TOKENIZER_VOCABULARY = ("<pad>", "<s>", "</s>", "<unk>")
FINISHED = "finished.json"
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}


@dataclass(frozen=True)
class ModelShape:
    """The shape of a decoder in the style of Llama, as its published config.json gives it."""

    name: str
    model_type: str  # "llama" or "qwen2"
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    vocabulary: int
    tied: bool

    @property
    def linear_weights(self) -> int:
        """The number of weights of all linear layers in the decoder layers ("N")."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.key_value_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head_weights(self) -> int:
        """The number of weights of the output head ("E")."""
        return self.vocabulary * self.hidden

    def count_adapter_weights(self, r: int) -> int:
        """Return the number of weights of a rank-r adapter on all those linear layers ("P")."""
        d, kv = self.heads * self.head_dim, self.key_value_heads * self.head_dim
        widths = [(self.hidden, d), (self.hidden, kv), (self.hidden, kv), (d, self.hidden)]
        widths += [(self.hidden, self.intermediate)] * 2 + [(self.intermediate, self.hidden)]
        return self.layers * r * sum(given + made for given, made in widths)

    def with_layers(self, layers: int, vocabulary: int) -> ModelShape:
        """Return this shape with another number of layers and another vocabulary size."""
        return replace(self, name=f"{self.name}-{layers}", layers=layers, vocabulary=vocabulary)


SHAPES = {
    shape.name: shape
    for shape in (
        ModelShape("Llama-3.2-1B", "llama", 2048, 8192, 16, 32, 8, 64, 128256, True),
        ModelShape("Llama-3.1-8B", "llama", 4096, 14336, 32, 32, 8, 128, 128256, False),
        ModelShape("Qwen2.5-7B", "qwen2", 3584, 18944, 28, 28, 4, 128, 152064, False),
        ModelShape("toy", "llama", 64, 128, 2, 4, 2, 16, 1024, False),
    )
}


def build_random_model(shape: ModelShape, folder: Path, *, seed: int = 0) -> Path:
    """Make a model with random weights and save it in bfloat16. Return its folder.

    The model is made on the GPU if there is one. A folder that already holds the finished model is
    not written again.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    wanted = json.dumps([shape.__dict__, seed])
    if (folder / FINISHED).exists() and (folder / FINISHED).read_text() == wanted:
        return folder
    config = AutoConfig.for_model(shape.model_type, **_make_config_fields(shape))
    torch.manual_seed(seed)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        torch.nn.init.normal_(model.lm_head.weight, std=LOGITS_STD / shape.hidden**0.5)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    (folder / FINISHED).write_text(wanted)
    return folder


def _make_config_fields(shape: ModelShape) -> dict[str, Any]:
    return {
        "architectures": [ARCHITECTURES[shape.model_type]],
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_value_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "pad_token_id": PAD_ID,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
    }  # fmt: skip


def make_tokenizer() -> Any:
    """Make a tokenizer with a padding token and an end token, because trainers need these.

    It is not used to tokenise: the documents are token ids already.
    """
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(TOKENIZER_VOCABULARY)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
