"Human3.6M images in X-as-Supervision's layout: crops, masks and joints agree, selections are fixed, accidents are named."
import json, os, re, shutil, signal, subprocess, sys, textwrap

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from poseprojects.camera import project
from poseprojects.data import h36m_images
from poseprojects.data.crops import crop_views, view_of
from poseprojects.data.h36m_images import choose_frames, load, mpi_instant_kept, read_annotation, selected_frames, smooth_mask
from poseprojects.skeleton import XAS18
from poseprojects.storage import InputError

pytestmark = pytest.mark.usefixtures("fresh_cache")

@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    "Both layouts and the sets that they must give; never changed."
    folder = tmp_path_factory.mktemp("packs")
    return {layout: (folder / layout, h36m_images.example(folder / layout, layout)) for layout in ("hm36", "rendered")}

@pytest.fixture
def pack(packs, tmp_path):
    shutil.copytree(packs["hm36"][0], tmp_path / "pack")
    return tmp_path / "pack"

@pytest.fixture
def rendered(packs, tmp_path):
    shutil.copytree(packs["rendered"][0], tmp_path / "rendered")
    return tmp_path / "rendered"

def refused(folder, split="test", **options):
    with pytest.raises(InputError) as refusal: load(split, folder, **{"size": 64} | options)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)

@pytest.mark.parametrize("layout", ["hm36", "rendered"])
@pytest.mark.parametrize("split", h36m_images.SPLITS)
def test_round_trip(packs, layout, split):
    folder, wanted = packs[layout]
    wanted, made = wanted[split], load(split, folder, size=64)
    assert made.tensors().keys() == wanted.tensors().keys()
    for name, tensor in wanted.tensors().items(): assert torch.allclose(made.tensors()[name].double(), tensor.double(), atol=1e-4), name
    assert torch.equal(made.masks, wanted.masks) and torch.equal(made.images, wanted.images)
    for name in ("name", "subject_names", "action_names", "sequence_names", "frame_rate", "frame_step", "skeleton"): assert getattr(made, name) == getattr(wanted, name), name
    assert made.cameras.names == wanted.cameras.names
    for name in ("intrinsics", "rotation", "translation", "resolution", "distortion"): assert torch.allclose(getattr(made.cameras, name), getattr(wanted.cameras, name), atol=1e-6), name
    assert load(split, folder, size=64).fingerprint == made.fingerprint

def test_joints_lie_on_masks_and_people(packs):
    for layout in ("hm36", "rendered"):
        made = load("train", packs[layout][0], size=64)
        at, rows = made.pose_2d.long().clamp(0, 63), torch.arange(len(made))[:, None]
        assert (made.masks[rows, at[..., 1], at[..., 0]] > 127).float().mean() > .97
        colour = made.images[rows, at[..., 1], at[..., 0]].float()
        assert ((colour - torch.tensor([210., 150., 110.])).abs().amax(-1) < 70).float().mean() > .97
        wall = made.images.float()[made.masks == 0]
        assert (wall[:, 0] < 150).float().mean() > .97 # outside of the mask there is no person

def test_the_box_is_two_metres_at_the_root(packs):
    made = load("test", packs["hm36"][0], size=64)
    eyes, root = made.cameras[made.camera_id], made.pose_3d[:, 0].double()
    for offset, expected in (([1., 0, 0], [64., 32]), ([0, -1., 0], [32., 0])): assert torch.allclose(project((root + torch.tensor(offset))[:, None], eyes)[:, 0], torch.tensor(expected, dtype=torch.float64), atol=1e-3)
    assert (made.pose_3d[:, 17] - made.pose_3d[:, [11, 14]].mean(1)).abs().max() < 1e-5 and made.skeleton is not None and made.skeleton.joints == XAS18.joints

def test_views_of_one_instant(packs):
    made = load("test", packs["hm36"][0], size=64)
    table = crop_views(made)
    assert view_of(made)[1] == ("ca_01", "ca_02", "ca_03", "ca_04") and table.shape == (6, 4) and (table >= 0).all()
    W, t = made.cameras.rotation, made.cameras.translation
    world = torch.stack([(made.pose_3d[row].double() - t[row][:, None]) @ W[row] for row in table.T])
    assert (world - world[0]).abs().max() < 1e-4

def test_the_other_spelling_the_other_place_and_other_endings(pack, packs):
    wanted = packs["hm36"][1]["test"]
    shutil.move(pack / "sam_masks/hm36", pack / "sam_masks/h36m")
    assert torch.equal(load("test", pack, size=64).masks, wanted.masks)
    assert torch.equal(load("test", pack / "hm36", size=64).masks, wanted.masks) # the inner folder was given
    for path in (pack / "sam_masks").rglob("*.png"):
        Image.open(path).save(path.with_suffix(".jpg"), quality=95)
        path.unlink()
    assert (load("test", pack, size=64).masks.float() - wanted.masks.float()).abs().mean() < 5
    shutil.rmtree(pack / "sam_masks")
    assert "sam_masks/hm36 or sam_masks/h36m" in refused(pack)
    assert load("test", pack, size=64, masks=False).masks is None

