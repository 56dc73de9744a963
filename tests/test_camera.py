"""Cameras against a slow reference in plain Python, against real calibration, and by properties."""
import csv
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from poseprojects import camera as C
from poseprojects.camera import Cameras, Standardizer, look_at, project, ring, unproject, virtual_camera
from poseprojects.storage import InputError, shared_data

LENS = (-.207, .248, -.003, -.0009, -.0014) # about what Human3.6M's calibration says
FIELDS = ("intrinsics", "distortion", "rotation", "translation", "resolution")
f64 = torch.float64


def random_cameras(seed: int, count: int, lens: float = 1.) -> Cameras:
    g = torch.Generator().manual_seed(seed)
    u = lambda *shape: torch.rand(*shape, generator=g, dtype=f64) * 2 - 1
    centre = u(count, 3) * torch.tensor([4., 4., .6]) + torch.tensor([5., 0., 1.5])
    R, t = look_at(centre, u(count, 3) * .3 + torch.tensor([0., 0., 1.]))
    fx = 1150 + 100 * u(count, 1)
    return Cameras(tuple(f"c{k}" for k in range(count)), torch.cat([fx, fx * (1 + .01 * u(count, 1)), 500 + 30 * u(count, 2)], 1),
                   torch.tensor(LENS, dtype=f64) * (1 + .3 * u(count, 5)) * lens, R, t, (1000 + 2 * u(count, 2)).round()).check()

def random_points(seed: int, *shape: int) -> torch.Tensor:
    "Camera-frame points in front of the camera, metres."
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(*shape, 3, generator=g, dtype=f64) * 2 - 1
    return x * torch.tensor([1.2, 1.2, 1.]) + torch.tensor([0., 0., 4.])


# ---------------------------------------------------------------- slow reference: lists, loops, math

def slow_distort(x, y, k1, k2, k3, p1, p2):
    r2 = x ** 2 + y ** 2
    factor = 1 + k1 * r2 + k2 * r2 ** 2 + k3 * r2 ** 3 + p1 * x + p2 * y
    return x * factor + p1 * r2, y * factor + p2 * r2

def slow_project(point, camera):
    (fx, _, cx), (_, fy, cy) = camera["K"][:2]
    x, y = slow_distort(point[0] / point[2], point[1] / point[2], *camera["distortion"])
    return [fx * x + cx, fy * y + cy]

def slow_world_to_camera(point, camera):
    return [sum(camera["R"][i][j] * point[j] for j in range(3)) + camera["t"][i] for i in range(3)]

def slow_unproject(px, depth, camera):
    "Bisection-free inverse: plain fixed-point iteration, many rounds."
    (fx, _, cx), (_, fy, cy) = camera["K"][:2]
    v = [(px[0] - cx) / fx, (px[1] - cy) / fy]
    k1, k2, k3, p1, p2 = camera["distortion"]
    x, y = v
    for _ in range(400):
        r2 = x * x + y * y
        g = 1 + k1 * r2 + k2 * r2 ** 2 + k3 * r2 ** 3 + p1 * x + p2 * y
        x, y = (v[0] - p1 * r2) / g, (v[1] - p2 * r2) / g
    return [x * depth, y * depth, depth]

def each(function, points, cameras):
    entries = cameras.to_dict()["cameras"]
    return torch.tensor([[function(p, c) for p in sample] for sample, c in zip(points.tolist(), entries)], dtype=f64)


def test_project_and_world_to_camera_match_the_slow_reference():
    cameras, x = random_cameras(0, 6), random_points(0, 6, 17)
    torch.testing.assert_close(project(x, cameras), each(slow_project, x, cameras), rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(C.world_to_camera(x, cameras), each(slow_world_to_camera, x, cameras), rtol=1e-12, atol=1e-12)

def test_unproject_matches_the_slow_reference():
    cameras, x = random_cameras(1, 4), random_points(1, 4, 9)
    px = project(x, cameras)
    back = unproject(px, x[..., 2], cameras)
    slow = torch.tensor([[slow_unproject(p, d, c) for p, d in zip(ps, ds)] for ps, ds, c in zip(px.tolist(), x[..., 2].tolist(), cameras.to_dict()["cameras"])], dtype=f64)
    torch.testing.assert_close(back, slow, rtol=0, atol=1e-10)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-12)

