"Records are whole, portable and unique; tables are made from them and from the published figures alone."
import csv
import getpass
import json
import multiprocessing
import os
import re
import socket
import subprocess
import sys
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from poseprojects.papers.chen import VARIANTS
from poseprojects.protocol import PROTOCOLS
from poseprojects.results import records, tables
from poseprojects.results.records import Record, environment, exists, find, identity, portable_path, read, read_all, record_path, write
from poseprojects.results.tables import all_tables, comparable, measured_table, names, origin, published, published_table, runs, spread, summaries, summary_table, write_tables
from poseprojects.storage import InputError, project_root


def a_record(**changes):
    base = dict(method="martinez", variant="paper", plan="quick", fidelity="paper", train_data="cmu", test_data="cmu", train_fingerprint="01", test_fingerprint="02",
                input_2d="gt", protocol="cmu", protocol_line=str(PROTOCOLS["cmu"]), metrics=dict(mpjpe=43.0, pa_mpjpe=31.0, per_joint=dict(head=50.0), per_action=dict(walk=dict(mpjpe=40.0, poses=7))),
                selection="last", seed=0, epochs=6, steps=4800, parameters=4291632, samples_per_second=2e4, seconds=55.5, peak_memory_bytes=9 * 10 ** 8, device="a CPU", threads=2,
                versions=dict(python="3.11"), git_commit="abcdef0123456", git_dirty=False, notebook="nbs/train_martinez.ipynb",
                notebook_parameters=dict(dataset="cmu", plan="quick", seed=changes.get("seed", 0)), created="2026-01-31T12:00:00Z")
    return Record(**base | changes)


def on_h36m(**changes):
    return a_record(**dict(plan="paper", train_data="h36m", test_data="h36m", protocol="h36m-p1", protocol_line=str(PROTOCOLS["h36m-p1"]), epochs=200,
                           notebook_parameters=dict(dataset="h36m", plan="paper"), metrics=dict(mpjpe=45.9, pa_mpjpe=36.0)) | changes)


# ---- records

def test_written_and_read_back(tmp_path):
    record = a_record(metrics=dict(mpjpe=np.float32(43.5), pa_mpjpe=torch.tensor(31.25), mpjve=None, n_mpjpe=np.float64(40)), **environment())
    path = write(record, tmp_path)
    assert read(path) == record and record.metrics == dict(mpjpe=43.5, pa_mpjpe=31.25, n_mpjpe=40.0)
    assert read_all(tmp_path) == [record] and path == record_path(record, tmp_path)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [path.name]


def test_the_metrics_of_a_protocol_fit(tmp_path):
    from poseprojects.protocol import CMU, score
    from poseprojects.skeleton import H36M17
    truth = torch.randn(50, 17, 3) * 0.4
    record = a_record(metrics=score(truth + 0.01, truth, CMU, H36M17, torch.zeros(50, dtype=torch.long), ["walk"]))
    assert read(write(record, tmp_path)).metrics["per_action"]["walk"]["poses"] == 50 and "mpjve" not in record.metrics


def test_no_host_no_user_no_absolute_path(tmp_path, monkeypatch):
    root = project_root()
    record = a_record(notebook=str(root / "nbs" / "train_martinez.ipynb"), **environment(),
                      notebook_parameters=dict(data_root="/home/somebody/data/cmu", out_dir="~/somebody/runs/x", more=[str(root / "runs" / "a"), r"C:\Users\somebody\deep\data"], relative="../shared/data/cmu"))
    text = write(record, tmp_path).read_text()
    assert "somebody/data" not in text and "/home" not in text and "~" not in text and "Users" not in text and str(root) not in text
    assert record.notebook == "nbs/train_martinez.ipynb"
    assert record.notebook_parameters == dict(data_root="data/cmu", out_dir="runs/x", more=["runs/a", "deep/data"], relative="../shared/data/cmu")
    assert set(json.loads(text)["versions"]) == {"python", "torch", "numpy", "poseprojects"}


@pytest.mark.parametrize("text", ["/home/x/y/data", "/data", "/", "~", "~/a", r"C:\a\b\c", r"\\server\share\a\b", "/a/b/../c"])
def test_absolute_paths_become_short(text):
    short = portable_path(text)
    assert not short.startswith(("/", "~")) and ":" not in short and len(short.split("/")) <= 2 and "server" not in short


