"SURREAL clips: the axes are found or the clip is refused; sides, masks and frames agree."
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.io import loadmat, savemat
from poseprojects.camera import project
from poseprojects.data import surreal
from poseprojects.data.base import clips
from poseprojects.data.surreal import Convention, axis_rotations, camera, centred, find_convention, load, misfit, read_info, read_masks
from poseprojects.skeleton import H36M17, SMPL24
from poseprojects.storage import InputError

pytestmark = pytest.mark.usefixtures("fresh_cache")

@pytest.fixture(scope="module")
def source(tmp_path_factory):
    "Example files with pictures and the sets that they must give; never changed."
    folder = tmp_path_factory.mktemp("surreal")
    return folder, surreal.example(folder)

@pytest.fixture
def pack(source, tmp_path):
    shutil.copytree(source[0], tmp_path / "pack")
    return tmp_path / "pack"

def refused(folder, split="test", **options):
    with pytest.raises(InputError) as refusal: load(split, folder, **options)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)

def clip_file(p, split="test", ending="_info.mat"): return p / f"cmu/{split}/run0/01_01/01_01_c0001{ending}"

@pytest.mark.parametrize("split", surreal.SPLITS)
@pytest.mark.parametrize("kind", [{}, {"mirrored": True}, {"exchanged": True}, {"mirrored": True, "exchanged": True}], ids=str)
def test_round_trip(source, tmp_path, split, kind):
    wanted = source[1][split]
    surreal.example(tmp_path, pictures=False, **kind)
    made = load(split, tmp_path)
    for name, tensor in wanted.tensors().items(): assert torch.allclose(made.tensors()[name].double(), tensor.double(), atol=1e-4), name
    for name in ("name", "skeleton", "subject_names", "sequence_names", "action_names", "frame_rate", "frame_step"): assert getattr(made, name) == getattr(wanted, name), name
    assert torch.equal(made.cameras.rotation, wanted.cameras.rotation) and made.cameras.names == ("surreal",)
    assert made.settings["sides"] == ("exchanged" if "exchanged" in kind else "as stored") and made.settings["axes"].endswith("mirrored" if "mirrored" in kind else "as stored")

def test_there_are_24_rotations():
    R = axis_rotations()
    assert len({tuple(r.reshape(-1)) for r in R}) == 24 and np.allclose(np.linalg.det(R), 1) and np.allclose(R @ R.transpose(0, 2, 1), np.eye(3))

@pytest.mark.parametrize("k", range(24))
@pytest.mark.parametrize("mirrored", [False, True])
def test_every_direction_of_the_axes_is_found(source, k, mirrored):
    "The same people in a world that is turned as one likes."
    clip, truth = read_info(clip_file(source[0])), axis_rotations()[k]
    turn = truth.T @ np.array(surreal._EXAMPLE.rotation) # the old world in the new one
    px = clip.joints_2d * [-1, 1] + [surreal.WIDTH, 0] if mirrored else clip.joints_2d
    turned = replace(clip, joints_3d=clip.joints_3d @ turn.T, camera=turn @ clip.camera, joints_2d=px)
    found = find_convention([turned])
    assert np.array_equal(found.rotation, truth) and found.mirrored_2d == mirrored and misfit(turned, found) < 1e-6

def test_none_or_two_that_fit_are_refused(source):
    clip = read_info(clip_file(source[0]))
    with pytest.raises(InputError, match="no direction of the axes.*px off"): find_convention([replace(clip, joints_2d=clip.joints_2d + [0, 30])])
    point = replace(clip, joints_3d=clip.joints_3d * 0 + clip.camera - [5, 0, 0], joints_2d=clip.joints_2d * 0 + [160, 120]) # a point on the axis tells nothing
    with pytest.raises(InputError, match="two directions"): find_convention([point])
    noisy = replace(clip, joints_2d=np.round(clip.joints_2d))
    assert find_convention([noisy]) == surreal._EXAMPLE

def test_projection_is_that_of_the_specification(source):
    made = load("train", source[0])
    assert made.cameras.intrinsics.tolist() == [[600, 600, 160, 120]] and made.cameras.resolution.tolist() == [[320, 240]]
    assert (project(made.pose_3d.double(), made.cameras[made.camera_id]) - made.pose_2d).abs().max() < 1e-2
    assert clips(made).tolist() == [[0, 24], [24, 25]]

