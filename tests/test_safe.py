"Hostile pickles, archives and checkpoints run nothing and take nothing; honest ones of every protocol and of Python 2 come back whole."
import encodings.cp437, encodings.raw_unicode_escape # so that no codec is imported while a file is read
import io
import pickle
import resource
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from poseprojects.data import safe
from poseprojects.data.safe import dumps_python2, load_npy, load_npz, load_pickle, load_torch, loads_pickle
from poseprojects.storage import InputError

# ---------- what happens while a file is read

WATCHED, seen = ("import", "exec", "compile", "os.", "subprocess.", "open", "marshal.", "ctypes.", "socket.", "pickle.", "shutil."), None

def _watch(event, arguments):
    if seen is not None and event.startswith(WATCHED): seen.append((event, str(arguments)[:80]))

sys.addaudithook(_watch)

def refused(read, *arguments, allowed=()):
    "The sentence of a refusal, during which nothing was imported, run or opened, and little memory taken."
    global seen
    memory, began, seen = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time(), []
    try:
        with pytest.raises(InputError) as caught: read(*arguments)
    finally: events, seen = seen, None
    assert [e for e in events if e[0] not in allowed] == []
    assert time.process_time() - began < 10 # of the processor, so that a busy machine changes nothing
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 1_000_000 # kB
    text = str(caught.value)
    assert "expected" in text and "\n" not in text and len(text) < 700
    return text

# ---------- pickles that would run something

def text(s): return b"X" + struct.pack("<I", len(s.encode())) + s.encode()
def glob(full): return b"c" + b"\n".join(full.rsplit(".", 1)[k].encode() for k in (0, 1)) + b"\n"
def by_stack(full): return text(full.rsplit(".", 1)[0]) + text(full.rsplit(".", 1)[1]) + b"\x93"

class Reduces:
    def __init__(self, function, *arguments): self.form = (function, arguments)
    def __reduce__(self): return self.form

def live(canary):
    "Pickles that make the canary when Python's own reader opens them, and what the refusal must name."
    import importlib, os, subprocess as sub
    touch, make = f"touch {canary}", f"open({canary!r}, 'w')"
    system = text(touch) + b"\x85R."
    yield "reduce, os.system", pickle.dumps(Reduces(os.system, touch)), "posix.system"
    yield "reduce, protocol 0", pickle.dumps(Reduces(os.system, touch), 0), "posix.system"
    yield "reduce, open", pickle.dumps(Reduces(open, canary, "w")), "io.open"
    yield "reduce, exec", pickle.dumps(Reduces(exec, make)), "builtins.exec"
    yield "reduce, eval", pickle.dumps(Reduces(eval, make)), "builtins.eval"
    yield "reduce, subprocess", pickle.dumps(Reduces(sub.call, ["touch", canary])), "subprocess.call"
    yield "reduce, Popen", pickle.dumps(Reduces(sub.Popen, ["touch", canary])), "subprocess.Popen"
    yield "names of Python 2", glob("__builtin__.eval") + text(make) + b"\x85R.", "__builtin__.eval"
    yield "import_module, then getattr", (glob("builtins.getattr") + glob("importlib.import_module") + text("os") + b"\x85R" + text("system") + b"\x86R" + system), "builtins.getattr"
    yield "operator.methodcaller", glob("operator.methodcaller") + b"(" + text("system") + text(touch) + b"tR" + glob("importlib.import_module") + text("os") + b"\x85R\x85R.", "operator.methodcaller"
    yield "functools.partial", glob("functools.partial") + glob("os.system") + text(touch) + b"\x86R)R.", "functools.partial"
    yield "name from the stack", b"\x80\4" + by_stack("os.system") + system, "os.system"
    yield "dotted name from the stack", b"\x80\4" + text("os") + text("path.os.system") + b"\x93" + system, "os.path.os.system"
    yield "name behind the memo", b"\x80\4" + text("os") + b"\x94" + text("system") + b"\x940h\0h\1\x93" + system, "os.system"
    yield "instance by INST", b"(" + text(touch) + b"ios\nsystem\n.", "os.system"
    yield "instance by OBJ", b"(" + glob("os.system") + text(touch) + b"o.", "os.system"
    yield "newobj", b"\x80\2" + glob("subprocess.Popen") + b")\x81" + b"0" + glob("os.system") + system, "subprocess.Popen"
    yield "newobj_ex", b"\x80\4" + glob("functools.partial") + glob("os.system") + text(touch) + b"\x86}\x92)R.", "functools.partial"
    yield "in a dict's value, after honest ones", b"\x80\2}(" + text("a") + b"K\1" + text("b") + glob("os.system") + text(touch) + b"\x85Ru.", "os.system"
    yield "as a dict's key", b"\x80\2}" + glob("os.system") + text(touch) + b"\x85RK\1s.", "os.system"
    yield "thrown away", b"\x80\2" + glob("os.system") + text(touch) + b"\x85R0K\1.", "os.system"
    yield "after a first pickle's memo", b"\x80\2" + glob("os.system") + b"q\0" + b"0K\7q\1" + b"0h\0" + system, "os.system"
    yield "a frame that ends early", b"\x80\4\x95" + struct.pack("<Q", 2) + b"K\1" + b"0" + by_stack("os.system") + system, "os.system"
    yield "inside numpy's object array", pickle.dumps(np.array([1, Reduces(os.system, touch)], dtype=object)), "posix.system"
    yield "inside an OrderedDict", pickle.dumps(OrderedDict(a=Reduces(os.system, touch))), "posix.system"
    yield "state of an exception", glob("builtins.ValueError") + b")R}" + text("x") + glob("os.system") + text(touch) + b"\x85Rsb.", "builtins.ValueError"
    yield "code object", glob("builtins.exec") + glob("builtins.compile") + text(make) + text("x") + text("exec") + b"\x87R\x85R.", "builtins.exec"
    yield "numpy's own loader", glob("numpy.testing._private.utils.runstring") + text(make) + b"}\x86R.", "numpy.testing._private.utils.runstring"
    yield "pickle within a pickle", glob("pickle.loads") + glob("_codecs.encode") + text(f"cos\nsystem\n(S'{touch}'\ntR.") + text("latin1") + b"\x86R\x85R.", "pickle.loads"
    yield "torch's pickle within", glob("torch.storage._load_from_bytes") + glob("_codecs.encode") + text(f"cos\nsystem\n(S'{touch}'\ntR.") + text("latin1") + b"\x86R\x85R.", "torch.storage._load_from_bytes"
    yield "copyreg's constructor", glob("copyreg.__newobj__") + glob("subprocess.Popen") + b"\x85R0" + glob("os.system") + system, "copyreg.__newobj__"
    yield "python's own shelf", glob("runpy._run_code") + glob("builtins.compile") + text(make) + text("x") + text("exec") + b"\x87R}\x86R.", "runpy._run_code"
    yield "wait for the collector", glob("weakref.finalize") + glob("builtins.set") + b")R" + glob("os.system") + text(touch) + b"\x87R.", "weakref.finalize"

