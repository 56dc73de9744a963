"""The house in order: the library is what the notebooks export, notebooks are clean, the README is fresh, imports point down."""
import configparser
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from poseprojects.site import render_readme
from poseprojects.storage import project_root

ROOT = project_root()
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
TRAIN = [p for p in NOTEBOOKS if p.name.startswith("train_")]


def cells(path): return json.loads(path.read_text(encoding="utf-8"))["cells"]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "A copy of the checkout in which nbdev may write."
    folder = tmp_path_factory.mktemp("copy")
    for name in ("settings.ini", "pyproject.toml", "README.md"): shutil.copy(ROOT / name, folder)
    for name in ("nbs", "poseprojects"): shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    return folder


def nbdev(command, folder):
    run = subprocess.run([str(Path(sys.executable).with_name(command))], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def different(folder, name, pattern):
    "Files below a subfolder that are not as in the checkout."
    ours, theirs = ({p.relative_to(base): p.read_bytes() for p in (base / name).rglob(pattern) if "__pycache__" not in p.parts and ".ipynb_checkpoints" not in p.parts}
                    for base in (ROOT, folder))
    return sorted(str(p) for p in ours.keys() | theirs.keys() if ours.get(p) != theirs.get(p))


def test_export_has_no_drift(copy):
    nbdev("nbdev_export", copy)
    assert different(copy, "poseprojects", "*.py") == [], "run `make export` and commit both"


def test_notebooks_are_clean(copy):
    nbdev("nbdev_clean", copy)
    assert different(copy, "nbs", "*.ipynb") == [], "run `make export` and commit"


def test_readme_is_fresh():
    assert (ROOT / "README.md").read_text(encoding="utf-8") == render_readme(), "run `make readme` and commit"


def test_a_stale_readme_is_noticed(tmp_path):
    changed = json.loads((ROOT / "nbs" / "index.ipynb").read_text(encoding="utf-8"))
    changed["cells"][1]["source"] = ["another text"]
    (tmp_path / "index.ipynb").write_text(json.dumps(changed), encoding="utf-8")
    assert render_readme(tmp_path / "index.ipynb") != render_readme()


@pytest.mark.parametrize("path", TRAIN, ids=lambda p: p.stem)
def test_train_notebooks_have_one_parameters_cell(path):
    tagged = [c for c in cells(path) if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    lines = [line for line in "".join(tagged[0]["source"]).splitlines() if line.strip()]
    assert all(re.match(r"\w+ = .+#.+", line) for line in lines), "every parameter has a value and a comment"
    names = [line.split(" = ")[0] for line in lines]
    assert names[:11] == ["dataset", "data_root", "input_2d", "plan", "fidelity", "gpus", "seed", "epochs", "batch_size", "out_dir", "resume"]


def test_there_are_train_notebooks(): assert TRAIN


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: str(p.relative_to(ROOT / "nbs")))
def test_notebook_reads_well(path):
    page = cells(path)
    first = "".join(page[0]["source"])
    assert page[0]["cell_type"] == "markdown" and first.startswith("# ") and "\n> " in first, "a title and a one-line claim come first"
    for cell in page:
        size = len(json.dumps(cell.get("outputs", [])))
        assert size <= 300_000, f"a cell has {size:,} bytes of output: {''.join(cell['source'])[:80]}"
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error"
            assert not re.search(r"[\"' (]/(tmp|root|work)/|Warning: ", json.dumps(output)), f"a warning or a path of one machine was kept: {json.dumps(output)[:300]}"


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if any("default_exp" in "".join(c["source"]) for c in cells(p))], ids=lambda p: p.stem)
def test_notebook_and_package_trees_are_the_same(path):
    exported = next(re.search(r"#\|\s*default_exp\s+(\S+)", "".join(c["source"])) for c in cells(path) if "default_exp" in "".join(c["source"]))[1]
    assert exported == ".".join(path.relative_to(ROOT / "nbs").with_suffix("").parts)


LAYERS = [{"storage"}, {"skeleton"}, {"camera", "view"}, {"metrics"}, {"protocol"}, {"data"}, {"train"}, {"papers"}, {"results", "site", "export", "zoo"}, {"experiment", "lift"}, {"benchmarks"}]


def test_imports_point_down():
    level = {name: k for k, layer in enumerate(LAYERS) for name in layer}
    wrong = []
    for path in (ROOT / "poseprojects").rglob("*.py"):
        parts = path.relative_to(ROOT / "poseprojects").with_suffix("").parts
        if parts[-1] in ("__init__", "_modidx"): continue
        for dots, rest, names in re.findall(r"^\s*from (\.+)([\w.]*) import ([\w, ]+)", path.read_text(encoding="utf-8"), re.M):
            for target in [rest] if rest else names.split(", "):
                target = (list(parts[:len(parts) - len(dots)]) + target.split("."))[0]
                if target == "__version__": continue
                assert target in level, f"{path.name} imports {target}, which has no place in the layers"
                if level[target] > level[parts[0]]: wrong.append(f"{'.'.join(parts)} -> {target}")
    assert wrong == []


def test_versions_and_requirements_agree():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "settings.ini")
    settings, project = settings["DEFAULT"], (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = lambda name: re.findall(r'"([^"]+)"', re.search(rf"^{name} = \[(.*?)\]", project, re.M | re.S)[1])
    assert sorted(settings["requirements"].split()) == sorted(listed("dependencies"))
    assert sorted(settings["dev_requirements"].split()) == sorted(listed("dev"))
    assert f'__version__ = "{settings["version"]}"' in (ROOT / "poseprojects" / "__init__.py").read_text(encoding="utf-8").replace("'", '"')


def test_every_requirement_is_pinned():
    pinned = {re.sub(r"[-_.]+", "-", line.split("==")[0].lower()) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    settings = configparser.ConfigParser()
    settings.read(ROOT / "settings.ini")
    wanted = [re.split(r"[<>=!~]", r)[0].lower() for key in ("requirements", "dev_requirements") for r in settings["DEFAULT"][key].split()]
    assert [w for w in wanted if w not in pinned] == []


@pytest.mark.alone
def test_cold_import_is_cheap():
    "papers.martinez costs less than half a second beyond torch, and pulls in no plotting or notebook package."
    code = ("import time, sys; import torch; s = time.perf_counter(); import poseprojects.papers.martinez; t = time.perf_counter() - s; "
            "heavy = [m for m in ('plotly', 'matplotlib', 'papermill', 'IPython', 'tensorboard', 'scipy', 'h5py') if m in sys.modules]; print(t, heavy)")
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split(" ", 1) for _ in range(5)]
    assert all(heavy.strip() == "[]" for _, heavy in runs), runs
    assert min(float(seconds) for seconds, _ in runs) < 0.5, runs


def test_nothing_unsafe_is_loaded():
    for path in (ROOT / "poseprojects").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"allow_pickle\s*=\s*True|weights_only\s*=\s*False|pickle\.loads?\(|Unpickler", text), path
