"Martinez et al.: what its document says must be there, against independent slow arithmetic; what it learns; its train notebook."
import json, math, os, subprocess, sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import real_data
from mocap_pack import make_pack
from torch import nn

from poseprojects.camera import camera_to_world, unproject
from poseprojects.data import cmu, synthetic
from poseprojects.data.base import PoseSet
from poseprojects.papers import martinez
from poseprojects.papers.martinez import PLANS, VARIANTS, BoundedLinear, Config, Martinez, ResidualMLP, as_released, joint_lists, network_input
from poseprojects.skeleton import H36M16, H36M17, H36M32, COCO17, Skeleton, convert
from poseprojects.storage import InputError, project_root
from poseprojects.train.checkpoints import load_checkpoint, seed_everything
from poseprojects.train.engine import Batch, Plan, fit
from poseprojects.train.evaluation import ConstantDepth, MeanPose, evaluate, evaluating, hypotheses
from conftest import some
from poseprojects.train.schedules import Clock, Schedule


pytestmark = pytest.mark.usefixtures("one_thread")


READ = ("pelvis right_hip right_knee right_ankle left_hip left_knee left_ankle spine thorax head "
        "left_shoulder left_elbow left_wrist right_shoulder right_elbow right_wrist").split()
WRITTEN = ("right_hip right_knee right_ankle left_hip left_knee left_ankle spine thorax neck_nose head "
           "left_shoulder left_elbow left_wrist right_shoulder right_elbow right_wrist").split()


# ---------------------------------------------------------------- joints

def test_the_two_lists_of_sixteen():
    read, written = joint_lists(H36M17, Config())
    assert [H36M17.joints[j] for j in read] == READ and [H36M17.joints[j] for j in written] == WRITTEN and len(READ) == len(WRITTEN) == 16
    assert set(READ) - set(WRITTEN) == {"pelvis"} and set(WRITTEN) - set(READ) == {"neck_nose"}

def test_fourteen_joints_out():
    _, written = joint_lists(H36M17, Config(joints_out=14))
    assert [H36M17.joints[j] for j in written] == [j for j in WRITTEN if j not in ("spine", "neck_nose")]

def test_seventeen_of_thirty_two():
    "Rows of the native Human3.6M array, as in the document's list."
    native = dict(zip("pelvis right_hip right_knee right_ankle left_hip left_knee left_ankle spine thorax neck_nose head left_shoulder left_elbow left_wrist right_shoulder right_elbow right_wrist".split(),
                      (0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27)))
    points = torch.arange(32.)[None, :, None].expand(1, 32, 3)
    assert convert(points, H36M32, H36M17)[0, :, 0].tolist() == [float(native[j]) for j in H36M17.joints]

def test_a_skeleton_without_the_joints_is_refused_by_name():
    with pytest.raises(InputError, match="coco17 has no head, pelvis, spine, thorax"): joint_lists(COCO17, Config())

def test_columns_are_found_by_name_not_by_place(train):
    "A set whose joints stand in another order gives the same statistics, the same loss and the same prediction."
    order = torch.randperm(17, generator=torch.Generator().manual_seed(2)).tolist()
    place = {old: new for new, old in enumerate(order)}
    parents = tuple(-1 if H36M17.parents[j] < 0 else place[H36M17.parents[j]] for j in order)
    shuffled = replace(train, skeleton=Skeleton("shuffled", tuple(H36M17.joints[j] for j in order), parents), pose_2d=train.pose_2d[:, order], pose_3d=train.pose_3d[:, order], confidence=train.confidence[:, order])
    seed_everything(0); a = Martinez.from_data(train, Config(width=32)).eval()
    seed_everything(0); b = Martinez.from_data(shuffled, Config(width=32)).eval()
    with torch.no_grad(): pa, pb = a.predict(some(train))[:, 0], b.predict(some(shuffled))[:, 0]
    assert torch.equal(a.output_statistics.mean, b.output_statistics.mean) and torch.equal(pa[:, order], pb)


# ---------------------------------------------------------------- normalisation

def test_pixels_of_the_whole_image_go_in(train):
    "Not centred on the root, not scaled by a box: a person who stands elsewhere is another input."
    method, batch = Martinez.from_data(train, Config(width=32)), some(train)
    x = network_input(batch.pose_2d[:, method.read], "image")
    assert torch.equal(x, batch.pose_2d[:, [H36M17.index(j) for j in READ]].flatten(1)) # x0 y0 x1 y1 ...
    method.eval()
    assert not torch.allclose(method(batch.pose_2d), method(batch.pose_2d + 50), atol=1e-3) and not torch.allclose(method(batch.pose_2d), method(batch.pose_2d * 1.1), atol=1e-3)
    rooted = Martinez.from_data(train, Config(width=32, centring="root")).eval()
    assert torch.allclose(rooted(batch.pose_2d), rooted(batch.pose_2d + 64), atol=1e-3)

