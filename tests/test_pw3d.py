"3DPW: pickles of Python 2 in the owner's layout, read to the poses they were written from."
import os, pickle

import numpy as np
import pytest
import torch
from poseprojects.camera import project, screen_normalize
from poseprojects.data import pw3d
from poseprojects.data.base import clips
from poseprojects.data.detections import OPENPOSE18
from poseprojects.data.safe import dumps_python2, load_pickle
from poseprojects.skeleton import H36M16, SMPL24
from poseprojects.storage import InputError

@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POSEPROJECTS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"

@pytest.fixture
def pack(tmp_path):
    pw3d.example(tmp_path / "pw3d")
    return tmp_path / "pw3d"

def the_file(pack, split="test"): return next((pack / "sequenceFiles" / split).glob("*.pkl"))

def changed(pack, change, split="test"):
    content = load_pickle(the_file(pack, split))
    change(content)
    the_file(pack, split).write_bytes(dumps_python2(content))

def same(poses, wanted, metres=1e-6, pixels=1e-3):
    for name, tensor in wanted.tensors().items():
        assert getattr(poses, name).dtype == tensor.dtype and getattr(poses, name).shape == tensor.shape
        assert torch.allclose(getattr(poses, name).double(), tensor.double(), rtol=0, atol=pixels if name == "pose_2d" else metres), name
    for name in ("skeleton", "sequence_names", "subject_names", "action_names", "frame_rate", "frame_step", "input_2d"): assert getattr(poses, name) == getattr(wanted, name)
    for field in ("intrinsics", "distortion", "rotation", "translation", "resolution"): assert torch.equal(getattr(poses.cameras, field), getattr(wanted.cameras, field))

# ---------- what is written is read

@pytest.mark.parametrize("split", pw3d.SPLITS)
def test_round_trip(tmp_path, split):
    wanted = pw3d.example(tmp_path / "pw3d")
    same(pw3d.load(split, tmp_path / "pw3d"), wanted[split])

def test_files_are_python_2_pickles(pack):
    data = the_file(pack).read_bytes()
    assert data[:2] == b"\x80\x02" and b"numpy.core.multiarray" in data and b"_codecs" not in data
    assert pickle.loads(data, encoding="latin-1")["sequence"] == "downtown_walkUphill_00"
    assert len(data) < 300_000

def test_the_split_folders_may_be_the_root(tmp_path):
    wanted = pw3d.example(tmp_path / "pw3d")
    same(pw3d.load("train", tmp_path / "pw3d/sequenceFiles"), wanted["train"])

def test_world_to_camera_by_hand(pack):
    "One joint of one frame, without any function of the library."
    content, poses = load_pickle(the_file(pack, "train")), pw3d.load("train", pack)
    world, pose, lens = content["jointPositions"][0][4, 3 * 7:3 * 8], content["cam_poses"][4], content["cam_intrinsics"]
    seen = pose[:3, :3] @ world + pose[:3, 3]
    assert np.allclose(poses.pose_3d[4, 7], seen, atol=1e-6)
    assert np.allclose(poses.pose_2d[4, 7], (lens @ (seen / seen[2]))[:2], atol=1e-3)

def test_only_valid_frames(pack):
    poses = pw3d.load("test", pack)
    first, second = (poses.frame[poses.sequence == s].tolist() for s in (0, 1))
    assert first == list(range(9)) and second == [0, 1, 5, 6, 7, 8]
    assert len(clips(poses)) == 3

def test_garbage_in_invalid_frames_does_not_matter(pack):
    before = pw3d.load("test", pack).pose_3d.clone()
    def spoil(c):
        c["campose_valid"][0][2:5] = 0
        c["cam_poses"][2:5] = np.nan
    changed(pack, spoil)
    after = pw3d.load("test", pack)
    assert len(after) == len(before) - 3 and torch.equal(after.pose_3d[-6:], before[-6:])

def test_one_fixed_camera_that_is_the_world(pack):
    eyes = pw3d.load("test", pack).cameras
    assert len(eyes) == 1 and torch.equal(eyes.rotation[0], torch.eye(3, dtype=torch.float64)) and not bool(eyes.translation.any())
    assert "moves" in pw3d.load("test", pack).settings["world"]

