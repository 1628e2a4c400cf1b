"""Who may see the console: a cookie for each browser, and the token that forms carry."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from starlette.requests import Request

COOKIE: Final = "streams_console"
SESSION_SECONDS: Final = 12 * 3600
FORM_TOKEN: Final = "form_token"  # noqa: S105 - the name of a field


class Sessions:
    """Sessions are signed, not stored: they end with the process, whose key they are signed with.

    With a ``token``, only a browser that has sent it has a session. Without, every browser gets one, as its
    forms need a token of their own: a page of another site can send a form, but cannot read this one.
    """

    def __init__(self, token: str | None) -> None:
        self._token = token
        self._key = secrets.token_bytes(32)

    @property
    def open(self) -> bool:
        """Whether no token is needed."""
        return self._token is None

    def begin(self) -> str:
        """A new session's cookie."""
        content = f"{secrets.token_urlsafe(16)}.{int(time.time()) + SESSION_SECONDS}"
        return f"{content}.{self._signed('session', content)}"

    def is_valid(self, cookie: str) -> bool:
        """Whether a cookie is a session that has not ended."""
        content, _, signature = cookie.rpartition(".")
        if not hmac.compare_digest(signature, self._signed("session", content)):
            return False
        return int(content.rpartition(".")[2]) > time.time()

    def accepts(self, token: str) -> bool:
        """Whether this is the console's token; compared in constant time."""
        return self._token is not None and hmac.compare_digest(token.encode(), self._token.encode())

    def form_token(self, request: Request) -> str:
        """The token that the forms of a session carry."""
        return self._signed("form", str(request.state.session))

    def form_is_own(self, request: Request, token: str) -> bool:
        """Whether a form was made for this session."""
        return hmac.compare_digest(token.encode(), self.form_token(request).encode())

    def _signed(self, use: str, content: str) -> str:
        return hmac.new(self._key, f"{use}:{content}".encode(), hashlib.sha256).hexdigest()
