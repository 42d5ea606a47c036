"""Where the files of a model are on this machine. Owns ``<home>/models``.

``blob:<prefix>`` names a folder of the blob store, which never changes once it is whole: it is
downloaded once. Anything else (a local folder, a Hugging Face id) is the engine's to find.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from vllm_batch import ids
from vllm_batch.blobs import BlobStore
from vllm_batch.errors import BlobMissing

BLOB_SCHEME = "blob:"


class ModelFolders:
    """Downloads what has to be."""

    def __init__(self, blobs: BlobStore, home: Path) -> None:
        self._blobs = blobs
        self._root = home.absolute() / "models"

    async def locate(self, source: str) -> str:
        """Return what an engine is told to load.

        Raises:
            BlobError: the files are not there, or cannot be had.
        """
        if not source.startswith(BLOB_SCHEME):
            return source
        prefix = source.removeprefix(BLOB_SCHEME).strip("/") + "/"
        folder = self._root / ids.derived("", prefix)
        if not await asyncio.to_thread(folder.is_dir):
            await self._download(prefix, folder)
        return str(folder)

    async def _download(self, prefix: str, folder: Path) -> None:
        """Only a whole folder gets its name; what an interrupted download left is replaced."""
        unfinished = folder.with_name(folder.name + ".part")
        await asyncio.to_thread(shutil.rmtree, unfinished, ignore_errors=True)
        found = False
        async for key in self._blobs.list(prefix):
            found = True
            file = unfinished / key.removeprefix(prefix)
            await asyncio.to_thread(file.parent.mkdir, parents=True, exist_ok=True)
            with file.open("wb") as out:
                async for part in self._blobs.stream(key):
                    await asyncio.to_thread(out.write, part)
        if not found:
            raise BlobMissing(f"there is nothing under {prefix}")
        await asyncio.to_thread(unfinished.rename, folder)