def test_sizes_of_images(pack):
    assert pw3d.load("train", pack).cameras.resolution.tolist() == [[1080, 1920]] and pw3d.load("validation", pack).cameras.resolution.tolist() == [[1920, 1080]]

@pytest.mark.parametrize("split", pw3d.SPLITS)
def test_square_pictures_are_divided_by_their_longer_side(pack, split):
    "Specification of PoseAug, 8.4: 2D over max(w, h); the camera still projects the pose there."
    own, square = pw3d.load(split, pack), pw3d.load(split, pack, picture="square")
    sides, (eye, wide) = own.cameras.resolution[0], (p.cameras[p.camera_id.long()] for p in (own, square))
    assert square.cameras.resolution.tolist() == [[1920, 1920]] and torch.equal(square.pose_3d, own.pose_3d) and square.fingerprint != own.fingerprint
    wanted = 2 * own.pose_2d.double() / sides.max() - sides / sides.max()
    assert torch.allclose(screen_normalize(square.pose_2d.double(), wide.resolution), wanted, atol=1e-6)
    assert float((project(square.pose_3d.double(), wide) - square.pose_2d).abs().max()) < 1e-3 > float((project(own.pose_3d.double(), eye) - own.pose_2d).abs().max())
    assert torch.equal(pw3d.load(split, pack, picture="square", inside=True).frame, pw3d.load(split, pack, inside=True).frame) # inside the picture itself, not its bars

def test_people_behind_the_camera_are_left_out(pack):
    def turn(c): c["cam_poses"][3, :3] = np.diag([-1., 1., -1.]) @ c["cam_poses"][3, :3]
    changed(pack, turn, "train")
    assert pw3d.load("train", pack).frame.tolist() == [0, 1, 2, 4, 5, 6, 7, 8]

def test_inside(pack):
    def move(c): c["cam_poses"][3, :3, 3] += (5., 0, 0)
    changed(pack, move, "train")
    poses = pw3d.load("train", pack)
    assert len(poses) == 9 and float(poses.pose_2d[3].max()) > 1920
    assert pw3d.load("train", pack, inside=True).frame.tolist() == [0, 1, 2, 4, 5, 6, 7, 8]

def test_a_second_run_opens_the_cache(pack, own_cache, monkeypatch):
    first = pw3d.load("train", pack)
    monkeypatch.setattr(pw3d, "_build", lambda *a, **k: pytest.fail("converted again"))
    assert pw3d.load("train", pack).fingerprint == first.fingerprint and len(list(own_cache.iterdir())) == 1

# ---------- OpenPose

def test_openpose(pack):
    poses, content = pw3d.load("test", pack, "openpose"), load_pickle(the_file(pack))
    assert poses.input_2d == "openpose" and poses.skeleton == pw3d.SMPL14 and poses.frame[:8].tolist() == list(range(8))
    raw = content["poses2d"][0][2]
    at, of = pw3d.SMPL14.index, lambda name: raw[:, OPENPOSE18.index(name)]
    for joint in ("left_wrist", "right_knee", "left_hip", "right_shoulder"):
        assert np.allclose(poses.pose_2d[2, at(joint)], of(joint)[:2], atol=1e-3) and np.isclose(poses.confidence[2, at(joint)], of(joint)[2], atol=1e-6)
    assert np.allclose(poses.pose_2d[2, at("neck")], of("mid_shoulders")[:2], atol=1e-3)
    assert np.allclose(poses.pose_2d[2, at("pelvis")], (of("left_hip") + of("right_hip"))[:2] / 2, atol=1e-3)
    assert np.isclose(poses.confidence[2, at("pelvis")], min(of("left_hip")[2], of("right_hip")[2]), atol=1e-6)

def test_a_joint_that_was_not_found(pack):
    poses, wrist = pw3d.load("test", pack, "openpose"), pw3d.SMPL14.index("right_wrist")
    assert poses.confidence[1, wrist] == 0 and float(poses.confidence[[0, 2], wrist].min()) > 0
    assert torch.allclose(poses.pose_2d[1, wrist], (poses.pose_2d[0, wrist] + poses.pose_2d[2, wrist]) / 2, atol=1e-3)

