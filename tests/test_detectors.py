"""Modelled detectors: what they promise of every set, and what a detector's user would check first."""
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from poseprojects.camera import Cameras
from poseprojects.data import cmu, hdm05, synthetic
from poseprojects.data.base import PoseSet, clips
from poseprojects.data.detectors import (DETECTORS, DetectorModel, detect, detection_statistics, episodes, joint_factors, lasting, person_size, rank_correlation,
                                         self_occlusion, sidedness, swap_groups, swap_risk, with_input)
from poseprojects.skeleton import COCO17, H36M17, SKELETONS, convert
from poseprojects.storage import InputError

from mocap_pack import SUBJECT, make_pack

QUIET = dict(noise=0., tail=0., clip_bias=0., bias=0., swap_rate=0.)


pytestmark = pytest.mark.usefixtures("fresh_cache")


@pytest.fixture(scope="module")
def truth(): return synthetic.load("test", samples=40_000)


@pytest.fixture(scope="module")
def found(truth): return {name: detect(truth, name) for name in DETECTORS}


@pytest.fixture(scope="module")
def statistics(found, truth): return {name: detection_statistics(poses, truth, DETECTORS[name].radius) for name, poses in found.items()}


def same(a: PoseSet, b: PoseSet) -> bool: return torch.equal(a.pose_2d, b.pose_2d) and torch.equal(a.confidence, b.confidence)

def flat(truth: PoseSet, seconds: float, rate: float, people: int = 60) -> PoseSet:
    "The first pose of some clips, held still: what changes is the detector's."
    n, rows = round(seconds * rate), clips(truth)[:people, 0].repeat_interleave(round(seconds * rate))
    names = tuple(f"still {k}" for k in range(people))
    return replace(truth, pose_2d=truth.pose_2d[rows], pose_3d=truth.pose_3d[rows], confidence=truth.confidence[rows], camera_id=truth.camera_id[rows], subject=truth.subject[rows], action=truth.action[rows],
                   sequence=torch.arange(people, dtype=torch.int32).repeat_interleave(n), frame=torch.arange(n, dtype=torch.int32).repeat(people), sequence_names=names, frame_rate=rate, frame_step=1)

# ---------- the same numbers again

@pytest.mark.parametrize("name", DETECTORS)
def test_the_same_call_gives_the_same_bits(truth, found, name):
    again = detect(truth, name)
    assert same(again, found[name]) and again.fingerprint == found[name].fingerprint
    other = detect(truth, name, seed=1)
    assert not same(other, found[name]) and other.fingerprint != found[name].fingerprint

@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("batch", [1, 700, 10**6])
def test_a_clip_is_detected_alike_alone_and_among_others(truth, found, name, batch):
    keep = (truth.sequence % 7 == 3) & (truth.camera_id != 2)
    part = detect(truth.select(keep), name, batch=batch)
    assert 100 < len(part) < len(truth) / 3
    assert torch.equal(part.pose_2d, found[name].pose_2d[keep]) and torch.equal(part.confidence, found[name].confidence[keep])

def test_names_make_the_errors_not_their_places_in_the_lists(truth, found):
    order = torch.arange(len(truth.subject_names)).flip(0)
    renamed = replace(truth, subject=order[truth.subject.long()].int(), subject_names=tuple(reversed(truth.subject_names)))
    assert same(detect(renamed, "cpn-like"), found["cpn-like"])
    assert not same(detect(replace(truth, subject_names=("somebody", "else")), "cpn-like"), found["cpn-like"])

def test_cameras_sequences_and_detectors_err_independently(truth):
    still = flat(truth, 1., 50., people=8)
    one = replace(still, pose_2d=still.pose_2d[:1].expand_as(still.pose_2d).contiguous(), pose_3d=still.pose_3d[:1].expand_as(still.pose_3d).contiguous())
    errors = (detect(one, "hrnet-like").pose_2d - one.pose_2d).view(8, 50, -1).double().numpy()
    between = np.corrcoef(errors.reshape(8, -1) - errors.reshape(8, -1).mean(0))
    assert np.abs(between[np.triu_indices(8, 1)]).max() < 0.45
    a, b = ((detect(truth, n).pose_2d - truth.pose_2d).flatten().double().numpy() for n in ("cpn-like", "detectron-like"))
    a, b = np.clip(a, -20, 20), np.clip(b, -20, 20)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.1

