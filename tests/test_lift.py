"Key points of a video to 3D poses: what the lifter sees, where the body stands, long videos, files, the command, and what is refused."
import csv
import json
import os
import subprocess
import sys
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import real_data, refused

import poseprojects
from poseprojects import zoo
from poseprojects.camera import Cameras, project, ring
from poseprojects.data import cmu, detections, pose2sim
from poseprojects.data.base import clip_bounds, render
from poseprojects.data.bvh import read_bvh
from poseprojects.data.calibrations import write_pose2sim_toml
from poseprojects.data.crops import read_frames, write_video
from poseprojects.data.detections import Tracks, write_coco, write_openpose
from poseprojects.data.detectors import detect
from poseprojects.data.pose2sim import read_trc
from poseprojects.data.sources import example_people
from poseprojects.lift import Lifting, Network, chosen_camera, level_turn, lift, main, on_grid, opened, camera_of, root_translation, smoothed
from poseprojects.metrics import mpjpe, pa_mpjpe
from poseprojects.papers import chen, lcn, martinez, mlp, semgcn, stgcn, videopose
from poseprojects.skeleton import COCO17, H36M17, convert
from poseprojects.storage import project_root
from poseprojects.train.engine import Batch, fit
from poseprojects.train.evaluation import MeanPose, evaluating, hypotheses

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = (1000, 1000)


@pytest.fixture(scope="module")
def people():
    "Walkers before four cameras of one kind, without a lens; exact 2D."
    return render(example_people(H36M17, 40, subjects=("A", "B", "C")), ring(4), H36M17, name="walkers", frame_rate=50.)


LIFTERS = { # name -> paper, options
    "martinez": (martinez, martinez.Config(width=32)), "martinez-root": (martinez, martinez.Config(width=32, centring="root+position")), "mlp": (mlp, mlp.Config(width=32, joints=17)),
    "mlp-standard": (mlp, mlp.Config(width=32, joints=17, units="standard")), "semgcn": (semgcn, semgcn.Config(width=16, units_deep=1)), "stgcn": (stgcn, stgcn.VARIANTS["short-run"]),
    "lcn": (lcn, replace(lcn.VARIANTS["metric"], channels=8)), "frames-9": (videopose, videopose.Config(widths=(3, 3), channels=32, flip_test=False)),
    "frames-9-flip": (videopose, videopose.Config(widths=(3, 3), channels=32, units="standard", joints=16, root=False)), "frames-9-causal": (videopose, videopose.Config(widths=(3, 3), channels=32, causal=True, flip_test=False))}


def made(people, name, tmp_path, **more):
    "A lifter with random weights and statistics that are not zero and one, as a file; and its method."
    paper, config = LIFTERS[name]
    torch.manual_seed(1)
    method = paper.build(people, config).eval()
    for module in method.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.uniform_(module.running_mean, -.2, .2), torch.nn.init.uniform_(module.running_var, .5, 2.), torch.nn.init.uniform_(module.bias, -.2, .2)
    return zoo.save(tmp_path / f"{name}.safetensors", paper.__name__.rsplit(".", 1)[-1], method, people, **more), method


def clip_of(people, camera=1, sequence=0):
    "Rows of one person in one camera, as an increasing index."
    return ((people.camera_id == camera) & (people.sequence == sequence)).nonzero().flatten()


def predicted(method, people, rows, flip=False):
    with evaluating(method): return hypotheses(method, Batch(people, rows, window=getattr(method, "window", 1), causal=getattr(method, "causal", False), bounds=clip_bounds(people)), flip)[0][:, 0].numpy()


def array(people, rows): return people.pose_2d[rows].numpy()


# ---- what the lifter sees

@pytest.mark.parametrize("name", LIFTERS)
def test_a_video_gives_what_the_set_gives(people, name, tmp_path):
    path, method = made(people, name, tmp_path)
    rows, flip = clip_of(people), bool(getattr(method.config, "flip_test", False))
    expected = predicted(method, people, rows, flip)
    assert np.ptp(expected, axis=0).max() > 1e-3, "the answer depends on the frame"
    found = lift(array(people, rows), SIZE, path, focal=1150., skeleton="h36m17", frame_rate=50.).main
    assert np.abs(found.pose - expected).max() < 1e-4
    assert np.abs(lift(array(people, rows), SIZE, path, focal=1150., skeleton="h36m17", frame_rate=50., flip=not flip).main.pose - predicted(method, people, rows, not flip)).max() < 1e-4


@pytest.mark.parametrize("layout", ["coco", "openpose"])
def test_our_own_files_give_what_the_array_gives(people, layout, tmp_path):
    path, method = made(people, "martinez", tmp_path)
    rows = torch.cat([clip_of(people, 1, 0), clip_of(people, 1, 1)])
    frame, person = people.frame[rows].numpy(), people.sequence[rows].numpy()
    tracks = Tracks("walk", "array", H36M17, SIZE, frame, person, array(people, rows).astype(float), people.confidence[rows].numpy(), np.unique(frame))
    file = write_coco(tmp_path / "walk.json", tracks) if layout == "coco" else write_openpose(tmp_path / "walk", tracks)
    found = lift(file, SIZE, path, focal=1150., skeleton="h36m17")
    assert sorted(found.people) == [0, 1] and found.name == "walk"
    assert np.abs(np.concatenate([found.people[k].pose for k in (0, 1)]) - predicted(method, people, rows)).max() < 1e-4
    assert list(lift(file, SIZE, path, focal=1150., skeleton="h36m17", persons=[1]).people) == [1] and len(lift(file, SIZE, path, skeleton="h36m17", persons="main").people) == 1


