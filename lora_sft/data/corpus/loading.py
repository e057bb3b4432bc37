"""Load the tokenizer of a recipe and its corpus, from the cache if it is kept there."""

from __future__ import annotations

from dataclasses import replace

from transformers import (
    PreTrainedTokenizerBase,
)

from lora_sft.cache_folder import find_cache_folder
from lora_sft.data.corpus.building import Corpus
from lora_sft.data.corpus.cache import CachedCorpus, load_or_build_corpus
from lora_sft.data.templates.tokenizer import (
    find_stop_token_ids,
    load_tokenizer,
)
from lora_sft.processes.first_process import build_once
from lora_sft.recipe import Recipe


def load_data(
    recipe: Recipe, template_date: str | None = None
) -> tuple[PreTrainedTokenizerBase, Corpus]:
    """Return the tokenizer and the corpus of a recipe.

    Args:
        template_date: The date that the chat template was given when the run began. It is used if
            the recipe names no date.
    """
    tokenizer = load_tokenizer(recipe.model, recipe.tokenizer, recipe.data)
    return tokenizer, _load_corpus(recipe, tokenizer, template_date).corpus


def prepare_data(recipe: Recipe) -> CachedCorpus:
    """Return the corpus of a recipe, and the folder that keeps it for the next time."""
    return _load_corpus(recipe, load_tokenizer(recipe.model, recipe.tokenizer, recipe.data))


def _load_corpus(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, template_date: str | None = None
) -> CachedCorpus:
    stops = find_stop_token_ids(tokenizer, recipe.model, recipe.data.stop_tokens)
    data = replace(recipe.data, template_date=recipe.data.template_date or template_date)
    written = recipe.to_dict(absolute_paths=True)
    work = [written["data"], written["model"], written["tokenizer"], template_date]
    with build_once(find_cache_folder(), work):
        return load_or_build_corpus(data, tokenizer, stops)
