"2D detections: every layout read to the same set, tracks, gaps, writers, malformed files."
import copy, json, time

import numpy as np
import pytest
import torch
from conftest import real_data, refused
from poseprojects.data import detections
from poseprojects.data.base import clips
from poseprojects.data.detections import (BODY25B, HALPE26, LAYOUTS, Tracks, fill_gaps, frame_of_name, main_person, misfit, read_detections,
                                          recognised, similarity, to_poseset, track, write_coco, write_openpose)
from poseprojects.data.sources import is_unknown
from poseprojects.skeleton import BODY25, COCO17, H36M16, H36M17, MPII16, conversion
from poseprojects.storage import InputError

SIZE = (1000, 1000)

pytestmark = pytest.mark.usefixtures("fresh_cache")

def equal(found, expected):
    "The same arrays and names within float32."
    for name, tensor in expected.tensors().items():
        assert found.tensors()[name].dtype == tensor.dtype and torch.allclose(found.tensors()[name].double(), tensor.double(), rtol=1e-6, atol=1e-5), name
    for name in ("skeleton", "subject_names", "action_names", "sequence_names", "frame_rate", "frame_step", "input_2d"): assert getattr(found, name) == getattr(expected, name), name
    assert torch.equal(found.cameras.intrinsics, expected.cameras.intrinsics) and found.pose_3d is None

# ---------- layouts

@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_set_it_was_made_from(layout, tmp_path):
    expected = detections.example(tmp_path, layout)["all"]
    found = detections.load("all", tmp_path)
    equal(found, expected)
    assert found.settings["found"]["walk"]["layout"] == layout and is_unknown(found.cameras) and found.input_2d == "detected"
    assert detections.load("all", tmp_path).fingerprint == found.fingerprint

@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_missing_joint_and_a_missing_person(layout, tmp_path):
    detections.example(tmp_path, layout)
    own = detections.load("all", tmp_path, skeleton="")
    missing = (own.confidence == 0).nonzero().tolist()
    assert len(missing) == 1 and own.skeleton.joints[missing[0][1]] == "left_wrist"
    seen = own.confidence[missing[0][0]] > 0
    assert torch.allclose(own.pose_2d[missing[0][0], missing[0][1]], own.pose_2d[missing[0][0], seen].mean(0), atol=1e-3) # in the middle of the others
    first = int(own.frame.min())
    numbers = [own.frame[own.sequence == s].sub(first).tolist() for s in range(2)]
    assert sorted(numbers, key=len) == [[0, 1, 2, 3, 5, 7, 8, 9], [0, 1, 2, 3, 4, 5, 7, 8, 9]]
    assert len(clips(own)) == 5 # a gap in time is no neighbourhood

def test_confidence_of_a_converted_joint_is_the_least():
    one = Tracks("v", "coco", COCO17, SIZE, np.array([0]), np.array([0]), np.arange(34.).reshape(1, 17, 2) * 20, np.linspace(.2, 1, 17)[None], np.array([0]))
    made, rule = one.converted(H36M17), conversion(COCO17, H36M17)
    hips = one.confidence[0, [COCO17.index("left_hip"), COCO17.index("right_hip")]]
    assert made.confidence[0, H36M17.index("pelvis")] == hips.min() and np.allclose(made.pose_2d, rule(one.pose_2d))

def test_mmpose_list_without_meta_and_old_mmpose(tmp_path):
    detections.example(tmp_path / "new", "mmpose")
    content = json.loads((tmp_path / "new/walk.json").read_text())
    (tmp_path / "list.json").write_text(json.dumps(content["instance_info"]))
    first, again = read_detections(tmp_path / "new/walk.json", SIZE), read_detections(tmp_path / "list.json", SIZE)
    assert np.array_equal(first.pose_2d, again.pose_2d) and first.layout == again.layout == "mmpose"
    old = [dict(frame_id=f["frame_id"], keypoints=np.concatenate([p["keypoints"], np.array(p["keypoint_scores"])[:, None]], 1).ravel().tolist(), score=1.) for f in content["instance_info"] for p in f["instances"]]
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert np.array_equal(read_detections(tmp_path / "old.json", SIZE).pose_2d, first.pose_2d)

