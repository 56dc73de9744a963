"Pose sets: what is refused, what is stored, how it is cut into clips, windows and views."
import errno, json, os, re, signal, struct, subprocess, sys, textwrap, time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import save_file

from poseprojects.camera import Cameras, look_at
from poseprojects.data import base
from poseprojects.data.base import PoseSet, WorldClip, body_height, cached, check_body, clip_bounds, clips, facing_agreement, open_set, render, save, source, views, window_index
from poseprojects.skeleton import H36M16, H36M17, MPII16, mirror
from poseprojects.storage import InputError


# ---------------------------------------------------------------- a small world

def steps(frames=60, scale=1.0):
    "A body that lifts its knees in turn: world frame, z up, faces -y, left on +x."
    body, at = np.zeros((frames, 17, 3)), H36M17.index
    for side, sign in (("left", 1), ("right", -1)):
        bend = np.clip(np.sin(np.linspace(0, 6 * np.pi, frames) + (sign < 0) * np.pi), 0, None)
        body[:, at(f"{side}_hip")] = 0.13 * sign, 0, 0.95
        body[:, at(f"{side}_knee")] = np.stack([np.full(frames, 0.13 * sign), -0.44 * np.sin(bend), 0.95 - 0.44 * np.cos(bend)], 1)
        body[:, at(f"{side}_ankle")] = body[:, at(f"{side}_knee")] - (0, 0, 0.44)
        for joint, x, z in (("shoulder", 0.17, 1.45), ("elbow", 0.20, 1.17), ("wrist", 0.21, 0.92)): body[:, at(f"{side}_{joint}")] = x * sign, 0, z
    for joint, z in (("pelvis", 0.95), ("spine", 1.2), ("thorax", 1.45), ("neck_nose", 1.57), ("head", 1.7)): body[:, at(joint)] = 0, 0, z
    return body * scale

def eyes(centres=((3., -4., 1.5), (0., -5., 1.5), (-2., -4.5, 1.7)), distortion=(0., 0., 0., 0., 0.)):
    placed = [look_at(c, (0., 0., 0.9)) for c in centres]
    n = len(centres)
    return Cameras(tuple(f"cam{k}" for k in range(n)), torch.tensor([[1100., 1090., 510., 495.]] * n), torch.tensor([distortion] * n),
                   torch.stack([R for R, _ in placed]), torch.stack([t for _, t in placed]), torch.tensor([[1000., 1000.]] * n))

@pytest.fixture(scope="module")
def toy():
    every = [WorldClip(steps(60), "ann", "stepping", "ann-1", np.arange(60)), WorldClip(steps(45, 0.93), "bob", "marching", "bob-1", np.arange(100, 145)),
             WorldClip(steps(40), "ann", "marching", "ann-2", np.arange(40))]
    return render(every, eyes(), H36M17, name="toy", frame_rate=50., settings={"recipe": "toy"})

def values_of(poses): return {f.name: getattr(poses, f.name) for f in fields(PoseSet)}

def repeated(poses, n, **ids):
    "A set of `n` samples with the poses of another one, and ids of one's own."
    row = torch.arange(n) % len(poses)
    none = {k: torch.zeros(n, dtype=torch.int32) for k in ("camera_id", "subject", "action", "sequence")}
    return values_of(poses) | {k: getattr(poses, k)[row] for k in ("pose_2d", "pose_3d", "confidence")} | none | {"frame": torch.arange(n), "input_2d": "any"} | ids

def one_sentence(message):
    assert "\n" not in message and len(message) < 330, message
    assert not re.search(r"[.!?] [A-Z]", message), f"more than one sentence: {message}"
    return message


# ---------------------------------------------------------------- creation

def test_numpy_and_torch_make_the_same_set(toy):
    arrays = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in values_of(toy).items()}
    arrays["pose_3d"], arrays["frame"] = arrays["pose_3d"].astype(np.float64), arrays["frame"].astype(np.int64)
    arrays["pose_2d"] = np.asfortranarray(arrays["pose_2d"])
    assert PoseSet.create(**arrays).fingerprint == toy.fingerprint

def test_confidence_is_one_when_left_out(toy):
    made = PoseSet.create(**values_of(toy) | {"confidence": None})
    assert made.confidence.dtype == torch.float32 and bool((made.confidence == 1).all())

def test_a_set_without_3d_is_a_set(toy):
    made = PoseSet.create(**values_of(toy) | {"pose_3d": None})
    assert made.pose_3d is None and "pose_3d" not in made.tensors() and len(made) == len(toy)

