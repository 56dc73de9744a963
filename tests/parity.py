"Numbers from the original modules, and the formula that fills a network so that it can be compared with them (described in the README beside the fixtures)."
import csv
import zlib
from functools import lru_cache

import numpy as np
import torch
from torch import nn

from conftest import real_data


def folder(): return real_data("").parent / "parity"


def fixture(name): return np.load(folder() / f"{name}.npz", allow_pickle=False)


@lru_cache(maxsize=None)
def limits(module):
    "Largest relative difference of each array."
    with open(folder() / "tolerances.csv", newline="") as file:
        return {row["array"]: float(row["suggested_rel_tolerance"]) for row in csv.DictReader(file) if row["module"] == module}


def hashed(key, count, salt=0):
    "The numbers u of a key: uniform in [-1, 1), from a hash of the position."
    low = np.uint64(0xFFFFFFFF)
    h = (np.arange(count, dtype=np.uint64) * np.uint64(2654435761) + np.uint64((zlib.crc32(key.encode()) + 2654435769 * salt) & 0xFFFFFFFF)) & low
    for shift, factor in ((16, 2246822507), (13, 3266489909)): h = ((h ^ (h >> np.uint64(shift))) * np.uint64(factor)) & low
    return (h ^ (h >> np.uint64(16))).astype(np.float64) / 2**31 - 1


def filled(key, value, gain, salt=0):
    "What stands in a tensor of this name and shape."
    last, shape = key.rsplit(".", 1)[-1], value.shape
    if last == "num_batches_tracked": return torch.zeros_like(value)
    u = hashed(key, value.numel(), salt)
    if last == "running_mean" or last == "bias": u = 0.1 * u
    elif last == "running_var": u = 1 + 0.5 * abs(u)
    elif last == "weight" and len(shape) == 1: u = 1 + 0.1 * u
    elif last == "W" and len(shape) == 3: u = gain * u / np.sqrt(shape[1])
    elif last != "e": u = gain * u / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(u.astype(np.float32)).view(shape)


def fill(network: nn.Module, numbers, prefix=""):
    "Fills a network and switches its dropout off."
    gain, salt = float(numbers["meta_gain"]), int(numbers["meta_salt"])
    network.load_state_dict({key: filled(prefix + key, value, gain, salt) for key, value in network.state_dict().items()})
    for module in network.modules():
        if isinstance(module, nn.Dropout): module.p = 0.
    return network


def assert_near(found, wanted, limit, what=""):
    "Equal within a limit that is relative to the largest number."
    found, wanted = np.asarray(found, dtype=np.float64), np.asarray(wanted, dtype=np.float64)
    assert found.shape == wanted.shape, what
    assert np.abs(found - wanted).max() <= limit * np.abs(wanted).max(), what


def check_keys(name, network, prefix=""):
    "The state dict has the released names and shapes."
    with open(folder() / "keys" / f"{name}.csv", newline="") as file: wanted = {row["key"]: row["shape"] for row in csv.DictReader(file)}
    assert {prefix + key: "x".join(map(str, value.shape)) or "scalar" for key, value in network.state_dict().items()} == wanted


def check_evaluation(name, network, prefix=""):
    "Outputs in evaluation mode."
    numbers, limit = fixture(name), limits(name)
    fill(network, numbers, prefix).eval()
    with torch.no_grad():
        for case in ("", "long_"):
            if f"in_{case}x" not in numbers: continue
            found = network(torch.from_numpy(numbers[f"in_{case}x"])).numpy()
            if f"out_{case}y" in numbers: assert_near(found, numbers[f"out_{case}y"], limit[f"out_{case}y"], f"{name} {case}")
            else:
                assert found.shape == tuple(numbers[f"out_{case}y__shape"])
                assert_near(found.ravel()[::int(numbers[f"out_{case}y__stride"])], numbers[f"out_{case}y__sub"], 1e-5, f"{name} {case}")


def check_training(name, network, prefix=""):
    "Output, loss, gradient norms and running statistics of one training pass."
    numbers, limit = fixture(name), limits(name)
    fill(network, numbers, prefix).train()
    answer = network(torch.from_numpy(numbers["train_in_x"]))
    wanted = torch.from_numpy((0.5 * hashed("target:y", answer.numel(), int(numbers["meta_salt"]))).astype(np.float32)).view(answer.shape)
    loss = ((answer - wanted) ** 2).mean()
    loss.backward()
    if "train_out_y" in numbers: assert_near(answer.detach(), numbers["train_out_y"], limit["train_out_y"], f"{name} training output")
    assert_near(float(loss.detach()), float(numbers["train_loss"]), limit["train_loss"], f"{name} loss")
    norm = lambda tensor: float(tensor.detach().double().norm())
    released = {id(value): prefix + key for key, value in network.state_dict(keep_vars=True).items()} # a module may go by another name than in its state dict
    gradients = {released[id(p)]: float("nan") if p.grad is None else norm(p.grad) for p in network.parameters()}
    assert sorted(gradients) == [str(n) for n in numbers["train_grad_names"]]
    found, norms = np.array([gradients[str(n)] for n in numbers["train_grad_names"]]), numbers["train_grad_norms"]
    assert (np.isnan(found) == np.isnan(norms)).all()
    assert_near(np.nan_to_num(found), np.nan_to_num(norms), limit["train_grad_norms"], f"{name} gradients")
    buffers = {released[id(value)]: norm(value) for value in network.buffers() if id(value) in released and value.is_floating_point()}
    assert_near([buffers[str(n)] for n in numbers["train_buffer_names"]], numbers["train_buffer_norms"], limit["train_buffer_norms"], f"{name} buffers")
