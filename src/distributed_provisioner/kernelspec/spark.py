"""What Spark adds to a kernel specification: the master, the environment of `bin/run.sh`, names. Pure."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from distributed_provisioner.errors import KernelSpecError

INIT_MODES = ("lazy", "eager", "none")
DEFAULT_HOME = "/opt/spark"
NAME = "--name ${KERNEL_ID:-ERROR__NO__KERNEL_ID}"
_HOST = r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):\d{1,5}"


@dataclass(frozen=True)
class SparkOptions:
    """The Spark options of one specification.

    Raises:
        KernelSpecError: a value that cannot be used.
    """

    master: str = "yarn"
    home: str | None = None
    """None means the host's own SPARK_HOME, and where it has none, /opt/spark."""
    init_mode: str = "lazy"
    extra_opts: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "init_mode", self.init_mode.strip().lower())
        object.__setattr__(self, "master", self.master.strip())
        if self.init_mode not in INIT_MODES:
            raise KernelSpecError(f"spark_init_mode is '{self.init_mode}': write {' or '.join(INIT_MODES)}.")
        if not re.fullmatch(rf"yarn|local(\[[0-9*]+(, ?\d+)?\])?|spark://{_HOST}(,{_HOST})*", self.master):
            raise KernelSpecError(
                f"spark_master is '{self.master}': write yarn, spark://HOST:PORT, or local[N] for a Spark without a cluster."
            )
        if self.home is not None and not self.home.startswith(("/", "${")):
            raise KernelSpecError(
                f"spark_home is '{self.home}': write the absolute path that Spark has on the hosts."
            )
        try:
            shlex.split(self.extra_opts)
        except ValueError as error:
            raise KernelSpecError(
                f"extra_spark_opts is '{self.extra_opts}', which cannot be split into arguments ({error}): correct its quotes."
            ) from None

    @property
    def standalone(self) -> bool:
        return self.master.startswith("spark://")

    @property
    def name_suffix(self) -> str:
        return "_spark_standalone" if self.standalone else "_spark"

    @property
    def display_suffix(self) -> str:
        return " (with Spark Standalone)" if self.standalone else " (with Spark)"

    def environment(self, runs_python: bool) -> dict[str, str]:
        """The env stanza. `${…}` is for the host, so that what differs between hosts is right on each."""
        deploy_mode = " --deploy-mode client" if self.master == "yarn" else ""
        more = f" {self.extra_opts.strip()}" if self.extra_opts.strip() else ""
        python = {"PYSPARK_PYTHON": "${PYSPARK_PYTHON:-python3}", "PYTHONPATH": "${PYTHONPATH:-}"}
        return {
            "SPARK_HOME": f"${{SPARK_HOME:-{DEFAULT_HOME}}}" if self.home is None else self.home,
            **(python if runs_python else {}),
            "SPARK_OPTS": f"--master {self.master}{deploy_mode} {NAME}{more} ${{KERNEL_EXTRA_SPARK_OPTS}}",
            "LAUNCH_OPTS": "",
        }
