"""Every reader of a source meets spoilt files: each case ends in a valid set or in one sentence, in ten seconds and one gigabyte.

A source is found by its `example`; readers of one file stand in FILES. The files are made once; then, in one child process, a fixed number of seeded changes: bytes, texts and, behind
the container (pickle, npz, MATLAB, HDF5, JSON), values and names. POSEPROJECTS_FUZZ sets the number of cases for each layout, POSEPROJECTS_FUZZ_FIRST the first seed."""
import importlib
import inspect
import io
import json
import multiprocessing
import os
import pickle
import pkgutil
import random
import re
import resource
import shutil
import signal
import time
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

import poseprojects.data
from poseprojects.storage import InputError

CASES, FIRST = int(os.environ.get("POSEPROJECTS_FUZZ", 8)), int(os.environ.get("POSEPROJECTS_FUZZ_FIRST", 0))
SECONDS, BYTES = 10, 1 << 30
LAYOUTS = { # of examples that take one
    "detections": ("openpose", "coco", "alphapose", "mmpose", "kinetics"), "h36m": ("npz", "npz-bare", "cdf", "cdf-mono", "lcn"), "h36m_images": ("hm36", "rendered"),
    "mpi_inf_3dhp": ("release", "spin", "poseaug"), "mpii": ("release", "array"), "multiview_crops": ("rhodin", "written", "nsd")}
OPTIONS = {"h36m_images": {"size": 64}, "surreal": {"images": True, "masks": True}} # of `load`
HEAVY = ("h36m", "h36m_images", "humaneva", "mpi_inf_3dhp", "surreal") # half as many cases of those whose files take long
INPUTS = {"h36m": ("gt", "cpn", "sh"), "pw3d": ("gt", "openpose"), "humaneva": ("gt", "detectron"), "pose2sim": ("detected", "gt"), "detections": ("detected",)} # of `load`, in turn

def modules():
    "The sources: modules of the package with an example of their own."
    names = [m.name for m in pkgutil.iter_modules(poseprojects.data.__path__) if m.name != "sources"]
    return {n: m for n in names if inspect.isfunction(getattr(m := importlib.import_module(f"poseprojects.data.{n}"), "example", None)) and hasattr(m, "load")}

SOURCES = modules()

# ---------- changes

STRANGE = ("-1", "0", "1e400", "nan", "-inf", "99999999999999999999", "2147483648", "1e308", "0x10", "", "1.5", "é")

def spoil_bytes(data: bytes, r: random.Random) -> bytes:
    "Flips, cuts, insertions, doublings."
    data, kind = bytearray(data), r.randrange(7)
    at = r.randrange(len(data) + 1) if r.random() < .6 else r.randrange(min(len(data), 600) + 1) # heads are where sizes stand
    if kind <= 2:
        for _ in range(r.choice((1, 1, 3, 16))):
            place = r.randrange(max(1, len(data))) if r.random() < .5 else min(at + r.randrange(16), max(0, len(data) - 1))
            if data: data[place] = r.choice((0, 255, 127, data[place] ^ 1 << r.randrange(8), r.randrange(256)))
    elif kind == 3: del data[at:]
    elif kind == 4: del data[at:at + r.choice((1, 4, 100))]
    elif kind == 5: data[at:at] = r.randbytes(r.choice((1, 4, 100)))
    else: data[at:at] = data[max(0, at - r.choice((8, 100, 1000))):at]
    return bytes(data)

