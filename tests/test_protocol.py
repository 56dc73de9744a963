"What every protocol changes in the number, the scorer against a slow one, and refusals."
import csv
import json
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from poseprojects.camera import Cameras, lcn_decode, lcn_encode
from poseprojects.metrics import mpjpe, n_mpjpe, root_align
from poseprojects.protocol import (CMU, CMU16, H36M_P1, H36M_P2, KUDO, LCN, LCN_P2, LCN_P2_ROTATION, LCN_ROOT_ALIGNED, MPI3DHP, POSEAUG_3DHP,
                                   POSEAUG_H36M, PROTOCOLS, RHODIN, XAS, XAS_BEST, XAS_HONEST, Exclusion, Scores, flip_average, kept_frames, repair_sides, score)
from poseprojects.skeleton import H36M16, H36M17, SKELETONS, convert, mirror
from poseprojects.storage import InputError, shared_data

ACTIONS = ("Walking", "Sitting", "Posing")
NOT_REAL = torch.tensor([1., 1., -1.], dtype=torch.float64)


def sample(seed=0, n=60, error=.05):
    "True absolute poses, root-relative predictions, action numbers of very unequal frequency."
    make = torch.Generator().manual_seed(seed)
    truth = .4 * torch.randn(n, 17, 3, generator=make, dtype=torch.float64) + torch.tensor([0., 0., 5.])
    pred = root_align(truth + error * torch.randn(n, 17, 3, generator=make, dtype=torch.float64))
    action = (torch.arange(n) % 10).clamp(max=2) # 10 %, 10 %, 80 %
    return pred, truth, action


def quick(pred, truth, protocol=CMU, action=None):
    "Score under a 17-joint protocol, or a 16-joint one after dropping the joint."
    skeleton = SKELETONS[protocol.skeleton]
    return score(convert(pred, H36M17, skeleton), convert(truth, H36M17, skeleton), protocol, skeleton, action, ACTIONS if action is not None else ())


# --- the scorer against a slow one ---------------------------------------------------------------------------------------

def slow(pred, truth, action, protocol):
    "Frame mean and action mean by loops over numpy numbers."
    by_action = {}
    for p, g, a in zip(pred.numpy(), truth.numpy(), action.tolist()):
        p, g = p - p[0], g - g[0]
        e = np.array([math.dist(x, y) for x, y in zip(p, g)])
        row = dict(mpjpe=1000 * e.mean(), pck150=100 * (e < .15).mean(), auc=100 * np.mean([(e < k * .005).mean() for k in range(31)]),
                   depth_flip=100. * (((p * [1, 1, -1] - g) ** 2).sum() < ((p - g) ** 2).sum()))
        by_action.setdefault(ACTIONS[a], []).append(row)
    mean = lambda rows: {key: np.mean([r[key] for r in rows]) for key in rows[0]}
    frame_mean = mean([row for rows in by_action.values() for row in rows])
    return frame_mean, mean([mean(rows) for rows in by_action.values()]), {name: mean(rows) for name, rows in by_action.items()}


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.floats(.01, .5))
def test_scores_are_the_slow_ones(seed, error):
    pred, truth, action = sample(seed, 30, error)
    found = score(pred, truth, H36M_P1, H36M17, action, ACTIONS)
    frame_mean, action_mean, per_action = slow(pred, truth, action, H36M_P1)
    for key, value in frame_mean.items():
        assert found["frame_mean"][key] == pytest.approx(value, abs=1e-9)
        assert found["action_mean"][key] == found[key] == pytest.approx(action_mean[key], abs=1e-9)
        for name in per_action: assert found["per_action"][name][key] == pytest.approx(per_action[name][key], abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 10**6))
