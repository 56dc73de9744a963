"""Shared fixtures: real sample data that must be there in CI, and a cache of their own for tests that write one."""
import os

import pytest

from poseprojects.storage import shared_data


def real_data(name: str):
    "The folder of a real data source; skips when it is absent, fails when POSEPROJECTS_REQUIRE_DATA says that it must be there."
    folder = shared_data(name)
    if folder is None:
        message = f"the real data '{name}' is not there: set POSEPROJECTS_DATA to the folder that holds it"
        if os.environ.get("POSEPROJECTS_REQUIRE_DATA"): pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def cmu_root(): return real_data("cmu")


@pytest.fixture(scope="session")
def hdm05_root(): return real_data("hdm05")


def pytest_collection_modifyitems(items):
    "Tests of speed come last and alone matter: nothing else of this session runs beside them."
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


def pytest_terminal_summary(terminalreporter):
    "Says plainly what was not tested for want of data or a GPU."
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped: terminalreporter.write_line(f"{len(skipped)} tests skipped: " + "; ".join(sorted({str(r.longrepr[2]) for r in skipped if isinstance(r.longrepr, tuple)})))
