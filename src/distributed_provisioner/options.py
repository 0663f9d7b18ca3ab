"""Every option once, in one table: its name, its environment variables, its default, its help, where it may be set.

The traits of the provisioner, the frozen `Settings`, the defaults of `jupyter ssh-spec install` and docs/reference/options.md
are all made from `OPTIONS`. How a value is read is in `values.py`; which of several places wins, in `settings.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import values
from .values import Place


@dataclass(frozen=True)
class Option:
    """One option. `default` is in the form that a person would write, never read from the environment."""

    name: str
    environment: tuple[str, ...]
    """In order of precedence; the first one that is set counts."""
    kind: str
    """What a value is, for people."""
    default: Any
    help: str
    parse: Callable[[Any, Place], Any] = field(repr=False)
    default_text: str = ""
    """For people, where `default` alone does not say it."""
    not_in_spec: str = ""
    """Why kernel.json may not set it; empty where it may."""
    empty_counts: bool = False
    """Whether an environment variable that is set but empty is a value (an empty list) instead of nothing."""
    secret: bool = False
    cli_help: str = ""
    """The help of `jupyter ssh-spec install`, where the option is one of that command's, too."""

    def from_environment(self, environ: Mapping[str, str] | None = None) -> tuple[str, str] | None:
        """The variable that sets this option, and its text; None where none does."""
        for variable in self.environment:
            text = (os.environ if environ is None else environ).get(variable)
            if text is not None and (self.empty_counts or text.strip()):
                return variable, text
        return None

    def read(self, environ: Mapping[str, str] | None = None) -> Any:
        """The parsed value from the environment, else the default.

        Raises:
            ConfigurationError: the variable has a value that cannot be used.
        """
        found = self.from_environment(environ)
        if found is None:
            return self.parse(self.default, Place(self.name, "by default"))
        variable, text = found
        place = Place(self.name, f"in the environment variable {variable}", self.secret)
        if variable == "GP_ENABLE_TUNNELING":
            return "ssh" if values.flag(text, place) else "direct"
        return self.parse(text, place)


_USERS_CLI = """List of user names against which KERNEL_USERNAME will be compared. Any match
(case-sensitive) will {effect} To specify multiple names via the CLI,
separate options must be provided for each entry. ({variable} env var - non-bracketed, just comma-separated)"""

