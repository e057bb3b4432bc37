"""The spine: the stages in their order, and the only file that knows two neighbours.

    recipe -> data -> plan -> model -> train -> evaluate -> export

Rows are packed between model and training: whether that is safe is asked of the model.

Each stage takes what came before and returns the next; nothing is handed back.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    PreTrainedTokenizerBase,
    set_seed,
)

from lora_sft.cache_folder import find_cache_folder
from lora_sft.data.corpus.account import render_account_table
from lora_sft.data.corpus.building import Corpus
from lora_sft.data.corpus.cache import CachedCorpus, load_or_build_corpus
from lora_sft.data.templates.tokenizer import (
    find_stop_token_ids,
    load_tokenizer,
)
from lora_sft.errors import ModelError, RecipeError
from lora_sft.evaluate.scoring import Evaluation, evaluate_split
from lora_sft.export.adapter_files import write_adapter_folder, write_validation_sample
from lora_sft.export.adapter_origin import AdapterOrigin
from lora_sft.export.hub import check_can_push, push_folder
from lora_sft.export.merge_plan import make_merge_plan
from lora_sft.export.merging import merge
from lora_sft.export.public_text import make_public
from lora_sft.export.staging import Owner, check_output_is_free
from lora_sft.log import make_console, say
from lora_sft.model.adapter import add_adapter, load_adapter
from lora_sft.model.base_model import (
    CausalModel,
    count_embedding_rows,
    load_base_model,
)
from lora_sft.model.census import Census, take_census
from lora_sft.model.untrained_tokens import find_untrained_tokens
from lora_sft.model_files.fingerprint import fingerprint_location
from lora_sft.plan.batch import BatchPlan, make_batch_plan
from lora_sft.processes.first_process import first_one_builds
from lora_sft.processes.full_disk import full_disk_named
from lora_sft.processes.meeting import check_same_data, leave_after_main, meet
from lora_sft.processes.output_lock import locked
from lora_sft.processes.report import Report, status_written
from lora_sft.processes.stop_signal import StopRequest
from lora_sft.processes.this_process import Processes, check_devices, leave_process_group
from lora_sft.processes.watch import Watch
from lora_sft.recipe import Recipe, read_recipe
from lora_sft.run_directory import RunDirectory, is_run, write_json, write_text_atomically
from lora_sft.train import zero
from lora_sft.train.checkpoints.resume import StartingPoint, find_starting_point, remove_run
from lora_sft.train.checkpoints.same_run import (
    check_same_base,
    check_same_batch,
    check_same_packing,
    check_same_rows,
)
from lora_sft.train.fit import TrainResult, fit
from lora_sft.train.packing import Packing, decide_packing
from lora_sft.train.trl.row_collator import make_collator
from lora_sft.train.trl.sft_arguments import make_sft_config
from lora_sft.versions import read_versions

ROWS_LOOKED_AT = 200  # for the special tokens that a template uses


def run_training(
    recipe: Recipe,
    processes: Processes,
    *,
    resume: str = "auto",
    overwrite: bool = False,
    request: StopRequest | None = None,
) -> TrainResult:
    """Train one recipe from rows on disk to an adapter folder (and its merge, if asked for).

    `request`: where signals are noted; its owner may have listened since before this was imported.
    """
    check_devices(os.environ, torch.cuda.device_count())
    run = RunDirectory(Path(recipe.output_dir)).create()
    request = request or StopRequest()
    with request.listening(), locked(run.path, is_main=processes.is_main):
        start = find_starting_point(run, recipe, resume, overwrite)
        if start.finished:
            step = (run.read_status() or {}).get("step", 0)
            say(f"{run.path}: this run is finished (step {step}); nothing to do")
            return TrainResult(step)
        owner = Owner(start.run_id, run.path)
        if recipe.export.merge is not None:
            # now, not after hours of training
            check_output_is_free(Path(recipe.export.merge), owner)
        if recipe.export.push_to_hub is not None and processes.is_main:
            check_can_push(recipe.export.push_to_hub, recipe.where("export.push_to_hub"))
        with status_written(run, processes, request) as report:
            with full_disk_named(run.path):
                result = _train(recipe, run, start, processes, request, report)
            leave_process_group()
            if processes.is_main:
                if result.is_complete:
                    _export(recipe, run, owner)
                code, saved = result.exit_code, result.state_saved
                run.write_status(code, result.reason, result.step, state_saved=saved)
            leave_after_main(report.watch)
            report.stop_watching()
        request.finish()
    say(describe_end(run, result))
    return result


def _export(recipe: Recipe, run: RunDirectory, owner: Owner) -> None:
    """What the recipe asks for beside the adapter: its merge, and the hub (private)."""
    wanted = recipe.export
    if wanted.merge is not None:
        merge(make_merge_plan(run.path, Path(wanted.merge), owner=owner))
    if wanted.push_to_hub is not None:
        push_folder(Path(wanted.merge) if wanted.merge else run.adapter, wanted.push_to_hub)


def describe_end(run: RunDirectory, result: TrainResult) -> str:
    """What a person wants to know when training ends: where it stands, and what to type next."""
    if not result.is_complete:
        again = f"go on with it: lora-sft train {run.recipe}"
        return f"{result.reason} at step {result.step}; {again}"
    commands = (f"lora-sft evaluate {run.path}", f"lora-sft merge {run.path} OUT")
    return f"done at step {result.step}; adapter: {run.adapter}; next: {', '.join(commands)}"


def _train(
    recipe: Recipe,
    run: RunDirectory,
    start: StartingPoint,
    processes: Processes,
    request: StopRequest,
    report: Report,
) -> TrainResult:
    batch = make_batch_plan(recipe, processes.world_size)
    check_same_batch(start, batch)
    universal = start.needs_conversion(processes.world_size)
    if universal:
        zero.check_can_convert(recipe, processes.world_size)
    arguments = make_sft_config(recipe, batch, run, universal=universal)
    watch = report.watch_over(arguments.ddp_timeout)
    tokenizer, corpus = load_data(recipe, start.get_recorded("data").get("template_date"))
    show_accounts(corpus)
    check_same_rows(start, corpus.fingerprint)
    check_same_data(watch, corpus.fingerprints)
    set_seed(recipe.train["seed"])  # the adapter's random A matrices come from it
    model, census = build_model(recipe)
    check_vocabulary(model, tokenizer, corpus)
    warn_of_untrained_tokens(recipe, model, tokenizer, corpus)
    packing = pack_rows(recipe, batch, corpus.train, model, tokenizer, arguments)
    check_same_packing(start, packing)
    origin = make_adapter_origin(recipe, corpus)
    check_same_base(start, origin.base_fingerprint)
    _open_run(run, start, watch, processes)
    if processes.is_main:
        write_text_atomically(run.recipe, recipe.resolved_text())
        manifest = make_manifest(recipe, batch, corpus, census, packing)
        write_json(run.manifest, {"id": start.run_id, **manifest})
    rows = (packing, corpus.validation)
    guards = (request, watch, start.checkpoint)
    result = fit(recipe, arguments, model, tokenizer, rows, run, asdict(origin), *guards)
    with zero.gathered(model):
        if result.is_complete and processes.is_main:
            write_adapter_folder(model, tokenizer, run.adapter, origin)
            write_validation_sample(run, corpus.validation)
    zero.leave()
    return result


def _open_run(
    run: RunDirectory, start: StartingPoint, watch: Watch | None, processes: Processes
) -> None:
    """Clear what the user gave up: once every process has looked at it, and everything that can
    be wrong with recipe, data and model is known to be right."""
    meet(watch, "model")
    if processes.is_main:
        if start.discard:
            remove_run(run)
        run.clear_status()
        if start.checkpoint is not None and start.needs_conversion(processes.world_size):
            say(f"{start.checkpoint.name} was written by another number of processes: converting")
            zero.convert_to_universal(start.checkpoint)
    meet(watch, "start")
    if start.checkpoint is not None:
        say(f"going on from {start.checkpoint}")


def check_vocabulary(
    model: CausalModel, tokenizer: PreTrainedTokenizerBase, corpus: Corpus
) -> None:
    """Raises: ModelError where a token id has no row in the model's embedding."""
    rows = count_embedding_rows(model)
    largest = max(corpus.largest_token_id, tokenizer.pad_token_id or 0)
    if largest >= rows:
        raise ModelError(
            f"token id {largest} ({tokenizer.convert_ids_to_tokens(largest)!r}) is past the "
            f"model's {rows} embedding rows",
            "tokenizer",
            "use the tokenizer that belongs to the model",
        )