def test_h36m17_by_name(source):
    a, b = load("val", source[0]), load("val", source[0], skeleton="h36m17")
    at = lambda poses, name: poses.pose_3d[:, poses.skeleton.index(name)]
    assert b.skeleton.joints == H36M17.joints
    for name in ("left_knee", "right_wrist", "pelvis"): assert torch.equal(at(a, name), at(b, name))
    assert torch.allclose(at(b, "head"), 2 * at(a, "skull_base") - at(a, "neck"), atol=1e-5)

def test_masks_and_images_belong_to_their_frames(source):
    made = load("train", source[0], images=True, masks=True, every=7)
    assert made.frame.tolist() == [0, 7, 14, 21, 0] and made.frame_step == 7 and made.masks.shape == (5, 240, 320)
    for k in range(len(made)):
        wanted = surreal._silhouette(made.pose_2d[k].double().numpy())
        found = made.masks[k].numpy() > 0
        assert (wanted & found).sum() / (wanted | found).sum() > .97
        person = made.images[k].float()[torch.from_numpy(wanted)].mean(0)
        wall = made.images[k].float()[torch.from_numpy(~wanted)].mean(0)
        assert (person - torch.tensor([220., 160, 120])).abs().max() < 20 and (wall - torch.tensor([70., 80, 90])).abs().max() < 8
    assert torch.equal(load("train", source[0], masks=True, every=7).masks, made.masks)

def test_fewer_clips(source):
    assert load("train", source[0], clips=1).sequence_names == ("run0/01_01/01_01_c0001",)
    assert len(load("train", source[0], clips=5).sequence_names) == 2

def test_centred(source):
    made = load("train", source[0])
    keep, root = centred(made), made.pose_2d[:, 0]
    middle = (root[:, 0] >= 150) & (root[:, 0] <= 170) & (root[:, 1] >= 110) & (root[:, 1] <= 130)
    assert not (keep & ~middle).any()
    shifted = replace(made, pose_2d=made.pose_2d - root[:, None] + torch.tensor([160., 120.]))
    inside = ((shifted.pose_2d >= 0) & (shifted.pose_2d < torch.tensor([320., 240.]))).all((1, 2))
    assert torch.equal(centred(shifted), inside) and inside.any()
    far = replace(shifted, pose_2d=shifted.pose_2d.clone())
    far.pose_2d[:, 20, 0] = 39.9
    assert not centred(far).any()

def test_folders(source, tmp_path):
    for place in (tmp_path, tmp_path / "data"):
        shutil.copytree(source[0] / "cmu", place / "cmu")
        assert len(load("test", place)) == 25
    assert len(load("test", tmp_path / "cmu")) == 25

# ---------- accidents

def change(p, split="test", **fields):
    path = clip_file(p, split)
    content = {k: v for k, v in loadmat(path).items() if not k.startswith("__")}
    savemat(path, {k: v for k, v in (content | fields).items() if v is not None})

def old(p, name): return loadmat(clip_file(p))[name]
def no_frame(p):
    content = {k: v for k, v in loadmat(clip_file(p, ending="_segm.mat")).items() if not k.startswith("__") and k != "segm_5"}
    savemat(clip_file(p, ending="_segm.mat"), content)
def mirrored_masks(p):
    content = {k: v[:, ::-1] for k, v in loadmat(clip_file(p, ending="_segm.mat")).items() if not k.startswith("__")}
    savemat(clip_file(p, ending="_segm.mat"), content)
def moved(joints): return joints + np.array([40., 0])[:, None, None]

