"The trainer: killed runs, refused folders, streams, windows, and what it costs per step."
import json, os, random, signal, subprocess, sys, textwrap, time
from dataclasses import dataclass, replace
from statistics import median

import pytest
import torch
from torch import nn

from poseprojects.data import synthetic
from poseprojects.data.base import clip_bounds, clips
from poseprojects.papers.martinez import Config, Martinez
from poseprojects.skeleton import H36M17
from poseprojects.storage import InputError
from poseprojects.train import checkpoints, engine
from poseprojects.train.checkpoints import best_checkpoint, load_checkpoint, save_checkpoint, seed_everything
from poseprojects.train.engine import Batch, History, Method, NonFiniteLoss, Plan, Scheduled, Stream, fit
from poseprojects.train.evaluation import evaluate
from poseprojects.train.schedules import Clock, Schedule


pytestmark = pytest.mark.usefixtures("one_thread")

PLAN = Plan("small", epochs=3, batch_size=128, learning_rate=1e-3, schedule=Schedule("cosine"))

def small(train, width=24, seed=0, **options):
    seed_everything(seed)
    return Martinez.from_data(train, Config(width=width, **options))

class Linear(nn.Module):
    "The smallest method: least squares on root-centred pixels, with noise on its input, so that random numbers matter."
    def __init__(self, joints=17):
        super().__init__()
        seed_everything(0)
        self.lift = nn.Linear(2 * joints, 3 * joints)
    def forward(self, pose_2d): return self.lift(((pose_2d - pose_2d[:, :1]) / 100).flatten(1)).unflatten(1, (-1, 3))
    def optimizers(self, plan): return {"lifter": Scheduled(torch.optim.Adam(self.parameters(), plan.learning_rate), plan.schedule)}
    def step(self, batch, optimizers):
        loss = (self(batch.pose_2d + torch.randn_like(batch.pose_2d)) - batch.target).square().mean()
        optimizers["lifter"].zero_grad(); loss.backward(); optimizers["lifter"].step()
        return {"mse": loss}
    def predict(self, batch): return self(batch.pose_2d)[:, None]

class Stopped(Exception): "Stands in for a kill, where a real one would take a process."

def equal(a, b, place=""):
    "Where two nested states differ; bit for bit."
    if isinstance(a, torch.Tensor): return [] if isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b) else [place]
    if isinstance(a, dict): return [place + ".keys"] if a.keys() != b.keys() else [d for k in a for d in equal(a[k], b[k], f"{place}.{k}")]
    if isinstance(a, (list, tuple)): return [place + ".len"] if len(a) != len(b) else [d for k, (x, y) in enumerate(zip(a, b)) for d in equal(x, y, f"{place}[{k}]")]
    return [] if a == b else [f"{place}: {a} != {b}"]

def without_clock(state):
    "A checkpoint without what the machine says: the clock on the wall and the memory taken."
    history = {k: v for k, v in state["history"].items() if k not in ("seconds", "peak_memory")} | {"rows": [{k: v for k, v in row.items() if k != "seconds"} for row in state["history"]["rows"]]}
    return state | {"history": history}


# ---------------------------------------------------------------- a real process, really killed

SCRIPT = """
    import os, sys, time
    import torch
    torch.set_num_threads(1)
    from pathlib import Path
    from poseprojects.data import synthetic
    from poseprojects.papers.martinez import Config, Martinez
    from poseprojects.train import checkpoints, engine
    from poseprojects.train.engine import Plan, fit
    from poseprojects.train.schedules import Schedule

    folder, hang_at, resume = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "resume"
    train, test = synthetic.load("train", samples=8000), synthetic.load("test", samples=8000)
    checkpoints.seed_everything(0)

    class Counting(Martinez):
        "Says every step to the parent process."
        def step(self, batch, optimizers):
            losses = super().step(batch, optimizers)
            os.write(1, b".")
            return losses

    written, save = 0, torch.save
    def half(state, file):
        "Writes a part of the chosen checkpoint and then hangs, to be killed there."
        global written
        written += 1
        if written != hang_at: return save(state, file)
        save(state, file)
        file.truncate(file.tell() // 2); file.flush()
        os.write(1, b"!"); time.sleep(60)
    checkpoints.torch.save = half

    method = Counting.from_data(train, Config(width=32, dropout=0.5, centring="root+position"))
    plan = Plan("killed", epochs=3, batch_size=128, learning_rate=2e-3, schedule=Schedule("one_cycle"))
    fit(method, train, plan, folder=folder, seed=5, resume=resume, validation=test, protocol=synthetic.PROTOCOL, keep=2, checkpoint_every=5)
"""

def training(folder, hang_at=0, resume=True):
    "A process that trains into `folder`."
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(SCRIPT), str(folder), str(hang_at), "resume" if resume else "over"], stdout=subprocess.PIPE,
                            env=os.environ | {"OMP_NUM_THREADS": "1", "POSEPROJECTS_PROGRESS": "0"})

