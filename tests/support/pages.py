"""Driving Chromium: opening a page that tieops wrote, and reading where things are on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver import ActionChains
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

__all__ = ["Page", "open_browser"]

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--window-size=1300,900",
)  # fmt: skip

# For each pane the rectangles of the boxes and of the texts in them, in pixels of the page.
GEOMETRY = """
const rect = (e) => {
  const {left, top, right, bottom} = e.getBoundingClientRect();
  return [left, top, right, bottom];
};
const label = (link) => link.querySelector(".labelbox");
const body = (unit) => unit.querySelector(".body, .stored, .hit");
return [...document.querySelectorAll("#panes section")].map((pane) => ({
  boxes: [...pane.querySelectorAll(".unit")].map((unit) => ({
    key: unit.dataset.key, box: rect(body(unit)),
    texts: [...unit.querySelectorAll(":scope > text")].map((t) => [t.textContent, ...rect(t)]),
  })),
  labels: [...pane.querySelectorAll(".link")].filter(label).map((link) => ({
    box: rect(label(link)),
    texts: [...link.querySelectorAll("text")].map((t) => [t.textContent, ...rect(t)]),
  })),
}));
"""


class Page:
    """One page in one browser."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, path: Path) -> None:
        self.driver.get(path.resolve().as_uri())

    def run(self, script: str, *args: Any) -> Any:
        return self.driver.execute_script(script, *args)

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def shown(self, selector: str = "#panes .unit") -> list[str]:
        """Return the keys of the boxes that are on the page."""
        return [str(unit.get_attribute("data-key")) for unit in self.all(selector)]

    def click(self, key: str) -> None:
        """Click a box where a person would: scrolled into view, in its corner or middle."""
        self.tap(f'#panes [data-key="{key}"]')

    def tap(self, selector: str) -> None:
        """Click a box of the picture where its shape is: a group of SVG is nowhere itself."""
        shape = self.find(selector).find_element(By.CSS_SELECTOR, ".hit, .body, .stored")
        self.run("arguments[0].scrollIntoView({block: 'center', inline: 'center'})", shape)
        ActionChains(self.driver, duration=0).move_to_element(shape).click().perform()

    def geometry(self) -> list[dict[str, list[dict[str, Any]]]]:
        return self.run(GEOMETRY)

    def hover(self, selector: str) -> None:
        ActionChains(self.driver).move_to_element(self.find(selector)).perform()

    def errors(self) -> list[str]:
        """Return what the console said since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def media(self, name: str, value: str) -> None:
        features = [{"name": name, "value": value}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    @contextmanager
    def phone(self) -> Iterator[None]:
        size = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        try:
            yield
        finally:
            self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@contextmanager
def open_browser(chromium: str, driver: str, profile: Path) -> Iterator[Page]:
    """Start a headless Chromium with an empty profile."""
    options = Options()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield Page(browser)
    finally:
        browser.quit()
