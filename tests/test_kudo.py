"Kudo 2018: networks, losses against a slow copy, who learns from what, who waits, the inversion, what is scored, killed runs."
import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from conftest import refused, some
from poseprojects import zoo
from poseprojects.data import mpii, synthetic
from poseprojects.data.base import clip_bounds
from poseprojects.experiment import Experiment
from poseprojects.metrics import facing_sine
from poseprojects.papers import kudo
from poseprojects.papers.kudo import VARIANTS, Config, Kudo, Perceptron, build, prepared, scoring, thinned
from poseprojects.papers.monocular2d import all_lifted, facing, inverted_share
from poseprojects.papers.turning import azimuth, orthographic, turned
from poseprojects.protocol import CMU, H36M_P1, KUDO, MPI3DHP
from poseprojects.skeleton import COCO17, H36M17, conversion
from poseprojects.train.checkpoints import load_checkpoint, seed_everything
from poseprojects.train.devices import Devices
from poseprojects.train.engine import Method, Plan, fit
from poseprojects.train.evaluation import ConstantDepth, evaluate
from poseprojects.train.schedules import Schedule

pytestmark = pytest.mark.usefixtures("one_thread")
PLAN = Plan("test", 1, 64, 1e-3)


def small(train, seed=0, **options):
    "A narrow method whose depths are not all near zero."
    seed_everything(seed)
    method = build(train, Config(**{**dict(width=32, hz=None), **options}))
    for network in (method.generator, method.discriminator):
        if network is not None:
            for layer in network.layers: nn.init.normal_(layer.weight, 0., 0.2)
    return method

def once(method, batch, plan=PLAN):
    "One step; what it reported and the optimisers."
    optimizers = {name: s.optimizer for name, s in method.optimizers(plan).items()}
    method.train()
    return method.step(batch, optimizers), optimizers

def weights(network): return [p.detach().clone() for p in network.parameters()]
def moved(network, before): return any(not torch.equal(a, b) for a, b in zip(network.parameters(), before))

# ---------------------------------------------------------------- networks

@pytest.mark.parametrize("make, count", [(lambda: Perceptron(34, 17), 2_152_465), (lambda: Perceptron(34, 1), 2_136_065), (lambda: Perceptron(34, 17, normed=True), 2_158_609)])
def test_parameter_counts(make, count): assert sum(p.numel() for p in make().parameters()) == count

def test_the_network_is_the_one_of_the_equations():
    network, x = Perceptron(34, 17, 24).double(), torch.randn(5, 17, 2, dtype=torch.float64)
    for layer in network.layers: nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    (w1, b1), (w2, b2), (w3, b3), (w4, b4) = ((layer.weight, layer.bias) for layer in network.layers)
    leaky = lambda v: torch.where(v > 0, v, 0.2 * v)
    h1 = leaky(x.flatten(1) @ w1.T + b1)
    h3 = leaky(leaky(h1 @ w2.T + b2) @ w3.T + b3 + h1)
    assert torch.allclose(network(x), h3 @ w4.T + b4)

def test_the_supervised_network_norms_before_the_sum():
    network, x = Perceptron(34, 17, 24, normed=True).double(), torch.randn(50, 34, dtype=torch.float64)
    for layer in network.layers: nn.init.normal_(layer.weight)
    norm = lambda v: (v - v.mean(0)) / (v.var(0, unbiased=False) + 2e-5).sqrt()
    l1, l2, l3, l4 = network.layers
    h1 = norm(l1(x)).relu()
    assert torch.allclose(network(x), l4((norm(l3(norm(l2(h1)).relu())) + h1).relu()))

def test_weights_begin_as_released():
    network = Perceptron(34, 17)
    for layer in network.layers: assert not layer.bias.any() and 0.0185 < float(layer.weight.detach().std()) < 0.0215

# ---------------------------------------------------------------- one step