@pytest.mark.parametrize("text", ["mean over frames; root-aligned", "a/b", "S9/S11", "PA / P2", "https://example.org/a/b", "3 m/s", "gt"])
def test_other_text_stays(text):
    assert portable_path(text) == text and a_record(protocol_line=text).protocol_line == text


@pytest.mark.parametrize("changes, says", [
    (dict(metrics=dict(mpjpe=float("nan"))), "metrics.mpjpe is nan"), (dict(metrics=dict(per_joint=dict(head=float("inf")))), "metrics.per_joint.head is inf"),
    (dict(metrics=dict(mpjpe=torch.tensor(float("nan")))), "metrics.mpjpe is nan"), (dict(metrics=dict(mpjpe=torch.zeros(3))), "shape (3,)"), (dict(metrics=dict(mpjpe=True)), "metrics.mpjpe is True"),
    (dict(metrics=[1]), "metrics is of type list"), (dict(metrics=dict(mpjpe=None)), "metrics is empty"), (dict(metrics=dict(mpjpe="43")), "metrics.mpjpe is '43'"),
    (dict(seconds=float("nan")), "seconds is nan"), (dict(seed=1.5), "seed is 1.5"), (dict(seed="0"), "seed is '0'"), (dict(seed=-1), "seed is -1"), (dict(threads=0), "threads is 0"),
    (dict(epochs=None), "epochs is None"), (dict(git_dirty=0), "git_dirty is 0"), (dict(method=""), "method is empty"), (dict(versions=[]), "versions is []"),
    (dict(selection="best of /home/somebody/x.pt"), "absolute path"), (dict(notebook_parameters=dict(f=print)), "notebook_parameters.f is of type builtin"),
    (dict(created="31.1.2026"), "created is"), (dict(created="2026-01-31T12:00:00+02:00"), "created is")])
def test_what_a_record_refuses(changes, says):
    with pytest.raises(InputError) as refusal: a_record(**changes)
    assert says in str(refusal.value) and "\n" not in str(refusal.value)


