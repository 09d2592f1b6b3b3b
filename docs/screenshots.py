"""Take the pictures of the report that the documents show: `python docs/screenshots.py plots/report.html`.

Needs Chromium with its driver, and selenium. Writes docs/report.png and docs/explorer.png.
"""

from __future__ import annotations

import base64
import io
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

DOCS = Path(__file__).parent
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-background-networking")
READY = "return document.documentElement.dataset.ready === 'true'"
PLACE = "return document.getElementById({!r}).getBoundingClientRect().top + scrollY"


def browser(width: int, height: int) -> Any:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (*FLAGS, f"--window-size={width},{height}", f"--user-data-dir={tempfile.mkdtemp()}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    scheme = {"name": "prefers-color-scheme", "value": "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    return driver


def take(driver: Any, name: str, top: float, height: float, width: int) -> None:
    """Write one clip, with few colours: the pictures live in Git."""
    clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    image = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
    image.quantize(128, dither=Image.Dither.NONE).save(DOCS / f"{name}.png", optimize=True)


def opened(page: str, width: int, height: int) -> Any:
    driver = browser(width, height)
    driver.get(page)
    WebDriverWait(driver, 60).until(lambda it: it.execute_script(READY))
    driver.execute_async_script("setTimeout(arguments[0], 800)")  # figures are drawn once they have a width
    return driver


def main() -> None:
    page = Path(sys.argv[1]).resolve().as_uri()
    driver = opened(page, 1200, 900)
    take(driver, "report", 0, driver.execute_script(PLACE.format("arms")), 1200)
    driver.quit()
    driver = opened(f"{page}#rollouts?phase=training&arm=vanilla&from=20&verdict=hacked", 1200, 900)
    for key in "jg":
        driver.find_element("css selector", "body").send_keys(key)
    driver.execute_async_script("setTimeout(arguments[0], 800)")
    take(driver, "explorer", driver.execute_script(PLACE.format("rollouts")), 860, 1200)
    driver.quit()


if __name__ == "__main__":
    main()
