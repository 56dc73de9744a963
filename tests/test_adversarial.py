"What methods with a discriminator or without 3D share: adversarial losses, left-out steps, the pool, turning, 2D scales, the nearest pose."
import copy
import math

import pytest
import torch
from torch import nn

from conftest import refused, some
from poseprojects.metrics import facing_sine
from poseprojects.papers.adversarial import Pool, fool_loss, frozen, gradient_penalty, judge_loss, judged, skip_unless
from poseprojects.papers.lifters import H36M15, JOINT_SETS, LifterConfig, in_joints, joint_maps, scoring as scoring_of_lifters
from poseprojects.camera import mean_distance
from poseprojects.papers.monocular2d import Diary, Reading, baselines, facing, head_root, scoring
from poseprojects.papers.turning import azimuth, elevation, orthographic, perspective, random_view, roll, turned
from poseprojects.protocol import CMU, MPI3DHP
from poseprojects.skeleton import COCO17, H36M17, MPII16, convert
from poseprojects.train.engine import Batch
from poseprojects.train.evaluation import MeanPose, NearestPose, evaluate
from poseprojects.train.parallel import Shard
from poseprojects.train.schedules import Clock

pytestmark = pytest.mark.usefixtures("one_thread")

# ---------------------------------------------------------------- losses

def test_losses_are_those_of_the_formulas():
    real, fake = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    sigmoid = lambda x: 1 / (1 + torch.exp(-x))
    assert torch.allclose(judge_loss(real, fake), -(sigmoid(real).log().mean() + (1 - sigmoid(fake)).log().mean()))
    assert torch.allclose(fool_loss(fake), -sigmoid(fake).log().mean())
    assert torch.allclose(judge_loss(real, fake, "least-squares"), sum((r - 1) ** 2 + f ** 2 for r, f in zip(real.flatten(), fake.flatten())) / 42)
    assert torch.allclose(fool_loss(fake, "least-squares"), sum((f - 1) ** 2 for f in fake.flatten()) / 42)

def test_large_scores_stay_numbers():
    huge = torch.tensor([1e4, -1e4], requires_grad=True)
    loss = judge_loss(huge, huge) + fool_loss(huge)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(huge.grad).all()

def test_accuracy_counts_a_score_of_zero_as_fake():
    assert judged(torch.tensor([0., 1., -1., 2.]), torch.tensor([0., 1.])) == (0.5 + 0.5) / 2
    assert judged(torch.tensor([.6, .4]), torch.tensor([.6, .4]), threshold=.5) == 0.5 and judged(torch.tensor([.6]), torch.tensor([.4]), threshold=.5) == 1

def test_an_unknown_loss_is_refused(): assert "wasserstein" in refused(judge_loss, torch.zeros(1), torch.zeros(1), "wasserstein") and "hinge" in refused(fool_loss, torch.zeros(1), "hinge")

def test_gradient_penalty_of_known_slopes():
    real, fake, mix = torch.randn(6, 5, 2, dtype=torch.float64), torch.randn(6, 5, 2, dtype=torch.float64), torch.rand(6, 1, dtype=torch.float64)
    points = [m * r + (1 - m) * f for m, r, f in zip(mix.flatten(), real, fake)]
    wanted = sum((2 * p.norm() - 1) ** 2 for p in points) / 6 # the slope of |x|² is 2x
    assert torch.allclose(gradient_penalty(lambda x: x.square().sum((1, 2)), real, fake, mix), wanted)

def test_gradient_penalty_reaches_the_judge_and_not_the_fakes():
    judge, fake = nn.Sequential(nn.Linear(4, 8), nn.Softplus(), nn.Linear(8, 1)), torch.randn(3, 4, requires_grad=True)
    gradient_penalty(judge, torch.randn(3, 4), fake, torch.rand(3, 1)).backward()
    assert fake.grad is None and judge[0].weight.grad.abs().sum() > 0

def test_frozen_restores_what_was_frozen_before():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.bias.requires_grad_(False)
    with pytest.raises(KeyError):
        with frozen(first, second):
            assert not any(p.requires_grad for n in (first, second) for p in n.parameters())
            raise KeyError
    assert first.weight.requires_grad and first.bias.requires_grad and second.weight.requires_grad and not second.bias.requires_grad

# ---------------------------------------------------------------- steps that are left out

