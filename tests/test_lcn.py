"LCN: what its document says must be there, against independent slow arithmetic; its formulations against each other; what it learns."
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from poseprojects.camera import lcn_decode, lcn_encode, lcn_scale, lcn_unscale
from poseprojects.data import synthetic
from poseprojects.papers import lcn
from poseprojects.papers.blocks import BoundedLinear, FastDropout
from poseprojects.benchmarks import formulated
from poseprojects.papers.lcn import (LCN, ORDER, PLANS, STEP_SCHEDULE, VARIANTS, Config, LCNNetwork, LocallyConnected, SharedFilter, Structure, acting_weight, build,
                                     doubled, edges, from_released, neighbourhood, prepared, random_edges, reference_product, released_names, scoring, structure_matrix, tiles, with_detections)
from poseprojects.protocol import H36M_P1, LCN as LCN_P1, LCN_P2, LCN_P2_ROTATION, LCN_ROOT_ALIGNED
from poseprojects.skeleton import H36M16, H36M17, convert, mirror
from poseprojects.storage import InputError
from poseprojects.train.checkpoints import seed_everything
from poseprojects.train.engine import Batch, Plan, fit
from poseprojects.train.evaluation import ConstantDepth, MeanPose, evaluate, evaluating
from conftest import some
from poseprojects.train.schedules import Clock, Schedule

SMALL = Config(channels=16, blocks=1)

pytestmark = pytest.mark.usefixtures("one_thread")


def randomised(method):
    "Other numbers in everything that starts at zero or one, so that no mistake cancels."
    for name, tensor in method.state_dict().items():
        if ".norm." in name and tensor.is_floating_point(): tensor.copy_(torch.rand_like(tensor) + 0.5)
    return method

# ---------------------------------------------------------------- structure

EDGES = "0-1 0-4 0-7 1-2 1-7 2-3 4-5 4-7 5-6 7-8 7-11 7-14 8-9 8-11 8-14 9-10 11-12 12-13 14-15 15-16"

def hops(k, pairs=EDGES):
    "Shortest paths by breadth-first search, without a matrix power."
    near = {j: {j} for j in range(17)}
    for a, b in (map(int, e.split("-")) for e in pairs.split()): near[a].add(b); near[b].add(a)
    reach = {j: {j} for j in range(17)}
    for _ in range(k): reach = {j: set().union(*(near[i] for i in r)) for j, r in reach.items()}
    return np.array([[q in reach[p] for q in range(17)] for p in range(17)])

@pytest.mark.parametrize("k, blocks", [(1, 57), (2, 111), (3, 175), (4, 237), (5, 273), (6, 289)])
def test_neighbourhoods_are_counted_in_hops(k, blocks):
    found = neighbourhood(edges(), k).numpy()
    assert found.sum() == blocks and (found == hops(k)).all() and (found == found.T).all() and found.diagonal().all()
    swap = list(H36M17.mirror)
    assert (found == found[swap][:, swap]).all()

def test_degrees_and_the_plain_tree():
    assert neighbourhood(edges(), 3).sum(0).tolist() == [14, 13, 9, 5, 13, 9, 5, 17, 15, 11, 6, 14, 10, 5, 14, 10, 5]
    assert [int(neighbourhood(edges("tree"), k).sum()) for k in range(1, 7)] == [49, 87, 131, 181, 225, 261]
    assert sorted(tuple(sorted(e)) for e in edges()) == sorted(tuple(map(int, e.split("-"))) for e in EDGES.split()) and len(edges("tree")) == 16

def test_the_random_graph_is_connected():
    pairs = random_edges(17, 20)
    assert len(set(pairs)) == 20 and all(a != b for a, b in pairs) and pairs == random_edges(17, 20) and pairs != random_edges(17, 20, seed=147)
    assert bool(neighbourhood(pairs, 16).all())

def test_weighted_structures():
    near = hops(3)
    rows = structure_matrix(Config(structure="row-normalised")).double()
    assert torch.allclose(rows.sum(0), torch.ones(17).double()) and ((rows != 0).numpy() == near).all() # what a target hears sums to one
    both = structure_matrix(Config(structure="symmetric-normalised")).numpy()
    assert np.allclose(both, near / np.sqrt(near.sum(1)[:, None] * near.sum(0))) and np.allclose(both, both.T)
    lengths = torch.linspace(0.1, 0.6, 20)
    found = structure_matrix(Config(structure="laplacian", knn=1), limb_lengths=lengths).double().numpy()
    a, length = np.zeros((17, 17)), lengths.double().numpy()
    for (p, q), l in zip(edges(), length): a[p, q] = a[q, p] = math.exp(-l * l / (length.mean() + length.std()) ** 2)
    d = a.sum(1)
    laplacian = np.eye(17) - a / np.sqrt(np.outer(d, d))
    assert np.allclose(found, 2 * laplacian / np.linalg.eigvalsh(laplacian).max() - np.eye(17), atol=1e-6)
    assert (structure_matrix(Config(structure="all")) == 1).all()

def test_the_laplacian_takes_the_limbs_of_the_training_set(train):
    short, long = LCN.from_data(train, Config(structure="laplacian", knn=1, channels=4)), LCN(H36M17, Config(structure="laplacian", knn=1, channels=4))
    assert not torch.allclose(short.network.structure.matrix, long.network.structure.matrix, atol=1e-3)

