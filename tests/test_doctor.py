"The doctor finds every common accident, and none in sound data: made-up people, the embedded set with several seeds, real recordings of walking, sitting and lying."
import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import poseprojects.data
from poseprojects.camera import camera_to_world
from poseprojects.data import cmu, hdm05, synthetic
from poseprojects.data.base import WorldClip, clips, render, save
from poseprojects.data.diagnosis import Belief, Finding, Report, Specimen, as_poses, diagnose, doctor, examine, main, specimens
from poseprojects.data.safe import dumps_python2
from poseprojects.data.sources import example_people
from poseprojects.skeleton import COCO17, H36M16, H36M17, MPII16, SH16, SKELETONS, conversion, convert
from poseprojects.storage import InputError, shared_data

pytestmark = pytest.mark.xdist_group("doctor")
CMU, HDM05 = shared_data("cmu"), shared_data("hdm05")
TO_COCO = conversion(H36M17, COCO17, {"nose": {"neck_nose": 1.}, **{f"{side}_{part}": {"neck_nose": .6, "head": .4, f"{side}_shoulder": out, f"{other}_shoulder": -out}
                                                                    for side, other in (("left", "right"), ("right", "left")) for part, out in (("eye", .09), ("ear", .2))}})
TO_16 = [j for j, name in enumerate(H36M17.joints) if name != "neck_nose"]


def in_world(poses, camera=1):
    "Unbroken recordings of one camera: world and camera frame."
    mine = poses.select(poses.camera_id == camera)
    world = camera_to_world(mine.pose_3d.double(), mine.cameras[mine.camera_id.long()].to(torch.float64)).numpy()
    return [(world[a:z], mine.pose_3d[a:z].double().numpy()) for a, z in clips(mine).tolist()]


def made_up():
    world = [clip.pose for clip in example_people(H36M17, 200, ("S1", "S2"), ("a", "b"))]
    seen = render([WorldClip(w, "S", "a", f"{k}", np.arange(len(w))) for k, w in enumerate(world)], cmu.cameras(), H36M17, name="people", frame_rate=50.)
    return in_world(seen), 50.


def embedded(seed):
    actions = [a for a, n in zip(synthetic.ACTIONS, synthetic.ACTION_NAMES) if n in ("walking", "sitting down", "sitting on the floor", "kneeling", "bending", "boxing", "jumping jacks", "standing and talking", "phoning")]
    bodies = [synthetic.record(s, a, 160, seed=seed).points[:, :17] for s in "AF" for a in actions]
    seen = render([WorldClip(b, "S", "a", f"{k}", np.arange(len(b))) for k, b in enumerate(bodies)], synthetic.calibrated_cameras(), H36M17, name="people", frame_rate=50.)
    return in_world(seen), 50.


SOURCES = {"made up": made_up, "embedded, seed 0": lambda: embedded(0), "embedded, seed 5": lambda: embedded(5), "cmu": lambda: (in_world(cmu.load("test")), 60.), "hdm05": lambda: (in_world(hdm05.load("test")), 60.)}
_made = {}


@pytest.fixture(params=SOURCES)
def people(request):
    "Recordings (world, camera frame) and their rate."
    if request.param == "cmu": request.getfixturevalue("cmu_root")
    if request.param == "hdm05": request.getfixturevalue("hdm05_root")
    if request.param not in _made: _made[request.param] = SOURCES[request.param]()
    return _made[request.param]


def problems(recordings, frame="world", rate=50., skeleton=H36M17):
    return [f.about for f in diagnose(Specimen("x", recordings, Belief(skeleton, frame, rate)))[0] if f.severity == "problem"]


# ---------- nothing is found where nothing is wrong

def test_sound_data(people):
    recordings, rate = people
    assert problems([w for w, _ in recordings], "world", rate) == []
    assert problems([c for _, c in recordings], "camera", rate) == []


def test_sound_recordings_one_by_one(people):
    "Also those on which somebody lies, sits or kneels all the time."
    recordings, rate = people
    for k, (world, camera) in enumerate(recordings): assert (k, problems([world], "world", rate), problems([camera], "camera", rate)) == (k, [], [])


