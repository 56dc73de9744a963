"VideoPose3D on whole sequences, the trajectory network, and training on people without 3D."
from dataclasses import replace

import pytest
import torch
from mocap_pack import make_pack
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from conftest import refused, some
from poseprojects.camera import project
from poseprojects.data import cmu, synthetic
from poseprojects.data.base import clip_bounds
from poseprojects.experiment import Experiment
from poseprojects.papers import videopose
from poseprojects.papers.lifters import Lifter
from poseprojects.papers.reprojection import asymmetry, bone_difference, onto_rays, reprojection_error, root_by_least_squares
from poseprojects.papers.videopose import VARIANTS, ClipNetwork, Config, SequenceForm, TemporalNetwork, build, runs, scoring, streams, trajectory_error
from poseprojects.protocol import CMU, CMU16
from poseprojects.results.records import read_all
from poseprojects.skeleton import H36M17
from poseprojects.train.checkpoints import seed_everything
from poseprojects.train.engine import Batch, Plan, fit
from poseprojects.train.evaluation import evaluate, evaluating, hypotheses
from poseprojects.train.schedules import Clock, Schedule

pytestmark = pytest.mark.usefixtures("one_thread")


def settled(network):
    "Weights, biases and running statistics that are no defaults."
    torch.manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.weight, 1., .2), nn.init.normal_(module.bias, 0., .2), nn.init.normal_(module.running_mean, 0., .3), nn.init.uniform_(module.running_var, .3, 2.)
    return network.eval()


def small(**options): return Config(**{**dict(units="standard", loss="mse", amsgrad=False, flip=False, flip_test=False, widths=(3, 3), channels=32, dropout=0., momentum=(0.1, 0.1)), **options})


def by_hand(network, sequence, causal):
    "One window after the other: the frame itself with those around it, the ends repeated."
    reach, frames = network.receptive_field, sequence.shape[1]
    past = reach - 1 if causal else reach // 2
    windows = [torch.stack([sequence[:, min(max(t - past + k, 0), frames - 1)] for k in range(reach)], 1) for t in range(frames)]
    return torch.stack([network(w) for w in windows], 1)

# ---------------------------------------------------------------- whole sequences

@pytest.mark.parametrize("widths", [(3, 3), (3, 3, 3), (1, 1, 1), (5, 3)])
@pytest.mark.parametrize("causal", [False, True])
@torch.no_grad()
def test_a_sequence_at_once_equals_every_window_alone(widths, causal):
    clip = settled(ClipNetwork(widths=widths, channels=24, causal=causal))
    long = TemporalNetwork(widths=widths, channels=24, causal=causal).eval()
    long.load_state_dict(clip.state_dict())
    sequence = torch.randn(3, 33, 17, 2)
    wanted = by_hand(clip, sequence, causal)
    before = clip.receptive_field - 1 if causal else clip.receptive_field // 2
    padded = torch.cat([sequence[:, :1].expand(-1, before, -1, -1), sequence, sequence[:, -1:].expand(-1, clip.receptive_field - 1 - before, -1, -1)], 1)
    for found in (clip.lift_sequence(sequence), long.lift_sequence(sequence), long(padded)): assert torch.allclose(found, wanted, atol=1e-5)
    assert torch.allclose(clip(padded).unflatten(0, (3, -1)), wanted, atol=1e-5)

@pytest.mark.parametrize("frames", [1, 2, 8, 9, 10, 27, 50])
@torch.no_grad()
def test_pieces_of_a_long_sequence_meet(frames):
    network = settled(ClipNetwork(widths=(3, 3), channels=16))
    sequence = torch.randn(2, frames, 17, 2)
    whole = network.lift_sequence(sequence)
    assert whole.shape == (2, frames, 17, 3) and all(torch.allclose(network.lift_sequence(sequence, rows), whole, atol=1e-5) for rows in (1, 19, 40))