NAMES = [name for name, _, _ in live("x")]

@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_pickle_runs_nothing_and_is_refused_by_name(name, tmp_path):
    canary = tmp_path / "canary"
    data, full = next((d, f) for n, d, f in live(str(canary)) if n == name)
    assert full in refused(loads_pickle, data, "x.pkl")
    assert not canary.exists() and len(NAMES) >= 30

def test_the_hostile_pickles_are_live(tmp_path):
    "Python's own reader runs them, so the test above could fail."
    script = ("import pickle, sys\nfrom pathlib import Path\nfrom test_safe import live\nquiet = []\n"
              "for name, data, _ in live(sys.argv[1]):\n"
              "    Path(sys.argv[1]).unlink(missing_ok=True)\n"
              "    try: kept = pickle.loads(data)\n"
              "    except Exception: pass\n"
              "    else: del kept\n"
              "    import time; end = time.time() + 5\n"
              "    while 'Popen' in name and not Path(sys.argv[1]).exists() and time.time() < end: time.sleep(.01)\n"
              "    if not Path(sys.argv[1]).exists(): quiet.append(name)\n"
              "print(quiet)")
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path / "canary")], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == "[]", run.stdout + run.stderr[-2000:]

# ---------- pickles that abuse the machine itself

ARRAY = glob("numpy.core.multiarray._reconstruct") + glob("numpy.ndarray") + b"K\0\x85C\1b\x87R"
def dtype(code, state=b"(K\3U\1<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"): return glob("numpy.dtype") + text(code) + b"K\0K\1\x87R" + state
def array(shape, kind, content): return b"\x80\3" + ARRAY + b"(K\1" + shape + kind + b"\x89" + content + b"tb."
def long1(n): return b"\x8a\x08" + n.to_bytes(8, "little", signed=True)

