"Released weights of 3d-pose-baseline by name: the published equations in numpy, and files that are something else."
import numpy as np
import pytest
import torch

from conftest import refused
from poseprojects import zoo
from poseprojects.papers import lcn, martinez
from poseprojects.papers.martinez import Config, Martinez, from_released, released_names
from poseprojects.skeleton import H36M17, H36M32, MARTINEZ_2D
from poseprojects.train.engine import Batch

pytestmark = pytest.mark.usefixtures("one_thread")


def variables(width=48, blocks=2, outputs=48, batch_norm=True, scope="linear_model/", seed=0):
    "Random variables as a TensorFlow 1 checkpoint would hold them, written down layer by layer."
    rng = np.random.default_rng(seed)
    made = {}
    def layer(number, inputs, units, norm=None):
        made[f"{scope}w{number}:0"], made[f"{scope}b{number}:0"] = rng.normal(0, .4, (inputs, units)).astype(np.float32), rng.normal(0, .3, units).astype(np.float32)
        if norm and batch_norm: made.update({f"{scope}{norm}/gamma:0": rng.normal(1, .2, units), f"{scope}{norm}/beta:0": rng.normal(0, .2, units),
                                             f"{scope}{norm}/moving_mean:0": rng.normal(0, .2, units), f"{scope}{norm}/moving_variance:0": rng.uniform(.3, 2, units)})
    layer(1, 32, width, "batch_normalization")
    for k in range(blocks):
        layer(f"2_{k}", width, width, f"batch_normalization1{k}")
        layer(f"3_{k}", width, width, f"batch_normalization2{k}")
    layer(4, width, outputs)
    return made


def statistics(seed=1, used=0):
    "Of all 32 joints, or of those that are used."
    rng = np.random.default_rng(seed)
    two, three = (2 * 16, 3 * used) if used else (64, 96)
    return {"data_mean_2d": rng.uniform(400, 600, two), "data_std_2d": rng.uniform(50, 150, two), "data_mean_3d": rng.normal(0, 200, three), "data_std_3d": rng.uniform(50, 300, three)}


def forward(v, x, blocks=2, batch_norm=True, scope="linear_model/"):
    "The published equations: whole-matrix max-norm, batch norm with epsilon 1e-3, ReLU, residuals; numbers in, numbers out."
    def linear(h, number):
        w = v[f"{scope}w{number}:0"].astype(np.float64)
        return h @ (w * min(1., 1 / np.sqrt((w ** 2).sum()))) + v[f"{scope}b{number}:0"]
    def hidden(h, number, norm):
        h = linear(h, number)
        if batch_norm:
            n = {key: v[f"{scope}{norm}/{key}:0"] for key in ("gamma", "beta", "moving_mean", "moving_variance")}
            h = n["gamma"] * (h - n["moving_mean"]) / np.sqrt(n["moving_variance"] + 1e-3) + n["beta"]
        return np.maximum(h, 0)
    h = hidden(x, 1, "batch_normalization")
    for k in range(blocks): h = h + hidden(hidden(h, f"2_{k}", f"batch_normalization1{k}"), f"3_{k}", f"batch_normalization2{k}")
    return linear(h, 4)


@pytest.mark.parametrize("options", [dict(), dict(blocks=1, width=32), dict(blocks=4), dict(outputs=42), dict(batch_norm=False), dict(scope="model/linear_model/"), dict(scope="")])
def test_the_method_is_the_published_network(options):
    v = variables(**options)
    method = from_released(v | statistics()).eval()
    x = np.random.default_rng(2).normal(0, 1, (6, 32))
    wanted = forward(v, x, options.get("blocks", 2), options.get("batch_norm", True), options.get("scope", "linear_model/"))
    with torch.no_grad(): found = method.network(torch.from_numpy(x).float()).numpy()
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()

def test_pixels_become_metres(test):
    "The whole way, with the statistics of the release and joints by name."
    v, s = variables(), statistics()
    batch = Batch(test, torch.arange(0, len(test), 500))
    with torch.no_grad(): found = from_released(v | s).eval().predict(batch)[:, 0].numpy()
    two, three = [H36M32.joints.index(n) for n in MARTINEZ_2D], [H36M32.joints.index(n) for n in H36M17.joints[1:]]
    pick = lambda name, rows, axes: s[name].reshape(32, axes)[rows].ravel()
    px = batch.pose_2d.numpy()[:, [H36M17.joints.index(n) for n in MARTINEZ_2D]].reshape(len(batch), -1)
    z = forward(v, (px - pick("data_mean_2d", two, 2)) / pick("data_std_2d", two, 2))
    wanted = (z * pick("data_std_3d", three, 3) + pick("data_mean_3d", three, 3)).reshape(-1, 16, 3) / 1000
    assert np.abs(found[:, 1:] - wanted).max() < 1e-3 and not found[:, 0].any()

