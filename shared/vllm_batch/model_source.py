"""Looking at where a model comes from before anybody loads it: is it there, what is it made of?

Reads a local folder, or asks the Hugging Face hub (``HF_ENDPOINT``, ``HF_TOKEN``, unless
``HF_HUB_OFFLINE`` is set). Writes nothing but the hub client's own cache of ``config.json``.
Blocking: call it from a thread where that matters.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from vllm_batch.errors import InvalidInput
from vllm_batch.model_check import check_source
from vllm_batch.model_estimate import stored_bytes

HUB_SECONDS = 10.0
CONFIG_BYTES_MAX = 4 * 1024 * 1024
LORA_RANK_MAX = 512
"""The largest ``--max-lora-rank`` of vLLM."""
BLOB_SCHEME = "blob:"

_WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """What was found. ``config``: config.json; ``adapter``: adapter_config.json. ``weight_bytes``:
    of the tensors, or of the files. ``warnings``: what could not be checked, or looks odd."""

    config: dict[str, Any] | None = None
    adapter: dict[str, Any] | None = None
    weight_bytes: int | None = None
    warnings: Sequence[str] = ()


def is_local(source: str) -> bool:
    """Tell whether a source is a folder rather than an id of the hub or a blob."""
    return source.startswith(("/", "./", "../", "~")) or Path(source).is_dir()


def look(source: str, *, adapter: bool) -> Source:
    """Return what is known of a source; ``adapter``: a LoRA adapter is wanted.

    Raises:
        InvalidInput: it is not there, or not what it should be; says what to do.
    """
    check_source(source)
    if source.startswith(BLOB_SCHEME):
        return Source(warnings=[f"{source} is in the blob store: a worker checks it when loading"])
    found = _in_folder(source, adapter) if is_local(source) else _on_hub(source, adapter)
    if found.adapter is not None:
        _check_adapter(found.adapter)
    return found


def base_warning(adapter: dict[str, Any], base_source: str) -> str | None:
    """Return a warning where an adapter says that it was made for another base."""
    made_for = str(adapter.get("base_model_name_or_path") or "")
    if not made_for or Path(made_for).name.lower() == Path(base_source).name.lower():
        return None
    return f"the adapter was made for {made_for}, its base here is {base_source}"


def rank_warning(adapter: dict[str, Any], rank_max: int) -> str | None:
    """Return a warning where an adapter's rank is above what engines are started for."""
    if adapter["r"] <= rank_max:
        return None
    return (
        f"the adapter has rank {adapter['r']}, workers load adapters up to rank {rank_max}: set "
        f"VLLM_BATCH_LORA_RANK_MAX={adapter['r']} on them"
    )


def _check_adapter(adapter: dict[str, Any]) -> None:
    rank = adapter.get("r")
    if adapter.get("peft_type", "LORA") != "LORA":
        raise InvalidInput(
            f"adapters of type {adapter['peft_type']} cannot be served, only LORA", param="source"
        )
    if not isinstance(rank, int) or not 1 <= rank <= LORA_RANK_MAX:
        raise InvalidInput(
            f"adapter_config.json has rank r={rank!r}; vLLM takes 1 to {LORA_RANK_MAX}",
            param="source",
        )


def _in_folder(source: str, adapter: bool) -> Source:
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise InvalidInput(
            f"there is no folder {folder} on this machine; name a folder, or a hub id such as "
            "org/model, or skip the check where only workers have it",
            param="source",
        )
    wanted = "adapter_config.json" if adapter else "config.json"
    if not (folder / wanted).is_file():
        hint = _folder_hint(folder, adapter)
        raise InvalidInput(f"{folder} has no {wanted}{hint}", param="source")
    weights = stored_bytes(folder)
    warnings = [] if weights else [f"{folder} has no weights (*.safetensors)"]
    content = _object(folder / wanted)
    if adapter:
        return Source(adapter=content, weight_bytes=weights, warnings=warnings)
    return Source(config=content, weight_bytes=weights, warnings=warnings)


def _folder_hint(folder: Path, adapter: bool) -> str:
    if not adapter and (folder / "adapter_config.json").is_file():
        return ": it is a LoRA adapter, name its base model with it"
    if adapter and (folder / "config.json").is_file():
        return ": it is a whole model, leave the base out"
    return ": it is no model in the format of Hugging Face"


def _object(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > CONFIG_BYTES_MAX:
            raise InvalidInput(f"{path} is larger than {CONFIG_BYTES_MAX} bytes", param="source")
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}", param="source") from error


def _unchecked(source: str, why: str) -> Source:
    return Source(warnings=[f"{source} was not checked: {why}; a worker finds out when it loads"])


def _on_hub(source: str, adapter: bool) -> Source:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return _unchecked(source, "HF_HUB_OFFLINE is set")
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors
    except ImportError:
        return _unchecked(source, "huggingface-hub is not installed here")
    wanted = "adapter_config.json" if adapter else "config.json"
    endpoint = os.environ.get("HF_ENDPOINT")
    try:
        info = hub.HfApi(endpoint=endpoint).model_info(
            source, files_metadata=True, timeout=HUB_SECONDS
        )
        sizes = {one.rfilename: one.size or 0 for one in info.siblings or []}
        if wanted not in sizes:
            kind = "adapter" if adapter else "model"
            raise InvalidInput(f"{source} on the hub has no {wanted}: no {kind}", param="source")
        path = hub.hf_hub_download(source, wanted, etag_timeout=HUB_SECONDS, endpoint=endpoint)
    except errors.GatedRepoError:
        return _unchecked(source, "the hub asks for its licence to be accepted (HF_TOKEN)")
    except errors.HFValidationError as error:
        raise InvalidInput(
            f"{source!r} is neither a folder nor a hub id", param="source"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InvalidInput(
            f"the hub has no model {source}, or it is private: check the name, or set HF_TOKEN",
            param="source",
        ) from error
    # The client exports the base of the errors of its own HTTP library, whichever that is.
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        return _unchecked(source, f"the hub cannot be reached ({type(error).__name__})")
    content = _object(Path(path))
    weights = _hub_weights(sizes)
    if adapter:
        return Source(adapter=content, weight_bytes=weights)
    return Source(config=content, weight_bytes=weights)


def _hub_weights(sizes: dict[str, int]) -> int | None:
    """Return the bytes of the weights in the best format there is, as a repository may have
    several."""
    for suffix in _WEIGHTS:
        if found := sum(size for name, size in sizes.items() if name.endswith(suffix)):
            return found
    return None
