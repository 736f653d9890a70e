"""The page in a real headless Chromium: no console errors, no requests, and controls that work."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distune.report.evidence import Evidence
from distune.report.html.page import render
from tests.report.workspaces import killed_run

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="needs Chromium and ChromeDriver (Debian: apt-get install chromium chromium-driver)",
    ),
]
_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    profile = tmp_path_factory.mktemp("profile")
    for flag in (*_FLAGS, "--disable-component-update", "--disable-sync", f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def written(workspace: Path) -> Path:
    report = workspace / "report.html"
    report.write_text(render(Evidence.read(workspace)), encoding="utf-8")
    return report


@pytest.fixture
def page(browser: Any, tmp_path: Path) -> Any:
    names = ["<script>window.broken = 1</script>", "conv_b", "conv_c"]
    workspace = killed_run(tmp_path, names, [0.5, 0.86, 0.87, 0.895], latencies={1: 0.3, 2: 0.7, 3: 0.5, 4: 0.9})
    browser.set_window_size(1280, 1000)
    browser.get(written(workspace).as_uri())
    return browser


def rows(page: Any) -> list[str]:
    return [row.text for row in page.find_elements("css selector", "#trial-table tbody tr")]


def test_it_loads_without_errors_and_without_requests(page: Any) -> None:
    assert page.get_log("browser") == []
    sent = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = [message["params"] for message in sent if message["method"] == "Network.requestWillBeSent"]
    ours = [params["request"]["url"] for params in asked if params["documentURL"].startswith("file:")]
    assert ours != []
    assert [url for url in ours if not url.startswith(("file:", "data:"))] == []
    assert page.execute_script("return window.broken") is None
    for section in ("pareto", "sensitivity", "timeline", "trials"):
        assert page.find_element("id", section).is_displayed()


def test_the_table_filters_and_sorts(page: Any) -> None:
    assert len(rows(page)) == 4
    page.find_element("id", "filter").send_keys("conv_b")
    assert len(rows(page)) == 1
    assert "conv_b" in rows(page)[0]
    page.find_element("id", "filter").clear()
    page.find_element("id", "filter").send_keys(" ")
    heading = page.find_element("css selector", 'th[data-key="ratio"] button')
    heading.click()
    assert [row.split()[0] for row in rows(page)] == ["1", "3", "2", "4"]
    page.find_element("css selector", "#verdict option[value=met]").click()
    assert len(rows(page)) == 1


def test_a_point_tells_what_it_is_by_mouse_and_by_keyboard(page: Any) -> None:
    from selenium.webdriver import ActionChains, Keys

    tip = page.find_element("id", "tip")
    point = page.find_element("css selector", '#pareto-chart .mark[data-trial="3"]')
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", point)
    ActionChains(page).move_to_element(point).perform()
    assert tip.is_displayed()
    assert "Trial 3" in tip.text
    assert "conv_b" in tip.text
    chart = page.find_element("css selector", "#pareto-chart svg")
    page.execute_script("arguments[0].focus()", chart)
    chart.send_keys(Keys.ARROW_RIGHT)
    assert tip.is_displayed()
    assert "Trial 1" in tip.text


def test_a_trial_opens_its_tuning_config(page: Any) -> None:
    button = page.find_element("css selector", 'tr[data-trial="2"] button')
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    button.click()
    detail = page.find_element("css selector", "td.detail").text
    assert "fp32: 1 op (<script>window.broken = 1</script>)" in detail
    assert "static uint8 asym per_tensor minmax / int8 sym per_channel minmax: 2 ops" in detail


def test_a_phone_needs_no_sideways_scrolling(page: Any) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    )
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") <= 390
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_dark_mode_is_dark(page: Any) -> None:
    def brightness() -> int:
        colour = page.execute_script("return getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in colour.strip("rgb()").split(","))

    light = brightness()
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    try:
        assert brightness() < light / 3
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_thousand_trials_are_shown(browser: Any, tmp_path: Path) -> None:
    names = [f"encoder/layer.{i // 6}/op_{i}" for i in range(300)]
    workspace = killed_run(tmp_path, names, [0.5 + 0.0003 * i for i in range(1000)])
    report = written(workspace)
    start = time.monotonic()
    browser.get(report.as_uri())
    browser.execute_script("return document.body.offsetHeight")
    print(f"opened in {time.monotonic() - start:.2f} s")
    assert len(rows(browser)[:1]) == 1
    assert browser.find_element("id", "count").text == "1000 of 1000"
