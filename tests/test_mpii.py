"MPII: the nested release and the plain array, what its slots really are, splits."
import numpy as np
import pytest
import torch
from conftest import real_data, refused
from poseprojects.data import mpii
from poseprojects.data.mpii import ARRAY_SLOTS, SPLITS, read_array, read_release, split_rows
from poseprojects.data.base import clips
from poseprojects.data.sources import is_unknown
from poseprojects.skeleton import H36M17, MPII16, convert
from poseprojects.storage import InputError

pytestmark = pytest.mark.usefixtures("fresh_cache")

@pytest.fixture(scope="module")
def array():
    return real_data("mpii") / "mpii_poses.npy"

def equal(found, expected):
    for name, tensor in expected.tensors().items(): assert torch.allclose(found.tensors()[name].double(), tensor.double(), rtol=1e-6, atol=1e-4), name
    for name in ("skeleton", "subject_names", "action_names", "sequence_names", "frame_rate", "input_2d", "name"): assert getattr(found, name) == getattr(expected, name), name

# ---------- both layouts

@pytest.mark.parametrize("layout", ["release", "array"])
def test_example_is_read_to_the_same_sets(layout, tmp_path):
    for split, expected in mpii.example(tmp_path, layout).items():
        found = mpii.load(split, tmp_path)
        equal(found, expected)
        assert found.pose_3d is None and is_unknown(found.cameras) and found.settings["layout"] == layout and found.skeleton == H36M17
        assert mpii.load(split, tmp_path).fingerprint == found.fingerprint
        assert len(clips(found)) == len(found) # no window of frames runs over two photographs
    assert mpii.load("all", tmp_path, "cpn-like").input_2d == "cpn-like"

@pytest.mark.parametrize("layout", ["release", "array"])
def test_joints_go_by_name(layout, tmp_path):
    mpii.example(tmp_path, layout)
    own, human = mpii.load("all", tmp_path, skeleton="mpii16"), mpii.load("all", tmp_path)
    assert own.skeleton == MPII16
    at = lambda poses, joint: poses.pose_2d[:, poses.skeleton.index(joint)]
    assert torch.allclose(human.pose_2d, convert(own.pose_2d, MPII16, H36M17), atol=1e-3)
    assert torch.equal(at(human, "head"), at(own, "head_top")) and torch.allclose(at(human, "neck_nose"), (at(own, "upper_neck") + at(own, "head_top")) / 2, atol=1e-3)
    assert torch.allclose(at(human, "spine"), (at(own, "pelvis") + (at(own, "left_shoulder") + at(own, "right_shoulder")) / 2) / 2, atol=30)

def test_release_wins_and_layout_chooses(tmp_path):
    mpii.example(tmp_path, "array"); mpii.example(tmp_path, "release")
    assert mpii.load("all", tmp_path).settings["layout"] == "release" and mpii.load("all", tmp_path, layout="array").settings["layout"] == "array"

# ---------- the release

def test_visibility_actions_and_people(tmp_path):
    mpii.example(tmp_path, "release")
    people = read_release(tmp_path / "mpii_human_pose_v1_u12_1.mat")
    assert (people.confidence[:, [2, 3]] == .5).all() and (np.delete(people.confidence, [2, 3], 1) == 1).all()
    assert set(people.action) == {"walking", "sports"} and people.names[1:3] == ("000000001.jpg/person0", "000000001.jpg/person1")
    everybody = read_release(tmp_path / "mpii_human_pose_v1_u12_1.mat", min_joints=1)
    cut = np.flatnonzero((everybody.confidence > 0).sum(1) == 1)
    assert len(cut) == 5 and everybody.pose_2d[cut[0], 9].tolist() == [10., 20.]
    poses = mpii.to_poseset(everybody, "mpii16", name="x")
    assert torch.allclose(poses.pose_2d[int(cut[0])], torch.tensor([10., 20.]).expand(16, 2)) and float(poses.confidence[int(cut[0])].sum()) == 1

def save(path, release):
    from scipy.io import savemat
    savemat(path, {"RELEASE": release} if not isinstance(release, dict) or "RELEASE" not in release else release)
    return path

def one_image(**point):
    "A release of one person in one image whose last joint is changed."
    points = [dict(x=10. + j, y=20. + 5 * j, id=float(j), is_visible=1.) for j in range(16)]
    points[15] |= point
    rect = dict(annopoints=mpii._struct([dict(point=mpii._struct(points))]))
    return dict(annolist=mpii._struct([dict(image=mpii._struct([dict(name="a.jpg")]), annorect=mpii._struct([rect]))]))