def test_batches_do_not_matter(sizes, seed):
    pred, truth, action = sample(seed, sum(sizes))
    clip, frame = torch.arange(len(pred)) // 7, torch.arange(len(pred))
    whole = score(pred, truth, H36M_P1, H36M17, action, ACTIONS, clip=clip, frame=frame)
    scores = Scores(H36M_P1, H36M17, ACTIONS)
    for rows in torch.arange(len(pred)).split(sizes): scores.update(pred[rows], truth[rows], action[rows], clip[rows], frame[rows])
    parts = scores.result()
    assert parts["poses"] == len(pred)
    for key in ("mpjpe", "pa_mpjpe", "n_mpjpe", "pck150", "auc", "mpjve", "bone_length_error", "symmetry_error", "depth_flip"):
        assert parts[key] == (pytest.approx(whole[key], rel=1e-9) if whole[key] is not None else None)
    assert parts["per_joint"] == pytest.approx(whole["per_joint"], rel=1e-9)


def test_sums_of_two_processes_add_up():
    pred, truth, action = sample()
    halves = [Scores(H36M_P1, H36M17, ACTIONS) for _ in range(2)]
    for k, scores in enumerate(halves): scores.update(pred[k::2], truth[k::2], action[k::2])
    halves[0].sums += halves[1].sums
    assert halves[0].result()["mpjpe"] == pytest.approx(score(pred, truth, H36M_P1, H36M17, action, ACTIONS)["mpjpe"], rel=1e-12)


class NoWaiting(TorchDispatchMode):
    "Fails on every operation that would make the host wait for its device."
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name
        assert name not in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::is_nonzero", "aten::unique"), name
        if name in ("aten::index", "aten::index_put_"): assert not any(x is not None and x.dtype == torch.bool for x in args[1]), "boolean mask"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("protocol", [H36M_P1, LCN, KUDO, RHODIN.but("r", hypotheses="best-per-joint"), CMU.but("c", hypotheses="best")], ids=lambda p: p.id)
def test_a_batch_never_waits_for_the_device(protocol, monkeypatch):
    pred, truth, action = sample()
    if protocol.alignment == "none": pred = pred + truth[:, :1]
    if protocol.hypotheses != "confident": pred = torch.stack([pred, pred + .01], 1)
    scores = Scores(protocol, H36M17, ACTIONS)
    batch = pred.float(), truth.float(), action, torch.arange(60) // 20, torch.arange(60)
    scores.update(*batch) # makes the sums
    for quiet in ("tolist", "numpy", "cpu"): # these do not pass the dispatcher
        monkeypatch.setattr(torch.Tensor, quiet, lambda *a, **k: pytest.fail("read on the host"))
    with NoWaiting(): scores.update(*batch)
    with pytest.raises(AssertionError), NoWaiting(): bool(scores.sums[0] > 0) # the watch does notice
    with pytest.raises(pytest.fail.Exception): scores.result()
    monkeypatch.undo()
    assert scores.result()["poses"] == 120


def test_half_precision_predictions_and_empty_batches():
    pred, truth, action = sample()
    scores = Scores(H36M_P1, H36M17, ACTIONS)
    scores.update(pred[:0], truth[:0], action[:0])
    scores.update(pred.bfloat16(), truth.float(), action)
    assert scores.result()["poses"] == 60
    assert scores.result()["mpjpe"] == pytest.approx(score(pred, truth, H36M_P1, H36M17, action, ACTIONS)["mpjpe"], rel=.01)


def test_actions_without_poses_do_not_count():
    pred, truth, action = sample()
    with_more = score(pred, truth, H36M_P1, H36M17, action, (*ACTIONS, "Eating"))
    assert with_more["mpjpe"] == pytest.approx(score(pred, truth, H36M_P1, H36M17, action, ACTIONS)["mpjpe"])
    assert "Eating" not in with_more["per_action"]


def test_result_is_plain_json():
    pred, truth, action = sample()
    assert json.loads(json.dumps(score(pred, truth, LCN.but("x", alignment="root"), H36M17, action, ACTIONS)))["poses"] == 60
    assert json.loads(json.dumps(H36M_P1.to_dict()))["exclusions"][0]["camera"] == "54138969"


# --- what each choice changes -----------------------------------------------------------------------------------------------

