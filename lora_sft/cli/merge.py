"""`lora-sft merge`: adapter + base -> merged weights, verified."""

from __future__ import annotations

import argparse
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
        "Merge an adapter into its base, verified.",
        "The folder is reloaded from disk and its logits are compared with base + adapter; past "
        "the tolerance it is kept as OUT.failed and the exit code is 7.",
    )
    parser.add_argument("adapter", metavar="ADAPTER", type=Path, help="adapter folder, or a run")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write")
    parser.add_argument("--base", metavar="PATH", help="the base, where it moved")
    parser.add_argument(
        "--onto",
        choices=("dequantized", "original"),
        help="form of the base (default: dequantized after QLoRA, else original)",
    )
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float16", "float32"),
        help="default: the recipe's, else the base's in training",
    )
    parser.add_argument("--verify", choices=("auto", "logits", "none"), default="auto")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Merge, and print the report."""
    from lora_sft.export import merging

    plan = merging.make_merge_plan(
        arguments.adapter,
        arguments.out,
        base=arguments.base,
        onto=arguments.onto,
        dtype=arguments.dtype,
        verify=arguments.verify != "none",
    )
    report = merging.describe_merge_plan(plan) if arguments.dry_run else merging.merge(plan)
    if arguments.json:
        print_json(report)
    else:
        print(format_report(report))
    return EXIT_DONE


def format_report(report: dict[str, Any]) -> str:
    """The report (or, of a dry run, the plan) as a person reads it."""
    if "tensors_merged" not in report:
        return "\n".join(f"{name}: {value}" for name, value in report.items())
    lines = [f"{report['output']}: adapter merged onto the {report['onto']} base"]
    checked = report.get("correctness")
    if checked:
        lines += [
            f"verified on {checked['prompts']} prompts against {checked['against']}: "
            f"mean KL {checked['mean_kl']:.2e} nats, top-1 agreement "
            f"{100 * checked['top1_agreement']:.2f} %, "
            f"largest logit difference {checked['max_abs_logit_difference']:.2e}",
            f"shift against {report['shift']['against']}: "
            f"mean KL {report['shift']['mean_kl']:.2e} nats",
        ]
    return "\n".join(lines)