def warn_of_untrained_tokens(
    recipe: Recipe, model: CausalModel, tokenizer: PreTrainedTokenizerBase, corpus: Corpus
) -> None:
    """Say which marks of the template the base has never seen, and how they can be learned."""
    if any(
        recipe.adapter.lora.get(name) for name in ("trainable_token_indices", "modules_to_save")
    ):
        return
    first_rows = corpus.train[:ROWS_LOOKED_AT]["input_ids"]
    used = set(chain.from_iterable(first_rows)) & set(tokenizer.added_tokens_decoder)
    untrained = find_untrained_tokens(model, used)
    if untrained:
        names = ", ".join(map(str, tokenizer.convert_ids_to_tokens(untrained)))
        say(
            f"warning: the base seems never to have been trained on {names} (their embeddings are "
            "far shorter than others), and adapters on linear layers cannot change that; write "
            f"adapter.trainable_token_indices: {untrained}"
        )


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
    with first_one_builds(find_cache_folder(), work):
        return load_or_build_corpus(data, tokenizer, stops)


def read_template_date(run: RunDirectory) -> str | None:
    """The date that the run's template was shown, where it reads the clock."""
    return ((run.read_json(run.manifest) or {}).get("data") or {}).get("template_date")


def show_accounts(corpus: Corpus) -> None:
    """Print what became of every row that was read, and what a person should know of it."""
    make_console().print(render_account_table(corpus.accounts))
    for warning in corpus.warnings:
        say(f"warning: {warning}")


