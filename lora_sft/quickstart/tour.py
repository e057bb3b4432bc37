"""Run the quickstart: read, train, evaluate, merge and verify, with the files in the package.

It calls the same functions as the commands, on the shipped recipe.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from lora_sft.data.labelled_row import IGNORED_LABEL
from lora_sft.data.templates.tokenizer import load_saved_tokenizer
from lora_sft.errors import EXIT_DONE
from lora_sft.evaluate.run_evaluation import run_evaluation
from lora_sft.evaluate.scoring import Evaluation
from lora_sft.evaluate.token_loss import compute_loss
from lora_sft.export.merge_plan import make_merge_plan
from lora_sft.export.merging import merge
from lora_sft.file_names import MERGE_REPORT_FILE
from lora_sft.log import make_result_console, say
from lora_sft.model.base_model import load_base_model
from lora_sft.pipeline import run_training
from lora_sft.processes.this_process import Processes
from lora_sft.recipe import Recipe, read_recipe
from lora_sft.recipe.catalogue import find_recipe
from lora_sft.run_directory import write_json

DATA = Path(__file__).parent / "data"


def run_quickstart(folder: Path) -> int:
    """Run the quickstart and write `run/`, `merged/` and `result.json` to `folder`.

    A second start on the same folder continues an unfinished run, or shows the existing result. It
    overwrites no run and no merged model.

    Returns: The exit code.
    """
    started = time.monotonic()
    run, merged = folder / "run", folder / "merged"
    overrides = [f"output_dir={json.dumps(str(run))}"]
    recipe = read_recipe(find_recipe("quickstart").path, overrides)
    plain_loss = measure_plain_text_loss(recipe)
    say(f"the base knows English: its loss on unseen plain text is {plain_loss:.2f} nats per token")
    result = run_training(recipe, Processes.from_environment())
    if result.exit_code != EXIT_DONE:
        return result.exit_code
    evaluation = run_evaluation(run, None, "test")
    report = _merge_once(run, merged)
    document = {**evaluation.to_dict(), "plain_text_loss": plain_loss, "merge": report}
    write_json(folder / "result.json", document)
    _show(evaluation, report, folder, time.monotonic() - started)
    return EXIT_DONE


def measure_plain_text_loss(recipe: Recipe) -> float:
    """Return the base's loss on unseen plain English, in nats per token."""
    tokenizer = load_saved_tokenizer(recipe.model.location)
    texts = [json.loads(line)["text"] for line in (DATA / "plain_text.jsonl").open()]
    rows = [_all_learned(list(tokenizer(text)["input_ids"])) for text in texts]
    base = load_base_model(recipe.model).eval()
    return compute_loss(base, rows, recipe.evaluate.batch_size, tokenizer.pad_token_id)


def _all_learned(ids: list[int]) -> dict[str, list[int]]:
    return {"input_ids": ids, "labels": [IGNORED_LABEL, *ids[1:]]}


def _merge_once(run: Path, merged: Path) -> Mapping[str, Any]:
    if (merged / MERGE_REPORT_FILE).exists():
        say(f"{merged}: already merged")
        report: dict[str, Any] = json.loads((merged / MERGE_REPORT_FILE).read_text())
        return report
    return merge(make_merge_plan(run, merged))


def _show(evaluation: Evaluation, report: Mapping[str, Any], folder: Path, seconds: float) -> None:
    console = make_result_console()
    console.print()
    console.print(evaluation.to_table())
    for sample in evaluation.samples:
        table = Table(title=sample.prompt, title_justify="left", show_header=False)
        table.add_row("before", sample.answers["base"])
        table.add_row("after", sample.answers["adapter"])
        table.add_row("wanted", sample.reference)
        console.print()
        console.print(table, markup=False)
    checked = report["correctness"]
    console.print(
        f"\nmerged and verified: {checked['prompts']} prompts against {checked['against']}, "
        f"mean KL {checked['mean_kl']:.1e} nats, "
        f"top-1 agreement {100 * checked['top1_agreement']:.1f} %"
    )
    console.print(f"done in {seconds:.0f} s\n\nnext:")
    for command, meaning in (
        (f"lora-sft chat {folder / 'merged'}", "talk to the merged model"),
        ("lora-sft recipes copy quickstart my.yaml", "a recipe to edit for your own data"),
        ("lora-sft train my.yaml", "train it"),
    ):
        console.print(f"  {command:<44} {meaning}", soft_wrap=True)
