"MPI-INF-3DHP: training, test and packed files in their owners' layouts, read to the poses they were written from."
import os, shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from scipy.io import loadmat, savemat
from poseprojects.camera import project, ring, screen_normalize, world_to_camera
from poseprojects.data import mpi_inf_3dhp as mpi
from poseprojects.data.base import views
from poseprojects.data.safe import load_npz
from poseprojects.data.sources import example_people
from poseprojects.skeleton import H36M16, H36M17, KUDO_3DHP, MPI3DHP17, MPI3DHP28, XAS18, XAS_3DHP, convert
from poseprojects.storage import InputError

@pytest.fixture(scope="session")
def made(tmp_path_factory):
    "One example of each layout for all tests, and what must come out."
    folder = tmp_path_factory.mktemp("3dhp")
    return folder, {layout: mpi.example(folder / layout, layout) for layout in mpi.LAYOUTS}

@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POSEPROJECTS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"

@pytest.fixture
def release(made): return made[0] / "release"

@pytest.fixture
def pack(made, tmp_path):
    shutil.copytree(made[0] / "release", tmp_path / "3dhp")
    return tmp_path / "3dhp"

def same(poses, wanted, metres=1e-6, pixels=1e-3):
    for name, tensor in wanted.tensors().items():
        assert getattr(poses, name).dtype == tensor.dtype and getattr(poses, name).shape == tensor.shape, name
        assert torch.allclose(getattr(poses, name).double(), tensor.double(), rtol=0, atol=pixels if name == "pose_2d" else metres), name
    for name in ("skeleton", "sequence_names", "subject_names", "action_names", "frame_rate", "frame_step", "input_2d"): assert getattr(poses, name) == getattr(wanted, name), name
    assert poses.cameras.names == wanted.cameras.names
    for field in ("intrinsics", "distortion", "rotation", "translation", "resolution"): assert torch.allclose(getattr(poses.cameras, field), getattr(wanted.cameras, field), rtol=0, atol=1e-3 if field == "intrinsics" else 1e-7), field

def refused(folder, split="test", **options):
    with pytest.raises(InputError) as refusal: mpi.load(split, folder, **options)
    text = str(refusal.value)
    assert "\n" not in text
    return text

# ---------- what is written is read

@pytest.mark.parametrize("split", mpi.SPLITS)
def test_round_trip(made, split): same(mpi.load(split, made[0] / "release"), made[1]["release"][split])

@pytest.mark.parametrize("layout", ("spin", "poseaug"))
def test_packed_files_have_no_neck_or_nose_and_none_is_made_up(made, layout):
    assert "have no joint 'neck_nose'" in refused(made[0] / layout, skeleton="h36m17")
    assert mpi.load("test", made[0] / layout, skeleton="h36m16").skeleton == H36M16

@pytest.mark.parametrize("layout", ("spin", "poseaug"))
def test_round_trip_of_packed_files(made, layout):
    poses = mpi.load("test", made[0] / layout)
    same(poses, made[1][layout]["test"])
    assert poses.settings["layout"] == layout and poses.skeleton == H36M16

def test_the_example_is_small(release): assert sum(f.stat().st_size for f in release.rglob("*") if f.is_file()) < 1_000_000

def test_the_example_is_of_the_owners_layout(release):
    raw = loadmat(release / "S1/Seq1/annot.mat")
    assert raw["annot2"].shape == (14, 1) and raw["annot2"][3, 0].shape == (11, 56) and raw["univ_annot3"][13, 0].shape == (11, 84)
    with h5py.File(release / "mpi_inf_3dhp_test_set/TS5/annot_data.mat") as file: # as Python sees what MATLAB calls (2, 17, 1, N)
        assert file["annot2"].shape == (12, 1, 17, 2) and file["annot3"].shape == (12, 1, 17, 3) and file["valid_frame"].size == 12
    assert (release / "mpi_inf_3dhp_test_set/TS5/annot_data.mat").read_bytes()[:10] == b"MATLAB 7.3"

