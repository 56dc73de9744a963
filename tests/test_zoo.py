"Released checkpoints in the containers of their repositories, and files that are something else."
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from poseprojects import zoo
from poseprojects.data import synthetic
from poseprojects.papers import lcn, martinez, mlp, semgcn, stgcn, videopose
from poseprojects.papers.mlp import MLPNetwork
from poseprojects.papers.semgcn import SemGCNNetwork
from poseprojects.papers.stgcn import STGCNNetwork, SixteenJoints
from poseprojects.papers.videopose import ClipNetwork, TemporalNetwork
from poseprojects.skeleton import H36M16, H36M17
from poseprojects.storage import InputError
from poseprojects.train.engine import Batch

pytestmark = pytest.mark.usefixtures("one_thread")

MADE = { # name -> network, paper, container, frames and joints that it reads
    "semgcn": (lambda: SemGCNNetwork(H36M16), "semgcn", lambda s: {"epoch": 30, "lr": 1e-3, "step": 7, "state_dict": s, "optimizer": {"state": {}}, "error": 42.1}, (16,)),
    "semgcn-nonlocal": (lambda: SemGCNNetwork(H36M16, non_local=True), "semgcn", lambda s: {"state_dict": s, "epoch": 1}, (16,)),
    "poseaug-mlp": (MLPNetwork, "mlp", lambda s: {"epoch": 3, "model_pos": s}, (16,)), "mlp-four-stages": (lambda: MLPNetwork(stages=4, width=32), "mlp", lambda s: {"state_dict": s}, (16,)),
    "poseaug-stgcn": (SixteenJoints, "stgcn", lambda s: {"state_dict": s, "epoch": 50}, (16,)), "stgcn": (STGCNNetwork, "stgcn", lambda s: s, (17,)),
    "videopose-27": (lambda: ClipNetwork(17, 17, (3, 3, 3), 32), "videopose", lambda s: {"epoch": 80, "lr": 1e-4, "random_state": np.random.RandomState(1), "optimizer": {}, "model_pos": s, "model_traj": None, "random_state_semi": None}, (27, 17)),
    "poseaug-videopose": (lambda: ClipNetwork(16, 15, (1,) * 5, 32), "videopose", lambda s: {"state_dict": s, "epoch": 1}, (16,))}

@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", MADE)
def test_released_checkpoints_become_methods(name, legacy, tmp_path):
    make, paper, container, reads = MADE[name]
    if legacy and name == "videopose-27": container = lambda s: {"model_pos": s, "random_state": np.random.RandomState(1).get_state()}
    network = make().eval()
    for parameter in network.parameters(): torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path / "ckpt_best.pth.tar"
    torch.save(container(network.state_dict()), path, _use_new_zipfile_serialization=not legacy)
    release = zoo.load(paper, path)
    x = torch.randn(3, *reads, 2)
    with torch.no_grad(): assert torch.allclose(release.network(x), network(x), atol=1e-5)
    assert zoo.load(None, path).about == release.about and release.skeleton.num_joints == reads[-1]

def test_a_loaded_method_predicts(tmp_path, test):
    path = tmp_path / "ckpt.pth.tar"
    torch.save({"state_dict": SemGCNNetwork(H36M16).state_dict()}, path)
    poses = test.select(torch.arange(32))
    from poseprojects.skeleton import convert
    from dataclasses import replace
    sixteen = replace(poses, skeleton=H36M16, pose_2d=convert(poses.pose_2d, H36M17, H36M16), pose_3d=convert(poses.pose_3d, H36M17, H36M16), confidence=torch.ones(32, 16))
    pose = zoo.load("semgcn", path).method.predict(Batch(sixteen, torch.arange(32)))
    assert pose.shape == (32, 1, 16, 3) and bool((pose[:, 0, 0] == 0).all())