def test_one_openpose_file_and_the_older_field(tmp_path):
    detections.example(tmp_path, "openpose")
    path = tmp_path / "walk/walk_000000000003_keypoints.json"
    path.write_text(path.read_text().replace("pose_keypoints_2d", "pose_keypoints"))
    one = read_detections(path, SIZE)
    assert one.frame.tolist() == [3, 3] and one.layout == "openpose"
    assert len(read_detections(tmp_path / "walk", SIZE)) == 17

@pytest.mark.parametrize("count, skeleton", [(133, COCO17), (136, HALPE26), (26, HALPE26)])
def test_whole_body_sets_begin_with_the_body(count, skeleton, tmp_path):
    points = np.random.default_rng(0).uniform(100, 900, (count, 3)) * (1, 1, .001)
    (tmp_path / "a.json").write_text(json.dumps([dict(image_id="000007.png", keypoints=points.ravel().tolist(), box=[0, 0, 1, 1], idx=0)]))
    one = read_detections(tmp_path / "a.json", SIZE)
    assert one.skeleton == skeleton and np.array_equal(one.pose_2d[0], points[:skeleton.num_joints, :2]) and one.frame.tolist() == [7]

def test_visibility_flags_and_confidences_over_one(tmp_path):
    detections.example(tmp_path, "coco")
    content = json.loads((tmp_path / "walk.json").read_text())
    for entry in content: entry["keypoints"][2::3] = [2] * 16 + [1]
    (tmp_path / "walk.json").write_text(json.dumps(content))
    assert read_detections(tmp_path / "walk.json", SIZE).confidence.min() == .5
    for entry in content: entry["keypoints"][2::3] = [1.02] * 17
    (tmp_path / "walk.json").write_text(json.dumps(content))
    assert read_detections(tmp_path / "walk.json", SIZE).confidence.max() == 1
    for entry in content: entry["keypoints"][2::3] = [13.7] * 17
    (tmp_path / "walk.json").write_text(json.dumps(content))
    assert "logits" in refused(read_detections, tmp_path / "walk.json", SIZE)

@pytest.mark.parametrize("name, number", [("cam01.0012.json", 12), ("video_000000000012_keypoints.json", 12), ("12.jpg", 12), ("S01/frame7.png", 7), ("clip2_0003", 3)])
def test_frame_numbers_in_names(name, number): assert frame_of_name(name.split("/")[-1]) == number

def test_a_name_without_number(): assert "no frame number" in refused(frame_of_name, "first.json")

# ---------- which joint set

@pytest.mark.parametrize("skeleton", [COCO17, H36M17, BODY25, BODY25B, MPII16, H36M16], ids=lambda s: s.name)
def test_the_joint_set_is_found_in_the_bones(skeleton):
    from poseprojects.camera import project, ring, world_to_camera
    from poseprojects.data.sources import example_people
    for k in range(3):
        world = torch.from_numpy(example_people(skeleton, 6, frame_rate=10., subjects=("x", "y"))[1].pose)
        pose = project(world_to_camera(world, ring(3)[k]), ring(3)[k]).numpy()
        sure = np.ones(pose.shape[:2])
        assert recognised(pose, sure, "x") == skeleton
        sure[:, [j for j, n in enumerate(skeleton.joints) if n.endswith(("ankle", "toe", "heel"))]] = 0 # cut off by the picture
        assert recognised(pose, sure, "x") == skeleton

def test_what_does_not_decide_is_refused():
    noise = np.random.default_rng(0).uniform(0, 1000, (40, 25, 2))
    assert "skeleton=" in refused(recognised, noise, np.ones((40, 25)), "f.json")
    assert "a person has 21 key points" in refused(recognised, noise[:, :21], np.ones((40, 21)), "f.json")

# ---------- tracks

def people(frames, starts, speed, seed=0):
    "Several people who walk straight on: (frame, points, who), by frame, in shuffled order."
    rng, shapes = np.random.default_rng(seed), np.random.default_rng(5).uniform(-1, 1, (len(starts), 17, 2)) * (40, 90)
    rows = [(t, np.array(s) + np.array(v) * t + shapes[k] + rng.normal(0, 1.5, (17, 2)), k) for t in range(frames) for k, (s, v) in enumerate(zip(starts, speed))]
    order = np.concatenate([t * len(starts) + rng.permutation(len(starts)) for t in range(frames)])
    frame, points, who = (np.array([rows[i][c] for i in order]) for c in range(3))
    return frame, points, who

