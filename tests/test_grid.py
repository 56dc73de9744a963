"""The grid: what a table means, what is run and what is not, and that nothing is lost, doubled or left running, however it ends."""
import json
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from poseprojects.results import grid as module
from poseprojects.results.executors import LocalExecutor, Task
from poseprojects.results.grid import Placed, Shelf, claim, disagreement, expand, grids, main, make_tables, overview, parameters_of, place_data, run_grid
from poseprojects.results.records import Record, portable_path, record_path, write
from poseprojects.storage import InputError

FORK = multiprocessing.get_context("fork")  # a grid that need not import torch again

PARAMETERS = """dataset = "toys"   # a name
data_root = None   # its folder
width = 1.0        # of the toy
name = "plain"     # a word
fast = False       # a switch
epochs = None      # or a number
gpus = None        # of the machine
seed = 0           # of its numbers
out_dir = None     # of its files
also_test = ""     # further data sets
"""


def notebook(path, *cells, parameters=PARAMETERS):
    "A notebook with a parameters cell and others."
    code = lambda text, **metadata: dict(cell_type="code", execution_count=None, metadata=metadata, outputs=[], source=text)
    page = dict(nbformat=4, nbformat_minor=4, metadata=dict(kernelspec=dict(name="python3", display_name="Python 3", language="python")),
                cells=[code(parameters, tags=["parameters"]), *map(code, cells)])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(page), encoding="utf-8")
    return path


def record(run, test_data=None, **changes):
    "What a notebook would record of a run."
    values = {**run.defaults, **run.given}
    known = {name: value for name, value in values.items() if name not in ("out_dir", "also_test")}
    content = dict(method="toy", variant=str(values.get("name")), plan="quick", fidelity="paper", train_data=values["dataset"], test_data=test_data or values["dataset"], train_fingerprint="a",
                   test_fingerprint="b", input_2d="gt", protocol="toy", protocol_line="toy", metrics=dict(mpjpe=42.25, pa_mpjpe=36.75), selection="last", seed=values["seed"], epochs=1, steps=1,
                   parameters=1, samples_per_second=1., seconds=212., peak_memory_bytes=0, device="", threads=1, versions={}, git_commit="", git_dirty=False, notebook=run.shown,
                   notebook_parameters=known)
    return Record(**{**content, **changes})


FAKE = """
import json, os, sys, time
job = json.loads(sys.argv[1])
seen = dict(run=job["label"], pid=os.getpid(), gpus=os.environ["CUDA_VISIBLE_DEVICES"], threads=os.environ["OMP_NUM_THREADS"], start=time.time())
def note(**more):
    with open(job["log"], "a") as log: log.write(json.dumps({**seen, **more}) + chr(10))
note(what="start")
time.sleep(job["seconds"])
if job["failures"] > 0:
    try: tries = int(open(job["tries"]).read())
    except OSError: tries = 0
    open(job["tries"], "w").write(str(tries + 1))
    if tries < job["failures"]: sys.exit("the toy fell over")
for path, text in job["records"]:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{os.getpid()}"
    open(temporary, "w").write(text)
    os.replace(temporary, path)
note(what="end", end=time.time())
"""


class Fake:
    "A command that stands for papermill: a plain Python program which notes when it ran and on what, and leaves the records."
    def __init__(self, log, seconds=0., failures=0, records=True): self.log, self.seconds, self.failures, self.records = log, seconds, failures, records

    def __call__(self, run, parameters, output):
        made = [record(run), *(record(run, name) for name in filter(None, parameters.get("also_test", "").split(",")))] if self.records else []
        from dataclasses import asdict
        job = dict(label=run.label, log=str(self.log), seconds=self.seconds, failures=self.failures, tries=str(self.log) + run.key, records=[(str(record_path(r)), json.dumps(asdict(r))) for r in made])
        return sys.executable, "-S", "-c", FAKE, json.dumps(job)

    def notes(self, what="start"):
        return [n for n in map(json.loads, self.log.read_text().splitlines()) if n["what"] == what] if self.log.exists() else []


@pytest.fixture
def place(tmp_path, monkeypatch):
    "A folder with results and runs of its own, and a toy notebook."
    monkeypatch.setenv("POSEPROJECTS_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("POSEPROJECTS_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("POSEPROJECTS_DATA", raising=False)
    notebook(tmp_path / "train_toy.ipynb")
    return tmp_path


def table(place, text, name="toys"):
    path = place / f"{name}.toml"
    path.write_text(text if "notebook" in text else f'[defaults]\nnotebook = "train_toy.ipynb"\n{text}', encoding="utf-8")
    return path


def local(workers=2, **options): return LocalExecutor(workers=workers, gpus=options.pop("gpus", 0), threads=1, **options)


def quiet(path, fake, **options):
    "Runs a grid with a fake command and keeps its lines."
    lines = []
    options.setdefault("executor", local())
    return run_grid(path, command=fake, pause=options.pop("pause", 0.), out=lines.append, **options), lines


def wait_for(condition, seconds=30.):
    "Waits until something is so, and fails when it does not become so."
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)
    return value