def test_distortion_model_is_not_opencv_s():
    "A guard for the stated difference: OpenCV doubles the cross term and names p the other way round."
    x, y, (k1, k2, k3, p1, p2) = .3, -.2, LENS
    ours = C.distort(torch.tensor([[x, y]], dtype=f64), torch.tensor(LENS, dtype=f64))[0].tolist()
    q1, q2, r2 = p2, p1, x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2 ** 2 + k3 * r2 ** 3
    opencv = [x * radial + 2 * q1 * x * y + q2 * (r2 + 2 * x * x), y * radial + q1 * (r2 + 2 * y * y) + 2 * q2 * x * y]
    once = p1 * x + p2 * y
    assert ours == pytest.approx([opencv[0] - x * once, opencv[1] - y * once], abs=1e-15)
    assert abs(opencv[0] - ours[0]) > 1e-8

def test_undistort_has_the_exact_gradient():
    u = (torch.rand(3, 5, 2, dtype=f64) - .5).requires_grad_()
    k = (torch.tensor(LENS, dtype=f64).expand(3, 5) * 1.3).clone().requires_grad_()
    assert torch.autograd.gradcheck(C.distort, (u, k))
    assert torch.autograd.gradcheck(C.undistort, (u, k)) # also for the coefficients

def test_undistort_precision_float32():
    u = torch.rand(100, 17, 2) - .5
    k = torch.tensor(LENS).expand(100, 5)
    assert (C.undistort(C.distort(u, k), k) - u).abs().max() < 1e-6

def test_everything_is_differentiable():
    cameras, x = random_cameras(2, 2), random_points(2, 2, 3).requires_grad_()
    K9 = C.poseaug_intrinsics(cameras)
    px = project(x, cameras).detach().requires_grad_()
    check = torch.autograd.gradcheck
    for function in (lambda x: project(x, cameras), lambda x: C.world_to_camera(x, cameras), lambda x: C.camera_to_world(x, cameras),
                     lambda x: C.poseaug_project(x, K9), lambda x: tuple(C.lcn_encode(x, cameras)), lambda x: C.metric_box(x[:, 0], cameras)):
        assert check(function, x)
    for function in (lambda p: C.screen_normalize(p, cameras.resolution), lambda p: C.hip_normalize(p)[0], lambda p: C.head_root_normalize(p, head=2),
                     lambda p: C.box_normalize(p, C.joint_box(p, .1)), lambda p: virtual_camera(p[:, 0], cameras),
                     lambda p: C.intrinsic_normalize(p, cameras), lambda p: unproject(p, x.detach()[..., 2], cameras)):
        assert check(function, px)
    image, box, depth = (v.detach().requires_grad_() for v in C.lcn_encode(x, cameras))
    assert check(lambda i, b, d: C.lcn_decode(i, b, d, cameras), (image, box, depth))

@pytest.mark.parametrize("dtype", (torch.float32, f64))
def test_dtypes_are_kept(dtype):
    cameras, x = random_cameras(3, 5).to(dtype), random_points(3, 5, 17).to(dtype)
    px = project(x, cameras)
    R = virtual_camera(px[:, 0], cameras)
    crop = C.crop_cameras(cameras, R, x[:, 0].norm(dim=-1), 128)
    target = C.lcn_encode(x, cameras)
    outputs = [px, unproject(px, x[..., 2], cameras), C.world_to_camera(x, cameras), C.camera_to_world(x, cameras), R, *(getattr(crop, f) for f in FIELDS),
               C.crop_homography(cameras, crop, R), C.screen_normalize(px, cameras.resolution), *C.hip_normalize(px), C.head_root_normalize(px),
               C.box_normalize(px, C.joint_box(px)), *target, C.lcn_scale(target.image, cameras.resolution), C.poseaug_intrinsics(cameras), cameras.centers]
    assert {o.dtype for o in outputs} == {dtype}
    assert all(o.isfinite().all() for o in outputs)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert (outputs[1] - x).abs().max() < tolerance
    assert (C.lcn_decode(*target, cameras) - x).abs().max() < tolerance

