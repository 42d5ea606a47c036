"""``vllm-batch admin user``: who may sign in to the admin UI."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from vllm_batch.cli import output
from vllm_batch.cli.listing import print_rows
from vllm_batch.cli.options import HomeOption, JsonOption

if TYPE_CHECKING:  # only its types: what it imports takes time to start
    from vllm_batch.admin_users import AdminUser
    from vllm_batch.event_store import EventStore

Result = TypeVar("Result")


class RoleName(StrEnum):
    """What a user may do."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"


app = typer.Typer(help="The admin web UI.", no_args_is_help=True)
user = typer.Typer(help="Who may sign in: add, list, password, role, remove.", no_args_is_help=True)
app.add_typer(user, name="user")

NameArgument = Annotated[str, typer.Argument(metavar="NAME")]
PasswordOption = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password from standard input.")
]


@user.command()
def add(
    name: NameArgument,
    role: Annotated[
        RoleName, typer.Option(help="viewer looks, operator acts, admin manages keys and users.")
    ] = RoleName.VIEWER,
    password_stdin: PasswordOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let somebody sign in. Without --password-stdin a password is made and printed, this once."""
    from vllm_batch import admin_users

    password = _password(given=password_stdin)
    made = _with_store(home, lambda store: admin_users.create(store, name, password, role.value))
    _tell(made, None if password_stdin else password, as_json=as_json)


@user.command(name="list")
def list_(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List everybody who may sign in."""
    from vllm_batch import admin_users

    found = _with_store(home, admin_users.load).all()
    if as_json:
        output.print_json([{"name": one.name, "role": one.role} for one in found])
        return
    print_rows(("name", "role"), ((one.name, one.role) for one in found))


@user.command()
def password(
    name: NameArgument,
    password_stdin: PasswordOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a user a new password; sessions that began with the old one end. Exit code 4: nobody."""
    from vllm_batch import admin_users

    new = _password(given=password_stdin)
    changed = _with_store(home, lambda store: admin_users.change_password(store, name, new))
    _tell(changed, None if password_stdin else new, as_json=as_json)


@user.command()
def role(
    name: NameArgument,
    new: Annotated[RoleName, typer.Argument(metavar="ROLE")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a user do more or less; it counts at once. Exit code 4 if there is no such user."""
    from vllm_batch import admin_users

    changed = _with_store(home, lambda store: admin_users.change_role(store, name, new.value))
    _tell(changed, None, as_json=as_json)


@user.command()
def remove(name: NameArgument, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Sign a user out and let them in no more. Exit code 4 if there is no such user."""
    from vllm_batch import admin_users

    _with_store(home, lambda store: admin_users.remove(store, name))
    if as_json:
        output.print_json({"name": name, "removed": True})
    else:
        print(f"removed {name}")


def _password(*, given: bool) -> str:
    from vllm_batch import admin_users

    return sys.stdin.readline().rstrip("\n") if given else admin_users.new_password()


def _tell(one: AdminUser, secret: str | None, *, as_json: bool) -> None:
    if as_json:
        shown = {} if secret is None else {"password": secret}
        output.print_json({"name": one.name, "role": one.role, **shown})
        return
    if secret is not None:
        print(secret)
        output.warn(f"the password of {one.name} ({one.role}): keep it, it is not shown again")
    else:
        print(f"{one.name} is {one.role}")


def _with_store(home: Path | None, deed: Callable[[EventStore], Awaitable[Result]]) -> Result:
    from vllm_batch.cli.service_settings import settings_of

    settings = settings_of(home)

    async def main() -> Result:
        from vllm_batch.event_store import jetstream

        async with jetstream.connect(settings, source="cli") as store:
            return await deed(store)

    return asyncio.run(main())