def test_the_truth_stays_as_it_is(truth, found):
    for poses in found.values():
        assert torch.equal(poses.pose_3d, truth.pose_3d) and torch.equal(poses.frame, truth.frame) and poses.skeleton == truth.skeleton
    assert truth.input_2d == "gt" and bool((truth.confidence == 1).all())
    assert replace(truth).fingerprint == truth.fingerprint

def test_the_settings_tell_what_was_done(found, truth):
    for name, poses in found.items():
        recipe = poses.settings["detector"]
        assert poses.input_2d == name == poses.settings["input_2d"] == recipe["name"] and recipe["ground_truth"] == truth.fingerprint
        assert {"version", "seed", *asdict(DETECTORS[name])} <= set(recipe)

def test_a_new_version_is_another_set(truth, monkeypatch):
    before = detect(truth, "cpn-like").fingerprint
    monkeypatch.setattr("poseprojects.data.detectors.VERSION", 99)
    assert detect(truth, "cpn-like").fingerprint != before

# ---------- errors

BANDS = {"hrnet-like": (0.9, 1.4), "cpn-like": (1.3, 1.9), "detectron-like": (1.8, 2.6), "hourglass-like": (2.2, 3.1), "wild-like": (3.3, 5.2)} # mean error, % of the person's size

def test_bands_and_order_of_severity(statistics):
    assert tuple(BANDS) == tuple(DETECTORS)
    for name, (low, high) in BANDS.items(): assert low < statistics[name]["percent"]["mean"] < high
    for measure in (lambda s: s["percent"]["mean"], lambda s: s["percent"]["median"], lambda s: s["percent"]["p95"], lambda s: s["pixels"]["mean"], lambda s: s["swapped"], lambda s: -s["within"][5]):
        values = [measure(s) for s in statistics.values()]
        assert all(a < b for a, b in zip(values, values[1:])), values

def test_tails_are_heavy_and_gaussian_without(truth, statistics):
    for s in statistics.values(): assert s["tail"] > 2.8
    joints = list(H36M17.indices(("left_wrist", "right_wrist"))) # one factor, so one Gaussian
    model = DetectorModel("plain", **QUIET | dict(noise=0.004), hidden=1.)
    error = (detect(truth, model).pose_2d - truth.pose_2d).double().numpy() / person_size(truth.pose_2d.numpy())[:, None, None]
    kurtosis = lambda x: float((x**4).mean() / (x**2).mean() ** 2)
    assert abs(kurtosis(error[:, joints]) - 3) < 0.3
    assert abs(error[:, joints].std() - 0.004 * joint_factors(H36M17)[joints[0]]) < 0.0003
    heavy = (detect(truth, replace(model, tail=0.3)).pose_2d - truth.pose_2d).double().numpy() / person_size(truth.pose_2d.numpy())[:, None, None]
    assert kurtosis(heavy[:, joints]) == pytest.approx(3 * np.exp(4 * 0.3**2), rel=0.15)

def test_wrists_and_ankles_are_worse_than_hips_and_head(statistics):
    for s in statistics.values():
        mean = lambda kind: np.mean([v for j, v in s["per_joint"].items() if j.endswith(kind)])
        assert min(mean("wrist"), mean("ankle")) > mean("hip") > mean("head") and mean("elbow") > mean("shoulder") and mean("knee") > mean("hip")

@pytest.mark.parametrize("name", DETECTORS)
def test_twice_the_image_twice_the_error(truth, found, name):
    c = truth.cameras
    large = replace(truth, pose_2d=2 * truth.pose_2d, cameras=Cameras(c.names, 2 * c.intrinsics, c.distortion, c.rotation, c.translation, 2 * c.resolution))
    seen = detect(large, name)
    torch.testing.assert_close(seen.pose_2d / 2, found[name].pose_2d, atol=2e-3, rtol=0)
    torch.testing.assert_close(seen.confidence, found[name].confidence, atol=1e-5, rtol=0)

def test_offsets_belong_to_the_body(truth):
    only = detect(truth, DetectorModel("offsets", **QUIET | dict(bias=1.)))
    offset = only.pose_2d - truth.pose_2d
    up = truth.pose_2d[:, H36M17.index("thorax")] - truth.pose_2d[:, H36M17.index("pelvis")]
    assert float(offset.norm(dim=-1).max()) < 0.2 * float(up.norm(dim=-1).max())
    hip = offset[:, H36M17.index("pelvis")]
    cosine = (hip * up).sum(-1) / hip.norm(dim=-1).clamp_min(1e-6) / up.norm(dim=-1).clamp_min(1e-6)
    assert float(cosine.median()) > 0.95 and float(cosine.quantile(0.1)) > 0.5 # towards the shoulders, however the body lies
    assert same(only, detect(truth, DetectorModel("offsets", **QUIET | dict(bias=1.)), seed=3))