def alive(pid):
    try: return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess: return False


# ---- tables

def test_expansion_is_ordered(place):
    notebook(place / "train_other.ipynb")
    path = table(place, '[defaults]\nnotebook = "train_*.ipynb"\nfast = true\n[[runs]]\nwidth = [2.0, 1.0]\nname = ["b", "a"]\nseeds = [1, 0]\n[[runs]]\nnotebook = "train_toy.ipynb"\nwidth = 3\n')
    runs = expand(path).runs
    assert [(r.notebook.stem, r.given["width"], r.given["name"], r.given["seed"]) for r in runs[:-1]] == [
        (stem, w, n, s) for stem in ("train_other", "train_toy") for w in (2., 1.) for n in "ba" for s in (1, 0)]
    assert dict(runs[-1].given) == dict(width=3, fast=True, seed=0) and runs[-1].label == "toy width=3 fast=True s0"
    assert [r.key for r in runs] == [r.key for r in expand(path).runs] and len({r.key for r in runs}) == len(runs)


def test_where_and_how_do_not_make_another_run(place):
    one, two = (expand(table(place, f"[[runs]]\n{more}")).runs[0] for more in ("", 'gpus = 2\nthreads = 3\ndata_root = "elsewhere"\nalso_test = "hdm05"'))
    assert one.key == two.key and two.also_test == ("hdm05",) and two.given["gpus"] == two.gpus == 2


@pytest.mark.parametrize("text, sentence", [
    ("[[runs]]\nwidht = 1.0", "train_toy.ipynb has no parameter widht; did you mean width"),
    ("[[runs]]\nzzz = 1", "has no parameter zzz; it has dataset"),
    ("[[runs]]\nwidth = 'wide'", "width = 'wide' is of the wrong kind; the notebook has 1.0, so give a number"),
    ("[[runs]]\nfast = 1", "fast = 1 is of the wrong kind"),
    ("[[runs]]\nname = ['a', 2]", "name = 2 is of the wrong kind"),
    ("[[runs]]\nwidth = nan", "width = nan is not finite"),
    ("[[runs]]\nwidth = {a = 1}", "is no plain value"),
    ("[[runs]]\nwidth = []", "width is an empty list"),
    ("[[runs]]\nseeds = []", "seeds is an empty list"),
    ("[[runs]]\nseeds = [0, 1, 0]", "seeds lists 0 twice"),
    ("[[runs]]\nseeds = [-1]", "seeds = -1 is no such number"),
    ("[[runs]]\nseeds = [0.5]", "seeds = 0.5 is no such number"),
    ("[[runs]]\nseed = 1", "seed is not for a grid to set; use seeds"),
    ("[[runs]]\nout_dir = 'here'", "out_dir is not for a grid to set"),
    ("[[runs]]\nthreads = 0", "threads = 0 is no such number"),
    ("[[runs]]\ngpus = true", "gpus = True is no such number"),
    ("[[runs]]\nalso_test = 3", "also_test = 3 is no list of data sets"),
    ("[[runs]]\nname = 'a'\n[[runs]]\nname = ['b', 'a']", "entry 2 repeats the run 'toy a s0' of entry 1"),
    ("[[runs]]\nwidth = 1.0\n[[runs]]\nwidth = 1", "entry 2 repeats the run"),
    ("[[runs]]\nnotebook = 'train_none.ipynb'", "there is no notebook train_none.ipynb"),
    ("[[runs]]\nnotebook = 3", "notebook = 3 is no path"),
    ("[[run]]\nwidth = 1", "run is unknown; a grid has about, [defaults] and [[runs]]"),
    ("runs = 3\n[more]\nnotebook = 1", "more is unknown"),
    ("about = 'notebook'", "has no runs"),
    ("about = 'notebook'\nruns = []", "has no runs"),
    ("about = 'notebook'\n[[runs]]\nwidth = 1.0", "names no notebook"),
    ("[[runs]\nwidth = 1", "is not a table in TOML"),
])
def test_refusals_are_one_sentence(place, text, sentence):
    with pytest.raises(InputError) as error: expand(table(place, text))
    assert sentence in str(error.value) and str(error.value).startswith("toys.toml") and str(place) not in str(error.value)
    assert not (place / "runs").exists()


