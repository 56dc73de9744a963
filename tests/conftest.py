"""Shared fixtures: real sample data that must be there in CI, and a cache of their own for tests that write one."""
import os
import signal

import pytest
import torch

from poseprojects.data import synthetic
from poseprojects.storage import InputError, shared_data
from poseprojects.train.engine import Batch


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
    missing = [name for name in ("cmu", "hdm05", "mpii", "pose2sim") if shared_data(name) is None]
    if missing: pytest.exit(f"POSEPROJECTS_REQUIRE_DATA is set, but {', '.join(missing)} is not in {os.environ.get('POSEPROJECTS_DATA', '../shared/data')}", returncode=1)


@pytest.fixture(scope="session")
def cmu_root(): return real_data("cmu")


@pytest.fixture(scope="session")
def hdm05_root(): return real_data("hdm05")


@pytest.fixture(scope="module")
def train():
    "A small training set of the embedded data."
    return synthetic.load("train", samples=8000)


@pytest.fixture(scope="module")
def test():
    "Its test set."
    return synthetic.load("test", samples=8000)


def some(poses, n=64):
    "n samples from all over a set."
    return Batch(poses, torch.arange(0, len(poses), len(poses) // n)[:n])


def refused(call, *args, **kwargs):
    "The one sentence with which a call refuses what it is given."
    with pytest.raises(InputError) as refusal: call(*args, **kwargs)
    text = str(refusal.value)
    assert "\n" not in text and "expected" in text, text
    return text


@pytest.fixture
def one_thread():
    "Bits and times that do not depend on the number of cores."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def fresh_cache(tmp_path_factory):
    "A cache that holds nothing from before."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POSEPROJECTS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_terminal_summary(terminalreporter):
    "Says plainly what was not tested for want of data or a GPU."
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped: terminalreporter.write_line(f"{len(skipped)} tests skipped: " + "; ".join(sorted({str(r.longrepr[2]) for r in skipped if isinstance(r.longrepr, tuple)})))


LONGEST_FIRST = ("test_site", "test_recipes", "test_export", "test_lift", "test_experiment", "test_grid", "test_parallel", "test_doctor")

def pytest_collection_modifyitems(items):
    "What takes longest begins first, so that no process is left with it at the end."
    place = {name: k for k, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))
