"""Who may use the admin UI: folded from ``admin.>``, changed by appending to it.

Passwords are kept as Argon2id hashes with argon2-cffi's defaults (RFC 9106's second choice, 64 MiB)
and nowhere else. Its import is left to the functions that hash, so that reading needs no extra.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace

from vllm_batch import ids
from vllm_batch.errors import AlreadyDone, InvalidInput, NotFound
from vllm_batch.event_store import EventStore, append_decided
from vllm_batch.events.admin import (
    AdminActionTaken,
    AdminPasswordChanged,
    AdminRoleChanged,
    AdminUserCreated,
    AdminUserRemoved,
    Role,
)
from vllm_batch.events.base import Event
from vllm_batch.events.envelope import Recorded
from vllm_batch.messaging import subjects

ROLES: tuple[Role, ...] = ("viewer", "operator", "admin")
SIGN_OUT = "sign out"
"""The action by which a user ends a sign-in; its target is the id of the action that began it."""
PASSWORD_CHARACTERS_MIN = 12
PASSWORD_CHARACTERS_MAX = 1024
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_PASSWORD_BYTES = 15


@dataclass(frozen=True, slots=True)
class AdminUser:
    """A user. ``session_seq``: sessions that began before this event have ended."""

    user_id: str
    name: str
    role: Role
    password_hash: str
    session_seq: int
    removed: bool = False

    def may(self, role: Role) -> bool:
        """Tell whether the user's role includes ``role``."""
        return not self.removed and ROLES.index(self.role) >= ROLES.index(role)


def user_id_of(name: str) -> str:
    """Return the id that belongs to a name: two users of one name cannot be."""
    return ids.derived("user_", name.lower())


def evolve(state: AdminUser | None, recorded: Recorded) -> AdminUser:
    """Return the user after an event of its own."""
    event, seq = recorded.event, recorded.seq
    if isinstance(event, AdminUserCreated):
        return AdminUser(event.user_id, event.name, event.role, event.password_hash, seq)
    if state is None:
        raise ValueError(f"event {seq} changes a user that was never made")
    match event:
        case AdminPasswordChanged(password_hash=password_hash):
            return replace(state, password_hash=password_hash, session_seq=seq)
        case AdminRoleChanged(role=role):
            return replace(state, role=role)
        case AdminUserRemoved():
            return replace(state, removed=True, session_seq=seq)
    return state


class AdminUsers:
    """All users by id. ``position``: the last sequence that was folded in."""

    def __init__(self) -> None:
        self._users: dict[str, AdminUser] = {}
        self._signed_out: set[str] = set()
        self.position = 0

    def apply(self, recorded: Recorded) -> None:
        """Fold one event in."""
        event = recorded.event
        self.position = max(self.position, recorded.seq)
        if isinstance(
            event, AdminUserCreated | AdminPasswordChanged | AdminRoleChanged | AdminUserRemoved
        ):
            self._users[event.user_id] = evolve(self._users.get(event.user_id), recorded)
        elif isinstance(event, AdminActionTaken) and event.action == SIGN_OUT:
            self._signed_out.add(event.target)

    def has_signed_out(self, action_id: str) -> bool:
        """Tell whether the sign-in of that action was ended by its user."""
        return action_id in self._signed_out

    def find(self, user_id: str) -> AdminUser | None:
        """Return a user that may sign in."""
        user = self._users.get(user_id)
        return None if user is None or user.removed else user

    def all(self) -> list[AdminUser]:
        """Return everybody who may sign in, by name."""
        there = (user for user in self._users.values() if not user.removed)
        return sorted(there, key=lambda user: user.name.lower())


async def load(store: EventStore) -> AdminUsers:
    """Return the users as the log has them now. Raises EventStoreUnavailable."""
    users = AdminUsers()
    async for batch in store.read(subjects.ALL_ADMIN):
        for recorded in batch:
            users.apply(recorded)
    return users


def new_password() -> str:
    """Return a password that nobody can guess (120 bits)."""
    return secrets.token_urlsafe(_PASSWORD_BYTES)


def hash_password(password: str) -> str:
    """Return the Argon2id hash. Takes 64 MiB and tens of milliseconds, on purpose.

    Raises:
        InvalidInput: the password is too short or too long.
    """
    from argon2 import PasswordHasher

    if not PASSWORD_CHARACTERS_MIN <= len(password) <= PASSWORD_CHARACTERS_MAX:
        raise InvalidInput(
            f"a password has {PASSWORD_CHARACTERS_MIN} to {PASSWORD_CHARACTERS_MAX} characters"
        )
    return PasswordHasher().hash(password)


def is_password(password_hash: str, password: str) -> bool:
    """Tell whether ``password`` is the one that was hashed."""
    from argon2 import PasswordHasher
    from argon2.exceptions import VerificationError

    try:
        return PasswordHasher().verify(password_hash, password)
    except VerificationError:
        return False


async def create(store: EventStore, name: str, password: str, role: Role) -> AdminUser:
    """Record a new user.

    Raises:
        InvalidInput: name or password will not do.
        AlreadyDone: there is a user of that name.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInput("a name has 1 to 64 letters, digits and . _ @ -")
    event = AdminUserCreated(
        user_id=user_id_of(name), name=name, role=role, password_hash=hash_password(password)
    )

    def decide(state: AdminUser | None) -> Event:
        if state is not None and not state.removed:
            raise AlreadyDone(f"there is a user {name} already; change it with `admin user`")
        return event

    return await _append(store, event.user_id, decide)


async def change_password(store: EventStore, name: str, password: str) -> AdminUser:
    """Record a new password. Raises InvalidInput, or NotFound: there is no such user."""
    password_hash = hash_password(password)
    return await _change(
        store, name, lambda user: AdminPasswordChanged(user_id=user, password_hash=password_hash)
    )


async def change_role(store: EventStore, name: str, role: Role) -> AdminUser:
    """Record a new role. Raises NotFound: there is no such user."""
    return await _change(store, name, lambda user: AdminRoleChanged(user_id=user, role=role))


async def remove(store: EventStore, name: str) -> AdminUser:
    """Record that a user is gone. Raises NotFound: there is no such user."""
    return await _change(store, name, lambda user: AdminUserRemoved(user_id=user))


async def _change(store: EventStore, name: str, event: Callable[[str], Event]) -> AdminUser:
    user_id = user_id_of(name)

    def decide(state: AdminUser | None) -> Event:
        if state is None or state.removed:
            raise NotFound(f"there is no user {name}; `vllm-batch admin user list` shows them")
        return event(user_id)

    return await _append(store, user_id, decide)


async def _append(
    store: EventStore, user_id: str, decide: Callable[[AdminUser | None], Event]
) -> AdminUser:
    _, user = await append_decided(store, subjects.aggregate("admin", user_id), evolve, decide)
    return user