OTHER = Cameras(("other",), torch.tensor([[1700., 1680., 930., 560.]]).double(), torch.tensor([[-.15, .08, .01, 1e-3, -8e-4]]).double(), torch.eye(3)[None].double(), torch.zeros(1, 3).double(), torch.tensor([[1920., 1080.]]).double())


@pytest.mark.parametrize("name", ["martinez", "mlp", "lcn", "frames-9-flip"])
def test_the_same_rays_give_the_same_answer_in_another_video(people, name, tmp_path):
    path, method = made(people, name, tmp_path)
    rows = clip_of(people)
    seen = project(people.pose_3d[rows].double(), OTHER).numpy()
    assert np.abs(seen - array(people, rows)).max() > 100
    other = lift(seen, (1920, 1080), path, calibration=OTHER, skeleton="h36m17", frame_rate=50.).main
    same = lift(array(people, rows), SIZE, path, focal=1150., skeleton="h36m17", frame_rate=50.).main
    assert np.abs(other.pose - same.pose).max() < 1e-4 and np.nanmax(np.abs(other.translation - same.translation)) < 1e-3


def test_half_the_picture_is_the_same_video(people, tmp_path):
    path, _ = made(people, "mlp", tmp_path)
    rows = clip_of(people)
    whole, half = (lift(array(people, rows) * s, (int(1000 * s),) * 2, path, skeleton="h36m17").main.pose for s in (1, .5))
    assert np.abs(whole - half).max() < 1e-5


@pytest.mark.parametrize("scale, guesses", [("head-root-mean", True), ("mean-distance", False)])
def test_a_lifter_that_cannot_know_size_says_so(people, scale, guesses, tmp_path):
    method = chen.build(people, chen.Config(width=16, blocks=1, judge_blocks=1, scale=scale)).eval()
    found = lift(array(people, clip_of(people)), SIZE, zoo.save(tmp_path / "x.safetensors", "chen", method, people), skeleton="h36m17")
    assert any("the size of a body is a guess" in note for note in found.notes) == guesses


def test_windows_keep_to_the_frame_rate_of_the_training(people, tmp_path):
    "A video of twice the rate, whose every second frame is the other video, has the same answer in these frames."
    path, method = made(people, "frames-9", tmp_path)
    rows = clip_of(people)
    slow = array(people, rows)
    fast = np.repeat(slow, 2, 0)
    fast[1::2] += 3. # frames between that are something else
    found = lift(fast, SIZE, path, focal=1150., skeleton="h36m17", frame_rate=100.)
    expected = lift(slow, SIZE, path, focal=1150., skeleton="h36m17", frame_rate=50.).main.pose
    inner = slice(8, -8) # at the ends frame 0 is repeated for all phases
    assert np.abs(found.main.pose[::2][inner] - expected[inner]).max() < 1e-5
    assert any("every 2. frame" in note for note in found.notes)


def test_a_world_frame_lifter_needs_to_know_how_the_camera_is_turned(people, tmp_path):
    method = martinez.build(people, martinez.Config(width=16, frame="world")).eval()
    path = zoo.save(tmp_path / "world.safetensors", "martinez", method, people)
    rows = clip_of(people, 2)
    assert "must know how the camera is turned" in refused(lift, array(people, rows), SIZE, path, skeleton="h36m17")
    found = lift(array(people, rows), SIZE, path, calibration=people.cameras[[2]], skeleton="h36m17").main.pose
    assert np.abs(found - predicted(method, people, rows)).max() < 1e-4


@pytest.mark.parametrize("name", ["martinez", "frames-9-flip", "lcn"])
def test_a_camera_that_leans_is_put_right(people, name, tmp_path):
    "Turned about its optical centre, a camera sees the same rays; the lifted body is the same in the world."
    path, _ = made(people, name, tmp_path)
    rows, upright = clip_of(people), people.cameras[[1]]
    turn = torch.linalg.matrix_exp(torch.tensor([[0., -.4, .02], [.4, 0., -.3], [-.02, .3, 0.]], dtype=torch.float64)) # 23 degrees of roll, 17 of tilt
    leaning = replace(OTHER, rotation=turn @ upright.rotation, translation=(turn @ upright.translation[..., None])[..., 0])
    seen = project(people.pose_3d[rows].double() @ turn.T, leaning).numpy()
    straight = lift(array(people, rows), SIZE, path, calibration=upright, skeleton="h36m17", frame_rate=50.).main
    # the level camera looks where the turned one does, which is not quite where the upright one does: about the vertical they differ
    found = lift(seen, (1920, 1080), path, calibration=leaning, skeleton="h36m17", frame_rate=50.)
    level = Network(opened(path), 50., leaning, False)
    about = level.turn @ turn.numpy() # upright camera to level camera
    vertical = upright.rotation[0, :, 2].numpy()
    assert np.abs(about @ vertical - level.camera.rotation[0, :, 2].numpy()).max() < 1e-9 and np.abs(vertical - level.camera.rotation[0, :, 2].numpy()).max() < 1e-3
    again = project(people.pose_3d[rows].double() @ torch.from_numpy(about).T, chosen_camera(SIZE, 1150.)[0]).numpy() # what a level camera sees in that direction
    expected = lift(again, SIZE, path, focal=1150., skeleton="h36m17", frame_rate=50.).main.pose @ level.turn
    assert np.abs(found.main.pose - expected).max() < 1e-4 and any("was turned by" in note for note in found.notes)
    assert np.abs(lift(seen, (1920, 1080), path, calibration=leaning, skeleton="h36m17", level=False).main.pose - expected).max() > 1e-3
    assert len(straight) == len(found.main)


