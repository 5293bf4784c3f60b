"""The Playground's page for images and sounds, with real files and models that read them."""

from __future__ import annotations

from pathlib import Path

import browser as browsers
import pytest
from playwright.sync_api import Page, expect
from reading_models import LINES, cv2, ocr_sources, tone_reader, tones
from reading_models import page as written
from whole_os import WholeOS

expect.set_options(timeout=browsers.WAIT_MS)


@pytest.fixture(scope="module")
def readers(system: WholeOS, tmp_path_factory: pytest.TempPathFactory) -> WholeOS:
    folder = tmp_path_factory.mktemp("readers")
    for source, name in ocr_sources(folder):
        system.ok("model", "import", source, "--name", name)
    system.ok("model", "import", str(tone_reader(folder / "tones")), "--name", "tones")
    return system


def test_an_image_is_read_and_a_sound_heard(readers: WholeOS, page: Page, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "lines.png"), written())
    (tmp_path / "beeps.wav").write_bytes(tones(3))
    page.goto("/console/#playground/media")
    choice = page.get_by_label("Model")
    upload = page.get_by_label("An image or a sound")
    ask = page.get_by_role("button", name="Ask the model")
    expect(ask).to_be_disabled()
    choice.select_option("ocr@1")
    upload.set_input_files(tmp_path / "lines.png")
    expect(page.locator("img.preview")).to_be_visible()
    ask.click()
    expect(page.locator(".reads")).to_have_text("\n".join(LINES))
    choice.select_option("tones@1")
    upload.set_input_files(tmp_path / "beeps.wav")
    expect(page.locator("audio")).to_be_visible()
    ask.click()
    expect(page.locator(".reads")).to_have_text("aaa")
    expect(page.get_by_role("alert")).to_have_count(0)
