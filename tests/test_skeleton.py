"""Joint sets: tables against their sources, conversions by name, mirror and bones."""
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from poseprojects import skeleton as S
from poseprojects.skeleton import (BODY25, CMU31, CMU_BONES, COCO17, H36M16, H36M17, H36M32, MPI3DHP17, MPI3DHP28, MPII16, SH16, SKELETONS,
                                   SMPL24, XAS18, Skeleton, bone_lengths, bone_vectors, conversion, convert, mirror)
from poseprojects.storage import shared_data

EVERY = pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=SKELETONS)
SIZES = dict(h36m17=17, h36m16=16, h36m32=32, coco17=17, mpii16=16, mpi3dhp28=28, mpi3dhp17=17, smpl24=24, body25=25, cmu31=31, xas18=18, sh16=16)


def convertible():
    "Every pair of sets that a conversion exists for."
    for a, b in itertools.product(SKELETONS.values(), repeat=2):
        try: yield conversion(a, b)
        except ValueError: pass


# ---------------------------------------------------------------- the value

def test_every_skeleton_is_there():
    assert {name: s.num_joints for name, s in SKELETONS.items()} == SIZES
    for name in SIZES: assert getattr(S, name.upper()) is SKELETONS[name]

@EVERY
def test_tree(skeleton):
    assert len(skeleton.bones) == skeleton.num_joints - 1
    reached, grown = {skeleton.root}, 0
    while len(reached) != grown: grown = len(reached); reached |= {c for c, p in skeleton.bones if p in reached}
    assert reached == set(range(skeleton.num_joints))

@EVERY
def test_sides(skeleton):
    m = np.array(skeleton.mirror)
    assert (m[m] == np.arange(skeleton.num_joints)).all()
    assert len(skeleton.left) == len(skeleton.right) == sum(m != np.arange(len(m))) // 2 > 0
    for l, r in zip(skeleton.left, skeleton.right): assert skeleton.joints[l].replace("left_", "right_") == skeleton.joints[r]
    for l, r in skeleton.symmetric_bones:
        (lc, lp), (rc, rp) = skeleton.bones[l], skeleton.bones[r]
        assert m[lc] == rc and m[lp] == rp

@EVERY
def test_is_a_hashable_value(skeleton):
    assert skeleton == Skeleton(skeleton.name, list(skeleton.joints), list(skeleton.parents))
    assert len({skeleton, Skeleton(skeleton.name, skeleton.joints, skeleton.parents)}) == 1

@pytest.mark.parametrize("joints, parents, words", [
    (("a", "b"), (-1,), "2 joints but 1 parents"),
    (("a", "a"), (-1, 0), "named twice"),
    (("a", "b"), (-1, 2), "parent 2 of 'b' is not a joint"),
    (("a", "b"), (-1, -2), "parent -2 of 'b' is not a joint"),
    (("a", "b"), (1, 0), "never ends at a root"),
    (("a", "b"), (-1, 1), "never ends at a root"),
    (("a", "left_b"), (-1, 0), "no partner 'right_b'"),
    (("a", "right_b"), (-1, 0), "no partner 'left_b'"),
    (("a", "b", "left_c", "right_c"), (-1, 0, 0, 1), "hang on different joints"),
])
def test_contradictions_are_refused(joints, parents, words):
    with pytest.raises(ValueError, match=words): Skeleton("x", joints, parents)

@EVERY
def test_a_slipped_parent_of_a_limb_is_refused(skeleton):
    j = skeleton.left[0]
    for p in range(skeleton.num_joints):
        if p == skeleton.parents[j]: continue
        with pytest.raises(ValueError): Skeleton("slip", skeleton.joints, [p if k == j else q for k, q in enumerate(skeleton.parents)])

def test_root_and_unknown_joint():
    with pytest.raises(ValueError, match="3 joints without a parent .right_hip, left_hip, spine."): H36M17.sub(S.MARTINEZ_3D, "no pelvis").root
    with pytest.raises(ValueError, match="h36m17 has no joint 'nose'; it has pelvis, right_hip"): H36M17.index("nose")
    with pytest.raises(ValueError, match="no joint 'tail'"): H36M17.sub(["pelvis", "tail"], "x")

