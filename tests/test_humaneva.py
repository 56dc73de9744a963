"HumanEva-I: VideoPose3D's files, read to the poses they were written from, with cameras that nobody wrote down."
import os, shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from poseprojects.data import humaneva
from poseprojects.data.safe import load_npz
from poseprojects.skeleton import COCO17
from poseprojects.storage import InputError

WORLD, GT, DETECTED = "data_3d_humaneva15.npz", "data_2d_humaneva15_gt.npz", "data_2d_humaneva15_detectron_pt_coco.npz"

@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "One example for all tests, and what must come out."
    folder = tmp_path_factory.mktemp("humaneva") / "files"
    return folder, humaneva.example(folder)

@pytest.fixture(scope="module")
def loaded(made, tmp_path_factory):
    "Both parts, converted once."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POSEPROJECTS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield {split: humaneva.load(split, made[0]) for split in humaneva.SPLITS}

@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POSEPROJECTS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"

@pytest.fixture
def pack(made, tmp_path):
    shutil.copytree(made[0], tmp_path / "files")
    return tmp_path / "files"

def changed(pack, name, change):
    content = load_npz(pack / name)
    field = "positions_3d" if name == WORLD else "positions_2d"
    change(content[field])
    humaneva._save_tree(pack / name, **{field: content[field]})

def refused(pack, *args, split="test", **options):
    with pytest.raises(InputError) as refusal: humaneva.load(split, pack, *args, **options)
    text = str(refusal.value)
    assert "\n" not in text
    return text

# ---------- what is written is read

@pytest.mark.parametrize("split", humaneva.SPLITS)
def test_round_trip(made, loaded, split):
    poses, wanted = loaded[split], made[1][split]
    for name, tensor in wanted.tensors().items():
        assert getattr(poses, name).dtype == tensor.dtype
        assert torch.allclose(getattr(poses, name).double(), tensor.double(), rtol=0, atol=1e-3 if name == "pose_2d" else 1e-5), name
    for name in ("skeleton", "sequence_names", "subject_names", "action_names", "frame_rate", "frame_step", "input_2d"): assert getattr(poses, name) == getattr(wanted, name)
    assert poses.cameras.names == wanted.cameras.names and torch.equal(poses.cameras.resolution, wanted.cameras.resolution)
    assert torch.allclose(poses.cameras.centers, wanted.cameras.centers, rtol=0, atol=1e-5) and torch.allclose(poses.cameras.intrinsics, wanted.cameras.intrinsics, rtol=0, atol=1e-2)

def test_numbers_by_hand(made, loaded):
    "A wrist in the world straight from the file, and one in the image."
    tree, pixels, poses = load_npz(made[0] / WORLD)["positions_3d"], load_npz(made[0] / GT)["positions_2d"], loaded["test"]
    rows = (poses.sequence == poses.sequence_names.index("Validate/S2/Jog 1 chunk0")) & (poses.camera_id == poses.cameras.names.index("S2/C3"))
    eye, joint = poses.cameras[[poses.cameras.names.index("S2/C3")]], humaneva.HUMANEVA15.index("right_wrist")
    world = (poses.pose_3d[rows].double() - eye.translation) @ eye.rotation[0]
    assert np.allclose(world[:, joint], tree["Validate/S2"]["Jog 1 chunk0"][:, joint], atol=1e-5)
    assert np.allclose(poses.pose_2d[rows, joint], pixels["Validate/S2"]["Jog 1 chunk0"][2][:, joint], atol=1e-3)
    assert poses.frame[rows].tolist() == list(range(12))

def test_the_example_is_small_and_holds_dictionaries(made):
    assert sum(f.stat().st_size for f in made[0].iterdir()) < 500_000
    with np.load(made[0] / GT, allow_pickle=True) as raw: tree = raw["positions_2d"].item()
    assert list(tree) == ["Train/S1", "Train/S2", "Validate/S1", "Validate/S2"] and len(tree["Train/S1"]["Jog 1 chunk0"]) == 3

def test_parts_subjects_and_actions(loaded):
    assert all(n.startswith("Train/") for n in loaded["train"].sequence_names) and all(n.startswith("Validate/") for n in loaded["test"].sequence_names)
    assert loaded["test"].subject_names == ("S1", "S2") and loaded["test"].action_names == ("Walking", "Jog") and loaded["test"].frame_rate == 60
    assert [humaneva.action_name(n) for n in ("Walking 1 chunk0", "ThrowCatch 1 chunk12", "Box 1", "Gestures chunk1", "")] == ["Walking", "ThrowCatch", "Box", "Gestures", "unnamed"]

