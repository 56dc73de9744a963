"BVH: hand-made files, an independent slow reader, round trips on motion capture, malformed files."
import re

import numpy as np
import pytest
import torch
from conftest import real_data, refused
from poseprojects.data import acclaim, bvh
from poseprojects.data.bvh import BVHMotion, euler_zxy, fit_hierarchy, forward_kinematics, read_bvh, rest_pose, smallest_rotation, upright_rotation, write_bvh, write_motion
from poseprojects.data.detections import BODY25B, HALPE26, OPENPOSE18
from poseprojects.data.sources import example_people
from poseprojects.skeleton import CMU31, H36M17, SKELETONS, Skeleton, bone_lengths, convert
from poseprojects.storage import InputError

BODY = """HIERARCHY
ROOT Hips
{
	OFFSET 0.00 0.00 0.00
	CHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation
	JOINT Chest
	{
		OFFSET 0.00 60.0 0.00
		CHANNELS 3 Yrotation Zrotation Xrotation
		JOINT Left Arm
		{
			OFFSET 70 5 -3
			CHANNELS 2 Xrotation Zrotation
			End Site
			{
				OFFSET 20 0 0
			}
		}
		JOINT Head
		{
			OFFSET 0 30 2
			CHANNELS 6 Xposition Zrotation Yposition Xrotation Zposition Yrotation
			End Site
			{
				OFFSET 0 15 0
			}
		}
	}
	JOINT Leg
	{
		OFFSET 10 -90 0
		CHANNELS 1 Xrotation
		End Site
		{
			OFFSET 0 -5 15
		}
	}
}
MOTION
Frames: 2
Frame Time: 0.0083333
1 95 3 10 20 30 -40 50 60 15 -25 0 35 30 12 2 -70 45
-2 90 1e1 0 0 0 0 0 0 0 0 0 0 30 0 2 0 0
"""

@pytest.fixture
def body(tmp_path):
    path = tmp_path / "body.bvh"
    path.write_text(BODY)
    return path

def slow_positions(motion: BVHMotion) -> np.ndarray:
    "Frame by frame, with homogeneous matrices of single axes: independent of the reader's forward kinematics."
    def axis(name, value):
        matrix, a = np.eye(4), np.radians(value)
        if name.endswith("position"): matrix["XYZ".index(name[0]), 3] = value
        else:
            i, j = {"X": (1, 2), "Y": (2, 0), "Z": (0, 1)}[name[0]]
            matrix[i, i] = matrix[j, j] = np.cos(a)
            matrix[i, j], matrix[j, i] = -np.sin(a), np.sin(a)
        return matrix
    places = np.zeros((len(motion), len(motion.joints), 3))
    for t in range(len(motion)):
        world, k = {}, 0
        for j, parent in enumerate(motion.parents):
            shift, turn = np.eye(4), np.eye(4)
            shift[:3, 3] = motion.offset[j]
            for channel in motion.channels[j]:
                if channel.endswith("position"): shift["XYZ".index(channel[0]), 3] = motion.values[t, k]
                else: turn = turn @ axis(channel, motion.values[t, k])
                k += 1
            world[j] = (world[parent] if parent >= 0 else np.eye(4)) @ shift @ turn
            places[t, j] = world[j][:3, 3]
    return places

# ---------- reading

def test_a_body_with_channels_in_any_order(body):
    motion = read_bvh(body)
    assert motion.joints == ("Hips", "Chest", "Left Arm", "Left Arm_end", "Head", "Head_end", "Leg", "Leg_end") and motion.parents == (-1, 0, 1, 2, 1, 4, 0, 6)
    assert motion.frame_rate == 120. and len(motion) == 2 and motion.channels[2] == ("Xrotation", "Zrotation")
    assert np.allclose(motion.offset[2], (.7, .05, -.03)) # 200 units high: centimetres
    assert np.abs(motion.positions - slow_positions(motion)).max() < 1e-12
    standing = motion.positions[1]
    assert np.allclose(standing[[0, 1, 3, 5, 7]], [(-.02, .9, .1), (-.02, 1.5, .1), (.88, 1.55, .07), (-.02, 1.95, .12), (.08, -.05, .25)])