def test_sub_hangs_on_the_nearest_kept_ancestor():
    s = H36M17.sub(["left_wrist", "right_wrist", "pelvis", "head"], "ends")
    assert s.parents == (2, 2, -1, 2)
    assert H36M17.sub(H36M17.joints, "h36m17") == H36M17


# ---------------------------------------------------------------- tables against their sources

def test_h36m_rows():
    assert H36M32.indices(H36M17.joints) == (0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27) # Martinez
    assert H36M32.indices(H36M16.joints) == (0, 1, 2, 3, 6, 7, 8, 12, 13, 15, 17, 18, 19, 25, 26, 27) # PoseAug
    assert H36M17.indices(H36M16.joints) == tuple(j for j in range(17) if j != 9)
    assert H36M17.parents == (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15)

def test_poseaug_16():
    assert H36M16.parents == (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 8, 10, 11, 8, 13, 14)
    assert H36M16.left == (4, 5, 6, 10, 11, 12) and H36M16.right == (1, 2, 3, 13, 14, 15)
    assert [(p, c) for c, p in H36M16.bones] == [(0, 1), (1, 2), (2, 3), (0, 4), (4, 5), (5, 6), (0, 7), (7, 8), (8, 9), (8, 10), (10, 11), (11, 12), (8, 13), (13, 14), (14, 15)]

def test_lcn_17():
    names = "pelvis right_hip right_knee right_ankle left_hip left_knee left_ankle spine thorax neck_nose head left_shoulder left_elbow left_wrist right_shoulder right_elbow right_wrist"
    assert H36M17.joints == tuple(names.split()) # its own words for 7 to 9 are belly, neck, nose
    assert H36M17.left == (4, 5, 6, 11, 12, 13) and H36M17.right == (1, 2, 3, 14, 15, 16)
    doubled = H36M32.joints[16]
    assert S.LCN_H36M32[8] == 16 and doubled == "left_arm_root" and H36M32.parents[16] == H36M32.parents[13]

def test_kudo_and_chen_joints():
    assert [H36M17.index(j) for j in ("thorax", "neck_nose", "left_shoulder", "right_shoulder")] == [8, 9, 11, 14] # the heuristic loss
    assert H36M17.index("head") == 10 and H36M17.root == 0

def test_martinez_two_lists_of_16():
    assert len(S.MARTINEZ_2D) == len(S.MARTINEZ_3D) == 16
    assert set(H36M17.joints) - set(S.MARTINEZ_2D) == {"neck_nose"} and set(H36M17.joints) - set(S.MARTINEZ_3D) == {"pelvis"}
    assert H36M17.indices(S.MARTINEZ_3D) == tuple(range(1, 17))
    # the detector's order, RFoot RKnee RHip LHip LKnee LFoot Hip Spine Thorax Head RWrist RElbow RShoulder LShoulder LElbow LWrist
    assert SH16.indices(S.MARTINEZ_2D) == (6, 2, 1, 0, 3, 4, 5, 7, 8, 9, 13, 14, 15, 12, 11, 10)

