"The Pose2Sim trial: TRC, calibrations, triangulation, and the real files through their recipe."
import json, re, shutil

import numpy as np
import pytest
import torch
from conftest import real_data, refused
from poseprojects.camera import Cameras, distort, project, ring, world_to_camera
from poseprojects.data import pose2sim
from poseprojects.data.bvh import read_bvh, write_bvh
from poseprojects.data.calibrations import (check_distances, distort_opencv, from_opencv, read_aist, read_calibration, read_panoptic, read_pose2sim_toml, to_opencv, write_aist, write_panoptic, write_pose2sim_toml)
from poseprojects.data.detections import BODY25B, main_person
from poseprojects.data.pose2sim import MARKERS, POSE2SIM21, nearest_person, read_trc, read_trial, triangulate, write_trc
from poseprojects.skeleton import H36M17, convert
from poseprojects.storage import InputError

pytestmark = pytest.mark.usefixtures("fresh_cache")

@pytest.fixture(scope="module")
def root(): return real_data("pose2sim")

@pytest.fixture(scope="module")
def trial(root): return read_trial(root)

# ---------- TRC

def table(frames=6, markers=4, seed=0): return np.random.default_rng(seed).normal(size=(frames, markers, 3))

@pytest.mark.parametrize("units", ["m", "mm", "cm"])
def test_trc_round_trip(units, tmp_path):
    positions = table()
    positions[2, 1], positions[4, 3] = np.nan, np.nan # in the middle and at the end of a line
    path = write_trc(tmp_path / "a.trc", positions, list("abcd"), 59.94, units, first_frame=7)
    again = read_trc(path)
    assert np.allclose(again.positions, positions, atol=1e-15, rtol=1e-14, equal_nan=True) and again.frame.tolist() == list(range(7, 13)) and again.frame_rate == 59.94 and again.markers == tuple("abcd")
    assert path.read_text().split("\n")[2].split("\t")[4] == units

def test_trc_world_is_upright(tmp_path):
    again = read_trc(write_trc(tmp_path / "a.trc", np.array([[[1., 2., 3.]]]), ["a"], 60.))
    assert again.world[0, 0].tolist() == [3., 1., 2.] # y up becomes z up, and the frame stays right-handed
    assert np.linalg.det(np.eye(3)[:, [2, 0, 1]]) == 1

TRCS = {"another file": (lambda t: "x\ty\n" * 9, "PathFileType"), "empty": (lambda t: "", "expected a TRC"), "truncated": (lambda t: "\n".join(t.split("\n")[:8]), "3 frames are there"), "cut in a line": (lambda t: t[:-12], None), "word": (lambda t: t[:-4] + "x\n", "no number"),
        "a line more": (lambda t: t + t.split("\n")[-2] + "\n", "a line follows"), "units": (lambda t: t.replace("\tm\t", "\tinch\t"), "Units is 'inch'"), "marker missing": (lambda t: t.replace("\tb\t", "\t\t"), "3 markers are named"), "marker twice": (lambda t: t.replace("\tb\t", "\ta\t"), "'a' is there twice"),
        "huge claim": (lambda t: t.replace("60\t60\t6\t4", "60\t60\t6000000\t4"), "NumFrames is 6,000,000"), "negative claim": (lambda t: t.replace("60\t60\t6\t4", "60\t60\t-6\t4"), "positive"), "no rate": (lambda t: t.replace("60\t60\t6\t4", "\t60\t6\t4"), "DataRate has no value"),
        "order": (lambda t: t.replace("\n3\t", "\n1\t"), "do not increase"), "huge value": (lambda t: t.replace("\n3\t0.05\t", "\n3\t0.05\t1e300\t"), None), "columns": (lambda t: t.replace("\n3\t0.05\t", "\n3\t0.05\t1.5\t"), "columns"), "frame number": (lambda t: t.replace("\n3\t", "\n2.5\t"), "whole number"), "binary": (lambda t: t[:200] + "\0\x01" + t[200:], None)}

