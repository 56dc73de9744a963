"ST-GCN over several frames, and its second stage: symmetry, motion and the second look at the image."
from dataclasses import replace

import pytest
import torch
from torch import nn

from conftest import refused, some
from poseprojects import zoo
from poseprojects.camera import intrinsic_normalize, undistort
from poseprojects.data import synthetic
from poseprojects.data.base import clip_bounds, window_index
from poseprojects.papers import stgcn
from poseprojects.papers.lifters import scoring
from poseprojects.papers.reprojection import asymmetry, onto_rays, root_by_least_squares
from poseprojects.papers.normed import as_poses, graph_linear, in_pieces
from poseprojects.papers.stgcn import (DISTANCE, MIRRORED, PART_DISTANCE, PART_EDGES, PART_MIRRORED, VARIANTS, Config, GraphConv, Refinement, STGCNNetwork, SixteenJoints,
                                       build, partition, space_time)
from poseprojects.skeleton import H36M17, mirror
from poseprojects.train.checkpoints import seed_everything
from poseprojects.train.engine import Batch, Plan, fit
from poseprojects.train.evaluation import ConstantDepth, MeanPose, evaluate, evaluating
from poseprojects.train.schedules import Clock, Schedule

pytestmark = pytest.mark.usefixtures("one_thread")
JOINTS, PART_GRAPH = partition(H36M17.bones, MIRRORED, DISTANCE), partition(PART_EDGES, PART_MIRRORED, PART_DISTANCE)


def units(network): return [*network.st_gcn_networks, *network.st_gcn_pool]


def lively(network):
    "Running statistics and non-local block that are no defaults."
    torch.manual_seed(4)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.weight, 1., .1), nn.init.normal_(module.bias, 0., .1), nn.init.normal_(module.running_mean, 0., .1), nn.init.uniform_(module.running_var, .5, 2.)
    return network.eval()


def with_more_kinds(network, frames):
    "A network of several frames that has the weights of a single frame, and random ones for what neighbours in time say."
    longer, known = STGCNNetwork(frames=3), network.state_dict()
    longer.load_state_dict({name: known[name] if value.shape == known[name].shape else torch.cat([known[name], torch.randn_like(value[len(known[name]):])]) for name, value in longer.state_dict().items()})
    longer.receptive_field = frames
    longer.part_of = torch.cat([network.part_of + 5 * t for t in range(frames)])
    for unit in longer.st_gcn_networks: unit.graph = space_time(JOINTS, frames)
    for unit in longer.st_gcn_pool: unit.graph = space_time(PART_GRAPH, frames)
    return longer.eval()

# ---------------------------------------------------------------- space and time

@pytest.mark.parametrize("frames", [1, 3, 7])
@pytest.mark.parametrize("kinds", [JOINTS, PART_GRAPH], ids=["joints", "parts"])
def test_the_graph_of_space_and_time(frames, kinds):
    graph, nodes = space_time(kinds, frames), kinds.shape[1]
    assert graph.shape == (6, frames * nodes, frames * nodes)
    assert torch.allclose(graph.sum((0, 1)), torch.ones(frames * nodes)) and int((graph > 0).sum(0).max()) == 1
    for s in range(frames):
        for t in range(frames):
            block = graph[:, s * nodes:(s + 1) * nodes, t * nodes:(t + 1) * nodes] > 0
            if s == t: assert torch.equal(block[:4], kinds > 0) and not block[4:].any()
            else:
                assert not block[:4].any()
                assert [torch.equal(block[4 + k], torch.eye(nodes, dtype=torch.bool)) if near else not block[4 + k].any() for k, near in ((0, s == t - 1), (1, s == t + 1))] == [True, True]

def test_each_column_is_shared_by_its_neighbours():
    graph = space_time(JOINTS, 3)
    neighbours = (graph > 0).sum((0, 1))
    one = (JOINTS > 0).sum((0, 1))
    assert torch.equal(neighbours, torch.cat([one + 1, one + 2, one + 1]))
    assert torch.allclose(graph.sum(0)[graph.sum(0) > 0], (1 / neighbours).expand(51, 51)[graph.sum(0) > 0])