@torch.no_grad()
def test_a_root_that_is_not_written_is_zero():
    network = settled(ClipNetwork(16, 15, (3, 3), 16))
    pose = network.lift_sequence(torch.randn(1, 20, 16, 2))
    assert pose.shape == (1, 20, 16, 3) and not pose[:, :, 0].any() and bool(pose[:, :, 1:].any())
    assert ClipNetwork(17, 1, (3, 3), 16)(torch.randn(2, 9, 17, 2)).shape == (2, 1, 3)

def test_filters_take_over_the_running_statistics():
    network = settled(ClipNetwork(widths=(3, 3), channels=16))
    form, sequence = SequenceForm(network), torch.randn(1, 30, 17, 2)
    before = form(sequence)
    network.expand_bn.running_mean += 1.
    assert torch.equal(form(sequence), before) and not torch.allclose(SequenceForm(network)(sequence), before, atol=1e-3)

@pytest.mark.parametrize("widths", [(3, 3), (3, 3, 3), (1, 1)])
@pytest.mark.parametrize("strided", [False, True])
def test_the_cost_of_a_form_is_what_it_multiplies(widths, strided):
    network = TemporalNetwork(widths=widths, channels=16, strided=strided).eval()
    frames = network.receptive_field if strided else network.receptive_field + 5
    with FlopCounterMode(display=False) as counter: network(torch.randn(1, frames, 17, 2))
    assert counter.get_total_flops() == 2 * network.multiplications(frames, strided)

# ---------------------------------------------------------------- neighbours in a batch

def test_runs_hold_every_sample_once(test):
    index = torch.tensor([0, 1, 2, 4, 7, 8, 5, 6, 6, 300, 301])
    batch = Batch(test, index, window=9, bounds=clip_bounds(test))
    found = runs(batch, 2)
    assert [(r.first, r.end, r.frames) for r in found[:5]] == [(0, 4, 5), (4, 6, 2), (6, 8, 2), (8, 9, 1), (9, 11, 2)]
    first, _ = clip_bounds(test)
    ends = torch.tensor([int(first[40]) - 1, int(first[40])])
    assert len(runs(Batch(test, ends, window=9, bounds=clip_bounds(test)), 2)) == 2, "neighbours in the set, but of two clips"

@pytest.fixture(scope="module")
def long():
    "A set with clips of about a hundred frames."
    return synthetic.load("test", samples=80_000)

INDICES = {"all neighbours": torch.arange(40, 700), "every second": torch.arange(1, 700, 2), "far apart": torch.arange(0, 40_00, 97), "any order": torch.randperm(900, generator=torch.Generator().manual_seed(0))[:300],
           "mixed": torch.cat([torch.arange(500, 650), torch.arange(0, 3000, 150), torch.arange(900, 1100, 3), torch.tensor([7, 7, 6])]), "one": torch.tensor([5])}

@pytest.mark.parametrize("which", INDICES)
@pytest.mark.parametrize("options", [dict(widths=(3, 3, 3)), dict(widths=(3, 3, 3, 3), units="screen", causal=True), dict(widths=(3, 3, 3), joints=16, root=False)])
def test_lifting_neighbours_together_changes_no_answer(which, options, long):
    method = build(long, small(**options))
    settled(method.network)
    method.network.shrink.weight.data.mul_(.1)
    batch = Batch(long, INDICES[which], window=method.window, causal=method.causal, bounds=clip_bounds(long))
    with evaluating(method):
        for seen in (batch, batch.mirrored()): assert torch.allclose(method.predict(seen), Lifter.predict(method, seen), atol=1e-5)

