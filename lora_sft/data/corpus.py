"""Build the corpus: every row of every data set, supervised, split, repeated and accounted for.

The splits are `datasets.Dataset`s of plain integer lists, written through Arrow in batches, so
that memory holds numbers and never one Python object a token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, Protocol

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lora_sft.data.account import Account, AccountTally
from lora_sft.data.drops import LEVERS
from lora_sft.data.rendering import hash_template
from lora_sft.data.row_outcomes import RowFollower, RowOutcome
from lora_sft.data.splits import SplitByFraction, count_passes
from lora_sft.data.supervised_row import SupervisedRow
from lora_sft.data.supervision import Supervisor
from lora_sft.errors import DataError

if TYPE_CHECKING:
    from lora_sft.recipe import DataSection, DatasetSection, SplitSection

SCHEMA = pa.schema(
    {
        "input_ids": pa.list_(pa.int32()),
        "labels": pa.list_(pa.int32()),
        "source": pa.string(),
        "row": pa.int64(),
    }
)
TABLE_ROWS = 1_000


@dataclass(frozen=True)
class Corpus:
    """What training learns from.

    Each split has the columns `input_ids`, `labels`, `source` and `row`. `stop_token_ids` are
    all tokens that end a turn, the template's own among them. `fingerprint` covers ids and
    labels of the training split in their order. `warnings` are sentences for a person.
    `template_date` is the day (YYYY-MM-DD) that a template which reads the clock was shown.
    """

    train: Dataset
    validation: Dataset | None
    test: Dataset | None
    accounts: Mapping[str, Account]
    template_sha256: str
    stop_token_ids: frozenset[int]
    fingerprint: str
    warnings: tuple[str, ...] = ()
    template_date: str | None = None

    @property
    def largest_token_id(self) -> int:
        """The largest id in any split: the model's embedding must have a row for it."""
        splits = [split for split in (self.train, self.validation, self.test) if split is not None]
        columns = [split.data.column("input_ids") for split in splits]
        return max(pc.max(pc.list_flatten(column)).as_py() or 0 for column in columns)


def build_corpus(
    data: DataSection, tokenizer: PreTrainedTokenizerBase, stop_token_ids: Iterable[int]
) -> Corpus:
    """Read, convert, supervise and split everything that `data` names.

    Raises: DataError where something cannot be read or a split is left without rows.
    """
    supervisor = Supervisor(data, tokenizer, stop_token_ids)
    splits = {name: SplitBuilder() for name in list_splits(data)}
    fill_splits(data, RowFollower(data, supervisor), splits)
    datasets = {name: split.finish() for name, split in splits.items()}
    for name, split in splits.items():
        _check_has_rows(name, split.account, data)
    return Corpus(
        train=datasets["train"],
        validation=datasets.get("validation"),
        test=datasets.get("test"),
        accounts={name: split.account for name, split in splits.items()},
        template_sha256=hash_template(tokenizer),
        stop_token_ids=supervisor.stop_token_ids,
        fingerprint=hash_dataset(datasets["train"]),
        warnings=tuple(supervisor.warnings),
        template_date=supervisor.template_date,
    )


class SplitSink(Protocol):
    """Takes the source rows of one split, in their order."""

    def begin_dataset(self, repeat: float) -> None:
        """The rows of one data set follow, repeated as a whole."""

    def add(self, outcome: RowOutcome, num_passes: int = 1) -> None:
        """One source row, learned `num_passes` times an epoch."""


class SplitBuilder:
    """Collects one split: its rows in Arrow tables, and its account."""

    def __init__(self) -> None:
        self._tally = AccountTally()
        self._passes: list[Pass] = []
        self._tables: list[pa.Table] = []
        self.account: Account = self._tally.finish()

    def begin_dataset(self, repeat: float) -> None:
        """Start on the rows of one data set, which is repeated as a whole."""
        self._close_passes()
        num_passes = max(1, int(repeat) + (repeat > int(repeat)))
        self._passes = [Pass() for _ in range(num_passes)]

    def add(self, outcome: RowOutcome, num_passes: int = 1) -> None:
        """Count one source row, and put its rows into the first `num_passes` passes."""
        count_outcome(self._tally, outcome, num_passes)
        for each_pass in self._passes[:num_passes]:
            for row in outcome.rows:
                each_pass.add(row, outcome)

    def _close_passes(self) -> None:
        for each_pass in self._passes:
            self._tables += each_pass.finish()
        self._passes = []

    def finish(self) -> Dataset:
        """The split as a data set; the account is complete with it."""
        self._close_passes()
        self.account = self._tally.finish()
        return Dataset(pa.concat_tables(self._tables or [SCHEMA.empty_table()]))