def slow_losses(method, seen, angle):
    "The losses of the release in double precision, sample by sample."
    generator, discriminator = copy.deepcopy(method.generator).double(), copy.deepcopy(method.discriminator).double()
    seen, s, total = seen.double(), method.reading.skeleton, {"fooling": 0., "facing": 0., "judging": 0.}
    right = 0.
    for x, theta in zip(seen, angle.double()):
        z = generator(x[None])[0]
        fake = torch.stack([x[:, 0] * theta.cos() + z * theta.sin(), x[:, 1]], 1)
        of_real, of_fake = discriminator(x[None])[0, 0], discriminator(fake[None])[0, 0]
        v0 = torch.stack([z[9] - z[8], x[9, 0] - x[8, 0]])
        v1 = torch.stack([z[14] - z[11], x[14, 0] - x[11, 0]])
        sine = (v0[0] * v1[1] - v0[1] * v1[0]) / (v0.norm() * v1.norm())
        total["fooling"] += torch.log(1 + torch.exp(-of_fake)) / len(seen)
        total["facing"] += max(0., -float(sine)) / len(seen)
        total["judging"] += (torch.log(1 + torch.exp(-of_real)) + torch.log(1 + torch.exp(of_fake))) / len(seen)
        right += (float(of_real > 0) + float(of_fake <= 0)) / 2 / len(seen)
    return {name: float(value) for name, value in total.items()}, right

def test_losses_are_those_written_out(train):
    method, batch = small(train), some(train, 40)
    seen = method.reading(batch.pose_2d)
    torch.manual_seed(5)
    angle = 2 * math.pi * torch.rand(40, 1)[:, 0]
    with torch.no_grad(): wanted, accuracy = slow_losses(method, seen, angle)
    torch.manual_seed(5)
    found, _ = once(method, batch)
    for name, value in wanted.items(): assert float(found[name].detach()) == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert float(found["accuracy"]) == pytest.approx(accuracy) and 0 < wanted["facing"]

@pytest.mark.parametrize("heuristic", [0., 1., 0.3])
def test_gradients_are_those_of_two_separate_losses(train, heuristic):
    method, batch = small(train, heuristic=heuristic, cap=1.), some(train, 32)
    other = copy.deepcopy(method)
    torch.manual_seed(7)
    once(method, batch)
    torch.manual_seed(7)
    seen = other.reading(batch.pose_2d)
    pose = torch.cat([seen, other.generator(seen)[..., None]], -1)
    fake = turned(pose, azimuth(2 * math.pi * torch.rand(32, 1)[:, 0]))[..., :2]
    sine = facing(pose, H36M17)
    g = torch.autograd.grad(F.softplus(-other.discriminator(fake)).mean() + heuristic * (-sine).clamp_min(0).mean(), list(other.generator.parameters()), retain_graph=True)
    d = torch.autograd.grad(F.softplus(-other.discriminator(seen)).mean() + F.softplus(other.discriminator(fake.detach())).mean(), list(other.discriminator.parameters()))
    for network, gradients in ((method.generator, g), (method.discriminator, d)):
        for p, wanted in zip(network.parameters(), gradients): assert torch.allclose(p.grad, wanted, atol=1e-6, rtol=1e-4)

def test_only_depths_carry_a_gradient_and_no_y_changes(train):
    method, batch = small(train), some(train, 16)
    seen = method.reading(batch.pose_2d).requires_grad_()
    depth = torch.randn(16, 17, requires_grad=True)
    fake = orthographic(turned(torch.cat([seen.detach(), depth[..., None]], -1), azimuth(torch.rand(16) * 6)))
    assert torch.allclose(fake[..., 1], seen[..., 1], atol=1e-6)
    assert not torch.autograd.grad(fake[..., 1].sum(), depth, retain_graph=True)[0].any() and torch.autograd.grad(fake[..., 0].sum(), depth)[0].abs().min() > 0

def test_the_heuristic_speaks_to_four_joints():
    pose = torch.randn(6, 17, 3, requires_grad=True)
    F.relu(-facing(pose, H36M17)).sum().backward()
    assert {H36M17.joints[j] for j in pose.grad.abs().sum((0, 2)).nonzero().flatten()} == {"thorax", "neck_nose", "left_shoulder", "right_shoulder"}
    assert not pose.grad[..., 1].any()