def test_an_empty_set_can_be_stored(toy, tmp_path):
    none = toy.select(torch.zeros(len(toy), dtype=torch.bool))
    none.check()
    again = open_set(save(none, tmp_path / "none.safetensors"), verify=True)
    assert len(again) == 0 and len(clips(again)) == 0 and views(again).shape == (0, 3)

def swapped(poses): # the columns of left and right exchanged, as by a wrong joint list
    return poses[:, list(H36M17.mirror)]

def put(tensor, index, value):
    tensor = tensor.clone(); tensor[index] = value
    return tensor

def with_camera(cameras, **changes): return replace(cameras, **changes)

MPII_ORDER = [H36M17.index(j) for j in ("right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "pelvis", "thorax", "neck_nose",
                                        "head", "right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist", "spine")]

REFUSED = { # what was done to a sound set -> the words that must be in the answer
    "millimetres":                (lambda s: {"pose_3d": s.pose_3d * 1000}, ("1.0 to 2.2 m", "divide by 1000")),
    "centimetres":                (lambda s: {"pose_3d": s.pose_3d * 100}, ("centimetres", "divide by 100")),
    "inches":                     (lambda s: {"pose_3d": s.pose_3d / 0.0254}, ("inches", "multiply by 0.0254")),
    "times 25.4":                 (lambda s: {"pose_3d": s.pose_3d * 25.4}, ("1.0 to 2.2 m",)),
    "divided by 1000":            (lambda s: {"pose_3d": s.pose_3d / 1000}, ("divided by 1000 twice",)),
    "times 0.0254":               (lambda s: {"pose_3d": s.pose_3d * 0.0254}, ("multiplied by 0.0254",)),
    "a child of 0.9 m":           (lambda s: {"pose_3d": s.pose_3d * 0.5}, ("1.0 to 2.2 m", "give metres")),
    "mirrored in x":              (lambda s: {"pose_3d": s.pose_3d * torch.tensor([-1., 1., 1.])}, ("left and right are exchanged", "mirrored")),
    "mirrored in z":              (lambda s: {"pose_3d": s.pose_3d * torch.tensor([1., 1., -1.])}, ("left and right are exchanged", "mirrored")),
    "left and right columns":     (lambda s: {"pose_3d": swapped(s.pose_3d)}, ("left and right are exchanged",)),
    "joints in MPII's order":     (lambda s: {"pose_3d": s.pose_3d[:, MPII_ORDER]}, ("toy",)),
    "skeleton of 16 joints":      (lambda s: {"skeleton": H36M16}, ("pose_2d", "(435, 17, 2)", "h36m16", "(435, 16, 2)")),
    "other skeleton of 16":       (lambda s: {"skeleton": MPII16}, ("mpii16", "16")),
    "3D of 16 joints":            (lambda s: {"pose_3d": s.pose_3d[:, :16]}, ("pose_3d", "(435, 16, 3)", "(435, 17, 3)")),
    "3D with two coordinates":    (lambda s: {"pose_3d": s.pose_2d}, ("pose_3d", "(435, 17, 2)")),
    "2D with depth":              (lambda s: {"pose_2d": s.pose_3d}, ("pose_2d", "(435, 17, 3)")),
    "flattened 2D":               (lambda s: {"pose_2d": s.pose_2d.flatten(1)}, ("pose_2d", "(435, 34)")),
    "one 3D pose too few":        (lambda s: {"pose_3d": s.pose_3d[:-1]}, ("pose_3d", "(434, 17, 3)")),
    "one subject id too few":     (lambda s: {"subject": s.subject[:-1]}, ("subject", "(434,)")),
    "ids as a column":            (lambda s: {"action": s.action[:, None]}, ("action", "(435, 1)")),
    "confidence per pose":        (lambda s: {"confidence": torch.ones(len(s))}, ("confidence", "(435,)")),
    "NaN in 3D":                  (lambda s: {"pose_3d": put(s.pose_3d, (7, 3, 1), float("nan"))}, ("pose_3d", "sample 7", "NaN")),
    "infinity in 2D":             (lambda s: {"pose_2d": put(s.pose_2d, (9, 0, 0), float("inf"))}, ("pose_2d", "sample 9", "infinity")),
    "NaN confidence":             (lambda s: {"confidence": put(s.confidence, (11, 2), float("nan"))}, ("confidence", "sample 11")),
    "confidence in percent":      (lambda s: {"confidence": s.confidence * 100}, ("confidence", "between 0 and 1", "100")),
    "negative confidence":        (lambda s: {"confidence": s.confidence - 1.5}, ("confidence", "-0.5")),
    "2D in [-1, 1]":              (lambda s: {"pose_2d": s.pose_2d / 500 - 1}, ("pixels", "normalised")),
    "2D in [0, 1]":               (lambda s: {"pose_2d": s.pose_2d / 1000}, ("pixels", "normalised")),
    "subject without a name":     (lambda s: {"subject": s.subject + 1}, ("subject", "2 names")),
    "negative action":            (lambda s: {"action": s.action - 1}, ("action", "-1")),
    "sequence without a name":    (lambda s: {"sequence_names": s.sequence_names[:1]}, ("sequence", "1 names")),
    "camera that is not there":   (lambda s: {"cameras": s.cameras[:2]}, ("camera_id", "2 names")),
    "frames backwards":           (lambda s: {"frame": s.frame.flip(0)}, ("frame", "do not increase", "sort")),
    "a frame twice":              (lambda s: {"frame": put(s.frame, 5, int(s.frame[4]))}, ("do not increase", "sample 5")),
    "sequences interleaved":      (lambda s: {"sequence": torch.arange(len(s)) % 2}, ("do not stand together",)),
    "cameras interleaved":        (lambda s: {"camera_id": torch.arange(len(s)) % 3}, ("do not stand together",)),
    "rotation with a reflection": (lambda s: {"cameras": with_camera(s.cameras, rotation=s.cameras.rotation * torch.tensor([-1., 1., 1.]))}, ("cam0", "rotation", "reflection")),
    "rotation that stretches":    (lambda s: {"cameras": with_camera(s.cameras, rotation=s.cameras.rotation * 1.1)}, ("cam0", "orthonormal")),
    "negative focal length":      (lambda s: {"cameras": with_camera(s.cameras, intrinsics=put(s.cameras.intrinsics, (1, 0), -1100.))}, ("cam1", "focal")),
    "NaN translation":            (lambda s: {"cameras": with_camera(s.cameras, translation=put(s.cameras.translation, (2, 1), float("nan")))}, ("cam2", "translation")),
    "four distortion terms":      (lambda s: {"cameras": with_camera(s.cameras, distortion=s.cameras.distortion[:, :4])}, ("distortion", "(3, 4)")),
    "image of no size":           (lambda s: {"cameras": with_camera(s.cameras, resolution=s.cameras.resolution * 0)}, ("cam0", "resolution")),
    "root-relative 3D":           (lambda s: {"pose_3d": s.pose_3d - s.pose_3d[:, :1]}, ("toy", "root-relative")),
    "3D in the world's frame":    (lambda s: {"pose_3d": torch.tensor(steps(60)).float().repeat(8, 1, 1)[:len(s)]}, ("toy", "frame")),
    "cameras of another room":    (lambda s: {"cameras": with_camera(s.cameras, intrinsics=s.cameras.intrinsics * 1.2)}, ("camera_id", "px away")),
    "one camera of another room": (lambda s: {"cameras": with_camera(s.cameras, intrinsics=put(s.cameras.intrinsics, (2, 0), 1600.))}, ("cam2", "px away")),
    "2D and 3D in two orders":    (lambda s: {"pose_2d": swapped(s.pose_2d)}, ("joint order", "px away")),
    "one sequence in millimetres": (lambda s: {"pose_3d": s.pose_3d * torch.where(s.sequence == 2, 1000., 1.)[:, None, None]}, ("ann-2", "divide by 1000")),
    "no frame rate":              (lambda s: {"frame_rate": 0.}, ("frame_rate",)),
    "frame step of zero":         (lambda s: {"frame_step": 0}, ("frame_step",)),
    "frames between frames":      (lambda s: {"frame": s.frame + 0.5}, ("frame",)),
    "frame beyond 32 bits":       (lambda s: {"frame": s.frame.long() + 2**32}, ("frame",)),
    "one image too few":          (lambda s: {"images": torch.zeros(len(s) - 1, 4, 4, 3, dtype=torch.uint8)}, ("images",)),
    "images as numbers from 0 to 1": (lambda s: {"images": torch.rand(len(s), 4, 4, 3)}, ("images", "uint8")),
}

