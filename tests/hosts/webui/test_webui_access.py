"""Real A1111 and Forge that ask for a password: every route of ours asks for it, too, and the page works after a login.

The login of the page is that of gradio, which gives a cookie.
"""

import base64
import http.cookiejar
import importlib.util
import time
import urllib.parse
import urllib.request

import pytest

from memguard_pack.tests.e2e.browser import Browser, executable
from memguard_pack.tests.hosts.webui.server import FLAGS, Server, missing
from memguard_pack.tests.hosts.webui.test_webui_mitigating import ORDINARY, written

NAME, PASSWORD = "alice", "open sesame"
BASIC = {"Authorization": "Basic " + base64.b64encode(f"{NAME}:{PASSWORD}".encode()).decode()}
WRONG = {"Authorization": "Basic " + base64.b64encode(f"{NAME}:guess".encode()).decode()}
CHECK = {"prompt": "a fox", "width": 64, "height": 64, "steps": 2}
ROUTES = {
    "report": ("/memguard/v1/report", None),
    "report of a job": ("/memguard/v1/report?job=20200101000000", None),
    "profiles": ("/memguard/v1/profiles", None),
    "memory": ("/memguard/v1/memory", None),
    "check": ("/memguard/v1/check", CHECK),
    "calibrate": ("/memguard/v1/profiles", {"width": 64, "height": 64}),
    "remember": ("/memguard/v1/memory", {"clear": True, "enabled": True}),
}


@pytest.fixture(scope="module", params=list(FLAGS))
def by_password(request, tmp_path_factory):
    """A WebUI whose API asks for a name and a password."""
    why = missing(request.param)
    if why:
        pytest.skip(why)
    folder = tmp_path_factory.mktemp(f"{request.param}-password") / "data"
    made = Server(request.param, folder, more=["--api-auth", f"{NAME}:{PASSWORD}"], headers=BASIC)
    yield made
    made.close()


@pytest.fixture(scope="module", params=list(FLAGS))
def by_login(request, tmp_path_factory):
    """A WebUI whose page asks for a login, and the header of one who has logged in."""
    why = missing(request.param)
    if why:
        pytest.skip(why)
    folder = tmp_path_factory.mktemp(f"{request.param}-login") / "data"
    made = Server(request.param, folder, ui=True, more=["--gradio-auth", f"{NAME}:{PASSWORD}"])
    try:
        jar = http.cookiejar.CookieJar()
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
        given = urllib.parse.urlencode({"username": NAME, "password": PASSWORD}).encode()
        opener.open(made.url + "/login", given, timeout=60).close()
        yield made, {"Cookie": "; ".join(f"{each.name}={each.value}" for each in jar)}, jar
    finally:
        made.close()


def routes(server):
    """Return the routes that the server has, as its own description lists them."""
    found = server.get("/openapi.json")["paths"]
    return {(path, method) for path, methods in found.items() if path.startswith("/memguard") for method in methods}


def test_no_route_is_left_out_here(by_password):
    listed = {(path.partition("?")[0], "get" if body is None else "post") for path, body in ROUTES.values()}
    assert routes(by_password) == listed


@pytest.mark.parametrize("route", list(ROUTES))
def test_the_api_s_password_is_asked_for(by_password, route):
    path, body = ROUTES[route]
    assert by_password.status(path, body, {})[0] == 401
    assert by_password.status(path, body, WRONG)[0] == 401
    assert by_password.status("/sdapi/v1/options", None, {})[0] == 401  # as the host's own
    if route != "calibrate":
        assert by_password.status(path, body)[0] == 200


def test_nothing_ran_and_nothing_was_cleared(by_password):
    path = written(by_password)  # runs with a verdict are remembered
    try:
        by_password.generate({"explain": "never"}, prompt=ORDINARY)
    finally:
        path.unlink()
    before = by_password.get("/memguard/v1/memory")
    assert before["rows"]
    for route, body in ROUTES.values():
        by_password.status(route, body, {})
    assert by_password.get("/memguard/v1/memory") == before


@pytest.mark.parametrize("route", list(ROUTES))
def test_the_page_s_login_is_asked_for(by_login, route):
    server, cookie, _ = by_login
    path, body = ROUTES[route]
    assert server.status(path, body, {})[0] == 401
    assert server.status(path, body, {"Cookie": "access-token=guess"})[0] == 401
    if route != "calibrate":
        assert server.status(path, body, cookie)[0] == 200


def test_the_page_works_after_a_login(by_login, tmp_path):
    server, _, jar = by_login
    if executable() is None or importlib.util.find_spec("aiohttp") is None:
        pytest.skip("no Chromium or aiohttp is installed")
    browser = Browser(tmp_path, (1400, 1500))
    try:
        for each in jar:
            browser.send("Network.setCookie", name=each.name, value=each.value, url=server.url)
        browser.send("Page.navigate", url=server.url)
        there = "window.gradioApp && gradioApp().querySelector('#memguard_txt2img_check') && true"
        browser.wait(there, 600)
        time.sleep(5)  # Forge Neo loads its page once more, for its theme
        browser.wait(there, 600)
        browser.run("gradioApp().querySelector('#memguard_txt2img_check').click()")
        said = "gradioApp().querySelector('#memguard_txt2img_panel').innerText"
        assert "prompt is empty" in browser.wait(f"{said}.includes('because') && {said}", 600)
    finally:
        browser.close()
