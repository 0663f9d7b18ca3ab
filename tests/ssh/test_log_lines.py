"""What the log says of connections: nothing that alarms without a reason."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from tests.conftest import wait_until

from .conftest import Get, Run


def test_an_idle_connection_that_ends_is_no_alarm(
    run: Run, get: Get, caplog: pytest.LogCaptureFixture
) -> None:
    """If it fails: laptops that wake up warn of kernels that are not there."""
    caplog.set_level("INFO")
    connection = get("localhost")
    run(connection.connect())
    connection._lines.control._wire._transport.kill()  # type: ignore[union-attr]
    assert wait_until(lambda: "it carried no kernel" in caplog.text)
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    assert "Kernels go on" not in caplog.text


@pytest.mark.parametrize("own", ["NOTSET", "DEBUG"])
def test_importing_configures_no_logging_and_the_applications_level_stays(own: str) -> None:
    """If it fails: whoever wants to see what the SSH library does cannot."""
    code = f"""
import logging
import distributed_provisioner.provisioner
from distributed_provisioner.io_thread import IOThread
from distributed_provisioner.ssh import Connections

log = logging.getLogger("asyncssh")
assert log.level == logging.NOTSET
log.setLevel({own!r})

async def use():
    Connections.current()

IOThread.current().submit(use()).result(5)
print(logging.getLevelName(log.level), logging.getLogger().handlers, log.handlers)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    assert done.stdout == f"{'WARNING' if own == 'NOTSET' else own} [] []\n"
