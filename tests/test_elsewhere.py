"""People in other joints: a method of Human3.6M on files of MPI-INF-3DHP and 3DPW, with numbers that are computed a second time by hand; and the commands on the pages."""
import ast
import json
import re
from dataclasses import replace
from importlib import import_module

import h5py
import pytest
import torch
from conftest import refused

from poseprojects.data import h36m, hdm05, mpi_inf_3dhp, pw3d
from poseprojects.data.base import in_skeleton
from poseprojects.data.safe import load_pickle
from poseprojects.experiment import Experiment, joints_there
from poseprojects.papers import chen, kudo, lcn, martinez, mlp, poseaug, semgcn, stgcn, videopose
from poseprojects.protocol import MPI3DHP, POSEAUG_3DHP
from poseprojects.results.grid import parameters_of
from poseprojects.results.records import identity, read_all
from poseprojects.skeleton import H36M16, H36M17, SMPL24
from poseprojects.storage import InputError, project_root
from poseprojects.train.engine import Batch
from poseprojects.train.evaluation import NearestPose, evaluate

OTHERS = "mpi_inf_3dhp,pw3d"
# rows of the test files' 17 joints and of SMPL's 24 in the order of the sixteen joints, written out by hand; SMPL's head is 2 x row 15 - row 12
ROWS_3DHP = [14, 8, 9, 10, 11, 12, 13, 15, 1, 0, 5, 6, 7, 2, 3, 4]
ROWS_SMPL = [0, 2, 5, 8, 1, 4, 7, 6, 12, 15, 16, 18, 20, 17, 19, 21]
SIDES = [0, 4, 5, 6, 1, 2, 3, 7, 8, 9, 13, 14, 15, 10, 11, 12] # the sixteen joints in a mirror


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "Made-up people in the owners' layouts, a folder for each set."
    folder = tmp_path_factory.mktemp("data")
    for module in (h36m, mpi_inf_3dhp, pw3d): module.example(folder / module.__name__.rsplit(".", 1)[-1])
    return folder


@pytest.fixture
def places(tmp_path, monkeypatch):
    "Records, runs and caches of this test alone; not a notebook's test, in which nothing is kept."
    for name in ("RESULTS", "RUNS", "CACHE"): monkeypatch.setenv(f"POSEPROJECTS_{name}", str(tmp_path / name.lower()))
    monkeypatch.delenv("IN_TEST", raising=False)
    monkeypatch.setitem(mlp.VARIANTS, "tiny", replace(mlp.VARIANTS["poseaug"], width=16))
    return tmp_path


def made(paper, files, **parameters):
    return Experiment(paper, dict(dataset="h36m", data_root=str(files / "h36m"), plan="quick", epochs=1, gpus=0, also_test=OTHERS) | parameters)


def ran(paper, files, **parameters):
    "One step, then the other sets."
    run = made(paper, files, batch_size=480, **parameters)
    run.load(); run.build(); run.fit(); run.evaluate()
    return run, run.across()


def lifted(run, pixels, width, height):
    "What the network makes of sixteen joints in one image: metres, relative to the pelvis."
    seen = torch.tensor([[2 * x / width - 1, (2 * y - height) / width] for x, y in pixels], dtype=torch.float32)
    with torch.no_grad(): pose = run.method.eval().network(seen[None])[0].double()
    return pose - pose[0]


def errors_3dhp(run, files, annotation, flip):
    "Distance of each joint in mm, frame by frame, from the arrays of the files."
    found = []
    for k in range(1, 7):
        with h5py.File(files / f"mpi_inf_3dhp/mpi_inf_3dhp_test_set/TS{k}/annot_data.mat") as file:
            pixels, truth, valid = (torch.from_numpy(file[name][()]).double() for name in ("annot2", annotation, "valid_frame")) # HDF5 turns the axes round: (n, 1, 17, d)
        width, height = (1920, 1080) if k > 4 else (2048, 2048)
        for frame in range(len(pixels)):
            if not valid.flatten()[frame]: continue
            px, body = pixels[frame, 0, ROWS_3DHP].tolist(), truth[frame, 0, ROWS_3DHP]
            pose = lifted(run, px, width, height)
            if flip:
                other = lifted(run, [(width - px[j][0], px[j][1]) for j in SIDES], width, height)[SIDES] * torch.tensor([-1., 1., 1.])
                pose = (pose + other) / 2
            found.append((1000 * pose - (body - body[0])).square().sum(1).sqrt())
    return torch.stack(found)