def test_very_old_files_have_no_counters(tmp_path):
    state = {k: v for k, v in MLPNetwork(width=16).state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save({"state_dict": state}, tmp_path / "old.pth")
    assert zoo.load("mlp", tmp_path / "old.pth").paper == "mlp"

def test_weights_trained_on_several_gpus_carry_a_prefix(tmp_path):
    torch.save({"state_dict": {f"module.{k}": v for k, v in MLPNetwork(width=16).state_dict().items()}}, tmp_path / "parallel.pth")
    assert zoo.load("mlp", tmp_path / "parallel.pth").config.width == 16

def test_lcn_is_read_by_its_tensorflow_names(tmp_path):
    network = lcn.LCN(config=lcn.Config())
    names, state = lcn.released_names(), network.state_dict()
    arrays = {theirs: np.asarray(state[ours]) for theirs, ours in names.items()}
    np.savez(tmp_path / "lcn.npz", **arrays)
    assert sum(p.numel() for p in zoo.load("lcn", tmp_path / "lcn.npz").parameters()) == sum(p.numel() for p in network.parameters())

def broken(change):
    state = dict(MLPNetwork(width=16).state_dict())
    change(state)
    return {"state_dict": state}

@pytest.mark.parametrize("content, message", [
    ({"weights": torch.zeros(3)}, "expected the weights of semgcn, mlp"), ({"epoch": 3}, "holds no state dict \\(found epoch\\)"), ([1, 2], "holds no state dict"),
    (broken(lambda s: s.pop("w2.bias")), "lacks w2.bias; expected 37 entries"), (broken(lambda s: s.update(extra=torch.zeros(1))), "does not have extra"),
    (broken(lambda s: s.update({"w2.bias": torch.zeros(3)})), "w2.bias has shape \\(3,\\), expected \\(45,\\)"), (broken(lambda s: s["w2.bias"].fill_(float("nan"))), "w2.bias holds NaN"),
    (broken(lambda s: s.update({"w1.weight": torch.zeros(16, 30)})), "reads 30 numbers, expected 32"),
    ({"model_pos": TemporalNetwork(17, 1, (3, 3), 8).state_dict()}, "trajectory network"), ({"model_pos": TemporalNetwork(15, 15, (3, 3), 8).state_dict()}, "reads 15 joints")])
def test_other_files_are_refused_in_one_sentence(content, message, tmp_path):
    torch.save(content, tmp_path / "some.pth")
    with pytest.raises(InputError, match=message): zoo.load(None, tmp_path / "some.pth")

def test_the_wrong_network_is_named(tmp_path):
    torch.save({"state_dict": MLPNetwork(width=16).state_dict()}, tmp_path / "mlp.pth")
    with pytest.raises(InputError, match="this is residual MLP .* expected semgcn; load it as mlp"): zoo.load("semgcn", tmp_path / "mlp.pth")
    with pytest.raises(InputError, match="'resnet' has no released weights"): zoo.load("resnet", tmp_path / "mlp.pth")

class Hostile:
    def __init__(self, canary): self.canary = canary
    def __reduce__(self): return open, (str(self.canary), "w")

def test_a_hostile_checkpoint_runs_nothing(tmp_path):
    torch.save({"state_dict": MLPNetwork(width=16).state_dict(), "more": Hostile(tmp_path / "canary")}, tmp_path / "bad.pth")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Hostile(tmp_path / "canary")))
    (tmp_path / "canary").unlink(missing_ok=True)
    for name in ("bad.pth", "plain.pkl"):
        with pytest.raises(InputError): zoo.load("mlp", tmp_path / name)
    assert not (tmp_path / "canary").exists()

# ---- lifters of our own

OWN = {"martinez": (martinez, martinez.Config(width=24, centring="root+position")), "martinez-bare": (martinez, replace(martinez.VARIANTS["bare"], width=24)), "mlp": (mlp, mlp.Config(width=24, joints=17, units="standard")),
       "semgcn": (semgcn, semgcn.Config(width=16, units_deep=2, non_local=True)), "stgcn": (stgcn, stgcn.VARIANTS["poseaug"]), "lcn": (lcn, replace(lcn.VARIANTS["metric"], channels=8)), "laplacian": (lcn, replace(lcn.VARIANTS["metric"], channels=8, structure="laplacian")),
       "videopose": (videopose, videopose.Config(widths=(3, 3), channels=24, causal=True))}

def kept(name, poses, path):
    "A method that is not as it was built, and its file."
    paper, config = OWN[name]
    method = paper.build(poses, config)
    with torch.no_grad():
        for entry, value in method.state_dict().items():
            if value.is_floating_point() and "matrix" not in entry: value.mul_(1 + .1 * torch.rand_like(value))
    return method.eval(), zoo.save(path, paper.__name__.rsplit(".", 1)[-1], method, poses, plan="quick", seed=3)

@pytest.mark.parametrize("name", OWN)
def test_a_lifter_comes_back_as_it_was(name, tmp_path, test):
    poses = test.select(torch.arange(0, 800))
    method, path = kept(name, poses, tmp_path / "lifter.safetensors")
    state = torch.get_rng_state()
    lifter = zoo.load(None, path)
    assert torch.equal(torch.get_rng_state(), state), "loading draws no random numbers of the caller's"
    assert lifter.paper == OWN[name][0].__name__.rsplit(".", 1)[-1] and lifter.config == method.config and lifter.skeleton == poses.skeleton and not lifter.method.training
    assert (lifter.data, lifter.fingerprint, lifter.input_2d, lifter.frame_rate, lifter.about) == (poses.name, poses.fingerprint, "gt", poses.frame_rate, {"plan": "quick", "seed": 3})
    ours, theirs = method.state_dict(), lifter.method.state_dict()
    assert list(ours) == list(theirs) and all(torch.equal(ours[k], theirs[k]) for k in ours)
    batch = lambda: Batch(poses, torch.arange(16), window=getattr(method, "window", 1), causal=getattr(method, "causal", False))
    with torch.no_grad(): assert torch.equal(lifter.method.predict(batch()), method.predict(batch()))
    assert zoo.load(lifter.paper, tmp_path).fingerprint == poses.fingerprint, "the folder of a run will do"