def test_16_against_17_joints():
    "One bad neck_nose is in the 17-joint number and absent from the 16-joint one."
    _, truth, _ = sample()
    pred = root_align(truth.clone())
    pred[:, H36M17.index("neck_nose"), 0] += .170
    assert quick(pred, truth, CMU)["mpjpe"] == pytest.approx(170 / 17)
    assert quick(pred, truth, CMU16)["mpjpe"] == pytest.approx(0, abs=1e-9)
    assert quick(pred, truth, POSEAUG_H36M)["mpjpe"] == pytest.approx(0, abs=1e-9)
    some = CMU.but("14 joints", joints=tuple(j for j in H36M17.joints if j not in ("pelvis", "spine", "neck_nose")))
    pred[:, H36M17.index("head"), 0] += .140
    assert quick(pred, truth, some)["mpjpe"] == pytest.approx(140 / 14)
    assert list(quick(pred, truth, some)["per_joint"]) == list(some.joints)


def test_root_counted_or_not():
    pred, truth, _ = sample()
    counted, not_counted = quick(pred, truth), quick(pred, truth, CMU.but("x", root_counted=False))
    assert not_counted["mpjpe"] / counted["mpjpe"] == pytest.approx(17 / 16)
    assert not_counted["n_mpjpe"] / counted["n_mpjpe"] == pytest.approx(17 / 16)
    assert not_counted["pck150"] < counted["pck150"] or counted["pck150"] == 100
    # After a similarity fit the root has an error of its own, so the ratio is not 17/16.
    assert not_counted["pa_mpjpe"] / counted["pa_mpjpe"] != pytest.approx(17 / 16, abs=1e-3)


def test_action_mean_against_frame_mean():
    _, truth, action = sample()
    pred = root_align(truth.clone())
    pred[action == 1, 5, 1] += .17 # only the rare action is wrong, by 10 mm on average
    found = quick(pred, truth, H36M_P1, action)
    assert found["mpjpe"] == found["action_mean"]["mpjpe"] == pytest.approx(10 / 3)
    assert found["frame_mean"]["mpjpe"] == pytest.approx(10 * .1)
    assert quick(pred, truth, CMU, action)["mpjpe"] == pytest.approx(10 * .1)
    assert {name: row["poses"] for name, row in found["per_action"].items()} == dict(Walking=6, Sitting=6, Posing=48)


def test_reflections():
    _, truth, action = sample()
    mirrored = root_align(truth) * NOT_REAL
    rotation_only = quick(mirrored, truth, H36M_P2, action)
    assert "pa_mpjpe_reflected" not in rotation_only and rotation_only["pa_mpjpe"] > 50
    released = quick(mirrored + truth[:, :1], truth, LCN_P2, action)
    assert released[LCN_P2.headline] == pytest.approx(0, abs=1e-6)
    assert released["pa_mpjpe"] == pytest.approx(rotation_only["pa_mpjpe"]) == quick(mirrored + truth[:, :1], truth, LCN_P2_ROTATION, action)["pa_mpjpe"]
    assert rotation_only["depth_flip"] == 100


def test_no_protocol_but_the_lcn_release_lets_a_reflection_through():
    assert {p.id for p in PROTOCOLS.values() if p.reflection} == {"lcn-p1", "lcn-p2"}
    assert {p.id for p in PROTOCOLS.values() if p.headline == "pa_mpjpe_reflected"} == {"lcn-p2"}


def test_no_root_alignment():
    pred, truth, action = sample(error=0)
    shifted = truth + torch.tensor([.03, 0., .04])
    assert quick(shifted, truth, LCN, action)["mpjpe"] == pytest.approx(50)
    assert quick(shifted, truth, LCN, action)["per_joint"]["pelvis"] == pytest.approx(50)
    assert quick(shifted, truth, LCN_ROOT_ALIGNED, action)["mpjpe"] == pytest.approx(0, abs=1e-9)
    assert quick(shifted, truth, H36M_P1, action)["mpjpe"] == pytest.approx(0, abs=1e-9)