# ---------- right numbers

def test_a_lifter_of_human36m_on_both_sets(places, files):
    run, across = ran(mlp, files, variant="tiny")
    assert run.history.steps == 1 and set(across) == set(run.simple) == {"mpi_inf_3dhp", "pw3d"}
    errors = errors_3dhp(run, files, "annot3", flip=False)
    found = across["mpi_inf_3dhp"]
    assert found["poses"] == len(errors) == 60 and len(found["per_joint"]) == 16
    assert found["mpjpe"] == pytest.approx(float(errors.mean()), rel=1e-5)
    assert found["pck150"] == pytest.approx(100 * float((errors < 150).double().mean()), abs=1e-6)
    assert found["per_joint"]["head"] == pytest.approx(float(errors[:, 9].mean()), rel=1e-5) and found["per_joint"]["thorax"] == pytest.approx(float(errors[:, 8].mean()), rel=1e-5)
    content, = (load_pickle(path) for path in (files / "pw3d/sequenceFiles/test").glob("*.pkl"))
    errors = []
    for joints, valid in zip(content["jointPositions"], content["campose_valid"]):
        for frame in valid.nonzero()[0]:
            world = torch.tensor(joints[frame]).reshape(24, 3).double()
            body = world[ROWS_SMPL]
            body[9] = 2 * world[15] - world[12]
            camera = torch.tensor(content["cam_poses"][frame]).double()
            body = body @ camera[:3, :3].T + camera[:3, 3]
            px = [((content["cam_intrinsics"] @ (p / p[2]).numpy())[:2]).tolist() for p in body]
            errors.append((1000 * (lifted(run, px, 1080, 1920) - (body - body[0]))).norm(dim=1))
    assert across["pw3d"]["poses"] == len(errors) == 15 and across["pw3d"]["mpjpe"] == pytest.approx(float(torch.stack(errors).mean()), rel=1e-4)


@pytest.mark.parametrize("trained", ["gt", "cpn"])
def test_poseaug_has_a_protocol_of_its_own_for_3dhp(places, files, trained):
    "The other annotation, flips, true 2D whatever was trained on."
    monkeyed = poseaug.baseline(poseaug.VARIANTS["mlp"])
    monkeyed.VARIANTS = {name: replace(options, width=16) for name, options in monkeyed.VARIANTS.items()}
    run, across = ran(monkeyed, files, input_2d=trained)
    errors = errors_3dhp(run, files, "univ_annot3", flip=True)
    assert across["mpi_inf_3dhp"]["mpjpe"] == pytest.approx(float(errors.mean()), rel=1e-4)
    protocol, = run.elsewhere["mpi_inf_3dhp"].protocols
    assert (protocol.id, protocol.skeleton, protocol.flip_tta, protocol.input_2d) == (POSEAUG_3DHP.id, "h36m16", True, "gt")
    for words in ("2D input gt whatever was trained on", "annotation univ_annot3", "joints by name from mpi3dhp17: thorax = neck, head = head_top"): assert words in str(protocol)


