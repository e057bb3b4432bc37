"""Load a recipe's tokenizer and its corpus, from the cache where it is there."""

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
    recipe: Recipe, kept_day: str | None = None
) -> tuple[PreTrainedTokenizerBase, Corpus]:
    """The recipe's tokenizer and its rows as tokens and labels.

    `kept_day`: the date that a template which reads the clock was shown when the run began.
    """
    tokenizer = load_tokenizer(recipe.model, recipe.tokenizer, recipe.data)
    return tokenizer, _load_corpus(recipe, tokenizer, kept_day).corpus


def prepare_data(recipe: Recipe) -> CachedCorpus:
    """The recipe's rows as tokens and labels, and where they are kept for the next time."""
    return _load_corpus(recipe, load_tokenizer(recipe.model, recipe.tokenizer, recipe.data))


def _load_corpus(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, kept_day: str | None = None
) -> CachedCorpus:
    stops = find_stop_token_ids(tokenizer, recipe.model, recipe.data.stop_tokens)
    data = replace(recipe.data, template_date=recipe.data.template_date or kept_day)
    written = recipe.to_dict(absolute_paths=True)
    work = [written["data"], written["model"], written["tokenizer"], kept_day]
    with build_once(find_cache_folder(), work):
        return load_or_build_corpus(data, tokenizer, stops)
