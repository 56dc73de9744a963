"Crops: pixels land where the geometry says, and nothing half-written is ever opened."
import json, os, signal, subprocess, sys, textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from poseprojects.camera import Cameras, apply_homography, look_at, project, world_to_camera
from poseprojects.data import crops
from poseprojects.data.base import PoseSet, open_set, render
from poseprojects.data.crops import CropOptions, crop_geometry, crop_views, cropped, image_footage, open_streamed, read_frames, read_image, read_mask, streamed_file, video_footage, view_of, warp, write_crops, write_video
from poseprojects.data.sources import example_people
from poseprojects.skeleton import H36M17
from poseprojects.storage import InputError

SIZE = (200, 160) # of the whole images, px

def rig(distortion=(-.12, .03, 0., .002, -.003)):
    "Three cameras that look past the person, with a lens."
    R, t = look_at([(3.6, 2.2, 1.7), (3.2, -2.4, 1.5), (-3.4, 2.6, 1.4)], [(.5, .4, .9)] * 3)
    row = lambda *v: torch.tensor([v] * 3, dtype=torch.float64)
    return Cameras(("left", "right", "back"), row(190, 185, 104, 77), row(*distortion), R, t, row(*SIZE))

@pytest.fixture(scope="module")
def whole(): return render(example_people(H36M17, 5, frame_rate=10., first_frame=3), rig(), H36M17, name="whole", frame_rate=10.)

def spot(u, v, sigma=1.2):
    "A soft white dot on black whose centre of brightness is exactly at (u, v) px."
    y, x = np.mgrid[:SIZE[1], :SIZE[0]] + .5
    return torch.from_numpy((250 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * sigma ** 2))).round().astype(np.uint8))[..., None].expand(-1, -1, 3).contiguous()

def centroid(image):
    "Centre of brightness, px."
    light = image.float().mean(-1)
    steps = torch.arange(len(light)) + .5
    return torch.stack([(light.sum(0) * steps).sum(), (light.sum(1) * steps).sum()]) / light.sum()

# ---------- geometry meets pixels

@pytest.mark.parametrize("kind", ["turned", "box"])
@pytest.mark.parametrize("joint", [0, 3, 10, 13])
def test_a_dot_at_a_joint_is_found_where_the_crop_says(whole, kind, joint):
    geometry = crop_geometry(whole, 128, 2., kind)
    inside = cropped(whole, geometry)
    for k in range(0, len(whole), 4):
        eye = whole.cameras[whole.camera_id[[k]]]
        crop = warp(spot(*whole.pose_2d[k, joint].tolist())[None], geometry.homography[[k]], 128, eye)[0]
        assert (centroid(crop) - inside.pose_2d[k, joint]).norm() < .15, (kind, k)

def test_without_taking_the_lens_out_the_dot_is_missed(whole):
    "The test above can fail: the same crop without the lens is visibly off somewhere."
    geometry = crop_geometry(whole, 128, 2., "turned")
    off = [float((centroid(warp(spot(*whole.pose_2d[k, 3].tolist())[None], geometry.homography[[k]], 128)[0]) - cropped(whole, geometry).pose_2d[k, 3]).norm()) for k in range(len(whole))]
    assert max(off) > 1

@pytest.mark.parametrize("kind", ["turned", "box"])
def test_the_crop_camera_projects_exactly_and_keeps_the_world(whole, kind):
    inside = cropped(whole, crop_geometry(whole, 64, 2., kind))
    inside.check()
    eyes, before = inside.cameras[inside.camera_id], whole.cameras[whole.camera_id]
    assert (project(inside.pose_3d.double(), eyes) - inside.pose_2d).abs().max() < 1e-3
    back = (inside.pose_3d.double() - eyes.translation[:, None]) @ eyes.rotation
    there = (whole.pose_3d.double() - before.translation[:, None]) @ before.rotation
    assert (back - there).abs().max() < 1e-5
    assert (inside.pose_2d[:, 0] - 32).abs().max() < 1e-3
    if kind == "turned": assert inside.pose_3d[:, 0, :2].abs().max() < 1e-5 and torch.allclose(inside.pose_3d[:, 0, 2].double(), whole.pose_3d[:, 0].double().norm(dim=-1), atol=1e-5)