def test_the_discriminator_never_sees_3d(train):
    method, seen = small(train), []
    method.discriminator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    blind = replace(train, pose_3d=None)
    torch.manual_seed(0); a, _ = once(method, some(blind, 32))
    assert seen[0].shape == (64, 17, 2) and torch.equal(seen[0][:32], method.reading(some(train, 32).pose_2d))

def test_a_hip_at_another_depth_moves_the_fake(train):
    "The predicted depth of the hip is not taken away: all depths with the same offset give another picture."
    method, batch = small(train), some(train, 8)
    pose = method.lifted(method.reading(batch.pose_2d))
    angle = azimuth(torch.full((8,), 0.5))
    there = orthographic(turned(pose + torch.tensor([0., 0., 1.]), angle)) - orthographic(turned(pose, angle))
    assert torch.allclose(there[..., 0], torch.full((8, 17), math.sin(0.5)), atol=1e-5)

# ---------------------------------------------------------------- the inversion

def test_an_inverted_generator_makes_the_same_fakes(train):
    method = small(train)
    with torch.no_grad(): pose = method.lifted(method.reading(some(train, 500).pose_2d)).double()
    angle = 2 * math.pi * torch.rand(len(pose), dtype=torch.float64)
    inverted = pose * torch.tensor([1., 1., -1.])
    true, mirrored = orthographic(turned(pose, azimuth(angle))), orthographic(turned(inverted, azimuth(2 * math.pi - angle)))
    assert float((true - mirrored).abs().max()) < 1e-6 and float((facing(pose, H36M17) + facing(inverted, H36M17)).abs().max()) < 1e-6
    with torch.no_grad(): assert torch.allclose(method.discriminator(true.float()), method.discriminator(mirrored.float()), atol=1e-4)

def test_inversion_is_the_same_loss_without_the_heuristic_and_another_with_it(train):
    method, batch = small(train), some(train, 300)
    seen = method.reading(batch.pose_2d)
    sums = []
    method.requires_grad_(False)
    for sign in (1., -1.):
        pose = torch.cat([seen, sign * method.generator(seen)[..., None]], -1)
        every = [F.softplus(-method.discriminator(orthographic(turned(pose, azimuth(torch.full((len(seen),), 2 * math.pi * k / 40)))))).mean() for k in range(40)]
        sums.append((torch.stack(every).mean(), F.relu(-facing(pose, H36M17)).mean()))
    (a, h), (b, i) = sums
    assert float((a - b).abs()) < 1e-5 and float((h - i).abs()) > 1e-3

def test_the_sine_of_true_and_inverted_bodies(train):
    body = train.pose_3d - train.pose_3d[:, :1]
    assert inverted_share(body, H36M17) < 0.05 and inverted_share(body * torch.tensor([1., 1., -1.]), H36M17) > 0.95
    assert inverted_share(body, H36M17) == pytest.approx(float((facing_sine(body, H36M17) < 0).float().mean()), abs=1e-3)

# ---------------------------------------------------------------- who waits

def judge_knows(method, real, fake):
    "Makes the discriminator give these scores to everything that is real and to every fake."
    original = method.discriminator.forward
    def scores(x):
        y = original(x) * 1e-6
        half = len(x) // 2
        return y + torch.cat([torch.full((half, 1), real), torch.full((len(x) - half, 1), fake)])
    method.discriminator.forward = scores

@pytest.mark.parametrize("real, fake, generator, discriminator", [(5., -5., True, False), (-5., 5., False, True), (5., 5., True, True)])
def test_who_is_too_good_waits(train, real, fake, generator, discriminator):
    method, batch = small(train), some(train, 32)
    judge_knows(method, real, fake)
    g, d = weights(method.generator), weights(method.discriminator)
    found, optimizers = once(method, batch)
    assert (moved(method.generator, g), moved(method.discriminator, d)) == (generator, discriminator)
    assert method.steps_made.tolist() == [int(generator), int(discriminator)] and [float(found[f"{n}_stepped"]) for n in ("generator", "discriminator")] == [generator, discriminator]
    for name, network, made in (("generator", method.generator, generator), ("discriminator", method.discriminator, discriminator)):
        assert all(optimizers[name].state[p]["step"] == int(made) for p in network.parameters())
    assert set(found) == {"fooling", "facing", "judging", "accuracy", "generator_stepped", "discriminator_stepped"}