def test_all_of_poseaug_is_scored_there(places, files, monkeypatch):
    monkeypatch.setitem(poseaug.VARIANTS, "tiny", replace(poseaug.VARIANTS["mlp"], lifter_options=("width=16",), warmup=0, pool=64))
    run, across = ran(poseaug, files, variant="tiny")
    assert across["mpi_inf_3dhp"]["poses"] == 60 and across["pw3d"]["poses"] == 15 and len(across["mpi_inf_3dhp"]["per_joint"]) == 16
    release = made(poseaug, files, variant="mlp", fidelity="release")
    assert [p.id for p in release.elsewhere["mpi_inf_3dhp"].protocols] == ["poseaug-3dhp", "poseaug-3dhp-best-on-test"]
    protocol, = run.elsewhere["pw3d"].protocols
    assert protocol.id == "poseaug-3dpw" and protocol.headline == "pa_mpjpe" and "picture square" in str(protocol) and "unverified" in str(protocol)
    assert run.there["pw3d"].cameras.resolution.tolist() == [[1920, 1920]]


def test_packed_files_serve_as_well(places, files, tmp_path):
    "SPIN's file has the sixteen joints only."
    mpi_inf_3dhp.example(tmp_path / "data/mpi_inf_3dhp", "spin")
    (tmp_path / "data/h36m").symlink_to(files / "h36m")
    monkeyed = poseaug.baseline(poseaug.VARIANTS["mlp"])
    monkeyed.VARIANTS = {name: replace(options, width=16) for name, options in monkeyed.VARIANTS.items()}
    run, across = ran(monkeyed, tmp_path / "data", also_test="mpi_inf_3dhp")
    assert run.there["mpi_inf_3dhp"].settings["layout"] == "spin" and across["mpi_inf_3dhp"]["poses"] == 72 # all frames of the example, also those that are not valid in the other layout
    seventeen = made(mlp, tmp_path / "data", variant="17-joints", also_test="mpi_inf_3dhp")
    with pytest.raises(InputError, match="have no joint 'neck_nose'"): seventeen.load() # before anything is trained


def test_human36m_in_sixteen_joints(places, files, tmp_path):
    "Files as PoseAug prepares them have no neck/nose; then the other sets are laid out in sixteen rows, and one with seventeen joints loses that one."
    every = in_skeleton(h36m.load("all", files / "h36m"), H36M16)
    h36m.write_videopose3d(every, tmp_path / "data/h36m")
    for name in OTHERS.split(","): (tmp_path / "data" / name).symlink_to(files / name)
    sixteen, across = ran(mlp, tmp_path / "data", variant="tiny")
    assert sixteen.train.skeleton == H36M16 and sixteen.there["pw3d"].absent == () and sixteen.there["pw3d"].skeleton == H36M16
    errors = errors_3dhp(sixteen, files, "annot3", flip=False)
    assert across["mpi_inf_3dhp"]["mpjpe"] == pytest.approx(float(errors.mean()), rel=1e-5)


def test_a_run_says_how_it_is_scored_elsewhere(places, files):
    text = str(made(mlp, files, variant="tiny"))
    assert "on pw3d: pw3d-h36m16 [pa_mpjpe]" in text and "on mpi_inf_3dhp: mpi3dhp-h36m16 [pck150]" in text


# ---------- joints that are not there

def sixteen_of(test): return in_skeleton(in_skeleton(test, H36M16), H36M17)


@pytest.mark.parametrize("paper, variant", [(mlp, "poseaug"), (semgcn, "poseaug"), (stgcn, "poseaug"), (videopose, "poseaug"), (martinez, "paper"), (martinez, "14-joints"),
                                            (kudo, "15-joints"), (chen, "16-joints"), (chen, "short-15-joints"), (poseaug, "mlp")])
def test_a_joint_that_is_not_read_may_be_anything(places, files, paper, variant):
    "What a method says that it reads is all that it reads."
    run = made(paper, files, variant=variant)
    train, test = run.load()
    method, sixteen = run.build().eval(), sixteen_of(test)
    assert sixteen.absent == ("neck_nose",) and run.elsewhere["pw3d"].skeleton == "h36m16"
    with torch.no_grad(): whole, partly = (method.predict(Batch(poses, torch.arange(0, 40, 8), window=getattr(method, "window", 1))) for poses in (test, sixteen))
    rows = list(H36M17.indices(H36M16.joints))
    whole, partly = (answer[0] if isinstance(answer, tuple) else answer for answer in (whole, partly))
    assert torch.equal(whole[..., rows, :], partly[..., rows, :])


