"""Options: three ways in, one order of precedence, one sentence for each thing that is wrong."""

from __future__ import annotations

import copy
import math
import pprint
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from traitlets.config import Config

from distributed_provisioner.errors import ConfigurationError
from distributed_provisioner.models import HostAddress, PortRange
from distributed_provisioner.options import OPTION, OPTIONS
from distributed_provisioner.settings import (
    Settings,
    SettingsTraits,
    launch_timeout_for,
    orphan_timeout_for,
    parse_host_list,
    parse_port_range,
    resolve,
)

SECRET = "hunter2-is-not-to-be-seen"


class DistributedProvisioner(SettingsTraits, LocalProvisioner):  # type: ignore[metaclass] # mypy does not see that one derives
    """The real mixin on a real provisioner, under the name that people's configuration has."""


@dataclass(frozen=True)
class Ways:
    """One value for each way in, as people write it there, and what the settings then have."""

    get: Callable[[Settings], Any]
    default: Any
    env: tuple[str, Any]
    config: tuple[Any, Any]
    spec: tuple[Any, Any] | None


def hosts(*names: str) -> tuple[HostAddress, ...]:
    return tuple(map(HostAddress, names))


WAYS: dict[str, Ways] = {
    "remote_hosts": Ways(
        lambda s: s.remote_hosts,
        hosts("localhost"),
        (" e1 ,,e2, ", hosts("e1", "e2")),
        (["c1", "c2"], hosts("c1", "c2")),
        (["u@s1:2222", "[::1]"], (HostAddress("s1", "u", 2222), HostAddress("::1"))),
    ),
    "load_balancing_algorithm": Ways(
        lambda s: s.policy,
        "round-robin",
        ("least-connection", "least-connection"),
        ("least-connection", "least-connection"),
        None,
    ),
    "authorized_users": Ways(
        lambda s: s.authorized_users,
        frozenset(),
        ("ann, bob", frozenset({"ann", "bob"})),
        ({"carl"}, frozenset({"carl"})),
        (["dora"], frozenset({"dora"})),
    ),
    "unauthorized_users": Ways(
        lambda s: s.unauthorized_users,
        frozenset({"root"}),
        ("eve", frozenset({"eve"})),
        (["carl"], frozenset({"carl"})),
        (["dora"], frozenset({"carl", "dora"})),  # and the server's own: see below
    ),
    "port_range": Ways(
        lambda s: s.port_range,
        PortRange(),
        ("2000..3000", PortRange(2000, 3000)),
        ("3000..4000", PortRange(3000, 4000)),
        (" 4000 .. 5000 ", PortRange(4000, 5000)),
    ),
    "min_port_range_size": Ways(
        lambda s: None, None, ("5", None), (6, None), None
    ),  # has no field; see its own test
    "launch_timeout": Ways(lambda s: s.launch_timeout, 30.0, ("41.5", 41.5), (42, 42.0), ("43", 43.0)),
    "remote_user": Ways(lambda s: s.login.user, None, ("env", "env"), ("conf", "conf"), ("spec", "spec")),
    "remote_pwd": Ways(lambda s: s.login.password, None, ("p env", "p env"), ("p conf ", "p conf "), None),
    "remote_gss_ssh": Ways(lambda s: s.login.gss, False, ("yes", True), (True, True), ("on", True)),
    "ssh_port": Ways(lambda s: s.login.port, 22, ("2201", 2201), (2202, 2202), ("2203", 2203)),
    "kernel_log_dir": Ways(lambda s: s.kernel_log_dir, "", ("/e", "/e"), ("/c", "/c"), ("~/s", "~/s")),
    "impersonation_enabled": Ways(
        lambda s: s.impersonation_enabled, False, ("true", True), (False, False), ("1", True)
    ),
    "transport": Ways(
        lambda s: s.transport, "ssh", ("direct", "direct"), ("direct", "direct"), ("direct", "direct")
    ),
    "remote_python": Ways(
        lambda s: s.remote_python,
        "python3",
        ("python3.9", "python3.9"),
        ("/c/bin/py", "/c/bin/py"),
        ("pypy3", "pypy3"),
    ),
    "connect_timeout": Ways(lambda s: s.login.connect_timeout, 10.0, ("11", 11.0), (12, 12.0), ("13", 13.0)),
    "keepalive_interval": Ways(lambda s: s.login.keepalive_interval, 4.0, ("1", 1.0), (2, 2.0), None),
    "unreachable_timeout": Ways(lambda s: s.unreachable_timeout, 0.0, ("1", 1.0), (2, 2.0), ("3", 3.0)),
    "orphan_timeout": Ways(lambda s: s.orphan_timeout, 86400.0, ("1", 1.0), (2, 2.0), ("3", 3.0)),
    "output_limit": Ways(lambda s: s.output_limit, 64, ("1", 1), (2, 2), ("3", 3)),
    "on_server_stop": Ways(
        lambda s: s.on_server_stop, "end", ("KEEP", "keep"), ("keep", "keep"), ("keep", "keep")
    ),
    "adopt_kernels": Ways(lambda s: s.adopt_kernels, True, ("no", False), (False, False), None),
    "allow_any_pinned_host": Ways(
        lambda s: s.allow_any_pinned_host, False, ("1", True), (True, True), ("true", True)
    ),
    "allow_plain_text": Ways(lambda s: s.allow_plain_text, False, ("On", True), (True, True), (True, True)),
    "kernel_transport": Ways(
        lambda s: s.kernel_transport, None, ("tcp", "tcp"), ("ipc", "ipc"), ("TCP", "tcp")
    ),
    "interrupt_target": Ways(
        lambda s: s.interrupt_target,
        "group",
        ("kernel", "kernel"),
        ("kernel", "kernel"),
        ("kernel", "kernel"),
    ),
    "prefork": Ways(lambda s: s.prefork, True, ("no", False), (False, False), (False, False)),
    "preload": Ways(
        lambda s: s.preload,
        (),
        ("numpy, matplotlib.pyplot", ("numpy", "matplotlib.pyplot")),
        (["numpy"], ("numpy",)),
        (["numpy", "numpy"], ("numpy",)),
    ),
    "prefork_idle": Ways(lambda s: s.prefork_idle, 1800.0, ("60", 60.0), (60, 60.0), (60, 60.0)),
}


