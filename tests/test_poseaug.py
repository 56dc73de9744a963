"PoseAug: equal to the originals, the equivalences of its specification, losses against slow ones, and runs that can be killed."
import numpy as np
import pytest
import torch
from torch import nn

import parity
from poseprojects.camera import poseaug_project
from poseprojects.papers.poseaug_networks import (BONES, GROUPS, LOCKED, PARTS, TEMPLATES, TORSO, Augmentor, ImageJudge, PoseJudge, directions, mean_lengths, rotation_of, to_bones, to_joints,
                                                  with_lengths)
from poseprojects.skeleton import H36M16

pytestmark = pytest.mark.usefixtures("one_thread")


def bodies(n=64, seed=0):
    "Poses in metres in front of a camera; no bodies of people."
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 16, 3, generator=generator) * 0.3 + torch.tensor([0.2, -0.1, 4.])

# ---------------------------------------------------------------- equal to the originals

NETWORKS = {"poseaug_generator": Augmentor, "poseaug_disc3d": PoseJudge, "poseaug_disc2d": ImageJudge}
OUTPUTS = {"poseaug_generator": ("pose_ba", "ba_diff", "pose_bl", "blr", "pose_rt", "r", "t"), "poseaug_disc3d": ("score",), "poseaug_disc2d": ("score",)}
IN_LOSS = {"poseaug_generator": ("pose_ba", "ba_diff", "pose_bl", "blr", "pose_rt")}


def answers(name, network, numbers, prefix):
    "The outputs of a network by their names in the fixture."
    given = lambda key: torch.from_numpy(numbers[f"{prefix}in_{key}"])
    if name == "poseaug_generator": found = network(given("pose"), torch.stack([given(f"noise_{part}") for part in ("ba", "bl", "r", "t")], 1))
    else: found = (network(given("x" if name == "poseaug_disc2d" else "pose")),)
    return dict(zip(OUTPUTS[name], found))

@pytest.mark.data
@pytest.mark.parametrize("name", NETWORKS)
def test_keys_and_answers_are_those_of_the_original(name):
    network, numbers, limit = NETWORKS[name](), parity.fixture(name), parity.limits(name)
    parity.check_keys(name, network)
    parity.fill(network, numbers).eval()
    with torch.no_grad():
        for key, value in answers(name, network, numbers, "").items(): parity.assert_near(value, numbers[f"out_{key}"], limit[f"out_{key}"], f"{name} {key}")

@pytest.mark.data
@pytest.mark.parametrize("name", NETWORKS)
def test_a_training_pass_is_that_of_the_original(name):
    network, numbers, limit = NETWORKS[name](), parity.fixture(name), parity.limits(name)
    parity.fill(network, numbers).train()
    found, loss = answers(name, network, numbers, "train_"), 0.
    for key, value in found.items():
        parity.assert_near(value.detach(), numbers[f"train_out_{key}"], limit[f"train_out_{key}"], f"{name} {key}")
        if key in IN_LOSS.get(name, found):
            wanted = torch.from_numpy((0.5 * parity.hashed(f"target:{key}", value.numel(), int(numbers["meta_salt"]))).astype(np.float32)).view(value.shape)
            loss = loss + (value - wanted).square().mean()
    loss.backward()
    parity.assert_near(float(loss.detach()), float(numbers["train_loss"]), limit["train_loss"], f"{name} loss")
    norms = {key: float("nan") if p.grad is None else float(p.grad.double().norm()) for key, p in network.named_parameters()}
    assert sorted(norms) == [str(n) for n in numbers["train_grad_names"]]
    found = np.array([norms[str(n)] for n in numbers["train_grad_names"]])
    assert (np.isnan(found) == np.isnan(numbers["train_grad_norms"])).all()
    parity.assert_near(np.nan_to_num(found), np.nan_to_num(numbers["train_grad_norms"]), limit["train_grad_norms"], f"{name} gradients")
    if "train_buffer_names" not in numbers or not len(numbers["train_buffer_names"]): return
    buffers = dict(network.named_buffers())
    parity.assert_near([float(buffers[str(n)].double().norm()) for n in numbers["train_buffer_names"]], numbers["train_buffer_norms"], limit["train_buffer_norms"], f"{name} buffers")

@pytest.mark.data
def test_parity_would_notice_exchanged_parts():
    "The first two parts of the judge with their bones exchanged: same shapes, other answers."
    network, numbers = PoseJudge(), parity.fixture("poseaug_disc3d")
    parity.fill(network, numbers).eval()
    network.products = network.products[[1, 0, 2, 3, 4]]
    with pytest.raises(AssertionError): parity.assert_near(network(torch.from_numpy(numbers["in_pose"])).detach(), numbers["out_score"], parity.limits("poseaug_disc3d")["out_score"])

@pytest.mark.data
def test_rotations_and_projection_are_those_of_the_original():
    numbers = parity.fixture("poseaug_axisangle")
    parity.assert_near(rotation_of(torch.from_numpy(numbers["in_r"])), numbers["out_R"], parity.limits("poseaug_axisangle")["out_R"])
    numbers = parity.fixture("poseaug_projection")
    parity.assert_near(poseaug_project(torch.from_numpy(numbers["in_X"]), torch.from_numpy(numbers["in_K"])), numbers["out_uv"], parity.limits("poseaug_projection")["out_uv"])