ABUSE = {
    "get of an unset entry": (b"h\5.", "never set"),
    "get of an entry within the file's length": (b"K\1q\3h\2.", "never set"),
    "get by a negative number": (b"K\1q\0g-1\n.", "memo entry -1"),
    "memo of four billion": (b"K\1r\xff\xff\xff\xff.", "memo entries"),
    "memo overwritten while an array waits": (b"\x80\3" + ARRAY + b"q\0" + b"h\0" + b"\x86.", "no content"),
    "array used before its content": (b"\x80\3](" + ARRAY + b"q\0h\0(K\1K\1\x85" + dtype("u1") + b"\x89C\1atbe.", "no content"),
    "list that holds itself": (b"]q\0h\0a.", "holds itself"),
    "dict that holds itself": (b"}q\0" + text("a") + b"h\0s.", "holds itself"),
    "tuple that holds itself by a list": (b"]q\0h\0\x85a0h\0.", "holds itself"),
    "array that holds itself": (b"\x80\3" + ARRAY + b"q\0(K\1K\1\x85" + dtype("O8") + b"\x89](h\0etb.", "no content"),
    "nested a hundred thousand times": (b"]" * 100_000 + b"a" * 99_999 + b".", "nested deeper"),
    "tuples nested a hundred thousand times": (b")" + b"\x85" * 100_000 + b".", "nested deeper"),
    "a million marks": (b"(" * 1_000_000 + b".", "marks"),
    "a million empty sets": (b"\x8f" * 1_000_000 + b".", "times the file's length"),
    "three million empty dicts": (b"}" * 3_000_000 + b".", "times the file's length"),
    "hash of nested tuples": (b")" + b"q\0h\0\x86" * 60 + b"}q\1" + b"0" * 0 + b"h\0K\1s.", "tuples as keys"),
    "keys that collide": (b"}(" + b"".join(b"\x8a\x11" + (k * (2**61 - 1)).to_bytes(17, "little") + b"N" for k in range(1, 20_000)) + b"u.", "60 bits"),
    "too many tuples as keys": (b"}(" + b"".join(b"K\1J" + struct.pack("<i", k) + b"\x86N" for k in range(20_000)) + b"u.", "tuples as keys"),
    "list as a key": (b"}]K\1s.", "a key is a list"),
    "text of 2^62 bytes": (b"\x80\4\x8d" + struct.pack("<Q", 1 << 62) + b"abc.", "claims"),
    "bytes of four gigabytes": (b"\x80\3B" + b"\xff\xff\xff\xff" + b"abc.", "claims"),
    "bytes of 2^63": (b"\x80\4\x8e" + struct.pack("<Q", 1 << 63) + b"abc.", "claims"),
    "bytearray of 2^40": (b"\x80\5\x96" + struct.pack("<Q", 1 << 40) + b"abc.", "claims"),
    "integer of two gigabytes": (b"\x80\2\x8b\xff\xff\xff\x7fabc.", "an integer of"),
    "integer of a negative length": (b"\x80\2\x8b\xff\xff\xff\xffabc.", "an integer of"),
    "integer of a million digits": (b"I" + b"9" * 1_000_000 + b"\n.", "line does not end"),
    "string of Python 2 of two gigabytes": (b"T\xff\xff\xff\x7fabc.", "claims"),
    "frame of 2^60": (b"\x80\4\x95" + struct.pack("<Q", 1 << 60) + b"K\1.", "frame claims"),
    "array of a terabyte": (array(long1(1 << 37) + b"\x85", dtype("f8"), b"C\x08abcdefgh"), "shape"),
    "array with a negative axis": (array(b"J\xff\xff\xff\xff\x85", dtype("f8"), b"C\x08abcdefgh"), "shape"),
    "array whose product overflows": (array(long1(1 << 32) + long1(1 << 32) + b"\x86", dtype("u1"), b"C\0"), "shape"),
    "array of elements without size": (array(b"K\5\x85", dtype("V0"), b"C\0"), "0 bytes each"),
    "object array with too few objects": (array(b"K\5\x85", dtype("O8"), b"]"), "needs 5 objects"),
    "object array given bytes as pointers": (array(b"K\1\x85", dtype("O8"), b"C\x08abcdefgh"), "needs 1 objects"),
    "numbers given a list": (array(b"K\1\x85", dtype("f8"), b"]K\1a"), "content is a list"),
    "array of another class": (b"\x80\3" + glob("numpy.core.multiarray._reconstruct") + glob("numpy.dtype") + b"K\0\x85C\1b\x87R.", "numpy.dtype"),
    "matrix class": (b"\x80\3" + glob("numpy.core.multiarray._reconstruct") + glob("numpy.matrix") + b"K\0\x85C\1b\x87R.", "numpy.matrix"),
    "ctypes array by numpy": (glob("numpy.ctypeslib.as_array") + b")R.", "numpy.ctypeslib.as_array"),
    "memory map by numpy": (glob("numpy.memmap") + text("/etc/passwd") + b"\x85R.", "numpy.memmap"),
    "numpy.load": (glob("numpy.load") + text("/etc/passwd") + b"\x85R.", "numpy.load"),
    "dtype with metadata": (array(b"K\1\x85", dtype("f8", b"(K\4U\1<NNNK\xffK\xffK\0}U\1a" + glob("numpy.ndarray") + b"stb"), b"C\x08abcdefgh"), "metadata"),
    "dtype by an unknown code": (array(b"K\1\x85", dtype("M8[ns]"), b"C\x08abcdefgh"), "not known"),
    "dtype whose fields lie outside": (array(b"K\1\x85", dtype("V8", b"(K\3U\1|N" + text("a") + b"\x85}" + text("a") + dtype("f8") + b"K\x64\x86sK\x08K\1K\0tb"), b"C\x08abcdefgh"), "damaged"),
    "dtype with objects among the fields": (array(b"K\1\x85", dtype("V8", b"(K\3U\1|N" + text("a") + b"\x85}" + text("a") + dtype("O8") + b"K\0\x86sK\x08K\1K\x3ftb"), b"C\x08abcdefgh"), "objects inside"),
    "dtype of a text as long as memory": (array(b"K\1\x85", dtype("S999999999"), b"C\x08abcdefgh"), "longer than the file"),
    "dtype alone without state": (b"\x80\2" + dtype("f8", b"") + b".", "no content"),
    "scalar of objects": (glob("numpy.core.multiarray.scalar") + dtype("O8") + b"C\x08abcdefgh\x86R.", "no number"),
    "call of a text": (text("os.system") + text("ls") + b"\x85R.", "a str is called"),
    "call of an array's class": (glob("numpy.ndarray") + b"K\5\x85\x85R.", "numpy.ndarray"),
    "class as a value": (glob("numpy.ndarray") + b".", "holds numpy.ndarray"),
    "state of a list": (b"]}" + text("a") + b"K\1sb.", "sets the state of list"),
    "state of a dict": (b"}}" + text("__class__") + b"K\1sb.", "sets the state of dict"),
    "append to a dict": (b"}K\1a.", "appended to a dict"),
    "items for a list": (b"]K\1K\2s.", "items for a list"),
    "items for an array": (b"\x80\3" + array(b"K\1\x85", dtype("u1"), b"C\1a")[2:-1] + b"K\0K\2s.", "items for a ndarray"),
    "members for a list": (b"\x80\4](K\1\x90.", "members for a list"),
    "extension registry, 1": (b"\x80\2\x82\1.", "EXT1"),
    "extension registry, 2": (b"\x80\2\x83\1\0.", "EXT2"),
    "extension registry, 4": (b"\x80\2\x84\1\0\0\0.", "EXT4"),
    "persistent id": (b"Pabc\n.", "PERSID"),
    "persistent id from the stack": (text("a") + b"Q.", "BINPERSID"),
    "out-of-band buffer": (b"\x80\5\x97.", "NEXT_BUFFER"),
    "read-only buffer": (b"\x80\5C\1a\x98.", "READONLY_BUFFER"),
    "protocol 9": (b"\x80\x09K\1.", "protocol 9"),
    "pop of an empty stack": (b"0.", "damaged"),
    "mark below the stack": (b"K\1K\2(00t.", "mark is gone"),
    "nothing left": (b".", "damaged"),
    "arguments by the thousand": (glob("numpy.dtype") + b"(" + b"K\1" * 1000 + b"tR.", "1,000 arguments"),
    "bytes with a strange codec": (glob("_codecs.encode") + text("a") + text("zip") + b"\x86R.", "encoded as 'zip'"),
    "name over two lines": (b"cos\x00system\n\n.", "os?system"),
    "name of a megabyte": (b"c" + b"a" * 1_000_000 + b"\nb\n.", "line does not end"),
    "half a character": (b"X\3\0\0\0\xed\xa0\x80.", "damaged"),
    "nothing at all": (b"", "ends in the middle"),
    "text that is no pickle": (b"frame,x,y\n1,2,3\n", "refused"),
}

@pytest.mark.parametrize("name", ABUSE)
def test_the_machine_cannot_be_abused(name):
    data, reason = ABUSE[name]
    assert reason in refused(loads_pickle, data, "x.pkl")

def laughs(levels, wide, inner=b"K\1", open_=b"](", close=b"e"):
    "Containers of containers, each holding the one before many times."
    data = open_ + inner * wide + close
    for k in range(levels): data += b"q" + bytes([k]) + open_ + b"h" + bytes([k]) + (b"h" + bytes([k])) * (wide - 1) + close
    return data + b"."

