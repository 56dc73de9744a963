"Chen: the way there and back, who learns from what, motion, adapter, and a short run that lifts."
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from conftest import refused, some
from poseprojects.camera import intrinsic_normalize
from poseprojects.data import mpii, synthetic
from poseprojects.data.base import clip_bounds
from poseprojects.metrics import depth_flip, pa_mpjpe
from poseprojects.papers import chen
from poseprojects.papers.chen import (VARIANTS, Adapter, Chen, Config, Rays, Reproduction, ResidualNetwork, back_project, bending, build, difference, draws_of_samples, motion_of, pairs_of, prepared, round_trip,
                                      seen_by_camera, slope_at_real, streams, turned_away, turned_back)
from poseprojects.papers.turning import azimuth, elevation, orthographic, perspective, random_view
from poseprojects.protocol import CMU
from poseprojects.skeleton import H36M17
from poseprojects.train.checkpoints import seed_everything
from poseprojects.train.devices import Devices, choose_devices
from poseprojects.train.engine import Batch, Plan, Stream, fit
from poseprojects.train.evaluation import ConstantDepth, evaluate
from poseprojects.train.schedules import Clock, Schedule

pytestmark = pytest.mark.usefixtures("one_thread")
VIEWS = dict(elevation_range=(-math.pi / 9, math.pi / 9), roll_range=(-.2, .2))


def small(**options): return Config(**{**dict(width=32, blocks=1, judge_blocks=1, adapter_blocks=1), **options})

@pytest.fixture(scope="module")
def blind(train): return prepared(train, Config(), "paper")

@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    "Photographs of people: no 3D, no cameras, one frame each."
    folder = tmp_path_factory.mktemp("mpii")
    mpii.example(folder, "array")
    return mpii.load("all", folder)

@pytest.fixture
def bodies(train):
    "64 true bodies in head-root distances, root at distance 10, double precision."
    pose = some(train).target.double() / 0.68
    return pose + pose.new_tensor([0., 0., 10.])

def views(n, **ranges): return random_view(torch.rand(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), **{**VIEWS, **ranges})

