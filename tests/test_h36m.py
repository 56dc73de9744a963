"Human3.6M in every layout: read back equal, cameras found and checked, accidents told apart, one sentence for every bad file."
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings as cases, strategies as st

from poseprojects import protocol
from poseprojects.camera import Cameras, project, world_to_camera
from poseprojects.data import h36m
from poseprojects.data.base import clips, views
from poseprojects.data.safe import dumps_python2, load_npz, load_pickle
from poseprojects.data.sources import example_people
from poseprojects.skeleton import COCO17, H36M16, H36M17, H36M32, convert
from poseprojects.storage import InputError
from poseprojects.train.evaluation import scored_samples

LAYOUTS = ("npz", "npz-bare", "cdf", "cdf-mono", "lcn")


pytestmark = pytest.mark.usefixtures("fresh_cache")


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    "Every layout, written once: name -> (folder, sets by split)."
    made = {}
    def get(layout):
        if layout not in made:
            folder = tmp_path_factory.mktemp(layout) / "h36m"
            made[layout] = folder, h36m.example(folder, layout)
        return made[layout]
    return get


@pytest.fixture
def pack(examples, tmp_path):
    "A copy of an example that may be spoilt."
    def copy(layout="npz"): return Path(shutil.copytree(examples(layout)[0], tmp_path / layout))
    return copy


def refused(root, split="test", input_2d="gt", **options):
    "The sentence with which `load` refuses."
    with pytest.raises(InputError) as refusal: h36m.load(split, root, input_2d, **options)
    text = str(refusal.value)
    assert "\n" not in text and ("expected" in text or "people are" in text), text
    return text


def rewrite(path, change):
    "Reads an npz file, changes its content and writes it back."
    content = load_npz(path)
    change(content)
    h36m._write_npz(path, **content)


def each(key, function):
    "Applies a function to every recording under a key."
    def apply(content):
        for part in content[key].values():
            for name in part: part[name] = function(part[name])
    return apply


THREE, GT, CPN = "data_3d_h36m.npz", "data_2d_h36m_gt.npz", "data_2d_h36m_cpn_ft_h36m_dbb.npz"


# ---------- every layout gives the same set

@pytest.mark.parametrize("split", ("train", "test"))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_read_back_equal(examples, layout, split):
    folder, wanted = examples(layout)
    found, wanted = h36m.load(split, folder), wanted[split]
    found.check()
    for name in ("camera_id", "subject", "action", "sequence", "frame", "confidence"): assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    for name in ("skeleton", "subject_names", "action_names", "sequence_names", "frame_rate", "frame_step", "name", "input_2d"): assert getattr(found, name) == getattr(wanted, name), name
    recovered = layout in ("npz-bare", "cdf-mono")
    assert float((found.pose_3d - wanted.pose_3d).abs().max()) < (5e-5 if layout == "npz-bare" else 2e-6)
    assert float((found.pose_2d - wanted.pose_2d).abs().max()) < 2e-3
    assert found.cameras.names == wanted.cameras.names and torch.equal(found.cameras.resolution, wanted.cameras.resolution)
    for name, tolerance in (("intrinsics", 0.05), ("distortion", 5e-3), ("rotation", 1e-4), ("translation", 2e-4)):
        assert float((getattr(found.cameras, name) - getattr(wanted.cameras, name)).abs().max()) < (tolerance if recovered else 1e-9), name


def test_one_sample_worked_out_by_hand(examples):
    "World, camera, lens and pixels from the files' own numbers, without any function of the library."
    folder, _ = examples("npz")
    found = h36m.load("test", folder)
    world = load_npz(folder / THREE)["positions_3d"]["S11"]["WalkDog 1"][5].astype(float)
    eye = h36m.read_cameras_json(folder / "cameras.json")["S11"]
    (row,) = [n for n in range(len(found)) if (found.subject_names[found.subject[n]], found.sequence_names[found.sequence[n]], int(found.frame[n])) == ("S11", "WalkDog 1", 5)
              and found.cameras.names[found.camera_id[n]] == "58860488"]
    X = world[[0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27]] @ eye.rotation[2].numpy().T + eye.translation[2].numpy()
    x, y = X[:, 0] / X[:, 2], X[:, 1] / X[:, 2]
    k1, k2, k3, p1, p2 = eye.distortion[2].tolist()
    r2 = x * x + y * y
    g = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3 + p1 * x + p2 * y
    fx, fy, cx, cy = eye.intrinsics[2].tolist()
    px = np.stack([fx * (x * g + p1 * r2) + cx, fy * (y * g + p2 * r2) + cy], 1)
    assert np.abs(found.pose_3d[row].numpy() - X).max() < 1e-6 and np.abs(found.pose_2d[row].numpy() - px).max() < 1e-3


def test_layouts_agree_with_each_other(examples):
    "The npz files lack S11 Directions; the rest of the owner's files gives the same numbers."
    npz, cdf = (h36m.load("test", examples(layout)[0]) for layout in ("npz", "cdf"))
    keep = torch.tensor([(cdf.subject_names[int(s)], cdf.sequence_names[int(q)]) != ("S11", "Directions") for s, q in zip(cdf.subject, cdf.sequence)])
    assert len(cdf) - len(npz) == 4 * 8 and torch.allclose(cdf.pose_3d[keep], npz.pose_3d, atol=2e-6) and torch.allclose(cdf.pose_2d[keep], npz.pose_2d, atol=2e-3)


def test_splits_and_subjects(examples):
    folder, wanted = examples("npz")
    one = h36m.load("train-s1", folder)
    train, everyone = h36m.load("train", folder), h36m.load("all", folder)
    assert one.subject_names == ("S1",) and torch.equal(one.pose_3d, train.pose_3d[train.subject == 0])
    assert everyone.subject_names == ("S1", "S5", "S6", "S7", "S8", "S9", "S11") and len(everyone) == len(train) + len(wanted["test"]) and len(everyone.cameras) == 28
    assert h36m.load("test", folder, subjects=["S11"]).subject_names == ("S11",)
    assert "subject 'S1' is not in split 'test'" in refused(folder, subjects=["S1"])
    assert "split 'val'" in refused(folder, "val")


def test_views_and_clips(examples):
    part = h36m.load("test", examples("cdf")[0])
    table = views(part)
    assert table.shape == (2 * 3 * 8, 8) and bool(((table >= 0).sum(1) == 4).all())
    assert len(clips(part)) == 2 * 3 * 4 and part.frame_rate == 50