def test_mpi3dhp_lists():
    assert MPI3DHP28.indices(("pelvis", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle")) == S.KUDO_3DHP[:7] == S.XAS_3DHP[:7]
    assert MPI3DHP28.indices(H36M17.joints[11:]) == S.KUDO_3DHP[11:] == S.XAS_3DHP[11:17]
    by_name = conversion(MPI3DHP28, H36M17).matrix.argmax(1)
    assert np.flatnonzero(by_name != np.array(S.KUDO_3DHP)).tolist() == [9, 10] # Kudo's neck/nose and head are exchanged
    assert np.flatnonzero(by_name != np.array(S.XAS_3DHP[:17])).tolist() == [7] # X-as-Supervision takes the spine higher
    assert S.XAS_3DHP == (4, 23, 24, 25, 18, 19, 20, 2, 5, 6, 7, 9, 10, 11, 14, 15, 16, 1)
    assert S.KUDO_3DHP == (4, 23, 24, 25, 18, 19, 20, 3, 5, 7, 6, 9, 10, 11, 14, 15, 16)
    official = (7, 5, 14, 15, 16, 9, 10, 11, 23, 24, 25, 18, 19, 20, 4, 3, 6) # head top, neck, right arm, left arm, right leg, left leg, pelvis, spine, head
    assert MPI3DHP28.indices(MPI3DHP17.joints) == official

def test_xas18():
    assert XAS18.parents == (-1, 0, 1, 2, 0, 4, 5, 0, 17, 8, 9, 17, 11, 12, 17, 14, 15, 7)
    assert {(r, l) for l, r in zip(XAS18.left, XAS18.right)} == {(1, 4), (2, 5), (3, 6), (14, 11), (15, 12), (16, 13)}
    assert conversion(H36M17, XAS18).rules == {"mid_shoulders": "mid_shoulders = mean of left_shoulder and right_shoulder"}

def test_coco_and_mpii_indices():
    assert COCO17.indices(("nose", "left_shoulder", "right_shoulder", "left_hip", "right_hip", "left_ankle", "right_ankle")) == (0, 5, 6, 11, 12, 15, 16)
    assert MPII16.indices(("right_ankle", "right_hip", "left_hip", "pelvis", "mid_shoulders", "upper_neck", "head_top", "right_wrist", "left_wrist")) == (0, 2, 3, 6, 7, 8, 9, 10, 15)
    assert BODY25.indices(("nose", "mid_shoulders", "right_wrist", "left_wrist", "pelvis", "right_ankle", "left_ankle", "right_eye", "left_ear", "left_toe", "right_heel")) == (0, 1, 4, 7, 8, 11, 14, 15, 18, 19, 24)
    assert SMPL24.parents == (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)

def test_mpii_slots_are_mpii_points():
    "The rearranged MPII file: what its README says is in each slot agrees with what MPII16 says."
    folder = shared_data("mpii")
    if folder is None: pytest.skip("no MPII poses beside this checkout")
    poses = np.load(folder / "mpii_poses.npy", allow_pickle=False).reshape(-1, 17, 2)
    mpii_id = {0: 6, 1: 2, 2: 1, 3: 0, 4: 3, 5: 4, 6: 5, 7: 7, 8: 8, 10: 9, 11: 13, 12: 14, 13: 15, 14: 12, 15: 11, 16: 10}
    labels = np.empty((len(poses), 16, 2))
    for slot, row in mpii_id.items(): labels[:, row] = poses[:, slot]
    for joint in ("pelvis", "mid_shoulders"): # rows that MPII labels and a rule also makes
        without = MPII16.sub([j for j in MPII16.joints if j != joint], "x")
        made = convert(labels[:, MPII16.indices(without.joints)], without, MPII16)[:, MPII16.index(joint)]
        off = np.linalg.norm(made - labels[:, MPII16.index(joint)], axis=-1)
        assert np.quantile(off, .99) < .75, joint
    np.testing.assert_allclose(convert(labels, MPII16, H36M17)[:, 9], poses[:, 9], atol=1e-3) # neck/nose by Kudo's rule

def test_cmu_bones_are_the_file_s():
    "Names and parents of CMU31 against the hierarchy of a real ASF file."
    folder = shared_data("cmu")
    if folder is None: pytest.skip("no CMU data beside this checkout")
    text = (folder / "01" / "01.asf").read_text()
    parent = {child: words[0] for line in text.split(":hierarchy")[1].splitlines() if (words := line.split()) and words[0] not in ("begin", "end") for child in words[1:]}
    assert len(CMU_BONES) == 31 and set(parent) == set(CMU_BONES[1:])
    assert [CMU_BONES[p] if p >= 0 else None for p in CMU31.parents] == [parent.get(bone) for bone in CMU_BONES]
    assert [line.split()[1] for line in text.split(":hierarchy")[0].splitlines() if line.split()[:1] == ["name"]] == list(CMU_BONES[1:])

def test_cmu_protocol_joints():
    "The table of the `cmu` protocol, by ASF bone names."
    table = dict(pelvis="root", right_hip="rhipjoint", right_knee="rfemur", right_ankle="rtibia", left_hip="lhipjoint", left_knee="lfemur", left_ankle="ltibia",
                 thorax="thorax", neck_nose="upperneck", head="head", left_shoulder="lclavicle", left_elbow="lhumerus", left_wrist="lradius",
                 right_shoulder="rclavicle", right_elbow="rhumerus", right_wrist="rradius")
    matrix = conversion(CMU31, H36M17).matrix
    for row, joint in enumerate(H36M17.joints):
        made_from = {CMU_BONES[k]: matrix[row, k] for k in np.flatnonzero(matrix[row])}
        assert made_from == ({"lowerback": .5, "upperback": .5} if joint == "spine" else {table[joint]: 1.}), joint


# ---------------------------------------------------------------- conversions

def test_selection_is_exact():
    x = np.random.default_rng(0).normal(size=(5, 32, 3)).astype(np.float32)
    y = convert(x, H36M32, H36M17)
    assert y.dtype == np.float32 and (y == x[:, [0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27]]).all()

@EVERY
def test_identity(skeleton):
    x = np.random.default_rng(1).normal(size=(3, skeleton.num_joints, 2))
    assert (convert(x, skeleton, skeleton) == x).all()

@pytest.mark.parametrize("a, b", [(H36M16, SH16), (H36M17, XAS18), (H36M17, MPI3DHP17), (MPI3DHP17, H36M17)], ids=str)
def test_round_trip(a, b):
    x = np.random.default_rng(2).normal(size=(4, a.num_joints, 3))
    np.testing.assert_allclose(convert(convert(x, a, b), b, a), x)

def test_round_trip_through_16_loses_only_the_neck():
    x = np.random.default_rng(3).normal(size=(17, 3))
    y = convert(convert(x, H36M17, H36M16), H36M16, H36M17)
    assert np.flatnonzero((x != y).any(1)).tolist() == [9]
    np.testing.assert_allclose(y[9], (x[8] + x[10]) / 2) # lifters of PoseAug: the mean of thorax and head

def test_coco_to_h36m_rules():
    x = np.random.default_rng(4).normal(size=(17, 2))
    j = dict(zip(COCO17.joints, x)); y = dict(zip(H36M17.joints, convert(x, COCO17, H36M17)))
    hips, shoulders = (j["left_hip"] + j["right_hip"]) / 2, (j["left_shoulder"] + j["right_shoulder"]) / 2
    for joint, wanted in dict(pelvis=hips, thorax=shoulders, spine=(hips + shoulders) / 2, neck_nose=j["nose"], head=shoulders + 2 * (j["nose"] - shoulders), left_wrist=j["left_wrist"]).items():
        np.testing.assert_allclose(y[joint], wanted, err_msg=joint) # Kudo, pitfall 13
    assert sorted(conversion(COCO17, H36M17).rules) == ["head", "neck_nose", "pelvis", "spine", "thorax"]

@pytest.mark.parametrize("source, target, joint", [
    (SMPL24, H36M17, "'head'"), (H36M17, COCO17, "'nose', 'left_eye', 'right_eye'"), (H36M17, MPII16, "'upper_neck'"), (COCO17, SMPL24, "'lower_spine'"), (H36M16, MPI3DHP28, "'spine3'"),
    (H36M17.sub([j for j in H36M17.joints if "knee" not in j], "kneeless"), H36M16, "'right_knee', 'left_knee'")], ids=str)
def test_missing_joints_are_named(source, target, joint):
    with pytest.raises(ValueError, match=f"{source.name} cannot be converted to {target.name}: it has no joint .*{joint}"): conversion(source, target)

def test_extra_rules_go_first_and_do_not_stay():
    rule = {"head": {"skull_base": 2., "neck": -1.}}
    assert conversion(SMPL24, H36M17, rule).rules["head"] == "head = 2·skull_base -1·neck"
    with pytest.raises(ValueError): conversion(SMPL24, H36M17)
    assert conversion(COCO17, H36M17, {"thorax": {"nose": 1.}}).rules["thorax"] == "thorax = nose"

@pytest.mark.parametrize("c", list(convertible()), ids=lambda c: f"{c.source.name}-{c.target.name}")
def test_conversions_are_affine_and_symmetric(c):
    np.testing.assert_allclose(c.matrix.sum(1), 1)
    assert not c.matrix.flags.writeable
    swap = lambda s: np.eye(s.num_joints)[list(s.mirror)]
    np.testing.assert_allclose(swap(c.target) @ c.matrix, c.matrix @ swap(c.source)) # the mirror commutes
    x = np.random.default_rng(5).normal(size=(2, c.source.num_joints, 3))
    np.testing.assert_allclose(c(x), c.matrix @ x, atol=1e-12)
    np.testing.assert_allclose(c(torch.tensor(x)).numpy(), c.matrix @ x, atol=1e-12)
    assert {joint for joint, row in zip(c.target.joints, c.matrix) if (row > 0).sum() != 1 or row.max() != 1 or c.source.joints[row.argmax()] != joint} == set(c.rules)

@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(.001, 1000), st.sampled_from(list(convertible())))
def test_conversions_commute_with_motion_and_unit(seed, scale, c):
    rng = np.random.default_rng(seed)
    x, t = rng.normal(size=(c.source.num_joints, 3)), rng.normal(size=3)
    R = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    np.testing.assert_allclose(c((x @ R.T) * scale + t), (c(x) @ R.T) * scale + t, atol=1e-9 * max(1, scale))

def test_missing_detections_stay_local():
    for make in (np.array, torch.tensor):
        x = make(np.ones((17, 2), dtype=np.float32)); x[COCO17.index("left_hip")] = float("nan")
        y = np.asarray(convert(x, COCO17, H36M17))
        assert [H36M17.joints[j] for j in np.flatnonzero(np.isnan(y[:, 0]))] == ["pelvis", "left_hip", "spine"]

def test_kind_dtype_gradient_and_confidence():
    x = torch.randn(2, 17, 3, dtype=torch.float32, requires_grad=True)
    y = convert(x, COCO17, H36M17)
    assert y.dtype == torch.float32 and y.shape == (2, 17, 3)
    y.sum().backward(); assert x.grad.isfinite().all()
    assert convert(np.ones((17, 2), np.int64), COCO17, H36M17).dtype == np.float64
    assert convert(torch.ones(17, 2, dtype=torch.int64), COCO17, H36M17).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x: convert(x, COCO17, H36M17), torch.randn(17, 2, dtype=torch.float64, requires_grad=True))
    sure = np.ones((4, 17)); sure[:, COCO17.index("right_hip")] = .25
    for c in (conversion(COCO17, H36M17).confidence(sure), conversion(COCO17, H36M17).confidence(torch.tensor(sure)).numpy()):
        assert c.shape == (4, 17) and c[0, 0] == .25 and c[0, H36M17.index("spine")] == .25 and c[0, H36M17.index("head")] == 1