@pytest.mark.parametrize("change", [lambda t: t.replace("\n", "\r\n"), lambda t: t.replace("\n", "\r"), lambda t: re.sub(r"\n\s*\{", " {", t), lambda t: t.replace("\t", "   "), lambda t: t + "\n\n", lambda t: t.replace("rotation", "ROTATION").replace("Frames", "frames"),
                                    lambda t: t.replace("OFFSET 20 0 0\n\t\t\t}", "OFFSET 20 0 0 }")], ids=["crlf", "cr", "braces", "spaces", "empty lines", "case", "one line"])
def test_other_ways_to_write_the_same(change, body):
    first = read_bvh(body)
    body.write_bytes(change(BODY).encode())
    again = read_bvh(body)
    assert again.joints == first.joints and np.array_equal(again.positions, first.positions)

@pytest.mark.parametrize("factor, unit", [(.01, 1.), (10, .001), (1 / 2.54, .0254), (1, .01)])
def test_units_are_found_in_the_body(factor, unit, body):
    first = read_bvh(body)
    scaled = BVHMotion("s", first.joints, first.parents, first.offset * factor, first.channels, first.values * np.where([c.endswith("position") for j in first.channels for c in j], factor, 1.), first.frame_time)
    again = read_bvh(write_motion(body, scaled))
    assert np.allclose(again.offset, scaled.offset / .01 * unit, atol=1e-6)
    assert np.allclose(read_bvh(body, metres_per_unit=2.).offset, scaled.offset / .01 * 2, atol=1e-5)

MALFORMED = {
    "empty": (lambda t: "", "expected MOTION"), "not BVH": (lambda t: ":version 1.10\n", "line 1: found ':version'"), "binary": (lambda t: "HIERARCHY\n\0", "line 2: the file holds binary data"),
    "cut in the hierarchy": (lambda t: t[:t.index("JOINT Head")], "truncated"), "cut in the motion": (lambda t: t[:t.rindex("-2 90")], "1 lines of numbers follow"), "cut in a line": (lambda t: t[:-10], "line 43: frame 2 has"),
    "no motion": (lambda t: t[:t.index("MOTION") + 7], "after MOTION"), "brace missing": (lambda t: t.replace("}\nMOTION", "MOTION"), "MOTION comes before joint 'Hips' is closed"), "brace too many": (lambda t: t.replace("}\nMOTION", "}\n}\nMOTION"), "closes nothing"),
    "offset of two": (lambda t: t.replace("OFFSET 70 5 -3", "OFFSET 70 5"), "line 12: OFFSET of joint 'Left Arm' has 2 numbers"), "offset with text": (lambda t: t.replace("70 5 -3", "70 x -3"), "line 12"), "infinite offset": (lambda t: t.replace("70 5 -3", "70 inf -3"), "line 12"),
    "channels miscounted": (lambda t: t.replace("CHANNELS 2", "CHANNELS 3"), "line 13: CHANNELS"), "unknown channel": (lambda t: t.replace("2 Xrotation", "2 Wrotation"), "'Wrotation' is not known"), "channel twice": (lambda t: t.replace("2 Xrotation Z", "2 Xrotation X"), "listed twice"),
    "no offset": (lambda t: t.replace("\t\t\tOFFSET 70 5 -3\n", ""), "has no OFFSET"), "no channels": (lambda t: t.replace("\t\tCHANNELS 1 Xrotation\n", ""), "has no CHANNELS"), "two offsets": (lambda t: t.replace("OFFSET 70 5 -3", "OFFSET 70 5 -3\nOFFSET 1 2 3"), "second OFFSET"),
    "joint twice": (lambda t: t.replace("JOINT Leg", "JOINT Head"), "'Head' appears twice"), "nameless": (lambda t: t.replace("JOINT Leg", "JOINT"), "has no name"), "second root": (lambda t: t.replace("MOTION", "ROOT b\n{\nOFFSET 0 0 0\nCHANNELS 0\n}\nMOTION"), "second ROOT"),
    "frames too many": (lambda t: t.replace("Frames: 2", "Frames: 999999999"), "Frames says 999,999,999"), "a frame less": (lambda t: t.replace("Frames: 2", "Frames: 1"), "a line follows frame 1"), "no frames": (lambda t: t.replace("Frames: 2", "Frames: 0"), "no frames"),
    "frames in words": (lambda t: t.replace("Frames: 2", "Frames: two"), "expected 'Frames: <number>'"), "frames of unicode": (lambda t: t.replace("Frames: 2", "Frames: \u00b2"), "expected 'Frames: <number>'"), "no frame time": (lambda t: t.replace("Frame Time: 0.0083333\n", ""), "expected 'Frame Time:"), "zero time": (lambda t: t.replace("0.0083333", "0"), "Frame Time is 0"),
    "NaN in the motion": (lambda t: t.replace("-2 90", "nan 90"), "line 43"), "word in the motion": (lambda t: t.replace("-2 90", "a 90"), "line 43: frame 2 holds 'a'"), "huge value": (lambda t: t.replace("-2 90", "1e300 90"), "beyond 1e9"), "underscore": (lambda t: t.replace("-2 90", "1_0 90"), "line 43"),
    "a giant's offsets": (lambda t: t.replace("10 -90 0", "10 -90000 0"), "no usual unit"), "no unit": (lambda t: t.replace("0.00 60.0", "0 1e-5"). replace("70 5", ".1 5").replace("0 30 2", "0 .3 .2").replace("-90", "-.9"), "give metres_per_unit"),
    "too deep": (lambda t: "HIERARCHY\nROOT a\n{\n" + "".join(f"JOINT j{k}\n{{\n" for k in range(3000)), "levels"), "a long line": (lambda t: "HIERARCHY\n" + "} " * 100_000, "characters")}