@pytest.mark.parametrize("layout", ("npz", "cdf", "lcn"))
def test_every_nth_frame(examples, layout):
    folder, _ = examples(layout)
    full, third = h36m.load("test", folder), h36m.load("test", folder, frame_step=2)
    assert third.frame_rate == 25 and third.frame_step == 2
    keep = full.frame % 2 == 0
    for name in ("pose_3d", "pose_2d", "frame", "camera_id", "sequence"): assert torch.equal(getattr(third, name), getattr(full, name)[keep]), name
    assert len(clips(third)) == len(clips(full))


def test_protocols_leave_out_by_these_names(examples):
    part = h36m.load("test", examples("cdf")[0])
    corrupt = (part.subject == 1) & (part.sequence == 3)
    assert part.sequence_names[3] == "Directions" and int(corrupt.sum()) == 32
    assert int(scored_samples(part, protocol.H36M_P1).sum()) == len(part)
    assert int(scored_samples(replace(part, input_2d="cpn"), protocol.H36M_P1).sum()) == len(part) - 8
    assert torch.equal(scored_samples(part, protocol.POSEAUG_H36M), ~corrupt)
    lcn = h36m.load("test", examples("lcn")[0])
    assert lcn.sequence_names[:3] == ("s_09_act_02_subact_01", "s_09_act_09_subact_02", "s_09_act_15_subact_01")
    damaged = protocol.LCN.but("x", exclusions=(protocol.Exclusion(subject="S9", sequence="s_09_act_09_subact_02"),))
    assert int((~scored_samples(lcn, damaged)).sum()) == 3 * 4


def test_a_second_time_opens_the_cache(examples, pack, monkeypatch):
    folder = pack("cdf")
    first = h36m.load("test", folder)
    monkeypatch.setattr(h36m, "_build", None)
    assert h36m.load("test", folder).fingerprint == first.fingerprint
    path = folder / "S9/MyPoseFeatures/D3_Positions/Directions.cdf"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(TypeError): h36m.load("test", folder)


def test_modelled_detectors_and_file_inputs(examples):
    folder, _ = examples("lcn")
    assert h36m.load("test", folder, "hrnet-like").input_2d == "hrnet-like"
    sh = h36m.load("test", folder, "sh")
    exact = h36m.load("test", folder)
    distance = (sh.pose_2d - exact.pose_2d).norm(dim=-1)
    assert sh.input_2d == "sh" and 2 < float(distance.mean()) < 6 and bool((sh.confidence == 0.75).all()) and sh.settings["doubtful"] == []
    assert "does not come with LCN's files" in refused(folder, input_2d="cpn")
    for text in (refused(examples("npz")[0], input_2d="hrnet"), refused(examples("npz")[0], input_2d="../x"), refused(examples("npz")[0], input_2d="")): assert "(cpn)" in text and "wild-like" in text


# ---------- 17 and 16 joints, detections

def test_sixteen_joints_everywhere(pack):
    folder = pack()
    full = h36m.load("test", folder, skeleton=H36M16)
    rows = [H36M17.joints.index(j) for j in H36M16.joints]
    rewrite(folder / THREE, each("positions_3d", lambda p: convert(p, H36M32, H36M16)))
    rewrite(folder / GT, each("positions_2d", lambda views_: [v[:, rows] for v in views_]))
    assert "metadata says 17 joints but the arrays have 16" in refused(folder)
    rewrite(folder / GT, lambda c: c["metadata"].update(num_joints=16, keypoints_symmetry=[list(H36M16.left), list(H36M16.right)]))
    few = h36m.load("test", folder)
    assert few.skeleton is not H36M17 and few.skeleton.name == "h36m16" and torch.equal(few.pose_3d, full.pose_3d) and full.skeleton.name == "h36m16"
    assert "without 'neck_nose'" in refused(folder, skeleton="h36m17")


def test_seventeen_joints_in_3d(pack):
    folder = pack("npz-bare")
    wanted = h36m.load("test", folder)
    rewrite(folder / THREE, each("positions_3d", lambda p: convert(p, H36M32, H36M17)))
    assert torch.equal(h36m.load("test", folder).pose_3d, wanted.pose_3d)
    assert "without 'right_foot'" in refused(folder, skeleton=H36M32)


def test_all_32_joints(examples):
    for layout in ("npz", "cdf"):
        part = h36m.load("test", examples(layout)[0], skeleton="h36m32")
        assert part.pose_3d.shape[1:] == (32, 3) and torch.equal(convert(part.pose_3d, H36M32, H36M17), h36m.load("test", examples(layout)[0]).pose_3d)
    assert "h36m32" in refused(examples("lcn")[0], skeleton="h36m32")
    assert "coco17" in refused(examples("npz")[0], skeleton=COCO17) and "xyz" in refused(examples("npz")[0], skeleton="xyz")


def test_detections_of_16_joints_choose_the_joint_set(pack):
    folder = pack()
    wanted = h36m.load("test", folder, "cpn", skeleton="h36m16")
    rows = [H36M17.joints.index(j) for j in H36M16.joints]
    rewrite(folder / CPN, lambda c: (each("positions_2d", lambda views_: [v[:, rows] for v in views_])(c), c.pop("metadata")))
    found = h36m.load("test", folder, "cpn")
    assert found.skeleton.name == "h36m16" and torch.equal(found.pose_2d, wanted.pose_2d) and torch.equal(found.pose_3d, wanted.pose_3d)
    assert "ask for skeleton='h36m16'" in refused(folder, input_2d="cpn", skeleton="h36m17")


def test_longer_detections_are_cut_and_counted(examples):
    folder, _ = examples("npz")
    exact = h36m.load("test", folder)
    cpn = h36m.load("test", folder, "cpn")
    tree = load_npz(folder / CPN)["positions_2d"]
    longer = sum(len(v) - 8 for s in ("S9", "S11") for views_ in tree[s].values() for v in views_)
    assert longer > 0 and cpn.settings["cut_frames"] == longer and cpn.input_2d == "cpn"
    for name in ("pose_3d", "frame", "camera_id", "sequence"): assert torch.equal(getattr(cpn, name), getattr(exact, name))
    row = int(((cpn.sequence == 1) & (cpn.camera_id == 2) & (cpn.frame == 3)).nonzero())
    assert np.array_equal(cpn.pose_2d[row].numpy(), tree["S9"]["Sitting 2"][2][3]) and "S2" in tree


def test_detections_with_confidence_and_gaps(pack):
    folder = pack()
    def change(views_):
        with_confidence = [np.concatenate([v, np.full((*v.shape[:2], 1), 0.5, np.float32)], 2) for v in views_]
        with_confidence[1][2] = np.nan
        return with_confidence
    rewrite(folder / CPN, each("positions_2d", change))
    found = h36m.load("test", folder, "cpn")
    assert bool((found.confidence == 0.5).all()) and found.settings["dropped_frames"] == 5
    second = (found.camera_id == 1) & (found.sequence == 0)
    assert found.frame[second].tolist() == [0, 1, 3, 4, 5, 6, 7] and len(clips(found)) == 5 * 4 + 5