def _trained(conditions, left_out):
    "Weights and state after steps; where the condition is false the step is switched off, or simply not called."
    torch.manual_seed(0)
    network = nn.Linear(4, 3)
    adam = torch.optim.Adam(network.parameters(), 1e-2, betas=(0.5, 0.999), weight_decay=1e-2, fused=True)
    for k, wanted in enumerate(conditions):
        adam.zero_grad(set_to_none=True)
        (network(torch.full((2, 4), k + 1.)) - k).square().sum().backward()
        if left_out: skip_unless(adam, torch.tensor(wanted)); adam.step()
        elif wanted: adam.step()
    return network, adam

def test_a_step_that_is_left_out_leaves_no_trace():
    conditions = [True, False, True, False, False, True, False]
    (a, adam), (b, plain) = _trained(conditions, True), _trained(conditions, False)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))
    for p, q in zip(a.parameters(), b.parameters()):
        assert adam.state[p]["step"] == 3 and all(torch.equal(adam.state[p][n], plain.state[q][n]) for n in ("step", "exp_avg", "exp_avg_sq"))
    assert "found_inf" not in adam.state_dict()

def test_a_first_step_can_be_left_out():
    network, adam = _trained([False], True)
    assert adam.state[network.weight]["step"] == 0 and not adam.state[network.weight]["exp_avg"].any()

def test_an_optimiser_without_the_switch_is_refused():
    parameters = [nn.Parameter(torch.ones(2))]
    for other in (torch.optim.Adam(parameters, 1e-3), torch.optim.SGD(parameters, 1e-3)): assert "fused=True" in refused(skip_unless, other, torch.tensor(True))

# ---------------------------------------------------------------- the pool

class SlowPool:
    "One sample after the other, as the release's pool does it."
    def __init__(self, capacity): self.capacity, self.kept = capacity, []

    def __call__(self, samples, draws):
        given = []
        for sample, (exchange, place) in zip(samples, draws.tolist()):
            if len(self.kept) < self.capacity: self.kept.append(sample); given.append(sample)
            elif exchange < 0.5:
                k = int(place * self.capacity)
                given.append(self.kept[k]); self.kept[k] = sample
            else: given.append(sample)
        return torch.stack(given)

@pytest.mark.parametrize("capacity, batch", [(5, 3), (5, 5), (3, 8), (7, 4), (64, 16), (1, 6)])
def test_a_batch_at_once_is_one_after_the_other(capacity, batch):
    torch.manual_seed(capacity)
    fast, slow = Pool(capacity, 2, 3), SlowPool(capacity)
    for _ in range(20):
        samples, draws = torch.randn(batch, 2, 3), torch.rand(batch, 2)
        assert torch.equal(fast(samples, draws), slow(samples, draws))
        assert int(fast.count) == len(slow.kept) and torch.equal(fast.kept[:len(slow.kept)], torch.stack(slow.kept))

def test_half_of_the_fakes_are_former_ones():
    pool, newest = Pool(256, 1), 0.
    for k in range(40):
        given = pool(torch.full((256, 1), float(k)), torch.rand(256, 2))
        if k: newest += float((given == k).float().mean()) / 39
    assert abs(newest - 0.5 - 0.5 * 0.21) < 0.03 # of those exchanged, about a fifth meet a place that this batch has just written

def test_a_pool_goes_on_from_a_checkpoint():
    pool = Pool(8, 2)
    for _ in range(3): pool(torch.randn(5, 2), torch.rand(5, 2))
    other = Pool(8, 2)
    other.load_state_dict(copy.deepcopy(pool.state_dict()))
    samples, draws = torch.randn(5, 2), torch.rand(5, 2)
    assert torch.equal(pool(samples, draws), other(samples, draws)) and torch.equal(pool.kept, other.kept)

def test_processes_keep_the_pool_of_one(monkeypatch):
    torch.manual_seed(0)
    alone, parts = Pool(6, 2), [Pool(6, 2) for _ in range(2)]
    for _ in range(8):
        samples, draws = torch.randn(8, 2), torch.rand(8, 2)
        monkeypatch.setattr(Shard, "gathered", lambda self, x: (samples if x.shape == (4, 2) and torch.equal(x, samples[self.rows(8)]) else draws).unflatten(0, (2, 4)))
        shards = [Shard(rank, 2) for rank in range(2)]
        found = [pool(samples[s.rows(8)], draws[s.rows(8)], s) for pool, s in zip(parts, shards)]
        monkeypatch.undo()
        assert torch.equal(torch.cat(found), alone(samples, draws)) and all(torch.equal(p.kept, alone.kept) for p in parts)