@pytest.mark.parametrize("real, fake", [(5., -5.), (-5., 5.)])
def test_without_a_cap_nobody_waits(train, real, fake):
    method = small(train, cap=1.)
    judge_knows(method, real, fake)
    once(method, some(train, 32))
    assert method.steps_made.tolist() == [1, 1]

def test_the_cap_is_that_of_all_processes(train, monkeypatch):
    from poseprojects.train.parallel import Shard
    method, batch = small(train), some(train, 32)
    judge_knows(method, 5., -5.) # here the discriminator is right
    monkeypatch.setattr(Shard, "mean_", lambda self, values: values.copy_(torch.full_like(values, 0.6))) # in all processes together it is not
    once(method, batch)
    assert method.steps_made.tolist() == [1, 1]

def test_the_decay_is_part_of_the_gradient(train):
    method = small(train)
    for scheduled in method.optimizers(PLAN).values():
        assert type(scheduled.optimizer) is torch.optim.Adam
        assert [(g["weight_decay"], g["betas"], g["fused"]) for g in scheduled.optimizer.param_groups] == [(1e-5, (0.5, 0.999), True)]
        assert sum(len(g["params"]) for g in scheduled.optimizer.param_groups) == 8 # biases, too

# ---------------------------------------------------------------- supervised

def test_the_supervised_comparison_learns_normalised_depths(train):
    method, batch = small(train, supervised=True), some(train, 32)
    truth = batch.pose_3d - batch.pose_3d[:, :1]
    wanted = torch.stack([pose[:, 2] / pose[1:, :2].norm(dim=1).mean() for pose in truth])
    method.train()
    with torch.no_grad(): loss = (copy.deepcopy(method.generator)(method.reading(batch.pose_2d)) - wanted).square().mean()
    found, optimizers = once(method, batch)
    assert set(optimizers) == {"generator"} and float(found["depth_error"]) == pytest.approx(float(loss), rel=1e-5) and method.discriminator is None

def test_supervision_is_better_and_needs_3d(train, test):
    assert "no 3D" in refused(build, replace(train, pose_3d=None), VARIANTS["supervised"])
    method, few = small(train, supervised=True, width=128), test.select(torch.arange(0, len(test), 8))
    fit(method, train, Plan("short", 3, 64, 2e-3, Schedule("linear")), show=False)
    own = scoring(synthetic.PROTOCOL, method.config)[1]
    assert evaluate(method, few, own)["mpjpe"] < 0.7 * evaluate(small(train, heuristic=0.), few, own)["mpjpe"]

# ---------------------------------------------------------------- frames

