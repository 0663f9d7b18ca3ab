"""A notebook in JupyterLab as its user sees it: read from the page, worked by mouse and keyboard."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from selenium.common.exceptions import WebDriverException
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By

from tests.browser.lab_server import LabServer

CELL = ".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook .jp-CodeCell"
STATE = """
const [path] = arguments, widgets = [...(window.jupyterapp?.shell.widgets("main") ?? [])];
const context = widgets.find((widget) => widget.context?.path === path)?.context, session = context?.sessionContext;
const kernel = session?.session?.kernel;
const text = (selector) => document.querySelector(selector)?.textContent.trim() ?? "";
const indicator = ".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook-ExecutionIndicator";
return {
    ready: Boolean(session?.isReady),
    kernel: kernel?.id ?? "",
    status: kernel?.status ?? "",
    connection: kernel?.connectionStatus ?? "",
    shown: text(`${indicator} span`),
    indicator: document.querySelector(indicator)?.dataset.status ?? "",
    dialog: text(".jp-Dialog"),
    dirty: Boolean(context?.model.dirty),
};
"""
OUTPUT = f"""
const cell = document.querySelectorAll({CELL!r})[arguments[0]];
return [...(cell?.querySelectorAll(".jp-OutputArea-output") ?? [])].map((node) => node.textContent).join("");
"""


@dataclass(frozen=True)
class State:
    """What a page shows, and what it knows of its kernel.

    `shown` is the text of the circle in the toolbar, such as "Kernel status: Idle", `indicator` its look; `status` and `connection`
    are Lab's own words for the kernel and for the line to the server.
    """

    ready: bool
    kernel: str
    status: str
    connection: str
    shown: str
    indicator: str
    dialog: str
    dirty: bool


class LabPage:
    """One window with one notebook. Every wait is for a condition; what the page looked like is in the AssertionError."""

    def __init__(self, driver: Chrome, server: LabServer, notebook: str) -> None:
        self._driver, self._server = driver, server
        self.notebook = notebook
        driver.switch_to.new_window("window")
        self._window = driver.current_window_handle
        self._console: list[str] = []
        # A workspace of its own: Lab would open what the last page had open.
        workspace = self._window[-8:].lower()
        driver.get(server.address(f"/lab/workspaces/{workspace}/tree/{notebook}"))

    # --- looking ------------------------------------------------------------------------------------------------------------

    def state(self) -> State:
        """How it is now."""
        return State(**self._script(STATE, self.notebook))

    def output(self, cell: int) -> str:
        """All that a cell shows below itself."""
        return str(self._script(OUTPUT, cell))

    def prompt(self, cell: int) -> str:
        """`[ ]:`, `[*]:` while it runs, `[3]:`."""
        return str(self._cell(cell).find_element(By.CSS_SELECTOR, ".jp-InputPrompt").text)

    # --- waiting ------------------------------------------------------------------------------------------------------------

    def wait_for(self, condition: Callable[[], object], what: str, seconds: float = 30) -> None:
        """Wait until a condition holds; AssertionError with the page's state and the browser's console otherwise."""
        until = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > until:
                raise AssertionError(f"{what}: not within {seconds:g} s\n{self._describe()}")
            time.sleep(0.1)

    def wait_for_state(self, seconds: float = 40, **wanted: object) -> State:
        """Wait until fields of the state have these values, or one of these in a tuple."""
        seen: list[State] = []

        def reached() -> bool:
            seen[:] = [self.state()]
            if seen[0].dialog.startswith("Error"):
                raise AssertionError(seen[0].dialog)
            return all(
                getattr(seen[0], name) in (value if isinstance(value, tuple) else (value,))
                for name, value in wanted.items()
            )

        self.wait_for(reached, f"state {wanted}", seconds)
        return seen[0]

    def wait_for_text(self, cell: int, text: str, seconds: float = 30) -> str:
        """Wait until a cell's output has a text in it; the whole output."""
        self.wait_for(lambda: text in self.output(cell), f"{text!r} below cell {cell}", seconds)
        return self.output(cell)

    def wait_until_run(self, cell: int, seconds: float = 30) -> str:
        """Wait until a cell has ended, with an execution count; its output."""

        def has_ended() -> bool:
            return self.prompt(cell)[1:-2].isdecimal()

        self.wait_for(has_ended, f"the end of cell {cell}", seconds)
        return self.output(cell)

    def wait_until_idle(self, seconds: float = 40) -> State:
        """Wait until the notebook has a kernel that says that it does nothing; its state.

        After a reconnection or a crash Lab does not ask: it shows "Unknown" or "Starting" until a cell has been run.
        """
        return self.wait_for_state(seconds, ready=True, connection="connected", status="idle")

    # --- doing --------------------------------------------------------------------------------------------------------------

    def start(self, cell: int) -> None:
        """Click on a cell and press Ctrl-Enter."""
        self._cell(cell).find_element(By.CSS_SELECTOR, ".jp-InputPrompt").click()
        ActionChains(self._driver).key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(Keys.CONTROL).perform()

    def run(self, cell: int, seconds: float = 30) -> str:
        """Run a cell to its end; its output. Its number has to be another one than before."""
        before = self.prompt(cell)
        self.start(cell)
        self.wait_for(lambda: self.prompt(cell) != before, f"cell {cell} begins")
        return self.wait_until_run(cell, seconds)

    def press(self, button: str) -> None:
        """Click on a button of the notebook's toolbar: `save`, `interrupt`, `restart`."""
        self._switch()
        selector = f".jp-NotebookPanel:not(.lm-mod-hidden) [data-jp-item-name={button}] jp-button"
        self._driver.find_element(By.CSS_SELECTOR, selector).click()

    def accept(self, seconds: float = 30) -> str:
        """Wait for a dialog and click on its last button; what it said."""
        self.wait_for(lambda: self.state().dialog, "a dialog", seconds)
        said = self.state().dialog
        self._driver.find_elements(By.CSS_SELECTOR, ".jp-Dialog .jp-Dialog-footer button")[-1].click()
        self.wait_for(lambda: self.state().dialog != said, "the dialog closes")
        return said

    def dismiss(self, title: str) -> None:
        """Close a dialog with this title if there is one; any other is an AssertionError."""
        if said := self.state().dialog:
            assert said.startswith(title), said
            self.accept()

    def hurry(self) -> None:
        """Make Lab look for a lost server every 10 seconds, the shortest of the pauses that it picks by chance.

        Not Kernel → Reconnect to Kernel: Lab's own attempt still comes some seconds later, and drops what is on its way then.
        """
        self._script("Math.random = () => 0")

    def wait_for_server(self, seconds: float = 60) -> None:
        """Wait until Lab has found the server again, and close what it said meanwhile."""
        self.wait_for_state(seconds, connection="connected")
        self.dismiss("Server Connection Error")

    def save(self) -> None:
        """Write the notebook to its file."""
        self.press("save")
        self.wait_for_state(dirty=False)

    def reload(self) -> None:
        """Press F5."""
        self._switch()
        self._driver.refresh()

    def close(self) -> None:
        """Close the window; the kernel is not asked to end."""
        if self._window in self._driver.window_handles:
            self._switch()
            self._driver.close()
        self._driver.switch_to.window(self._driver.window_handles[0])

    # --- below --------------------------------------------------------------------------------------------------------------

    def _switch(self) -> None:
        """Make the commands that follow go to this window."""
        self._driver.switch_to.window(self._window)

    def _script(self, script: str, *arguments: object) -> Any:
        self._switch()
        return self._driver.execute_script(script, *arguments)

    def _cell(self, number: int) -> Any:
        self._switch()
        return self._driver.find_elements(By.CSS_SELECTOR, CELL)[number]

    def _describe(self) -> str:
        driver: Any = self._driver
        try:
            cells = len(driver.find_elements(By.CSS_SELECTOR, CELL))
            outputs = [
                f"cell {cell}: {self.prompt(cell)} {self.output(cell)[-300:]!r}" for cell in range(cells)
            ]
            console = [
                f"{entry['timestamp']} {entry['message'][:300]}" for entry in driver.get_log("browser")
            ][-30:]
            return "\n".join([str(self.state()), *outputs, "console:", *console])
        except WebDriverException as error:
            return f"the page does not answer: {error}"