def test_training_numbers_by_hand(release):
    "A wrist of camera 7 straight from the file, without any function of the library."
    raw, poses = loadmat(release / "S6/Seq2/annot.mat"), mpi.load("train", release)
    joint = MPI3DHP28.index("left_wrist")
    rows = (poses.sequence == poses.sequence_names.index("S6/Seq2")) & (poses.camera_id == poses.cameras.names.index("S6/Seq2/7"))
    assert np.allclose(poses.pose_3d[rows, joint], raw["annot3"][7, 0].reshape(-1, 28, 3)[:, joint] / 1000, atol=1e-6)
    assert np.array_equal(poses.pose_2d[rows, joint], raw["annot2"][7, 0].reshape(-1, 28, 2)[:, joint])
    assert poses.frame[rows].tolist() == [1, 2, 3]

def test_views_are_one_person(release):
    poses = mpi.load("train", release)
    table = views(poses)
    assert table.shape[1] == 224 and bool(((table >= 0).sum(1) == 14).all())
    rows = table[5][table[5] >= 0]
    eyes = poses.cameras[poses.camera_id[rows].long()]
    world = (poses.pose_3d[rows].double() - eyes.translation[:, None]) @ eyes.rotation
    assert float((world - world[:1]).abs().max()) < 1e-5 and float(world[0, MPI3DHP28.index("head_top"), 2]) > 1.3

def test_test_set(release):
    poses = mpi.load("test", release)
    assert poses.skeleton == MPI3DHP17 and len(poses) == 60
    assert dict(zip(poses.cameras.names, poses.cameras.resolution.int().tolist())) == {**{f"TS{k}": [2048, 2048] for k in range(1, 5)}, "TS5": [1920, 1080], "TS6": [1920, 1080]}
    first = poses.frame[poses.sequence == 0].tolist()
    assert first == [2, 3, 4, 5, 7, 8, 9, 10, 11, 12] # frames 1 and 6 are not valid
    assert poses.action_names == mpi.ACTIVITIES and poses.action[:4].tolist() == [1, 2, 3, 4]
    with h5py.File(release / "mpi_inf_3dhp_test_set/TS1/annot_data.mat") as file:
        assert np.allclose(poses.pose_3d[4, 3], file["annot3"][6, 0, 3] / 1000, atol=1e-6) and np.allclose(poses.pose_2d[4, 3], file["annot2"][6, 0, 3], atol=1e-3)

def test_intrinsics_of_the_test_set_are_recovered(release):
    poses, truth = mpi.load("test", release), mpi._example_test()
    for k, name in enumerate(poses.cameras.names): assert np.allclose(poses.cameras.intrinsics[k], truth[name]["lens"], atol=1e-6)
    assert max(poses.settings["reprojection_px"].values()) < 0.01 and "recovered" in poses.settings["intrinsics"]

# ---------- geometry

def pairs(count=30, focal=1480.):
    body = torch.from_numpy(example_people(H36M16, count)[0].pose)
    eye = ring(1, size=2048, focal=focal)[torch.zeros(count, dtype=torch.long)]
    seen = world_to_camera(body, eye)
    return seen.numpy(), project(seen, eye).numpy(), np.array([focal, focal, 1024., 1024.])

def test_recovered_places_and_lenses():
    pose, px, lens = pairs()
    assert np.allclose(mpi.recover_intrinsics(pose, px), lens, atol=1e-6)
    relative = pose - pose[:, :1]
    assert np.allclose(mpi.recover_translation(relative, px, lens), pose[:, 0], atol=1e-7)
    assert np.allclose(mpi.recover_translation(relative + 5, px, lens), pose[:, 0] - 5, atol=1e-7) # any origin
    for focal in (700., 1100., 2500.):
        pose, px, lens = pairs(focal=focal)
        assert abs(mpi.recover_focal(pose - pose[:, :1], px, (2048, 2048)) / focal - 1) < 1e-4

