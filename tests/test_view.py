"The structure of the figures: what moves, what stays, what is written. How they look is judged by eye in the notebooks."
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from poseprojects.skeleton import H36M16, H36M17, SKELETONS
from poseprojects.storage import InputError
from poseprojects.view.colours import CENTRE, LEFT, RIGHT, joint_colours
from poseprojects.view.player import plot_sequence
from poseprojects.view.plots import contact_sheet, draw_skeleton, draw_skeleton_2d, html, plot_compare, plot_learning_curve, plot_skeleton, save_html, seen_from
from poseprojects.view.stage import box_around, chains, checked, owned, upright


def person(skeleton=H36M17):
    "A pose with bones of 0.25 m, standing in the world frame (z up), root at 1 m."
    rng = np.random.default_rng(3)
    pose = np.zeros((skeleton.num_joints, 3))
    done = {skeleton.root}
    pose[skeleton.root] = (0, 0, 1)
    while len(done) < skeleton.num_joints:
        before = len(done)
        for child, parent in skeleton.bones:
            if parent in done and child not in done:
                step = rng.normal(size=3)
                pose[child] = pose[parent] + 0.25 * step / np.linalg.norm(step)
                done.add(child)
        if len(done) == before: break
    return pose


@pytest.fixture
def sequence():
    drift = np.random.default_rng(0).normal(scale=0.01, size=(30, 17, 3)).cumsum(0)
    return person() + drift


@pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=lambda s: s.name)
def test_every_bone_is_drawn_once_in_the_colour_of_its_child(skeleton):
    bones = []
    for side, path in chains(skeleton).items():
        for a, b in zip(path, path[1:]):
            if a is None or b is None: continue
            bones.append((b, a))
            assert joint_colours(skeleton)[b] == {"left": LEFT, "right": RIGHT, "centre": CENTRE}[side]
    assert sorted(bones) == sorted(skeleton.bones)
    assert sum(map(sum, owned(skeleton).values())) == len({j for bone in skeleton.bones for j in bone})


@pytest.mark.parametrize("frames", [1, 2, 17, 243])
def test_as_many_frames_and_steps_as_poses(frames):
    poses = np.broadcast_to(person(), (frames, 17, 3)) + np.arange(frames)[:, None, None] * 0.004
    figure = plot_sequence(poses, H36M17, fps=50, frame="world")
    steps = figure.layout.sliders[0].steps
    assert len(figure.frames) == len(steps) == frames
    assert [list(s.args[0]) for s in steps] == [[f.name] for f in figure.frames]
    assert steps[-1].label == f"{(frames - 1) / 50:.2f} s, frame {frames - 1}"


def test_frames_carry_coordinates_only_and_axes_never_change(sequence):
    figure = plot_sequence(sequence, H36M17, truth=sequence + 0.02, pose_2d=1000 * sequence[..., :2] + 500)
    content = json.loads(figure.to_json())
    for frame in content["frames"]:
        assert set(frame) == {"name", "traces", "data"}
        assert all(set(trace) <= {"x", "y", "z", "type"} for trace in frame["data"])
        assert len(frame["data"]) == len(frame["traces"]) == 9
    assert [content["data"][k]["type"] for k in content["frames"][0]["traces"]] == [t["type"] for t in content["frames"][0]["data"]]
    ranges = [content["layout"]["scene"][f"{a}axis"]["range"] for a in "xyz"]
    for frame in content["frames"]:
        for trace in frame["data"][:6]:
            for axis, (low, high) in zip("xyz", ranges): assert all(low <= v <= high for v in trace[axis] if v is not None)


def test_equal_metres_on_all_axes(sequence):
    scene = plot_sequence(sequence * [1, 2, 1], H36M17, frame="world").layout.scene
    lengths = {a: scene[f"{a}axis"].range[1] - scene[f"{a}axis"].range[0] for a in "xyz"}
    assert np.ptp([scene.aspectratio[a] / lengths[a] for a in "xyz"]) < 1e-3 * scene.aspectratio.x


