"""The page of real WebUIs in headless Chromium: tick the box, type, generate, and read what a person sees.

Screenshots go to MEMGUARD_SCREENSHOTS, where that is set.
"""

import importlib.util
import json
import os
import time
from pathlib import Path

import pytest

from memguard_pack.tests.e2e.browser import Browser, executable
from memguard_pack.tests.hosts.webui.server import FLAGS, Server, missing
from memguard_pack.tests.hosts.webui.test_webui_mitigating import MEMORIZED, written

PATIENCE = 600
VALUES = {"txt2img_width": 128, "txt2img_height": 128, "txt2img_steps": 4, "txt2img_cfg_scale": 5, "txt2img_seed": 3}
MARKS = {"stop": "Stopped before", "warn": "noise gap over", "mitigate": "mitigated by"}  # of a policy's panel


@pytest.fixture(scope="module", params=list(FLAGS))
def shown(request, tmp_path_factory):
    """A WebUI that serves its page, and a browser that has it open."""
    why = missing(request.param) or (executable() is None and "no Chromium is installed")
    why = why or (importlib.util.find_spec("aiohttp") is None and "aiohttp is not installed")
    if why:
        pytest.skip(why)
    server = Server(request.param, tmp_path_factory.mktemp(f"{request.param}-page") / "data", ui=True)
    server.host = request.param
    browser = Browser(tmp_path_factory.mktemp("chromium"), (1400, 1500))
    path = None
    try:
        path = written(server)
        browser.send("Page.navigate", url=server.url)
        browser.wait("window.gradioApp && gradioApp().querySelector('#memguard_txt2img_check') && true", PATIENCE)
        time.sleep(5)  # Forge sets sizes of its own once the page is there
        yield server, browser
    finally:
        browser.close()
        server.close()
        if path is not None:
            path.unlink()


def put(browser, name, value):
    """Type into a component, as a person would as far as gradio can tell."""
    browser.run(
        f"""const field = gradioApp().querySelector("#{name} textarea, #{name} input");
        const set = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(field), "value").set;
        set.call(field, {json.dumps(str(value))});
        for (const kind of ["input", "change", "blur"]) field.dispatchEvent(new Event(kind, {{bubbles: true}}));"""
    )


def choose(browser, name, value):
    """Choose from a dropdown."""
    browser.run(
        f"""const field = gradioApp().querySelector("#{name} input");
        field.focus();
        field.dispatchEvent(new Event("focus"));
        await new Promise((done) => setTimeout(done, 500));
        const options = [...gradioApp().querySelectorAll("#{name} ul.options li, ul.options li")];
        const option = options.find((each) => each.textContent.replace("✓", "").trim() === "{value}");
        option.dispatchEvent(new MouseEvent("mousedown", {{bubbles: true}}));"""
    )


def text(browser):
    return browser.run("return gradioApp().querySelector('#memguard_txt2img_panel').innerText") or ""


def picture(browser, name):
    folder = os.environ.get("MEMGUARD_SCREENSHOTS")
    if folder:
        browser.screenshot(Path(folder) / f"{name}.png")


def test_check_prompt_scores_without_generating(shown):
    server, browser = shown
    put(browser, "txt2img_prompt", MEMORIZED)
    for name, value in VALUES.items():
        put(browser, name, value)
    time.sleep(1)  # gradio takes what was typed
    browser.run("gradioApp().querySelector('#memguard_txt2img_check').click()")
    browser.wait("gradioApp().querySelector('#memguard_txt2img_panel').innerText.includes('score')", PATIENCE)
    assert "looks memorized (score" in text(browser)
    assert browser.run("return gradioApp().querySelectorAll('#txt2img_gallery img').length") == 0
    picture(browser, f"{server.host}-check")


def generated(browser, policy):
    """Press Generate under a policy; return the toast."""
    browser.run(
        """const box = gradioApp().querySelector("#memguard_txt2img-checkbox input");
        if (!box.checked) box.click();
        await new Promise((done) => setTimeout(done, 1000));"""
    )
    for name, value in VALUES.items():
        put(browser, name, value)
    choose(browser, "memguard_txt2img_policy", policy)
    info = "(gradioApp().querySelector('#generation_info_txt2img textarea') || {}).value"
    browser.run(f"window.before = {info}; gradioApp().querySelector('#txt2img_generate').click()")
    panel = "gradioApp().querySelector('#memguard_txt2img_panel').innerText"
    browser.wait(f"{info} !== window.before && {panel}.includes({MARKS[policy]!r})", PATIENCE)  # it follows by itself
    toast = "[...document.querySelectorAll('.toast-body, .toast-wrap')].map((each) => each.innerText).join(' ')"
    return browser.wait(toast, 20)


