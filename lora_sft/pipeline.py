"""Run the stages of training in their order.

    recipe -> data -> plan -> model -> train -> export

Only this file knows more than one stage. Each stage takes the results of the stages before it and
returns a new record. Rows are packed after the model is built, because the model decides whether
documents stay apart in one packed row.
"""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path

import torch
from transformers import set_seed

from lora_sft.data.corpus.account_table import show_accounts
from lora_sft.data.corpus.loading import load_data
from lora_sft.data.templates.tokenizer import hash_tokenizer
from lora_sft.export.adapter_files import write_adapter_folder, write_validation_sample
from lora_sft.export.adapter_origin import AdapterOrigin, make_adapter_origin
from lora_sft.export.run_exports import check_exports, export_run
from lora_sft.log import say
from lora_sft.model.building import build_model
from lora_sft.model_files.base_record import record_base
from lora_sft.plan.batch import make_batch_plan
from lora_sft.processes.failed_files import explain_failed_files
from lora_sft.processes.meeting import check_same_data
from lora_sft.processes.output_lock import locked
from lora_sft.processes.report import Report, status_written
from lora_sft.processes.stop_signal import StopRequest
from lora_sft.processes.this_process import Processes, check_devices, leave_process_group
from lora_sft.recipe import ModelSection, Recipe
from lora_sft.recipe.optional_packages import check_packages
from lora_sft.run_directory import RunDirectory
from lora_sft.train import zero
from lora_sft.train.beginning import begin_run
from lora_sft.train.checkpoints.finished_adapter import record_adapter
from lora_sft.train.checkpoints.output_folder import check_output_folder
from lora_sft.train.checkpoints.resume import StartingPoint, find_starting_point
from lora_sft.train.checkpoints.run_identity import RunIdentity, check_same_run
from lora_sft.train.fit import TrainResult, fit
from lora_sft.train.manifest import make_manifest
from lora_sft.train.packing import pack_rows
from lora_sft.train.training_job import TrainingJob
from lora_sft.train.trl.sft_arguments import make_sft_config
from lora_sft.train.vocabulary import check_vocabulary


def run_training(
    recipe: Recipe,
    processes: Processes,
    *,
    resume: str = "auto",
    overwrite: bool = False,
    trust_checkpoint: bool = False,
    request: StopRequest | None = None,
) -> TrainResult:
    """Train one recipe, from rows on disk to an adapter folder and the exports of the recipe.

    Args:
        recipe: The recipe.
        processes: The rank of this process, and the world size.
        resume: `auto`, `never` or the path of a checkpoint.
        overwrite: Whether to remove the run that is in the output directory.
        trust_checkpoint: Whether to load DeepSpeed's states that this user did not sign.
        request: Notes the signals that ask the run to stop. A caller that handled signals before
            torch was imported passes its own.
    """
    check_packages(recipe)
    check_devices(os.environ, torch.cuda.device_count())
    check_output_folder(recipe, overwrite=overwrite)
    run = RunDirectory(Path(recipe.output_dir)).create()
    request = request or StopRequest()
    with request.listening(), locked(run.path, is_main=processes.is_main):
        with explain_failed_files(run.path):
            start = find_starting_point(
                run, recipe, resume, overwrite, trust_checkpoint=trust_checkpoint
            )
        if start.finished:
            return report_finished(run)
        if processes.is_main:
            run.check_writable()
        check_exports(recipe, run, start.run_id, processes)
        with status_written(run, processes, request) as report:
            if start.only_exports_left:
                result = report_trained(run)
            else:
                with explain_failed_files(run.path):
                    job = prepare_training(recipe, run, start, processes, report)
                    result = fit(job, request, report.watch)
                    save_adapter(job, result, processes)
            report.note_saved(result.step)
            leave_process_group()
            if processes.is_main:
                if result.is_complete:
                    export_run(recipe, run, start.run_id)
                with explain_failed_files(run.path):
                    run.write_status(**asdict(result))
            report.leave()
        request.ignore_signals()
    say(describe_end(run, result))
    return result