def test_some_actions(made, loaded):
    poses = humaneva.load("test", made[0], actions=["Jog"])
    assert poses.sequence_names == ("Validate/S1/Jog 1 chunk0", "Validate/S2/Jog 1 chunk0")
    assert torch.equal(poses.pose_2d, loaded["test"].pose_2d[(loaded["test"].action == 1)])
    assert humaneva.load("test", made[0], actions="Jog").fingerprint == poses.fingerprint

def test_pixels_in_single_precision(pack, made):
    "As files in circulation have them: the place of a camera is then right to a millimetre, directions to the pixel's thousandth."
    def single(tree):
        for actions in tree.values():
            for action in actions: actions[action] = [v.astype(np.float32) for v in actions[action]]
    changed(pack, GT, single)
    poses, wanted = humaneva.load("test", pack), made[1]["test"]
    assert float((poses.pose_3d - wanted.pose_3d).norm(dim=-1).max()) < 0.002
    relative = lambda p: p - p[:, :1]
    assert float((relative(poses.pose_3d) - relative(wanted.pose_3d)).norm(dim=-1).max()) < 0.0005

def test_a_second_run_opens_the_cache(made, own_cache, monkeypatch):
    humaneva.load("test", made[0], actions=["Jog"])
    monkeypatch.setattr(humaneva, "_build", lambda *a, **k: pytest.fail("converted again"))
    humaneva.load("test", made[0], actions=["Jog"])
    assert len(list(own_cache.iterdir())) == 1

# ---------- detections

def test_detectron(made, loaded):
    poses, raw = humaneva.load("test", made[0], "detectron"), load_npz(made[0] / DETECTED)["positions_2d"]["Validate/S1"]["Walking 1 chunk2"]
    assert poses.input_2d == "detectron" and torch.equal(poses.pose_3d, loaded["test"].pose_3d) and bool((poses.confidence == 1).all())
    rows = (poses.sequence == poses.sequence_names.index("Validate/S1/Walking 1 chunk2")) & (poses.camera_id == 1)
    at, coco = humaneva.HUMANEVA15.index, COCO17.index
    assert len(raw[1]) == 13 and int(rows.sum()) == 12 # its end has no motion capture
    assert np.allclose(poses.pose_2d[rows, at("left_knee")], raw[1][:12, coco("left_knee")], atol=1e-3)
    assert np.allclose(poses.pose_2d[rows, at("pelvis")], (raw[1][:12, coco("left_hip")] + raw[1][:12, coco("right_hip")]) / 2, atol=1e-3)
    apart = (poses.pose_2d - loaded["test"].pose_2d).norm(dim=-1)
    assert 1 < float(apart[:, at("left_wrist")].median()) < 3 < float(apart[:, at("head")].median()) < 60

def test_confidence_of_detections(pack):
    def with_confidence(tree):
        for actions in tree.values():
            for action in actions: actions[action] = [np.concatenate([v, np.linspace(.1, .9, 17)[None, :, None].repeat(len(v), 0)], -1) for v in actions[action]]
    changed(pack, DETECTED, with_confidence)
    poses = humaneva.load("test", pack, "detectron", actions=["Jog"])
    assert np.isclose(poses.confidence[0, humaneva.HUMANEVA15.index("pelvis")], np.linspace(.1, .9, 17)[COCO17.index("left_hip")], atol=1e-6)

def test_modelled_detectors(made): assert humaneva.load("test", made[0], "cpn-like", actions=["Jog"]).input_2d == "cpn-like"

# ---------- refusals

def every(change):
    def apply(tree):
        for actions in tree.values():
            for action in actions: actions[action] = change(actions[action])
    return apply

def only(change): return lambda tree: tree["Validate/S2"].__setitem__("Jog 1 chunk0", change(tree["Validate/S2"]["Jog 1 chunk0"]))

def nan(x): x = x.copy(); x[0, 0, 0] = np.nan; return x