def test_a_player_is_small_and_the_same_in_every_run():
    poses = person() + np.random.default_rng(1).normal(scale=0.01, size=(243, 17, 3)).cumsum(0)
    texts = [plot_sequence(kind(poses), H36M17, fps=50, frame="world").to_json() for kind in (np.asarray, torch.tensor)]
    assert texts[0] == texts[1]
    assert len(texts[0]) < 210_000 and "uid" not in texts[0] and "bdata" not in texts[0]
    figure = plot_skeleton(poses[0], H36M17)
    assert html(figure) == html(plot_skeleton(torch.tensor(poses[0]), H36M17))
    bundle = figure._repr_mimebundle_()
    assert len(json.dumps(bundle)) < 30_000 and "newPlot" in bundle["text/html"]


def test_a_page_needs_no_network_and_a_title_cannot_close_the_script(tmp_path, sequence):
    page = save_html(plot_sequence(sequence, H36M17, title="</script><b>x"), tmp_path / "player.html").read_text(encoding="utf-8")
    assert page.count("</script>") == 2 and "Plotly" in page
    assert [p.name for p in tmp_path.iterdir()] == ["player.html"]


def test_camera_and_world_stand_upright(sequence):
    pose = person()
    camera = np.stack([pose[:, 0], 1 - pose[:, 2], 4 + pose[:, 1]], -1)
    assert np.allclose(upright(camera, "camera") - upright(camera, "camera")[0], upright(pose, "world") - upright(pose, "world")[0])
    assert np.isclose(np.linalg.det(np.stack([upright(a, "camera") for a in np.eye(3)])), 1)


def test_beside_moves_the_truth_and_over_does_not(sequence):
    x = {how: plot_sequence(sequence, H36M17, truth=sequence, frame="world", arrangement=how).data for how in ("over", "beside")}
    assert list(x["over"][1].x) == list(x["over"][4].x)
    gap = np.nanmax(np.array(x["beside"][1].x, float)) - np.nanmin(np.array(x["beside"][4].x, float))
    assert gap < 0


def test_compare_says_joint_and_millimetres():
    truth = person()
    prediction = truth.copy()
    prediction[13] += (0.03, 0, 0.04)
    figure = plot_compare(truth, torch.tensor(prediction), H36M17, frame="world")
    joints = next(t for t in figure.data if t.mode == "markers")
    assert joints.marker.color[13] == 50.0 and max(np.delete(joints.marker.color, 13)) == 0
    assert joints.text[13] == "left_wrist<br>50.0 mm from the truth" and joints.marker.colorbar.title.text == "error in mm"
    assert figure.layout.title.text == f"mean error {50 / 17:.1f} mm, worst joint left_wrist 50.0 mm"
    moved = plot_compare(truth, prediction + 1, H36M17, frame="world")
    assert moved.layout.title.text == figure.layout.title.text
    assert "17" in plot_compare(truth, prediction + 1, H36M17, frame="world", root_aligned=False).layout.title.text