def test_one_camera_for_all_equals_one_per_sample():
    cameras, x = random_cameras(4, 3), random_points(4, 8, 17)
    one, many = cameras[1], cameras[torch.full((8,), 1)]
    px = project(x, one)
    torch.testing.assert_close(px, project(x, many))
    for a, b in ((unproject(px, x[..., 2], one), unproject(px, x[..., 2], many)), (C.world_to_camera(x, one), C.world_to_camera(x, many)),
                 (virtual_camera(px[:, 0], one), virtual_camera(px[:, 0], many)), (C.lcn_encode(x, one).image, C.lcn_encode(x, many).image),
                 (C.screen_normalize(px, one.resolution), C.screen_normalize(px, many.resolution)),
                 (C.poseaug_project(x, C.poseaug_intrinsics(one)), C.poseaug_project(x, C.poseaug_intrinsics(many))),
                 (C.in_view(x, one), C.in_view(x, many))):
        torch.testing.assert_close(a, b)


# ---------------------------------------------------------------- properties

@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10 ** 6), st.floats(.01, 1000))
def test_projection_does_not_know_the_unit(seed, unit):
    cameras, x = random_cameras(seed, 3), random_points(seed, 3, 5)
    torch.testing.assert_close(project(x * unit, cameras), project(x, cameras), rtol=1e-9, atol=1e-7)

@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10 ** 6))
def test_projection_does_not_know_the_world_frame(seed):
    "Moving and turning the world together with the cameras changes no pixel."
    cameras, x = random_cameras(seed, 3), random_points(seed, 3, 5)
    world = C.camera_to_world(x, cameras)
    g = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=f64))[0]
    Q = Q * torch.linalg.det(Q).sign()
    s = torch.randn(3, generator=g, dtype=f64)
    moved = Cameras((), cameras.intrinsics, cameras.distortion, cameras.rotation @ Q.T, cameras.translation - (cameras.rotation @ Q.T @ s), cameras.resolution).check()
    torch.testing.assert_close(project(C.world_to_camera(world @ Q.T + s, moved), moved), project(x, cameras), rtol=1e-9, atol=1e-7)
    torch.testing.assert_close(moved.centers, cameras.centers @ Q.T + s)

@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10 ** 6), st.floats(0, 1.2))
def test_round_trips(seed, lens):
    cameras, x = random_cameras(seed, 4, lens), random_points(seed, 4, 6)
    torch.testing.assert_close(unproject(project(x, cameras), x[..., 2], cameras), x, rtol=0, atol=1e-9)
    torch.testing.assert_close(C.camera_to_world(C.world_to_camera(x, cameras), cameras), x, rtol=0, atol=1e-12)
    target = C.lcn_encode(x, cameras)
    image = C.lcn_unscale(C.lcn_scale(target.image, cameras.resolution), cameras.resolution)
    torch.testing.assert_close(C.lcn_decode(image, target.box, target.root_depth, cameras), x, rtol=0, atol=1e-12)
    px = project(x, cameras)
    torch.testing.assert_close(C.screen_denormalize(C.screen_normalize(px, cameras.resolution), cameras.resolution), px)
    box = C.joint_box(px, .2)
    torch.testing.assert_close(C.box_denormalize(C.box_normalize(px, box), box), px)

@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10 ** 6))
def test_look_at_centres_the_target_without_roll(seed):
    g = torch.Generator().manual_seed(seed)
    centre, target = torch.randn(2, 6, 3, generator=g, dtype=f64)
    R, t = look_at(centre, target)
    torch.testing.assert_close(R @ R.mT, torch.eye(3, dtype=f64).expand(6, 3, 3))
    torch.testing.assert_close(torch.linalg.det(R), torch.ones(6, dtype=f64))
    seen = (R @ target[..., None])[..., 0] + t
    assert seen[:, :2].abs().max() < 1e-9 and (seen[:, 2] > 0).all()
    assert R[:, 0, 2].abs().max() < 1e-12 # x axis level
    assert (R[:, 1, 2] < 0).all() # y axis down
    torch.testing.assert_close(-(R.mT @ t[..., None])[..., 0], centre)