def test_people_who_pass_each_other_keep_their_numbers():
    frame, points, who = people(60, [(100, 300), (800, 340), (450, 800)], [(10, 0), (-10, 0), (0, -3)])
    found = track(frame, points, np.ones((len(frame), 17)))
    assert len(set(zip(found.tolist(), who.tolist()))) == 3

@pytest.mark.parametrize("gone, persons", [(1, 1), (15, 1), (16, 2), (40, 2)])
def test_a_gap_is_bridged_up_to_its_length(gone, persons):
    frame, points, _ = people(80, [(500, 500)], [(0, 0)])
    keep = (frame < 20) | (frame >= 20 + gone)
    assert len(np.unique(track(frame[keep], points[keep], np.ones((keep.sum(), 17))))) == persons

def test_gaps_are_counted_in_the_step_of_the_video():
    frame, points, _ = people(40, [(500, 500)], [(0, 0)])
    keep = (frame < 10) | (frame >= 22)
    assert len(np.unique(track(5 * frame[keep], points[keep], np.ones((keep.sum(), 17)), step=5))) == 1
    assert len(np.unique(track(5 * frame[keep], points[keep], np.ones((keep.sum(), 17)), step=1))) == 2

def test_a_jump_across_the_picture_is_another_person():
    frame, points, _ = people(20, [(200, 300)], [(0, 0)])
    points[10:] += (600, 400)
    assert track(frame, points, np.ones((20, 17))).tolist() == [0] * 10 + [1] * 10

def test_similarity_by_hand():
    a = np.array([[[0., 0], [100, 100]]])
    box = np.array([[0., 0, 100, 100]])
    moved = a + (50, 0)
    there = (moved, np.ones((1, 2)), box + (50, 0, 50, 0))
    size = np.hypot(100, 100)
    expected = .5 * (1 / 3) + .5 * np.exp(-50 / (.2 * size))
    assert np.allclose(similarity((a, np.ones((1, 2)), box), there, np.array([1])), expected)
    assert np.allclose(similarity((a, np.array([[1., 0]]), box), (moved, np.array([[0., 1]]), there[2]), np.array([1])), 1 / 3) # no joint seen in both

def test_numbers_in_the_file_are_kept_only_when_they_can_be(tmp_path):
    detections.example(tmp_path, "alphapose")
    content = json.loads((tmp_path / "walk.json").read_text())
    assert all(e["idx"] == [0.] for e in content) # two people with one number: of no use
    assert len(read_detections(tmp_path / "walk.json", SIZE).persons) == 2
    own = read_detections(tmp_path / "walk.json", SIZE)
    swapped = copy.deepcopy(content)
    for k, e in enumerate(swapped): e["idx"] = 10 + k % 2 # wrong, but unambiguous
    (tmp_path / "walk.json").write_text(json.dumps(swapped))
    kept = read_detections(tmp_path / "walk.json", SIZE)
    assert len(kept.persons) == 2 and not np.array_equal(kept.pose_2d, own.pose_2d)

def test_time_grows_with_the_length():
    def seconds(frames):
        frame, points, _ = people(frames, [(300, 300), (700, 700)], [(.01, 0), (0, .01)])
        begin = time.process_time()
        track(frame, points, np.ones((len(frame), 17)))
        return time.process_time() - begin
    short, long = min(seconds(1500) for _ in range(2)), seconds(12000)
    assert long < 16 * short, (short, long) # eight times as long; squared it would be 64

def test_the_main_person_is_large_and_long():
    frame, points, who = people(30, [(200, 300), (700, 500)], [(0, 0), (0, 0)])
    points[who == 1] = (points[who == 1] - (700, 500)) * 1.5 + (700, 500)
    order = np.lexsort((frame, who))
    tracks = Tracks("v", "coco", COCO17, SIZE, frame[order], who[order], points[order], np.ones((60, 17)), np.arange(30))
    assert main_person(tracks) == 1
    assert main_person(tracks.rows((tracks.person == 0) | (tracks.frame < 5))) == 0

# ---------- gaps

