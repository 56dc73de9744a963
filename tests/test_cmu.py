"The cmu protocol on the real pack and on made-up ones, and HDM05 under the same rules."
import json, math, os, signal, subprocess, sys, textwrap, time
from pathlib import Path

import numpy as np
import pytest
import torch
from mocap_pack import SUBJECT, TRIAL, make_pack
from poseprojects import metrics
from poseprojects.camera import project, unproject
from poseprojects.data import cmu, hdm05, synthetic
from poseprojects.data.acclaim import forward_kinematics, mannequin, marching, read_amc, read_asf, write_amc, write_asf
from poseprojects.data.base import clips, views
from poseprojects.skeleton import H36M16, H36M17, bone_lengths, convert
from poseprojects.storage import InputError, shared_data

CMU, HDM05 = shared_data("cmu"), shared_data("hdm05")
needs_cmu = pytest.mark.skipif(CMU is None, reason="the CMU pack is not here")
needs_hdm05 = pytest.mark.skipif(HDM05 is None, reason="HDM05 is not here")

@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    "A cache for this file alone, shared by its tests."
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("POSEPROJECTS_CACHE", str(folder))
    return folder

@pytest.fixture
def pack(tmp_path): return make_pack(tmp_path / "pack")

@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POSEPROJECTS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"

def left_in(folder): return [p.name for p in folder.rglob("*")] if folder.exists() else []

# ---------- the table of PROTOCOL.md

TABLE = """
01 train 3850 15390 3850 3850 3850 3840
02 train 5285 21140 5285 5285 5285 5285
05 train 3469 13876 3469 3469 3469 3469
07 train 1892 7568 1892 1892 1892 1892
14 train 11641 46564 11641 11641 11641 11641
127 train 2875 11064 2737 2801 2773 2753
03 test 374 1496 374 374 374 374
09 test 1730 6842 1686 1730 1696 1730
16 test 2760 11025 2760 2758 2760 2747
17 test 1617 6468 1617 1617 1617 1617
"""

@needs_cmu
@pytest.mark.parametrize("row", TABLE.strip().split("\n"), ids=lambda r: r.split()[0])
def test_every_row_of_the_table(row):
    subject, split, frames, kept, *per_camera = row.split()
    part = cmu.load(split)
    mine = part.select(part.subject == part.subject_names.index(subject))
    assert [int((mine.camera_id == c).sum()) for c in range(4)] == [int(n) for n in per_camera]
    assert len(mine) == int(kept)
    assert len(views(mine)) <= int(frames)

@needs_cmu
@pytest.mark.parametrize("split, frames, kept, per_camera", [("train", 29012, 115602, (28874, 28938, 28910, 28880)), ("test", 6481, 25831, (6437, 6479, 6447, 6468))])
def test_the_sums_of_the_table(split, frames, kept, per_camera):
    part = cmu.load(split)
    assert len(part) == kept and tuple(int((part.camera_id == c).sum()) for c in range(4)) == per_camera
    assert sum(int(r.split()[2]) for r in TABLE.strip().split("\n") if r.split()[1] == split) == frames

@needs_cmu
def test_frames_are_odd_and_the_spoilt_ones_gone():
    part = cmu.load("all")
    assert bool((part.frame % 2 == 1).all()) and part.frame_rate == 60 and part.frame_step == 2
    for name, first, last in (("03_02", 1, 50), ("09_10", 1, 4), ("16_15", 1, 2), ("05_20", 677, 680)):
        frames = part.frame[part.sequence == part.sequence_names.index(name)]
        assert not bool(((frames >= first) & (frames <= last)).any()) and len(frames)
    assert len(part) == 115602 + 25831 and len(part.sequence_names) == 88

@needs_cmu
def test_the_pelvis_stands_above_the_hips_and_that_of_the_embedded_set_between_them():
    "What the notebook of PoseAug says of the two, where it explains errors across them."
    def above(part):
        pelvis, right, left = part.pose_3d[:, [part.skeleton.index(name) for name in ("pelvis", "right_hip", "left_hip")]].unbind(1)
        return float((pelvis - (right + left) / 2).norm(dim=-1).mean()) * 1000 # mm
    assert 100 < above(cmu.load("test")) < 120 and above(synthetic.load("test", samples=8000)) < 0.01