@pytest.mark.parametrize("change, telling", MALFORMED.values(), ids=MALFORMED)
def test_malformed(change, telling, body):
    body.write_bytes(change(BODY).encode("utf-8"))
    with pytest.raises(InputError) as refusal: read_bvh(body)
    text = str(refusal.value)
    assert telling in text and "expected" in text and "\n" not in text and str(body) in text, text

def test_missing_files_and_arguments(tmp_path, body):
    for call in (lambda: read_bvh(tmp_path / "none.bvh"), lambda: read_bvh(tmp_path), lambda: read_bvh(body, -1.), lambda: read_bvh(body).poses(H36M17), lambda: upright_rotation("x")):
        with pytest.raises(InputError, match="expected"): call()

def test_fuzzed_files_end_in_a_motion_or_a_sentence(body):
    rng, refusals = np.random.default_rng(1), 0
    words = BODY.split(" ")
    for k in range(300):
        if k % 2:
            place = rng.integers(len(BODY) - 4)
            spoilt = BODY[:place] + "".join(chr(c) for c in rng.integers(9, 127, 2)) + BODY[place + rng.integers(4):]
        else:
            spoilt = words.copy()
            spoilt[rng.integers(len(words))] = ("nan", "{", "}", "JOINT", "1e999", "-", "MOTION", "OFFSET 1 2 3", "999999999999", "")[rng.integers(10)]
            spoilt = " ".join(spoilt)
        body.write_text(spoilt)
        try: assert np.isfinite(read_bvh(body).positions).all()
        except InputError as error:
            refusals += 1
            assert "\n" not in str(error)
    assert 100 < refusals < 300

def test_a_large_claim_takes_no_memory(body):
    import tracemalloc
    body.write_text(BODY.replace("Frames: 2", "Frames: 900000000000"))
    tracemalloc.start()
    with pytest.raises(InputError): read_bvh(body)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6

# ---------- writing

def rigid(poses, skeleton):
    "The same directions with bones of constant length."
    made, length = poses.copy(), bone_lengths(poses, skeleton)[0]
    depth = lambda j: 0 if skeleton.parents[j] < 0 else 1 + depth(skeleton.parents[j])
    for b in sorted(range(len(skeleton.bones)), key=lambda b: depth(skeleton.bones[b][0])):
        child, parent = skeleton.bones[b]
        bone = poses[:, child] - poses[:, parent]
        made[:, child] = made[:, parent] + length[b] * bone / np.linalg.norm(bone, axis=-1, keepdims=True)
    return made