def test_a_wrong_root_alone():
    "Absolute scoring charges the root once; root alignment charges every other joint for it."
    _, truth, action = sample()
    pred = truth.clone()
    pred[:, 0, 2] += .017
    assert quick(pred, truth, LCN, action)["mpjpe"] == pytest.approx(1)
    assert quick(pred, truth, LCN_ROOT_ALIGNED, action)["mpjpe"] == pytest.approx(16)


def test_lcn_through_back_projection():
    "Depth errors in the image space become metres through the true box and the true root depth."
    _, truth, action = sample()
    truth = .3 * root_align(truth) + torch.tensor([.2, .1, 4.])
    numbers = [[[1145., 1144, 512, 508]], [[0.] * 5], torch.eye(3)[None].tolist(), [[0.] * 3], [[1000., 1002]]]
    camera = Cameras(("a",), *(torch.tensor(x, dtype=torch.float64) for x in numbers))
    cameras = camera[torch.zeros(len(truth), dtype=torch.long)]
    image, box, depth = lcn_encode(truth, cameras)
    assert quick(lcn_decode(image, box, depth, cameras), truth, LCN, action)["mpjpe"] == pytest.approx(0, abs=1e-6)
    wrong = image.clone()
    wrong[..., 2] += .05 * (1145 / 4. + .5) # 50 mm: r = fx/Z + 1/2000 per mm
    found = quick(lcn_decode(wrong, box, depth, cameras), truth, LCN, action)
    assert 50 <= found["mpjpe"] < 52 and 50 <= found["per_joint"]["pelvis"] < 52 # along the ray, so a little over 50
    assert quick(lcn_decode(wrong, box, depth, cameras), truth, LCN_ROOT_ALIGNED, action)["mpjpe"] < 15


def test_only_the_truth_centred():
    "Kudo's error is not freed from a drifting hip; the usual one is."
    _, truth, action = sample()
    drift = root_align(truth) + torch.tensor([0., 0., .05])
    plain = KUDO.but("x", scale_oracle="none")
    assert quick(drift, truth, plain, action)["mpjpe"] == pytest.approx(50)
    assert quick(drift, truth, H36M_P1, action)["mpjpe"] == pytest.approx(0, abs=1e-9)


def test_the_head_oracle_knows_the_top_of_a_head():
    "MPI-INF-3DHP calls the same point head_top; a joint set without a head is refused by name."
    own = MPI3DHP.but("x", headline="mpjpe", scale_oracle="head-root")
    truth = torch.randn(5, 17, 3, dtype=torch.float64)
    assert score(truth * 0.3, truth, own, SKELETONS["mpi3dhp17"])["mpjpe"] == pytest.approx(0, abs=1e-6)
    with pytest.raises(InputError, match="smpl24 has no head"): CMU.but("x", skeleton="smpl24", scale_oracle="head-root")

def test_scale_oracles():
    pred, truth, action = sample()
    small = root_align(truth) * .8
    assert quick(small, truth, CMU)["mpjpe"] > 50
    for oracle in ("per-pose", "in-plane", "head-root"):
        assert quick(small, truth, CMU.but("x", scale_oracle=oracle))["mpjpe"] == pytest.approx(0, abs=1e-6)
    assert quick(pred, truth, CMU.but("x", scale_oracle="per-pose"))["mpjpe"] == pytest.approx(1000 * n_mpjpe(pred, root_align(truth)).mean().item())
    assert quick(7 * pred, truth, KUDO, action)["mpjpe"] == pytest.approx(quick(pred, truth, KUDO, action)["mpjpe"])


def test_kudo_by_its_own_formula():
    "x, y of the normalised input, predicted z; error times the true in-plane size, in mm."
    pred, truth, action = sample()
    normalise = lambda x: x / (x[:, 1:, :2].norm(dim=-1).mean(1)[:, None, None])
    p, g = normalise(root_align(pred)), root_align(truth)
    p[..., 2] += .1 # a hip that drifts
    size = g[:, 1:, :2].norm(dim=-1).mean(1)
    expected = 1000 * ((p - g / size[:, None, None]).norm(dim=-1).mean(1) * size)
    expected = torch.stack([expected[action == a].mean() for a in range(3)]).mean()
    assert quick(p, truth, KUDO, action)["mpjpe"] == pytest.approx(expected.item())


