"""Show the accounts of all splits as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table
from lora_sft.data.corpus.account import Account
from lora_sft.data.corpus.building import Corpus
from lora_sft.log import make_console, say

MOST_SOURCES_SHOWN = 12


def show_accounts(corpus: Corpus) -> None:
    """Print the accounts of the corpus, and its warnings."""
    make_console().print(render_account_table(corpus.accounts))
    for warning in corpus.warnings:
        say(f"warning: {warning}")


def render_account_table(accounts: Mapping[str, Account]) -> Table:
    """Return a table with one column per split, one line per count, and an example of each drop.

    If rows come from several sources, further lines show the learned tokens of each source.
    """
    from rich.table import Table

    table = Table(title="rows read, kept and learned from")
    table.add_column("")
    for split in accounts:
        table.add_column(split, justify="right")
    table.add_column("for example", overflow="fold")
    for name, values in _list_counts(accounts):
        table.add_row(name, *(f"{value:,}" for value in values), "")
    for reason in sorted({reason for account in accounts.values() for reason in account.dropped}):
        counts = [f"{account.dropped.get(reason, 0):,}" for account in accounts.values()]
        example = next((a.examples[reason] for a in accounts.values() if reason in a.examples), "")
        table.add_row(f"dropped: {reason}", *counts, _escape(example))
    for name, shown in _list_sources(accounts):
        table.add_row("tokens learned", *shown, _escape(name))
    return table


def _list_sources(accounts: Mapping[str, Account]) -> list[tuple[str, list[str]]]:
    """Return the learned tokens and all tokens of each source, per split.

    Returns: An empty list if there is only one source.
    """
    names = list(dict.fromkeys(name for each in accounts.values() for name in each.sources))
    if len(names) < 2:
        return []
    lines = []
    for name in names[:MOST_SOURCES_SHOWN]:
        found = [account.sources.get(name) for account in accounts.values()]
        shown = [
            f"{each['target_tokens']:,} of {each['tokens']:,}" if each else "" for each in found
        ]
        lines.append((name, shown))
    if len(names) > MOST_SOURCES_SHOWN:
        rest = len(names) - MOST_SOURCES_SHOWN
        lines.append((f"and {rest} more sources (manifest.json has all)", [""] * len(accounts)))
    return lines


def _list_counts(accounts: Mapping[str, Account]) -> list[tuple[str, list[int]]]:
    always = ("read", "kept", "rows_out", "tokens", "target_tokens")
    if_not_zero = ("expanded", "expansion_tokens", "truncated", "partly_overlong")
    lines = [
        (name, [int(getattr(account, name)) for account in accounts.values()])
        for name in (*always, *if_not_zero)
    ]
    ways = sorted({way for account in accounts.values() for way in account.built} - {"rendered"})
    lines += [(way, [each.built.get(way, 0) for each in accounts.values()]) for way in ways]
    return [(name, values) for name, values in lines if name in always or any(values)]


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