def test_sound_in_other_orders(people):
    recordings, rate = people
    assert problems([TO_COCO(w) for w, _ in recordings], "world", rate, COCO17) == []
    assert problems([convert(w, H36M17, H36M16) for w, _ in recordings], "world", rate, H36M16) == []
    assert problems([convert(w, H36M17, SH16) for w, _ in recordings], "world", rate, SH16) == []


@pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=SKELETONS)
def test_every_joint_set_is_known_by_itself(skeleton):
    found, bones = diagnose(Specimen("x", [clip.pose for clip in example_people(skeleton, 120, ("S1", "S2"))], Belief(None, "world", 50.)))
    assert [f for f in found if f.severity == "problem"] == [] and len(bones) == len(skeleton.bones)
    order, = [f for f in found if f.about in ("joint-order", "joint-count")]
    assert skeleton.name in order.text


def test_y_up_is_a_world_too(people):
    recordings, rate = people
    assert problems([w[..., [0, 2, 1]] * (1, 1, -1) for w, _ in recordings], "world", rate) == []


def test_noise_of_a_detector_is_no_tempo(people):
    "Jitter of 8 mm in every coordinate must not look like few frames a second."
    recordings, rate = people
    noise = np.random.default_rng(0)
    assert "frame-rate" not in problems([w + noise.normal(0, 0.008, w.shape) for w, _ in recordings], "world", rate)


# ---------- accidents, alone and two by two

ACCIDENTS = { # what is done to world and camera poses -> what must be found
    "16 joints": (lambda w, c: w[:, TO_16], "joint-count"), "coco order": (lambda w, c: TO_COCO(w), "joint-order"), "millimetres": (lambda w, c: 1000 * w, "units"),
    "camera frame": (lambda w, c: c, "frame"), "axis negated": (lambda w, c: w * (-1, 1, 1), "mirrored"), "sides exchanged": (lambda w, c: w[:, list(H36M17.mirror)], "mirrored"), "10 fps": (lambda w, c: w[::5], "frame-rate")}


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_accident(people, accident):
    recordings, rate = people
    change, about = ACCIDENTS[accident]
    assert problems([change(w, c) for w, c in recordings], "world", rate) == [about]


COMBINED = {
    "16 joints in millimetres": (lambda w, c: 1000 * w[:, TO_16], {"joint-count", "units"}), "coco order, mirrored": (lambda w, c: TO_COCO(w * (1, -1, 1)), {"joint-order", "mirrored"}),
    "camera frame in millimetres": (lambda w, c: 1000 * c, {"units", "frame"}), "coco order at 10 fps": (lambda w, c: TO_COCO(w)[::5], {"joint-order", "frame-rate"}),
    "camera frame, mirrored": (lambda w, c: c * (-1, 1, 1), {"frame", "mirrored"}), "centimetres at 10 fps": (lambda w, c: 100 * w[::5], {"units", "frame-rate"}),
    "coco order of 10 fps in millimetres, camera frame": (lambda w, c: 1000 * TO_COCO(c)[::5], {"joint-order", "frame-rate", "units", "frame"})}


@pytest.mark.parametrize("name", COMBINED)
def test_two_accidents_at_once(people, name):
    recordings, rate = people
    change, about = COMBINED[name]
    assert set(problems([change(w, c) for w, c in recordings], "world", rate)) == about


def test_one_recording_among_many():
    recordings, rate = made_up()
    world = [w for w, _ in recordings]
    found = diagnose(Specimen("x", [*world, 1000 * world[0]], Belief(H36M17, "world", rate)))[0]
    assert "1 of 5 recordings are in millimetres and the others in metres, the first is number 4" in next(f.text for f in found if f.about == "units")
    found = diagnose(Specimen("x", [world[0], world[1] * (-1, 1, 1), *world[2:]], Belief(H36M17, "world", rate)))[0]
    assert "1 of 4 recordings are mirrored, the first is number 1" in next(f.text for f in found if f.about == "mirrored")