def build_model(recipe: Recipe) -> tuple[CausalModel, Census]:
    """Base, quantisation and adapter, counted."""
    base = load_base_model(
        recipe.model,
        quantization=recipe.quantization,
        where=recipe.where("model.model_name_or_path"),
    )
    if recipe.model.attn_implementation is None:
        say(f"attention: {base.config._attn_implementation} (the library's choice here)")
    model = add_adapter(base, recipe)
    census = take_census(model)
    make_console().print(census.to_table())
    return model, census


def pack_rows(
    recipe: Recipe,
    batch: BatchPlan,
    documents: Dataset,
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    arguments: Any,
) -> Packing:
    """The rows to train on, packed where the recipe and the model allow it; says which."""

    def collate(rows: Sequence[Mapping[str, Any]], apart: bool) -> Mapping[str, Any]:
        return make_collator(tokenizer, arguments, keeps_rows_apart=apart)(list(rows))

    packing = decide_packing(recipe, batch, documents, model, arguments, collate)
    say(packing.describe(batch))
    return packing


def make_manifest(
    recipe: Recipe, batch: BatchPlan, corpus: Corpus, census: Census, packing: Packing
) -> dict[str, Any]:
    """What is needed to tell two runs apart, written before step one."""
    return {
        "versions": read_versions(),
        "seed": recipe.train["seed"],
        "world_size": batch.world_size,
        "plan": {
            "micro_batch_size": batch.micro_batch_size,
            "accumulation_steps": batch.accumulation_steps,
            "global_batch_size": batch.global_batch_size,
            **packing.count_a_step(batch),
            "packing": packing.to_dict(),
        },
        "data": {
            "fingerprint": corpus.fingerprint,
            "template_sha256": corpus.template_sha256,
            "stop_token_ids": sorted(corpus.stop_token_ids),
            "template_date": corpus.template_date,
        },
        "account": {split: account.as_dict() for split, account in corpus.accounts.items()},
        "census": census.to_dict(),
        "recipe": recipe.to_dict(absolute_paths=True),
    }


def make_adapter_origin(recipe: Recipe, corpus: Corpus) -> AdapterOrigin:
    """What the merge must know of this run."""
    return AdapterOrigin(
        model_name_or_path=recipe.model.location,
        revision=recipe.model.revision,
        dtype=recipe.model.dtype,
        trust_remote_code=recipe.model.trust_remote_code,
        quantization=recipe.quantization,
        stop_token_ids=sorted(corpus.stop_token_ids),
        chat_template_kwargs=recipe.data.chat_template_kwargs,
        export_dtype=recipe.export.dtype,
        base_fingerprint=fingerprint_location(recipe.model.location, recipe.model.revision),
        template_date=recipe.data.template_date,
        recipe=make_public(recipe.to_dict(absolute_paths=True)),
        # for the card, which quotes no row and names no file
        account={**corpus.accounts["train"].as_dict(), "examples": {}, "sources": {}},
    )


def run_evaluation(
    path: Path, recipe_path: Path | None, split: str, max_rows: int | None = None
) -> Evaluation:
    """Score a run's adapter beside its base, or a model by a recipe's held-out rows.

    Raises: RecipeError where the recipe has no such split, or a model comes without a recipe.
    """
    recipe_path = recipe_path or (RunDirectory(path).recipe if is_run(path) else None)
    if recipe_path is None:
        raise RecipeError(
            "a model alone has no held-out rows",
            str(path),
            "add --recipe RECIPE, whose data to use",
        )
    recipe = read_recipe(recipe_path)
    tokenizer, corpus = load_data(recipe, read_template_date(RunDirectory(path)))
    rows = {"train": corpus.train, "validation": corpus.validation, "test": corpus.test}[split]
    if rows is None:
        raise RecipeError(
            f"the recipe has no {split} split",
            recipe.where(f"data.{split}"),
            f"add data.{split}: {{fraction: 0.05}} or {{datasets: [...]}}",
        )
    if max_rows is not None and max_rows < len(rows):
        rows = rows.select(range(max_rows))
    if is_run(path):
        base = load_base_model(recipe.model, quantization=recipe.quantization)
        model: CausalModel = load_adapter(base, RunDirectory(path).adapter)
    else:
        model = load_base_model(recipe.model.at(str(path)))
    model.eval()
    stops = sorted(corpus.stop_token_ids)
    return evaluate_split(model, tokenizer, rows.to_list(), split, recipe.evaluate, stops)
