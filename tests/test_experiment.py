"""What train notebooks do, run without a notebook: records, several processes, checkpoints chosen on other people, other data sets."""
import json
from dataclasses import asdict, replace

import pytest
import torch
from mocap_pack import make_pack

from poseprojects import zoo
from poseprojects.data import cmu, mpii, synthetic
from poseprojects.experiment import Experiment, Parameters, score_lines
from poseprojects.papers import chen, lcn, martinez
from poseprojects.results.records import read, read_all
from poseprojects.storage import InputError
from poseprojects.train.evaluation import evaluate


@pytest.fixture(scope="module")
def pack(tmp_path_factory): return make_pack(tmp_path_factory.mktemp("data") / "cmu", subjects=(*cmu.SUBJECTS["train"], *cmu.SUBJECTS["test"]), frames=160)


@pytest.fixture
def places(tmp_path, monkeypatch):
    "Records, runs and caches of this test alone; not a notebook's test, in which nothing is kept."
    for name in ("RESULTS", "RUNS", "CACHE"): monkeypatch.setenv(f"POSEPROJECTS_{name}", str(tmp_path / name.lower()))
    monkeypatch.delenv("IN_TEST", raising=False)
    return tmp_path


def run(paper, pack, **parameters):
    "A run from its parameters to its records."
    made = Experiment(paper, dict(dataset="cmu", data_root=str(pack), plan="quick", epochs=1, batch_size=64, gpus=0) | parameters)
    made.load(); made.trivial(); made.build(); made.fit(); made.evaluate()
    return made, made.record()


def files(places): return {p: p.read_bytes() for p in (places / "results").rglob("*.json")}


def test_records_of_a_run_and_of_what_learns_nothing(places, pack):
    made, names = run(martinez, pack, variant="width-512")
    records = {r.method: r for r in read_all(places / "results" / "runs")}
    assert set(records) == {"martinez", "mean_pose", "constant_depth"} and len(names) == 1
    ours = records["martinez"]
    assert ours.notebook == "nbs/train_martinez.ipynb" and ours.notebook_parameters["variant"] == "width-512" and ours.notebook_parameters["learning_rate"] is None
    assert "out_dir" not in ours.notebook_parameters and "also_test" not in ours.notebook_parameters
    assert ours.steps == made.history.steps == len(made.train) // 64 and ours.parameters == sum(p.numel() for p in made.method.parameters())
    assert records["mean_pose"].steps == records["mean_pose"].parameters == 0 and records["mean_pose"].protocol_line == ours.protocol_line


def test_a_run_leaves_a_lifter_that_can_be_used(places, pack):
    made, _ = run(martinez, pack, variant="width-512", seed=3)
    path, = (places / "runs").rglob("lifter.safetensors")
    lifter = zoo.load("martinez", path.parent)
    assert path.parent == made.out_dir and lifter.about == {"variant": "width-512", "plan": json.loads(json.dumps(asdict(made.plan))), "seed": 3, "validation": ""}
    assert lifter.fingerprint == made.train.fingerprint and all(torch.equal(a, b) for a, b in zip(lifter.method.state_dict().values(), made.method.state_dict().values()))


def test_what_learns_nothing_is_not_scored_again(places, pack, monkeypatch):
    "Only a record of the same data counts; a damaged one is replaced."
    made = Experiment(martinez, dict(dataset="cmu", data_root=str(pack), gpus=0))
    made.load()
    before, asked = made.trivial(), []
    monkeypatch.setattr("poseprojects.experiment.evaluate", lambda predictor, *arguments, original=evaluate: asked.append(type(predictor).__name__) or original(predictor, *arguments))
    assert {n: s["mpjpe"] for n, s in made.trivial().items()} == {n: s["mpjpe"] for n, s in before.items()} and asked == [] and len(files(places)) == 2
    damaged, = (path for path in files(places) if "mean_pose" in path.parts)
    damaged.write_text("{")
    assert made.trivial()["mean pose"]["mpjpe"] == before["mean pose"]["mpjpe"] and asked == ["MeanPose"] and read(damaged).method == "mean_pose"
    made.test = made.test.select(torch.arange(0, len(made.test), 2))
    made.trivial()
    assert sorted(asked) == ["ConstantDepth", "MeanPose", "MeanPose"]


def test_what_learns_nothing_is_recorded_once_for_all_methods(places, pack):
    run(martinez, pack, variant="width-512")
    before = files(places)
    run(lcn, pack, variant="channels-32")
    assert all((places / p).read_bytes() == content for p, content in before.items())
    assert sorted(r.method for r in read_all(places / "results" / "runs")) == ["constant_depth", "lcn", "martinez", "mean_pose"]


