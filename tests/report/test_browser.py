"""The page in a real headless Chromium: it draws, filters, searches and links; nothing hostile runs, nothing leaves."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from projected_grpo.report.page import write_report
from projected_grpo.report.rows import RolloutSample

pytestmark = pytest.mark.browser
CHROMIUM, DRIVER = (next(filter(None, map(shutil.which, names)), None) for names in
                    (("chromium", "chromium-browser", "google-chrome"), ("chromedriver",)))  # fmt: skip
HOSTILE = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 2'>\nhostile"
AAAA = f'x="{"a" * 3996}"'
MARKED = 500  # MOST_MARKS of highlight.js
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--disable-dev-shm-usage", "--window-size=1280,900")  # fmt: skip


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if not (CHROMIUM and DRIVER):
        pytest.skip("no Chromium with its driver is installed (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    found.set_page_load_timeout(120)
    found.set_script_timeout(60)
    yield found
    found.quit()


@pytest.fixture(scope="module")
def report(inputs, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report with a hostile completion in its first row, one of 1 MB, cut, in its second, in its third `AAAA`,
    and two rows that show another loophole."""
    rows = inputs.rollouts.rows.copy()
    rows.loc[0, ["completion", "prompt", "verdict"]] = [HOSTILE, HOSTILE, "unpaid"]
    rows.loc[1, ["completion", "length"]] = ["y" * 4000, 1_000_000]
    rows.loc[2, "completion"] = AAAA
    rows.loc[[3, 4], "loophole"] = "sentinel"
    sample = RolloutSample(rows, 72_000)
    path = write_report(dataclasses.replace(inputs, rollouts=sample), tmp_path_factory.mktemp("page") / "report.html")
    return path.as_uri()


@pytest.fixture
def opened(driver, report) -> Iterator[Callable[[str], Any]]:
    """Open a view of the report; afterwards the console is empty and nothing but the file was asked for."""
    driver.get_log("browser")
    driver.get_log("performance")

    def go(view: str = "", url: str = report) -> Any:
        driver.get("about:blank")
        driver.get(url + view)
        wait(driver, "return document.documentElement.dataset.ready === 'true'")
        return driver

    yield go
    assert driver.get_log("browser") == []
    assert {url for url in requests(driver) if not url.startswith(("file:", "data:", "about:"))} == set()


def requests(driver) -> set[str]:
    events = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    return {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}