def test_the_extent_fills_the_crop(whole):
    for kind in crops.KINDS[:2]:
        eyes = crop_geometry(whole, 100, 2.5, kind).cameras
        root = cropped(whole, crop_geometry(whole, 100, 2.5, kind)).pose_3d[:, 0].double()
        edge = project((root + torch.tensor([1.25, 0., 0.]))[:, None], eyes)[:, 0, 0]
        assert torch.allclose(edge, torch.full_like(edge, 100.), atol=1e-4 if kind == "turned" else .8) # fx and fy differ: the larger side fills it

def test_a_set_with_a_camera_for_every_sample_is_checked(whole):
    inside = cropped(whole, crop_geometry(whole, 64))
    inside.check()
    other = inside.pose_2d.clone()
    other[7] += 9
    nan = inside.pose_3d.clone()
    nan[2, 5, 1] = float("nan")
    for change, telling in ((dict(pose_2d=other), "camera right/7: pose_3d projects"), (dict(pose_3d=inside.pose_3d - inside.pose_3d[:, :1]), "behind their camera"), (dict(pose_3d=nan), "NaN"),
                            (dict(pose_3d=inside.pose_3d * 1000), "divide by 1000"), (dict(frame=inside.frame.flip(0), camera_id=inside.camera_id * 0), "do not increase"), (dict(camera_id=inside.camera_id + 1), "camera_id runs")):
        with pytest.raises(InputError, match=telling): replace(inside, **change).check()

def test_roll_turns_about_the_root(whole):
    angle = torch.linspace(-.5, .5, len(whole), dtype=torch.float64)
    plain, rolled = (cropped(whole, crop_geometry(whole, 64, 2., "turned", a)).pose_2d.double() - 32 for a in (None, angle))
    c, s = angle.cos()[:, None], angle.sin()[:, None]
    assert torch.allclose(rolled, torch.stack([c * plain[..., 0] - s * plain[..., 1], s * plain[..., 0] + c * plain[..., 1]], -1), atol=1e-3)

def test_boxes_around_joints_need_no_3d(whole):
    flat = replace(whole, pose_3d=None)
    inside = cropped(flat, crop_geometry(flat, 64, 1.2, "joints"))
    span = inside.pose_2d.amax(1) - inside.pose_2d.amin(1)
    assert torch.allclose(span.amax(1), torch.full((len(flat),), 64 / 1.2), atol=1e-2)
    with pytest.raises(InputError, match="no 3D"): crop_geometry(flat, 64)
    with pytest.raises(InputError, match="kind 'round'"): crop_geometry(whole, 64, 2., "round")

# ---------- warp

def test_warp_is_exact_where_it_can_be():
    image = torch.randint(0, 256, (2, 30, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(warp(image, torch.eye(3).expand(2, 3, 3), 30), image[:, :, :30])
    flip = torch.tensor([[-1., 0, 30], [0, 1, 0], [0, 0, 1]])
    assert torch.equal(warp(image, flip.expand(2, 3, 3), 30), image[:, :, :30].flip(2))
    assert torch.equal(warp(image[0], flip.expand(2, 3, 3), 30)[1], image[0, :, :30].flip(1))
    away = torch.tensor([[[1., 0, 500], [0, 1, 0], [0, 0, 1]]])
    assert warp(image[:1], away, 20).max() == 0
    half = torch.tensor([[[1., 0, -.5], [0, 1, 0], [0, 0, 1]]])
    expected = ((image[0, :20, :20].float() + image[0, :20, 1:21].float()) / 2).round()
    assert (warp(image[:1], half, 20)[0].float() - expected).abs().max() <= 1
    assert torch.equal(warp(image[:1], half, 20, pixel_centre=0.), warp(image[:1], torch.tensor([[[1., 0, -1], [0, 1, -.5], [0, 0, 1]]]), 20))

def test_behind_the_camera_is_black():
    H = torch.linalg.inv(torch.tensor([[1., 0, 0], [0, 1, 0], [-.1, 0, 1]]))[None] # columns beyond 10 look backwards
    white = torch.full((1, 40, 40, 1), 255, dtype=torch.uint8)
    assert warp(white, H, 30)[0, :, 11:].max() == 0

def independent(image, H, size):
    "A slow bilinear look-up, pixel by pixel."
    out, back = np.zeros((size, size, image.shape[2])), np.linalg.inv(H)
    for v in range(size):
        for u in range(size):
            x, y, w = back @ [u + .5, v + .5, 1]
            x, y = x / w - .5, y / w - .5
            x0, y0 = int(np.floor(x)), int(np.floor(y))
            for dx in (0, 1):
                for dy in (0, 1):
                    if 0 <= x0 + dx < image.shape[1] and 0 <= y0 + dy < image.shape[0]: out[v, u] += image[y0 + dy, x0 + dx] * (1 - abs(x - x0 - dx)) * (1 - abs(y - y0 - dy))
    return out

@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=8, max_size=8))
def test_warp_agrees_with_a_slow_one(v):
    H = np.array([[1 + .5 * v[0], .4 * v[1], 12 * v[2]], [.4 * v[3], 1 + .5 * v[4], 12 * v[5]], [.003 * v[6], .003 * v[7], 1]])
    image = np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8)
    made = warp(torch.from_numpy(image)[None], torch.from_numpy(H)[None], 16)[0].numpy()
    assert np.abs(made - independent(image, H, 16)).max() < 1