def damage(text, name):
    content = json.loads(text)
    if name == "cut": return text[:len(text) // 2]
    if name == "empty": return ""
    if name == "NaN": return text.replace("43.0", "NaN", 1)
    if name == "Infinity": return text.replace("43.0", "-Infinity", 1)
    if name == "overflow": return text.replace("43.0", "1e999", 1)
    if name == "missing": content.pop("seed")
    if name == "unknown": content["sead"] = 1
    if name == "type": content["seed"] = "0"
    if name == "newer": content["schema"] = records.SCHEMA + 1
    if name == "older": content["schema"] = 0
    if name == "path": content["selection"] = "see /home/somebody/x"
    if name == "list": return "[]"
    if name == "number": return "3"
    if name == "twice": return text.replace('"seed": 0', '"seed": 0, "seed": 1', 1)
    if name == "metrics": content["metrics"] = {"mpjpe": "43"}
    if name == "deep": return "[" * 100_000
    if name == "trailing": return text + "x"
    return json.dumps(content)


SAYS = dict(cut="not a whole JSON", empty="not a whole JSON", NaN="NaN", Infinity="-Infinity", overflow="inf", missing="lacks seed", unknown="unknown field sead", type="seed is '0'",
            newer="update poseprojects", older="schema is 0", path="absolute path", list="holds a list", number="holds a int", twice="'seed' twice", metrics="metrics.mpjpe", deep="nested", trailing="not a whole JSON")


@pytest.mark.parametrize("name", SAYS)
def test_damaged_files_give_one_sentence(tmp_path, name):
    path = write(a_record(), tmp_path)
    path.write_text(damage(path.read_text(), name))
    with pytest.raises(InputError) as refusal: read_all(tmp_path)
    assert SAYS[name] in str(refusal.value) and path.name in str(refusal.value) and "\n" not in str(refusal.value)


def test_binary_and_absent_files(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe{}")
    for path, says in ((tmp_path / "a.json", "not UTF-8"), (tmp_path / "b.json", "cannot be read"), (tmp_path, "cannot be read")):
        with pytest.raises(InputError, match=says): read(path)


def test_different_runs_never_share_a_file_and_the_same_run_does():
    one = a_record()
    changed = dict(method="lcn", variant="no-dropout", plan="paper", fidelity="release", train_data="synthetic", test_data="hdm05", train_fingerprint="x", test_fingerprint="x", input_2d="cpn",
                   protocol="cmu-16", protocol_line="other", selection="best-on-validation", seed=1, epochs=7, parameters=5, notebook_parameters=dict(dataset="cmu", batch_size=3))
    paths = [record_path(one)] + [record_path(replace(one, **{k: v})) for k, v in changed.items()]
    assert len({str(p).lower() for p in paths}) == len(paths)
    same = dict(created="2027-01-01T00:00:00Z", seconds=1.0, device="another", git_commit="f" * 40, metrics=dict(mpjpe=1.0), threads=7, notebook_parameters=dict(dataset="cmu", plan="quick", seed=0, data_root="elsewhere", gpus=4, resume=True, also_test="hdm05"))
    assert {record_path(replace(one, **{k: v})) for k, v in same.items()} == {record_path(one)}
    assert record_path(replace(one, variant="A/B ../x")).parent == record_path(one).parent


def test_find_and_exists(tmp_path):
    for seed in range(3): write(a_record(seed=seed), tmp_path)
    assert len(find(tmp_path, method="martinez")) == 3 and exists(tmp_path, seed=2) and not exists(tmp_path, seed=3) and not exists(tmp_path / "no")
    with pytest.raises(InputError, match="no field 'sede'"): exists(tmp_path, sede=1)


def _writer(folder, worker, rounds):
    for k in range(rounds):
        write(a_record(seed=worker * rounds + k), Path(folder)) # one of its own
        write(a_record(seed=10_000, device=f"worker {worker}", metrics=dict(mpjpe=float(worker), pad={str(i): 1.0 for i in range(200)})), Path(folder)) # one that all write


def test_eight_processes_lose_and_double_nothing(tmp_path):
    rounds, context = 12, multiprocessing.get_context("fork")
    workers = [context.Process(target=_writer, args=(str(tmp_path), w, rounds)) for w in range(8)]
    for w in workers: w.start()
    shared = record_path(a_record(seed=10_000), tmp_path)
    while any(w.is_alive() for w in workers):
        if shared.exists(): read(shared) # whole at any moment
        read_all(tmp_path)
    for w in workers: w.join()
    assert [w.exitcode for w in workers] == [0] * 8
    assert sorted(r.seed for r in read_all(tmp_path)) == [*range(8 * rounds), 10_000]
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]


def test_a_full_disk_leaves_the_old_record(tmp_path, monkeypatch):
    path = write(a_record(), tmp_path)
    before = path.read_bytes()
    def full(self, *a, **k): raise OSError(28, "No space left on device")
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InputError, match="no space is left"): write(a_record(seconds=1.0), tmp_path)
    assert path.read_bytes() == before and len(list(tmp_path.rglob("*.*"))) == 1


def test_the_environment_names_no_computer():
    found = environment()
    assert set(found) <= {f.name for f in fields(Record)}
    for private in (socket.gethostname(), getpass.getuser()):
        assert len(private) < 5 or private not in json.dumps({**found, "versions": 0})


# ---- published figures

@pytest.fixture(scope="module")
def figures(): return published(project_root() / "results" / "reference")

@pytest.fixture(scope="module")
def known(): return names(project_root() / "results" / "names.csv")


def test_every_figure_has_a_source_and_an_origin(figures, known):
    assert Counter(f.file for f in figures) == dict(chen=48, kudo=1, lcn=10, lifters=103, martinez=76, nsd=8, poseaug=139, rhodin=92, x_as_supervision=5)
    assert all(f.source for f in figures)
    found = Counter(origin(f, known)[0] for f in figures)
    assert found == {"paper": 258, "released": 131, "secondary": 53, "not accuracy": 40}


def test_marks_of_doubt_are_kept(figures, known):
    doubtful = [f for f in figures if "secondary" in f.source]
    assert len(doubtful) >= 4 and {origin(f, known)[0] for f in doubtful} == {"secondary"}
    text = "".join(t.markdown for t in all_tables([], figures, known))
    for f in figures:
        if not f.part: assert re.sub(r"\s+", " ", f.source).replace("|", "\\|") in text, f