@needs_cmu
def test_the_arrays_agree_with_each_other_and_with_the_file():
    part = cmu.load("test")
    eyes = part.cameras[part.camera_id.long()].to(torch.float64)
    assert float((project(part.pose_3d.double(), eyes) - part.pose_2d).abs().max()) < 1e-3
    assert part.pose_3d.dtype == torch.float32 and part.skeleton == H36M17
    assert float(part.pose_2d.min()) >= 0 and float(part.pose_2d.max()) <= 1000 and float(part.pose_3d[..., 2].min()) > 1
    world = ((part.pose_3d.double() - eyes.translation[:, None]) @ eyes.rotation)
    name = part.sequence_names.index("16_03")
    rows = ((part.sequence == name) & (part.camera_id == 0)).nonzero().flatten()
    skeleton = read_asf(CMU / "16/16.asf")
    joints = forward_kinematics(skeleton, read_amc(CMU / "16/16_03.amc", skeleton))[::2]
    from poseprojects.data.acclaim import NODES
    for joint, node in (("right_hip", "rhipjoint"), ("left_ankle", "ltibia"), ("neck_nose", "upperneck"), ("head", "head"), ("left_wrist", "lradius"), ("right_shoulder", "rclavicle")):
        point = joints[:, NODES.index(node)]
        expected = np.stack([point[:, 0] - joints[:, 0, 0].mean(), -point[:, 2] + joints[:, 0, 2].mean(), point[:, 1]], 1)
        assert np.abs(world[rows, H36M17.index(joint)].numpy() - expected).max() < 1e-6
    spine = (joints[:, NODES.index("lowerback")] + joints[:, NODES.index("upperback")]) / 2
    assert np.abs(world[rows, 7, 2].numpy() - spine[:, 1]).max() < 1e-6

@needs_cmu
def test_cameras_are_those_of_the_file():
    ours = cmu.cameras()
    for k, given in enumerate(json.loads((CMU / "cameras.json").read_text())["cameras"]):
        assert np.abs(ours.rotation[k].numpy() - given["R"]).max() < 1e-9 and np.abs(ours.translation[k].numpy() - given["t"]).max() < 1e-9
        assert ours.names[k] == given["name"] and ours.resolution[k].tolist() == [given["width"], given["height"]]
        assert np.abs(ours.centers[k].numpy() - given["center"]).max() < 1e-9

@needs_cmu
def test_trivial_answers():
    "They prove the protocol: joints, root, camera frame, means."
    train, test = cmu.load("train"), cmu.load("test")
    relative = lambda pose: pose.double() - pose[:, :1].double()
    target = relative(test.pose_3d)
    mean = relative(train.pose_3d).mean(0).expand_as(target)
    mm = lambda x: round(1000 * float(x.mean()), 1)
    assert mm(metrics.mpjpe(mean, target)) == 179.4
    assert mm(metrics.mpjpe(convert(mean, H36M17, H36M16), convert(target, H36M17, H36M16))) == 183.0
    assert mm(metrics.pa_mpjpe(mean, target)) == 160.7
    flat = unproject(test.pose_2d.double(), test.pose_3d[:, :1, 2].double().expand(-1, 17), test.cameras[test.camera_id.long()].to(torch.float64))
    assert mm(metrics.mpjpe(relative(flat), target)) == 109.6
    assert mm(metrics.pa_mpjpe(relative(flat), target)) == 83.6

@needs_cmu
def test_bone_lengths_are_constant_in_every_recording():
    part = cmu.load("test")
    lengths = bone_lengths(part.pose_3d, H36M17)
    rigid = [k for k, (child, _) in enumerate(H36M17.bones) if H36M17.joints[child].split("_")[-1] in ("hip", "knee", "ankle", "elbow", "wrist")]
    for s in range(len(part.subject_names)): assert float(lengths[part.subject == s][:, rigid].std(0).max()) < 1e-5

@needs_cmu
def test_opening_from_the_cache_is_quick_and_equal():
    first = cmu.load("test")
    start = time.perf_counter()
    again = cmu.load("test")
    assert time.perf_counter() - start < 1.5 and again.fingerprint == first.fingerprint
    assert first.settings["descriptions"]["16_17"] == "walk, 90-degree left turn"

@needs_cmu
def test_actions_are_few_and_named():
    part = cmu.load("all")
    assert 15 <= len(part.action_names) <= 25 and "other" not in part.action_names
    assert part.action_names[int(part.action[part.sequence == part.sequence_names.index("16_35")][0])] == "running"

@needs_cmu
def test_recipe_has_the_same_list_of_recordings():
    assert (Path(__file__).parents[1] / "data_recipes/cmu/trials.csv").read_bytes() == (CMU / "trials.csv").read_bytes()

@needs_cmu
def test_some_subjects_only():
    part = cmu.load("test", subjects=["17", "03"])
    assert part.subject_names == ("03", "17") and len(part) == 1496 + 6468

# ---------- the pack as a whole

def refused(*args, **kwargs):
    with pytest.raises(InputError) as refusal: cmu.load(*args, **kwargs)
    text = str(refusal.value)
    assert "\n" not in text and "expected" in text
    return text