OPTIONS: tuple[Option, ...] = (
    Option(
        "remote_hosts",
        ("GP_REMOTE_HOSTS",),
        "list of hosts",
        ("localhost",),
        "The hosts that kernels are started on. In the environment they are separated by commas. An entry is host, user@host,"
        " host:port, user@host:port, an alias of your ssh config, or an IPv6 address in brackets. localhost needs no sshd. The user"
        " {username} stands for what KERNEL_USERNAME says.",
        values.hosts,
        empty_counts=True,
        cli_help="""List of host names on which this kernel can be launched.  Multiple entries must
each be specified via separate options: --remote-hosts host1 --remote-hosts host2""",
    ),
    Option(
        "load_balancing_algorithm",
        ("GP_LOAD_BALANCING_ALGORITHM",),
        "round-robin or least-connection",
        "round-robin",
        "How the host of the next kernel is chosen: round-robin takes the hosts in turn, least-connection the one with the fewest"
        " kernels of this server.",
        values.choice("round-robin", "least-connection"),
        not_in_spec="it is a setting of the host application, for all kernels alike: set c.DistributedProvisioner"
        ".load_balancing_algorithm or GP_LOAD_BALANCING_ALGORITHM instead",
    ),
    Option(
        "authorized_users",
        ("GP_AUTHORIZED_USERS",),
        "set of user names",
        (),
        "The only users who may start the kernel, compared case-sensitively with KERNEL_USERNAME, else with the server's own user."
        " Empty means everybody.",
        values.names,
        default_text="everybody",
        empty_counts=True,
        cli_help=_USERS_CLI.format(
            effect="allow the kernel's launch, otherwise an HTTP 403 (Forbidden) error will be raised.  The set of"
            " unauthorized users takes precedence. This option should be used carefully as it can dramatically limit who can"
            " launch kernels.",
            variable="GP_AUTHORIZED_USERS",
        ),
    ),
    Option(
        "unauthorized_users",
        ("GP_UNAUTHORIZED_USERS",),
        "set of user names",
        ("root",),
        "Users who may not start the kernel, whatever authorized_users says. The names in kernel.json are added to the server's"
        " own. Set but empty means that nobody is refused.",
        values.names,
        empty_counts=True,
        cli_help=_USERS_CLI.format(
            effect="prevent the kernel's launch and result in an HTTP 403 (Forbidden) error.",
            variable="GP_UNAUTHORIZED_USERS",
        ),
    ),
    Option(
        "port_range",
        ("GP_PORT_RANGE",),
        "LOW..HIGH",
        "0..0",
        "The ports that kernels on TCP listen on, both ends in 1024..65535, at least min_port_range_size apart."
        " A range of zero (0..0) means any port.",
        values.range_text,
        default_text="0..0 (any port)",
        cli_help="""Specifies the lower and upper port numbers from which ports are created.
The bounded values are separated by '..' (e.g., 33245..34245 specifies a range of 1000 ports
to be randomly selected). A range of zero (e.g., 33245..33245 or 0..0) disables port-range
enforcement.  (GP_PORT_RANGE env var)""",
    ),
    Option(
        "min_port_range_size",
        ("GP_MIN_PORT_RANGE_SIZE",),
        "whole number",
        1000,
        "The least size of a port_range that is not zero.",
        values.whole(1, 64511),
        not_in_spec="it is a limit that the server sets for all kernels: set c.DistributedProvisioner.min_port_range_size or"
        " GP_MIN_PORT_RANGE_SIZE instead",
    ),
    Option(
        "launch_timeout",
        ("GP_LAUNCH_TIMEOUT", "KERNEL_LAUNCH_TIMEOUT"),
        "seconds, above 0",
        30,
        "How long to wait for the kernel's connection information. KERNEL_LAUNCH_TIMEOUT in a start request wins for that launch."
        " jupyter ssh-spec install writes this option into kernel.json, where it wins over the environment.",
        values.seconds(zero=False),
        cli_help="""Number of seconds to wait for the kernel's connection information. It is always
written into kernel.json, where it wins over the environment. (GP_LAUNCH_TIMEOUT env var)""",
    ),
    Option(
        "remote_user",
        ("GP_REMOTE_USER",),
        "user name",
        "",
        "The user to log in as, for entries of remote_hosts that name none. Unset means the ssh config's user, else the server's;"
        " {username} what KERNEL_USERNAME says.",
        values.login_name,
        default_text="none",
    ),
    Option(
        "remote_pwd",
        ("GP_REMOTE_PWD",),
        "password",
        "",
        "The password to log in with where keys do not do. Prefer the environment variable, or keys: a configuration is shown by"
        " --show-config.",
        values.password,
        default_text="none",
        not_in_spec="a kernel.json reaches browsers: set GP_REMOTE_PWD in the server's environment, or better use keys",
        secret=True,
    ),
    Option(
        "remote_gss_ssh",
        ("GP_REMOTE_GSS_SSH",),
        "true or false",
        False,
        "Log in with a Kerberos ticket (GSSAPI).",
        values.flag,
    ),
    Option(
        "ssh_port",
        ("GP_SSH_PORT",),
        "port",
        22,
        "The port of sshd, for hosts whose entry and ssh config name none.",
        values.whole(1, 65535),
    ),
    Option(
        "kernel_log_dir",
        ("GP_KERNEL_LOG_DIR",),
        "directory on the host",
        "",
        "Where a host keeps the logs of its kernels: one file a kernel, readable by its user alone and bounded in size.",
        values.directory,
        default_text="the listener's private state directory",
    ),
    Option(
        "impersonation_enabled",
        ("GP_IMPERSONATION_ENABLED",),
        "true or false",
        False,
        "Run each kernel as the user that KERNEL_USERNAME names: whoever is logged in to the host starts it there by sudo, which needs a"
        " rule. A launch without KERNEL_USERNAME is refused then.",
        values.flag,
    ),
    Option(
        "transport",
        ("GP_TRANSPORT", "GP_ENABLE_TUNNELING"),
        "ssh or direct",
        "ssh",
        "How messages reach a kernel: inside the SSH connection, or directly at the host's own address inside port_range."
        " GP_ENABLE_TUNNELING=false means direct, true means ssh.",
        values.choice("ssh", "direct"),
    ),
    Option(
        "remote_python",
        ("GP_REMOTE_PYTHON",),
        "command on the host",
        "python3",
        "What the `python` of a kernel.json's argv means on the hosts.",
        values.command,
    ),
    Option(
        "connect_timeout",
        ("GP_CONNECT_TIMEOUT",),
        "seconds, above 0",
        10,
        "How long to wait for a host to accept a connection and log in, before the next host is tried.",
        values.seconds(zero=False),
    ),
    Option(
        "keepalive_interval",
        ("GP_KEEPALIVE_INTERVAL",),
        "seconds, above 0",
        4,
        "How long a host may be silent before it is asked for a sign of life. When three of these have passed without a word, the"
        " connection counts as lost: after 12 seconds by default.",
        values.seconds(zero=False),
        not_in_spec="one connection serves all kernels on a host: set c.DistributedProvisioner.keepalive_interval or"
        " GP_KEEPALIVE_INTERVAL instead",
    ),
    Option(
        "unreachable_timeout",
        ("GP_UNREACHABLE_TIMEOUT",),
        "seconds, 0 for never",
        0,
        "How long a kernel whose host cannot be reached counts as alive. Nothing is ever restarted by itself after that.",
        values.seconds(zero=True),
        default_text="0 (for ever)",
    ),
    Option(
        "orphan_timeout",
        ("GP_ORPHAN_TIMEOUT",),
        "seconds, 0 for never",
        86400,
        "How long a kernel lives on whose server is not heard of any more. Then its host ends it. KERNEL_ORPHAN_TIMEOUT in a start"
        " request wins for that kernel.",
        values.seconds(zero=True),
        default_text="86400 (24 hours)",
    ),
    Option(
        "output_limit",
        ("GP_OUTPUT_LIMIT",),
        "MB, a whole number",
        64,
        "How much of a kernel's output its host keeps while no server is there. Beyond it the oldest goes first, text that was printed"
        " before anything else, and a line in the cell says how much.",
        values.whole(1, 1 << 20),
    ),
    Option(
        "on_server_stop",
        ("GP_ON_SERVER_STOP",),
        "end or keep",
        "end",
        "What an orderly stop of Jupyter Server does with its kernels: end them, as Jupyter does, or keep them for the next start of the"
        " same server. A crash keeps them in any case. Kernels that are being started or restarted at that moment are ended.",
        values.choice("end", "keep"),
    ),
    Option(
        "adopt_kernels",
        ("GP_ADOPT_KERNELS",),
        "true or false",
        True,
        "Whether Jupyter Server, when it starts, goes on with the kernels of its earlier run: those of the same user, machine, root"
        " directory and configuration directory whose own server is gone.",
        values.flag,
        not_in_spec="it is a setting of the host application, for all kernels alike: set c.DistributedProvisioner.adopt_kernels or"
        " GP_ADOPT_KERNELS instead",
    ),
    Option(
        "allow_any_pinned_host",
        ("GP_ALLOW_ANY_PINNED_HOST",),
        "true or false",
        False,
        "Let KERNEL_REMOTE_HOST name hosts that are not among remote_hosts.",
        values.flag,
    ),
    Option(
        "allow_plain_text",
        ("GP_ALLOW_PLAIN_TEXT",),
        "true or false",
        False,
        "With the direct transport, let kernels that cannot encrypt send their messages over the network in plain text.",
        values.flag,
    ),
    Option(
        "kernel_transport",
        ("GP_KERNEL_TRANSPORT",),
        "ipc or tcp",
        "",
        "What kernels listen on: Unix sockets in a private directory (ipc) or loopback ports (tcp). Unset means ipc for kernels"
        " that our Python launcher or ipykernel_launcher starts, else tcp.",
        values.choice("ipc", "tcp", none=True),
        default_text="ipc where the kernel is known to support it",
    ),
    Option(
        "interrupt_target",
        ("GP_INTERRUPT_TARGET",),
        "group or kernel",
        "group",
        "Who gets an interrupt: the kernel's process group, or the reported kernel process alone.",
        values.choice("group", "kernel"),
    ),
    Option(
        "prefork",
        ("GP_PREFORK",),
        "true or false",
        True,
        "Start Python kernels as forks of a process on the host that has imported what they all import. The first kernel of its kind"
        " starts as usual; so does each that a fork could not be equal to.",
        values.flag,
    ),
    Option(
        "preload",
        ("GP_PRELOAD",),
        "list of modules",
        (),
        "What the process that kernels are forked from imports beside: numpy, pandas, matplotlib.pyplot, … In the environment they are"
        " separated by commas.",
        values.modules,
        default_text="nothing",
        empty_counts=True,
    ),
    Option(
        "prefork_idle",
        ("GP_PREFORK_IDLE",),
        "seconds, above 0",
        1800,
        "How long a process that kernels are forked from stays while no kernel is started.",
        values.seconds(zero=False),
    ),
)

OPTION: Mapping[str, Option] = {option.name: option for option in OPTIONS}
"""The table by name."""
