"Every recipe runs: on made-up files in the owner's layout, and on the real ones that are here; a second run does nothing; a killed one leaves nothing."
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from conftest import real_data
from poseprojects.data import cmu, hdm05
from poseprojects.data.base import open_set, source
from poseprojects.data.recipes import Recipe, convert_split, count_samples, differences, draw_samples, recipe_notebook, recipes
from poseprojects.data.sources import About
from poseprojects.results.conversions import chosen, last_line, main, run_recipe
from poseprojects.results.grid import parameters_of
from poseprojects.storage import InputError, cache_dir, project_root, shared_data

ROOT = project_root()
NOTEBOOKS = sorted((ROOT / "data_recipes").glob("*/convert.ipynb"))
REAL = ("cmu", "hdm05", "mpii", "pose2sim")
every = pytest.mark.parametrize("path", [pytest.param(p, marks=pytest.mark.xdist_group(f"recipe-{p.parent.name}")) for p in NOTEBOOKS], ids=lambda p: p.parent.name)


@pytest.fixture
def places(tmp_path, monkeypatch):
    "A cache, records and runs of their own."
    for name in ("CACHE", "RESULTS", "RUNS"): monkeypatch.setenv(f"POSEPROJECTS_{name}", str(tmp_path / name.lower()))
    return tmp_path


def executed(path, folder, output, **parameters):
    "What a recipe printed; executed by papermill in a process of its own."
    import papermill
    papermill.execute_notebook(path, output, {"source": str(folder), **parameters}, progress_bar=False, cwd=str(ROOT), log_output=False)
    return json.loads(output.read_text(encoding="utf-8"))["cells"]


def printed(cells): return "".join("".join(o.get("text", "")) for c in cells for o in c.get("outputs", []) if o.get("name") == "stdout")


def stamps(folder): return {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.rglob("*.safetensors")}


def test_there_are_recipes_for_the_real_data(): assert {p.parent.name for p in NOTEBOOKS} >= set(REAL) & set(recipes())


@every
def test_recipe_on_made_up_files(path, places, capsys):
    name, folder = path.parent.name, places / "files"
    folder.mkdir()
    expected = source(name).example(folder)
    assert set(expected) & set(source(name).SPLITS) and sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 2_000_000
    splits = [s.strip() for s in parameters_of(path).get("splits", "").split(",") if s.strip()] or source(name).SPLITS
    expected = {split: poses for split, poses in expected.items() if split in splits}
    cells = executed(path, folder, places / "out.ipynb", out=str(places / "sets"))
    text = printed(cells)
    assert text.count("converted in") >= len(expected) and "already converted" not in text and "problem " not in text
    assert any("image/png" in o.get("data", {}) for c in cells for o in c.get("outputs", [])), "ten samples in pictures"
    assert last_line(places / "out.ipynb").startswith(f"{name}, 2D input ") and "the doctor finds nothing wrong" in last_line(places / "out.ipynb")
    for split, poses in expected.items(): assert len(open_set(places / "sets" / f"{name}-{split}.safetensors", verify=True)) == len(poses)
    before = stamps(places)
    recipe = Recipe(name, {**parameters_of(path), "source": str(folder), "out": str(places / "sets")})
    recipe.convert()
    assert "already converted: there was nothing to do" in capsys.readouterr().out and stamps(places) == before
    assert "already converted" in recipe.summary()


@pytest.mark.data
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.xdist_group(f"recipe-{name}")) for name in REAL if name in recipes()])
def test_recipe_on_the_real_files(name, tmp_path, monkeypatch):
    "In the common cache, so that what another test converted is not converted again."
    monkeypatch.setenv("POSEPROJECTS_RESULTS", str(tmp_path))
    text = printed(executed(recipe_notebook(name), real_data(name), tmp_path / "out.ipynb"))
    line = last_line(tmp_path / "out.ipynb")
    assert "the doctor finds nothing wrong" in line and "differ" not in line, line
    recipe = Recipe(name, {**parameters_of(recipe_notebook(name)), "source": str(real_data(name))})
    before = stamps(cache_dir())
    for split in recipe.splits: assert not convert_split(recipe.module, split, recipe.folder, recipe.input_2d, **recipe.options).fresh
    assert not {p for p, stamp in stamps(cache_dir()).items() if p in before and before[p] != stamp}
    if name in ("cmu", "hdm05"): assert "counts as expected" in line


