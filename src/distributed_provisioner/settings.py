"""The options of a kernel, settled: kernel.json, then the configuration, then the environment, then the default.

The only reader of the environment on the server side. Nothing is read at import.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, cast

from traitlets import TraitType
from traitlets.config import Config, Configurable

from . import values
from .errors import ConfigurationError
from .models import HostAddress, Login, Policy, PortRange
from .options import OPTION, OPTIONS, Option
from .values import Place, Secret

__all__ = ["OPTION", "OPTIONS", "Option", "Settings", "SettingsTraits"]
__all__ += ["launch_timeout_for", "orphan_timeout_for", "parse_host_list", "parse_port_range", "resolve"]

_IN_SPEC = "in kernel.json"
_JUPYTER_KEYWORDS = {"kernel_id", "kernel_spec", "parent"}
LAUNCH_TIMEOUT_VARIABLE = "KERNEL_LAUNCH_TIMEOUT"
ORPHAN_TIMEOUT_VARIABLE = "KERNEL_ORPHAN_TIMEOUT"


@dataclass(frozen=True)
class Settings:
    """What holds for one kernel. Times are seconds."""

    remote_hosts: tuple[HostAddress, ...]
    policy: Policy
    authorized_users: frozenset[str]
    """Empty means everybody."""
    unauthorized_users: frozenset[str]
    """The server's own and the kernel's, together; wins over `authorized_users`."""
    port_range: PortRange
    launch_timeout: float
    login: Login
    kernel_log_dir: str
    """Empty means the listener's private state directory."""
    impersonation_enabled: bool
    transport: Literal["ssh", "direct"]
    remote_python: str
    connect_timeout: float
    unreachable_timeout: float
    """0 means never."""
    orphan_timeout: float
    output_limit: int
    """MB."""
    """0 means never."""
    on_server_stop: Literal["end", "keep"]
    adopt_kernels: bool
    allow_any_pinned_host: bool
    allow_plain_text: bool
    kernel_transport: Literal["ipc", "tcp"] | None
    """None means: ipc where the kernel is known to support it."""
    interrupt_target: Literal["group", "kernel"]
    prefork: bool
    preload: tuple[str, ...]
    prefork_idle: float


class OptionTrait(TraitType[Any, Any]):
    """A trait for an `Option`: keeps what was configured as it is; its default is the environment, read when first asked for.

    Values are judged in `resolve`, which knows where each comes from and can say so.
    """

    info_text = "a value of this option"

    def __init__(self, option: Option) -> None:
        super().__init__(help=option.help)
        self.option = option
        self.tag(config=True)

    def default(self, obj: Any = None) -> Any:
        return _plain(self.option.read())

    def validate(self, obj: Any, value: Any) -> Any:
        return Secret(value) if self.option.secret and isinstance(value, str) else value

    def from_string_list(self, s_list: list[str]) -> list[str]:
        """Several `--DistributedProvisioner.remote_hosts=…` on a command line."""
        return list(s_list)

    def default_value_repr(self) -> str:
        return repr(_plain(self.option.parse(self.option.default, Place(self.name or "", "by default"))))


class SettingsTraits(Configurable):
    """Mixin for the provisioner: all options as traits, and `settings`, resolved when it is constructed.

    jupyter_client hands the `config` of kernel.json's stanza over as keyword arguments. Those are taken for kernel.json's, never
    given to traitlets, and must be options.

    Raises:
        ConfigurationError: an option is unknown, not allowed where it stands, or has a value that cannot be used.
    """

    settings: Settings

    locals().update({option.name: OptionTrait(option) for option in OPTIONS})

    def __init__(self, **kwargs: Any) -> None:
        spec = {name: kwargs.pop(name) for name in tuple(kwargs) if not _is_jupyters(name, kwargs[name])}
        refuse_foreign(spec)
        super().__init__(**kwargs)
        _mask_secrets(self.config, self.section_names())
        configured = {name: getattr(self, name) for name in OPTION if self.trait_has_value(name)}
        self.settings = resolve(spec, configured, os.environ)
        for name, value in spec.items():
            if value is not None:
                setattr(self, name, value)


