"Multi-view crops: what is written is read back, in both layouts, and every accident of such files is named."
import json, shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from poseprojects.data import crops, multiview_crops
from poseprojects.data.crops import crop_views, view_of
from poseprojects.data.multiview_crops import NOMINAL_DEPTH, backgrounds, load, read_labels, write_labels
from poseprojects.storage import InputError

pytestmark = pytest.mark.usefixtures("fresh_cache")

@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    "The three layouts and the sets that they must give; never changed."
    folder = tmp_path_factory.mktemp("packs")
    return {layout: (folder / layout, multiview_crops.example(folder / layout, layout)) for layout in ("rhodin", "written", "nsd")}

@pytest.fixture
def pack(packs, tmp_path):
    shutil.copytree(packs["rhodin"][0], tmp_path / "pack")
    return tmp_path / "pack"

def refused(folder, split="train", **options):
    with pytest.raises(InputError) as refusal: load(split, folder, **options)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)

def same(made, wanted, atol=2e-5):
    assert made.tensors().keys() == wanted.tensors().keys()
    for name, tensor in wanted.tensors().items(): assert torch.allclose(made.tensors()[name].double(), tensor.double(), atol=atol), name
    for name in ("subject_names", "action_names", "sequence_names", "frame_rate", "frame_step", "input_2d", "name"): assert getattr(made, name) == getattr(wanted, name), name
    assert made.cameras.names == wanted.cameras.names
    for name in ("intrinsics", "rotation", "translation", "resolution"): assert torch.allclose(getattr(made.cameras, name), getattr(wanted.cameras, name), atol=2e-5), name

@pytest.mark.parametrize("layout", ["rhodin", "written", "nsd"])
@pytest.mark.parametrize("split", multiview_crops.SPLITS)
def test_round_trip(packs, layout, split):
    folder, wanted = packs[layout]
    made = load(split, folder)
    same(made, wanted[split])
    if layout != "nsd": assert torch.equal(made.images, wanted[split].images) # PNG loses nothing
    assert made.settings["position"] == ("as measured" if layout == "written" else "nominal")
    assert load(split, folder).fingerprint == made.fingerprint

def test_nothing_is_claimed_that_was_not_measured(packs):
    made = load("train", packs["rhodin"][0])
    assert torch.equal(made.pose_3d[:, 0], torch.tensor([0., 0., NOMINAL_DEPTH]).expand(len(made), 3)) and (made.confidence == 0).all()
    assert made.settings["nominal_depth"] == NOMINAL_DEPTH and (made.pose_2d[:, 0] == 32).all()
    assert (load("train", packs["written"][0]).confidence == 1).all()

def test_relative_rotations_turn_one_view_into_another(packs):
    "C = W_t W_s^T of the paper: what a method needs of the cameras."
    for layout in ("rhodin", "written"):
        made = load("train", packs[layout][0])
        W, pose = made.cameras[made.camera_id].rotation, made.pose_3d.double() - made.pose_3d[:, :1].double()
        for row in crop_views(made):
            s, t = row[0], row[2]
            assert torch.allclose(pose[s] @ (W[t] @ W[s].mT).mT, pose[t], atol=1e-5)

def test_backgrounds_are_those_of_the_target_view(packs):
    walls = torch.tensor(multiview_crops._WALLS)
    for layout in ("rhodin", "written"):
        made = load("test", packs[layout][0])
        assert (backgrounds(made) == walls[view_of(made)[0]][:, None, None]).all()
        some = made.select(torch.tensor([3, 11]))
        assert (backgrounds(some) == walls[view_of(some)[0]][:, None, None]).all()
    made = load("test", packs["nsd"][0])
    plates, view = backgrounds(made), view_of(made)[0]
    assert plates.shape == made.images.shape
    assert ((plates.int() - walls[view][:, None, None]).abs().amax(-1) <= 3).float().mean((1, 2))[view < 2].min() > .99 # bg.jpg
    assert ((plates.int() - walls[view][:, None, None]).abs().amax(-1) <= 8).float().mean((1, 2))[view == 2].min() > .8 # the median of three frames