def finish(process):
    steps = len(process.stdout.read())
    assert process.wait(120) == 0
    return steps

def kill(process):
    process.send_signal(signal.SIGKILL)
    assert process.wait(20) == -signal.SIGKILL
    process.stdout.close()

@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, train):
    "The run that nobody disturbs: its folder and its number of steps."
    folder = tmp_path_factory.mktemp("unbroken")
    assert finish(training(folder)) == 3 * (len(train) // 128)
    return folder

def assert_same_run(folder, other):
    "Weights, optimiser state, random state, metrics, history: bit for bit, and no epoch twice."
    a, b = (without_clock(load_checkpoint(f / "last.pt")) for f in (folder, other))
    assert equal(a, b) == []
    assert a["history"]["steps"] == b["history"]["steps"] and len(a["optimizers"]["lifter"]["state"]) > 0
    assert sorted(p.name for p in folder.glob("best*")) == sorted(p.name for p in other.glob("best*")) and len(list(folder.glob("best*"))) == 2
    assert equal(load_checkpoint(best_checkpoint(folder)), load_checkpoint(best_checkpoint(other))) == []
    rows = json.loads((folder / "history.json").read_text())
    assert [r["epoch"] for r in rows] == [1, 2, 3] and all("validation/mpjpe" in r for r in rows)
    assert [{k: v for k, v in r.items() if k != "seconds"} for r in rows] == a["history"]["rows"]

@pytest.mark.slow
def test_killed_three_times_at_random(tmp_path, unbroken, train, test):
    "SIGKILL at three random moments, a fresh process each time, and the end is that of the unbroken run."
    seed = int(os.environ.get("POSEPROJECTS_TEST_SEED") or random.SystemRandom().randrange(10**6))
    print(f"moments of the kills from POSEPROJECTS_TEST_SEED={seed}")
    chance, made, per_epoch = random.Random(seed), [], len(train) // 128
    for _ in range(3):
        process = training(tmp_path)
        wanted = chance.randrange(8, 33) # steps that this process may make
        process.stdout.read(wanted)
        time.sleep(chance.random() * 0.004) # somewhere inside a step or a checkpoint
        kill(process)
        state = load_checkpoint(tmp_path / "last.pt") # whole, whenever the kill came
        assert 0 < state["history"]["steps"] < 3 * per_epoch, f"seed {seed}: the run was over before it was killed"
        made.append(state["history"]["steps"])
    assert made == sorted(made), f"seed {seed}: {made}"
    last = finish(training(tmp_path))
    assert last == 3 * per_epoch - made[-1] # it went on from the checkpoint and did not begin again
    print(f"killed after {made} of {3 * per_epoch} steps")
    assert_same_run(tmp_path, unbroken)
    final = Martinez.from_data(train, Config(width=32, centring="root+position")), Martinez.from_data(train, Config(width=32, centring="root+position"))
    for method, folder in zip(final, (tmp_path, unbroken)): method.load_state_dict(load_checkpoint(folder / "last.pt")["method"])
    assert equal(*(evaluate(m, test, synthetic.PROTOCOL) for m in final)) == []

@pytest.mark.slow
def test_killed_while_a_checkpoint_is_written(tmp_path, unbroken):
    "Half a checkpoint on the disk: last.pt is still the one before, and the run goes on from it."
    process = training(tmp_path, hang_at=4)
    said = b""
    while b"!" not in said: said += process.stdout.read(1)
    kill(process)
    assert load_checkpoint(tmp_path / "last.pt")["history"]["steps"] == 15 == len(said) - 1 - 5
    finish(training(tmp_path))
    assert_same_run(tmp_path, unbroken)


# ---------------------------------------------------------------- resume and refusal

def stop_at(method, step):
    "Makes a method stop once before a step."
    original = method.step
    def stepping(batch, optimizers):
        if batch.clock.step == step: raise Stopped
        return original(batch, optimizers)
    method.step = stepping
    return method

@pytest.mark.parametrize("step", [1, 42, 43, 44, 86, 87, 128]) # 43 steps are an epoch
def test_a_run_that_stops_anywhere_ends_the_same(train, tmp_path, step):
    whole = small(train)
    fit(whole, train, PLAN, folder=tmp_path / "whole")
    with pytest.raises(Stopped): fit(stop_at(small(train), step), train, PLAN, folder=tmp_path / "broken", checkpoint_every=step)
    assert load_checkpoint(tmp_path / "broken" / "last.pt")["history"]["steps"] == step
    seed_everything(99) # nothing of the new process's random state may matter
    other = Martinez.from_data(train, Config(width=24))
    history = fit(other, train, PLAN, folder=tmp_path / "broken")
    assert history.steps == 129 and history.samples == 129 * 128
    assert equal(*(without_clock(load_checkpoint(tmp_path / n / "last.pt")) for n in ("whole", "broken"))) == []
    assert equal(whole.state_dict(), other.state_dict()) == []

def test_a_finished_run_is_loaded_not_trained(train, tmp_path):
    first = small(train)
    done = fit(first, train, PLAN, folder=tmp_path)
    before = (tmp_path / "last.pt").read_bytes()
    def never(*_): raise AssertionError("a finished run must not train")
    again = small(train, seed=7)
    again.step = never
    history = fit(again, train, PLAN, folder=tmp_path)
    assert equal(first.state_dict(), again.state_dict()) == [] and history == done and (tmp_path / "last.pt").read_bytes() == before

def test_resume_false_begins_again(train, tmp_path):
    fit(small(train), train, PLAN, folder=tmp_path)
    a = fit(small(train, seed=3), train, PLAN.changed(epochs=1), folder=tmp_path, resume=False, seed=3)
    assert a.steps == 43 and [r["epoch"] for r in json.loads((tmp_path / "history.json").read_text())] == [1]

@pytest.mark.parametrize("what", ["plan: epochs", "plan: learning rate", "plan: schedule", "seed", "data", "data: other stream", "config", "fidelity", "method", "weights"])
def test_another_run_in_the_folder_is_refused(train, test, tmp_path, what):
    fit(Linear(), train, PLAN.changed(epochs=1), folder=tmp_path)
    before = (tmp_path / "last.pt").read_bytes()
    class Other(Linear): "Another method of the same shape."
    configured, released = Linear(), Linear(); configured.config, released.fidelity = "other", "release"
    wider = Linear(); wider.extra = nn.Linear(3, 3)
    plan = PLAN.changed(epochs=1)
    method, sets, plan, seed = {"plan: epochs": (Linear(), train, PLAN, 0), "plan: learning rate": (Linear(), train, plan.changed(learning_rate=2e-3), 0),
        "plan: schedule": (Linear(), train, plan.changed(schedule=Schedule("linear")), 0), "seed": (Linear(), train, plan, 1), "data": (Linear(), test, plan, 0),
        "data: other stream": (Linear(), {"train": train, "real": test}, plan, 0), "config": (configured, train, plan, 0), "fidelity": (released, train, plan, 0), "method": (Other(), train, plan, 0), "weights": (wider, train, plan, 0)}[what]
    weights = {k: v.clone() for k, v in method.state_dict().items()}
    with pytest.raises(InputError) as refusal: fit(method, sets, plan, folder=tmp_path, seed=seed)
    message = str(refusal.value)
    assert f"another {what.split(':')[0]}" in message and "last.pt" in message and "out_dir" in message and "\n" not in message
    assert equal(weights, method.state_dict()) == [] and (tmp_path / "last.pt").read_bytes() == before

@pytest.mark.parametrize("damage", ["empty", "truncated", "foreign"])
def test_a_damaged_checkpoint_is_refused(train, tmp_path, damage):
    fit(Linear(), train, PLAN.changed(epochs=1), folder=tmp_path)
    content = (tmp_path / "last.pt").read_bytes()
    (tmp_path / "last.pt").write_bytes({"empty": b"", "truncated": content[:-300], "foreign": b"text"}[damage])
    with pytest.raises(InputError, match="no complete checkpoint.*train again"): fit(Linear(), train, PLAN.changed(epochs=1), folder=tmp_path)

@pytest.mark.parametrize("content", [[1, 2], {"weights": torch.zeros(2)}, {"identity": None}])
def test_a_checkpoint_of_something_else_is_refused(train, tmp_path, content):
    save_checkpoint(content, tmp_path / "last.pt")
    with pytest.raises(InputError) as refusal: fit(Linear(), train, PLAN, folder=tmp_path)
    assert "last.pt" in str(refusal.value) and "\n" not in str(refusal.value)

def test_a_full_disk_ends_a_run_in_one_sentence(train, tmp_path, monkeypatch):
    fit(Linear(), train, PLAN.changed(epochs=1), folder=tmp_path)
    def full(handle): raise OSError(28, "No space left on device")
    with pytest.raises(Stopped): fit(stop_at(Linear(), 50), train, PLAN, folder=tmp_path / "b", checkpoint_every=10)
    before = (tmp_path / "b" / "last.pt").read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="no space is left"): fit(Linear(), train, PLAN, folder=tmp_path / "b", checkpoint_every=10)
    assert (tmp_path / "b" / "last.pt").read_bytes() == before and not list((tmp_path / "b").glob(".tmp*"))