def test_detections_beside_the_owners_files(pack, examples):
    "S11 Directions has none, and that is known; another recording without is refused."
    folder = pack("cdf")
    shutil.copy(examples("npz")[0] / CPN, folder / CPN)
    found = h36m.load("test", folder, "cpn")
    assert found.settings["without_detections"] == [f"S11 Directions camera {c}" for c in h36m.CAMERAS]
    assert len(found) == len(h36m.load("test", folder)) - 32
    rewrite(folder / CPN, lambda c: c["positions_2d"]["S9"].pop("Directions"))
    assert "S9 Directions camera 54138969 has no detections" in refused(folder, input_2d="cpn")


DETECTION_FAULTS = {
    "coco, by the metadata": (lambda c: c["metadata"].update(keypoints_symmetry=[list(COCO17.left), list(COCO17.right)]), "COCO"),
    "sides exchanged in the metadata": (lambda c: c["metadata"].update(keypoints_symmetry=[list(H36M17.right), list(H36M17.left)]), "keypoints_symmetry"),
    "metadata of another kind": (lambda c: c["metadata"].update(keypoints_symmetry=[["x"], 3.5]), "keypoints_symmetry"),
    "left and right": (each("positions_2d", lambda v: [x[:, list(H36M17.mirror)] for x in v]), "left and right exchanged"),
    "cameras in another order": (each("positions_2d", lambda v: [v[1], v[0], v[2], v[3]]), "another camera"),
    "normalised": (each("positions_2d", lambda v: [x / 500 - 1 for x in v]), "normalised"),
    "shuffled joints": (each("positions_2d", lambda v: [x[:, [*range(7, 17), *range(7)]] for x in v]), "another order"),
    "half the frames": (each("positions_2d", lambda v: [x[::2] for x in v]), "different frame rates"),
    "three cameras": (each("positions_2d", lambda v: v[:3]), "instead of four arrays"),
    "14 joints": (lambda c: (c.pop("metadata"), each("positions_2d", lambda v: [x[:, :14] for x in v])(c)), "14 joints"),
    "one number per joint": (each("positions_2d", lambda v: [x[..., :1] for x in v]), "expected numbers of shape"),
    "text": (each("positions_2d", lambda v: ["a", "b", "c", "d"]), "expected numbers of shape"),
    "nothing": (lambda c: c.update(positions_2d={}), "has no detections"),
    "no tree": (lambda c: c.update(positions_2d=[1, 2]), "no dictionary of dictionaries"),
    "another field": (lambda c: c.pop("positions_2d"), "'positions_2d' is missing"),
}


@pytest.mark.parametrize("change, telling", DETECTION_FAULTS.values(), ids=DETECTION_FAULTS)
def test_wrong_detections_are_refused(pack, change, telling):
    folder = pack()
    rewrite(folder / CPN, change)
    assert telling in refused(folder, input_2d="cpn")


def test_coco_is_told_without_metadata(pack):
    folder = pack()
    people = {(c.subject, c.sequence): c for c in example_people(COCO17, 12, h36m.SUBJECTS["all"], h36m.EXAMPLE_RECORDINGS)}
    cameras = h36m.read_cameras_json(folder / "cameras.json")
    def change(content):
        content.pop("metadata")
        for s, part in content["positions_2d"].items():
            for n in part: part[n] = [project(world_to_camera(torch.tensor(people[s, n].pose), cameras[s][[k]]), cameras[s][[k]]).numpy() for k in range(4)] if s != "S2" else part[n]
    rewrite(folder / CPN, change)
    assert "COCO's order" in refused(folder, input_2d="cpn")
    rewrite(folder / THREE, lambda c: [part.update({n: people[s, n].pose[:8] for n in part}) for s, part in c["positions_3d"].items()])
    assert "COCO's order" in refused(folder)


def test_a_few_doubtful_clips_are_listed_and_many_refused(pack):
    folder = pack()
    def displace(content): content["positions_2d"]["S9"]["Directions"][0] = content["positions_2d"]["S9"]["Directions"][0] + 150
    rewrite(folder / CPN, displace)
    assert h36m.load("test", folder, "cpn").settings["doubtful"][0][0] == "S9 Directions camera 54138969"
    rewrite(folder / CPN, lambda c: [displace(c), c["positions_2d"]["S11"].update({"WalkDog 1": [v + 200 for v in c["positions_2d"]["S11"]["WalkDog 1"]]})])
    assert "as do 4 of the other 19 clips" in refused(folder, input_2d="cpn")


# ---------- 3D

THREE_FAULTS = {
    "millimetres": (each("positions_3d", lambda p: 1000 * p), "divide by 1000"),
    "NaN": (each("positions_3d", lambda p: np.where(np.arange(len(p))[:, None, None] == 4, np.nan, p)), "frame 4 holds NaN"),
    "18 joints": (each("positions_3d", lambda p: p[:, :18]), "18 joints, expected 32 (native), 17 or 16"),
    "flat": (each("positions_3d", lambda p: p[..., :2]), "expected numbers of shape"),
    "mirrored": (each("positions_3d", lambda p: p * (-1, 1, 1)), "sees the joints"),
    "another action": (lambda c: c["positions_3d"]["S9"].update(Juggling=c["positions_3d"]["S9"]["Directions"]), "'Juggling' is no action"),
    "no S9": (lambda c: c["positions_3d"].pop("S9"), "subject S9 is not there"),
    "mixed joints": (lambda c: c["positions_3d"]["S9"].update(Directions=convert(c["positions_3d"]["S9"]["Directions"], H36M32, H36M17)), "expected the same for all"),
    "other field": (lambda c: c.update(poses=c.pop("positions_3d")), "'positions_3d' is missing"),
}


@pytest.mark.parametrize("change, telling", THREE_FAULTS.values(), ids=THREE_FAULTS)
def test_wrong_3d_is_refused(pack, change, telling):
    folder = pack()
    rewrite(folder / THREE, change)
    assert telling in refused(folder)