def test_a_method_that_looks_at_it_cannot_be_scored(places, files):
    run = made(mlp, files, variant="17-joints", also_test="mpi_inf_3dhp")
    run.load(); run.build()
    assert run.elsewhere["mpi_inf_3dhp"].skeleton == "h36m17" and run.there["mpi_inf_3dhp"].absent == ()
    with pytest.raises(InputError, match="not finite"): evaluate(run.method, sixteen_of(run.test), run.protocols[0].but("sixteen", skeleton="h36m16"))


def test_nearest_pose_compares_the_joints_that_both_have(places, files):
    run = made(chen, files, variant="16-joints")
    test, train = run.load()[1], run.loaded # with the 3D that the method is not given
    nearest, index = NearestPose(train), torch.arange(0, 60, 7)
    found = nearest.predict(Batch(sixteen_of(test), index))[:, 0]
    scaled = lambda px: (px - px[:, :1]) / (px - px[:, :1]).norm(dim=-1).mean(1)[:, None, None]
    rows = list(H36M17.indices(H36M16.joints))
    seen, known = scaled(test.pose_2d[index][:, rows]), scaled(train.pose_2d[:, rows])
    best = [int((known - pose).square().sum((1, 2)).argmin()) for pose in seen]
    assert torch.equal(found, Batch(train, torch.tensor(best)).target)
    assert run.trivial(run.there["pw3d"], "pw3d")["nearest pose"]["mpjpe"] > 0


def test_rows_of_another_joint_set(places, files):
    test = pw3d.load("test", files / "pw3d", skeleton="h36m16")
    wide = in_skeleton(test, H36M17)
    assert wide.absent == ("neck_nose",) and in_skeleton(wide, H36M17) is wide and test.absent == () and torch.equal(in_skeleton(wide, H36M16).pose_3d, test.pose_3d)
    assert wide.pose_3d[:, 9].isnan().all() and wide.pose_2d[:, 9].isnan().all() and not wide.confidence[:, 9].any() and wide.fingerprint != test.fingerprint
    assert torch.equal(wide.pose_3d[:, 10], test.pose_3d[:, 9]) and torch.equal(wide.frame, test.frame)
    assert in_skeleton(test.select(torch.arange(0)), H36M17).absent == () # of no sample nothing is missing
    assert "pelvis" in refused(in_skeleton, replace(test, skeleton=H36M16.sub(H36M16.joints[1:], "limbs"), pose_2d=test.pose_2d[:, 1:], pose_3d=test.pose_3d[:, 1:], confidence=test.confidence[:, 1:]), H36M17)


def test_the_smallest_joint_set_that_will_do():
    offered = ("h36m17", "h36m16")
    assert joints_there(offered, H36M16.joints, "h36m17") == "h36m16" and joints_there(offered, H36M17.joints, "h36m17") == "h36m17"
    assert joints_there(("h36m16",), H36M17.joints, "h36m17") == "" and joints_there(offered, H36M16.joints, "smpl24") == "" and joints_there((), H36M16.joints, "h36m17") == ""


# ---------- refused before any data is read

@pytest.mark.parametrize("paper, given, sentence", [
    (lcn, dict(also_test="pw3d"), "lcn with variant .* reads neck_nose, which pw3d does not have; leave pw3d out, or choose a variant that reads the joints of h36m16 only"),
    (mlp, dict(variant="17-joints", also_test=OTHERS), "mlp with variant '17-joints' reads neck_nose, which pw3d does not have"),
    (kudo, dict(variant="paper", also_test="pw3d"), "reads neck_nose"),
    (mlp, dict(variant="poseaug", also_test="humaneva"), "humaneva comes in the joints of humaneva15, but h36m and what is trained on it in those of h36m17; leave humaneva out"),
    (mlp, dict(dataset="humaneva", also_test="pw3d"), "pw3d comes in the joints of smpl24, but humaneva"),
    (mlp, dict(also_test="mpii"), "mpii has no 3D poses"), (mlp, dict(input_2d="openpose", also_test="pw3d"), "2D input 'openpose' is not known")])
