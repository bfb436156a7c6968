"""MLflow's page in a real browser: two runs are ticked and compared, as a user does it.

UOTFT_SCREENSHOTS=FOLDER keeps pictures of it; UOTFT_PROJECT=FOLDER is another finished project.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.projects import copied, runs
from support.tracking_page import served
from uotft.core import storage

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
WORDS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
NO_ASSISTANT = """
    localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
    localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
"""
RUNS = ("digits-none-0", "digits-uot-0")


@pytest.fixture
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project on which `dvc repro` has been run; a copy, since other tests count its runs."""
    if named := os.environ.get("UOTFT_PROJECT"):
        return Path(named)
    project = copied(request.getfixturevalue("project"), tmp_path_factory.mktemp("finished"))
    weights = {
        storage.read_json(path)["sha256"] for path in project.glob("models/digits/*/0/model.json")
    }
    import mlflow

    kept = set[str]()
    for run in runs(project):  # the newest first; other tests have trained there, too
        name = run.info.run_name
        if name in kept or run.data.tags.get("model.sha256") not in weights:
            mlflow.delete_run(run.info.run_id)
        else:
            kept.add(name)
    return project


@pytest.fixture
def page(tmp_path: Path) -> Iterator:
    """An empty page of a Chromium of this machine, with a profile of its own."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None and os.environ.get("CI") != "true":
        pytest.skip("there is no Chromium here; .ci/run would install it")
    assert program, "CI wants Chromium: .ci/run could not install it"
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=60_000)  # machines that do other work, too
    with sync_playwright() as driver:
        browser = driver.chromium.launch_persistent_context(
            tmp_path / "profile",
            executable_path=program,
            args=WORDS.split(),
            viewport={"width": 1500, "height": 1100},
        )
        browser.set_default_timeout(120_000)
        browser.add_init_script(NO_ASSISTANT)
        yield browser.pages[0]
        browser.close()


def picture(page, name: str) -> None:  # noqa: ANN001
    """Keep what the page shows, if that is wanted."""
    if folder := os.environ.get("UOTFT_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"mlflow-{name}.png")


@pytest.mark.slow
def test_two_runs_are_compared(finished: Path, page) -> None:  # noqa: ANN001
    from playwright.sync_api import expect

    tested = {
        s: storage.read_json(finished / f"metrics/digits/{s}.json")["0"] for s in ("none", "uot")
    }
    kept = storage.read_json(finished / "selections/digits/uot/0/selection.json")["classes"]
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    with served(finished) as (process, port):
        assert process.stdout
        lines = iter(process.stdout.readline, "")
        line = next(line for line in lines if line.startswith("digits: "))
        page.goto(line.split()[1])

        # the table of runs, where MLflow would lead to a page on language models
        page.get_by_placeholder("metrics.rmse").fill('params.seed = "0"')
        page.get_by_placeholder("metrics.rmse").press("Enter")
        for name in RUNS:
            row = page.get_by_role("row").filter(has_text=name)
            row.get_by_role("checkbox", name="row selection").check()
        for strategy, of_strategy in tested.items():  # columns that are there without a tick
            line = f"{of_strategy['top1']:.2f} % test ({strategy}, seed 0)"
            expect(page.get_by_text(line)).to_be_visible()
        picture(page, "runs")

        page.get_by_role("button", name="Compare").click()
        expect(page.get_by_text("Comparing 2 Runs")).to_be_visible()

        # what its first picture shows without being asked
        axes = page.locator(".parallel-coordinates-plot, .js-plotly-plot").first
        expect(axes).to_contain_text("strategy")
        expect(axes).to_contain_text("strategy.classes")
        first = axes.locator(".axis-title").last
        expect(first).to_have_text("test/top1")
        kept_line = page.get_by_text(re.compile(rf"^{len(kept)} classes: "))
        expect(kept_line.first).to_be_visible()
        picture(page, "compare")

        both = page.get_by_role("row").filter(has_text=re.compile(r"^strategy(noneuot|uotnone)$"))
        expect(both.first).to_be_visible()
        for of_strategy in tested.values():
            value = page.get_by_text(f"{of_strategy['top1']:g}", exact=True)
            expect(value.first).to_be_visible()

        page.get_by_text("selected_classes.json").click()
        for unit in kept[:5]:
            expect(page.get_by_text(f'"{unit["name"]}"').first).to_be_attached()
        picture(page, "classes")
    away = [
        url for url in asked if not url.startswith((f"http://127.0.0.1:{port}/", "data:", "blob:"))
    ]
    assert not away, "the page works without a network"