def test_frames_may_count_from_zero(pack, packs):
    for path in sorted(p for top in ("hm36/images", "sam_masks") for p in (pack / top).rglob("*.*g")):
        stem, number = path.stem[:-6], int(path.stem[-6:])
        path.rename(path.with_name(f"{stem}{number - 1:06}{path.suffix}"))
    made = load("test", pack, size=64)
    assert torch.allclose(made.pose_3d, packs["hm36"][1]["test"].pose_3d, atol=1e-5) and made.settings["first_frame"] == 0

def test_camera_coordinates_are_recognised(pack, packs):
    for path in (pack / "hm36/annot").rglob("*.txt"):
        note, lines = read_annotation(path), path.read_text().splitlines()
        assert not note.in_camera
        inside = (note.pose @ note.rotation.T - note.rotation @ note.centre) * 1000
        path.write_text("\n".join([*lines[:9], *(" ".join(f"{v:.9g}" for v in row.reshape(-1)) for row in inside)]))
        assert read_annotation(path).in_camera
    assert torch.allclose(load("test", pack, size=64).pose_3d, packs["hm36"][1]["test"].pose_3d, atol=1e-4)

# ---------- selections

def test_the_choice_depends_on_seed_and_sequence_only():
    there = list(range(1, 3000))
    a = choose_frames(there, 200, 0, "s_01_act_02_subact_01")
    assert a == choose_frames(there[::-1], 200, 0, "s_01_act_02_subact_01") == sorted(set(a)) and len(a) == 200 and set(a) <= set(there)
    assert a != choose_frames(there, 200, 1, "s_01_act_02_subact_01") and a != choose_frames(there, 200, 0, "s_01_act_02_subact_02")
    assert choose_frames([5, 3], 200, 0, "x") == [3, 5] and choose_frames([], 3, 0, "x") == []
    assert choose_frames(range(1, 101), 5, 0, "s_09_act_02_subact_01") == [1, 67, 68, 89, 95] # fixed for good

def test_counts_and_actions_of_the_release(tmp_path):
    "110 training and 60 test sequences when everything is there; the folders alone decide."
    layout = h36m_images._Layout(tmp_path / "images", tmp_path / "annot", None)
    for s in (1, 5, 6, 7, 8, 9, 11):
        for a in range(2, 17):
            for k in (1, 2):
                for c in (1, 2, 3, 4): (layout.images / f"s_{s:02}_act_{a:02}_subact_{k:02}_ca_{c:02}").mkdir(parents=True)
    (layout.images / "notes").mkdir()
    train, test = (h36m_images._sequences(layout, split) for split in ("train", "test"))
    assert len(train) == 110 and len(test) == 60 and all(len(c) == 4 for c in (*train.values(), *test.values()))
    assert not any(re.search(r"act_(04|06|09|11)_", s) for s in train) and any("act_10_" in s for s in train) and any("act_04_" in s for s in test)
    shutil.rmtree(layout.images / "s_05_act_03_subact_01_ca_02")
    with pytest.raises(InputError, match="s_05_act_03_subact_01 has ca_01, ca_03, ca_04, expected"): h36m_images._sequences(layout, "train")

def test_a_selection_from_a_file(pack, tmp_path):
    everything = load("test", pack, size=64)
    assert selected_frames(everything) == {"s_09_act_02_subact_01": [1, 2, 3], "s_11_act_14_subact_01": [1, 2, 3]}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"s_11_act_14_subact_01": [3, 1]}))
    some = load("test", pack, size=64, selection=str(path))
    assert selected_frames(some) == {"s_11_act_14_subact_01": [1, 3]} and len(some) == 8
    for content, telling in (({"s_11_act_14_subact_01": [9]}, "lacks frame 9"), ({"s_11": [1]}, "names no frame"), ([1], "holds no selection"), ({"s_11_act_14_subact_01": ["1"]}, "holds no selection")):
        path.write_text(json.dumps(content))
        assert telling in refused(pack, selection=str(path))
    assert "none.json" in refused(pack, selection=str(tmp_path / "none.json"))

# ---------- accidents

NAME = "s_11_act_14_subact_01_ca_03"
def note(p): return p / f"hm36/annot/{NAME}/matlab_meta.txt"
def lines(function):
    def change(p):
        found = note(p).read_text().splitlines()
        note(p).write_text("\n".join(function(found)))
    return change
