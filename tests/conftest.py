"""Shared fixtures: real sample data that must be there in CI, and a cache of their own for tests that write one."""
import os
import signal

import pytest

from poseprojects.storage import shared_data


# a test run that was started in the background has SIGINT ignored, and so would have every process that a test starts
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN: signal.signal(signal.SIGINT, signal.default_int_handler)


def real_data(name: str):
    "The folder of a real data source; skips when it is absent, fails when POSEPROJECTS_REQUIRE_DATA says that it must be there."
    folder = shared_data(name)
    if folder is None:
        message = f"the real data '{name}' is not there: set POSEPROJECTS_DATA to the folder that holds it"
        if os.environ.get("POSEPROJECTS_REQUIRE_DATA"): pytest.fail(message)
        pytest.skip(message)
    return folder


def pytest_sessionstart(session):
    "Where the data must be there, no test may be skipped for want of it."
    if not os.environ.get("POSEPROJECTS_REQUIRE_DATA"): return
    missing = [name for name in ("cmu", "hdm05", "mpii") if shared_data(name) is None]
    if missing: pytest.exit(f"POSEPROJECTS_REQUIRE_DATA is set, but {', '.join(missing)} is not in {os.environ.get('POSEPROJECTS_DATA', '../shared/data')}", returncode=1)


@pytest.fixture(scope="session")
def cmu_root(): return real_data("cmu")


@pytest.fixture(scope="session")
def hdm05_root(): return real_data("hdm05")


def pytest_terminal_summary(terminalreporter):
    "Says plainly what was not tested for want of data or a GPU."
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped: terminalreporter.write_line(f"{len(skipped)} tests skipped: " + "; ".join(sorted({str(r.longrepr[2]) for r in skipped if isinstance(r.longrepr, tuple)})))
