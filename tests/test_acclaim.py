"ASF/AMC: forward kinematics against a slow reference, exact reading and writing, and what happens to broken files."
import math, re, subprocess, sys, time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mocap_pack import SUBJECT, TRIAL, make_pack
from poseprojects.data import acclaim
from poseprojects.data.acclaim import (BONES, NODES, PARENTS, Motion, forward_kinematics, mannequin, marching, read_amc, read_asf, unit_slip, write_amc,
                                       write_asf, zero_pose)
from poseprojects.skeleton import CMU31, CMU_BONES
from poseprojects.storage import InputError, shared_data

BODY = mannequin(SUBJECT)
MARCH = marching(BODY, 40)

# ---------- forward kinematics

def product(a, b): return [[sum(a[i][k] * b[k][j] for k in range(3)) for j in range(3)] for i in range(3)]
def transpose(a): return [list(r) for r in zip(*a)]

def turn(axis, degrees):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return {"x": [[1, 0, 0], [0, c, -s], [0, s, c]], "y": [[c, 0, s], [0, 1, 0], [-s, 0, c]], "z": [[c, -s, 0], [s, c, 0], [0, 0, 1]]}[axis]

def euler(a): return product(product(turn("z", a[2]), turn("y", a[1])), turn("x", a[0]))

def slow_joints(skeleton, root, angles):
    "One frame by plain recursion, straight from the format's description."
    place, world = {"root": list(root)}, {"root": euler(angles[0])}
    for bone in BONES:
        k, parent = NODES.index(bone), BONES[bone]
        own = euler(skeleton.axis[k])
        world[bone] = product(world[parent], product(product(own, euler(angles[k])), transpose(own)))
        step = [sum(world[bone][i][j] * skeleton.direction[k][j] * skeleton.length[k] for j in range(3)) for i in range(3)]
        place[bone] = [p + s for p, s in zip(place[parent], step)]
    return [place[n] for n in NODES]

def random_motion(skeleton, frames, seed):
    "Any angles at all, within the degrees of freedom."
    random = np.random.default_rng(seed)
    angles = random.uniform(-400, 400, (frames, len(NODES), 3))
    for k, dof in enumerate(skeleton.dof): angles[:, k, [a for a in range(3) if a not in dof]] = 0
    return Motion(f"{skeleton.name}_01", np.arange(1, frames + 1), random.normal(size=(frames, 3)), angles)

@pytest.mark.parametrize("seed", range(4))
def test_forward_kinematics_equals_the_slow_reference(seed):
    motion = random_motion(BODY, 5, seed)
    slow = np.array([slow_joints(BODY, r, a) for r, a in zip(motion.root, motion.angles)])
    assert np.abs(forward_kinematics(BODY, motion) - slow).max() < 1e-12

def test_forward_kinematics_turns_with_the_root():
    "A turned and shifted root turns and shifts every joint."
    motion = random_motion(BODY, 3, 9)
    R, t = np.array(euler((20, -70, 130))), np.array([1., 2., 3.])
    joints, upright = forward_kinematics(BODY, motion), replace(motion, angles=motion.angles.copy(), root=np.zeros((3, 3)))
    upright.angles[:, 0] = 0
    turned = replace(upright, angles=upright.angles.copy(), root=np.tile(t, (3, 1)))
    turned.angles[:, 0] = (20, -70, 130)
    assert np.abs(forward_kinematics(BODY, turned) - (forward_kinematics(BODY, upright) @ R.T + t)).max() < 1e-12
    assert np.abs(np.linalg.norm(joints[:, 1:] - joints[:, list(PARENTS[1:])], axis=-1) - BODY.length[1:]).max() < 1e-12

def test_the_tree_is_the_one_of_the_skeleton_page():
    assert NODES == CMU_BONES and PARENTS == CMU31.parents and len(BONES) == 30

def test_the_mannequin_is_symmetric():
    rest = zero_pose(BODY)
    for name in BONES:
        if name[0] == "l" and "r" + name[1:] in BONES:
            assert np.allclose(rest[NODES.index(name)] * (-1, 1, 1), rest[NODES.index("r" + name[1:])], atol=1e-12)

# ---------- reading and writing

@pytest.fixture
def pack(tmp_path): return make_pack(tmp_path / "pack")