def at(row, text): return lines(lambda l: [*l[:row], text, *l[row + 1:]])
def picture(p, kind="hm36/images", ending="jpg"): return p / kind / NAME / f"{NAME}_000002.{ending}"
def resized(path): Image.open(path).resize((100, 100)).save(path)

FAULTS = {
    "empty": (lambda p: note(p).write_text(""), "has 0 lines"),
    "cut": (lines(lambda l: l[:-2]), "3 lines of poses, expected 5"),
    "count": (at(0, "17"), "expected 17"),
    "count is nan": (at(0, "nan"), "line 1: frame count"),
    "words": (at(4, "focal length"), "line 5: f is"),
    "rotation": (at(2, "1 0 0 0 1 0 0 0 2"), "line 3: R is no rotation"),
    "rows for columns": (lines(lambda l: [*l[:2], " ".join(np.array(l[2].split()).reshape(3, 3).T.reshape(-1)), *l[3:]]), "of the joints lie on the masks"),
    "empty masks": (lambda p: [Image.new("L", (160, 162)).save(f) for f in (p / "sam_masks/hm36" / NAME).iterdir()], "0% of the joints lie on the masks"),
    "focal length": (at(4, "0 0"), "focal lengths [0.0, 0.0]"),
    "95 numbers": (lines(lambda l: [*l[:-1], " ".join(l[-1].split()[:-1])]), "line 14: pose"),
    "infinite": (lines(lambda l: [*l[:9], "inf " + l[9].partition(" ")[2], *l[10:]]), "line 10: pose"),
    "metres": (lines(lambda l: [*l[:9], *(" ".join(str(float(v) / 1000) for v in r.split()) for r in l[9:])]), "matlab_meta.txt (read as millimetres): bodies are"),
    "centre in metres": (lines(lambda l: [*l[:3], " ".join(str(float(v) / 1000) for v in l[3].split()), *l[4:]]), NAME),
    "not text": (lambda p: note(p).write_bytes(b"\xff\xfe\x00"), "byte 0 is no ASCII"),
    "no annotation": (lambda p: note(p).unlink(), "matlab_meta.txt: the file is not there"),
    "other size": (at(1, "1000 1002"), "image size 1000 x 1002, but the images are 160 x 162"),
    "one image of another size": (lambda p: resized(picture(p)), "frame 2: the image is 100 x 100"),
    "one mask of another size": (lambda p: resized(picture(p, "sam_masks/hm36", "png")), "frame 2: the mask is 100 x 100"),
    "a missing mask": (lambda p: picture(p, "sam_masks/hm36", "png").unlink(), "the file cannot be read (No such file"),
    "a damaged image": (lambda p: picture(p).write_bytes(picture(p).read_bytes()[:300]), "cannot be read"),
    "a missing camera": (lambda p: shutil.rmtree(p / f"hm36/images/{NAME}"), "has ca_01, ca_02, ca_04"),
    "more images than poses": (lambda p: [shutil.copy(f, f.with_name(f.name.replace("000003", "000009"))) for f in list(p.rglob("*_000003.*"))], "but image 000009 is there"),
    "nobody of the split": (lambda p: [shutil.rmtree(f) for f in (p / "hm36/images").iterdir() if f.name[2:4] in ("09", "11")], "no folder of subjects S9, S11"),
    "no layout": (lambda p: shutil.rmtree(p / "hm36"), "expected one of the layouts"),
}

@pytest.mark.parametrize("change, telling", FAULTS.values(), ids=FAULTS)
def test_a_broken_pack_is_refused_and_leaves_nothing(pack, tmp_path, monkeypatch, change, telling):
    monkeypatch.setenv("POSEPROJECTS_CACHE", str(tmp_path / "cache"))
    change(pack)
    assert telling in refused(pack)
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").iterdir())

def test_only_frames_of_all_cameras_count(pack):
    picture(pack).unlink()
    assert selected_frames(load("test", pack, size=64))["s_11_act_14_subact_01"] == [1, 3]

def test_wrong_arguments(pack):
    assert "split 'val'" in refused(pack, "val") and "size = 4" in refused(pack, size=4) and "2D input 'cpn'" in refused(pack, input_2d="cpn") and "README.md" in refused(pack / "none")

