"""The folder of one embedded stack: what lies where in it, and the lock that keeps it to one stack.

Owns the layout of ``<home>``. The lock is the kernel's (flock), so it is gone when its process is,
however that ended; the file's text names the holder for the message to the one who comes second.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vllm_batch.errors import StackError

SOCKET_PATH_BYTES_MAX = 107  # sun_path of Linux is 108 bytes with the final zero
_SOCKET_NAME_BYTES = 32  # the longest name we put into a socket folder


@dataclass(frozen=True)
class Home:
    """Paths of one embedded stack."""

    root: Path

    @classmethod
    def at(cls, root: Path | str) -> Home:
        """Return the home at ``root``, which need not exist yet."""
        return cls(Path(root).expanduser().absolute())

    @property
    def logs(self) -> Path:
        """One file per service, rotated."""
        return self.root / "logs"

    @property
    def nats(self) -> Path:
        """Configuration and JetStream store of the NATS server: the truth."""
        return self.root / "nats"

    @property
    def blobs(self) -> Path:
        """Uploaded files and result segments."""
        return self.root / "blobs"

    @property
    def state_file(self) -> Path:
        """What runs, as the supervisor last saw it."""
        return self.root / "state.json"

    @property
    def metrics_targets_file(self) -> Path:
        """Where the services' metrics are, for Prometheus."""
        return self.root / "metrics.json"

    @property
    def lock_file(self) -> Path:
        """Held by the one supervisor of this home."""
        return self.root / "lock"

    @property
    def api_key_file(self) -> Path:
        """Secret of the default API key, readable by the owner only."""
        return self.root / "api-key"

    @property
    def service_key_file(self) -> Path:
        """Secret of the API key that our own services use, readable by the owner only."""
        return self.root / "service-key"

    @property
    def secret_key_file(self) -> Path:
        """What signing secrets derive from, readable by the owner only."""
        return self.root / "secret-key"

    @property
    def webhook_secret_file(self) -> Path:
        """What Label Studio's webhooks have to send, readable by the owner only."""
        return self.root / "label-studio-webhook-secret"

    @property
    def settings_file(self) -> Path:
        """Settings of this home that the user may write."""
        return self.root / "settings.toml"

    @property
    def mark(self) -> str:
        """Twelve hex digits that stand for this home where its path is too long or too private."""
        return hashlib.blake2b(os.fsencode(self.root.resolve()), digest_size=6).hexdigest()

    def log_of(self, service: str) -> Path:
        """Return the log file of ``service``."""
        return self.logs / f"{service}.log"

    def create(self) -> None:
        """Make the folders. Raises StackError where the user may not."""
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            for folder in (self.logs, self.nats, self.blobs):
                folder.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise StackError(
                f"cannot use {self.root} as the stack's home: {error.strerror};"
                " choose another with --home"
            ) from error

    def socket_dir(self) -> Path:
        """Return a private folder whose path is short enough for unix sockets, and make it."""
        wanted = self.root / "run"
        if len(os.fsencode(wanted)) + 1 + _SOCKET_NAME_BYTES <= SOCKET_PATH_BYTES_MAX:
            wanted.mkdir(parents=True, exist_ok=True, mode=0o700)
            return wanted
        return private_short_dir(f"vllm-batch-{os.getuid()}-{self.mark}")

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the home. Raises StackError naming the holder when another stack has it."""
        with exclusive(self.lock_file, wait=False) as held:
            if not held:
                holder = holder_of(self.lock_file)
                who = f"process {holder}" if holder else "another process"
                raise StackError(
                    f"{self.root} is in use by {who}; stop it with `vllm-batch down --home"
                    f" '{self.root}'`, or choose another home with --home"
                )
            yield

    def is_locked(self) -> bool:
        """Tell whether a stack runs on this home."""
        if not self.lock_file.exists():
            return False
        with exclusive(self.lock_file, wait=False, write_holder=False) as held:
            return not held


@contextlib.contextmanager
def exclusive(path: Path, *, wait: bool, write_holder: bool = True) -> Iterator[bool]:
    """Hold a lock between processes on ``path``; yields whether it was got (``wait``: yes)."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        if write_holder:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield True
    finally:
        os.close(descriptor)


def holder_of(lock_file: Path) -> int | None:
    """Return the process id written into ``lock_file``, if there is one."""
    try:
        return int(lock_file.read_text().strip())
    except (OSError, ValueError):
        return None


def private_short_dir(name: str) -> Path:
    """Return ``name`` below the runtime or temporary folder, ours alone.

    Raises StackError when somebody else made it first: the temporary folder is everybody's.
    """
    bases = [os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp"]  # noqa: S108
    longest = SOCKET_PATH_BYTES_MAX - _SOCKET_NAME_BYTES - len(name) - 2
    usable = (b for b in bases if b and len(b) <= longest and os.access(b, os.W_OK | os.X_OK))
    base = next(usable, "/tmp")  # noqa: S108
    path = Path(base) / name
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise StackError(f"{path} belongs to somebody else or is open to others; remove it, please")
    return path