RELEASES = {"NaN": (one_image(x=np.nan), "'x'"), "two numbers": (one_image(x=np.array([1., 2.])), "'x'"), "text": (one_image(y="far"), "'y'"), "far away": (one_image(y=1e7), "expected pixels"), "id 16": (one_image(id=16.), "'id': found 16"), "half an id": (one_image(id=1.5), "'id'"),
            "id twice": (one_image(id=3.), "found 3 twice"), "visibility 7": (one_image(is_visible=7.), "'is_visible'"), "visibility in words": (one_image(is_visible="maybe"), "'is_visible'"), "no RELEASE": ({"RELEASE": 5.}, "RELEASE"), "no annolist": (dict(version="12"), "annolist"),
            "no name": (dict(annolist=mpii._struct([dict(image=mpii._struct([dict(number=3.)]))])), "name"), "nobody": (dict(annolist=mpii._struct([dict(image=mpii._struct([dict(name="a.jpg")]))])), "none of 1 images"), "points are numbers": (dict(annolist=mpii._struct([dict(image=mpii._struct([dict(name="a.jpg")]), annorect=np.ones((2, 2)))])), "annorect(1)")}

@pytest.mark.parametrize("release, telling", RELEASES.values(), ids=RELEASES)
def test_broken_releases(release, telling, tmp_path):
    path = save(tmp_path / "mpii_human_pose_v1_u12_1.mat", release)
    text = refused(read_release, path)
    assert telling in text and str(path) in text