def test_statistics_are_those_of_the_training_set(train, test):
    method = Martinez.from_data(train, Config(width=32))
    pixels = train.pose_2d[:, [H36M17.index(j) for j in READ]].reshape(len(train), 32).double().numpy()
    target = (train.pose_3d - train.pose_3d[:, :1])[:, [H36M17.index(j) for j in WRITTEN]].reshape(len(train), 48).double().numpy()
    for statistics, values in ((method.input_statistics, pixels), (method.output_statistics, target)):
        np.testing.assert_allclose(statistics.mean, values.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(statistics.std, values.std(0), rtol=1e-4)
    before = {k: v.clone() for k, v in method.state_dict().items()}
    evaluate(method, test, synthetic.PROTOCOL)
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items()) # scoring takes no new statistics

def test_statistics_travel_in_the_checkpoint(train, test, tmp_path):
    seed_everything(0)
    method = Martinez.from_data(train, Config(width=32))
    fit(method, train, Plan("short", 1, 256, 1e-3), folder=tmp_path)
    fresh = Martinez(H36M17, Config(width=32)) # never saw the data
    assert float(fresh.input_statistics.mean.abs().sum()) == 0.
    fresh.load_state_dict(load_checkpoint(tmp_path / "last.pt")["method"])
    for name in ("input_statistics.mean", "input_statistics.std", "output_statistics.mean", "output_statistics.std", "mean_pose"): assert torch.equal(fresh.state_dict()[name], method.state_dict()[name])
    assert evaluate(fresh, test, synthetic.PROTOCOL) == evaluate(method, test, synthetic.PROTOCOL)

def test_a_number_that_never_changes(train):
    "The pelvis of root-centred 2D has no deviation; dividing by it would give NaN."
    method = Martinez.from_data(train, Config(width=32, centring="root")).eval()
    assert method.input_statistics.std[:2].tolist() == [1., 1.] and bool((method.input_statistics.std > 0).all())
    assert bool(method(some(train).pose_2d).isfinite().all())
    still = replace(train, pose_3d=train.pose_3d[:1].expand(len(train), -1, -1).contiguous())
    stiff = Martinez.from_data(still, Config(width=32)).eval()
    assert bool((stiff.output_statistics.std > 0).all()) and bool(stiff.predict(some(still)).isfinite().all())

def test_supervision_needs_3d(train):
    with pytest.raises(InputError, match="no 3D poses"): Martinez.from_data(replace(train, pose_3d=None))


# ---------------------------------------------------------------- the network

def test_parameter_counts():
    count = lambda network: sum(p.numel() for p in network.parameters())
    assert count(ResidualMLP(32, 48)) == 4_291_632 == 33_792 + 4 * 1_049_600 + 49_200 + 10_240
    assert count(ResidualMLP(32, 42)) == 4_285_482 and count(ResidualMLP(32, 48, Config(batch_norm=False))) == 4_281_392
    assert count(Martinez(H36M17)) == 4_291_632 and count(Martinez(H36M17, Config(joints_out=14))) == 4_285_482

def test_acting_norm_is_at_most_one_in_every_layer():
    torch.manual_seed(0)
    layers = [m for m in ResidualMLP(32, 48, Config(width=128)).modules() if isinstance(m, nn.Linear)]
    assert len(layers) == 6 and all(isinstance(l, BoundedLinear) and l.max_norm for l in layers)
    for layer in layers:
        for size in (0.3, 1., 1.5, 40.):
            with torch.no_grad(): layer.weight.mul_(size / layer.weight.norm())
            acting = layer(torch.eye(layer.in_features)) - layer.bias # the matrix that acts, seen from outside
            assert float(acting.detach().norm()) == pytest.approx(min(size, 1.), rel=1e-4)
            assert float(layer.weight.detach().norm()) == pytest.approx(size, rel=1e-5) # the stored one is left alone

@pytest.mark.parametrize("size", [0.5, 3.])
def test_gradients_flow_through_the_norm(size):
    "Against central differences of the formula, element by element, in double precision."
    torch.manual_seed(1)
    layer = BoundedLinear(5, 4).double()
    with torch.no_grad(): layer.weight.mul_(size / layer.weight.norm())
    x, weight, bias = torch.randn(7, 5).double().numpy(), layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy()
    def loss(W, b):
        norm = math.sqrt(sum(float(w) ** 2 for w in W.ravel()))
        return sum(math.sin(sum(W[o, i] * min(1., 1. / norm) * row[i] for i in range(5)) + b[o]) for row in x for o in range(4))
    value = layer(torch.tensor(x)).sin().sum()
    assert float(value.detach()) == pytest.approx(loss(weight, bias), abs=1e-12)
    value.backward()
    for parameter, array in ((layer.weight, weight), (layer.bias, bias)):
        slow = np.zeros_like(array)
        for index in np.ndindex(*array.shape):
            up, down = array.copy(), array.copy()
            up[index] += 1e-5; down[index] -= 1e-5
            pair = [(up, bias), (down, bias)] if array is weight else [(weight, up), (weight, down)]
            slow[index] = (loss(*pair[0]) - loss(*pair[1])) / 2e-5
        np.testing.assert_allclose(parameter.grad.numpy(), slow, atol=2e-8)
    if size > 1: assert abs(float((layer.weight.grad * layer.weight).sum())) < 1e-8 # along the weight itself nothing changes

