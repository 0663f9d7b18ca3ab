"""A kernel specification as data."""

from __future__ import annotations

import json
import re
import sys
import zipfile
from pathlib import Path

import pytest

from distributed_provisioner.errors import ConfigurationError, KernelSpecError
from distributed_provisioner.kernelspec import SparkOptions, SpecOptions, build
from distributed_provisioner.kernelspec.languages import LANGUAGES

from .toree_stand_in import toree_jar

GOLDEN = Path(__file__).parent / "golden"
ON_THE_PAGE = GOLDEN / "kernel-on-the-page.json"
STANDALONE = SparkOptions(master="spark://127.0.0.1:7077")
DIRECTORY = "/usr/local/share/jupyter/kernels/ssh_python"


def test_defaults_give_the_pages_kernel_json() -> None:
    """Whoever compares with the page, or has tools that patch its lines, finds something else."""
    assert build(SpecOptions(), DIRECTORY).kernel_json_text == ON_THE_PAGE.read_text()


@pytest.mark.parametrize("spark", [None, SparkOptions(), STANDALONE], ids=["alone", "yarn", "standalone"])
@pytest.mark.parametrize("language", ["Python", "R", "Scala"])
def test_kernel_json_of_each_language(language: str, spark: SparkOptions | None, tmp_path: Path) -> None:
    """Tools that know the documented files, and people who compare with them, find something else."""
    options = SpecOptions(
        language=language, spark=spark, toree_jar=str(toree_jar(tmp_path)) if language == "Scala" else ""
    )
    text = build(options, f"/usr/local/share/jupyter/kernels/{options.kernel_name}").kernel_json_text
    assert text == (GOLDEN / f"{options.kernel_name}.json").read_text()


@pytest.mark.parametrize("name", ["ssh_python_spark", "ssh_python_spark_standalone"])
def test_kernel_json_with_spark_differs_from_the_page_where_the_reference_says_so(name: str) -> None:
    """Paths of somebody else's hosts, or a specification that still has to be finished by hand."""
    page, ours = (json.loads((GOLDEN / f"{file}.json").read_text()) for file in (f"{name}-on-the-page", name))
    place = len(page["argv"])
    assert ours["argv"][:place] == page["argv"]
    options = {"--port-range", "--spark-context-initialization-mode", "--kernel-class-name"}
    assert {item for item in ours["argv"][place:] if item.startswith("--")} <= options
    assert list(ours["env"]) == list(page["env"])
    expected = page["env"] | {
        "SPARK_HOME": "${SPARK_HOME:-/opt/spark}",
        "PYSPARK_PYTHON": "${PYSPARK_PYTHON:-python3}",
        "PYTHONPATH": "${PYTHONPATH:-}",
    }
    opts = "SPARK_OPTS"
    assert ours["env"][opts].split()[: len(page["env"][opts].split())] == page["env"][opts].split()
    assert ours["env"] | {opts: ""} == expected | {opts: ""}
    page["metadata"]["kernel_provisioner"].setdefault("config", {"launch_timeout": 30})
    page["metadata"].setdefault("debugger", True)
    page.setdefault("interrupt_mode", "signal")
    assert {**ours, "argv": 0, "env": 0} == {**page, "argv": 0, "env": 0}


def test_files_are_the_pages(tmp_path: Path) -> None:
    """A launcher would be missing on the host, or files that nobody knows would lie there."""
    jar = str(toree_jar(tmp_path))

    def files(language: str, spark: SparkOptions | None = None) -> list[str]:
        built = build(SpecOptions(language=language, spark=spark, toree_jar=jar), DIRECTORY)
        return [file.path for file in built.files]

    logo = "logo-64x64.png"
    scripts = {
        "Python": ["scripts/launch_ipykernel.py", "scripts/server_listener.py"],
        "R": ["scripts/launch_IRkernel.R", "scripts/server_listener.py"],
    }
    for language, names in scripts.items():
        assert files(language) == [logo, *names]
        assert files(language, SparkOptions()) == [logo, *names, "bin/run.sh"]
    scala = [logo, "lib/toree-launcher-2.12.jar", "lib/toree-assembly-0.5.0.jar", "bin/run.sh"]
    assert files("Scala") == files("Scala", STANDALONE) == scala