def test_openpose_is_near_the_truth(pack):
    for skeleton in ("smpl14", "h36m16"):
        poses = pw3d.load("test", pack, "openpose", skeleton=skeleton)
        exact = project(poses.pose_3d.double(), poses.cameras[poses.camera_id.long()])
        limbs = [j for j, n in enumerate(poses.skeleton.joints) if n.endswith(("knee", "elbow", "wrist"))]
        assert 1 < float((poses.pose_2d - exact)[:, limbs].norm(dim=-1).median()) < 4

def test_filled_joints():
    found = np.zeros((3, 3, 2))
    found[:, :, 0] = (1., 2., .5), (3., 4., 1.5), (5., 6., .5)
    places, confidence, some = pw3d.filled_joints(found)
    assert places[:, 1].tolist() == [[1, 2], [3, 4], [5, 6]] and confidence.tolist() == [[.5, 0], [1, 0], [.5, 0]] and some.all()
    assert not pw3d.filled_joints(0 * found)[2].any()

def test_modelled_detectors(pack):
    poses = pw3d.load("train", pack, "hrnet-like")
    assert poses.input_2d == "hrnet-like" and float((poses.pose_2d - pw3d.load("train", pack).pose_2d).norm(dim=-1).max()) > 1

# ---------- joint sets

def test_smpl14_are_the_same_rows(pack):
    full, few = pw3d.load("train", pack), pw3d.load("train", pack, skeleton="smpl14")
    assert torch.equal(few.pose_3d, full.pose_3d[:, list(SMPL24.indices(pw3d.SMPL14.joints))])

def test_h36m16(pack):
    full, few = pw3d.load("train", pack).pose_3d, pw3d.load("train", pack, skeleton="h36m16").pose_3d
    assert torch.allclose(few[:, H36M16.index("head")], 2 * full[:, SMPL24.index("skull_base")] - full[:, SMPL24.index("neck")], atol=1e-6)
    assert torch.equal(few[:, H36M16.index("left_elbow")], full[:, SMPL24.index("left_elbow")])

# ---------- refusals

def refused(pack, split="test", *args, **options):
    with pytest.raises(InputError) as refusal: pw3d.load(split, pack, *args, **options)
    text = str(refusal.value)
    assert "\n" not in text
    return text

def millimetres(c):
    c["jointPositions"] = [1000 * j for j in c["jointPositions"]]
    c["cam_poses"][:, :3, 3] *= 1000

FAULTS = {
    **{f"without {name}": (lambda c, name=name: c.pop(name), f"field '{name}' is missing") for name in ("sequence", "jointPositions", "cam_poses", "cam_intrinsics", "campose_valid")},
    "millimetres": (millimetres, "divide by 1000"),
    "22 joints": (lambda c: c.update(jointPositions=[j[:, :66] for j in c["jointPositions"]]), "shape (9, 66)"),
    "NaN": (lambda c: c["jointPositions"][1].__setitem__((3, 5), np.nan), "person 1, field 'jointPositions'"),
    "text for joints": (lambda c: c.update(jointPositions="many"), "found a str"),
    "joints of strings": (lambda c: c.update(jointPositions=["a", "b"]), "person 0, field 'jointPositions'"),
    "no people": (lambda c: c.update(jointPositions=[]), "entries for 0 people"),
    "no frames": (lambda c: c.update(jointPositions=[np.zeros((0, 72))]), "found no frames"),
    "people of different length": (lambda c: c["jointPositions"].__setitem__(1, c["jointPositions"][1][:5]), "found 9, 5 frames"),
    "cameras of another recording": (lambda c: c.update(cam_poses=c["cam_poses"][:5]), "'cam_poses'"),
    "camera to world, transposed": (lambda c: c.update(cam_poses=c["cam_poses"].swapaxes(1, 2).copy()), "no rigid motion"),
    "mirrored camera": (lambda c: c["cam_poses"].__setitem__((slice(None), 0), -c["cam_poses"][:, 0]), "no rigid motion"),
    "NaN in a valid camera": (lambda c: c["cam_poses"].__setitem__((4, 0, 3), np.nan), "'cam_poses'"),
    "camera to world": (lambda c: c.update(cam_poses=np.linalg.inv(c["cam_poses"])), "project"),
    "people exchanged in the detections": (lambda c: c.update(poses2d=[p + np.array([[600.], [0], [0]]) for p in c["poses2d"]]), "project"),
    "flags of one person": (lambda c: c["campose_valid"].pop(), "found entries for 1 people, expected 2"),
    "flags that are none": (lambda c: c["campose_valid"][0].__setitem__(0, 7), "values besides 0 and 1"),
    "no valid frame": (lambda c: c.update(campose_valid=[0 * v for v in c["campose_valid"]]), "no frame of its 1 recordings is kept"),
    "principal point elsewhere": (lambda c: c["cam_intrinsics"].__setitem__((0, 2), 5.), "principal point at (5, 960)"),
    "normalised intrinsics": (lambda c: c["cam_intrinsics"].__setitem__((0, 0), -1.), "'cam_intrinsics'"),
    "skew": (lambda c: c["cam_intrinsics"].__setitem__((0, 1), 3.), "'cam_intrinsics'"),
    "frame ids of another recording": (lambda c: c.update(img_frame_ids=np.arange(4)), "'img_frame_ids'"),
    "BODY_25 as OpenPose": (lambda c: c.update(poses2d=[np.zeros((9, 3, 25))] * 2), "'poses2d'"),
    "a list": (lambda c: c.clear() or c.update(sequence=3), "'sequence'"),
}