def test_rhodin_by_its_own_formula():
    pred, truth, _ = sample()
    expected = 17 / 16 * 1000 * n_mpjpe(pred, root_align(truth)).mean().item()
    assert quick(pred, truth, RHODIN)["n_mpjpe"] == pytest.approx(expected)
    assert quick(pred, truth, RHODIN)["mpjpe"] == pytest.approx(17 / 16 * 1000 * mpjpe(pred, root_align(truth)).mean().item()) # the plain figure stays plain


def test_in_plane_oracle_with_a_collapsed_prediction_is_finite():
    _, truth, action = sample()
    assert math.isfinite(quick(torch.zeros_like(truth), truth, KUDO, action)["mpjpe"])


def test_hypotheses():
    _, truth, _ = sample()
    right = root_align(truth)
    half = torch.arange(17) < 9
    first = torch.where(half[:, None], right, right + .1)
    second = torch.where(half[:, None], right + .2, right)
    second[:, 0] = right[:, 0]
    both = torch.stack([second, first], 1)
    rules = {rule: quick_h(both, truth, rule) for rule in ("confident", "best", "best-per-joint")}
    assert rules["best-per-joint"] == pytest.approx(0, abs=1e-9)
    assert rules["best"] == pytest.approx(1000 * mpjpe(first, right).mean().item())
    assert rules["confident"] == pytest.approx(1000 * mpjpe(second, right).mean().item())
    surest = torch.tensor([[.1, .9]]).expand(len(truth), 2)
    assert quick_h(both, truth, "confident", score=surest) == pytest.approx(rules["best"])


def quick_h(pred, truth, rule, **more):
    return score(pred, truth, CMU.but(rule, hypotheses=rule), H36M17, **more)["mpjpe"]


def test_one_hypothesis_is_the_same_with_and_without_its_axis():
    pred, truth, _ = sample()
    assert quick_h(pred[:, None], truth, "best") == pytest.approx(quick(pred, truth)["mpjpe"])


def test_pck_and_auc_of_3dhp():
    truth = root_align(sample()[1])
    pred = truth.clone()
    pred[:, 1:9, 0] += .150 # exactly at the threshold: wrong
    pred[:, 9:, 0] += .0124 # passes 28 of 31 thresholds
    skeleton = SKELETONS[MPI3DHP.skeleton]
    pred, truth = (x - x[:, skeleton.root:skeleton.root + 1] for x in (pred, truth))
    errors = (pred - truth).norm(dim=-1)
    found = score(pred + 3, truth + 3, MPI3DHP, skeleton)
    assert MPI3DHP.headline == "pck150" and not MPI3DHP.action_mean
    assert found["pck150"] == pytest.approx(100 * (errors < .15).double().mean().item())
    assert found["auc"] == pytest.approx(100 * torch.stack([(errors < k * .005).double().mean() for k in range(31)]).mean().item(), abs=1e-6)
    perfect = score(truth, truth, MPI3DHP, skeleton)
    assert perfect["pck150"] == 100 and perfect["auc"] == pytest.approx(96.774, abs=1e-3)


# --- flips and repairs ----------------------------------------------------------------------------------------------------------

def test_flip_average_halves_a_one_sided_error():
    truth = root_align(sample()[1])
    def lifter(pose_2d):
        "The truth for either image, with the left wrist always 100 mm to the right."
        plain = torch.allclose(pose_2d, truth[..., :2])
        answer = (truth if plain else mirror(truth, H36M17)).clone()
        answer[:, H36M17.index("left_wrist"), 0] += .1
        return answer
    joints = score(flip_average(lifter, truth[..., :2], H36M17), truth, CMU, H36M17)["per_joint"]
    assert joints["left_wrist"] == pytest.approx(50) and joints["right_wrist"] == pytest.approx(50)
    plain = score(lifter(truth[..., :2]), truth, CMU, H36M17)["per_joint"]
    assert plain["left_wrist"] == pytest.approx(100) and plain["right_wrist"] == 0


