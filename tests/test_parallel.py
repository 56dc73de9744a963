"Several processes: the same run as in one, killed workers, another number of processes, two machines, what is refused, what is left behind."
import json, os, signal, socket, subprocess, sys, textwrap, time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from parallel_methods import LAYERS, Adversarial, Interrupted, Lifter, Sunk, exchange, inputs, perish
from poseprojects.data import synthetic
from poseprojects.data.base import PoseSet
from poseprojects.papers.martinez import Config, Martinez
from poseprojects.storage import InputError
from poseprojects.train import engine, parallel
from poseprojects.train.checkpoints import load_checkpoint, seed_everything
from poseprojects.train.devices import Devices, choose_devices
from poseprojects.train.engine import Batch, NonFiniteLoss, Plan, Stream, TrainingStopped, fit
from poseprojects.train.evaluation import evaluate
from poseprojects.train.parallel import Shard, WorkerError, launch, share_layers
from poseprojects.train.schedules import Clock, Schedule

PLAN = Plan("small", epochs=2, batch_size=128, learning_rate=2e-3, schedule=Schedule("cosine"), clip_norm=0.5)
TWO = Devices("cpu", processes=2)

@pytest.fixture(scope="module")
def train(): return synthetic.load("train", samples=8000)

@pytest.fixture(scope="module")
def test(): return synthetic.load("test", samples=8000)

@pytest.fixture(autouse=True)
def nothing_left_behind(tmp_path, monkeypatch):
    "One thread, and a place of its own for what a run keeps only while it lasts."
    before, place = torch.get_num_threads(), tmp_path / "temporary"
    torch.set_num_threads(1); place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    kept = lambda: {k: v for k, v in os.environ.items() if k not in ("PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR")}
    handlers, variables = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)], kept()
    yield
    torch.set_num_threads(before)
    assert not list(place.glob("*poseprojects*"))
    assert handlers == [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] and kept() == variables

def assert_close_run(one, several, test):
    "Losses of the first 20 steps within 1e-4, final metrics within half a percent; each a pair of method and history."
    (a, of_a), (b, of_b) = one, several
    assert len(of_a.first_losses) == len(of_b.first_losses) == 20
    for x, y in zip(of_a.first_losses, of_b.first_losses):
        assert sorted(x) == sorted(y)
        for name in x: assert abs(x[name] - y[name]) < 1e-4
    assert [[k for k in row] for row in of_a.rows] == [[k for k in row] for row in of_b.rows]
    for x, y in zip(of_a.rows, of_b.rows):
        for name in x:
            if name != "seconds": assert x[name] == pytest.approx(y[name], rel=5e-3, abs=1e-6)
    assert (of_a.steps, of_a.samples) == (of_b.steps, of_b.samples)
    scores = [evaluate(m, test, synthetic.PROTOCOL) for m in (a, b)]
    for name in ("mpjpe", "pa_mpjpe"): assert scores[0][name] == pytest.approx(scores[1][name], rel=5e-3)
    print("largest difference of a loss", max(abs(x[n] - y[n]) for x, y in zip(of_a.first_losses, of_b.first_losses) for n in x), "MPJPE", [s["mpjpe"] for s in scores])

def same(a, b): return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))

@pytest.fixture(scope="module")
def alone(train, test):
    "The run in one process."
    method = Lifter()
    return method, fit(method, train, PLAN, validation=test, protocol=synthetic.PROTOCOL)

@pytest.fixture(scope="module")
def together(train, test, tmp_path_factory):
    "The same run in two processes: method, history, folder."
    folder, method = tmp_path_factory.mktemp("together"), Lifter()
    return method, fit(method, train, PLAN, folder=folder, device=TWO, validation=test, protocol=synthetic.PROTOCOL, checkpoint_every=20), folder


# ---------------------------------------------------------------- the same run

