"""Build the corpus: label, split, repeat and count the source rows of all data sets.

The corpus is written to files while it is built, and these files are mapped when it is used. So
memory does not grow with the number of source rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lora_sft.data.corpus.account import Account
from lora_sft.data.corpus.arrow_files import make_scratch_folder
from lora_sft.data.corpus.source_row_following import SourceRowFollower
from lora_sft.data.corpus.source_row_outcomes import SourceRowOutcome
from lora_sft.data.corpus.split_files import SplitWriter, WrittenSplit
from lora_sft.data.corpus.splits import SplitByFraction, count_passes
from lora_sft.data.drops import FIXES
from lora_sft.data.labels.labelling import Labeller
from lora_sft.data.templates.rendering import hash_template
from lora_sft.errors import DataError

if TYPE_CHECKING:
    from lora_sft.recipe import DataSection, DatasetSection, SplitSection

DESCRIPTION = "corpus.json"


@dataclass(frozen=True)
class Corpus:
    """The labelled rows of each split, in the columns `input_ids`, `labels`, `source` and `row`.

    Attributes:
        stop_token_ids: All tokens that end a turn, including the template's own.
        fingerprints: A hash of each split's ids and labels, in their order.
        largest_token_id: The largest id of all splits. The model's embedding needs an entry for it.
        warnings: Sentences for the user.
        template_date: The date (YYYY-MM-DD) that the template was given, if it reads the clock.
    """

    train: Dataset
    validation: Dataset | None
    test: Dataset | None
    accounts: Mapping[str, Account]
    template_sha256: str
    stop_token_ids: frozenset[int]
    fingerprints: Mapping[str, str]
    largest_token_id: int
    warnings: tuple[str, ...] = ()
    template_date: str | None = None

    def get_split(self, name: str) -> Dataset | None:
        """Return the rows of `train`, `validation` or `test`, or None if there is no such split."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return splits[name]

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the training split."""
        return self.fingerprints["train"]


def build_corpus(
    data: DataSection, tokenizer: PreTrainedTokenizerBase, stop_token_ids: Iterable[int]
) -> Corpus:
    """Build a corpus that is not kept in the cache.

    Its files are deleted at once, but its rows stay readable because the files are mapped.

    Raises: DataError as `write_corpus` does.
    """
    with make_scratch_folder() as folder:
        write_corpus(data, tokenizer, stop_token_ids, folder)
        return open_corpus(folder)


def write_corpus(
    data: DataSection,
    tokenizer: PreTrainedTokenizerBase,
    stop_token_ids: Iterable[int],
    folder: Path,
) -> None:
    """Read, convert, label and split all data sets of `data`, and write files into `folder`.

    Raises: DataError if a data set cannot be read, or if a split keeps no source row.
    """
    labeller = Labeller(data, tokenizer, stop_token_ids)
    writers = {name: SplitWriter(folder, name) for name in list_splits(data)}
    fill_splits(data, SourceRowFollower(data, labeller, tokenizer.chat_template), writers)
    splits = {name: writer.finish() for name, writer in writers.items()}
    for name, split in splits.items():
        _check_has_rows(name, split.account, data)
    description = {
        "splits": {name: split.as_dict() for name, split in splits.items()},
        "template_sha256": hash_template(tokenizer),
        "stop_token_ids": sorted(labeller.stop_token_ids),
        "warnings": labeller.warnings,
        "template_date": labeller.template_date,
    }
    (folder / DESCRIPTION).write_text(json.dumps(description), encoding="utf-8")


def open_corpus(folder: Path) -> Corpus:
    """Return the corpus that `write_corpus` wrote into `folder`.

    Raises: OSError, ValueError, KeyError, TypeError or pa.ArrowException if it is incomplete.
    """
    described = json.loads((folder / DESCRIPTION).read_text("utf-8"))
    splits = {name: WrittenSplit.from_dict(each) for name, each in described["splits"].items()}
    rows = {name: split.open(folder) for name, split in splits.items()}
    return Corpus(
        train=rows["train"],
        validation=rows.get("validation"),
        test=rows.get("test"),
        accounts={name: split.account for name, split in splits.items()},
        template_sha256=described["template_sha256"],
        stop_token_ids=frozenset(described["stop_token_ids"]),
        fingerprints={name: split.fingerprint for name, split in splits.items()},
        largest_token_id=max(split.largest_token_id for split in splits.values()),
        warnings=tuple(described["warnings"]),
        template_date=described["template_date"],
    )


class SplitSink(Protocol):
    """A receiver for the source rows of one split, in their order."""

    def begin_dataset(self, repeat: float) -> None:
        """Begin a data set: the rows that are added next belong to it.

        Args:
            repeat: How often the data set is learned per epoch.
        """

    def add(self, outcome: SourceRowOutcome, num_passes: int = 1) -> None:
        """Add one source row, which is learned `num_passes` times per epoch."""


def list_splits(data: DataSection) -> list[str]:
    """Return the names of the splits that the recipe asks for."""
    held_out = (("validation", data.validation), ("test", data.test))
    return ["train", *(name for name, section in held_out if section is not None)]


def fill_splits(
    data: DataSection, follower: SourceRowFollower, splits: Mapping[str, SplitSink]
) -> None:
    """Send every source row to its split. Rows of splits that are not in `splits` are skipped."""
    for dataset in data.datasets:
        _fill_from_training_dataset(dataset, follower, splits, SplitByFraction(data))
    for name, section in (("validation", data.validation), ("test", data.test)):
        for dataset in _list_datasets(section) if name in splits else ():
            _fill_from_own_dataset(dataset, follower, splits[name])


def _list_datasets(section: SplitSection | None) -> Iterable[DatasetSection]:
    return (section.datasets or ()) if section is not None else ()


def _fill_from_training_dataset(
    dataset: DatasetSection,
    follower: SourceRowFollower,
    splits: Mapping[str, SplitSink],
    by_fraction: SplitByFraction,
) -> None:
    """Send the source rows of a training data set to train, validation and test.

    Only rows of the training split are repeated. Held-out rows occur once.
    """
    for name, split in splits.items():
        split.begin_dataset(dataset.repeat if name == "train" else 1)

    def count_row_passes(row_hash: bytes) -> int:
        name = by_fraction.find_split(row_hash)
        if name not in splits:
            return 0
        return count_passes(dataset.repeat, row_hash) if name == "train" else 1

    for outcome in follower.follow(dataset, _skip_without_passes(count_row_passes)):
        wanted = splits.get(by_fraction.find_split(outcome.row_hash))
        if wanted is not None:
            wanted.add(outcome, count_row_passes(outcome.row_hash))


def _fill_from_own_dataset(
    dataset: DatasetSection, follower: SourceRowFollower, split: SplitSink
) -> None:
    split.begin_dataset(dataset.repeat)

    def count_row_passes(row_hash: bytes) -> int:
        return count_passes(dataset.repeat, row_hash)

    for outcome in follower.follow(dataset, _skip_without_passes(count_row_passes)):
        split.add(outcome, count_row_passes(outcome.row_hash))


def _skip_without_passes(count_row_passes: Callable[[bytes], int]) -> Callable[[bytes], bool]:
    return lambda row_hash: count_row_passes(row_hash) == 0


def _check_has_rows(name: str, account: Account, data: DataSection) -> None:
    if account.kept:
        return
    if account.read == 0:
        raise DataError(
            f"the {name} split has no rows",
            f"data.{name}" if name != "train" else "data.datasets",
            f"raise data.{name}.fraction, or name its own data.{name}.datasets"
            if name != "train"
            else "lower the fractions of validation and test, or add rows",
        )
    _refuse_all_dropped(name, account, data)


def _refuse_all_dropped(name: str, account: Account, data: DataSection) -> NoReturn:
    """Raise a DataError with all drop counts, and the fix for the most frequent reason."""
    dropped = sorted(account.dropped.items(), key=lambda item: (-item[1], item[0]))
    reason = dropped[0][0]
    counts = ", ".join(f"{cause} {count}" for cause, count in dropped)
    fix = FIXES.get(reason, "correct the rows")
    raise DataError(
        f"the {name} split keeps no row: {account.read} read, dropped: {counts}",
        account.examples[reason],
        fix.format(longest=account.longest_tokens, max_length=data.max_length),
    )