@pytest.mark.parametrize("center", [0., 500., torch.linspace(400, 600, 60, dtype=torch.float64)])
def test_flip_average_is_symmetric(center):
    "Averaged predictions of a mirrored image are the mirrored averaged predictions, for any lifter and any image centre."
    make = torch.Generator().manual_seed(0)
    weight = torch.randn(34, 51, generator=make, dtype=torch.float64)
    lifter = lambda x: torch.tanh(x.flatten(1) @ weight / 1000).view(-1, 17, 3)
    pose_2d = 1000 * torch.rand(60, 17, 2, generator=make, dtype=torch.float64)
    middle = torch.zeros(60, 1, 2, dtype=torch.float64)
    middle[..., 0] = center if not torch.is_tensor(center) else center[:, None]
    flipped = mirror(pose_2d - middle, H36M17) + middle
    a, b = (flip_average(lifter, x, H36M17, center) for x in (pose_2d, flipped))
    assert torch.allclose(mirror(a, H36M17), b)
    assert not torch.allclose(lifter(pose_2d), a)


def test_flip_average_keeps_the_axis_of_hypotheses():
    lifter = lambda x: torch.cat([x, x[..., :1]], -1)[:, None].expand(-1, 3, -1, -1)
    assert flip_average(lifter, torch.randn(2, 17, 2), H36M17).shape == (2, 3, 17, 3)


def test_repair_sides_is_an_oracle():
    truth = root_align(sample()[1])
    crossed = truth[:, list(H36M17.mirror)]
    assert mpjpe(crossed, truth).mean() > .1
    assert torch.equal(repair_sides(crossed, crossed[..., :2], truth[..., :2], H36M17), truth)
    one = truth.clone()
    one[:, 13] = truth[:, 16] # both wrists predicted at the right one: either partner may take it
    assert torch.equal(repair_sides(one, one[..., :2], truth[..., :2], H36M17), one)


# --- velocity -----------------------------------------------------------------------------------------------------------------------

@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 25), st.integers(1, 3))
def test_velocity_by_a_loop(seed, size, step):
    pred, truth, action = sample(seed)
    make = torch.Generator().manual_seed(seed)
    clip = torch.randint(0, 2, (60,), generator=make).cumsum(0) // 4
    frame = (torch.randint(1, 4, (60,), generator=make) * step).cumsum(0)
    scores = Scores(CMU, H36M17, frame_step=step)
    for rows in torch.arange(60).split(size): scores.update(pred[rows], truth[rows], clip=clip[rows], frame=frame[rows])
    p, g = root_align(pred), root_align(truth)
    steps = [mpjpe(p[k] - p[k - 1], g[k] - g[k - 1]).item() for k in range(1, 60) if clip[k] == clip[k - 1] and frame[k] - frame[k - 1] == step]
    found = scores.result()["mpjve"]
    assert found == (pytest.approx(1000 * np.mean(steps), rel=1e-9) if steps else None)


def test_velocity_without_frame_numbers_trusts_the_clips():
    pred, truth, _ = sample()
    found = score(pred, truth, CMU, H36M17, clip=torch.zeros(60, dtype=torch.long))["mpjve"]
    assert found == pytest.approx(1000 * (pred.diff(dim=0) - root_align(truth).diff(dim=0)).norm(dim=-1).mean().item())
    assert quick(pred, truth)["mpjve"] is None


# --- frames and exclusions -----------------------------------------------------------------------------------------------------------

