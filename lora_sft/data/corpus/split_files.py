"""Write the labelled rows of one split to Arrow files while they are made.

A labelled row is not written again for each pass over a data set. All rows of a data set are in one
file, which is read once per whole pass. If `repeat` is not a whole number, the rows of the last,
partial pass are in a second file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from lora_sft.data.corpus.account import Account, AccountTally
from lora_sft.data.corpus.arrow_files import map_tables
from lora_sft.data.corpus.source_row_outcomes import SourceRowOutcome
from lora_sft.data.labelled_row import LabelledRow

SCHEMA = pa.schema(
    {
        "input_ids": pa.list_(pa.int32()),
        "labels": pa.list_(pa.int32()),
        "source": pa.string(),
        "row": pa.int64(),
    }
)
TABLE_ROWS = 1_000
TABLE_TOKENS = 500_000


@dataclass(frozen=True)
class WrittenSplit:
    """A finished split.

    Attributes:
        files: File names in reading order; a file that is read twice is named twice.
        fingerprint: A hash of ids and labels in their order.
        largest_token_id: The largest id of the split; -1 if the split has no labelled row.
    """

    files: tuple[str, ...]
    account: Account
    fingerprint: str
    largest_token_id: int

    def as_dict(self) -> dict[str, Any]:
        """Return the split as a JSON object."""
        return {**vars(self), "account": self.account.as_dict()}

    @classmethod
    def from_dict(cls, described: Mapping[str, Any]) -> WrittenSplit:
        """Return the split that `as_dict` described."""
        account = Account(**described["account"])
        return cls(**{**described, "files": tuple(described["files"]), "account": account})

    def open(self, folder: Path) -> Dataset:
        """Return the labelled rows (the columns of `SCHEMA`), mapped from files in `folder`."""
        return map_tables([folder / name for name in self.files], SCHEMA, self.fingerprint[:16])


class SplitWriter:
    """A writer for the labelled rows of one split. It receives outcomes in their order."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._tally = AccountTally()
        self._num_files = 0
        self._written: list[LabelledRowFile] = []  # in reading order, once per pass
        self._num_whole = 0
        self._whole: LabelledRowFile | None = None
        self._part: LabelledRowFile | None = None

    def begin_dataset(self, repeat: float) -> None:
        """Begin a data set: the rows that are added next belong to it.

        Args:
            repeat: How often the data set is learned per epoch.
        """
        self._close_dataset()
        self._num_whole = int(repeat)
        self._whole = self._make_file() if self._num_whole else None
        self._part = self._make_file() if repeat > self._num_whole else None

    def add(self, outcome: SourceRowOutcome, num_passes: int = 1) -> None:
        """Count one source row, and write its labelled rows to the files of its passes."""
        self._tally.count(outcome, num_passes)
        if not num_passes or not outcome.labelled_rows:
            return
        if self._whole is not None:
            self._whole.add(outcome)
        if self._part is not None and num_passes > self._num_whole:
            self._part.add(outcome)

    def finish(self) -> WrittenSplit:
        """Close the files, and return the finished split."""
        self._close_dataset()
        digests = "".join(file.digest for file in self._written)
        return WrittenSplit(
            files=tuple(file.path.name for file in self._written),
            account=self._tally.finish(),
            fingerprint=hashlib.sha256(digests.encode()).hexdigest(),
            largest_token_id=max((file.largest_token_id for file in self._written), default=-1),
        )

    def _make_file(self) -> LabelledRowFile:
        self._num_files += 1
        return LabelledRowFile(self._folder / f"{self._name}-{self._num_files:05d}.arrow")

    def _close_dataset(self) -> None:
        for file, times in ((self._whole, self._num_whole), (self._part, 1)):
            if file is not None and file.close():
                self._written += [file] * times
        self._whole = self._part = None


class LabelledRowFile:
    """An Arrow file of labelled rows, which is hashed while it is written.

    If no labelled row is added, no file is made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.largest_token_id = -1
        self._sha256 = hashlib.sha256()
        self._rows: list[tuple[LabelledRow, SourceRowOutcome]] = []
        self._num_tokens = 0
        self._writer: Any = None

    @property
    def digest(self) -> str:
        """The hash of ids and labels in their order."""
        return self._sha256.hexdigest()

    def add(self, outcome: SourceRowOutcome) -> None:
        """Append the labelled rows of one source row."""
        for row in outcome.labelled_rows:
            self._rows.append((row, outcome))
            self._num_tokens += len(row.input_ids)
        if len(self._rows) >= TABLE_ROWS or self._num_tokens >= TABLE_TOKENS:
            self._write()

    def close(self) -> bool:
        """Write the remaining rows, and return whether a file was made."""
        if self._rows:
            self._write()
        if self._writer is None:
            return False
        self._writer.close()
        return True

    def _write(self) -> None:
        if self._writer is None:
            self._writer = pa.ipc.new_stream(str(self.path), SCHEMA)
        input_ids = self._make_lists([row.input_ids for row, _ in self._rows])
        columns = {
            "input_ids": input_ids,
            "labels": self._make_lists([row.labels for row, _ in self._rows]),
            "source": [outcome.source_row.source for _, outcome in self._rows],
            "row": [outcome.source_row.row for _, outcome in self._rows],
        }
        largest = int(input_ids.values.to_numpy().max())
        self.largest_token_id = max(self.largest_token_id, largest)
        self._writer.write_table(pa.table(columns, schema=SCHEMA))
        self._rows, self._num_tokens = [], 0

    def _make_lists(self, lists: list[list[int]]) -> pa.ListArray:
        lengths = np.fromiter(map(len, lists), np.int32, len(lists))
        values = np.fromiter(chain.from_iterable(lists), np.int32, int(lengths.sum()))
        self._sha256.update(lengths.tobytes())
        self._sha256.update(values.tobytes())
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