def test_look_at_refuses_a_vertical_line_of_sight():
    for target in ((0., 0., 5.), (0., 0., 1.)):
        with pytest.raises(ValueError, match="vertical or has no length"): look_at((0., 0., 1.), target)
    R, _ = look_at((0., 0., 5.), (0., 0., 0.), up=(0., 1., 0.))
    assert R[2].tolist() == [0, 0, -1]

def test_cmu_cameras():
    folder = shared_data("cmu")
    if folder is None: pytest.skip("no CMU data beside this checkout")
    content = json.loads((folder / "cameras.json").read_text())
    cameras = Cameras.from_dict(content)
    centre = torch.tensor([c["center"] for c in content["cameras"]], dtype=f64)
    R, t = look_at(centre, torch.tensor(content["look_at"], dtype=f64).expand(4, 3))
    assert (R - cameras.rotation).abs().max() < 1e-9 and (t - cameras.translation).abs().max() < 1e-9
    assert (cameras.centers - centre).abs().max() < 1e-9
    assert cameras.names == ("cam0", "cam1", "cam2", "cam3") and cameras.resolution.tolist() == [[1000, 1000]] * 4
    x = random_points(5, 4, 17)
    plain = torch.stack([1150 * x[..., 0] / x[..., 2] + 512, 1150 * x[..., 1] / x[..., 2] + 506], -1) # as PROTOCOL.md writes it
    torch.testing.assert_close(project(x, cameras), plain, rtol=1e-13, atol=1e-9)


# ---------------------------------------------------------------- crops