def test_missing_clip_of_detected_2d():
    frames = torch.arange(6)
    clip = dict(subject="S11", sequence="Directions", camera="54138969")
    assert kept_frames(H36M_P1, frames, **clip).all()
    assert not kept_frames(H36M_P1, frames, **clip, input_2d="sh").any()
    for other in (dict(subject="S9"), dict(sequence="Directions 1"), dict(camera="55011271")):
        assert kept_frames(H36M_P1, frames, **{**clip, **other}, input_2d="sh").all()
    assert not kept_frames(POSEAUG_H36M, frames, **{**clip, "camera": "55011271"}).any()


def test_frame_rules_work_on_numpy_too():
    frames = np.arange(20)
    assert frames[kept_frames(KUDO, frames, "S9", "Walking", "a")].tolist() == [0, 5, 10, 15]
    assert frames[kept_frames(CMU, frames, "16", "16_15")].tolist() == [3, 5, 7, 9, 11, 13, 15, 17, 19]


@pytest.mark.parametrize("first, last, kept", [(3, 5, [0, 1, 2, 6, 7]), (None, 5, [6, 7]), (3, None, [0, 1, 2]), (None, None, [])])
def test_exclusions_hold_both_ends(first, last, kept):
    one = CMU.but("x", frames=1, first_frame=0, exclusions=(Exclusion(sequence="a", first=first, last=last),))
    frames = torch.arange(8)
    assert frames[kept_frames(one, frames, sequence="a")].tolist() == kept
    assert kept_frames(one, frames, sequence="b").all()


def test_cmu_frame_counts_are_those_of_the_protocol_page():
    root = shared_data("cmu")
    if root is None: pytest.skip("no cmu folder in the shared data")
    counted = {}
    for row in csv.DictReader(open(root / "trials.csv", encoding="utf-8")):
        frames = torch.arange(1, int(row["frames"]) + 1)
        kept = kept_frames(CMU, frames, row["subject"], row["file"].split("/")[-1].removesuffix(".amc"))
        counted[row["subject"]] = counted.get(row["subject"], 0) + int(kept.sum())
    page = (root / "PROTOCOL.md").read_text(encoding="utf-8")
    stated = {subject: int(frames) for subject, frames in re.findall(r"\| (\d+) \| (?:training|test) \| (\d+) \|", page)}
    assert stated and {subject: counted[subject] for subject in stated} == stated
    assert {s for s, part in re.findall(r"\| (\d+) \| (training|test) \|", page) if part == "test"} == set(CMU.subjects)


# --- what a protocol says about itself --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=lambda p: p.id)
def test_every_protocol_is_one_line_and_scores_its_skeleton(protocol):
    line = str(protocol)
    assert "\n" not in line and line.startswith(f"{protocol.id} [{protocol.headline}]: ")
    assert (protocol.scale_oracle != "none" or protocol.side_repair or "best" in protocol.hypotheses) == ("ORACLE" in line)
    skeleton = SKELETONS[protocol.skeleton]
    assert protocol.root in skeleton.joints
    truth = .3 * torch.randn(9, skeleton.num_joints, 3, generator=torch.Generator().manual_seed(0)) + 2
    found = score(truth + .01, truth, protocol, skeleton, torch.arange(9) % 3, ACTIONS)
    assert math.isfinite(found[protocol.headline])


def test_selection_on_test_is_said():
    for protocol in (POSEAUG_H36M, POSEAUG_3DHP): assert "best-on-test" in str(protocol)
    assert POSEAUG_3DHP.flip_tta and not POSEAUG_H36M.flip_tta and "flip averaging" in str(POSEAUG_3DHP)
    assert XAS.side_repair and not XAS_HONEST.side_repair and XAS_BEST.hypotheses == "best"


def test_world_axes_have_no_depth_flip():
    _, truth, action = sample()
    assert score(truth, truth, CMU.but("x", axes="world"), H36M17)["depth_flip"] is None


def test_protocols_are_values():
    assert H36M_P1 == H36M_P2.but("h36m-p1", headline="mpjpe") and hash(H36M_P1) == hash(H36M_P1.but("h36m-p1"))
    assert H36M_P1 != H36M_P1.but("h36m-p1", action_mean=False)
    with pytest.raises(AttributeError): H36M_P1.root_counted = False


