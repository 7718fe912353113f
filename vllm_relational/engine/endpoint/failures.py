"""In what ways a request to a server fails. Their texts hold no key, no line breaks and no control characters."""

from __future__ import annotations

import re

# A refusal that may well be about one row: a prompt too long, a text that the server cannot take.
ROW_STATUSES = frozenset({200, 400, 413, 422})
RETRIED_STATUSES = frozenset({408, 409, 425, 429})
_TOO_LARGE = re.compile(
    r"too (large|long|many|big)|exceed|maximum|greater than|at most|supported range|context (length|window)",
    re.IGNORECASE,
)
_QUOTA = re.compile(r"quota|billing|credit|balance|payment", re.IGNORECASE)


class RequestError(Exception):
    """One request failed, after its retries. sent_at: when its last attempt began, by ``time.monotonic``."""

    sent_at = 0.0

    def is_like(self, other: RequestError) -> bool:
        """Whether both failed in the same way."""
        return type(self) is type(other)

    @property
    def may_be_the_rows(self) -> bool:
        """Whether servers that work fail single rows in this way."""
        return False


class RefusedError(RequestError):
    """The server answered with an error.

    status:       of HTTP; 200 where a body with an error came under it.
    parameter:    the parameter of the request that the server names as the reason, '' if it names none.
    code:         the server's own word for the reason.
    retry_after_s: when the server wants to be asked again; None if it does not say.
    """

    def __init__(
        self, status: int, message: str, *, parameter: str = "", code: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.parameter, self.code, self.retry_after_s = status, parameter, code, retry_after_s

    def is_like(self, other: RequestError) -> bool:
        return isinstance(other, RefusedError) and other.status == self.status

    @property
    def may_be_the_rows(self) -> bool:
        return self.status in ROW_STATUSES

    @property
    def is_about_money(self) -> bool:
        """Whether the account has used up what it may."""
        return _QUOTA.search(f"{self.code} {self}") is not None

    @property
    def is_too_large(self) -> bool:
        """Whether the prompt, or the answer that was asked for, is longer than the model takes."""
        return self.status == 413 or (self.status in ROW_STATUSES and _TOO_LARGE.search(str(self)) is not None)

    @property
    def is_passing(self) -> bool:
        """Whether a later attempt may fare better. Money that is used up does not come back in seconds."""
        if self.status == 429 and self.retry_after_s is None:
            return not self.is_about_money
        return self.status in RETRIED_STATUSES or self.status >= 500


class LostError(RequestError):
    """No answer: the server cannot be reached, broke off, or was too slow (``silent``)."""

    def __init__(self, message: str, silent: bool = False) -> None:
        super().__init__(message)
        self.silent = silent


class MalformedError(RequestError):
    """The server answered, and not with what was asked for. again: another attempt may fare better."""

    def __init__(self, message: str, again: bool = False) -> None:
        super().__init__(message)
        self.again = again


class AbortedError(Exception):
    """``EndpointConnection.abort`` was called."""