def spoil(name, change): return lambda pack: (pack / name).write_text(change((pack / name).read_text()))

PACKS = {
    "no list": (lambda p: (p / "trials.csv").unlink(), "trials.csv: the list of recordings is not there"),
    "list without a column": (spoil("trials.csv", lambda t: t.replace("frames,", "length,", 1)), "trials.csv, line 1: column 'frames'"),
    "list with words for numbers": (spoil("trials.csv", lambda t: t.replace(",40,", ",many,")), "trials.csv, line 2: 02_01"),
    "empty list": (spoil("trials.csv", lambda t: t.split("\n")[0] + "\n"), "empty"),
    "recording twice": (spoil("trials.csv", lambda t: t + t.split("\n")[1]), "twice"),
    "path that leaves the folder": (spoil("trials.csv", lambda t: t.replace("02/02_01.amc", "../../etc/passwd")), "does not fit subject"),
    "binary list": (lambda p: (p / "trials.csv").write_bytes(b"\xff\xfe\x00" * 50), "cannot be read"),
    "short row": (spoil("trials.csv", lambda t: t.replace(",40,", "\n", 1)), "line 2"),
    "no skeleton": (lambda p: (p / "02/02.asf").unlink(), "02.asf: the file is not there"),
    "no motion": (lambda p: (p / "02/02_01.amc").unlink(), "02_01.amc: the file is not there"),
    "other frames than listed": (spoil("trials.csv", lambda t: t.replace(",40,", ",41,")), "40 frames, expected 41"),
    "foot height of another person": (spoil("trials.csv", lambda t: t.rstrip()[:-4] + "0.07\n"), "another subject's"),
    "checksum": (lambda p: (p / "SHA256SUMS").write_text("0" * 64 + "  02/02_01.amc\n"), "SHA256SUMS"),
    "checksum of another skeleton": (lambda p: (p / "SHA256SUMS").write_text("1" * 64 + " *02/02.asf\n"), "02.asf"),
}

@pytest.mark.parametrize("change, telling", PACKS.values(), ids=PACKS)
def test_a_broken_pack_is_refused_and_leaves_nothing(pack, empty_cache, change, telling):
    change(pack)
    assert telling in refused("train", pack, subjects=[SUBJECT])
    assert not left_in(empty_cache)

@pytest.mark.parametrize("arguments, telling", [(("validation",), "split 'validation'"), (("test", None, "cpn"), "2D input 'cpn'"), (("test", None, "gt", ["01"]), "subject '01'"),
                                                (("test", "/no/such/place"), "README.md says where to get it")])
def test_wrong_arguments(arguments, telling): assert telling in refused(*arguments)

def test_an_empty_folder(tmp_path):
    (tmp_path / "cmu").mkdir()
    assert "the folder is empty" in refused("train", tmp_path / "cmu")

def test_absent_data_says_where_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("POSEPROJECTS_DATA", str(tmp_path))
    assert "data_recipes/cmu/README.md" in refused("train")
    with pytest.raises(InputError, match="data_recipes/hdm05/README.md"): hdm05.load()

def test_a_changed_file_is_never_answered_from_the_cache(pack, empty_cache):
    first = cmu.load("train", pack, subjects=[SUBJECT])
    assert cmu.load("train", pack, subjects=[SUBJECT]).fingerprint == first.fingerprint and len(left_in(empty_cache)) == 1
    path = pack / SUBJECT / f"{TRIAL}.amc"
    stamp = path.stat()
    body, text = mannequin(SUBJECT), path.read_text()
    path.write_text(text.replace("lhand -15", "lhand -14").replace("lradius 25 ", "lradius 26 ").replace("lradius 25\n", "lradius 26\n"))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns)) # same name, same size, same time
    assert path.stat().st_size == stamp.st_size and path.read_text() != text
    assert cmu.load("train", pack, subjects=[SUBJECT]).fingerprint != first.fingerprint

def test_a_damaged_cache_is_made_again(pack, empty_cache):
    first = cmu.load("train", pack, subjects=[SUBJECT])
    fingerprint, (stored,) = first.fingerprint, list(empty_cache.glob("*.safetensors"))
    del first
    stored.write_bytes(stored.read_bytes()[:1000])
    assert cmu.load("train", pack, subjects=[SUBJECT]).fingerprint == fingerprint

def test_the_same_pack_elsewhere_is_the_same_set(pack, tmp_path, empty_cache):
    import shutil
    shutil.copytree(pack, tmp_path / "elsewhere")
    assert cmu.load("train", pack, subjects=[SUBJECT]).fingerprint == cmu.load("train", tmp_path / "elsewhere", subjects=[SUBJECT]).fingerprint
    assert len(left_in(empty_cache)) == 1

# ---------- disk full, killed