def test_a_vertical_that_is_not_known_turns_nothing():
    eye = ring(1)
    assert level_turn(OTHER, eye) is None, "no rotation was given"
    aside = torch.tensor([[1., 0, 0], [0, 0, 1], [0, -1, 0]], dtype=torch.float64) # a world with another axis up
    assert level_turn(replace(eye, rotation=eye.rotation @ aside), eye) is None
    assert np.allclose(level_turn(eye, eye), np.eye(3), atol=1e-9) and np.allclose(level_turn(eye, OTHER), np.eye(3), atol=1e-9)


# ---- gaps and pieces

def test_gaps_are_bridged_or_cut(people, tmp_path):
    path, method = made(people, "frames-9", tmp_path)
    points = array(people, clip_of(people)).copy()
    straight = points.copy()
    points[5:8] = np.nan                          # three frames: bridged
    points[12, 3] = np.nan                        # one joint
    points[20:27] = np.nan                        # seven: cut
    straight[5:8] = points[4] + (points[8] - points[4]) * np.arange(1, 4)[:, None, None] / 4
    straight[12, 3] = (points[11, 3] + points[13, 3]) / 2
    found = lift(points, SIZE, path, focal=1150., skeleton="h36m17", frame_rate=50., max_gap=5)
    assert found.filled == {0: 3} and found.main.frame.tolist() == [*range(20), *range(27, 40)]
    parts = [lift(straight[k], SIZE, path, focal=1150., skeleton="h36m17", frame_rate=50.).main for k in (slice(0, 20), slice(27, 40))]
    assert np.abs(found.main.pose - np.concatenate([p.pose for p in parts])).max() < 1e-5
    assert found.main.confidence[5:8].max() == .5 and found.main.confidence[12, 3] == .5


@pytest.mark.parametrize("name, rate", [("martinez", 50.), ("frames-9", 50.), ("frames-9", 100.), ("frames-9-causal", 50.), ("frames-9-flip", 50.)])
def test_pieces_together_are_the_whole(people, name, rate, tmp_path):
    path, _ = made(people, name, tmp_path)
    rng, points = np.random.default_rng(0), np.tile(array(people, clip_of(people)), (5, 1, 1))
    points[rng.random(points.shape[:2]) < .1] = np.nan
    points[60:70] = np.nan
    whole, cut = (lift(points, SIZE, path, skeleton="h36m17", frame_rate=rate, smooth=.03, piece=piece) for piece in (10_000, 7))
    for name in ("pose", "translation", "confidence", "pose_2d", "off"): assert np.allclose(getattr(whole.main, name), getattr(cut.main, name), rtol=1e-5, atol=2e-6, equal_nan=True), name
    assert (whole.main.frame == cut.main.frame).all() and whole.filled == cut.filled


LONG = """
import sys, threading, time
import numpy as np, torch
from poseprojects import zoo
from poseprojects.lift import lift
torch.set_num_threads(1)
def anonymous(): return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 1024
lifter, frames = zoo.load(None, sys.argv[1]), int(sys.argv[3])
points = np.lib.format.open_memmap(sys.argv[2] + "/long.npy", "w+", np.float32, (frames, 17, 3))
for k in range(0, frames, 10_000): points[k:k + 10_000] = np.random.default_rng(k).uniform(300, 700, (min(10_000, frames - k), 17, 3)); points[k:k + 10_000, :, 2] = .9
lift(points[:5000], (1000, 1000), lifter, skeleton="h36m17") # what the libraries take once
before, peak, done = anonymous(), [0.], False
def watch():
    while not done: peak[0] = max(peak[0], anonymous()); time.sleep(.01)
watcher = threading.Thread(target=watch); watcher.start()
start = time.perf_counter()
found = lift(points, (1000, 1000), lifter, skeleton="h36m17", smooth=.02, frame_rate=60.)
seconds, done = time.perf_counter() - start, True; watcher.join()
print(len(found.main), peak[0] - before, seconds)
"""