@pytest.mark.parametrize("shape", [(17,), (3, 16, 2), (17, 3, 2)])
def test_wrong_shapes_are_refused(shape):
    for call in (lambda x: convert(x, COCO17, H36M17), lambda x: mirror(x, COCO17), lambda x: bone_vectors(x, COCO17)):
        with pytest.raises(ValueError, match=r"not poses of coco17; expected \(\.\.\., 17, D\)"): call(np.zeros(shape))


# ---------------------------------------------------------------- mirror and bones

@EVERY
def test_mirror(skeleton):
    x = np.random.default_rng(6).normal(size=(3, skeleton.num_joints, 3)).astype(np.float32)
    before = x.copy()
    for axis in (0, 1, -1):
        y = mirror(x, skeleton, axis)
        assert y.dtype == np.float32 and (mirror(y, skeleton, axis) == x).all()
        assert (mirror(torch.tensor(x), skeleton, axis).numpy() == y).all()
        for l, r in zip(skeleton.left, skeleton.right):
            wanted = x[:, r].copy(); wanted[:, axis] *= -1
            assert (y[:, l] == wanted).all()
    assert (x == before).all()
    np.testing.assert_allclose(np.sort(bone_lengths(mirror(x, skeleton), skeleton)), np.sort(bone_lengths(x, skeleton)), rtol=1e-6)

@EVERY
def test_bones(skeleton):
    x = np.random.default_rng(7).normal(size=(3, skeleton.num_joints, 3))
    v = bone_vectors(x, skeleton)
    for k, (child, parent) in enumerate(skeleton.bones): np.testing.assert_array_equal(v[:, k], x[:, child] - x[:, parent])
    np.testing.assert_allclose(bone_lengths(x, skeleton), np.sqrt((v ** 2).sum(-1)))
    np.testing.assert_allclose(bone_lengths(torch.tensor(x), skeleton).numpy(), bone_lengths(x, skeleton))
    mirrored, lengths = bone_lengths(mirror(x, skeleton), skeleton), bone_lengths(x, skeleton)
    for l, r in skeleton.symmetric_bones: np.testing.assert_allclose(mirrored[:, l], lengths[:, r])

def test_bone_of_length_zero_has_a_finite_gradient():
    x = torch.zeros(17, 3, requires_grad=True)
    bone_lengths(x, H36M17).sum().backward()
    assert x.grad.isfinite().all()