@pytest.mark.parametrize("accident", REFUSED)
def test_refused_in_one_sentence(toy, accident):
    change, words = REFUSED[accident]
    with pytest.raises(InputError) as refusal: PoseSet.create(**values_of(toy) | change(toy))
    message = one_sentence(str(refusal.value))
    for word in words: assert word in message, message

def test_sound_bodies_are_not_refused(toy):
    "The body check must let small, tall, turned and lying people pass."
    angle = torch.tensor(1.3)
    turn = torch.tensor([[1, 0, 0], [0, angle.cos(), -angle.sin()], [0, angle.sin(), angle.cos()]])
    for poses in (toy.pose_3d * 0.75, toy.pose_3d * 1.25, toy.pose_3d @ turn, mirror(toy.pose_3d, H36M17)): check_body(poses, H36M17, "sound")

def test_a_detector_may_differ_from_the_truth(toy):
    "Only 2D that calls itself exact must be exact."
    moved = values_of(toy) | {"pose_2d": toy.pose_2d + 20}
    assert PoseSet.create(**moved | {"input_2d": "detector"}).input_2d == "detector"
    with pytest.raises(InputError, match="px away"): PoseSet.create(**moved)

def test_height_does_not_shrink_when_a_body_bends(toy):
    straight, bent = steps(2), steps(60)
    assert float(body_height(torch.tensor(bent), H36M17).std()) < 1e-9
    assert abs(float(body_height(torch.tensor(straight), H36M17)[0]) - (0.75 + 0.13 + 0.88)) < 0.2