def test_less_is_multiplied_where_samples_are_neighbours(long):
    method = build(long, small(widths=(3, 3, 3, 3), channels=64)).eval()
    cost = {}
    for name, index in (("neighbours", torch.arange(600)), ("alone", torch.arange(0, len(long), len(long) // 600)[:600])):
        with FlopCounterMode(display=False) as counter, torch.no_grad(): method.predict(Batch(long, index, window=81, bounds=clip_bounds(long)))
        cost[name] = counter.get_total_flops()
    assert cost["neighbours"] < 0.4 * cost["alone"]
    window = method.network.multiplications(81, strided=True)
    assert cost["alone"] <= 600 * 2 * window

def test_scores_do_not_depend_on_how_samples_are_lifted(long, monkeypatch):
    method = build(long, small(widths=(3, 3, 3)))
    few = long.select(torch.arange(0, 6000))
    protocol = scoring(synthetic.PROTOCOL, replace(method.config, flip_test=True))[0]
    fast = evaluate(method, few, protocol, batch_size=1000)
    monkeypatch.setattr(videopose, "lifted_together", lambda batch, network, answer: answer(batch))
    slow = evaluate(method, few, protocol, batch_size=1000)
    assert fast["mpjpe"] == pytest.approx(slow["mpjpe"], abs=1e-3) and fast["mpjve"] == pytest.approx(slow["mpjve"], abs=1e-3)

# ---------------------------------------------------------------- the image

def test_mirrored_samples_still_fit_their_cameras(train):
    for window in (1, 9):
        batch = Batch(train, torch.arange(0, 4000, 10), window=window, bounds=clip_bounds(train))
        both, chosen = batch.half_mirrored()
        assert 0.4 < float(chosen.float().mean()) < 0.6
        seen = both.pose_2d if window == 1 else both.pose_2d[:, window // 2]
        assert float((project(both.pose_3d, both.camera) - seen).norm(dim=-1).max()) < 0.01
        assert torch.equal(both.pose_3d[~chosen], batch.pose_3d[~chosen]) and torch.equal(both.camera.intrinsics[~chosen], batch.camera.intrinsics[~chosen])
    blind = replace(train, pose_3d=None)
    assert Batch(blind, torch.arange(10)).half_mirrored()[0].pose_2d.shape == (10, 17, 2)

def test_the_image_error_is_that_of_the_camera(train):
    batch = some(train)
    moved = batch.pose_3d + 0.2 * torch.randn(64, 17, 3, generator=torch.Generator().manual_seed(1))
    wanted = 0.
    for k in range(64):
        camera = batch.camera[k]
        px = project(moved[k:k + 1].double(), camera.to(torch.float64))[0]
        width = float(camera.resolution[0, 0])
        wanted += sum(float(((px[j] - batch.pose_2d[k, j].double()) * 2 / width).norm()) for j in range(17)) / 17 / 64
    assert float(reprojection_error(moved, batch.pose_2d, batch.camera)) == pytest.approx(wanted, rel=1e-4) and wanted > 0.05
    assert float(reprojection_error(batch.pose_3d, batch.pose_2d, batch.camera)) < 1e-5

def test_a_body_behind_the_camera_has_a_finite_error(train):
    batch = some(train)
    pose = (batch.target + torch.tensor([0., 0., -1.])).requires_grad_()
    error = reprojection_error(pose, batch.pose_2d, batch.camera)
    error.backward()
    assert bool(error.isfinite()) and float(error.detach()) < 20 and bool(pose.grad.isfinite().all())

def test_bones_and_sides_are_compared_in_metres():
    pose = torch.randn(5, 17, 3, generator=torch.Generator().manual_seed(2))
    lengths = torch.stack([(pose[:, c] - pose[:, p]).norm(dim=1) for c, p in H36M17.bones], 1)
    assert float(bone_difference(pose, 2 * pose.flip(0), H36M17)) == pytest.approx(float(lengths.mean(0).square().mean().sqrt()), rel=1e-5)
    assert float(bone_difference(pose, pose, H36M17)) == 0.
    by_name = {H36M17.joints[c]: lengths[:, k] for k, (c, _) in enumerate(H36M17.bones)}
    sides = [(by_name[n] - by_name["right" + n[4:]]).abs().mean() for n in by_name if n.startswith("left")]
    assert len(sides) == 6 and float(asymmetry(pose, H36M17)) == pytest.approx(float(sum(sides)) / 6, rel=1e-5)

def test_the_root_is_where_rays_and_joints_agree(train):
    batch = some(train)
    assert torch.allclose(root_by_least_squares(batch.target, batch.pose_2d, batch.camera), batch.pose_3d[:, 0], atol=5e-3)
    assert torch.allclose(onto_rays(batch.target, batch.pose_2d, batch.camera), batch.target, atol=5e-3)
    shaken = batch.target + 0.03 * torch.randn(64, 17, 3, generator=torch.Generator().manual_seed(1)) * (torch.arange(17) > 0)[:, None]
    moved = onto_rays(shaken, batch.pose_2d, batch.camera)
    depth = root_by_least_squares(shaken, batch.pose_2d, batch.camera)[:, 2]
    assert torch.allclose(moved[..., 2], shaken[..., 2], atol=1e-5)
    root = torch.stack([*(root_by_least_squares(moved, batch.pose_2d, batch.camera).T[:2]), depth], 1)
    assert float((project(moved + root[:, None], batch.camera) - batch.pose_2d).norm(dim=-1).max()) < 0.5
    for k in (3, 40): # numpy's least squares on the same equations
        from poseprojects.camera import intrinsic_normalize, undistort
        u = undistort(intrinsic_normalize(batch.pose_2d[k:k + 1].double(), batch.camera[k].to(torch.float64)), batch.camera[k].distortion.double())[0]
        rows = torch.cat([torch.cat([torch.eye(2, dtype=u.dtype).expand(17, 2, 2), -u[..., None]], -1)]).flatten(0, 1)
        right = (u * shaken[k, :, 2:] - shaken[k, :, :2]).flatten()
        assert torch.allclose(root_by_least_squares(shaken, batch.pose_2d, batch.camera)[k].double(), torch.linalg.lstsq(rows, right[:, None]).solution[:, 0], atol=5e-3)

def test_joints_on_one_pixel_do_not_stop_a_run(train):
    batch = some(train)
    batch.pose_2d = batch.pose_2d[:, :1].expand(-1, 17, -1)
    assert bool(root_by_least_squares(batch.target, batch.pose_2d, batch.camera).isfinite().all())

def test_far_people_are_weighed_less():
    found, place = torch.tensor([[0., 0., 2.], [1., 0., 8.]]), torch.tensor([[.3, .4, 2.], [1., 0., 10.]])
    assert float(trajectory_error(found, place)) == pytest.approx((.5 / 2 + 2 / 10) / 2)

# ---------------------------------------------------------------- some with 3D, others without

class Oracle(nn.Module):
    "A network that knows the answers."
    def __init__(self, answers): super().__init__(); self.answers = answers
    def forward(self, seen): assert len(seen) == len(self.answers); return self.answers

def halves(method, train, index=torch.arange(0, 4000, 100), clock=Clock(epoch=5, epochs=10)):
    "The same samples with and without 3D."
    common = dict(clock=clock, window=method.window, causal=method.causal, bounds=clip_bounds(train))
    return Batch(train, index, others={"unlabelled": Batch(replace(train, pose_3d=None), index, **common)}, **common)

@pytest.mark.parametrize("options", [dict(units="screen"), dict(units="standard"), dict(units="screen", joints=16), dict(units="screen", loss="mpjpe")])
def test_perfect_predictions_have_no_loss(options, train):
    method = build(train, small(trajectory=True, labelled_subjects=1, **options))
    batch = halves(method, train)
    wanted, place = method.wanted(batch), (batch.pose_3d[:, :1] - method.placing.mean) / method.placing.std
    method.network, method.trajectory = Oracle(torch.cat([wanted, wanted])), Oracle(torch.cat([place, place]))
    losses = method.losses(batch)
    assert list(losses) == [method.config.loss, "trajectory", "reprojection", "bones"]
    assert all(float(loss) < 1e-5 for loss in losses.values()), losses

def test_each_loss_notices_what_it_is_for(train):
    method = build(train, small(trajectory=True, labelled_subjects=1, units="screen"))
    batch = halves(method, train)
    wanted, place = method.wanted(batch), batch.pose_3d[:, :1].clone()
    def losses(pose=wanted, root=place, which=slice(40, None)):
        poses, roots = torch.cat([wanted, wanted]), torch.cat([place, place])
        poses[which], roots[which] = pose, root
        method.network, method.trajectory = Oracle(poses), Oracle(roots)
        return {name for name, loss in method.losses(batch).items() if float(loss) > 1e-4}
    assert losses(root=place + .1) == {"reprojection"} and losses(pose=1.1 * wanted) == {"reprojection", "bones"}
    assert losses(pose=wanted.flip(-1)) == {"reprojection"}, "a turned body has the right bones"
    assert losses(pose=1.1 * wanted, which=slice(0, 40)) == {"mse"} and losses(root=place + .1, which=slice(0, 40)) == {"trajectory"}
    assert losses(pose=wanted * 1.1, root=place * 1.1) == {"bones"}, "a larger body farther away looks the same"

@pytest.mark.parametrize("term, reached", [("mse", {"network"}), ("trajectory", {"trajectory"}), ("reprojection", {"network", "trajectory"}), ("bones", {"network"})])
def test_every_term_reaches_its_networks(term, reached, train):
    method = build(train, small(trajectory=True, labelled_subjects=1, flip=True))
    method.losses(halves(method, train))[term].backward()
    for name in ("network", "trajectory"):
        gradients = [p.grad for p in getattr(method, name).parameters()]
        if name in reached: assert all(g is not None and bool(g.isfinite().all()) and float(g.abs().max()) > 0 for g in gradients)
        else: assert all(g is None or not g.any() for g in gradients)

def test_the_networks_share_no_weights_and_both_are_trained(train):
    method = build(train, small(trajectory=True, labelled_subjects=1, warmup=1))
    before = {n: p.detach().clone() for n, p in method.named_parameters()}
    assert len({p.data_ptr() for p in method.parameters()}) == len(before) and sum(n.startswith("trajectory") for n in before) == len(before) // 2
    sets = streams(train, method.config)
    history = fit(method, sets, Plan("short", 2, 128, 1e-3), show=False)
    assert all(not torch.equal(p, before[n]) for n, p in method.named_parameters())
    assert "loss/reprojection" not in history.rows[0] and {"loss/mse", "loss/trajectory", "loss/reprojection", "loss/bones"} <= set(history.rows[1])
    assert history.samples == 2 * (len(sets["train"]) // 128) * 128

def test_labels_of_others_are_not_there(train):
    "The trainer cannot look at them, and what they hold changes nothing."
    config = small(trajectory=True, labelled_subjects=2)
    sets = streams(train, config)
    assert sets["unlabelled"].pose_3d is None and len(sets["train"]) + len(sets["unlabelled"]) == len(train)
    names = [{train.subject_names[k] for k in s.subject.unique().tolist()} for s in sets.values()]
    assert names == [{"A", "B"}, {"C", "D", "E"}]

def test_a_share_of_each_clip_keeps_its_labels(train):
    sets = streams(train, small(trajectory=True, labelled_subjects=1, labelled_fraction=.3))
    first, last = clip_bounds(train)
    kept = [k for k in range(len(train)) if train.subject[k] == 0 and k - int(first[k]) < -(-(int(last[k]) - int(first[k]) + 1) * 3 // 10)]
    assert torch.equal(sets["train"].pose_2d, train.pose_2d[kept]) and len(sets["train"]) + len(sets["unlabelled"]) == len(train)
    assert list(streams(train, small())) == ["train"] and streams(train, small())["train"] is train
    assert list(streams(train, small(labelled_subjects=1, unlabelled=False))) == ["train"]

def test_what_cannot_be_trained_is_refused(train):
    assert "trajectory = True" in refused(small, labelled_subjects=1)
    assert "labelled_fraction = 0" in refused(small, labelled_fraction=0, trajectory=True)
    assert "all of its 5 subjects" in refused(streams, train, small(trajectory=True, labelled_subjects=5))
    assert "trajectory = True" in refused(build(train, small()).eval().predict_absolute, some(train))

def test_bodies_are_placed_where_the_trajectory_says(long):
    method = build(long, small(trajectory=True, widths=(3, 3, 3))).eval()
    batch = Batch(long, torch.arange(100, 400), window=27, bounds=clip_bounds(long))
    with torch.no_grad():
        absolute, relative = hypotheses(method, batch, absolute=True)[0], method.predict(batch)
        place = method.placing.inverse(method.trajectory(method.read(batch)))
    assert torch.allclose(absolute - relative, place[:, None].expand(-1, 1, 17, -1), atol=1e-4) and torch.allclose(absolute[:, 0, :1], place, atol=1e-4)
    protocols = scoring(CMU, Config(trajectory=True))
    assert [p.id for p in protocols] == ["cmu-flip", "cmu-absolute"] and protocols[1].alignment == "none" and not protocols[1].flip_tta
    assert [p.id for p in scoring(CMU, VARIANTS["paper"])] == ["cmu-flip"] and scoring(CMU, VARIANTS["poseaug"]) == (CMU16,)

def test_the_trajectory_is_learnt(train, test):
    "Clearly better than the mean place, on other people."
    seed_everything(0)
    method = build(train, small(trajectory=True, widths=(1, 1, 1), channels=128))
    fit(method, train, Plan("short", 3, 64, 3e-3, Schedule("one_cycle", end=0.001)), show=False)
    few = test.select(torch.arange(0, len(test), 8))
    batch = Batch(few, torch.arange(len(few)))
    with evaluating(method): found = method.place(batch)[:, 0, 0]
    error, mean = ((p - batch.pose_3d[:, 0]).norm(dim=-1).mean() for p in (found, train.pose_3d[:, 0].mean(0)))
    assert float(error) < 0.35 * float(mean), (float(error), float(mean))
    absolute = evaluate(method, few, scoring(synthetic.PROTOCOL, method.config)[1])
    assert absolute["mpjpe"] < 500 * float(mean)

def test_people_without_3d_help(train, test):
    "With the others' 2D the same labels go farther, relative to the root and in the camera frame."
    error = {}
    for unlabelled in (False, True):
        config = small(loss="mpjpe", widths=(1, 1, 1), channels=128, trajectory=True, labelled_subjects=1, labelled_fraction=.2, warmup=10, weights=(10., 10.), unlabelled=unlabelled)
        sets = streams(train, config)
        seed_everything(0)
        method = build(sets["train"], config)
        fit(method, sets, Plan("short", 30, 32, 3e-3, Schedule("one_cycle", end=0.001)), show=False)
        error[unlabelled] = [evaluate(method, test.select(torch.arange(0, len(test), 4)), p)["mpjpe"] for p in scoring(synthetic.PROTOCOL, config)]
    assert error[True][0] < error[False][0] - 2 and error[True][1] < error[False][1] - 30, error

def test_an_experiment_trains_on_both_streams(tmp_path, monkeypatch):
    "From parameters to records: the labelled people make the statistics, and both protocols are recorded."
    for name in ("RESULTS", "RUNS", "CACHE"): monkeypatch.setenv(f"POSEPROJECTS_{name}", str(tmp_path / name.lower()))
    monkeypatch.delenv("IN_TEST", raising=False)
    monkeypatch.setitem(videopose.VARIANTS, "tiny", small(trajectory=True, labelled_subjects=1, warmup=1))
    pack = make_pack(tmp_path / "cmu", subjects=(*cmu.SUBJECTS["train"], *cmu.SUBJECTS["test"]), frames=160)
    made = Experiment(videopose, dict(dataset="cmu", data_root=str(pack), plan="quick", epochs=2, batch_size=64, gpus=0, variant="tiny"))
    made.load(); made.build(); history = made.fit(); made.evaluate(); made.record()
    assert list(made.streams) == ["train", "unlabelled"] and len(made.train.subject.unique()) == 1 and made.history.samples == 2 * (len(made.train) // 64) * 64
    assert "loss/reprojection" in history.rows[1]
    records = {r.protocol: r for r in read_all(tmp_path / "results" / "runs") if r.method == "videopose"}
    assert set(records) == {"cmu", "cmu-absolute"} and records["cmu"].train_fingerprint == made.train.fingerprint and records["cmu"].numbers["options"]["labelled_subjects"] == 1
    again = Experiment(videopose, dict(dataset="cmu", data_root=str(pack), plan="quick", epochs=2, batch_size=64, gpus=0, variant="tiny"))
    again.load(); again.build()
    assert again.fit().steps == history.steps and again.out_dir == made.out_dir
