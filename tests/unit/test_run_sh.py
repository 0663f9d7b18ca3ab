"""bin/run.sh, with a program in spark-submit's place that says what it was given."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

RUN = Path(__file__).parents[2] / "src/distributed_provisioner/kernelspec/resources/bin/run.sh"
SUBMIT = f"""#!{sys.executable}
import json, os, sys
print(json.dumps([sys.argv, dict(os.environ)]))
"""


class Spec:
    """A specification's directory, and a Spark beside it."""

    def __init__(self, directory: Path) -> None:
        # Names with which a script that is careless about quotes does not come along.
        self.directory, self.spark = directory / "a spec; $(x)", directory / "the 'spark"
        for path in (self.directory / "bin", self.spark / "bin"):
            path.mkdir(parents=True)
        shutil.copy(RUN, self.directory / "bin")
        self.submit = make_spark(self.spark)
        self.launcher = self.add("scripts/launch_ipykernel.py")
        (self.directory / "java").touch(0o755)

    def add(self, name: str) -> Path:
        path = self.directory / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        return path

    def start(self, *arguments: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
        """Run it; a variable that is None is not set."""
        own = {"PATH": f"{self.directory}:{os.environ['PATH']}", "SPARK_HOME": str(self.spark), **environment}
        return subprocess.run(
            [shutil.which("bash") or "bash", str(self.directory / "bin/run.sh"), *arguments],
            env={name: value for name, value in own.items() if value is not None},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def given(self, *arguments: str, **environment: str | None) -> tuple[list[str], dict[str, str]]:
        """What spark-submit was given: arguments and environment."""
        done = self.start(*arguments, **environment)
        assert done.returncode == 0, done.stderr
        argv, variables = json.loads(done.stdout)
        assert argv[0] == str(self.submit)
        return argv[1:], variables

    def split(self, options: str, **environment: str) -> list[str]:
        """The words of SPARK_OPTS."""
        argv, _ = self.given(SPARK_OPTS=options, **environment)
        assert argv[-1] == str(self.launcher)
        return argv[:-1]

    def refusal(self, **environment: str | None) -> str:
        done = self.start(**environment)
        assert (done.returncode, done.stdout) == (1, "")
        return done.stderr.strip()


def make_spark(home: Path) -> Path:
    submit = home / "bin" / "spark-submit"
    submit.parent.mkdir(parents=True, exist_ok=True)
    submit.write_text(SUBMIT)
    submit.chmod(0o755)
    return submit


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    return Spec(tmp_path)


def test_arguments_arrive_unchanged(spec: Spec) -> None:
    """A kernel id or a path with a blank in it becomes two arguments, or worse, a command."""
    odd = [
        "a b",
        "",
        "'",
        '"',
        "$HOME",
        "$(touch x)",
        "`id`",
        ";",
        "&",
        "*",
        "line\nbreak\n",
        "\\",
        "é",
        "--",
    ]
    argv, _ = spec.given("--kernel-id", *odd, LAUNCH_OPTS="--more 'of it'")
    assert argv == [str(spec.launcher), "--more", "of it", "--kernel-id", *odd]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("  --master\tyarn \n --x ", ["--master", "yarn", "--x"]),
        ("""'a b' "c d" e\\ f""", ["a b", "c d", "e f"]),
        ("""a'b'"c"d''""", ["abcd"]),
        ("'' \"\"", ["", ""]),
        (r""" '\"$' "\"\\\$\`\n" \'\n """, ['\\"$', '"\\$`\\n', "'n"]),
        ("go\\\non", ["goon"]),
        ("$HOME $(id) `id` $1 $$ $ a;b a|b a&b <x >y ~ * ? [a] {a,b} !! #c", None),
        ("local[*]", ["local[*]"]),
        ("--conf 'x=${A}' \"${A}\" ${A} b${A}c", ["--conf", "x=${A}", "1  2", "1", "2", "b1", "2c"]),
        ("${NONE} x${NONE}y '${NONE}' \"${NONE}\"", ["xy", "${NONE}", ""]),
        ("${NONE:-d e} ${A:-no} \"${NONE:-d e}\"", ["d", "e", "1", "2", "d e"]),
        ("${Q} \"${Q}\"", ["\"'$(id)", "${A}*", "\"'$(id) ${A}*"]),
        ("\\${A} ${A ${} ${1} ${A+x} ${A#1}", ["${A}", "${A", "${}", "${1}", "${A+x}", "${A#1}"]),
        ("ü\u2028ß", ["ü\u2028ß"]),
    ],
    ids=lambda value: "" if isinstance(value, list) else None,
)  # fmt: skip
def test_words_of_spark_opts(spec: Spec, text: str, words: list[str] | None) -> None:
    """An option with a blank in its value falls apart, or a dollar runs a command on the host."""
    found = spec.split(text, A="1  2", Q="\"'$(id) ${A}*", HOME="/home/x")
    assert found == (text.split() if words is None else words)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.sampled_from(" \t\n'\"\\ab$`*;é"), max_size=25).filter(lambda text: "\\\n" not in text))