@pytest.mark.parametrize("factor, unit, advice", [(1000, "millimetres", "divide by 1000"), (100, "centimetres", "divide by 100"), (1 / 0.0254, "inches", "0.0254"), (0.001, "kilometres", "multiply by 1000"), (8, None, "scale")])
def test_units_and_their_remedies(factor, unit, advice):
    world = [factor * w for w, _ in made_up()[0]]
    finding, = [f for f in diagnose(Specimen("x", world, Belief(H36M17, "world", 50.)))[0] if f.about == "units"]
    assert finding.severity == "problem" and finding.numbers["unit"] == unit and advice in finding.text


def test_every_problem_has_numbers_and_a_remedy():
    recordings, rate = made_up()
    for change, about in ACCIDENTS.values():
        finding, = [f for f in diagnose(Specimen("x", [change(w, c) for w, c in recordings], Belief(H36M17, "world", rate)))[0] if f.severity == "problem"]
        assert finding.numbers and any(word in finding.text for word in ("convert", "divide", "take them", "swap", "say the true rate")) and len(finding.text) < 600


def test_what_nobody_said_is_not_held_against_it():
    "Without beliefs: 16 joints, COCO's order and few frames are warnings, metres and sides are problems still."
    recordings, _ = made_up()
    told = lambda change: {(f.severity, f.about) for f in diagnose(Specimen("x", [change(w, c) for w, c in recordings], Belief()))[0] if f.severity in ("problem", "warning")}
    assert told(lambda w, c: w) == told(lambda w, c: c) == set()
    assert told(lambda w, c: w[:, TO_16]) == {("warning", "joint-count")} and told(lambda w, c: TO_COCO(w)) == {("warning", "joint-order")}
    assert told(lambda w, c: w[::5]) == {("warning", "frame-rate")} and told(lambda w, c: 1000 * w) == {("problem", "units")} and told(lambda w, c: w * (-1, 1, 1)) == {("problem", "mirrored")}


def test_values_nobody_can_use():
    world = [w.copy() for w, _ in made_up()[0]]
    world[0][3, 2] = np.nan
    world[1][5:9] = 0
    found = diagnose(Specimen("x", world, Belief(H36M17, "world", 50.)))[0]
    assert [(f.severity, f.numbers["poses"]) for f in found if f.about == "values"] == [("problem", 1), ("warning", 4)]
    stretched = [np.repeat(w[::5], 5, 0) for w, _ in made_up()[0]]
    assert any("repeat the frame before" in f.text for f in diagnose(Specimen("x", stretched, Belief(H36M17, "world", 50.)))[0])
    nothing = diagnose(Specimen("x", [np.full((5, 17, 3), np.nan)], Belief()))[0]
    assert nothing[-1].text == "no pose is left to look at"


def test_root_relative_poses():
    root = [w - w[:, :1] for w, _ in made_up()[0]]
    assert problems(root, None) == [] and problems(root, "root") == [] and problems(root, "camera") == ["frame"]


def test_unknown_joints_are_said_to_be_unknown():
    shuffled = [w[:, np.random.default_rng(1).permutation(17)] for w, _ in made_up()[0]]
    found = diagnose(Specimen("x", shuffled, Belief()))[0]
    assert [(f.severity, f.about) for f in found if f.severity != "note"] == [("warning", "joint-order")] and "not known" in found[-1].text
    assert diagnose(Specimen("x", [np.random.default_rng(0).random((50, 13, 3))], Belief()))[0][-1].severity == "warning"


# ---------- 2D beside 3D

