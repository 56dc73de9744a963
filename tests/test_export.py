"A lifter as one file: the same answers in onnxruntime and in torch.export, any batch, and a description that is enough to use it."
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import refused, some
from poseprojects.export import FORMAT, description, export, inputs_of, largest_difference, opened
from poseprojects.papers import lcn, martinez, mlp, semgcn, stgcn, videopose
from poseprojects.train.engine import Plan, fit
from poseprojects.train.evaluation import evaluating

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.xdist_group("export")]
LIFTERS = { # small networks of every kind
    "martinez": (martinez, martinez.Config(width=32, dropout=0.1)), "lcn": (lcn, lcn.Config(target="metric", channels=4, blocks=1)),
    "mlp": (mlp, replace(mlp.VARIANTS["poseaug"], width=32)), "mlp-17": (mlp, replace(mlp.VARIANTS["short-run"], width=32)), "semgcn": (semgcn, replace(semgcn.VARIANTS["short-run"], width=16, units_deep=1)),
    "semgcn-non-local": (semgcn, replace(semgcn.VARIANTS["paper"], width=16, units_deep=1)), "stgcn": (stgcn, stgcn.VARIANTS["poseaug"]), "videopose": (videopose, replace(videopose.VARIANTS["poseaug"], channels=32)),
    "videopose-9": (videopose, replace(videopose.VARIANTS["short-run-9"], channels=16))}


@pytest.fixture(scope="module")
def methods(train):
    "Every lifter after a few steps, so that no statistics are those of the start."
    made = {}
    for name, (paper, config) in LIFTERS.items():
        torch.manual_seed(0)
        made[name] = paper.build(train, config)
        fit(made[name], train.select(torch.arange(0, 640, 5)), Plan("few", 1, 32, 1e-3), show=False)
    return made


@pytest.mark.parametrize("name, suffix", [*((name, ".onnx") for name in LIFTERS), *((name, ".pt2") for name in ("martinez", "semgcn", "videopose-9"))])
def test_the_file_answers_as_the_method(name, suffix, methods, tmp_path):
    method = methods[name]
    told = export(method, tmp_path / f"lifter{suffix}")
    assert [p.name for p in tmp_path.iterdir()] == [f"lifter{suffix}"], "one file, nothing else"
    for batch in (1, 5): assert largest_difference(method, tmp_path / f"lifter{suffix}", batch) < 1e-4
    run, found = opened(tmp_path / f"lifter{suffix}")
    assert found == json.loads(json.dumps(told)) and found["format"] == FORMAT and found["skeleton"]["joints"] == list(method.skeleton.joints) and found["output"]["unit"] == "m"
    assert ("resolution" in found["inputs"]) == (name == "lcn" or getattr(method.config, "units", "") == "screen")


def test_real_samples_and_not_only_random_ones(methods, train, tmp_path):
    export(methods["semgcn"], tmp_path / "lifter.onnx")
    run, _ = opened(tmp_path / "lifter.onnx")
    batch = some(train)
    with evaluating(methods["semgcn"]): wanted = methods["semgcn"].predict(batch)[:, 0]
    assert float((run(pose_2d=batch.pose_2d) - wanted).abs().max()) < 1e-4 < float(wanted.std())


def test_it_runs_without_this_library(methods, tmp_path):
    "As on the page: onnxruntime, numpy and the description."
    import onnxruntime
    export(methods["mlp"], tmp_path / "lifter.onnx", {"trained_on": "nothing much"})
    session = onnxruntime.InferenceSession(str(tmp_path / "lifter.onnx"), providers=["CPUExecutionProvider"])
    told = json.loads(session.get_modelmeta().custom_metadata_map["poseprojects"])
    assert told["trained_on"] == "nothing much" and [i.name for i in session.get_inputs()] == list(told["inputs"]) == ["pose_2d", "resolution"]
    pose, = session.run(None, {"pose_2d": np.full((4, len(told["skeleton"]["joints"]), 2), 500, np.float32), "resolution": np.full((4, 2), 1000, np.float32)})
    assert pose.shape == (4, 17, 3) and np.abs(pose[:, 0]).max() < 1e-6


def test_an_image_of_another_size_is_another_input(methods, tmp_path):
    "Lifters in screen units see the same when pixels and size are doubled."
    export(methods["mlp"], tmp_path / "lifter.pt2")
    run, _ = opened(tmp_path / "lifter.pt2")
    pose_2d, size = 300 + 100 * torch.rand(2, 17, 2), torch.tensor([[1000., 800.]] * 2)
    assert torch.allclose(run(pose_2d=pose_2d, resolution=size), run(pose_2d=2 * pose_2d, resolution=2 * size), atol=1e-5)
    assert not torch.allclose(run(pose_2d=pose_2d, resolution=size), run(pose_2d=pose_2d, resolution=2 * size), atol=1e-3)


def test_what_cannot_be_exported_is_refused(methods, train, tmp_path, monkeypatch):
    method = methods["mlp"]
    assert "nobody knows of a new video" in str(pytest.raises(Exception, inputs_of, lcn.build(train, lcn.VARIANTS["paper"])).value)
    assert ".onnx or .pt2" in refused(export, method, tmp_path / "lifter.pt")
    assert "no folder" in refused(export, method, tmp_path / "none" / "lifter.pt2")
    assert "no such file" in refused(opened, tmp_path / "none.onnx")
    for name in ("a.onnx", "a.pt2"):
        (tmp_path / name).write_bytes(b"not a graph")
        assert "cannot read it" in refused(opened, tmp_path / name)
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(torch.export, "save", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError): export(method, tmp_path / "lifter.pt2")
    assert sorted(tmp_path.iterdir()) == before, "nothing half-written"
    assert method.training, "the method is as it was"


def test_the_description_is_plain(methods):
    told = description(methods["videopose-9"], ("pose_2d",), True)
    assert told["inputs"]["pose_2d"]["shape"] == "batch, frames, joints, 2" and told["output"]["shape"] == "batch, frames - 8, joints, 3" and told["frames"] == 9
    assert json.loads(json.dumps(told))["options"]["widths"] == [3, 3]