FAULTS = {
    "millimetres": (WORLD, every(lambda x: 1000 * x), "divide by 1000"), "one chunk in millimetres": (WORLD, only(lambda x: 1000 * x), "Validate/S2, Jog 1 chunk0"),
    "16 joints": (WORLD, only(lambda x: np.concatenate([x, x[:, :1]], 1)), "shape (12, 16, 3)"), "NaN": (WORLD, only(nan), "NaN"), "no frames": (WORLD, only(lambda x: x[:0]), "at least one frame"),
    "text": (WORLD, only(lambda x: "jog"), "found a str"), "joints in another order": (WORLD, every(lambda x: x[:, ::-1].copy()), "Train/S1"),
    "left and right exchanged in 3D only": (WORLD, every(lambda x: x[:, list(humaneva.HUMANEVA15.mirror)].copy()), "S1/C1"),
    "subjects without a part": (WORLD, lambda t: t.update(S1=t.pop("Train/S1")), "'S1'"), "no dictionary of actions": (WORLD, lambda t: t.update({"Train/S1": 3}), "dictionary of actions"), "nobody": (WORLD, lambda t: t.clear(), "an empty dict"),
    "no chunks": (WORLD, lambda t: [a.clear() for a in t.values()], "no chunks"),
    "only Train": (WORLD, lambda t: [t.pop(k) for k in list(t) if k.startswith("Val")], "no chunk of Validate"),
    "a chunk without 2D": (GT, lambda t: t["Train/S2"].pop("Jog 1 chunk0"), "has no Train/S2, Jog 1 chunk0"), "an actor without 2D": (GT, lambda t: t.pop("Train/S2"), "has no Train/S2"),
    "two cameras": (GT, only(lambda v: v[:2]), "2 entries"), "one array for all cameras": (GT, only(lambda v: np.array(3.)), "expected one array for each"), "17 joints": (GT, only(lambda v: [np.zeros((12, 17, 2))] * 3), "(12, 17, 2)"),
    "short 2D": (GT, only(lambda v: [x[:5] for x in v]), "fewer frames than the 12"), "NaN in 2D": (GT, only(lambda v: [nan(x) for x in v]), "NaN"),
    "another camera's frames": (GT, every(lambda v: [v[0][::-1].copy(), v[1], v[2]]), "the camera S1/C1 cannot be found"),
    "one chunk of another recording": (GT, lambda t: t["Validate/S2"].__setitem__("Jog 1 chunk0", t["Validate/S2"]["Walking 1 chunk0"]), "S2"),
    "normalised 2D": (GT, every(lambda v: [x / 320 - 1 for x in v]), "S1/C1"),
}

@pytest.mark.parametrize("name, change, telling", FAULTS.values(), ids=FAULTS)
def test_a_broken_file(pack, own_cache, name, change, telling):
    changed(pack, name, change)
    text = refused(pack)
    assert telling in text and ("expected" in text or "divide" in text or "but people are" in text) and ("humaneva15" in text or "humaneva-test" in text)
    assert not list(own_cache.glob("*"))

class Hostile:
    "Unpickled carelessly, it makes a folder."
    def __init__(self, place): self.place = place
    def __reduce__(self): return (os.mkdir, (self.place,))

@pytest.mark.parametrize("name", (WORLD, GT))
def test_a_hostile_pickle_inside(pack, tmp_path, name):
    humaneva._save_tree(pack / name, positions_3d={"Train/S1": Hostile(str(tmp_path / "was-here"))}, positions_2d={})
    assert "mkdir" in refused(pack) and not (tmp_path / "was-here").exists()

def test_truncated_files(pack):
    for name in (WORLD, GT):
        data = (pack / name).read_bytes()
        for length in (0, 10, len(data) // 2, len(data) - 30):
            (pack / name).write_bytes(data[:length])
            assert name in refused(pack)
        (pack / name).write_bytes(data)

def test_missing_files(pack, tmp_path):
    (pack / DETECTED).unlink()
    assert DETECTED in refused(pack, "detectron")
    (pack / GT).unlink()
    assert "the cameras are found from it" in refused(pack)
    (tmp_path / "empty").mkdir()
    assert "the folder is empty" in refused(tmp_path / "empty")

@pytest.mark.parametrize("split, arguments, options, telling", [("validate", (), {}, "split 'validate'"), ("test", ("cpn",), {}, "2D input 'cpn'")])
def test_wrong_arguments(made, split, arguments, options, telling): assert telling in refused(made[0], *arguments, split=split, **options)

def test_an_action_that_is_not_there(made): assert "actions Box, expected some of Jog, Walking" in refused(made[0], actions=["Box"])

def test_recognise(made, tmp_path): assert WORLD in humaneva.recognise(made[0]) and humaneva.recognise(tmp_path) is None