@pytest.mark.parametrize("skeleton", [*SKELETONS.values(), BODY25B, HALPE26, OPENPOSE18], ids=lambda s: s.name)
def test_round_trip_of_every_skeleton(skeleton, tmp_path):
    world = rigid(example_people(skeleton, 20, frame_rate=25.)[0].pose, skeleton)
    path = write_bvh(tmp_path / "m.bvh", world, skeleton, 25.)
    again = read_bvh(path)
    assert np.linalg.norm(again.poses(skeleton, up="z") - world, axis=-1).max() < 1e-4 and again.frame_rate == 25 and len(again) == 20
    assert sum(names == () for names in again.channels) == sum(j not in skeleton.parents for j in range(skeleton.num_joints))
    assert np.allclose(again.offset[0], 0)

@pytest.mark.parametrize("up", ["z", "y", "-y"])
def test_axes_are_turned_and_not_mirrored(up, tmp_path):
    world = rigid(example_people(H36M17, 5)[0].pose, H36M17)
    given = world @ upright_rotation("z").T @ upright_rotation(up) # z up to y up to the frame asked for
    motion = read_bvh(write_bvh(tmp_path / "m.bvh", given, H36M17, 50., up=up))
    head, ankle = (motion.positions[:, motion.joints.index(j), 1] for j in ("head", "left_ankle"))
    assert (head - ankle > 1).all() and np.abs(motion.poses(H36M17, up) - given).max() < 1e-4

def test_real_motion_capture(tmp_path):
    root = real_data("cmu")
    skeleton = acclaim.read_asf(root / "16/16.asf")
    motion = acclaim.read_amc(root / "16/16_03.amc", skeleton)
    joints = acclaim.forward_kinematics(skeleton, motion)
    again = read_bvh(write_bvh(tmp_path / "16_03.bvh", joints, CMU31, 120., up="y"))
    error = np.linalg.norm(again.poses(CMU31) - joints, axis=-1)
    assert error.max() < 1e-4 and len(again) == len(motion), error.max()
    h36m = convert(joints, CMU31, H36M17) # bones between made joints vary a little
    off = np.linalg.norm(read_bvh(write_bvh(tmp_path / "h.bvh", h36m, H36M17, 120., up="y")).poses(H36M17) - h36m, axis=-1)
    assert 1e-6 < off.mean() < .01

def test_lengths_are_medians_and_the_error_is_that_of_the_lengths(tmp_path):
    poses = rigid(example_people(H36M17, 30)[0].pose, H36M17)
    wrist, elbow = H36M17.index("left_wrist"), H36M17.index("left_elbow")
    poses[3, wrist] = poses[3, elbow] + 1.5 * (poses[3, wrist] - poses[3, elbow]) # one frame with a long forearm
    again = read_bvh(write_bvh(tmp_path / "m.bvh", poses, H36M17, 25.)).poses(H36M17, "z")
    off = np.linalg.norm(again - poses, axis=-1)
    expected = np.linalg.norm(poses[3, wrist] - poses[3, elbow]) / 3
    assert abs(off[3, wrist] - expected) < 1e-4 and np.delete(off.ravel(), 3 * 17 + wrist).max() < 1e-4

def test_angles_do_not_jump(tmp_path):
    "A body that turns about itself three times: the angle goes on to 1080 degrees."
    pose = example_people(H36M17, 1)[0].pose[0]
    angle = np.linspace(0, 6 * np.pi, 300)
    turn = np.stack([np.stack([np.cos(angle), -np.sin(angle), 0 * angle], -1), np.stack([np.sin(angle), np.cos(angle), 0 * angle], -1), np.stack([0 * angle, 0 * angle, 1 + 0 * angle], -1)], 1)
    motion = read_bvh(write_bvh(tmp_path / "m.bvh", pose @ turn.transpose(0, 2, 1), H36M17, 50.))
    assert np.abs(np.diff(motion.values[:, 3:], axis=0)).max() < 10
    assert abs(abs(motion.values[-1, 5] - motion.values[0, 5]) - 1080) < 1