@pytest.mark.parametrize("k", range(1, 7))
def test_tiles_cover_the_mask_once(k):
    order = list(H36M17.indices(ORDER))
    assert sorted(order) == list(range(17))
    for mask in (structure_matrix(Config(knn=k)), structure_matrix(Config(knn=k))[order][:, order]):
        count = torch.zeros(17, 17)
        for a, b, c, d in tiles(mask): count[a:b, c:d] += 1
        assert torch.equal(count, mask)

# ---------------------------------------------------------------- the layer

def loop_product(x, weight, bias, mask, max_norm, inputs, outputs):
    "One number after the other."
    x, weight, bias, mask = (t.detach().double().numpy() for t in (x, weight, bias, mask))
    counted = sum(weight[i, o] ** 2 for i in range(weight.shape[0]) for o in range(weight.shape[1]) if max_norm == "whole" or mask[i // inputs, o // outputs] != 0)
    scale = 1. if max_norm == "none" else min(1., 1 / math.sqrt(counted))
    y = np.tile(bias, (len(x), 1))
    for p in range(17):
        for q in range(17):
            rows, columns = slice(p * inputs, (p + 1) * inputs), slice(q * outputs, (q + 1) * outputs)
            y[:, columns] += x[:, rows] @ weight[rows, columns] * scale * mask[p, q]
    return y

MASKS = {f"k{k}": Config(knn=k) for k in (1, 2, 3, 5)} | {n: VARIANTS[n] for n in ("fcn", "tree", "row-normalised", "symmetric-normalised", "laplacian", "random-graph", "learnable", "learnable-ones", "learnable-same")}

@pytest.mark.parametrize("max_norm", ["whole", "visible", "none"])
@pytest.mark.parametrize("name", MASKS)
def test_all_formulations_agree(name, max_norm):
    "Values and gradients, masked entries and learnt gates included; batches of one; norms above and below one."
    torch.manual_seed(1)
    config = MASKS[name]
    structure = Structure(structure_matrix(config).double(), config).double()
    for inputs, outputs, size, factor in ((3, 8, 5, 1.), (8, 8, 1, 1.), (8, 3, 5, 1.), (8, 8, 5, 0.01)):
        layer = LocallyConnected(17, inputs, outputs, structure.matrix, max_norm).double()
        with torch.no_grad(): layer.weight.mul_(factor)
        x, g = torch.randn(size, 17 * inputs, dtype=torch.double, requires_grad=True), torch.randn(size, 17 * outputs, dtype=torch.double)
        def answers(formulation):
            layer.formulation = formulation
            mask = structure()
            y = layer(x, mask)
            wanted = [x, layer.weight, layer.bias] + list(structure.parameters())
            return y, *torch.autograd.grad(y, wanted, g)
        reference = answers("reference")
        assert np.allclose(reference[0].detach().numpy(), loop_product(x, layer.weight, layer.bias, structure(), max_norm, inputs, outputs), atol=1e-12)
        fast = ["dense", None] + (["tiles"] if layer.binary and structure.logits is None else [])
        for formulation in fast:
            for a, b in zip(reference, answers(formulation)): assert torch.allclose(a, b, rtol=1e-9, atol=1e-12), formulation

def test_gradients_by_differences():
    torch.manual_seed(0)
    layer = LocallyConnected(5, 2, 2, (torch.rand(5, 5) < 0.5).float()).double()
    x = torch.randn(2, 10, dtype=torch.double, requires_grad=True)
    for layer.max_norm in ("whole", "visible", "none"):
        def product(x, w, b): return lcn._TiledProduct.apply(x, w, b, layer.cuts, layer.max_norm)
        assert torch.autograd.gradcheck(product, (x, layer.weight, layer.bias))

def test_masked_entries_get_their_gradient_through_the_norm_alone():
    torch.manual_seed(0)
    layer, mask = LocallyConnected(17, 16, 16, structure_matrix(Config(knn=1))), structure_matrix(Config(knn=1))
    layer(torch.randn(9, 272), mask).square().sum().backward()
    hidden = (mask == 0)[:, None, :, None].expand(17, 16, 17, 16).reshape(272, 272)
    ratio = layer.weight.grad[hidden] / layer.weight.detach()[hidden]
    assert float(ratio.std() / ratio.mean().abs()) < 1e-4 and float(ratio.mean().abs()) > 1e-6 # a multiple of the entry itself
    for max_norm in ("visible", "none"):
        layer.max_norm, layer.weight.grad = max_norm, None
        layer(torch.randn(9, 272), mask).square().sum().backward()
        assert float(layer.weight.grad[hidden].abs().max()) == 0

def test_the_rows_of_the_mask_are_sources():
    "Asymmetric on purpose: only joint 3 hears joint 5."
    mask = torch.eye(17)
    mask[5, 3] = 1
    layer = LocallyConnected(17, 4, 4, mask)
    x = torch.randn(2, 68)
    moved = x.clone()
    moved[:, 20:24] += 1
    for layer.formulation in ("reference", "dense", "tiles"):
        heard = (layer(moved, mask) - layer(x, mask)).view(2, 17, 4).abs().amax((0, 2)) > 1e-7
        assert heard.nonzero().flatten().tolist() == [3, 5]

@pytest.mark.parametrize("k", [1, 3])
def test_a_network_of_one_layer_hears_neighbours_only(k):
    "Through the network's own order of joints: the first layer's neighbours of every joint."
    torch.manual_seed(0)
    network = LCNNetwork(Config(knn=k, channels=4))
    x = torch.randn(3, 17, 2)
    layer, mask = network.first.layer, network.structure()
    for joint in range(17):
        moved = x.clone()
        moved[:, joint] += 1
        difference = (layer(moved[:, network.order].flatten(1), mask) - layer(x[:, network.order].flatten(1), mask)).view(3, 17, 4)[:, network.back]
        assert (difference.abs().amax((0, 2)) > 1e-7).tolist() == hops(k)[joint].tolist()

def test_the_folded_weight_follows_the_weights(train):
    "The eval-mode cache: same answer as in training formulation, renewed after a step and after loading."
    torch.manual_seed(0)
    for config in (SMALL, replace(SMALL, mask="learnable"), replace(SMALL, filters="shared"), replace(SMALL, structure="all", max_norm="none")):
        method = build(train, config).eval()
        batch = some(train)
        x = method.network_input(batch.pose_2d, batch)
        def both():
            with torch.no_grad(): cached, again = method.network(x), method.network(x)
            slow = method.network(x).detach() # with gradients the cache is not used
            assert torch.equal(cached, again) and torch.allclose(cached, slow, atol=1e-5)
            return cached
        first = both()
        method.train()
        scheduled = method.optimizers(PLANS["quick"])
        method.step(batch, {n: s.optimizer for n, s in scheduled.items()})
        method.eval()
        assert not torch.allclose(both(), first, atol=1e-6)
        other = build(train, config)
        method.load_state_dict(other.state_dict())
        with torch.no_grad(): assert torch.allclose(both(), other.eval().network(x), atol=1e-5)

# ---------------------------------------------------------------- the network

COUNTS = {"paper": 7_203_507, "confidence": 7_222_003, "channels-32": 1_826_163, "channels-128": 28_611_891}
ACTING = {"paper": 4_365_363, "k2": 2_772_019, "k1": 1_427_635, "confidence": 4_376_563, "channels-32": 1_107_507, "channels-128": 17_332_275}

def test_parameter_counts():
    for name in {**COUNTS, **ACTING}:
        with torch.device("meta"): shapes = {n: p.shape for n, p in nn.ModuleDict({"n": _meta_network(VARIANTS[name])}).named_parameters()}
        stored = sum(s.numel() for s in shapes.values())
        if name in COUNTS: assert stored == COUNTS[name]
        if name in ACTING:
            share = int(neighbourhood(edges(), VARIANTS[name].knn).sum()) / 289
            weights = sum(s.numel() for n, s in shapes.items() if n.endswith("layer.weight") or n.endswith("last.weight"))
            assert stored - weights + round(weights * share) == ACTING[name]
    biases = sum(p.numel() for n, p in LCNNetwork().named_parameters() if n.endswith("layer.bias") or n.endswith("last.bias"))
    assert biases == 7667 and sum(m.num_features * 2 for m in LCNNetwork().modules() if isinstance(m, nn.BatchNorm1d)) == 896

def _meta_network(config):
    network = LCNNetwork.__new__(LCNNetwork)
    with torch.device("cpu"): matrix = structure_matrix(config)
    with torch.device("cpu"): LCNNetwork.__init__(network, config, matrix) if config.channels < 128 else _shapes_only(network, config, matrix)
    return network

def _shapes_only(network, config, matrix):
    "A wide network without drawing its numbers."
    from unittest import mock
    with mock.patch.object(LocallyConnected, "reset_parameters", lambda self: None): LCNNetwork.__init__(network, config, matrix)

def test_the_start():
    "Raw and acting norms; biases are not zero; the fan-in is the dense one; most of the variance before the norm comes from the bias."
    torch.manual_seed(0)
    network = LCNNetwork().requires_grad_(False)
    hidden, mask = network.blocks[0][0].layer, network.structure()
    assert float(hidden.weight.norm()) == pytest.approx(41, abs=.3) and float(network.last.weight.norm()) == pytest.approx(8.9, abs=.2)
    assert float(network.first.layer.weight.norm()) == pytest.approx(41, abs=1.5)
    assert float(acting_weight(hidden.weight, mask).norm()) == pytest.approx(0.78, abs=.01)
    assert float(hidden.bias.std()) == pytest.approx(0.038, abs=.002)
    assert float(hidden.weight.std()) == pytest.approx(0.8796 * math.sqrt(2 / 1088), rel=.01)
    x = torch.rand(400, 17, 2) - 0.5
    before = network.first.layer(x[:, network.order].flatten(1), mask)
    assert 1e-3 < float(before.var()) < 2e-3 and float((before - network.first.layer.bias).var()) < 2e-4

def test_batch_norm_is_per_feature_over_samples_and_joints():
    network = LCNNetwork(SMALL)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm1d)]
    assert len(norms) == 3 and len([m for m in LCNNetwork(Config(channels=4)).modules() if isinstance(m, nn.BatchNorm1d)]) == 7
    assert all(m.num_features == 16 and m.eps == 1e-3 and m.momentum == 0.01 for m in norms)
    seen = []
    stage = network.first
    stage.dropout.p = 0.
    stage.layer.register_forward_hook(lambda module, args, out: seen.append(out.detach()))
    out = stage(torch.randn(32, 34), network.structure())
    h = seen[0].view(32, 17, 16).double()
    expected = (h - h.mean((0, 1))) / (h.var((0, 1), correction=0) + 1e-3).sqrt()
    expected = torch.where(expected > 0, expected, 0.2 * expected)
    assert torch.allclose(out.view(32, 17, 16).double(), expected, atol=1e-4)
    assert torch.allclose(stage.norm.running_mean.double(), h.mean((0, 1)), atol=1e-6) # the first batch; see blocks.settling
    assert torch.allclose(stage.norm.running_var.double(), h.var((0, 1)), atol=1e-6)