@pytest.mark.parametrize("change, telling", TRCS.values(), ids=TRCS)
def test_broken_trc(change, telling, tmp_path):
    path = write_trc(tmp_path / "a.trc", table(), list("abcd"), 60.)
    path.write_text(change(path.read_text()))
    text = refused(read_trc, path) if telling else None
    if telling: assert telling in text and str(path) in text
    else:
        try: read_trc(path)
        except InputError as error: assert "expected" in str(error)

def test_wrong_tables_are_not_written(tmp_path):
    for arguments in ((table(), list("abc"), 60.), (table(), list("abca"), 60.), (table(), ["a", "b\t", "c", "d"], 60.), (table(0), list("abcd"), 60.), (table(), list("abcd"), 60., "inch")):
        refused(write_trc, tmp_path / "a.trc", *arguments)
    assert not list(tmp_path.iterdir())

# ---------- calibrations

LENS = (-.12, .04, .01, 2e-4, -3e-4)
FORMATS = {"toml": (write_pose2sim_toml, read_pose2sim_toml), "aist": (write_aist, read_aist), "panoptic": (write_panoptic, read_panoptic)}

@pytest.mark.parametrize("name", FORMATS)
def test_calibrations_there_and_back(name, tmp_path):
    write, read = FORMATS[name]
    eyes = ring(5, distortion=LENS if name != "toml" else (*LENS[:2], 0., *LENS[3:]))
    again = read(write(tmp_path / "c", eyes))
    for field in ("intrinsics", "distortion", "rotation", "translation", "resolution"): assert float((getattr(again, field) - getattr(eyes, field)).abs().max()) < 1e-12, field
    assert again.names == eyes.names

def test_units_and_kinds(tmp_path):
    eyes = ring(3)
    for units in ("m", "cm", "mm"): assert torch.allclose(read_aist(write_aist(tmp_path / "a.json", eyes, units), units).translation, eyes.translation)
    assert json.loads((tmp_path / "a.json").read_text())[0]["translation"][2] == pytest.approx(1000 * float(eyes.translation[0, 2]))
    content = json.loads(write_panoptic(tmp_path / "p.json", eyes).read_text())
    content["cameras"][2]["type"] = "vga"
    (tmp_path / "p.json").write_text(json.dumps(content))
    assert len(read_panoptic(tmp_path / "p.json")) == 2 and len(read_panoptic(tmp_path / "p.json", kind=None)) == 3 and read_panoptic(tmp_path / "p.json", kind="vga").names == ("cam2",)
    assert np.shape(content["cameras"][0]["t"]) == (3, 1)
    assert "units = 'inch'" in refused(read_aist, tmp_path / "a.json", "inch")
    assert "1000 m apart" in refused(read_aist, write_aist(tmp_path / "b.json", ring(4), "cm"), "m")
    refused(write_pose2sim_toml, tmp_path / "k3.toml", ring(2, distortion=LENS))

def test_the_lens_is_opencvs_up_to_a_seventh_of_its_tangential_part():
    "Against the formula, written out for one point."
    k1, k2, p1, p2, k3, x, y = -.2, .05, 1e-3, -2e-3, .01, .3, -.2
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    coefficients = torch.tensor([k1, k2, p1, p2, k3], dtype=torch.float64)
    point = torch.tensor([[x, y]], dtype=torch.float64)
    assert torch.allclose(distort_opencv(point, coefficients)[0], torch.tensor([x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x), y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y], dtype=torch.float64))
    assert torch.allclose(to_opencv(from_opencv(coefficients)), coefficients)
    off = (distort(point, from_opencv(coefficients)) - distort_opencv(point, coefficients)).norm()
    swapped = from_opencv(coefficients)[[0, 1, 2, 4, 3]]
    assert float(off) < .25 * float((distort(point, swapped) - distort_opencv(point, coefficients)).norm()) # p1 and p2 exchanged is the common mistake

def spoil(key, value):
    def change(camera): camera[key] = value
    return change