def test_a_pool_refuses_other_shapes():
    assert "pool" in refused(Pool, 0, 3)
    assert "(2, 3)" in refused(Pool(4, 5), torch.zeros(2, 3), torch.zeros(2, 2)) and "(2, 1)" in refused(Pool(4, 3), torch.zeros(2, 3), torch.zeros(2, 1))

def test_no_gradient_goes_through_a_pool(): assert not Pool(2, 3)(torch.randn(4, 3, requires_grad=True), torch.rand(4, 2)).requires_grad

# ---------------------------------------------------------------- turning

def test_rotations_are_the_matrices_of_the_textbook():
    a = torch.tensor([0.7, -2.9, 0., 3.1], dtype=torch.float64)
    c, s, o, i = a.cos(), a.sin(), torch.zeros_like(a), torch.ones_like(a)
    matrix = lambda *rows: torch.stack([torch.stack(row, -1) for row in rows], -2)
    assert torch.allclose(azimuth(a), matrix((c, o, s), (o, i, o), (-s, o, c)))
    assert torch.allclose(elevation(a), matrix((i, o, o), (o, c, -s), (o, s, c)))
    assert torch.allclose(roll(a), matrix((c, -s, o), (s, c, o), (o, o, i)))

def test_azimuth_leaves_every_y_and_elevation_every_x():
    pose, angle = torch.randn(9, 17, 3), torch.rand(9) * 7 - 3
    about = pose[:, :1]
    assert torch.allclose(turned(pose, azimuth(angle), about)[..., 1], pose[..., 1], atol=1e-6)
    assert torch.allclose(turned(pose, elevation(angle), about)[..., 0], pose[..., 0], atol=1e-6)
    assert torch.allclose(turned(pose, roll(angle), about)[..., 2], pose[..., 2], atol=1e-6)

def test_a_turn_and_its_inverse_are_nothing():
    pose, view = torch.randn(50, 17, 3), random_view(torch.rand(50, 3), elevation_range=(-1., 1.), roll_range=(-.5, .5))
    about = torch.tensor([[[0.3, -0.2, 10.]]])
    assert torch.allclose(turned(turned(pose, view, about), view.mT, about), pose, atol=1e-5)
    assert torch.allclose(turned(about.expand(50, 1, 3), view, about), about.expand(50, 1, 3), atol=1e-6)
    assert torch.allclose((turned(pose, view)[:, 0] - turned(pose, view)[:, 1]).norm(dim=-1), (pose[:, 0] - pose[:, 1]).norm(dim=-1), atol=1e-5)

def test_azimuth_comes_first():
    draws = torch.rand(6, 3)
    view = random_view(draws, (-1., 2.), (-.4, .4), (.1, .2))
    assert torch.allclose(view, roll(.1 + .1 * draws[:, 2]) @ elevation(-.4 + .8 * draws[:, 1]) @ azimuth(-1 + 3 * draws[:, 0]), atol=1e-6)

def test_views_spread_evenly_over_their_range():
    draws = torch.rand(20000, 3)
    angles = torch.atan2(*random_view(draws)[:, 0, [2, 0]].unbind(1))
    counts = torch.histc(angles, 10, -math.pi, math.pi)
    assert counts.min() > 1800 and counts.max() < 2200

def test_the_angle_of_a_view_can_be_learnt_from_zero():
    angle = torch.zeros(1, requires_grad=True)
    turned(torch.tensor([[[0., 0., 1.]]]), azimuth(angle))[0, 0, 0].backward()
    assert torch.allclose(angle.grad, torch.ones(1))

def test_projections():
    pose = torch.tensor([[[1., -2., 4.], [3., 6., 2.]]])
    assert torch.equal(orthographic(pose), pose[..., :2]) and torch.equal(perspective(pose), torch.tensor([[[.25, -.5], [1.5, 3.]]]))

def test_wrong_draws_are_refused():
    assert "(4, 2)" in refused(random_view, torch.rand(4, 2)) and "(4, 1)" in refused(azimuth, torch.rand(4, 1))

# ---------------------------------------------------------------- 2D alone