def test_what_cannot_be_scored_is_refused_at_once(places, monkeypatch, paper, given, sentence):
    for module in (h36m, mpi_inf_3dhp, pw3d): monkeypatch.setattr(module, "load", lambda *a, **k: pytest.fail("data was read"))
    with pytest.raises(InputError, match=sentence) as caught: Experiment(paper, dict(dataset="h36m", gpus=0) | given)
    assert "\n" not in str(caught.value)


def test_a_protocol_refuses_another_input(places, files):
    run = made(mlp, files, variant="tiny", also_test="mpi_inf_3dhp", input_2d="cpn-like")
    run.load(); run.build()
    assert run.there["mpi_inf_3dhp"].input_2d == "cpn-like"
    with pytest.raises(InputError, match="scores 2D input 'gt' only, but .* has 'cpn-like'"): evaluate(run.method, run.there["mpi_inf_3dhp"], POSEAUG_3DHP)


# ---------- 2D input, protocols, records

@pytest.mark.parametrize("paper, variant, trained, wanted", [
    (mlp, "poseaug", "gt", {"mpi_inf_3dhp": "gt", "pw3d": "gt", "hdm05": "gt"}), (mlp, "poseaug", "cpn-like", dict.fromkeys(("mpi_inf_3dhp", "pw3d", "hdm05"), "cpn-like")),
    (mlp, "poseaug", "cpn", dict.fromkeys(("mpi_inf_3dhp", "pw3d", "hdm05"), "gt")), (poseaug, "mlp", "cpn-like", {"mpi_inf_3dhp": "gt", "pw3d": "gt", "hdm05": "cpn-like"})])
def test_the_2d_of_the_other_set(places, paper, variant, trained, wanted):
    run = Experiment(paper, dict(dataset="h36m", variant=variant, input_2d=trained, gpus=0, also_test="mpi_inf_3dhp,pw3d,hdm05"))
    assert {name: how.input_2d for name, how in run.elsewhere.items()} == wanted
    for name, how in run.elsewhere.items():
        prescribed = bool(how.protocols[0].input_2d)
        for protocol in (how.protocol, *how.protocols):
            assert ("for there is no cpn here" in str(protocol)) == (trained == "cpn" and not prescribed)
            assert ("joints by name from" in str(protocol)) == (name != "hdm05")
    if trained == "cpn-like" and wanted["pw3d"] == trained: assert "2D of the detector model cpn-like" in str(run.elsewhere["pw3d"].protocols[0]) and "true 2D" not in str(run.elsewhere["pw3d"].protocols[0])


def test_a_set_in_the_same_joints_keeps_its_protocol():
    "So that older records stay rows of the same table."
    how = Experiment(martinez, dict(dataset="cmu", gpus=0, also_test="hdm05")).elsewhere["hdm05"]
    assert (how.skeleton, how.input_2d, how.protocol, how.protocols) == ("", "gt", hdm05.PROTOCOL, (hdm05.PROTOCOL,))


def test_protocols_in_other_joints_have_other_names(places):
    ids = lambda paper, variant, name="mpi_inf_3dhp", **more: [p.id for p in Experiment(paper, dict(dataset="h36m", gpus=0, variant=variant, also_test=name) | more).elsewhere[name].protocols]
    assert ids(mlp, "poseaug") == ["mpi3dhp-h36m16"] and ids(mlp, "17-joints") == ["mpi3dhp-h36m17"] and MPI3DHP.id == "mpi3dhp"
    assert ids(martinez, "14-joints") == ["mpi3dhp-h36m16-14"] and ids(kudo, "15-joints", "pw3d")[0] == "pw3d-h36m16-15"
    assert ids(lcn, "paper", fidelity="release")[0] == "mpi3dhp-h36m17-lcn-p1"
    fifteen = Experiment(kudo, dict(dataset="h36m", gpus=0, variant="15-joints", also_test="pw3d")).elsewhere["pw3d"].protocols[0]
    assert len(fifteen.joints) == 15 and "spine" not in fifteen.joints and fifteen.skeleton == "h36m16"