def test_translation_minimises_pixels():
    pose, px, lens = pairs(5)
    noisy, relative = px + np.random.default_rng(0).normal(0, 4, px.shape), pose - pose[:, :1]
    place = mpi.recover_translation(relative, noisy, lens, rounds=20)
    def cost(t):
        p = relative + t[:, None]
        return np.square(p[..., :2] / p[..., 2:] * lens[:2] + lens[2:] - noisy).sum((1, 2))
    best = cost(place)
    for axis in range(3):
        for step in (-1e-3, 1e-3): assert (cost(place + step * np.eye(3)[axis]) > best).all()

def test_projection_error_counts_joints_behind():
    pose, px, lens = pairs(4)
    assert mpi.projection_error(pose, px, lens) < 1e-9 and mpi.projection_error(pose, px + (3, 4), lens) == pytest.approx(5) and mpi.projection_error(-pose, px, lens) == np.inf

# ---------- options

def test_universal_annotation(release):
    metres, universal = mpi.load("train", release), mpi.load("train", release, annotation="univ_annot3")
    assert torch.allclose(universal.pose_3d, metres.pose_3d * 1.05, atol=1e-5) and torch.equal(universal.pose_2d, metres.pose_2d)
    assert torch.allclose(mpi.load("test", release, annotation="univ_annot3").pose_3d, mpi.load("test", release).pose_3d * 1.05, atol=1e-5)