def test_knees_tell_left_from_right_in_every_right_handed_frame(toy):
    poses = toy.pose_3d.double()
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.double, generator=torch.Generator().manual_seed(1)))[0]
    rotation = rotation * torch.linalg.det(rotation)
    assert facing_agreement(poses @ rotation, H36M17) > 0.99 and facing_agreement(-poses @ rotation, H36M17) < -0.99


# ---------------------------------------------------------------- fingerprints, select, to

def test_every_part_is_in_the_fingerprint(toy):
    changes = [{"name": "other"}, {"input_2d": "detector"}, {"frame_rate": 25.}, {"frame_step": 2}, {"settings": {"recipe": "toy", "version": 2}}, {"pose_3d": None},
               {"subject_names": ("ann", "rob")}, {"action_names": ("a", "b")}, {"sequence_names": ("x", "y", "z")}, {"cameras": with_camera(toy.cameras, names=("a", "b", "c"))},
               {"cameras": with_camera(toy.cameras, translation=toy.cameras.translation + 1e-9)}, {"images": torch.zeros(len(toy), 2, 2, 3, dtype=torch.uint8)}]
    for name, tensor in toy.tensors().items():
        if tensor.is_floating_point(): changes.append({name: put(tensor, (0, 0), torch.nextafter(tensor[0, 0], torch.tensor(float("inf"))) if name != "confidence" else 0.5)})
        else: changes.append({name: put(tensor, 0, int(tensor[0]) + 1)})
    prints = [replace(toy, **c).fingerprint for c in changes]
    assert len({toy.fingerprint, *prints}) == len(changes) + 1
    assert replace(toy).fingerprint == toy.fingerprint and re.fullmatch("[0-9a-f]{64}", toy.fingerprint)

def test_selection_keeps_order_and_every_array(toy):
    mask = toy.frame % 3 == 0
    picked = toy.select(mask)
    assert all(torch.equal(t, toy.tensors()[n][mask]) for n, t in picked.tensors().items())
    assert picked.fingerprint == toy.select(mask.nonzero().flatten()).fingerprint != toy.fingerprint
    for wrong in (torch.tensor([3, 2]), torch.tensor([3, 3])):
        with pytest.raises(InputError, match="order"): toy.select(wrong)

def test_moving_keeps_the_fingerprint(toy): assert toy.to("cpu").fingerprint == toy.fingerprint

def test_a_set_is_frozen(toy):
    with pytest.raises(AttributeError): toy.name = "other"


# ---------------------------------------------------------------- on disk

def test_round_trip_is_equal_bit_for_bit(toy, tmp_path):
    odd = replace(toy, pose_3d=put(toy.pose_3d, (0, 0, 0), -0.0), input_2d="détecteur", settings={"recipe": "toy", "list": [1, 2.5, None, "ü"], "nested": {"a": True}},
                  images=torch.randint(0, 256, (len(toy), 3, 4, 3), dtype=torch.uint8), masks=torch.randint(0, 2, (len(toy), 3, 4), dtype=torch.uint8))
    again = open_set(save(odd, tmp_path / "deep" / "toy.safetensors"), verify=True)
    assert set(again.tensors()) == set(odd.tensors())
    for name, tensor in odd.tensors().items():
        assert again.tensors()[name].dtype == tensor.dtype and again.tensors()[name].numpy().tobytes() == tensor.numpy().tobytes(), name
    for f in fields(Cameras)[1:]: assert torch.equal(getattr(again.cameras, f.name), getattr(odd.cameras, f.name)), f.name
    assert again.header() == odd.header() and again.skeleton == odd.skeleton
    assert again.fingerprint == odd.fingerprint == replace(again).fingerprint # as stored, and computed anew
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["toy.safetensors"]

def test_a_set_without_3d_comes_back_without(toy, tmp_path):
    assert open_set(save(replace(toy, pose_3d=None), tmp_path / "flat.safetensors"), verify=True).pose_3d is None