def test_stop_through_the_page(shown):
    server, browser = shown
    assert "Stopped before more steps were spent" in generated(browser, "stop")
    said = text(browser)
    assert "looks memorized (score" in said and "Stopped before more steps were spent: change the prompt" in said
    log = browser.run("return gradioApp().querySelector('#html_log_txt2img').innerText")
    assert "MemGuard: looks memorized" in log
    time.sleep(1)  # the toast fades in
    picture(browser, f"{server.host}-stop")


@pytest.mark.parametrize("policy", ["warn", "mitigate"])
def test_a_memorized_prompt_through_the_page(shown, policy):
    server, browser = shown
    assert "looks memorized" in generated(browser, policy)
    said = text(browser)
    assert "looks memorized (score" in said
    assert ("mitigated by" in said) == (policy == "mitigate")
    inside = "return [...gradioApp().querySelectorAll('#memguard_txt2img_panel {}')].map((each) => {})"
    words = browser.run(inside.format(".memguard-words b", "each.textContent"))
    assert words[:5] == ["Halley", "breakfast", "at", "noon", "-"]
    assert "noise gap over 4 model calls" in browser.run(inside.format("svg", "each.getAttribute('aria-label')"))[0]
    assert "end of prompt, last step" in browser.run(inside.format("img", "each.alt"))
    assert min(browser.run(inside.format("img", "each.naturalWidth"))) == 128
    time.sleep(1)  # the toast fades in
    picture(browser, f"{server.host}-{policy}")
    assert browser.run("return gradioApp().querySelectorAll('#txt2img_gallery img').length") > 0


def test_a_prompt_that_looked_memorized_before_is_known_when_it_is_typed(shown):
    _, browser = shown
    line = "gradioApp().querySelector('#memguard_txt2img_known').innerText"

    def typed(prompt):
        put(browser, "txt2img_prompt", prompt)
        time.sleep(1)  # a person leaves the field later than gradio takes what was typed
        leave = "gradioApp().querySelector('#txt2img_prompt textarea').dispatchEvent(new Event('blur'))"
        browser.run(leave)

    typed("a red fox on a roof")
    browser.wait(f"{line}.trim() === '' && true", 60)
    typed(MEMORIZED)
    assert "MemGuard: this prompt looked memorized (score" in browser.wait(f"{line}.includes('before') && {line}", 60)


def test_pasting_a_picture_s_text_restores_the_controls(shown):
    server, browser = shown
    chosen = {"policy": "mitigate", "mitigation": "padding", "strength": 0.5, "sensitivity": 95.0, "explain": "never"}
    made = server.generate(chosen, prompt="a red fox on a roof")
    put(browser, "txt2img_prompt", made.info["infotexts"][0])
    browser.run("gradioApp().querySelector('#paste').click()")
    value = "gradioApp().querySelector('#memguard_txt2img_{} input').value"
    browser.wait(f"{value.format('policy')} === 'mitigate' && {value.format('mitigation')} === 'padding'", 60)
    found = {name: browser.run(f"return {value.format(name)}") for name in chosen}
    assert found == {name: str(each).removesuffix(".0") for name, each in chosen.items()}
    assert browser.run("return gradioApp().querySelector('#txt2img_prompt textarea').value") == "a red fox on a roof"
    picture(browser, f"{server.host}-pasted")


def test_after_reload_ui_a_generation_is_watched_once_and_labels_are_translated(shown):
    """The WebUIs translate what they find in a localisation file when the page is made; the neighbour brings one."""
    server, browser = shown
    before = server.generate({}).finding["scores"]
    server.post("/sdapi/v1/options", {"localization": "xx_XX"})
    browser.run("gradioApp().querySelector('#settings_restart_gradio').click()")
    time.sleep(5)
    server.wait()
    made = server.generate({})
    assert made.finding["scores"] == pytest.approx(before, rel=1e-6)
    assert len(made.reports) == 1
    browser.send("Page.navigate", url=server.url)
    browser.wait("window.gradioApp && gradioApp().querySelector('#memguard_txt2img_check') && true", PATIENCE)
    count = "return gradioApp().querySelectorAll('#memguard_txt2img_check, #memguard_txt2img-checkbox').length"
    assert browser.run(count) == 2
    button = "gradioApp().querySelector('#memguard_txt2img_check').innerText"
    assert browser.wait(f"{button} !== 'Check prompt' && {button}", 60) == "Prompt prüfen"
    accordion = browser.run("return gradioApp().querySelector('#memguard_txt2img').textContent")
    assert "Bewertete Schritte" in accordion and "Wörter und Karte" in accordion
    picture(browser, f"{server.host}-translated")
    server.post("/sdapi/v1/options", {"localization": "None"})


def test_our_scripts_logged_no_error(shown):
    _, browser = shown
    assert not [line for line in browser.console if line[0] == "error" and "memguard" in " ".join(line).lower()]
