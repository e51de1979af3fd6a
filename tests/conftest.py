"""Settings for every test session."""

import shutil
import signal
from types import SimpleNamespace

import pytest
import torch

torch.set_num_threads(1)  # one process per core: two threads are slower at these sizes
# A shell that starts the tests in the background has them ignore Ctrl-C, and so would every program that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):  # `nohup` has them ignore the end of a terminal
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


BROWSER_OPTIONS = (
    *("--no-sandbox", "--headless", "--disable-gpu", "--disable-quic"),
    *("--disable-background-networking", "--no-first-run"),
)


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no browser is installed: chromium, chromium-browser or google-chrome")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=BROWSER_OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Opens a page; `complaints` and `requests` gather what it says and asks for."""
    contexts = []

    def visit(path, width=1400, height=1000, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        context.set_default_timeout(300_000)  # ms: a slow machine is no fault
        contexts.append(context)
        tab, complaints, requests = context.new_page(), [], []
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(path.as_uri())
        return SimpleNamespace(tab=tab, complaints=complaints, requests=requests)

    yield visit
    for context in contexts:
        context.close()