def test_arrays_that_share_memory_can_be_stored(toy, tmp_path):
    "One array of zeros given for several ids is the natural way to make a small set."
    zero = torch.zeros(len(toy), dtype=torch.int32)
    shared = PoseSet.create(**repeated(toy, len(toy), camera_id=zero, subject=zero, action=zero, sequence=zero))
    assert open_set(save(shared, tmp_path / "shared.safetensors"), verify=True).fingerprint == shared.fingerprint

def test_saving_twice_gives_the_same_file(toy, tmp_path):
    first, second = save(toy, tmp_path / "a.safetensors").read_bytes(), save(toy, tmp_path / "b.safetensors").read_bytes()
    assert first == second

@pytest.fixture
def stored(toy, tmp_path): return save(toy, tmp_path / "toy.safetensors")

def refused(path, **options):
    with pytest.raises(InputError) as refusal: open_set(path, **options)
    assert str(path) in str(refusal.value)
    return one_sentence(str(refusal.value))

def test_a_missing_file(tmp_path): assert "no such file" in refused(tmp_path / "none.safetensors")

@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 200, 0.3, 0.9, -1])
def test_truncated_at_any_place(stored, kept):
    content = stored.read_bytes()
    stored.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    assert "make" in refused(stored)

def test_one_byte_too_many(stored):
    stored.write_bytes(stored.read_bytes() + b"\0")
    refused(stored)

@pytest.mark.parametrize("content", [b"PK\x03\x04 a zip", b"\x80\x04\x95 a pickle", b'{"json": true}', "Tëxt\n".encode() * 999, bytes(4096), b"\xff" * 4096])
def test_foreign_files(tmp_path, content):
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(content)
    refused(path)

def test_a_folder_is_not_a_set(tmp_path): refused(tmp_path)

def test_safetensors_of_another_program(tmp_path):
    for metadata in (None, {"format": "pt"}, {"poseset": "no json"}, {"poseset": "[1, 2]"}, {"poseset": "3"}, {"poseset": "{}"}):
        save_file({"weight": torch.zeros(3)}, tmp_path / "net.safetensors", metadata=metadata)
        assert "another program" in refused(tmp_path / "net.safetensors")

def rewrite(path, change, tensors=lambda t: t):
    "Writes the file again with another header."
    from safetensors import safe_open
    with safe_open(path, framework="pt") as file: header, arrays = json.loads(file.metadata()["poseset"]), {n: file.get_tensor(n).clone() for n in file.keys()}
    change(header)
    save_file(tensors(arrays), path, metadata={"poseset": json.dumps(header)})

def test_a_newer_format_says_what_to_install(stored):
    rewrite(stored, lambda h: h.update(format=base.FORMAT + 1))
    assert f"format {base.FORMAT + 1}" in refused(stored) and "newer poseprojects" in refused(stored)

@pytest.mark.parametrize("key", ["format", "name", "input_2d", "frame_rate", "frame_step", "skeleton", "cameras", "settings", "subject_names", "sequence_names", "fingerprint"])
def test_a_header_without_a_field(stored, key):
    rewrite(stored, lambda h: h.pop(key))
    refused(stored)

@pytest.mark.parametrize("change", [{"format": "one"}, {"skeleton": 3}, {"skeleton": {"name": "x", "joints": ["a"], "parents": [5]}}, {"cameras": []}, {"cameras": {"cameras": [{}]}}, {"subject_names": None}], ids=str)
def test_a_header_with_nonsense(stored, change):
    rewrite(stored, lambda h: h.update(change))
    refused(stored)

def test_a_file_without_one_of_its_arrays(stored):
    rewrite(stored, lambda h: None, lambda t: {k: v for k, v in t.items() if k != "frame"})
    refused(stored)

def test_no_byte_of_the_header_can_crash_the_reader(stored):
    "Every byte of the header garbled in turn: a set or one sentence, never another error."
    content = stored.read_bytes()
    length = 8 + struct.unpack("<Q", content[:8])[0]
    crashes = {}
    for place in range(0, length, 3):
        stored.write_bytes(content[:place] + bytes([content[place] ^ 0x15]) + content[place + 1:])
        try: open_set(stored)
        except InputError as error: assert str(stored) in str(error) and "\n" not in str(error)
        except Exception as error: crashes.setdefault(type(error).__name__, f"byte {place}: {error}")
    assert not crashes, crashes

def test_garbled_values_are_found_when_asked(stored):
    content = bytearray(stored.read_bytes())
    content[-3] ^= 1 # inside an array: the file is still well formed
    stored.write_bytes(content)
    open_set(stored)
    assert "make the set again" in refused(stored, verify=True)