def slow_network(arrays, x, config, mask, training, keep=None):
    "The whole network from the released names, in NumPy, joint order of h36m17; `keep` holds dropout factors in training."
    joints, n = 17, len(x)
    def layer(h, w, b):
        clipped = w / max(1., np.sqrt((w ** 2).sum()))
        four = clipped.reshape(joints, -1, joints, w.shape[1] // joints) * mask[:, None, :, None]
        return h @ four.reshape(w.shape) + b
    drops = iter(keep or [])
    def stage(h, w, b, norm):
        h = layer(h, arrays[w], arrays[b]).reshape(n, joints, -1)
        mean, var = (h.mean((0, 1)), h.var((0, 1))) if training else (arrays[f"{norm}/moving_mean"], arrays[f"{norm}/moving_variance"])
        h = (h - mean) / np.sqrt(var + 1e-3) * arrays[f"{norm}/gamma"] + arrays[f"{norm}/beta"]
        h = np.maximum(h, 0.2 * h).reshape(n, -1)
        return h * next(drops) if keep else h
    h = stage(x.reshape(n, -1), "linear_model/w1", "linear_model/b1", "batch_normalization")
    for i in range(config.blocks):
        inner = stage(h, f"linear_model/two_linear_{i}/w2_{i}", f"linear_model/two_linear_{i}/b2_{i}", f"batch_normalization1{i}")
        h = h + stage(inner, f"linear_model/two_linear_{i}/w3_{i}", f"linear_model/two_linear_{i}/b3_{i}", f"batch_normalization2{i}")
    y = layer(h, arrays["linear_model/w4"], arrays["linear_model/b4"]).reshape(n, joints, 3)
    y[..., :2] += x[..., :2]
    return y

def released_arrays(config, seed=0):
    "Made-up arrays of a checkpoint, by the shapes that the document gives."
    rng, f = np.random.default_rng(seed), config.channels
    shapes = {"linear_model/w1": (17 * config.in_features, 17 * f), "linear_model/b1": (17 * f,), "linear_model/w4": (17 * f, 51), "linear_model/b4": (51,)}
    norms = ["batch_normalization"]
    for i in range(config.blocks):
        norms += [f"batch_normalization1{i}", f"batch_normalization2{i}"]
        for k in (2, 3): shapes |= {f"linear_model/two_linear_{i}/w{k}_{i}": (17 * f, 17 * f), f"linear_model/two_linear_{i}/b{k}_{i}": (17 * f,)}
    arrays = {n: rng.normal(0, math.sqrt(2 / s[0]), s) for n, s in shapes.items()}
    for n in norms: arrays |= {f"{n}/gamma": rng.uniform(.5, 1.5, f), f"{n}/beta": rng.normal(0, .2, f), f"{n}/moving_mean": rng.normal(0, .02, f), f"{n}/moving_variance": rng.uniform(.001, .01, f)}
    return arrays

@pytest.mark.parametrize("config", [Config(channels=16), Config(channels=16, in_features=3, knn=1, blocks=2), Config(channels=20, structure="all", blocks=1), Config(channels=5, knn=2)])
def test_forward_parity_with_an_independent_network(config, test):
    "Released names in, answers out, in eval and training mode, with the training loss."
    arrays = released_arrays(config)
    method = from_released({f"{n}:0": v for n, v in arrays.items()}, config)
    mask = np.ones((17, 17)) if config.structure == "all" else hops(config.knn).astype(float)
    batch = some(test, 40)
    batch.confidence = torch.rand(40, 17)
    x = method.network_input(batch.pose_2d, batch)
    assert x.shape[-1] == config.in_features
    method.double()
    x = x.double()
    with evaluating(method): answer = method.network(x)
    assert np.allclose(answer.numpy(), slow_network({n: v.astype(np.float32).astype(float) for n, v in arrays.items()}, x.numpy(), config, mask, False), atol=1e-9)
    method.train()
    keep = []
    for m in method.modules():
        if isinstance(m, FastDropout): m.register_forward_hook(lambda module, args, out: keep.append((out / args[0]).detach()))
    answer = method.network(x)
    back = [k.unflatten(1, (17, -1))[:, method.network.back].flatten(1).numpy() for k in keep]
    wanted = slow_network({n: v.astype(np.float32).astype(float) for n, v in arrays.items()}, x.numpy(), config, mask, True, back)
    assert np.allclose(answer.detach().numpy(), wanted, atol=1e-8) and {round(v, 4) for v in np.unique(back[0]).tolist()} == {0., round(4 / 3, 4)}
    labels = method.wanted(batch).numpy()
    assert float(nn.functional.mse_loss(answer.float(), torch.tensor(labels).float())) == pytest.approx(((wanted - labels) ** 2).mean(), rel=1e-5)

def test_released_weights_make_the_round_trip_and_refuse_what_is_odd():
    arrays = released_arrays(SMALL)
    method = from_released(arrays, SMALL)
    for theirs, ours in released_names(1).items():
        value = method.state_dict()[ours]
        value = value if ".norm." in ours else lcn._reordered(value, method.network.back)
        assert torch.equal(value, torch.tensor(arrays[theirs], dtype=torch.float32))
    assert len(released_names()) == 2 * 8 + 4 * 7
    bad = {"lacks linear_model/w1": {n: v for n, v in arrays.items() if n != "linear_model/w1"}, "unknown mask": arrays | {"mask": np.ones(3)},
           "has shape": arrays | {"linear_model/w1": np.ones((34, 5))}, "NaN": arrays | {"linear_model/b4": np.full(51, np.nan)}}
    for words, given in bad.items():
        with pytest.raises(InputError, match=words) as refusal: from_released(given, SMALL)
        assert "\n" not in str(refusal.value)
    with pytest.raises(InputError, match="fixed mask"): from_released(arrays, replace(SMALL, mask="learnable"))

def test_the_long_skip_adds_position_only():
    network = LCNNetwork(replace(SMALL, in_features=3)).eval()
    with torch.no_grad():
        network.last.weight.zero_(); network.last.bias.zero_()
        x = torch.rand(5, 17, 3)
        y = network(x)
        assert torch.equal(y[..., :2], x[..., :2]) and float(y[..., 2].abs().max()) == 0
        assert float(LCNNetwork(replace(SMALL, target="metric")).eval().requires_grad_(False)(x[..., :2]).sub(x).abs().min()) > 0

def test_the_confidence_is_heard_and_not_normalised(train):
    method = build(train, replace(SMALL, in_features=3)).eval()
    batch = some(train)
    assert torch.equal(method.network_input(batch.pose_2d, batch)[..., 2], batch.confidence)
    with torch.no_grad(): sure = method.answer(batch)
    unsure = some(train)
    unsure.confidence = torch.full((64, 17), 0.3)
    with torch.no_grad(): assert not torch.allclose(sure, method.answer(unsure), atol=1e-5)

def test_learnable_masks():
    near = torch.tensor(hops(3)).float()
    ones, same = (Structure(near.clone(), Config(mask="learnable", init=i)) for i in ("ones", "same"))
    assert torch.allclose(ones()[near != 0], torch.tensor(1 / 17)) and float(ones()[near == 0].max()) == 0
    e = np.exp(hops(3).astype(float))
    assert np.allclose(same().detach().numpy(), e / e.sum(0) * hops(3), atol=1e-6)
    torch.manual_seed(0)
    drawn = Structure(near.clone(), Config(mask="learnable"))
    assert 0 <= float(drawn.logits.min()) and float(drawn.logits.max()) <= 1 and float(drawn.logits.std()) > 0.2
    network = LCNNetwork(replace(SMALL, mask="learnable"))
    network(torch.randn(8, 17, 2)).square().sum().backward()
    assert network.structure.logits.shape == (17, 17) and float(network.structure.logits.grad.abs().min()) > 0 # what is masked learns through the softmax
    assert sum("logits" in n for n, _ in network.named_parameters()) == 1

def test_a_shared_filter_is_a_graph_convolution():
    torch.manual_seed(0)
    mask = torch.rand(17, 17)
    layer = SharedFilter(17, 3, 4, mask)
    x = torch.randn(2, 51)
    w = layer.weight / max(1., float(layer.weight.norm()))
    for q in range(17):
        expected = sum(mask[p, q] * x.view(2, 17, 3)[:, p] for p in range(17)) @ w + layer.bias
        assert torch.allclose(layer(x, mask).view(2, 17, 4)[:, q], expected, atol=1e-5)
    assert sum(p.numel() for p in LCNNetwork(VARIANTS["gcn"]).parameters()) < 30_000

# ---------------------------------------------------------------- targets, flips, predictions

def test_targets_are_the_documents(test):
    "By hand, in millimetres, as the document writes them; the box's plus one included; W of each camera, H only in y."
    odd = replace(test.cameras, resolution=torch.tensor([[1000., 1002.], [1000., 1000.], [900., 800.], [1000., 1002.]], dtype=torch.float64))
    poses = replace(test, cameras=odd)
    batch = some(poses, 200)
    found = LCN(config=SMALL).wanted(batch).double().numpy()
    for i in range(0, 200, 7):
        c = int(poses.camera_id[batch.index[i]])
        (fx, fy, cx, cy), (w, h) = odd.intrinsics[c].tolist(), odd.resolution[c].tolist()
        X, Y, Z = (1000 * batch.pose_3d[i].double().numpy()).T
        x1, x2 = ((fx * (X[0] + s) / Z[0] + cx) for s in (-1000, 1000))
        r = (x2 - x1 + 1) / 2000
        expected = np.stack([2 * (fx * X / Z + cx) / w - 1, 2 * (fy * Y / Z + cy) / w - h / w, 2 * r * (Z - Z[0]) / w], 1)
        assert np.allclose(found[i], expected, atol=2e-5)
    assert np.abs(found[:, 0, 2]).max() == 0

def test_exact_2d_is_the_label(test):
    "Also through a lens: the network sees ideal pinhole pixels; detections stay as they are."
    lens = replace(test.cameras, distortion=test.cameras.distortion + torch.tensor([-.2, .2, 0., .001, -.001], dtype=torch.float64))
    from poseprojects.camera import project
    bent = replace(test, cameras=lens, pose_2d=project(test.pose_3d.double(), lens[test.camera_id.long()]).float())
    method = LCN(config=SMALL)
    for poses in (test, bent):
        batch = some(poses)
        assert torch.allclose(method.network_input(method.exact_pixels(batch), batch), method.wanted(batch)[..., :2], atol=2e-5)
    found = some(replace(bent, input_2d="detector"))
    assert torch.equal(method.exact_pixels(found), found.pose_2d) and float((found.pose_2d - method.exact_pixels(some(bent))).abs().max()) > 1

def test_an_exact_network_scores_zero_everywhere(test):
    "The way back is exact: a network that answers its labels has no error under any of its protocols, absolute or not."
    method = LCN(config=SMALL)
    method.answer = lambda batch: method.wanted(batch)
    for fidelity in ("paper", "release"):
        for protocol in scoring(synthetic.PROTOCOL, Config(), fidelity):
            assert evaluate(method, test, protocol)["mpjpe"] < 0.01, protocol.id
    batch = some(test)
    assert torch.allclose(method.predict_absolute(batch)[:, 0], batch.pose_3d, atol=1e-5) and torch.allclose(method.predict(batch)[:, 0], batch.target, atol=1e-5)

def test_without_depth_only_depth_is_wrong(test):
    "A head that answers nothing leaves the flat pose at the true root depth."
    method = LCN(config=SMALL).eval()
    with torch.no_grad(): method.network.last.weight.zero_(); method.network.last.bias.zero_()
    batch = some(test)
    with torch.no_grad(): assert torch.allclose(method.predict(batch), ConstantDepth().predict(batch), atol=1e-4)

def test_flips_double_the_set_its_steps_and_lower_the_last_rate(train):
    twice = prepared(train, Config(flip=True))
    twice.check()
    assert len(twice) == 2 * len(train) and prepared(train, Config()) is train and twice.fingerprint != train.fingerprint
    n, plan = len(train), Plan("short", 1, 200, 1e-3)
    from poseprojects.train.engine import Stream
    assert Stream("train", twice, plan, 0, "cpu").steps == 2 * n // 200
    method = LCN(config=SMALL)
    here, there = Batch(twice, torch.arange(0, n, 97)), Batch(twice, torch.arange(n, 2 * n, 97))
    assert torch.allclose(method.wanted(there), mirror(method.wanted(here), H36M17), atol=2e-5)
    assert torch.allclose(method.network_input(there.pose_2d, there), mirror(method.network_input(here.pose_2d, here), H36M17), atol=2e-5)
    off = replace(train, cameras=replace(train.cameras, intrinsics=train.cameras.intrinsics + torch.tensor([0., 0., 9., 0.], dtype=torch.float64)), input_2d="other")
    assert torch.allclose(doubled(off).cameras.intrinsics[4:, 2], off.cameras.resolution[:, 0] - off.cameras.intrinsics[:, 2])

def test_flip_averaging_is_symmetric(train, test):
    "The answer to the mirrored input is the mirrored answer, whatever the weights; without averaging it is not."
    torch.manual_seed(0)
    for config in (replace(SMALL, flip_test=True), replace(SMALL, flip_test=True, target="metric"), replace(SMALL, flip_test=True, in_features=3)):
        method = randomised(build(train, config)).eval()
        twice = doubled(test)
        here, there = Batch(twice, torch.arange(0, len(test), 97)), Batch(twice, torch.arange(len(test), 2 * len(test), 97))
        with torch.no_grad():
            assert torch.allclose(method.predict(there)[:, 0], mirror(method.predict(here)[:, 0], H36M17), atol=1e-4)
            method.config = replace(config, flip_test=False)
            assert not torch.allclose(method.predict(there)[:, 0], mirror(method.predict(here)[:, 0], H36M17), atol=1e-3)

def test_the_metric_variant_uses_no_truth(train, test):
    method = build(train, replace(SMALL, target="metric")).eval()
    batch, blind = some(test), some(test)
    blind.pose_3d = torch.full_like(batch.pose_3d, 7.)
    with torch.no_grad(): assert torch.equal(method.predict(batch), method.predict(blind)) and method.predict(batch).shape == (64, 1, 17, 3)
    with pytest.raises(InputError, match="cannot place"): method.predict_absolute(batch)
    assert scoring(synthetic.PROTOCOL, method.config, "release") == (synthetic.PROTOCOL,)
    every = Batch(train, torch.arange(len(train)))
    x = method.network_input(every.pose_2d, every)
    assert torch.allclose(x.mean(0), torch.zeros(17, 2), atol=1e-3) and torch.allclose(x.std(0), torch.ones(17, 2), atol=1e-2)
    moved = method.network_input(every.pose_2d + 10, every) - x
    assert float(moved[:, 1:].abs().max()) < 1e-3 < float(moved[:, 0].abs().min()) # only the root's place moves

# ---------------------------------------------------------------- protocols and plans

def test_protocols_of_the_release():
    found = scoring(H36M_P1, Config(), "release")
    for mine, theirs in zip(found, (LCN_P1, LCN_P2, LCN_P2_ROTATION, LCN_ROOT_ALIGNED)):
        same = mine.but(theirs.id, selection=theirs.selection)
        assert mine.id == theirs.id and mine.selection == "best-on-test" and same.but("x", note="") == theirs.but("x", note="") and "true box and root depth" in mine.note
    assert found[-1].id == "lcn-p1-undamaged" and len(found[-1].exclusions) == 3 and found[0].exclusions == () and len(found) == 6
    others = scoring(synthetic.PROTOCOL, Config(), "release")
    assert [p.id for p in others] == [f"synthetic-lcn-{n}" for n in ("p1", "p2", "p2-rotation", "root-aligned", "p1-last")] and all(p.subjects == synthetic.PROTOCOL.subjects and p.action_mean for p in others)
    own, = scoring(synthetic.PROTOCOL, Config(), "paper")
    assert own.id == "synthetic" and own.alignment == "root" and "true box and root depth" in own.note and synthetic.PROTOCOL.note in own.note

def test_the_published_plan():
    plan, n = PLANS["paper"], 1_559_752
    assert (plan.epochs, plan.batch_size, plan.learning_rate) == (200, 200, 1e-3)
    assert int(plan.epochs * n / plan.batch_size) == n and n // 200 == 7798 # as many steps as samples
    rate = lambda step: plan.learning_rate * plan.schedule(Clock(step, n))
    assert rate(n) == pytest.approx(1.37e-4, rel=.005) and rate(2 * n) == pytest.approx(1.87e-5, rel=.005) and rate(16_000) == pytest.approx(1e-3 * 0.96 ** .5)
    assert [1e-3 * STEP_SCHEDULE(Clock(s, n)) for s in (0, 249_999, 250_000, 999_999, 1_000_000, 1_400_000)] == pytest.approx([1e-3, 1e-3, 7e-4, 4e-4, 2e-4, 1e-4])
    assert set(lcn.DEFAULT_VARIANT) == set(PLANS) and set(lcn.DEFAULT_VARIANT.values()) <= set(VARIANTS)
    group = LCN(config=SMALL).optimizers(plan)["lifter"].optimizer.param_groups[0]
    assert (group["betas"], group["eps"], group["lr"], group["weight_decay"]) == ((0.9, 0.999), 1e-8, 1e-3, 0)

BAD = {"mask": "locally", "init": "zeros", "structure": "ring", "knn": 0, "filters": "both", "blocks": -1, "channels": 0, "in_features": 4, "dropout": 1., "max_norm": "clip", "l2": -1., "target": "3d"}

@pytest.mark.parametrize("name", BAD)
def test_bad_options_are_refused_in_a_sentence(name):
    with pytest.raises(InputError, match=name) as refusal: Config(**{name: BAD[name]})
    assert "\n" not in str(refusal.value)

def test_other_refusals(train):
    with pytest.raises(InputError, match="zeros and ones"): Config(mask="learnable", structure="laplacian")
    with pytest.raises(InputError, match="h36m17"): LCN(H36M16)
    with pytest.raises(InputError, match="no 3D"): build(replace(train, pose_3d=None), SMALL)
    with pytest.raises(InputError, match="whole number"): Config(knn=2.5)

@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_builds_and_trains(name, train):
    config = replace(VARIANTS[name], channels=4 if VARIANTS[name].channels == 64 else VARIANTS[name].channels // 16)
    seed_everything(0)
    method = build(train, config)
    optimizers = {n: s.optimizer for n, s in method.optimizers(PLANS["quick"]).items()}
    batch, before = some(prepared(train, config)), {n: p.detach().clone() for n, p in method.named_parameters()}
    losses = [float(method.step(batch, optimizers)["mse"].detach()) for _ in range(12)]
    assert losses[-1] < losses[0] and all(not torch.equal(p, before[n]) for n, p in method.named_parameters())
    with evaluating(method): assert method.predict(some(train)).shape == (64, 1, 17, 3)

def test_the_penalty_counts_weights_and_biases_but_not_the_norms(train):
    torch.manual_seed(0)
    method = build(train, replace(SMALL, dropout=0.))
    batch = some(train)
    plain = float(method.loss(batch).detach())
    method.config = replace(method.config, l2=1e-3)
    expected = sum(float(p.detach().double().square().sum()) / 2 for n, p in method.named_parameters() if ".norm." not in n)
    assert float(method.loss(batch).detach()) - plain == pytest.approx(1e-3 * expected, rel=1e-3)

def test_detections_must_belong_to_the_frames(test):
    noise = test.pose_2d + 3 * torch.randn(test.pose_2d.shape, generator=torch.Generator().manual_seed(0))
    sure = torch.full((len(test), 17), .8)
    found = with_detections(test, noise, sure, "noise")
    assert found.input_2d == "noise" and torch.equal(found.pose_2d, noise) and torch.equal(found.confidence, sure) and found.fingerprint != test.fingerprint
    with pytest.raises(InputError, match="row by row"): with_detections(test, noise[:-1], sure, "noise")
    with pytest.raises(InputError, match="one number per joint"): with_detections(test, noise, sure[:, :-1], "noise")
    one = noise.clone()
    last = int(test.camera_id[-1])
    clip = (test.camera_id == test.camera_id[-1]) & (test.sequence == test.sequence[-1])
    one[clip] += 400 # a single recording is enough
    with pytest.raises(InputError, match=f"{test.cameras.names[last]} lie .* body sizes"): with_detections(test, one, sure, "noise")

# ---------------------------------------------------------------- only the weights that act

@pytest.mark.parametrize("options", [dict(knn=1), dict(knn=3, in_features=3), dict(structure="tree", knn=2, standardised=True)])
def test_the_weights_that_act_alone_make_the_same_network(train, options):
    "Given the visible entries of the stored matrices, loss and gradients are those of the network that also stores the masked ones."
    config = replace(SMALL, dropout=0., max_norm="visible", **options)
    whole, packed = build(train, config), build(train, replace(config, stored="visible"))
    state, mask = whole.state_dict(), whole.network.structure.matrix
    def blocks(matrix): return matrix.unflatten(0, (17, -1)).unflatten(2, (17, -1)).permute(0, 2, 1, 3)[mask != 0]
    packed.load_state_dict({n: blocks(v) if n.endswith("weight") and v.ndim == 2 else v for n, v in state.items()})
    batch = some(train)
    for method in (whole, packed): method.train().loss(batch).backward()
    ours, theirs = dict(packed.named_parameters()), dict(whole.named_parameters())
    assert float(packed.loss(batch).detach()) == pytest.approx(float(whole.loss(batch).detach()), rel=1e-5) and ours.keys() == theirs.keys()
    for name, p in theirs.items():
        wanted = blocks(p.grad) if name.endswith("weight") and p.ndim == 2 else p.grad
        assert torch.allclose(ours[name].grad, wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()) + 1e-9), name
    assert sum(p.numel() for p in ours.values()) < sum(p.numel() for p in theirs.values())

@pytest.mark.parametrize("wrong", [dict(max_norm="whole"), dict(mask="learnable"), dict(filters="shared"), dict(structure="laplacian")])
def test_what_cannot_be_stored_as_visible_blocks_is_refused(wrong):
    with pytest.raises(InputError, match="stored = 'visible' goes with"): Config(**({"stored": "visible", "max_norm": "visible"} | wrong))

# ---------------------------------------------------------------- training

def test_the_fast_network_trains_like_the_literal_one(train):
    "Twenty steps of the same numbers: losses agree to rounding."
    def losses(formulation):
        seed_everything(0)
        method = formulated(build(train, Config(channels=16, blocks=1, knn=2)), formulation)
        return [row["mse"] for row in fit(method, train, Plan("short", 1, 64, 1e-3), trace=20).first_losses]
    fast, literal = losses("tiles"), losses("reference")
    assert len(fast) == 20 and fast == pytest.approx(literal, rel=2e-3) and fast != [fast[0]] * 20

def test_a_killed_run_ends_with_the_same_numbers(train, tmp_path):
    plan, few = Plan("short", 2, 100, 1e-3), train.select(torch.arange(1000))
    def fresh():
        seed_everything(3)
        return build(few, replace(SMALL, mask="learnable"))
    whole, broken = fresh(), fresh()
    fit(whole, few, plan)
    step, made = LCN.step, []
    def failing(batch, optimizers):
        made.append(1)
        if len(made) == 14: raise KeyboardInterrupt
        return step(broken, batch, optimizers)
    broken.step = failing
    with pytest.raises(KeyboardInterrupt): fit(broken, few, plan, folder=tmp_path, checkpoint_every=3)
    resumed = fresh()
    history = fit(resumed, few, plan, folder=tmp_path)
    assert history.steps == 20
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values()): assert torch.equal(a, b), name

LEARNT = 0.5 # largest share of the trivial answers' error

@pytest.mark.slow
@pytest.mark.parametrize("target", ["metric", "image"])
def test_it_learns(target, train, test):
    "Other people than those it was trained on; the image target also knows the depth of the root, so the flat pose is its trivial answer."
    seed_everything(0)
    method = build(train, Config(target=target, channels=16, blocks=2, dropout=0.))
    history = fit(method, train, Plan("learning", 14 if target == "image" else 6, 64, 3e-3, Schedule("one_cycle", end=0.001)))
    learnt, mean, flat = (evaluate(m, test, synthetic.PROTOCOL) for m in (method, MeanPose(train), ConstantDepth()))
    print(f"{target}: MPJPE {learnt['mpjpe']:.1f} mm, mean pose {mean['mpjpe']:.1f}, constant depth {flat['mpjpe']:.1f}, {history.seconds:.0f} s")
    assert learnt["mpjpe"] < LEARNT * mean["mpjpe"] and learnt["mpjpe"] < (0.75 if target == "image" else 1.) * flat["mpjpe"]