CAMERAS = {"mirror": (spoil("R", [[1., 0, 0], [0, 1, 0], [0, 0, -1]]), "not orthonormal"), "scaled": (spoil("R", [[1.1, 0, 0], [0, 1, 0], [0, 0, 1]]), "not orthonormal"), "short": (spoil("R", [1., 2.]), "'R' has 2 numbers"), "skew": (spoil("K", [[900., 3, 5], [0, 900, 5], [0, 0, 1]]), "skew"),
           "negative focal": (spoil("K", [[-900., 0, 5], [0, 900, 5], [0, 0, 1]]), "positive"), "text": (spoil("t", "here"), "'t'"), "nan": (spoil("t", [[float("nan")], [0.], [0.]]), "'t'"), "no size": (lambda c: c.pop("resolution"), "'resolution'"), "size zero": (spoil("resolution", [0, 5]), "positive"), "lens of three": (spoil("distCoef", [0., 0, 0]), "'distCoef' has 3"),
           "wild lens": (spoil("distCoef", [0., 0, .3, .3, 0.]), "tangential"), "fisheye": (spoil("fisheye", True), "fisheye"), "far": (spoil("t", [[1e6], [0.], [0.]]), "another unit"), "same name": (spoil("name", "cam1"), "twice")}

@pytest.mark.parametrize("change, telling", CAMERAS.values(), ids=CAMERAS)
def test_broken_cameras(change, telling, tmp_path):
    content = json.loads(write_panoptic(tmp_path / "p.json", ring(3)).read_text())
    change(content["cameras"][0])
    (tmp_path / "p.json").write_text(json.dumps(content))
    text = refused(read_panoptic, tmp_path / "p.json")
    assert telling in text and str(tmp_path / "p.json") in text

def test_broken_files(tmp_path):
    for name, content, reader, telling in (("a.toml", "x = 1\n", read_pose2sim_toml, "no table has a field 'matrix'"), ("b.toml", "x = [", read_pose2sim_toml, "b.toml"), ("c.json", "{}", read_aist, "list of cameras"), ("d.json", "[1]", read_aist, "d.json"), ("e.json", "[]", read_panoptic, "cameras"), ("f.json", '{"cameras": []}', read_panoptic, "no camera has the type"), ("g.json", "[]", read_aist, "no camera")):
        (tmp_path / name).write_text(content)
        assert telling in refused(reader, tmp_path / name)
    refused(read_aist, tmp_path / "nothing.json")

def test_distances():
    one = ring(1)
    assert check_distances(one) is one
    near = Cameras(("a", "b"), *(getattr(ring(2), n) for n in ("intrinsics", "distortion")), torch.eye(3).repeat(2, 1, 1).double(), torch.zeros(2, 3).double() + torch.tensor([[0.], [.01]]), ring(2).resolution)
    assert "0.2 to 100 m" in refused(check_distances, near)

# ---------- triangulation

def scene(lens=(0.,) * 5, points=300):
    eyes, generator = ring(4, distortion=lens), torch.Generator().manual_seed(2)
    truth = torch.randn(points, 3, dtype=torch.float64, generator=generator) * .5 + torch.tensor([0, 0, 1.])
    return eyes, truth, torch.stack([project(world_to_camera(truth, eyes[k]), eyes[k])[0] for k in range(4)], 1), generator

@pytest.mark.parametrize("lens", [(0.,) * 5, LENS])
def test_exact_views_give_exact_points(lens):
    eyes, truth, views, _ = scene(lens)
    assert float((triangulate(views, torch.ones(300, 4), eyes) - truth).norm(dim=-1).max()) < 1e-6
    two = torch.tensor([1., 0, .2, 0]).expand(300, 4)
    spoilt = views.clone()
    spoilt[:, [1, 3]] = float("nan") # what was not seen must not matter
    assert float((triangulate(spoilt, two, eyes) - truth).norm(dim=-1).max()) < 1e-5