@pytest.mark.parametrize("method, variant, source, expected", [
    ("Martinez ICCV17", "all-actions model", "una-dinosauria/3d-pose-baseline issue #60 quoting the paper", "paper"),
    ("Martinez ICCV17", "after 1 epoch", "una-dinosauria/3d-pose-baseline:README.md", "released"),
    ("Martinez ICCV17", "user run, after 1 epoch", "una-dinosauria/3d-pose-baseline:README.md", "secondary"),
    ("PoseAug", "SimpleBaseline PoseAug (paper)", "a poster that quotes it", "paper"),
    ("PoseAug", "SimpleBaseline PoseAug (released code)", "a notebook", "released"),
    ("LCN", "third-party fork rerun", "CHUNYUWANG/lcn-pose:README.md", "secondary"),
    ("X", "anything", "Papers with Code entry", "secondary"),
    ("X", "anything", "Y et al. CVPR18 Table 5", "paper")])
def test_origin_rules(figures, known, method, variant, source, expected):
    assert origin(replace(figures[0], method=method, variant=variant, source=source, protocol="P1", metric="MPJPE", unit="mm"), known)[0] == expected


def test_an_unclear_source_is_an_error(figures, known):
    with pytest.raises(InputError, match="does not say whether"): origin(replace(figures[0], method="X", variant="y", source="a friend", protocol="P1", metric="MPJPE", unit="mm"), known)


@pytest.mark.parametrize("text, says", [
    ("a,b\n1,2\n", "the columns are a, b"), ("", "columns are missing"),
    (",".join(tables.COLUMNS) + "\nM,v,D,p,i,MPJPE,45.5,mm\n", "line 2: 8 fields"), (",".join(tables.COLUMNS) + "\nM,v,D,p,i,MPJPE,about 45,mm,s\n", "line 2: value 'about 45'"),
    (",".join(tables.COLUMNS) + "\nM,v,D,p,i,MPJPE,nan,mm,s\n", "value 'nan'"), (",".join(tables.COLUMNS) + "\nM,v,D,p,i,MPJPE,45.5,mm,\n", "source is empty"),
    (",".join(tables.COLUMNS) + "\nM,v,D,p,i,MPJPE,45.5,mm,\"s\n", "cannot be read")])
def test_bad_reference_files_give_one_sentence(tmp_path, text, says):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(InputError) as refusal: published(tmp_path)
    assert says in str(refusal.value) and "x.csv" in str(refusal.value)


def test_bad_names_give_one_sentence(tmp_path):
    for line, says in (("town,a,b,", "kind 'town'"), ("run,a,b,", "method / variant"), ("dataset,a,b,\ndataset,a,c,", "named twice")):
        (tmp_path / "names.csv").write_text("kind,published,ours,note\n" + line + "\n")
        with pytest.raises(InputError, match=says): names(tmp_path / "names.csv")


def test_names_point_at_protocols_that_exist(known):
    assert {p for (kind, _), ours in known.pairs.items() if kind == "protocol" for p in ours.split()} <= set(PROTOCOLS)


# ---- tables

def test_without_records_everything_needs_data(figures, known):
    for table in all_tables([], figures, known):
        if "ours" in table.columns:
            assert {row[table.columns.index("ours")] for row in table.rows} == {"needs data"} and {row[table.columns.index("difference")] for row in table.rows} == {"–"}
        for row in table.rows:
            if row[0] == "ours": assert row[4] == "needs data" and set(row[5:]) == {"–"}
        if table.name.startswith("measured"): assert table.rows == () and "nothing yet" in table.markdown


def test_our_own_data_never_stand_in_a_published_table(figures, known):
    ours = [a_record(test_data=data, train_data=data, seed=s, plan=plan) for data in ("cmu", "hdm05", "synthetic") for s in range(2) for plan in ("quick", "paper")]
    alone, beside = all_tables([], figures, known), all_tables(ours, figures, known)
    assert [t.csv for t in alone if t.name.startswith("published")] == [t.csv for t in beside if t.name.startswith("published")]
    assert [len(t.rows) for t in beside if t.name.startswith("measured")] == [2, 2, 2]


@pytest.mark.parametrize("changes", [dict(train_data="cmu"), dict(test_data="cmu"), dict(plan="quick"), dict(protocol="cmu"), dict(protocol="kudo"), dict(input_2d="cpn"), dict(variant="no-dropout"),
                                     dict(method="lcn"), dict(metrics=dict(pa_mpjpe=30.0)),
                                     *(dict(notebook_parameters=dict(dataset="h36m", plan="paper", **{k: v})) for k, v in dict(epochs=5, batch_size=256, learning_rate=0.1, validation="S8").items())])