# ---------- time

def memory(poses, truth, seconds):
    error = ((poses.pose_2d - truth.pose_2d) / torch.from_numpy(person_size(truth.pose_2d.numpy()))[:, None, None]).double()
    lag, out = round(seconds * truth.frame_rate), []
    for a, b in clips(truth).tolist():
        out.append(((error[a + lag:b] * error[a:b - lag]).sum(), (error[a:b] ** 2).sum() * (b - a - lag) / (b - a)))
    return float(sum(x for x, _ in out) / sum(y for _, y in out))

def test_errors_last_the_same_time_at_every_frame_rate(truth):
    model = DetectorModel("noise", **QUIET | dict(noise=0.01), slow=0.7, slow_time=0.3)
    sets = {rate: flat(truth, 6., rate) for rate in (25., 50., 100.)}
    sets = {rate: (detect(poses, model), poses) for rate, poses in sets.items()}
    for seconds in (0.2, 0.4):
        expected = 0.7 * np.exp(-seconds / 0.3) # the fast part is gone by then
        for rate, pair in sets.items(): assert memory(*pair, seconds) == pytest.approx(expected, abs=0.05), rate
    spread = [float(((d.pose_2d - t.pose_2d)).std()) for d, t in sets.values()]
    assert max(spread) < 1.05 * min(spread)