@torch.no_grad()
def test_one_frame_of_many_is_the_single_frame_network():
    "What neighbours in time would say does not matter when there are none."
    single = lively(STGCNNetwork())
    longer, x = with_more_kinds(single, 1), torch.randn(5, 17, 2)
    assert longer.st_gcn_networks[1].gcn.conv.weight.shape[0] == 6 * 128 and torch.allclose(longer(x), single(x), atol=1e-5)
    assert torch.equal(STGCNNetwork(frames=1).st_gcn_networks[0].graph, single.st_gcn_networks[0].graph)
    assert [*STGCNNetwork(frames=1).state_dict()] == [*single.state_dict()]

@torch.no_grad()
def test_frames_that_are_alike_say_nothing_new():
    single = lively(STGCNNetwork())
    longer = with_more_kinds(single, 3)
    for unit, short in zip(units(longer), units(single)):
        unit.graph = torch.stack([torch.kron(torch.eye(3), kind) for kind in [*short.graph, *torch.zeros_like(short.graph[:2])]])
    x = torch.randn(4, 17, 2)
    every = longer.every_frame(x[:, None].expand(-1, 3, -1, -1))
    assert all(torch.allclose(every[:, t], single(x), atol=1e-5) for t in range(3))

@torch.no_grad()
def test_the_graph_convolution_over_frames_is_its_definition():
    layer, graph, x = GraphConv(3, 5, 6), space_time(JOINTS, 3), torch.randn(2, 3, 1, 51)
    weight, mix, bias = layer.in_pieces(graph)
    assert torch.allclose(as_poses(graph_linear(in_pieces(x[:, :, 0].mT, 2), weight, mix, bias)).mT, layer.reference(x, graph)[:, :, 0], atol=1e-5)

@torch.no_grad()
def test_the_answer_is_that_of_the_middle_and_hears_all_frames():
    network, clip = lively(STGCNNetwork(frames=3)), torch.randn(2, 3, 17, 2)
    every = network.every_frame(clip)
    assert every.shape == (2, 3, 17, 3) and torch.equal(network(clip), every[:, 1])
    for t in range(3): assert float((network(clip + (torch.arange(3) == t)[:, None, None] * 1.) - network(clip)).abs().amax()) > 1e-4
    swapped = network.every_frame(clip.flip(0))
    assert torch.allclose(swapped, every.flip(0), atol=1e-5), "a sample does not hear another one"

def test_time_has_a_direction():
    "Backwards is another motion: earlier and later have their own weights."
    network, clip = lively(STGCNNetwork(frames=3)), torch.randn(1, 3, 17, 2)
    with torch.no_grad(): assert float((network(clip.flip(1)) - network(clip)).abs().max()) > 1e-4

def test_sixteen_joints_over_frames(train):
    network, clip = lively(SixteenJoints(frames=3)), torch.randn(2, 3, 16, 2)
    whole = torch.cat([clip[:, :, :9], clip[:, :, 8:10].mean(2, keepdim=True), clip[:, :, 9:]], 2)
    with torch.no_grad(): assert torch.allclose(network(clip), network.stgcn(whole)[:, [j for j in range(17) if j != 9]], atol=1e-6)
    method = build(train, Config(joints=16, frames=3)).eval()
    batch = Batch(train, torch.arange(20), window=3, bounds=clip_bounds(train))
    with torch.no_grad(): assert method.window == 3 and method.predict(batch).shape == (20, 1, 17, 3)

def test_what_does_not_fit_is_refused():
    assert "odd number" in refused(STGCNNetwork, frames=2) and "odd number" in refused(STGCNNetwork, frames=0)
    assert "expected 3 frames of 17 joints" in refused(STGCNNetwork(frames=3), torch.zeros(2, 5, 17, 2))
    assert "expected 1 frames of 17 joints" in refused(STGCNNetwork(), torch.zeros(2, 16, 2))
    assert "expected frames = 3 or more" in refused(Config, motion=1.)
    assert "first_stage = 1.5" in refused(Config, first_stage=1.5) and "symmetry = -1" in refused(Config, symmetry=-1)