def test_missing_files_say_what_is_missing(pack, tmp_path):
    assert "README.md says where to get it" in refused(tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    assert "folder is empty" in refused(tmp_path / "other")
    (tmp_path / "other/readme.txt").write_text("x")
    text = refused(tmp_path / "other")
    assert "MyPoseFeatures" in text and "data_3d_h36m.npz" in text and "h36m_train.pkl" in text
    folder = pack()
    (folder / "cameras.json").unlink()
    (folder / GT).unlink()
    text = refused(folder)
    assert all(name in text for name in ("metadata.xml", "cameras.h5", "data_2d_h36m_gt.npz", "D2_Positions"))
    assert all(word in refused(folder, layout="lcn") for word in ("h36m_test.pkl", "README"))
    assert "layout 'zip'" in refused(folder, layout="zip") and "frame_step 0" in refused(folder, frame_step=0) and "positions 'mono'" in refused(folder, positions="mono")


# ---------- the owner's files

def test_older_names_of_s1(examples):
    folder, _ = examples("cdf")
    assert (folder / "S1/MyPoseFeatures/D3_Positions/WalkingDog 1.cdf").is_file() and "WalkDog 1" in h36m.load("train-s1", folder).sequence_names


CDF = "S9/MyPoseFeatures/D3_Positions"


def cdf_change(name, change):
    def apply(folder):
        path = folder / name
        dimensions = 2 if "D2" in name else 3
        h36m._write_cdf(path, change(h36m._read_pose(path, dimensions)))
    return apply


CDF_FAULTS = {
    "metres": (cdf_change(f"{CDF}/Directions.cdf", lambda p: p / 1000), "divided by 1000 twice"),
    "17 joints": (cdf_change(f"{CDF}/Directions.cdf", lambda p: p[:, :17]), "expected (1, frames, 96)"),
    "NaN": (cdf_change(f"{CDF}/Directions.cdf", lambda p: np.where(p == p[3, 3, 0], np.nan, p)), "NaN or infinity in frame 3"),
    "another recording": (lambda f: (f / CDF / "Directions.cdf").rename(f / CDF / "Dancing.cdf"), "'Dancing' is no action"),
    "twice": (lambda f: shutil.copy(f / CDF / "WalkDog 1.cdf", f / CDF / "WalkingDog 1.cdf"), "there twice"),
    "truncated": (lambda f: (f / CDF / "Directions.cdf").write_bytes((f / CDF / "Directions.cdf").read_bytes()[:300]), "Directions.cdf"),
    "text": (lambda f: (f / CDF / "Directions.cdf").write_text("no CDF at all"), "Directions.cdf"),
    "no recordings": (lambda f: [p.unlink() for p in (f / CDF).iterdir()], "there are no recordings"),
    "no subject": (lambda f: shutil.rmtree(f / "S9"), "name the subjects that are there"),
    "all pixels elsewhere": (lambda f: [cdf_change(str(p.relative_to(f)), lambda x: x + 30)(f) for p in f.glob("S9/MyPoseFeatures/D2_Positions/*.cdf")], "px from where the image has them"),
    "camera frame as world": (lambda f: [cdf_change(f"{CDF}/{p.name}", lambda x: x[..., [0, 2, 1]] * (1, -1, 1) + (0, 0, 4000))(f) for p in list((f / CDF).iterdir())], "px from where"),
}


@pytest.mark.parametrize("change, telling", CDF_FAULTS.values(), ids=CDF_FAULTS)
def test_wrong_cdf_files_are_refused(pack, change, telling):
    folder = pack("cdf")
    change(folder)
    assert telling in refused(folder)


def test_the_whole_cut_is_skipped(pack):
    folder = pack("cdf")
    shutil.copy(folder / CDF / "Directions.cdf", folder / CDF / "_ALL 1.cdf")
    assert len(h36m.load("test", folder)) == 192


def test_mono_takes_given_cameras_and_its_names_are_checked(pack, examples):
    folder = pack("cdf-mono")
    shutil.copy(examples("cdf")[0] / "metadata.xml", folder)
    found, wanted = h36m.load("test", folder), examples("cdf")[1]["test"]
    assert torch.allclose(found.pose_3d, wanted.pose_3d, atol=2e-6) and torch.allclose(found.cameras.translation, wanted.cameras.translation, atol=1e-9)
    assert found.settings["cameras"]["from"] == "metadata.xml" and found.settings["positions"] == "mono"
    mono = folder / "S9/MyPoseFeatures/D3_Positions_mono"
    shutil.copy(mono / "Directions.54138969.cdf", mono / "Directions.11111111.cdf")
    assert "camera '11111111'" in refused(folder)


def test_universal_needs_given_cameras(pack, examples):
    folder = pack("cdf-mono")
    for s in h36m.SUBJECTS["all"]: (folder / s / "MyPoseFeatures/D3_Positions_mono").rename(folder / s / "MyPoseFeatures/D3_Positions_mono_universal")
    assert "nothing gives the cameras" in refused(folder)
    shutil.copy(examples("cdf")[0] / "metadata.xml", folder)
    assert h36m.load("test", folder).settings["positions"] == "universal"


# ---------- cameras from files

def given_cameras(): return {s: h36m._example_cameras(k) for k, s in enumerate(h36m.SUBJECTS["all"])}


def write_h5(path, cameras, transposed=True, swap=False):
    "3d-pose-baseline's cameras.h5, written after its table of fields."
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for s, eyes in cameras.items():
            for k in range(4):
                n = (1, 0, 2, 3)[k] if swap else k
                group = file.create_group(f"subject{s[1:]}/camera{k + 1}")
                R = eyes.rotation[n].numpy()
                group["R"], group["T"] = R.T if transposed else R, 1000 * eyes.centers[n].numpy()[:, None]
                group["f"], group["c"] = eyes.intrinsics[n, :2, None].numpy(), eyes.intrinsics[n, 2:, None].numpy()
                group["k"], group["p"] = eyes.distortion[n, :3, None].numpy(), eyes.distortion[n, 3:, None].numpy()
                group["Name"] = np.array([[ord(x)] for x in eyes.names[k]], np.uint16)


def same_cameras(a, b): assert all(float((getattr(a, n) - getattr(b, n)).abs().max()) < 1e-9 for n in ("intrinsics", "distortion", "rotation", "translation", "resolution")) and a.names == b.names


def other_json(cameras):
    "The second form of JSON: OpenCV's order of the lens, translation in mm."
    K = lambda f: [[f[0], 0, f[2]], [0, f[1], f[3]], [0, 0, 1]]
    first = next(iter(cameras.values()))
    return {"intrinsics": {n: {"calibration_matrix": K(first.intrinsics[k].tolist()), "distortion": first.distortion[k, [0, 1, 3, 4, 2]].tolist()} for k, n in enumerate(first.names)},
            "extrinsics": {s: {n: {"R": c.rotation[k].tolist(), "t": (1000 * c.translation[k])[:, None].tolist()} for k, n in enumerate(c.names)} for s, c in cameras.items()}}


def test_camera_files_give_the_same_cameras(tmp_path):
    import json
    wanted = given_cameras()
    (tmp_path / "metadata.xml").write_text(h36m._metadata_text(wanted))
    write_h5(tmp_path / "cameras.h5", wanted)
    (tmp_path / "camera-parameters.json").write_text(json.dumps(other_json(wanted)))
    h36m.write_cameras(wanted, tmp_path / "cameras.json")
    for found in (h36m.read_metadata(tmp_path / "metadata.xml"), h36m.read_cameras_h5(tmp_path / "cameras.h5"), h36m.read_cameras_json(tmp_path / "cameras.json"), h36m.read_cameras_json(tmp_path / "camera-parameters.json")):
        for s in wanted: same_cameras(found[s], wanted[s])


def test_angles_of_the_metadata_by_hand(tmp_path):
    "A quarter turn about x: the camera's y is the world's -z, for R = Rx Ry Rz and X_cam = R (X - T)."
    numbers = np.zeros(300)
    numbers[:6] = math.pi / 2, 0, 0, 1000, 2000, 3000
    numbers[264:] = np.tile([1100, 1090, 500, 510, .1, .2, .3, .01, .02], 4)
    (tmp_path / "metadata.xml").write_text("<m><w0>[" + ",\n".join(map(str, numbers)) + "]</w0></m>")
    camera = h36m.read_metadata(tmp_path / "metadata.xml")["S1"][[0]]
    seen = world_to_camera(torch.tensor([[[1., 2., 4.], [1., 4., 3.], [2., 2., 3.]]], dtype=torch.float64), camera)
    assert torch.allclose(seen, torch.tensor([[[0., -1., 0.], [0., 0., 2.], [1., 0., 0.]]], dtype=torch.float64), atol=1e-12)
    assert camera.distortion.tolist() == [[.1, .2, .3, .01, .02]] and camera.intrinsics.tolist() == [[1100, 1090, 500, 510]]


@pytest.mark.parametrize("transposed", (True, False))
def test_cameras_h5_either_way_is_found_out(pack, transposed):
    folder = pack()
    (folder / "cameras.json").unlink()
    write_h5(folder / "cameras.h5", given_cameras(), transposed)
    found = h36m.load("test", folder)
    assert found.settings["cameras"]["from"] == "cameras.h5"
    same_cameras(found.cameras[[0, 1, 2, 3]], given_cameras()["S9"])


@pytest.mark.parametrize("exact", (True, False), ids=("exact pixels", "no pixels"))
def test_swapped_cameras_are_refused(pack, exact):
    folder = pack()
    (folder / "cameras.json").unlink()
    cameras = given_cameras()
    if exact:
        write_h5(folder / "cameras.h5", cameras, swap=True)
        text = refused(folder)
        assert "so the cameras are exchanged" in text and "54138969" in text and "55011271" in text
    else: # nothing but the detections can tell
        (folder / GT).unlink()
        write_h5(folder / "cameras.h5", cameras)
        assert h36m.load("test", folder, "cpn").settings["cameras"] == {"from": "cameras.h5", "reprojection_px": None}
        write_h5(folder / "cameras.h5", cameras, swap=True)
        assert "body sizes from the projected joints" in refused(folder, input_2d="cpn")


CAMERA_FAULTS = {
    "another order of w0": ("metadata.xml", lambda t: __import__("re").sub(r"<w0>\[(.*)\]</w0>", lambda m: "<w0>[" + " ".join(m[1].split()[6:264] + m[1].split()[:6] + m[1].split()[264:]) + "]</w0>", t, flags=16), "metadata.xml: camera"),
    "short w0": ("metadata.xml", lambda t: t.replace("]</w0>", " 1 2]</w0>"), "302 numbers, expected 300"),
    "no w0": ("metadata.xml", lambda t: t.replace("w0", "w1"), "field 'w0' is missing"),
    "other names": ("metadata.xml", lambda t: t.replace("54138969", "12345678"), "index2id"),
    "entities": ("metadata.xml", lambda t: '<!DOCTYPE a [<!ENTITY b "c">]>' + t, "declares entities"),
    "focal length zero": ("metadata.xml", lambda t: t.replace("1100.0", "0.0"), "focal length"),
    "binary": ("metadata.xml", lambda t: "\x00\xff" * 100, "field 'w0' is missing"),
    "JSON without S9": ("cameras.json", lambda t: t.replace('"S9"', '"S4"'), "subject S9 is not there"),
    "no JSON": ("cameras.json", lambda t: t[:100], "cameras.json"),
    "JSON list": ("cameras.json", lambda t: "[1, 2]", "expected an object"),
    "JSON of something": ("cameras.json", lambda t: '{"a": 1}', "neither subjects nor"),
    "JSON without a field": ("cameras.json", lambda t: t.replace('"R"', '"Q"'), "field 'R' is missing"),
    "JSON, other cameras": ("cameras.json", lambda t: t.replace("60457274", "cam4"), "expected 54138969"),
    "JSON, second form incomplete": ("cameras.json", lambda t: '{"intrinsics": {}, "extrinsics": {"S9": {}}}', "is missing"),
}


@pytest.mark.parametrize("name, change, telling", CAMERA_FAULTS.values(), ids=CAMERA_FAULTS)
def test_wrong_camera_files_are_refused(pack, name, change, telling):
    folder = pack("cdf" if name == "metadata.xml" else "npz")
    path = folder / name
    path.write_text(change(path.read_text()))
    assert telling in refused(folder)


def test_cameras_h5_faults(pack):
    h5py = pytest.importorskip("h5py")
    folder = pack()
    (folder / "cameras.json").unlink()
    write_h5(folder / "cameras.h5", given_cameras())
    with h5py.File(folder / "cameras.h5", "a") as file: del file["subject9/camera2/T"]
    assert "field 'subject9/camera2/T' is missing" in refused(folder)
    with h5py.File(folder / "cameras.h5", "a") as file: file["subject9/camera2/T"] = np.zeros(2)
    assert "'subject9/camera2/T': found 2 numbers" in refused(folder)
    with h5py.File(folder / "cameras.h5", "w") as file: file["x"] = 1
    assert "no group 'subject1'" in refused(folder)


def test_people_must_stand_in_the_image(pack):
    "No pixels, no detections: a camera that looks away is still found out."
    folder = pack()
    (folder / GT).unlink()
    about = torch.diag(torch.tensor([-1., 1., -1.], dtype=torch.float64))
    h36m.write_cameras({s: replace(c, rotation=about @ c.rotation, translation=c.translation @ about) for s, c in given_cameras().items()}, folder / "cameras.json")
    assert "of the joints in its image" in refused(folder)


def test_folder_names_from_the_mapping(tmp_path):
    (tmp_path / "metadata.xml").write_text("<m><mapping><tr><td/><td/><td>S1</td><td>S9</td></tr><tr><td>1</td><td>1</td><td>_ALL</td><td>_ALL</td></tr>"
                                           "<tr><td>5</td><td>2</td><td>Greeting 1</td><td>Greeting</td></tr><tr><td>12</td><td>1</td><td>TakingPhoto</td><td>Photo 1</td></tr></mapping></m>")
    assert h36m.folder_names(tmp_path / "metadata.xml") == {("S1", "Greeting 1"): "s_01_act_05_subact_02", ("S9", "Greeting"): "s_09_act_05_subact_02",
                                                             ("S1", "Photo"): "s_01_act_12_subact_01", ("S9", "Photo 1"): "s_09_act_12_subact_01"}


def test_published_intrinsics():
    "The table of PoseAug's release in pixels: 2f/w, and the centre in its screen units."
    camera = h36m._example_cameras()[[0]]
    assert abs(h36m.published_difference(replace(camera, intrinsics=torch.tensor([[2.290099 * 500, 2.287562 * 500, 1.025083 * 500, 0.028903 * 500 + 501]], dtype=torch.float64)))) < 1e-9
    assert 40 < h36m.published_difference(camera) < 60


# ---------- resection

def points(n=400, seed=0, centre=(0., 0., 1.), spread=(1.5, 1.5, 1.)): return np.random.default_rng(seed).uniform(-1, 1, (n, 3)) * spread + centre


def pixels(world, camera): return project(world_to_camera(torch.tensor(world)[:, None], camera), camera)[:, 0].numpy()


def angle(a, b): return math.degrees(2 * math.asin(min(1., float((a - b).norm()) / math.sqrt(8))))


@pytest.mark.parametrize("k", range(4))
def test_resection_recovers_exactly(k):
    camera = h36m._example_cameras(3)[[k]]
    found = h36m.resect(points(), pixels(points(), camera).astype(np.float32), h36m.CAMERAS[camera.names[0]])
    assert 1000 * float((found.centers - camera.centers).norm()) < 0.1 and angle(found.rotation[0], camera.rotation[0]) < 1e-3
    assert float((found.intrinsics - camera.intrinsics).abs().max()) < 0.01 and float((found.distortion - camera.distortion).abs().max()) < 1e-3
    assert np.abs(pixels(points(seed=1), found) - pixels(points(seed=1), camera)).max() < 0.05


@cases(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10**6), distance=st.floats(3, 8), focal=st.floats(700, 2500), k1=st.floats(-0.3, 0.2), roll=st.floats(-3.1, 3.1))
def test_resection_of_random_cameras(seed, distance, focal, k1, roll):
    "Any focal length, place, roll and ordinary lens; the points need not be near the origin."
    draw = np.random.default_rng(seed)
    offset = draw.uniform(-20, 20, 3)
    world = points(300, seed, offset, (1., 1., 1.))
    q, _ = np.linalg.qr(draw.normal(size=(3, 3)))
    R = torch.tensor(q * np.sign(np.linalg.det(q)))
    t = -(R @ torch.tensor(offset)) + torch.tensor([0.1, -0.2, distance], dtype=torch.float64)
    camera = Cameras(("c",), torch.tensor([[focal, 1.01 * focal, 510., 480.]], dtype=torch.float64), torch.tensor([[k1, 0.03, 0., 1e-3, -1e-3]], dtype=torch.float64), R[None], t[None], torch.tensor([[1000., 1002.]], dtype=torch.float64))
    found = h36m.resect(world, pixels(world, camera), (1000, 1002))
    assert np.abs(pixels(world, found) - pixels(world, camera)).max() < 0.01
    assert float((found.centers - camera.centers).norm()) < 0.01 * distance