def test_refinement_is_the_least_squares_answer():
    "Against scipy's general optimiser on the same robust cost, point by point."
    from scipy.optimize import minimize
    eyes, truth, views, generator = scene(LENS, 4)
    noisy = views + 4 * torch.randn(views.shape, dtype=torch.float64, generator=generator)
    weight = torch.rand(4, 4, dtype=torch.float64, generator=generator) + .2
    found = triangulate(noisy, weight, eyes, steps=30, huber=1e9)
    for k in range(4):
        cost = lambda x: float((weight[k] * (torch.stack([project(world_to_camera(torch.tensor(x)[None], eyes[c]), eyes[c]).reshape(2) for c in range(4)]) - noisy[k]).square().sum(-1)).sum())
        best = minimize(cost, truth[k].numpy(), method="Nelder-Mead", options=dict(xatol=1e-8, fatol=1e-10, maxiter=2000))
        assert np.abs(best.x - found[k].numpy()).max() < 2e-4

def test_one_wrong_camera_hardly_matters():
    eyes, truth, views, generator = scene()
    noisy = views + 2 * torch.randn(views.shape, dtype=torch.float64, generator=generator)
    noisy[:, 1] += 150
    robust = (triangulate(noisy, torch.ones(300, 4), eyes) - truth).norm(dim=-1).median()
    plain = (triangulate(noisy, torch.ones(300, 4), eyes, huber=1e9) - truth).norm(dim=-1).median()
    assert float(robust) < .05 and float(plain) > 2 * float(robust)

def test_confidence_weighs():
    eyes, truth, views, _ = scene()
    off = views.clone()
    off[:, 0] += 60
    errors = [float((triangulate(off, torch.tensor([w, 1., 1., 1.]).expand(300, 4), eyes, huber=1e9) - truth).norm(dim=-1).median()) for w in (1., .1, .01)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]

def test_shapes_and_too_few_views():
    eyes, truth, views, _ = scene(points=24)
    found = triangulate(views.reshape(4, 6, 4, 2).float(), torch.ones(4, 6, 4), eyes)
    assert found.shape == (4, 6, 3) and found.dtype == torch.float32 and float((found.reshape(-1, 3) - truth).abs().max()) < 1e-3
    assert bool(triangulate(views, torch.tensor([0., 1, 0, 0]).expand(24, 4), eyes).isnan().all())

# ---------- the layout

def equal(found, expected):
    for name, tensor in expected.tensors().items(): assert torch.allclose(found.tensors()[name].double(), tensor.double(), rtol=1e-6, atol=1e-6 if name == "pose_3d" else 1e-3), name
    for name in ("skeleton", "subject_names", "action_names", "sequence_names", "frame_rate", "frame_step", "input_2d"): assert getattr(found, name) == getattr(expected, name), name
    assert torch.allclose(found.cameras.translation, expected.cameras.translation) and torch.allclose(found.cameras.distortion, expected.cameras.distortion)

def test_example_is_read_to_the_same_set(tmp_path):
    expected = pose2sim.example(tmp_path)["all"]
    found = pose2sim.load("all", tmp_path)
    equal(found, expected)
    assert len(found) == 23 and float((found.confidence == 0).sum()) > 0
    assert pose2sim.load("all", tmp_path).fingerprint == found.fingerprint
    exact = pose2sim.load("all", tmp_path, "gt")
    assert len(exact) == 24 and exact.input_2d == "gt" and pose2sim.load("all", tmp_path, "hrnet-like").input_2d == "hrnet-like"
    own = pose2sim.load("all", tmp_path, skeleton="pose2sim21")
    assert own.skeleton == POSE2SIM21 and torch.allclose(convert(own.pose_3d, POSE2SIM21, H36M17), found.pose_3d, atol=1e-6)

@pytest.mark.parametrize("write, name", [(write_aist, "setting1.json"), (write_panoptic, "calibration_171204.json")])
def test_a_folder_with_another_calibration_is_the_same_set(write, name, tmp_path):
    expected = pose2sim.example(tmp_path)["all"]
    toml = tmp_path / "Calib_example.toml"
    write(tmp_path / name, read_pose2sim_toml(toml))
    toml.unlink()
    equal(pose2sim.load("all", tmp_path), expected)
    with pytest.raises(InputError, match="no calibration that is known"): read_calibration(tmp_path / "pose-3d" / "none.txt")