def test_twist_is_not_invented():
    "An arm that goes up and down in a plane turns about one axis."
    skeleton = Skeleton("arm", ("shoulder", "elbow", "wrist"), (-1, 0, 1))
    angle = np.linspace(0, 1.2, 20)
    elbow = np.stack([np.cos(angle), np.sin(angle), 0 * angle], -1) * .3
    motion = fit_hierarchy(np.stack([0 * elbow, elbow, 2 * elbow], 1), skeleton, 50.)
    assert np.allclose(motion.values[:, 3], np.degrees(angle)) and np.abs(motion.values[:, 4:]).max() < 1e-9

def test_degenerate_poses():
    poses = example_people(H36M17, 6)[0].pose.copy()
    poses[2] = poses[2, :1] # all joints in one point
    poses[3, 12] = poses[3, 11] # a bone without length
    motion = fit_hierarchy(poses, H36M17, 50.)
    assert np.isfinite(motion.values).all() and np.isfinite(motion.positions).all()
    assert np.isfinite(fit_hierarchy(np.zeros((3, 17, 3)), H36M17, 50.).positions).all()
    opposite = smallest_rotation(np.array([[0, 1., 0], [1, 0, 0], [0, 0, 2]]), np.array([[0, -3., 0], [-1, 0, 0], [0, 0, -1]]))
    assert np.allclose(np.linalg.det(opposite), 1) and np.allclose((opposite @ np.eye(3)[[1, 0, 2]][..., None])[..., 0], -np.eye(3)[[1, 0, 2]])

def test_gimbal_lock():
    for x in (90, -90):
        turn = np.array([[[np.cos(.3), -np.sin(.3), 0], [np.sin(.3), np.cos(.3), 0], [0, 0, 1.]]]) @ np.array([[[1, 0, 0], [0, 0, -np.sign(x)], [0, np.sign(x), 0.]]])
        z, x_found, y = euler_zxy(turn)[0]
        assert np.isclose(z, np.degrees(.3)) and np.isclose(x_found, x) and y == 0

@pytest.mark.parametrize("poses, rate", [(np.zeros((3, 16, 3)), 25.), (np.zeros((0, 17, 3)), 25.), (np.full((3, 17, 3), np.nan), 25.), (np.zeros((3, 17, 3)), 0.), (np.zeros((17, 3)), 25.), (np.zeros((3, 17, 2)), 25.)])
def test_wrong_poses_leave_nothing(poses, rate, tmp_path):
    with pytest.raises(InputError, match="expected"): write_bvh(tmp_path / "m.bvh", poses, H36M17, rate)
    assert not list(tmp_path.iterdir())

def test_rest_pose_is_a_person_with_spread_arms():
    offset = rest_pose(H36M17, example_people(H36M17, 10)[0].pose)
    at = lambda joint: offset[H36M17.index(joint)]
    assert at("left_elbow")[0] > .2 and at("right_elbow")[0] < -.2 and at("left_knee")[1] < -.3 and at("spine")[1] > .1 and (offset[0] == 0).all()

def test_sides_can_be_made_equal(tmp_path):
    world = rigid(example_people(H36M17, 20, frame_rate=25.)[0].pose, H36M17)
    lopsided = world.copy()
    lopsided[:, H36M17.index("left_wrist")] += .3 * (world[:, H36M17.index("left_wrist")] - world[:, H36M17.index("left_elbow")])
    lengths = lambda symmetric: bone_lengths(read_bvh(write_bvh(tmp_path / "m.bvh", lopsided, H36M17, 25., symmetric=symmetric)).poses(H36M17, "z"), H36M17)
    gap = lambda found: max(abs(found[:, left] - found[:, right]).max() for left, right in H36M17.symmetric_bones)
    assert gap(lengths(False)) > .05 and gap(lengths(True)) < 1e-5

# ---------------------------------------------------------------- a folder as a source

def renamed(path, names):
    "The file with other joint names."
    text = path.read_text()
    for ours, theirs in names.items(): text = re.sub(rf"(JOINT|ROOT) {ours}$", rf"\1 {theirs}", text, flags=re.M)
    path.write_text(text)