@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_run_on_a_gpu_is_resumed(train, tmp_path):
    with pytest.raises(Stopped): fit(stop_at(small(train), 60), train, PLAN, folder=tmp_path, device="cuda", checkpoint_every=20)
    history = fit(small(train), train, PLAN, folder=tmp_path, device="cuda")
    assert history.steps == 129

def test_random_state_is_read_from_wherever_a_checkpoint_was_mapped(monkeypatch):
    "On a GPU the reader maps every tensor to the device, but generators take their state from the CPU."
    class Elsewhere(torch.Tensor):
        "Behaves like a tensor on a GPU where that matters: numpy cannot see it before `.cpu()`."
        def numpy(self, *_, **__): raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first.")
        def cpu(self): return self.as_subclass(torch.Tensor)
        def to(self, *where): return self.as_subclass(torch.Tensor) if "cpu" in map(str, where) else self
    def mapped(x):
        if isinstance(x, torch.Tensor): return x.as_subclass(Elsewhere)
        return {k: mapped(v) for k, v in x.items()} if isinstance(x, dict) else [mapped(v) for v in x] if isinstance(x, list) else x
    run = engine._Run(Linear(), {}, {}, History())
    state = run.state()
    drawn = torch.rand(3)
    run.restore(state | {"random": mapped(state["random"])})
    assert torch.equal(torch.rand(3), drawn)