def test_starts_from_a_cut_normal_distribution():
    torch.manual_seed(0)
    network = ResidualMLP(32, 48)
    for layer in (m for m in network.modules() if isinstance(m, BoundedLinear)):
        for values, fan_in in ((layer.weight, layer.in_features), (layer.bias, layer.out_features)):
            scaled = values.detach().flatten() / math.sqrt(2 / fan_in)
            assert float(scaled.abs().max()) <= 2. and float(scaled.abs().max()) > 1.5
            assert float(scaled.std()) == pytest.approx(0.8796, abs=4 / math.sqrt(2 * len(scaled))) and abs(float(scaled.mean())) < 4 / math.sqrt(len(scaled))
    hidden, last = network.blocks[0][0][0], network.last
    assert float(hidden.weight.detach().norm()) == pytest.approx(39.8, abs=0.2) and float(last.weight.detach().norm()) == pytest.approx(8.6, abs=0.2)

def test_batch_norm_as_in_tensorflow_1():
    norms = [m for m in ResidualMLP(32, 48).modules() if isinstance(m, nn.BatchNorm1d)]
    assert len(norms) == 5 and all((m.momentum, m.eps, m.affine, m.track_running_stats, m.num_features) == (0.01, 1e-3, True, True, 1024) for m in norms)

def test_order_of_layers_and_places_of_dropout():
    network = ResidualMLP(32, 48, Config(dropout=0.3))
    every = [network.first, *(layer for block in network.blocks for layer in block)]
    assert len(every) == 5 and all([type(m) for m in layer] == [BoundedLinear, nn.BatchNorm1d, nn.ReLU, nn.Dropout] for layer in every)
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == [0.3] * 5 # to drop, not to keep
    assert type(network.last) is BoundedLinear and sum(isinstance(m, nn.Dropout) for m in network.modules()) == 5

def slow_forward(network, x):
    "The network at test time, in plain numpy and double precision, from its stored numbers alone."
    state = {k: v.double().numpy() for k, v in network.state_dict().items()}
    def linear(h, name):
        W = state[f"{name}.weight"]
        return h @ (W * min(1., 1. / np.sqrt((W ** 2).sum()))).T + state[f"{name}.bias"]
    def layer(h, name):
        h = linear(h, f"{name}.0")
        h = (h - state[f"{name}.1.running_mean"]) / np.sqrt(state[f"{name}.1.running_var"] + 1e-3) * state[f"{name}.1.weight"] + state[f"{name}.1.bias"]
        return np.maximum(h, 0)
    h = layer(x.double().numpy(), "first")
    for k in range(2): h = layer(layer(h, f"blocks.{k}.0"), f"blocks.{k}.1") + h
    return linear(h, "last")

def test_the_network_is_the_formula():
    torch.manual_seed(3)
    network = ResidualMLP(32, 48, Config(width=64))
    for m in network.modules():
        if isinstance(m, nn.BatchNorm1d): # as after some training
            for values, low in ((m.weight, 0.5), (m.bias, -1.), (m.running_mean, -.1), (m.running_var, .01)): nn.init.uniform_(values, low, abs(low) * 2)
    x = torch.randn(9, 32)
    np.testing.assert_allclose(network.eval()(x).detach().numpy(), slow_forward(network, x), atol=1e-5)

def test_nothing_follows_the_sum_of_a_block():
    "In training, where dropout would show: what a block hands on is exactly its input plus its branch."
    torch.manual_seed(4)
    network, seen = ResidualMLP(32, 48, Config(width=64)).train(), {}
    for name, module in (("in 0", network.first), ("branch 0", network.blocks[0]), ("branch 1", network.blocks[1])): module.register_forward_hook(lambda m, i, o, name=name: seen.__setitem__(name, o))
    network.blocks[1].register_forward_pre_hook(lambda m, i: seen.__setitem__("in 1", i[0]))
    network.last.register_forward_pre_hook(lambda m, i: seen.__setitem__("out", i[0]))
    network(torch.randn(200, 32))
    assert torch.equal(seen["in 1"], seen["in 0"] + seen["branch 0"]) and torch.equal(seen["out"], seen["in 1"] + seen["branch 1"])
    for name in ("in 0", "branch 0", "branch 1"): assert 0.6 < float((seen[name] == 0).float().mean()) < 0.9 # half by ReLU, half of the rest by dropout
    assert float(seen["out"].min()) >= 0. and float((seen["out"] == 0).float().mean()) < 0.6