def test_both_people_of_nsd_are_there(packs):
    made = load("train", packs["nsd"][0])
    assert made.sequence_names == ("seq_000/person0", "seq_000/person1") and made.subject_names == ("S1", "S5")
    assert torch.equal(made.images[:len(made) // 2], made.images[len(made) // 2:]) and not torch.allclose(made.pose_3d[:len(made) // 2], made.pose_3d[len(made) // 2:])
    assert len(load("train", packs["nsd"][0], actor_subset=[1, 5])) == len(made)
    assert "no row belongs to subjects 1" in refused(packs["nsd"][0], actor_subset=[1]) # a row counts when all its people do

def test_subsets(packs, pack):
    folder = packs["rhodin"][0]
    one = load("train", folder, actor_subset=[5])
    assert one.subject_names == ("S5",) and len(one) == 12 and one.sequence_names == ("seq_001",)
    thin = load("train", folder, every_nth_frame=2)
    assert sorted(thin.frame.unique().tolist()) == [0, 2] and len(thin) == 12 and thin.frame_step == 2
    shutil.move(pack / "train/labels.h5", pack / "labels.h5") # one file for everybody
    for path in (pack / "train").iterdir(): shutil.move(path, pack / path.name)
    shutil.rmtree(pack / "train")
    assert load("train", pack).subject_names == ("S1", "S5") and load("test", pack).subject_names == ("S9", "S11")

@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(packs, tmp_path_factory, random):
    source, wanted = packs["rhodin"]
    folder = tmp_path_factory.mktemp("shuffled")
    shutil.copy(source / "test/labels.h5", folder / "labels.h5")
    with h5py.File(folder / "labels.h5", "r+") as file:
        order = list(range(len(file["frame"])))
        random.shuffle(order)
        for name in list(file):
            value = file[name][:][order]
            del file[name]
            file[name] = value
    labels = read_labels(folder / "labels.h5")
    rows = multiview_crops.complete_instants(labels)
    original = read_labels(source / "test/labels.h5")
    assert np.array_equal(labels.pose[rows], original.pose[multiview_crops.complete_instants(original)])

# ---------- every accident by name

def edit(pack, name, function, split="train"):
    with h5py.File(pack / split / "labels.h5", "r+") as file:
        value = function(file[name][:])
        del file[name]
        if value is not None: file[name] = value

def put(value, *where):
    def change(array):
        array[where] = value
        return array
    return change

def every(pack, function):
    for name in ("seq", "cam", "frame", "subj", "extrinsic_rot", "extrinsic_rot_inv", "3D", "pose_mean", "pose_std"): edit(pack, name, function)

def shrink(path): Image.open(path).resize((48, 48)).save(path)

FAULTS = {
    "no field": (lambda p: edit(p, "extrinsic_rot", lambda v: None), "field 'extrinsic_rot' is missing"),
    "no index": (lambda p: edit(p, "subj", lambda v: None), "field 'subj' is missing"),
    "rows differ": (lambda p: edit(p, "3D", lambda v: v[:-1]), "'3D' has 23 rows, expected 24"),
    "16 joints": (lambda p: edit(p, "3D", lambda v: v[:, :48]), "holds 48 numbers a row, expected 51"),
    "NaN": (lambda p: edit(p, "3D", put(np.nan, 7, 5)), "row 7 of '3D' holds NaN"),
    "text": (lambda p: edit(p, "frame", lambda v: np.array([b"x"] * len(v))), "field 'frame'"),
    "half a frame": (lambda p: edit(p, "frame", lambda v: v + .5), "expected whole numbers"),
    "stretched rotation": (lambda p: edit(p, "extrinsic_rot", put(2., 4, 0, 0)), "row 4 of 'extrinsic_rot' is not orthonormal"),
    "reflection": (lambda p: (edit(p, "extrinsic_rot", lambda v: v * [[[-1], [1], [1]]]), edit(p, "extrinsic_rot_inv", lambda v: v * [[[-1, 1, 1]]])), "is a reflection"),
    "wrong inverse": (lambda p: edit(p, "extrinsic_rot_inv", lambda v: v.transpose(0, 2, 1)), "is not the transpose"),
    "wrong direction": (lambda p: [edit(p, n, lambda v: v.transpose(0, 2, 1)) for n in ("extrinsic_rot", "extrinsic_rot_inv")], "differ by"),
    "uncorrected labels": (lambda p: edit(p, "3D", lambda v: (v.reshape(-1, 17, 3) @ np.random.default_rng(0).permutation(np.eye(3))).reshape(-1, 51)), "differ by"),
    "absolute": (lambda p: edit(p, "3D", lambda v: v + np.tile([0, 0, 4.], 17)), "root 4 m from the origin"),
    "millimetres": (lambda p: edit(p, "3D", lambda v: v * 1000), "divide by 1000"),
    "twice": (lambda p: edit(p, "frame", put(0, slice(0, 2))), "a second time"),
    "two subjects in a sequence": (lambda p: edit(p, "subj", put(7, 3)), "belongs to subjects"),
    "missing view": (lambda p: every(p, lambda v: v[:9 - 4]), "camera 0 only, expected at least 2 views"),
    "wrong size": (lambda p: shrink(p / "train/seq_000/cam_02/img_crop_000001.png"), "48 x 48 pixels, expected 64 x 64"),
    "unequal background": (lambda p: shrink(p / "train/seq_001/cam_00/bg_crop_000003.png"), "bg_crop_000003.png: the image is 48 x 48"),
    "no square": (lambda p: [Image.open(f).crop((0, 0, 64, 60)).save(f) for f in (p / "train").rglob("*.png")], "64 x 60 pixels, expected a square"),
    "no image": (lambda p: (p / "train/seq_001/cam_01/img_crop_000002.png").unlink(), "img_crop_000002.png: the image is not there"),
    "no background": (lambda p: (p / "train/seq_001/cam_01/bg_crop_000002.png").unlink(), "bg_crop_000002.png: the image is not there"),
    "damaged image": (lambda p: (p / "train/seq_000/cam_01/img_crop_000000.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(60)), "cannot be read"),
    "cut labels": (lambda p: (p / "train/labels.h5").write_bytes((p / "train/labels.h5").read_bytes()[:3000]), "labels.h5"),
    "no labels": (lambda p: (p / "train/labels.h5").unlink(), "neither train/labels.h5 nor labels.h5"),
}

@pytest.mark.parametrize("change, telling", FAULTS.values(), ids=FAULTS)
def test_a_broken_pack_is_refused_and_leaves_nothing(pack, tmp_path, monkeypatch, change, telling):
    monkeypatch.setenv("POSEPROJECTS_CACHE", str(tmp_path / "cache"))
    change(pack)
    assert telling in refused(pack)
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").iterdir())

def test_wrong_arguments(pack):
    assert "split 'val'" in refused(pack, "val") and "expected at least" not in refused(pack, "val")
    assert "every_nth_frame = 0" in refused(pack, every_nth_frame=0) and "actor_subset is empty" in refused(pack, actor_subset=[])
    assert "2D input 'cpn'" in refused(pack, input_2d="cpn") and "README.md" in refused(pack / "none")
    assert "expected at least 4 views" in refused(pack, min_views=4)

def test_a_single_view_may_be_let_pass(pack):
    every(pack, lambda v: v[:5])
    assert len(load("train", pack, min_views=1)) == 5

def test_a_wrong_manifest(packs, tmp_path):
    shutil.copytree(packs["written"][0], tmp_path / "pack")
    path = tmp_path / "pack/train/manifest.json"
    for content in ("[]", '{"frame_rate": "fast"}', '{"sequences": {"0": 3}}', '{"frame_step": 0}', "{"):
        path.write_text(content)
        assert "manifest.json" in refused(tmp_path / "pack")

@settings(max_examples=40, deadline=None)
@given(where=st.integers(0, 100_000), what=st.binary(min_size=1, max_size=40))
def test_changed_labels_are_read_or_refused(packs, tmp_path_factory, where, what):
    data = bytearray((packs["rhodin"][0] / "test/labels.h5").read_bytes())
    where %= len(data)
    data[where:where + len(what)] = what
    path = tmp_path_factory.getbasetemp() / "fuzzed.h5"
    path.write_bytes(data)
    try: multiview_crops.complete_instants(read_labels(path))
    except InputError as error: assert "\n" not in str(error)

# ---------- writing

def test_what_the_layout_cannot_hold(packs, tmp_path):
    made = load("train", packs["written"][0])
    plates = backgrounds(made)
    for change, telling in ((dict(images=None), "no images"), (dict(pose_3d=None), "no 3D"), (dict(frame=made.frame - 5), "frames run from -5"), (dict(images=made.images[:, :60]), "square")):
        with pytest.raises(InputError, match=telling): write_labels(replace(made, **change), tmp_path / "out", plates)
    with pytest.raises(InputError, match="backgrounds have shape"): write_labels(made, tmp_path / "out", plates[:3])
    assert not list(tmp_path.iterdir())

def test_standardisation_is_that_of_the_poses(packs):
    with h5py.File(packs["rhodin"][0] / "train/labels.h5") as file:
        pose, mean, std = file["3D"][:], file["pose_mean"][:], file["pose_std"][:]
    assert np.allclose(mean, pose.mean(0), atol=1e-6) and (std[:, :3] == 1).all() and np.allclose(std[0, 3:], pose.std(0)[3:], atol=1e-6)

def test_reading_and_writing_again_changes_nothing(packs, tmp_path):
    made = load("test", packs["written"][0])
    write_labels(made, tmp_path / "again/test", backgrounds(made))
    again = load("test", tmp_path / "again")
    for name, tensor in made.tensors().items(): assert torch.allclose(again.tensors()[name].double(), tensor.double(), atol=1e-5), name
    assert again.subject_names == made.subject_names