# ---------------------------------------------------------------- the second look

def test_the_head_has_the_released_sizes():
    head = Refinement()
    assert sum(p.numel() for p in head.parameters()) == 140_322
    assert {n: tuple(p.shape) for n, p in head.state_dict().items()} == {"post_refine.0.weight": (1024, 102), "post_refine.0.bias": (1024,), "post_refine.3.weight": (34, 1024), "post_refine.3.bias": (34,)}

@pytest.mark.parametrize("bias, share", [(30., 1.), (-30., 0.), (0., .5)])
def test_the_head_blends_two_estimates(bias, share):
    head = Refinement().eval()
    for p in head.post_refine[3].parameters(): nn.init.constant_(p, 0.)
    nn.init.constant_(head.post_refine[3].bias, bias)
    a, b = torch.randn(3, 17, 3), torch.randn(3, 17, 3)
    with torch.no_grad(): found = head(a, b)
    assert torch.allclose(found[..., :2], share * a[..., :2] + (1 - share) * b[..., :2], atol=1e-5) and torch.equal(found[..., 2], a[..., 2])

def test_on_its_rays_a_pose_falls_onto_the_2d(train):
    batch = some(train)
    pose = batch.target + .05 * torch.randn(64, 17, 3, generator=torch.Generator().manual_seed(0)) * (torch.arange(17) > 0)[:, None]
    depth = root_by_least_squares(pose, batch.pose_2d, batch.camera)[:, 2:]
    ray = undistort(intrinsic_normalize(batch.pose_2d, batch.camera), batch.camera.distortion)
    wanted = ray * (pose[..., 2] + depth)[..., None]
    found = onto_rays(pose, batch.pose_2d, batch.camera)
    assert torch.allclose(found[..., :2], wanted - wanted[:, :1], atol=1e-4) and torch.allclose(found[..., 2], pose[..., 2], atol=1e-5)

class Oracle(nn.Module):
    "A network that knows the answers of all frames."
    receptive_field = 3
    def __init__(self, answers): super().__init__(); self.answers = answers
    def every_frame(self, seen): return self.answers
    def forward(self, seen): return self.answers[:, 1]

def windowed(train, options, clock=Clock(epoch=5, epochs=10), index=torch.arange(1, 4000, 100)):
    "A method of three frames, a batch, and the truth in every frame."
    method = build(train, Config(frames=3, motion=1., symmetry=1., refine=True, **options))
    batch = Batch(train, index, clock, 3, bounds=clip_bounds(train))
    return method, batch, method.wanted_in_window(batch, None)

@pytest.mark.parametrize("units", ["screen", "standard"])
def test_perfect_predictions_have_no_loss(units, train):
    method, batch, truth = windowed(train, dict(units=units, flip=False))
    method.network = Oracle(truth)
    losses = {n: float(loss.detach()) for n, loss in method.losses(batch).items()}
    assert list(losses) == ["mpjpe", "motion", "symmetry", "refined"]
    assert losses["mpjpe"] < 1e-5 and losses["motion"] < 1e-5 and losses["symmetry"] == pytest.approx(float(asymmetry(batch.target, H36M17)), abs=1e-5) and losses["refined"] < 2e-3

def test_motion_is_compared_frame_by_frame(train):
    method, batch, truth = windowed(train, dict(flip=False))
    frames = window_index(batch.index, 3, clip_bounds(train))
    for k in (0, 7): assert torch.allclose(truth[k], train.pose_3d[frames[k]] - train.pose_3d[frames[k]][:, :1], atol=1e-6)
    moved = truth + 0.01 * torch.arange(3)[None, :, None, None] * torch.tensor([0., 3., 4.])
    method.network = Oracle(moved)
    assert float(method.losses(batch)["motion"]) == pytest.approx(.05, rel=1e-3), "every joint moves 5 cm more in each frame"
    method.network = Oracle(truth + 1.)
    assert float(method.losses(batch)["motion"]) < 1e-5, "a constant error is no motion"