@pytest.mark.parametrize("data", [laughs(30, 10), laughs(40, 2), laughs(25, 10, open_=b"(", close=b"t"), laughs(50, 3, text("lol"))], ids=["lists", "pairs", "tuples", "texts"])
def test_billion_laughs_are_refused(data):
    assert len(data) < 1000 and "written out it would take" in refused(loads_pickle, data, "x.pkl")

def test_one_big_value_many_times_is_refused_and_a_few_times_is_not():
    big = text("x" * 1_000_000)
    assert "written out" in refused(loads_pickle, b"](" + big + b"q\0" + b"h\0" * 1000 + b"e.", "x.pkl")
    assert len(loads_pickle(b"](" + big + b"q\0" + b"h\0" * 50 + b"e.", "x.pkl")) == 51

def test_copies_of_one_memo_entry_are_counted():
    copies = glob("_codecs.encode") + b"q\1" + text("x" * 1_000_000) + b"q\0" + text("latin1") + b"q\2\x86R" + b"h\1h\0h\2\x86R" * 5000 + b"."
    assert "times the file's length" in refused(loads_pickle, copies, "x.pkl")
    arrays = b"\x80\5" + glob("numpy.core.numeric._frombuffer") + b"q\1B" + struct.pack("<I", 1_000_000) + bytes(1_000_000) + b"q\0" + dtype("u1") + b"q\2" + b"J" + struct.pack("<i", 1_000_000) + b"\x85q\3" + text("C") + b"q\4tR"
    arrays = arrays.replace(b"q\1B", b"q\1(B") + b"h\1(h\0h\2h\3h\4tR" * 5000 + b"."
    assert "times the file's length" in refused(loads_pickle, arrays, "x.pkl")

@pytest.mark.parametrize("protocol", range(6))
def test_a_torn_pickle_is_refused_at_every_byte(protocol):
    data = pickle.dumps(HONEST, protocol)
    for end in range(0, len(data) - 1, 3): refused(loads_pickle, data[:end], "x.pkl")

@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 5))
def test_any_bytes_end_in_a_value_or_a_refusal(data, protocol):
    for given in (data, b"\x80" + bytes([protocol]) + data, data + b"."):
        try: loads_pickle(given, "x.pkl")
        except InputError: pass

@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_changed_pickle_ends_in_a_value_or_a_refusal(data):
    whole = bytearray(pickle.dumps(HONEST, data.draw(st.integers(0, 5))))
    for _ in range(data.draw(st.integers(1, 6))): whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try: loads_pickle(bytes(whole), "x.pkl")
    except InputError: pass

# ---------- honest values