def test_round_trip(tmp_path):
    motion = random_motion(BODY, 7, 3)
    write_asf(tmp_path / "02.asf", BODY)
    write_amc(tmp_path / "02_01.amc", BODY, motion)
    body = read_asf(tmp_path / "02.asf")
    again = read_amc(tmp_path / "02_01.amc", body, plausible=False)
    assert np.array_equal(again.angles, motion.angles) and np.allclose(again.root, motion.root, rtol=0, atol=1e-15)
    assert body.dof == BODY.dof and body.limits[2] == BODY.limits[2] and np.allclose(body.offset, BODY.offset, rtol=0, atol=1e-15)

HARMLESS = {"crlf": lambda b: b.replace(b"\n", b"\r\n"), "crlf in the header only": lambda b: b.replace(b"\n", b"\r\n", 2),
            "bytes that are not UTF-8 in a comment": lambda b: b"#!OML:ASF X:\\f\xfcr\\\xff\xfe.ASF\n" + b, "comment with a number": b"# 7\n".__add__,
            "blank lines": lambda b: b.replace(b"\nlfoot", b"\n\n lfoot"), "tabs": lambda b: b.replace(b" ", b"\t"), "spaces at line ends": lambda b: b.replace(b"\n", b"  \n"),
            "a comment between frames": lambda b: b.replace(b"\n20\n", b"\n# half way \xe4\n20\n"), "samples per second": lambda b: b":SAMPLES-PER-SECOND 120\n" + b}

@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_harmless_differences_change_nothing(pack, change):
    path = pack / SUBJECT / f"{TRIAL}.amc"
    path.write_bytes(change(path.read_bytes()))
    again = read_amc(path, read_asf(pack / SUBJECT / f"{SUBJECT}.asf"))
    assert np.array_equal(again.angles, MARCH.angles) and np.allclose(again.root, MARCH.root, rtol=0, atol=1e-15)