def batch_of(poses, n=16, clock=Clock(), source=None):
    index = torch.arange(0, len(poses), len(poses) // n)[:n]
    others = {} if source is None else {"source": Batch(source, torch.arange(n) % len(source), clock)}
    return Batch(poses, index, clock, bounds=clip_bounds(poses), others=others)

def turns(method, batch):
    "The rotations of a step without headings."
    return method.views([batch], method.gathered([batch]))[0]

def in_use(method, optimizers): return {name: scheduled.optimizer for name, scheduled in optimizers.items()}

class Oracle:
    "A lifter that knows the depths of these bodies, one after the other."
    def __init__(self, *bodies): self.bodies = list(bodies)
    def __call__(self, pose_2d):
        body = self.bodies.pop(0)
        assert torch.allclose(perspective(body), pose_2d, atol=1e-9), "asked about another body"
        return body[..., 2] - 10

# ---------------------------------------------------------------- there and back

def test_true_depths_are_consistent(bodies):
    rotation = views(64)
    trip = round_trip(Oracle(bodies, turned_away(bodies, rotation)), perspective(bodies), rotation)
    for kind in ("norm", "square"):
        assert float(difference(trip.turned, trip.again, kind)) < 1e-6 and float(difference(perspective(bodies), trip.back, kind)) < 1e-6
    assert torch.allclose(trip.lifted, bodies, atol=1e-12) and torch.allclose(trip.seen, perspective(turned_away(bodies, rotation)), atol=1e-12)

def test_a_root_that_is_lifted_elsewhere_comes_back(bodies):
    "The first lift need not have its root at the distance; the way back adds it again."
    moved, rotation = bodies * 1.1, views(64)
    trip = round_trip(Oracle(moved, turned_away(moved, rotation)), perspective(moved), rotation)
    assert float(difference(perspective(moved), trip.back)) < 1e-9 and float(moved[:, 0, 2].min()) > 10.9

def test_constant_depth_is_not_consistent_out_of_the_plane(bodies):
    flat = lambda rotation: round_trip(lambda pose_2d: torch.zeros_like(pose_2d[..., 0]), perspective(bodies), rotation)
    trip, rolled = flat(views(64)), flat(views(64, azimuth_range=(0., 0.), elevation_range=(0., 0.), roll_range=(-1., 1.)))
    assert float(difference(trip.turned, trip.again)) > .1 and float(difference(perspective(bodies), trip.back)) > .01
    assert float(difference(rolled.turned, rolled.again)) < 1e-9, "a roll leaves everything in the plane"

def test_the_third_loss_may_be_measured_in_either_frame(bodies):
    rotation, net, x = views(64), nn.Linear(34, 17).double().requires_grad_(False), perspective(bodies)
    trip = round_trip(lambda pose_2d: net(pose_2d.flatten(1)), x, rotation)
    home = turned_back(trip.again, rotation, trip.lifted[:, :1])
    assert float(difference(trip.lifted, home)) == pytest.approx(float(difference(trip.turned, trip.again)), rel=1e-9)
    assert torch.allclose(trip.back, seen_by_camera(home), atol=1e-12)

def test_turned_away_and_back_is_the_identity(bodies):
    rotation = views(64)
    assert torch.allclose(turned_back(turned_away(bodies, rotation), rotation, bodies[:, :1]), bodies, atol=1e-12)
    slow = torch.stack([rotation[k] @ (bodies[k, j] - bodies[k, 0]) + torch.tensor([0., 0., 10.]).double() for k in (0, 7) for j in range(17)])
    assert torch.allclose(turned_away(bodies, rotation)[[0, 7]].flatten(0, 1), slow, atol=1e-12)

def test_an_azimuth_leaves_every_height(bodies):
    turned = turned_away(bodies, random_view(torch.rand(64, 3).double()))
    assert torch.allclose(turned[..., 1], bodies[..., 1] - bodies[:, :1, 1], atol=1e-12)
    assert float((turned_away(bodies, views(64))[..., 1] - bodies[..., 1]).abs().max()) > .1, "an elevation does not"

def test_flips_are_invisible_without_perspective(bodies):
    "For symmetric angles a lifter that inverts everybody makes the same fakes: exact under orthography, not so in perspective."
    draws = torch.rand(64, 2).double() * 2 - 1
    seen = lambda pose, sign: turned_away(pose, elevation(sign * draws[:, 1] * .35) @ azimuth(sign * draws[:, 0] * math.pi))
    flipped = bodies * bodies.new_tensor([1., 1., -1.]) + bodies.new_tensor([0., 0., 20.])
    assert torch.allclose(orthographic(seen(bodies, 1)), orthographic(seen(flipped, -1)), atol=1e-12)
    assert float((perspective(seen(bodies, 1)) - perspective(seen(flipped, -1))).abs().max()) > 1e-3

def test_depths_have_an_end():
    offset = torch.tensor([[-20., -9.5, 0., 3.]], requires_grad=True)
    points = back_project(torch.full((1, 4, 2), .1), offset)
    assert points[..., 2].tolist() == [[1., 1., 10., 13.]] and torch.allclose(points[..., 0], points[..., 2] * .1)
    points[..., 2].sum().backward()
    assert offset.grad.tolist() == [[0., 0., 1., 1.]]

def test_a_wild_lift_has_a_finite_view():
    wild = torch.tensor([[[0., 0., 10.], [500., 3., -40.], [1., 1., 0.]]])
    assert bool(seen_by_camera(wild).isfinite().all()) and float(seen_by_camera(wild, limit=.2).abs().max()) == pytest.approx(.2)

@pytest.mark.parametrize("detach, first", [("nothing", True), ("back-projection", True), ("second lift", False)])
def test_where_gradients_end(detach, first, bodies):
    "The first lift hears the consistency losses, or it does not; A's choice removes one path of several."
    x, rotation, seen = perspective(bodies), views(64), []
    net = nn.Linear(34, 17).double()
    def offsets(pose_2d):
        seen.append(net(pose_2d.flatten(1)))
        seen[-1].retain_grad()
        return seen[-1]
    trip = round_trip(offsets, x, rotation, detach=detach)
    (difference(trip.turned, trip.again) + difference(x, trip.back)).backward()
    assert (seen[0].grad is not None and bool(seen[0].grad.any())) == first and bool(seen[1].grad.any())

def test_the_back_projection_is_one_path_of_several(bodies):
    "With a second lift that ignores what it sees, y matters through the rays alone."
    def slope(detach):
        offset = torch.zeros(64, 17, dtype=torch.float64, requires_grad=True)
        answers = [offset, torch.zeros(64, 17, dtype=torch.float64)]
        trip = round_trip(lambda _: answers.pop(0), perspective(bodies), views(64), detach=detach)
        return torch.autograd.grad(trip.again.square().sum(), offset)[0] if trip.again.requires_grad else None
    assert bool(slope("nothing").any()) and slope("back-projection") is None

# ---------------------------------------------------------------- what is read, and from where

def test_bodies_bend_one_way(train, bodies):
    flipped = bodies * bodies.new_tensor([1., 1., -1.])
    assert torch.allclose(bending(flipped, H36M17), -bending(bodies, H36M17), atol=1e-9)
    turned = turned_away(bodies, views(64))
    assert torch.allclose(bending(turned, H36M17), bending(bodies, H36M17), atol=1e-9) and float((bending(bodies, H36M17) > 0).double().mean()) > .95

@pytest.mark.data
def test_bending_tells_flips_of_motion_capture(cmu_root):
    from poseprojects.data import cmu
    from poseprojects.metrics import facing_sine
    poses = cmu.load("test", cmu_root).pose_3d[::40]
    assert float((bending(poses, H36M17) < 0).float().mean()) < .002 < .2 < float((facing_sine(poses, H36M17) < 0).float().mean())

def test_head_and_root_are_a_tenth_apart(train):
    for scale in chen.SCALES:
        for joints in (17, 16, 15):
            rays = Rays.from_data(train, joints, scale)
            x = rays(Batch(train, torch.arange(len(train))))
            lengths = (x[:, rays.body.index("head")] - x[:, 0]).norm(dim=1)
            assert float(lengths.mean()) == pytest.approx(.1, rel=1e-4) and not x[:, 0].any() and x.shape[1] == joints
            if scale == "head-root": assert float(lengths.std()) < 1e-6
            else: assert float(lengths.std()) > 1e-3
            if scale != "head-root-mean": assert torch.allclose(rays.remeasured(3.3 * x), x, atol=1e-6)
            else: assert torch.equal(rays.remeasured(x), x)

def test_the_scale_is_that_of_the_training_set(train, test):
    rays = Rays.from_data(train)
    every = Batch(train, torch.arange(len(train)))
    by_hand = intrinsic_normalize(every.pose_2d.double(), train.cameras[train.camera_id.long()].to(torch.float64))
    mean = (by_hand[:, 10] - by_hand[:, 0]).norm(dim=1).mean()
    batch = some(test)
    wanted = intrinsic_normalize(batch.pose_2d, batch.camera)
    assert torch.allclose(rays(batch), (wanted - wanted[:, :1]) / (10 * float(mean)), atol=1e-6)
    assert "rays.reading.length" in Chen.from_data(train, small()).state_dict()

def test_the_trainer_gets_no_3d(train):
    assert prepared(train, Config(), "paper").pose_3d is None and prepared(train, Config(), "release") is train
    blind = prepared(train, Config(), "paper")
    assert prepared(blind, Config(), "paper") is blind
    method = build(blind, small())
    losses = method.step(batch_of(blind), in_use(method, method.optimizers(Plan("x", 1, 16, 1e-3))))
    assert all(bool(v.isfinite()) for v in losses.values())

@pytest.mark.parametrize("options", [dict(), dict(temporal=True), dict(temporal=True, pair="pose and difference"), dict(joints=15), dict(adversary="least-squares", penalty=1.), dict(penalty=1., penalty_at="between"), dict(rescale=True, scale="mean-distance")])
def test_discriminators_see_2d_only(options, blind, monkeypatch):
    "As many numbers as 2D joints have, and nothing that depends on the depth of what is real."
    method, widths = build(blind, small(**options)), set()
    j = method.config.joints
    for name in ("judge", "temporal_judge"):
        if (judge := getattr(method, name)) is not None: judge.register_forward_pre_hook(lambda module, inputs, name=name: widths.add((name, inputs[0].shape[1])))
    method.step(batch_of(blind), in_use(method, method.optimizers(Plan("x", 1, 16, 1e-3))))
    assert widths == {("judge", 2 * j)} | ({("temporal_judge", 2 * j if method.config.pair == "difference" else 4 * j)} if method.config.temporal else set())

def test_the_real_poses_are_others_or_the_same(blind):
    for real, same in (("same", True), ("other", False)):
        method = build(blind, small(real=real))
        batch = batch_of(blind)
        seen = method.gathered([batch])
        assert torch.equal(method.real([batch], seen), seen) == same

def test_fakes_are_measured_like_the_real_ones(blind):
    method = build(blind, small(scale="mean-distance", rescale=True))
    fake = torch.randn(9, 17, 2)
    fake[:, 0] = 0
    size = lambda pose: pose.norm(dim=-1).sum(1) / 16
    assert float(size(method.judged_form(fake)).std()) < 1e-6 and torch.allclose(size(method.judged_form(fake)), size(method.gathered([batch_of(blind, 9)])), atol=1e-6)
    assert torch.equal(build(blind, small(scale="mean-distance")).judged_form(fake), fake)

def test_constants_are_taken_where_the_poses_are(blind, monkeypatch):
    "Those of another source are measured during the run, on the device."
    class Asked(Exception): pass
    def asked(poses, index, *_): raise Asked(index.device)
    monkeypatch.setattr(chen, "Batch", asked)
    with pytest.raises(Asked, match="meta"): Rays.from_data(blind.to("meta"))

@pytest.mark.parametrize("tilt", [0., 6.8])
def test_bodies_face_as_the_real_poses_do(blind, tilt):
    "The lifts, set upright and turned, have the headings of the lifts that the discriminator's real poses have; the first part of a run turns bodies anywhere."
    method = build(blind, small(headings=1., headings_spread=0., elevation=0., tilt=tilt)).eval()
    nn.init.normal_(method.lifter.last.weight, std=.3)
    seen = method.gathered([batch_of(blind, 32)])
    early, _ = method.views([batch_of(blind, 32, Clock(29, 100))], seen)
    made, real = method.views([batch_of(blind, 32, Clock(30, 100))], seen)
    with torch.no_grad(): lifted, other = method.lifted(seen), method.lifted(real)
    rotation = made(lifted)
    assert torch.is_tensor(early) and not torch.equal(seen, real)
    upright = lambda pose: (pose - pose[:, :1]) @ elevation(torch.tensor([-math.radians(tilt)])).mT
    turned = upright((lifted - lifted[:, :1]) @ rotation.mT)
    apart = chen.heading(turned, method.body) - chen.heading(upright(other), method.body)
    assert torch.allclose(apart.cos(), torch.ones(32), atol=1e-5) and float(chen.heading(upright(lifted), method.body).std()) > 0.3
    assert torch.allclose(turned[..., 1], upright(lifted)[..., 1], atol=1e-5)

@pytest.mark.parametrize("options", [dict(azimuth=70.), dict(views="sample"), dict(real="same"), dict(weights=(0., 1., 1., 1.))])
def test_headings_need_other_real_poses_and_all_views(options):
    assert "expected azimuth = 180" in refused(Config, headings=.9, **options) and Config(**options)

def test_some_bodies_face_anywhere(blind):
    method = build(blind, small(headings=0.5, headings_spread=0., elevation=0.)).eval()
    batch = batch_of(blind, 400, Clock(90, 100))
    made, real = method.views([batch], seen := method.gathered([batch]))
    with torch.no_grad(): lifted, other = method.lifted(seen), method.lifted(real)
    apart = chen.heading((lifted - lifted[:, :1]) @ made(lifted).mT, method.body) - chen.heading(other - other[:, :1], method.body)
    assert 0.4 < float((apart.cos() > 1 - 1e-6).float().mean()) < 0.6

# ---------------------------------------------------------------- networks and who learns

@pytest.mark.parametrize("joints, lifter, judge", [(17, 8_468_497, 6_334_465), (14, 8_459_278, 6_328_321)])
def test_parameter_counts(joints, lifter, judge):
    count = lambda network: sum(p.numel() for p in network.parameters())
    assert (count(ResidualNetwork(2 * joints, joints)), count(ResidualNetwork(2 * joints, 1, blocks=3, batch_norm=False))) == (lifter, judge)

def test_the_method_has_these_networks(blind):
    method, count = build(blind, VARIANTS["paper"]), lambda network: sum(p.numel() for p in network.parameters())
    assert (count(method.lifter), count(method.judge)) == (8_468_497, 6_334_465) and method.temporal_judge is None and method.adapter is None
    assert not any(isinstance(m, nn.BatchNorm1d) for m in method.judge.modules()) and sum(isinstance(m, nn.BatchNorm1d) for m in method.lifter.modules()) == 9

def test_a_network_equals_its_layers_written_out():
    net = ResidualNetwork(6, 2, 8, 2, batch_norm=True).eval()
    x = torch.randn(5, 6)
    layer = lambda part, h: F.relu(F.batch_norm(F.linear(h, part[0].weight, part[0].bias), part[1].running_mean, part[1].running_var, part[1].weight, part[1].bias))
    h = layer(net.first, x)
    for block in net.blocks: h = h + layer(block[1], layer(block[0], h))
    assert torch.allclose(net(x), F.linear(h, net.last.weight, net.last.bias), atol=1e-6)

NETWORKS = ("lifter", "judge", "temporal_judge", "adapter", "adapter_judge")

@pytest.mark.parametrize("term, reached", [("adversarial", {"lifter"}), ("consistency_3d", {"lifter"}), ("consistency_2d", {"lifter"}), ("temporal", {"lifter"})])
def test_a_term_of_the_lifter_reaches_the_lifter_alone(term, reached, blind, foreign):
    method = build(blind, small(temporal=True, source=True, adapter="joint"))
    batch = batch_of(blind, source=foreign)
    parts = method.parts(batch)
    seen = method.gathered(parts)
    trip = method.trip(seen, method.views(parts, seen)[0])
    with chen.frozen(method.judge, method.temporal_judge): method.terms(seen, trip, method.motion(batch, trip))[term].backward()
    touched = {name for name in NETWORKS if any(p.grad is not None and bool(p.grad.any()) for p in getattr(method, name).parameters())}
    assert touched == reached and all(p.requires_grad for p in method.parameters())

@pytest.mark.parametrize("network", NETWORKS)
def test_an_optimiser_moves_its_network_alone(network, blind, foreign):
    "One whole step with the learning rate of all other optimisers at zero."
    method = build(blind, small(temporal=True, source=True, adapter="joint", penalty=1.))
    optimizers = in_use(method, method.optimizers(Plan("x", 1, 16, 1e-3)))
    assert set(optimizers) == set(NETWORKS)
    for name, optimizer in optimizers.items():
        for group in optimizer.param_groups: group["lr"] = group["lr"] * (name == network)
    before = {n: p.detach().clone() for n, p in method.named_parameters()}
    method.step(batch_of(blind, source=foreign), optimizers)
    moved = {n.split(".")[0] for n, p in method.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {network}

@pytest.mark.parametrize("name", ["judge", "temporal_judge", "adapter_judge"])
def test_a_discriminators_step_leaves_no_gradient_elsewhere(name, blind, foreign):
    method = build(blind, small(temporal=True, source=True, adapter="joint"))
    optimizers = in_use(method, method.optimizers(Plan("x", 1, 16, 1e-3)))
    fake = torch.randn(16, 17, 2, requires_grad=True)
    method.train_judge(name, torch.randn(16, 17, 2), fake * 1., [batch_of(blind)], optimizers)
    assert fake.grad is None and all(p.grad is None for n, p in method.named_parameters() if not n.startswith(name + "."))
    assert all(p.grad is not None for p in getattr(method, name).parameters())

def test_without_a_judge_nothing_judges(blind):
    method = build(blind, small(weights=(0., .001, 10., 1.)))
    assert method.judge is None and set(method.optimizers(Plan("x", 1, 16, 1e-3))) == {"lifter"}
    losses = method.step(batch_of(blind), in_use(method, method.optimizers(Plan("x", 1, 16, 1e-3))))
    assert {"consistency_3d", "weighed_consistency_2d"} <= set(losses) and not any("adversarial" in n or "judge" in n for n in losses)

def test_without_consistency_there_is_one_lift(blind):
    method, calls = build(blind, small(weights=(1., 0., 0., 1.))), []
    method.lifter.register_forward_hook(lambda *_: calls.append(1))
    losses = method.step(batch_of(blind), in_use(method, method.optimizers(Plan("x", 1, 16, 1e-3))))
    assert len(calls) == 1 and "consistency_3d" not in losses

def test_terms_are_weighed_as_the_options_say(blind):
    method = build(blind, small(weights=(2., .5, 7., 3.), temporal=True))
    losses = method.step(batch_of(blind), in_use(method, method.optimizers(Plan("x", 1, 16, 1e-3))))
    for name, weight in zip(chen.TERMS, (2., .5, 7., 3.)): assert float(losses[f"weighed_{name}"].detach()) == pytest.approx(weight * float(losses[name].detach()), rel=1e-6)

def test_the_discriminator_steps_in_its_turn(blind):
    method = build(blind, small(judge_every=3))
    optimizers = in_use(method, method.optimizers(Plan("x", 1, 16, 1e-3)))
    moved = []
    for step in range(6):
        before = method.judge.last.weight.detach().clone()
        losses = method.step(batch_of(blind, clock=Clock(step, 6)), optimizers)
        moved.append(not torch.equal(method.judge.last.weight, before))
        assert ("judge" in losses) == moved[-1]
    assert moved == [True, False, False, True, False, False]

@pytest.mark.parametrize("wins, lifter, judge", [(True, True, False), (False, False, True)])
def test_the_cap_holds_back_who_wins(wins, lifter, judge, blind, monkeypatch):
    method = build(blind, small(cap=.9))
    optimizers = in_use(method, method.optimizers(Plan("x", 1, 16, 1e-3)))
    monkeypatch.setattr(chen, "judged", lambda *scores: torch.tensor(.95 if wins else .05))
    before = {name: getattr(method, name).last.weight.detach().clone() for name in ("lifter", "judge")}
    method.step(batch_of(blind), optimizers)
    assert [not torch.equal(getattr(method, name).last.weight, before[name]) for name in ("lifter", "judge")] == [lifter, judge]

def test_the_penalty_is_the_slope_at_real_poses():
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    real = torch.randn(5, 4, dtype=torch.float64)
    slow = torch.stack([torch.autograd.functional.jacobian(lambda x: net(x)[0], r).square().sum() for r in real]).mean() / 2
    found = slope_at_real(net, real)
    found.backward()
    assert float(found.detach()) == pytest.approx(float(slow), rel=1e-9) and bool(net[0].weight.grad.any())

def test_the_weight_of_the_penalty_falls_in_equal_ratios(blind):
    method = build(blind, small(penalty=2., penalty_end=.02))
    assert [method.penalty(Clock(step, 4)) for step in (0, 2, 4)] == pytest.approx([2., .2, .02]) and build(blind, small(penalty=2.)).penalty(Clock(3, 4)) == 2.
    steep = []
    slope = method.steepness
    method.steepness = lambda *arguments: steep.append(slope(*arguments)) or steep[-1]
    losses = method.step(batch_of(blind, clock=Clock(2, 4)), in_use(method, method.optimizers(Plan("x", 1, 16, 1e-3))))
    assert float(losses["judge_penalty"].detach()) == pytest.approx(.2 * float(steep[0].detach()), rel=1e-5)

def test_views_of_a_sample_can_stay(blind):
    method, batch = build(blind, small(views="sample", roll=5.)), batch_of(blind)
    assert torch.equal(turns(method, batch), turns(method, batch)) and not torch.equal(*turns(method, batch)[:2])
    fresh = build(blind, small())
    assert not torch.equal(turns(fresh, batch), turns(fresh, batch))
    draws = draws_of_samples(torch.arange(10_000))
    assert float(draws.min()) >= 0 and float(draws.max()) <= 1 and torch.allclose(draws.mean(0), torch.full((3,), .5), atol=.01)

def test_angles_stay_within_their_ranges(blind):
    method = build(blind, small(azimuth=90., elevation=10., roll=5.))
    batch = Batch(blind, torch.arange(2000))
    down = turns(method, batch)[:, :, 1] # where the body's y goes
    azimuths = turns(method, batch)[:, 2, 2]
    tilt = torch.rad2deg(torch.acos(down[:, 1].clamp(-1, 1)))
    assert 9 < float(tilt.max()) <= math.hypot(10, 5) + .1 and float(azimuths.min()) > -.02

# ---------------------------------------------------------------- motion

def test_pairs_stay_in_their_clips(blind):
    first, last = clip_bounds(blind)
    for frames in (1, 3, 5):
        batch = Batch(blind, torch.arange(len(blind)), bounds=(first, last))
        pairs = pairs_of(batch, frames)
        partner = pairs.partner.index
        assert torch.equal(first[partner], first) and torch.equal(pairs.known, last - first >= frames) and torch.equal(pairs.later, batch.index + frames <= last)
        assert torch.equal((partner - batch.index)[pairs.known], torch.where(pairs.later, frames, -frames)[pairs.known])

def test_motion_is_the_earlier_frame_less_the_later_one(blind):
    method = build(blind, small(temporal=True, frames=3))
    first, last = clip_bounds(blind)
    ends = torch.tensor([int(first[500]), int(last[500]), int(last[500]) - 1, int(last[500]) - 3])
    batch = Batch(blind, ends, bounds=(first, last))
    rotation = torch.eye(3).expand(4, 3, 3)
    method.eval()
    with torch.no_grad(): real, fake = method.motion(batch, method.trip(method.gathered([batch]), rotation))
    x, earlier = (lambda index: method.rays(Batch(blind, index))), ends - torch.tensor([0, 3, 3, 0])
    wanted = x(earlier) - x(earlier + 3)
    assert torch.allclose(real, wanted.flatten(1), atol=1e-7) and torch.allclose(fake, real, atol=1e-3), "unturned, what is lifted is seen where it was"
    both = motion_of(x(ends), x(pairs_of(batch, 3).partner.index), pairs_of(batch, 3), "pose and difference")
    assert torch.allclose(both, torch.cat([x(earlier), wanted], 1).flatten(1), atol=1e-7)

def test_frames_without_company_have_no_motion(foreign):
    batch, pose = Batch(foreign, torch.arange(5)), torch.randn(5, 17, 2)
    pairs = pairs_of(batch, 1)
    assert not pairs.known.any() and not motion_of(pose, pose + 1, pairs).any() and torch.equal(pairs.partner.index, batch.index)

@pytest.mark.parametrize("options", [{}, dict(scale="mean-distance", rescale=True)], ids=["one scale", "by frame"])
def test_both_frames_are_turned_alike(blind, options):
    method = build(blind, small(temporal=True, **options)).eval()
    batch = batch_of(blind, 8)
    rotation = views(8).float()
    with torch.no_grad():
        trip = method.trip(method.gathered([batch]), rotation)
        _, fake = method.motion(batch, trip)
        later, valid = batch.later(1)
        lift = method.lifted(method.rays(later))
    own, other = trip.seen, torch.stack([perspective((lift[k] - lift[k, 0]) @ rotation[k].T + torch.tensor([0., 0., 10.])) for k in range(8)])
    if options: own, other = method.rays.remeasured(own), method.rays.remeasured(other)
    slow = own - other
    assert bool(valid.all()) and torch.allclose(fake, slow.flatten(1), atol=1e-6)

def test_one_frame_is_enough_to_predict(blind, test):
    method = build(blind, small(temporal=True)).eval()
    batch = some(test, 8)
    alone = torch.cat([method.predict(Batch(test, batch.index[k:k + 1])) for k in range(8)])
    assert torch.allclose(method.predict(batch), alone, atol=1e-6) and not hasattr(method, "window")

# ---------------------------------------------------------------- another source

def test_an_adapter_starts_as_the_identity():
    adapter, x = Adapter(17, small()), torch.randn(5, 17, 2)
    x[:, 0] = 0
    assert torch.equal(adapter(x), x)
    nn.init.normal_(adapter.network.last.weight)
    assert not torch.allclose(adapter(x), x, atol=1e-2) and not adapter(x)[:, 0].any(), "the root stays"

def test_adapters_train_first_or_all_along(blind, foreign):
    for kind, phases in (("first", [(True, 16), (False, 32)]), ("joint", [(True, 32), (True, 32)])):
        method = build(blind, small(source=True, adapter=kind, adapter_share=.5))
        optimizers = in_use(method, method.optimizers(Plan("x", 1, 16, 1e-3)))
        for step, (trains, lifted) in zip((4, 5), phases):
            batch = batch_of(blind, clock=Clock(step, 10), source=foreign)
            before = method.adapter.network.last.weight.detach().clone()
            assert len(method.gathered(method.parts(batch))) == lifted
            losses = method.step(batch, optimizers)
            assert (not torch.equal(method.adapter.network.last.weight, before)) == trains == ("adapter" in losses)

def test_an_adapter_learns_to_move_poses(blind):
    "A source whose knees are labelled too low: the adapter brings them back, and its discriminator is lost."
    seed_everything(0)
    shifted = blind.pose_2d.clone()
    shifted[:, [2, 5]] += shifted.new_tensor([0., 60.])
    source = replace(blind, name="low knees", pose_2d=shifted)
    method = build(blind, small(width=64, source=True, adapter="joint", adapter_stay=.05, penalty=1.))
    optimizers = in_use(method, method.optimizers(Plan("x", 1, 128, 2e-3)))
    plan = Plan("x", 1, 128, 2e-3)
    target, other = (Stream(n, p, plan, 0, "cpu") for n, p in (("train", blind), ("source", source)))
    for step in range(150):
        batch = target.batch(step, Clock(step, 150))
        batch.others = {"source": other.batch(step, Clock(step, 150))}
        method.train_adapter(batch, optimizers)
    knees = lambda pose: float(pose[:, [2, 5], 1].mean())
    every = Batch(source, torch.arange(0, len(source), 20))
    with torch.no_grad(): before, after, wanted = knees(method.foreign(every)), knees(method.adapter(method.foreign(every))), knees(method.rays(Batch(blind, every.index)))
    assert abs(after - wanted) < .5 * abs(before - wanted), (before, after, wanted)

def test_sources_are_checked(blind, foreign):
    assert streams(blind, small()) == {"train": blind}
    assert list(streams(blind, small(source=True), {"mpii": foreign})) == ["train", "source"] and streams(foreign, small(source=True), {"s": synthetic.load("test", samples=8000)})["source"].pose_3d is None
    assert "one set of 2D poses in more_2d" in refused(streams, blind, small(source=True))
    assert "learns from one source" in refused(streams, blind, small(), {"mpii": foreign})

def test_photographs_have_no_common_scale(foreign, train):
    "People at all distances are refused by the default, which divides by one number, and taken by a scale by frame."
    near = replace(foreign, pose_2d=foreign.pose_2d * (0.2 + torch.arange(len(foreign)) % 5)[:, None, None])
    assert "such as mpii or short-mpii" in refused(build, near, small())
    build(near, small(joints=15, scale="mean-distance")), build(replace(near, cameras=train.cameras, camera_id=near.camera_id * 0), small())

def test_photographs_can_be_learnt_from(foreign, test):
    "No 3D, no cameras, no sequences; then people of another set are lifted."
    method = build(foreign, small(joints=15, scale="mean-distance", rescale=True))
    fit(method, foreign, Plan("x", 2, 8, 1e-3), show=False)
    pose = method.eval().predict(some(test))
    assert pose.shape == (64, 1, 17, 3) and bool(pose.isfinite().all()) and not pose[:, :, 0].any()
    assert "no two samples are 1 frames apart" in refused(build, foreign, small(temporal=True))

# ---------------------------------------------------------------- runs

@pytest.mark.parametrize("wrong, said", [(dict(reduction="sum"), "'norm', 'square'"), (dict(detach="all"), "'second lift'"), (dict(cap=.3), "share from 0.5 to 1"), (dict(weights=(1., 1., 1.)), "four numbers"), (dict(scale="pixels"), "'head-root-mean'"),
                                         (dict(adapter="joint"), "source = True"), (dict(joints=14), "15, 16, 17"), (dict(penalty_at="fake"), "'between'")])
def test_options_that_do_not_exist_are_refused(wrong, said, blind):
    text = refused(lambda: build(blind, small(**wrong)))
    assert said in text or sorted(said.split(", ")) == sorted(w for w in said.split(", ") if w in text), text

@pytest.mark.parametrize("name", [n for n in VARIANTS if n.startswith("short-")])
def test_every_variant_makes_a_step(name, blind, foreign):
    method = build(blind, replace(VARIANTS[name], width=16, blocks=1, judge_blocks=1, adapter_blocks=1))
    losses = method.step(batch_of(blind, source=foreign if method.config.source else None), in_use(method, method.optimizers(Plan("x", 1, 16, 1e-3))))
    assert all(v.ndim == 0 and bool(v.isfinite()) for v in losses.values()) and {"flipped", "spread"} <= set(losses)
    assert name[6:] in ("run", "unguided", "no-slope", *(n for n in VARIANTS if not n.startswith("short-"))) # the first two are what the paper's size is anyway

def test_a_run_goes_on_bit_for_bit(blind, foreign, tmp_path):
    sets = streams(blind.select(torch.arange(280)), small(source=True), {"mpii": foreign})
    config = small(source=True, adapter="first", temporal=True, cap=.8, dropout=.1, adapter_share=.4)
    plan = Plan("x", 4, 16, 1e-3, Schedule("cosine"))
    def run(folder, stop=None):
        seed_everything(0)
        method = build(sets["train"], config)
        if stop:
            step = Chen.step
            def dies(self, batch, optimizers):
                if batch.clock.step == stop: raise KeyboardInterrupt
                return step(self, batch, optimizers)
            method.step = dies.__get__(method)
            with pytest.raises(KeyboardInterrupt): fit(method, sets, plan, folder=folder, show=False, checkpoint_every=5)
            return None
        fit(method, sets, plan, folder=folder, show=False)
        return method
    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", stop=33)
    again = run(tmp_path / "parts")
    for (name, a), b in zip(whole.state_dict().items(), again.state_dict().values()): assert torch.equal(a, b), name
    assert len(whole.diary.rows) > 10 and all(0 <= row["flipped"] <= 1 and 0 <= row["accuracy"] <= 1 for row in whole.diary.rows)

def test_two_processes_lose_as_one(blind):
    "The losses of the first 20 steps agree."
    few = blind.select(torch.arange(840))
    config, plan = small(dropout=.1, temporal=True, penalty=1., headings=.9), Plan("x", 1, 40, 1e-3)
    first = []
    for devices in (Devices(), choose_devices(0, 2)):
        seed_everything(0)
        first.append(fit(build(few, config), few, plan, device=devices, show=False).first_losses)
    assert len(first[0]) == len(first[1]) == 20
    for one, two in zip(*first):
        for name in ("adversarial", "consistency_3d", "consistency_2d", "temporal", "judge", "flipped", "sine_below_zero", "spread", "cut"): assert one[name] == pytest.approx(two[name], abs=1e-4), name

def test_protocols_say_what_they_know():
    first, second = chen.scoring(CMU, Config())
    assert (first.headline, first.scale_oracle, second.headline, second.scale_oracle) == ("pa_mpjpe", "none", "mpjpe", "head-root") and "ORACLE" in str(second)
    assert [len(p.joints or p.skeleton) for p in chen.scoring(CMU, Config(joints=15))] == [15, 15] and chen.scoring(CMU, Config(joints=16))[0].skeleton == "h36m16"

def test_predictions_are_in_the_stated_metres(blind, test):
    method, batch = build(blind, small()).eval(), some(test)
    with torch.no_grad():
        nn.init.zeros_(method.lifter.last.weight)
        pose = method.predict(batch)[:, 0]
    x = method.rays(batch)
    assert torch.allclose(pose[..., :2], .68 * 10 * x, atol=1e-5) and not pose[..., 2].abs().max() > 1e-6
    assert torch.allclose(build(blind, small(head_root=.34)).eval().outwards(x), x)

def test_inverted_bodies_pay_at_first_only(blind):
    method = build(blind, small(guide=2., guided=.5))
    optimizers = in_use(method, method.optimizers(Plan("x", 1, 16, 1e-3)))
    for step in range(10):
        losses = method.step(batch_of(blind, clock=Clock(step, 10)), optimizers)
        assert ("weighed_guide" in losses) == (step < 5)
    plain = build(blind, small())
    assert not any("guide" in name for name in plain.step(batch_of(blind), in_use(plain, plain.optimizers(Plan("x", 1, 16, 1e-3)))))

def test_the_price_is_what_limbs_bend_the_wrong_way(blind):
    method = build(blind, small(guide=2., guided=1.))
    trips, round_trip = [], method.trip
    method.trip = lambda *arguments: trips.append(round_trip(*arguments)) or trips[-1]
    losses = method.step(batch_of(blind), in_use(method, method.optimizers(Plan("x", 1, 16, 1e-3))))
    wrong = [max(0., -float(b)) for b in bending(trips[0].lifted.detach(), H36M17)]
    assert float(losses["weighed_guide"].detach()) == pytest.approx(2 * sum(wrong) / 16, rel=1e-5) and any(wrong)

def test_upright_bodies_stay_upright(blind):
    "Under a known tilt of the camera the turn is about the true vertical: a body that stands keeps standing, all the way round."
    tilt = math.radians(20.)
    method = build(blind, small(tilt=20., elevation=0.))
    down = elevation(torch.tensor([tilt]))[0] @ torch.tensor([0., 1., 0.]) # of the world, as a camera sees it that looks down
    turned = turns(method, Batch(blind, torch.arange(200))) @ down
    assert torch.allclose(turned, down.expand(200, 3), atol=1e-5)
    tipped = turns(build(blind, small(elevation=0.)), Batch(blind, torch.arange(200))) @ down
    assert float((tipped - down).norm(dim=1).max()) > .6

# ---------------------------------------------------------------- what it learns

def trained(blind, **options):
    seed_everything(0)
    method = build(blind, replace(VARIANTS["short-run"], width=64, blocks=1, judge_blocks=2, **options))
    history = fit(method, blind, Plan("short", 5, 64, 1e-3, Schedule("cosine")), show=False)
    return method, history

def test_bodies_are_learnt_from_2d_alone(blind, test):
    "Well below the flat answer, and the right way round; what is watched without any 3D agrees with the truth."
    few = test.select(torch.arange(0, len(test), 4))
    protocol = chen.scoring(synthetic.PROTOCOL, Config())[0]
    method, history = trained(blind)
    scores, flat = evaluate(method, few, protocol), evaluate(ConstantDepth(), few, protocol)
    assert scores["pa_mpjpe"] < .8 * flat["pa_mpjpe"] and scores["depth_flip"] < 12, scores
    assert history.rows[-1]["loss/flipped"] < .1 < method.diary.rows[0]["flipped"] and .5 < history.rows[-1]["loss/judge_accuracy"] < .7

def test_consistency_alone_fails(blind, test):
    "Its losses fall, and what is lifted is worse than flat."
    few = test.select(torch.arange(0, len(test), 4))
    protocol = chen.scoring(synthetic.PROTOCOL, Config())[0]
    method, history = trained(blind, weights=(0., .001, 10., 1.), guide=0.)
    assert history.rows[-1]["loss/consistency_2d"] < history.rows[0]["loss/consistency_2d"]
    assert evaluate(method, few, protocol)["pa_mpjpe"] > evaluate(ConstantDepth(), few, protocol)["pa_mpjpe"]

def test_consistency_alone_is_worse_than_both_under_the_same_guide(blind, test):
    "A comparison in which one row is told which way limbs bend, and the other is not, would say nothing."
    few = test.select(torch.arange(0, len(test), 4))
    protocol = chen.scoring(synthetic.PROTOCOL, Config())[0]
    both, alone = (evaluate(trained(blind, **options)[0], few, protocol) for options in (dict(), dict(weights=(0., .001, 10., 1.))))
    assert max(both["depth_flip"], alone["depth_flip"]) < 12 and both["pa_mpjpe"] < alone["pa_mpjpe"] - 10, (both, alone)

def test_what_is_not_in_the_paper_is_said():
    "The variant of plan `paper` is the paper's; every other one with help says so."
    said = {name: chen.beyond(vars(config)) for name, config in VARIANTS.items()}
    sloped = lambda config: config.penalty and config.penalty_at == "real" and config.judges
    assert all(bool(text) == bool(VARIANTS[name].guide or VARIANTS[name].tilt or VARIANTS[name].headings or sloped(VARIANTS[name])) for name, text in said.items()) and all(not said[v] for p, v in chen.DEFAULT_VARIANT.items() if p != "quick")
    assert "first 10% of the run" in said["short-run"] and "whole run" in said["short-mpii"] and "6.8°" in said["upright"] and "true 3D" in chen.beyond(vars(VARIANTS["short-run"]), "release")
    assert not said["short-self-consistency-only"] and "slope" not in said["short-self-consistency-guided"] and "bend" not in said["short-unguided"]
    assert said["short-adversarial-only"] == said["short-run"] and "slope" in said["short-run"] and "slope" in said["short-unguided"]

# ---------------------------------------------------------------- the public reproduction

def test_the_reproduction_refuses_options_that_it_does_not_have(train):
    assert "knows nothing of weights" in refused(build, train, small(weights=(1., 0., 0., 1.)), "release") and "source" in refused(build, train, small(source=True), "release")
    for name in ("paper", "short-run", "short-15-joints", "short-dropout"): assert isinstance(build(train, replace(VARIANTS[name], width=16), "release"), Reproduction)

def test_the_reproduction_is_another_method(train, blind):
    assert isinstance(build(train, small(), "release"), Reproduction) and "no 3D poses" in refused(build, blind, small(), "release")
    method, batch, widths = build(train, small(), "release"), batch_of(train, 64), set()
    method.judge.register_forward_pre_hook(lambda module, inputs: widths.add(inputs[0].shape[1]))
    losses = method.step(batch, in_use(method, method.optimizers(Plan("x", 1, 64, 1e-3))))
    assert widths == {51} and {n for n in losses} == {"adversarial", "judge", "judge_accuracy"}
    assert float(losses["judge"].detach()) > 2 * math.log(2) - 1 and any(isinstance(m, nn.BatchNorm1d) for m in method.judge.modules())
    pose, angle = torch.randn(4, 17, 3), torch.rand(4) * 6
    turned, whole = method.half_turned(pose, angle), pose @ azimuth(angle).mT
    assert torch.allclose(turned[..., :2], whole[..., :2], atol=1e-6) and torch.equal(turned[..., 2], pose[..., 2]) and not torch.allclose(whole[..., 2], pose[..., 2], atol=.1)
    assert torch.allclose((method.true(batch)[..., :2]).norm(dim=-1).sum(1) / 16, torch.ones(64), atol=1e-5)
    assert method.eval().predict(batch).shape == (64, 1, 17, 3)
