"""A headless Chromium for tests and benchmarks of pages: Debian's packages `chromium` and `chromium-driver`, driven by selenium."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
PACKAGES = ("chromium", "chromium-driver")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--window-size=1280,1000",
)  # fmt: skip


class Browser:
    """What tests do with a page."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def get(self, address: str) -> None:
        self.driver.get(address)

    def run(self, script: str, *arguments: Any) -> Any:
        """Returns what a body of a JavaScript function returns."""
        return self.driver.execute_script(script, *arguments)

    def wait_until(self, script: str, timeout_s: float = 20.0) -> Any:
        """Returns the first true value of an expression."""
        deadline = time.monotonic() + timeout_s
        while not (value := self.run(f"return {script}")):
            if time.monotonic() > deadline:
                raise AssertionError(f"not true within {timeout_s:g} s: {script}; console: {self.console()}")
            time.sleep(0.02)
        return value

    def wait_until_drawn(self) -> float:
        """Returns the milliseconds from the navigation to the drawn page."""
        return float(self.wait_until("document.documentElement.dataset.ready"))

    def resize(self, width: int, height: int = 1000) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def prefer(self, scheme: str) -> None:
        """`light` or `dark`; without animations, so that nothing moves while a test clicks on it."""
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def console(self) -> list[str]:
        """Returns what the page has complained of since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
        try:
            yield Browser(driver)
        finally:
            driver.quit()


def unavailable() -> str:
    """Returns why there is no browser; installs Debian's packages first where $SFT_DIST_REQUIRE_CHROMIUM is 1."""
    if not DRIVER.exists() and os.environ.get("SFT_DIST_REQUIRE_CHROMIUM") == "1":
        install = ["apt-get", "-o", "DPkg::Lock::Timeout=300", "install", "-y", "--no-install-recommends", *PACKAGES]
        if subprocess.run(install, capture_output=True).returncode:
            subprocess.run(["apt-get", "update"], check=True, capture_output=True)
            subprocess.run(install, check=True, capture_output=True)
    missing = [str(file) for file in (CHROMIUM, DRIVER) if not file.exists()]
    return f"{' and '.join(missing)}: not installed" if missing else ""