HONEST = {"S1": {"Walking 1": np.arange(24, dtype="f4").reshape(2, 4, 3)}, "flags": [True, False, None, -1, 255, 65536, 1 << 70, 2.5, float("inf"), "é\n", b"\xff\0", (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
          "ordered": OrderedDict(b=1, a=[]), "set": {1, "a"}, "frozen": frozenset([1.5]), "bytes": bytearray(b"abc"), "complex": 1 - 2j, 5: {(1, "a"): 3}, "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
          "big-endian": np.arange(3, dtype=">f8"), "texts": np.array(["ab", "cde"]), "bytes of texts": np.array([b"ab"]), "table": np.array([(1, [2., 3.])], dtype=[("a", "i4"), ("b", "f8", (2,))]),
          "objects": np.array([None, [1, 2], {"x": np.ones(2)}], dtype=object), "scalar": np.float32(1.5), "truth": np.array([True, False]), "empty": np.zeros((0, 17, 3)), "single": np.array(3), "complexes": np.array([1j])}

def same(a, b):
    "Whether two values are alike in type, dtype, shape and content; byte orders aside."
    if type(a) is not type(b): return False
    if isinstance(a, (np.ndarray, np.generic)):
        if a.dtype.newbyteorder("=") != b.dtype.newbyteorder("=") or a.shape != b.shape: return False
        if a.dtype == object: return all(map(same, a.ravel(), b.ravel()))
        return a.astype(a.dtype.newbyteorder("=")).tobytes() == b.astype(b.dtype.newbyteorder("=")).tobytes()
    if isinstance(a, dict): return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return a == b or a != a

@pytest.mark.parametrize("protocol", range(6))
def test_every_kind_of_value_in_every_protocol(protocol):
    assert same(loads_pickle(pickle.dumps(HONEST, protocol), "x.pkl"), HONEST)

keys = st.one_of(st.text(max_size=8), st.integers(-2**59, 2**59), st.floats(allow_nan=False), st.booleans(), st.none(), st.binary(max_size=5))
arrays = hnp.arrays(st.one_of(hnp.floating_dtypes(sizes=(16, 32, 64)), hnp.integer_dtypes(), hnp.boolean_dtypes(), hnp.complex_number_dtypes(sizes=(64, 128)), hnp.unicode_string_dtypes(max_len=5), hnp.byte_string_dtypes(max_len=5)),
                    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
singles = st.one_of(keys, st.integers(), st.floats(), st.complex_numbers(allow_nan=False), arrays, st.binary(max_size=300))
values = st.recursive(singles, lambda inner: st.one_of(st.lists(inner, max_size=4), st.tuples(inner, inner), st.dictionaries(keys, inner, max_size=4), st.sets(keys, max_size=4),
                                                       st.dictionaries(st.text(max_size=3), inner, max_size=3).map(OrderedDict)), max_leaves=8)

@settings(max_examples=150, deadline=None)
@given(values, st.integers(0, 5))
def test_random_values_come_back(value, protocol):
    data = pickle.dumps(value, protocol)
    assert same(loads_pickle(data, "x.pkl"), pickle.loads(data))

plain2 = st.recursive(st.one_of(st.text(max_size=8), st.integers(-2**59, 2**59), st.floats(allow_nan=False), st.booleans(), st.none(), arrays),
                      lambda inner: st.one_of(st.lists(inner, max_size=4), st.tuples(inner, inner), st.dictionaries(st.text(max_size=4), inner, max_size=4)), max_leaves=8)

@settings(max_examples=150, deadline=None)
@given(plain2)
def test_pickles_of_python_2_are_read_as_pythons_own_reader_does(value):
    data = dumps_python2(value)
    assert same(loads_pickle(data, "x.pkl"), pickle.loads(data, encoding="latin1"))

def test_a_pickle_that_python_2_wrote():
    "Typed in as cPickle's protocol 2 has it: memo from 1 on, byte strings, arrays with their content as a string."
    data = (b"\x80\x02}q\x01(U\x05posesq\x02]q\x03cnumpy.core.multiarray\n_reconstruct\nq\x04cnumpy\nndarray\nq\x05K\x00\x85U\x01bq\x06\x87Rq\x07(K\x01K\x02\x85cnumpy\ndtype\nq\x08"
            b"U\x02f8q\tK\x00K\x01\x87Rq\n(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x10" + struct.pack("<2d", 1.5, -2) + b"tbaU\x06genderq\x0bU\x01mq\x0cU\x04nameq\rX\x02\0\0\0\xc3\xa9u.")
    read = loads_pickle(data, "x.pkl")
    assert same(read, {"poses": [np.array([1.5, -2])], "gender": "m", "name": "é"}) and same(read, pickle.loads(data, encoding="latin1"))

def test_protocol_0_of_python_2():
    data = b"(dp0\nS'a'\np1\n(lp2\nI1\naI01\naL5L\naF2.5\naVx\\u00e9\np3\nas."
    assert loads_pickle(data, "x.pkl") == {"a": [1, True, 5, 2.5, "xé"]}

def test_bytes_of_python_2_are_latin1_text():
    assert loads_pickle(dumps_python2({"a": b"\xe9\xff"}), "x.pkl") == {"a": "é\xff"}
    assert loads_pickle(b"S'a\\xe9\\n\\''\n.", "x.pkl") == "aé\n'"

def test_arrays_may_be_written_to_and_torch_takes_them():
    for protocol in (2, 5):
        read = loads_pickle(pickle.dumps(np.arange(3, dtype=">i4"), protocol), "x.pkl")
        read += 1
        assert torch.from_numpy(read).tolist() == [1, 2, 3]

def test_dumps_python2_refuses_what_it_cannot_write():
    for value in (object(), np.array([(1,)], dtype=[("a", "i4")])):
        with pytest.raises(InputError, match="Python 2"): dumps_python2(value)

def test_files(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(HONEST))
    assert same(load_pickle(path), HONEST)
    big = np.random.default_rng(0).normal(size=3_000_000)
    path.write_bytes(pickle.dumps({"a": big}))
    assert np.array_equal(load_pickle(path)["a"], big) # mapped
    for missing in (tmp_path / "none.pkl", tmp_path):
        for read in (load_pickle, load_npy, load_npz, load_torch):
            with pytest.raises(InputError, match="no such file|cannot be read"): read(missing)

def test_a_numpy_random_state_is_a_plain_value():
    state = np.random.RandomState(5)
    read = loads_pickle(pickle.dumps(state, 2), "x.pkl")
    again = np.random.RandomState()
    again.set_state(read)
    assert again.randint(1 << 30) == state.randint(1 << 30)
    old = b"\x80\2" + glob("numpy.random.__RandomState_ctor") + b")R(" + text("MT19937") + array(b"K\3\x85", dtype("u4"), b"C\x0c" + bytes(12))[2:-1] + b"K\2K\0G" + bytes(8) + b"tb."
    read = loads_pickle(old, "x.pkl")
    assert read[0] == "MT19937" and read[1].tolist() == [0, 0, 0] and read[2:] == (2, 0, 0.0)

# ---------- npy and npz

@pytest.mark.parametrize("value", [v for v in HONEST.values() if isinstance(v, np.ndarray)], ids=[k for k, v in HONEST.items() if isinstance(v, np.ndarray)])
def test_npy_files_come_back(value, tmp_path):
    np.save(tmp_path / "x.npy", value)
    assert same(load_npy(tmp_path / "x.npy"), value)

@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_files_come_back(save, tmp_path):
    parts = {k.replace(" ", "_"): v for k, v in HONEST.items() if isinstance(v, np.ndarray)}
    save(tmp_path / "x.npz", whole=np.array({"S1": [np.ones(3)]}, dtype=object), **parts)
    read = load_npz(tmp_path / "x.npz")
    assert same(read.pop("whole"), {"S1": [np.ones(3)]}) and all(same(read[k], parts[k]) for k in parts) and len(read) == len(parts)

def npy(header, content=b"", version=b"\1\0"):
    header = header.encode("latin-1")
    return b"\x93NUMPY" + version + struct.pack("<H" if version == b"\1\0" else "<I", len(header)) + header + content

HEADERS = {
    "a terabyte": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (137438953472,)}", bytes(64)), "a negative axis": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}", bytes(64)),
    "one number short": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (9,)}", bytes(64)), "elements without size": npy("{'descr': '|V0', 'fortran_order': False, 'shape': (1000000000000,)}", bytes(64)),
    "a call": npy("{'descr': __import__('os').system('true'), 'fortran_order': False, 'shape': ()}", bytes(64)), "a list as order": npy("{'descr': '<f8', 'fortran_order': [], 'shape': (8,)}", bytes(64)),
    "a field more": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (8,), 'x': 1}", bytes(64)), "no dict": npy("3", bytes(64)), "nested": npy("[" * 3000 + "]" * 3000, bytes(64)), "nested apart": npy("(" + "[1," * 1990 + "]" * 1990 + ")", bytes(64)),
    "signs": npy("-" * 9000 + "1", bytes(64)), "powers": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (9**9**9,)}", bytes(64)), "a long header": b"\x93NUMPY\2\0" + struct.pack("<I", 1 << 31) + b"{}",
    "version 9": npy("{}", version=b"\x09\0"), "objects in fields": npy("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,)}", bytes(64)), "a comma code": npy("{'descr': 'f8,i4', 'fortran_order': False, 'shape': (1,)}", bytes(64)),
    "times": npy("{'descr': '<M8[ns]', 'fortran_order': False, 'shape': (8,)}", bytes(64)), "nothing": b"", "text": b"hello world, this is text", "no pickle": npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", bytes(64)),
    "objects of another shape": npy("{'descr': '|O', 'fortran_order': False, 'shape': (5,)}", pickle.dumps(np.array([1, 2], dtype=object))),
}

