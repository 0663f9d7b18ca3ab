"""How the value of an option is read, whether from JSON, from Python or from text. Pure functions.

Each takes the raw value and the place it comes from, and returns the parsed one or raises a ConfigurationError of one sentence:
what was wrong, where, and what to write instead.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from .errors import ConfigurationError
from .models import HostAddress, PortRange

_FLAGS = {
    "true": True,
    "1": True,
    "yes": True,
    "on": True,
    "false": False,
    "0": False,
    "no": False,
    "off": False,
}
_LONGEST_SHOWN = 80
_RANGE_FORM = "LOW..HIGH, for example 33245..34245, or 0..0 for any port"
_LIST_KINDS = (list, tuple)
_SET_KINDS = (list, tuple, set, frozenset)


class Secret(str):
    """Text that shows itself in no repr, so in no config dump, trait error or traceback of values."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'********'" if self else "''"


@dataclass(frozen=True)
class Place:
    """Where a value was found. `where` reads on after the value: `in kernel.json`, `in the environment variable GP_…`."""

    name: str
    where: str
    secret: bool = False

    def refuse(self, value: object, what_to_write: str) -> ConfigurationError:
        shown = "not usable" if self.secret else _shown(value)
        return ConfigurationError(f"{self.name} is {self.after(shown)}: write {what_to_write}.")

    def after(self, text: str) -> str:
        return f"{text} {self.where}".rstrip()


def hosts(value: Any, place: Place) -> tuple[HostAddress, ...]:
    """`remote_hosts`: a list, or text separated by commas; blanks and empty items are ignored, an empty list is not."""
    items = _items(value, place, _LIST_KINDS, "a list of hosts, or host names separated by commas")
    if not items:
        raise ConfigurationError(
            f"{place.name} is {place.after('empty')}: name at least one host, for example localhost."
        )
    return tuple(_host(item, place) for item in items)


def names(value: Any, place: Place) -> frozenset[str]:
    """User names: a list or set, or text separated by commas."""
    return frozenset(_items(value, place, _SET_KINDS, "a list of user names, or names separated by commas"))


def modules(value: Any, place: Place) -> tuple[str, ...]:
    """Names of Python modules, in order: a list, or text separated by commas."""
    what = "names of modules, for example numpy,pandas"
    items = _items(value, place, _LIST_KINDS, what)
    if not all(part.isidentifier() for item in items for part in item.split(".")):
        raise place.refuse(value, what)
    return tuple(dict.fromkeys(items))


def seconds(*, zero: bool) -> Callable[[Any, Place], float]:
    """A finite number of seconds, above 0 or, with `zero`, not below it."""

    def parse(value: Any, place: Place) -> float:
        number = math.nan
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            with suppress(ValueError, OverflowError):
                number = float(value)
        if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
            raise place.refuse(
                value, f"a number of seconds{', 0 for never' if zero else ' above 0'}, for example 30"
            )
        return number

    return parse


def whole(low: int, high: int) -> Callable[[Any, Place], int]:
    """A whole number in low..high."""

    def parse(value: Any, place: Place) -> int:
        text = value.strip() if isinstance(value, str) else value
        if isinstance(text, float) and text.is_integer():
            text = int(text)
        if isinstance(text, str) and re.fullmatch(r"[0-9]{1,9}", text):
            text = int(text)
        if isinstance(text, bool) or not isinstance(text, int) or not low <= text <= high:
            raise place.refuse(value, f"a whole number from {low} to {high}")
        return text

    return parse


def flag(value: Any, place: Place) -> bool:
    """True or false; as text also 1, 0, yes, no, on, off."""
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower() if isinstance(value, str | int) else ""
    if text not in _FLAGS:
        raise place.refuse(value, "true or false")
    return _FLAGS[text]


def choice(*words: str, none: bool = False) -> Callable[[Any, Place], str]:
    """One of `words`; with `none`, empty text as well."""

    def parse(value: Any, place: Place) -> str:
        word = value.strip().lower() if isinstance(value, str) else None
        if word is None or not (word in words or (none and not word)):
            raise place.refuse(value, " or ".join(words))
        return word

    return parse


def range_text(value: Any, place: Place) -> str:
    """A port range that is still text: its least size is an option of its own, see `port_range`."""
    return _text(value, place, _RANGE_FORM)


def login_name(value: Any, place: Place) -> str:
    """A user to log in as, or empty text. It can be neither an option nor two words."""
    name = _text(value, place, "a user name")
    if re.search(r"[\s@:/,;'\"`$&|<>()\\]|^-", name):
        raise place.refuse(value, "a user name")
    return name


def command(value: Any, place: Place) -> str:
    """The name or absolute path of a program on the host."""
    program = _text(value, place, "a command such as python3, or an absolute path")
    if not program or program.startswith("-") or ("/" in program and program[0] not in "/~"):
        raise place.refuse(value, "a command such as python3, or an absolute path")
    return program


def directory(value: Any, place: Place) -> str:
    """A directory on the host, absolute or below `~`, or empty text."""
    path = _text(value, place, "an absolute path")
    if path and not path.startswith(("/", "~/")):
        raise place.refuse(value, "an absolute path on the host, or one that starts with ~/")
    return path


def password(value: Any, place: Place) -> Secret:
    """Text of any kind, kept as it is. The value is in no message."""
    if not isinstance(value, str):
        raise place.refuse(value, "text")
    return Secret(value)


def port_range(text: str, minimum_size: int, place: Place) -> PortRange:
    """`LOW..HIGH`; a range of zero is `PortRange()`. See `settings.parse_port_range`."""
    match = re.fullmatch(r"\s*([0-9]{1,9})\s*\.\.\s*([0-9]{1,9})\s*", text) if isinstance(text, str) else None
    if match is None:
        raise place.refuse(text, _RANGE_FORM)
    low, high = int(match[1]), int(match[2])
    if low == high:
        return PortRange()
    if low > high:
        raise place.refuse(text, f"the lower end first ({high}..{low})")
    if low < 1024 or high > 65535:
        raise place.refuse(text, "two ends from 1024 to 65535, or 0..0 for any port")
    if high - low < minimum_size:
        raise place.refuse(
            text,
            f"a range of at least {minimum_size} ports (this one has {high - low}), or 0..0 for any port",
        )
    return PortRange(low, high)


def _host(item: str, place: Place) -> HostAddress:
    try:
        return HostAddress.parse(item)
    except ConfigurationError:
        raise ConfigurationError(
            f"{place.name} has {place.after(_shown(item))}, which is not a host: write host, user@host, host:port,"
            " user@host:port, or [IPv6]:port."
        ) from None


def _text(value: Any, place: Place, what_to_write: str) -> str:
    if not isinstance(value, str) or not value.strip().isprintable():
        raise place.refuse(value, what_to_write)
    return value.strip()


def _items(value: Any, place: Place, kinds: tuple[type, ...], what_to_write: str) -> list[str]:
    parts: Iterable[Any] = [value] if isinstance(value, str) else value
    if not isinstance(value, (str, *kinds)) or not all(isinstance(part, str) for part in parts):
        raise place.refuse(value, what_to_write)
    return [item for part in parts for item in map(str.strip, part.split(",")) if item]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"