def test_spark_options_reach_spark_submit() -> None:
    """Somebody asks for memory or packages, and the kernel starts without them."""
    spark = SparkOptions("local[2]", "/usr/lib/spark", " Eager", " --conf 'spark.x=a b' ")
    built = build(SpecOptions(spark=spark), DIRECTORY)
    assert built.kernel_json["env"]["SPARK_HOME"] == "/usr/lib/spark"
    assert built.kernel_json["env"]["SPARK_OPTS"] == (
        "--master local[2] --name ${KERNEL_ID:-ERROR__NO__KERNEL_ID} --conf 'spark.x=a b' ${KERNEL_EXTRA_SPARK_OPTS}"
    )
    assert built.kernel_json["argv"][9:11] == ["--spark-context-initialization-mode", "eager"]
    assert (built.kernel_name, built.display_name) == ("ssh_python_spark", "Python SSH (with Spark)")


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
        ({"language": "Cobol"}, "language is 'Cobol': write one of Python, R or Scala."),
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


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"init_mode": "later"}, "spark_init_mode is 'later': write lazy or eager or none."),
        (
            {"master": "spark://h"},
            "spark_master is 'spark://h': write yarn, spark://HOST:PORT, or local[N] for a Spark without a cluster.",
        ),
        (
            {"master": "yarn --x"},
            "spark_master is 'yarn --x': write yarn, spark://HOST:PORT, or local[N] for a Spark without a cluster.",
        ),
        ({"home": "spark"}, "spark_home is 'spark': write the absolute path that Spark has on the hosts."),
        (
            {"extra_opts": "--conf 'a"},
            "extra_spark_opts is '--conf 'a', which cannot be split into arguments (No closing quotation): correct its quotes.",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_spark_options_that_cannot_be_used(options: dict[str, str], sentence: str) -> None:
    """spark-submit would say it, in a log on a host, at each launch."""
    with pytest.raises(KernelSpecError) as caught:
        SparkOptions(**options)
    assert str(caught.value) == sentence


def test_scala_without_toree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A specification would be written whose kernel has no classes."""
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "toree", raising=False)
    with pytest.raises(KernelSpecError) as caught:
        SpecOptions(language="Scala")
    assert str(caught.value) == (
        "A Scala kernel needs Apache Toree, which is not installed here: pip install 'distributed-provisioner[scala]', or name its"
        " assembly by --toree-jar /path/to/toree-assembly-….jar."
    )
    (tmp_path / "other.jar").write_bytes(b"PK")
    for name, why in {
        "absent.jar": "No such file or directory",
        "other.jar": "File is not a zip file",
    }.items():
        with pytest.raises(KernelSpecError, match=rf"{name}, cannot be read: {why}\."):
            SpecOptions(language="Scala", toree_jar=str(tmp_path / name))
    with zipfile.ZipFile(tmp_path / "zip.jar", "w") as archive:
        archive.writestr("META-INF/MANIFEST.MF", "")
    with pytest.raises(KernelSpecError, match=r"zip\.jar is not the assembly of Apache Toree"):
        SpecOptions(language="Scala", toree_jar=str(tmp_path / "zip.jar"))


def test_an_installed_toree_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pip install distributed-provisioner[scala]` would not be enough."""
    package = tmp_path / "toree"
    (package / "lib").mkdir(parents=True)
    (package / "__init__.py").touch()
    jar = toree_jar(package / "lib")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "toree", raising=False)
    toree = SpecOptions(language="Scala").toree
    assert toree is not None
    assert (toree.jar, toree.version, toree.scala_version) == (jar, "0.5.0", "2.12")


@pytest.mark.parametrize("name", ["a b", "../x", "..", ".hidden", "-y", "a/b", "ä", "a\n", "$(id)"])
def test_kernel_names_that_cannot_be_used(name: str) -> None:
    """Jupyter would never find the specification, or it would be written somewhere else."""
    with pytest.raises(KernelSpecError, match=re.escape(f"kernel_name is '{name}'")):
        SpecOptions(kernel_name=name)


def test_names_of_the_languages() -> None:
    """Specifications would replace each other."""
    assert [(row.title, row.kernel_name, row.display_name) for row in LANGUAGES] == [
        ("Python", "ssh_python", "Python SSH"),
        ("R", "ssh_r", "R SSH"),
        ("Scala", "ssh_scala", "Scala SSH"),
    ]
