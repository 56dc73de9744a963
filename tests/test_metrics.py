"Metrics against slow independent references, against published implementations' numbers, and by their properties."
import csv
import math

import numpy as np
import pytest
import roma
import torch
from hypothesis import given, settings, strategies as st

from poseprojects.metrics import (align_similarity, area_under_curve, auc, best_scale, bone_length_error, correct_keypoints, depth_flip,
                                  facing_sine, joint_errors, mpjpe, mpjve, n_mpjpe, pa_mpjpe, pck, root_align, symmetry_error)
from poseprojects.skeleton import H36M16, H36M17, XAS18, mirror
from poseprojects.storage import shared_data

few = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**31 - 1)


def poses(seed, *shape, dtype=torch.float64):
    "Random poses about as large as a person."
    return .4 * torch.randn(*(shape or (17,)), 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rotation(seed):
    return roma.random_rotmat(generator=None) if seed is None else roma.unitquat_to_rotmat(
        torch.nn.functional.normalize(torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=0))


# --- slow references: numpy, one pose at a time -------------------------------------------------------------------

def slow_mpjpe(pred, target):
    return sum(math.sqrt(sum((a - b) ** 2 for a, b in zip(p, g))) for p, g in zip(pred.tolist(), target.tolist())) / len(pred)


def slow_similarity(pred, target):
    "Kabsch with scale from the singular value decomposition; the last axis changes sign rather than reflect."
    p, g = pred.numpy(), target.numpy()
    p0, g0 = p - p.mean(0), g - g.mean(0)
    U, D, Vt = np.linalg.svd(g0.T @ p0)
    S = np.diag([1, 1, np.sign(np.linalg.det(U) * np.linalg.det(Vt))])
    R = U @ S @ Vt
    scale = np.trace(np.diag(D) @ S) / (p0 ** 2).sum()
    return torch.from_numpy(scale * p0 @ R.T + g.mean(0))


def slow_scaled(pred, target):
    "The best scale by a fine search, so without the closed form."
    return min((((s * pred - target) ** 2).sum().item(), s) for s in np.linspace(1, 2.4, 2801))[1]


def slow_auc(pred, target):
    e = [math.dist(p, g) for p, g in zip(pred.tolist(), target.tolist())]
    return 100 * np.mean([np.mean([x < k * .005 for x in e]) for k in range(31)])


@few
@given(seeds)
def test_mpjpe_is_the_slow_one(seed):
    p, g = poses(seed), poses(seed + 1)
    assert mpjpe(p, g).item() == pytest.approx(slow_mpjpe(p, g), rel=1e-12)


@few
@given(seeds)
def test_similarity_is_the_slow_one(seed):
    p, g = poses(seed), poses(seed + 1)
    assert torch.allclose(align_similarity(p, g), slow_similarity(p, g), atol=1e-9)


@settings(max_examples=5, deadline=None)
@given(seeds)
def test_scale_is_the_slow_one(seed):
    p = poses(seed)
    g = 1.7 * p + .1 * poses(seed + 1)
    assert best_scale(p, g).item() == pytest.approx(slow_scaled(p, g), abs=5e-4)


@few
@given(seeds)
def test_auc_is_the_slow_one(seed):
    g = poses(seed)
    p = g + .1 * poses(seed + 1)
    assert auc(p, g).item() == pytest.approx(slow_auc(p, g), abs=1e-9)


@few
@given(seeds)
def test_no_random_similarity_beats_the_fit(seed):
    p, g = poses(seed), poses(seed + 1)
    best = (align_similarity(p, g) - g).square().sum()
    for k in range(20):
        R, s = rotation(seed + 7 * k), 2 * torch.rand((), generator=torch.Generator().manual_seed(seed + k), dtype=torch.float64)
        q = s * (p - p.mean(0)) @ R.mT + g.mean(0)
        assert best <= (q - g).square().sum() + 1e-9


# --- numbers of published implementations -------------------------------------------------------------------------

def fixture(name):
    data = shared_data()
    path = data.parent / "parity" / f"{name}.npz" if data else None
    if path is None or not path.is_file(): pytest.skip(f"no parity file {name}.npz beside the shared data")
    arrays = {key: torch.from_numpy(value) for key, value in np.load(path, allow_pickle=False).items() if value.dtype.kind == "f"}
    limits = {row["array"]: float(row["suggested_rel_tolerance"]) for row in csv.DictReader(open(path.parent / "tolerances.csv", encoding="utf-8")) if row["module"] == name}
    return arrays, limits


def same(name, ours, arrays, limits):
    theirs = arrays[f"out_{name}"]
    assert ((ours.reshape(theirs.shape) - theirs).abs().max() / theirs.abs().max()).item() <= limits[f"out_{name}"], name


def test_parity_poseaug():
    a, limits = fixture("metrics_poseaug")
    p, g = a["in_pred"], a["in_gt"]
    same("mpjpe", mpjpe(p, g).mean(), a, limits)
    same("mpjpe_byjoint", joint_errors(p, g).mean(0), a, limits)
    same("p_mpjpe", pa_mpjpe(p, g).mean(), a, limits)
    same("n_mpjpe", n_mpjpe(p, g).mean(), a, limits)
    same("pck150", pck(p, g).mean(), a, limits)
    same("auc", auc(p, g).mean(), a, limits)


def test_parity_videopose3d():
    a, limits = fixture("metrics_videopose3d")
    p, g = a["in_pred"], a["in_gt"]
    same("mpjpe", mpjpe(p, g).mean(), a, limits)
    same("weighted_mpjpe", (a["in_w"] * joint_errors(p, g)).mean(), a, limits)
    same("p_mpjpe", pa_mpjpe(p, g).mean(), a, limits)
    same("n_mpjpe", n_mpjpe(p, g).mean(), a, limits)
    same("velocity_error", mpjve(p, g), a, limits)


def test_parity_rhodin():
    a, limits = fixture("metrics_rhodin")
    p, g = a["in_pred"], a["in_gt"]
    same("mpjpe_weight_17_16", 17 / 16 * mpjpe(p, g).mean(), a, limits)
    same("n_mpjpe_weight_1", n_mpjpe(p, g).mean(), a, limits)
    same("n_mpjpe_weight_17_16", 17 / 16 * n_mpjpe(p, g).mean(), a, limits)
    # The factor is a mean over the 16 other joints only because the root is exact:
    assert torch.allclose(17 / 16 * mpjpe(root_align(p), root_align(g)), joint_errors(root_align(p), root_align(g))[:, 1:].mean(-1))


def test_parity_x_as_supervision():
    a, limits = fixture("metrics_xas")
    p, g = a["in_pred"], a["in_gt"] # world millimetres
    scaled = best_scale(p, g)[:, None, None] * p
    aligned = align_similarity(p, g)
    for name, q in (("none", p), ("scale", scaled), ("procrustes", aligned)):
        same(f"error_{name}", joint_errors(q, g), a, limits)
        same(f"pck150_{name}", pck(q, g, threshold=150.).mean(), a, limits)
    same("auc_none", auc(p / 1000, g / 1000).mean(), a, limits)


@pytest.mark.parametrize("name", ["metrics_poseaug", "metrics_videopose3d"])
def test_parity_would_notice_a_reflection(name):
    a, limits = fixture(name)
    ours, theirs = pa_mpjpe(a["in_pred"], a["in_gt"], reflection=True).mean().item(), a["out_p_mpjpe"].item()
    assert abs(ours - theirs) / theirs > 100 * limits["out_p_mpjpe"]


# --- properties ----------------------------------------------------------------------------------------------------

@few
@given(seeds, st.floats(1e-3, 1e3), st.floats(-10, 10))
def test_pa_ignores_similarities(seed, scale, shift):
    p, g = poses(seed), poses(seed + 1)
    moved = scale * p @ rotation(seed + 2).mT + shift
    assert pa_mpjpe(moved, g).item() == pytest.approx(pa_mpjpe(p, g).item(), rel=1e-6)
    assert pa_mpjpe(moved, p).item() < 1e-8


@few
@given(seeds, st.floats(1e-3, 1e3))
def test_n_mpjpe_ignores_scale_and_nothing_else(seed, scale):
    p, g = poses(seed), poses(seed + 1)
    assert n_mpjpe(scale * p, g).item() == pytest.approx(n_mpjpe(p, g).item(), rel=1e-9)
    assert abs(n_mpjpe(p @ rotation(seed + 2).mT, p).item()) > 1e-3


@few
@given(seeds)
def test_mirrored_pose_has_a_large_pa_error(seed):
    g = poses(seed)
    mirrored = g * torch.tensor([1., 1., -1.], dtype=g.dtype)
    thin = torch.linalg.svdvals(g - g.mean(0))[-1].item() / 17 ** .5 # extent along the flattest direction
    assert pa_mpjpe(mirrored, g).item() > .3 * thin > 1e-3
    assert pa_mpjpe(mirrored, g, reflection=True).item() < 1e-8


def test_scipy_would_not_notice_the_mirror():
    from scipy.spatial import procrustes
    g = poses(3)
    mirrored = g * torch.tensor([1., 1., -1.], dtype=g.dtype)
    assert procrustes(g.numpy(), mirrored.numpy())[2] < 1e-12
    assert pa_mpjpe(mirrored, g).item() > .1


@few
@given(seeds)
def test_reflection_takes_the_better_of_two(seed):
    p, g = poses(seed), poses(seed + 1)
    squared = lambda q: (q - g).square().sum().item()
    both = [squared(align_similarity(q, g)) for q in (p, p * torch.tensor([1., -1., 1.], dtype=p.dtype))]
    assert squared(align_similarity(p, g, reflection=True)) == pytest.approx(min(both), rel=1e-9)


@few
@given(seeds, st.floats(1e-2, 1e4))
def test_units_scale_lengths_and_nothing_else(seed, unit):
    p, g = poses(seed, 3, 17), poses(seed + 1, 3, 17)
    for metric in (mpjpe, n_mpjpe, pa_mpjpe, mpjve): assert torch.allclose(metric(unit * p, unit * g), unit * metric(p, g), rtol=1e-6)
    for metric in (bone_length_error,): assert torch.allclose(metric(unit * p, unit * g, H36M17), unit * metric(p, g, H36M17), rtol=1e-6)
    assert torch.allclose(symmetry_error(unit * p, H36M17), unit * symmetry_error(p, H36M17), rtol=1e-6)
    assert torch.equal(pck(1024 * p, 1024 * g, threshold=1024 * .15), pck(p, g))
    assert torch.equal(depth_flip(unit * p, g), depth_flip(p, g))


@few
@given(seeds)
def test_order_of_joints_does_not_matter(seed):
    p, g = poses(seed, 3, 17), poses(seed + 1, 3, 17)
    order = torch.randperm(17, generator=torch.Generator().manual_seed(seed))
    for metric in (mpjpe, n_mpjpe, pa_mpjpe, pck, auc, mpjve): assert torch.allclose(metric(p[:, order], g[:, order]), metric(p, g), rtol=1e-9)
    assert torch.equal(joint_errors(p[:, order], g[:, order]), joint_errors(p, g)[:, order])


@few
@given(seeds)
def test_more_forgiving_is_never_larger_in_squares(seed):
    p, g = root_align(poses(seed)), root_align(poses(seed + 1))
    squares = [(q - g).square().sum().item() for q in (p, best_scale(p, g) * p, align_similarity(p, g))]
    assert squares[2] <= squares[1] + 1e-9 and squares[1] <= squares[0] + 1e-9


@pytest.mark.parametrize("shape", [(17,), (4, 17), (4, 3, 17), (0, 17)])
def test_any_leading_axes(shape):
    p, g = poses(0, *shape), poses(1, *shape)
    for metric in (mpjpe, n_mpjpe, pa_mpjpe, pck, auc, depth_flip):
        found = metric(p, g)
        assert found.shape == shape[:-1]
        flat = metric(p.reshape(-1, 17, 3), g.reshape(-1, 17, 3))
        assert torch.allclose(found.flatten().double(), flat.double())
    assert bone_length_error(p, g, H36M17).shape == symmetry_error(p, H36M17).shape == facing_sine(p, H36M17).shape == shape[:-1]


# --- edges -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("place", [0., 4.2, -1e3])
def test_collapsed_prediction_is_finite(dtype, place):
    g = poses(0, 2, 17, dtype=dtype)
    p = torch.full((2, 17, 3), place, dtype=dtype, requires_grad=True)
    for metric in (mpjpe, n_mpjpe, pa_mpjpe):
        error = metric(p, g)
        gradient, = torch.autograd.grad(error.sum(), p)
        assert error.isfinite().all() and gradient.isfinite().all(), metric.__name__
    assert torch.allclose(pa_mpjpe(p, g), mpjpe(g.mean(-2, keepdim=True).expand_as(g), g), rtol=1e-5)


def test_collapsed_pose_does_not_disturb_its_neighbours():
    p, g = poses(0, 3, 17), poses(1, 3, 17)
    alone = pa_mpjpe(p, g)
    p[1] = 1.
    assert torch.equal(pa_mpjpe(p, g)[[0, 2]], alone[[0, 2]])


@pytest.mark.parametrize("flatten", [(1., 1., 0.), (1., 0., 0.)])
def test_flat_poses_are_finite(flatten):
    p, g = poses(0, 5, 17) * torch.tensor(flatten, dtype=torch.float64), poses(1, 5, 17)
    p.requires_grad_()
    pa_mpjpe(p, g).sum().backward()
    assert pa_mpjpe(p, g).isfinite().all() and p.grad.isfinite().all()
    assert (pa_mpjpe(g, p.detach()) >= 0).all()


def test_collapsed_target_is_fitted_exactly():
    g = torch.ones(17, 3)
    assert pa_mpjpe(poses(0, dtype=torch.float32), g).item() < 1e-6


def test_perfect_prediction_differentiates():
    g = poses(0, 4, 17)
    for metric in (mpjpe, n_mpjpe, pa_mpjpe):
        p = g.clone().requires_grad_()
        metric(p, g).sum().backward()
        assert p.grad.isfinite().all(), metric.__name__


@pytest.mark.parametrize("metric", [mpjpe, n_mpjpe, pa_mpjpe])
def test_gradients_are_right(metric):
    p, g = poses(0, 2, 17).requires_grad_(), poses(1, 2, 17)
    assert torch.autograd.gradcheck(metric, (p, g), atol=1e-5)


def test_nan_stays_visible():
    p, g = poses(0, 3, 17), poses(1, 3, 17)
    p[1, 4, 2] = float("nan")
    for metric in (mpjpe, n_mpjpe, pa_mpjpe):
        found = metric(p, g)
        assert found.isnan().tolist() == [False, True, False], metric.__name__


def test_threshold_is_strict():
    errors = torch.tensor([0., .1499, .15, .2])
    assert correct_keypoints(errors).tolist() == [100., 100., 0., 0.]
    assert area_under_curve(torch.tensor([0.])).item() == pytest.approx(100 * 30 / 31, rel=1e-6)
    assert area_under_curve(torch.tensor([.15, 9.])).tolist() == [0., 0.]


def test_mpjve_needs_two_frames():
    with pytest.raises(ValueError, match="two consecutive frames"): mpjve(poses(0, 1, 17), poses(1, 1, 17))


def test_mpjve_ignores_a_constant_offset():
    g = poses(0, 9, 17)
    assert mpjve(g + torch.tensor([1., 2., 3.]), g).item() < 1e-12
    assert mpjve(torch.zeros_like(g), g).item() == pytest.approx((g[1:] - g[:-1]).norm(dim=-1).mean().item())


@few
@given(seeds)
def test_bones_by_a_loop(seed):
    p, g = poses(seed), poses(seed + 1)
    length = lambda x: [(x[c] - x[q]).norm().item() for c, q in H36M17.bones]
    assert bone_length_error(p, g, H36M17).item() == pytest.approx(np.abs(np.subtract(length(p), length(g))).mean())
    children = {H36M17.joints[c]: k for k, (c, _) in enumerate(H36M17.bones)}
    pairs = [(name, "right" + name[4:]) for name in children if name.startswith("left")]
    assert symmetry_error(p, H36M17).item() == pytest.approx(np.mean([abs(length(p)[children[l]] - length(p)[children[r]]) for l, r in pairs]))


@few
@given(seeds)
def test_bone_measures_ignore_rigid_motion_and_mirrors(seed):
    p, g = poses(seed), poses(seed + 1)
    moved = p @ rotation(seed + 2).mT + 4
    assert bone_length_error(moved, g, H36M17).item() == pytest.approx(bone_length_error(p, g, H36M17).item(), abs=1e-9)
    assert symmetry_error(mirror(p, H36M17), H36M17).item() == pytest.approx(symmetry_error(p, H36M17).item(), abs=1e-9)


# --- depth flips -------------------------------------------------------------------------------------------------------

@few
@given(seeds, st.floats(.1, 10))
def test_depth_flip_is_its_definition(seed, scale):
    "A pose is flipped when its copy with negated depths is nearer to the truth, whatever the scale."
    p, g = root_align(poses(seed)), root_align(poses(seed + 1))
    mirrored = p * torch.tensor([1., 1., -1.], dtype=p.dtype)
    nearer = (scale * mirrored - g).square().sum() < (scale * p - g).square().sum()
    assert depth_flip(p + 3, g - 5).item() == nearer.item()


@few
@given(seeds)
def test_flip_and_its_mirror_disagree(seed):
    p, g = poses(seed, 8, 17), poses(seed + 1, 8, 17)
    assert torch.equal(depth_flip(p, g), ~depth_flip(p * torch.tensor([1., 1., -1.], dtype=p.dtype), g))


def upright():
    pose = torch.zeros(17, 3, dtype=torch.float64)
    for name, place in dict(thorax=(0, -.5, 0), neck_nose=(0, -.6, -.1), left_shoulder=(.15, -.5, 0), right_shoulder=(-.15, -.5, 0)).items():
        pose[H36M17.index(name)] = torch.tensor(place)
    return pose


@pytest.mark.parametrize("degrees", [0, 30, 90, 180, 271])
def test_facing_sine_ignores_the_heading(degrees):
    turn = roma.rotvec_to_rotmat(torch.tensor([0., math.radians(degrees), 0.], dtype=torch.float64))
    assert facing_sine(upright() @ turn.mT, H36M17).item() == pytest.approx(1)
    assert facing_sine((upright() @ turn.mT) * torch.tensor([1., 1., -1.], dtype=torch.float64), H36M17).item() == pytest.approx(-1)


def test_facing_sine_without_direction_is_zero_and_differentiable():
    pose = torch.zeros(17, 3, requires_grad=True)
    sine = facing_sine(pose, H36M17)
    sine.backward()
    assert sine.item() == 0 and pose.grad.isfinite().all()


def test_facing_sine_names_a_missing_joint():
    with pytest.raises(ValueError, match="neck_nose"): facing_sine(torch.zeros(16, 3), H36M16)
    assert facing_sine(torch.zeros(18, 3), XAS18).item() == 0
