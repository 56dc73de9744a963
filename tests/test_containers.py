"MATLAB, HDF5, CDF and text files: what comes out is what went in, and a hostile file ends in one sentence before memory is taken."
import json
import struct
import zlib

import cdflib
import h5py
import numpy as np
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from poseprojects.data import containers
from poseprojects.data.containers import digest, field, listed, need_package, quick_digest, read_bytes, read_cdf, read_csv_rows, read_hdf5, read_json, read_mat, read_toml
from poseprojects.storage import InputError
from test_safe import refused

quiet = dict(allowed=("open", "import", "exec", "compile", "marshal.loads")) # what importing a library does
shared_folder = dict(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

def same(a, b):
    "Whether two values are alike in type, shape, dtype and content."
    if isinstance(b, np.ndarray): return isinstance(a, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b, equal_nan=b.dtype.kind in "fc")
    if isinstance(b, dict): return isinstance(a, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in b)
    if isinstance(b, list): return isinstance(a, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or a != a)

# ---------- fields

CONTENT = {"joints": [[1, 2.], [3, 4]], "name": "S1", "frames": 12., "nan": [1., float("nan")], "ragged": [[1], [1, 2]], "list": ["a", 1], "none": None, "dict": {"a": 1}, "empty": [], "big": 10**40, "texts": ["a", "b"], "array": np.arange(6).reshape(2, 3), "objects": np.array([None])}

@pytest.mark.parametrize("name, shape, kind, expected", [("joints", (None, 2), "number", (2, 2)), ("joints", None, "number", (2, 2)), ("frames", (), "number", ()), ("frames", (1, 1), "number", (1, 1)), ("frames", (1,), "integer", (1,)), ("array", (2, 3), "integer", (2, 3)), ("empty", (0,), "number", (0,)), ("empty", None, "integer", (0,))])
def test_numbers_of_a_shape(name, shape, kind, expected):
    taken = field(CONTENT, name, "a.json", shape, kind)
    assert taken.shape == expected and (kind == "number" or taken.dtype.kind == "i")

@pytest.mark.parametrize("name, kind", [("name", "text"), ("list", "list"), ("dict", "mapping"), ("none", "any"), ("ragged", "list")])
def test_other_kinds(name, kind): assert field(CONTENT, name, "a.json", None, kind) is CONTENT[name]

@pytest.mark.parametrize("name, shape, kind, words", [
    ("pose", None, "number", "'pose' is missing among joints, name"), ("joints", (None, 3), "number", "found shape (2, 2), expected numbers of shape (any, 3)"), ("nan", None, "number", "value 1 is NaN"), ("ragged", None, "number", "no regular array"),
    ("name", None, "number", "found 'S1'"), ("list", None, "number", "expected numbers"), ("none", None, "number", "found None"), ("dict", None, "number", "expected numbers"), ("big", None, "number", "expected numbers"), ("joints", (2,), "number", "expected numbers of shape (2,)"),
    ("joints", None, "text", "a list of 2, expected a text"), ("frames", None, "text", "12.0"), ("name", None, "list", "'S1'"), ("list", (3,), "list", "expected a list of shape (3,)"), ("list", None, "mapping", "expected named fields"), ("objects", None, "number", "found object"), ("texts", None, "integer", "whole numbers")])
def test_a_wrong_field_is_named(name, shape, kind, words):
    with pytest.raises(InputError) as caught: field(CONTENT, name, "a.json", shape, kind)
    assert words in str(caught.value) and "a.json" in str(caught.value) and repr(name) in str(caught.value) and "expected" in str(caught.value)

def test_whole_numbers_are_whole():
    with pytest.raises(InputError, match="whole numbers"): field({"a": [1.5]}, "a", "x", None, "integer")
    assert field({"a": [1., 2.]}, "a", "x", None, "integer").tolist() == [1, 2]

def test_what_is_no_mapping_has_no_fields():
    with pytest.raises(InputError, match="holds a list"): field([1], "a", "a.json")

def test_a_package_that_is_not_there_is_named(monkeypatch, tmp_path):
    import sys
    monkeypatch.setitem(sys.modules, "h5py", None)
    h = tmp_path / "x.h5"
    h.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(InputError, match=r"x.h5 needs the package h5py: pip install 'poseprojects\[data\]'"): read_hdf5(h)
    assert need_package("json", "x") is json

# ---------- text

def test_text_files_come_back(tmp_path):
    (tmp_path / "a.json").write_text('\ufeff{"a": [1, 2.5, "é", null, true]}', encoding="utf-8")
    (tmp_path / "a.toml").write_bytes(b'[cam]\r\nsize = [1920, 1080]\r\nname = "x"\r\n')
    (tmp_path / "a.csv").write_text("file, frames\n01.amc,12\n\n\"a,b\",3\n")
    assert read_json(tmp_path / "a.json") == {"a": [1, 2.5, "é", None, True]}
    assert read_toml(tmp_path / "a.toml") == {"cam": {"size": [1920, 1080], "name": "x"}}
    assert read_csv_rows(tmp_path / "a.csv", ("file", "frames")) == [{"file": "01.amc", "frames": "12"}, {"file": "a,b", "frames": "3"}]
    assert read_bytes(tmp_path / "a.toml", 100)[:5] == b"[cam]"

@pytest.mark.parametrize("content, words", [(b'{"a": [1, 2}', "line 1, column 12"), (b"", "line 1, column 1"), (b"[" * 200_000, "nested too deeply"), (b'{"a":' * 100_000, "nested too deeply"), (b"\xff\xfe1", "no UTF-8"), (b'["\\ud800"]', "cannot be read"), (b"1" * 5000, "cannot be read"), (b"[1,]", "no JSON")])
def test_bad_json_is_refused(content, words, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    assert words in refused(read_json, tmp_path / "a.json", **quiet)

@pytest.mark.parametrize("content", [b"a = ", b"[a\nb = 1", b"\xff", b"a = " + b"[" * 100_000, b"a = 1\na = 2", b"a." * 100_000 + b"b = 1"])
def test_bad_toml_is_refused(content, tmp_path):
    (tmp_path / "a.toml").write_bytes(content)
    assert "a.toml" in refused(read_toml, tmp_path / "a.toml", **quiet)

@pytest.mark.parametrize("content, words", [(b"", "column 'file' is missing"), (b"name\n1\n", "column 'file' is missing"), (b"file,x\n1\n", "line 2: 1 values for 2 columns"), (b"file,file\n1,2\n", "twice"), (b"file\n" + b"x" * 200_000, "cannot be read"), (b"file\n\xff\n", "UTF-8")])
def test_bad_tables_are_refused(content, words, tmp_path):
    (tmp_path / "a.csv").write_bytes(content)
    assert words in refused(read_csv_rows, tmp_path / "a.csv", ("file",), **quiet)

@pytest.mark.parametrize("read", [read_bytes, read_json, read_toml, read_csv_rows, read_mat, read_hdf5, lambda p: read_cdf(p, "Pose")])
def test_missing_files_folders_and_empty_files(read, tmp_path):
    for path in (tmp_path / "none", tmp_path, tmp_path / "a\0b"):
        with pytest.raises(InputError, match="expected"): read(path)
    (tmp_path / "empty").touch()
    if read not in (read_bytes, read_csv_rows, read_toml): refused(read, tmp_path / "empty", **quiet)

def test_a_file_that_is_too_long_is_not_read(tmp_path):
    (tmp_path / "a").write_bytes(bytes(100))
    assert "has 100 bytes, expected 99" in refused(read_bytes, tmp_path / "a", 99, **quiet)
    with (tmp_path / "a").open("wb") as file: file.truncate(1 << 40) # a terabyte of nothing
    for read in (read_bytes, read_json, read_toml, read_csv_rows): refused(read, tmp_path / "a", **quiet)

# ---------- MATLAB, version 5

def objects(*values, shape=None):
    array = np.empty(len(values), object)
    for k, value in enumerate(values): array[k] = value
    return array.reshape(shape or (1, -1))

MATLAB = {"matrix": np.arange(6.).reshape(2, 3), "short": np.arange(4, dtype="i2")[None], "single": np.ones((1, 56), "f4"), "deep": np.arange(24, dtype="u1").reshape(2, 3, 4), "text": "hello", "greek": "αβ", "number": 3.5, "integer": 7, "truth": np.array([[True, False]]),
          "complex": np.array([[1 + 2j, 3]]), "empty": np.zeros((0, 0)), "rows": ["ab ", "cde"], "cells": [np.zeros((2, 3)), "x", [1.0, "y"]], "struct": {"x": 1.0, "name": "é", "inner": {"q": np.array([[1, 2]])}}, "structs": [{"x": 1.0, "y": "a"}, {"x": 2.0, "y": "bb"}],
          "grid": [["a", "b", "c"], ["d", "e", "f"]], "nan": np.array([[np.nan, np.inf]])}

def for_scipy(name, value):
    if name in ("cells", "grid"): return objects(*[objects(*v) if isinstance(v, list) else v for v in value]) if name == "cells" else objects(*value[0], *value[1], shape=(2, 3))
    if name == "structs": return np.array([[tuple(v.values()) for v in value]], dtype=[("x", object), ("y", object)])
    return np.array(value) if name == "rows" else value

@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("name", MATLAB)
def test_matlab_values(name, compress, tmp_path):
    scipy.io.savemat(tmp_path / "x.mat", {name: for_scipy(name, MATLAB[name]), "other": 1.}, do_compression=compress)
    read = read_mat(tmp_path / "x.mat")
    assert list(read) == [name, "other"] and same(read[name], MATLAB[name])

numbers = hnp.arrays(st.sampled_from([np.dtype(t) for t in ("f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "?", "c16")]), hnp.array_shapes(min_dims=2, max_dims=4, min_side=0, max_side=4)).filter(lambda a: a.size != 1)
content = st.recursive(st.one_of(numbers, st.text("abcé", min_size=1, max_size=5), st.floats(allow_nan=False)), lambda inner: st.one_of(st.lists(inner, min_size=2, max_size=3), st.dictionaries(st.text("abc", min_size=1, max_size=4), inner, min_size=1, max_size=3)), max_leaves=8)

def as_cells(value): return objects(*map(as_cells, value)) if isinstance(value, list) else {k: as_cells(v) for k, v in value.items()} if isinstance(value, dict) else value

@settings(max_examples=80, **shared_folder)
@given(content, st.booleans())
def test_random_matlab_values(tmp_path, value, compress):
    scipy.io.savemat(tmp_path / "x.mat", {"v": as_cells(value)}, do_compression=compress)
    assert same(read_mat(tmp_path / "x.mat")["v"], value)

def element(kind, data, order="<"): return struct.pack(order + "II", kind, len(data)) + data + bytes(-len(data) % 8)
def header(order="<"): return b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(order + "H", 0x100) + (b"IM" if order == "<" else b"MI")
def matrix(kind, shape, *parts, name=b"a", order="<", flags=0):
    body = element(6, struct.pack(order + "II", kind | flags << 8, 0), order) + element(5, struct.pack(f"{order}{len(shape)}i", *shape), order) + element(1, name, order) + b"".join(parts)
    return element(14, body, order)
def doubles(*values, order="<"): return element(9, struct.pack(f"{order}{len(values)}d", *values), order)
def packed(data, claimed=None):
    if claimed is not None: data = data[:4] + struct.pack("<I", claimed) + data[8:]
    data = zlib.compress(data)
    return struct.pack("<II", 15, len(data)) + data

@pytest.mark.parametrize("order", "<>")
def test_both_byte_orders_and_short_storage(order, tmp_path):
    small = struct.pack(order + "I", 2 << 16 | 3) + struct.pack(order + "h", -5).ljust(4, b"\0")
    (tmp_path / "x.mat").write_bytes(header(order) + matrix(6, (1, 2), doubles(1.5, -2, order=order), order=order) + matrix(6, (1, 1), small, name=b"b", order=order)
                                     + matrix(4, (1, 2), element(17, "αβ".encode("utf-16-le" if order == "<" else "utf-16-be"), order), name=b"c", order=order) + matrix(16, (1, 1), name=b"f", order=order))
    assert same(read_mat(tmp_path / "x.mat"), {"a": np.array([[1.5, -2]]), "b": -5.0, "c": "αβ", "f": None})

def nested_cells(depth):
    data = matrix(6, (1, 1), doubles(1))
    for _ in range(depth): data = matrix(1, (1, 1), data, name=b"")
    return data

HOSTILE_MAT = {
    "a terabyte of doubles": (matrix(6, (1 << 20, 1 << 17), doubles(1)), "has 1 numbers"), "more than there are": (matrix(6, (1, 3), doubles(1, 2)), "has 2 numbers"), "less than there are": (matrix(6, (1, 1), doubles(1, 2)), "has 2 numbers"),
    "a negative axis": (matrix(6, (-1, -2), doubles(1, 2)), "shape"), "one axis": (matrix(6, (2,), doubles(1, 2)), "shape"), "axes by the hundred": (matrix(6, (1,) * 60, doubles(1)), "shape"), "axes by the thousand": (matrix(6, (1,) * 1000, doubles(1)), "a few integers"), "zero and a thousand million": (matrix(6, (0, 1 << 30), element(9, b"")), None),
    "an element beyond the end": (struct.pack("<II", 14, 1 << 30) + bytes(64), "claims"), "a part beyond its matrix": (element(14, element(6, bytes(8)) + struct.pack("<II", 5, 500) + bytes(32)), "claims"), "a small element of 5 bytes": (matrix(6, (1, 1), struct.pack("<I", 5 << 16 | 9) + bytes(4)), "small element"),
    "a billion cells": (matrix(1, (1 << 15, 1 << 15)), "cells are claimed"), "a billion structs": (matrix(2, (1 << 15, 1 << 15), element(5, struct.pack("<i", 8)), element(1, b"x".ljust(8, b"\0"))), "cells are claimed"), "a billion structs without fields": (matrix(2, (1 << 15, 1 << 15), element(5, struct.pack("<i", 8)), element(1, b"")), "without fields"),
    "field names of no length": (matrix(2, (1, 1), element(5, struct.pack("<i", 0)), element(1, b"")), "field names of 0"), "field names of a negative length": (matrix(2, (1, 1), element(5, struct.pack("<i", -8)), element(1, b"x")), "field names of -8"), "cells nested": (nested_cells(100), "nested deeper"), "cells nested by the thousand": (nested_cells(3000), "nested deeper"),
    "a number where a cell should be": (matrix(1, (1, 1), doubles(1)), "type 9 where a matrix"), "a number where a variable should be": (doubles(1), "type 9 where a variable"), "text as numbers": (matrix(6, (1, 1), element(16, b"abcdefgh")), "has 8 numbers"), "an unknown type": (matrix(6, (1, 1), element(99, bytes(8))), "type 99"),
    "a packed element that claims a gigabyte": (packed(matrix(6, (1, 1), doubles(1)), 1 << 30), "claims"), "a packed element that claims a little more": (packed(matrix(6, (1, 1), doubles(1)), 2000), "holds"), "packed garbage": (struct.pack("<II", 15, 30) + b"x" * 30, "cannot be read"), "packed nothing": (struct.pack("<II", 15, 0), "cannot be read"),
    "packed in packed": (packed(packed(matrix(6, (1, 1), doubles(1)))), None), "flags missing": (element(14, element(6, b"")), "before the end"), "an imaginary part missing": (matrix(6, (1, 1), doubles(1), flags=8), "element begins"), "an imaginary part that is short": (matrix(6, (1, 2), doubles(1, 2), doubles(1), flags=8), "imaginary"),
    "half a tag": (b"\x0e\0\0", "before the end"), "a text of another length": (matrix(4, (1, 5), element(4, b"ab")), "has 1 characters"),
}

@pytest.mark.parametrize("name", HOSTILE_MAT)
def test_a_hostile_mat_file_is_refused(name, tmp_path):
    data, words = HOSTILE_MAT[name]
    (tmp_path / "x.mat").write_bytes(header() + data)
    if name == "zero and a thousand million": assert read_mat(tmp_path / "x.mat")["a"].shape == (0, 1 << 30)
    else: assert (words or "x.mat") in refused(read_mat, tmp_path / "x.mat", **quiet)

def bomb(head, block, times):
    packer = zlib.compressobj(9)
    first = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
    data = first + again * times
    return struct.pack("<II", 15, len(data)) + data

def test_a_mat_bomb_is_refused(tmp_path):
    zeros = bomb(struct.pack("<II", 14, 700 << 20), bytes(1 << 20), 700)
    (tmp_path / "x.mat").write_bytes(header() + zeros)
    assert "unpacks to over 400 MB" in refused(read_mat, tmp_path / "x.mat", **quiet)
    block = struct.pack("<II", 14, 0) * (1 << 17) # 131072 empty matrices in a megabyte
    head = matrix(1, (1 << 17, 100))[8:]
    (tmp_path / "x.mat").write_bytes(header() + bomb(struct.pack("<II", 14, len(head) + (100 << 20)) + head, block, 100))
    assert (tmp_path / "x.mat").stat().st_size < 1_000_000
    assert "unpacks to over 400 MB" in refused(read_mat, tmp_path / "x.mat", **quiet)

@pytest.fixture(scope="module")
def whole_mat(tmp_path_factory):
    path = tmp_path_factory.mktemp("mat") / "x.mat"
    found = []
    for compress in (False, True):
        scipy.io.savemat(path, {k: for_scipy(k, v) for k, v in MATLAB.items()}, do_compression=compress)
        found.append(path.read_bytes())
    return found

def test_a_torn_mat_file_is_refused_or_shorter(whole_mat, tmp_path):
    for data in whole_mat:
        for end in range(0, len(data), 7):
            (tmp_path / "x.mat").write_bytes(data[:end])
            try: assert len(read_mat(tmp_path / "x.mat")) < len(MATLAB)
            except InputError: pass

@settings(max_examples=300, **shared_folder)
@given(st.integers(0, 1), st.lists(st.tuples(st.integers(120, 10**6), st.integers(0, 255)), min_size=1, max_size=5))
def test_a_changed_mat_file_ends_in_values_or_a_refusal(whole_mat, tmp_path, which, changes):
    data = bytearray(whole_mat[which])
    for place, value in changes: data[120 + place % (len(data) - 120)] = value
    (tmp_path / "x.mat").write_bytes(data)
    try: read_mat(tmp_path / "x.mat")
    except InputError: pass

def test_other_files_are_no_mat_files(tmp_path):
    for data in (b"hello", b"MATLAB 4 has no header of its own".ljust(128), bytes(200), b"\x89PNG"):
        (tmp_path / "x.mat").write_bytes(data)
        assert "expected a MATLAB file of version 5 to 7.3" in refused(read_mat, tmp_path / "x.mat", **quiet)

def test_listed(): assert listed({"a": 1}) == [{"a": 1}] and listed([1, 2]) == [1, 2] and listed([]) == []

# ---------- MATLAB, version 7.3

def write73(path, content):
    "Writes values as MATLAB writes them with -v7.3: axes reversed, cells and struct arrays as references into #refs#."
    with h5py.File(path, "w", userblock_size=512) as file:
        refs, count = file.create_group("#refs#"), iter(range(10**6))
        def put(group, name, value):
            kind = {np.dtype("f8"): "double", np.dtype("f4"): "single"}
            if isinstance(value, dict):
                made = group.create_group(name)
                for k, v in value.items(): put(made, k, v)
                kind = "struct"
            elif isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
                made = group.create_group(name)
                for k in value[0]: made.create_dataset(k, data=references([v[k] for v in value], (len(value), 1)), dtype=h5py.ref_dtype)
                kind = "struct"
            elif isinstance(value, list):
                grid = isinstance(value[0], list) and all(isinstance(v, str) for v in value[0])
                flat = [v for column in zip(*value) for v in column] if grid else value
                made = group.create_dataset(name, data=references(flat, (len(value[0]), len(value)) if grid else (len(value), 1)), dtype=h5py.ref_dtype)
                kind = "cell"
            elif isinstance(value, str):
                made = group.create_dataset(name, data=np.frombuffer(value.encode("utf-16-le"), "<u2")[:, None])
                made.attrs["MATLAB_int_decode"] = np.int32(2)
                kind = "char"
            else:
                value = np.atleast_2d(value)
                kind = {"f8": "double", "f4": "single", "c16": "double", "b1": "logical"}.get(value.dtype.str[1:], str(value.dtype))
                if value.size == 0:
                    made = group.create_dataset(name, data=np.array(value.shape, "u8"))
                    made.attrs["MATLAB_empty"] = np.int32(1)
                elif value.dtype.kind == "c":
                    both = np.empty(value.T.shape, [("real", "f8"), ("imag", "f8")])
                    both["real"], both["imag"] = value.T.real, value.T.imag
                    made = group.create_dataset(name, data=both)
                else: made = group.create_dataset(name, data=np.ascontiguousarray(value.T).astype("u1" if kind == "logical" else value.dtype), compression="gzip" if value.size > 20 else None)
            made.attrs["MATLAB_class"] = np.bytes_(kind)
            return made
        def references(values, shape):
            found = np.empty(len(values), h5py.ref_dtype)
            for k, v in enumerate(values): found[k] = put(refs, f"r{next(count)}", v).ref
            return found.reshape(shape)
        for k, v in content.items(): put(file, k, v)
    data = bytearray(path.read_bytes())
    data[:128] = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\0\2IM"
    path.write_bytes(data)

MATLAB73 = {k: v for k, v in MATLAB.items() if k not in ("rows", "integer")}

@pytest.mark.parametrize("name", MATLAB73)
def test_both_versions_of_matlab_give_the_same(name, tmp_path):
    write73(tmp_path / "x.mat", {name: MATLAB73[name], "other": 1.})
    assert same(read_mat(tmp_path / "x.mat"), {name: MATLAB73[name], "other": 1.})

def test_cells_of_struct_arrays_of_cells(tmp_path):
    value = {"annotation": {"people": [{"joints": [np.ones((2, 3)), np.zeros((1, 3))], "name": "a"}, {"joints": [1.0, 2.0], "name": "b"}]}}
    write73(tmp_path / "x.mat", value)
    assert same(read_mat(tmp_path / "x.mat"), value)

def test_a_cell_that_holds_itself_is_refused(tmp_path):
    write73(tmp_path / "x.mat", {"cells": [1.0, 2.0]})
    with h5py.File(tmp_path / "x.mat", "r+") as file: file["cells"][0, 0] = file["cells"].ref
    assert "nested deeper than 40" in refused(read_mat, tmp_path / "x.mat", **quiet)

def test_cells_of_cells_that_multiply_are_refused(tmp_path):
    with h5py.File(tmp_path / "x.mat", "w", userblock_size=512) as file:
        inner = file.create_dataset("#refs#/a", data=np.ones((2, 2)))
        for level in range(30):
            made = file.create_dataset(f"#refs#/l{level}", (20, 1), h5py.ref_dtype)
            made[:] = inner.ref
            made.attrs["MATLAB_class"] = np.bytes_("cell")
            inner = made
        file["cells"] = inner
    with (tmp_path / "x.mat").open("r+b") as file: file.write(b"MATLAB 7.3 MAT-file")
    import time
    began = time.process_time()
    with pytest.raises(InputError, match="more often than there are bytes"): read_mat(tmp_path / "x.mat")
    assert time.process_time() - began < 10

# ---------- HDF5

def test_hdf5_files_come_back(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["3D"] = np.arange(12, dtype="f4").reshape(2, 6)
        file.create_dataset("packed", data=np.arange(1000), compression="gzip", shuffle=True, fletcher32=True)
        file.create_dataset("light", data=np.arange(1000), compression="lzf")
        file["name"], file["one"], file["names"], file["truth"], file["fixed"] = "hé", 3, ["a", "bé"], True, np.bytes_("xy")
        file["subject1/camera1/R"], file["big"] = np.eye(3), np.arange(3, dtype=">i4")
        file["same"] = file["3D"] # another name of it
        file.create_group("nothing")
        file["empty"] = np.zeros((0, 3))
    read = read_hdf5(tmp_path / "x.h5")
    assert read["names"] == ["a", "bé"] and read["name"] == "hé" and read["one"] == 3 and read["truth"] is True and read["nothing"] == {} and read["fixed"] == "xy"
    assert same(read["3D"], np.arange(12, dtype="f4").reshape(2, 6)) and same(read["same"], read["3D"]) and same(read["packed"], np.arange(1000)) and same(read["light"], np.arange(1000)) and same(read["subject1"], {"camera1": {"R": np.eye(3)}})
    assert same(read["big"], np.arange(3, dtype="i4")) and read["empty"].shape == (0, 3)

def hostile_hdf5(name, file, folder):
    if name == "claims a terabyte": file.create_dataset("a", (1 << 37,), "f8", chunks=(1024,))
    if name == "claims a terabyte in one piece": file.create_dataset("a", (1 << 37,), "f8")
    if name == "a bomb": file.create_dataset("a", data=np.zeros((60, 1 << 20), "u1"), chunks=(1, 1 << 20), compression="gzip")
    if name == "a chunk of two gigabytes": file.create_dataset("a", (10,), "f8", maxshape=(None,), chunks=(1 << 28,), compression="gzip")
    if name == "values in another file": file.create_dataset("a", (10,), "u1", external=[(str(folder / "secret"), 0, 10)])
    if name == "values of other datasets":
        layout = h5py.VirtualLayout((10,), "u1")
        layout[:] = h5py.VirtualSource(str(folder / "secret.h5"), "a", (10,))
        file.create_virtual_dataset("a", layout)
    if name == "a link to another file": file["a"] = h5py.ExternalLink(str(folder / "secret.h5"), "/a")
    if name == "a soft link": file["a"] = h5py.SoftLink("/b")
    if name == "a group that holds itself": file["a/b"] = file.create_group("a")
    if name == "lists of numbers": file.create_dataset("a", (3,), h5py.vlen_dtype(np.dtype("i4")))
    if name == "a filter by plug-in":
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((10,))
        plan.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, (2, 2))
        h5py.h5d.create(file.id, b"a", h5py.h5t.NATIVE_INT8, h5py.h5s.create_simple((10,)), plan)

HOSTILE_HDF5 = {"claims a terabyte": "claims", "claims a terabyte in one piece": "claims", "a bomb": "unpacks to over 50 MB", "a chunk of two gigabytes": "chunks of", "values in another file": "another file", "values of other datasets": "another file", "a link to another file": "link to elsewhere",
                "a soft link": "link to elsewhere", "a group that holds itself": "nested deeper", "lists of numbers": "holds object", "a filter by plug-in": "filter"}

@pytest.mark.parametrize("name", HOSTILE_HDF5)
def test_a_hostile_hdf5_file_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "_FREE", 50 << 20)
    (tmp_path / "secret").write_bytes(b"0123456789")
    with h5py.File(tmp_path / "x.h5", "w") as file: hostile_hdf5(name, file, tmp_path)
    assert HOSTILE_HDF5[name] in refused(read_hdf5, tmp_path / "x.h5", **quiet)

def test_a_torn_hdf5_file_is_refused(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file: file["a"] = np.arange(1000)
    data = (tmp_path / "x.h5").read_bytes()
    for end in (4, 100, 1000, len(data) - 1):
        (tmp_path / "y.h5").write_bytes(data[:end])
        refused(read_hdf5, tmp_path / "y.h5", **quiet)

# ---------- CDF

def write_cdf(path, values, wide=8, name="Pose", by_row=True, order=">", packed=False, whole=False, varies=True, blocks=1, changes=()):
    "A CDF file by hand: version 3 with wide = 8, version 2.6 with wide = 4. `values`: records first. `changes`: (place, bytes) by the names of the records."
    w, records, shape = "q" if wide == 8 else "i", len(values), values.shape[1:]
    def record(kind, layout, *numbers, rest=b""):
        form = ">" + w + "i" + layout.replace("w", w)
        return struct.pack(form, struct.calcsize(form) + len(rest), kind, *numbers) + rest
    raw = [(v if by_row else v.T).astype(values.dtype.newbyteorder(order)).tobytes() for v in values]
    cuts = np.linspace(0, records, blocks + 1).astype(int)
    packer = lambda data: (lambda z: z.compress(data) + z.flush())(zlib.compressobj(6, zlib.DEFLATED, 31))
    stored = [b"".join(raw[a:b]) for a, b in zip(cuts, cuts[1:])]
    stored = [record(13, "iw", 0, len(packer(s)), rest=packer(s)) if packed else record(7, "", rest=s) for s in stored]
    kind = {"f4": 44, "f8": 45, "i4": 4}[values.dtype.str[1:]]
    sizes = {"cdr": len(record(1, "w9i", 0, *[0] * 9, rest=bytes(256))), "gdr": len(record(2, "wwww5iw3i", *[0] * 13)), "vdr": len(record(8, "wiiwwiiiiiiiwi", *[0] * 14)) + (256 if wide == 8 else 64) + 4 + 8 * len(shape), "vxr": len(record(6, "wii", 0, 0, 0)) + blocks * (8 + wide), "cpr": len(record(11, "iiii", 5, 0, 1, 6))}
    at, place = 8, {}
    for key, size in (*sizes.items(), *((f"block{k}", len(s)) for k, s in enumerate(stored))): place[key], at = at, at + size
    encoding = 1 if order == ">" else 6
    vdr_rest = name.encode().ljust(256 if wide == 8 else 64, b"\0") + struct.pack(f">i{len(shape)}i{len(shape)}i", len(shape), *shape, *[-1] * len(shape))
    body = (record(1, "w9i", place["gdr"], 3 if wide == 8 else 2, 8 if wide == 8 else 6, encoding, 2 | by_row, 0, 0, 0, 0, 0, rest=bytes(256)) + record(2, "wwww5iw3i", 0, place["vdr"], 0, at, 0, 0, -1, 0, 1, 0, 0, 0, 0)
            + record(8, "wiiwwiiiiiiiwi", 0, kind, records - 1, place["vxr"], place["vxr"], int(varies) | 4 * packed, 0, 0, 0, 0, 1, 0, place["cpr"] if packed else -1, 1, rest=vdr_rest)
            + record(6, "wii", 0, blocks, blocks, rest=struct.pack(f">{blocks}i{blocks}i{blocks}{w}", *cuts[:-1].tolist(), *(cuts[1:] - 1).tolist(), *[place[f"block{k}"] for k in range(blocks)])) + record(11, "iiii", 5, 0, 1, 6) + b"".join(stored))
    body = bytearray(body)
    for key, offset, data in changes: body[place[key] - 8 + offset:place[key] - 8 + offset + len(data)] = data
    magic = b"\xcd\xf3\0\1" if wide == 8 else b"\xcd\xf2\x60\2"
    if whole:
        data = packer(bytes(body))
        cpr = 8 + len(record(10, "wwi", 0, 0, 0, rest=data))
        path.write_bytes(magic + b"\xcc\xcc\0\1" + record(10, "wwi", cpr, len(body), 0, rest=data) + record(11, "iiii", 5, 0, 1, 6))
    else: path.write_bytes(magic + b"\0\0\xff\xff" + bytes(body))

POSES = np.random.default_rng(0).normal(size=(6, 5, 96))

@pytest.mark.parametrize("wide", [8, 4], ids=["version 3", "version 2.6"])
@pytest.mark.parametrize("options", [{}, {"packed": True}, {"whole": True}, {"by_row": False}, {"order": "<"}, {"blocks": 3}, {"blocks": 2, "packed": True, "order": "<", "by_row": False}], ids=str)
def test_cdf_files_are_read_as_cdflib_reads_them(wide, options, tmp_path):
    for values in (POSES, POSES[:1].astype("f4"), np.arange(6, dtype="i4")[:, None]):
        write_cdf(tmp_path / "x.cdf", values, wide, **{**options, "blocks": min(len(values), options.get("blocks", 1))})
        read = read_cdf(tmp_path / "x.cdf", "Pose")
        assert same(read, values)
        if not (options.get("whole") and wide == 4): assert same(read, np.asarray(cdflib.CDF(str(tmp_path / "x.cdf")).varget("Pose")).astype(values.dtype).reshape(values.shape))

@pytest.mark.parametrize("major", ["Row_major", "Column_major"])
@pytest.mark.parametrize("compress", [0, 6])
@pytest.mark.parametrize("vary", [True, False])
def test_cdf_files_of_cdflib(major, compress, vary, tmp_path):
    from cdflib.cdfwrite import CDF
    values = POSES if vary else POSES[0]
    with CDF(tmp_path / "x.cdf", cdf_spec={"Majority": major}) as file:
        file.write_var({"Variable": "Other", "Data_Type": 44, "Num_Elements": 1, "Rec_Vary": True, "Dim_Sizes": [3], "Compress": compress}, var_data=np.ones((10, 3), "f4"))
        file.write_var({"Variable": "Pose", "Data_Type": 45, "Num_Elements": 1, "Rec_Vary": vary, "Dim_Sizes": [5, 96], "Compress": compress}, var_data=values)
        file.write_var({"Variable": "Name", "Data_Type": 51, "Num_Elements": 4, "Rec_Vary": True, "Dim_Sizes": []}, var_data=["abcd"])
    assert same(read_cdf(tmp_path / "x.cdf", "Pose"), np.asarray(cdflib.CDF(tmp_path / "x.cdf").varget("Pose"))) and same(read_cdf(tmp_path / "x.cdf", "Other"), np.ones((10, 3), "f4"))
    if major == "Row_major": assert same(read_cdf(tmp_path / "x.cdf", "Pose"), values) # its writer does not turn the axes
    assert "'Nothing' is missing among Other, Pose, Name" in refused(read_cdf, tmp_path / "x.cdf", "Nothing", **quiet)
    assert "is no number" in refused(read_cdf, tmp_path / "x.cdf", "Name", **quiet)

HOSTILE_CDF = { # name: (options, place of the change, words)
    "records by the billion": ([("vdr", 24, b"\x7f\xff\xff\xff")], "records of"), "an axis of two billion": ([("vdr", 12 + 72 + 256 + 4, b"\x7f\xff\xff\xff")], "claims"), "axes by the billion": ([("vdr", 12 + 72 + 256, b"\x7f\xff\xff\xff")], "numbers are claimed"), "a negative axis": ([("vdr", 12 + 72 + 256 + 4, b"\xff\xff\xff\xff")], "shape"),
    "a variable that points at itself": ([("vdr", 12, struct.pack(">q", 8 + 312 + 84)), ("vdr", 12 + 72, b"Other\0")], "pointed at twice"), "an index that points at itself": ([("vxr", 12, b"SELF")], "pointed at twice"), "an index with a billion entries": ([("vxr", 20, b"\x7f\xff\xff\xff")], "numbers are claimed"),
    "more entries used than there are": ([("vxr", 24, b"\0\0\0\x09")], "entries"), "a block that is not there": ([("vxr", 36, struct.pack(">q", 1 << 40))], "no record of kind"), "records that are not stored": ([("vxr", 28, b"\0\0\0\2")], "are not stored"), "a block that ends before it begins": ([("vxr", 32, b"\xff\xff\xff\xf0")], "are not stored"), "another data type": ([("vdr", 20, b"\0\0\0\x20")], "data type 32"),
    "another encoding": ([("cdr", 28, b"\0\0\0\3")], "encoding 3"), "a descriptor beyond the end": ([("cdr", 12, struct.pack(">q", 1 << 50))], "no record of kind 2"), "a descriptor before the beginning": ([("cdr", 12, struct.pack(">q", -5))], "no record of kind 2"),
}

@pytest.mark.parametrize("name", HOSTILE_CDF)
def test_a_hostile_cdf_file_is_refused(name, tmp_path):
    changes, words = HOSTILE_CDF[name]
    write_cdf(tmp_path / "x.cdf", POSES)
    at = 8 + 8 + 4 + 8 + 36 + 256 + 8 + 4 + 32 + 20 + 8 + 12 # of the variable's descriptor
    vxr = at + 12 + 72 + 256 + 4 + 16
    assert (tmp_path / "x.cdf").read_bytes()[at + 8:at + 12] == b"\0\0\0\x08" and (tmp_path / "x.cdf").read_bytes()[vxr + 8:vxr + 12] == b"\0\0\0\x06"
    changes = [(k, o, struct.pack(">q", vxr) if d == b"SELF" else struct.pack(">q", at) if name == "a variable that points at itself" and o == 12 else d) for k, o, d in changes]
    write_cdf(tmp_path / "x.cdf", POSES, changes=changes)
    assert words in refused(read_cdf, tmp_path / "x.cdf", "Pose", **quiet)

@pytest.mark.parametrize("how", ["packed", "whole"])
def test_a_cdf_bomb_is_refused(how, tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "_FREE", 50 << 20)
    write_cdf(tmp_path / "x.cdf", np.zeros((1, 60, 1 << 17)), **{how: True})
    assert (tmp_path / "x.cdf").stat().st_size < 100_000
    assert "unpacks to over 50 MB" in refused(read_cdf, tmp_path / "x.cdf", "Pose", **quiet)

@settings(max_examples=200, **shared_folder)
@given(st.sampled_from([{}, {"packed": True}, {"whole": True}, {"wide": 4}]), st.lists(st.tuples(st.integers(0, 1200), st.integers(0, 255)), min_size=1, max_size=5), st.one_of(st.none(), st.integers(0, 1200)))
def test_a_changed_cdf_file_ends_in_values_or_a_refusal(tmp_path, options, changes, end):
    write_cdf(tmp_path / "x.cdf", POSES[:, :2, :5], blocks=3, **options)
    data = bytearray((tmp_path / "x.cdf").read_bytes())
    for place, value in changes: data[place % len(data)] = value
    (tmp_path / "x.cdf").write_bytes(data[:end])
    try: read_cdf(tmp_path / "x.cdf", "Pose")
    except InputError: pass

# ---------- digests

def test_digests_notice_changes_and_not_places(tmp_path):
    def folder(name, **files):
        for file, data in files.items():
            path = tmp_path / name / file.replace("_", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return [p for p in (tmp_path / name).rglob("*") if p.is_file()]
    big = bytes(300_000)
    first, moved, changed, renamed = folder("a", s1_x=big, y=b"1"), folder("b", s1_x=big, y=b"1"), folder("c", s1_x=big[:-1] + b"1", y=b"1"), folder("d", s2_x=big, y=b"1")
    middle, longer = folder("e", s1_x=big[:150_000] + b"1" + big[150_001:], y=b"1"), folder("f", s1_x=big + b"\0", y=b"1")
    for of in (digest, quick_digest):
        assert len(of(first)) == 64 and of(first) == of(moved) == of(reversed(first)) and len({of(f) for f in (first, changed, renamed, longer)}) == 4
        with pytest.raises(InputError, match="none"): of([tmp_path / "none"])
    assert digest(middle) != digest(first) and quick_digest(middle) == quick_digest(first)
    assert digest(first) != quick_digest(first)