def test_frames_are_thinned_clip_by_clip(train):
    few = thinned(train, 5)
    first, last = clip_bounds(train)
    assert len(few) == sum(-(-(int(b) - int(a) + 1) // 5) for a, b in {(int(a), int(b)) for a, b in zip(first, last)})
    assert few.frame_rate == 10. and few.frame_step == 5 * train.frame_step
    starts = set(few.frame[clip_bounds(few)[0]].tolist())
    assert starts == set(train.frame[first].tolist())
    few.check()

def test_rates_and_what_the_release_did(train):
    assert len(prepared(train, Config(hz=None))) == len(train) and prepared(train, Config()).frame_rate == 10. and prepared(train, VARIANTS["2hz"]).frame_rate == 2.
    assert prepared(train, Config(), "release").fingerprint == prepared(train, VARIANTS["2hz"]).fingerprint
    pictures = replace(train, frame_rate=1.)
    assert prepared(pictures, Config()) is pictures

# ---------------------------------------------------------------- how it is scored

def test_the_measure_of_the_release(train, test):
    method, few = small(train), test.select(torch.arange(0, len(test), 40))
    plain, own = scoring(synthetic.PROTOCOL, method.config)
    with torch.no_grad():
        seen = method.reading(few.pose_2d)
        normalised = torch.cat([seen, method.eval().generator(seen)[..., None]], -1)
    truth = few.pose_3d - few.pose_3d[:, :1]
    size = truth[:, 1:, :2].norm(dim=-1).mean(1)
    error = ((normalised - truth / size[:, None, None]).norm(dim=-1).mean(1) * size) # times that frame's scale
    wanted = torch.stack([error[few.action == a].mean() for a in few.action.unique()]).mean() if own.action_mean else error.mean()
    assert evaluate(method, few, own)["mpjpe"] == pytest.approx(1000 * float(wanted), rel=1e-4)
    assert plain.headline == "pa_mpjpe" and plain.id == synthetic.PROTOCOL.id and not plain.reflection

def test_an_offset_of_the_hip_costs_under_the_release_only(train, test):
    method, few = small(train), test.select(torch.arange(0, len(test), 40))
    plain, own = scoring(synthetic.PROTOCOL, method.config)
    before = [evaluate(method, few, p)["mpjpe"] for p in (plain, own)]
    with torch.no_grad(): method.generator.layers[-1].bias += 3.
    after = [evaluate(method, few, p)["mpjpe"] for p in (plain, own)]
    assert after[0] == pytest.approx(before[0], rel=1e-3) and after[1] > before[1] + 500

def test_the_unit_does_not_matter_with_an_oracle(train, test):
    few, found = test.select(torch.arange(0, len(test), 40)), []
    for metres in (0.41, 0.2):
        method = small(train, metres=metres)
        found.append([evaluate(method, few, p) for p in scoring(synthetic.PROTOCOL, method.config)])
    (plain, own), (plain2, own2) = found
    assert own["mpjpe"] == pytest.approx(own2["mpjpe"], rel=1e-4) and plain["mpjpe"] != pytest.approx(plain2["mpjpe"], rel=1e-2)
    for name in ("pa_mpjpe", "n_mpjpe"): assert plain[name] == pytest.approx(plain2[name], rel=1e-3)

def test_protocols():
    plain, own = scoring(CMU, Config())
    assert (plain.id, own.id, own.alignment, own.scale_oracle, own.headline, own.exclusions) == ("cmu", "cmu-kudo", "target", "in-plane", "mpjpe", CMU.exclusions)
    assert scoring(CMU, Config(), "release") == (own, plain)
    assert scoring(H36M_P1, Config())[1] == KUDO and scoring(MPI3DHP, Config())[0].skeleton == "mpi3dhp17"
    assert [p.id for p in scoring(CMU, Config(joints=15))] == ["cmu-15", "cmu-kudo-15"] and scoring(CMU, Config(joints=16))[1].skeleton == "h36m16"

@pytest.mark.parametrize("joints", [15, 16, 17])
def test_every_joint_set_answers_in_the_joints_of_the_data(train, joints):
    method = small(train, joints=joints)
    pose = method.predict(some(train, 8))
    seen = train.pose_2d[some(train, 8).index]
    assert pose.shape == (8, 1, 17, 3) and evaluate(method, train.select(torch.arange(0, 5000, 500)), scoring(synthetic.PROTOCOL, method.config)[0].but("x", subjects=()))["poses"] == 10
    known = [H36M17.index(n) for n in method.reading.skeleton.joints]
    flat = (seen - seen[:, :1]) / method.reading.size(seen)[:, None, None]
    assert torch.allclose(pose[:, 0, known, :2], method.config.metres * flat[:, known], atol=1e-5)

def test_one_picture(train):
    method = small(train).eval()
    people = torch.randn(2, 17, 2) * 50 + 300 # in COCO's joints
    pose_2d = conversion(COCO17, H36M17)(people)
    with torch.no_grad(): pose, again = method.lift(pose_2d), method.lift(3 * pose_2d - 40)
    assert pose.shape == (2, 17, 3) and torch.allclose(pose, again, atol=1e-4)

@pytest.mark.parametrize("options, word", [(dict(joints=14), "14"), (dict(cap=0.4), "0.4"), (dict(cap=1.1), "1.1"), (dict(heuristic=-1.), "-1.0"), (dict(hz=0.), "hz")])
def test_options_that_make_no_sense_are_refused(options, word): assert word in refused(Config, **options)

# ---------------------------------------------------------------- runs

def test_a_run_that_was_killed_ends_the_same(train, tmp_path):
    class Stopped(Exception): pass
    plan = Plan("killed", 2, 512, 1e-2, Schedule("linear"))
    make = lambda: small(train, cap=0.51) # so that both wait now and then
    whole, broken = make(), make()
    assert isinstance(whole, Method)
    fit(whole, train, plan, folder=tmp_path / "whole", show=False)
    step = broken.step
    def stops(batch, optimizers):
        if batch.clock.step == 7: raise Stopped
        return step(batch, optimizers)
    broken.step = stops
    with pytest.raises(Stopped): fit(broken, train, plan, folder=tmp_path / "broken", checkpoint_every=3, show=False)
    assert load_checkpoint(tmp_path / "broken" / "last.pt")["history"]["steps"] == 6
    resumed = small(train, seed=9, cap=0.51)
    history = fit(resumed, train, plan, folder=tmp_path / "broken", show=False)
    assert history.steps == 20 and all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))
    assert resumed.diary.rows == whole.diary.rows and len(whole.diary.rows) == 20 and 0 < int(whole.steps_made.min()) and int(whole.steps_made.sum()) < 40