def test_notebooks_without_what_a_grid_names(place):
    notebook(place / "train_bare.ipynb", parameters="width = 1.0")
    assert dict(expand(table(place, "[[runs]]\nnotebook = 'train_bare.ipynb'\nwidth = 2.0")).runs[0].given) == dict(width=2.)
    for more, word in (("seeds = [1]", "seed"), ("also_test = 'a'", "also_test")):
        with pytest.raises(InputError, match=f"has no parameter {word}, so"): expand(table(place, f"[[runs]]\nnotebook = 'train_bare.ipynb'\n{more}"))
    for text, words in (("from pathlib import Path", "expected only names with plain values"), ("a = b", "expected only names with plain values")):
        with pytest.raises(InputError, match=words): parameters_of(notebook(place / "odd.ipynb", parameters=text))
    (place / "none.ipynb").write_text(json.dumps(dict(cells=[])))
    with pytest.raises(InputError, match="0 cells tagged"): parameters_of(place / "none.ipynb")
    (place / "none.ipynb").write_text("no notebook")
    with pytest.raises(InputError, match="is not a notebook"): parameters_of(place / "none.ipynb")


def test_unknown_names_list_what_there_is(place):
    with pytest.raises(InputError) as error: run_grid("no-such-grid")
    assert all(name in str(error.value) for name in grids()) and "quick-all" in grids()
    with pytest.raises(InputError, match="there is no such grid"): expand(place / "absent.toml")


@pytest.mark.parametrize("name", grids())
def test_grids_of_the_project_can_be_run(name):
    "Every name in them is one that the notebooks' modules know."
    import importlib
    runs = expand(name).runs
    assert runs
    for run in runs:
        paper = importlib.import_module(f"poseprojects.papers.{run.notebook.stem.removeprefix('train_')}")
        values = {**run.defaults, **run.values}
        assert values["plan"] in paper.PLANS and (values["variant"] is None or values["variant"] in paper.VARIANTS)
        for dataset in (values["dataset"], *run.also_test): assert hasattr(importlib.import_module(f"poseprojects.data.{dataset}"), "load")
        assert values["input_2d"] in (*importlib.import_module(f"poseprojects.data.{values['dataset']}").ABOUT.inputs, *importlib.import_module("poseprojects.data.detectors").DETECTORS)


# ---- what is done already, and where the data is

def test_what_counts_as_the_same_run(place):
    run = expand(table(place, "[[runs]]\nwidth = 2.0")).runs[0]
    assert disagreement(record(run), run) == ""
    changed = lambda **parameters: record(run, notebook_parameters={**record(run).notebook_parameters, **parameters})
    for same in (dict(gpus=4), dict(data_root="else/where"), dict(width=2), dict(workers=2, nodes=3, rendezvous="host:1")): assert disagreement(changed(**same), run) == "", same
    for other in (dict(width=1.), dict(seed=1), dict(name="fancy"), dict(fast=True), dict(epochs=3), dict(fast=0)): assert disagreement(changed(**other), run), other
    assert disagreement(record(run, notebook="nbs/train_toy.ipynb"), run)


def test_a_variant_left_open_is_that_of_the_plan(place):
    notebook(place / "train_v.ipynb", parameters='plan = "quick"\nvariant = None\nepochs = None\nseed = 0')
    run = expand(table(place, '[[runs]]\nnotebook = "train_v.ipynb"')).runs[0]
    old = lambda variant, epochs=None, **more: record(expand(table(place, "[[runs]]")).runs[0], notebook=run.shown, variant=variant, notebook_parameters=dict(plan="quick", variant=variant, epochs=epochs, seed=0), **more)
    assert disagreement(old("short-run"), run) == "" == disagreement(old("short-run", method="martinez"), run)
    assert disagreement(old("no-dropout", method="martinez"), run) == "variant no-dropout"
    assert disagreement(old("short-run", 21, method="martinez"), run) == "epochs 21"
    from poseprojects.papers.martinez import PLANS
    from dataclasses import asdict
    used = lambda **numbers: old("short-run", method="martinez", numbers={"plan": {**asdict(PLANS["quick"]), **numbers}})
    assert disagreement(used(), run) == "" and disagreement(used(epochs=999), run) == "epochs 999"


