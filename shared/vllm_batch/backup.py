"""A backup: every event with its place in the log, and every blob, in one folder.

    manifest.json    what is there, with hashes
    events.jsonl.gz  a line per event: {"seq": 7, "event": <the envelope as it was recorded>}
    blobs/           the blob store, key by key

The log is read first, up to the sequence that was its last when we began, then the blobs: an event
only ever points to a blob that was there before it, so what is copied is whole, while the service
runs. Of what was deleted meanwhile the content is missing: files, and results of batches that
ended. So the setting ``segment_retention_seconds`` has to be longer than a backup takes.

Restoring puts the events into an empty log at the same sequences. Postgres is not in a backup: it
is made anew from the log. Secrets are not either: API keys are in the log as hashes; the file
``secret-key`` of the embedded stack (or the setting) has to be kept by its owner.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import msgspec
import nats.errors
from nats.js.errors import APIError

from vllm_batch.blobs import BlobStore
from vllm_batch.errors import BatchError, BlobMissing
from vllm_batch.event_store.follower import Follower
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.events import Envelope
from vllm_batch.messaging import subjects, topology

FORMAT = 1
PUBLISHED_AT_ONCE = 256
READ_BYTES = 1024 * 1024
PUBLISH_SECONDS = 60.0  # many are under way at a time, and each waits for the disk
_MANIFEST, _EVENTS, _BLOBS = "manifest.json", "events.jsonl.gz", "blobs"

Progress = Callable[[str], None]


class BackupError(BatchError):
    """The backup cannot be made, is damaged, or cannot be put where it was to go."""

    code = "backup_error"


class Line(msgspec.Struct, frozen=True):
    """One event of the file."""

    seq: int
    event: msgspec.Raw


class Blob(msgspec.Struct, frozen=True):
    """One blob of the folder; ``sha256`` in hex."""

    key: str
    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup holds. ``last_seq``: every event up to it, without a gap."""

    format: int
    version: str
    created_at: datetime
    log_identity: str
    last_seq: int
    events_sha256: str
    blobs: list[Blob]

    @property
    def bytes(self) -> int:
        """Size of all blobs together."""
        return sum(blob.bytes for blob in self.blobs)


