"""The site in headless Chromium, which must be installed in CI: Debian's chromium-driver."""

import os
import shutil

import pytest
from built_site import html_files
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

FLAGS = (
    "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
    "disable-component-update disable-sync"
)
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
DRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    DRIVER is None and "CI" not in os.environ, reason="there is no chromedriver"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    for flag in FLAGS.split():
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    browser.set_script_timeout(60)
    yield browser
    browser.quit()


def open_page(browser, address):
    """Open a page and wait for its formulas."""
    browser.get(address)
    browser.execute_async_script(
        "const done = arguments[0]; const ready = window.MathJax?.startup?.promise;"
        "ready ? ready.then(() => done()) : done();"
    )


def test_on_a_phone_no_page_is_wider_than_the_screen_and_nothing_is_missing(browser, server):
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    too_wide, elsewhere = [], []
    for name in html_files():
        open_page(browser, server.url + name)
        width, addresses = browser.execute_script(
            "return [document.documentElement.scrollWidth,"
            " performance.getEntriesByType('resource').map((entry) => entry.name)]"
        )
        too_wide += [(name, width)] if width > PHONE["width"] else []
        elsewhere += [each for each in addresses if not each.startswith(server.url)]
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert (too_wide, elsewhere, server.errors) == ([], [], [])
    assert [each for each in browser.get_log("browser") if each["level"] == "SEVERE"] == []


def test_formulas_are_drawn(browser, server):
    open_page(browser, server.url + "rules/muon.html")
    assert len(browser.find_elements(By.TAG_NAME, "mjx-container")) > 10
    assert not browser.find_elements(By.TAG_NAME, "mjx-merror")


@pytest.mark.parametrize(
    ("words", "title", "path"),
    [
        ("decoupled", "AdamW", "rules/adamw.html"),
        ("NAdam", "mlx_opt.NAdam", "api/python.html"),
        ("gradient_scale", "gradient_scale", "api/cpp.html"),
    ],
)
def test_the_search_finds_and_opens(browser, server, words, title, path):
    open_page(browser, server.url + "index.html")
    field = browser.find_element(By.CSS_SELECTOR, "input[name=q]")
    field.send_keys(words)
    field.submit()
    links = WebDriverWait(browser, 20).until(
        lambda _: browser.find_elements(By.CSS_SELECTOR, "#search-results li a")
    )
    found = [link for link in links if path in link.get_attribute("href") and title in link.text]
    assert found, [link.text for link in links]
    found[0].click()
    WebDriverWait(browser, 20).until(lambda _: path in browser.current_url)
    assert browser.find_elements(By.TAG_NAME, "h1")