def test_a_default_given_by_hand_is_the_same_run(place):
    "Two grids, or two lines of one, must not train into one folder of checkpoints."
    from poseprojects.papers.martinez import DEFAULT_VARIANT, PLANS
    notebook(place / "train_martinez.ipynb", parameters='plan = "quick"\nvariant = None\nepochs = None\nlearning_rate = None\nseed = 0')
    entry = '[[runs]]\nnotebook = "train_martinez.ipynb"\n'
    same = [entry, f'{entry}variant = "{DEFAULT_VARIANT["quick"]}"\n', f'{entry}epochs = {PLANS["quick"].epochs}\nlearning_rate = {PLANS["quick"].learning_rate}\n']
    assert len({expand(table(place, text)).runs[0].key for text in same}) == 1
    assert len({expand(table(place, text)).runs[0].key for text in (entry, entry + 'variant = "paper"', entry + "epochs = 999", entry + 'plan = "paper"')}) == 4
    with pytest.raises(InputError, match="entry 2 repeats"): expand(table(place, same[0] + same[1]))
    for name in ("plan", "variant"):
        with pytest.raises(InputError, match=f"train_martinez.ipynb has no {name} 'none'; choose one of paper, "): expand(table(place, f'{entry}{name} = "none"'))


def test_committed_records_are_found():
    "A record of this project belongs to the run that a grid names."
    found = {o.run.label: o for o in overview("quick-all")}["martinez synthetic quick s0"]
    assert found.status == "recorded" and found.record.train_data == "synthetic" and found.record.plan == "quick" and found.record.seed == 0


def test_recorded_runs_are_skipped(place):
    path, fake = table(place, "[[runs]]\nwidth = [1.0, 2.0]\nalso_test = ['zoo', 'farm']"), Fake(place / "log")
    one, two = expand(path).runs
    for made in (record(one), record(one, "zoo"), record(one, "farm"), record(two), record(two, "zoo")): write(made)
    outcomes, lines = quiet(path, fake)
    assert [o.status for o in outcomes] == ["recorded", "ok"] and [n["run"] for n in fake.notes()] == [two.label]
    assert lines[1].split() == "[1/2] recorded toy width=1.0 s0 MPJPE 42.2 PA 36.8 212 s".split() and lines[2].startswith("[2/2] ok ")
    assert lines[-1] == "toys: 1 ok, 1 recorded"
    assert [o.status for o in quiet(path, fake)[0]] == ["recorded"] * 2
    assert [o.status for o in quiet(path, fake, force=True)[0]] == ["ok"] * 2 and len(fake.notes()) == 3


def test_held_out_subjects_need_a_record_of_the_best_epoch(place):
    notebook(place / "train_held.ipynb", parameters=PARAMETERS + 'validation = ""')
    run = expand(table(place, '[[runs]]\nnotebook = "train_held.ipynb"\nvalidation = "A"')).runs[0]
    write(record(run))
    assert Shelf().find(run) is None
    write(record(run, selection="best-on-validation", created="2030-01-01T00:00:00Z"))
    assert Shelf().find(run).selection == "last"


def test_a_set_without_3d_is_known_by_where_it_was_scored(place):
    run = expand(table(place, "[[runs]]\ndataset = 'mpii'\nalso_test = ['cmu', 'hdm05']")).runs[0]
    write(record(run, test_data="hdm05"))
    assert Shelf().find(run) is None
    write(record(run, test_data="cmu"))
    assert Shelf().find(run).test_data == "cmu"
    with pytest.raises(InputError, match="mpii has no 3D poses, so nothing could be scored; name other data sets in also_test"): expand(table(place, "[[runs]]\ndataset = 'mpii'"))


def test_needs_data(place):
    path = table(place, "[[runs]]\n[[runs]]\ndataset = ['cmu', 'hdm05']\nalso_test = 'hdm05'")
    outcomes, lines = quiet(path, Fake(place / "log"))
    assert [o.status for o in outcomes] == ["ok", "needs data", "needs data"] and "3 runs" in lines[0]
    assert any(line.split() == "[1/3] needs data toy cmu s0 cmu".split() for line in lines), lines
    data = place / "data"
    (data / "cmu").mkdir(parents=True)
    fake = Fake(place / "log2")
    outcomes, lines = quiet(path, fake, data=data)
    assert [o.status for o in outcomes] == ["recorded", "ok", "needs data"]
    assert [o.sentence for o in overview(path)] == ["", "not scored on hdm05, which needs data", "hdm05"]
    assert any("not scored on hdm05, which needs data" in line for line in lines)
    cmu = outcomes[1].run
    assert place_data(cmu, data) == Placed(dict(data_root=str(data / "cmu")), (), "", "hdm05") and place_data(outcomes[2].run, data).missing == "hdm05"
    assert place_data(outcomes[2].run, None).also_test == (), "a data set is not across itself"
    (data / "hdm05").mkdir()
    assert place_data(cmu, data) == Placed(dict(data_root=str(data / "cmu"), also_test="hdm05"), ("hdm05",), "", "")
    assert [o.status for o in overview(path, data)] == ["recorded", "due", "due"]
    assert [o.status for o in quiet(path, fake, data=data)[0]] == ["recorded", "ok", "ok"]
    assert [(o.status, o.sentence) for o in overview(path)] == [("recorded", "")] * 3, "what is recorded needs no data"
    with pytest.raises(InputError, match="the data folder .* is not there"): run_grid(path, data=place / "nowhere")


