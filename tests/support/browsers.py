"""Which browsers are here, and the driver of Chromium."""

from __future__ import annotations

import shutil

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


DRIVER = shutil.which("chromedriver")


FIREFOX = next(filter(None, map(shutil.which, ("firefox-esr", "firefox"))), None)