@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10 ** 6))
def test_virtual_camera_is_the_smallest_rotation(seed):
    cameras, x = random_cameras(seed, 5), random_points(seed, 5, 1)
    R = virtual_camera(project(x, cameras)[:, 0], cameras)
    ray = torch.nn.functional.normalize(x[:, 0], dim=-1)
    torch.testing.assert_close((R @ ray[..., None])[..., 0], torch.tensor([0., 0., 1.], dtype=f64).expand(5, 3), rtol=0, atol=1e-9)
    torch.testing.assert_close(R @ R.mT, torch.eye(3, dtype=f64).expand(5, 3, 3), rtol=0, atol=1e-12)
    angle = torch.arccos(((R.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2).clamp(-1, 1))
    torch.testing.assert_close(angle, torch.arccos(ray[:, 2]), rtol=0, atol=1e-6) # no rotation that aligns the ray is smaller
    torch.testing.assert_close(R - R.mT, (R - R.mT) * torch.tensor([[0, 0, 1], [0, 0, 1], [1, 1, 0]], dtype=f64), rtol=0, atol=1e-12) # axis in the image plane

def test_person_off_axis_turns_18_degrees():
    "rhodin.md, pitfall 7: 1.5 m off-axis at 4.5 m is a correction of about 18 degrees."
    cameras = ring(1)
    R = virtual_camera(project(torch.tensor([[[1.5, 0., 4.5]]], dtype=f64), cameras)[:, 0], cameras)
    assert math.degrees(math.acos(float(R[0, 2, 2]))) == pytest.approx(18.43, abs=.01)

def test_crop_camera_and_homography_agree():
    cameras = random_cameras(6, 5, lens=0.)
    x = random_points(6, 5, 17)
    world, px = C.camera_to_world(x, cameras), project(x, cameras)
    R = virtual_camera(px[:, 0], cameras, roll=torch.linspace(-1, 1, 5, dtype=f64))
    crop = C.crop_cameras(cameras, R, x[:, 0].norm(dim=-1), size=256).check()
    H = C.crop_homography(cameras, crop, R)
    in_crop = project(C.world_to_camera(world, crop), crop)
    torch.testing.assert_close(C.apply_homography(px, H), in_crop, rtol=0, atol=1e-7)
    torch.testing.assert_close(in_crop[:, 0], torch.full((5, 2), 128., dtype=f64), rtol=0, atol=1e-8)
    torch.testing.assert_close(crop.centers, cameras.centers) # a rotation does not move the camera
    one_metre = torch.tensor([[[1., 0., 0.]]], dtype=f64) + torch.stack([torch.zeros(5), torch.zeros(5), x[:, 0].norm(dim=-1)], -1)[:, None]
    torch.testing.assert_close(project(one_metre, crop)[:, 0, 0], torch.full((5,), 256., dtype=f64)) # 1 m from the middle is the edge of a 2 m crop

def test_virtual_camera_of_a_distorted_image_goes_through_the_lens():
    cameras, x = random_cameras(7, 5), random_points(7, 5, 1)
    R = virtual_camera(project(x, cameras)[:, 0], cameras)
    assert (R @ x[:, 0, :, None])[:, :2].abs().max() < 1e-9


# ---------------------------------------------------------------- normalisations

def test_screen_units():
    r = torch.tensor([[1000., 1002.], [1920., 1080.]])
    corners = torch.stack([torch.zeros(2, 2), r, r / 2], 1)
    out = C.screen_normalize(corners, r)
    torch.testing.assert_close(out[:, 2], torch.zeros(2, 2))
    torch.testing.assert_close(out[:, 1], torch.tensor([[1., 1.002], [1., 1080 / 1920]]))
    torch.testing.assert_close(out[:, 0], -out[:, 1])
    torch.testing.assert_close(out[0, :, 1], 2 * corners[0, :, 1] / 1000 - 1002 / 1000) # as written in poseaug.md

def test_poseaug_intrinsics_of_human36m():
    "The table of poseaug.md section 3, from the calibration in pixels that Human3.6M publishes."
    cameras = Cameras(("54138969",), torch.tensor([[1145.0494384765625, 1143.7811279296875, 512.54150390625, 515.4514770507812]], dtype=f64), torch.zeros(1, 5, dtype=f64),
                      torch.eye(3, dtype=f64)[None], torch.zeros(1, 3, dtype=f64), torch.tensor([[1000., 1002.]], dtype=f64))
    torch.testing.assert_close(C.poseaug_intrinsics(cameras)[0, :4], torch.tensor([2.290099, 2.287562, .025083, .028903], dtype=f64), rtol=0, atol=6e-7)

def test_poseaug_projection_fixture():
    shared = shared_data()
    folder = shared.parent / "parity" if shared is not None else None
    if folder is None or not folder.is_dir(): pytest.skip("no parity fixtures beside this checkout")
    fixture = np.load(folder / "poseaug_projection.npz", allow_pickle=False)
    rows = [r for r in csv.reader((folder / "tolerances.csv").open()) if r[:2] == ["poseaug_projection", "out_uv"]]
    assert len(rows) == 1
    X, K, wanted = (torch.from_numpy(fixture[k]) for k in ("in_X", "in_K", "out_uv"))
    limit = float(rows[0][6]) if len(rows[0]) > 6 else 1e-5
    error = (C.poseaug_project(X, K) - wanted).abs().max()
    assert error <= limit, (error, limit)
    assert error <= 1e-6 # the limit is generous; this is what float32 gives
    assert ((X[..., :2] / X[..., 2:]).abs() > 1).any() and (X[..., 2] < 0).any() # the fixture does exercise clamp and mirror

def test_hip_normalize():
    x = random_points(8, 6, 17)
    y, scale = C.hip_normalize(x, plane=True)
    for k in range(6):
        d = [math.hypot(*(x[k, j, :2] - x[k, 0, :2]).tolist()) for j in range(1, 17)]
        assert float(scale[k]) == pytest.approx(sum(d) / 16)
    torch.testing.assert_close(y * scale + x[:, :1], x)
    assert C.hip_normalize(torch.zeros(1, 17, 2, requires_grad=True))[0].isfinite().all()
    other = C.hip_normalize(x, root=3)[0]
    assert other[:, 3].abs().max() == 0 and (other[:, [j for j in range(17) if j != 3]].norm(dim=-1).mean(-1) - 1).abs().max() < 1e-12

def test_head_root_normalize():
    px = project(random_points(9, 40, 17), ring(1))
    constant = float(C.head_root_distance(px).mean())
    assert float(C.head_root_distance(C.head_root_normalize(px, mean_distance=constant)).mean()) == pytest.approx(.1)
    assert C.head_root_distance(C.head_root_normalize(px)).numpy() == pytest.approx(np.full(40, .1))
    assert (C.head_root_normalize(px)[:, 0] == 0).all()

def test_box_normalize():
    box = torch.tensor([[100., 200., 300., 600.]])
    out = C.box_normalize(torch.tensor([[[200., 400.], [200., 600.], [300., 200.]]]), box)
    torch.testing.assert_close(out, torch.tensor([[[0., 0.], [0., 1.], [.5, -1.]]]))
    assert C.joint_box(torch.tensor([[[0., 0.], [10., 20.]]]), margin=.5).tolist() == [[-10, -10, 20, 30]]

def test_lcn_against_the_document_in_millimetres():
    cameras, x = random_cameras(10, 4), random_points(10, 4, 17)
    target = C.lcn_encode(x, cameras)
    for k, camera in enumerate(cameras.to_dict()["cameras"]):
        (fx, _, cx), (_, fy, cy) = camera["K"][:2]
        mm = (x[k] * 1000).tolist()
        X0, Y0, Z0 = mm[0]
        box = [fx * (X0 - 1000) / Z0 + cx, fy * (Y0 - 1000) / Z0 + cy, fx * (X0 + 1000) / Z0 + cx, fy * (Y0 + 1000) / Z0 + cy]
        r = (box[2] - box[0] + 1) / 2000
        assert r == pytest.approx(fx / Z0 + 1 / 2000, rel=1e-12)
        assert target.box[k].tolist() == pytest.approx(box)
        for j, (X, Y, Z) in enumerate(mm): # no distortion here although the cameras have some
            assert target.image[k, j].tolist() == pytest.approx([fx * X / Z + cx, fy * Y / Z + cy, r * (Z - Z0)], abs=1e-9)
        w, h = camera["width"], camera["height"]
        u, v, z = target.image[k, 5].tolist()
        assert C.lcn_scale(target.image, cameras.resolution)[k, 5].tolist() == pytest.approx([2 * u / w - 1, 2 * v / w - h / w, 2 * z / w])
    wrong = C.lcn_decode(target.image, target.box - torch.tensor([0, 0, 1., 0]), target.root_depth, cameras)
    assert (wrong - x)[..., 2].abs().max() > 1e-3 # the one pixel matters: more than a millimetre

def test_standardizer():
    x = torch.randn(500, 48, dtype=f64) * 7 + 1000
    x[:, 3] = 1000.1 # never changes
    s = Standardizer.fit(x)
    z = s(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(48, dtype=f64), rtol=0, atol=1e-9)
    assert z[:, 3].abs().max() < 1e-6 and float(s.std[3]) == 1
    keep = torch.arange(48) != 3
    torch.testing.assert_close(s.std[keep], x[:, keep].std(0, correction=0))
    torch.testing.assert_close(s.inverse(z), x)
    again = Standardizer(torch.zeros(48, dtype=f64), torch.ones(48, dtype=f64))
    again.load_state_dict(s.state_dict()); torch.testing.assert_close(again(x), z)
    assert not list(s.parameters())
    for bad in (x[:0], x.clone().index_fill_(0, torch.tensor([3]), float("nan"))):
        with pytest.raises(ValueError, match="Standardizer.fit"): Standardizer.fit(bad)

def test_standardizer_fit_in_parts_and_float32():
    x = (torch.randn(200_000, 4) + 3000).float() # a large mean: float32 sums would lose the deviation
    s = Standardizer.fit(x)
    torch.testing.assert_close(s.std.double(), x.double().std(0, correction=0), rtol=1e-6, atol=0)
    assert s.mean.dtype == torch.float32


# ---------------------------------------------------------------- the container

def test_json_round_trip_is_exact():
    for dtype in (torch.float32, f64):
        cameras = random_cameras(11, 3).to(dtype)
        again = Cameras.from_dict(json.loads(json.dumps(cameras.to_dict())), dtype)
        assert again.names == cameras.names
        for name in FIELDS: assert torch.equal(getattr(again, name), getattr(cameras, name)), name

def test_gather():
    cameras = random_cameras(12, 4)
    ids = torch.tensor([2, 2, 0, 3], dtype=torch.int32) # the type a pose set stores
    batch = cameras[ids]
    assert len(batch) == 4 and batch.names == ()
    for name in FIELDS: assert torch.equal(getattr(batch, name), getattr(cameras, name)[[2, 2, 0, 3]])
    assert cameras[-1].names == ("c3",) and cameras[1:].names == ("c1", "c2", "c3") and cameras[[3, 1]].names == ("c3", "c1")
    assert len(cameras[torch.tensor([True, False, True, False])]) == 2
    with pytest.raises(IndexError): cameras[4]
    assert cameras.to(torch.float32).rotation.dtype == torch.float32 and cameras.to("cpu").names == cameras.names

@pytest.mark.parametrize("spoil, words", [
    (lambda c: c.pop("K"), "camera c1: field 'K' is missing"),
    (lambda c: c.pop("width"), "camera c1: field 'width' is missing"),
    (lambda c: c.update(t=["a", "b", "c"]), "camera c1: field 't' is not numeric"),
    (lambda c: c.update(t=[0, 0]), "camera c1: field 't' has shape"),
    (lambda c: c.update(R=[[1, 0, 0], [0, 1, 0]]), "camera c1: field 'R' has shape"),
    (lambda c: c.update(R=[[1, 0, 0], [0, 1, 0], [0, 0]]), "camera c1: field 'R' is not numeric"),
    (lambda c: c.update(R=[[0, 1, 0], [1, 0, 0], [0, 0, 1]]), "camera c1: field 'rotation' holds a reflection"),
    (lambda c: c.update(R=[[1, .1, 0], [0, 1, 0], [0, 0, 1]]), "camera c1: field 'rotation' holds a matrix that is not orthonormal"),
    (lambda c: c.update(R=[[float("nan")] * 3] * 3), "camera c1: field 'rotation'"),
    (lambda c: c["K"][0].__setitem__(0, 0.), "camera c1: field 'intrinsics' holds a focal length"),
    (lambda c: c["K"][0].__setitem__(1, 3.), "camera c1: field 'K' is not of the form"),
    (lambda c: c.update(t=[0, 0, float("inf")]), "camera c1: field 'translation' holds a value that is not finite"),
    (lambda c: c.update(distortion=[0, 0]), "camera c1: field 'distortion' has shape"),
    (lambda c: c.update(height=0), "camera c1: field 'resolution'"),
])
def test_bad_calibration_is_one_sentence(spoil, words):
    content = random_cameras(13, 3).to_dict()
    spoil(content["cameras"][1])
    with pytest.raises(InputError, match=words) as refusal: Cameras.from_dict(content)
    assert "\n" not in str(refusal.value)

@pytest.mark.parametrize("content", [{}, [], {"cameras": []}, {"cameras": "none"}, {"cameras": [3]}, {"cameras": {"a": 1}}])
def test_not_a_camera_file(content):
    with pytest.raises(InputError, match="camera"): Cameras.from_dict(content)

def test_in_view():
    cameras = ring(1)
    centre = [0., 0., 4.]
    for joint, wanted in (([0., 1.7, 4.], True), ([0., 1.8, 4.], False), ([0., -1.8, 4.], False), ([1.8, 0., 4.], False), ([-1.8, 0., 4.], False), # 500 px is 1.74 m at 4 m
                          ([0., 0., .9], False), ([0., 0., -4.], False)):
        assert C.in_view(torch.tensor([[centre, joint]], dtype=f64), cameras).tolist() == [wanted], joint