@pytest.mark.slow
def test_two_hours_at_60_hz_stay_small(people, tmp_path):
    path, _ = made(people, "frames-9", tmp_path)
    run = subprocess.run([sys.executable, "-c", LONG, str(path), str(tmp_path), "432000"], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    frames, grown, seconds = map(float, run.stdout.split())
    assert frames == 432_000 and grown < 300, f"{grown:.0f} MB in {seconds:.0f} s"


def test_long_folders_are_read_one_file_at_a_time(people, tmp_path, monkeypatch):
    "The columns are mapped from a file when there are many; the key points are the same, and only one frame's objects are there at once."
    rows = torch.cat([clip_of(people, 1, 0), clip_of(people, 1, 1)])
    frame, person = people.frame[rows].numpy(), people.sequence[rows].numpy()
    folder = write_openpose(tmp_path / "walk", Tracks("walk", "array", H36M17, SIZE, frame, person, array(people, rows).astype(float), people.confidence[rows].numpy(), np.unique(frame)))
    expected = detections.read_detections(folder, SIZE, skeleton=H36M17)
    monkeypatch.setattr(detections, "_IN_MEMORY", 1000)
    alive, most = weakref.WeakSet(), []
    class Watched(detections._Person):
        def __init__(self, *given):
            super().__init__(*given)
            alive.add(self), most.append(len(alive))
        __hash__ = object.__hash__
    monkeypatch.setattr(detections, "_Person", Watched)
    found = detections.read_detections(folder, SIZE, skeleton=H36M17)
    for name in ("frame", "person", "pose_2d", "confidence", "video"): assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    assert len(most) == 80 and max(most) <= 4, "two people a frame, and the two of the frame before"
    one = detections.read_detections(write_openpose(tmp_path / "one", expected.of(0)), SIZE, skeleton=H36M17)
    base = one.pose_2d
    while base.base is not None and not isinstance(base, np.memmap): base = base.base
    assert isinstance(base, np.memmap), "of a single person nothing is copied into memory"


# ---- where the body stands

def test_true_poses_stand_where_they_stood(people):
    truth = people.pose_3d[::7].double()
    rays = (truth[..., :2] / truth[..., 2:]).numpy()
    relative, root = (truth - truth[:, :1]).numpy(), truth[:, 0].numpy()
    weight = np.random.default_rng(0).uniform(.1, 1, rays.shape[:2])
    assert np.abs(root_translation(relative, rays, weight) - root).max() < 1e-6
    weight[:, 3:] = 0
    weight[0, 1:] = 0
    found = root_translation(relative, np.where(weight[..., None] > 0, rays, 99.), weight)
    assert np.isnan(found[0]).all() and np.abs(found[1:] - root[1:]).max() < 1e-5


def test_the_place_is_where_the_picture_fits_best(people):
    "A slow search around the answer finds nothing that projects better."
    rng, truth = np.random.default_rng(0), people.pose_3d[::60].double().numpy()
    rays, weight = truth[..., :2] / truth[..., 2:] + rng.normal(0, .01, truth.shape[:2] + (2,)), rng.uniform(.1, 1, truth.shape[:2])
    pose = truth - truth[:, :1] + rng.normal(0, .03, truth.shape)
    off = lambda place: (weight[..., None] * ((pose + place[:, None])[..., :2] / (pose + place[:, None])[..., 2:] - rays) ** 2).sum((1, 2))
    found = root_translation(pose, rays, weight, steps=20)
    least = off(found)
    for step in (1e-1, 1e-2, 1e-3):
        for move in np.concatenate([np.eye(3), -np.eye(3), rng.normal(0, 1, (20, 3))]): assert (off(found + step * move) >= least * (1 - 1e-9)).all()


def test_a_body_is_never_put_behind_the_camera():
    pose = np.random.default_rng(0).normal(0, .4, (50, 17, 3))
    found = root_translation(pose, np.random.default_rng(1).normal(0, 3, (50, 17, 2)), np.ones((50, 17)))
    assert np.isfinite(found).all() and ((pose + found[:, None])[..., 2] > .19).all()


# ---- smoothing

def test_smoothing_is_a_normalised_gaussian():
    values = np.random.default_rng(0).normal(0, 1, (30, 2))
    values[7, 0] = np.nan
    found, sigma = smoothed(values, 1.7), 1.7
    for t in range(30):
        for d in range(2):
            near = [(np.exp(-.5 * ((s - t) / sigma) ** 2), values[s, d]) for s in range(30) if abs(s - t) <= 7 and np.isfinite(values[s, d])]
            expected = sum(w * v for w, v in near) / sum(w for w, _ in near)
            assert np.isnan(found[t, d]) if (t, d) == (7, 0) else abs(found[t, d] - expected) < 1e-12


# ---- files

@pytest.fixture
def walk(people, tmp_path):
    "Two people, one of them with a gap, lifted and with a place that is not known."
    path, _ = made(people, "martinez", tmp_path)
    rows = torch.cat([clip_of(people, 1, 0), clip_of(people, 1, 1)])
    frame, person = people.frame[rows].numpy(), people.sequence[rows].numpy()
    keep = ~((person == 1) & (frame >= 10) & (frame < 20))
    sure = np.ones((len(frame), 17))
    sure[3, 2:] = 0
    tracks = Tracks("walk", "array", H36M17, SIZE, frame[keep], person[keep], array(people, rows).astype(float)[keep], sure[keep], np.unique(frame))
    return lift(tracks, SIZE, path, focal=1150., frame_rate=25., max_gap=0)


def test_arrays_and_text_hold_the_same(walk, tmp_path):
    npz, text, table = walk.write(tmp_path / "out", ["npz", "json", "csv"])
    with np.load(npz, allow_pickle=False) as kept:
        assert kept["person"].tolist() == [0] * 40 + [1] * 30 and kept["joints"].tolist() == list(H36M17.joints)
        assert np.array_equal(kept["pose"], np.concatenate([p.pose for p in walk.people.values()])) and np.isnan(kept["translation"][3]).all()
        assert json.loads(str(kept["facts"]))["skeleton"] == "h36m17"
    content = json.loads(text.read_text())
    assert [len(p["frames"]) for p in content["people"]] == [40, 30] and content["people"][0]["frames"][3]["translation"] is None
    row = content["people"][1]["frames"][12]
    assert row["frame"] == 22 and np.abs(np.array(row["pose"]) - walk.people[1].pose[12]).max() < 1e-4 and np.abs(np.array(row["translation"]) - walk.people[1].translation[12]).max() < 1e-4
    with open(table, newline="") as file: lines = list(csv.DictReader(file))
    assert len(lines) == 70 and lines[3]["translation_x"] == "" and lines[52]["time_s"] == "0.88"
    assert abs(float(lines[52]["left_wrist_y"]) - walk.people[1].pose[12, H36M17.index("left_wrist"), 1]) < 1e-4


def test_markers_and_hierarchies_stand_upright(walk, tmp_path):
    first, second = (read_trc(p) for p in walk.write(tmp_path, ["trc"]))
    assert len(first) == len(second) == 40 and first.frame_rate == 25. and first.markers == H36M17.joints
    assert np.isnan(first.positions[3]).all() and np.isnan(second.positions[10:20]).all() and np.isfinite(second.positions[20:]).all()
    body = walk.people[1].absolute[15] # frame 25
    assert np.abs(second.positions[25] - body * [1, -1, -1]).max() < 1e-5
    for path, person in zip(walk.write(tmp_path, ["bvh"]), walk.people.values()):
        motion = read_bvh(path, .01)
        positions = motion.poses(H36M17)
        lengths = np.linalg.norm(np.diff(positions[:, [1, 2]], axis=1), axis=-1)
        assert len(motion) == 40 and motion.frame_rate == 25. and np.ptp(lengths) < 1e-5
        assert np.abs(positions[0, 0] - person.absolute[0, 0] * [1, -1, -1]).max() < 1e-4


def test_gaps_are_bridged_on_straight_lines(walk):
    frame, poses = on_grid(walk.people[1], 1, bridged=True)
    before, after = walk.people[1].absolute[9], walk.people[1].absolute[10] # frames 9 and 20
    assert frame.tolist() == list(range(40)) and np.abs(poses[12] - (before + (after - before) * 3 / 11)).max() < 1e-5
    _, poses = on_grid(walk.people[0], 1, bridged=True)
    assert np.abs(poses[3] - walk.people[0].absolute[[2, 4]].mean(0)).max() < 1e-5


def test_the_page_holds_everything_it_needs(walk, tmp_path):
    pages = walk.write(tmp_path, ["html"])
    assert [p.name for p in pages] == ["walk_person0.html", "walk_person1.html"]
    text = pages[0].read_text()
    assert "Plotly" in text and len(text) > 3_000_000 and '<script src=' not in text and '"frame 39"' not in text and "frame 39" in text
    noted, = replace(walk, notes=("people <guessed>",), people={0: walk.people[0]}).write(tmp_path, ["html"])
    assert "<p>people &lt;guessed&gt;</p>" in noted.read_text() and "guessed" not in text


def test_a_long_page_says_what_it_leaves_out(walk):
    from poseprojects.lift import page
    figure = page(walk, 0, frames=15)
    assert len(figure.frames) == 14 and "every 3. of 40 frames" in figure.layout.title.text
    assert "every" not in page(walk, 0).layout.title.text and len(page(walk, 0).frames) == 40


def test_the_film_goes_with_the_video(people, tmp_path):
    path, _ = made(people, "martinez", tmp_path)
    points = array(people, clip_of(people))[:6] * [.24, .18] # a video of 240 x 180
    shades = [torch.full((180, 240, 3), 20 + 30 * k, dtype=torch.uint8) for k in range(6)]
    video = write_video(tmp_path / "in.mp4", shades, 25)
    lifted = lift(points, (240, 180), path, skeleton="h36m17", name="in", frame_rate=25.)
    film, = lifted.write(tmp_path / "out", ["mp4"], video)
    frames = [image for _, image in read_frames(film)]
    assert len(frames) == 6 and frames[0].shape[0] == 480
    assert all(abs(float(f[5:40, 5:40].float().mean()) - (20 + 30 * k)) < 6 for k, f in enumerate(frames)), "each frame shows its own picture"
    right = [f[:, 660:].float() for f in frames]
    assert all((r < 200).any() and (r > 250).float().mean() > .8 for r in right), "and the pose beside it"
    alone, = replace(lifted, name="alone").write(tmp_path / "out", ["mp4"])
    assert sum(1 for _ in read_frames(alone)) == 6
    assert "expected the same size" in refused(replace(lifted, image_size=(480, 360)).write, tmp_path, ["mp4"], video)
    short = write_video(tmp_path / "short.mp4", shades[:3], 25)
    assert "has 3 frames, but the key points go up to frame 5" in refused(lifted.write, tmp_path, ["mp4"], short)
    assert not list(tmp_path.glob("**/.tmp-*"))


# ---- the command

def test_the_command_writes_and_sums_up(people, tmp_path, capsys):
    path, _ = made(people, "martinez", tmp_path)
    rows = clip_of(people)
    np.save(tmp_path / "walk.npy", array(people, rows))
    assert main([str(tmp_path / "walk.npy"), "--size", "1000x1000", "--weights", str(path), "--skeleton", "h36m17", "--out", str(tmp_path / "out"), "--write", "npz,json", "--fps", "50", "--smooth", "0.02", "--person", "0", "--flip"]) == 0
    out = capsys.readouterr().out
    assert "person 0: frames 0 to 39 (40), " in out and "note: the focal length was guessed as 1200 px" in out and f"wrote {tmp_path / 'out' / 'walk.npz'}" in out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["walk.json", "walk.npz"]
    write_pose2sim_toml(tmp_path / "Calib.toml", people.cameras)
    assert main([str(tmp_path / "walk.npy"), "--weights", str(path), "--skeleton", "h36m17", "--calibration", str(tmp_path / "Calib.toml"), "--camera", "cam1", "--out", str(tmp_path / "out"), "--write", "csv"]) == 0
    assert "guessed" not in capsys.readouterr().out


@pytest.mark.parametrize("options, message", [
    (["--size", "1000"], "expected width and height"), ([], "expected --size 1920x1080"), (["--size", "1000x1000", "--write", "fbx"], "--write 'fbx' is not known"), (["--size", "1000x1000", "--person", "me"], "no person"),
    (["--size", "1000x1000", "--person", "7"], "there is no person 7"), (["--size", "1000x1000", "--focal", "2"], "focal = 2 cannot be"), (["--size", "1000x1000", "--smooth", "-1"], "smooth = -1.0 cannot be"),
    (["--size", "300x300"], "lie outside of a picture of 300 x 300"), (["--size", "1000x1000", "--video", "none.mp4"], "the video is not there"), (["--size", "1000x1000", "--calibration", "none.toml"], "none.toml")])
def test_the_command_refuses_with_2_and_leaves_nothing(people, options, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, _ = made(people, "martinez", tmp_path)
    np.save("walk.npy", array(people, clip_of(people)))
    assert main(["walk.npy", "--weights", str(path), "--skeleton", "h36m17", *options]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and captured.err.startswith("pose-lift: ") and not captured.out and not (tmp_path / "lifted").exists()


def test_module_command_and_call_are_one(people, tmp_path):
    path, _ = made(people, "martinez", tmp_path)
    np.save(tmp_path / "walk.npy", array(people, clip_of(people)))
    run = subprocess.run([sys.executable, "-W", "error::RuntimeWarning", "-m", "poseprojects.lift", "walk.npy", "--size", "1000x1000", "--weights", str(path), "--skeleton", "h36m17"], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(poseprojects.__file__))})
    assert run.returncode == 0 and (tmp_path / "lifted" / "walk.npz").is_file(), run.stderr
    called = poseprojects.lift(array(people, clip_of(people)), SIZE, path, skeleton="h36m17")
    assert np.array_equal(called.main.pose, lift(array(people, clip_of(people)), SIZE, path, skeleton="h36m17").main.pose)
    light = subprocess.run([sys.executable, "-c", "import sys, poseprojects; print('torch' in sys.modules, callable(poseprojects.lift), poseprojects.lift.lift.__name__)"], capture_output=True, text=True, cwd=os.path.dirname(os.path.dirname(poseprojects.__file__)))
    assert light.stdout.split() == ["False", "True", "lift"], light.stderr


# ---- cameras

def test_calibrations_of_all_kinds_are_read(people, tmp_path):
    from poseprojects.data.calibrations import write_aist, write_panoptic
    write_pose2sim_toml(tmp_path / "a.toml", people.cameras), write_aist(tmp_path / "b.json", people.cameras), write_panoptic(tmp_path / "c.json", people.cameras)
    (tmp_path / "d.json").write_text(json.dumps(people.cameras.to_dict()))
    for name in "a.toml", "b.json", "c.json", "d.json":
        camera = camera_of(tmp_path / name, "cam2")
        assert camera.names == ("cam2",) and torch.allclose(camera.intrinsics[0], torch.tensor([1150., 1150., 500., 500.]).double())
    assert "expected the name of one of them: cam0, cam1" in refused(camera_of, tmp_path / "a.toml") and "there is no camera 'x'" in refused(camera_of, tmp_path / "a.toml", "x")
    assert "expected the same size" in refused(chosen_camera, (640, 480), calibration=people.cameras[[0]])
    assert chosen_camera(SIZE, calibration=people.cameras[[0]])[1] == "" and "edge that a codec adds" in chosen_camera((1000, 992), calibration=people.cameras[[0]])[1]
    assert "expected the same size" in refused(chosen_camera, (1000, 984), calibration=people.cameras[[0]])


# ---- what is refused

def test_unusable_key_points_are_refused_in_one_sentence(people, tmp_path):
    path, _ = made(people, "martinez", tmp_path)
    points = array(people, clip_of(people))
    ask = lambda points, size=SIZE, **more: refused(lift, points, size, path, **{"skeleton": "h36m17", **more})
    assert "so they are normalised, expected pixels" in ask(points / 1000)
    assert "lie outside of a picture of 640 x 480" in ask(points, (640, 480))
    assert "hold no joint that was found" in ask(points * np.nan) and "hold no joint" in ask(points[:0]) and "hold no joint" in ask(np.concatenate([points, 0 * points[..., :1]], -1))
    assert "expected (frames, 17, 2 or 3)" in ask(points[0]) and "expected (frames, 17, 2 or 3)" in ask(points[:, :16]) and "expected (frames, 17, 2 or 3)" in ask("nothing" and {"a": 1})
    assert "confidences run from 0 to 7" in ask(np.concatenate([points, np.linspace(0, 7, points[..., :1].size).reshape(40, 17, 1)], -1))
    assert "skeleton 'h36' is not known" in ask(points, skeleton="h36")
    assert "the bones are not those of coco17" in ask(points, skeleton="coco17") and "expected skeleton h36m17" in ask(points, skeleton="coco17")
    legs = H36M17.sub(("pelvis", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle"), "legs")
    message = ask(points[:, :7], skeleton=legs)
    assert "'thorax'" in message and "'left_wrist'" in message and "the lifter works on h36m17" in message
    assert "image_size = (0, 5) is no size" in ask(points, (0, 5))
    for name, content in (("empty.json", "[]"), ("nobody.json", '[{"image_id": 1, "category_id": 1, "keypoints": [' + ",".join(["0"] * 51) + "]}]"), ("broken.json", "[{")):
        (tmp_path / name).write_text(content)
        refused(lift, tmp_path / name, SIZE, path)
    tracks = Tracks("walk", "array", H36M17, (640, 480), np.arange(3), np.zeros(3, int), points[:3], np.ones((3, 17)), np.arange(3))
    assert "of pictures of 640 x 480" in ask(tracks)


def test_unusable_lifters_are_refused_in_one_sentence(people, tmp_path):
    image = zoo.save(tmp_path / "lcn.safetensors", "lcn", lcn.build(people, lcn.VARIANTS["short-run"]), people)
    assert "needs the true depth of the root" in refused(opened, image)
    (tmp_path / "a.txt").write_text("not a checkpoint")
    refused(opened, tmp_path / "a.txt"), refused(opened, tmp_path / "none.safetensors"), refused(opened, tmp_path)
    assert "weights are a int" in refused(opened, 3)


def test_released_checkpoints_lift_too(people, tmp_path):
    network = semgcn.SemGCNNetwork(zoo.H36M16).eval()
    torch.save({"state_dict": network.state_dict(), "epoch": 1}, tmp_path / "ckpt.pth.tar")
    found = lift(array(people, clip_of(people)), SIZE, tmp_path / "ckpt.pth.tar", skeleton="h36m17")
    assert found.skeleton.name == "h36m16" and len(found.main) == 40 and "Human3.6M" in found.lifter


def test_joints_made_by_rule_and_never_seen_are_told(people, tmp_path):
    path, _ = made(people, "martinez", tmp_path)
    clip = example_people(COCO17, 20)[0]
    eye = ring(1)
    R, t = eye.rotation, eye.translation
    points = project(torch.from_numpy(clip.pose) @ R[0].T + t[0], eye).numpy()
    points[:, COCO17.index("left_ankle")] = np.nan
    notes = " ".join(lift(points, SIZE, path, skeleton="coco17").notes)
    assert "pelvis = mean of left_hip and right_hip" in notes and "left_ankle were never seen" in notes and "taken as 30 Hz" in notes


def test_what_the_lifter_does_not_understand_is_told(people, tmp_path):
    "A video that stands on its head: bodies that stand upright do not project onto it."
    path, _ = made(people, "martinez", tmp_path)
    points = array(people, clip_of(people))
    odd = lambda given: any("the lifter does not understand them" in note for note in lift(given, SIZE, path, focal=1150., skeleton="h36m17").notes)
    assert odd(np.stack([points[..., 0], 1000 - points[..., 1]], -1)) and not odd(points)


def test_the_command_is_installed():
    root = project_root()
    assert 'pose-lift = "poseprojects.lift:main"' in (root / "pyproject.toml").read_text() and "pose-lift=poseprojects.lift:main" in (root / "settings.ini").read_text()


# ---- real views

@pytest.fixture(scope="module")
def trained_on_cmu():
    "A small lifter that has seen every fourth sample of cmu's training set twice, with the noise of a detector."
    real_data("cmu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train = cmu.load("train")
    train = detect(train.select(torch.arange(0, len(train), 4)), "hrnet-like", 0)
    torch.manual_seed(0)
    method = martinez.build(train, martinez.Config(width=512, centring="root", dropout=.1, flip=True))
    fit(method, train, martinez.PLANS["quick"].changed(epochs=2), seed=0, show=False)
    torch.set_num_threads(threads)
    return train, method.eval()


def against(found, truth, aligned):
    "Mean distance of the joints in mm: after the best similarity, or root on root."
    found, truth = (torch.from_numpy(np.array(a, dtype=np.float64)) for a in (found, truth))
    return 1000 * float((pa_mpjpe(found, truth) if aligned else mpjpe(found, truth - truth[:, :1])).mean())


@pytest.mark.data
def test_four_views_agree_with_each_other_and_with_the_markers(trained_on_cmu, tmp_path):
    "Lifts of single views in the world's axes, against the joints triangulated from all four, and against each other. The mean pose of the training set, in the level frame of each camera as the lifts are, fails."
    trial, (train, method) = pose2sim.read_trial(real_data("pose2sim")), trained_on_cmu
    path = zoo.save(tmp_path / "lifter.safetensors", "martinez", method, train)
    lifter, truth, mean = zoo.load(None, path), convert(trial.world, pose2sim.POSE2SIM21, H36M17), MeanPose(train).pose.numpy()
    views, leaning, constant, place = [], [], [], []
    for k in range(4):
        eye = trial.cameras[[k]]
        person = pose2sim.nearest_person(trial.tracks[k].converted(pose2sim.POSE2SIM21), trial.frame, trial.reprojected(k))
        ask = dict(calibration=eye, frame_rate=trial.frame_rate)
        whole = lift(person := replace(person, person=0 * person.person), size := tuple(int(v) for v in eye.resolution[0]), lifter, **ask)
        assert not any("does not understand" in note for note in whole.notes)
        found = whole.main
        R, there = eye.rotation[0].numpy(), truth[np.searchsorted(trial.frame, found.frame)]
        of = lambda poses: (dict(zip(found.frame.tolist(), poses)), against(poses, there, True), against(poses, there, False))
        views.append(of(found.pose @ R)), leaning.append(of(lift(person, size, lifter, level=False, **ask).main.pose @ R))
        constant.append(of(np.broadcast_to(mean @ Network(lifter, 60., eye, False).turn @ R, found.pose.shape)))
        place.append(np.linalg.norm((found.translation - eye.translation[0].numpy()) @ R - there[:, 0], axis=-1).mean())
    apart = lambda some: 1000 * np.mean([np.linalg.norm(a[f] - b[f], axis=-1).mean() for i, (a, *_) in enumerate(some) for b, *_ in some[:i] for f in a.keys() & b.keys()])
    line = lambda name, some: f"{name}: PA-MPJPE {np.round([v[1] for v in some])} mm, MPJPE in the world {np.round([v[2] for v in some])}, between views {apart(some):.0f}"
    print("\n", line("levelled", views), line("as they lean", leaning), line("mean pose", constant), f"pelvis off by {np.round(place, 2)} m", sep="\n")
    pa, world = (np.array([v[k] for v in views]) for k in (1, 2))
    assert pa.max() < 135 and pa.mean() < .6 * np.mean([v[1] for v in constant]), "poses as the markers have them"
    assert world.mean() < 185 < np.mean([v[2] for v in constant]) and apart(views) < 185, "and turned as they are"
    assert apart(views) < .9 * apart(leaning) and world.mean() < .95 * np.mean([v[2] for v in leaning]), "putting leaning cameras right helps"
    assert max(place) < .5, "metres; the cameras are 2 to 4 m away"


# ---- numbers and options that do not fit

def test_numbers_that_leave_the_grid_lose_no_row():
    frame, n = np.array([0, 2, 4, 6, 8, 9, 11, 13]), 8
    person = Lifting(frame, np.zeros((n, 17, 3)), np.ones((n, 3)), np.ones((n, 17)), np.zeros((n, 17, 2)), np.zeros(n))
    numbers, poses = on_grid(person, 2)
    assert numbers.tolist() == list(range(14)) and np.flatnonzero(np.isfinite(poses).all((1, 2))).tolist() == frame.tolist()


@pytest.mark.parametrize("extra, message", [(["--device", "foo"], "device 'foo' cannot be used"), (["--camera", "x"], "expected --calibration beside it"), (["--write", ""], "names no format"), (["--fps", "0"], "frame_rate = 0.0 cannot be")])
def test_options_that_mean_nothing_are_refused(people, extra, message, tmp_path, capsys):
    path, _ = made(people, "martinez", tmp_path)
    np.save(tmp_path / "walk.npy", array(people, clip_of(people)))
    assert main([str(tmp_path / "walk.npy"), "--size", "1000x1000", "--weights", str(path), "--skeleton", "h36m17", "--out", str(tmp_path / "out"), *extra]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_lifter_must_be_named(capsys):
    assert main(["walk.npy", "--size", "1000x1000"]) == 2 and "expected --weights" in capsys.readouterr().err