def line(confidence, frames):
    "A person who moves one pixel per frame."
    frames = np.array(frames)
    points = np.tile(np.arange(17)[:, None] * (20., 30.), (len(frames), 1, 1)) + frames[:, None, None] * (1., 2.)
    return Tracks("v", "coco", COCO17, SIZE, frames, np.zeros(len(frames), int), points, confidence, np.arange(frames[-1] + 1))

def test_short_gaps_are_filled_on_a_straight_line():
    sure = np.full((8, 17), .8)
    sure[2:5, 3], sure[1, 4], sure[0, 5], sure[0, 4] = 0, 0, 0, .4
    filled = fill_gaps(line(sure, range(8)), 3)
    truth = line(np.ones((8, 17)), range(8)).pose_2d
    assert np.allclose(filled.pose_2d[2:5, 3], truth[2:5, 3]) and np.allclose(filled.confidence[2:5, 3], .4)
    assert filled.confidence[1, 4] == .2 and filled.confidence[0, 5] == 0 # half the smaller end; before the first sight there is nothing
    short = fill_gaps(line(sure, range(8)), 2)
    assert (short.confidence[2:5, 3] == 0).all() and short.confidence[1, 4] == .2

def test_frames_of_a_lost_person_are_put_in():
    tracks = line(np.full((5, 17), .6), [0, 1, 4, 5, 9])
    filled = fill_gaps(tracks, 2)
    assert filled.frame.tolist() == [0, 1, 2, 3, 4, 5, 9] and np.allclose(filled.confidence[2:4], .3)
    assert np.allclose(filled.pose_2d[2], line(np.ones((1, 17)), [2]).pose_2d[0])
    assert to_poseset(tracks, 30., max_gap=2).frame.tolist() == [0, 1, 2, 3, 4, 5, 9]

def test_poseset_options(tmp_path):
    detections.example(tmp_path, "coco")
    tracks = read_detections(tmp_path / "walk.json", SIZE)
    assert len(to_poseset(tracks, persons="main").sequence_names) == 1
    assert to_poseset(tracks, persons=[1]).sequence_names == ("walk/person1",)
    assert len(to_poseset(tracks, min_frames=9)) == 9
    assert "there is no person 7" in refused(to_poseset, tracks, persons=[7])
    assert "expected at least one" in refused(to_poseset, tracks, min_frames=100)
    assert to_poseset([tracks, tracks], 50.).camera_id.unique().tolist() == [0, 1]
    every_fifth = Tracks(**{**tracks.__dict__, "frame": tracks.frame * 5, "video": tracks.video * 5})
    assert to_poseset(every_fifth, 50.).frame_step == 5 and to_poseset(every_fifth, 50.).frame_rate == 10.

def test_a_conversion_that_cannot_be():
    tracks = line(np.ones((3, 17)), range(3))
    assert "coco17 cannot be converted to body25" in refused(tracks.converted, BODY25)

# ---------- writers

@pytest.mark.parametrize("layout", LAYOUTS)
def test_round_trips(layout, tmp_path):
    detections.example(tmp_path / "in", layout)
    tracks = read_detections(tmp_path / "in" / ("walk" if layout == "openpose" else "walk.json"), SIZE)
    seen = tracks.confidence > 0
    for path in (write_coco(tmp_path / "out.json", tracks), write_openpose(tmp_path / "walk", tracks)):
        again = read_detections(path, SIZE)
        for name in ("frame", "person", "confidence"): assert np.array_equal(getattr(again, name), getattr(tracks, name)), name
        assert np.array_equal(again.pose_2d[seen], tracks.pose_2d[seen]) and again.skeleton == tracks.skeleton
        assert (again.pose_2d[~seen] == 0).all()
    assert np.array_equal(again.video, tracks.video) # OpenPose keeps the empty frames

def test_writing_replaces_a_folder_whole(tmp_path):
    detections.example(tmp_path / "in", "openpose")
    tracks = read_detections(tmp_path / "in/walk", SIZE)
    write_openpose(tmp_path / "out", tracks)
    write_openpose(tmp_path / "out", tracks.rows(tracks.frame < 3))
    assert len(list((tmp_path / "out").iterdir())) == len(tracks.video)

# ---------- malformed

def broken(change):
    "An entry of a COCO list, changed."
    entry = dict(image_id=3, category_id=1, keypoints=[float(100 + 7 * k) if k % 3 < 2 else .9 for k in range(51)], score=.9)
    change(entry)
    return [entry]