def test_one_thing_that_differs_makes_two_numbers_incomparable(figures, known, changes):
    best = next(f for f in figures if f.file == "martinez" and f.value == "45.5" and not f.part)
    assert comparable(best, runs([on_h36m()])[0], known) and not comparable(best, runs([on_h36m(**changes)])[0], known)


def test_across_data_sets_the_published_input_is_that_of_the_training(figures, known):
    "3DHP, CPN: trained on CPN's 2D, tested on the true one."
    ours = runs([on_h36m(method="poseaug", variant="mlp", test_data="mpi_inf_3dhp", train_data="h36m", protocol="poseaug-3dhp-best-on-test", selection="best-on-test", input_2d="gt", fidelity="release", notebook_parameters=dict(dataset="h36m", plan="paper", input_2d="cpn"), metrics=dict(mpjpe=80.5))])
    table = published_table(figures, [*ours[0].records], known, "mpi_inf_3dhp", "poseaug")
    found = {(row[1], row[2]) for row in table.rows if row[table.columns.index("ours")] != "needs data"}
    assert found == {("SimpleBaseline PoseAug", "CPN")}
    one, = (dict(zip(table.columns, row)) for row in table.rows if row[table.columns.index("ours")] != "needs data")
    assert one["released code"] == "80.0" and one["difference"] == "+0.5"
    assert "gt (trained: cpn)" in measured_table([*ours[0].records], "mpi_inf_3dhp").rows[0]


def test_the_difference_is_ours_minus_theirs(figures, known):
    def row(*found):
        table = published_table(figures, found, known, "h36m", "martinez")
        return [dict(zip(table.columns, r)) for r in table.rows if r[5] == "45.5‡"]
    [one] = row(on_h36m(seed=0, metrics=dict(mpjpe=45.0)), on_h36m(seed=1, metrics=dict(mpjpe=44.0)))
    assert one["ours"] == "44.5 ± 0.7 (n=2, paper)" and one["difference"] == "−1.0" and "nbs/train_martinez.ipynb" in one["produced by"] and "abcdef0" in one["produced by"]
    [release] = row(on_h36m(fidelity="release", metrics=dict(mpjpe=47.0)))
    assert release["difference"] == "+1.5 (paper)"
    assert len(row(on_h36m(), on_h36m(fidelity="release"))) == 2
    assert row()[0]["ours"] == "needs data"


def test_p2_is_compared_on_pa_mpjpe_only(figures, known):
    table = published_table(figures, [on_h36m(input_2d="sh-finetuned")], known, "h36m", "martinez")
    shown = {(r[2], r[3]): r[4] for r in table.rows if r[1] == "all-actions model"}
    assert shown["SH fine-tuned", "PA-MPJPE, mm"].startswith("36.0") and shown["SH fine-tuned", "MPJPE, mm"].startswith("45.9") and shown["ground truth", "MPJPE, mm"] == "needs data"


def of_pair(method, variant, seed, mpjpe, **changes):
    "A record of train_poseaug on cmu; `asked` is the seed that it was asked for."
    parameters = dict(dataset="cmu", plan="quick", seed=changes.pop("asked", seed)) | changes.pop("parameters", {})
    return a_record(**dict(method=method, variant=variant, seed=seed, metrics=dict(mpjpe=mpjpe, pa_mpjpe=mpjpe / 2), protocol="cmu-16", notebook="nbs/train_poseaug.ipynb", notebook_parameters=parameters) | changes)

ALONE, WITH = ("semgcn", "poseaug-units-standard"), ("poseaug", "semgcn-short")

def summary(found, known, **wanted):
    "The one summary table with these properties, and its row for SemGCN on the true 2D."
    about, = (s for s in summaries(found, ["poseaug", "martinez", "nobody"]) if all(getattr(s, k) == v for k, v in (dict(train_data="cmu") | wanted).items()))
    table = summary_table(found, about, known)
    return table, dict(zip([f"{a}|{b}" if b == "change" else b for a, b in zip(("", *table.columns), table.columns)], next(row for row in table.rows if row[:2] == ("semgcn", "gt"))))