def count_outcome(tally: AccountTally, outcome: RowOutcome, num_passes: int) -> None:
    """Enter one source row into the account of its split."""
    if outcome.drop is not None:
        tally.count_dropped(outcome.drop, outcome.source_row.where, outcome.longest_tokens)
        return
    tally.count_kept(
        expanded=max(outcome.num_supervised, len(outcome.rows)) > 1,
        truncated=outcome.is_truncated,
        partly_overlong=len(outcome.rows) < outcome.num_supervised,
        longest_tokens=outcome.longest_tokens,
    )
    for row in outcome.rows:
        tally.count_row_out(row, num_passes)


class Pass:
    """One pass over the rows of one data set, as Arrow tables of at most `TABLE_ROWS` rows."""

    def __init__(self) -> None:
        self._tables: list[pa.Table] = []
        self._rows: list[tuple[SupervisedRow, RowOutcome]] = []

    def add(self, row: SupervisedRow, outcome: RowOutcome) -> None:
        """Append one row."""
        self._rows.append((row, outcome))
        if len(self._rows) == TABLE_ROWS:
            self._flush()

    def _flush(self) -> None:
        columns = {
            "input_ids": [row.input_ids for row, _ in self._rows],
            "labels": [row.labels for row, _ in self._rows],
            "source": [outcome.source_row.source for _, outcome in self._rows],
            "row": [outcome.source_row.row for _, outcome in self._rows],
        }
        self._tables.append(pa.table(columns, schema=SCHEMA))
        self._rows = []

    def finish(self) -> list[pa.Table]:
        """All tables, in order."""
        if self._rows:
            self._flush()
        return self._tables


def list_splits(data: DataSection) -> list[str]:
    """The names of the splits that the recipe asks for."""
    held_out = (("validation", data.validation), ("test", data.test))
    return ["train", *(name for name, section in held_out if section is not None)]


def fill_splits(data: DataSection, follower: RowFollower, splits: Mapping[str, SplitSink]) -> None:
    """Send every source row to its split; no work is done on rows of splits not in `splits`."""
    for dataset in data.datasets:
        _fill_from_training_dataset(dataset, follower, splits, SplitByFraction(data))
    for name, section in (("validation", data.validation), ("test", data.test)):
        for dataset in _list_datasets(section) if name in splits else ():
            _fill_from_own_dataset(dataset, follower, splits[name])


def _list_datasets(section: SplitSection | None) -> Iterable[DatasetSection]:
    return (section.datasets or ()) if section is not None else ()


def _fill_from_training_dataset(
    dataset: DatasetSection,
    follower: RowFollower,
    splits: Mapping[str, SplitSink],
    by_fraction: SplitByFraction,
) -> None:
    """Repeat counts for training; rows held out of it are there once."""
    for name, split in splits.items():
        split.begin_dataset(dataset.repeat if name == "train" else 1)

    def count_own_passes(row_hash: bytes) -> int:
        name = by_fraction.find_split(row_hash)
        if name not in splits:
            return 0
        return count_passes(dataset.repeat, row_hash) if name == "train" else 1

    for outcome in follower.follow(dataset, _leaves_out(count_own_passes)):
        wanted = splits.get(by_fraction.find_split(outcome.row_hash))
        if wanted is not None:
            wanted.add(outcome, count_own_passes(outcome.row_hash))


def _fill_from_own_dataset(
    dataset: DatasetSection, follower: RowFollower, split: SplitSink
) -> None:
    split.begin_dataset(dataset.repeat)

    def count_own_passes(row_hash: bytes) -> int:
        return count_passes(dataset.repeat, row_hash)

    for outcome in follower.follow(dataset, _leaves_out(count_own_passes)):
        split.add(outcome, count_own_passes(outcome.row_hash))


def _leaves_out(count_own_passes: Callable[[bytes], int]) -> Callable[[bytes], bool]:
    return lambda row_hash: count_own_passes(row_hash) == 0


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
    """Show the account and the lever of the most frequent reason."""
    dropped = sorted(account.dropped.items(), key=lambda item: (-item[1], item[0]))
    reason = dropped[0][0]
    counts = ", ".join(f"{cause} {count}" for cause, count in dropped)
    lever = LEVERS.get(reason, "mend the rows")
    raise DataError(
        f"no {name} row is left: {account.read} read, dropped: {counts}",
        account.examples[reason],
        lever.format(longest=account.longest_tokens, max_length=data.max_length),
    )


def hash_dataset(dataset: Dataset) -> str:
    """The fingerprint of ids and labels, in order, however they are stored."""
    digest = hashlib.sha256()
    for batch in dataset.with_format("arrow").iter(batch_size=TABLE_ROWS):
        for name in ("input_ids", "labels"):
            column = batch.column(name).combine_chunks()
            digest.update(column.value_lengths().to_numpy().tobytes())
            digest.update(column.flatten().to_numpy().tobytes())
    return digest.hexdigest()