def test_an_older_file_stays_when_writing_fails(toy, stored, monkeypatch):
    before = stored.read_bytes()
    def full(handle): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="no space is left on the device"): save(replace(toy, name="other"), stored)
    assert stored.read_bytes() == before and [p.name for p in stored.parent.iterdir()] == [stored.name]

@pytest.fixture
def small_disk(tmp_path):
    "A file system of one megabyte, where the system allows it."
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)], capture_output=True) if os.geteuid() == 0 else None
    if made is None or made.returncode: pytest.skip("a small file system cannot be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)

def test_a_disk_that_is_really_full(toy, small_disk, monkeypatch):
    big = PoseSet.create(**repeated(toy, 20_000))
    (small_disk / "ballast").write_bytes(bytes(400_000))
    with pytest.raises(InputError, match="no space is left on the device") as refusal: save(big, small_disk / "big.safetensors")
    one_sentence(str(refusal.value))
    assert [p.name for p in small_disk.iterdir()] == ["ballast"]
    monkeypatch.setenv("POSEPROJECTS_CACHE", str(small_disk))
    with pytest.raises(InputError, match="no space"): cached("big", {}, lambda: big)
    assert [p.name for p in small_disk.iterdir()] == ["ballast"]

def python(code, *arguments, **options):
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, **options)

def test_a_file_size_limit_of_the_system(stored):
    "A write that is really refused half-way, on any machine."
    child = python("""
        import resource, signal, sys
        from pathlib import Path
        from poseprojects.data.base import open_set, save
        from poseprojects.storage import InputError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        poses = open_set(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try: save(poses, Path(sys.argv[1]).with_name("second.safetensors"))
        except InputError as error: print(error)
        """, stored)
    said = child.communicate(timeout=60)[0]
    assert child.returncode == 0 and "could not be written" in one_sentence(said.strip())
    assert [p.name for p in stored.parent.iterdir()] == [stored.name]

def test_a_killed_writer_leaves_the_old_file(toy, stored):
    "SIGKILL when everything is written but nothing renamed: the worst moment."
    before = stored.read_bytes()
    child = python("""
        import os, sys, time
        from dataclasses import replace
        from poseprojects.data.base import open_set, save
        def wait(*_): print("now", flush=True); time.sleep(60)
        poses = open_set(sys.argv[1])
        os.replace = wait
        save(replace(poses, name="other"), sys.argv[1])
        """, stored)
    assert child.stdout.readline() == "now\n"
    child.send_signal(signal.SIGKILL); child.wait(10)
    assert stored.read_bytes() == before
    visible = [p.name for p in stored.parent.iterdir() if not p.name.startswith(".tmp-")]
    assert visible == [stored.name] # what a killed writer left has a name that nobody opens

@pytest.mark.alone
def test_a_large_set_opens_in_a_moment_and_takes_no_memory(toy, tmp_path):
    path = save(PoseSet.create(**repeated(toy, 300_000)), tmp_path / "large.safetensors")
    assert path.stat().st_size > 120_000_000
    child = python("""
        import json, sys, time
        from poseprojects.data.base import open_set
        resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096 if sys.platform == "linux" else 0
        open_set(sys.argv[2])
        before, start = resident(), time.perf_counter()
        poses = open_set(sys.argv[1]); text = repr(poses)
        seconds = time.perf_counter() - start
        value = float(poses.pose_3d[150_000, 3, 2])
        print(json.dumps([seconds, resident() - before, len(poses), value, text]))
        """, path, save(toy, tmp_path / "small.safetensors"))
    seconds, grown, n, value, text = json.loads(child.communicate(timeout=120)[0])
    print(f"opened {n:,} samples in {seconds * 1000:.1f} ms, {grown / 1e6:.1f} MB more resident")
    assert n == 300_000 and "300,000 samples" in text and value == float(toy.pose_3d[150_000 % len(toy), 3, 2])
    assert seconds < 0.5 and grown < 20_000_000
    path.unlink()


# ---------------------------------------------------------------- the cache

@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POSEPROJECTS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"

def test_made_once_and_separated_by_settings(toy, own_cache):
    made = []
    def build(): made.append(1); return toy
    for _ in range(3): assert cached("toy", {"version": 1, "seed": 0}, build).fingerprint == toy.fingerprint
    assert len(made) == 1
    cached("toy", {"seed": 0, "version": 1}, build) # the order of keys means nothing
    assert len(made) == 1
    for k, other in enumerate(({"version": 2, "seed": 0}, {"version": 1, "seed": 1}, {"version": 1}, {"version": 1, "seed": "0"})):
        cached("toy", other, build)
        assert len(made) == k + 2
    cached("other", {"version": 1, "seed": 0}, build)
    assert len(list(own_cache.iterdir())) == len(made) == 6