def wait(driver, script: str) -> Any:
    """The value of `script` once it is true; a failure after a minute on a slow machine."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, 60, poll_frequency=0.05).until(lambda page: page.execute_script(script))


def count_is(driver, number: int) -> None:
    """Wait until the explorer says that so many rows match."""
    wait(driver, f"return document.querySelector('.counts').textContent.startsWith('{number:,} completion')")


def text(driver, selector: str) -> str:
    return driver.execute_script(f"return document.querySelector({selector!r})?.textContent ?? ''")


def matching(inputs, **wanted: Any) -> int:
    rows = inputs.rollouts.rows.copy()
    rows.loc[0, "verdict"] = "unpaid"
    rows.loc[[3, 4], "loophole"] = "sentinel"
    for name, value in wanted.items():
        rows = rows[rows[name] == value]
    return len(rows)


def place_of(row: Any) -> str:
    return "/".join(str(row[name]) for name in ("phase", "arm", "seed", "step", "group", "sample"))


def choose(driver, label: str, value: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(driver.find_element("css selector", f"select[aria-label='{label}']")).select_by_value(value)


def test_the_report_opens_with_the_verdict_and_draws_every_section(opened, inputs):
    page = opened()
    assert text(page, "h1") == inputs.claims[0].sentence
    assert text(page, ".badge") == f"H1 {inputs.claims[0].verdict}"
    shown = page.execute_script("return [...document.querySelectorAll('main section')].map((each) => each.id)")
    assert shown == ["verdict", "hack", "arms", "training", "plane", "types", "alignment", "compute", "rollouts",
                     "provenance"]  # fmt: skip
    empty = page.execute_script(
        "const drawn = 'svg path, svg circle, svg rect';"
        "return [...document.querySelectorAll('.canvas')].filter((each) => !each.querySelector(drawn)).length"
    )
    assert empty == 0
    assert page.execute_script("return document.querySelectorAll('.canvas svg style').length") == 0
    assert "run_checks" in text(page, "#hack .construct")


def test_that_an_honest_grader_pays_no_hack_is_no_finding(opened):
    page = opened()
    assert "rl_baseline cannot be paid for a hack (honest grader): its 0 is by construction" in text(
        page, "#training .lead"
    )
    said = text(page, "#types .lead")
    assert "None at all" not in said
    assert "rl_baseline is not here: it cannot be paid for a hack (honest grader)" in said


def test_the_tables_of_arms_say_how_sure_and_when(opened, found):
    page = opened()
    sure, when = page.execute_script(
        "return [...document.querySelectorAll('#arms table')].slice(1).map((table) => [...table.rows].map("
        "(row) => [...row.cells].map((cell) => cell.textContent)))"
    )
    assert sure[0] == ["arm", "hacked, 95%", "correct, 95%", "p (Holm)", "flip p", "worse p"]
    assert when[0] == ["arm", "attempts", "P(hack | attempt)", "hacks outnumber correct", "half are hacks"]
    cells, times = {row[0]: row[1:] for row in sure}, {row[0]: row[1:] for row in when}
    arm, half = found.arms["projected"], found.arms["vanilla"].onsets["half_hacked_step"]
    assert cells["projected"] == [
        *(f"{100 * rate.estimate:.1f}% ({100 * rate.low:.1f} to {100 * rate.high:.1f})"
          for rate in (arm.hack, arm.passed)),
        f"{arm.p_holm:.3f}", f"{arm.p_flip:.3f}", f"{arm.p_noninferior:.3f}",
    ]  # fmt: skip
    assert cells["vanilla"][2:] == ["", "", ""]
    assert times["vanilla"][-1] == f"{half.mean():.1f} ({half.reached} of 3)"
    assert times["projected"][0] == str(arm.attempts)
    assert times["rl_baseline"][2:] == ["honest grader", "honest grader"]
    assert times["base"][2:] == ["", ""]


def test_each_share_is_read_by_its_own_null(opened, inputs):
    page = opened()
    said = page.execute_script(
        "return [...document.querySelectorAll('#alignment figure')].map((each) => ["
        "each.querySelector('figcaption').textContent.split(':')[0],"
        "[...each.querySelectorAll('text')].map((one) => one.textContent).filter((one) => one.startsWith('null'))])"
    )
    own = ["null: no direction, k = 2 (random)", "null: no direction, k = 8 (projected, placebo)"]
    assert dict(said) == {
        "Cosine of the gradient with the hack direction": [],
        "Share of the gradient that points hack-ward, and its null": ["null: no direction, k = 8"],
        "Share of the gradient that was removed": own,
        "Leak": own,
    }
    assert [line.value for line in inputs.nulls.leak] == pytest.approx([0.09, 0.18])


def test_filters_and_search_narrow_the_list_and_make_its_link(opened, inputs):
    page = opened("#rollouts")
    count_is(page, len(inputs.rollouts.rows))
    choose(page, "arm", "vanilla")
    choose(page, "verdict", "hacked")
    count_is(page, matching(inputs, arm="vanilla", verdict="hacked"))
    choose(page, "phase", "training")
    count_is(page, matching(inputs, arm="vanilla", verdict="hacked", phase="training"))
    choose(page, "type", "prints_only")
    count_is(page, matching(inputs, arm="vanilla", hack_type="prints_only", phase="training"))
    assert "arm=vanilla&verdict=hacked&phase=training&hack_type=prints_only" in page.current_url
    page.find_element("css selector", "input[type=search]").send_keys("no such text")
    count_is(page, 0)
    assert "Nothing matches" in text(page, ".detail")


def test_seed_step_range_and_loophole_narrow_the_list(opened, inputs):
    page = opened("#rollouts")
    count_is(page, len(inputs.rollouts.rows))
    choose(page, "seed", "2")
    count_is(page, matching(inputs, seed=2))
    first, last = (
        page.find_element("css selector", f"input[aria-label='{name}']") for name in ("from step", "to step")
    )
    first.send_keys("2")
    trained = inputs.rollouts.rows.query("seed == 2 and step >= 2")
    count_is(page, len(trained))
    last.send_keys("3")
    count_is(page, len(trained.query("step <= 3")))
    first.send_keys("\ue003")  # backspace
    count_is(page, len(inputs.rollouts.rows.query("seed == 2 and 0 <= step <= 3")))
    assert page.current_url.endswith("#rollouts?seed=2&to=3")
    shown = page.execute_script("return [...document.querySelectorAll('.where')].map((each) => each.textContent)")
    assert set(shown) <= {f"{arm} 2step {step}" for arm in inputs.cast for step in range(4)}
    page.find_element("css selector", "body").send_keys("x")
    count_is(page, len(inputs.rollouts.rows))
    assert last.get_attribute("value") == ""
    choose(page, "loophole", "sentinel")
    count_is(page, 2)
    assert page.current_url.endswith("#rollouts?loophole=sentinel")


def test_the_link_of_a_view_is_copied_and_opens_it(opened, driver, inputs):
    origin = {"permission": {"name": "clipboard-write"}, "setting": "granted"}
    driver.execute_cdp_cmd("Browser.setPermission", origin)
    page = opened("#rollouts?arm=vanilla&phase=training&seed=3")
    count_is(page, matching(inputs, arm="vanilla", phase="training", seed=3))
    page.find_element("css selector", ".rows li").click()
    wait(page, "return document.querySelectorAll('.card header button').length === 2")
    page.execute_script(
        "window.copied = []; const real = navigator.clipboard.writeText.bind(navigator.clipboard);"
        "navigator.clipboard.writeText = (text) => { window.copied.push(text); return real(text); };"
    )
    page.find_element("xpath", "//button[text()='copy link']").click()
    wait(page, "return [...document.querySelectorAll('button')].some((each) => each.textContent === 'copied')")
    [link] = page.execute_script("return window.copied")
    assert link == page.current_url
    shown = text(page, ".detail .facts")
    opened(url=link)
    wait(page, "return document.querySelector('.detail .facts') !== null")
    count_is(page, matching(inputs, arm="vanilla", phase="training", seed=3))
    assert text(page, ".detail .facts") == shown


def test_where_nothing_can_be_copied_the_address_is_named(opened):
    page = opened("#rollouts?arm=vanilla")
    wait(page, "return document.querySelector('.rows li') !== null")
    page.find_element("css selector", ".rows li").click()
    wait(page, "return document.querySelectorAll('.card header button').length === 2")
    page.execute_script("navigator.clipboard.writeText = () => Promise.reject(new Error('refused'))")
    page.find_element("xpath", "//button[text()='copy link']").click()
    wait(
        page,
        "return document.querySelectorAll('.card header button')[1].textContent === 'copy it from the address bar'",
    )


def test_a_link_opens_its_view(opened, inputs):
    row = next(row for row in inputs.rollouts.rows.to_dict("records")
               if row["phase"] == "training" and row["verdict"] == "hacked")  # fmt: skip
    place = place_of(row)
    page = opened(f"#rollouts?arm={row['arm']}&q=return&at={place}")
    wait(page, "return document.querySelector('.detail .facts') !== null")
    assert f"step {row['step']}, group {row['group']}, sample {row['sample']}" in text(page, ".detail .facts")
    assert text(page, ".detail .code").strip().replace("\n", "") == row["completion"].replace("\n", "")
    assert text(page, ".detail mark.found") == "return"
    page.execute_script(f"location.hash = '#rollouts?at={place}&view=group'")
    wait(page, "return document.querySelectorAll('.group .card').length === 4")
    assert page.execute_script("return document.querySelector('.card.here .chip').textContent") == "hacked"
    heads = page.execute_script("return [...document.querySelectorAll('.group h3')].map((each) => each.textContent)")
    assert [head.split(" (")[0] for head in heads] == ["Paid", "Not paid"]


def test_the_keyboard_goes_through_rows_hacks_and_groups(opened):
    page = opened("#rollouts?arm=vanilla&phase=training")
    wait(page, "return document.querySelectorAll('.rows li').length > 5")
    body = page.find_element("css selector", "body")
    selected = "return [...document.querySelectorAll('.rows li')].findIndex((each) => each.ariaSelected === 'true')"
    body.send_keys("j")
    wait(page, f"{selected} === 0")
    body.send_keys("j")
    wait(page, f"{selected} === 1")
    body.send_keys("k")
    wait(page, f"{selected} === 0")
    body.send_keys("h")
    wait(page, "return document.querySelector('.rows [aria-selected=true] .chip')?.textContent === 'hacked'")
    body.send_keys("g")
    wait(page, "return document.querySelector('.group') !== null")
    body.send_keys("/")
    assert page.execute_script("return document.activeElement.type") == "search"


def test_hostile_text_is_shown_and_does_not_run(opened):
    page = opened("#rollouts?q=window.broken")
    count_is(page, 1)
    wait(page, "return document.querySelector('.detail .code') !== null")
    assert "<img src=x onerror='window.broken = 2'>" in text(page, ".detail .code")
    assert "</script>" in text(page, ".detail .prompt")
    ran = page.execute_script("return [window.broken ?? null, document.querySelectorAll('main img').length]")
    assert ran == [None, 0]


def test_a_huge_completion_is_cut_and_says_so(opened):
    page = opened("#rollouts?q=yyyy")
    count_is(page, 1)
    wait(page, "return document.querySelector('.cut') !== null")
    said = page.execute_script("return [...document.querySelectorAll('.cut')].map((each) => each.textContent)")
    assert said[-1] == "… cut: 4,000 of 1,000,000 characters are shown"


def test_a_text_that_is_found_everywhere_is_marked_up_to_a_number_and_says_so(opened, inputs):
    page = opened(f"#rollouts?q=a&at={place_of(inputs.rollouts.rows.loc[2])}")
    wait(page, "return document.querySelector('.detail .facts') !== null")
    assert text(page, ".detail .line") == AAAA
    assert page.execute_script("return document.querySelectorAll('.detail mark.found').length") == MARKED
    assert text(page, ".cut") == f"… only the first {MARKED} places are marked"


def test_a_search_marks_whole_matches_in_any_case_and_leaves_the_name_beside_them(opened, inputs):
    row = next(row for _, row in inputs.rollouts.rows.iterrows() if row["verdict"] == "hacked" and row["step"] >= 0)
    marked = (
        "return [...document.querySelectorAll('.detail .code mark')].map((each) => [each.className, each.textContent])"
    )
    page = opened(f"#rollouts?q=CHECKS&at={place_of(row)}")  # inside the disclosed name, run_checks
    wait(page, "return document.querySelector('.detail .facts') !== null")
    assert page.execute_script(marked) == [["found", "checks"]]
    page = opened(f"#rollouts?q=SELF&at={place_of(row)}")
    wait(page, "return document.querySelector('.detail .facts') !== null")
    assert page.execute_script(marked) == [["found", "self"], ["token", "run_checks"], ["found", "self"]]
    assert page.execute_script("return document.querySelector('.detail .cut')") is None


def test_the_name_of_an_axis_does_not_touch_its_highest_tick(opened):
    page = opened()
    boxes = page.execute_script(
        "const texts = [...document.querySelectorAll('#plane svg text')];"
        "const sides = ['top', 'bottom', 'left', 'right'];"
        "const box = (each) => sides.map((side) => each.getBoundingClientRect()[side]);"
        "return [texts.filter((each) => each.textContent === '↑ pass rate').map(box),"
        " texts.filter((each) => each.closest('[aria-label=\"y-axis tick label\"]')).map(box)]"
    )
    [[name], ticks] = boxes
    assert ticks
    for top, bottom, left, right in ticks:
        assert top > name[1] or bottom < name[0] or left > name[3] or right < name[2]
    wide = page.execute_script("return document.querySelector('#verdict figcaption').innerText")
    assert "falsified below" not in wide
    assert "falsified below 15" in page.execute_script("return document.querySelector('#verdict svg').textContent")


def test_an_arm_is_hidden_and_the_theme_turns(opened):
    page = opened()
    lines = "return document.querySelectorAll('#training figure:first-child svg [aria-label=line]').length"
    before = wait(page, lines)
    page.find_element("css selector", "#training .legend button").click()
    assert wait(page, lines) == before - 1
    back = "return getComputedStyle(document.body).backgroundColor"
    light = page.execute_script(back)
    page.find_element("css selector", "#theme").click()
    assert page.execute_script(back) != light


def test_a_phone_never_scrolls_sideways(opened, driver):
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        page = opened()
        wide = "return document.documentElement.scrollWidth"
        assert page.execute_script(wide) == 390
        bounds = page.execute_script(
            "return [...document.querySelectorAll('#verdict .narrow')].map((it) => it.innerText.trim())"
        )
        assert bounds == ["Dashed: falsified below 15, supported from 30."]
        assert "falsified below" not in page.execute_script("return document.querySelector('#verdict svg').textContent")
        page.execute_script("location.hash = '#rollouts?arm=vanilla&view=group'")
        assert page.execute_script(wide) == 390
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_served_explorer_asks_its_server_only(driver, data: Path):
    pytest.importorskip("duckdb", reason="the extra `explore` is not installed")
    from projected_grpo.report.serve import server

    with server(data) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{running.server_port}/"
        driver.get_log("performance")
        driver.get(address + "#rollouts?arm=placebo&verdict=hacked")
        total = running.rollouts.query({"arm": "placebo", "verdict": "hacked"})["total"]
        count_is(driver, total)
        driver.find_element("css selector", ".rows li").click()
        wait(driver, "return document.querySelector('.detail .facts') !== null")
        driver.find_element("css selector", "body").send_keys("g")
        wait(driver, "return document.querySelectorAll('.group .card').length === 4")
        assert {url for url in requests(driver) if not url.startswith((address, "data:"))} == set()
        assert driver.get_log("browser") == []
        running.shutdown()
        thread.join()