class ServerSettings(SettingsTraits):
    """What the configuration of an application says of the provisioner, outside of any kernel: its `configured` options."""

    @classmethod
    def section_names(cls) -> list[str]:
        return ["DistributedProvisioner"]

    def configured(self) -> dict[str, Any]:
        """The options that are set in the configuration, unparsed, as `resolve` takes them."""
        return {name: getattr(self, name) for name in OPTION if self.trait_has_value(name)}


def server_environment() -> dict[str, str]:
    """The host application's own environment, against which a start request's is compared."""
    return dict(os.environ)


def resolve(
    spec: Mapping[str, Any], configured: Mapping[str, Any], environ: Mapping[str, str] | None = None
) -> Settings:
    """Settle the options from the `config` of kernel.json, the values of `c.DistributedProvisioner`, and the environment.

    None as a value means: not set there.

    Raises:
        ConfigurationError: see `SettingsTraits`.
    """
    refuse_foreign(spec)
    environment = os.environ if environ is None else environ
    own = {name: value for name, value in spec.items() if value is not None}
    general = {name: value for name, value in configured.items() if value is not None}

    def place(name: str) -> Place:
        if name in own:
            return Place(name, _IN_SPEC, OPTION[name].secret)
        if name in general:
            return _configured(name)
        found = OPTION[name].from_environment(environment)
        return Place(
            name, f"in the environment variable {found[0]}" if found else "by default", OPTION[name].secret
        )

    def server_wide(name: str) -> Any:
        option = OPTION[name]
        return option.parse(general[name], _configured(name)) if name in general else option.read(environment)

    def value(name: str) -> Any:
        return OPTION[name].parse(own[name], place(name)) if name in own else server_wide(name)

    if value("transport") == "direct" and value("kernel_transport") == "ipc":
        raise ConfigurationError(
            f"kernel_transport is 'ipc' {place('kernel_transport').where}, but transport is 'direct'"
            f" {place('transport').where}, which needs ports: write tcp or take kernel_transport out, or set transport to ssh."
        )
    return Settings(
        remote_hosts=value("remote_hosts"),
        policy=cast(Policy, value("load_balancing_algorithm")),
        authorized_users=value("authorized_users"),
        unauthorized_users=server_wide("unauthorized_users") | value("unauthorized_users"),
        port_range=values.port_range(value("port_range"), value("min_port_range_size"), place("port_range")),
        launch_timeout=value("launch_timeout"),
        login=Login(
            user=value("remote_user") or None,
            password=value("remote_pwd") or None,
            gss=value("remote_gss_ssh"),
            port=value("ssh_port"),
            connect_timeout=value("connect_timeout"),
            keepalive_interval=value("keepalive_interval"),
        ),
        kernel_log_dir=value("kernel_log_dir"),
        impersonation_enabled=value("impersonation_enabled"),
        transport=value("transport"),
        remote_python=value("remote_python"),
        connect_timeout=value("connect_timeout"),
        unreachable_timeout=value("unreachable_timeout"),
        orphan_timeout=value("orphan_timeout"),
        output_limit=value("output_limit"),
        on_server_stop=value("on_server_stop"),
        adopt_kernels=server_wide("adopt_kernels"),
        allow_any_pinned_host=value("allow_any_pinned_host"),
        allow_plain_text=value("allow_plain_text"),
        kernel_transport=value("kernel_transport") or None,
        interrupt_target=value("interrupt_target"),
        prefork=value("prefork"),
        preload=value("preload"),
        prefork_idle=value("prefork_idle"),
    )


def launch_timeout_for(
    settings: Settings, request_env: Mapping[str, str], environ: Mapping[str, str] | None = None
) -> float:
    """The seconds that this launch may take: `KERNEL_LAUNCH_TIMEOUT` of the start request, else the setting.

    Raises:
        ConfigurationError: the request's value is not a number of seconds above 0.
    """
    return _requested_seconds(
        "launch_timeout", LAUNCH_TIMEOUT_VARIABLE, settings.launch_timeout, request_env, environ
    )