@pytest.mark.parametrize("name", HEADERS)
def test_a_hostile_array_file_is_refused(name, tmp_path):
    (tmp_path / "x.npy").write_bytes(HEADERS[name])
    assert "x.npy" in refused(load_npy, tmp_path / "x.npy", allowed=("open", "compile"))
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive: archive.writestr("a.npy", HEADERS[name])
    assert "x.npz, a.npy" in refused(load_npz, tmp_path / "x.npz", allowed=("open", "compile"))

def test_a_header_of_python_2(tmp_path):
    (tmp_path / "x.npy").write_bytes(npy("{'descr': '<f8', 'fortran_order': False, 'shape': (2L, 1L), }", bytes(16)))
    assert load_npy(tmp_path / "x.npy").shape == (2, 1)

@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("shape", [(), (2,), (2, 2)])
def test_hostile_objects_in_an_npz(save, shape, tmp_path):
    import os
    evil = np.empty(shape, object)
    evil[...] = Reduces(os.system, f"touch {tmp_path / 'canary'}")
    save(tmp_path / "x.npz", honest=np.ones(3), positions_3d=evil)
    assert "posix.system" in refused(load_npz, tmp_path / "x.npz", allowed=("open", "compile")) and not (tmp_path / "canary").exists()

def bomb(path, name, head, megabytes):
    "A zip member that unpacks to many megabytes, made without ever holding them."
    packer, block = zlib.compressobj(9, zlib.DEFLATED, -15), bytes(1 << 20)
    first = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
    data = first + again * megabytes + packer.flush(zlib.Z_FINISH)
    crc = zlib.crc32(head)
    for _ in range(megabytes): crc = zlib.crc32(block, crc)
    size, name = len(head) + (megabytes << 20), name.encode()
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 0, crc, len(data), size, len(name), 0) + name
    central = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 8, 0, 0, crc, len(data), size, len(name), 0, 0, 0, 0, 0, 0) + name
    path.write_bytes(local + data + central + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(central), len(local) + len(data), 0))

def test_a_zip_bomb_is_refused_and_a_smaller_one_is_an_array(tmp_path):
    header = lambda n: npy(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({n},)}}")
    bomb(tmp_path / "x.npz", "a.npy", header(600 << 20), 600)
    assert (tmp_path / "x.npz").stat().st_size < 1_000_000
    assert "unpacks to over 512 MB" in refused(load_npz, tmp_path / "x.npz", allowed=("open", "compile"))
    bomb(tmp_path / "y.npz", "a.npy", header(20 << 20), 20)
    assert load_npz(tmp_path / "y.npz")["a"].shape == (20 << 20,)

def test_a_zip_that_lies_about_sizes_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.arange(100))
    whole = (tmp_path / "x.npz").read_bytes()
    size = struct.pack("<I", 128 + 800)
    for claimed in (1 << 30, 5000, 100):
        (tmp_path / "y.npz").write_bytes(whole.replace(size, struct.pack("<I", claimed)))
        refused(load_npz, tmp_path / "y.npz", allowed=("open", "compile"))

@pytest.mark.parametrize("end", [0, 10, 100, 500, -1])
def test_a_torn_npz_is_refused(end, tmp_path):
    np.savez(tmp_path / "x.npz", a=np.arange(100))
    (tmp_path / "y.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:end])
    refused(load_npz, tmp_path / "y.npz", allowed=("open", "compile"))

def test_other_members_and_packings_are_refused(tmp_path):
    for packing, name in ((zipfile.ZIP_STORED, "a.txt"), (zipfile.ZIP_BZIP2, "a.npy"), (zipfile.ZIP_LZMA, "a.npy")):
        with zipfile.ZipFile(tmp_path / "x.npz", "w", packing) as archive: archive.writestr(name, npy("{'descr': '<f8', 'fortran_order': False, 'shape': (8,)}", bytes(64)))
        refused(load_npz, tmp_path / "x.npz", allowed=("open", "compile", "import"))

# ---------- checkpoints

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm = torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)
        self.tied = self.layer.weight

def checkpoint():
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.Adam(net.parameters())
    net.norm(net.layer(torch.randn(5, 4))).sum().backward()
    optimizer.step()
    return {"state_dict": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "lr": 1e-3, "size": torch.Size([2, 3]), "parameter": net.layer.bias,
            "view": torch.arange(12.).reshape(3, 4).T[1:], "empty": torch.zeros(0, 3), "kinds": [torch.ones(2, dtype=d) for d in (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64)]}

def same_tensors(a, b):
    if isinstance(a, torch.Tensor): return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.device.type == "cpu" and torch.equal(a, b)
    if isinstance(a, dict): return list(a) == list(b) and all(same_tensors(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same_tensors, a, b))
    return a == b

@pytest.mark.parametrize("new", [True, False], ids=["zip", "stream"])
def test_checkpoints_are_read_as_torch_reads_them(new, tmp_path):
    torch.save(checkpoint(), tmp_path / "x.pth", _use_new_zipfile_serialization=new)
    read = load_torch(tmp_path / "x.pth")
    assert same_tensors(read, torch.load(tmp_path / "x.pth", weights_only=True)) and type(read["state_dict"]) is OrderedDict
    assert read["state_dict"]["layer.weight"].data_ptr() == read["state_dict"]["tied"].data_ptr() # still shared