def test_records_say_what_was_read_and_what_was_trained_on(places, files):
    for trained in ("gt", "cpn"): ran(mlp, files, variant="tiny", input_2d=trained, also_test="mpi_inf_3dhp")
    records = [r for r in read_all(places / "results/runs") if r.method == "mlp" and r.test_data == "mpi_inf_3dhp"]
    assert sorted((r.input_2d, r.trained_2d) for r in records) == [("gt", "cpn"), ("gt", "gt")] and len({identity(r) for r in records}) == 2
    assert all(r.train_data == "h36m" and r.protocol == "mpi3dhp-h36m16" for r in records)
    simple = [r for r in read_all(places / "results/runs") if r.method == "mean_pose" and r.test_data == "mpi_inf_3dhp"]
    assert {r.protocol for r in simple} == {"mpi3dhp-h36m16"} and all(r.input_2d == "gt" for r in simple)


def test_smpl_gives_what_it_says():
    assert pw3d.ABOUT.joints == {"h36m16": "spine = middle_spine, thorax = neck, head = 2·skull_base -1·neck"} and "neck_nose" not in SMPL24.joints
    assert list(mpi_inf_3dhp.ABOUT.joints) == ["h36m16", "h36m17"] and "neck_nose = skull_base" in mpi_inf_3dhp.ABOUT.joints["h36m17"]


# ---------- the commands on the pages

COMMAND = re.compile(r"papermill (?:\S*/)?nbs/train_(\w+)\.ipynb \S+((?: +-p +\w+ +[^\s`\"\\]+)+)")

def commands():
    "Every command that trains a method, as (page, method, parameters)."
    root = project_root()
    pages = [p for pattern in ("*.md", "nbs/**/*.ipynb", "data_recipes/**/*.md", "data_recipes/**/*.ipynb") for p in root.glob(pattern) if "_site" not in p.parts and ".ipynb_checkpoints" not in p.parts]
    for page in sorted(pages):
        text = page.read_text(encoding="utf-8")
        if page.suffix == ".ipynb": text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
        for name, given in COMMAND.findall(text): yield str(page.relative_to(root)), name, dict(re.findall(r"-p +(\w+) +(\S+)", given))

def value_of(text):
    "As papermill reads it."
    try: return ast.literal_eval(text) if not re.fullmatch(r"[Tt]rue|[Ff]alse|None", text) else {"true": True, "false": False, "none": None}[text.lower()]
    except (ValueError, SyntaxError): return text

COMMANDS = {f"{page}: {name} {' '.join(f'{k}={v}' for k, v in given.items())}": (name, given) for page, name, given in commands()}

def test_the_pages_show_commands():
    assert len(COMMANDS) > 15 and {name for name, _ in COMMANDS.values()} == {p.stem.removeprefix("train_") for p in (project_root() / "nbs").glob("train_*.ipynb")}

@pytest.mark.parametrize("name, given", COMMANDS.values(), ids=COMMANDS)
def test_no_page_shows_a_command_that_is_refused(places, name, given):
    "Except for the number of GPUs, which this machine need not have."
    defaults = parameters_of(project_root() / f"nbs/train_{name}.ipynb")
    assert set(given) <= set(defaults), f"train_{name}.ipynb has no parameter {sorted(set(given) - set(defaults))}"
    paper, values = import_module(f"poseprojects.papers.{name}"), defaults | {key: value_of(text) for key, text in given.items()} | {"gpus": 0}
    if "lifter" in values: values["variant"] = values["variant"] or paper.variant_of(values["lifter"], values["plan"]) # as its notebook does
    run = Experiment(paper, values)
    assert set(run.elsewhere) == set(filter(None, str(values.get("also_test") or "").split(",")))
    if "lifter" in values: Experiment(paper.baseline(run.config), values | dict(variant=None, fidelity="paper", learning_rate=None))
