"""`lora-sft merge`: adapter + base -> merged weights, verified."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from lora_sft.cli.arguments import AsJson, print_json


class Onto(StrEnum):
    """Which form of the base the adapter is merged onto."""

    dequantized = "dequantized"
    original = "original"


class Dtype(StrEnum):
    """Dtypes that an export can have."""

    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


class Verify(StrEnum):
    """How the merged model is compared with base + adapter."""

    auto = "auto"
    logits = "logits"
    none = "none"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("merge")(merge)


def merge(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="Adapter folder, or a run.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    base: Annotated[
        str | None, typer.Option(help="The base, where the adapter does not say or it moved.")
    ] = None,
    onto: Annotated[
        Onto | None, typer.Option(help="Default: dequantized after QLoRA, else original.")
    ] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Default: the recipe's, else the base's in training.")
    ] = None,
    verify: Annotated[Verify, typer.Option(help="auto is logits.")] = Verify.auto,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done.")] = False,
    as_json: AsJson = False,
) -> None:
    """Merge an adapter into its base, verified.

    The folder is reloaded from disk and its logits are compared with base + adapter; past the
    tolerance it is kept as OUT.failed and the exit code is 7.
    """
    from lora_sft.export import merging

    plan = merging.make_merge_plan(
        adapter, out, base=base, onto=onto, dtype=dtype, verify=verify is not Verify.none
    )
    report = merging.describe_merge_plan(plan) if dry_run else merging.merge(plan)
    if as_json:
        print_json(report)
    else:
        typer.echo(format_report(report))


def format_report(report: dict[str, Any]) -> str:
    """The report (or, of a dry run, the plan) as a person reads it."""
    if "tensors_merged" not in report:
        return "\n".join(f"{name}: {value}" for name, value in report.items())
    lines = [f"{report['output']}: adapter merged onto the {report['onto']} base"]
    checked = report.get("correctness")
    if checked:
        lines.append(
            f"verified on {checked['prompts']} prompts against {checked['against']}: "
            f"mean KL {checked['mean_kl']:.2e} nats, top-1 agreement "
            f"{100 * checked['top1_agreement']:.2f} %, "
            f"largest logit difference {checked['max_abs_logit_difference']:.2e}"
        )
    if "shift" in report:
        lines.append(
            f"shift against {report['shift']['against']}: "
            f"mean KL {report['shift']['mean_kl']:.2e} nats"
        )
    return "\n".join(lines)
