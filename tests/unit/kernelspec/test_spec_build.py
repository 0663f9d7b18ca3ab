"""A kernel specification as data."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from distributed_provisioner.errors import ConfigurationError, KernelSpecError
from distributed_provisioner.kernelspec import SpecOptions, build
from distributed_provisioner.kernelspec.languages import LANGUAGES

ON_THE_PAGE = Path(__file__).parent / "golden" / "kernel-on-the-page.json"
DIRECTORY = "/usr/local/share/jupyter/kernels/ssh_python"


def test_defaults_give_the_pages_kernel_json() -> None:
    """Whoever compares with the page, or has tools that patch its lines, finds something else."""
    assert build(SpecOptions(), DIRECTORY).kernel_json_text == ON_THE_PAGE.read_text()


def test_files_are_the_pages() -> None:
    """A launcher would be missing on the host, or files that nobody knows would lie there."""
    paths = [file.path for file in build(SpecOptions(), DIRECTORY).files]
    assert paths == ["logo-64x64.png", "scripts/launch_ipykernel.py", "scripts/server_listener.py"]


def test_only_what_was_asked_for_is_written() -> None:
    """A default that is frozen into kernel.json would win over the server's settings for ever."""
    options = SpecOptions(
        remote_hosts=("b", "a"),
        authorized_users=frozenset({"z", "y"}),
        unauthorized_users=frozenset({"root"}),
        port_range="33245 .. 34245",
        launch_timeout=45,
        kernel_class="my.Kernel",
        display_name="Größe µ",
        kernel_name="My_Kernel",
    )
    built = build(options, "/x")
    assert built.kernel_json["metadata"]["kernel_provisioner"]["config"] == {
        "remote_hosts": ["b", "a"],
        "authorized_users": ["y", "z"],
        "unauthorized_users": ["root"],
        "port_range": "33245..34245",
        "launch_timeout": 45,
    }
    assert built.kernel_json["argv"][-1] == "my.Kernel"
    assert (built.kernel_name, built.display_name) == ("my_kernel", "Größe µ")
    assert json.loads(built.kernel_json_text) == built.kernel_json


def test_a_directory_with_braces_stays_as_it_is() -> None:
    """A path that looks like a placeholder would name another file."""
    assert (
        build(SpecOptions(), "/a/{kernel_class}").kernel_json["argv"][1]
        == "/a/{kernel_class}/scripts/launch_ipykernel.py"
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"language": "R"},
            "Kernel specifications for R come with the next release: use --language Python until then.",
        ),
        (
            {"language": "scala"},
            "Kernel specifications for Scala come with the next release: use --language Python until then.",
        ),
        ({"spark": True}, "Spark support comes with the next release: leave --spark out until then."),
        ({"language": "Cobol"}, "language is 'Cobol': write one of Python, R or Scala."),
        ({"spark_init_mode": "later"}, "spark_init_mode is 'later': write lazy or eager or none."),
        ({"display_name": "a\nb"}, "display_name is 'a\\nb': write text on one line."),
        (
            {"kernel_class": "os.system('x')"},
            "ipykernel_subclass_name is 'os.system('x')': write a module and a class in it, for example"
            " ipykernel.ipkernel.IPythonKernel.",
        ),
        ({"launch_timeout": 0}, "launch_timeout is 0: write a number of seconds above 0, for example 30."),
        ({"remote_hosts": ()}, "remote_hosts is empty: name at least one host, for example localhost."),
        (
            {"port_range": "1..2"},
            "port_range is '1..2': write two ends from 1024 to 65535, or 0..0 for any port.",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_that_cannot_be_used(options: dict[str, object], sentence: str) -> None:
    """A specification would be written that cannot be launched."""
    with pytest.raises((KernelSpecError, ConfigurationError)) as caught:
        SpecOptions(**options)  # type: ignore[arg-type]
    assert str(caught.value) == sentence


@pytest.mark.parametrize("name", ["a b", "../x", "..", ".hidden", "-y", "a/b", "ä", "a\n", "$(id)"])
def test_kernel_names_that_cannot_be_used(name: str) -> None:
    """Jupyter would never find the specification, or it would be written somewhere else."""
    with pytest.raises(KernelSpecError, match=re.escape(f"kernel_name is '{name}'")):
        SpecOptions(kernel_name=name)


def test_names_of_the_languages() -> None:
    """Specifications of the next release would replace each other."""
    assert [(row.title, row.kernel_name, row.display_name) for row in LANGUAGES] == [
        ("Python", "ssh_python", "Python SSH"),
        ("R", "ssh_r", "R SSH"),
        ("Scala", "ssh_scala", "Scala SSH"),
    ]
