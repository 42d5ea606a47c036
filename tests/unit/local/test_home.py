"""Layout and lock of a stack's home."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from vllm_batch.errors import StackError
from vllm_batch.local.home import SOCKET_PATH_BYTES_MAX, Home, private_short_dir


def hold_lock(root: Path, locked: Event, done: Event) -> None:
    with Home.at(root).lock():
        locked.set()
        done.wait(30)


def test_a_second_start_on_the_same_home_is_refused_and_names_the_first(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    locked, done = context.Event(), context.Event()
    holder = context.Process(target=hold_lock, args=(tmp_path, locked, done))
    holder.start()
    try:
        assert locked.wait(30)
        home = Home.at(tmp_path)
        assert home.is_locked()
        with pytest.raises(StackError, match=f"in use by process {holder.pid}; stop it with"):
            home.lock().__enter__()
    finally:
        done.set()
        holder.join()
    assert not home.is_locked()
    with home.lock():
        pass


def test_the_lock_of_a_killed_holder_is_free(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    locked, done = context.Event(), context.Event()
    holder = context.Process(target=hold_lock, args=(tmp_path, locked, done))
    holder.start()
    assert locked.wait(30)
    holder.kill()
    holder.join()
    with Home.at(tmp_path).lock():
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_a_short_home_keeps_its_sockets_inside() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        assert Home.at(short).socket_dir() == Path(short) / "run"


def test_a_long_home_gets_a_short_private_socket_folder(tmp_path: Path) -> None:
    home = Home.at(tmp_path / ("long name " * 12))
    folder = home.socket_dir()
    try:
        assert len(os.fsencode(folder)) + 33 <= SOCKET_PATH_BYTES_MAX
        assert folder.stat().st_mode & 0o777 == 0o700
        assert folder == home.socket_dir(), "the same home finds the same folder again"
        assert folder != Home.at(tmp_path / ("long name " * 13)).socket_dir()
    finally:
        folder.rmdir()
        Home.at(tmp_path / ("long name " * 13)).socket_dir().rmdir()


def test_a_socket_folder_that_others_can_enter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as base:
        monkeypatch.setenv("XDG_RUNTIME_DIR", base)
        assert private_short_dir("ours") == Path(base) / "ours"
        (Path(base) / "planted").mkdir()
        (Path(base) / "planted").chmod(0o777)
        with pytest.raises(StackError, match="open to others"):
            private_short_dir("planted")


def test_a_home_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StackError, match="choose another with --home"):
        Home.at(tmp_path / "file" / "home").create()