def test_words_are_those_of_posix(spec: Spec, text: str) -> None:
    """A quote in a combination that nobody thought of gives other words than a shell, or Python's shlex, would."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters, lexer.escapedquotes = True, "", '"'
    try:
        expected = list(lexer)
    except ValueError:
        assert "SPARK_OPTS" in spec.refusal(SPARK_OPTS=text)
        return
    # shlex keeps a backslash before $ and ` inside of "…"; the shell takes it away.
    if not any(pair in text for pair in ("\\$", "\\`")):
        assert spec.split(text) == expected


def test_extra_options_of_a_request(spec: Spec) -> None:
    """What a user asks for with a kernel is one word, or can name itself for ever."""
    extra = "--conf 'spark.x=a b' ${A} ${KERNEL_EXTRA_SPARK_OPTS} --y"
    found = spec.split("--a ${KERNEL_EXTRA_SPARK_OPTS}", KERNEL_EXTRA_SPARK_OPTS=extra, A="1 2")
    assert found == ["--a", "--conf", "spark.x=a b", "1", "2", "--y"]
    argv, _ = spec.given(
        "--id", LAUNCH_OPTS="${KERNEL_EXTRA_SPARK_OPTS}", KERNEL_EXTRA_SPARK_OPTS="--z 'a b'"
    )
    assert argv == [str(spec.launcher), "--z", "a b", "--id"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a 'b", "SPARK_OPTS has a ' that is not closed: a 'b"),
        ('a "b', 'SPARK_OPTS has a " that is not closed: a "b'),
        ("a\\", "SPARK_OPTS ends with a backslash: a\\"),
    ],
)
def test_options_that_cannot_be_split(spec: Spec, text: str, sentence: str) -> None:
    """spark-submit complains of something that nobody wrote."""
    assert spec.refusal(SPARK_OPTS=text) == sentence


def test_the_launcher_is_that_of_the_directory(spec: Spec) -> None:
    """One file for three languages starts the wrong one."""
    spec.launcher.unlink()
    assert (
        spec.refusal() == f"There is no launcher in {spec.directory}: install the kernel specification again."
    )
    r = spec.add("scripts/launch_IRkernel.R")
    argv, _ = spec.given("--kernel-id", "x")
    assert argv == [str(r), "--kernel-id", "x"]
    r.unlink()
    launcher, toree = spec.add("lib/toree-launcher-2.12.jar"), spec.add("lib/toree-assembly-0.5.0.jar")
    argv, variables = spec.given("--kernel-id", "x", SPARK_OPTS="--a", JDK_JAVA_OPTIONS="-Dx=1")
    assert argv == ["--a", "--jars", str(toree), str(launcher), "--kernel-id", "x"]
    assert variables["JDK_JAVA_OPTIONS"] == "--add-opens=java.base/java.util.jar=ALL-UNNAMED -Dx=1"
    argv, _ = spec.given(SPARK_OPTS="--jars x.jar --a")
    assert argv == ["--jars", f"x.jar,{toree}", "--a", str(launcher)]
    argv, _ = spec.given(SPARK_OPTS="--a --jars=x.jar")
    assert argv == ["--a", f"--jars=x.jar,{toree}", str(launcher)]


def test_the_environment_is_right_for_the_host(spec: Spec) -> None:
    """The kernel has no pyspark, another py4j than its Spark, or is `jupyter` because a login says so."""
    package = spec.spark / "python" / "pyspark" / "__init__.py"
    package.parent.mkdir(parents=True)
    package.touch()
    (spec.spark / "python" / "lib").mkdir()
    (spec.spark / "python" / "lib" / "py4j-9.9-src.zip").touch()
    _, variables = spec.given(
        PYTHONPATH="/mine", PYSPARK_DRIVER_PYTHON="jupyter", PYSPARK_PYTHON="/p y/bin/python"
    )
    assert variables["PYTHONPATH"] == f"/mine:{spec.spark}/python:{spec.spark}/python/lib/py4j-9.9-src.zip"
    assert "PYSPARK_DRIVER_PYTHON" not in variables
    assert variables["PYSPARK_PYTHON"] == "/p y/bin/python"
    _, variables = spec.given(PYTHONPATH="")
    assert variables["PYTHONPATH"] == f"{spec.spark}/python:{spec.spark}/python/lib/py4j-9.9-src.zip"


def test_spark_of_the_package_pyspark(spec: Spec, tmp_path: Path) -> None:
    """A host whose Spark came by pip needs a SPARK_HOME all the same."""
    site = tmp_path / "site"
    (site / "pyspark").mkdir(parents=True)
    (site / "pyspark" / "__init__.py").write_text("raise SystemExit('it was imported')")
    make_spark(site / "pyspark")
    for home in (None, "", "/opt/spark"):
        if home and Path(home).exists():
            continue
        done = spec.start(SPARK_HOME=home, PYTHONPATH=str(site), PYSPARK_PYTHON=sys.executable)
        argv, variables = json.loads(done.stdout)
        assert argv[0] == str(site / "pyspark/bin/spark-submit")
        assert variables["SPARK_HOME"] == str(site / "pyspark")


def test_what_is_missing_on_a_host_is_told(spec: Spec, tmp_path: Path) -> None:
    """A host without Spark or Java is a line of a shell's, or a launch that times out."""
    told = spec.refusal(SPARK_HOME="/nowhere")
    assert told.startswith("SPARK_HOME is /nowhere, and there is no bin/spark-submit in it on ")
    (tmp_path / "empty").mkdir()
    told = spec.refusal(SPARK_HOME=None, PYSPARK_PYTHON="/no/python")
    if not Path("/opt/spark").exists():
        assert told.startswith("There is no Spark on ")
        assert told.endswith("nor as the package pyspark of /no/python. Set SPARK_HOME, or install pyspark.")
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("bash", "dirname"):
        (programs / name).symlink_to(shutil.which(name) or "")
    assert spec.refusal(PATH=str(programs)).startswith("Spark needs Java, and there is none on ")


def test_shellcheck_finds_nothing() -> None:
    """A quote is missing where nobody has looked."""
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("shellcheck is not installed")
    # Braces around every $name, and set -e inside of conditions, are matters of taste.
    options = ["--enable=all", "--exclude=SC2250,SC2310,SC2311,SC2312"]
    done = subprocess.run([program, *options, RUN], capture_output=True, text=True, check=False)
    assert done.stdout + done.stderr == ""
    assert "eval" not in RUN.read_text()