def test_one_person_and_cut_files(tmp_path):
    path = save(tmp_path / "mpii_human_pose_v1_u12_1.mat", one_image())
    assert len(read_release(path)) == 1 and mpii.load("all", tmp_path).pose_2d.shape == (1, 17, 2)
    content = path.read_bytes()
    for length in range(0, len(content), max(1, len(content) // 25)):
        path.write_bytes(content[:length])
        refused(read_release, path)

def test_fuzzed_release_ends_in_people_or_a_sentence(tmp_path):
    path = save(tmp_path / "mpii_human_pose_v1_u12_1.mat", one_image())
    content, rng, refusals = bytearray(path.read_bytes()), np.random.default_rng(0), 0
    for _ in range(150):
        spoilt = content.copy()
        for place in rng.integers(128, len(content), 4): spoilt[place] = rng.integers(256)
        path.write_bytes(spoilt)
        try: read_release(path)
        except InputError as error:
            refusals += 1
            assert "\n" not in str(error)
    assert refusals > 30

# ---------- the array

def write(path, values):
    np.save(path, values)
    return path

@pytest.mark.parametrize("change, telling", [(lambda a: a[:, :33], "shape (20, 33)"), (lambda a: a[:0], "shape (0, 34)"), (lambda a: a.reshape(-1, 17, 2), "shape (20, 17, 2)"), (lambda a: np.where(a == a[3, 3], np.nan, a), "not finite"), (lambda a: a / 1000, "normalised"),
                                             (lambda a: a * 1e9, "beyond 1e5"), (lambda a: a[:, ::-1], "slot"), (lambda a: np.roll(a, 2, 1), "slot 9"), (lambda a: a + 0j, "complex"), (lambda a: a.astype("U8"), "expected numbers")],
                         ids=["33 columns", "empty", "17 by 2", "NaN", "normalised", "huge", "reversed", "rolled", "complex", "text"])
def test_broken_arrays(change, telling, tmp_path):
    mpii.example(tmp_path, "array")
    path = write(tmp_path / "b.npy", change(np.load(tmp_path / "mpii_poses.npy")))
    text = refused(read_array, path)
    assert telling in text and str(path) in text

def test_human36m_in_the_array_is_refused(tmp_path):
    "Its spine lies half-way up the back, and not between the shoulders."
    mpii.example(tmp_path, "array")
    values = np.load(tmp_path / "mpii_poses.npy").reshape(-1, 17, 2)
    values[:, 7] = (values[:, 0] + values[:, 8]) / 2
    assert "slot 7" in refused(read_array, write(tmp_path / "b.npy", values.reshape(-1, 34)))
    values[:, 9] += 3
    assert "slot 9" in refused(read_array, write(tmp_path / "b.npy", values.reshape(-1, 34)))

def test_cut_array(tmp_path):
    mpii.example(tmp_path, "array")
    path = tmp_path / "mpii_poses.npy"
    path.write_bytes(path.read_bytes()[:-100])
    refused(mpii.load, "all", tmp_path)

# ---------- splits

def test_kudos_split_by_row(tmp_path):
    mpii.example(tmp_path, "array")
    people = read_array(tmp_path / "mpii_poses.npy")
    order = np.random.RandomState(100).permutation(20)
    assert split_rows(people, "train").tolist() == sorted(order[:18]) and split_rows(people, "test").tolist() == sorted(order[18:]) and split_rows(people, "all").tolist() == list(range(20))
    assert "mpii_image_name.txt" in refused(split_rows, people, "train", "image")

def test_split_by_image_keeps_images_whole(tmp_path):
    mpii.example(tmp_path, "array")
    (tmp_path / "mpii_image_name.txt").write_text("\n".join(f"{k // 2:09d}.jpg" for k in range(20)))
    train, test = mpii.load("train", tmp_path), mpii.load("test", tmp_path)
    images = lambda poses: {name.split("/")[0] for name in poses.sequence_names}
    assert not images(train) & images(test) and len(train) == 18 and len(test) == 2 and len(images(test)) == 1
    assert mpii.load("test", tmp_path, split_by="row").sequence_names != test.sequence_names
    assert {name.split("/")[1] for name in test.sequence_names} == {"person0", "person1"}
    (tmp_path / "mpii_image_name.txt").write_text("a.jpg\n")
    assert "1 names for 20 rows" in refused(mpii.load, "train", tmp_path)

def test_a_small_body_gets_the_usual_size(tmp_path):
    mpii.example(tmp_path, "array")
    values = np.load(tmp_path / "mpii_poses.npy")
    values[3] *= 2
    poses = mpii.to_poseset(read_array(write(tmp_path / "b.npy", values)), name="x")
    assert poses.camera_id.tolist() == [0] * 3 + [1] + [0] * 16 and poses.cameras.resolution.tolist() == [[1280, 720], [1920, 1080]]

@pytest.mark.parametrize("change, telling", [({"data_root": "/no/such/place"}, "README.md says where"), ({"split": "val"}, "split 'val'"), ({"input_2d": "sh"}, "2D input 'sh'"), ({"layout": "csv"}, "layout 'csv'"), ({"skeleton": "coco17"}, "skeleton 'coco17'"), ({"split_by": "person"}, "split_by = 'person'"), ({"layout": "release"}, "mpii_human_pose")])
def test_wrong_arguments(change, telling, tmp_path):
    mpii.example(tmp_path, "array")
    assert telling in refused(mpii.load, **({"data_root": tmp_path} | change))

# ---------- the real array

def test_what_the_slots_of_the_real_array_are(array):
    points = np.load(array).reshape(-1, 17, 2).astype(float)
    assert len(points) == 19919 and len(np.unique(points.reshape(-1, 34), axis=0)) == 19919
    middle = lambda a, b: (points[:, a] + points[:, b]) / 2
    assert np.abs(points[:, 9] - middle(8, 10)).max() < 1e-3
    assert (np.abs(points[:, 0] - middle(1, 4)).max(-1) <= .5).mean() > .99 and (np.abs(points[:, 7] - middle(11, 14)).max(-1) <= .5).mean() > .99
    trunk = np.linalg.norm(points[:, 8] - points[:, 0], axis=-1)
    assert np.median(np.linalg.norm(points[:, 7] - points[:, 8], axis=-1) / trunk) < .25 < .7 < np.median(np.linalg.norm(points[:, 7] - points[:, 0], axis=-1) / trunk) # slot 7 is no spine
    height = np.ptp(points[..., 1], axis=1)
    assert [round(v) for v in (np.median(height), *np.percentile(height, (1, 99)))] == [376, 112, 933]
    assert ((points < 0).any((1, 2)).sum(), round((points[:, 14, 0] < points[:, 11, 0]).mean(), 2)) == (172, .71) and points.min() >= -24

def test_the_real_sets(array):
    parts = {split: mpii.load(split) for split in (*SPLITS, "all")}
    assert [len(p) for p in parts.values()] == [17927, 1992, 19919] and not set(parts["train"].sequence_names) & set(parts["test"].sequence_names)
    every = parts["all"]
    raw = torch.from_numpy(np.load(array)).reshape(-1, 17, 2)
    for slot, joint in enumerate(ARRAY_SLOTS):
        if joint in H36M17.joints: assert torch.allclose(every.pose_2d[:, H36M17.index(joint)], raw[:, slot], atol=1e-3)
    assert torch.allclose(every.pose_2d[:, H36M17.index("head")], raw[:, 10]) and torch.allclose(every.pose_2d[:, H36M17.index("neck_nose")], raw[:, 9], atol=1e-2)
    assert float((every.pose_2d[:, H36M17.index("spine")] - raw[:, 7]).norm(dim=-1).median()) > 40 # the slot of the spine holds something else
    assert bool((every.confidence == 1).all()) and every.frame.tolist() == list(range(19919))