@pytest.mark.parametrize("new", [True, False], ids=["zip", "stream"])
def test_a_random_state_beside_the_weights(new, tmp_path):
    "As VideoPose3D's .bin files have it; torch's own safe reader refuses those."
    torch.save({"model_pos": OrderedDict(a=torch.ones(2)), "random_state": np.random.RandomState(1)}, tmp_path / "x.bin", _use_new_zipfile_serialization=new)
    read = load_torch(tmp_path / "x.bin")
    assert read["random_state"]["state"]["key"].shape == (624,) and read["model_pos"]["a"].tolist() == [1, 1]

def test_big_endian_checkpoints(tmp_path):
    from torch.serialization import LoadEndianness, set_default_load_endianness
    torch.save({"a": torch.arange(3.), "b": torch.tensor([1 + 2j])}, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as old, zipfile.ZipFile(tmp_path / "y.pth", "w") as new:
        for info in old.infolist():
            data = old.read(info)
            if info.filename.endswith("byteorder"): data = b"big"
            elif "/data/" in info.filename: data = np.frombuffer(data, "<u4").byteswap().tobytes()
            new.writestr(info.filename, data)
    assert same_tensors(load_torch(tmp_path / "y.pth"), load_torch(tmp_path / "x.pth"))

def zipped(path, pkl, **storages):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pkl)
        for key, data in storages.items(): archive.writestr(f"archive/data/{key.removeprefix('_')}", data)

def identity(kind="torch.FloatStorage", key="0", count=b"K\4", first="storage"):
    return b"(" + text(first) + glob(kind) + text(key) + text("cpu") + count + b"tQ"

def tensor(storage=None, offset=b"K\0", size=b"K\4\x85", stride=b"K\1\x85"):
    return glob("torch._utils._rebuild_tensor_v2") + b"(" + (storage or identity()) + offset + size + stride + b"\x89" + glob("collections.OrderedDict") + b")RtR"

def test_a_tensor_by_hand(tmp_path):
    zipped(tmp_path / "x.pth", b"\x80\2" + tensor(size=b"K\2K\2\x86", stride=b"K\1K\2\x86") + b".", _0=np.arange(4, dtype="f4").tobytes())
    assert load_torch(tmp_path / "x.pth").tolist() == [[0, 2], [1, 3]]

BAD_TENSORS = {
    "beyond its storage": (tensor(size=b"K\5\x85"), "looks beyond"), "by an offset": (tensor(offset=b"K\1"), "looks beyond"), "by a stride": (tensor(stride=b"K\2\x85"), "looks beyond"),
    "by a negative offset": (tensor(offset=b"J\xff\xff\xff\xff"), "size or stride"), "by a negative stride": (tensor(stride=b"J\xff\xff\xff\xff\x85"), "size or stride"), "expanded to a terabyte": (tensor(size=long1(1 << 38) + b"\x85", stride=b"K\0\x85"), "looks beyond"),
    "of an unknown storage": (tensor(identity(key="7")), "not in the file"), "of a path": (tensor(identity(key="../data.pkl")), "not in the file"), "of more than the member holds": (tensor(identity(count=b"K\5")), "has 16 bytes"),
    "of a class that is none": (tensor(identity("numpy.ndarray")), "numpy.ndarray"), "of a module": (tensor(identity(first="module")), "not that of a storage"), "without a storage": (tensor(text("abc")), "storage is a str"),
    "storage of os.system": (tensor(identity("os.system")), "os.system"), "a storage alone": (identity(), "a torch storage"), "a storage's class alone": (glob("torch.FloatStorage"), "torch.FloatStorage"), "a module's class": (glob("torch.nn.modules.linear.Linear") + b")\x81", "torch.nn.modules.linear.Linear"),
    "loaded from bytes": (glob("torch.storage._load_from_bytes") + b"C\1a\x85R", "torch.storage._load_from_bytes"), "sizes that do not fit": (tensor(stride=b"K\1K\1\x86"), "damaged"), "four thousand million axes": (tensor(size=b"(" + b"K\1" * 40 + b"t", stride=b"(" + b"K\1" * 40 + b"t"), "size or stride"),
    "written out a million times": (b"](" + tensor(identity(key="1", count=b"J" + struct.pack("<i", 250_000)), size=b"J" + struct.pack("<i", 250_000) + b"\x85") + b"q\1" + b"h\1" * 2000 + b"e", "written out"),
}

@pytest.mark.parametrize("name", BAD_TENSORS)
def test_a_hostile_tensor_is_refused(name, tmp_path):
    pkl, reason = BAD_TENSORS[name]
    zipped(tmp_path / "x.pth", b"\x80\2" + pkl + b".", _0=bytes(16), _1=bytes(1_000_000))
    load_torch_once(tmp_path)
    assert reason in refused(load_torch, tmp_path / "x.pth", allowed=("open", "compile"))

def load_torch_once(tmp_path):
    "An honest file first: what torch imports on its first call is not the file's doing."
    torch.save({"a": torch.ones(1)}, tmp_path / "honest.pth")
    load_torch(tmp_path / "honest.pth")

@pytest.mark.parametrize("new", [True, False], ids=["zip", "stream"])
@pytest.mark.parametrize("place", ["top", "dict", "state_dict", "object array"])
def test_hostile_objects_in_a_checkpoint(new, place, tmp_path):
    import os
    evil = Reduces(os.system, f"touch {tmp_path / 'canary'}")
    content = {"top": evil, "dict": {"epoch": 1, "args": evil}, "state_dict": {"state_dict": OrderedDict(a=torch.ones(1), b=evil)}, "object array": {"a": np.array([evil], dtype=object)}}[place]
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
    load_torch_once(tmp_path)
    assert "posix.system" in refused(load_torch, tmp_path / "x.pth", allowed=("open",)) and not (tmp_path / "canary").exists()

