"""Sign-ins: signed cookies that end by themselves, with a new password, or with the user.

Nothing is kept here, so sessions outlast a restart: what a cookie says is checked against the users
that the live layer folds from the log.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import deque
from collections.abc import Callable

from itsdangerous import BadSignature, URLSafeTimedSerializer

from vllm_batch.admin_users import AdminUser, AdminUsers
from vllm_batch.settings import Settings

COOKIE = "vllm_batch_admin"
FORM_COOKIE = "vllm_batch_form"
_NAMES_MAX = 10_000


class Sessions:
    """Makes and reads session cookies and form tokens."""

    def __init__(self, settings: Settings, users: AdminUsers) -> None:
        key = settings.secret_key.get_secret_value() or secrets.token_urlsafe(32)
        self._signer = URLSafeTimedSerializer(key, salt="admin session")
        self._form_key = hashlib.sha256(f"admin form\x1f{key}".encode()).digest()
        self._seconds = settings.admin_session_seconds
        self._users = users

    def cookie_of(self, user: AdminUser) -> str:
        """Return what the browser is to keep."""
        return self._signer.dumps([user.user_id, user.session_seq])

    def user_of(self, cookie: str | None) -> AdminUser | None:
        """Return who a cookie stands for; None if it counts no more, or never did."""
        if not cookie:
            return None
        try:
            user_id, session_seq = self._signer.loads(cookie, max_age=self._seconds)
        except BadSignature:
            return None
        user = self._users.find(user_id)
        return user if user is not None and user.session_seq == session_seq else None

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
