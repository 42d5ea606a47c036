"""Where a model's files come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from batch_gpu_worker.model_folders import ModelFolders
from vllm_batch.blobs import open_blobs
from vllm_batch.errors import BlobMissing


@pytest.fixture
def folders(tmp_path: Path) -> ModelFolders:
    return ModelFolders(open_blobs((tmp_path / "blobs").as_uri()), tmp_path / "home")


async def test_what_is_no_blob_is_the_engines_to_find(folders: ModelFolders) -> None:
    assert await folders.locate("org/model") == "org/model"
    assert await folders.locate("/a/folder") == "/a/folder"


async def test_a_folder_of_blobs_is_downloaded_once(folders: ModelFolders, tmp_path: Path) -> None:
    blobs = open_blobs((tmp_path / "blobs").as_uri())
    await blobs.put("adapters/run_1/adapter_config.json", b"{}")
    await blobs.put("adapters/run_1/deep/weights", b"w" * 3_000_000)
    await blobs.put("adapters/run_10/other", b"not of run_1")
    folder = Path(await folders.locate("blob:adapters/run_1"))
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {"adapter_config.json", "deep/weights"}
    assert (folder / "deep/weights").read_bytes() == b"w" * 3_000_000
    await blobs.delete_all("adapters/run_1/")
    assert await folders.locate("blob:adapters/run_1/") == str(folder)


async def test_a_download_that_broke_off_is_begun_anew(
    folders: ModelFolders, tmp_path: Path
) -> None:
    with pytest.raises(BlobMissing):
        await folders.locate("blob:adapters/run_2")
    blobs = open_blobs((tmp_path / "blobs").as_uri())
    await blobs.put("adapters/run_2/whole", b"whole")
    folder = Path(await folders.locate("blob:adapters/run_2"))
    folder.rename(folder.with_name(folder.name + ".part"))  # as if it had not been finished
    (folder.with_name(folder.name + ".part") / "stale").write_text("half")
    assert [path.name for path in Path(await folders.locate("blob:adapters/run_2")).iterdir()] == [
        "whole"
    ]