def test_no_space_when_flushing(pack, empty_cache, monkeypatch):
    import errno
    def full(handle): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="no space is left on the device") as refusal: cmu.load("train", pack, subjects=[SUBJECT])
    assert "\n" not in str(refusal.value) and not left_in(empty_cache)

LIMITED = """
import resource, signal, sys
from poseprojects.data import cmu
from poseprojects.storage import InputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try: cmu.load("train", sys.argv[1], subjects=["02"])
except InputError as error: print("REFUSED", error)
"""

def run(code, pack, cache, **kwargs):
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), str(pack)], env=os.environ | {"POSEPROJECTS_CACHE": str(cache), "OMP_NUM_THREADS": "1"},
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)

def test_the_system_refuses_a_large_file(pack, empty_cache):
    "A real refusal in the middle of writing, not a mocked one: the process may not write files over 4 KB."
    process = run(LIMITED, pack, empty_cache)
    out, err = process.communicate(timeout=120)
    assert out.startswith("REFUSED") and out.count("\n") == 1, out + err
    assert not left_in(empty_cache)

def test_a_full_file_system(pack, tmp_path):
    "A real one, where the system lets us mount one."
    place = tmp_path / "tiny"
    place.mkdir()
    if sys.platform != "linux" or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("this system does not let the test mount a small file system")
    try:
        out, err = run(LIMITED.replace("(4096, 4096)", "(-1, -1)"), pack, place).communicate(timeout=120)
        assert out.startswith("REFUSED") and "no space is left on the device" in out and out.count("\n") == 1, out + err
        assert not left_in(place)
    finally: subprocess.run(["umount", place], check=True)

KILLED = """
import os, signal, sys, threading
import poseprojects.data.base as base
from poseprojects.data import cmu
real = base.save_file
def slow(tensors, path, **kwargs):
    real(tensors, path, **kwargs)
    print("WRITTEN", flush=True)
    threading.Event().wait(60)
base.save_file = slow
cmu.load("train", sys.argv[1], subjects=["02"])
"""

def test_a_killed_conversion_leaves_nothing_that_is_opened(pack, empty_cache):
    process = run(KILLED, pack, empty_cache)
    assert process.stdout.readline().strip() == "WRITTEN"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert all(name.startswith(".tmp-") for name in left_in(empty_cache))
    made = cmu.load("train", pack, subjects=[SUBJECT])
    assert len(made) == 20 * 4 and len(clips(made)) == 4

# ---------- HDM05

@needs_hdm05
def test_hdm05_counts_and_names():
    part = hdm05.load()
    assert len(part) == 24418 and part.subject_names == ("bd", "bk") and len(part.action_names) == 11 and len(part.sequence_names) == 44
    assert "lieDownFloor" in part.action_names and part.frame_rate == 60 and bool((part.frame % 2 == 1).all())
    assert hdm05.load("all").pose_3d.shape == part.pose_3d.shape

def test_hdm05_has_no_training_part():
    with pytest.raises(InputError, match="no training part"): hdm05.load("train")

def hdm_pack(root, subjects=("bd", "bk")):
    for subject in subjects:
        (root / subject).mkdir(parents=True)
        body = mannequin(f"HDM_{subject}")
        write_asf(root / subject / f"HDM_{subject}.asf", body)
        write_amc(root / subject / f"HDM_{subject}_squat_001_120.amc", body, marching(body, 30))
    return root

def test_a_small_hdm05(tmp_path, empty_cache):
    part = hdm05.load("test", hdm_pack(tmp_path / "hdm05"))
    assert len(part) == 2 * 4 * 15 and part.action_names == ("squat",) and part.sequence_names[0] == "HDM_bd_squat_001_120"

HDM_FAULTS = {
    "no motions": (lambda p: (p / "bk/HDM_bk_squat_001_120.amc").unlink(), "no motion file"),
    "another actor's file": (lambda p: (p / "bk/HDM_bk_squat_001_120.amc").rename(p / "bd/HDM_bk_squat_001_120.amc"), "does not fit"),
    "another rate": (lambda p: (p / "bk/HDM_bk_squat_001_120.amc").rename(p / "bk/HDM_bk_squat_001_60.amc"), "120 Hz"),
    "no skeleton": (lambda p: (p / "bk/HDM_bk.asf").unlink(), "HDM_bk.asf: the file is not there"),
}

@pytest.mark.parametrize("change, telling", HDM_FAULTS.values(), ids=HDM_FAULTS)
def test_a_broken_hdm05_is_refused(tmp_path, empty_cache, change, telling):
    pack = hdm_pack(tmp_path / "hdm05")
    change(pack)
    with pytest.raises(InputError) as refusal: hdm05.load("test", pack)
    assert telling in str(refusal.value) and not left_in(empty_cache)