def orphan_timeout_for(
    settings: Settings, request_env: Mapping[str, str], environ: Mapping[str, str] | None = None
) -> float:
    """The seconds that this kernel outlives its server, 0 for ever: `KERNEL_ORPHAN_TIMEOUT` of the start request, else the setting.

    Raises:
        ConfigurationError: the request's value is not a number of seconds.
    """
    return _requested_seconds(
        "orphan_timeout", ORPHAN_TIMEOUT_VARIABLE, settings.orphan_timeout, request_env, environ
    )


def _requested_seconds(
    option: str, name: str, default: float, request_env: Mapping[str, str], environ: Mapping[str, str] | None
) -> float:
    """A request that brings the server's whole environment (JupyterLab's do) has said nothing with a value that is the server's own."""
    text = request_env.get(name, "")
    environment = os.environ if environ is None else environ
    if not text.strip() or text == environment.get(name):
        return default
    return cast(float, OPTION[option].parse(text, Place(name, "in the start request")))


def parse_port_range(text: str, minimum_size: int | None = None, where: str = "") -> PortRange:
    """Read `LOW..HIGH`. A range of zero (LOW equal to HIGH) gives `PortRange()`, which is false: any port.

    `minimum_size` counts as the page does: 33245..34245 has 1000 ports. Without it, `GP_MIN_PORT_RANGE_SIZE` or 1000 holds.

    Raises:
        ConfigurationError: not a range, the wrong way round, outside 1024..65535, or too small.
    """
    minimum = OPTION["min_port_range_size"].read() if minimum_size is None else minimum_size
    return values.port_range(text, minimum, Place("port_range", where))


def parse_host_list(value: str | Iterable[str], where: str = "") -> tuple[HostAddress, ...]:
    """Read `remote_hosts`: a list, or text separated by commas; blanks and empty items are ignored.

    Raises:
        ConfigurationError: an entry is not a host, or there is none.
    """
    return values.hosts(value if isinstance(value, str) else list(value), Place("remote_hosts", where))


def refuse_foreign(spec: Mapping[str, Any]) -> None:
    """Refuse what kernel.json may not set: unknown names, and options that belong to the server."""
    for name in spec:
        if name not in OPTION:
            near = get_close_matches(name, OPTION, n=1)
            hint = f"did you mean {near[0]}?" if near else "take it out, or see docs/reference/options.md."
            raise ConfigurationError(
                f"'{name}' in metadata.kernel_provisioner.config of kernel.json is not an option of this provisioner: {hint}"
            )
        if OPTION[name].not_in_spec and spec[name] is not None:
            raise ConfigurationError(
                f"{name} cannot be set in kernel.json, because {OPTION[name].not_in_spec}."
            )


def _is_jupyters(name: str, value: Any) -> bool:
    """Whether a keyword argument comes from jupyter_client; one of the same name in kernel.json would be plain JSON."""
    if name == "config":
        return isinstance(value, Config)
    if name == "log":
        return isinstance(value, logging.Logger | logging.LoggerAdapter)
    return name in _JUPYTER_KEYWORDS


def _configured(name: str) -> Place:
    return Place(name, f"in the configuration (c.DistributedProvisioner.{name})", OPTION[name].secret)


def _plain(value: Any) -> Any:
    """As a person would write it in a configuration, so that `c.….remote_hosts.append(…)` works."""
    if isinstance(value, tuple):
        return [str(item) for item in value]
    return set(value) if isinstance(value, frozenset) else value


def _mask_secrets(config: Config, sections: Iterable[str]) -> None:
    """Replace passwords in the configuration by equal text that hides in reprs, since applications log and dump theirs."""
    for section in sections:
        if section in config:
            for option in OPTIONS:
                if option.secret and isinstance(config[section].get(option.name), str):
                    config[section][option.name] = Secret(config[section][option.name])
