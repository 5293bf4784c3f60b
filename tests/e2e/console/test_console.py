"""What people do in the console, done in a real browser against a real LLM OS."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import browser as browsers
import pytest
from playwright.sync_api import Browser, Page, expect
from whole_os import WholeOS

expect.set_options(timeout=browsers.WAIT_MS)
PAGES = {
    "system": ("System", "系统"),
    "models": ("Models", "模型"),
    "models/smollm2@1": ("Models", "模型"),
    "playground": ("Playground", "试用"),
    "queues": ("Queues", "队列"),
    "memory": ("Memory", "内存"),
    "jobs": ("Jobs", "作业"),
    "logs": ("Logs and audit", "日志与审计"),
    "logs/audit": ("Logs and audit", "日志与审计"),
}
# Elements that stick out of the page to the right, other than inside what scrolls by itself.
STICKING_OUT = """() => [...document.querySelectorAll('main *')]
  .filter(e => !e.closest('.scroll, .log, .map, svg, .uplot, thead, ul.news'))
  .filter(e => e.getClientRects().length && e.getBoundingClientRect().right > innerWidth + 1)
  .map(e => e.outerHTML.slice(0, 120))"""


@pytest.mark.parametrize(
    ("width", "dark", "locale"), [(1280, False, "en-US"), (390, True, "zh-CN")]
)
def test_every_page_is_drawn_and_fits(
    browser: Browser, system: WholeOS, tmp_path: Path, width: int, dark: bool, locale: str
) -> None:
    with browsers.page(browser, system.gateway(), width=width, dark=dark, locale=locale) as page:
        expect(page.locator(".node[data-name=storage]")).to_be_visible()
        expect(page.locator(".late")).to_have_count(0)  # what stood there before the first frame
        for place, titles in PAGES.items():
            page.goto(f"/console/#{place}")
            expect(page.locator("h1")).to_have_text(titles[locale == "zh-CN"])
            expect(page.locator(".panel").first).to_be_visible()
            expect(page.locator("[role=alert]")).to_have_count(0)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, place
            assert page.evaluate(STICKING_OUT) == [], place
            shot = tmp_path / f"{place.replace('/', '-')}-{width}.png"
            page.screenshot(path=shot, full_page=True)
            assert shot.stat().st_size > 5_000
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(16, 20, 28)" if dark else "rgb(244, 246, 250)")


def test_a_chat_is_answered_in_pieces(page: Page) -> None:
    page.goto("/console/#playground")
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Most tokens").fill("40")
    page.get_by_label("Say something").fill("Tell me about the sea.")
    page.evaluate(
        """() => { window.lengths = new Set();
          new MutationObserver(() => {
            const text = document.querySelector('[data-role=assistant] .text');
            if (text) window.lengths.add(text.textContent.length);
          }).observe(document.body, {subtree: true, childList: true, characterData: true}); }"""
    )
    page.keyboard.press("Enter")
    answer = page.locator("[data-role=assistant]")
    expect(answer.locator("small")).to_contain_text("40 tokens")
    expect(answer.locator("small")).to_contain_text("cut")
    assert len(answer.locator(".text").inner_text()) > 60
    assert page.evaluate("window.lengths.size") > 5  # it grew before one's eyes


def test_an_answer_can_be_stopped_and_a_chat_begun_anew(page: Page) -> None:
    page.goto("/console/#playground")
    page.get_by_label("Most tokens").fill("4000")
    page.get_by_label("Say something").fill("Count from one to a thousand, in words.")
    page.keyboard.press("Enter")
    text = page.locator("[data-role=assistant] .text")
    expect(text).not_to_be_empty()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("[data-role=assistant] small")).to_have_text("stopped")
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".turn")).to_have_count(0)


def test_two_answers_side_by_side(page: Page) -> None:
    page.goto("/console/#playground")
    page.get_by_label("Side by side with").select_option("smollm2@1")
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Most tokens").fill("8")
    page.get_by_label("Say something").fill("What is the capital of France?")
    page.get_by_role("button", name="Send").click()
    notes = page.locator("[data-role=assistant] small")
    expect(notes).to_have_count(2)
    left, right = page.locator("[data-role=assistant] .text").all_inner_texts()
    assert left == right
    assert "Paris" in left


def test_a_model_is_unloaded_after_a_question_and_loaded(page: Page) -> None:
    page.goto("/console/#models")
    row = page.locator("tr", has_text="smollm2@1")
    load = row.get_by_role("button", name="Load", exact=True)
    unload = row.get_by_role("button", name="Unload")
    expect(load.or_(unload)).to_be_visible()
    if load.is_visible():
        load.click()
    expect(row.locator(".badge").first).to_have_text("ready")
    unload.click()
    expect(page.get_by_role("dialog")).to_contain_text("Unload smollm2@1?")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(row.locator(".badge").first).to_have_text("ready")
    unload.click()
    page.get_by_role("dialog").get_by_role("button", name="Unload").click()
    expect(row.locator(".badge").first).to_have_text("stored")
    load.click()
    expect(row.locator(".badge").first).to_have_text("ready")


def test_a_killed_worker_is_seen_to_die_and_to_return(page: Page, system: WholeOS) -> None:
    system.ok("model", "load", "smollm2")
    with page.expect_response(lambda response: "/events?" in response.url):  # news are listened to
        page.reload()
    worker = page.locator(".node[data-name^='worker/smollm2']")
    expect(worker).to_be_visible()
    pid = int(worker.get_attribute("data-pid") or 0)
    assert pid == system.pid("worker")
    os.kill(pid, signal.SIGKILL)
    expect(page.locator("ul.news")).to_contain_text("model.failed")
    expect(page.locator(f".node[data-pid='{pid}']")).to_have_count(0)
    answer = system.ok("run", "smollm2", "Say hello.", "--max-tokens", "4", "--temperature", "0")
    assert answer.strip()
    expect(worker).to_be_visible()
    assert int(worker.get_attribute("data-pid") or 0) not in (0, pid)
    expect(page.locator("ul.news")).to_contain_text("model.loaded")


def test_a_server_is_restarted_after_a_question(page: Page, system: WholeOS) -> None:
    old = system.pid("memory")
    card = page.locator(".node[data-name=memory]")
    card.get_by_role("button", name="Restart").click()
    page.get_by_role("dialog").get_by_role("button", name="Restart").click()
    expect(page.get_by_text("memory runs again.")).to_be_visible()
    expect(card).not_to_have_attribute("data-pid", str(old))
    assert system.pid("memory") != old


def test_an_alias_is_pointed_and_the_audit_log_tells(page: Page) -> None:
    page.goto("/console/#models/smollm2@1")
    page.get_by_label("Alias, e.g. prod").fill("prod")
    page.get_by_role("button", name="Point an alias here").click()
    page.get_by_role("dialog").get_by_role("button", name="Point an alias here").click()
    expect(page.locator("tr", has_text="smollm2@1").first).to_contain_text("prod")
    page.goto("/console/#logs/audit")
    expect(page.locator("table")).to_contain_text("alias.set")
    page.get_by_role("button", name="Check the whole log").click()
    expect(page.get_by_role("status")).to_contain_text(re.compile(r"Intact: \d+ entries"))


def test_an_error_is_said_as_the_system_says_it(page: Page) -> None:
    page.goto("/console/#jobs")
    spec = page.get_by_label("What to do")
    spec.fill("[1")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("status")).to_contain_text("This is not a JSON object")
    page.goto("/console/#logs")
    page.get_by_label("Process").select_option("storage")
    expect(page.get_by_role("log")).to_contain_text("serving")


def test_a_place_that_is_chosen_at_once_or_misspelt_is_gone_to(page: Page) -> None:
    # As soon as the script has run, before anything is drawn.
    page.add_init_script("addEventListener('DOMContentLoaded', () => { location.hash = 'jobs' })")
    page.reload()
    expect(page.locator("h1")).to_have_text("Jobs")
    page.goto("/console/#logs/%")
    expect(page.locator("h1")).to_have_text("Logs and audit")


def test_a_page_that_cannot_be_drawn_says_so_and_is_tried_again(
    browser: Browser, system: WholeOS
) -> None:
    page = browser.new_page(base_url=system.gateway(), locale="en-US")
    try:
        page.route("**/llmos/v1/jobs", lambda route: route.fulfill(json={}))  # no answer of ours
        page.goto("/console/#jobs")
        expect(page.get_by_role("alert")).to_contain_text("This page could not be drawn")
        page.unroute("**/llmos/v1/jobs")
        page.get_by_role("button", name="Try again").click()
        expect(page.get_by_label("What to do")).to_be_visible()
    finally:
        page.close()


def test_keys_and_words(page: Page) -> None:
    expect(page.locator(".node[data-name=storage]")).to_be_visible()
    page.keyboard.press("5")
    expect(page.locator("h1")).to_have_text("Memory")
    page.keyboard.press("Tab")
    page.keyboard.press("Shift+Tab")
    page.get_by_label("Language").select_option("zh")
    expect(page.locator("h1")).to_have_text("内存")
    assert page.evaluate("document.documentElement.lang") == "zh-Hans"
    page.get_by_label("浅色或深色").select_option("dark")
    page.reload()
    expect(page.locator("h1")).to_have_text("内存")  # both are remembered
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Tab")  # the first thing the keyboard finds leads past the navigation
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
