"""Which hosts an operator means: those of the configuration, the environment and the installed kernel specifications."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distributed_provisioner.errors import ConfigurationError
from distributed_provisioner.kernelspec import find_installed
from distributed_provisioner.models import is_account_name, needs_user
from distributed_provisioner.operating import Place
from distributed_provisioner.settings import OPTION, Settings, SettingsTraits, parse_host_list, resolve

from .app import StrictApp

SERVER_CONFIGURATIONS = ("jupyter_server_config", "jupyter_notebook_config", "jupyter_lab_config")
"""Configuration files of host applications, from which `c.DistributedProvisioner` holds here, too."""


class DistributedProvisioner(SettingsTraits):
    """The options of the provisioner: which hosts, and how to log in to them."""


def places(app: StrictApp, override: Sequence[str] | None, user: str = "") -> list[Place]:
    """Every host once, in the order of the configuration, then of the kernel specifications by name.

    Args:
        override: the only hosts to take; each with the log-in of the specification that names it, else with the server's.
        user: whose kernels are meant, if not those of the user who logs in.

    Raises:
        ConfigurationError: an option has a value that cannot be used. A kernel specification with one is left out, with a warning.
    """
    traits = DistributedProvisioner(parent=app)
    server = traits.settings
    configured = {name: getattr(traits, name) for name in OPTION if traits.trait_has_value(name)}
    specs = _settings_of_specs(app, configured)
    leaves_hosts = any(not own for own, _ in specs)
    known = [settings for own, settings in specs if own]
    if leaves_hosts or not known or _set_by_somebody(configured):
        known.insert(0, server)
    found = {
        address: Place(address, settings.login)
        for settings in reversed(known)
        for address in settings.remote_hosts
    }
    order = list(dict.fromkeys(address for settings in known for address in settings.remote_hosts))
    if override is not None:
        order = list(dict.fromkeys(parse_host_list(override, "in --remote-hosts")))
    known_places = [found.get(address, Place(address, server.login)) for address in order]
    return [_for_user(place, user) for place in known_places]


def _for_user(place: Place, user: str) -> Place:
    if user:
        if not is_account_name(user):
            raise ConfigurationError(
                f"--as is {user!r}, which cannot be a user's name on a host: write the name alone."
            )
        return place.for_user(user)
    if needs_user(place.address, place.login):
        raise ConfigurationError(
            f"Whoever logs in to {place.address} depends on whom a kernel is for: say whose kernels you mean with --as USER."
        )
    return place


def named(known: Sequence[Place], text: str) -> list[Place]:
    """The places that `text` names: by their entry, else by the host's name alone."""
    exact = [place for place in known if str(place.address) == text]
    return exact or [place for place in known if place.address.host == text]


def _settings_of_specs(app: StrictApp, configured: Mapping[str, Any]) -> list[tuple[bool, Settings]]:
    """(whether it names hosts itself, settled) for each kernel specification of ours."""
    found = []
    for spec in find_installed(app.kernel_spec_manager):
        try:
            found.append((spec.remote_hosts is not None, resolve(spec.config, configured)))
        except ConfigurationError as error:
            app.log.warning(
                "The kernel specification %s in %s is left out: %s", spec.name, spec.directory, error
            )
    return found


def _set_by_somebody(configured: Mapping[str, Any]) -> bool:
    return "remote_hosts" in configured or OPTION["remote_hosts"].from_environment() is not None