def test_two_processes_are_one(train):
    plan, few = Plan("two", 1, 64, 1e-3), train.select(torch.arange(0, len(train), 4))
    alone, both = small(few, cap=0.6), small(few, cap=0.6)
    one = fit(alone, few, plan, show=False)
    two = fit(both, few, plan, device=Devices("cpu", processes=2), show=False)
    assert len(one.first_losses) == 20
    for a, b in zip(one.first_losses, two.first_losses): assert a.keys() == b.keys() and all(a[k] == pytest.approx(b[k], abs=1e-4) for k in a)
    assert torch.equal(alone.steps_made, both.steps_made)

def test_people_in_photographs_are_enough(tmp_path, monkeypatch):
    "From a set without 3D to scores on one that has it, by the steps of the train notebook; and the stored lifter is the one that was trained."
    monkeypatch.setenv("POSEPROJECTS_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("POSEPROJECTS_CACHE", str(tmp_path / "cache"))
    mpii.example(tmp_path / "mpii", "array")
    monkeypatch.setattr(synthetic, "load", lambda split, root=None, input_2d="gt", original=synthetic.load: original(split, samples=8000))
    run = Experiment(kudo, dict(dataset="mpii", data_root=str(tmp_path / "mpii"), variant="short-run-15", epochs=3, batch_size=6, also_test="synthetic", out_dir=str(tmp_path / "out")))
    train, _ = run.load()
    assert train.pose_3d is None and len(train) == 18 and run.trivial() == {}
    method = run.build()
    run.fit()
    assert run.evaluate() == {} and run.record() == []
    found = []
    monkeypatch.setattr(run, "_write", lambda name, test, protocol, scores, trivial="": found.append((name, protocol.id, trivial)) or "")
    scores = run.across()["synthetic"]
    assert scores["poses"] > 2000 and 0 < scores["pa_mpjpe"] < 400
    assert found == [("synthetic", "synthetic", "constant_depth"), ("synthetic", "synthetic-15", ""), ("synthetic", "synthetic-kudo-15", "")]
    stored, batch = zoo.load(None, tmp_path / "out"), some(train, 6)
    assert stored.paper == "kudo" and stored.config == run.config
    with torch.no_grad(): assert torch.equal(stored.method.predict(batch), method.eval().predict(batch))

def test_a_short_run_learns_depth_that_is_not_inverted(train, test):
    "Better than no depth, by the measure that knows the size, and facing the right way."
    seed_everything(0)
    method = build(train, Config(width=128, hz=None))
    fit(method, train, Plan("short", 6, 64, 2e-3, Schedule("linear", end=0.05)), show=False)
    few = test.select(torch.arange(0, len(test), 6))
    found, flat = evaluate(method, few, scoring(synthetic.PROTOCOL, method.config)[0]), evaluate(ConstantDepth(), few, synthetic.PROTOCOL)
    print({k: round(found[k], 1) for k in ("pa_mpjpe", "n_mpjpe", "depth_flip")}, round(flat["pa_mpjpe"], 1))
    assert found["pa_mpjpe"] < flat["pa_mpjpe"] and inverted_share(all_lifted(method, few), H36M17) < 0.15 and found["depth_flip"] < 40