@pytest.mark.parametrize("which", range(5))
def test_hostile_parts_of_an_old_checkpoint(which, tmp_path):
    "Each of the pickles of the stream may be the evil one."
    torch.save({"a": torch.ones(3)}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    data, parts = (tmp_path / "x.pth").read_bytes(), []
    stream = io.BytesIO(data)
    for _ in range(5):
        start = stream.tell()
        for op, _, _ in __import__("pickletools").genops(stream): pass
        parts.append(data[start:stream.tell()])
    evil = b"\x80\2" + glob("os.system") + text(f"touch {tmp_path / 'canary'}") + b"\x85R."
    (tmp_path / "y.pth").write_bytes(b"".join(evil if k == which else p for k, p in enumerate(parts)) + data[stream.tell():])
    load_torch_once(tmp_path)
    assert "os.system" in refused(load_torch, tmp_path / "y.pth", allowed=("open",)) and not (tmp_path / "canary").exists()

def test_an_old_checkpoint_that_claims_a_terabyte(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    data = (tmp_path / "x.pth").read_bytes()
    assert data[-20:-12] == struct.pack("<q", 3)
    (tmp_path / "y.pth").write_bytes(data[:-20] + struct.pack("<q", 1 << 38) + data[-12:])
    assert "claims" in refused(load_torch, tmp_path / "y.pth", allowed=("open", "compile"))
    for end in range(0, len(data), 11):
        (tmp_path / "y.pth").write_bytes(data[:end])
        refused(load_torch, tmp_path / "y.pth", allowed=("open", "compile"))

def test_what_is_no_checkpoint_is_refused(tmp_path):
    for data in (b"", b"hello", pickle.dumps({"a": 1}), pickle.dumps(1) * 5, b"PK\3\4 and more"):
        (tmp_path / "x.pth").write_bytes(data)
        refused(load_torch, tmp_path / "x.pth", allowed=("open", "compile"))
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive: archive.writestr("a.txt", "x")
    assert "data.pkl" in refused(load_torch, tmp_path / "x.pth", allowed=("open", "compile"))

# ---------- found by review

def test_objects_in_columns_keep_their_places(tmp_path):
    "numpy writes objects row by row, whatever the order of the array in memory."
    array = np.array([[1, "two", None], [4, [5], {6: 7}]], dtype=object).T
    np.savez(tmp_path / "a.npz", x=array)
    assert load_npz(tmp_path / "a.npz")["x"].tolist() == array.tolist()
    for protocol in range(6): assert loads_pickle(pickle.dumps(array, protocol), "a").tolist() == array.tolist()
    assert loads_pickle(dumps_python2(array), "a").tolist() == array.tolist() == pickle.loads(dumps_python2(array), encoding="latin-1").tolist()

@pytest.mark.parametrize("member", [b"\x80\x02" + b"N" * (64 << 20) + b".", b"\x80\x02" + b"]" * (32 << 20) + b"."], ids=["pushes", "lists"])
def test_a_pickle_folded_into_a_small_zip_is_refused(member, tmp_path):
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as file: file.writestr("x.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + member)
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as file: file.writestr("archive/data.pkl", member)
    for read, name in ((load_npz, "a.npz"), (load_torch, "a.pth")): assert "packed into" in refused(read, tmp_path / name, allowed=("open", "compile"))

def laughing(depth):
    "A tuple of two tuples of two tuples ..., in the top of the stack."
    return b"K\1" + b"".join(b"2\x86" for _ in range(depth))

@pytest.mark.parametrize("data", [
    glob("numpy.core.multiarray._reconstruct") + glob("numpy.ndarray") + b"K\0\x85U\1b\x87R(K\1" + laughing(40) + glob("numpy.dtype") + b"U\2f8K\0K\1\x87R\x89U\0tb.",
    glob("_codecs.encode") + text("a") + laughing(40) + b"\x86R.", glob("numpy.dtype") + laughing(40) + b"K\0K\1\x87R(K\3U\1<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb.",
    glob("numpy.dtype") + b"U\2V8K\0K\1\x87R(K\3U\1|N" + laughing(40) + b"\x85}K\x08K\1K\x10tb."], ids=["shape", "encoding", "dtype", "field"])
def test_nothing_large_is_written_into_a_message_or_hashed(data): refused(loads_pickle, b"\x80\x02" + data, "a.pkl")

def test_complex_keys_are_refused():
    "Their hashes can be made equal by the thousand."
    refused(loads_pickle, pickle.dumps({complex(-1000003. * k, k): 0 for k in range(1, 2000)}), "a.pkl")

def test_a_waiting_array_gets_its_content_once():
    assert "twice" in refused(loads_pickle, glob("numpy.core.multiarray._reconstruct") + glob("numpy.ndarray") + b"K\0\x85U\1b\x87R2" + b"(K\1K\0\x85" + glob("numpy.dtype") + b"U\2f8K\0K\1\x87R(K\3U\1<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89U\0tb0Nb.", "a.pkl")

@pytest.mark.parametrize("legacy", [False, True])
def test_conjugated_and_negated_views_are_written_out(legacy, tmp_path):
    values = torch.tensor([1 + 2j, 3 - 1j])
    for tensor in (values.conj(), values.conj().imag, values):
        torch.save(tensor, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
        assert torch.equal(load_torch(tmp_path / "a.pt"), tensor)

def test_aligned_structs_have_no_field_for_their_padding(tmp_path):
    table = np.array([(1, 2.), (3, 4.)], dtype=np.dtype([("a", "i1"), ("b", "f8")], align=True))
    np.savez(tmp_path / "a.npz", x=table)
    found = load_npz(tmp_path / "a.npz")["x"]
    assert found.dtype.names == ("a", "b") and found.dtype.itemsize == 16 and (found == table).all()

def test_arrays_in_the_order_of_their_axes():
    "Protocol 5 of numpy 2.3: the memory is given as it lies, with the order of the axes."
    memory = np.arange(24.).reshape(2, 3, 4)
    data = glob("numpy._core.numeric._frombuffer") + b"(" + b"B" + struct.pack("<I", memory.nbytes) + memory.tobytes() + glob("numpy.dtype") + b"X\2\0\0\0f8K\0K\1\x87R(K\3X\1\0\0\0<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb" \
        + b"K\2K\3K\4\x87X\1\0\0\0KK\1K\2K\0\x87tR."
    assert np.array_equal(loads_pickle(data, "a"), memory.transpose(1, 2, 0))
    refused(loads_pickle, data.replace(b"K\1K\2K\0\x87tR.", b"K\1K\2K\2\x87tR."), "a")