def test_universal_annotation_scaled_about_the_pelvis(pack):
    "It does not project onto annot2 where it stands; it is put where it does."
    def about_the_pelvis(path):
        raw, root = loadmat(path), 3 * MPI3DHP28.index("pelvis")
        for k in range(14):
            pose = raw["annot3"][k, 0].astype(np.float64).reshape(-1, 28, 3)
            centre = pose[:, [root // 3]]
            raw["univ_annot3"][k, 0] = (centre + 1.1 * (pose - centre)).reshape(len(pose), -1)
        savemat(path, {n: v for n, v in raw.items() if n[0] != "_"})
    for q in mpi.SEQUENCES: about_the_pelvis(pack / "S7" / q / "annot.mat")
    metres, universal = mpi.load("train", pack, subjects=["S7"]), mpi.load("train", pack, subjects=["S7"], annotation="univ_annot3")
    assert torch.allclose(universal.pose_3d, metres.pose_3d * 1.1, atol=1e-4) and max(universal.settings["reprojection_px"].values()) < 0.01

def test_cameras_and_strides(release):
    chest = mpi.load("train", release, cameras="chest", stride=2)
    assert chest.frame_step == 2 and chest.frame_rate == 12.5 and len(chest.cameras) == 80
    assert chest.cameras.names[:5] == tuple(f"S1/Seq1/{c}" for c in (0, 2, 4, 7, 8))
    assert chest.frame[(chest.sequence == 0) & (chest.camera_id == 0)].tolist() == [1, 3, 5, 7, 9, 11]
    one = mpi.load("train", release, cameras=[13], subjects=["S4"])
    assert one.cameras.names == ("S4/Seq1/13", "S4/Seq2/13") and one.subject_names == ("S4",) and len(one) == 6

def test_fast_recordings(release):
    common, every = mpi.load("train", release, cameras=[0]), mpi.load("train", release, cameras=[0], common_rate=False)
    frames = lambda poses, name: poses.frame[poses.sequence == poses.sequence_names.index(name)].tolist()
    assert frames(common, "S3/Seq1") == [1, 2] and frames(every, "S3/Seq1") == [1, 2, 3] == frames(common, "S2/Seq1")
    third = lambda poses: poses.pose_3d[(poses.sequence == poses.sequence_names.index("S3/Seq1"))][-1]
    assert torch.equal(third(common), third(every))

def test_inside(pack):
    def move(path):
        raw = loadmat(path)
        raw["annot3"][4, 0][1] += np.tile([2500., 0, 0], 28).astype(np.float32) # out of camera 4, one frame
        calibration = mpi.read_calibration(path.parent / "camera.calibration")[[4]]
        pose = torch.from_numpy(raw["annot3"][4, 0].reshape(-1, 28, 3).astype(np.float64))
        raw["annot2"][4, 0] = project(pose / 1000, calibration[torch.zeros(len(pose), dtype=torch.long)]).numpy().reshape(len(pose), -1)
        savemat(path, {n: v for n, v in raw.items() if n[0] != "_"})
    move(pack / "S8/Seq1/annot.mat")
    count = lambda inside: [int(((p := mpi.load("train", pack, subjects=["S8"], cameras="chest", inside=inside)).camera_id == c).sum()) for c in range(5)]
    assert count("") == [3] * 5 and count("sample") == [3, 3, 2, 3, 3] and count("instant") == [2] * 5

def test_joint_sets(release):
    own = mpi.load("train", release, cameras=[2])
    for name, rows, target in (("kudo", KUDO_3DHP, H36M17), ("xas", XAS_3DHP, XAS18)):
        other = mpi.load("train", release, cameras=[2], skeleton=name)
        assert other.skeleton == target and torch.equal(other.pose_3d, own.pose_3d[:, list(rows)]) and torch.equal(other.pose_2d, own.pose_2d[:, list(rows)])
    assert torch.equal(mpi.load("train", release, cameras=[2], skeleton="h36m17").pose_3d, convert(own.pose_3d, MPI3DHP28, H36M17))
    test = mpi.load("test", release)
    assert torch.equal(mpi.load("test", release, skeleton="h36m16").pose_2d, convert(test.pose_2d, MPI3DHP17, H36M16))

def test_x_as_supervision(release):
    train, test = mpi.load("xas-train", release), mpi.load("xas-test", release)
    assert train.skeleton == test.skeleton == XAS18 and train.subject_names == tuple(f"S{k}" for k in range(1, 7)) and test.subject_names == ("S7", "S8")
    assert train.frame_step == 5 and test.frame_step == 10 and train.settings["inside"] == "instant" and not train.settings["common_rate"]
    assert train.frame[(train.sequence == 0) & (train.camera_id == 0)].tolist() == [1, 6, 11]

def test_modelled_detectors(release):
    poses = mpi.load("test", release, "hrnet-like")
    assert poses.input_2d == "hrnet-like" and torch.equal(poses.pose_3d, mpi.load("test", release).pose_3d)

def test_a_second_run_opens_the_cache(release, own_cache, monkeypatch):
    first = mpi.load("test", release)
    monkeypatch.setattr(mpi, "_build", lambda *a, **k: pytest.fail("converted again"))
    assert mpi.load("test", release).fingerprint == first.fingerprint and len(list(own_cache.iterdir())) == 1

# ---------- packed files

def test_packed_poses_are_near_the_truth(made):
    "Places are estimates; everything relative to the root is the file's."
    truth = mpi.load("test", made[0] / "release", skeleton="h36m16", annotation="univ_annot3")
    for layout in ("spin", "poseaug"):
        poses = mpi.load("test", made[0] / layout)
        for k, name in enumerate(poses.sequence_names):
            mine = poses.select(poses.sequence == k)
            real = truth.select(truth.sequence == max(0, truth.sequence_names.index(name) if name in truth.sequence_names else 0))
            rows = torch.tensor([r for r, f in enumerate(mine.frame.tolist()) if f + (layout == "poseaug") in real.frame.tolist()])
            relative = lambda p: p - p[:, :1]
            assert torch.allclose(relative(mine.pose_3d[rows]), relative(real.pose_3d), atol=2e-6)
            assert torch.allclose(mine.pose_2d[rows], real.pose_2d, atol=2e-3)
            assert float((mine.pose_3d[rows] - real.pose_3d).norm(dim=-1).max()) < 0.2
            assert abs(float(mine.cameras.intrinsics[k, 0]) / 1480 - 1) < 0.05

def test_poseaug_2d_is_normalised_back(made):
    poses, raw = mpi.load("test", made[0] / "poseaug"), load_npz(made[0] / "poseaug/test_3dhp.npz")
    again = screen_normalize(poses.pose_2d.double(), poses.cameras.resolution[poses.camera_id.long()])
    assert np.allclose(again, raw["pose2d"], atol=1e-6)

def big_poseaug(folder, pixels=False, wide_fits=True):
    "2,929 samples, made of the small ones."
    folder.mkdir()
    relative, flat = [], []
    truth = mpi._example_test()
    for name, count in mpi.PACKED_COUNTS.items():
        c = truth[name]
        pose, px = (convert(np.moveaxis(c[n][:, :, 0], (0, 1, 2), (2, 1, 0)), MPI3DHP17, H36M16) for n in ("annot3", "annot2"))
        rows, size = np.arange(count) % len(pose), torch.tensor([[2048. if wide_fits is None else c["size"][0], c["size"][1]]], dtype=torch.float64)
        relative.append((pose[rows] - pose[rows][:, :1]) / 1000)
        flat.append(px[rows] if pixels else screen_normalize(torch.from_numpy(px[rows]), size).numpy())
    pose, px = np.concatenate(relative), np.concatenate(flat)
    if not wide_fits: px[-5, 3, 1] = 0.9
    np.savez(folder / "test_3dhp.npz", pose3d=pose.astype(np.float32), pose2d=px.astype(np.float32))
    return folder

@pytest.mark.parametrize("pixels", (False, True))
def test_poseaug_with_all_samples(tmp_path, pixels):
    poses = mpi.load("test", big_poseaug(tmp_path / "big", pixels))
    assert len(poses) == 2929 and poses.sequence_names == tuple(mpi.PACKED_COUNTS) and poses.cameras.resolution[5].tolist() == [1920, 1080]
    assert [int((poses.sequence == s).sum()) for s in range(6)] == [603, 540, 505, 553, 276, 452]

def test_poseaug_that_does_not_fit_the_counts(tmp_path):
    "A joint below the image of TS6: so these are not the counts of the recordings, and nothing is guessed."
    poses = mpi.read_poseaug(big_poseaug(tmp_path / "big", wide_fits=False) / "test_3dhp.npz")
    assert set(poses.recording) == {"test_3dhp"}

def spin_changed(made, tmp_path, **changes):
    shutil.copytree(made[0] / "spin", tmp_path / "spin")
    content = load_npz(tmp_path / "spin/mpi_inf_3dhp_valid.npz") | changes
    np.savez(tmp_path / "spin/mpi_inf_3dhp_valid.npz", **{k: v for k, v in content.items() if v is not None})
    return tmp_path / "spin"

def test_spin_in_any_order(made, tmp_path):
    content = load_npz(made[0] / "spin/mpi_inf_3dhp_valid.npz")
    order = np.random.default_rng(0).permutation(72)
    shuffled = spin_changed(made, tmp_path, **{k: content[k][order] for k in ("part", "S", "imgname")})
    same(mpi.load("test", shuffled), mpi.load("test", made[0] / "spin"))

def test_spin_rows():
    assert [H36M16.joints[k] for k in (0, 1, 4, 7, 8, 9, 15)] == ["pelvis", "right_hip", "left_hip", "spine", "thorax", "head", "right_wrist"]
    assert [mpi.SPIN_ROWS[k] for k in (0, 1, 4, 7, 8, 9, 15)] == [14, 2, 3, 16, 12, 18, 6]

SPIN_FAULTS = {
    "no names": (dict(imgname=None), "imgname"), "names of H36M": (dict(imgname=np.array(["S9/x.jpg"] * 72)), "S9/x.jpg"), "too few names": (dict(imgname=np.array(["TS1/imageSequence/img_000001.jpg"])), "1 entries"),
    "no S": (dict(S=None), "'S'"), "S without confidence": (dict(S=np.zeros((72, 24, 3))), "'S'"), "part with 16": (dict(part=np.zeros((72, 16, 3))), "'part'"),
    "confidence 0": (dict(S=np.zeros((72, 24, 4))), "confidence 0"), "NaN": (dict(part=np.full((72, 24, 3), np.nan)), "'part'"),
    "millimetres": ("mm", "px away"), "twice": (dict(imgname=np.array(["TS1/imageSequence/img_000001.jpg"] * 72)), "frame numbers do not increase"),
}

@pytest.mark.parametrize("changes, telling", SPIN_FAULTS.values(), ids=SPIN_FAULTS)
def test_a_broken_spin_file(made, tmp_path, changes, telling):
    if changes == "mm": changes = dict(S=load_npz(made[0] / "spin/mpi_inf_3dhp_valid.npz")["S"] * (1000, 1000, 1000, 1))
    text = refused(spin_changed(made, tmp_path, **changes))
    assert telling in text or (telling == "px away" and "millimetres" in text)

def test_a_broken_poseaug_file(made, tmp_path):
    raw = load_npz(made[0] / "poseaug/test_3dhp.npz")
    for changes, telling in ((dict(pose3d=raw["pose3d"][:, :15]), "'pose3d'"), (dict(pose2d=raw["pose2d"][:5]), "'pose2d'"), (dict(pose2d=raw["pose2d"][:, ::-1]), "px away"), (dict(pose2d=raw["pose2d"] * np.nan), "'pose2d'")):
        np.savez(tmp_path / "test_3dhp.npz", **{**raw, **changes})
        assert telling in refused(tmp_path)
    np.savez(tmp_path / "test_3dhp.npz", pose3d=raw["pose3d"], pose2d=np.array([{"a": 1}], dtype=object))
    assert "'pose2d'" in refused(tmp_path)

class Hostile:
    "Unpickled carelessly, it makes a folder."
    def __init__(self, place): self.place = place
    def __reduce__(self): return (os.mkdir, (self.place,))

def test_a_hostile_pickle_inside(tmp_path):
    boxed = np.empty((), dtype=object); boxed[()] = Hostile(str(tmp_path / "was-here"))
    np.savez(tmp_path / "test_3dhp.npz", pose3d=boxed, pose2d=boxed)
    assert "mkdir" in refused(tmp_path) and not (tmp_path / "was-here").exists()

# ---------- broken releases

def rewrite(path, change):
    content = {n: v for n, v in loadmat(path).items() if n[0] != "_"}
    change(content)
    savemat(path, content)

def cells(content, name, change):
    for k in range(14): content[name][k, 0] = change(content[name][k, 0])

TRAINING_FAULTS = {
    **{f"without {n}": (lambda c, n=n: c.pop(n), n) for n in ("annot2", "annot3")},
    "metres": (lambda c: cells(c, "annot3", lambda a: a / 1000), "divided by 1000 twice"),
    "17 joints": (lambda c: cells(c, "annot3", lambda a: a[:, :51]), "'annot3'"),
    "NaN": (lambda c: c["annot2"][3, 0].__setitem__((0, 0), np.nan), "cell 3"),
    "13 cameras in 3D": (lambda c: c.update(annot3=c["annot3"][:13]), "as many cells"),
    "a frame less in one camera": (lambda c: c["annot2"].__setitem__((2, 0), c["annot2"][2, 0][:2]), "as many cells"),
    "cells exchanged": (lambda c: c.update(annot2=np.roll(c["annot2"], 3, 0)), "px away"),
    "normalised 2D": (lambda c: cells(c, "annot2", lambda a: a / 2048), "px away"),
    "x and y exchanged": (lambda c: cells(c, "annot2", lambda a: a.reshape(-1, 28, 2)[..., ::-1].reshape(len(a), -1)), "px away"),
    "mirrored": (lambda c: (cells(c, "annot2", lambda a: a.reshape(-1, 28, 2)[:, list(MPI3DHP28.mirror)].reshape(len(a), -1)),), "px away"),
    "root-relative": (lambda c: cells(c, "annot3", lambda a: (a.reshape(-1, 28, 3) - a.reshape(-1, 28, 3)[:, 4:5]).reshape(len(a), -1)), "px away"),
    "world": (lambda c: cells(c, "annot3", lambda a: a - 2000), "px away"),
    "frames backwards": (lambda c: c.update(frames=c["frames"][::-1]), "'frames'"),
    "frames of another recording": (lambda c: c.update(frames=np.arange(9.)), "'frames'"),
    "cameras that are no numbers": (lambda c: c.update(cameras=np.array(["x"] * 14, dtype=object)), "cameras"),
    "cameras twice": (lambda c: c.update(cameras=np.zeros((1, 14))), "'cameras'"),
    "a struct": (lambda c: c.update(annot2={"a": 1}), "annot2"),
    "no frames": (lambda c: [cells(c, n, lambda a: a[:0]) for n in ("annot2", "annot3", "univ_annot3")], "annot"),
}

@pytest.mark.parametrize("change, telling", TRAINING_FAULTS.values(), ids=TRAINING_FAULTS)
def test_a_broken_training_file(pack, own_cache, change, telling):
    rewrite(pack / "S7/Seq2/annot.mat", change)
    text = refused(pack, "train", subjects=["S7"])
    assert telling in text and "S7/Seq2" in text and ("expected" in text or "divided" in text)
    assert not list(own_cache.glob("*"))

def words(old, new): return lambda text: text.replace(old, new)
CALIBRATION_FAULTS = {
    "empty": (lambda t: "", "0 cameras"), "without camera 5": (lambda t: t.replace("name          5\n", "name          99\n"), "camera 5 is not described"),
    "twice": (words("name          5\n", "name          4\n"), "twice"), "letters": (words("intrinsic   ", "intrinsic   one "), "'intrinsic'"),
    "3 x 4": (lambda t: t.replace(" 0 0 0 1\n  radial", "\n  radial"), "16 finite numbers"), "no size": (lambda t: "\n".join(l for l in t.splitlines() if "size" not in l), "'size'"),
    "NaN": (lambda t: t.replace("size        2048", "size        nan"), "'size'"), "before a name": (lambda t: t.replace("name          0\n", "", 1), "before the first 'name'"),
    "metres": (None, "away from where"), "binary": (lambda t: "\x00\xff" * 200, "0 cameras"), "a focal length of zero": (lambda t: t.replace("intrinsic   148", "intrinsic   -148").replace("intrinsic   149", "intrinsic   -149"), "focal length"),
}

@pytest.mark.parametrize("change, telling", CALIBRATION_FAULTS.values(), ids=CALIBRATION_FAULTS)
def test_a_broken_calibration(pack, change, telling):
    path = pack / "S8/Seq1/camera.calibration"
    def metres(text):
        lines = text.splitlines()
        for k, line in enumerate(lines):
            if "extrinsic" in line:
                row = line.split(); row[4::4] = [f"{float(x) / 1000:.9g}" for x in row[4::4][:3]] + row[16:17]
                lines[k] = " ".join(row)
        return "\n".join(lines)
    path.write_text((change or metres)(path.read_text()), encoding="latin-1")
    text = refused(pack, "xas-test", subjects=["S8"], cameras="all")
    assert telling in text and "camera.calibration" in text and "expected" in text

def test_extrinsics_of_another_camera(pack):
    path = pack / "S8/Seq2/camera.calibration"
    swapped = path.read_text().replace("name          1\n", "name          x\n").replace("name          2\n", "name          1\n").replace("name          x\n", "name          2\n")
    path.write_text(swapped)
    assert "away from where the other cameras see her" in refused(pack, "train", subjects=["S8"])

def mat73(path, change):
    with h5py.File(path) as file: content = {n: file[n][()].T for n in file}
    change(content)
    mpi._write_mat73(path, {n: v for n, v in content.items() if v is not None})

TEST_FAULTS = {
    **{f"without {n}": (lambda c, n=n: c.pop(n), n) for n in ("annot2", "annot3", "valid_frame", "activity_annotation")},
    "28 joints": (lambda c: c.update(annot3=np.zeros((3, 28, 1, 12))), "'annot3'"), "axes the other way": (lambda c: c.update(annot2=c["annot2"].T), "'annot2'"),
    "a frame less": (lambda c: c.update(annot2=c["annot2"][..., :-1]), "'annot2'"), "NaN": (lambda c: c["annot3"].__setitem__((0, 0, 0, 0), np.nan), "'annot3'"),
    "metres": (lambda c: c.update(annot3=c["annot3"] / 1000), "divided by 1000 twice"), "flags": (lambda c: c.update(valid_frame=2 * c["valid_frame"]), "'valid_frame'"),
    "none valid": (lambda c: c.update(valid_frame=0 * c["valid_frame"]), "0 everywhere"), "activity 8": (lambda c: c.update(activity_annotation=c["activity_annotation"] + 7), "'activity_annotation'"),
    "another recording's 2D": (lambda c: c.update(annot2=c["annot2"][..., ::-1]), "px away"), "mirrored": (lambda c: c.update(annot2=2048 - c["annot2"]), "focal length"),
}

@pytest.mark.parametrize("change, telling", TEST_FAULTS.values(), ids=TEST_FAULTS)
def test_a_broken_test_file(pack, own_cache, change, telling):
    mat73(pack / "mpi_inf_3dhp_test_set/TS2/annot_data.mat", change)
    text = refused(pack)
    assert telling in text and "TS2" in text and ("expected" in text or "divided" in text) and not list(own_cache.glob("*"))

@pytest.mark.parametrize("name, split", (("S7/Seq1/annot.mat", "xas-test"), ("mpi_inf_3dhp_test_set/TS1/annot_data.mat", "test"), ("S7/Seq1/camera.calibration", "xas-test")))
def test_truncated_files(pack, name, split):
    path = pack / name
    data = path.read_bytes()
    for length in (0, 3, 100, 600, len(data) // 3, len(data) // 2):
        path.write_bytes(data[:length])
        assert name.split("/")[-1] in refused(pack, split)

def test_missing_files(pack, tmp_path):
    (pack / "S5/Seq2/annot.mat").unlink()
    assert "S5/Seq2/annot.mat: the file is not there" in refused(pack, "train") and len(mpi.load("train", pack, subjects=["S1", "S2"])) > 0
    shutil.rmtree(pack / "mpi_inf_3dhp_test_set/TS3")
    assert "TS3" in refused(pack) and len(mpi.load("test", pack, subjects=["TS1"])) == 10
    (tmp_path / "empty").mkdir()
    assert "the folder is empty" in refused(tmp_path / "empty")
    assert "README.md" in refused(tmp_path / "3dhp/S1")

@pytest.mark.parametrize("split, options, telling", [("val", {}, "split 'val'"), ("test", {"subjects": ["S1"]}, "subject 'S1'"), ("train", {"subjects": []}, "subject None"), ("train", {"annotation": "annot2"}, "annotation 'annot2'"),
    ("train", {"cameras": "vnect"}, "cameras 'vnect'"), ("train", {"cameras": [0, 77]}, "camera 77"), ("train", {"cameras": []}, "cameras []"), ("train", {"stride": 0}, "stride 0"), ("train", {"inside": "yes"}, "inside 'yes'"),
    ("train", {"skeleton": "coco17"}, "skeleton 'coco17'"), ("test", {"skeleton": "kudo"}, "skeleton 'kudo'"), ("test", {"layout": "video"}, "layout 'video'"), ("train", {"layout": "spin"}, "test set only"),
    ("test", {"layout": "spin"}, "mpi_inf_3dhp_valid.npz: the file is not there"), ("test", {"input_2d": "cpn"}, "2D input 'cpn'"), ("train", {"stride": 1000, "inside": "instant", "cameras": [0], "subjects": ["S1"]}, None)])
def test_wrong_arguments(release, split, options, telling):
    if telling is None: assert len(mpi.load(split, release, **options)) == 2
    else: assert telling in refused(release, split, **options)

def test_recognise(made, tmp_path):
    assert mpi.recognise(made[0] / "release") == "MPI-INF-3DHP, 16 of 16 training recordings (16 with calibration), 6 of 6 test recordings"
    assert "mpi_inf_3dhp_valid.npz" in mpi.recognise(made[0] / "spin") and mpi.recognise(tmp_path) is None
