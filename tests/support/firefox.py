"""Driving Firefox without geckodriver: selenium's commands over Marionette, which Firefox speaks.

Marionette has WebDriver's commands under names of its own, as JSON behind its length. geckodriver
is not in Debian; all that it would do for these tests is to translate the names.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.firefox.options import Options
from selenium.webdriver.remote.client_config import ClientConfig
from selenium.webdriver.remote.remote_connection import RemoteConnection
from selenium.webdriver.support.wait import WebDriverWait

from tests.support.pages import Page

__all__ = ["FirefoxPage", "open_firefox"]

START_S = 60
NAMES = {
    "newSession": "NewSession",
    "get": "Navigate",
    "w3cExecuteScript": "ExecuteScript",
    "findElement": "FindElement",
    "findElements": "FindElements",
    "findChildElement": "FindElement",
    "findChildElements": "FindElements",
    "clickElement": "ElementClick",
    "sendKeysToElement": "ElementSendKeys",
    "clearElement": "ElementClear",
    "getElementText": "GetElementText",
    "getElementValueOfCssProperty": "GetElementCSSValue",
    "getElementRect": "GetElementRect",
    "w3cGetActiveElement": "GetActiveElement",
    "actions": "PerformActions",
    "screenshot": "TakeScreenshot",
    "setWindowRect": "SetWindowRect",
}
"""What the tests use of selenium, and what Marionette calls it."""
SCHEME = "layout.css.prefers-color-scheme.content-override"
PREFERENCES = {
    "marionette.port": 0,
    "app.update.disabledForTesting": True,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "toolkit.telemetry.reportingpolicy.firstRun": False,
    SCHEME: 1,
}
# Messages of the page's own scripts and policy; Firefox talks of itself there too.
MESSAGES = """
const found = Services.console.getMessageArray()
  .filter((each) => each instanceof Ci.nsIScriptError && /^file:/.test(each.sourceName || ""))
  .map((each) => each.errorMessage);
Services.console.reset();
return found;
"""


class Marionette(RemoteConnection):
    """A connection to Firefox in place of one to a driver."""

    def __init__(self, port: int) -> None:
        super().__init__(client_config=ClientConfig(remote_server_addr="http://127.0.0.1"))
        self._socket = socket.create_connection(("127.0.0.1", port), START_S)
        self._count = 0
        self._receive()  # who it is

    def execute(self, command: str, params: dict[str, Any]) -> dict[str, Any]:
        params = {key: value for key, value in params.items() if key != "sessionId"}
        if "child" in command.lower():
            params["element"] = params.pop("id")
        if command == "newSession":
            params = {"capabilities": params.get("capabilities", {})}
        error, value = self.send(f"WebDriver:{NAMES[command]}", params)
        if error is not None:
            return {"status": 500, "value": json.dumps({"value": error})}
        return {"value": value}

    def send(self, name: str, params: dict[str, Any]) -> tuple[Any, Any]:
        """Return an error or None, and the result."""
        self._count += 1
        data = json.dumps([0, self._count, name, params]).encode()
        self._socket.sendall(str(len(data)).encode() + b":" + data)
        _, _, error, value = self._receive()
        return error, value["value"] if isinstance(value, dict) and {*value} == {"value"} else value

    def _receive(self) -> Any:
        head = b""
        while not head.endswith(b":"):
            head += self._exactly(1)
        return json.loads(self._exactly(int(head[:-1])))

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self._socket.recv(count - len(data))
            assert part, "Firefox hung up"
            data += part
        return data


class FirefoxPage(Page):
    """One page in Firefox."""

    def __init__(self, driver: webdriver.Remote, connection: Marionette) -> None:
        self.driver = driver
        self._connection = connection

    def errors(self) -> list[str]:
        return self._in_chrome(MESSAGES)

    def media(self, name: str, value: str) -> None:
        assert name == "prefers-color-scheme"
        self._in_chrome(
            "Services.prefs.setIntPref(...arguments)", SCHEME, 0 if value == "dark" else 1
        )
        # The process of the page hears of it a little later.
        query = f"return matchMedia('({name}: {value})').matches"
        WebDriverWait(self.driver, START_S).until(lambda _: self.run(query))

    @contextmanager
    def phone(self) -> Iterator[None]:
        # A window of Firefox is no narrower than 500 pixels.
        self.driver.set_window_rect(width=500, height=844)
        try:
            yield
        finally:
            self.driver.set_window_rect(width=1300, height=900)

    def _in_chrome(self, script: str, *args: Any) -> Any:
        self._connection.send("Marionette:SetContext", {"value": "chrome"})
        params = {"script": script, "args": args}
        error, value = self._connection.send("WebDriver:ExecuteScript", params)
        self._connection.send("Marionette:SetContext", {"value": "content"})
        assert error is None, error
        return value


@contextmanager
def open_firefox(firefox: str, profile: Path) -> Iterator[Page]:
    """Start a headless Firefox with an empty profile."""
    lines = [f"user_pref({json.dumps(k)}, {json.dumps(v)});" for k, v in PREFERENCES.items()]
    (profile / "user.js").write_text("\n".join(lines), "utf-8")
    command = [firefox, "--headless", "--no-remote", "--marionette",
               "--remote-allow-system-access", "--profile", str(profile)]  # fmt: skip
    process = subprocess.Popen(
        command, env=os.environ | {"HOME": str(profile)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        connection = Marionette(_port(profile / "MarionetteActivePort"))
        driver = webdriver.Remote(connection, options=Options())
        driver.set_window_rect(width=1300, height=900)
        yield FirefoxPage(driver, connection)
    finally:
        process.terminate()
        process.wait(START_S)


def _port(path: Path) -> int:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if path.is_file() and (text := path.read_text().strip()):
            return int(text)
        time.sleep(0.1)
    raise AssertionError("Firefox did not start")