def test_a_finished_run_is_only_scored_again(places, pack):
    run(martinez, pack, variant="width-512")
    checkpoint, = (places / "runs").rglob("last.pt")
    before, records = checkpoint.read_bytes(), files(places)
    run(martinez, pack, variant="width-512")
    assert checkpoint.read_bytes() == before and files(places) == records


def test_the_release_of_lcn_has_its_own_protocols(places, pack):
    made, names = run(lcn, pack, variant="channels-32", fidelity="release")
    ours = {r.protocol: r for r in read_all(places / "results" / "runs") if r.method == "lcn"}
    assert set(ours) == {"cmu-lcn-p1", "cmu-lcn-p2", "cmu-lcn-p2-rotation", "cmu-lcn-root-aligned", "cmu-lcn-p1-last"} and len(names) == 5
    assert ours["cmu-lcn-p1"].selection == "best-on-test" and ours["cmu-lcn-p1-last"].selection == "last"
    assert all("true box and root depth" in r.protocol_line for r in ours.values())
    # aligning with a reflection allowed cannot be worse than without
    assert ours["cmu-lcn-p2"].metrics["pa_mpjpe_reflected"] <= ours["cmu-lcn-p2-rotation"].metrics["pa_mpjpe"] + 1e-9


def test_two_processes_give_the_record_of_one(places, pack):
    one, _ = run(lcn, pack, variant="channels-32")
    alone = one.results[one.protocols[0]]["mpjpe"]
    two = Experiment(lcn, dict(dataset="cmu", data_root=str(pack), plan="quick", epochs=1, batch_size=64, variant="channels-32", workers=2, out_dir=str(places / "two")))
    two.load(); two.build(); two.fit()
    assert two.evaluate()["mpjpe"] == pytest.approx(alone, rel=5e-3)
    assert len(one.history.first_losses) == len(two.history.first_losses) == 20
    for a, b in zip(one.history.first_losses, two.history.first_losses): assert a["mse"] == pytest.approx(b["mse"], abs=1e-4)


def test_the_best_epoch_on_held_out_people(places, pack):
    held = cmu.SUBJECTS["train"][0]
    made, _ = run(martinez, pack, variant="width-512", epochs=2, validation=held)
    weights = {k: v.clone() for k, v in made.method.state_dict().items()}
    best = made.best()
    assert best["mpjpe"] > 0 and all(torch.equal(v, made.method.state_dict()[k]) for k, v in weights.items()) # the last epoch's are back
    assert {r.selection for r in read_all(places / "results" / "runs") if r.method == "martinez"} == {"last", "best-on-validation"}
    assert held not in {made.train.subject_names[k] for k in made.train.subject.unique().tolist()}


def test_a_release_that_chose_on_test_does_so_and_says_so(places, pack, monkeypatch):
    peek = cmu.PROTOCOL.but("cmu-peek", selection="best-on-test")
    monkeypatch.setattr(lcn, "scoring", lambda protocol, config, fidelity: (peek,))
    made, _ = run(lcn, pack, variant="channels-32", epochs=2)
    rows = [row["validation/mpjpe"] for row in made.history.rows]
    record, = (r for r in read_all(places / "results" / "runs") if r.method == "lcn")
    assert record.selection == "best-on-test" and record.metrics["mpjpe"] == pytest.approx(min(rows), rel=1e-5)


def test_machines_that_help_write_nothing(places, pack):
    made, _ = run(martinez, pack, variant="width-512")
    before = files(places)
    made.devices, made.given = replace(made.devices, nodes=2, rendezvous="localhost:29400"), replace(made.given, seed=5)
    made.history.main = False
    assert made.record() == [""] and files(places) == before


def test_the_detector_is_named_in_the_protocol(places, pack):
    made = Experiment(martinez, dict(dataset="cmu", data_root=str(pack), input_2d="cpn-like", gpus=0))
    assert "2D of the detector model cpn-like" in str(made.protocols[0]) and "true 2D" not in str(made.protocols[0])
    assert "true 2D" in str(Experiment(martinez, dict(dataset="cmu", gpus=0)).protocols[0])