# ---------- images and videos

@pytest.fixture(scope="module")
def footage_files(whole, tmp_path_factory):
    "Images with masks, and videos, of the three cameras: frames 3 to 7 show the person, 0 to 2 the wall."
    from PIL import Image
    folder, rng = tmp_path_factory.mktemp("footage"), np.random.default_rng(1)
    for c, name in enumerate(whole.cameras.names):
        wall, frames = rng.integers(40, 90, (20, 25, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1), []
        for f in range(8):
            row = ((whole.camera_id == c) & (whole.frame == f)).nonzero().flatten().tolist()
            mask = np.zeros(SIZE[::-1], bool)
            for u, v in whole.pose_2d[row[0]].tolist() if row else (): mask |= np.hypot(*(np.mgrid[:SIZE[1], :SIZE[0]] + .5 - np.array([v, u])[:, None, None])) < 4
            image = np.where(mask[..., None], 240, wall).astype(np.uint8)
            frames.append(torch.from_numpy(image))
            Image.fromarray(image).save(folder / f"{name}_{f}.png")
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{name}_mask_{f}.png")
        write_video(folder / f"{name}.mp4", frames)
    return folder

def pictures(folder, masks=True): return image_footage(lambda s, c, f: folder / f"{c}_{f}.png", (lambda s, c, f: folder / f"{c}_mask_{f}.png") if masks else None)

def test_frames_of_a_video(footage_files):
    video = footage_files / "left.mp4"
    every = dict(read_frames(video))
    assert list(every) == list(range(8)) and all(f.shape == (160, 200, 3) and f.dtype == torch.uint8 for f in every.values())
    truth = read_image(footage_files / "left_4.png")
    assert 2 * (every[4].float() - truth.float()).abs().mean() < (every[0].float() - truth.float()).abs().mean()
    assert [n for n, _ in read_frames(video, every=3)] == [0, 3, 6] and [n for n, _ in read_frames(video, at_most=2)] == [0, 1]
    assert [n for n, _ in read_frames(video, wanted={2, 5})] == [2, 5]

def damaged(folder, data):
    yield "cut", data[:len(data) * 2 // 3]
    yield "empty", b""
    yield "text", b"not a video at all" * 20
    yield "zeros", data[:200] + bytes(len(data) - 200)
    yield "playlist", b"#EXTM3U\n#EXTINF:1,\n" + str(folder / "left.mp4").encode() + b"\n"
    yield "concat", b"ffconcat version 1.0\nfile left.mp4\n"

def test_damaged_videos_are_refused(footage_files, tmp_path):
    for name, content in damaged(footage_files, (footage_files / "left.mp4").read_bytes()):
        (tmp_path / f"{name}.mp4").write_bytes(content)
        with pytest.raises(InputError) as refusal: list(read_frames(tmp_path / f"{name}.mp4"))
        assert name in str(refusal.value) and "\n" not in str(refusal.value)
    with pytest.raises(InputError, match="is not there"): list(read_frames(tmp_path / "none.mp4"))

@settings(max_examples=25, deadline=None)
@given(where=st.integers(0, 10_000), what=st.binary(min_size=1, max_size=30))
def test_a_changed_video_is_read_or_refused(footage_files, tmp_path_factory, where, what):
    data = bytearray((footage_files / "back.mp4").read_bytes())
    where %= len(data)
    data[where:where + len(what)] = what
    path = tmp_path_factory.getbasetemp() / "fuzzed.mp4"
    path.write_bytes(data)
    try: assert all(f.shape == (160, 200, 3) for _, f in read_frames(path))
    except InputError as error: assert "\n" not in str(error)

def test_damaged_images_are_refused(footage_files, tmp_path):
    from PIL import Image
    png = (footage_files / "left_3.png").read_bytes()
    Image.open(footage_files / "left_3.png").save(tmp_path / "whole.jpg")
    jpg = (tmp_path / "whole.jpg").read_bytes()
    huge = bytearray(png)
    huge[16:24] = (60_000).to_bytes(4, "big") * 2
    for name, content in {"cut.png": png[:-300], "cut.jpg": jpg[:len(jpg) // 2], "empty.jpg": b"", "text.png": b"hello", "huge.png": bytes(huge), "gif.png": b"GIF89a" + bytes(20)}.items():
        (tmp_path / name).write_bytes(content)
        for read in (read_image, read_mask):
            with pytest.raises(InputError, match=name.replace(".", r"\.")): read(tmp_path / name)
    assert read_image(tmp_path / "whole.jpg").shape == (160, 200, 3)
    with pytest.raises(InputError, match="is not there"): read_image(tmp_path / "none.png")
    with pytest.raises(InputError, match="value 255, expected 0 and 1"): read_mask(footage_files / "left_mask_4.png", ones=True)

# ---------- whole conversions

def test_images_masks_and_2d_agree(whole, footage_files, tmp_path):
    made = write_crops(tmp_path / "a.safetensors", whole, pictures(footage_files), CropOptions(64, masks=True))
    assert made.images.shape == (15, 64, 64, 3) and made.masks.shape == (15, 64, 64)
    at = made.pose_2d.long().clamp(0, 63)
    rows = torch.arange(15)[:, None]
    assert (made.masks[rows, at[..., 1], at[..., 0]] > 200).all() # a mask lies on every joint
    bright = made.images.float().mean(-1) > 200
    both = (bright & (made.masks > 127)).sum((1, 2)) / (bright | (made.masks > 127)).sum((1, 2))
    assert both.min() > .8
    assert crop_views(made).tolist() == [[k, k + 5, k + 10] for k in range(5)] and view_of(made)[1] == ("left", "right", "back")
    assert made.cameras.names[7] == "right/7"

def test_videos_and_images_make_nearly_the_same_crops(whole, footage_files, tmp_path):
    files = {("Walking", c): footage_files / f"{c}.mp4" for c in whole.cameras.names}
    a = write_crops(tmp_path / "a.safetensors", whole, video_footage(files), CropOptions(48))
    b = write_crops(tmp_path / "b.safetensors", whole, pictures(footage_files, False), CropOptions(48))
    assert (a.images.float() - b.images.float()).abs().mean() < 6
    for name in ("pose_2d", "pose_3d", "camera_id", "frame"): assert torch.equal(getattr(a, name), getattr(b, name))

def test_the_plate_is_the_wall(whole, footage_files, tmp_path):
    people = [read_image(footage_files / f"left_{f}.png") for f in range(8)]
    plate, wall = crops.median_plate(people[:3] + people[3:5]), people[0]
    assert torch.equal(plate, wall)
    made = write_crops(tmp_path / "a.safetensors", whole, pictures(footage_files, False), CropOptions(48, backgrounds=True))
    plates = crops.backgrounds(made, tmp_path / "a.safetensors")
    assert plates.shape == made.images.shape and plates.dtype == torch.uint8
    some = made.select(torch.tensor([2, 9, 14]))
    assert torch.equal(crops.backgrounds(some, tmp_path / "a.safetensors"), plates[[2, 9, 14]])
    away = (made.images.float() - plates.float()).abs().amax(-1) # outside of the dots, crop and plate show the same wall
    assert (away < 2).float().mean() > .8
    bare = write_crops(tmp_path / "b.safetensors", whole, pictures(footage_files, False), CropOptions(48))
    with pytest.raises(InputError, match="without backgrounds"): crops.backgrounds(bare, tmp_path / "b.safetensors")

def test_footage_that_does_not_fit(whole, footage_files, tmp_path):
    path, files = tmp_path / "a.safetensors", {("Walking", c): footage_files / f"{c}.mp4" for c in ("left", "right")}
    short = replace(whole, frame=whole.frame + 5)
    other = replace(whole, cameras=replace(whole.cameras, resolution=whole.cameras.resolution + 8))
    for poses, footage, o, telling in ((whole, video_footage(files), CropOptions(32), "camera back: there is no video"), (short, pictures(footage_files), CropOptions(32), "left_8.png: the image is not there"),
                                       (short, video_footage(files), CropOptions(32), "frame 8 is not in the footage"), (other, pictures(footage_files), CropOptions(32), "200 x 160 pixels, expected 208 x 168"),
                                       (whole, pictures(footage_files, False), CropOptions(32, masks=True), "there is no mask")):
        with pytest.raises(InputError, match=telling): write_crops(path, poses, footage, o)
        assert not list(tmp_path.iterdir())

# ---------- streamed files

def stored(whole, path):
    inside = cropped(whole, crop_geometry(whole, 32))
    images = torch.randint(0, 256, (15, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    with streamed_file(path, inside, {"background_id": torch.zeros(15, dtype=torch.int32)}, images=(15, 32, 32, 3), backgrounds=(1, 32, 32, 3)) as arrays:
        for k in reversed(range(15)): arrays["images"][k] = images[k].numpy()
        arrays["backgrounds"][:] = 7
    return replace(inside, images=images)

def test_a_streamed_set_comes_back_exactly(whole, tmp_path):
    wanted = stored(whole, tmp_path / "a.safetensors")
    made = open_streamed(tmp_path / "a.safetensors", verify=True)
    assert made.fingerprint == wanted.fingerprint and made.header() == wanted.header()
    for name, tensor in wanted.tensors().items(): assert torch.equal(made.tensors()[name], tensor) and made.tensors()[name].dtype == tensor.dtype
    assert (crops.backgrounds(made, tmp_path / "a.safetensors") == 7).all() and len(crops.backgrounds(made, tmp_path / "a.safetensors")) == 15
    again = stored(whole, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes() and again.fingerprint == made.fingerprint
    assert open_set(tmp_path / "a.safetensors").fingerprint == made.fingerprint

def test_damaged_streamed_files(whole, tmp_path):
    path = tmp_path / "a.safetensors"
    stored(whole, path)
    data = path.read_bytes()
    for name, content in {"cut": data[:-1000], "empty": b"", "half": data[:3000], "header": data.replace(b"h36m17", b"h36m\\x", 1), "format": data.replace(b'\\"format\\": 1', b'\\"format\\": 9', 1), "names": data.replace(b"camera_rotation", b"camera_notation")}.items():
        path.write_bytes(content)
        with pytest.raises(InputError): open_streamed(path)
    for where in (-5, -3 * 32 * 32 - 5): # in a background, in an image
        changed = bytearray(data)
        changed[where] ^= 1
        path.write_bytes(changed)
        open_streamed(path)
        with pytest.raises(InputError, match="fingerprint"): open_streamed(path, verify=True)
    with pytest.raises(InputError, match="no such file"): open_streamed(tmp_path / "none")

def test_an_error_in_the_middle_leaves_nothing(whole, tmp_path):
    def failing(sequence, camera, wanted):
        yield from pictures_of_nothing(wanted[:1])
        raise InputError("the disk of the camera is full")
    def pictures_of_nothing(frames):
        for f in frames: yield f, torch.zeros(*SIZE[::-1], 3, dtype=torch.uint8), None
    with pytest.raises(InputError, match="disk of the camera"): write_crops(tmp_path / "a.safetensors", whole, failing, CropOptions(32))
    assert not list(tmp_path.iterdir())

KILLED = """
import sys, threading, torch
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_crops import SIZE, rig
from poseprojects.data import crops
from poseprojects.data.base import render
from poseprojects.data.sources import example_people
from poseprojects.skeleton import H36M17
whole = render(example_people(H36M17, 5, frame_rate=10., first_frame=3), rig(), H36M17, name="whole", frame_rate=10.)
def slow(sequence, camera, wanted):
    for f in wanted:
        yield f, torch.full((*SIZE[::-1], 3), 200, dtype=torch.uint8), None
        if camera == "right":
            print("HALF", flush=True)
            threading.Event().wait(60)
settings = {"recipe": "killed"}
crops.cached_stream("killed", settings, lambda path: crops.write_crops(path, whole, slow, crops.CropOptions(32), settings))
"""

def test_a_killed_conversion_leaves_nothing_that_is_opened(whole, tmp_path, monkeypatch):
    monkeypatch.setenv("POSEPROJECTS_CACHE", str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(KILLED), "-", os.path.dirname(__file__)], env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline().strip()
    process.send_signal(signal.SIGKILL)
    assert line == "HALF", process.communicate(timeout=60)[1]
    process.communicate(timeout=60)
    left = list(tmp_path.iterdir())
    assert left and all(p.name.startswith(".tmp-") for p in left) # it had begun to write
    def quick(sequence, camera, wanted):
        for f in wanted: yield f, torch.full((*SIZE[::-1], 3), 100, dtype=torch.uint8), None
    settings = {"recipe": "killed"}
    made = crops.cached_stream("killed", settings, lambda path: write_crops(path, whole, quick, CropOptions(32), settings))
    assert made.images.max() == 100

def test_the_cache_is_used_and_a_damaged_one_made_again(whole, footage_files, tmp_path, monkeypatch):
    monkeypatch.setenv("POSEPROJECTS_CACHE", str(tmp_path))
    settings, calls = {"recipe": "x"}, []
    def write(path):
        calls.append(path)
        write_crops(path, replace(whole, name="x"), pictures(footage_files, False), CropOptions(32, backgrounds=True), settings)
    first = crops.cached_stream("x", settings, write)
    assert crops.cached_stream("x", settings, write).fingerprint == first.fingerprint and len(calls) == 1
    assert len(crops.backgrounds(first)) == 15 # found by name and settings
    fingerprint = first.fingerprint
    del first
    calls[0].write_bytes(calls[0].read_bytes()[:2000])
    assert crops.cached_stream("x", settings, write).fingerprint == fingerprint and len(calls) == 2

MEMORY = """
import resource, sys, torch
from poseprojects.data import crops
from poseprojects.data.base import PoseSet
from poseprojects.camera import Cameras
from poseprojects.skeleton import H36M17
n = 1200
z = torch.zeros(n, dtype=torch.int32)
row = lambda *v: torch.tensor([v], dtype=torch.float64)
eye = Cameras(("a",), row(100, 100, 128, 128), row(0, 0, 0, 0, 0), torch.eye(3, dtype=torch.float64)[None], row(0, 0, 0), row(256, 256))
poses = PoseSet("big", H36M17, torch.rand(n, 17, 2) * 200, None, torch.ones(n, 17), eye, z, z, z, z, torch.arange(n, dtype=torch.int32), ("a",), ("a",), ("a",), 10.)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with crops.streamed_file(sys.argv[1], poses, images=(n, 256, 256, 3)) as arrays:
    arrays["images"][::7] = 3
def anonymous(): return sum(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(("RssAnon", "VmSwap")))
made = crops.open_streamed(sys.argv[1])
print(anonymous() // 1024, before // 1024, int(made.images[7, 0, 0, 0]))
"""

# how much memory belongs to the process alone, without mapped files, is read from /proc, which other systems do not have
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_set_is_written_and_opened_in_little_memory(tmp_path):
    "236 MB of images; what belongs to the process alone stays small."
    done = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path / "big")], capture_output=True, text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    anonymous, before, value = map(int, done.stdout.split())
    assert value == 3 and anonymous < before + 100

def test_modelled_detections_keep_the_images(whole, footage_files, tmp_path, monkeypatch):
    monkeypatch.setenv("POSEPROJECTS_CACHE", str(tmp_path / "cache"))
    from poseprojects.data.detectors import DETECTORS
    made = write_crops(tmp_path / "a.safetensors", whole, pictures(footage_files), CropOptions(64, masks=True))
    seen = crops.with_input_kept_images(made, next(iter(DETECTORS)))
    assert torch.equal(seen.images, made.images) and torch.equal(seen.masks, made.masks) and not torch.equal(seen.pose_2d, made.pose_2d) and seen.input_2d != "gt"

def test_the_digest_of_pictures_notices_changes(footage_files, tmp_path):
    import shutil
    shutil.copytree(footage_files, tmp_path / "a")
    files = lambda folder: list(folder.glob("*.png"))
    first = crops.pictures_digest(files(footage_files))
    assert first == crops.pictures_digest(files(tmp_path / "a")) == crops.pictures_digest(files(tmp_path / "a")[::-1])
    (tmp_path / "a/left_3.png").write_bytes((tmp_path / "a/left_4.png").read_bytes())
    assert crops.pictures_digest(files(tmp_path / "a")) != first
    (tmp_path / "a/left_3.png").unlink()
    assert crops.pictures_digest(files(tmp_path / "a")) != first
