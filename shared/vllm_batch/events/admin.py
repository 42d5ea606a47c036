"""Events of the admin UI: who may use it, and what its users did there."""

from __future__ import annotations

from typing import ClassVar, Literal

from vllm_batch.events.base import Event

Role = Literal["viewer", "operator", "admin"]


class _AdminUserEvent(Event, frozen=True, kw_only=True):
    AGGREGATE: ClassVar[tuple[str, ...]] = ("user_id",)
    HIDDEN: ClassVar[frozenset[str]] = frozenset({"password_hash"})

    user_id: str


class AdminUserCreated(_AdminUserEvent, frozen=True, kw_only=True):
    """A person may sign in under ``name``; ``password_hash`` is Argon2id in its own notation."""

    TYPE: ClassVar[str] = "admin.user_created"

    name: str
    role: Role
    password_hash: str


class AdminPasswordChanged(_AdminUserEvent, frozen=True, kw_only=True):
    """A new password counts; whoever signed in with the old one is signed out."""

    TYPE: ClassVar[str] = "admin.password_changed"

    password_hash: str


class AdminRoleChanged(_AdminUserEvent, frozen=True, kw_only=True):
    """The user may do more or less from now on."""

    TYPE: ClassVar[str] = "admin.role_changed"

    role: Role


class AdminUserRemoved(_AdminUserEvent, frozen=True, kw_only=True):
    """The user cannot sign in any more, and is signed out."""

    TYPE: ClassVar[str] = "admin.user_removed"


class _AdminActionEvent(Event, frozen=True, kw_only=True):
    AGGREGATE: ClassVar[tuple[str, ...]] = ("user_id", "action_id")

    user_id: str
    action_id: str


class AdminActionTaken(_AdminActionEvent, frozen=True, kw_only=True):
    """A user is about to do ``action`` to ``target``: recorded first, so nothing is done unseen."""

    TYPE: ClassVar[str] = "admin.action_taken"

    name: str
    action: str
    target: str


class AdminActionFailed(_AdminActionEvent, frozen=True, kw_only=True):
    """What was to be done was refused or did not come about."""

    TYPE: ClassVar[str] = "admin.action_failed"

    reason: str


AdminEvent = (
    AdminUserCreated
    | AdminPasswordChanged
    | AdminRoleChanged
    | AdminUserRemoved
    | AdminActionTaken
    | AdminActionFailed
)