@pytest.mark.parametrize("wrong, sentence", [
    (dict(dataset="cmo"), "dataset 'cmo' is not known"), (dict(plan="long"), "plan 'long' is not known; choose one of paper, quick"), (dict(variant="k9"), "variant 'k9' is not known"),
    (dict(fidelity="exact"), "choose one of paper, release"), (dict(seed=True), "is no seed"), (dict(seed=-1), "is no seed"), (dict(epochs=0), "epochs = 0"), (dict(gpus=99), "this machine has"),
    (dict(workers=0), "workers"), (dict(input_2d="cpn"), "cpn-like"), (dict(epoch=3), "did you mean epochs"), (dict(validation="01", fidelity="release"), "leave one of the two out"), (dict(also_test="hdm55"), "dataset 'hdm55' is not known")])
def test_wrong_parameters_get_one_sentence_before_data_is_read(wrong, sentence, monkeypatch):
    monkeypatch.setattr(cmu, "load", lambda *a, **k: pytest.fail("data was read"))
    with pytest.raises(InputError, match=sentence) as caught: Experiment(lcn, dict(dataset="cmu") | wrong)
    assert "\n" not in str(caught.value)


def test_validation_with_strangers_is_refused(places, pack):
    made = Experiment(martinez, dict(dataset="cmu", data_root=str(pack), validation="nobody", gpus=0))
    with pytest.raises(InputError, match="choose some, not all"): made.load()


def test_parameters_are_read_by_name(): assert Parameters.of({"seed": 4, "something": 1}) == Parameters(seed=4)


def test_lines_of_scores(places, pack):
    made, _ = run(martinez, pack, variant="width-512")
    text = score_lines(made.results[made.protocols[0]], made.trivial())
    assert "mpjpe" in text and "of mean pose's" in text and "MPJPE by joint: pelvis 0" in text


def test_runs_with_different_second_sources_are_different_runs(places, pack, monkeypatch):
    "What the poses of the other set were is part of a run, so one record does not take the other's place."
    mpii.example(places / "photographs", "array")
    photographs = mpii.load("all", places / "photographs")
    monkeypatch.setattr(mpii, "load", lambda *_: photographs)
    monkeypatch.setattr(synthetic, "load", lambda *_, original=synthetic.load: original("train", samples=8000))
    monkeypatch.setitem(chen.VARIANTS, "tiny", replace(chen.VARIANTS["short-source"], width=8, blocks=1, judge_blocks=1))
    names = [run(chen, pack, variant="tiny", batch_size=16, more_2d=more)[1][0] for more in ("mpii", "synthetic")]
    records = {r.notebook_parameters["more_2d"]: r for r in read_all(places / "results" / "runs") if r.method == "chen" and r.protocol == "cmu"}
    assert names[0] != names[1] and set(records) == {"mpii", "synthetic"}
    assert records["mpii"].numbers["more_2d"] == {"mpii": photographs.fingerprint}
    run(martinez, pack, variant="width-512")
    assert all("more_2d" not in r.numbers for r in read_all(places / "results" / "runs") if r.method == "martinez")


def test_people_without_the_joints_that_are_read_are_refused_before_training():
    "A network knows the joints that it was trained on by their numbers."
    with pytest.raises(InputError, match="lcn .*reads neck_nose, which pw3d does not have; leave pw3d out"): Experiment(lcn, dict(dataset="cmu", gpus=0, also_test="hdm05, pw3d"))
    assert set(Experiment(martinez, dict(dataset="cmu", gpus=0, also_test="hdm05, mpi_inf_3dhp")).elsewhere) == {"hdm05", "mpi_inf_3dhp"}


def test_a_set_without_3d_says_where_it_is_scored():
    given = dict(dataset="mpii", variant="short-mpii", gpus=0)
    assert "scored on nothing; name data sets with 3D poses in also_test" in str(Experiment(chen, given))
    assert "scored on cmu, hdm05 only" in str(Experiment(chen, given | dict(also_test="cmu,hdm05")))


def test_sets_without_3d_are_no_test():
    with pytest.raises(InputError, match="also_test = 'mpii': mpii has no 3D poses to score against; leave mpii out"): Experiment(martinez, dict(dataset="cmu", gpus=0, also_test="mpii"))


def test_epochs_cannot_be_chosen_without_3d(places, monkeypatch):
    mpii.example(places / "mpii", "array")
    photographs = mpii.load("all", places / "mpii")
    monkeypatch.setattr(mpii, "load", lambda *_: replace(photographs, subject_names=("a", "b"), subject=torch.arange(len(photographs)) % 2))
    with pytest.raises(InputError, match="no 3D poses to score an epoch on"): Experiment(chen, dict(dataset="mpii", variant="short-mpii", gpus=0, validation="a")).load()