@every
def test_notebook_is_as_the_others(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert all(not c.get("outputs") and c.get("execution_count") is None for c in cells if c["cell_type"] == "code"), "kept without outputs"
    assert list(parameters_of(path))[:2] == ["source", "input_2d"] and "out" in parameters_of(path)
    tagged, = ["".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", [])]
    assert all("#" in line for line in tagged.splitlines() if line.strip()), "every parameter has a comment"
    assert "".join(cells[0]["source"]).startswith("# ") and "\n> " in "".join(cells[0]["source"])
    assert "summary()" in "".join(cells[-1]["source"])


@every
def test_the_page_of_a_recipe(path):
    text = (path.parent / "README.md").read_text(encoding="utf-8")
    assert text.startswith("# ") and "What to put where" in text and "What to expect" in text and re.search(r"Licence|Terms", text) and re.search(r"\*\*Where", text)


@every
def test_the_source_says_what_it_is(path):
    module = source(path.parent.name)
    assert isinstance(module.ABOUT, About) and all((module.ABOUT.title, module.ABOUT.gives, module.ABOUT.licence, module.ABOUT.url, module.ABOUT.size, module.ABOUT.files)) and module.SPLITS and isinstance(module.RECIPE, int)


def test_the_page_on_getting_the_data_has_them_all():
    "Stored outputs of the page; execute it again when a source is new or its ABOUT has changed."
    cells = json.loads((ROOT / "nbs" / "data" / "getting.ipynb").read_text(encoding="utf-8"))["cells"]
    shown = "".join("".join(o.get("data", {}).get("text/markdown", "")) for c in cells for o in c.get("outputs", []))
    for path in NOTEBOOKS:
        about = source(path.parent.name).ABOUT
        for text in (f"[{about.title}](../../data_recipes/{path.parent.name}/README.md)", about.gives, about.licence, about.size, f"`make data NAME={path.parent.name} SOURCE=folder`"):
            assert " ".join(text.replace("|", "/").split()) in shown, f"{path.parent.name}: {text}"


# ---------- what all recipes share

@pytest.fixture
def files(tmp_path):
    hdm05.example(tmp_path / "files")
    return tmp_path / "files"


def test_counts_say_what_differs(places, files, capsys):
    recipe = Recipe("hdm05", {"source": str(files)})
    recipe.convert()
    found = count_samples(recipe.parts["test"].poses)
    assert found == {"bd": (24, 24, 24, 24), "bk": (24, 24, 24, 24)}
    poses = recipe.parts["test"].poses
    assert differences(poses, 192) == differences(poses, {"bd": 96, "bk": (24,) * 4}) == []
    assert differences(poses, 191) == ["192 samples, expected 191"]
    assert differences(poses, {"bd": 95, "bk": (24, 24, 24, 23), "xx": 5}) == ["subject bd has 96 samples, expected 95", "subject bk has 24 24 24 24 samples in its cameras, expected 24 24 24 23", "subject xx is missing, expected 5 samples"]
    assert differences(poses, {"bd": 96}) == ["subject bk is not expected"]
    recipe.counts()
    assert "192 samples, expected 24,418" in capsys.readouterr().out and "1 counts differ" in recipe.summary()


def test_an_example_is_compared_with_nothing(places, capsys):
    recipe = Recipe("hdm05", {"source": "example"})
    folder = recipe.folder
    recipe.convert()
    recipe.counts()
    assert "made-up files, so nothing is compared" in capsys.readouterr().out and "(made-up example)" in recipe.summary() and folder.is_dir()
    assert not list(places.rglob("hdm05.json")), "how long an example takes is of no interest"
    del recipe
    import gc
    gc.collect()
    assert not folder.exists()


def test_how_long_it_took_is_kept(places, files):
    Recipe("hdm05", {"source": str(files)}).convert()
    note = json.loads((places / "results" / "conversions" / "hdm05.json").read_text())
    assert note["splits"]["test"]["samples"] == 192 and note["splits"]["test"]["seconds"] >= 0 and note["input_2d"] == "gt"
    before = (places / "results" / "conversions" / "hdm05.json").stat().st_mtime_ns
    Recipe("hdm05", {"source": str(files)}).convert()
    assert (places / "results" / "conversions" / "hdm05.json").stat().st_mtime_ns == before


def test_another_input_is_another_set(places, files):
    sets = {name: Recipe("hdm05", {"source": str(files), "input_2d": name}) for name in ("gt", "cpn-like")}
    for recipe in sets.values(): recipe.convert()
    assert all(recipe.parts["test"].fresh for recipe in sets.values())
    again = Recipe("hdm05", {"source": str(files), "input_2d": "gt"})
    again.convert()
    assert not again.parts["test"].fresh and again.parts["test"].path == sets["gt"].parts["test"].path != sets["cpn-like"].parts["test"].path


def test_options_reach_the_source(places, files):
    recipe = Recipe("hdm05", {"source": str(files), "subjects": ["bk"], "recipe": 7, "out": ""})
    assert recipe.options == {"subjects": ["bk"]} and recipe.convert()["test"].subject_names == ("bk",)
    assert Recipe("hdm05", {"source": str(files), "subjects": None}).options == {}


def test_only_some_splits(places, tmp_path):
    cmu.example(tmp_path / "pack")
    assert list(Recipe("cmu", {"source": str(tmp_path / "pack"), "splits": "test"}).convert()) == ["test"]
    with pytest.raises(InputError, match="split 'validation' is not there, expected some of train, test"): Recipe("cmu", {"source": str(tmp_path / "pack"), "splits": "validation"})


def test_samples_without_3d_and_with_missing_joints(places, files):
    from dataclasses import replace
    poses = Recipe("hdm05", {"source": str(files)}).convert()["test"]
    confidence = poses.confidence.clone()
    confidence[:, 3] = 0
    pixels = poses.pose_2d.clone()
    pixels[:, 3] = -1000
    figure = draw_samples(replace(poses, pose_3d=None, confidence=confidence, pose_2d=pixels), 4)
    assert len(figure.axes) == 4 and all(ax.get_xlim()[0] > -500 for ax in figure.axes)
    assert len(draw_samples(poses, 10).axes) == 20
    a, b, c = (draw_samples(poses, 3, seed).axes[0].get_title() for seed in (0, 0, 1))
    assert a == b != c


def test_refusals():
    for call, telling in ((lambda: Recipe("human36m", {}), "not known"), (lambda: Recipe("cmu", {"source": "/nowhere/at/all"}), "data_recipes/cmu/README.md"), (lambda: recipe_notebook("human36m"), "expected one of bvh, cmu")):
        with pytest.raises(InputError, match=re.escape(telling)) as refusal: call()
        assert "\n" not in str(refusal.value)


# ---------- killed

KILLED = """
import sys, threading
import poseprojects.data.base as base
from poseprojects.data.recipes import Recipe
real, where = base.save_file, sys.argv[2]
def slow(tensors, path, **kwargs):
    if where == "before": print("HERE", flush=True); threading.Event().wait(60)
    real(tensors, path, **kwargs)
    if where == "after": print("HERE", flush=True); threading.Event().wait(60)
    if where == "half":
        with open(path, "r+b") as file: file.truncate(5000)
        print("HERE", flush=True); threading.Event().wait(60)
base.save_file = slow
Recipe("hdm05", {"source": sys.argv[1]}).convert()
"""


@pytest.mark.parametrize("moment", ["before", "half", "after"])
def test_a_killed_conversion_leaves_no_set_that_opens(places, files, moment):
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(KILLED), str(files), moment], env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "HERE"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    left = [p for p in (places / "cache").rglob("*") if p.is_file()]
    assert all(p.name.startswith(".tmp-") for p in left) and not list((places / "cache").glob("hdm05*"))
    recipe = Recipe("hdm05", {"source": str(files)})
    recipe.convert()
    assert recipe.parts["test"].fresh and len(open_set(recipe.parts["test"].path, verify=True)) == 192


# ---------- the command

@pytest.mark.xdist_group("recipe-cmu")
def test_the_command(places, capsys):
    assert main(["cmu", "--source", "example", "-p", "input_2d", "cpn-like"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("cmu (made-up example), 2D input cpn-like: train 288, test 192 samples; converted in") and second == f"Executed notebook: {places / 'runs' / 'data' / 'cmu.ipynb'}"
    assert (places / "runs" / "data" / "cmu.ipynb").is_file() and len(list((places / "runs" / "data").iterdir())) == 1


def test_the_command_says_why_it_failed(places, capsys):
    (places / "pack").mkdir()
    assert main(["hdm05", "--source", str(places / "pack")]) == 2
    error = capsys.readouterr().err.strip()
    assert "the folder is empty" in error and str(places / "runs" / "data" / "hdm05.ipynb") in error and "\n" not in error
    assert main(["human36m"]) == 2 and "expected one of bvh, cmu" in capsys.readouterr().err
    assert main(["cmu", "-p", "inputs", "gt"]) == 2 and "has no parameter 'inputs'" in capsys.readouterr().err


def test_parameters_as_typed():
    notebook = recipe_notebook("cmu")
    assert chosen(notebook, [("source", "05"), ("out", "true")]) == {"source": "05", "out": "true"}


def test_make_knows_the_targets():
    text = (ROOT / "Makefile").read_text()
    assert "poseprojects.results.conversions" in text and "poseprojects.data.diagnosis" in text
    for target, telling in (("data", "make data needs a name"), ("doctor", "make doctor needs a path")):
        done = subprocess.run(["make", "--no-print-directory", "-o", "setup", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2 and telling in done.stdout + done.stderr