def test_noise_makes_proportional_errors():
    camera, world = h36m._example_cameras()[[0]], points(600)
    errors = []
    for noise in (0.05, 0.2, 0.8):
        seen = pixels(world, camera) + noise * np.random.default_rng(5).normal(size=(600, 2))
        found = h36m.resect(world, seen, (1000, 1002), limit=3.)
        clean = np.linalg.norm(pixels(world, found) - pixels(world, camera), axis=1).mean()
        assert clean < 0.5 * noise
        errors.append(float((found.centers - camera.centers).norm()))
    assert 2 < errors[1] / errors[0] < 8 and 2 < errors[2] / errors[1] < 8 and errors[2] < 0.1


def test_the_error_of_the_place_is_foretold():
    "Over 30 draws of noise the errors have the size that `centre_error` says."
    camera, world = h36m._example_cameras()[[0]], points(200)
    found = []
    for seed in range(30):
        seen = pixels(world, camera) + 0.3 * np.random.default_rng(seed).normal(size=(200, 2))
        fitted = h36m.resect(world, seen, (1000, 1002))
        found.append((float((fitted.centers - camera.centers).norm()), h36m.centre_error(fitted, [world], [seen])))
    errors, foretold = np.array(found).T
    assert 0.75 < math.sqrt((errors**2).mean()) / foretold.mean() < 1.33 and foretold.std() < 0.3 * foretold.mean()