# ---------------------------------------------------------------- a loss that is no number

class Explodes(Linear):
    "Its loss becomes infinite at a step; the weights stay sound."
    def __init__(self, at, value=float("inf")): super().__init__(); self.at, self.value = at, value
    def step(self, batch, optimizers):
        losses = super().step(batch, optimizers)
        return {"mse": losses["mse"] + (self.value if batch.clock.step == self.at else 0.)}

@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_loss_that_is_no_number_stops_the_run(train, tmp_path, value):
    with pytest.raises(NonFiniteLoss) as stop: fit(Explodes(57, value), train, PLAN, folder=tmp_path, checkpoint_every=5)
    message = str(stop.value)
    assert "loss mse" in message and "epoch 2" in message and "step 60" in message and "last.pt" in message and "\n" not in message
    state = load_checkpoint(tmp_path / "last.pt")
    assert state["history"]["steps"] == 55 and [r["epoch"] for r in state["history"]["rows"]] == [1]
    assert all(bool(torch.isfinite(v).all()) for v in state["method"].values())
    good = Explodes(-1)
    fit(good, train, PLAN, folder=tmp_path) # and it is a checkpoint that can be resumed
    assert good.lift.weight.isfinite().all()

def test_a_weight_that_is_no_number_stops_the_run(train, tmp_path):
    class Breaks(Linear):
        def step(self, batch, optimizers):
            losses = super().step(batch, optimizers)
            if batch.clock.step == 12: self.lift.weight.data[0, 0] = float("nan")
            return {"mse": losses["mse"].nan_to_num() * 0}
    with pytest.raises(NonFiniteLoss, match="a weight became NaN.*last good checkpoint"): fit(Breaks(), train, PLAN, folder=tmp_path, checkpoint_every=5)
    assert load_checkpoint(tmp_path / "last.pt")["history"]["steps"] == 10

def test_without_a_folder_the_message_says_so(train):
    with pytest.raises(NonFiniteLoss, match="no checkpoint"): fit(Explodes(3), train, PLAN)


# ---------------------------------------------------------------- rows, validation, best epochs