def spoil_text(data: bytes, r: random.Random) -> bytes:
    "Numbers that are none or far too big, names that are others, lines gone or twice."
    text, kind = data.decode("latin-1"), r.randrange(4)
    if kind <= 1 and (found := list(re.finditer(r"-?\d+(\.\d+)?(e-?\d+)?", text))):
        at = r.choice(found)
        return (text[:at.start()] + r.choice(STRANGE) + text[at.end():]).encode("latin-1")
    if kind == 2 and (found := list(re.finditer(r"[A-Za-z_]\w{2,}", text))):
        at = r.choice(found)
        return (text[:at.start()] + r.choice((at[0][::-1], at[0] + "x", r.choice(found)[0], "")) + text[at.end():]).encode("latin-1")
    lines = text.splitlines(keepends=True) or [""]
    at = r.randrange(len(lines))
    lines[at:at + 1] = r.choice(([], [lines[at]] * 2, [lines[at][:len(lines[at]) // 2] + "\n"], [r.choice(lines)]))
    return "".join(lines).encode("latin-1")

def spoil_array(a: np.ndarray, r: random.Random):
    "An array of another shape, dtype, unit, or with a strange number."
    ways = [lambda: a[:0], lambda: a[: len(a) // 2], lambda: a[..., :1], lambda: a.T, lambda: a[None], lambda: a.reshape(-1), lambda: np.concatenate([a, a]), lambda: a.astype(str), lambda: a.astype(object), lambda: a.tolist(), lambda: a[::-1]]
    if a.dtype.kind in "fiu" and a.size:
        def strange():
            b = a.astype(float)
            b.reshape(-1)[r.randrange(b.size)] = r.choice((np.nan, np.inf, 1e300, -1e9, -1., 0., 2.**40))
            return b if a.dtype.kind == "f" else np.nan_to_num(b, posinf=1e9, neginf=-1e9).clip(np.iinfo(a.dtype).min / 2, np.iinfo(a.dtype).max / 2).astype(a.dtype)
        ways += [strange] * 8 + [lambda: a * np.asarray(1000, a.dtype), lambda: a * np.asarray(0, a.dtype), lambda: -a.astype(float), lambda: a.astype(np.float64) / 1000, lambda: np.full(a.shape, np.nan), lambda: a.astype("c16"), lambda: a.astype("u1"), lambda: a.astype("S3")]
    return r.choice(ways)() if a.ndim else r.choice((None, "x", float("nan"), -1, [1, 2], 1 << 60))

def spoil_value(value, r: random.Random, depth: int = 0):
    "The value with one change somewhere inside."
    if isinstance(value, np.ndarray) and value.dtype == object and value.size and r.random() < .8:
        value, at = value.copy(), r.randrange(value.size)
        flat = value.reshape(-1)
        flat[at] = spoil_value(flat[at], r, depth + 1)
        return flat.reshape(value.shape)
    if isinstance(value, np.ndarray): return spoil_array(value, r)
    if isinstance(value, dict) and value:
        value, key = type(value)(value), r.choice(list(value))
        kind = r.randrange(10)
        if kind == 0: del value[key]
        elif kind == 1: value[f"{key}x"] = value.pop(key)
        elif kind == 2: value[r.choice(list(value))] = value[key]
        elif kind == 3: value[r.choice(("", 7, None, "é"))] = value[key]
        else: value[key] = spoil_value(value[key], r, depth + 1)
        return value
    if isinstance(value, (list, tuple)) and value:
        at, kind, items = r.randrange(len(value)), r.randrange(10), list(value)
        if kind == 0: del items[at]
        elif kind == 1: items.append(items[at])
        elif kind == 2: items = items[:1]
        elif kind == 3: items = []
        elif kind == 4 and depth: return {str(k): v for k, v in enumerate(items)}
        else: items[at] = spoil_value(items[at], r, depth + 1)
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, str) and r.random() < .5: return r.choice((value[::-1], value + "x", "", value.upper(), value * 50, "../../etc/passwd", value + "\0", "é/\n"))
    if isinstance(value, (int, float, np.number)) and r.random() < .6: return r.choice((-1, 0, -value, value * 1000, value + 1, 1e300, float("nan"), float("inf"), 1 << 40, 10**30))
    return r.choice((None, "x", 1.5, -1, [], {}, [1, [2]], True, float("nan"), {"a": 1}))

# ---------- containers whose values can be changed and written again

def spoil_npz(data, r):
    from poseprojects.data.safe import load_npz
    Path("spoilt.npz").write_bytes(data)
    value = spoil_value(load_npz("spoilt.npz"), r)
    out = io.BytesIO()
    np.savez(out, **{str(k): v if isinstance(v, np.ndarray) else np.array(v, dtype=object) if isinstance(v, (dict, list, type(None))) and not isinstance(v, list) else _loose(v) for k, v in value.items()})
    return out.getvalue()

def _loose(value):
    "Anything as an array."
    try: return np.asarray(value)
    except ValueError: return np.array([None])

def spoil_npy(data, r):
    out = io.BytesIO()
    np.save(out, _loose(spoil_array(np.load(io.BytesIO(data)), r)))
    return out.getvalue()

def spoil_pickle(data, r):
    from poseprojects.data.safe import dumps_python2, loads_pickle
    value = spoil_value(loads_pickle(data, "x"), r)
    try: return dumps_python2(value) if r.random() < .5 else pickle.dumps(value, r.randrange(2, 5))
    except InputError: return pickle.dumps(value)

def spoil_json(data, r):
    return json.dumps(spoil_value(json.loads(data), r), default=str).encode()

def spoil_mat(data, r):
    import scipy.io
    if data[:10] == b"MATLAB 7.3" or data[:4] == b"\x89HDF": return spoil_hdf5(data, r)
    value = {k: v for k, v in scipy.io.loadmat(io.BytesIO(data), struct_as_record=True).items() if not k.startswith("__")}
    def plain(v): # structs as dicts, so that their fields can be spoilt
        if isinstance(v, np.ndarray) and v.dtype.names: return {n: plain(v[n].flat[0]) for n in v.dtype.names} if v.size == 1 else _objects([plain(v[k:k + 1]) for k in range(v.size)]) if v.ndim == 1 else plain(v.reshape(-1))
        if isinstance(v, np.ndarray) and v.dtype == object: return _objects([plain(x) for x in v.reshape(-1)])
        return v
    value, out = spoil_value({k: plain(v) for k, v in value.items()}, r), io.BytesIO()
    def writable(v):
        if isinstance(v, dict): return {str(k).strip("_") or "x": writable(x) for k, x in v.items()} or np.zeros((0, 0))
        if isinstance(v, np.ndarray) and v.dtype == object: return _objects([writable(x) for x in v.reshape(-1)])
        if isinstance(v, list): return _objects([writable(x) for x in v])
        return np.zeros((0, 0)) if v is None or isinstance(v, int) and abs(v) > 2**62 else v
    scipy.io.savemat(out, writable(value), do_compression=r.random() < .5, long_field_names=True)
    return out.getvalue()

def _objects(values):
    made = np.empty(len(values), object)
    for k, v in enumerate(values): made[k] = v
    return made

def spoil_hdf5(data, r):
    import h5py
    head, out = data[:512] if data[:4] != b"\x89HDF" else b"", Path("spoilt.h5")
    out.write_bytes(data)
    with h5py.File(out, "r+") as file:
        names = []
        file.visit(names.append)
        name = r.choice(names)
        if r.random() < .25: file.move(name, name + "x") if r.random() < .5 else file.__delitem__(name)
        elif isinstance(file[name], h5py.Dataset) and file[name].dtype.kind in "fiub":
            old, attributes = file[name][()], dict(file[name].attrs)
            new = _loose(spoil_array(np.asarray(old), r))
            if new.dtype.kind in "fiub":
                del file[name]
                file[name] = new
                for k, v in attributes.items(): file[name].attrs[k] = v
    return head + out.read_bytes()[len(head):]

STRUCTURED = {".npz": spoil_npz, ".npy": spoil_npy, ".pkl": spoil_pickle, ".json": spoil_json, ".mat": spoil_mat, ".h5": spoil_hdf5}
TEXTS = {".json", ".toml", ".csv", ".txt", ".amc", ".asf", ".trc", ".calibration", ".xml", ".bvh", ".md", ""}

def change(files: list[Path], r: random.Random) -> tuple[dict[Path, bytes | None], str]:
    "New contents of some files (None: gone) and what was done."
    path, kind = r.choice(files), r.random()
    alike = [p for p in files if p != path and p.suffix == path.suffix]
    if kind < .03: return {path: b""}, f"emptied {path.name}"
    if kind < .06: return {path: None}, f"removed {path.name}"
    if kind < .10 and alike:
        other = r.choice(alike)
        return {path: other.read_bytes(), other: path.read_bytes()}, f"exchanged {path.name} and {other.name}"
    if kind < .65 and path.suffix in STRUCTURED:
        try: return {path: STRUCTURED[path.suffix](path.read_bytes(), r)}, f"values of {path.name}"
        except Exception: pass # what cannot be written is no case; bytes are spoilt instead
    if kind < .85 and path.suffix in TEXTS: return {path: spoil_text(path.read_bytes(), r)}, f"text of {path.name}"
    return {path: spoil_bytes(path.read_bytes(), r)}, f"bytes of {path.name}"

# ---------- what is read

def load_split(source: str, split: str, root: Path, seed: int):
    "A set of the folder, checked once more after the cache."
    inputs = INPUTS.get(source, (None,))
    options = OPTIONS.get(source, {}) | ({"input_2d": inputs[seed % len(inputs)]} if inputs[0] else {})
    made = importlib.import_module(f"poseprojects.data.{source}").load(split, root, **options)
    made.check()
    assert len(made.fingerprint) == 64

def diagnosis(root: Path, seed: int):
    "What the doctor says of the folder; it may find it ill, but not fall ill itself."
    from poseprojects.data.diagnosis import doctor
    assert str(doctor(root))

def clip():
    from poseprojects.data.sources import example_people
    from poseprojects.skeleton import H36M17
    return example_people(H36M17, 6)[0].pose, H36M17

def make_mat(path: Path, version: str):
    from test_containers import MATLAB, MATLAB73, for_scipy, write73
    import scipy.io
    if version == "7.3": return write73(path, MATLAB73)
    scipy.io.savemat(path, {k: for_scipy(k, v) for k, v in MATLAB.items()}, do_compression=version == "packed")

def make_torch(path: Path, new: bool):
    import torch
    from test_safe import checkpoint
    torch.save(checkpoint() | {"random_state": np.random.RandomState(0)}, path, _use_new_zipfile_serialization=new)

def make_hdf5(path: Path):
    import h5py
    with h5py.File(path, "w") as file: file["3D"], file["names"], file["a/b/c"] = np.ones((4, 51), "f4"), ["a", "b"], 3

def make_cdf(path: Path, **options):
    from test_containers import POSES, write_cdf
    write_cdf(path, POSES[:, :2, :9], blocks=2, **options)

def container(name: str): return getattr(importlib.import_module("poseprojects.data.containers"), name)
def careful(name: str): return getattr(importlib.import_module("poseprojects.data.safe"), name)
def calibration(name: str): return getattr(importlib.import_module("poseprojects.data.calibrations"), name)
def example_cameras(): return importlib.import_module("poseprojects.data.cmu").cameras()
def bvh(name: str): return getattr(importlib.import_module("poseprojects.data.bvh"), name)

FILES = { # readers of one file: its name, what writes it, what reads it
    "mat-5": ("a.mat", lambda p: make_mat(p, "5"), lambda p: container("read_mat")(p)), "mat-packed": ("a.mat", lambda p: make_mat(p, "packed"), lambda p: container("read_mat")(p)), "mat-7.3": ("a.mat", lambda p: make_mat(p, "7.3"), lambda p: container("read_mat")(p)),
    "hdf5": ("a.h5", make_hdf5, lambda p: container("read_hdf5")(p)), "cdf": ("a.cdf", make_cdf, lambda p: container("read_cdf")(p, "Pose")), "cdf-packed": ("a.cdf", lambda p: make_cdf(p, packed=True), lambda p: container("read_cdf")(p, "Pose")), "cdf-2.6": ("a.cdf", lambda p: make_cdf(p, wide=4), lambda p: container("read_cdf")(p, "Pose")),
    "toml": ("a.toml", lambda p: p.write_text("[cam_1]\nname = 'a'\nsize = [1920.0, 1080.0]\n[cam_2]\nmatrix = [[1, 0], [0, 1]]\n"), lambda p: container("read_toml")(p)), "csv": ("a.csv", lambda p: p.write_text("file,frames\na,1\n\"b,c\",2\n"), lambda p: container("read_csv_rows")(p, ("file",))),
    "json": ("a.json", lambda p: p.write_text('{"a": [1, 2.5, {"b": "\\ud83d\\ude00"}], "c": null}'), lambda p: container("read_json")(p)),
    "pickle": ("a.pkl", lambda p: p.write_bytes(pickle.dumps(honest(), 2)), lambda p: careful("load_pickle")(p)), "pickle-python2": ("a.pkl", lambda p: p.write_bytes(careful("dumps_python2")({k: v for k, v in honest().items() if k not in ("table", "bytes")})), lambda p: careful("load_pickle")(p)),
    "npz": ("a.npz", lambda p: np.savez_compressed(p, a=np.ones((2, 3)), b=np.array({"x": [np.ones(2)]}, dtype=object)), lambda p: careful("load_npz")(p)), "npy": ("a.npy", lambda p: np.save(p, np.ones((2, 3))), lambda p: careful("load_npy")(p)),
    "torch-zip": ("a.pth", lambda p: make_torch(p, True), lambda p: careful("load_torch")(p)), "torch-stream": ("a.pth", lambda p: make_torch(p, False), lambda p: careful("load_torch")(p)),
    "bvh": ("a.bvh", lambda p: bvh("write_bvh")(p, *clip(), 50.), lambda p: bvh("read_bvh")(p)), "aist": ("setting1.json", lambda p: calibration("write_aist")(p, example_cameras()), lambda p: calibration("read_aist")(p)), "panoptic": ("calibration_a.json", lambda p: calibration("write_panoptic")(p, example_cameras()), lambda p: calibration("read_panoptic")(p)),
}

def honest():
    from test_safe import HONEST
    return HONEST

def reads(source: str, layout: str, root: Path) -> dict:
    "Writes the files; by part, what reads them, given a seed."
    if source in FILES:
        name, make, read = FILES[source]
        root.mkdir()
        make(root / name)
        return {"": lambda seed: read(root / name)}
    example = importlib.import_module(f"poseprojects.data.{source}").example
    return {split: lambda seed, split=split: load_split(source, split, root, seed) for split in sorted(example(root, layout) if layout else example(root))}

# ---------- one child process for each layout

class Late(BaseException):
    "A case took too long; no reader may catch it."

def _late(*_): raise Late

def attempt(read) -> str:
    "Calls a reader; empty when it gave something or refused in one sentence, else what happened."
    signal.setitimer(signal.ITIMER_PROF, SECONDS) # of the processor, so that a busy machine changes nothing
    try: read()
    except InputError as error:
        text = str(error)
        if "MemoryError" in text: return f"took over {BYTES >> 20} MB: {text[:200]}"
        if len(text) > 1500 or "\n" in text: return f"is refused in more than a sentence: {text[:300]!r}"
    except Late: return f"took over {SECONDS} s"
    except BaseException as error:
        import traceback
        where = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__) if "poseprojects" in f.filename][-3:]
        return f"{type(error).__name__}: {str(error)[:160]} ({', '.join(where)})"
    finally: signal.setitimer(signal.ITIMER_PROF, 0)
    return ""

def child(pipe, source: str, layout: str, folder: str, first: int, cases: int):
    "Makes the files and spoils them; sends (seed, what was done) before a case and what happened after it."
    os.chdir(folder)
    root, spare = Path(folder) / "files", Path(folder) / "cache"
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGPROF, _late)
    os.environ["POSEPROJECTS_CACHE"] = str(spare)
    parts = reads(source, layout, root)
    pipe.send(("honest", [attempt(lambda: read(0)) for read in parts.values()]))
    files = sorted(p for p in root.rglob("*") if p.is_file())
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + BYTES, size + BYTES))
    for seed in range(first, first + cases):
        r = random.Random(f"{source} {layout} {seed}")
        spoilt, done = change(files, r)
        pipe.send((seed, done))
        kept = {path: path.read_bytes() for path in spoilt}
        for path, data in spoilt.items(): path.unlink() if data is None else path.write_bytes(data)
        touched = [p for p in parts if any(p in path.relative_to(root).parts for path in spoilt)] # of a folder with a part for each split, the others are as before
        part = r.choice(touched or list(parts))
        calls = {f"split {part}": lambda: parts[part](seed)}
        if source in SOURCES and seed % 12 == 3: calls["doctor"] = lambda: diagnosis(root, seed)
        pipe.send([f"{what}: {text}" for what, call in calls.items() if (text := attempt(call))])
        shutil.rmtree(spare, ignore_errors=True)
        for path, data in kept.items(): path.write_bytes(data)
    pipe.send(None)