@pytest.mark.parametrize("damage", ["truncated", "empty", "garbled", "foreign", "header", "newer"])
def test_a_damaged_cache_file_is_made_again(toy, own_cache, damage):
    cached("toy", {}, lambda: toy)
    path, = own_cache.iterdir()
    content = path.read_bytes()
    if damage == "header": rewrite(path, lambda h: h.pop("skeleton"))
    elif damage == "newer": rewrite(path, lambda h: h.update(format=99))
    else: path.write_bytes({"truncated": content[:-50], "empty": b"", "garbled": content[:20] + b"#" * 50 + content[70:], "foreign": b"no tensors at all"}[damage])
    made = []
    def build(): made.append(1); return toy
    again = cached("toy", {}, build)
    assert made == [1] and again.fingerprint == toy.fingerprint and path.read_bytes() == content

def test_a_recipe_that_fails_leaves_nothing(own_cache):
    def build(): raise InputError("walk.amc: line 3 holds no number")
    with pytest.raises(InputError, match="line 3"): cached("toy", {}, build)
    assert not own_cache.exists() or not list(own_cache.iterdir())

def test_an_unknown_data_set_lists_what_there_is():
    for name in ("human36m", "../cmu", "", "base", "a.b"):
        with pytest.raises(InputError, match="cmu.*synthetic") as refusal: source(name)
        one_sentence(str(refusal.value))
    assert source("synthetic").PROTOCOL


# ---------------------------------------------------------------- clips, windows, views against plain loops

@st.composite
def broken_sets(draw):
    "Sequences seen by cameras that lose the person now and then."
    step = draw(st.sampled_from([1, 2, 5]))
    frame_lists = {}
    for sequence in range(draw(st.integers(1, 4))):
        for camera in draw(st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True)):
            gaps = draw(st.lists(st.sampled_from([step] * 6 + [step + 1, 2 * step, 7 * step]), min_size=0, max_size=12))
            frame_lists[sequence, camera] = np.cumsum([draw(st.integers(0, 30)), *gaps]).tolist()
    return step, frame_lists

def build_set(toy, step, frame_lists):
    rows = [(s, c, f) for (s, c), frames in frame_lists.items() for f in frames]
    sequence, camera, frame = (torch.tensor(column) for column in zip(*rows))
    names = dict(sequence_names=tuple(f"s{k}" for k in range(4)), frame_step=step)
    return rows, PoseSet.create(**repeated(toy, len(rows), sequence=sequence, camera_id=camera, frame=frame) | names)

def slow_clips(rows, step):
    found = []
    for k, row in enumerate(rows):
        if k and rows[k - 1][:2] == row[:2] and row[2] - rows[k - 1][2] == step: found[-1][1] = k + 1
        else: found.append([k, k + 1])
    return found

@settings(max_examples=60, deadline=None)
@given(made=broken_sets())
def test_clips_are_those_of_a_plain_loop(toy, made):
    rows, poses = build_set(toy, *made)
    assert clips(poses).tolist() == slow_clips(rows, made[0])

