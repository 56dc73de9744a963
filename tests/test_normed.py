"Linear layer, batch norm and ReLU in pieces: equal to PyTorch's own operators, forward, backward and in the running statistics."
import copy

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from poseprojects.papers import normed as module
from poseprojects.papers.normed import as_poses, in_pieces, normed, normed_reference, piece_size

pytestmark = pytest.mark.usefixtures("one_thread")


def layer(pieces, nodes, poses, inputs, outputs, ways, heard_by, bias_rows, relu, affine_scale=1.):
    "Random numbers of these sizes in double precision; `ways` 0: no graph."
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64)
    norm = nn.BatchNorm1d(outputs).double()
    with torch.no_grad(): norm.weight.copy_(affine_scale * draw(outputs)), norm.bias.copy_(draw(outputs)), norm.running_mean.copy_(draw(outputs)), norm.running_var.copy_(1 + draw(outputs) ** 2)
    heard_by = heard_by if ways else nodes
    return dict(x=draw(pieces, nodes, poses, inputs), weight=draw(max(ways, 1), inputs, outputs), norm=norm, mix=draw(ways * heard_by, nodes) if ways else None,
                bias=None if not bias_rows else draw(heard_by if bias_rows > 1 else 1, outputs), relu=relu)


def answers(form, parts):
    "Output, slopes of everything, running statistics."
    parts = copy.deepcopy(parts)
    wanted = [parts[name].requires_grad_() for name in ("x", "weight", "mix", "bias") if parts[name] is not None] + list(parts["norm"].parameters())
    z = form(**parts)
    slopes = torch.autograd.grad((z * torch.linspace(-1, 2, z.numel(), dtype=z.dtype).view(z.shape)).sum(), wanted)
    return [z.detach(), *slopes, *parts["norm"].buffers()]


@settings(max_examples=60, deadline=None)
@given(pieces=st.integers(1, 4), nodes=st.integers(1, 5), poses=st.integers(2, 6), inputs=st.integers(1, 5), outputs=st.integers(1, 6), ways=st.integers(0, 4), heard_by=st.integers(1, 5), bias_rows=st.integers(0, 2), relu=st.booleans(), seed=st.integers(0, 99))
def test_the_fast_form_is_the_equation(pieces, nodes, poses, inputs, outputs, ways, heard_by, bias_rows, relu, seed):
    torch.manual_seed(seed)
    parts = layer(pieces, nodes, poses, inputs, outputs, ways, heard_by, bias_rows, relu)
    for fast, slow in zip(answers(normed, parts), answers(normed_reference, parts)): assert fast.shape == slow.shape and torch.allclose(fast, slow, atol=1e-9, rtol=1e-8)


def test_slopes_are_those_of_finite_differences():
    torch.manual_seed(0)
    parts = layer(2, 3, 4, 2, 3, 2, 3, 2, True)
    def of(x, weight, mix, bias): return normed(x, weight, parts["norm"], mix, bias)
    assert torch.autograd.gradcheck(of, [parts[n].requires_grad_() for n in ("x", "weight", "mix", "bias")], atol=1e-6)


def test_the_fast_form_is_used_in_training_on_the_cpu_and_nowhere_else(monkeypatch):
    used = []
    monkeypatch.setattr(module, "normed_reference", lambda *arguments: used.append("reference") or normed_reference(*arguments))
    parts = layer(2, 3, 4, 2, 3, 2, 3, 1, True)
    normed(**parts)
    assert used == []
    for change in (lambda norm: norm.eval(), lambda norm: norm.register_forward_pre_hook(lambda *_: None), lambda norm: setattr(norm, "__class__", type("Other", (nn.BatchNorm1d,), {}))):
        other = copy.deepcopy(parts)
        change(other["norm"])
        normed(**other)
    with torch.no_grad(): normed(**parts)
    assert used == ["reference"] * 5, "in evaluation once for each of two pieces"


def test_large_offsets_do_not_spoil_the_variance():
    "Channels whose mean is a thousand times their deviation, in single precision."
    torch.manual_seed(0)
    parts = {n: v.float() if isinstance(v, torch.Tensor) else v for n, v in layer(8, 4, 32, 3, 5, 0, 0, 0, False).items()}
    parts["norm"] = nn.BatchNorm1d(5)
    parts["x"] = torch.cat([parts["x"][..., :2], torch.ones_like(parts["x"][..., :1])], -1)
    parts["weight"] = torch.cat([torch.randn(1, 2, 5), torch.full((1, 1, 5), 100.)], 1)
    for fast, slow in zip(answers(normed, parts)[:2], answers(normed_reference, parts)[:2]): assert torch.allclose(fast, slow, atol=2e-3 * float(slow.abs().max()))


def test_a_channel_with_one_number_has_no_variance():
    with pytest.raises(ValueError, match="more than 1 value"): normed(torch.randn(1, 1, 1, 8), torch.randn(1, 8, 3), nn.BatchNorm1d(3))


def test_numerical_noise_never_gives_a_negative_variance():
    parts = layer(2, 2, 4, 1, 3, 0, 0, 0, True)
    parts["x"] = torch.full_like(parts["x"], 1e4)
    assert bool(normed(**parts).isfinite().all())


@pytest.mark.parametrize("poses, most, size", [(1024, 64, 64), (1000, 64, 50), (200, 64, 50), (3, 64, 3), (1021, 64, 1021), (1, 64, 1)])
def test_pieces_hold_every_pose_once(poses, most, size):
    assert piece_size(poses, most) == size
    x = torch.arange(poses * 6.).view(poses, 3, 2)
    assert torch.equal(as_poses(in_pieces(x, most)), x) and in_pieces(x, most).is_contiguous()