def fuzz(source: str, layout: str, folder: Path, first: int = FIRST, cases: int = CASES) -> list[str]:
    "What went wrong, with the seeds that show it again."
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*(f"poseprojects.data.{name}" for name in SOURCES), "scipy.io", "h5py", "PIL.Image"]) # imported once for all children
    ours, theirs = context.Pipe()
    process = context.Process(target=child, args=(theirs, source, layout, str(folder), first, cases), daemon=True)
    process.start()
    theirs.close()
    wrong, case = [], ("start", "")
    try:
        while True:
            if not ours.poll(120): return [*wrong, f"seed {case[0]} ({case[1]}): nothing heard for 120 s"]
            message = ours.recv()
            if message is None: return wrong
            if isinstance(message, tuple):
                case = message
                if case[0] == "honest" and any(case[1]): wrong.append(f"the example itself: {case[1]}")
            else: wrong += [f"seed {case[0]} ({case[1]}), {text}" for text in message]
    except EOFError:
        process.join(10)
        return [*wrong, f"seed {case[0]} ({case[1]}): the process ended with {process.exitcode}"]
    finally: process.kill()

# ---------- tests

EVERY = [(name, layout) for name in SOURCES for layout in LAYOUTS.get(name, ("",))]

def test_every_source_is_fuzzed_in_every_layout():
    for name, module in SOURCES.items():
        takes = "layout" in inspect.signature(module.example).parameters
        assert takes == (name in LAYOUTS), f"{name}: list the layouts of its example in LAYOUTS"
        known = getattr(module, "_WRITERS", None) or getattr(module, "LAYOUTS", ())
        assert set(known) <= set(LAYOUTS.get(name, known)), f"{name}: {known} are its layouts"
    assert len(SOURCES) >= 12