BAD = {
    "16 joints": (lambda p: p[:16], "(16, 3)"),
    "two coordinates": (lambda p: p[:, :2], "(17, 2)"),
    "four axes": (lambda p: p[None, None], "(1, 1, 17, 3)"),
    "no frames": (lambda p: p[None][:0], "(0, 17, 3)"),
    "NaN": (lambda p: np.where(np.arange(51).reshape(17, 3) == 7, np.nan, p), "right_knee is NaN"),
    "infinite": (lambda p: np.where(np.arange(51).reshape(17, 3) == 0, np.inf, p), "pelvis is NaN or infinite"),
    "millimetres": (lambda p: 1000 * p, "divide millimetres by 1000"),
    "text": (lambda p: "pose.npz", "array of numbers"),
    "ragged": (lambda p: [[1, 2], [3]], "array of numbers"),
    "None": (lambda p: None, "shape ()"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("draw", [plot_skeleton, plot_sequence, contact_sheet, lambda p, s: plot_compare(p, person(), s), lambda p, s: draw_skeleton(None, p, s)],
                         ids=["skeleton", "sequence", "sheet", "compare", "still"])
def test_bad_poses_give_one_sentence(name, draw):
    spoil, says = BAD[name]
    with pytest.raises(InputError) as refusal: draw(spoil(person()), H36M17)
    assert says in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("wrong, says", [
    (dict(truth=np.zeros((3, 17, 3))), "3 frames for 30"), (dict(pose_2d=np.zeros((30, 17, 3))), "pose_2d"), (dict(pose_2d=np.zeros((9, 17, 2))), "9 frames for 30"),
    (dict(frame="image"), "'world'"), (dict(arrangement="under"), "'beside'"), (dict(fps=0), "positive"), (dict(fps=float("nan")), "positive"), (dict(skeleton_2d=H36M16, pose_2d=np.zeros((30, 17, 2))), "(30, 17, 2)")])
def test_bad_sequences_give_one_sentence(sequence, wrong, says):
    with pytest.raises(InputError) as refusal: plot_sequence(sequence, H36M17, **wrong)
    assert says in str(refusal.value)


def test_a_lifter_with_16_joints_shows_its_input(sequence):
    figure = plot_sequence(sequence, H36M17, pose_2d=500 + 400 * sequence[:, :16, :2], skeleton_2d=H36M16, resolution=(1000, 1000))
    assert figure.layout.yaxis.range == (1000, 0) and figure.layout.yaxis.scaleanchor == "x"
    assert len(figure.frames[0].data) == 6 and isinstance(figure.frames[0].data[3].x[0], int)


def test_stills_keep_colours_scale_and_direction():
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, 2)
    draw_skeleton(axes[0], person(), H36M17, frame="world")
    draw_skeleton_2d(axes[1], 100 * person()[:, :2] + 500, H36M17, resolution=(1000, 800))
    assert [line.get_color() for line in axes[1].lines] == [joint_colours(H36M17)[child] for child, _ in H36M17.bones]
    assert axes[1].get_ylim() == (800, 0) and axes[0].get_aspect() == 1
    solid = plt.figure().add_subplot(projection="3d")
    assert draw_skeleton(solid, person(), H36M17, frame="world") is solid and np.allclose(np.ptp(solid.get_zlim()) / np.ptp(solid.get_xlim()), box_around(person()[None]).size[2] / box_around(person()[None]).size[0], rtol=0.05)
    sheet = contact_sheet(np.stack([person()] * 5), H36M17, titles="abcde", columns=3, frame="world")
    assert sum(bool(ax.lines) for ax in sheet.axes) == 5 and len({ax.get_ylim() for ax in sheet.axes if ax.lines}) == 1
    with pytest.raises(InputError, match="2 titles for 5 poses"): contact_sheet(np.stack([person()] * 5), H36M17, titles="ab")
    plt.close("all")
    assert np.allclose(seen_from(np.array([0, 1.0, 0]), 90, 0), [1, 0, 0])


def test_learning_curves_take_what_a_trainer_logs():
    rows = [dict(epoch=e, mpjpe=100 / e) for e in (1, 2, 4)] + [dict(epoch=5, loss=0.1)]
    axes = plot_learning_curve({"rows": rows, "numbers": [3.0, 2.0], "columns": dict(mpjpe=[5.0, 4.0, 3.0])}, levels=dict(mean=179.4)).axes[0]
    assert [list(line.get_xdata()) for line in axes.lines[:3]] == [[1, 2, 4], [1, 2], [1, 2, 3]]
    assert axes.get_ylabel() == "mpjpe in mm" and "25 mm" in axes.get_legend().get_texts()[0].get_text()
    for wrong in ({}, {"a": []}, {"a": rows[-1:]}, {"a": dict(loss=[1])}):
        with pytest.raises(InputError): plot_learning_curve(wrong)


def test_drawing_libraries_load_only_when_something_is_drawn():
    code = "import sys, poseprojects.view.player, poseprojects.results.tables; print([m for m in ('plotly', 'matplotlib', 'pandas', 'IPython', 'scipy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_checked_takes_one_pose_or_many():
    assert checked(person(), H36M17).shape == (1, 17, 3) and checked(torch.zeros(4, 17, 3, requires_grad=True), H36M17).shape == (4, 17, 3)
    assert checked(person().tolist(), H36M17).dtype == np.float64


def test_a_long_sequence_stays_small_in_a_notebook():
    poses = person() + np.random.default_rng(1).normal(scale=0.01, size=(243, 17, 3)).cumsum(0)
    bundle = plot_sequence(poses, H36M17, frame="world")._repr_mimebundle_()
    assert len(json.dumps(bundle)) < 250_000 and list(bundle) == ["text/html", "text/plain"]