def test_rows_say_what_happened(train):
    seen = []
    class Keeps(Linear):
        def step(self, batch, optimizers):
            losses = super().step(batch, optimizers)
            seen.append((float(losses["mse"].detach()), optimizers["lifter"].param_groups[0]["lr"], batch.clock))
            return losses
    history = fit(Keeps(), train, PLAN, trace=5)
    assert history.steps == 129 and history.samples == 129 * 128 and history.samples_per_second == history.samples / history.seconds > 0
    assert [r["epoch"] for r in history.rows] == [1, 2, 3] and [r["step"] for r in history.rows] == [43, 86, 129]
    for k, row in enumerate(history.rows):
        assert row["loss/mse"] == pytest.approx(sum(s[0] for s in seen[43 * k:43 * k + 43]) / 43, rel=1e-5)
        assert row["lr/lifter"] == seen[43 * k + 42][1] == pytest.approx(PLAN.learning_rate * PLAN.schedule(seen[43 * k + 42][2]))
    assert history.first_losses == [{"mse": s[0]} for s in seen[:5]]
    assert [(c.step, c.epoch, c.step_in_epoch) for _, _, c in seen] == [(k, k // 43, k % 43) for k in range(129)]
    assert all((c.steps, c.epochs, c.steps_per_epoch) == (129, 3, 43) for _, _, c in seen) and [k for k, s in enumerate(seen) if s[2].last_in_epoch] == [42, 85, 128]

class Guesses(Martinez):
    "Draws hypotheses at random, as generative methods do."
    def predict(self, batch): return super().predict(batch) + 0.01 * torch.randn(len(batch), 3, 17, 3)

@pytest.mark.parametrize("kind", [Martinez, Guesses])
def test_validation_changes_no_number_of_training(train, test, tmp_path, kind):
    seed_everything(0); a = kind.from_data(train, Config(width=24))
    seed_everything(0); b = kind.from_data(train, Config(width=24))
    plain = fit(a, train, PLAN)
    validated = fit(b, train, PLAN, validation=test, protocol=synthetic.PROTOCOL, folder=tmp_path, checkpoint_every=20)
    assert equal(a.state_dict(), b.state_dict()) == []
    strip = lambda rows: [{k: v for k, v in r.items() if k != "seconds" and not k.startswith("validation/")} for r in rows]
    assert strip(plain.rows) == strip(validated.rows) and plain.first_losses == validated.first_losses
    if kind is Martinez: assert validated.rows[-1]["validation/mpjpe"] == evaluate(b, test, synthetic.PROTOCOL)["mpjpe"]

def test_the_same_seed_gives_the_same_run_and_another_one_not(train):
    runs = [small(train) for _ in range(3)]
    for method, seed in zip(runs, (4, 4, 5)): fit(method, train, PLAN.changed(epochs=1), seed=seed)
    assert equal(runs[0].state_dict(), runs[1].state_dict()) == [] and equal(runs[0].state_dict(), runs[2].state_dict())

def test_the_best_epochs_are_kept(train, test, tmp_path):
    method = small(train)
    history = fit(method, train, PLAN.changed(epochs=5, learning_rate=2e-2), validation=test, protocol=synthetic.PROTOCOL, folder=tmp_path, keep=2)
    errors = sorted((r["validation/mpjpe"], r["epoch"]) for r in history.rows)
    kept = [load_checkpoint(p) for p in sorted(tmp_path.glob("best-*.pt"))]
    assert sorted(k["epoch"] for k in kept) == sorted(e for _, e in errors[:2])
    best = load_checkpoint(best_checkpoint(tmp_path))
    assert best["epoch"] == errors[0][1]
    method.load_state_dict(best["method"])
    assert evaluate(method, test, synthetic.PROTOCOL)["mpjpe"] == errors[0][0]

def test_the_best_epoch_is_the_best_by_what_the_protocol_is_quoted_for(train, test, tmp_path):
    "A method that knows no metres is chosen by errors after alignment."
    protocol = synthetic.PROTOCOL.but(synthetic.PROTOCOL.id, headline="pa_mpjpe")
    history = fit(small(train), train, PLAN.changed(epochs=2, learning_rate=2e-2), validation=test, protocol=protocol, folder=tmp_path)
    kept, = tmp_path.glob("best-*.pt")
    assert float(kept.stem.split("-")[-1]) == pytest.approx(min(r["validation/pa_mpjpe"] for r in history.rows), abs=1e-3)

def test_the_best_epoch_is_there_when_an_epoch_is_ended_twice(tmp_path):
    "A kill between the best checkpoint and last.pt makes the resumed run end the same epoch again, with the same error."
    for error in (50.12346, 50.12344): # the file's name is rounded up, or down
        folder = tmp_path / str(error)
        for _ in range(2): checkpoints.keep_best(folder, {"epoch": 1, "error": error}, 1, error, k=1)
        assert load_checkpoint(best_checkpoint(folder))["error"] == error
        checkpoints.keep_best(folder, {"epoch": 2}, 2, 49., k=1)
        assert [p.name for p in folder.iterdir()] == ["best-epoch0002-49.0000.pt"]

def test_a_run_that_starts_over_forgets_the_best_of_the_other_run(train, test, tmp_path):
    "resume=False: what is then called the best epoch must be one of this run."
    good = small(train, width=64, centring="root+position")
    fit(good, train, PLAN.changed(learning_rate=5e-3), validation=test, protocol=synthetic.PROTOCOL, folder=tmp_path)
    worse = small(train, width=64, centring="root+position", seed=1)
    history = fit(worse, train, PLAN.changed(epochs=1, learning_rate=1e-6), validation=test, protocol=synthetic.PROTOCOL, folder=tmp_path, resume=False, seed=1)
    best = load_checkpoint(best_checkpoint(tmp_path))
    assert best["identity"]["seed"] == 1 and history.rows[0]["validation/mpjpe"] == pytest.approx(float(best_checkpoint(tmp_path).stem.split("-")[-1]), abs=1e-3)

def test_tensorboard_shows_every_epoch_once(train, tmp_path):
    "The event files of a run that was resumed, as TensorBoard itself reads them."
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for stop in (60, 110):
        with pytest.raises(Stopped): fit(stop_at(Linear(), stop), train, PLAN, folder=tmp_path, checkpoint_every=10)
        time.sleep(1.1) # event files are named after the second
    fit(Linear(), train, PLAN, folder=tmp_path, checkpoint_every=10)
    board = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    rows = json.loads((tmp_path / "history.json").read_text())
    assert [(e.step, pytest.approx(e.value, rel=1e-6)) for e in board.Scalars("loss/mse")] == [(r["epoch"], r["loss/mse"]) for r in rows]
    assert [r["epoch"] for r in rows] == [1, 2, 3]

def test_the_progress_bar(train, capfd, monkeypatch):
    fit(Linear(), train, PLAN, show=True)
    shown = capfd.readouterr().err
    assert "sample/s" in shown and "loss/mse" in shown
    monkeypatch.setenv("POSEPROJECTS_PROGRESS", "0")
    fit(Linear(), train, PLAN)
    assert capfd.readouterr().err == ""
    monkeypatch.setenv("POSEPROJECTS_PROGRESS", "1")
    fit(Linear(), train, PLAN)
    assert "sample/s" in capfd.readouterr().err

def test_nothing_is_written_without_a_folder(train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(Linear(), train, PLAN.changed(epochs=1))
    assert not list(tmp_path.rglob("*"))


# ---------------------------------------------------------------- plans

@pytest.mark.parametrize("numbers", [dict(epochs=0), dict(epochs=-1), dict(batch_size=0), dict(learning_rate=0.), dict(learning_rate=float("nan"))])
def test_plans_without_sense(numbers):
    name, = numbers
    with pytest.raises(InputError, match=name): PLAN.changed(**numbers)

def test_a_batch_that_cannot_be_filled(train):
    with pytest.raises(InputError, match="do not fill a batch of 100000") as refusal: fit(Linear(), train, PLAN.changed(batch_size=100_000))
    assert "smaller batch_size" in str(refusal.value)

def test_a_limit_on_the_gradient_is_obeyed_or_refused(train):
    "`clip_norm` in a plan must not be ignored in silence."
    plain, clipped = small(train), small(train)
    fit(plain, train, PLAN.changed(epochs=1))
    try: fit(clipped, train, PLAN.changed(epochs=1, clip_norm=1e-9))
    except InputError: return
    assert equal(plain.state_dict(), clipped.state_dict()), "clip_norm=1e-9 changed nothing"


# ---------------------------------------------------------------- streams and batches

def order(stream, epoch): return torch.cat([stream.batch(epoch * stream.steps + s, Clock()).index for s in range(stream.steps)])

@pytest.mark.parametrize("size", [64, 100, 5570])
def test_every_sample_once_per_epoch(train, size):
    whole = Stream("train", train, PLAN.changed(batch_size=size, drop_last=False), 0, "cpu")
    assert order(whole, 0).sort().values.tolist() == list(range(len(train)))
    dropping = Stream("train", train, PLAN.changed(batch_size=size), 0, "cpu")
    found = order(dropping, 0)
    assert len(found) == len(found.unique()) == len(train) // size * size

def test_an_epoch_with_one_sample_left_leaves_it_out(train):
    odd = train.select(torch.arange(129))
    assert Stream("train", odd, PLAN.changed(drop_last=False), 0, "cpu").steps == 1

def test_the_order_needs_no_memory(train):
    a, b = (Stream("train", train, PLAN, 3, "cpu") for _ in range(2))
    forwards = [a.batch(s, Clock()).index for s in range(100)]
    assert all(torch.equal(b.batch(s, Clock()).index, forwards[s]) for s in (99, 3, 50, 42, 43, 0))
    assert not torch.equal(order(a, 0), order(a, 1))
    for other in (Stream("train", train, PLAN, 4, "cpu"), Stream("real", train, PLAN, 3, "cpu")): assert not torch.equal(order(a, 0), order(other, 0))
    torch.manual_seed(123); state = torch.get_rng_state()
    a.batch(500, Clock())
    assert torch.equal(torch.get_rng_state(), state)

def test_several_streams_by_name(train, test):
    "Each has its own length and order; the first sets the epoch."
    seen = {"train": [], "real": [], "few": []}
    few = test.select(torch.arange(300))
    class Looks(Linear):
        def step(self, batch, optimizers):
            assert set(batch.others) == {"real", "few"} and batch.poses.name == train.name and batch.others["real"].poses.name == test.name
            assert all(len(b) == 128 and b.clock == batch.clock for b in (batch, *batch.others.values()))
            for name, b in (("train", batch), *batch.others.items()): seen[name].append(b.index)
            return super().step(batch, optimizers)
    history = fit(Looks(), {"train": train, "real": test, "few": few}, PLAN.changed(epochs=2))
    assert history.steps == 2 * 43
    for name, n in (("train", len(train)), ("real", len(test)), ("few", 300)):
        per_epoch = n // 128
        for start in range(0, 86 - per_epoch, per_epoch):
            epoch = torch.cat(seen[name][start:start + per_epoch])
            assert len(epoch.unique()) == per_epoch * 128 and int(epoch.max()) < n
    assert not torch.equal(seen["train"][0] % 300, seen["few"][0])

@pytest.mark.parametrize("causal", [False, True])
def test_windows_never_leave_their_clip(test, causal):
    clipped = test.select((test.frame % 7 != 3)) # short clips
    stream = Stream("test", clipped, PLAN, 0, "cpu", window=9, causal=causal)
    of_clip = torch.repeat_interleave(torch.arange(len(clips(clipped))), clips(clipped).diff(dim=1).flatten())
    for s in range(stream.steps):
        batch = stream.batch(s, Clock())
        assert bool((of_clip[batch.frames] == of_clip[batch.index][:, None]).all())
        assert bool((batch.frames.diff(dim=1) >= 0).all()) and bool((batch.frames.diff(dim=1) <= 1).all())
        assert bool((batch.frames[:, -1] == batch.index).all()) if causal else bool((batch.frames[:, 4] == batch.index).all())
        assert batch.pose_2d.shape == (128, 9, 17, 2) and batch.confidence.shape == (128, 9, 17) and batch.target.shape == (128, 17, 3)
        assert torch.equal(batch.pose_2d[5, 2], clipped.pose_2d[batch.frames[5, 2]])
    assert len(clips(clipped)) > 200

@pytest.mark.parametrize("window", [1, 9])
def test_mirrored_twice_is_the_batch(test, window):
    batch = Batch(test, torch.arange(0, 600, 7), window=window)
    once = batch.mirrored()
    assert once.pose_2d.shape == batch.pose_2d.shape and not torch.allclose(once.pose_2d, batch.pose_2d, atol=1.)
    assert float((once.mirrored().pose_2d - batch.pose_2d).abs().max()) < 2e-4
    left, right = H36M17.index("left_wrist"), H36M17.index("right_wrist")
    assert torch.allclose(once.pose_2d[..., left, 0], 1000 - batch.pose_2d[..., right, 0], atol=1e-3) and torch.equal(once.pose_2d[..., left, 1], batch.pose_2d[..., right, 1])

def test_confidence_is_mirrored_with_its_joint(test):
    sure = replace(test, confidence=torch.linspace(0, 1, 17).expand(len(test), 17).contiguous())
    assert torch.equal(Batch(sure, torch.arange(3)).mirrored().confidence, sure.confidence[:3, list(H36M17.mirror)])

def test_a_mirrored_batch_does_not_show_the_old_3d(test):
    "2D of the mirror with 3D of the original would train nonsense: mirrored as well, or refused."
    batch = Batch(test, torch.arange(5))
    try: shown = batch.mirrored().target
    except (InputError, AttributeError): return
    from poseprojects.skeleton import mirror
    assert torch.allclose(shown, mirror(batch.target, H36M17), atol=1e-6)

def test_a_batch_gathers_what_is_asked(test):
    index = torch.tensor([700, 3, 3, 41])
    batch = Batch(test, index)
    assert len(batch) == 4 and not set(batch.__dict__) & {"pose_3d", "camera"} # nothing before it is asked for
    assert torch.equal(batch.pose_3d, test.pose_3d[index]) and float(batch.target[:, H36M17.root].abs().max()) == 0.
    assert torch.allclose(batch.camera.rotation, test.cameras.rotation[test.camera_id[index].long()].float()) and batch.camera.rotation.dtype == torch.float32
    flat = Batch(replace(test, pose_3d=None), index)
    with pytest.raises(InputError, match="pose_3d"): flat.target

def test_a_window_is_passed_on_to_scoring(test):
    class Middle(nn.Module):
        window, causal = 5, False
        def predict(self, batch):
            assert batch.pose_2d.shape[1:] == (5, 17, 2) and torch.equal(batch.pose_2d[:, 2], batch.poses.pose_2d[batch.index])
            return batch.target[:, None]
    assert evaluate(Middle(), test, synthetic.PROTOCOL, batch_size=300)["mpjpe"] < 1e-3


# ---------------------------------------------------------------- an adversarial method through the same loop

class Adversarial(Linear):
    "A lifter and a critic of 3D poses from another stream: two optimisers, the critic steps two times out of three."
    def __init__(self):
        super().__init__()
        self.critic = nn.Sequential(nn.Linear(51, 16), nn.ReLU(), nn.Linear(16, 1))
        self.steps_made = []
    def optimizers(self, plan):
        return {"lifter": Scheduled(torch.optim.Adam(self.lift.parameters(), plan.learning_rate), plan.schedule),
                "critic": Scheduled(torch.optim.RMSprop(self.critic.parameters(), plan.learning_rate / 2), Schedule("epochs", gamma=0.5))}
    def step(self, batch, optimizers):
        fake, real = self(batch.pose_2d), batch.others["poses"].target
        losses = {}
        if batch.clock.step % 3:
            losses["critic"] = self.critic(fake.detach().flatten(1)).mean() - self.critic(real.flatten(1)).mean()
            optimizers["critic"].zero_grad(); losses["critic"].backward(); optimizers["critic"].step()
        losses["lifter"] = (fake - batch.target).square().mean() - 1e-3 * self.critic(fake.flatten(1)).mean()
        optimizers["lifter"].zero_grad(); losses["lifter"].backward(); optimizers["lifter"].step()
        self.steps_made.append(batch.clock.step)
        return losses

def test_two_optimisers_in_turns(train, test, tmp_path):
    assert isinstance(Adversarial(), Method)
    sets = {"images": train, "poses": test}
    whole, other = Adversarial(), Adversarial()
    start = {k: v.clone() for k, v in whole.state_dict().items()}
    history = fit(whole, sets, PLAN, folder=tmp_path / "whole", validation=test, protocol=synthetic.PROTOCOL)
    assert all(not torch.equal(start[k], v) for k, v in whole.state_dict().items() if "bias" not in k)
    state = load_checkpoint(tmp_path / "whole" / "last.pt")
    assert state["optimizers"]["lifter"]["state"][0]["step"] == 129 and state["optimizers"]["critic"]["state"][0]["step"] == 86
    assert history.rows[0]["lr/lifter"] != history.rows[0]["lr/critic"] and [r["lr/critic"] for r in history.rows] == [5e-4, 2.5e-4, 1.25e-4]
    with pytest.raises(Stopped): fit(stop_at(other, 70), sets, PLAN, folder=tmp_path / "broken", checkpoint_every=10)
    resumed = Adversarial()
    fit(resumed, sets, PLAN, folder=tmp_path / "broken", validation=test, protocol=synthetic.PROTOCOL)
    assert resumed.steps_made[0] == 70 and equal(whole.state_dict(), resumed.state_dict()) == []

def test_a_loss_that_is_not_reported_every_step_is_averaged_over_its_own_steps(train, test):
    "The critic's loss comes in two steps of three; its mean must be over those."
    seen = []
    class Keeps(Adversarial):
        def step(self, batch, optimizers):
            losses = super().step(batch, optimizers)
            if "critic" in losses: seen.append(float(losses["critic"]))
            return losses
    history = fit(Keeps(), {"images": train, "poses": test}, PLAN.changed(epochs=1))
    assert history.rows[0]["loss/critic"] == pytest.approx(sum(seen) / len(seen), rel=1e-4)


# ---------------------------------------------------------------- what the trainer costs

@pytest.mark.slow
@pytest.mark.alone
def test_the_trainer_costs_less_than_three_percent_of_a_step(train):
    """Martinez at full width, batch 1024, one thread. Two measures in one run: the time between the end of a step and the
    beginning of the next (nothing but the trainer), and the step itself against a bare step on the same batch, in turns."""
    plan = Plan("cost", epochs=1, batch_size=1024, learning_rate=1e-3)
    gaps = []
    for attempt in range(3):
        method, bare = small(train, width=1024), small(train, width=1024)
        optimizers = {n: s.optimizer for n, s in bare.optimizers(plan).items()}
        inside, alone, begins, ends = [], [], [], []
        original = method.step
        def timed(batch, given):
            begin = time.perf_counter()
            losses = original(batch, given)
            inside.append(time.perf_counter() - begin)
            same = Batch(batch.poses, batch.index, batch.clock) # nothing gathered yet
            begin_bare = time.perf_counter()
            bare.step(same, optimizers)
            end = time.perf_counter()
            alone.append(end - begin_bare)
            begins.append(begin); ends.append(end)
            return losses
        method.step = timed
        bare.train()
        start = time.perf_counter()
        history = fit(method, train, plan, show=False)
        whole = time.perf_counter() - start
        between = [b - e for b, e in zip(begins[1:], ends)]
        typical, everything = median(between) / median(alone), (sum(between) + (start + whole - ends[-1])) / sum(alone)
        ratio = median(a / b for a, b in zip(inside[2:], alone[2:])) - 1
        gaps.append((typical, everything, ratio))
        print(f"step {median(alone) * 1e3:.0f} ms, trainer {median(between) * 1e3:.3f} ms ({typical:.3%}; ends of epochs included {everything:.3%}), step inside against alone {ratio:+.2%}")
        if gaps[-1][0] < 0.03 and everything < 0.03: break
    assert history.steps == len(inside) == len(train) // 1024
    assert min(g[0] for g in gaps) < 0.03 and min(g[1] for g in gaps) < 0.03
    assert min(g[2] for g in gaps) < 0.25 # the same work; other processes of the machine make this one noisy
