"""A real browser for the tests of pages: Chromium, headless, driven by Playwright.

Where there is none, tests are skipped with that reason; in the gate, which sets BAYESMIX_BROWSER=required, they fail.
"""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTHS = (1280, 400)

# What a page must answer once everything on it is open: how wide it is, what its pictures are, and what sticks out.
PROBE = """() => {
  document.querySelectorAll("details").forEach(one => one.open = true);
  const inside = one => one.closest(".box") !== null;
  return {
    window: innerWidth,
    page: document.documentElement.scrollWidth,
    images: [...document.images].map(one => [one.complete, one.naturalWidth, one.naturalHeight, one.clientWidth]),
    sticks_out: [...document.body.querySelectorAll("*")].filter(one => !inside(one))
      .filter(one => one.getBoundingClientRect().right > innerWidth + 1).map(one => one.tagName),
    letters: Math.min(...[...document.querySelectorAll("p, td, dt, dd, figcaption, code")]
      .map(one => parseFloat(getComputedStyle(one).fontSize))),
    text: document.body.innerText,
    scripts: document.scripts.length,
  };
}"""


@contextmanager
def browser():
    """Chromium, or a skip, or in the gate a failure."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        reason = f"there is no browser: none of {', '.join(NAMES)} is installed (apt-get install chromium)"
        if os.environ.get("BAYESMIX_BROWSER") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield chromium
        finally:
            chromium.close()


def look(chromium, path, width):
    """The page at that width: what the probe says, all that the browser complained of or asked for, and a picture."""
    page = chromium.new_page(viewport={"width": width, "height": 900})
    complaints, requests = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri(), wait_until="load")
    seen = page.evaluate(PROBE)
    picture = page.screenshot()
    page.close()
    return seen, complaints, [url for url in requests if not url.startswith(("file:", "data:"))], picture


def assert_sound(chromium, path, width):
    """The page loads without a complaint, asks for nothing, shows its pictures and fits the window."""
    from io import BytesIO

    from matplotlib.image import imread

    seen, complaints, requests, picture = look(chromium, path, width)
    assert complaints == []
    assert requests == []
    assert seen["window"] == width
    assert seen["page"] <= width
    assert seen["sticks_out"] == []
    assert seen["scripts"] == 0
    assert seen["letters"] >= 12
    assert seen["images"]
    for complete, wide, high, shown in seen["images"]:
        assert complete
        assert min(wide, high) > 0
        assert 0.6 * min(width, 500) < shown <= width
    assert imread(BytesIO(picture)).std() > 0.05
    return seen["text"]