ENTRIES = {
    "no key points": (lambda e: e.pop("keypoints"), "which is no layout"), "pairs": (lambda e: e.update(keypoints=[1.] * 34), "34 numbers, expected triplets"),
    "text": (lambda e: e.update(keypoints=["1"] * 51), "expected a list of numbers"), "NaN": (lambda e: e["keypoints"].__setitem__(4, float("nan")), "not finite"),
    "infinite": (lambda e: e["keypoints"].__setitem__(4, 1e400), "not finite"), "a number too long for a double": (lambda e: e["keypoints"].__setitem__(4, 10**400), "beyond all bounds"),
    "true": (lambda e: e["keypoints"].__setitem__(4, True), "expected a list of numbers"), "nested": (lambda e: e["keypoints"].__setitem__(4, [[1]]), "expected a list of numbers"),
    "normalised": (lambda e: e.update(keypoints=[.001 * k for k in range(51)]), "normalised"), "negative frame": (lambda e: e.update(image_id=-1), "whole number"),
    "half a frame": (lambda e: e.update(image_id=1.5), "whole number"), "huge frame": (lambda e: e.update(image_id=2**40), "whole number"), "no frame": (lambda e: e.update(image_id=None), "whole number"),
    "nameless frame": (lambda e: e.update(image_id="first.jpg"), "no frame number"), "nobody": (lambda e: e.update(keypoints=[0] * 51), "nobody was found"),
    "21 joints": (lambda e: e.update(keypoints=e["keypoints"][:51] + e["keypoints"][:12]), "21 key points"), "outside": (lambda e: e.update(keypoints=[k * 5000. if k % 3 < 2 else .9 for k in range(51)]), "outside of a picture")}

@pytest.mark.parametrize("change, telling", ENTRIES.values(), ids=ENTRIES)
def test_broken_entries(change, telling, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(broken(change)))
    text = refused(read_detections, tmp_path / "a.json", SIZE)
    assert telling in text and str(tmp_path / "a.json") in text or "first.jpg" in text

FILES = {"[]": "empty", "{}": "empty", "3": "no layout", "[1, 2]": "no layout", '{"people": 5}': "frame number", '{"instance_info": 4}': "expected a list", '{"instance_info": [{"frame_id": 1}]}': "instances",
         '{"instance_info": [{"frame_id": 1, "instances": [{"keypoints": [[1, 2]], "keypoint_scores": [1, 2]}]}]}': "expected (k, 2)", '{"instance_info": [{"frame_id": 1, "instances": [{"keypoints": [[1, 2], [3]], "keypoint_scores": [1, 2]}]}]}': "different lengths",
         '{"data": [{"frame_index": 1, "skeleton": [{"pose": [300, 400], "score": [1]}]}]}': "shares", '{"data": [{"frame_index": 1, "skeleton": [{"pose": [0.1], "score": [1]}]}]}': "twice as many", '{"data": {}}': "expected a list",
         "[{": "JSON", "": "JSON", '{"data": []}': "nobody", "[" * 100000: "JSON"}

@pytest.mark.parametrize("content, telling", FILES.items(), ids=lambda x: x[:30])
def test_broken_files(content, telling, tmp_path):
    (tmp_path / "a.json").write_text(content)
    assert telling in refused(read_detections, tmp_path / "a.json", SIZE)

def test_broken_folders(tmp_path):
    assert "no such file or folder" in refused(read_detections, tmp_path / "nothing", SIZE)
    (tmp_path / "a").mkdir()
    assert "no JSON files" in refused(read_detections, tmp_path / "a", SIZE)
    detections.example(tmp_path / "b", "openpose")
    (tmp_path / "b/walk/other_000000000003_keypoints.json").write_text('{"people": []}')
    assert "both frame 3" in refused(read_detections, tmp_path / "b/walk", SIZE)
    (tmp_path / "b/walk/other_000000000003_keypoints.json").rename(tmp_path / "b/walk/x99.json")
    (tmp_path / "b/walk/x99.json").write_text("[]")
    assert "OpenPose frame" in refused(read_detections, tmp_path / "b/walk", SIZE)
    assert "expected one file for the layout" in refused(read_detections, tmp_path / "b/walk", SIZE, "coco")