@pytest.mark.parametrize("source, layout", EVERY, ids=lambda x: x or "only")
def test_spoilt_files_end_in_a_set_or_a_sentence(source, layout, tmp_path):
    wrong = fuzz(source, layout, tmp_path, cases=CASES // (1 + (source in HEAVY)))
    assert wrong == [], "\n" + "\n".join(wrong)

@pytest.mark.parametrize("kind", FILES)
def test_spoilt_files_of_one_reader_end_in_a_value_or_a_sentence(kind, tmp_path):
    wrong = fuzz(kind, "", tmp_path, cases=2 * CASES)
    assert wrong == [], "\n" + "\n".join(wrong)

def test_the_harness_notices(tmp_path, monkeypatch):
    "Exceptions of other kinds, hangs, memory and sudden ends are seen."
    def raising(error):
        def read(): raise error
        return attempt(read)
    assert raising(InputError("x: y, expected z")) == ""
    assert "KeyError" in raising(KeyError("a")) and "took over 1024 MB" in raising(InputError("MemoryError")) and "more than a sentence" in raising(InputError("a\nb"))
    before = signal.signal(signal.SIGPROF, _late)
    monkeypatch.setattr("test_fuzz.SECONDS", .2)
    def slow():
        while True: sum(range(1000))
    try: assert "took over" in attempt(slow)
    finally: signal.signal(signal.SIGPROF, before)
    assert "the process ended" in fuzz("no_such_source", "", tmp_path)[-1]

def test_changes_are_the_same_for_the_same_seed(tmp_path):
    for name, data in (("a.json", b'{"a": [1, 2.5, {"b": "c"}]}'), ("b.txt", b"frame 1 2\n3 4\n"), ("c.pkl", pickle.dumps({"a": np.arange(6.)}))): (tmp_path / name).write_bytes(data)
    files = sorted(tmp_path.iterdir())
    first, again = ([change(files, random.Random(seed)) for seed in range(60)] for _ in range(2))
    assert first == again and len({done for _, done in first}) >= 8
    assert sum(p is not None and data != p.read_bytes() for spoilt, _ in first for p, data in spoilt.items()) > 50
