"""A dataset while it is written: files in a folder of its own, then blobs.

Examples come one by one and are in no list: a dataset may be larger than memory. Its id is that of
its content, so the blobs under ``datasets/<id>/`` are always the same, whoever writes them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from batch_labelstudio.datasets import Example, Placed
from vllm_batch import ids
from vllm_batch.blobs import STREAM_BYTES, BlobStore
from vllm_batch.events import TrainingDatasetCreated
from vllm_batch.events.training import DatasetFormat

PARTS = ("train", "validation")
ROWS_AT_ONCE = 1000


class DatasetFiles:
    """Writes both parts as JSONL and, where ``columns`` are given, as CSV and Parquet."""

    def __init__(self, folder: Path, kind: DatasetFormat, columns: Sequence[str] = ()) -> None:
        self._folder = folder
        self._kind = kind
        self._open = ExitStack()
        self._parts = {name: _Part(folder, name, columns, self._open) for name in PARTS}
        self._endings = ("jsonl", *(("csv", "parquet") if columns else ()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()

    def add(self, placed: Placed) -> None:
        """Write one example."""
        self._parts[PARTS[placed.is_validation]].add(placed.example)

    def finish(self) -> str:
        """Write what is left; return the hash of both parts."""
        for part in self._parts.values():
            part.flush()
        self._open.close()
        digest = hashlib.sha256(self._kind.encode())
        for name in PARTS:
            path = self._folder / f"{name}.jsonl"
            digest.update(path.stat().st_size.to_bytes(8, "big"))
            for piece in _pieces(path):
                digest.update(piece)
        return digest.hexdigest()

    async def store(
        self, project: str, sha256: str, held_out: int, blobs: BlobStore
    ) -> TrainingDatasetCreated:
        """Store what `finish` finished.

        Raises:
            BlobError: it cannot be written.
        """
        dataset_id = ids.derived("ds_", project, sha256)
        root = f"datasets/{dataset_id}"
        for name in PARTS:
            for ending in self._endings:
                path = self._folder / f"{name}.{ending}"
                await blobs.put_stream(f"{root}/{path.name}", _stream(path))
        return TrainingDatasetCreated(
            dataset_id=dataset_id,
            project=project,
            format=self._kind,
            train_blob=f"{root}/train.jsonl",
            validation_blob=f"{root}/validation.jsonl",
            train_examples=self._parts["train"].examples,
            validation_examples=self._parts["validation"].examples,
            held_out=held_out,
            sha256=sha256,
        )


class _Part:
    def __init__(self, folder: Path, name: str, columns: Sequence[str], stack: ExitStack) -> None:
        self.examples = 0
        self._lines: IO[bytes] = stack.enter_context((folder / f"{name}.jsonl").open("wb"))
        self._rows: list[Example] = []
        self._tables: list[pa.csv.CSVWriter | pa.parquet.ParquetWriter] = []
        if columns:
            self._schema = pa.schema([(column, pa.string()) for column in columns])
            for writer, ending in (
                (pa.csv.CSVWriter, "csv"),
                (pa.parquet.ParquetWriter, "parquet"),
            ):
                path = str(folder / f"{name}.{ending}")
                self._tables.append(stack.enter_context(writer(path, self._schema)))

    def add(self, example: Example) -> None:
        self.examples += 1
        self._lines.write(json.dumps(example, ensure_ascii=False).encode() + b"\n")
        if self._tables:
            self._rows.append(example)
            if len(self._rows) >= ROWS_AT_ONCE:
                self.flush()

    def flush(self) -> None:
        rows, self._rows = self._rows, []
        if rows:
            for table in self._tables:
                table.write_table(pa.Table.from_pylist(rows, schema=self._schema))


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(STREAM_BYTES):
            yield piece


async def _stream(path: Path) -> AsyncIterator[bytes]:
    for piece in _pieces(path):
        yield piece
