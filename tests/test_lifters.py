"SemGCN, ST-GCN, VideoPose3D and PoseAug's MLP: equal to the originals, and properties that any such network must have."
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import parity
from conftest import some
from poseprojects.data import synthetic
from poseprojects.papers import mlp, semgcn, stgcn, videopose
from poseprojects.papers.lifters import Lifter, LifterConfig, centred, joint_maps, scoring
from poseprojects.papers.mlp import MLPNetwork
from poseprojects.papers.normed import as_poses, graph_linear, in_pieces
from poseprojects.papers.semgcn import SemGCNNetwork, SemGraphConv, adjacency
from poseprojects.papers.stgcn import STGCNNetwork, SixteenJoints
from poseprojects.papers.videopose import ClipNetwork, TemporalNetwork
from poseprojects.protocol import CMU, CMU16, POSEAUG_3DHP
from poseprojects.skeleton import H36M16, H36M17, mirror
from poseprojects.storage import InputError
from poseprojects.train.engine import Batch, Plan, fit
from poseprojects.train.evaluation import ConstantDepth, MeanPose, evaluate

pytestmark = pytest.mark.usefixtures("one_thread")
PAPERS = (mlp, semgcn, stgcn, videopose)


class Flat(MLPNetwork):
    "The linear model of the SemGCN repository: 32 numbers to 45."
    def forward(self, x): return super().forward(x.unflatten(1, (-1, 2)))[:, 1:].flatten(1)

# fixture -> network, prefix of its keys, whether the fixture has a training pass
NETWORKS = {
    "poseaug_mlp": (MLPNetwork, "", True), "semgcn_linear": (Flat, "", True), "poseaug_gcn": (lambda: SemGCNNetwork(H36M16), "", True), "semgcn_plain": (lambda: SemGCNNetwork(H36M16), "", True),
    "semgcn_nonlocal": (lambda: SemGCNNetwork(H36M16, non_local=True), "", True), "poseaug_stgcn": (SixteenJoints, "", True),
    "poseaug_videopose": (lambda: ClipNetwork(16, 15, (1,) * 5), "", True), "videopose3d_27": (TemporalNetwork, "", True),
    "videopose3d_27_causal": (lambda: TemporalNetwork(causal=True), "", False), "videopose3d_27_strided": (lambda: TemporalNetwork(strided=True), "", True),
    "videopose3d_243": (lambda: TemporalNetwork(widths=(3,) * 5), "", True)}

# ---------------------------------------------------------------- equal to the originals

@pytest.mark.data
@pytest.mark.parametrize("name", NETWORKS)
def test_keys_and_answers_are_those_of_the_original(name):
    make, prefix, _ = NETWORKS[name]
    network = make()
    parity.check_keys(name, network, prefix)
    parity.check_evaluation(name, network, prefix)

@pytest.mark.data
@pytest.mark.parametrize("name", [n for n, (_, _, trained) in NETWORKS.items() if trained])
def test_a_training_pass_is_that_of_the_original(name):
    make, prefix, _ = NETWORKS[name]
    parity.check_training(name, make(), prefix)

def test_the_formula_gives_the_worked_example():
    assert np.allclose(parity.hashed("w1.weight", 5), [-0.9437539093, 0.1200773222, 0.9987518657, 0.6862752498, -0.3690264481], atol=1e-9)
    assert np.allclose(parity.filled("w1.weight", torch.empty(1024, 32), 2.4)[0, :3], [-0.40040088, 0.05094449, 0.42373452])
    assert np.allclose(parity.filled("gconv_input.0.gconv.e", torch.empty(1, 46), 2.4)[0, :2], [-0.8388507, -0.81294256])

@pytest.mark.data
def test_parity_would_notice_a_wrong_epsilon():
    network = SixteenJoints()
    network.stgcn.data_bn.eps = 1e-5
    with pytest.raises(AssertionError): parity.check_evaluation("poseaug_stgcn", network)

@pytest.mark.parametrize("make, count", [(MLPNetwork, 4_288_557), (lambda: MLPNetwork(stages=4), 8_495_149), (lambda: SemGCNNetwork(H36M16), 267_343), (lambda: SemGCNNetwork(H36M16, non_local=True), 434_703),
                                         (STGCNNetwork, 3_627_847), (lambda: ClipNetwork(16, 15, (1,) * 5), 8_485_933), (lambda: TemporalNetwork(widths=(3,) * 5), 16_952_371),
                                         (lambda: TemporalNetwork(), 8_555_571), (lambda: TemporalNetwork(widths=(1, 1, 1)), 4_291_635), (lambda: TemporalNetwork(widths=(1,) * 5), 8_494_131)])