async def create(
    store: JetStreamEventStore, blobs: BlobStore, folder: Path, *, progress: Progress
) -> Manifest:
    """Write a backup of everything into ``folder``, which must be empty or not exist.

    Raises:
        BackupError: the folder is not empty.
        EventStoreError, BlobError: the log or the blob store does not answer.
    """
    await asyncio.to_thread(_make_empty, folder)
    last_seq = await store.last_sequence()
    identity = await store.identity()
    digest = await _write_events(store, folder / _EVENTS, last_seq, progress)
    copied = await _copy_blobs(blobs, folder / _BLOBS, progress)
    manifest = Manifest(
        format=FORMAT, version=version("vllm-batch"), created_at=datetime.now(UTC),
        log_identity=identity, last_seq=last_seq, events_sha256=digest, blobs=copied,
    )  # fmt: skip
    # Last of all: a folder without it is no backup.
    (folder / _MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
    return manifest


def _make_empty(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if any(folder.iterdir()):
        raise BackupError(f"{folder} is not empty; name a new folder")


async def _write_events(
    store: JetStreamEventStore, path: Path, last_seq: int, progress: Progress
) -> str:
    digest = hashlib.sha256()
    with gzip.open(path, "wb") as file:
        async for seq, payload in _events(store, last_seq):
            line = msgspec.json.encode(Line(seq, msgspec.Raw(payload))) + b"\n"
            digest.update(line)
            file.write(line)
            if seq % 10_000 == 0:
                progress(f"events: {seq:,} of {last_seq:,}")
    return digest.hexdigest()


async def _events(store: JetStreamEventStore, last_seq: int) -> AsyncIterator[tuple[int, bytes]]:
    if last_seq == 0:
        return
    follower = Follower(store.connection, topology.EVENTS, [">"], after=0)
    async with aclosing(follower.batches()) as batches:
        async for batch in batches:
            for seq, payload in batch:
                if seq <= last_seq:
                    yield seq, payload
                if seq >= last_seq:
                    return


async def _copy_blobs(blobs: BlobStore, folder: Path, progress: Progress) -> list[Blob]:
    copied: list[Blob] = []
    keys = sorted([key async for key in blobs.list("")])
    for key in keys:
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        digest, size = hashlib.sha256(), 0
        try:
            with path.open("wb") as file:
                async for piece in blobs.stream(key):
                    digest.update(piece)
                    size += len(piece)
                    file.write(piece)
        except BlobMissing:
            path.unlink()  # deleted meanwhile
            continue
        copied.append(Blob(key, size, digest.hexdigest()))
        if len(copied) % 100 == 0:
            progress(f"blobs: {len(copied):,}")
    return copied


def read_manifest(folder: Path) -> Manifest:
    """Return what a backup says it holds.

    Raises:
        BackupError: there is none, or it is of a newer release.
    """
    try:
        manifest = msgspec.json.decode((folder / _MANIFEST).read_bytes(), type=Manifest)
    except OSError as error:
        raise BackupError(f"{folder} holds no finished backup: {error}") from error
    except msgspec.DecodeError as error:
        raise BackupError(f"{folder / _MANIFEST} is damaged: {error}") from error
    if manifest.format > FORMAT:
        raise BackupError(f"{folder} was written by release {manifest.version}: upgrade this one")
    return manifest


def verify(folder: Path) -> Manifest:
    """Read a whole backup and compare it with its manifest.

    Raises:
        BackupError: something is missing, or not as it was written; the message names it.
    """
    manifest = read_manifest(folder)
    digest, expected = hashlib.sha256(), 1
    for raw, line in _lines(folder):
        digest.update(raw)
        if line.seq != expected:
            raise BackupError(f"event {expected} is missing in {folder / _EVENTS}")
        expected += 1
    if expected != manifest.last_seq + 1 or digest.hexdigest() != manifest.events_sha256:
        raise BackupError(f"{folder / _EVENTS} is not what was written")
    for blob in manifest.blobs:
        if _sha256_of(folder / _BLOBS / blob.key) != blob.sha256:
            raise BackupError(f"the blob {blob.key} is not what was written")
    return manifest


def _lines(folder: Path) -> Iterator[tuple[bytes, Line]]:
    try:
        with gzip.open(folder / _EVENTS, "rb") as file:
            for raw in file:
                yield raw, msgspec.json.decode(raw, type=Line)
    except (OSError, EOFError, msgspec.DecodeError) as error:
        raise BackupError(f"{folder / _EVENTS} cannot be read: {error}") from error


def _sha256_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BackupError(f"{path} cannot be read: {error}") from error


async def restore(
    store: JetStreamEventStore, blobs: BlobStore, folder: Path, *, progress: Progress
) -> Manifest:
    """Put a backup into an empty log and its blob store, blobs first.

    Nothing else may write to the log meanwhile. A restore that was interrupted goes on where it
    stopped.

    Raises:
        BackupError: the backup is damaged, or the log holds something else.
    """
    manifest = await asyncio.to_thread(verify, folder)
    done = await store.last_sequence()
    await _check_beginning(store, folder, done)
    for number, blob in enumerate(manifest.blobs, 1):
        await blobs.put_stream(blob.key, _pieces(folder / _BLOBS / blob.key))
        if number % 100 == 0:
            progress(f"blobs: {number:,} of {len(manifest.blobs):,}")
    waiting: list[Line] = []
    for _, line in _lines(folder):
        if line.seq <= done:
            continue
        waiting.append(line)
        if len(waiting) == PUBLISHED_AT_ONCE:
            await _publish(store, waiting)
            progress(f"events: {line.seq:,} of {manifest.last_seq:,}")
            waiting = []
    await _publish(store, waiting)
    return manifest


async def _check_beginning(store: JetStreamEventStore, folder: Path, done: int) -> None:
    """Raise BackupError unless the log holds the beginning of the backup, and nothing else."""
    if done == 0:
        return
    lines = _lines(folder)
    async for seq, payload in _events(store, done):
        _, line = next(lines, (b"", None))
        if line is None or bytes(line.event) != payload:
            raise BackupError(
                f"the log is not empty: its event {seq} is not the backup's. Restore into a new "
                "home, or a new NATS server"
            )


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, READ_BYTES):
            yield piece


async def _publish(store: JetStreamEventStore, lines: list[Line]) -> None:
    """Append lines at the very sequences they had.

    Raises:
        BackupError: somebody else writes to the log, or the server does not keep up.
    """
    try:
        await asyncio.gather(*(_publish_one(store, line) for line in lines))
    except APIError as error:
        raise BackupError(
            f"the log did not take the events at their places ({error.description}); stop "
            "everything but NATS while restoring, and try again"
        ) from error
    except (nats.errors.Error, TimeoutError) as error:
        raise BackupError(
            f"NATS does not answer ({error!r}); restore again, which goes on where this ended"
        ) from error


async def _publish_one(store: JetStreamEventStore, line: Line) -> None:
    envelope = msgspec.json.decode(line.event, type=Envelope)
    await store.js.publish(
        subjects.of_envelope(envelope.type, envelope.subject),
        bytes(line.event),
        headers={
            "Nats-Msg-Id": envelope.id,
            "Nats-Expected-Last-Sequence": str(line.seq - 1),
        },
        timeout=PUBLISH_SECONDS,
    )