def test_joint_sets_by_name():
    assert [len(JOINT_SETS[n].joints) for n in (15, 16, 17)] == [15, 16, 17] and not {"spine", "neck_nose"} & set(H36M15.joints)
    assert set(H36M15.joints) - {"thorax", "head"} <= set(MPII16.joints) # those two are its mid_shoulders and head_top
    inwards, outwards = joint_maps(H36M17, 15)
    pose = torch.randn(4, 17, 3)
    back, made = outwards(inwards(pose)), [H36M17.index(n) for n in ("spine", "neck_nose")]
    copied = [j for j in range(17) if j not in made]
    assert torch.equal(back[:, copied], pose[:, copied]) and torch.allclose(back[:, made[0]], (pose[:, 0] + pose[:, 8]) / 2) and torch.allclose(back[:, made[1]], (pose[:, 8] + pose[:, 10]) / 2)
    assert "14" in refused(joint_maps, H36M17, 14)

def test_supervised_lifters_are_scored_as_before():
    assert [p.id for c in (LifterConfig(), LifterConfig(flip_test=True), LifterConfig(joints=17), LifterConfig(joints=17, flip_test=True)) for p in scoring_of_lifters(CMU, c)] == ["cmu-16", "cmu-16-flip", "cmu", "cmu-flip"]
    assert in_joints(CMU, 15).joints == H36M15.joints and in_joints(CMU, 15).skeleton == "h36m17" and in_joints(MPI3DHP, 15) is MPI3DHP

class Joints:
    joints = 15

def test_fifteen_joints_are_the_fifteen_that_are_scored(test):
    class Off(nn.Module):
        def predict(self, batch):
            pose = batch.target.clone()
            pose[:, [H36M17.index("spine"), H36M17.index("neck_nose")]] += 1.
            return pose[:, None]
    from poseprojects.data import synthetic
    few, protocol = test.select(torch.arange(0, len(test), 100)), scoring(synthetic.PROTOCOL, Joints)[0]
    scores = evaluate(Off(), few, protocol)
    assert protocol.headline == "pa_mpjpe" and protocol.id.endswith("-15") and scores["mpjpe"] == pytest.approx(0, abs=1e-3) and len(scores["per_joint"]) == 15

@pytest.mark.parametrize("scale, unit", [("mean-distance", 1.), ("head-root", 0.1), ("head-root-mean", 0.1)])
@pytest.mark.parametrize("joints", [15, 16, 17])
def test_scales(train, scale, unit, joints):
    reading = Reading.from_data(train, joints, scale, unit)
    seen = reading(train.pose_2d)
    inner = joint_maps(train.skeleton, joints)[0](train.pose_2d)
    assert seen.shape == (len(train), joints, 2) and not seen[:, 0].any()
    assert torch.allclose(seen * reading.size(train.pose_2d)[:, None, None], inner - inner[:, :1], atol=1e-3)
    length = mean_distance(seen) if scale == "mean-distance" else head_root(seen, JOINT_SETS[joints])
    assert torch.allclose(length, torch.full_like(length, unit), atol=1e-4) if scale != "head-root-mean" else abs(float(length.mean()) - unit) < 1e-4
    moved = reading(train.pose_2d + torch.tensor([30., -70.]))
    assert torch.allclose(moved, seen, atol=1e-3)
    assert torch.allclose(reading(train.pose_2d[:6].unflatten(0, (2, 3))), seen[:6].unflatten(0, (2, 3))) # windows

def test_mean_distance_counts_all_but_the_root():
    points = torch.zeros(1, 3, 2)
    points[0, 1, 0], points[0, 2, 1] = 3., 5.
    assert mean_distance(points + 7) == 4.

def test_a_body_in_one_point_is_no_infinity():
    assert torch.isfinite(Reading(H36M17)(torch.full((2, 17, 2), 100.))).all()

def test_an_unknown_scale_is_refused(): assert "height" in refused(Reading, H36M17, 17, "height")

def test_facing_agrees_with_the_metric_and_has_a_slope_everywhere(train):
    body = train.pose_3d - train.pose_3d[:, :1]
    assert torch.allclose(facing(100 * body, H36M17), facing_sine(body, H36M17), atol=1e-3) and float((facing(body, H36M17) > 0).float().mean()) > 0.95
    flat = torch.zeros(2, 17, 3, requires_grad=True)
    facing(flat, H36M17).sum().backward()
    assert torch.isfinite(flat.grad).all()
    fifteen = joint_maps(H36M17, 15)[0](body)
    assert float((facing(fifteen, H36M15) > 0).float().mean()) > 0.6 # the top of the head says less than the nose