def test_parameter_counts(make, count): assert sum(p.numel() for p in make().parameters()) == count

# ---------------------------------------------------------------- graphs

def test_the_edges_of_semgcn_stand_in_the_released_order():
    rows = [row.nonzero().flatten().tolist() for row in adjacency(H36M16)]
    assert rows == [[0, 1, 4, 7], [0, 1, 2], [1, 2, 3], [2, 3], [0, 4, 5], [4, 5, 6], [5, 6], [0, 7, 8], [7, 8, 9, 10, 13], [8, 9], [8, 10, 11], [10, 11, 12], [11, 12], [8, 13, 14], [13, 14, 15], [14, 15]]

def test_a_joint_hears_its_neighbours_only():
    layer = SemGraphConv(2, 5, adjacency(H36M16))
    nn.init.normal_(layer.e)
    attention = layer.attention()
    assert torch.allclose(attention.sum(1), torch.ones(16)) and ((attention > 0) == (adjacency(H36M16) > 0)).all()
    x = torch.randn(1, 16, 2)
    for joint in range(16):
        moved = x.clone(); moved[0, joint] += 1
        heard = (layer(moved) - layer(x)).abs().sum((0, 2)) > 1e-6
        assert (heard == (adjacency(H36M16)[:, joint] > 0)).all()

def test_semgcn_equals_its_equation_written_out():
    layer, x = SemGraphConv(3, 4, adjacency(H36M16)), torch.randn(2, 16, 3)
    nn.init.normal_(layer.e)
    a, found = layer.attention(), layer(x)
    for i in range(16):
        wanted = layer.bias + a[i, i] * x[:, i] @ layer.W[0] + sum(a[i, j] * x[:, j] @ layer.W[1] for j in range(16) if j != i)
        assert torch.allclose(found[:, i], wanted, atol=1e-6)

@pytest.mark.parametrize("form", ["mixed first", "channels first"])
def test_the_convolution_in_pieces_is_the_same(form):
    layer, x = SemGraphConv(8, 3, adjacency(H36M16)).double(), torch.randn(6, 16, 8, dtype=torch.float64)
    nn.init.normal_(layer.e)
    pieces = in_pieces(x, 2)
    if form == "channels first": other = layer.narrowing(pieces)
    else: other = graph_linear(pieces, layer.W, layer.mixing(), layer.bias[None])
    answers = [layer(x), as_poses(other)]
    assert torch.allclose(*answers, atol=1e-12)
    slope = torch.randn_like(answers[0])
    for a, b in zip(*(torch.autograd.grad(y, list(layer.parameters()), slope) for y in answers)): assert torch.allclose(a, b, atol=1e-10)

@pytest.mark.parametrize("inputs, outputs, bound", [(2, 128, 0.1531), (128, 128, 0.02685), (128, 3, 0.1754)])
def test_semgcn_starts_within_the_released_bounds(inputs, outputs, bound):
    layer = SemGraphConv(inputs, outputs, adjacency(H36M16))
    assert 0.9 * bound < float(layer.W.detach().abs().max()) <= bound * 1.001 and (layer.e == 1).all() and float(layer.bias.detach().abs().max()) <= outputs ** -.5

def test_non_local_units_start_as_the_identity():
    torch.manual_seed(0)
    near, far, x = SemGCNNetwork(H36M16).eval(), SemGCNNetwork(H36M16, non_local=True).eval(), torch.randn(3, 16, 2)
    far.load_state_dict({theirs: value for theirs, value in zip([k for k in far.state_dict() if "nonlocal" not in k], near.state_dict().values())}, strict=False)
    assert torch.allclose(near(x), far(x), atol=1e-6)