@pytest.mark.slow
def test_two_processes_are_one(alone, together, test):
    method, history, folder = together
    assert_close_run(alone, (method, history), test)
    assert history.main and history.environment["device"].endswith(", 2 processes") and history.environment["threads"] == max(1, parallel.cores() // 2) and history.peak_memory > 10**7
    assert method.training and all(not p.is_shared() for p in method.parameters())
    assert [r["epoch"] for r in json.loads((folder / "history.json").read_text())] == [1, 2] and len(list(folder.glob("best-epoch*.pt"))) == 1
    kept = load_checkpoint(folder / "last.pt")
    assert all(torch.equal(v, kept["method"][k]) for k, v in method.state_dict().items()) and kept["history"]["rows"] == history.rows

@pytest.mark.slow
def test_a_paper_in_two_processes(train, test):
    "Martinez with all that it has: batch norm, dropout, bodies turned and mirrored at random."
    runs = []
    for device in ("cpu", TWO):
        seed_everything(0)
        method = Martinez.from_data(train, Config(width=64, dropout=0.25, centring="root+position", turn=True, flip=True))
        runs.append((method, fit(method, train, PLAN.changed(schedule=Schedule("one_cycle")), device=device)))
    assert_close_run(*runs, test)

@pytest.mark.slow
def test_an_adversarial_method_in_two_processes(train, test):
    "Two optimisers in turns, two streams, an incomplete last batch."
    runs = []
    for device in ("cpu", TWO):
        method = Adversarial()
        runs.append((method, fit(method, {"images": train.select(torch.arange(4220)), "poses": test}, PLAN.changed(drop_last=False), device=device)))
    assert runs[0][1].steps == 2 * 33 and runs[0][1].samples == 2 * 4220
    assert_close_run(*runs, test)

@pytest.mark.slow
def test_the_parts_in_three_processes():
    "Batch norm, dropout, gradients and messages, each against plain PyTorch on the whole batch."
    rows, answers = 12, launch(exchange, (12,), Devices("cpu", 3))
    assert sorted(answers) == [0, 1, 2]
    for name, layer, shape in LAYERS:
        whole = layer()
        x, g = inputs(rows, shape)
        x = x.requires_grad_()
        torch.manual_seed(7)
        y = whole(x)
        (y * g).sum().backward()
        drawn = torch.rand(2).tolist()
        parts = [torch.cat([torch.tensor(answers[r][name][k]) for r in range(3)]) for k in (0, 1)]
        assert torch.allclose(parts[0], y, atol=2e-5) and torch.equal(parts[0] == 0, y == 0) and torch.allclose(parts[1], x.grad, atol=2e-5)
        for r in range(3):
            for found, p in zip(answers[r][name][2], whole.parameters(), strict=True): assert torch.allclose(torch.tensor(found), p.grad, atol=2e-4)
            for found, b in zip(answers[r][name][3], whole.buffers(), strict=True): assert torch.allclose(torch.tensor(found), b, rtol=1e-5)
            assert answers[r][name][3] == answers[0][name][3] and answers[r][name][4] == drawn
    for r in range(3):
        assert answers[r]["gradients"] == [[1., 1.], [pytest.approx(1 / 3)] * 2, None, [float(r)] * 2]
        assert answers[r]["told"] == "from 1" and answers[r]["every"] == [True, False]

def test_random_numbers_are_rows_of_those_of_one_process(train):
    index, state = torch.arange(12), torch.get_rng_state()
    def drawn(shard):
        torch.set_rng_state(state)
        batch = Batch(train, index[shard.rows(12)], shard=shard)
        return batch.rand(), batch.randn(3, 2), batch.mirrored().rand(), torch.rand(1)
    whole = drawn(Shard())
    assert whole[0].shape == (12,) and whole[1].shape == (12, 3, 2)
    shares = [drawn(Shard(r, 4)) for r in range(4)]
    for k in range(3): assert torch.equal(torch.cat([s[k] for s in shares]), whole[k])
    assert all(torch.equal(s[3], whole[3]) for s in shares)

@pytest.mark.parametrize("samples, world, last", [(4220, 2, 124), (4221, 2, 124), (4220, 4, 124), (4219, 4, 120)])
def test_the_shares_of_a_batch(train, samples, world, last):
    "Equal shares that together are the batch of one process; the last one loses what does not split."
    plan, few = PLAN.changed(drop_last=False), train.select(torch.arange(samples))
    streams = [Stream("train", few, plan, 3, "cpu", shard=Shard(r, world)) for r in range(world)]
    one = Stream("train", few, plan, 3, "cpu")
    assert one.steps == streams[0].steps == 33
    for step in (0, 20, 32, 40, 65):
        shares = [s.batch(step, Clock()) for s in streams]
        whole = torch.cat([b.index for b in shares])
        assert len({len(b) for b in shares}) == 1 and torch.equal(whole, one.batch(step, Clock()).index[:len(whole)])
        assert len(whole) == (last if step in (32, 65) else 128)


# ---------------------------------------------------------------- killed, resumed, failed

@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 0])
def test_a_killed_worker_changes_nothing(train, test, together, tmp_path, rank):
    "SIGKILL inside step 50: all start again from step 40 and end with the same bits."
    method = Interrupted(tmp_path, "kill", rank=rank)
    history = fit(method, train, PLAN, folder=tmp_path / "run" if rank else None, device=TWO, validation=test, protocol=synthetic.PROTOCOL, checkpoint_every=20)
    assert (tmp_path / "done").exists() and len(list(tmp_path.glob("pid-*"))) == 4
    assert same(method, together[0]) and history.first_losses == together[1].first_losses
    drop = lambda rows: [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    assert drop(history.rows) == drop(together[1].rows)

@pytest.mark.slow
def test_another_number_of_processes_goes_on(train, test, alone, tmp_path, monkeypatch):
    "One process to step 43, the end of an epoch, two to step 80, one to the end. What goes wrong in a worker comes out as one error with its traceback."
    first = Interrupted(tmp_path, "raise", at=50, rank=0)
    with pytest.raises(KeyError): fit(first, train, PLAN, folder=tmp_path / "run", checkpoint_every=40, validation=test, protocol=synthetic.PROTOCOL)
    assert load_checkpoint(tmp_path / "run" / "last.pt")["history"]["steps"] == 43
    (tmp_path / "done").unlink()
    second = Interrupted(tmp_path, "raise", at=82, rank=1)
    with pytest.raises(WorkerError, match="KeyError in process 1.*something of the method itself") as failure:
        fit(second, train, PLAN, folder=tmp_path / "run", checkpoint_every=40, validation=test, protocol=synthetic.PROTOCOL, device=TWO)
    assert "parallel_methods.py" in str(failure.value) and "elastic" not in str(failure.value)
    assert load_checkpoint(tmp_path / "run" / "last.pt")["history"]["steps"] == 80
    third = Interrupted(tmp_path, "raise")
    history = fit(third, train, PLAN, folder=tmp_path / "run", checkpoint_every=40, validation=test, protocol=synthetic.PROTOCOL)
    assert_close_run(alone, (third, history), test)
    again = Interrupted(tmp_path, "raise")
    with monkeypatch.context() as nothing: # a finished run is loaded, not launched
        nothing.setattr(parallel, "_elastic", lambda *_: pytest.fail("launched"))
        kept = fit(again, train, PLAN, folder=tmp_path / "run", device=TWO)
    assert same(again, third) and kept.rows == history.rows

@pytest.mark.slow
def test_a_loss_that_is_no_number_in_one_process_stops_all(train, tmp_path):
    with pytest.raises(NonFiniteLoss) as stop: fit(Interrupted(tmp_path, "nan"), train, PLAN, folder=tmp_path / "run", device=TWO, checkpoint_every=20)
    message = str(stop.value)
    assert "loss mse became NaN" in message and "step 60" in message and str(tmp_path / "run" / "last.pt") in message and "\n" not in message
    assert load_checkpoint(tmp_path / "run" / "last.pt")["history"]["steps"] == 43

@pytest.mark.parametrize("named, comes", [("parallel_methods.Sunk", Sunk), ("elsewhere.Sunk", WorkerError), ("poseprojects.train.engine.NonFiniteLoss", NonFiniteLoss), ("os.system", WorkerError)])
def test_what_a_method_stops_with_comes_out_as_itself(named, comes, monkeypatch):
    "A kind that is derived from one that is let through, known here under that name; nothing is imported to find it."
    error = {"kind": named.rpartition(".")[2], "class": named, "rank": 1, "message": "it sank (50 %)", "traceback": "Traceback"}
    monkeypatch.setattr(parallel, "_elastic", lambda *_: lambda *_: {0: {"value": None, "error": error}, 1: {"value": None, "error": error}})
    with pytest.raises(comes) as stop: launch(perish, (), TWO, (TrainingStopped,))
    assert type(stop.value) is comes and (str(stop.value) == "it sank (50 %)" if comes is not WorkerError else "in process 1: it sank" in str(stop.value))
    with pytest.raises(WorkerError): launch(perish, (), TWO)

def test_streams_of_one_set_share_it(train, monkeypatch):
    seen, saved, moved = {}, [], []
    def to(poses, device): # a device to which everything is copied once
        if not any(poses is known for known in moved): moved.append(poses := replace(poses, pose_2d=poses.pose_2d.clone()))
        return poses
    monkeypatch.setattr(PoseSet, "to", to)
    class Looks(Lifter):
        def step(self, batch, optimizers):
            seen.update({name: id(other.poses) for name, other in {"train": batch, **batch.others}.items()})
            return super().step(batch, optimizers)
    few, other = train.select(torch.arange(256)), train.select(torch.arange(256, 512))
    fit(Looks(), {"train": few, "again": few, "other": other}, replace(PLAN, epochs=1), show=False)
    assert seen["train"] == seen["again"] != seen["other"] and len(moved) == 2
    def stops(function, arguments, *_): saved.append(arguments[2]); raise WorkerError("enough")
    monkeypatch.setattr(engine, "launch", stops)
    with pytest.raises(WorkerError, match="enough"): fit(Lifter(), {"train": few, "again": few, "other": other}, PLAN, device=TWO, show=False)
    assert saved[0]["train"] == saved[0]["again"] != saved[0]["other"]

@pytest.mark.slow
def test_processes_that_always_die():
    with pytest.raises(WorkerError, match="process . of 2 ended too early, 0 restarts did not help .*; the last checkpoint stays") as failure: launch(perish, (), TWO, restarts=0)
    assert "\n" not in str(failure.value)

SCRIPT = """
    import json, sys, tempfile
    from pathlib import Path
    sys.path.insert(0, sys.argv[1]); tempfile.tempdir = sys.argv[2]
    import torch
    torch.set_num_threads(1)
    from parallel_methods import Interrupted
    from poseprojects.data import synthetic
    from poseprojects.train.devices import Devices
    from poseprojects.train.engine import NonFiniteLoss, Plan, fit
    from poseprojects.train.schedules import Schedule
    train, test = (synthetic.load(split, samples=8000) for split in ("train", "test"))
    plan = Plan("small", epochs=int(sys.argv[4]), batch_size=128, learning_rate=2e-3, schedule=Schedule("cosine"), clip_norm=0.5)
    if len(sys.argv) == 5: fit(Interrupted(sys.argv[3], "hang", rank=-1), train, plan, device=Devices("cpu", processes=2))
    else:
        folder, meeting, machine, marks = sys.argv[3], sys.argv[5], int(sys.argv[6]), sys.argv[7]
        for what in ("nan", "kill"):
            method = Interrupted(marks, what)
            if what == "kill" and machine: torch.nn.init.normal_(method.network[0].weight) # those of the first process count
            try: history = fit(method, train, plan, folder=folder, device=Devices("cpu", 1, 2, meeting), validation=test, protocol=synthetic.PROTOCOL, checkpoint_every=20, resume=False)
            except NonFiniteLoss as error: print(json.dumps({"error": str(error)}), flush=True)
            else:
                torch.save(method.state_dict(), f"{folder}-{what}.pt")
                print(json.dumps({"main": history.main, "rows": history.rows, "device": history.environment["device"]}), flush=True)
            Path(marks, "done").unlink(missing_ok=True)
"""

def script(*arguments):
    "A script without a guard around its main part, as people write them; it must not run again in the processes that it launches."
    file = Path(arguments[0]).parent / f"{Path(arguments[0]).name}.py"
    file.write_text(textwrap.dedent(SCRIPT))
    return subprocess.Popen([sys.executable, str(file), str(Path(__file__).parent), *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=os.environ | {"OMP_NUM_THREADS": "1", "POSEPROJECTS_PROGRESS": "0"})

def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]

@pytest.mark.slow
def test_two_machines(tmp_path, together):
    """Two calling processes that meet at a port of this machine, each with a folder of its own, two runs one after the other: one that fails,
    and one whose machines begin with different weights, that loses a worker and ends with the same bits as two processes of one machine."""
    (tmp_path / "temporary" / "a").mkdir(); (tmp_path / "temporary" / "b").mkdir()
    meeting = f"localhost:{free_port()}"
    nodes = [script(tmp_path / "temporary" / n, tmp_path / n, 2, meeting, k, tmp_path) for k, n in enumerate("ab")]
    told = [node.communicate(timeout=300) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], told
    said = [[json.loads(line) for line in out.splitlines()] for out, _ in told]
    for failed, *_ in said: assert "loss mse became NaN" in failed["error"] and "step 60" in failed["error"]
    a, b = (s[1] for s in said)
    assert sorted((a["main"], b["main"])) == [False, True] and a["rows"] == b["rows"] and a["device"].endswith("2 processes on 2 machines")
    finals = [torch.load(f"{tmp_path / n}-kill.pt", weights_only=True) for n in "ab"]
    assert all(torch.equal(finals[0][key], finals[1][key]) for key in finals[0])
    assert all(torch.equal(v, finals[0][key]) for key, v in together[0].state_dict().items())
    assert (tmp_path / "ab"[said[1][1]["main"]] / "last.pt").is_file()
    for place in "ab": assert not list((tmp_path / "temporary" / place).glob("*poseprojects*"))

def alive(pid):
    try: return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError: return False

@pytest.mark.slow
# whether a process lives is read from its state file in /proc, which other systems do not have
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_survives_its_parent(tmp_path, how):
    place = tmp_path / "temporary" / "of-the-run"
    place.mkdir()
    process = script(place, tmp_path, 500)
    until = time.monotonic() + 120
    while len(found := list(tmp_path.glob("pid-*"))) < 2 and process.poll() is None and time.monotonic() < until: time.sleep(0.05)
    workers = [int(f.name[4:]) for f in found]
    assert len(workers) == 2 and all(map(alive, workers))
    process.send_signal(how)
    errors = process.communicate(timeout=60)[1]
    until = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < until: time.sleep(0.05)
    assert not any(map(alive, workers)), how
    assert process.returncode == -how and ("KeyboardInterrupt" in errors) == (how == signal.SIGINT)
    if how == signal.SIGINT: place.rmdir() # nothing is left in it
    else: __import__("shutil").rmtree(place)


# ---------------------------------------------------------------- what is refused, in one sentence

class Elsewhere(Lifter): "Can be imported: it belongs to a module."

@pytest.mark.parametrize("wrong, devices, said", [
    (dict(batch_size=127), TWO, "batch_size = 127 does not split.*give batch_size = 126 or 128"), (dict(batch_size=1), TWO, "give batch_size = 2$"),
    (dict(batch_size=2110, drop_last=False), Devices("cpu", 10), "3 samples are left for the last batch.*less than one for each of 10 processes"), (dict(batch_size=100_000), TWO, "do not fill a batch")])
def test_batches_that_do_not_split(train, wrong, devices, said):
    with pytest.raises(InputError, match=said) as refusal: fit(Lifter(), train.select(torch.arange(4223)), replace(PLAN, **wrong), device=devices)
    assert "\n" not in str(refusal.value)

def test_a_method_that_cannot_be_imported(train, monkeypatch):
    class Local(Lifter): "Of this function only."
    with pytest.raises(InputError, match="Local is defined in a notebook.*export it to a module"): fit(Local(), train, PLAN, device=TWO)
    holder = Lifter()
    holder.network[2] = type("FromNotebook", (nn.ReLU,), {"__module__": "__main__"})()
    with pytest.raises(InputError, match="FromNotebook is defined in a notebook"): fit(holder, train, PLAN, device=TWO)
    handle = Lifter()
    handle.callback = lambda: 0
    with pytest.raises(InputError, match="cannot be given to other processes") as refusal: fit(handle, train, PLAN, device=TWO)
    assert "\n" not in str(refusal.value)

def test_layers_that_nobody_has_thought_about():
    with pytest.raises(InputError, match="Sequential.1 is a AlphaDropout"): share_layers(nn.Sequential(nn.Linear(2, 2), nn.AlphaDropout()), Shard(0, 2))
    assert type(share_layers(nn.Sequential(nn.AlphaDropout()), Shard())[0]) is nn.AlphaDropout

@pytest.mark.parametrize("wrong, said", [
    (dict(workers=0), "workers = 0"), (dict(workers=True), "workers = True"), (dict(workers=2.), "workers = 2.0"), (dict(gpus=True), "gpus = True"), (dict(gpus=-1), "gpus = -1"),
    (dict(gpus=1000), "this machine has"), (dict(gpus=1, workers=2), "give one of the two"), (dict(nodes=0), "nodes = 0"), (dict(nodes=2), "host:port"), (dict(nodes=2, rendezvous="node1"), "host:port"),
    (dict(nodes=2, rendezvous="node1:99999"), "host:port"), (dict(rendezvous="node1:29400"), "nodes = 1")])
def test_devices_without_sense(wrong, said):
    with pytest.raises(InputError, match=said) as refusal: choose_devices(**wrong)
    assert "\n" not in str(refusal.value)

def test_devices_that_are_there(monkeypatch):
    assert choose_devices(0) == Devices() and choose_devices(workers=1) == Devices() and choose_devices(workers=3) == Devices("cpu", 3)
    assert choose_devices(0, workers=2) == TWO and choose_devices(workers=2, nodes=3, rendezvous="node1:29400").world == 6
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert choose_devices() == Devices("cuda", 1) and choose_devices(gpus=4) == Devices("cuda", 4) and choose_devices(workers=2) == TWO
    assert choose_devices(gpus=2).main == torch.device("cuda:0") and not choose_devices().parallel
    with pytest.raises(InputError, match="gpus = 5, but this machine has 4"): choose_devices(gpus=5)

def test_a_single_device_needs_no_launcher(train, monkeypatch):
    monkeypatch.setattr(parallel, "_elastic", lambda *_: pytest.fail("launched"))
    plan, a, b = PLAN.changed(epochs=1), Lifter(), Lifter()
    fit(a, train, plan, device=Devices("cpu")); fit(b, train, plan, device="cpu")
    assert same(a, b)


# ---------------------------------------------------------------- GPUs

# the exchange between GPUs (NCCL) cannot be imitated on a CPU, and one device exchanges nothing
@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two GPUs here")
def test_two_gpus_are_one(train, test):
    runs = []
    for device in ("cuda", Devices("cuda", 2)):
        method = Lifter()
        for layer in method.modules():
            if isinstance(layer, nn.Dropout): layer.p = 0. # one GPU draws its masks in another way
        runs.append((method, fit(method, train, PLAN, device=device)))
        method.cpu()
    assert_close_run(*runs, test)

# launcher and NCCL start-up on one real device: NCCL has no CPU form
@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_one_gpu_through_the_launcher(train, test, tmp_path):
    "All of the way that several GPUs go, with one: its own process, its communication, the state of its generator, the way back."
    plain, launched = Lifter(), Lifter()
    history = fit(plain, train, PLAN, device="cuda", folder=tmp_path / "plain", checkpoint_every=20)
    settings = engine._Settings(tmp_path / "launched" / "last.pt", 0, None, None, 1, 20, 20, False, Devices("cuda", 1))
    other = engine._fit_in_processes(launched, {"train": train}, PLAN, settings)
    assert next(launched.parameters()).is_cuda and other.steps == history.steps
    for a, b in zip(history.first_losses, other.first_losses): assert a["mse"] == pytest.approx(b["mse"], abs=1e-4)
    assert torch.equal(*(load_checkpoint(tmp_path / n / "last.pt")["random"]["cuda"][0].cpu() for n in ("plain", "launched")))
    for m in (plain, launched): m.to("cuda")
    assert evaluate(plain, test, synthetic.PROTOCOL, device="cuda")["mpjpe"] == pytest.approx(evaluate(launched, test, synthetic.PROTOCOL, device="cuda")["mpjpe"], rel=5e-3)