def test_statistics_of_the_used_joints_are_taken_too():
    short = {name: value.reshape(32, -1)[[H36M32.joints.index(n) for n in (MARTINEZ_2D if "2d" in name else H36M17.joints[1:])]].ravel() for name, value in statistics().items()}
    one, other = (from_released(variables() | s).state_dict() for s in (statistics(), short))
    assert all(torch.equal(one[name], other[name]) for name in one)

def test_names_cover_the_whole_network():
    for config in (Config(), Config(blocks=4, width=64), Config(batch_norm=False, width=64)):
        state = Martinez(H36M17, config).state_dict()
        places = [n for n in state if n.startswith("network.") and not n.endswith("num_batches_tracked")]
        assert sorted(released_names(config.blocks, config.batch_norm).values()) == sorted(places)
    assert len(released_names()) == 2 * 6 + 4 * 5

def test_what_the_optimiser_left_is_passed_over():
    more = {"linear_model/w1/Adam:0": np.zeros((32, 48)), "linear_model/batch_normalization/gamma/Adam_1:0": np.zeros(48), "beta1_power:0": np.array(.5), "global_step:0": np.array(7), "linear_model/learning_rate": np.array(1e-3)}
    one, other = from_released(variables() | statistics()), from_released(variables() | statistics() | more)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values()))

@pytest.mark.parametrize("change, message", [
    (lambda v: v.pop("linear_model/w3_1:0"), "lacks w3_1"), (lambda v: v.update({"linear_model/w9:0": np.zeros(3)}), "holds the unknown w9"),
    (lambda v: v.update({"linear_model/b4:0": np.zeros(3)}), r"b4 has shape (3,), expected (48,)"), (lambda v: v.update({"linear_model/w2_0:0": np.zeros((48, 47))}), "w2_0 has shape (48, 47), expected (48, 48)"),
    (lambda v: v["linear_model/w1:0"].__setitem__((0, 0), np.nan), "w1 holds NaN"), (lambda v: v.update({"linear_model/b1:0": np.array(["a"] * 48)}), "b1 holds <U1"),
    (lambda v: v.pop("linear_model/w4:0"), "expected matrices w1 and w4"), (lambda v: v.update({"linear_model/w1:0": np.zeros((34, 48))}), "reads 34 numbers and writes 48"),
    (lambda v: v.update({"other/w1:0": np.zeros((32, 48))}), "two arrays end in w1"), (lambda v: v.pop("data_mean_3d"), "lacks data_mean_3d"),
    (lambda v: v.update({"data_std_2d": np.ones(34)}), "data_std_2d has 34 numbers, expected 64 (all joints of h36m32) or 32"), (lambda v: v.pop("linear_model/batch_normalization10/beta:0"), "lacks batch_normalization10/beta")])
def test_other_arrays_are_refused_in_one_sentence(change, message):
    given = variables() | statistics()
    change(given)
    assert message in refused(from_released, given)

def test_the_zoo_finds_out_whose_variables_they_are(tmp_path):
    np.savez(tmp_path / "martinez.npz", **{name.replace(":0", ""): value for name, value in (variables() | statistics()).items()})
    for paper in ("martinez", None):
        method = zoo.load(paper, tmp_path / "martinez.npz")
        assert isinstance(method, Martinez) and not method.training and method.config.width == 48
    state = lcn.LCN(config=lcn.Config()).state_dict()
    np.savez(tmp_path / "lcn.npz", **{theirs: np.asarray(state[ours]) for theirs, ours in lcn.released_names().items()})
    assert isinstance(zoo.load(None, tmp_path / "lcn.npz"), lcn.LCN)
    assert "reads 34 numbers" in refused(zoo.load, "martinez", tmp_path / "lcn.npz")
    np.savez(tmp_path / "other.npz", something=np.zeros(3))
    assert "holds something, expected the variables" in refused(zoo.load, None, tmp_path / "other.npz")
    np.savez(tmp_path / "hostile.npz", w1=np.array([{"a": 1}], dtype=object))
    refused(zoo.load, None, tmp_path / "hostile.npz")