def test_the_graphs_of_stgcn():
    joints = stgcn.partition(H36M17.bones, stgcn.MIRRORED, stgcn.DISTANCE)
    parts = stgcn.partition(stgcn.PART_EDGES, stgcn.PART_MIRRORED, stgcn.PART_DISTANCE)
    assert [int((m > 0).sum()) for m in joints] == [17, 16, 16, 12] and torch.allclose(joints.sum((1, 2)), torch.tensor([4.95, 4.10, 4.6167, 3.3333]), atol=1e-4)
    assert torch.allclose(joints.sum((0, 1)), torch.ones(17)) and torch.allclose(parts.sum((0, 1)), torch.ones(5))
    assert parts[0].diagonal().tolist() == pytest.approx([1 / 3] * 4 + [1 / 5])
    assert sorted(j for part in stgcn.PARTS for j in part) == list(range(17))

def test_stgcn_answers_one_pose_at_a_time():
    network, x = SixteenJoints().eval(), torch.randn(3, 16, 2)
    assert network(x[:1]).shape == (1, 16, 3) and torch.allclose(network(x[:1]), network(x)[:1], atol=1e-5)

# ---------------------------------------------------------------- time

@pytest.mark.parametrize("widths", [(3, 3), (3, 3, 3), (1, 1, 1), (5, 3)])
@pytest.mark.parametrize("causal", [False, True])
def test_strided_training_form_equals_the_dilated_one(widths, causal):
    long, short = TemporalNetwork(widths=widths, channels=16, causal=causal).eval(), TemporalNetwork(widths=widths, channels=16, causal=causal, strided=True).eval()
    short.load_state_dict(long.state_dict())
    frames = long.receptive_field
    x = torch.randn(2, frames + 6, 17, 2)
    windows = torch.stack([short(x[:, k:k + frames])[:, 0] for k in range(7)], 1)
    assert torch.allclose(long(x), windows, atol=1e-5)

@pytest.mark.parametrize("causal", [False, True])
def test_only_frames_of_the_window_matter(causal):
    "A frame outside the receptive field changes nothing; within the causal one there is no future."
    network = TemporalNetwork(widths=(3, 3), channels=16, causal=causal).eval()
    x = torch.randn(1, 30, 17, 2)
    y = network(x)
    for frame in (0, 12, 29):
        other = x.clone(); other[0, frame] += 1.
        changed = ((network(other) - y).abs().sum((0, 2, 3)) > 1e-6).nonzero().flatten().tolist()
        assert changed == [t for t in range(22) if t <= frame < t + 9]

def test_the_carried_frame_is_the_middle_or_the_last():
    "With all filters zero the answer depends on the frame that the residual carries."
    for causal, place in ((False, 4), (True, 8)):
        network = TemporalNetwork(widths=(3, 3), channels=16, causal=causal).eval()
        with torch.no_grad():
            for layer in network.layers_conv: layer.weight.zero_()
            network.expand_conv.weight[:, :, [0, 2] if not causal else [0, 1]] = 0.
        x = torch.randn(1, 9, 17, 2)
        moved = [t for t in range(9) if not torch.allclose(network(torch.cat([x[:, :t], x[:, t:t + 1] + 1, x[:, t + 1:]], 1)), network(x))]
        assert moved == [place]

@pytest.mark.parametrize("x, message", [(torch.zeros(1, 8, 17, 2), "8 frames are shorter than the receptive field of 9"), (torch.zeros(1, 9, 16, 2), "expected \\(clips, frames, 17, 2\\)"), (torch.zeros(9, 17, 2), "expected")])
def test_clips_that_do_not_fit_are_refused(x, message):
    with pytest.raises(InputError, match=message): TemporalNetwork(widths=(3, 3), channels=8)(x)

def test_even_filters_are_refused():
    with pytest.raises(InputError, match="odd"): TemporalNetwork(widths=(2, 3))

# ---------------------------------------------------------------- the method around a network

def small(paper, **options):
    "Options of the short run, made small."
    less = {mlp: dict(width=64), semgcn: dict(width=16), stgcn: {}, videopose: dict(channels=64)}[paper]
    return replace(paper.VARIANTS["short-run"], **less, **options)

@pytest.mark.parametrize("paper", PAPERS)
def test_units_do_not_change_what_is_predicted(paper, train):
    "A prediction is root-relative metres in all joints of the set, whatever the network reads and writes."
    for options in (dict(units="screen"), dict(units="standard"), dict(joints=16), dict(joints=17)):
        pose = paper.build(train, small(paper, **options)).eval().predict(some(train))
        assert pose.shape == (64, 1, 17, 3) and bool((pose[:, :, 0] == 0).all()) and bool(pose.isfinite().all())