def test_the_data_folder_of_the_environment(place, monkeypatch):
    (place / "data" / "cmu").mkdir(parents=True)
    path = table(place, "[[runs]]\ndataset = 'cmu'")
    assert overview(path)[0].status == "needs data"
    monkeypatch.setenv("POSEPROJECTS_DATA", str(place / "data"))
    assert overview(path)[0].status == "due"


def test_a_damaged_record_does_not_count(place):
    path = table(place, "[[runs]]")
    where = write(record(expand(path).runs[0]))
    shelf = Shelf()
    assert shelf.find(expand(path).runs[0])
    where.write_text("{")
    assert shelf.find(expand(path).runs[0]) is None
    outcomes, lines = quiet(path, Fake(place / "log"))
    assert outcomes[0].status == "ok" and any("does not count" in line for line in lines)
    assert Shelf().find(expand(path).runs[0])


# ---- running

def test_one_failure_does_not_stop_the_others(place):
    path, broken = table(place, "[[runs]]\nwidth = [1.0, 2.0, 3.0]"), Fake(place / "log", failures=99)
    good = Fake(place / "log")
    command = lambda run, parameters, output: (broken if run.given["width"] == 2. else good)(run, parameters, output)
    outcomes, lines = quiet(path, command, retries=2)
    assert [o.status for o in outcomes] == ["ok", "failed", "ok"] and outcomes[1].attempts == 3 and outcomes[0].attempts == 1
    assert outcomes[1].sentence == "ended with status 1: the toy fell over"
    text = (place / "runs" / "toys" / "toy-width=2.0-s0.failed.txt").read_text()
    assert "width = 2.0" in text and "attempt 3: ended with status 1" in text and "the toy fell over" in text
    assert sum("again" in line for line in lines) == 2 and lines[-1].startswith("toys: 2 ok, 1 failed") and "failed.txt" in lines[-1]
    assert Counter(n["run"] for n in good.notes())["toy width=2.0 s0"] == 3


def test_a_second_attempt_can_succeed(place):
    outcomes, lines = quiet(table(place, "[[runs]]"), Fake(place / "log", failures=1), pause=0.3)
    assert outcomes[0].status == "ok" and outcomes[0].attempts == 2 and outcomes[0].sentence == ""
    assert "again" in lines[1] and "in 0.3 s, after ended with status 1: the toy fell over" in lines[1]
    starts = [n["start"] for n in Fake(place / "log").notes()]
    assert starts[1] - starts[0] > 0.3
    assert sorted(p.name for p in (place / "runs" / "toys").iterdir()) == []


def test_a_run_without_a_record_has_failed(place):
    outcomes, _ = quiet(table(place, "[[runs]]"), Fake(place / "log", records=False), retries=0)
    assert outcomes[0].status == "failed" and "wrote no record of this run" in outcomes[0].sentence
    write(record(outcomes[0].run, notebook_parameters={**record(outcomes[0].run).notebook_parameters, "width": 7.}))
    outcomes, _ = quiet(table(place, "[[runs]]"), Fake(place / "log", records=False), retries=0)
    assert "(the newest one has width 7.0)" in outcomes[0].sentence


def overlaps(notes, most):
    "The largest number of notes that were running at one moment is at most this."
    times = sorted([(n["start"], 1) for n in notes] + [(n["end"], -1) for n in notes])
    running = peak = 0
    for _, change in times: running += change; peak = max(peak, running)
    assert peak <= most
    return peak


