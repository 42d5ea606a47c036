"""Users and permissions as nats-server's configuration, from `permissions`.

One user a line, so that a person can read it and a script can put passwords in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

import msgspec

from vllm_batch.messaging import permissions
from vllm_batch.messaging.permissions import Permissions, Role


class Tool(msgspec.Struct, frozen=True):
    """A tool outside that may read events. ``password_hash``: bcrypt, as nats-server takes it."""

    name: str
    subjects: tuple[str, ...]
    password_hash: str


def authorization(passwords: Mapping[Role, str], tools: Iterable[Tool] = ()) -> str:
    """Return the block ``authorization`` for a configuration of nats-server."""
    lines = [user_line(role, passwords[role], permissions.of_role(role)) for role in Role]
    lines += [tool_line(tool) for tool in tools]
    return "authorization {\n  users: [\n" + "".join(f"    {line}\n" for line in lines) + "  ]\n}\n"


def template() -> str:
    """Return the block with ``@role@`` for each password, to be put in by a script."""
    return authorization({role: f"@{role}@" for role in Role})


def tool_line(tool: Tool) -> str:
    """Return a tool's entry among the users."""
    return user_line(tool.name, tool.password_hash, permissions.of_tool(tool.name, tool.subjects))


def user_line(name: str, password: str, allowed: Permissions) -> str:
    """Return a user's entry; it is JSON, which nats-server reads."""
    user: dict[str, object] = {"user": str(name), "password": password}
    if (said := allowed.as_config()) is not None:
        user["permissions"] = said
    return json.dumps(user, ensure_ascii=False)