def test_standard_units_come_back_as_metres(train):
    method = mlp.build(train, small(mlp))
    batch = some(train)
    assert torch.allclose(method.writing.inverse(method.wanted(batch)), batch.target, atol=1e-6)
    seen = method.reading.inverse(method.read(batch))
    assert torch.allclose(seen[:, 0], batch.pose_2d[:, 0], rtol=1e-5) and torch.allclose(seen[:, 1:] + seen[:, :1], batch.pose_2d[:, 1:], rtol=1e-4)

def test_screen_units_are_those_of_poseaug(train):
    method, batch = mlp.build(train, mlp.VARIANTS["poseaug"]), some(train)
    seen, (w, h) = method.read(batch), batch.camera.resolution[0].tolist()
    wanted = (2 * batch.pose_2d[0] - torch.tensor([w, h])) / w
    assert torch.allclose(seen[0], wanted[[j for j in range(17) if j != 9]], atol=1e-6) and torch.allclose(method.wanted(batch), batch.target[:, [j for j in range(17) if j != 9]])

@pytest.mark.parametrize("paper", (mlp, videopose))
def test_half_of_the_samples_are_mirrored(paper, train):
    method = paper.build(train, small(paper, flip=True, joints=17, units="screen", **({"widths": (3, 3)} if paper is videopose else {})))
    batch = Batch(train, torch.arange(1000, 1400), window=method.window)
    torch.manual_seed(0)
    both = method.flipped(batch)
    flipped = (both.target - batch.target).abs().flatten(1).amax(1) > 1e-6
    assert 0.4 < float(flipped.float().mean()) < 0.6
    assert torch.allclose(both.target[flipped], mirror(batch.target[flipped], H36M17), atol=1e-6)
    seen, before = method.read(both), method.read(batch)
    assert torch.allclose(seen[flipped], mirror(before[flipped], H36M17), atol=1e-5) and torch.equal(seen[~flipped], before[~flipped])

def test_protocols_follow_the_joints_and_flips():
    assert scoring(CMU, LifterConfig()) == (CMU16,)
    assert scoring(CMU, LifterConfig(joints=17)) == (CMU,)
    assert scoring(POSEAUG_3DHP, LifterConfig(flip_test=True)) == (POSEAUG_3DHP,)
    flipped, = scoring(CMU, LifterConfig(joints=17, flip_test=True))
    assert flipped.flip_tta and flipped.id == "cmu-flip"

def test_options_that_do_not_exist_are_refused():
    for wrong, message in ((dict(joints=15), "joints = 15"), (dict(units="pixels"), "'screen', 'standard'"), (dict(loss="l1"), "'mse', 'mpjpe'")):
        with pytest.raises(InputError, match=message): LifterConfig(**wrong)
    with pytest.raises(InputError, match="no joint 'right_knee'"): joint_maps(H36M17.sub(("pelvis", "left_hip", "right_hip", "spine", "thorax"), "hips"), 17)
    with pytest.raises(InputError, match="16 joints in pairs"): semgcn.Config(joints=17, non_local=True)

def test_momentum_of_batch_norm_falls(train):
    method = videopose.build(train, replace(small(videopose), momentum=(0.1, 0.001)))
    fit(method, train.select(torch.arange(256)), Plan("short", 2, 64, 1e-3), show=False)
    assert method.network.expand_bn.momentum == pytest.approx(0.01)

@pytest.mark.parametrize("paper, options, samples, epochs", [(mlp, dict(width=256, dropout=0.), 5590, 4), (semgcn, dict(width=32), 5590, 4), (videopose, dict(channels=256, dropout=0.), 5590, 3)])
def test_short_training_beats_the_trivial_answers(paper, options, samples, epochs, train, test):
    "A small network and a few hundred steps (ST-GCN: tests/test_stgcn.py): well below the mean pose and below constant depth, which knows the true distance."
    method = paper.build(train, replace(paper.VARIANTS["short-run"], **options))
    protocol, = scoring(synthetic.PROTOCOL, method.config)
    few, many = test.select(torch.arange(0, len(test), 8)), train.select(torch.arange(0, len(train), len(train) // samples)[:samples])
    fit(method, many, Plan("short", epochs, 64, 5e-3, paper.PLANS["quick"].schedule), show=False)
    error, mean, flat = (evaluate(m, few, protocol)["mpjpe"] for m in (method, MeanPose(train), ConstantDepth()))
    assert error < 0.55 * mean and error < flat