def test_facing_of_a_body_made_by_hand():
    pose = torch.zeros(1, 17, 3)
    pose[0, H36M17.index("neck_nose")] = torch.tensor([0., -0.1, -0.1]) # towards the camera
    pose[0, H36M17.index("right_shoulder"), 0], pose[0, H36M17.index("left_shoulder"), 0] = -0.2, 0.2 # of a person who looks at the camera
    assert torch.allclose(facing(pose, H36M17), torch.ones(1), atol=1e-3)
    for angle in (0.5, 2., 4.): assert torch.allclose(facing(turned(pose, azimuth(torch.tensor([angle]))), H36M17), torch.ones(1), atol=1e-3)
    assert torch.allclose(facing(pose * torch.tensor([1., 1., -1.]), H36M17), -torch.ones(1), atol=1e-3)

def test_coco_becomes_what_the_single_image_demo_asks_for():
    pose = torch.randn(3, 17, 2)
    at, made = lambda name: pose[:, COCO17.index(name)], convert(pose, COCO17, H36M17)
    hips, shoulders = (at("left_hip") + at("right_hip")) / 2, (at("left_shoulder") + at("right_shoulder")) / 2
    for name, wanted in (("pelvis", hips), ("thorax", shoulders), ("spine", (hips + shoulders) / 2), ("neck_nose", at("nose")), ("head", shoulders + 2 * (at("nose") - shoulders))):
        assert torch.allclose(made[:, H36M17.index(name)], wanted, atol=1e-5)

def test_a_diary_is_written_by_stretches_and_kept():
    diary = Diary("a", "b", stretches=3)
    for step in range(4): diary.note(Clock(step, 12), torch.tensor(float(step)), torch.tensor(1.))
    other = Diary("a", "b", stretches=3)
    other.load_state_dict(copy.deepcopy(diary.state_dict()))
    for step in range(4, 8): other.note(Clock(step, 12), torch.tensor(float(step)), torch.tensor(0.))
    assert other.rows == [{"step": 2., "a": 1.5, "b": 1.}, {"step": 6., "a": 5.5, "b": 0.}] and "2" in refused(diary.note, Clock(), torch.zeros(()))

# ---------------------------------------------------------------- the nearest pose

def test_the_nearest_pose_is_found_as_by_hand(train, test):
    few, batch = train.select(torch.arange(0, len(train), 9)), some(test, 40)
    predictor = NearestPose(few)
    normed = lambda poses: (poses - poses[:, :1]) / mean_distance(poses)[:, None, None]
    distance = torch.cdist(normed(batch.pose_2d).flatten(1).double(), normed(few.pose_2d).flatten(1).double())
    wanted = Batch(few, distance.argmin(1)).target
    assert torch.equal(predictor.predict(batch)[:, 0], wanted)
    assert torch.equal(NearestPose(few, entries=1).predict(batch)[:, 0], wanted) # one sample at a time

def test_the_nearest_pose_does_not_ask_where_or_how_large(train, test):
    batch, moved = some(test, 20), some(test, 20)
    moved.pose_2d = batch.pose_2d * 0.4 + 55
    predictor = NearestPose(train)
    assert torch.equal(predictor.predict(batch), predictor.predict(moved))

def test_the_nearest_pose_beats_the_mean_pose(train, test):
    from poseprojects.data import synthetic
    few = test.select(torch.arange(0, len(test), 20))
    assert evaluate(NearestPose(train), few, synthetic.PROTOCOL)["pa_mpjpe"] < evaluate(MeanPose(train), few, synthetic.PROTOCOL)["pa_mpjpe"]
    assert set(baselines(train)) == {"nearest pose"}

def test_the_nearest_pose_needs_3d_and_the_same_joints(train, test):
    from dataclasses import replace
    assert "no 3D" in refused(NearestPose, replace(train, pose_3d=None)) and baselines(replace(train, pose_3d=None)) == {}
    other = replace(test, skeleton=H36M17.sub(H36M17.joints, "other"))
    assert "other" in refused(NearestPose(train).predict, some(other, 4))