FAULTS = {
    "no 2D": (lambda p: change(p, joints2D=None), "'joints2D' is missing"),
    "no camera": (lambda p: change(p, camLoc=None), "'camLoc' is missing"),
    "22 joints": (lambda p: change(p, joints3D=old(p, "joints3D")[:, :22]), "'joints3D' has shape (3, 22, 24), expected (3, 24, frames)"),
    "frames differ": (lambda p: change(p, joints3D=old(p, "joints3D")[..., :-1]), "joints3D has 23 frames, expected 24"),
    "pose of fewer frames": (lambda p: change(p, pose=old(p, "pose")[:, :5]), "'pose' has shape (72, 5), expected (72, 24)"),
    "NaN": (lambda p: change(p, joints3D=old(p, "joints3D") * np.nan), "field 'joints3D'"),
    "millimetres": (lambda p: change(p, joints3D=old(p, "joints3D") * 1000), "no direction of the axes"),
    "other camera": (lambda p: change(p, camLoc=old(p, "camLoc") * [[1.], [4.], [1.]] + 1), "no direction of the axes"),
    "2D of another person": (lambda p: change(p, joints2D=moved(old(p, "joints2D"))), "no direction of the axes"),
    "text": (lambda p: change(p, joints2D="hello"), "field 'joints2D'"),
    "two-number camera": (lambda p: change(p, camLoc=[1., 2.]), "'camLoc' holds 2 numbers"),
    "cut": (lambda p: clip_file(p).write_bytes(clip_file(p).read_bytes()[:700]), "01_01_c0001_info.mat"),
    "no clips": (lambda p: [f.unlink() for f in (p / "cmu/test").rglob("*_info.mat")], "there is no clip"),
    "no split": (lambda p: shutil.rmtree(p / "cmu/test"), "no folder test or cmu/test"),
    "no mask": (lambda p: clip_file(p, ending="_segm.mat").unlink(), "_segm.mat"),
    "a missing mask": (no_frame, "'segm_5' is missing"),
    "mirrored masks": (mirrored_masks, "mirrored against each other"),
    "no video": (lambda p: clip_file(p, ending=".mp4").unlink(), ".mp4: the video is not there"),
    "cut video": (lambda p: clip_file(p, ending=".mp4").write_bytes(clip_file(p, ending=".mp4").read_bytes()[:900]), ".mp4: the video"),
    "video of another clip": (lambda p: shutil.copy(p / "cmu/test/run1/02_01/02_01_c0002.mp4", clip_file(p, ending=".mp4")), "has 1 of 24 frames"),
}

@pytest.mark.parametrize("fault, telling", FAULTS.values(), ids=FAULTS)
def test_a_broken_pack_is_refused_and_leaves_nothing(pack, tmp_path, monkeypatch, fault, telling):
    monkeypatch.setenv("POSEPROJECTS_CACHE", str(tmp_path / "cache"))
    if fault is mirrored_masks: # beside the middle, or the mirror image is in the same place
        for split in ("test",): change(pack, split, joints2D=old(pack, "joints2D"))
    fault(pack)
    assert telling in refused(pack, images=True, masks=True)
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").iterdir())

def test_a_video_of_another_size(pack):
    from poseprojects.data.crops import write_video
    write_video(clip_file(pack, ending=".mp4"), [torch.zeros(64, 64, 3, dtype=torch.uint8)] * 24)
    assert "frames are 64 x 64 pixels, expected 320 x 240" in refused(pack, images=True)

def test_wrong_arguments(pack):
    assert "split 'run0'" in refused(pack, "run0") and "skeleton 'smpl'" in refused(pack, skeleton="smpl") and "every = 0" in refused(pack, every=0)
    assert "2D input 'cpn'" in refused(pack, input_2d="cpn") and "README.md" in refused(pack / "none")

def test_masks_of_the_wrong_size(tmp_path):
    savemat(tmp_path / "a_segm.mat", {"segm_1": np.zeros((64, 64), np.uint8)})
    with pytest.raises(InputError, match="segm_1"): read_masks(tmp_path / "a_segm.mat", [0])

@settings(max_examples=60, deadline=None)
@given(where=st.integers(0, 100_000), what=st.binary(min_size=1, max_size=30))
def test_a_changed_clip_is_read_or_refused(source, tmp_path_factory, where, what):
    data = bytearray(clip_file(source[0]).read_bytes())
    where %= len(data)
    data[where:where + len(what)] = what
    path = tmp_path_factory.getbasetemp() / "fuzzed_info.mat"
    path.write_bytes(data)
    try: find_convention([read_info(path)])
    except InputError as error: assert "\n" not in str(error)