def provisioner(
    spec: dict[str, Any] | None = None, config: dict[str, Any] | None = None
) -> DistributedProvisioner:
    """Made by jupyter_client's own factory, from a kernelspec with a stanza."""
    factory = KernelProvisionerFactory.instance()
    factory.provisioners["test-settings"] = EntryPoint(
        "test-settings", f"{__name__}:{DistributedProvisioner.__name__}", factory.GROUP_NAME
    )
    stanza = {"provisioner_name": "test-settings", "config": spec or {}}
    parent = KernelManager(config=Config({"DistributedProvisioner": config or {}}))
    made = factory.create_provisioner_instance(
        kernel_id="k", kernel_spec=KernelSpec(argv=[], metadata={"kernel_provisioner": stanza}), parent=parent
    )
    assert isinstance(made, DistributedProvisioner)
    return made


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(ConfigurationError) as caught:
        action()
    return str(caught.value)


def test_every_option_has_its_ways_here() -> None:
    """An option that is added without a test of its three ways in could be read from the wrong place unnoticed."""
    assert list(WAYS) == [option.name for option in OPTIONS]


@pytest.mark.parametrize("name", WAYS)
def test_default(name: str) -> None:
    """Without any configuration a kernel would get something else than the page says."""
    assert WAYS[name].get(provisioner().settings) == WAYS[name].default