@pytest.mark.parametrize("change, telling", FAULTS.values(), ids=FAULTS)
def test_a_broken_file_is_refused_and_leaves_nothing(pack, own_cache, change, telling):
    changed(pack, change)
    text = refused(pack)
    assert telling in text and ("expected" in text or "divide" in text) and ("downtown_walkUphill_00.pkl" in text or "sequenceFiles" in text)
    assert not list(own_cache.glob("*"))

def test_truncated_files(pack):
    data = the_file(pack).read_bytes()
    for length in (0, 1, 2, 10, 1000, len(data) // 2, len(data) - 1):
        the_file(pack).write_bytes(data[:length])
        assert "downtown_walkUphill_00.pkl" in refused(pack)

class Hostile:
    "Unpickled carelessly, it makes a folder."
    def __init__(self, place): self.place = place
    def __reduce__(self): return (os.mkdir, (self.place,))

def test_a_pickle_that_would_run_something(pack, tmp_path):
    marker, content = tmp_path / "was-here", load_pickle(the_file(pack))
    the_file(pack).write_bytes(pickle.dumps(content | {"betas": Hostile(str(marker))}, protocol=2))
    assert "mkdir" in refused(pack) and not marker.exists()
    command = f"touch {marker}".encode()
    the_file(pack).write_bytes(b"\x80\x02cos\nsystem\nX" + len(command).to_bytes(4, "little") + command + b"\x85R.")
    assert "os.system" in refused(pack) and not marker.exists()

def test_two_recordings_of_one_name(pack):
    (pack / "sequenceFiles/test/copy.pkl").write_bytes(the_file(pack).read_bytes())
    assert "'downtown_walkUphill_00'" in refused(pack)

def test_openpose_that_is_not_there(pack):
    changed(pack, lambda c: c.pop("poses2d"))
    assert "poses2d" in refused(pack, "test", "openpose") and len(pw3d.load("test", pack)) == 15

@pytest.mark.parametrize("arguments, options, telling", [(("both",), {}, "split 'both'"), (("test", "gt2"), {}, "2D input 'gt2'"), (("test",), {"skeleton": "coco17"}, "skeleton 'coco17'"),
                                                         (("test", "openpose"), {"skeleton": "smpl24"}, "OpenPose does not detect")])
def test_wrong_arguments(pack, arguments, options, telling): assert telling in refused(pack, *arguments, **options)

def test_missing_files(tmp_path, pack):
    the_file(pack, "train").unlink()
    assert "data_recipes/pw3d/README.md" in refused(pack, "train")
    (tmp_path / "empty").mkdir()
    assert "the folder is empty" in refused(tmp_path / "empty")

def test_recognise(pack, tmp_path):
    assert pw3d.recognise(pack).startswith("3DPW, 1 training") and pw3d.recognise(tmp_path / "nothing") is None
