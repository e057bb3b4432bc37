"""Check that the model has an embedding for every token of the corpus."""

from __future__ import annotations

from itertools import chain

from transformers import (
    PreTrainedTokenizerBase,
)

from lora_sft.data.corpus.building import Corpus
from lora_sft.errors import ModelError
from lora_sft.log import say
from lora_sft.model.base_model import (
    CausalModel,
    count_embedding_rows,
)
from lora_sft.model.untrained_tokens import find_untrained_tokens
from lora_sft.recipe import Recipe

SEARCHED_ROWS = 200  # the first rows, searched for special tokens of the template


def check_vocabulary(
    recipe: Recipe, model: CausalModel, tokenizer: PreTrainedTokenizerBase, corpus: Corpus
) -> None:
    """Check that every token id has an embedding, and warn of embeddings that were never trained.

    Raises: ModelError if a token id has no embedding.
    """
    rows = count_embedding_rows(model)
    largest = max(corpus.largest_token_id, tokenizer.pad_token_id or 0)
    if largest >= rows:
        raise ModelError(
            f"token id {largest} ({tokenizer.convert_ids_to_tokens(largest)!r}) has no embedding: "
            f"the model has {rows} embedding rows",
            "tokenizer",
            "use the tokenizer that belongs to the model",
        )
    warn_of_untrained_tokens(recipe, model, tokenizer, corpus)


def warn_of_untrained_tokens(
    recipe: Recipe, model: CausalModel, tokenizer: PreTrainedTokenizerBase, corpus: Corpus
) -> None:
    """Log the special tokens that the base model was never trained on, and how to learn them."""
    if any(
        recipe.adapter.lora.get(name) for name in ("trainable_token_indices", "modules_to_save")
    ):
        return
    first_rows = corpus.train[:SEARCHED_ROWS]["input_ids"]
    used = set(chain.from_iterable(first_rows)) & set(tokenizer.added_tokens_decoder)
    untrained = find_untrained_tokens(model, used)
    if untrained:
        names = ", ".join(map(str, tokenizer.convert_ids_to_tokens(untrained)))
        say(
            f"warning: the base model was probably never trained on {names}: their embeddings are "
            "much shorter than others. Adapters on linear layers cannot change embeddings. "
            f"To train these, write adapter.trainable_token_indices: {untrained}"
        )