def test_pixels_that_do_not_settle_the_camera_are_refused(pack):
    "Rounded to every second pixel they fit within the limit, but leave the place of the cameras open."
    folder = pack("npz-bare")
    rewrite(folder / GT, each("positions_2d", lambda views_: [2 * np.round(v / 2) for v in views_]))
    assert "mm only" in refused(folder, subjects=["S9"])


def test_known_intrinsics_leave_only_the_pose():
    camera, world = h36m._example_cameras()[[1]], points(60)
    lens = torch.cat([camera.intrinsics[0], camera.distortion[0]])
    seen = pixels(world, camera) + 0.5 * np.random.default_rng(1).normal(size=(60, 2))
    found = h36m.resect(world, seen, (1000, 1000), intrinsics=lens, limit=2.)
    assert torch.equal(found.intrinsics, camera.intrinsics) and torch.equal(found.distortion, camera.distortion)
    assert 1000 * float((found.centers - camera.centers).norm()) < 6
    with pytest.raises(InputError, match="px away"): h36m.resect(world, seen, (1000, 1000), intrinsics=lens * torch.tensor([1.2, 1, 1, 1, 1, 1, 1, 1, 1]), limit=2.)


def test_one_lens_for_several_poses():
    "Together they know the lens better than each alone."
    eyes, worlds = [h36m._example_cameras(k)[[2]] for k in range(5)], [points(80, k) for k in range(5)]
    noisy = [pixels(w, e) + 0.3 * np.random.default_rng(k).normal(size=(80, 2)) for k, (w, e) in enumerate(zip(worlds, eyes))]
    joint = h36m.resect_together(worlds, noisy, (1000, 1000))
    alone = [h36m.resect(w, p, (1000, 1000)) for w, p in zip(worlds, noisy)]
    error = lambda c: float((c.intrinsics[0, :2] - eyes[0].intrinsics[0, :2]).abs().max())
    assert len(joint) == 5 and bool((joint.intrinsics == joint.intrinsics[0]).all())
    assert error(joint) < np.mean([error(c) for c in alone]) and max(float((joint.centers[k] - e.centers[0]).norm()) for k, e in enumerate(eyes)) < 0.06