def prepare_training(
    recipe: Recipe,
    run: RunDirectory,
    start: StartingPoint,
    processes: Processes,
    report: Report,
) -> TrainingJob:
    """Build everything that training needs, and write the manifest before the first step.

    Each value is compared with the checkpoint's run as soon as it is known, so that a difference is
    found before the next slow stage.
    """
    batch = make_batch_plan(recipe, processes.world_size)
    identity = check_same_run(start, RunIdentity(global_batch_size=batch.global_batch_size))
    universal = start.needs_conversion(processes.world_size)
    arguments = make_sft_config(recipe, batch, run, universal=universal)  # opens the process group
    watch = report.start_watch(arguments.ddp_timeout)
    tokenizer, corpus = load_data(recipe, start.template_date)
    show_accounts(corpus)
    origin = make_adapter_origin(recipe, corpus)
    identity = replace(
        identity,
        rows=corpus.fingerprint,
        validation=corpus.fingerprints.get("validation"),
        template=corpus.template_sha256,
        tokenizer=hash_tokenizer(tokenizer),
        base=origin.base_sha256,
    )
    check_same_run(start, identity)
    if processes.is_main:  # reads all weights
        identity = check_same_run(start, add_base(identity, recipe.model))
    check_same_data(watch, corpus.fingerprints)
    set_seed(recipe.train["seed"])  # for the random A matrices of the adapter
    model, census = build_model(recipe)
    check_vocabulary(recipe, model, tokenizer, corpus)
    rows = pack_rows(recipe, batch, corpus.train, model, tokenizer, arguments)
    identity = check_same_run(start, replace(identity, packing=rows.identity))
    job = TrainingJob(
        recipe=recipe,
        run=run,
        arguments=arguments,
        model=model,
        tokenizer=tokenizer,
        rows=rows,
        validation=corpus.validation,
        origin=asdict(origin),
        checkpoint=start.checkpoint,
        trust_checkpoint=start.trust_checkpoint,
    )
    manifest = make_manifest(recipe, batch, corpus, census, rows, identity)
    begin_run(job, start, manifest, watch, processes)
    return job


def add_base(identity: RunIdentity, model: ModelSection) -> RunIdentity:
    """Return the identity with the content of the base model, if it has safetensors files."""
    base = record_base(model.location, model.revision, runs_own_code=model.trust_remote_code)
    if base is None:
        return identity
    return replace(identity, config=base.config, weights=base.weights, code=base.code)


def save_adapter(job: TrainingJob, result: TrainResult, processes: Processes) -> None:
    """Write the adapter folder of a complete run; after that DeepSpeed is not needed."""
    with zero.gathered(job.model):
        if result.is_complete and processes.is_main:
            origin = AdapterOrigin(**job.origin)
            write_adapter_folder(job.model, job.tokenizer, job.run.adapter, origin)
            write_validation_sample(job.run, job.validation)
            record_adapter(job.run)
    zero.stop_sharding_models()


def report_finished(run: RunDirectory) -> TrainResult:
    """Log that the run is finished, and return the result with its last step."""
    step = (run.read_status() or {}).get("step", 0)
    say(f"{run.path}: this run is finished (step {step}); nothing to do")
    return TrainResult(step)


def report_trained(run: RunDirectory) -> TrainResult:
    """Log that only the exports are left, and return the result with the last step."""
    step = (run.read_status() or {}).get("step", 0)
    say(f"{run.adapter} is complete (step {step}); repeating the exports of the recipe")
    return TrainResult(step)


def describe_end(run: RunDirectory, result: TrainResult) -> str:
    """Return the last line of the log: how the run ended, and the next commands."""
    if not result.is_complete:
        again = f"continue the run: lora-sft train {run.recipe}"
        return f"{result.reason} at step {result.step}; {again}"
    commands = (f"lora-sft evaluate {run.path}", f"lora-sft merge {run.path} OUT")
    return f"done at step {result.step}; adapter: {run.adapter}; next: {', '.join(commands)}"