def pair(change_3d=lambda c: c, change_2d=lambda p: p, frame="camera"):
    world = [clip.pose for clip in example_people(H36M17, 150, ("S1",), ("a", "b", "c"))]
    walked = [w + np.linspace(0, 1, len(w))[:, None, None] * (1.5, .5, 0) for w in world]
    seen = render([WorldClip(w, "S", "a", f"{k}", np.arange(len(w))) for k, w in enumerate(walked)], cmu.cameras(), H36M17, name="x", frame_rate=50.)
    seen = seen.select(seen.camera_id == 1)
    parts = [slice(a, z) for a, z in clips(seen).tolist()]
    specimen = Specimen("x", [change_3d(seen.pose_3d[p].double().numpy()) for p in parts], Belief(H36M17, frame, 50.), [change_2d(seen.pose_2d[p].double().numpy()) for p in parts])
    return [f for f in diagnose(specimen)[0] if f.about == "2d-3d"][0]


def test_2d_that_fits():
    assert pair().severity == "sound" and pair().numbers["error_px"] < 0.01
    jitter = np.random.default_rng(0)
    assert pair(change_2d=lambda p: p + jitter.normal(0, 6, p.shape)).severity in ("note", "sound")
    assert pair(change_3d=lambda c: c - c[:, :1], frame="root").severity in ("note", "sound")


@pytest.mark.parametrize("change, word", [(lambda p: p[:, list(H36M17.mirror)], "exchange"), (lambda p: p * (-1, 1) + (1000, 0), "mirror"), (lambda p: TO_COCO(p), "not of the same"),
                                          (lambda p: p / 500 - 1, "normalised"), (lambda p: np.roll(p, 5, 1), "not of the same")])
def test_2d_that_does_not_fit(change, word):
    finding = pair(change_2d=change)
    assert finding.severity in ("problem", "warning") and word in finding.text


# ---------- files and folders

@pytest.fixture
def walk(): return [w for w, _ in made_up()[0]], [c for _, c in made_up()[0]]


def test_plain_files(tmp_path, walk):
    world, _ = walk
    np.save(tmp_path / "a.npy", 1000 * world[0].astype(np.float32))
    np.savez(tmp_path / "b.npz", poses=TO_COCO(world[0]), fps=np.array(50))
    (tmp_path / "c.pkl").write_bytes(dumps_python2({"S1": {"Walking": world[0][::5].astype(np.float32)}, "fps": 50}))
    torch.save({"pose": torch.from_numpy(world[0] * (-1, 1, 1))}, tmp_path / "d.pt")
    np.save(tmp_path / "e.npy", world[0].reshape(len(world[0]), 51))
    told = {name: {f.about for f in doctor(tmp_path / name, skeleton="h36m17", frame="world").problems} for name in ("a.npy", "b.npz", "c.pkl", "d.pt", "e.npy")}
    assert told == {"a.npy": {"units"}, "b.npz": {"joint-order"}, "c.pkl": set(), "d.pt": {"mirrored"}, "e.npy": set()}
    assert doctor(tmp_path / "c.pkl", frame_rate=50).about("frame-rate", "warning", "problem")


def object_npz(path, **values): np.savez(path, **{k: np.array(v, dtype=object) for k, v in values.items()})


def test_names_say_what_is_believed(tmp_path, walk):
    "VideoPose3D's names mean world coordinates of 17 joints at 50 Hz."
    world, camera = walk
    split = lambda recordings: {"S1": {"Walking": recordings[0], "Walking 1": recordings[1]}, "S5": {"Walking": recordings[2], "Walking 1": recordings[3]}}
    for name, recordings, about in (("sound", world, []), ("camera", camera, ["frame"]), ("sixteen", [w[:, TO_16] for w in world], ["joint-count"]), ("coco", [TO_COCO(w) for w in world], ["joint-order"]), ("ten", [w[::5] for w in world], ["frame-rate"])):
        (tmp_path / name).mkdir()
        object_npz(tmp_path / name / "data_3d_h36m.npz", positions_3d=split([r.astype(np.float32) for r in recordings]))
        report = doctor(tmp_path / name / "data_3d_h36m.npz")
        assert [f.about for f in report.problems] == about, name
        assert report.about("source") and "Human3.6M" in str(report)


