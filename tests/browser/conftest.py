"""JupyterLab in a real browser, against a cluster of real hosts."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.applications.desk import Desk

if TYPE_CHECKING:
    from distributed_provisioner.testing.namespaces import Cluster
    from tests.browser.browser import Browser
    from tests.browser.lab_page import LabPage
    from tests.browser.lab_server import LabServer


@pytest.fixture(scope="session")
def browser(session_directory: Path) -> Iterator[Browser]:
    """One browser for all tests; each has windows of its own."""
    from tests.browser.browser import Browser, missing

    if reason := missing():
        pytest.skip(f"no browser: {reason}")
    running = Browser(Path(tempfile.mkdtemp(prefix="browser-", dir=session_directory)))
    yield running
    running.close()


@pytest.fixture(scope="session")
def desk(cluster: Cluster, session_directory: Path) -> Desk:
    """A desk with `ssh_python` on host1, and a Lab that asks nobody for news."""
    # Not tmp_path: the sockets of kernels lie below, and their paths are short.
    desk = Desk(Path(tempfile.mkdtemp(prefix="desk-", dir=session_directory)), cluster.home, cluster.user)
    desk.install("ssh_python", "--remote-hosts", "host1")
    settings = desk.directory / "lab-settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    quiet = {"fetchNews": "false", "checkForUpdates": False}
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(quiet))
    return desk


@pytest.fixture(scope="session")
def lab_of_session(desk: Desk) -> Iterator[LabServer]:
    from tests.browser.lab_server import LabServer

    running = LabServer(desk)
    yield running
    running.stop()


@pytest.fixture
def lab(lab_of_session: LabServer) -> Iterator[LabServer]:
    """A JupyterLab that runs; a test may kill it. Its kernels end with the test."""
    lab_of_session.start()
    yield lab_of_session
    lab_of_session.start()
    lab_of_session.end_kernels()


@pytest.fixture
def open_notebook(browser: Browser, lab: LabServer) -> Iterator[Callable[..., LabPage]]:
    """Open notebooks (name, kernel, cells) in windows that close with the test; without cells, a notebook that exists."""
    from tests.browser.lab_page import LabPage

    pages: list[LabPage] = []

    def open_(name: str, *cells: str, kernel: str = "ssh_python") -> LabPage:
        if cells:
            lab.write_notebook(name, kernel, *cells)
        pages.append(LabPage(browser.driver, lab, name))
        return pages[-1]

    yield open_
    for page in pages:
        page.close()