# --- refusals ---------------------------------------------------------------------------------------------------------------------------

def poisoned(what, value):
    pred, truth, action = sample()
    (pred if what == "pred" else truth)[7, 3, 1] = value
    return pred, truth


REFUSALS = {
    "skeleton": (lambda: Scores(POSEAUG_H36M, H36M17), "scores h36m16 poses, but the predictions are h36m17"),
    "joints": (lambda: score(torch.ones(4, 16, 3), torch.ones(4, 16, 3), CMU, H36M17), r"shape \(4, 16, 3\); expected \(poses, 17, 3\)"),
    "2d": (lambda: score(torch.ones(4, 17, 2), torch.ones(4, 17, 3), CMU, H36M17), r"shape \(4, 17, 2\)"),
    "flat": (lambda: score(torch.ones(4, 51), torch.ones(4, 17, 3), CMU, H36M17), r"shape \(4, 51\)"),
    "truth": (lambda: score(torch.ones(4, 17, 3), torch.ones(5, 17, 3), CMU, H36M17), r"truth has the shape \(5, 17, 3\); expected \(4, 17, 3\)"),
    "no names": (lambda: Scores(H36M_P1, H36M17), "no action names"),
    "no actions": (lambda: Scores(H36M_P1, H36M17, ACTIONS).update(torch.ones(4, 17, 3), torch.ones(4, 17, 3)), "needs the action number"),
    "action shape": (lambda: quick(*sample()[:2], H36M_P1, torch.zeros(3, dtype=torch.long)), "one number per pose"),
    "action range": (lambda: quick(*sample()[:2], H36M_P1, torch.full((60,), 3)), "60 of 60 poses have an action number outside 0 to 2"),
    "action negative": (lambda: quick(*sample()[:2], H36M_P1, torch.full((60,), -1)), "outside 0 to 2"),
    "nan": (lambda: quick(*poisoned("pred", math.nan)), "1 of 60 predictions hold a value that is not finite"),
    "infinite": (lambda: quick(*poisoned("pred", math.inf)), "1 of 60 predictions"),
    "nan truth": (lambda: quick(*poisoned("truth", math.nan)), "1 of 60 true poses"),
    "millimetres": (lambda: quick(1000 * sample()[0], 1000 * sample()[1]), "give metres"),
    "kilometres": (lambda: quick(sample()[0] / 1000, sample()[1] / 1000), "give metres"),
    "relative": (lambda: quick(sample()[0], sample()[1], LCN, sample()[2]), "the predictions are root-relative"),
    "relative truth": (lambda: quick(sample()[1], root_align(sample()[1]), LCN, sample()[2]), "the true poses are root-relative"),
    "nothing": (lambda: Scores(CMU, H36M17).result(), "nothing was scored"),
    "alignment": (lambda: CMU.but("x", alignment="procrustes"), "alignment is 'procrustes'; it must be one of 'root', 'target', 'none'"),
    "oracle": (lambda: CMU.but("x", scale_oracle="best"), "scale_oracle"),
    "selection": (lambda: CMU.but("x", selection="best"), "selection"),
    "headline": (lambda: CMU.but("x", headline="accuracy"), "headline"),
    "frames": (lambda: CMU.but("x", frames=0), "frames is 0"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusal_is_one_clear_sentence(case):
    attempt, words = REFUSALS[case]
    with pytest.raises(InputError, match=words) as refusal: attempt()
    message = str(refusal.value)
    assert "\n" not in message and message.startswith("protocol ") and not message.endswith(".")


def test_one_bad_prediction_among_hypotheses_is_refused():
    pred, truth, _ = sample()
    three = pred[:, None].repeat(1, 3, 1, 1)
    three[5, 2, 0, 0] = math.nan # not even the one that is scored
    with pytest.raises(InputError, match="1 of 60"): score(three, truth, CMU, H36M17)


def test_missing_joint_is_named():
    with pytest.raises(ValueError, match="nose_tip"): Scores(CMU.but("x", joints=("nose_tip",)), H36M17)
