"""Sign-ins: signed cookies that end by themselves, with a new password, with the user, or when
they sign out.

Nothing is kept here, so sessions outlast a restart: what a cookie says is checked against the users
that the live layer folds from the log.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from itsdangerous import BadSignature, URLSafeTimedSerializer

from vllm_batch.admin_users import AdminUser, AdminUsers
from vllm_batch.clock import Clock
from vllm_batch.settings import Settings

COOKIE = "vllm_batch_admin"
FORM_COOKIE = "vllm_batch_form"
_NAMES_MAX = 10_000


@dataclass(frozen=True, slots=True)
class SignIn:
    """That somebody signed in. ``action_id``: of the action that recorded it; ``session_seq``: the
    user's at that time."""

    action_id: str
    user_id: str
    session_seq: int
    ends_at: datetime

    def user(self, users: AdminUsers, now: datetime) -> AdminUser | None:
        """Return the user as of now; None if this counts no more."""
        user = users.find(self.user_id)
        if user is None or now >= self.ends_at or users.has_signed_out(self.action_id):
            return None
        return user if user.session_seq == self.session_seq else None


class Sessions:
    """Makes and reads session cookies and form tokens."""

    def __init__(self, settings: Settings, users: AdminUsers, clock: Clock) -> None:
        key = settings.secret_key.get_secret_value() or secrets.token_urlsafe(32)
        self._signer = URLSafeTimedSerializer(key, salt="admin session")
        self._form_key = hashlib.sha256(f"admin form\x1f{key}".encode()).digest()
        self._lasts = timedelta(seconds=settings.admin_session_seconds)
        self._users = users
        self._clock = clock

    def cookie_of(self, user: AdminUser, action_id: str) -> str:
        """Return what the browser is to keep; ``action_id``: of the sign-in."""
        return self._signer.dumps([action_id, user.user_id, user.session_seq])

    def sign_in_of(self, cookie: str | None) -> SignIn | None:
        """Return what a cookie stands for; None if it counts no more, or never did."""
        if not cookie:
            return None
        try:
            value, began_at = self._signer.loads(cookie, return_timestamp=True)
            action_id, user_id, session_seq = value
        except (BadSignature, ValueError):  # a forgery, or a cookie of another release
            return None
        found = SignIn(action_id, user_id, session_seq, began_at + self._lasts)
        return found if found.user(self._users, self._clock.now()) is not None else None

    def form_token(self, cookie: str) -> str:
        """Return the token that a form carries besides its cookie."""
        return hmac.new(self._form_key, cookie.encode(), hashlib.sha256).hexdigest()

    def is_form_token(self, cookie: str | None, token: str) -> bool:
        """Tell whether a form came from a page of ours."""
        return bool(cookie) and hmac.compare_digest(self.form_token(cookie or ""), token)


class Attempts:
    """Counts wrong passwords by some key, so that guessing takes for ever. In memory, bounded."""

    def __init__(
        self, settings: Settings, monotonic: Callable[[], float], *, factor: int = 1
    ) -> None:
        self._max = factor * settings.admin_sign_in_attempts_max
        self._seconds = settings.admin_sign_in_wait_seconds
        self._monotonic = monotonic
        self._failed: dict[str, deque[float]] = {}

    def wait_seconds(self, key: str) -> float:
        """Return how long to wait before trying again; 0: now."""
        times = self._failed.get(key)
        if times is None or len(times) < self._max:
            return 0.0
        return max(0.0, times[0] + self._seconds - self._monotonic())

    def note_failure(self, key: str) -> None:
        """Count a wrong password."""
        if len(self._failed) >= _NAMES_MAX:
            self._failed.pop(next(iter(self._failed)))
        times = self._failed.setdefault(key, deque(maxlen=self._max))
        times.append(self._monotonic())

    def forget(self, key: str) -> None:
        """Count anew: the right password was given."""
        self._failed.pop(key, None)