@pytest.mark.parametrize("name", WAYS)
def test_environment_beats_default(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A site that is configured by GP_ variables alone would run with defaults."""
    text, expected = WAYS[name].env
    monkeypatch.setenv(f"GP_{name.upper()}", text)
    assert WAYS[name].get(provisioner().settings) == expected


@pytest.mark.parametrize("name", WAYS)
def test_configuration_beats_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """c.DistributedProvisioner would be ignored where a variable is set."""
    value, expected = WAYS[name].config
    monkeypatch.setenv(f"GP_{name.upper()}", WAYS[name].env[0])
    assert WAYS[name].get(provisioner(config={name: value}).settings) == expected


@pytest.mark.parametrize("name", [name for name, ways in WAYS.items() if ways.spec is not None])
def test_kernel_json_beats_configuration(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel's own setting would be ignored."""
    ways = WAYS[name]
    assert ways.spec is not None
    monkeypatch.setenv(f"GP_{name.upper()}", ways.env[0])
    made = provisioner(spec={name: ways.spec[0]}, config={name: ways.config[0]})
    assert ways.get(made.settings) == ways.spec[1]
    assert getattr(made, name) == ways.spec[0]


def test_names_in_kernel_json_add_to_the_servers() -> None:
    """A kernel.json could let a user in whom the site keeps out."""
    assert resolve({"unauthorized_users": "eve"}, {}, {}).unauthorized_users == {"root", "eve"}
    assert resolve({"unauthorized_users": []}, {}, {}).unauthorized_users == {"root"}


def test_set_but_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """GP_UNAUTHORIZED_USERS= is how a site lets root in, GP_AUTHORIZED_USERS= how it lets in everybody."""
    monkeypatch.setenv("GP_UNAUTHORIZED_USERS", "")
    monkeypatch.setenv("GP_AUTHORIZED_USERS", " ")
    monkeypatch.setenv("GP_LAUNCH_TIMEOUT", "")
    settings = provisioner().settings
    assert settings.unauthorized_users == settings.authorized_users == frozenset()
    assert settings.launch_timeout == 30
    monkeypatch.setenv("GP_REMOTE_HOSTS", " , ")
    assert refusal(provisioner) == (
        "remote_hosts is empty in the environment variable GP_REMOTE_HOSTS: name at least one host, for example localhost."
    )


def test_an_empty_list_is_refused_wherever_it_stands() -> None:
    """A server without hosts would only say so at the first launch, or not at all."""
    assert "is empty in kernel.json" in refusal(lambda: provisioner(spec={"remote_hosts": []}))
    assert "is empty in the configuration" in refusal(lambda: provisioner(config={"remote_hosts": ""}))


def test_second_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Environments made for gateway-provisioners have these names."""
    monkeypatch.setenv("KERNEL_LAUNCH_TIMEOUT", "50")
    monkeypatch.setenv("GP_ENABLE_TUNNELING", "False")
    assert (provisioner().settings.launch_timeout, provisioner().settings.transport) == (50, "direct")
    monkeypatch.setenv("GP_ENABLE_TUNNELING", "true")
    assert provisioner().settings.transport == "ssh"
    monkeypatch.setenv("GP_LAUNCH_TIMEOUT", "60")
    monkeypatch.setenv("GP_TRANSPORT", "direct")
    assert (provisioner().settings.launch_timeout, provisioner().settings.transport) == (60, "direct")


def test_nothing_is_read_at_import() -> None:
    """A variable that is set after the import, as notebooks and tests do, would have no effect, and a bad one would break the import."""
    code = "import os; os.environ['GP_LAUNCH_TIMEOUT'] = 'bad'; import distributed_provisioner.settings as s, os\n"
    code += "os.environ['GP_LAUNCH_TIMEOUT'] = '77'; print(s.resolve({}, {}).launch_timeout, s.SettingsTraits().launch_timeout)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["77.0", "77.0"]


def test_lists_can_be_appended_to_in_a_configuration_file() -> None:
    """c.DistributedProvisioner.remote_hosts.append(…) is usual in configuration files, and = "a,b" on command lines."""
    config = Config()
    config.DistributedProvisioner.remote_hosts.append("host2")
    config.DistributedProvisioner.unauthorized_users.add("eve")
    settings = DistributedProvisioner(config=config).settings
    assert settings.remote_hosts == hosts("localhost", "host2")
    assert settings.unauthorized_users == {"root", "eve"}
    assert provisioner(config={"remote_hosts": "a, b"}).settings.remote_hosts == hosts("a", "b")


def test_null_in_kernel_json_means_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tools that write every key would switch the server's settings off."""
    monkeypatch.setenv("GP_LAUNCH_TIMEOUT", "44")
    assert provisioner(spec={"launch_timeout": None, "remote_hosts": None}).settings.launch_timeout == 44


def test_least_port_range_size_is_the_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A site with few open ports could not allow a small range."""
    assert "at least 1000 ports" in refusal(lambda: resolve({"port_range": "2000..2100"}, {}, {}))
    monkeypatch.setenv("GP_MIN_PORT_RANGE_SIZE", "100")
    assert provisioner(spec={"port_range": "2000..2100"}).settings.port_range == PortRange(2000, 2100)
    assert "at least 101 ports" in refusal(
        lambda: provisioner(spec={"port_range": "2000..2100"}, config={"min_port_range_size": 101})
    )


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (
            {"remote_host": ["a"]},
            "'remote_host' in metadata.kernel_provisioner.config of kernel.json is not an option of this provisioner:"
            " did you mean remote_hosts?",
        ),
        (
            {"colour": 1},
            "'colour' in metadata.kernel_provisioner.config of kernel.json is not an option of this provisioner:"
            " take it out, or see docs/reference/options.md.",
        ),
        (
            {"load_balancing_algorithm": "round-robin"},
            "load_balancing_algorithm cannot be set in kernel.json, because it is a setting of the host application, for all"
            " kernels alike: set c.DistributedProvisioner.load_balancing_algorithm or GP_LOAD_BALANCING_ALGORITHM instead.",
        ),
        (
            {"remote_pwd": SECRET},
            "remote_pwd cannot be set in kernel.json, because a kernel.json reaches browsers: set GP_REMOTE_PWD in the server's"
            " environment, or better use keys.",
        ),
        (
            {"transport": "direct", "kernel_transport": "ipc"},
            "kernel_transport is 'ipc' in kernel.json, but transport is 'direct' in kernel.json, which needs ports: write tcp or"
            " take kernel_transport out, or set transport to ssh.",
        ),
        (
            {"remote_hosts": ["ok", "a b"]},
            "remote_hosts has 'a b' in kernel.json, which is not a host: write host, user@host, host:port, user@host:port, or"
            " [IPv6]:port.",
        ),
        (
            {"launch_timeout": "soon"},
            "launch_timeout is 'soon' in kernel.json: write a number of seconds above 0, for example 30.",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_kernel_json_may_not_have(spec: dict[str, Any], sentence: str) -> None:
    """A mistake in kernel.json would pass in silence, or show as a traceback."""
    assert refusal(lambda: provisioner(spec=spec)) == sentence


def test_the_sentence_names_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """People would look for the mistake in the wrong one of three places."""
    assert refusal(lambda: provisioner(config={"ssh_port": 0})) == (
        "ssh_port is 0 in the configuration (c.DistributedProvisioner.ssh_port): write a whole number from 1 to 65535."
    )
    monkeypatch.setenv("GP_LOAD_BALANCING_ALGORITHM", "random")
    assert refusal(provisioner) == (
        "load_balancing_algorithm is 'random' in the environment variable GP_LOAD_BALANCING_ALGORITHM: write round-robin or"
        " least-connection."
    )


BAD: dict[str, list[Any]] = {
    "remote_hosts": [5, {"a": 1}, [1], "a b", "@host", "h:0", "h:70000"],
    "load_balancing_algorithm": ["random", 1, ""],
    "authorized_users": [5, [1], {"a": "b"}],
    "port_range": [
        "1000",
        2000,
        ["2000", "4000"],
        "4000..2000",
        "80..5000",
        "60000..70000",
        "2000..2999",
        "-1..-1",
    ],
    "min_port_range_size": [0, -1, "x", 1.5, True],
    "launch_timeout": [0, -1, math.nan, math.inf, "nan", "inf", "soon", "", True, [30], 10**400],
    "unreachable_timeout": [-0.1, "-1", math.nan],
    "orphan_timeout": [-1, "x"],
    "output_limit": [0, -1, "x", 1.5, True],
    "connect_timeout": [0, -5],
    "keepalive_interval": [0, -1],
    "remote_user": ["a b", "-oProxyCommand=x", 5, "a@b", "a;b", "a\nb"],
    "remote_gss_ssh": ["maybe", 2, [], ""],
    "ssh_port": [0, 65536, "ssh", True, 22.5],
    "kernel_log_dir": ["logs", 5, "/a\nb"],
    "transport": ["udp", ""],
    "remote_python": ["", "-c", "bin/python", 3, "a\0b"],
    "kernel_transport": ["direct", "udp"],
    "interrupt_target": ["all", ""],
    "prefork": ["perhaps", 2],
    "preload": ["not a module", ["numpy;"], 3, "a..b"],
    "prefork_idle": [0, -1, "long"],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD.items() for value in values]
)
def test_values_that_cannot_be_used(name: str, value: Any) -> None:
    """A kernel would start with a setting that nobody asked for, or fail much later."""
    sentence = refusal(lambda: provisioner(config={name: value}))
    assert sentence.startswith(name)
    assert "in the configuration" in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence


@given(st.text() | st.integers() | st.floats() | st.none() | st.lists(st.text()) | st.booleans())
def test_any_value_is_taken_or_refused_in_words(value: Any) -> None:
    """A value that nobody thought of would end as a traceback."""
    for option in OPTIONS:
        said = settled_or_sentence({option.name: value})
        assert isinstance(said, Settings) or option.name in said


def settled_or_sentence(configured: dict[str, Any]) -> Settings | str:
    try:
        return resolve({}, configured, {})
    except ConfigurationError as error:
        return str(error)


def test_names_of_jupyters_own_keywords_are_no_options() -> None:
    """kernel.json could replace the configuration or the log of the provisioner."""
    specs: list[dict[str, Any]] = [{"config": {"a": 1}}, {"log": "x"}, {"connection_info": {}}]
    for spec in specs:
        with pytest.raises(ConfigurationError, match=f"'{next(iter(spec))}' in metadata"):
            provisioner(spec=spec)


def test_password_is_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A password would reach a log, a terminal, or a screenshot."""
    monkeypatch.setenv("GP_REMOTE_PWD", SECRET)
    by_environment = provisioner()
    by_configuration = provisioner(config={"remote_pwd": SECRET})
    shown = [DistributedProvisioner.class_get_help(), DistributedProvisioner.class_config_section()]
    for made in (by_environment, by_configuration):
        assert made.settings.login.password == SECRET
        shown += [
            repr(made.settings),
            repr(made),
            repr(made.trait_values()),
            repr(made.config),
            made.class_get_help(made),
        ]
        shown += [pprint.pformat(made.config), repr(copy.deepcopy(made.config)), repr(made.settings.login)]
    shown.append(refusal(lambda: provisioner(spec={"remote_pwd": SECRET})))
    shown.append(refusal(lambda: provisioner(config={"remote_pwd": [SECRET]})))
    assert [text for text in shown if SECRET in text] == []


def test_launch_timeout_of_a_start_request() -> None:
    """Somebody with a slow kernel could not ask for more time; or a variable of the server would overrule kernel.json."""
    settings = resolve({"launch_timeout": 40}, {}, {})
    assert launch_timeout_for(settings, {"KERNEL_LAUNCH_TIMEOUT": "90"}, {}) == 90
    assert (
        launch_timeout_for(settings, {}, {})
        == launch_timeout_for(settings, {"KERNEL_LAUNCH_TIMEOUT": ""}, {})
        == 40
    )
    server = {"KERNEL_LAUNCH_TIMEOUT": "50"}
    assert launch_timeout_for(settings, server, server) == 40
    assert refusal(lambda: launch_timeout_for(settings, {"KERNEL_LAUNCH_TIMEOUT": "-1"}, {})) == (
        "KERNEL_LAUNCH_TIMEOUT is '-1' in the start request: write a number of seconds above 0, for example 30."
    )


def test_a_kernel_may_have_a_lease_of_its_own() -> None:
    """A computation of a week must be able to outlive its server for longer than others, or for ever."""
    settings = resolve({"orphan_timeout": 40}, {}, {})
    assert orphan_timeout_for(settings, {"KERNEL_ORPHAN_TIMEOUT": "90"}, {}) == 90
    assert orphan_timeout_for(settings, {"KERNEL_ORPHAN_TIMEOUT": "0"}, {}) == 0
    assert orphan_timeout_for(settings, {}, {}) == 40
    server = {"KERNEL_ORPHAN_TIMEOUT": "7"}
    assert orphan_timeout_for(settings, server, server) == 40
    assert "in the start request" in refusal(
        lambda: orphan_timeout_for(settings, {"KERNEL_ORPHAN_TIMEOUT": "soon"}, {})
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("33245-34245", "write LOW..HIGH, for example 33245..34245, or 0..0 for any port."),
        ("34245..33245", "write the lower end first (33245..34245)."),
        ("80..5000", "write two ends from 1024 to 65535, or 0..0 for any port."),
        ("64000..65536", "write two ends from 1024 to 65535, or 0..0 for any port."),
        ("33245..34244", "write a range of at least 1000 ports (this one has 999), or 0..0 for any port."),
    ],
)
def test_port_ranges_that_cannot_be_used(text: str, sentence: str) -> None:
    """Each fault has its own cure; "invalid port range" has none."""
    assert refusal(lambda: parse_port_range(text)) == f"port_range is '{text}': {sentence}"


def test_port_ranges() -> None:
    """The page's own example would be refused, or a zero range would not mean any port."""
    assert parse_port_range("33245..34245") == PortRange(33245, 34245)
    assert parse_port_range("1024..65535") == PortRange(1024, 65535)
    assert not parse_port_range("0..0")
    assert not parse_port_range("33245..33245")
    assert parse_port_range("2000..2010", 10) == PortRange(2000, 2010)


def test_host_lists() -> None:
    """The command line and the environment would read the same list differently."""
    assert (
        parse_host_list(" a , ,b")
        == parse_host_list(["a", "b "])
        == parse_host_list(("a,b",))
        == hosts("a", "b")
    )


def test_every_option_can_be_set_by_a_variable_and_has_help() -> None:
    """With JUPYTER_DEFAULT_PROVISIONER_NAME alone there is no other place to set an option in."""
    for option in OPTIONS:
        assert option.environment[0] == f"GP_{option.name.upper()}"
        assert len(option.help) > 30
        assert option.help.endswith(".")
        trait = DistributedProvisioner.class_traits(config=True)[option.name]
        assert trait.help == option.help
    assert OPTION["launch_timeout"].cli_help.startswith("Number of seconds")