def test_a_summary_sets_pairs_side_by_side(known):
    "Changes are those of single seeds; the spread of 20 mm between seeds is not theirs."
    found = [of_pair(*ALONE, s, m) for s, m in ((0, 60.), (1, 80.), (2, 70.))] + [of_pair(*WITH, s, m) for s, m in ((0, 55.), (1, 74.), (3, 10.))]
    table, row = summary(found, known)
    assert row == {"lifter": "semgcn", "2D input": "gt", "alone, last": "70.0 ± 10.0", "alone, best on validation": "–", "with PoseAug, last": "46.3 ± 32.9", "with PoseAug, last|change": "−5.5 ± 0.7",
                   "with PoseAug, best on validation": "–", "with PoseAug, best on validation|change": "–", "n": "3", "seeds": "alone: 0, 1, 2; with PoseAug: 0, 1, 3"}
    assert [r[:2] for r in table.rows] == [(lifter, i) for lifter in ("mlp", "semgcn", "stgcn", "videopose") for i in ("gt", "cpn-like", "detectron-like", "hrnet-like")]
    assert all(r[2] == r[4] == "needs data" and r[-2:] == ("0", "–") for r in table.rows if r[:2] != ("semgcn", "gt"))
    assert table.title == "PoseAug, short runs, plan quick: trained on CMU motion capture, tested on CMU motion capture" and table.grey == ()
    data = [dict(zip(table.data_columns, r)) for r in table.data_rows]
    assert [(d["step"], d["mpjpe_mean"], d["pa_mpjpe_mean"], d["n"], d["seeds"]) for d in data] == [("alone", "70.000", "35.000", "3", "0, 1, 2"), ("with PoseAug", "46.333", "23.167", "3", "0, 1, 3")]

def test_a_summary_holds_every_rule_that_chooses_an_epoch(known):
    held = dict(parameters=dict(validation="A"))
    chosen = [of_pair(*step, 0, m, selection=s, **held) for step, s, m in ((ALONE, "last", 60.), (ALONE, "best-on-validation", 59.), (WITH, "last", 55.), (WITH, "best-on-validation", 51.))]
    released = [of_pair(*WITH, 0, 58., fidelity="release"), of_pair(*WITH, 0, 50., fidelity="release", selection="best-on-test", protocol="cmu-16-best-on-test"), of_pair(*ALONE, 0, 62.)]
    _, row = summary(chosen + released, known, validation="A")
    assert (row["alone, best on validation"], row["with PoseAug, best on validation"], row["with PoseAug, best on validation|change"], row["with PoseAug, last|change"]) == ("59.0", "51.0", "−8.0", "−5.0")
    assert not any("released" in column for column in row)
    table, row = summary(chosen + released, known, validation="")
    assert (row["with PoseAug as released, last"], row["with PoseAug as released, best on test"], row["with PoseAug as released, best on test|change"], row["with PoseAug, last"]) == ("58.0", "50.0", "−12.0", "needs data")
    assert [table.columns[k] for k in table.grey] == ["with PoseAug as released, best on test", "change"] and table.html.count("grey") == 2 * 17 and "*50.0*" in table.markdown and "*58.0*" not in table.markdown
    incomplete, row = summary(chosen[:3], known, validation="A")
    assert row["with PoseAug, best on validation"] == "needs data"

def test_what_is_another_run_stays_out_of_a_summary(known):
    "Other epochs, another notebook, another protocol, another test set, an older run of the same names; a control has its own column."
    found = [of_pair(*ALONE, 0, 60.), of_pair(*WITH, 0, 55.)]
    others = [of_pair(*WITH, 0, 1., epochs=9, parameters=dict(epochs=9)), of_pair(*WITH, 0, 2., parameters=dict(baseline_epochs=9), numbers=dict(baseline_epochs=9)), of_pair(*WITH, 0, 3., train_fingerprint="old", created="2020-01-31T12:00:00Z"),
              of_pair(*ALONE, 0, 4., notebook="nbs/train_semgcn.ipynb", epochs=7), of_pair(*WITH, 0, 5., protocol="cmu")]
    table, row = summary(found + others, known, test_data="cmu")
    assert (row["alone, last"], row["with PoseAug, last"], row["n"], row["seeds"]) == ("60.0", "55.0", "1", "0") and any(note.startswith("3 further runs") for note in table.notes)
    across = [replace(r, test_data="hdm05", protocol="hdm05-16", metrics=dict(mpjpe=2 * r.metrics["mpjpe"])) for r in found]
    assert summary(found + across, known, test_data="hdm05")[1]["with PoseAug, last|change"] == "−10.0"
    control = of_pair("poseaug", "semgcn-short-real", 0, 58.)
    assert "as long alone, last" not in row and summary(found + [control], known)[1]["as long alone, last|change"] == "−2.0"