def test_mirrored_windows_have_mirrored_truth(train):
    method, batch, truth = windowed(train, dict(flip=True))
    turned = torch.arange(len(batch)) % 2 == 0
    found = method.wanted_in_window(batch, turned)
    assert torch.allclose(found[turned], mirror(truth, H36M17)[turned], atol=1e-6) and torch.equal(found[~turned], truth[~turned])

def test_the_second_stage_comes_after_the_first(train):
    method, batch, _ = windowed(train, dict(first_stage=.5))
    for epoch, wanted in ((0, ["mpjpe", "motion"]), (4, ["mpjpe", "motion"]), (5, ["mpjpe", "motion", "symmetry", "refined"])):
        batch.clock = Clock(epoch=epoch, epochs=10)
        assert list(method.losses(batch)) == wanted

@pytest.mark.parametrize("term, reached", [("motion", {"network"}), ("symmetry", {"network"}), ("refined", {"network", "refinement"})])
def test_every_term_reaches_its_networks(term, reached, train):
    method, batch, _ = windowed(train, dict(units="standard", flip=True))
    method.losses(batch)[term].backward()
    for name in ("network", "refinement"):
        gradients = [p.grad for p in getattr(method, name).parameters() if p.grad is not None]
        assert (len(gradients) > 0 and all(bool(g.isfinite().all()) for g in gradients) and any(bool(g.any()) for g in gradients)) == (name in reached)

def test_head_and_network_have_one_optimiser(train):
    method = build(train, Config(refine=True))
    optimizer = method.optimizers(Plan("short", 1, 8, 1e-3))["lifter"].optimizer
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in method.parameters()}

def test_refined_predictions_are_root_relative_and_fit_mirrored_cameras(train):
    method = build(train, Config(refine=True, units="standard")).eval()
    head = method.refinement.post_refine[3]
    nn.init.zeros_(head.weight), nn.init.constant_(head.bias, -30.) # trusts the image alone
    batch = some(train)
    with torch.no_grad():
        for seen in (batch, batch.mirrored()):
            pose = method.predict(seen)[:, 0]
            assert pose.shape == (64, 17, 3) and not pose[:, 0].any()
            plain = super(stgcn.STGCN, method).predict(seen)[:, 0]
            assert torch.allclose(pose, onto_rays(plain, seen.pose_2d, seen.camera), atol=1e-4)

# ---------------------------------------------------------------- training

@pytest.mark.parametrize("options, clips, batch, epochs", [(dict(refine=True, symmetry=.1, first_stage=.3), 100, 16, 3)], ids=["refined"])
def test_short_training_beats_the_trivial_answers(options, clips, batch, epochs, train, test):
    seed_everything(0)
    method = build(train, replace(VARIANTS["short-run"], dropout=0., **options))
    protocol, = scoring(synthetic.PROTOCOL, method.config)
    few, many = test.select(torch.arange(0, len(test), 16)), train.select(torch.arange(len(train)) % clips < 10) # whole clips
    fit(method, many, Plan("short", epochs, batch, 2e-3, Schedule("one_cycle", end=0.001)), show=False)
    error, mean, flat = (evaluate(m, few, protocol)["mpjpe"] for m in (method, MeanPose(train), ConstantDepth()))
    assert error < 0.6 * mean and error < flat, (error, mean, flat)

# ---------------------------------------------------------------- released files

def test_released_files_of_other_forms_are_refused(tmp_path):
    torch.save(Refinement().state_dict(), tmp_path / "model_post_refine.pth")
    torch.save(STGCNNetwork(frames=3).state_dict(), tmp_path / "three.pth")
    assert "refinement head" in refused(zoo.load, None, tmp_path / "model_post_refine.pth") and "several frames" in refused(zoo.load, "stgcn", tmp_path / "three.pth")