def test_the_loss_is_the_formula(train):
    "Mean over batch and 48 standardised numbers, by a loop."
    seed_everything(0)
    method = Martinez.from_data(train, Config(width=16, dropout=0.))
    batch = some(train, 20)
    with torch.no_grad(): guess = method.train()(batch.pose_2d)
    total = 0.
    for b in range(20):
        for k, joint in enumerate(WRITTEN):
            for axis in range(3):
                y = float(batch.pose_3d[b, H36M17.index(joint), axis] - batch.pose_3d[b, 0, axis])
                y = (y - float(method.output_statistics.mean[3 * k + axis])) / float(method.output_statistics.std[3 * k + axis])
                total += (float(guess[b, 3 * k + axis]) - y) ** 2
    seed_everything(0)
    again = Martinez.from_data(train, Config(width=16, dropout=0.))
    optimizers = {n: s.optimizer for n, s in again.optimizers(PLANS["paper"]).items()}
    losses = again.train().step(batch, optimizers)
    assert set(losses) == {"mse"} and float(losses["mse"].detach()) == pytest.approx(total / (20 * 48), rel=1e-5)
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for n, p in again.named_parameters() if not (n.endswith(".0.bias") or "weight" in n and p.ndim > 1))


# ---------------------------------------------------------------- the recipe

def test_the_recipe_of_the_release():
    paper = PLANS["paper"]
    assert (paper.epochs, paper.batch_size, paper.learning_rate, paper.drop_last, paper.clip_norm) == (200, 64, 1e-3, True, None)
    rates = [paper.learning_rate * paper.schedule(Clock(step=s, steps=4_874_200)) for s in (0, 1, 50_000, 100_000, 4_874_200)]
    assert rates == pytest.approx([1e-3, 1e-3 * 0.96 ** 1e-5, 1e-3 * 0.96 ** 0.5, 0.96e-3, 1e-3 * 0.96 ** 48.742], rel=1e-12)
    assert rates[-1] == pytest.approx(1.37e-4, abs=5e-7) and len(set(rates)) == 5 # continuous: it moves with every step
    assert 1_559_744 // 64 * 200 == 4_874_200

def test_the_optimiser_is_adam(train):
    method = Martinez.from_data(train, Config(width=16))
    lifter = method.optimizers(PLANS["paper"])["lifter"]
    group, = lifter.optimizer.param_groups
    assert type(lifter.optimizer) is torch.optim.Adam and lifter.schedule == PLANS["paper"].schedule
    assert (group["betas"], group["eps"], group["weight_decay"], group["lr"], group["amsgrad"]) == ((0.9, 0.999), 1e-8, 0, 1e-3, False)
    assert {id(p) for p in group["params"]} == {id(p) for p in method.parameters()}