def test_skeleton_with_crlf_and_strange_comments(pack):
    path = pack / SUBJECT / f"{SUBJECT}.asf"
    path.write_bytes(b"# f\xfcr\n" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert np.allclose(read_asf(path).offset, BODY.offset, rtol=0, atol=1e-15)

def test_radians_are_read(pack):
    path = pack / SUBJECT / f"{TRIAL}.amc"
    write_amc(path, BODY, replace(MARCH, angles=np.radians(MARCH.angles)))
    path.write_bytes(path.read_bytes().replace(b":DEGREES", b":RADIANS"))
    assert np.allclose(read_amc(path, BODY).angles, MARCH.angles, rtol=0, atol=1e-12)

def test_bones_in_another_order(pack):
    path = pack / SUBJECT / f"{TRIAL}.amc"
    header, *frames = re.split(r"(?m)^(?=\d+$)", path.read_text())
    turned = [f.split("\n")[0] + "\n" + "\n".join(reversed(f.strip().split("\n")[1:])) + "\n" for f in frames]
    path.write_text(header + "".join(turned))
    assert np.array_equal(read_amc(path, BODY).angles, MARCH.angles)

def test_the_two_readers_agree(pack):
    path = pack / SUBJECT / f"{TRIAL}.amc"
    content = path.read_bytes()
    _, offset, line = acclaim._header(path, content)
    fast, plain = acclaim._fast_frames(content[offset:], acclaim._movable(BODY)), acclaim._plain_frames(path, content[offset:], line, BODY)
    assert fast.keys() == plain.keys() and all(np.array_equal(fast[k], plain[k]) for k in fast)

IRREGULAR = {"a number moved to the next line": lambda b: b.replace(b"\nlfoot ", b"\nlfoot 1 ", 1), "a name as a number": lambda b: b.replace(b"\nltoes 0\n", b"\nltoes ltoes\n", 1),
             "joined lines": lambda b: b.replace(b"\nltoes 0\n", b" ltoes 0\n", 1), "nan": lambda b: b.replace(b"\nltoes 0\n", b"\nltoes nan\n", 1),
             "underscore": lambda b: b.replace(b"\nltoes 0\n", b"\nltoes 1_0\n", 1), "two frames exchanged": lambda b: b.replace(b"\n9\n", b"\n8\n"),
             "split over two lines": lambda b: b.replace(b"\nltoes 0\n", b"\nltoes\n0\n", 1), "no last line end": lambda b: b[:-1]}

@pytest.mark.parametrize("change", IRREGULAR.values(), ids=IRREGULAR)
def test_the_fast_reader_never_accepts_what_the_plain_one_refuses(pack, change):
    path = pack / SUBJECT / f"{TRIAL}.amc"
    before = path.read_bytes()
    content = change(before)
    assert content != before
    _, offset, line = acclaim._header(path, content)
    assert acclaim._fast_frames(content[offset:], acclaim._movable(BODY)) is None
    with pytest.raises(InputError): acclaim._plain_frames(path, content[offset:], line, BODY)

# ---------- faults

def sub(pattern, to, count=0):
    "A change by regular expression that must find something."
    def change(b):
        text, found = re.subn(pattern, to, b.decode(), count=count, flags=re.M)
        assert found, pattern
        return text.encode()
    return change

def scaled(pattern, factor):
    "Multiplies the numbers that follow the pattern."
    return sub(rf"^({pattern}) (.*)$", lambda m: f"{m[1]} " + " ".join(repr(float(v) * factor) for v in m[2].split()))

def root_scaled(factor):
    "Multiplies the root's position."
    return sub(r"^root (\S+) (\S+) (\S+)", lambda m: "root " + " ".join(repr(float(v) * factor) for v in m.groups()))

def drop_bone(name): return sub(rf"  begin\n    id \d+\n    name {name}\n(.*\n)*?  end\n", "", 1)
def in_bone(name, pattern, to): return sub(rf"(name {name}\n(?:.*\n)*?)(    {pattern}.*\n)", lambda m: m[1] + to + "\n", 1)
SIDES = lambda m: m[1] + ("r" if m[2] == "l" else "l") + m[3]

SKELETON_FAULTS = {
    "empty": (lambda b: b"", "empty"),
    "only blanks": (lambda b: b" \n\n", "empty"),
    "binary junk": (lambda b: bytes(range(256)) * 20, "binary"),
    "junk that is text": (lambda b: b"\x80\x81 hello\n" * 50, "before the first section"),
    "UTF-16": (lambda b: b.decode().encode("utf-16"), "binary"),
    "a motion instead": (lambda b: b":FULLY-SPECIFIED\n:DEGREES\n1\nroot 0 0 0 0 0 0\n", "belongs to a motion"),
    "truncated in a bone": (lambda b: b[: b.index(b"name rhand") + 30], ":hierarchy is missing"),
    "truncated in the hierarchy": (lambda b: b[: b.index(b"thorax lowerneck")], "no 'end'"),
    "no hierarchy": (sub(r":hierarchy(.|\n)*", ""), ":hierarchy is missing"),
    "no units": (sub(r":units\n.*\n.*\n.*\n", ""), ":units is missing"),
    "missing bone": (drop_bone("rtibia"), "rtibia"),
    "many missing bones": (lambda b: drop_bone("lhand")(drop_bone("lthumb")(drop_bone("lwrist")(b))), "3 of 30 bones"),
    "unknown bone": (sub(r"name rthumb", "name tail"), "unknown bone 'tail'"),
    "bone twice": (sub(r"name rthumb", "name lthumb"), "twice"),
    "bone without end": (sub(r"  end\n  begin\n    id 9\n", "  begin\n    id 9\n"), "expected 'end'"),
    "bone without length": (in_bone("lfemur", "length", ""), "no 'length'"),
    "NaN length": (in_bone("lfemur", "length", "    length nan"), "finite"),
    "infinite axis": (in_bone("lfemur", "axis", "    axis 0 inf 20 XYZ"), "finite"),
    "number out of range": (in_bone("lfemur", "length", "    length 1e999"), "finite"),
    "garbled number": (in_bone("lfemur", "length", "    length 7.1.5"), "expected a number"),
    "decimal comma": (in_bone("lfemur", "length", "    length 7,15"), "expected a number"),
    "digits of another alphabet": (in_bone("lfemur", "length", "    length \u0667"), "expected a number"),
    "negative length": (in_bone("lfemur", "length", "    length -7"), "positive"),
    "direction of two numbers": (in_bone("lfemur", "direction", "    direction 0 1"), "2 numbers, expected 3"),
    "direction not of unit length": (in_bone("lfemur", "direction", "    direction 3 -9 0"), "unit vector"),
    "a million numbers": (in_bone("lfemur", "direction", "    direction" + " 0" * 300_000), "300000 numbers, expected 3"),
    "file far too large": (lambda b: b + b"#" * 1_100_000, "at most"),
    "axis order": (in_bone("lfemur", "axis", "    axis 20 0 0 ZYX"), "XYZ"),
    "dof order": (in_bone("lfemur", "dof", "    dof rz ry rx"), "in that order"),
    "unknown dof": (in_bone("lfemur", "dof", "    dof rx l"), "selection of 'rx ry rz'"),
    "too few limits": (sub(r"           \(-60 70\)\n", "", 1), "2 limits for 3"),
    "limits the wrong way": (sub(r"\(-160 20\)", "(20 -160)", 1), "smaller number first"),
    "unknown section": (sub(":hierarchy", ":skin\nbody.obj\n:hierarchy"), "unknown section ':skin'"),
    "section twice": (sub(":hierarchy", ":units\n  length 1\n:hierarchy"), "twice"),
    "unknown entry": (in_bone("lfemur", "length", "    length 7\n    colour 3"), "unknown entry 'colour'"),
    "radians": (sub("angle deg", "angle rad"), "expected 'deg'"),
    "root order": (sub("TX TY TZ RX RY RZ", "RX RY RZ TX TY TZ"), "expected 'TX TY TZ RX RY RZ'"),
    "root away from the origin": (sub("position 0 0 0", "position 0 17 0"), "expected '0 0 0'"),
    "wrong parent": (lambda b: sub("lfemur ltibia", "lfemur", 1)(sub("root lhipjoint", "root ltibia lhipjoint")(b)), "ltibia hangs from root, expected lfemur"),
    "two parents": (sub("rfemur rtibia", "rfemur rtibia ltibia"), "two parents"),
    "a circle": (sub("lfoot ltoes", "lfoot ltoes\n    ltoes lfemur"), "two parents"),
    "lost from the tree": (sub("    lfoot ltoes\n", ""), "ltoes has no parent"),
    "units: factor 1000": (scaled("    length", 1000), "factor of 1000"),
    "units: factor 1/1000": (scaled("    length", 1e-3), "factor of 1000"),
    "units: factor 25.4": (scaled("    length", 25.4), "factor of 25.4"),
    "units: factor 1/25.4": (scaled("    length", 1 / 25.4), "factor of 25.4"),
    "units: factor 2.54": (scaled("    length", 2.54), "factor of 2.54"),
    "length unit zero": (sub(r"^  length .*", "  length 0"), "positive"),
    "one bone 1000 times too long": (sub(r"(name lfingers\n.*\n    length )(\S+)", lambda m: m[1] + repr(1000 * float(m[2]))), "lfingers is"),
    "legs of different length": (sub(r"(name lfemur\n.*\n    length )(\S+)", lambda m: m[1] + repr(0.6 * float(m[2]))), "left and right to agree"),
    "mirrored: names exchanged": (sub(r"(name )([lr])(?!ower)(\w+)", SIDES), "left and right are exchanged"),
    "mirrored: x negated": (sub(r"direction (\S+)", lambda m: f"direction {-float(m[1]):.17g}"), "left and right are exchanged"),
    "mirrored: z negated": (sub(r"direction (\S+) (\S+) (\S+)", lambda m: f"direction {m[1]} {m[2]} {-float(m[3]):.17g}"), "mirrored"),
    "z up": (sub(r"direction (\S+) (\S+) (\S+)", lambda m: f"direction {m[1]} {-float(m[3]):.17g} {m[2]}"), "y up"),
}

MOTION_FAULTS = {
    "empty": (lambda b: b"", "empty"),
    "binary junk": (lambda b: b"\x00\xff\x13" * 500, "binary"),
    "UTF-16": (lambda b: b.decode().encode("utf-16"), "binary"),
    "a skeleton instead": (lambda b: b":version 1.10\n:units\n", "belongs to a skeleton"),
    "only a header": (lambda b: b":FULLY-SPECIFIED\n:DEGREES\n", "no frames"),
    "no frame number": (sub(r"^1\n", "", 1), "before the first frame"),
    "cut between lines": (lambda b: b[: b.index(b"\nltoes", len(b) // 2) + 1], "ends without ltoes"),
    "cut in a line": (lambda b: b[: b.index(b"\nrfoot", len(b) // 2) + 8], "has 1 number in frame"),
    "cut in the last number": (lambda b: b[:-2], "no line end"),
    "cut after a frame number": (lambda b: b[: b.index(b"\n30\n") + 4], "frame 30 ends without"),
    "cut in the header": (lambda b: b[:9], "unknown keyword"),
    "frame repeated": (sub(r"^12\n", "11\n"), "repeated"),
    "frame skipped": (sub(r"^12\n", "13\n"), "frames are missing"),
    "frame cut out": (lambda b: b[: b.index(b"\n12\n")] + b[b.index(b"\n13\n"):], "frame 13 follows frame 11"),
    "huge frame number": (sub(r"^12\n", "9" * 400 + "\n"), "follows frame 11"),
    "starts in the middle": (lambda b: b[: b.index(b"\n1\n") + 1] + b[b.index(b"\n7\n") + 1:], "the first frame is 7"),
    "a line missing": (sub(r"^lfoot .*\n", "", 1), "frame 1 ends without lfoot"),
    "a line missing late": (lambda b: b[: b.rindex(b"\nlfoot")] + b[b.rindex(b"\nltoes"):] if b.rindex(b"\nltoes") > b.rindex(b"\nlfoot") else b"", "frame 40 ends without lfoot"),
    "a line twice": (sub(r"^(lfoot .*\n)", r"\1\1", 1), "lfoot appears twice in frame 1"),
    "unknown bone": (sub(r"^lfoot ", "tail ", 1), "'tail' is no bone"),
    "rigid bone": (sub(r"^lfoot .*", "lhipjoint 1 2", 1), "cannot move"),
    "one number too many": (sub(r"^(lfoot .*)", r"\1 3.5", 1), "lfoot has 3 numbers"),
    "one number too few": (sub(r"^(lfoot \S+) .*", r"\1", 1), "lfoot has 1 number"),
    "NaN": (sub(r"^lfoot \S+", "lfoot NaN", 1), "finite"),
    "NaN in the last frame": (lambda b: b[: b.rindex(b"\nroot ")] + b[b.rindex(b"\nroot "):].replace(b"root 0", b"root nan"), "root in frame 40"),
    "infinity": (sub(r"^lfoot \S+", "lfoot -inf", 1), "finite"),
    "Windows infinity": (sub(r"^lfoot \S+", "lfoot 1.#INF", 1), "'1.#INF', expected a finite"),
    "Windows infinity at the end": (sub(r"^(lfoot \S+) .*", r"\1 1.#INF", 1), "'1.#INF', expected a finite"),
    "number out of range": (sub(r"^lfoot \S+", "lfoot 1e999", 1), "finite"),
    "garbled number": (sub(r"^lfoot \S+", "lfoot 12..5", 1), "expected a number"),
    "decimal comma": (sub(r"^lfoot \S+", "lfoot 12,5", 1), "expected a number"),
    "underscore in a number": (sub(r"^lfoot \S+", "lfoot 1_0", 1), "expected a number"),
    "hexadecimal": (sub(r"^lfoot \S+", "lfoot 0x1A", 1), "expected a number"),
    "glued numbers": (sub(r"^lfoot (\S+) (\S+)", r"lfoot \g<1>-3.5 \2", 1), "expected a number"),
    "stray byte in a number": (lambda b: b.replace(b"\nlfoot -", b"\nlfoot \xfc", 1), "expected a number"),
    "radians flag on degrees": (sub(":DEGREES", ":RADIANS"), "fits degrees"),
    "degrees flag on radians": (sub(r"^([a-z]+(?:(?<=root)(?: \S+){3})?) (.*)$", lambda m: f"{m[1]} " + " ".join(repr(math.radians(float(v))) for v in m[2].split())), "fits radians"),
    "both units": (sub(":DEGREES", ":DEGREES\n:RADIANS"), "both"),
    "no unit": (sub(":DEGREES\n", ""), "neither"),
    "not fully specified": (sub(":FULLY-SPECIFIED\n", ""), "no :FULLY-SPECIFIED"),
    "unknown keyword": (sub(":DEGREES", ":DEGREES\n:ORDER ZYX"), "unknown keyword ':ORDER'"),
    "root: factor 1000": (root_scaled(1000), "factor of 1000"),
    "root: factor 25.4": (root_scaled(25.4), "factor of 25.4"),
    "root: factor 1/25.4": (root_scaled(1 / 25.4), "factor of 25.4"),
    "root: factor 1/1000": (root_scaled(1e-3), "factor of 1000"),
    "left and right exchanged": (sub(r"^()([lr])(?!ower|oot)(\w+)", SIDES), "exchanged"),
    "cut at a frame's end": (lambda b: b[: b.index(b"\n31\n") + 1], "30 frames, expected 40"),
    "another subject's motion": (root_scaled(1.03), "another subject's"),
}

def sentence(error, path):
    "Whether a message is one sentence about the file."
    text = str(error)
    rest = text.removeprefix(str(path))
    return text.startswith(str(path)) and "\n" not in text and not re.search(r"[.!?]\s+[A-Z]", rest) and 20 < len(text) < 600 and re.search("expected|;", rest)

@pytest.mark.parametrize("file, change, telling", [(f"{SUBJECT}.asf", *v) for v in SKELETON_FAULTS.values()] + [(f"{TRIAL}.amc", *v) for v in MOTION_FAULTS.values()],
                         ids=[f"asf: {k}" for k in SKELETON_FAULTS] + [f"amc: {k}" for k in MOTION_FAULTS])
def test_a_broken_file_is_refused_in_one_sentence_and_leaves_nothing(pack, tmp_path, monkeypatch, file, change, telling):
    from poseprojects.data import cmu
    monkeypatch.setenv("POSEPROJECTS_CACHE", str(tmp_path / "cache"))
    path = pack / SUBJECT / file
    before = path.read_bytes()
    path.write_bytes(change(before))
    assert path.read_bytes() != before, "the fault was not made"
    start = time.perf_counter()
    with pytest.raises(InputError) as refusal: cmu.load("train", pack, subjects=[SUBJECT])
    assert time.perf_counter() - start < 5
    assert sentence(refusal.value, path), str(refusal.value)
    assert re.search(telling if "|" in telling else re.escape(telling), str(refusal.value)), str(refusal.value)
    assert not list((tmp_path / "cache").rglob("*"))

def test_there_are_many_faults(): assert len(SKELETON_FAULTS) + len(MOTION_FAULTS) >= 90

def test_the_line_number_is_that_of_the_fault(pack):
    path = pack / SUBJECT / "02.asf"
    path.write_bytes(in_bone("lfemur", "length", "    length 7.1.5")(path.read_bytes()))
    number = path.read_text().split("\n").index("    length 7.1.5") + 1
    with pytest.raises(InputError, match=rf"02\.asf, line {number}: "): read_asf(path)
    path = pack / SUBJECT / "02_01.amc"
    text = path.read_text().split("\n")
    number = text.index("30") + 1 + 12
    text[number - 1] = text[number - 1].split()[0] + " oops"
    path.write_text("# a comment more\r\n" + "\n".join(text))
    with pytest.raises(InputError, match=rf"02_01\.amc, line {number + 1}: "): read_amc(path, BODY)

def test_another_subjects_skeleton_is_refused_by_name(pack):
    path = pack / SUBJECT / f"{TRIAL}.amc"
    other = mannequin("03")
    with pytest.raises(InputError, match=r"another subject's than 03\.asf") as refusal: read_amc(path, other)
    assert sentence(refusal.value, path)
    assert np.array_equal(read_amc(path, other, same_subject=False).angles, MARCH.angles)

def test_another_subjects_structure_is_refused(pack):
    path = pack / SUBJECT / f"{TRIAL}.amc"
    dof = tuple(d if NODES[k] != "lwrist" else (0, 1) for k, d in enumerate(BODY.dof))
    with pytest.raises(InputError, match=r"lwrist has 1 number in frame 1, but 02\.asf expects 2 \(rx ry\); .* another subject's"): read_amc(path, replace(BODY, dof=dof))

def test_a_longer_person_under_the_right_name_is_refused_by_the_recipe(pack, tmp_path, monkeypatch):
    "The name fits and the bones are a person's: only the known heights tell."
    from poseprojects.data import cmu
    monkeypatch.setenv("POSEPROJECTS_CACHE", str(tmp_path / "cache"))
    write_asf(pack / SUBJECT / f"{SUBJECT}.asf", mannequin(SUBJECT, 1.80))
    with pytest.raises(InputError, match="another subject's"): cmu.load("train", pack, subjects=[SUBJECT])
    assert not list((tmp_path / "cache").rglob("*"))

@pytest.mark.parametrize("what", ["missing", "folder"])
def test_no_file(tmp_path, what):
    path = tmp_path / "02_01.amc"
    if what == "folder": path.mkdir()
    for read in (read_asf, lambda p: read_amc(p, BODY)):
        with pytest.raises(InputError) as refusal: read(path)
        assert sentence(refusal.value, path)

@pytest.mark.parametrize("factor, text", [(1000, "1000"), (1 / 1000, "1000"), (25.4, "25.4"), (1 / 25.4, "25.4"), (100, "100"), (2.54, "2.54")])
def test_unit_slip(factor, text): assert unit_slip(factor * 1.05).endswith(text) or f"factor of {text}," in unit_slip(factor * 1.05)

# ---------- the real recordings

def real_files():
    "(skeleton, motions) of every actor of both packs."
    for source, pattern in (("cmu", "*/*.asf"), ("hdm05", "*/*.asf")):
        for asf in sorted((shared_data(source) or Path("absent")).glob(pattern)): yield asf, sorted(asf.parent.glob("*.amc"))

needs_cmu = pytest.mark.skipif(shared_data("cmu") is None, reason="the CMU pack is not here")

@needs_cmu
def test_every_real_file_is_read_by_the_fast_reader_in_time(monkeypatch):
    "55 MB well under a minute; measured 3 s with both packs and kinematics."
    monkeypatch.setattr(acclaim, "_plain_frames", lambda path, *_: pytest.fail(f"{path} went to the slow reader"))
    start, frames = time.perf_counter(), 0
    for asf, motions in real_files():
        skeleton = read_asf(asf)
        for path in motions:
            motion = read_amc(path, skeleton)
            joints = forward_kinematics(skeleton, motion)
            assert np.isfinite(joints).all() and joints.shape == (len(motion), 31, 3)
            if asf.parent.parent.name == "cmu": frames += len(motion)
    assert frames == 71_003
    assert time.perf_counter() - start < 45

@needs_cmu
def test_the_plain_reader_agrees_on_a_real_file():
    folder = shared_data("cmu") / "17"
    skeleton, path = read_asf(folder / "17.asf"), folder / "17_03.amc"
    content = path.read_bytes().replace(b"\r\n", b"\n")
    _, offset, line = acclaim._header(path, content)
    fast, plain = acclaim._fast_frames(content[offset:], acclaim._movable(skeleton)), acclaim._plain_frames(path, content[offset:], line, skeleton)
    assert all(np.array_equal(fast[k], plain[k]) for k in plain)

@needs_cmu
def test_forward_kinematics_on_a_real_file_equals_the_slow_reference():
    folder = shared_data("cmu") / "05"
    skeleton = read_asf(folder / "05.asf")
    motion = read_amc(folder / "05_20.amc", skeleton)
    joints = forward_kinematics(skeleton, motion)
    for k in (0, 500, 1094): assert np.abs(joints[k] - slow_joints(skeleton, motion.root[k], motion.angles[k])).max() < 1e-12

@needs_cmu
def test_a_swapped_real_skeleton_is_refused():
    "Every skeleton of the pack fits every motion: only the name tells."
    root = shared_data("cmu")
    with pytest.raises(InputError, match="another subject's"): read_amc(root / "16/16_15.amc", read_asf(root / "02/02.asf"))

@needs_cmu
def test_a_converted_real_recording_round_trips(tmp_path):
    root = shared_data("cmu")
    skeleton = read_asf(root / "127/127.asf")
    motion = read_amc(root / "127/127_15.amc", skeleton)
    write_asf(tmp_path / "127.asf", skeleton)
    write_amc(tmp_path / "127_15.amc", skeleton, motion)
    again = read_asf(tmp_path / "127.asf")
    assert np.abs(forward_kinematics(again, read_amc(tmp_path / "127_15.amc", again)) - forward_kinematics(skeleton, motion)).max() < 1e-12
