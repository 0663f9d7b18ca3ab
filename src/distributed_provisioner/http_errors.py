"""Our errors as Jupyter Server shows them: each is also tornado's HTTPError, and its text is our sentence, wherever it is read.

`POST /api/kernels` answers with the status and the `log_message` of an HTTPError, and hides the text of every other exception;
`POST /api/sessions` answers 500 with `str()` of whatever was raised.
"""

from __future__ import annotations

from typing import Any

from tornado.web import HTTPError

from .errors import HostError, NoHostAvailableError, NotAuthorizedError, ProvisionerError

_classes: dict[type[ProvisionerError], type[ProvisionerError]] = {}


def as_http_error(error: ProvisionerError) -> ProvisionerError:
    """The same error, same class and fields, that is an HTTPError too (403, 503 or 500)."""
    if isinstance(error, HTTPError):
        return error
    kind = type(error)
    if kind not in _classes:
        # It keeps the name of its class: that is what tracebacks show, and what people look up.
        _classes[kind] = type(kind.__name__, (_HTTPMixin, kind, HTTPError), {"__module__": kind.__module__})
    twin = _classes[kind]()  # type: ignore[call-arg] # the mixin's
    twin.__dict__.update(error.__dict__)
    twin.__dict__.update(status_code=_status(error), reason=None, _log_message=Sentence(error))
    twin.args = ()  # tornado takes them for values of placeholders in the message
    return twin.with_traceback(error.__traceback__)


def _status(error: ProvisionerError) -> int:
    if isinstance(error, NotAuthorizedError):
        return 403
    return 503 if isinstance(error, NoHostAvailableError | HostError) else 500


class Sentence(str):
    """Text in which `%` stays what it is.

    tornado and Jupyter Server take messages for format strings: they double `%` and show that to the user, or merge arguments in.
    """

    __slots__ = ()

    def replace(self, old: str, new: str, count: Any = -1, /) -> str:
        return self if (old, new) == ("%", "%%") else super().replace(old, new, count)

    def __mod__(self, values: object) -> str:
        return self

    def __radd__(self, before: str) -> str:
        return before + super().replace("%", "%%")


class _HTTPMixin:
    """Comes first, so that neither OSError's nor HTTPError's ideas of a text win."""

    _log_message: Sentence

    def __init__(self) -> None:
        """All fields are those of the error that it is made from."""

    @property
    def log_message(self) -> str:
        return self._log_message

    @log_message.setter
    def log_message(self, value: str) -> None:
        self._log_message = Sentence(value)

    def get_message(self) -> str:
        return self._log_message

    def __str__(self) -> str:
        return self._log_message

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"
