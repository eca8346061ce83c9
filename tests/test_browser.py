"""What a scientist sees: the report and MLflow's comparison of configurations, opened in a real browser, without a network.

CROMSS_SCREENSHOTS=DIR keeps the pictures; CROMSS_CHROMIUM names a browser that is not on the PATH.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_out
import pytest

from cromss import report, tracking
from cromss.journal import read_sweep, read_trials
from cromss.trials.answers import answer
from cromss.trials.ranking import aggregates

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SMALLEST = 11.5  # CSS pixels: text below that is not read but deciphered


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is missing: pip install -c constraints.txt .[browser]"
    )
    program = os.environ.get("CROMSS_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on the PATH, and CROMSS_CHROMIUM names none")
    with api.sync_playwright() as playwright:
        sandbox = [] if os.geteuid() else ["--no-sandbox"]  # which Chromium refuses to build for root
        launched = playwright.chromium.launch(executable_path=program, args=[*sandbox, "--disable-dev-shm-usage"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("CROMSS_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep over arms, with pictures and a table as wide as they come."""
    return fake_out.make(
        tmp_path_factory.mktemp("arms"), arms=("random", "midF", "CromSS-midF"), seeds=2, repeats=1, epochs=4, size=16,
        modes=("frozen", "finetuned"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep over parameters: many configurations with long names."""
    return fake_out.space(tmp_path_factory.mktemp("space"), arms=("midF", "CromSS-midF"), rates=(0.0, 0.3), seeds=2)


MEASURE = """() => ({
  overflow: document.documentElement.scrollWidth - window.innerWidth,
  broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt),
  images: [...document.images].map(i => ({alt: i.alt, scale: i.clientWidth / parseFloat(i.style.width)})),
  text: [...document.querySelectorAll('body *')]
    .filter(e => e.offsetParent && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()))
    .map(e => ({words: e.textContent.trim().slice(0, 40), size: parseFloat(getComputedStyle(e).fontSize)})),
  cut: [...document.querySelectorAll('main p, main h1, main h2, main dd, main figcaption')]
    .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent.slice(0, 60)),
})"""


@pytest.mark.parametrize("folder", ["arms", "space"])
def test_the_report_is_legible_on_wide_and_narrow_screens(
    folder: str, browser: Any, screenshots: Path, request: pytest.FixtureRequest
) -> None:
    address = report.write(request.getfixturevalue(folder)).as_uri()
    for width, least in ((1400, 0.85), (800, 0.7)):
        page = browser.new_page(viewport={"width": width, "height": 1000})
        asked: list[str] = []
        page.on("request", lambda sent, asked=asked: asked.append(sent.url))
        page.goto(address)
        page.screenshot(path=screenshots / f"report_{folder}_{width}.png", full_page=True)
        found = page.evaluate(MEASURE)
        assert found["overflow"] <= 0
        assert found["broken"] == []
        assert found["cut"] == []
        assert len(found["images"]) >= 5
        # a figure's letters are 8.5 points at its own width
        shrunk = [one for one in found["images"] if one["scale"] * 8.5 * 96 / 72 < least * SMALLEST]
        assert shrunk == []
        assert [one for one in found["text"] if one["size"] < SMALLEST] == []
        assert all(url.startswith(("file:", "data:")) for url in asked)
        page.close()


@pytest.fixture(scope="module")
def server(space: Path) -> Iterator[tuple[str, str]]:
    """(address, id of the experiment) of an MLflow server over a store that holds the sweep."""
    store = f"sqlite:///{space / 'mlflow.db'}"
    tracking._mlflow().MlflowClient(
        tracking_uri=store
    ).search_experiments()  # makes the tables, before two processes do
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--host", "127.0.0.1", "--port",
               str(port), "--workers", "1"]  # fmt: skip
    with (space / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | quiet, start_new_session=True, cwd=space
        )
    try:
        sweep, trials = read_sweep(space), read_trials(space)
        (space / "sweep.json").write_text(json.dumps(sweep | {"sentence": answer(sweep, trials)}))
        for trial in trials[4:]:  # a few are enough to be beside the means
            shutil.rmtree(trial["folder"])
        sink = tracking.Sink(space, uri=store)
        assert sink.sync(aggregates(trials), final=True)
        address = f"http://127.0.0.1:{port}"
        until = time.monotonic() + 90
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            assert process.poll() is None, (space / "server.log").read_text()[-2000:]
            assert time.monotonic() < until, "the MLflow server does not answer"
            time.sleep(0.2)
        yield address, sink._experiment_id
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def test_mlflow_compares_the_configurations(
    browser: Any, space: Path, server: tuple[str, str], screenshots: Path
) -> None:
    address, experiment = server
    client = tracking._mlflow().MlflowClient(tracking_uri=f"sqlite:///{space / 'mlflow.db'}")
    runs = client.search_runs([experiment], "tags.`cromss.kind` = 'configuration'")
    runs = sorted(runs, key=lambda run: run.data.tags["mlflow.runName"])[::5]
    assert {name for run in runs for name in run.data.params} == {
        "arm", "world.noise.rate", "optim.lr", "objective.alpha.ramp.kind",
    }  # fmt: skip
    (parent,) = client.search_runs([experiment], "tags.`cromss.kind` = 'sweep'")
    assert parent.data.tags["cromss.answer"] == parent.data.tags["mlflow.note.content"] == read_sweep(space)["sentence"]

    chosen = urllib.parse.quote(json.dumps([run.info.run_id for run in runs]))
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.goto(f"{address}/#/compare-runs?runs={chosen}&experiments={urllib.parse.quote(json.dumps([experiment]))}")
    page.wait_for_selector(".parcoords .axis-title")
    with contextlib.suppress(Exception):  # the assistant takes a quarter of the page
        page.locator("[aria-label='Close']").first.click(timeout=2000)
    page.screenshot(path=screenshots / "mlflow_plot.png")
    axes = page.locator(".parcoords .axis-title").all_text_contents()
    assert axes[-1] == "score/miou"  # what MLflow picks by itself
    assert {"arm", "world.noise.rate"} & set(axes)  # it shows a few of the parameters, the others are a click away
    page.get_by_text("Metrics", exact=True).last.scroll_into_view_if_needed()
    page.screenshot(path=screenshots / "mlflow_table.png")
    words = page.inner_text("body").split("\n")
    for run in runs:
        for name in ("score/miou", "score/miou_low", "score/miou_high", "cost/pretraining_s"):
            assert name in words
        value = run.data.metrics["score/miou"]
        assert f"{value:.3f}".rstrip("0") in words
        assert any(run.data.tags["mlflow.runName"] in word for word in words)
    page.close()