@pytest.fixture
def recordings(tmp_path, monkeypatch):
    monkeypatch.setenv("POSEPROJECTS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "files", bvh.example(tmp_path / "files")["all"]

def test_a_folder_becomes_the_set_of_its_people(recordings):
    folder, wanted = recordings
    found = bvh.load("all", folder)
    for name, tensor in wanted.tensors().items(): assert torch.allclose(found.tensors()[name].double(), tensor.double(), atol=1e-5), name
    assert found.subject_names == ("anna", "bert") and found.frame_rate == 60 and bvh.load("all", folder).fingerprint == found.fingerprint
    people = example_people(H36M17, 12, ("anna",), ("squat",), 60.)[0].pose
    first = found.select(torch.arange(12))
    assert np.abs(bone_lengths(first.pose_3d.numpy(), H36M17) - bone_lengths(people, H36M17)).max() < .03 # made-up bones are not constant, those of a file are
    up = -first.pose_3d[:, H36M17.index("head"), 1] + first.pose_3d[:, H36M17.index("left_ankle"), 1]
    assert (up > 1).all(), "y points down in a camera"
    assert bvh.recognise(folder) == "BVH motion capture, 4 recordings"

MIXAMO = {"pelvis": "mixamorig:Hips", "neck_nose": "mixamorig:Head", "thorax": "mixamorig:Neck", "spine": "mixamorig:Spine",
          **{f"{side}_{ours}": f"mixamorig:{side.title()}{theirs}" for side in ("left", "right") for ours, theirs in (("hip", "UpLeg"), ("knee", "Leg"), ("ankle", "Foot"), ("shoulder", "Arm"), ("elbow", "ForeArm"), ("wrist", "Hand"))}}

def test_names_of_another_rig_are_the_same_joints(recordings):
    folder, wanted = recordings
    for path in folder.glob("*/*.bvh"): renamed(path, MIXAMO | {"head": "mixamorig:HeadTop_End"})
    found = bvh.load("all", folder)
    assert torch.allclose(found.pose_3d, wanted.pose_3d, atol=1e-5)

def test_a_collar_bone_is_no_shoulder():
    names = ("Hips", "Spine", "Neck", "Head", "Head_end", "LeftShoulder", "LeftArm", "LeftForeArm", "LeftHand", "RightShoulder", "RightArm", "RightForeArm", "RightHand", "LeftUpLeg", "LeftLeg", "LeftFoot", "RightUpLeg", "RightLeg", "RightFoot")
    motion = BVHMotion("clip", names, (-1,) + (0,) * 18, np.zeros((19, 3)), ((),) * 19, np.zeros((1, 0)), .1)
    assert [names[row] for row in bvh.rig_joints(motion)] == ["Hips", "RightUpLeg", "RightLeg", "RightFoot", "LeftUpLeg", "LeftLeg", "LeftFoot", "Spine", "Neck", "Head", "Head_end",
                                                              "LeftArm", "LeftForeArm", "LeftHand", "RightArm", "RightForeArm", "RightHand"]

def test_folders_that_are_none_are_refused(recordings, tmp_path):
    folder, _ = recordings
    assert "no folder was named" in refused(bvh.load) and "no recording" in refused(bvh.load, "all", tmp_path / "cache") and "no agreed parts" in refused(bvh.load, "train", folder)
    renamed(folder / "anna" / "walk.bvh", {"left_knee": "middle_joint"})
    assert "left_knee" in (text := refused(bvh.load, "all", folder)) and "middle_joint" in text
    other = folder / "bert" / "walk.bvh"
    (folder / "anna" / "walk.bvh").unlink()
    other.write_text(re.sub("Frame Time: .*", "Frame Time: 0.04", other.read_text()))
    assert "25 Hz where squat.bvh has 60 Hz" in refused(bvh.load, "all", folder)
    assert not list((tmp_path / "cache").glob("*.safetensors"))

def test_fast_recordings_are_thinned(tmp_path, monkeypatch):
    monkeypatch.setenv("POSEPROJECTS_CACHE", str(tmp_path / "cache"))
    world = rigid(example_people(H36M17, 24, frame_rate=120.)[0].pose, H36M17)
    (tmp_path / "files").mkdir()
    write_bvh(tmp_path / "files" / "m_01.bvh", world, H36M17, 120.)
    found = bvh.load("all", tmp_path / "files")
    assert found.frame_rate == 60 and found.frame_step == 2 and found.frame[:12].tolist() == list(range(0, 24, 2)) and found.action_names == ("m",) and found.subject_names == ("S1",)
