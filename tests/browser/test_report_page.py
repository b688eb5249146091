# SPDX-License-Identifier: Apache-2.0
"""The report's page in a headless Chromium: on a desk, on a phone, in the dark, without scripts."""

from __future__ import annotations

import json
import os

import chromium
import pytest
import report_fleet

MISSING = "there is no Chromium here (apt-get install chromium, or FIRSTLIGHT_TEST_CHROMIUM)"

# Of 500 hosts. A page of this size loaded within a second; how long it took is printed.
MOST_BYTES, MOST_ELEMENTS = 3_500_000, 90_000

# Every text that is seen, with the ratio of contrast to what is behind it.
CONTRAST = """
(() => {
  const numbers = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255).map(
    c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = one => {
    for (; one; one = one.parentElement) {
      const found = numbers(getComputedStyle(one).backgroundColor);
      if (found.length < 4 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const poor = [];
  let seen = 0;
  for (const one of document.querySelectorAll("body *")) {
    const own = [...one.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (!own || !one.checkVisibility() || one.matches(".skip, .vh, script")) continue;
    seen += 1;
    const pair = [light(numbers(getComputedStyle(one).color)), light(behind(one))];
    const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    if (ratio < 4.5) poor.push([one.className, one.textContent.slice(0, 30), ratio]);
  }
  return {seen, poor};
})()
"""


@pytest.fixture(scope="session", autouse=True)
def _chromium():
    """Skips where there is none; in CI that fails, or nobody would see that nothing was seen."""
    if chromium.found() is None:
        in_ci = os.environ.get("CI", "") not in ("", "0", "false")
        if in_ci:
            pytest.fail(MISSING)
        pytest.skip(MISSING)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium.Browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    report_fleet.small(folder)
    return folder


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    report_fleet.many(folder, 500)
    return folder


@pytest.mark.parametrize("scripts", [True, False])
def test_all_is_there_with_scripts_and_without(browser, small, scripts):
    page = browser.open(small / "index.html", scripts=scripts)
    assert page.value("document.querySelector('h1').innerText") == "4 of 8 hosts proven"
    assert page.value("document.querySelectorAll('.fleet tbody tr').length") == 8
    # What is below the screen is not drawn yet, but it is there and open.
    seen = page.value("document.querySelector('main').textContent")
    assert page.value("document.querySelectorAll('article > details[open]').length") == 8
    for words in ("NVML error 18", "Connection timed out", "Llama-3.1-70B", "580.195.03",
                  "look at the fans", "Until it is ready", "KV cache", "not in the last run"):
        assert words in seen, words
    assert page.value("getComputedStyle(document.getElementById('tools')).display != 'none'"
                      ) is scripts
    assert page.complaints == []


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_nothing_is_wider_than_the_screen(browser, small, width):
    page = browser.open(small / "index.html", width=width)
    page.value("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.value("document.documentElement.scrollWidth") <= width


def test_words_of_any_length_are_not_wider_than_a_phone(browser, tmp_path):
    facts, plan = report_fleet.planned("a100-40", 8, "Llama-3.1-70B")
    long = "x" * 250
    plan = dict(plan, public_url="http://%s" % long, image=long, reasons=[long],
                model=dict(plan["model"], served_name=long))
    against = [report_fleet.finding(long, long, long, long, long, evidence=long)]
    report_fleet.keep(tmp_path, long, facts, [report_fleet.passport(plan, 1, 1)],
                      [report_fleet.verdict(plan, 1, 1, against)], report_fleet.NOW)
    report_fleet.fleet_pages.keep_run(
        str(tmp_path), report_fleet.run(1, report_fleet.BEFORE, report_fleet.NOW),
        {long: report_fleet.entry("failed", long, long, long)})
    page = browser.open(tmp_path / "index.html", width=360)
    page.value("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.value("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_stands_out(browser, small, dark):
    page = browser.open(small / "index.html", dark=dark)
    page.value("document.querySelectorAll('details').forEach(one => one.open = true)")
    background = page.value("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(15, 20, 27)") is dark
    told = page.value(CONTRAST)
    assert told["seen"] > 300
    assert told["poor"] == []


def test_hosts_are_filtered_and_sorted(browser, small):
    page = browser.open(small / "index.html")

    def shown():
        return page.value("[...document.querySelectorAll('.fleet tbody tr:not([hidden]) a')]"
                          ".map(one => one.innerText.split('.')[0])")

    def typed(words):
        page.value("""(() => {
          const box = document.querySelector("#tools input");
          box.value = %s;
          box.dispatchEvent(new Event("input"));
        })()""" % json.dumps(words))

    typed("h100 qwen")
    assert shown() == ["h100-01"]
    assert page.value("document.querySelectorAll('article:not([hidden])').length") == 1
    typed("")
    page.value("[...document.querySelectorAll('#tools button')].find("
               "one => one.innerText.startsWith('proven')).click()")
    assert shown() == ["a100-01", "cpu-01", "h100-01", "orin-01"]
    page.value("[...document.querySelectorAll('th button')].find("
               "one => one.innerText === 'Host').click()")
    page.value("[...document.querySelectorAll('th button')].find("
               "one => one.innerText === 'Host').click()")
    assert shown() == ["orin-01", "h100-01", "cpu-01", "a100-01"]
    assert page.complaints == []


def test_what_hosts_say_is_text(browser, tmp_path):
    evil = "<img src=x onerror=alert(1)><script>document.title='taken'</script>\"'&}}{%"
    facts, plan = report_fleet.planned("a100-40", 8, "Llama-3.1-70B")
    plan = dict(plan, public_url="javascript:alert(1)", engine=evil,
                model=dict(plan["model"], served_name=evil))
    report_fleet.keep(tmp_path, evil, facts, [report_fleet.passport(plan, 1, 1)], [
        report_fleet.verdict(plan, 1, 1, [report_fleet.finding(evil, evil, evil, evil, evil)])],
        report_fleet.NOW)
    report_fleet.fleet_pages.keep_run(
        str(tmp_path), report_fleet.run(1, report_fleet.BEFORE, report_fleet.NOW),
        {evil: report_fleet.entry("failed", evil, evil, evil)})
    page = browser.open(tmp_path / "index.html")
    assert page.value("document.title").startswith("First light")
    assert page.value("document.images.length") == 0
    assert page.value("document.scripts.length") == 1
    assert page.value("document.querySelector('.fleet a').innerText") == evil
    assert page.complaints == []


def test_500_hosts_are_light_enough(browser, large, capsys):
    size = (large / "index.html").stat().st_size
    page = browser.open(large / "index.html")
    assert page.complaints == []
    assert page.value("document.querySelectorAll('article').length") == 500
    elements = page.value("document.querySelectorAll('*').length")
    told = json.loads(page.value("JSON.stringify(performance.getEntriesByType('navigation')[0])"))
    with capsys.disabled():
        print("\n500 hosts: %.1f MB, %d elements, loaded after %.0f ms" % (
            size / 1e6, elements, told["loadEventEnd"]))
    assert size < MOST_BYTES
    assert elements < MOST_ELEMENTS