def test_gpu_slots(place):
    "Seven runs of one GPU on two GPUs with two places each, one of both, one of none."
    path, fake = table(place, "[[runs]]\nseeds = [0, 1, 2, 3, 4, 5, 6]\n[[runs]]\nwidth = 2.0\ngpus = 2\n[[runs]]\nwidth = 3.0\ngpus = 0\nthreads = 5"), Fake(place / "log", seconds=0.2)
    outcomes, _ = quiet(path, fake, executor=LocalExecutor(gpus=["6", "GPU-ab"], per_gpu=2, threads=1))
    notes = fake.notes("end")
    assert {o.status for o in outcomes} == {"ok"} and len(notes) == 9
    seen = {n["run"]: n for n in notes}
    assert seen["toy width=2.0 s0"]["gpus"] in ("6,GPU-ab", "GPU-ab,6") and seen["toy width=3.0 s0"]["gpus"] == "" and seen["toy width=3.0 s0"]["threads"] == "5"
    assert all(n["gpus"] in ("6", "GPU-ab") and n["threads"] == "1" for n in notes if "width" not in n["run"])
    assert overlaps(notes, 4) > 1
    for gpu in ("6", "GPU-ab"): overlaps([n for n in notes if gpu in n["gpus"].split(",")], 2)
    with pytest.raises(InputError, match="wants 2 GPUs, and this executor has 1"): quiet(table(place, "[[runs]]\nwidth = 9.0\ngpus = 2"), fake, executor=LocalExecutor(gpus=["0"]))


def test_processors_are_shared_out(place, monkeypatch):
    from poseprojects.train import devices
    monkeypatch.setattr(devices, "cores", lambda: 8)
    assert (LocalExecutor(gpus=0).slots, LocalExecutor(gpus=0).threads) == (8, 1)
    assert LocalExecutor(workers=3, gpus=0).threads == 2 and LocalExecutor(workers=20, gpus=0).threads == 1
    assert LocalExecutor(gpus=["0", "1"], per_gpu=2).slots == 4 and LocalExecutor(gpus=["0", "1"]).threads == 4
    two = LocalExecutor(workers=2, gpus=0)
    task = lambda slots: Task("t", (sys.executable, "-c", "import time; time.sleep(30)"), place / "t.log", slots=slots)
    assert two.free(task(9)), "a task for more places than there are runs alone"
    two.start(task(1))
    assert two.free(task(1)) and not two.free(task(2))
    two.cancel()
    assert two.free(task(2))