@pytest.mark.parametrize("rate", [25., 100.])
def test_episodes_take_the_same_share_and_time_at_every_frame_rate(rate):
    n = round(4000 * rate)
    on = episodes(np.random.default_rng(0).random((n, 4)), np.full((n, 4), 0.5), 0.4, 1 / rate, np.array([[0, n // 2], [n // 2, n]]))
    assert on.mean() == pytest.approx(0.2 / 1.2, abs=0.01)
    length = on.sum() / rate / (on[1:] & ~on[:-1]).sum()
    assert length == pytest.approx(0.4, rel=0.15) # an episode shorter than a frame may be missed

def test_clips_begin_anew():
    drive = np.random.default_rng(0).standard_normal((4000, 50))
    bounds = np.stack([np.arange(0, 4000, 2), np.arange(2, 4001, 2)], 1)
    x = lasting(drive.copy(), np.full(50, 10.), 0.02, bounds)
    assert np.array_equal(x[::2], drive[::2])
    inside, across = (x[::2] * x[1::2]).mean(), (x[1:-1:2] * x[2::2]).mean()
    assert inside > 0.95 and abs(across) < 0.02 and x.std() == pytest.approx(1, abs=0.02)

def test_a_gap_breaks_the_memory(truth):
    model = DetectorModel("noise", **QUIET | dict(noise=0.01), slow=1., slow_time=100.)
    still = flat(truth, 1., 50.)
    gap = still.select(still.frame != 25)
    error = detect(gap, model).pose_2d - gap.pose_2d
    first = (gap.frame == 24).nonzero().flatten()
    correlation = lambda a, b: float((a * b).sum() / (a * a).sum().sqrt() / (b * b).sum().sqrt())
    assert correlation(error[first], error[first - 1]) > 0.99 and abs(correlation(error[first], error[first + 1])) < 0.15

# ---------- left and right

def test_swaps_exchange_sides_and_nothing_else(truth):
    swapped = detect(truth, DetectorModel("swaps", **QUIET | dict(swap_rate=2.), swap_time=0.3))
    moved = (swapped.pose_2d != truth.pose_2d).any(-1)
    assert 0.02 < float(moved.double().mean()) < 0.6
    assert torch.equal(swapped.pose_2d[moved], truth.pose_2d[:, list(H36M17.mirror)][moved])
    middle = [j for j in range(17) if H36M17.mirror[j] == j]
    assert not moved[:, middle].any() and torch.equal(moved[:, list(H36M17.left)], moved[:, list(H36M17.right)])
    groups = {tuple(sorted(g)) for g in swap_groups(H36M17).values()}
    legs, arms = (set(swap_groups(H36M17)[k]) for k in ("legs", "arms"))
    seen = {tuple(row.nonzero().flatten().tolist()) for row in moved.unique(dim=0)}
    assert seen <= {(), *groups} and seen >= {tuple(sorted(legs)), tuple(sorted(arms))}

def test_swaps_come_in_episodes(truth):
    still = flat(truth, 8., 50.)
    model = DetectorModel("swaps", **QUIET | dict(swap_rate=0.5), swap_time=0.4)
    on = (detect(still, model).pose_2d != still.pose_2d)[:, H36M17.index("left_ankle")].any(-1).view(-1, 400).numpy()
    begins = (on[:, 1:] & ~on[:, :-1]).sum()
    assert begins > 20 and on.sum() / begins > 8 # 0.4 s are 20 frames; legs and body may overlap

def test_sides_are_exchanged_where_they_are_hard_to_tell(truth):
    on = (detect(truth, DetectorModel("swaps", **QUIET | dict(swap_rate=1.))).pose_2d != truth.pose_2d).any(-1)[:, list(H36M17.left)].double().mean(1)
    facing = torch.from_numpy(sidedness(truth.pose_2d.numpy(), H36M17))
    front, side, behind = (float(on[w].mean()) for w in (facing > 0.1, facing.abs() < 0.03, facing < -0.1))
    assert side > 2 * front and behind > 2 * front

def test_front_is_front_in_every_attitude():
    skeleton = H36M17.sub(("thorax", "right_hip", "right_shoulder", "left_hip", "left_shoulder"), "trunk")
    pose = np.array([[[0, -1.], [-.2, 1], [-.2, 0], [.2, 1], [.2, 0]]]) * 100 # seen from the front the left side is on the image's right
    turned = lambda a: pose @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
    for angle in np.linspace(0, 2 * np.pi, 9):
        assert sidedness(turned(angle), skeleton)[0] == pytest.approx(sidedness(pose, skeleton)[0], rel=0.2) # the box around the joints is not the same
    assert sidedness(pose * [-1, 1], skeleton)[0] < -0.1
    assert swap_risk(pose * [0.01, 1], skeleton)[0, 0] > swap_risk(pose, skeleton)[0, 0]

# ---------- hidden and missing

def test_a_hand_behind_the_back_is_hidden_and_one_before_it_is_not(truth):
    pose = truth.pose_3d[:1].double().numpy().copy()
    at = H36M17.index
    chest = (pose[:, at("thorax")] + pose[:, at("pelvis")]) / 2
    for offset, expected in ((0.25, True), (-0.25, False)):
        pose[:, at("left_wrist")] = chest * (1 + offset / chest[:, 2:])
        eye = truth.cameras[truth.camera_id[:1].long()]
        flat_2d = (pose[..., :2] / pose[..., 2:]) * eye.intrinsics[:, None, :2].numpy() + eye.intrinsics[:, None, 2:].numpy()
        assert self_occlusion(flat_2d, pose, H36M17)[0, at("left_wrist")] == expected

def test_hidden_joints_are_worse_and_less_sure(truth, found):
    hidden = torch.from_numpy(self_occlusion(truth.pose_2d.double().numpy(), truth.pose_3d.double().numpy(), H36M17))
    assert 0.03 < float(hidden.double().mean()) < 0.3
    for name, poses in found.items():
        error = (poses.pose_2d - truth.pose_2d).norm(dim=-1)
        for joint in ("left_wrist", "right_elbow", "left_knee"):
            j, h = H36M17.index(joint), hidden[:, H36M17.index(joint)]
            assert error[h, j].median() > 1.2 * error[~h, j].median() and poses.confidence[h, j].mean() < poses.confidence[~h, j].mean(), (name, joint)

def test_missing_joints_have_confidence_zero_and_coordinates(truth, found):
    for name, poses in found.items():
        assert bool(torch.isfinite(poses.pose_2d).all()) and bool(((poses.confidence >= 0) & (poses.confidence < 0.97)).all())
        gone = float((poses.confidence == 0).double().mean())
        assert 0.02 < gone < 0.15 if name == "wild-like" else gone == 0

def test_missing_joints_are_filled_from_the_detections_around_them(truth, found):
    wild, checked = found["wild-like"], 0
    for a, b in clips(truth)[:60].tolist():
        seen, x = (wild.confidence[a:b] > 0).numpy(), wild.pose_2d[a:b].double().numpy()
        for j in range(17):
            if seen[:, j].all() or not seen[:, j].any(): continue
            where = np.flatnonzero(seen[:, j])
            for axis in range(2): np.testing.assert_allclose(x[:, j, axis], np.interp(np.arange(b - a), where, x[where, j, axis]), atol=1e-3)
            checked += 1
    assert checked > 30

def test_a_joint_that_is_never_seen_stays_where_it_was_guessed(truth):
    blind, seeing = (detect(truth, DetectorModel("blind", noise=0.01, drop_below=drop)) for drop in (1., 0.))
    assert bool((blind.confidence == 0).all()) and bool((seeing.confidence > 0).all()) and torch.equal(blind.pose_2d, seeing.pose_2d)

def test_a_person_that_is_missed_is_missed_as_a_whole(truth):
    poses = detect(flat(truth, 4., 50.), DetectorModel("misses", noise=0.01, miss_rate=0.5, miss_time=0.2))
    gone = (poses.confidence == 0)
    assert torch.equal(gone.any(1), gone.all(1)) and 0.05 < float(gone.double().mean()) < 0.13

# ---------- confidence

def test_confidence_knows_something_but_not_everything(found, truth, statistics):
    for name, s in statistics.items():
        assert -0.6 < s["rank_correlation"] < -0.2, name
        seen = found[name].confidence > 0
        error = ((found[name].pose_2d - truth.pose_2d).norm(dim=-1) / torch.from_numpy(person_size(truth.pose_2d.numpy()))[:, None])[seen]
        sure = found[name].confidence[seen] > found[name].confidence[seen].median()
        bad = error > float(np.quantile(error.numpy(), 0.9))
        assert 0.1 < float(sure[bad].double().mean()) < 0.45 # of the worst tenth some are among the surer half
        assert int(found[name].confidence[seen].unique(return_counts=True)[1].max()) < 0.1 * int(seen.sum()) # no plateau that says nothing

def test_confidence_is_about_calibrated(statistics):
    for name, s in statistics.items():
        for confidence, share, count in s["calibration"]:
            if count > 500: assert -0.2 < share - confidence < 0.2, (name, confidence, share)
        shares = [share for _, share, count in s["calibration"] if count > 500]
        assert shares[-1] > shares[0] + 0.1

# ---------- other sets

@pytest.mark.parametrize("skeleton", [s for s in SKELETONS.values()], ids=SKELETONS)
@pytest.mark.parametrize("name", ["hrnet-like", "wild-like"])
def test_every_skeleton_without_3d(skeleton, name):
    rng = np.random.default_rng(0)
    pose = 300 + 100 * rng.standard_normal((200, skeleton.num_joints, 2))
    poses = photographs(pose, skeleton)
    made = detect(poses, name)
    assert made.pose_3d is None and bool(torch.isfinite(made.pose_2d).all()) and not torch.equal(made.pose_2d, poses.pose_2d)
    error = (made.pose_2d - poses.pose_2d).norm(dim=-1).double().numpy() / person_size(pose)[:, None]
    assert 0.003 < np.median(error) < 0.06

def photographs(pose, skeleton, one_sequence=False):
    "2D poses without 3D: every sample a sequence of its own, or all of one that has no memory."
    n = len(pose)
    camera = Cameras(("photo",), torch.tensor([[1000., 1000., 500., 500.]]), torch.zeros(1, 5), torch.eye(3)[None], torch.zeros(1, 3), torch.tensor([[1000., 1000.]]))
    zero, count = torch.zeros(n, dtype=torch.int32), torch.arange(n)
    return PoseSet.create(name="photographs", skeleton=skeleton, pose_2d=pose, pose_3d=None, cameras=camera, camera_id=zero, subject=zero.clone(), action=zero.clone(), sequence=zero.clone() if one_sequence else count,
                          frame=count * 2 if one_sequence else zero.clone(), subject_names=("somebody",), action_names=("photo",), sequence_names=("all",) if one_sequence else tuple(map(str, range(n))), frame_rate=1.)

def test_photographs_share_no_memory(truth):
    pose = convert(truth.pose_2d[:1500:3].double().numpy(), H36M17, H36M17)
    for one_sequence in (False, True):
        poses = photographs(pose, H36M17, one_sequence)
        error = (detect(poses, "cpn-like").pose_2d - poses.pose_2d).clamp(-10, 10)
        assert abs(float((error[1:] * error[:-1]).mean() / (error**2).mean())) < 0.15

def test_empty_sets_and_single_samples(truth, found):
    nothing = detect(truth.select(torch.zeros(len(truth), dtype=torch.bool)), "wild-like")
    assert len(nothing) == 0 and nothing.pose_2d.shape == (0, 17, 2) and nothing.input_2d == "wild-like"
    one = detect(truth.select(torch.tensor([5])), "wild-like")
    assert len(one) == 1 and bool(torch.isfinite(one.pose_2d).all())

# ---------- refusals

def refused(call):
    with pytest.raises(InputError) as refusal: call()
    text = str(refusal.value)
    assert "\n" not in text and "expected" in text
    return text

def test_refusals(truth, found):
    assert all(name in refused(lambda: with_input(truth, "cpn")) for name in ("'cpn'", "gt", *DETECTORS))
    assert "cpn-like" in refused(lambda: detect(truth, "gt"))
    assert "'hrnet-like' already" in refused(lambda: detect(found["hrnet-like"], "cpn-like"))
    assert "'hrnet-like' already" in refused(lambda: with_input(found["hrnet-like"], "cpn-like"))
    assert "same samples" in refused(lambda: detection_statistics(found["cpn-like"], truth.select(torch.arange(5))))

@pytest.mark.parametrize("wrong", [dict(noise=-1.), dict(noise=float("nan")), dict(noise="much"), dict(noise=0.01, slow=1.5), dict(noise=0.01, slow_time=0.), dict(noise=0.01, hidden=0.)], ids=str)
def test_models_that_cannot_be(wrong): assert "'mine'" in refused(lambda: DetectorModel("mine", **wrong))

# ---------- loading

def test_every_source_loads_every_input(tmp_path):
    pack = make_pack(tmp_path / "cmu")
    exact = cmu.load("train", pack, subjects=[SUBJECT])
    for name in DETECTORS:
        poses = cmu.load("train", pack, name, subjects=[SUBJECT])
        assert poses.input_2d == name and same(poses, detect(exact, name)) and poses.fingerprint == cmu.load("train", pack, name, subjects=[SUBJECT]).fingerprint
        poses.check()
    assert cmu.load("train", pack, subjects=[SUBJECT]).fingerprint == exact.fingerprint and exact.settings["input_2d"] == "gt"

def test_the_embedded_set_and_hdm05_know_the_inputs(truth, found):
    assert same(synthetic.load("test", input_2d="wild-like", samples=40_000), found["wild-like"])
    for source in (cmu, hdm05, synthetic): assert "wild-like" in refused(lambda: source.load("test", input_2d="cpn"))

def test_a_damaged_cache_is_made_again(truth, found, tmp_path, monkeypatch):
    monkeypatch.setenv("POSEPROJECTS_CACHE", str(tmp_path))
    with_input(truth, "cpn-like")
    (file,) = tmp_path.glob("*.safetensors")
    assert "cpn-like" in file.name and " " not in file.name
    file.write_bytes(file.read_bytes()[:1000])
    assert same(with_input(truth, "cpn-like"), found["cpn-like"])

def test_the_pack_keeps_its_fingerprints(cmu_root):
    "Records carry them; a detector must not change what exact 2D is."
    poses = cmu.load("test", cmu_root)
    assert poses.fingerprint.startswith("1b2615f53afebea7") and len(poses) == 25831

# ---------- speed

def test_detecting_is_fast(truth):
    "Against the time of sorting as many numbers as there are coordinates, in the same process: no per-sample Python."
    def seconds(call):
        start = time.process_time(); call(); return time.process_time() - start
    many = flat(truth, 10., 50., people=40) # 20,000 samples
    numbers = np.random.default_rng(0).random(20_000 * 34)
    ratios = [seconds(lambda: detect(many, "wild-like")) / seconds(lambda: np.sort(numbers, kind="heapsort")) for _ in range(3)]
    assert min(ratios) < 20

def test_many_short_clips_are_fast():
    pose = 300 + 100 * np.random.default_rng(0).standard_normal((8000, 17, 2))
    poses = photographs(pose, H36M17)
    start = time.process_time(); detect(poses, "wild-like"); short = time.process_time() - start
    start = time.process_time(); np.sort(np.random.default_rng(0).random(8000 * 34 * 5), kind="heapsort"); reference = time.process_time() - start
    assert short < 10 * reference

def test_rank_correlation_is_that_of_ranks():
    x = np.random.default_rng(0).standard_normal(200)
    assert rank_correlation(x, np.exp(x)) == pytest.approx(1) and rank_correlation(x, -(x**3)) == pytest.approx(-1) and rank_correlation(x, np.zeros(200)) == 0
    from scipy.stats import spearmanr
    y = np.round(x + np.random.default_rng(1).standard_normal(200), 1)
    assert rank_correlation(x, y) == pytest.approx(spearmanr(x, y)[0])