RESECTION_FAULTS = {
    "a plane": (lambda w, p: (np.where([True, True, False], w, 1.), p), "nearly in a plane"),
    "a tilted plane": (lambda w, p: (np.stack([w[:, 0], w[:, 1], 0.3 * w[:, 0] - w[:, 1]], 1), p), "nearly in a plane"),
    "a line": (lambda w, p: (w[:, :1] * (1, 2, 3), p), "nearly in a plane"),
    "one point": (lambda w, p: (np.repeat(w[:1], len(w), 0), p), "plane"),
    "few": (lambda w, p: (w[:20], p[:20]), "at least 30"),
    "NaN": (lambda w, p: (w, np.where(p == p[3], np.nan, p)), "NaN"),
    "other lengths": (lambda w, p: (w, p[:-1]), "expected (n, 3) and (n, 2)"),
    "shuffled": (lambda w, p: (w, p[::-1].copy()), "px away"),
    "another camera's frame": (lambda w, p: (w, p + 40 * np.sin(7 * w[:, :2])), "px away"),
}


@pytest.mark.parametrize("change, telling", RESECTION_FAULTS.values(), ids=RESECTION_FAULTS)
def test_resection_refuses(change, telling):
    camera = h36m._example_cameras()[[0]]
    world, seen = change(points(), pixels(points(), camera))
    with pytest.raises(InputError) as refusal: h36m.resect(world, seen, (1000, 1002))
    assert telling in str(refusal.value) and "expected" in str(refusal.value)


def test_detections_do_not_calibrate(pack):
    "Without exact pixels nothing is guessed from detections; exact pixels that are none are refused."
    folder = pack("npz-bare")
    (folder / GT).unlink()
    assert "nothing gives the cameras" in refused(folder, input_2d="cpn")
    shutil.copy(folder / CPN, folder / GT)
    assert "resection of camera" in refused(folder)


# ---------- LCN

def lcn_rows(folder, part="test"): return load_pickle(folder / f"h36m_{part}.pkl")


def test_every_field_of_lcn(examples):
    folder, _ = examples("lcn")
    table, rows = h36m.read_lcn(folder / "h36m_test.pkl"), lcn_rows(folder)
    assert set(table) == {"videoid", "cameraid", "camera_param", "imageid", "image_path", "joint_3d_camera", "joint_3d_image", "box", "center", "scale", "subject", "action", "subaction", "root_depth", "camera"}
    assert len(rows) == len(table["subject"]) == 2 * 3 * 4 * 3
    for n in (0, 17, len(rows) - 1):
        for name in set(table) - {"camera", "camera_param", "image_path"}: assert np.allclose(table[name][n], rows[n][name], rtol=1e-6), name
        assert table["image_path"][n] == rows[n]["image_path"] and table["camera"][n] == rows[n]["camera_param"]["name"]


def test_lcn_rows_in_any_order(pack):
    folder = pack("lcn")
    wanted, sh = h36m.load("test", folder), h36m.load("test", folder, "sh")
    rows, order = lcn_rows(folder), np.random.default_rng(0).permutation(72)
    (folder / "h36m_test.pkl").write_bytes(dumps_python2([rows[n] for n in order]))
    assert torch.equal(h36m.load("test", folder).pose_3d, wanted.pose_3d)
    assert "body sizes" in refused(folder, input_2d="sh") # detections stand in the old order
    found = load_pickle(folder / "h36m_sh_dt_ft.pkl")
    found["test"] = {n: v[order] for n, v in found["test"].items()}
    (folder / "h36m_sh_dt_ft.pkl").write_bytes(dumps_python2(found))
    assert torch.equal(h36m.load("test", folder, "sh").pose_2d, sh.pose_2d)


def test_lcn_translation_is_found_out(pack):
    "T may be the centre of the camera, or the translation: four cameras tell."
    folder = pack("lcn")
    wanted = h36m.load("test", folder)
    assert "centre" in wanted.settings["cameras"]["from"]
    rows = lcn_rows(folder)
    for p in {id(r["camera_param"]): r["camera_param"] for r in rows}.values(): p["T"] = -p["R"] @ p["T"]
    (folder / "h36m_test.pkl").write_bytes(dumps_python2(rows))
    found = h36m.load("test", folder)
    assert "translation" in found.settings["cameras"]["from"] and torch.allclose(found.cameras.translation, wanted.cameras.translation, atol=1e-9)


def row_change(**values):
    def apply(rows):
        for row in rows: row.update({n: v(row) for n, v in values.items()})
    return apply


def camera_change(function): # on every camera_param, once
    def apply(rows):
        for p in {id(r["camera_param"]): r["camera_param"] for r in rows}.values(): function(p)
    return apply


LCN_FAULTS = {
    "metres": (row_change(joint_3d_camera=lambda r: r["joint_3d_camera"] / 1000), "expected millimetres"),
    "root-relative": (row_change(joint_3d_camera=lambda r: r["joint_3d_camera"] - r["joint_3d_camera"][0]), "joint_3d_camera"),
    "16 joints": (row_change(joint_3d_camera=lambda r: r["joint_3d_camera"][:16]), "expected (17, 3)"),
    "a row without": (lambda rows: rows[7].pop("root_depth"), "row 7 has no field 'root_depth'"),
    "a row that is none": (lambda rows: rows.__setitem__(5, 3), "row 5 has no field"),
    "image of another pose": (lambda rows: rows[9].update(joint_3d_image=rows[40]["joint_3d_image"]), "row 9 is"),
    "a box": (row_change(box=lambda r: r["box"] + 20), "field 'box'"),
    "scale": (row_change(scale=lambda r: 2 * r["scale"]), "field 'scale'"),
    "depth": (row_change(root_depth=lambda r: r["root_depth"] + 9), "field 'root_depth'"),
    "path": (row_change(image_path=lambda r: "x.jpg"), "field 'image_path'"),
    "camera number": (row_change(cameraid=lambda r: (r["cameraid"] + 1) % 4), "field 'cameraid'"),
    "subject": (row_change(subject=lambda r: 9), "field 'subject'"),
    "frame": (row_change(imageid=lambda r: r["imageid"] + 1), "field 'imageid'"),
    "NaN": (lambda rows: rows[3]["joint_3d_camera"].__setitem__(0, np.nan), "row 3 holds NaN"),
    "camera without k": (camera_change(lambda p: p.pop("k")), "camera_param"),
    "camera of another name": (camera_change(lambda p: p.update(name="cam")), "the name is 'cam'"),
    "turned cameras": (camera_change(lambda p: p.update(R=p["R"].T)), "the cameras put one person"),
    "R of two rows": (camera_change(lambda p: p.update(R=p["R"][:2])), "found 6 numbers"),
    "text for numbers": (row_change(box=lambda r: "abcd"), "field 'box'"),
}