def test_a_summary_of_3dpw_is_of_pa_mpjpe(known):
    "The paper quotes that alone, and the set has a protocol of its own."
    there = dict(train_data="h36m", test_data="pw3d", protocol="poseaug-3dpw", plan="paper", parameters=dict(dataset="h36m", plan="paper"))
    found = [of_pair("semgcn", "poseaug", 0, 180., **there), of_pair("poseaug", "semgcn", 0, 150., **there), of_pair("poseaug", "semgcn", 1, 2., **(there | dict(protocol="pw3d-h36m16")))]
    table, row = summary(found, known, train_data="h36m", test_data="pw3d")
    assert (row["alone, last"], row["with PoseAug, last"], row["with PoseAug, last|change"]) == ("90.0", "75.0", "−15.0") and table.notes[0].startswith("PA-MPJPE in mm")
    assert summary(found, known, train_data="h36m", test_data="h36m")[0].notes[0].startswith("MPJPE in mm")

def test_a_run_that_began_again_keeps_its_place(known):
    found = [of_pair(*ALONE, s, 60. + s) for s in (0, 1)] + [of_pair(*WITH, 1, 50., asked=0), of_pair(*WITH, 1, 52.)]
    row = summary(found, known)[1]
    assert row["with PoseAug, last|change"] == "−9.5 ± 0.7" and row["seeds"] == "alone: 0, 1; with PoseAug: 1 for 0, 1" and row["n"] == "2"
    assert len({record_path(r) for r in found}) == 4

def test_of_two_runs_that_were_asked_for_one_seed_the_newer_counts(known):
    "The first turned all bodies alike, which was let pass; the second was asked to begin again then."
    found = [of_pair(*WITH, 0, 58., created="2026-01-31T12:00:00Z"), of_pair(*WITH, 1, 50., asked=0, created="2026-02-01T12:00:00Z"), of_pair(*WITH, 1, 52.)]
    run, = runs(found)
    assert run.n == 2 and sorted(run.values("mpjpe")) == [50., 52.] and runs(reversed(found))[0].records == run.records

def test_an_option_that_was_withdrawn_makes_no_other_run():
    old, new, other = (of_pair(*WITH, seed, 50., numbers=dict(plan={}, options=options)) for seed, options in ((0, dict(pool=4096, least_turns=0.01)), (1, dict(pool=4096)), (1, dict(pool=64))))
    assert [r.n for r in runs([old, new])] == [2] and [r.n for r in runs([old, other])] == [1, 1] and record_path(old).name.replace("-s0-", "-s1-")[:-13] == record_path(new).name[:-13]
    assert [r.n for r in runs(replace(r, method="martinez") for r in (old, new))] == [1, 1]

def test_the_published_summaries_are_there_before_any_record(figures, known):
    tables = {t.name: t for t in all_tables([], figures, known) if t.name.startswith("summary")}
    assert list(tables) == [f"summary-poseaug-h36m-{data}-paper-as_released" for data in ("h36m", "mpi_inf_3dhp", "pw3d")]
    for table in tables.values(): assert len(table.rows) == 16 and {cell for row in table.rows for cell in row[2:]} == {"needs data", "–", "0"} and table.data_rows == ()

def test_the_release_of_poseaug_is_compared_with_the_epoch_chosen_as_it_did(figures, known):
    "Its best epochs on the test set are not what our last epoch is."
    after = next(f for f in figures if f.file == "poseaug" and f.variant == "SemGCN PoseAug (released code)" and f.dataset == "H36M" and f.input_2d == "HR")
    before = next(f for f in figures if f.file == "poseaug" and f.variant == "SemGCN baseline (released code)" and f.dataset == "3DHP" and f.input_2d == "HR")
    run = lambda **changes: runs([on_h36m(**dict(method="poseaug", variant="semgcn", input_2d="hrnet", protocol="poseaug-h36m-best-on-test", selection="best-on-test", fidelity="release") | changes)])[0]
    assert comparable(after, run(), known) and not comparable(after, run(protocol="poseaug-h36m", selection="last"), known)
    alone = dict(method="semgcn", variant="poseaug", test_data="mpi_inf_3dhp", selection="last", fidelity="paper")
    assert comparable(before, run(protocol="poseaug-3dhp", **alone), known) and not comparable(before, run(protocol="poseaug-3dhp-best-on-test", **alone), known)


