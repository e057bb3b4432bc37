"""`lora-sft merge`: adapter + base -> merged weights, verified."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_sft.cli.arguments import Commands, add_command, add_json, print_json
from lora_sft.errors import EXIT_DONE


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "merge",
        run,
        "Merge adapters into their base, file by file, verified.",
        "Every tensor is read back from disk and compared with the formula, and the answers with "
        "those of base + adapter; past the tolerance the folder is kept as OUT.failed and the exit "
        "code is 7.",
    )
    parser.add_argument("adapter", metavar="ADAPTER", type=Path, help="adapter folder, or a run")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write")
    parser.add_argument("--base", metavar="PATH", help="the base, where it moved")
    parser.add_argument(
        "--with",
        dest="others",
        metavar="ADAPTER",
        type=Path,
        action="append",
        default=[],
        help="one more adapter to add in the same merge (again for more)",
    )
    parser.add_argument(
        "--onto",
        choices=("dequantized", "original"),
        help="form of the base (default: dequantized after QLoRA, else original)",
    )
    parser.add_argument(
        "--trained-on",
        choices=("nf4", "int8"),
        help="how the base was quantised in training, for an adapter that does not record it",
    )
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float16", "float32"),
        help="default: the recipe's, else the base's in training, else as the base is stored",
    )
    parser.add_argument(
        "--verify",
        choices=("auto", "logits", "tensors", "none"),
        default="auto",
        help="auto: every tensor, and the answers where the model fits into memory",
    )
    parser.add_argument(
        "--allow-other-base",
        action="store_true",
        help="merge even where the base is not the one that the adapter recorded",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Merge, and print the report."""
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
    )
    report = describe_merge_plan(plan) if arguments.dry_run else merge(plan)
    if arguments.json:
        print_json(report)
    else:
        print(format_report(report))
    return EXIT_DONE


def format_report(report: Mapping[str, Any]) -> str:
    """The report (or, of a dry run, the plan) as a person reads it."""
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
    """A list on lines of its own, anything else as it is."""
    if isinstance(value, list):
        return "".join(f"\n  {each}" for each in value)
    return str(value)


def format_shift(onto: str, shift: dict[str, Any], against: str) -> str:
    """What one choice of base costs against the model as it was trained."""
    line = f"shift of --onto {onto} against {against}: mean KL {shift['mean_kl']:.2e} nats"
    if "loss" in shift:
        line += (
            f", loss {shift['loss']:.4f} ({shift['loss_as_trained']:.4f}) on "
            f"{shift['held_out_rows']} held-out rows"
        )
    return line