@pytest.mark.parametrize("change, telling", LCN_FAULTS.values(), ids=LCN_FAULTS)
def test_wrong_lcn_files_are_refused(pack, change, telling):
    folder = pack("lcn")
    rows = lcn_rows(folder)
    change(rows)
    (folder / "h36m_test.pkl").write_bytes(dumps_python2(rows))
    assert telling in refused(folder)


@pytest.mark.parametrize("content", ([], {}, 3, "abc", [1, 2], None), ids=repr)
def test_pickles_of_something_else(pack, content):
    folder = pack("lcn")
    (folder / "h36m_test.pkl").write_bytes(dumps_python2(content))
    assert "h36m_test.pkl" in refused(folder)


SH_FAULTS = {
    "a row less": (lambda c: c["test"].update(joint3d_image=c["test"]["joint3d_image"][:-1]), "expected (72, 17, 2 or more)"),
    "no confidence": (lambda c: c["test"].pop("confidence"), "'joint3d_image' or 'confidence' is missing"),
    "no part": (lambda c: c.pop("test"), "field 'test'"),
    "16 joints": (lambda c: c["test"].update(joint3d_image=c["test"]["joint3d_image"][:, :16]), "expected (72, 17"),
    "rows of other clips": (lambda c: c["test"].update(joint3d_image=np.roll(c["test"]["joint3d_image"], 12, 0)), "belong to other frames"),
}


@pytest.mark.parametrize("change, telling", SH_FAULTS.values(), ids=SH_FAULTS)
def test_hourglass_rows_must_fit(pack, change, telling):
    folder = pack("lcn")
    content = load_pickle(folder / "h36m_sh_dt_ft.pkl")
    change(content)
    (folder / "h36m_sh_dt_ft.pkl").write_bytes(dumps_python2(content))
    assert telling in refused(folder, input_2d="sh")
    (folder / "h36m_sh_dt_ft.pkl").unlink()
    assert "is not there" in refused(folder, input_2d="sh")


# ---------- writing

@pytest.mark.parametrize("skeleton", ("h36m17", "h36m16"))
def test_videopose3d_round_trip(examples, tmp_path, skeleton):
    wanted = h36m.load("train", examples("npz")[0], skeleton=skeleton)
    cpn = h36m.load("train", examples("npz")[0], "cpn", skeleton=skeleton)
    names = {p.name for poses in (wanted, cpn) for p in h36m.write_videopose3d(poses, tmp_path)}
    assert names == {THREE, GT, CPN, "h36m_cameras.json"}
    found, again = h36m.load("train", tmp_path), h36m.load("train", tmp_path, "cpn")
    assert found.skeleton.name == skeleton and torch.equal(again.pose_2d, cpn.pose_2d)
    for name in ("camera_id", "subject", "action", "sequence", "frame"): assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    assert torch.allclose(found.pose_3d, wanted.pose_3d, atol=2e-6) and torch.allclose(found.pose_2d, wanted.pose_2d, atol=2e-3) and found.sequence_names == wanted.sequence_names
    layout = load_npz(tmp_path / GT)["metadata"]
    assert layout["num_joints"] == wanted.skeleton.num_joints and layout["keypoints_symmetry"] == [list(wanted.skeleton.left), list(wanted.skeleton.right)]


def test_writing_other_sets(examples, tmp_path):
    "Any set with shared frames can be written; one with gaps is refused before a file is there."
    part = h36m.load("test", examples("npz")[0])
    with pytest.raises(InputError, match="same unbroken frames"): h36m.write_videopose3d(part.select(torch.arange(1, len(part))), tmp_path / "a")
    with pytest.raises(InputError, match="same unbroken frames"): h36m.write_videopose3d(part.select(part.frame != 3), tmp_path / "a")
    with pytest.raises(InputError, match="no 3D"): h36m.write_videopose3d(replace(part, pose_3d=None), tmp_path / "a")
    assert not list((tmp_path / "a").glob("*"))
    made = h36m.write_videopose3d(part.select(part.camera_id == 1), tmp_path / "b", "one")
    tree = load_npz(made[1])["positions_2d"]
    assert [p.name for p in made] == ["data_3d_one.npz", "data_2d_one_gt.npz", "one_cameras.json"] and len(tree["S9"]["Directions"]) == 1


# ---------- anything at all

def spoilt(data: bytes, cut: int, at: int, value: int) -> bytes:
    data = bytearray(data[: max(1, len(data) - cut)])
    data[at % len(data)] ^= value
    return bytes(data)


@pytest.mark.parametrize("layout, name, input_2d", [("npz", THREE, "gt"), ("npz", GT, "gt"), ("npz", CPN, "cpn"), ("npz", "cameras.json", "gt"), ("cdf", "metadata.xml", "gt"), ("cdf", f"{CDF}/Directions.cdf", "gt"),
                                                    ("lcn", "h36m_test.pkl", "gt"), ("lcn", "h36m_sh_dt_ft.pkl", "sh")])
def test_damaged_bytes_end_in_a_sentence_or_a_valid_set(pack, layout, name, input_2d):
    folder, draw = pack(layout), np.random.default_rng(3)
    data = (folder / name).read_bytes()
    refusals = 0
    for case in range(12):
        cut = 0 if case % 2 else int(draw.integers(1, len(data)))
        (folder / name).write_bytes(spoilt(data, cut, int(draw.integers(0, len(data) if case % 3 else 400)), int(draw.integers(1, 256))))
        try: h36m.load("test", folder, input_2d).check()
        except InputError as error:
            refusals += 1
            assert "\n" not in str(error)
    assert refusals >= 5
