"""Who may start a kernel, and which host a start request may pin it to. Pure: nothing is contacted, no name is looked up."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import ip_address

from .errors import ConfigurationError, NotAuthorizedError
from .models import USER_PLACE, HostAddress, Login, is_account_name
from .own_user import own_name
from .settings import Settings

USER_VARIABLE = "KERNEL_USERNAME"
PIN_VARIABLE = "KERNEL_REMOTE_HOST"


def requesting_user(request_env: Mapping[str, str]) -> str:
    """The user that a kernel is for: `KERNEL_USERNAME` of the start request, else the server's own user."""
    return request_env.get(USER_VARIABLE) or own_name()


def authorize(user: str, settings: Settings) -> None:
    """Let the user pass, or not. Names are compared case-sensitively, and `unauthorized_users` wins.

    Raises:
        NotAuthorizedError: the user may not start this kernel.
    """
    if user in settings.unauthorized_users:
        raise NotAuthorizedError(
            f"User '{user}' is not authorized to start this kernel, because unauthorized_users has that name."
            f" Set {USER_VARIABLE} to the user that the kernel is for, or take the name out of unauthorized_users."
        )
    if settings.authorized_users and user not in settings.authorized_users:
        raise NotAuthorizedError(
            f"User '{user}' is not authorized to start this kernel, because authorized_users does not have that name."
            f" Set {USER_VARIABLE} to the user that the kernel is for, or add the name to authorized_users."
        )


def for_user(settings: Settings, request_env: Mapping[str, str]) -> Settings:
    """The settings as they are for a kernel of the user whom `KERNEL_USERNAME` names, where it matters to a host who that is.

    Raises:
        ConfigurationError: it names nobody, or what can be no account's name: it would become part of a command.
    """
    why = _needs_user(settings)
    if not why:
        return settings
    user = request_env.get(USER_VARIABLE, "")
    if not user:
        raise ConfigurationError(
            f"{why}, and the start request does not say whom the kernel is for: set {USER_VARIABLE} to the user's name on the hosts."
        )
    if not is_account_name(user):
        raise ConfigurationError(
            f"{USER_VARIABLE} is {shortened(user)}, which cannot be a user's name on a host: it has to be made of letters, digits, '_',"
            " '-' and '.', and to begin with neither of the last two."
        )
    login = settings.login.for_user(user)
    return replace(
        settings,
        remote_hosts=tuple(host.for_user(user) for host in settings.remote_hosts),
        login=replace(login, run_as=user) if settings.impersonation_enabled else login,
    )


def _needs_user(settings: Settings) -> str:
    """Why a launch has to say whom it is for; empty where it need not."""
    if settings.impersonation_enabled:
        return "impersonation_enabled is true"
    for host in settings.remote_hosts:
        if host.user == USER_PLACE:
            return f"remote_hosts has {host}"
    return f"remote_user is {USER_PLACE}" if settings.login.user == USER_PLACE else ""


def user_of(settings: Settings, host: HostAddress, login: Login) -> str:
    """Whom a kernel that runs is for, by where it was found; empty where that makes no difference to a host."""
    if login.run_as:
        return login.run_as
    is_open = settings.login.user == USER_PLACE or any(
        each.user == USER_PLACE for each in settings.remote_hosts
    )
    return (host.user or login.user or "") if is_open else ""


def shortened(text: object) -> str:
    """For messages."""
    shown = repr(text)
    return shown if len(shown) <= 80 else shown[:79] + "…"


def requested_pin(request_env: Mapping[str, str], settings: Settings) -> HostAddress | None:
    """The host that `KERNEL_REMOTE_HOST` of the start request pins the kernel to; None where it is unset or empty.

    Raises:
        ConfigurationError: see `resolve_pin`.
    """
    text = request_env.get(PIN_VARIABLE, "").strip()
    user = request_env.get(USER_VARIABLE, "")
    if text.startswith(f"{USER_PLACE}@") and is_account_name(user):
        text = user + text[len(USER_PLACE) :]
    return resolve_pin(text, settings) if text else None


def resolve_pin(text: str, settings: Settings) -> HostAddress:
    """The entry of `remote_hosts` that the text names, by any of its spellings.

    These are, the first that fits: the entry itself; its host without its user and port; for this machine `localhost`,
    `127.0.0.1` and the machine's name; the first label of a fully qualified name, where only one entry has it. Case does not
    matter in host names. With `allow_any_pinned_host`, text that names no entry is a host of its own.

    Raises:
        ConfigurationError: the text names no entry, or more than one. The message lists the hosts that would do.
    """
    would_do = f"Use one of: {', '.join(dict.fromkeys(map(str, settings.remote_hosts)))}."
    try:
        pin = HostAddress.parse(text)
    except ConfigurationError:
        raise ConfigurationError(f"{PIN_VARIABLE} is '{text}', which is not a host. {would_do}") from None
    fitting = [entry for entry in settings.remote_hosts if _login_fits(pin, entry, settings)]
    exact = [entry for entry in fitting if (entry.user, entry.port) == (pin.user, pin.port)]
    for entry in (*exact, *fitting):
        if _same_host(pin.host, entry.host) or (_is_local(pin) and _is_local(entry)):
            return entry
    short = {
        _canonical(entry.host): entry for entry in reversed(fitting) if _is_short_for(pin.host, entry.host)
    }
    if len(short) == 1:
        return next(iter(short.values()))
    if settings.allow_any_pinned_host:
        return pin
    if short:
        could_be = " or ".join(sorted(short))
        raise ConfigurationError(f"{PIN_VARIABLE} is '{text}', which could be {could_be}. {would_do}")
    raise ConfigurationError(
        f"{PIN_VARIABLE} is '{text}', which is not among the configured hosts. {would_do}"
    )


def _login_fits(pin: HostAddress, entry: HostAddress, settings: Settings) -> bool:
    return pin.user in (None, entry.user or settings.login.user) and pin.port in (None, entry.port)


def _same_host(one: str, other: str) -> bool:
    return _canonical(one) == _canonical(other)


def _canonical(host: str) -> str:
    return str(ip_address(host)) if _is_address(host) else host.rstrip(".").lower()


def _is_short_for(name: str, full: str) -> bool:
    return "." in full and not _is_address(full) and _canonical(full).partition(".")[0] == _canonical(name)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _is_local(address: HostAddress) -> bool:
    """With a user or a port an entry is reached by SSH, whatever its name is."""
    return address.user is None and address.port is None and _canonical(address.host) in _local_names()


def _local_names() -> Iterable[str]:
    own = _canonical(socket.gethostname())
    return {"localhost", "127.0.0.1", "::1", own, own.partition(".")[0]}