def test_too_many_people_and_mixed_sets(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(broken(lambda e: None) * 300))
    assert "300 persons in one frame" in refused(read_detections, tmp_path / "a.json", SIZE)
    (tmp_path / "a.json").write_text(json.dumps(broken(lambda e: None) + broken(lambda e: e.update(keypoints=e["keypoints"] + [1.] * 3))))
    assert "17 and 18 key points" in refused(read_detections, tmp_path / "a.json", SIZE)

@pytest.mark.parametrize("change, telling", [({"data_root": "/no/such/place"}, "there is no such folder"), ({"split": "train"}, "split 'train'"), ({"input_2d": "gt"}, "expected 'detected'"), ({"skeleton": "x"}, "skeleton 'x'"),
                                             ({"persons": "some"}, "persons = 'some'"), ({"image_size": (0, 5)}, "no size"), ({"image_size": "big"}, "no size"), ({"image_size": (100, 100)}, "outside"), ({"layout": "kinetics"}, "layout = 'kinetics'"), ({"frame_rate": -1}, "frame_rate")])
def test_wrong_arguments(change, telling, tmp_path):
    detections.example(tmp_path, "coco")
    assert telling in refused(detections.load, **({"data_root": tmp_path} | change))

def test_no_size_is_refused_not_guessed(tmp_path):
    detections.example(tmp_path, "coco")
    (tmp_path / "video.json").unlink()
    assert "image_size" in refused(detections.load, "all", tmp_path)
    assert len(detections.load("all", tmp_path, image_size=[1000, 1000], frame_rate=25))

@pytest.mark.parametrize("layout", LAYOUTS)
def test_fuzzed_files_end_in_a_set_or_a_sentence(layout, tmp_path):
    detections.example(tmp_path, layout)
    path = tmp_path / ("walk/walk_000000000002_keypoints.json" if layout == "openpose" else "walk.json")
    content, rng, refusals = path.read_bytes(), np.random.default_rng(3), 0
    odd = [b"NaN", b"1e999", b"-7", b"[]", b"{}", b"null", b'"x"', b"true", b"[[1]]", b"99999999999999999999", b"0", b"3.5e5"]
    for k in range(60):
        if k % 3 == 0: spoilt = content[:rng.integers(len(content))]
        elif k % 3 == 1:
            place = rng.integers(len(content) - 8)
            spoilt = content[:place] + bytes(rng.integers(32, 127, 3).astype(np.uint8)) + content[place + 3:]
        else:
            starts = [i for i, c in enumerate(content) if c in b":[,"]
            place = starts[rng.integers(len(starts))] + 1
            spoilt = content[:place] + odd[rng.integers(len(odd))] + b"," * bool(rng.integers(2)) + content[place:]
        path.write_bytes(spoilt)
        try: to_poseset(read_detections(path.parent if layout == "openpose" else path, SIZE))
        except InputError as error:
            refusals += 1
            assert "\n" not in str(error)
    assert refusals > 20

# ---------- real files

def test_the_real_openpose_files_are_body_25b():
    root = real_data("pose2sim")
    counts = []
    for camera, (width, height) in (("cam01", (1088, 1920)), ("cam04", (1088, 1920))):
        tracks = read_detections(root / f"pose/{camera}_json", (width, height))
        assert tracks.skeleton == BODY25B and len(tracks.video) == 100
        assert misfit(tracks.pose_2d, tracks.confidence, BODY25B) < .5 * misfit(tracks.pose_2d, tracks.confidence, BODY25)
        main = tracks.of(main_person(tracks))
        counts.append((len(tracks), len(main)))
        at = lambda joint: np.median(main.pose_2d[:, BODY25B.index(joint), 1][main.confidence[:, BODY25B.index(joint)] > 0])
        assert at("head_top") < at("nose") < at("upper_neck") < at("left_hip") < at("left_knee") < at("left_heel")
        coco = Tracks(**{**main.__dict__, "pose_2d": main.pose_2d[:, :17], "confidence": main.confidence[:, :17], "skeleton": COCO17})
        assert recognised(coco.pose_2d, coco.confidence, "x") == COCO17 # its first 17 are COCO's
    assert counts == [(201, 100), (100, 100)]
