"""A real browser without a screen: Debian's chromium, driven by selenium through its chromedriver.

Nothing is downloaded and no address but loopback is reached. Everything lies in one temporary directory.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

from selenium.common.exceptions import WebDriverException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

PROGRAMS = {
    "chromium": ("chromium", "chromium-browser", "google-chrome"),
    "chromium-driver": ("chromedriver",),
}
"""Debian's packages, and the names that their programs have here and there."""
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",  # root, and user namespaces
    "--disable-dev-shm-usage",  # containers have little of it
    "--remote-debugging-pipe",  # no port; and the browser ends when its driver does
    "--window-size=1280,1600",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-breakpad",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    # Windows that lie behind others go on as if they were seen: only one can be in front.
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
)


def missing() -> str:
    """Why there is no browser on this machine; empty if there is one."""
    absent = [package for package, names in PROGRAMS.items() if not any(map(shutil.which, names))]
    return f"not installed: {', '.join(absent)} (what Debian calls so)" if absent else ""


class Browser:
    """One browser; its windows are the tests'. All of it ends with `close()`, and with this process, even by SIGKILL."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        chromium, chromedriver = (next(filter(None, map(shutil.which, names))) for names in PROGRAMS.values())
        options = ChromeOptions()
        options.binary_location = chromium
        for argument in (*ARGUMENTS, f"--user-data-dir={directory / 'profile'}"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        starter = (
            directory / "chromedriver"
        )  # selenium wants one file; a death of ours shall be the driver's, too
        starter.write_text(f'#!/bin/sh\nexec setpriv --pdeathsig KILL "{chromedriver}" "$@"\n')
        starter.chmod(0o700)
        self._service = Service(
            str(starter),  # with a path, selenium looks for no driver, neither here nor on the net
            env=self._environment(),
            log_output=subprocess.DEVNULL,
            service_args=[f"--log-path={directory / 'chromedriver.log'}"],
            popen_kw={"start_new_session": True},
        )
        try:
            self.driver = Chrome(options, self._service)
        except BaseException:
            self._kill()
            raise
        self.driver.set_script_timeout(30)
        self.driver.set_page_load_timeout(60)

    def _environment(self) -> dict[str, str]:
        """What the browser gets to see: no proxy, no display, no home but its own."""
        own = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
        return {**own, **dict.fromkeys(("HOME", "TMPDIR", "XDG_RUNTIME_DIR"), str(self._directory))}

    def close(self) -> None:
        """End it."""
        try:
            with contextlib.suppress(WebDriverException, OSError):
                self.driver.quit()
        finally:
            self._kill()

    def _kill(self) -> None:
        """SIGKILL to what is left of the driver's session of processes, and wait for the driver."""
        process = getattr(self._service, "process", None)
        if process is None:
            return
        for entry in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError, IndexError):  # it has ended
                session = int(entry.read_text().rpartition(")")[2].split()[3])
                if session == process.pid:
                    os.kill(int(entry.parent.name), signal.SIGKILL)
        process.wait(10)
