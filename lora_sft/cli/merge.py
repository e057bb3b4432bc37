"""`lora-sft merge`: merge an adapter into its base model and verify the result."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_sft.cli.arguments import Commands, add_command, add_json, add_trust, print_json
from lora_sft.errors import EXIT_DONE
from lora_sft.log import print_result


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "merge",
        run,
        "Merge an adapter into its base model and verify the result.",
        "Every merged tensor is read back from disk and compared with the merge formula. The "
        "answers of the merged model are compared with those of base + adapter. If a difference is "
        "above the tolerance, the folder is kept as OUT.failed and the exit code is 7.",
    )
    parser.add_argument(
        "adapter", metavar="ADAPTER", type=Path, help="an adapter folder or a run directory"
    )
    parser.add_argument(
        "out", metavar="OUT", type=Path, help="the folder to write; it must not exist"
    )
    parser.add_argument(
        "--base",
        metavar="PATH",
        help="folder or hub id of the base model (default: the one that the adapter records)",
    )
    parser.add_argument(
        "--with",
        dest="others",
        metavar="ADAPTER",
        type=Path,
        action="append",
        default=[],
        help="another adapter to add in the same merge (may be repeated)",
    )
    parser.add_argument(
        "--onto",
        choices=("dequantized", "original"),
        help="weights to add the adapter to: dequantized, as QLoRA training used them, or the "
        "original ones (default: dequantized for a QLoRA adapter, else original)",
    )
    parser.add_argument(
        "--trained-on",
        choices=("nf4", "int8"),
        help="quantisation of the base model in training, if the adapter does not record it",
    )
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float16", "float32"),
        help="dtype of the merged weights (default: export.dtype of the recipe, else the dtype of "
        "the base model in training, else its dtype on disk)",
    )
    parser.add_argument(
        "--verify",
        choices=("auto", "logits", "tensors", "none"),
        default="auto",
        help="compare every tensor (tensors), the answers (logits), both (auto, the default; "
        "without the answers if the model is too large), or nothing (none)",
    )
    parser.add_argument(
        "--allow-other-base",
        action="store_true",
        help="merge even if the base model differs from the one that the adapter records",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the plan of the merge and write nothing"
    )
    add_trust(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Merge and print the report, or print only the plan (`--dry-run`)."""
    from lora_sft.export.merge_plan import describe_merge_plan, make_merge_plan
    from lora_sft.export.merging import merge

    plan = make_merge_plan(
        arguments.adapter,
        arguments.out,
        base=arguments.base,
        onto=arguments.onto,
        dtype=arguments.dtype,
        verify=arguments.verify,
        others=arguments.others,
        trained_on=arguments.trained_on,
        allow_other_base=arguments.allow_other_base,
        trust_remote_code=arguments.trust_remote_code,
    )
    report = describe_merge_plan(plan) if arguments.dry_run else merge(plan)
    if arguments.json:
        print_json(report)
    else:
        print_result(format_report(report))
    return EXIT_DONE


def format_report(report: Mapping[str, Any]) -> str:
    """Return the text of a merge report, or of the plan that `--dry-run` makes."""
    if "seconds" not in report:
        return "\n".join(f"{name}: {format_value(value)}" for name, value in report.items())
    from lora_sft.export.proof.check_summary import describe_check

    lines = [
        f"{report['output']}: {report['adapter_tensors_used']} adapter tensors merged into "
        f"{report['tensors_merged']} tensors of the {report['onto']} base, {report['dtype']}"
    ]
    checked = report.get("correctness")
    if checked:
        lines.append(f"verified against {checked['against']}: {describe_check(checked)}")
        if "logits_left_out" in checked:
            lines.append(f"answers were not compared: {checked['logits_left_out']}")
        if "greedy_prompts" in checked:
            equal, prompts = checked["greedy_equal"], checked["greedy_prompts"]
            lines.append(f"greedy continuations: {equal} of {prompts} the same")
    shift = report.get("shift")
    if shift:
        choices = shift.get("choices") or {report["onto"]: shift}
        lines += [format_shift(onto, each, shift["against"]) for onto, each in choices.items()]
    return "\n".join(lines)


def format_value(value: Any) -> str:
    """Return a value as text: one line per item of a list."""
    if isinstance(value, list):
        return "".join(f"\n  {each}" for each in value)
    return str(value)


def format_shift(onto: str, shift: dict[str, Any], against: str) -> str:
    """Return a line with the difference between the merged model and the trained one.

    Args:
        onto: The weights that the adapter was added to.
        shift: The measured difference.
        against: The name of the model that the merged one is compared with.
    """
    line = f"shift of --onto {onto} against {against}: mean KL {shift['mean_kl']:.2e} nats"
    if "loss" in shift:
        line += (
            f", loss {shift['loss']:.4f} (as trained: {shift['loss_as_trained']:.4f}) on "
            f"{shift['held_out_rows']} held-out rows"
        )
    return line