def test_the_camera_is_the_mean_over_the_samples(test, tmp_path):
    rows = torch.cat([(test.camera_id == 0).nonzero().flatten()[:30], (test.camera_id == 2).nonzero().flatten()[:10]]).sort().values
    lifter = zoo.load(None, kept("mlp", test.select(rows), tmp_path / "a.safetensors")[1])
    expected = .75 * test.cameras.intrinsics[0] + .25 * test.cameras.intrinsics[2]
    assert torch.allclose(lifter.camera.intrinsics[0], expected) and not bool(lifter.camera.distortion.any()) and lifter.camera.resolution.tolist() == [[1000., 1000.]]

def changed(path, header=None, arrays=None, raw=None):
    "The file with another header, or other weights under the old one."
    from safetensors import safe_open
    from safetensors.torch import save_file
    with safe_open(path, framework="pt") as stored: metadata, tensors = stored.metadata(), {n: stored.get_tensor(n).clone() for n in stored.keys()}
    content = json.loads(metadata["poseprojects_lifter"])
    if header: header(content)
    if arrays:
        arrays(tensors)
        if not raw: content["weights"] = zoo._digest(tensors)
    save_file(tensors, path, metadata={"poseprojects_lifter": json.dumps(content)})

@pytest.mark.parametrize("change, message", [
    (dict(header=lambda h: h.update(format=99)), "written in format 99, expected at most 1"), (dict(header=lambda h: h.update(paper="os")), "'os', which this version does not know, expected a paper among"),
    (dict(header=lambda h: h.update(paper="blocks")), "'blocks', which this version does not know"), (dict(header=lambda h: h.update(paper=["mlp"])), "does not know"),
    (dict(header=lambda h: h["config"].update(magic=1)), "option 'magic' is not known to mlp"), (dict(header=lambda h: h["config"].update(width=4096)), "option width = 4096 is larger than any side of the weights"),
    (dict(header=lambda h: h["config"].update(joints=5)), "joints = 5 is not one of"), (dict(header=lambda h: h["config"].update(stages=1)), "does not have network.linear_stages.1"), (dict(header=lambda h: h["config"].update(width=12)), "has network"),
    (dict(header=lambda h: h.pop("camera")), "its header is damaged"), (dict(header=lambda h: h.update(frame_rate=-1)), "its header is damaged"), (dict(header=lambda h: h["skeleton"].update(parents=[0])), "its header is damaged"), (dict(header=lambda h: h.update(format="1")), "its header is damaged"),
    (dict(header=lambda h: h.update(config=[1])), "damaged|not known"), (dict(arrays=lambda t: t.pop("network.w2.bias")), "lacks network.w2.bias"), (dict(arrays=lambda t: t.update(more=torch.ones(2))), "does not have more"),
    (dict(arrays=lambda t: t["network.w2.bias"].fill_(float("inf"))), "network.w2.bias holds NaN or infinity"), (dict(arrays=lambda t: t["network.w2.bias"].add_(1), raw=True), "do not match their fingerprint")])
def test_damaged_lifters_are_refused(change, message, test, tmp_path):
    _, path = kept("mlp", test.select(torch.arange(0, 800)), tmp_path / "lifter.safetensors")
    changed(path, **change)
    with pytest.raises(InputError, match=message) as refusal: zoo.load(None, path)
    assert "\n" not in str(refusal.value) and str(path) in str(refusal.value) or "joints = 5" in message

def test_what_is_no_lifter_is_refused(test, tmp_path):
    from poseprojects.data.base import save
    some = test.select(torch.arange(0, 800))
    _, path = kept("mlp", some, tmp_path / "lifter.safetensors")
    with pytest.raises(InputError, match="this is a lifter of mlp, expected martinez"): zoo.load("martinez", path)
    with pytest.raises(InputError, match="is a set of poses and holds no weights"): zoo.load(None, save(some, tmp_path / "set.safetensors"))
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="no complete safetensors file"): zoo.load(None, tmp_path / "cut.safetensors")
    with pytest.raises(InputError, match="no complete safetensors file"): zoo.load(None, tmp_path / "missing.safetensors")
    method = mlp.build(some, OWN["mlp"][1])
    with torch.no_grad(): method.network.w2.bias.fill_(float("nan"))
    with pytest.raises(InputError, match="holds NaN"): zoo.save(tmp_path / "bad.safetensors", "mlp", method, some)
    assert not (tmp_path / "bad.safetensors").exists() and not list(tmp_path.glob(".tmp-*"))

def test_the_trainers_own_checkpoint_says_what_to_do(test, tmp_path):
    from poseprojects.train.engine import fit
    some = test.select(torch.arange(0, 800))
    method = mlp.build(some, OWN["mlp"][1])
    fit(method, some, mlp.PLANS["quick"].changed(epochs=1), folder=tmp_path, show=False)
    for place in (tmp_path, tmp_path / "last.pt"):
        with pytest.raises(InputError, match="run .* train notebook once more"): zoo.load(None, place)

def test_a_full_disk_is_one_sentence(test, tmp_path, monkeypatch):
    import errno
    from pathlib import Path
    def full(*_): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="no space is left on the device"): kept("mlp", test.select(torch.arange(0, 800)), tmp_path / "lifter.safetensors")
    assert not list(tmp_path.iterdir())