def test_seeds_are_one_row_and_other_runs_are_not():
    table = measured_table([a_record(seed=s, metrics=dict(mpjpe=m)) for s, m in ((0, 40.0), (1, 42.0), (2, 44.0))] + [a_record(epochs=9), a_record(train_fingerprint="new")], "cmu")
    cells = Counter((r[table.columns.index("MPJPE, mm")], r[table.columns.index("n")]) for r in table.rows)
    assert cells == {("42.0 ± 2.0", "3"): 1, ("43.0", "1"): 2}
    assert spread([43.04]) == "43.0" and spread([]) == "–"


def test_help_that_is_not_in_the_paper_is_marked():
    "Where a paper's module says that options go beyond the paper, so does every row of them."
    own = lambda variant, fidelity="paper": a_record(method="chen", variant=variant, fidelity=fidelity, numbers=dict(options={f.name: getattr(VARIANTS[variant], f.name) for f in fields(VARIANTS[variant])}))
    table = measured_table([own("short-run"), own("short-unguided"), own("paper"), own("short-run", "release"), a_record()], "cmu")
    assert sorted(row[1].split(" †")[0] for row in table.rows) == ["paper", "paper", "short-run", "short-run", "short-unguided"]
    assert len({row[1] for row in table.rows if "†" in row[1]}) == 3 and all(("†" in row[1]) == row[1].startswith("short") for row in table.rows)
    assert any(note.startswith("†") and "not in the paper: a price on limbs" in note for note in table.notes) and any(note.startswith("†") and "true 3D poses" in note for note in table.notes)

def test_tables_are_the_same_bytes_whatever_the_order(tmp_path, figures, known):
    found = [a_record(seed=s, test_data=d) for s in range(3) for d in ("cmu", "hdm05", "other")] + [on_h36m()]
    first = {p.name: p.read_bytes() for p in write_tables(all_tables(found, figures, known), tmp_path)}
    (tmp_path / "measured-gone.csv").write_text("old")
    (tmp_path / "mine.txt").write_text("kept")
    write_tables(all_tables(found[::-1], figures, known), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == first | {"mine.txt": b"kept"}
    for table in all_tables(found, figures, known):
        lines = list(csv.reader((tmp_path / f"{table.name}.csv").read_text(encoding="utf-8").splitlines()))
        assert len({len(line) for line in lines}) == 1
        assert all(len(row) == len(table.columns) for row in table.rows)
        assert (tmp_path / f"{table.name}.html").read_text(encoding="utf-8").count("<tr>") == len(table.rows) + bool(table.rows)


def test_text_cannot_break_a_table(figures, known):
    table = measured_table([a_record(variant="a|b <script>", protocol_line="p | q\nr")], "cmu")
    assert "<script>" not in table.html and "a\\|b" in table.markdown and all(line.count(" | ") >= 5 for line in table.markdown.splitlines() if line.startswith("| "))


def test_results_notebook_with_and_without_records(tmp_path):
    source = project_root() / "results"
    for name in ("reference", "names.csv"): os.symlink(source / name, tmp_path / name)
    import nbformat
    notebook = nbformat.read(project_root() / "nbs" / "results.ipynb", 4)
    assert [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    code = "\n".join(c.source.replace('results_dir = ""', f"results_dir = {str(tmp_path)!r}") for c in notebook.cells if c.cell_type == "code")
    environment = {k: v for k, v in os.environ.items() if k != "IN_TEST"} | dict(MPLBACKEND="Agg", OMP_NUM_THREADS="1")
    for count in (0, 2):
        for seed in range(count): write(a_record(seed=seed), tmp_path / "runs")
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=environment, cwd=tmp_path, timeout=120)
        text = (tmp_path / "tables" / "index.md").read_text(encoding="utf-8")
        assert "needs data" in text and ("43.0 ± 0.0" in text) == bool(count)
        assert (tmp_path / "figures" / "measured-cmu.png").exists() == bool(count)


def test_scoring_a_finished_run_again_leaves_its_record(tmp_path):
    path = write(a_record(created="2026-01-01T00:00:00Z"), tmp_path)
    before = path.read_bytes()
    assert write(a_record(created="2027-01-01T00:00:00Z", peak_memory_bytes=1), tmp_path) == path and path.read_bytes() == before
    write(a_record(created="2027-01-01T00:00:00Z", seconds=1.0), tmp_path)
    assert path.read_bytes() != before
