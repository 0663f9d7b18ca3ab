"""JupyterLab in a browser with kernels on hosts: what its users do all day."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.applications.desk import Desk

if TYPE_CHECKING:
    from tests.browser.lab_page import LabPage
    from tests.browser.lab_server import LabServer

pytestmark = pytest.mark.cluster

WHERE = "import socket; print(socket.gethostname())"
LOOP = "import time\nprint('go', flush=True)\nwhile True: time.sleep(0.05)"


def test_a_notebook_runs_on_a_host_and_its_buttons_work(
    open_notebook: Callable[..., LabPage], lab: LabServer
) -> None:
    """If it fails: the people whom this is for see nothing of what the other tests promise."""
    page = open_notebook("a.ipynb", WHERE, "x = 5", LOOP, "print('x' in globals())")
    kernel = page.wait_until_idle().kernel
    assert page.run(0) == "host1\n"
    page.run(1)
    page.start(2)
    page.wait_for_text(2, "go")
    page.wait_for_state(indicator="busy")
    page.press("interrupt")
    assert "KeyboardInterrupt" in page.wait_until_run(2)
    assert page.run(3) == "True\n"
    page.press("restart")
    assert "Restart" in page.accept()
    page.wait_until_idle()
    assert page.run(3) == "False\n"
    assert page.state().kernel == kernel
    assert [session["kernel"]["id"] for session in lab.sessions()] == [kernel]
    page.wait_for_state(shown="Kernel status: Idle")


def test_a_host_that_does_not_exist_is_named_in_a_dialog(
    desk: Desk, open_notebook: Callable[..., LabPage]
) -> None:
    """If it fails: a mistyped host shows as a notebook that does not react."""
    desk.install("ssh_nowhere", "--remote-hosts", "nowhere")
    page = open_notebook("nowhere.ipynb", "1", kernel="ssh_nowhere")
    said = page.accept()
    assert "nowhere" in said, said