def test_the_rate_that_the_optimiser_gets_falls_with_every_step(train):
    seen = []
    class Looks(Martinez):
        def step(self, batch, optimizers):
            seen.append(optimizers["lifter"].param_groups[0]["lr"])
            return super().step(batch, optimizers)
    fit(Looks.from_data(train, Config(width=8)), train, replace(PLANS["paper"], epochs=1))
    assert seen == pytest.approx([1e-3 * 0.96 ** (s / 100_000) for s in range(len(train) // 64)], rel=1e-12)

@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_builds_and_trains(train, test, name):
    full = VARIANTS[name]
    method = Martinez.from_data(train, replace(full, width=min(full.width, 128)))
    assert Martinez(H36M17, full).network.last.out_features == 3 * full.joints_out
    before = {k: v.clone() for k, v in method.named_parameters()}
    few = train.select(torch.arange(0, len(train), 40))
    history = fit(method, few, Plan("two steps", 1, len(few) // 2, 1e-3))
    assert history.steps == 2 and all(np.isfinite(row["mse"]) for row in history.first_losses)
    assert all(not torch.equal(before[k], v) for k, v in method.named_parameters())
    with evaluating(method): pose = method.predict(some(test))
    assert pose.shape == (64, 1, 17, 3) and bool(pose.isfinite().all()) and float(pose[:, 0, H36M17.root].abs().max()) == 0.

def test_variants_differ_from_the_paper_in_what_their_name_says():
    assert VARIANTS["paper"] == Config() == Config(width=1024, blocks=2, dropout=0.5, batch_norm=True, residual=True, max_norm=True, frame="camera", centring="image", joints_out=16, turn=False, flip=False)
    axes = {"batch_norm", "dropout", "residual", "max_norm", "frame", "blocks", "width", "centring", "joints_out", "turn", "flip"}
    assert {k for c in VARIANTS.values() for k, v in vars(c).items() if v != getattr(Config(), k)} == axes
    kinds = lambda name: {type(m) for m in Martinez(H36M17, VARIANTS[name]).modules()}
    assert nn.BatchNorm1d not in kinds("no-batch-norm") and nn.Dropout not in kinds("no-dropout") and not any(m.max_norm for m in Martinez(H36M17, VARIANTS["no-max-norm"]).modules() if isinstance(m, BoundedLinear))

@pytest.mark.parametrize("options", [dict(frame="robot"), dict(centring="box"), dict(joints_out=15), dict(dropout=1.), dict(dropout=-.1), dict(width=0), dict(blocks=-1)], ids=str)
def test_options_without_sense(options):
    with pytest.raises(InputError, match=next(iter(options))): Config(**options)


def test_a_turned_body_is_the_same_body_elsewhere(train):
    "Turning keeps the root, the bones and every height above the ground, and turns the rest by the angle that was asked for."
    batch = some(train)
    camera, angle = batch.camera, torch.linspace(-3, 3, 64)
    body = martinez.turned(batch.pose_3d, angle, camera, 0)
    assert torch.allclose(body[:, 0], batch.pose_3d[:, 0], atol=1e-5) and torch.allclose(torch.cdist(body, body), torch.cdist(batch.pose_3d, batch.pose_3d), atol=1e-4)
    before, after = (camera_to_world(p, camera) - camera_to_world(p, camera)[:, :1] for p in (batch.pose_3d, body))
    assert torch.allclose(after[..., 2], before[..., 2], atol=1e-4)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    ways = [torch.stack([cos * before[..., 0] - s * sin * before[..., 1], s * sin * before[..., 0] + cos * before[..., 1]], -1) for s in (1, -1)]
    assert min(float((after[..., :2] - w).abs().max()) for w in ways) < 1e-4

@pytest.mark.parametrize("options", [dict(turn=True), dict(flip=True), dict(turn=True, flip=True)], ids=str)
def test_augmented_pairs_belong_together(train, options):
    "2D and 3D after augmentation are still those of one body before one camera; left stays left of the body."
    method = Martinez.from_data(train, Config(width=16, **options))
    batch = some(train, 200)
    torch.manual_seed(0)
    pose_2d, target = method.augmented(batch)
    depth = batch.pose_3d[:, :1, 2] + target[..., 2] # the root keeps its depth
    seen = unproject(pose_2d, depth, batch.camera)
    assert torch.allclose(seen - seen[:, :1], target, atol=5e-3) # millimetres are left to the mirror: tangential distortion is not symmetric
    from poseprojects.data.base import facing_agreement
    assert facing_agreement(target, H36M17) > 0.9 # a person still
    changed = (pose_2d - batch.pose_2d).abs().amax((1, 2)) > 1
    assert 0.3 < float(changed.float().mean()) < 0.7 if options == dict(flip=True) else bool(changed.float().mean() > 0.95)
    plain = Martinez.from_data(train, Config(width=16))
    assert torch.equal(plain.augmented(batch)[0], batch.pose_2d) and torch.equal(plain.augmented(batch)[1], batch.target)

def test_augmentation_is_for_training_only(train, test):
    method = Martinez.from_data(train, Config(width=16, turn=True, flip=True)).eval()
    assert torch.equal(method.predict(some(test)), method.predict(some(test)))


# ---------------------------------------------------------------- what comes out

def test_the_pelvis_is_exactly_the_origin(train, test):
    for name in ("paper", "14-joints", "world-frame"):
        method = Martinez.from_data(train, replace(VARIANTS[name], width=32)).eval()
        with torch.no_grad(): pose = method.predict(some(test))
        assert torch.equal(pose[:, :, H36M17.root], torch.zeros(64, 1, 3))

def test_a_prediction_is_unstandardised_metres(train, test):
    method = Martinez.from_data(train, Config(width=32)).eval()
    batch = some(test)
    with torch.no_grad(): pose, numbers = method.predict(batch)[:, 0], method(batch.pose_2d)
    expected = (numbers * method.output_statistics.std + method.output_statistics.mean).reshape(64, 16, 3)
    assert torch.allclose(pose[:, [H36M17.index(j) for j in WRITTEN]], expected, atol=1e-6)
    perfect = Martinez.from_data(train, Config(width=32))
    perfect.forward = lambda pose_2d: perfect.output_statistics(perfect.desired(batch.target, batch).flatten(1)) # whoever gives the right numbers scores zero
    assert float((perfect.predict(batch)[:, 0] - batch.target).abs().max()) < 1e-5

def test_fourteen_joints_leave_the_mean_in_the_others(train, test):
    method = Martinez.from_data(train, Config(width=32, joints_out=14)).eval()
    mean = (train.pose_3d - train.pose_3d[:, :1]).double().mean(0)
    with torch.no_grad(): pose = method.predict(some(test))[:, 0]
    for joint in ("spine", "neck_nose"): assert torch.allclose(pose[:, H36M17.index(joint)].double(), mean[H36M17.index(joint)].expand(64, 3), atol=1e-5)
    assert float(pose[:, H36M17.index("head")].std(0).max()) > 1e-4

def test_sixteen_joints_without_neck(train):
    "A set of 16 joints is read and written as it is: 15 joints out."
    small = replace(train, skeleton=H36M16, **{k: convert(getattr(train, k), H36M17, H36M16) for k in ("pose_2d", "pose_3d")}, confidence=train.confidence[:, :16].contiguous())
    method = Martinez.from_data(small, Config(width=32)).eval()
    assert method.network.last.out_features == 45 and method.predict(some(small)).shape == (64, 1, 16, 3)

def test_the_world_frame_is_a_rotation_away(train, test):
    "Targets are the world's; errors are the same in both frames because a rotation keeps lengths."
    method = Martinez.from_data(train, Config(width=32, frame="world")).eval()
    batch = some(test)
    world = camera_to_world(batch.pose_3d.double(), test.cameras[test.camera_id[batch.index].long()])
    wanted = (world - world[:, :1])[:, method.written]
    assert float((method.desired(batch.target, batch) - wanted).abs().max()) < 1e-5
    with torch.no_grad(): camera, numbers = method.predict(batch)[:, 0], method(batch.pose_2d)
    lifted = method.output_statistics.inverse(numbers).unflatten(1, (16, 3)).double()
    in_world, in_camera = (lifted - wanted).norm(dim=-1).mean(1), (camera - batch.target)[:, method.written].norm(dim=-1).mean(1)
    assert torch.allclose(in_world.float(), in_camera, atol=1e-5)
    level = method.desired(batch.target, batch)[:, WRITTEN.index("head"), 2]
    assert float(level.mean()) > 0.3 # z of the world is up, y of a camera is down

def test_the_released_evaluation_drops_the_rest_of_every_action(test):
    test = test.select(torch.arange(len(test)) % 11 != 0)
    released = as_released(test, synthetic.PROTOCOL)
    dropped = 0
    assert max(int((test.action == a).sum()) % 64 for a in range(len(test.action_names))) >= 32 # full batches of 64, not of 32
    for a in range(len(test.action_names)):
        before, after = (s.frame[s.action == a] for s in (test, released))
        assert torch.equal(after, before[: len(before) // 64 * 64])
        dropped += len(before) % 64
    assert len(released) == len(test) - dropped and dropped > 0
    assert martinez.scored(test, synthetic.PROTOCOL, "paper") is test and len(martinez.scored(test, synthetic.PROTOCOL, "release")) == len(released)

def test_one_picture_of_ones_own(train, test, tmp_path):
    "One pose from elsewhere, joints in another order, no 3D, with the statistics of the checkpoint."
    seed_everything(0)
    trained = Martinez.from_data(train, Config(width=32))
    fit(trained, train, Plan("short", 1, 256, 1e-3), folder=tmp_path)
    detector = Skeleton("my-detector", tuple(reversed(H36M17.joints)), tuple(-1 if p < 0 else 16 - p for p in reversed(H36M17.parents)))
    found = test.pose_2d[41].flip(0) # what the detector wrote, in its order
    method = Martinez(H36M17, Config(width=32))
    method.load_state_dict(load_checkpoint(tmp_path / "last.pt")["method"])
    zero = torch.zeros(1, dtype=torch.int32)
    picture = PoseSet.create(name="mine", skeleton=H36M17, pose_2d=convert(found[None], detector, H36M17), cameras=test.cameras[:1], camera_id=zero, subject=zero.clone(), action=zero.clone(), sequence=zero.clone(),
                             frame=zero.clone(), subject_names=("me",), action_names=("photo",), sequence_names=("photo",), frame_rate=1., input_2d="my-detector")
    with evaluating(method): pose = method.predict(Batch(picture, torch.tensor([0])))
    with evaluating(trained): expected = trained.predict(Batch(test, torch.tensor([41])))
    assert torch.allclose(pose, expected, atol=1e-6)
    with evaluating(method): wrong = method.predict(Batch(replace(picture, pose_2d=found[None]), torch.tensor([0])))
    assert not torch.allclose(wrong, expected, atol=1e-2) # without the map the answer is another one


# ---------------------------------------------------------------- what it learns

QUICK = Plan("learning", epochs=6, batch_size=128, learning_rate=3e-3, schedule=Schedule("one_cycle", end=0.001))
LEARNT_SYNTHETIC, LEARNT_CMU = 0.45, 0.48 # largest share of the mean pose's error; measured: 73.5 of 213.2 mm (0.34) and 67.4 of 179.4 mm (0.38), some 5 s of training each on a quiet core

@pytest.mark.slow
def test_it_learns_on_synthetic_motion():
    "Other people than those it was trained on."
    train, test = synthetic.load("train", samples=20_000), synthetic.load("test", samples=20_000)
    seed_everything(0)
    method = Martinez.from_data(train, Config(width=192, centring="root+position", dropout=0.2))
    history = fit(method, train, QUICK)
    mean, flat, learnt = (evaluate(m, test, synthetic.PROTOCOL) for m in (MeanPose(train), ConstantDepth(), method))
    print(f"synthetic: MPJPE {learnt['mpjpe']:.1f} mm, mean pose {mean['mpjpe']:.1f} mm, constant depth {flat['mpjpe']:.1f} mm, in {history.seconds:.1f} s")
    assert learnt["mpjpe"] < LEARNT_SYNTHETIC * mean["mpjpe"] and learnt["mpjpe"] < flat["mpjpe"] and learnt["pa_mpjpe"] < mean["pa_mpjpe"]
    assert history.rows[-1]["loss/mse"] < 0.5 * history.rows[0]["loss/mse"]

@pytest.mark.slow
@pytest.mark.data
def test_it_learns_on_real_motion():
    "A slice of the CMU recordings, every eighth sample; scored on subjects it never saw."
    root = real_data("cmu")
    train, test = cmu.load("train", root), cmu.load("test", root)
    train, test = train.select(torch.arange(0, len(train), 8)), test.select(torch.arange(0, len(test), 8))
    seed_everything(0)
    method = Martinez.from_data(train, Config(width=192, centring="root+position", dropout=0.2))
    history = fit(method, train, QUICK)
    mean, learnt = (evaluate(m, test, cmu.PROTOCOL) for m in (MeanPose(train), method))
    print(f"cmu: MPJPE {learnt['mpjpe']:.1f} mm, mean pose {mean['mpjpe']:.1f} mm, in {history.seconds:.1f} s")
    assert learnt["mpjpe"] < LEARNT_CMU * mean["mpjpe"] and learnt["pa_mpjpe"] < mean["pa_mpjpe"]
    shuffled = replace(test, pose_2d=test.pose_2d.flip(0).contiguous())
    assert evaluate(method, shuffled, cmu.PROTOCOL)["mpjpe"] > 1.5 * learnt["mpjpe"] # it looks at its input


# ---------------------------------------------------------------- the train notebook

NOTEBOOK = project_root() / "nbs" / "train_martinez.ipynb"

def code_cells():
    return [("parameters" in c["metadata"].get("tags", []), "".join(c["source"])) for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]

def test_the_parameters_are_tagged_and_explained():
    tagged = [source for tag, source in code_cells() if tag]
    assert len(tagged) == 1
    lines = [l for l in tagged[0].splitlines() if l.strip() and not l.startswith("#|")]
    assert all("=" in l and "# " in l for l in lines)
    names = {l.split("=")[0].strip() for l in lines}
    assert {"dataset", "data_root", "input_2d", "plan", "fidelity", "gpus", "seed", "epochs", "batch_size", "out_dir", "resume", "variant"} <= names

def run_until(marker, tmp_path, **given):
    "The notebook's cells with other parameters, up to and with the first that holds `marker`."
    space = {"__name__": "__main__"}
    for tag, source in code_cells():
        exec(compile(source, "train_martinez", "exec"), space)
        if tag: space.update(given)
        if marker in source: return space
    raise AssertionError(f"no cell holds {marker!r}")

@pytest.fixture
def own_places(tmp_path, monkeypatch):
    monkeypatch.delenv("IN_TEST", raising=False)
    for name in ("RESULTS", "RUNS", "CACHE"): monkeypatch.setenv(f"POSEPROJECTS_{name}", str(tmp_path / name.lower()))
    monkeypatch.setenv("POSEPROJECTS_PROGRESS", "0")
    return tmp_path

BAD = {"dataset": ("human36m", "choose one of.*synthetic"), "plan": ("fast", "choose one of paper, quick"), "variant": ("wide", "choose one of paper"), "fidelity": ("exact", "choose one of paper, release"),
       "gpus": (99, "gpus = 99, but this machine has"), "epochs": (0, "epochs = 0"), "batch_size": (-4, "batch_size = -4"), "learning_rate": (-1., "learning_rate = -1.0"),
       "also_test": ("hdm06", "hdm06.*choose one of"), "seed": (-1, "seed")}

@pytest.mark.parametrize("name", BAD)
def test_bad_parameters_are_refused_before_any_data_is_read(own_places, monkeypatch, name):
    value, words = BAD[name]
    def never(*_, **__): raise AssertionError("data were read before the parameters were checked")
    monkeypatch.setattr(synthetic, "load", never)
    with pytest.raises(InputError, match=words) as refusal: run_until("run.load(", own_places, **{name: value})
    assert "\n" not in str(refusal.value) and not list(own_places.iterdir())

def test_a_detector_that_the_embedded_data_have_not(own_places):
    with pytest.raises(InputError, match="cpn"): run_until("run.load(", own_places, input_2d="cpn")

@pytest.mark.parametrize("name, value, words", [("validation", "S99", "S99"), ("data_root", "/there/is/nothing", "/there/is/nothing"), ("input_2d", "cpn", "cpn")])
def test_bad_places_are_refused_with_the_data(own_places, name, value, words):
    pack = make_pack(own_places / "pack", subjects=(*cmu.SUBJECTS["train"], *cmu.SUBJECTS["test"])) if name != "data_root" else None
    with pytest.raises(ValueError) as refusal: run_until("run.load(", own_places, **{"dataset": "cmu", "data_root": str(pack), name: value})
    message = str(refusal.value)
    assert words in message and "\n" not in message and "tuple" not in message
    assert isinstance(refusal.value, InputError)

def papermill(own_places, *parameters):
    "Runs the notebook as a user does."
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "--cwd", str(NOTEBOOK.parent), str(NOTEBOOK), str(own_places / "out.ipynb")]
    return subprocess.run(command + [x for p in parameters for x in ("-p", *map(str, p))], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300)

def printed(own_places):
    cells = json.loads((own_places / "out.ipynb").read_text())["cells"]
    return "".join("".join(o.get("text", "")) for c in cells for o in c.get("outputs", []))

@pytest.mark.slow
def test_the_notebook_from_the_command_line(own_places):
    "A made-up pack of all subjects: a record and a checkpoint in the folders that were named; the second run trains nothing."
    pack = make_pack(own_places / "pack", subjects=(*cmu.SUBJECTS["train"], *cmu.SUBJECTS["test"]), frames=200)
    parameters = [("dataset", "cmu"), ("data_root", pack), ("epochs", 1), ("batch_size", 64), ("variant", "width-512"), ("gpus", 0)]
    first = papermill(own_places, *parameters)
    assert first.returncode == 0, first.stderr[-2000:]
    record_path, = (own_places / "results" / "runs" / "cmu" / "martinez").glob("*.json")
    record = json.loads(record_path.read_text())
    checkpoint, = (own_places / "runs").rglob("last.pt")
    state = load_checkpoint(checkpoint)
    assert (record["method"], record["variant"], record["plan"], record["train_data"], record["test_data"], record["epochs"]) == ("martinez", "width-512", "quick", "cmu", "cmu", 1)
    assert record["steps"] == state["history"]["steps"] > 0 and record["metrics"]["mpjpe"] > 0 and record["notebook_parameters"]["batch_size"] == 64
    assert str(own_places) not in record_path.read_text() and "record:" in printed(own_places)
    before = checkpoint.read_bytes()
    second = papermill(own_places, *parameters)
    assert second.returncode == 0, second.stderr[-2000:]
    assert checkpoint.read_bytes() == before # nothing was trained, nothing written again
    again = [json.loads(record_path.read_text())]
    assert all(r["metrics"] == record["metrics"] and r["seconds"] == record["seconds"] for r in again)

def test_the_release_drops_frames_after_the_exclusions(test):
    from poseprojects.protocol import Exclusion
    without = synthetic.PROTOCOL.but("without", exclusions=(Exclusion(sequence=test.sequence_names[0]),))
    released = as_released(test, without)
    assert not bool((released.sequence == 0).any())
    assert [int((released.action == a).sum()) % 64 for a in range(len(test.action_names))] == [0] * len(test.action_names)

def test_fourteen_joints_are_scored_on_fourteen(test):
    "A network that writes 14 joints exactly scores zero; the joints it does not write are not scored."
    class Exact(torch.nn.Module):
        def predict(self, batch):
            pose = batch.target.clone()
            pose[:, list(H36M17.indices(("spine", "neck_nose")))] = 5.
            return pose[:, None]
    protocol, = martinez.scoring(synthetic.PROTOCOL, VARIANTS["14-joints"])
    assert len(protocol.joints) == 14 and protocol.id == "synthetic-14"
    assert evaluate(Exact(), test, protocol)["mpjpe"] == pytest.approx(0, abs=1e-4)
    assert evaluate(Exact(), test, synthetic.PROTOCOL)["mpjpe"] > 100
    assert martinez.scoring(synthetic.PROTOCOL, Config()) == (synthetic.PROTOCOL,)

def test_turning_does_not_hide_a_detector(train):
    noisy = replace(train, input_2d="detector", pose_2d=train.pose_2d + 3)
    with pytest.raises(InputError, match="ground truth"): Martinez.from_data(noisy, VARIANTS["turn"])