def joint(p, n=6): return p / f"joints/joint_{n:06}.npy"
RENDERED_FAULTS = {
    "dictionary": (lambda p: np.save(p / "info.npy", {"a": 1}, allow_pickle=True), "info.npy"),
    "empty list": (lambda p: np.save(p / "info.npy", np.zeros(0, int)), "expected a list"),
    "no joints": (lambda p: joint(p).unlink(), "joint_000006.npy"),
    "17 joints": (lambda p: np.save(joint(p), np.zeros((17, 3))), "joint_000006.npy"),
    "NaN": (lambda p: np.save(joint(p), np.full((18, 3), np.nan)), "joint_000006.npy"),
    "pixels": (lambda p: np.save(joint(p), np.load(joint(p)) * [128, 128, 1]), "expected about -1 to 1"),
    "millimetres": (lambda p: np.save(joint(p), np.load(joint(p)) * [1, 1, 1000]), "metres from the root"),
    "mask of 255": (lambda p: Image.fromarray(np.full((64, 64), 255, np.uint8)).save(p / "mask/mask_000008.png"), "mask_000008.png: the mask holds the value 255"),
    "other size": (lambda p: resized(p / "image/image_000010.png"), "image_000010.png: the picture is 100 x 100"),
    "no image": (lambda p: (p / "image/image_000012.png").unlink(), "image_000012.png"),
    "cut": (lambda p: joint(p).write_bytes(joint(p).read_bytes()[:150]), "joint_000006.npy"),
}

@pytest.mark.parametrize("change, telling", RENDERED_FAULTS.values(), ids=RENDERED_FAULTS)
def test_a_broken_rendered_folder_is_refused(rendered, change, telling):
    change(rendered)
    assert telling in refused(rendered)

def test_exchanged_sides_are_put_right(rendered, packs):
    for path in (rendered / "joints").iterdir(): np.save(path, np.load(path)[list(XAS18.mirror)])
    made = load("train", rendered)
    assert made.settings["sides"] == "exchanged" and torch.allclose(made.pose_2d, packs["rendered"][1]["train"].pose_2d, atol=1e-4)

@settings(max_examples=60, deadline=None)
@given(where=st.integers(0, 20_000), what=st.binary(min_size=1, max_size=40))
def test_a_changed_annotation_is_read_or_refused(packs, tmp_path_factory, where, what):
    data = bytearray((packs["hm36"][0] / f"hm36/annot/{NAME}/matlab_meta.txt").read_bytes())
    where %= len(data)
    data[where:where + len(what)] = what
    path = tmp_path_factory.getbasetemp() / "fuzzed.txt"
    path.write_bytes(data)
    try: assert read_annotation(path).pose.shape[1:] == (32, 3)
    except InputError as error: assert "\n" not in str(error)

# ---------- rules for MPI-INF-3DHP

def test_which_instants_are_kept():
    points, chair, person = torch.full((5, 18, 2), 20.), torch.full((5, 40, 60), 255, dtype=torch.uint8), torch.zeros(5, 40, 60, dtype=torch.uint8)
    assert mpi_instant_kept(points, chair, person)
    for u, v, kept in ((59.9, 39.9, True), (60., 20, False), (20, 40., False), (-.1, 20, False)):
        moved = points.clone()
        moved[3, 5] = torch.tensor([u, v])
        assert mpi_instant_kept(moved, chair, person) == kept
    for hidden in (4, 5):
        moved, some = points.clone(), chair.clone()
        moved[2, :hidden], some[2, 30, 50] = torch.tensor([50., 30.]), 0
        assert mpi_instant_kept(moved, some, person) == (hidden == 4)
    for rows, kept in ((34, True), (35, False)): # 85 % of 40 rows are 34
        full = person.clone()
        full[4, :rows] = 255
        assert mpi_instant_kept(points, chair, full) == kept

def test_smoothing_removes_specks_and_keeps_bodies():
    mask = torch.zeros(40, 40, dtype=torch.uint8)
    mask[5, 5], mask[10:30, 10:30] = 255, 255
    made = smooth_mask(mask)
    assert made[5, 5] == 0 and (made[11:29, 11:29] == 255).all() and set(made.unique().tolist()) == {0, 255}
    assert (smooth_mask(torch.full((20, 20), 255, dtype=torch.uint8)) == 255).all() # nothing is lost at the border

# ---------- killed

KILLED = """
import sys, threading
from poseprojects.data import crops, h36m_images
real, calls = crops.read_image, []
def slow(path):
    calls.append(path)
    if len(calls) > 12:
        print("HALF", flush=True)
        threading.Event().wait(60)
    return real(path)
crops.read_image = slow
h36m_images.load("test", sys.argv[1], size=64)
"""

def test_a_killed_conversion_leaves_nothing_that_is_opened(packs, tmp_path, monkeypatch):
    monkeypatch.setenv("POSEPROJECTS_CACHE", str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(KILLED), str(packs["hm36"][0])], env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline().strip()
    process.send_signal(signal.SIGKILL)
    assert line == "HALF", process.communicate(timeout=60)[1]
    process.communicate(timeout=60)
    left = list(tmp_path.iterdir())
    assert left and all(p.name.startswith(".tmp-") for p in left)
    assert torch.equal(load("test", packs["hm36"][0], size=64).images, packs["hm36"][1]["test"].images)
