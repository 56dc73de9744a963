"Released checkpoints in the containers of their repositories, and files that are something else."
import pickle

import numpy as np
import pytest
import torch

from poseprojects import zoo
from poseprojects.data import synthetic
from poseprojects.papers import lcn
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