@settings(max_examples=60, deadline=None)
@given(made=broken_sets(), frames=st.sampled_from([1, 2, 3, 9, 27]), causal=st.booleans())
def test_windows_are_those_of_a_plain_loop(toy, made, frames, causal):
    rows, poses = build_set(toy, *made)
    slow = []
    for first, end in slow_clips(rows, made[0]):
        for centre in range(first, end):
            start = centre - (frames - 1 if causal else frames // 2)
            slow.append([min(max(k, first), end - 1) for k in range(start, start + frames)])
    assert window_index(torch.arange(len(rows)), frames, clip_bounds(poses), causal).tolist() == slow
    some = torch.arange(len(rows)).flip(0)[::2]
    assert window_index(some, frames, clip_bounds(poses), causal).tolist() == [slow[k] for k in some.tolist()]

@settings(max_examples=60, deadline=None)
@given(made=broken_sets())
def test_views_are_those_of_a_plain_loop(toy, made):
    rows, poses = build_set(toy, *made)
    table = {}
    for k, (sequence, camera, frame) in enumerate(rows): table.setdefault((sequence, frame), [-1] * 3)[camera] = k
    assert views(poses).tolist() == [table[key] for key in sorted(table)]


def test_views_with_frames_before_zero(toy):
    "Some recordings count from a clap: their first frames are negative."
    frames = {(0, 0): range(-3, 4), (0, 1): range(-3, 4), (1, 0): range(-3, 4)}
    rows, poses = build_set(toy, 1, frames)
    table = views(poses)
    assert len(table) == 14 and [[k for k in row if k >= 0] for row in table.tolist()] == [[k, k + 7] for k in range(7)] + [[k] for k in range(14, 21)]


# ---------------------------------------------------------------- render against a plain loop

def slow_pixel(point, K, d):
    x, y = point[0] / point[2], point[1] / point[2]
    r = x * x + y * y
    radial = 1 + d[0] * r + d[1] * r**2 + d[2] * r**3
    xd = x * radial + 2 * d[3] * x * y + d[4] * (r + 2 * x * x) if tangential == "opencv" else x * radial
    yd = y * radial + d[3] * (r + 2 * y * y) + 2 * d[4] * x * y if tangential == "opencv" else y * radial
    return K[0] * xd + K[2], K[1] * yd + K[3]

tangential = "radial only: the sign conventions of the tangential terms are the business of test_camera"

def test_render_is_a_plain_loop():
    cameras = eyes(distortion=(-0.2, 0.1, 0.01, 0., 0.))
    cameras = replace(cameras, intrinsics=put(cameras.intrinsics, (2, slice(0, 2)), 150.), distortion=put(cameras.distortion, 2, 0.)) # one wide angle, which sees what is too near
    walk = lambda frames, x0, x1: steps(frames) + np.linspace((x0, 0, 0), (x1, 0, 0), frames)[:, None]
    motions = [WorldClip(walk(50, -4, 4), "ann", "walking", "w1", np.arange(0, 250, 5)), # comes into view and leaves it
               WorldClip(walk(30, 0, 0.5), "bob", "walking", "w2", np.arange(30)),
               WorldClip(walk(40, 0, 0) + np.linspace((0, 0, 0), (-2.2, -4.95, 0), 40)[:, None], "ann", "approaching", "w3", np.arange(40))] # walks into the wide camera
    made = render(motions, cameras, H36M17, name="walks", frame_rate=10., frame_step=5)
    expected, dropped_near, dropped_side = [], 0, 0
    for s, clip in enumerate(motions):
        for c in range(3):
            R, t = cameras.rotation[c].double().numpy(), cameras.translation[c].double().numpy()
            K, d = cameras.intrinsics[c].double().tolist(), cameras.distortion[c].double().tolist()
            for k in range(len(clip.pose)):
                seen = [R @ joint + t for joint in clip.pose[k]]
                if min(p[2] for p in seen) <= 0: continue
                pixels = [slow_pixel(p, K, d) for p in seen]
                inside = all(0 <= u <= 1000 and 0 <= v <= 1000 for u, v in pixels)
                if not all(p[2] > 1.0 for p in seen): dropped_near += inside
                elif inside: expected.append((s, c, clip.frame[k], np.array(seen), np.array(pixels)))
                else: dropped_side += 1
    assert dropped_near >= 2 and dropped_side > 20 and len(expected) > 100 # the test would be empty otherwise
    assert list(zip(made.sequence.tolist(), made.camera_id.tolist(), made.frame.tolist())) == [e[:3] for e in expected]
    assert float((made.pose_3d - torch.tensor(np.stack([e[3] for e in expected]))).abs().max()) < 1e-6
    assert float((made.pose_2d - torch.tensor(np.stack([e[4] for e in expected]))).abs().max()) < 1e-4
    assert [made.subject_names[k] for k in made.subject.unique_consecutive()] == ["ann", "bob", "ann"]
    assert made.action_names == ("walking", "approaching") and made.sequence_names == ("w1", "w2", "w3")

def test_render_uses_double_precision():
    "Far from the origin single precision would lose millimetres."
    shift = np.array([5e4, -5e4, 0.])
    near, placed = steps(5), [look_at((3. + shift[0], -4. + shift[1], 1.5), (shift[0], shift[1], 0.9))]
    far = replace(eyes(((3., -4., 1.5),)), rotation=placed[0][0][None].double(), translation=placed[0][1][None].double())
    here = render([WorldClip(near, "a", "b", "c", np.arange(5))], eyes(((3., -4., 1.5),)), H36M17, name="near", frame_rate=50.)
    there = render([WorldClip(near + shift, "a", "b", "c", np.arange(5))], far, H36M17, name="far", frame_rate=50.)
    assert float((here.pose_3d - there.pose_3d).abs().max()) < 1e-5

def test_nothing_to_render_is_said():
    with pytest.raises(InputError) as refusal: render([], eyes(), H36M17, name="none", frame_rate=50.)
    one_sentence(str(refusal.value))

def test_nobody_in_view_gives_an_empty_set():
    made = render([WorldClip(steps(10) + (100., 0., 0.), "a", "b", "c", np.arange(10))], eyes(), H36M17, name="far", frame_rate=50.)
    assert len(made) == 0 and made.subject_names == ("a",)