FOLDERS = {"no calibration": (lambda r: (r / "Calib_example.toml").unlink(), "0 files fit"), "two calibrations": (lambda r: shutil.copy(r / "Calib_example.toml", r / "Calib_b.toml"), "2 files fit"), "no trc": (lambda r: shutil.rmtree(r / "pose-3d"), "0 files fit"),
           "a camera less": (lambda r: shutil.rmtree(r / "pose/cam02_json"), "none has the number of cam_02"), "a camera more": (lambda r: shutil.copytree(r / "pose/cam02_json", r / "pose/cam09_json"), "4 folders"), "empty folder": (lambda r: [p.unlink() for p in (r / "pose/cam02_json").iterdir()], "no JSON files"),
           "damaged frame": (lambda r: (r / "pose/cam02_json/cam02.0003.json").write_text("{"), "cam02.0003.json"), "marker renamed": (lambda r: (p := next((r / "pose-3d").iterdir())).write_text(p.read_text().replace("\tNose\t", "\tNoze\t")), "marker 'Nose'"),
           "millimetres as metres": (lambda r: (p := next((r / "pose-3d").iterdir())).write_text(p.read_text().replace("\tm\t", "\tmm\t")), "expected at least one"), "translation in millimetres": (lambda r: (p := r / "Calib_example.toml").write_text(re.sub(r"translation = \[(.*)\]", lambda m: f"translation = {[1000 * float(v) for v in m[1].split(',')]}", p.read_text())), "another unit")}

@pytest.mark.parametrize("change, telling", FOLDERS.values(), ids=FOLDERS)
def test_broken_trials(change, telling, tmp_path):
    pose2sim.example(tmp_path)
    change(tmp_path)
    assert telling in refused(pose2sim.load, "all", tmp_path)

@pytest.mark.parametrize("change, telling", [({"split": "train"}, "split 'train'"), ({"input_2d": "cpn"}, "2D input 'cpn'"), ({"skeleton": "coco18"}, "skeleton 'coco18'"), ({"data_root": "/no/such/place"}, "README.md says where")])
def test_wrong_arguments(change, telling, tmp_path): assert telling in refused(pose2sim.load, **({"data_root": tmp_path} | change))

def test_a_double_detection_of_half_a_body_does_not_win(tmp_path):
    pose2sim.example(tmp_path)
    trial = read_trial(tmp_path)
    tracks, expected = trial.tracks[2].converted(POSE2SIM21), trial.reprojected(2)
    half = tracks.confidence.copy()
    half[:, 6:] = 0
    both = type(tracks)(**{**tracks.__dict__, "frame": np.tile(tracks.frame, 2), "person": np.repeat([0, 1], len(tracks)), "pose_2d": np.concatenate([np.repeat(expected, 1, 0), tracks.pose_2d]), "confidence": np.concatenate([half, tracks.confidence])})
    assert set(nearest_person(both, trial.frame, expected).person) == {1}
    assert len(nearest_person(both, trial.frame, expected + 800)) == 0

# ---------- the real trial

def median_px(trial, k, shift=0):
    person = nearest_person(trial.tracks[k].converted(POSE2SIM21), trial.frame, trial.reprojected(k))
    rows = np.flatnonzero(np.isin(person.frame - shift, trial.frame))
    off = np.linalg.norm(person.pose_2d[rows] - trial.reprojected(k)[np.searchsorted(trial.frame, person.frame[rows] - shift)], axis=-1)
    return float(np.median(off[person.confidence[rows] > 0]))

def test_real_reprojection_is_7_to_20_px_in_every_camera(trial):
    medians = [median_px(trial, k) for k in range(4)]
    assert all(7 <= m <= 20 for m in medians), medians
    assert np.allclose(medians, (11.5, 8.0, 18.0, 9.4), atol=.1)

