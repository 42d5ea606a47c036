"""One user looking at one page: what the page may use, and how it acts and stays fresh."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any

import httpx
import structlog
from nicegui import background_tasks, ui

from batch_admin import audit
from batch_admin.live import RECENT_EVENTS, Live
from batch_admin.services import Services
from batch_admin.sessions import SignIn
from vllm_batch.admin_users import AdminUser
from vllm_batch.errors import BatchError, Rejected
from vllm_batch.events import Recorded
from vllm_batch.events.admin import Role

log = structlog.get_logger(__name__)

REFRESH_SECONDS = 1.0
_CATCH_UP_SECONDS = 2.0
_OPEN_SECONDS_MAX = 0.5  # a page that opens waits no longer for the read models
_ATTEMPTS_MAX = 20
_LEAVE_SECONDS = 2.0  # for a browser to go where it is sent


class NotAllowed(Rejected):
    """The user's role does not include this."""

    code = "not_allowed"


class View:
    """See the module. ``params``: of the path; ``query``: after the question mark; ``theme``: dark,
    light, or empty for the system's."""

    def __init__(
        self,
        services: Services,
        sign_in: SignIn,
        user: AdminUser,
        params: Mapping[str, str],
        query: Mapping[str, str],
        *,
        theme: str = "",
    ) -> None:
        self.services = services
        self._sign_in = sign_in
        self.user = user
        self.params = params
        self.query = query
        self.theme = theme
        self._client = ui.context.client
        self._since = services.live.position
        self._behind = False
        self._is_stale = False
        self._client.on_exception(_tell_of)

    @property
    def live(self) -> Live:
        """What happens now."""
        return self.services.live

    def may(self, role: Role) -> bool:
        """Tell whether the user may do now what takes ``role``: roles change and sign-ins end while
        pages are open."""
        user = self._sign_in.user(self.live.users, self.services.clock.now())
        return user is not None and user.may(role)

    async def act(
        self,
        action: str,
        target: str,
        deed: Callable[[], Awaitable[str]],
        *,
        role: Role = "operator",
    ) -> bool:
        """Do something on the user's behalf and say how it went; True if it was done. Where
        ``deed`` returns nothing to say, the page shows by itself that it went well.

        It is recorded before it is done, and again if it fails; whoever may not is refused here,
        whatever the page showed.
        """
        with self._client:  # the button that was hit may have been drawn anew
            return await self._act(action, target, deed, role)

    async def _act(
        self, action: str, target: str, deed: Callable[[], Awaitable[str]], role: Role
    ) -> bool:
        if not self.may(role):
            why = f"that takes the role {role}" if self.may("viewer") else "you are signed out"
            _tell(f"You may not {action}: {why}.", type="negative")
            await self._record_refusal(action, target, f"refused: {why}")
            return False
        recorded: tuple[str, int] | None = None
        try:
            recorded = await audit.taken(self.services.store, self.user, action, target)
            if said := await deed():
                _tell(said, type="positive")
        except Exception as error:  # the outermost of what a user does
            _tell(f"Could not {action}: {_words(error)}", type="negative", timeout=10_000)
            if not isinstance(error, BatchError | httpx.HTTPError):
                log.exception("an action failed", user=self.user.name, action=action)
            if recorded is not None:
                await self._record_failure(recorded, _words(error))
            return False
        return True

    async def _record_refusal(self, action: str, target: str, reason: str) -> None:
        log.warning("refused", user=self.user.name, action=action, target=target)
        try:
            recorded = await audit.taken(self.services.store, self.user, action, target)
        except BatchError as error:
            log.warning("a refusal was not recorded", error=str(error))
        else:
            await self._record_failure(recorded, reason)

    async def _record_failure(self, action: tuple[str, int], reason: str) -> None:
        try:
            await audit.failed(self.services.store, self.user, action, reason)
        except BatchError as error:
            log.warning("a failure was not recorded", reason=reason, error=str(error))

    def refresh_on(
        self,
        nouns: Iterable[str],
        refresh: Callable[[list[Recorded]], Awaitable[None]],
        *,
        seconds: float = REFRESH_SECONDS,
        idle_seconds: float | None = None,
        reads: bool = False,
    ) -> None:
        """Call ``refresh`` with the new events whenever some came, at most every ``seconds``. What
        has come since the page began to be built counts as new.

        ``idle_seconds``: call it without events after so long a silence, for what grows old.
        ``reads``: it reads the read models; it is called once these have the events, and again
        with the same ones where they were late.
        """

        async def watching() -> None:
            behind, again = reads and self._behind, list[Recorded]()
            with self.live.watch(nouns, after=self._since) as watch:
                while True:
                    new = await watch.wait(_CATCH_UP_SECONDS if behind else idle_seconds)
                    if not self.may("viewer"):
                        return
                    events = [*again, *new][-RECENT_EVENTS:]
                    is_late = reads and not await self.catch_up()
                    behind = not await self._refreshed(refresh, events) or is_late
                    again = events if behind else []
                    await asyncio.sleep(seconds)

        self.keep(watching())

    async def _refreshed(
        self, refresh: Callable[[list[Recorded]], Awaitable[None]], events: list[Recorded]
    ) -> bool:
        """Bring something up to date; False: it has to be tried again."""
        try:
            await refresh(events)
        except BatchError as error:
            log.info("a page waits for its data", error=str(error))
            return False
        except Exception as error:  # the outermost loop of what keeps a page live
            log.exception("a page is not up to date")
            if not self._is_stale:
                _tell(f"This page is not up to date: {_words(error)}", type="negative")
            self._is_stale = True
            return False
        self._is_stale = False
        return True

    async def patiently(self, ask: Callable[[], Awaitable[None]]) -> None:
        """Do what the user asked for and the read models have to answer; wait for them a while."""
        for attempt in range(_ATTEMPTS_MAX):
            try:
                return await ask()
            except BatchError as error:
                if attempt == 0:
                    _tell(f"{error}. Trying again …", type="warning")
                log.info("a user waits for an answer", error=str(error))
                await asyncio.sleep(REFRESH_SECONDS)
        _tell("There is no answer. Try again later.", type="negative")
        return None

    async def open(self) -> None:
        """Give the read models a moment before the page is built; where it is not enough, what
        reads them is refreshed soon."""
        self._behind = not await self.services.reads.wait_for(self._since, _OPEN_SECONDS_MAX)

    async def catch_up(self) -> bool:
        """Give the read models a moment to take in what has happened so far; True if they have."""
        return await self.services.reads.wait_for(self.live.position, _CATCH_UP_SECONDS)

    def leave_when_signed_out(self) -> None:
        """Send the page to the sign-in as soon as its user's counts no more; a browser that does
        not go there has nothing left to hit or to read."""

        async def leaving() -> None:
            with self.live.watch({"admin"}, after=self._since) as watch:
                while self.may("viewer"):
                    left = self._sign_in.ends_at - self.services.clock.now()
                    await watch.wait(max(0.0, left.total_seconds()))
            ui.navigate.to("/login")
            await asyncio.sleep(_LEAVE_SECONDS)
            self._client.remove_all_elements()

        self.keep(leaving())

    def keep(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run something on the page for as long as it is open."""

        task = background_tasks.create(coroutine, context=self._client)
        self._client.on_delete(task.cancel)


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


def _tell_of(error: Exception) -> None:
    """Tell of what nobody else does; NiceGUI logs it."""
    _tell(f"Something went wrong: {_words(error)}", type="negative", timeout=10_000)


def _tell(text: str, **options: Any) -> None:
    """Notify where no button of a dialog is covered."""
    ui.notify(text, position="top-right", **options)