def test_2d_and_3d_in_two_files_find_each_other(tmp_path, walk):
    world, _ = walk
    seen = render([WorldClip(w, "S", "a", f"{k}", np.arange(len(w))) for k, w in enumerate(world)], cmu.cameras(), H36M17, name="x", frame_rate=50.)
    view = lambda k, c: seen.pose_2d[(seen.sequence == k) & (seen.camera_id == c)].numpy()
    length = min(len(view(k, c)) for k in range(2) for c in range(4))
    object_npz(tmp_path / "poses_3d.npz", positions_3d={"S1": {"a": world[0][:length], "b": world[1][:length]}})
    object_npz(tmp_path / "poses_2d.npz", positions_2d={"S1": {"a": [view(0, c)[:length] for c in range(4)], "b": [view(1, c)[:length] for c in range(4)]}})
    finding, = doctor(tmp_path).about("2d-3d")
    assert finding.severity == "sound" and finding.numbers["pairs"] == 2


def test_stored_sets(tmp_path):
    world, rate = made_up()
    seen = render([WorldClip(w, "S", "a", f"{k}", np.arange(len(w))) for k, (w, _) in enumerate(world)], cmu.cameras(), H36M17, name="x", frame_rate=rate)
    report = doctor(save(seen, tmp_path / "x.safetensors"))
    assert not report.problems and report.about("2d-3d", "sound") and len(report.about("frame", "sound")) == 2
    wrong = render([WorldClip(c - (0, 0, 4.5), "S", "a", f"{k}", np.arange(len(c))) for k, (_, c) in enumerate(world)], cmu.cameras(), H36M17, name="y", frame_rate=rate, min_depth=0.5)
    assert doctor(save(wrong, tmp_path / "y.safetensors")).about("frame", "warning", "problem")
    assert [f.about for f in doctor(save(replaced(seen, frame_rate=10.), tmp_path / "z.safetensors")).findings if f.severity == "warning"] == ["frame-rate"]
    fast = replaced(seen.select(torch.arange(0, len(seen), 5)), frame_step=5)
    assert "frame-rate" in {f.about for f in examine(fast).findings if f.severity in ("problem", "warning")}
    (tmp_path / "x.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:-50])
    assert [f.about for f in doctor(tmp_path / "x.safetensors").problems] == ["file"]


def replaced(poses, **changes):
    from dataclasses import replace
    return replace(poses, **changes)


def test_camera_coordinates_taken_for_the_world(people):
    "A set that was rendered from camera coordinates: people lie in the world of its cameras."
    recordings, rate = people
    wide = cmu.cameras()
    seen = render([WorldClip(c - (0, 0, 3), "S", "a", f"{k}", np.arange(len(c))) for k, (_, c) in enumerate(recordings[:12])], type(wide)(wide.names, wide.intrinsics * torch.tensor([.35, .35, 1, 1]), wide.distortion, wide.rotation, wide.translation, wide.resolution), H36M17, name="x", frame_rate=rate, min_depth=0.2)
    assert examine(seen).about("frame", "problem", "warning")


def test_damaged_and_strange_files(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (999999999, 17, 3), }" + b" " * 40 + b"\n")
    (tmp_path / "b.pkl").write_bytes(b"cos\nsystem\n(S'echo owned > owned'\ntR.")
    (tmp_path / "c.txt").write_text("hello")
    (tmp_path / "d.npz").write_bytes(b"PK\x03\x04 no zip")
    np.save(tmp_path / "e.npy", np.arange(12))
    for name, about in (("a.npy", "file"), ("b.pkl", "file"), ("c.txt", "file"), ("d.npz", "file"), ("e.npy", "content")):
        report = doctor(tmp_path / name)
        assert [f.about for f in report.findings if f.severity in ("problem", "warning")] == [about], name
    assert not Path("owned").exists() and len(doctor(tmp_path).findings) >= 3
    (tmp_path / "empty").mkdir()
    assert doctor(tmp_path / "empty").problems[0].text.startswith("the folder is empty")


def test_only_a_wrong_call_is_refused(tmp_path):
    for call in (lambda: doctor(tmp_path / "nothing"), lambda: doctor(tmp_path, skeleton="h36m"), lambda: doctor(tmp_path, frame="body"), lambda: doctor(tmp_path, unit="feet")):
        with pytest.raises(InputError) as refusal: call()
        assert "\n" not in str(refusal.value)


def test_a_folder_of_a_source(tmp_path, fresh_cache):
    cmu.example(tmp_path / "cmu")
    report = doctor(tmp_path / "cmu")
    assert not report.problems and {f.numbers.get("source") for f in report.about("source")} == {"cmu"} and report.about("counts", "warning")
    next((tmp_path / "cmu").glob("02/*.amc")).unlink()
    assert "not there" in doctor(tmp_path / "cmu").problems[0].text


EXAMPLES = sorted(m.name for m in pkgutil.iter_modules(poseprojects.data.__path__) if hasattr(m2 := importlib.import_module(f"poseprojects.data.{m.name}"), "example") and hasattr(m2, "SPLITS"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_source_is_known_by_its_folder(name, tmp_path, fresh_cache):
    "Made-up files in the owner's layout: the right module is named, its sets are examined, and nothing is wrong with them."
    importlib.import_module(f"poseprojects.data.{name}").example(tmp_path)
    report = doctor(tmp_path)
    assert not report.problems, str(report)
    assert name in {f.numbers.get("source") for f in report.about("source")} and report.about("content", "note") and report.about("protocol")


@pytest.mark.data
def test_the_real_folders(cmu_root, hdm05_root):
    for root in (cmu_root, hdm05_root):
        report = doctor(root)
        assert not report.problems and not report.about("counts", "warning") and report.about("counts", "sound"), str(report)


# ---------- the report, the command, the name

def test_the_report_can_be_kept():
    report = Report("x", (Finding("problem", "units", "too long", {"leg": 800.}), Finding("note", "content", "5 poses")), {"left_knee": (0.4, 0.01)})
    assert json.loads(json.dumps(report.to_dict()))["findings"][0]["numbers"] == {"leg": 800.}
    assert str(report).splitlines()[0] == "x: 1 problem" and "left_knee 0.400" in str(report)


def test_every_report_is_json(people):
    recordings, rate = people
    json.dumps(Report("x", tuple(diagnose(Specimen("x", [w for w, _ in recordings], Belief(H36M17, "world", rate)))[0])).to_dict())


def test_the_command(tmp_path, capsys):
    np.save(tmp_path / "a.npy", 1000 * made_up()[0][0][0])
    assert main([str(tmp_path / "a.npy"), "--skeleton", "h36m17"]) == 1 and "millimetres" in capsys.readouterr().out
    assert main([str(tmp_path / "nothing")]) == 2 and "no such file" in capsys.readouterr().err
    assert main([str(tmp_path / "a.npy"), "--unit", "millimetres", "--json"]) == 0 and json.loads(capsys.readouterr().out)["bones"]


def test_the_short_name_is_there_and_costs_nothing():
    assert poseprojects.data.doctor is doctor
    with pytest.raises(AttributeError, match="no attribute 'docter'"): poseprojects.data.docter
    code = "import sys, poseprojects.data.base; print('poseprojects.data.diagnosis' in sys.modules); import poseprojects.data as d; d.doctor; print('poseprojects.data.diagnosis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["False", "True"]


def test_arrays_that_can_be_poses():
    assert [p.shape for p in as_poses(np.zeros((7, 4, 17, 3)))] == [(7, 17, 3)] * 4
    assert [p.shape for p in as_poses(np.zeros((17, 2)))] == [(1, 17, 2)]
    assert as_poses(np.zeros((3, 3))) == as_poses(np.zeros((100, 224, 224))) == as_poses(None) == as_poses(np.zeros((0, 17, 3))) == []
    found = specimens({"x.npz": {"h36m17": np.zeros((5, 17, 3)), "cam": np.zeros((5, 17, 3)), "names": ["a"], "image": np.zeros((8, 8, 3), np.uint8)}})
    assert {(s.belief.skeleton and s.belief.skeleton.name, s.belief.frame) for s in found} == {("h36m17", None), (None, "camera")}