def test_real_time_offset_is_none(trial):
    total = {shift: sum(median_px(trial, k, shift) for k in range(4)) for shift in (-2, -1, 0, 1, 2)}
    assert min(total, key=total.get) == 0 and trial.frame.tolist() == list(range(100))

def test_real_axes_and_joint_order(trial):
    "Other axes and other orders project far away."
    from dataclasses import replace
    person = nearest_person(trial.tracks[1].converted(POSE2SIM21), trial.frame, trial.reprojected(1))
    def off(world):
        seen = replace(trial, world=world).reprojected(1)
        return np.median(np.linalg.norm(person.pose_2d - seen[person.frame], axis=-1))
    right = off(trial.world)
    for wrong in (trial.world[..., [1, 2, 0]], trial.world[..., [2, 0, 1]], trial.world * (-1, 1, 1), trial.world[:, list(POSE2SIM21.mirror)]): assert off(wrong) > 4 * right

def test_real_people(trial):
    assert [len(t) for t in trial.tracks] == [201, 200, 100, 100] and all(t.skeleton == BODY25B for t in trial.tracks)
    for k, tracks in enumerate(trial.tracks):
        nearest, main = nearest_person(tracks.converted(POSE2SIM21), trial.frame, trial.reprojected(k)), tracks.of(main_person(tracks)).converted(POSE2SIM21)
        assert np.array_equal(nearest.pose_2d, main.pose_2d)

def test_real_set(root):
    poses = pose2sim.load()
    assert len(poses) == 400 and [int((poses.camera_id == c).sum()) for c in range(4)] == [100] * 4
    assert poses.skeleton == H36M17 and poses.subject_names == ("P00",) and poses.frame_rate == 60 and poses.input_2d == "detected" and len(poses.cameras) == 4
    assert 2 < float(poses.pose_3d[:, 0, 2].min()) < float(poses.pose_3d[:, 0, 2].max()) < 8
    exact = pose2sim.load("all", root, "gt")
    near = (exact.pose_2d[:100] - poses.pose_2d[:100]).norm(dim=-1)[poses.confidence[:100] > 0].median()
    assert 5 < float(near) < 25

def test_real_triangulation_agrees_with_the_owners(trial):
    people = [nearest_person(t.converted(POSE2SIM21), trial.frame, trial.reprojected(k)) for k, t in enumerate(trial.tracks)]
    stack = lambda name: torch.from_numpy(np.stack([getattr(p, name) for p in people], 2))
    ours = triangulate(stack("pose_2d"), stack("confidence"), trial.cameras)
    apart = np.linalg.norm(ours.numpy() - trial.world, axis=-1)
    assert np.isfinite(apart).all() and np.median(apart) < .02 and np.percentile(apart, 90) < .05

def test_real_trc_there_and_back(root, tmp_path):
    trc = read_trc(next((root / "pose-3d").glob("*.trc")))
    assert len(trc) == 100 and trc.frame_rate == 60 and sorted(trc.markers) == sorted(MARKERS) and np.isfinite(trc.positions).all()
    again = read_trc(write_trc(tmp_path / "again.trc", trc.positions, trc.markers, trc.frame_rate))
    assert np.array_equal(again.positions, trc.positions)
    off = np.linalg.norm(read_bvh(write_bvh(tmp_path / "m.bvh", trc.positions, _own(trc), 60., up="y")).poses(_own(trc)) - trc.positions, axis=-1)
    assert .005 < off.mean() < .05 # bones that breathe do not fit bones that cannot

def _own(trc):
    "The skeleton in the order of the file's markers."
    return POSE2SIM21.sub([MARKERS[m] for m in trc.markers], "trc21")

def test_real_video_has_the_size_of_the_trap(root):
    "Two of the videos are eight pixels narrower than their calibration says."
    av = pytest.importorskip("av")
    sizes = []
    for k in range(1, 5):
        with av.open(str(root / f"videos/cam{k:02d}.mp4")) as video: sizes.append((video.streams.video[0].width, video.streams.video[0].height))
    assert sizes == [(1080, 1920), (1080, 1920), (1088, 1920), (1088, 1920)]
