"""Headless Chromium on files of this machine, with the network off."""

import base64
import contextlib
import os
import shutil

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

INSTALL = "apt-get install chromium chromium-driver"
NO_NETWORK = (
    "--proxy-server=127.0.0.1:9",
    "--proxy-bypass-list=<-loopback>",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)


def find_chromium():
    """Paths of the browser and its driver; skips, or fails where GROWLM_NEEDS_CHROMIUM is set."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if browser and driver:
        return browser, driver
    if os.environ.get("GROWLM_NEEDS_CHROMIUM"):
        pytest.fail(f"there is no Chromium with its driver: {INSTALL}")
    pytest.skip(f"needs Chromium and its driver: {INSTALL}")


@contextlib.contextmanager
def chromium():
    browser, driver = find_chromium()
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", *NO_NETWORK):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield Page(chrome)
    finally:
        chrome.quit()


class Page:
    """A tab."""

    def __init__(self, chrome):
        self.chrome = chrome

    def open(self, path, width=1280, scheme="light"):
        """Open a file, and wait until every plot is drawn."""
        self.screen(width)
        self.prefer(scheme)
        self.chrome.get(path.resolve().as_uri())
        self.wait("return document.documentElement.dataset.drawn === 'all'")

    def screen(self, width, height=900):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def prefer(self, scheme):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def run(self, script, *arguments):
        return self.chrome.execute_script(script, *arguments)

    def wait(self, script):
        WebDriverWait(self.chrome, 60, 0.05).until(lambda _: self.run(script))

    def click(self, selector):
        self.run("document.querySelector(arguments[0]).click()", selector)

    def texts(self, selector):
        return self.run(
            "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)",
            selector,
        )

    def problems(self):
        """What the browser has to complain of, since last asked."""
        return [entry for entry in self.chrome.get_log("browser") if entry["level"] != "INFO"]

    def pdf(self):
        settings = {"printBackground": True, "preferCSSPageSize": True}
        return base64.b64decode(self.chrome.execute_cdp_cmd("Page.printToPDF", settings)["data"])