def test_heartbeat(place, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT", 0.2)
    _, lines = quiet(table(place, "[[runs]]\nseeds = [0, 1]"), Fake(place / "log", seconds=1.), executor=local(1))
    assert any(line.strip().startswith("1 running, 1 waiting; longest: toy s0") for line in lines), lines


def test_command_line(place, capsys, monkeypatch):
    path = table(place, "[[runs]]\nwidth = [1.0, 2.0]")
    write(record(expand(path).runs[0]))
    assert main([str(path), "--list"]) == 0
    *listed, total = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == ["recorded", "due"] and total.endswith("2 runs, 1 recorded, 1 due")
    assert main(["no-such-grid"]) == 2 and "quick-all" in capsys.readouterr().err
    assert main([str(path), "--gpus", "99"]) == 2 and "this machine has" in capsys.readouterr().err
    calls = []
    for statuses, code in ((["ok", "recorded", "needs data"], 0), (["ok", "failed"], 1)):
        monkeypatch.setattr(module, "run_grid", lambda **given: calls.append(given) or [module.Outcome(None, s) for s in statuses])
        assert main([str(path), "--workers", "3", "--retries", "4", "--force", "--tables", "--data", "d"]) == code
    assert calls[0] == dict(name=str(path), data="d", workers=3, gpus=None, per_gpu=1, threads=None, force=True, retries=4, pause=5., tables=True)


# ---- real notebooks

def test_the_last_good_notebook_stays(place):
    "Papermill itself: a good run, then a bad one beside it, then a good one again."
    flag = place / "flag"
    run = expand(table(place, "[[runs]]\nwidth = 1e-05\nname = '1'")).runs[0]
    from dataclasses import asdict
    text, where = json.dumps(asdict(record(run))), record_path(record(run))
    notebook(place / "train_toy.ipynb", f"assert (width, name, seed, dataset) == (1e-05, '1', 0, 'toys') and isinstance(name, str)",
             f"from pathlib import Path\nif Path({str(flag)!r}).exists(): raise RuntimeError('no luck\\ntoday')",
             f"p = Path({str(where)!r}); p.parent.mkdir(parents=True, exist_ok=True); p.write_text({text!r}); print(width)")
    go = lambda: run_grid(place / "toys.toml", executor=local(), retries=0, force=True, out=lambda line: None)[0]
    outcome, folder = go(), place / "runs" / "toys"
    assert (outcome.status, outcome.sentence) == ("ok", "") and [p.name for p in folder.iterdir()] == [outcome.notebook.name] == ["toy-width=1e-05-1-s0.ipynb"]
    good = outcome.notebook.read_bytes()
    assert b"1e-05" in good
    flag.touch()
    outcome = go()
    assert (outcome.status, outcome.sentence) == ("failed", "RuntimeError: no luck")
    assert sorted(p.name for p in folder.iterdir()) == ["toy-width=1e-05-1-s0.failed.ipynb", "toy-width=1e-05-1-s0.failed.txt", "toy-width=1e-05-1-s0.ipynb"]
    assert (folder / "toy-width=1e-05-1-s0.ipynb").read_bytes() == good
    why = (folder / "toy-width=1e-05-1-s0.failed.txt").read_text()
    assert "raise RuntimeError" in why and "Traceback" in why and "\x1b" not in why and "width = 1e-05" in why
    flag.unlink()
    assert go().status == "ok" and [p.name for p in folder.iterdir()] == ["toy-width=1e-05-1-s0.ipynb"]


def test_tables_are_built(place):
    executor = local(1)
    assert make_tables(executor, notebook(place / "results.ipynb", "print('built')")) == ""
    assert "built" in (place / "runs" / "results.ipynb").read_text()
    assert make_tables(executor, notebook(place / "results.ipynb", "1 / 0")) == "ZeroDivisionError: division by zero"
    assert "built" in (place / "runs" / "results.ipynb").read_text() and (place / "runs" / "results.failed.ipynb").is_file()


# ---- endings

def in_process(function, *arguments):
    "Calls a function in another process, whose exit status is what it returns."
    def call(): os._exit(function(*arguments) or 0)
    process = FORK.Process(target=call)
    process.start()
    return process


def grid_in_process(path, fake, out, **options):
    def go():
        os.environ["OMP_NUM_THREADS"] = "1"
        try: outcomes, _ = quiet(path, fake, **options)
        except BaseException as error: out.write_text(repr(error)); return 9
        out.write_text(json.dumps([o.status for o in outcomes]))
    return in_process(go)


@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT"])
def test_a_killed_grid_leaves_nothing_running_and_continues(place, how):
    "Real notebooks: the kernel, in a session of its own, dies with the grid; what was recorded stays; the rest is run."
    path, seen = table(place, "[[runs]]\nseeds = [0, 1]"), place / "seen"
    runs = expand(path).runs
    from dataclasses import asdict
    where = {r.given["seed"]: (str(record_path(record(r))), json.dumps(asdict(record(r)))) for r in runs}
    notebook(place / "train_toy.ipynb", "import os, sys, time, json\nfrom pathlib import Path", f"where = {where!r}",
             f"with open({str(seen)!r}, 'a') as f: f.write(json.dumps([seed, os.getpid(), os.getppid()]) + '\\n')",
             f"if seed == 1 and not Path({str(place / 'go')!r}).exists(): time.sleep(600)",
             "p = Path(where[seed][0]); p.parent.mkdir(parents=True, exist_ok=True); p.write_text(where[seed][1])")
    process = in_process(lambda: main([str(path), "--workers", "1", "--gpus", "0", "--threads", "1"]))
    pids = wait_for(lambda: [json.loads(line) for line in seen.read_text().splitlines() if json.loads(line)[0] == 1] if seen.exists() else [], 60)[0][1:]
    assert all(map(alive, pids))
    os.kill(process.pid, getattr(signal, how))
    process.join(20)
    assert process.exitcode == (-9 if how == "SIGKILL" else 130)
    wait_for(lambda: not any(map(alive, pids)), 10)
    if how == "SIGINT": assert [p.name for p in (place / "runs" / "toys").iterdir()] == ["toy-s0.ipynb"]
    wait_for(lambda: (c := claim(runs[1].key)) and (c.release() or True), 10)
    (place / "go").touch()
    outcomes = run_grid(path, executor=local(1), out=lambda line: None)
    assert [o.status for o in outcomes] == ["recorded", "ok"]
    assert Counter(json.loads(line)[0] for line in seen.read_text().splitlines()) == {0: 1, 1: 2}
    assert sorted(p.name for p in (place / "runs" / "toys").iterdir()) == ["toy-s0.ipynb", "toy-s1.ipynb"]


@pytest.mark.parametrize("which, code", [("SIGTERM", 143), ("SIGHUP", 129)])
def test_told_to_stop(place, which, code, monkeypatch):
    path, fake = table(place, "[[runs]]\nseeds = [0, 1, 2]"), Fake(place / "log", seconds=600)
    monkeypatch.setattr(module.run_grid, "__defaults__", tuple(fake if d is module.papermill_command else d for d in module.run_grid.__defaults__))
    process = in_process(lambda: main([str(path), "--workers", "2", "--gpus", "0"]))
    wait_for(lambda: len(fake.notes()) == 2)
    os.kill(process.pid, getattr(signal, which))
    process.join(20)
    assert process.exitcode == code and not any(alive(n["pid"]) for n in fake.notes()) and len(fake.notes()) == 2
    assert list((place / "runs" / "toys").iterdir()) == []


STUBBORN = "import signal, os, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN); open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"


def test_a_claim_lasts_as_long_as_the_run(place):
    "After a SIGKILL of the grid nobody may start its run while a process of it is still alive."
    path, note = table(place, "[[runs]]"), place / "pid"
    process = grid_in_process(path, lambda *_: (sys.executable, "-c", STUBBORN, str(note)), place / "out", executor=local(1, grace=1.5))
    pid = wait_for(lambda: note.exists() and note.read_text() and int(note.read_text()))
    process.kill()
    process.join()
    waited, key = 0, expand(path).runs[0].key
    while (got := claim(key)) is None: waited += 1; time.sleep(0.02)
    assert waited > 10 and not alive(pid)
    got.release()


def test_a_killed_keeper_takes_its_run_along(place):
    path, note = table(place, "[[runs]]"), place / "pid"
    process = grid_in_process(path, lambda *_: (sys.executable, "-c", STUBBORN, str(note)), place / "out", retries=0)
    pid = wait_for(lambda: note.exists() and note.read_text() and int(note.read_text()))
    psutil.Process(pid).parent().kill()
    wait_for(lambda: not alive(pid), 5)
    process.join(30)
    assert json.loads((place / "out").read_text()) == ["failed"] and "killed by SIGKILL" in (place / "runs" / "toys" / "toy-s0.failed.txt").read_text()


def test_a_claim_excludes_others(place):
    held = claim("a")
    assert claim("a") is None and (other := claim("b")) is not None
    held.release(), other.release()
    claim("a").release()
    assert (place / "results" / ".locks" / ".gitignore").read_text() == "*\n"


def test_eight_grids_at_once_lose_and_double_nothing(place):
    "Every run is made once, by somebody; everybody ends with all of them."
    path, fake = table(place, "[[runs]]\nwidth = [1.0, 2.0, 3.0]\nseeds = [0, 1, 2, 3]\nalso_test = 'zoo'"), Fake(place / "log", seconds=0.1)
    processes = [grid_in_process(path, fake, place / f"out{k}", executor=local(2)) for k in range(8)]
    for process in processes: process.join(100)
    statuses = [json.loads((place / f"out{k}").read_text()) for k in range(8)]
    assert Counter(n["run"] for n in fake.notes()) == {run.label: 1 for run in expand(path).runs}
    assert all(set(s) <= {"ok", "recorded"} and len(s) == 12 for s in statuses)
    assert sum(s.count("ok") for s in statuses) == 12 and sum("ok" in s for s in statuses) > 1
    assert len(Shelf().records()) == 24 and Shelf().damaged == {}


def test_two_grids_with_some_runs_in_common(place):
    one, two = table(place, "[[runs]]\nseeds = [0, 1, 2]", "one"), table(place, "[[runs]]\nseeds = [2, 1, 3]\n[[runs]]\nwidth = 2.0", "two")
    fake = Fake(place / "log", seconds=0.3)
    processes = [grid_in_process(path, fake, place / f"{path.stem}.out", executor=local(1)) for path in (one, two)]
    for process in processes: process.join(60)
    statuses = {path.stem: json.loads((place / f"{path.stem}.out").read_text()) for path in (one, two)}
    assert len(fake.notes()) == 5 == len({n["run"] for n in fake.notes()}) and sum(s.count("ok") for s in statuses.values()) == 5
    assert sum(s.count("recorded") for s in statuses.values()) == 2


def test_eight_writers_of_records(place):
    "The files themselves: eight processes write their own records and one that they share, while another reads."
    run = expand(table(place, "[[runs]]")).runs[0]
    made = lambda k, j: record(run, variant=f"w{k}", seed=j)
    def go(k):
        for j in range(15): write(made(k, j)); write(record(run))
    processes = [in_process(go, k) for k in range(8)]
    shelf, most = Shelf(), 0
    while any(p.is_alive() for p in processes): most = max(most, len(shelf.records()))
    assert [p.exitcode for p in processes] == [0] * 8 and shelf.damaged == {} and most > 0
    assert {(r.variant, r.seed) for r in shelf.records()} == {(f"w{k}", j) for k in range(8) for j in range(15)} | {("plain", 0)}
    assert [p.name for p in (place / "results").rglob(".tmp-*")] == []
