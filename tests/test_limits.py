"""What a file would take is refused before it is taken."""
import gzip
import io
import json
import struct
import tarfile
import tracemalloc
import zipfile
import zlib

import numpy as np
import onnx
import pytest
import torch
from conftest import at_most
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper, parser
from PIL import Image

from rtseg_deploy import adopt, collect, files, graphs, images, limits, lists, plans, records, saved
from rtseg_deploy.errors import RtsegError

COUNT = 50_000
HEAVY = {"numbers": b"[" + b"0.125,\n" * COUNT + b"0]", "whole": b"[" + b"12345," * COUNT + b"0]", "lists": b"[" + b"[],[0.5]," * COUNT + b"0]",
         "objects": b"[" + b'{"a":0.5},{},' * COUNT + b"0]", "texts": b"[" + b'"ab","cd",' * COUNT + b"0]",
         "keys": b"{" + b",".join(b'"%d":0.5' % number for number in range(COUNT)) + b"}", "wide": b'["' + "😀".encode() * COUNT + b'"]'}


@pytest.mark.parametrize("kind", HEAVY)
def test_what_json_takes_is_foreseen(kind, monkeypatch, tmp_path):
    """Not less than it takes, or the limit is none; and not ten times as much, or a real file reaches it."""
    text = HEAVY[kind]
    tracemalloc.start()
    json.loads(text, parse_int=limits.whole)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    (tmp_path / "a.json").write_bytes(b'{"a": ' + text + b"}")
    for most, refused in ((peak // 2, True), (10 * peak, False)):
        monkeypatch.setattr(limits, "MEMORY", most)
        if refused:
            with pytest.raises(RtsegError, match="would take more than"):
                files.read_json(tmp_path / "a.json")
        else:
            files.read_json(tmp_path / "a.json")


@pytest.mark.parametrize("text", [b'"%s"' % (b"x" * 2**23), b'"%s"' % (b"\\n" * 2**22), b'"%s\\ud83d\\ude00"' % (b"\\\\" * 2**22),
                                  b"[%s1]" % (b"[]," * 2**21), b'["%s"]' % (b'\\"[' * 2**21)], ids=["letters", "escapes", "backslashes", "lists", "quotes"])
def test_to_look_at_json_takes_no_more_than_to_read_it(text):
    """Python's re took 1 GiB for a text of 8 MiB."""
    with at_most(64):
        assert len(limits.light_json(text, "a.json")) == len(text)


LETTERS = st.text(st.sampled_from(['"', "\\", "[", "}", "u", "d", "8", "a", "\ud83d", "\ude00", "😀"]))
VALUES = st.recursive(LETTERS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(LETTERS, inner, max_size=3), max_leaves=9)


def nested(value):
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(nested, inner), default=0)


def written(value):
    """Whether it can be, in UTF-8."""
    try:
        return bool(json.dumps(value, ensure_ascii=False).encode())
    except UnicodeEncodeError:
        return False


@given(VALUES)
def test_what_is_nested_and_what_is_half_a_letter_is_told_from_what_only_looks_so(value):
    text = json.dumps(value).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "JSON_DEPTH", nested(value))
        if written(json.loads(text)):
            assert limits.light_json(text, "a.json") == text.decode()
        else:
            with pytest.raises(RtsegError, match="half of a letter"):
                limits.light_json(text, "a.json")
        if nested(value):
            patch.setattr(limits, "JSON_DEPTH", nested(value) - 1)
            with pytest.raises(RtsegError, match="nested more than"):
                limits.light_json(text, "a.json")


def test_the_largest_result_is_read():
    """Of 100,000 steps in 100 processes on a GPU: only what its text says is looked at."""
    class Text(bytes):
        def __len__(self):
            return 26 * 3 * 10**7

        def count(self, mark):
            return {b",": 3 * 10**7}.get(mark, 1000)
    assert limits.light_json(Text(b"{}"), "result.json") == "{}"


@pytest.mark.parametrize("text, words", [
    ("[" * 100 + "]" * 100, "nested more than 64 deep"), ('{"a": "\\ud800"}', "half of a letter"),
    ('{"a": "\\udc00\\ud800"}', "half of a letter"), ('{"a": ' + "9" * 30 + "}", "a whole number of 30 digits"), ("9" * 5000, "a whole number")])
def test_what_python_reads_and_nothing_after_it(text, words, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(RtsegError, match=words):
        files.read_json(tmp_path / "a.json")


@pytest.mark.parametrize("text", ['{"a": "\\ud83d\\ude00"}', '{"a": "\\\\ud800"}', '{"a": "' + "[{" * 100 + '\\""}'])
def test_what_only_looks_like_it_is_read(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    assert files.read_json(tmp_path / "a.json") == json.loads(text)


def test_a_name_that_is_none():
    for read in (files.read_json, files.sha256, limits.text):
        with pytest.raises(RtsegError, match="no name of a file"):
            read("a\0b")


def test_a_file_is_not_read_further_than_its_limit(tmp_path):
    path = tmp_path / "a.txt"
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    for read in (limits.text, files.read_json, plans.read, graphs.load, images.read, saved.read):
        with pytest.raises(RtsegError, match="larger than|holds more than"):
            read(path)


def test_digits_that_int_does_not_take_are_sorted():
    assert sorted(["1²2", "10", "9", "²", "1" * 5000, "٣"], key=lists.natural) == ["1²2", "9", "10", "1" * 5000, "²", "٣"]


# ---- plans


def test_a_key_of_many_parts(tmp_path):
    (tmp_path / "a.toml").write_text("a." * 50_000 + "b = 1")
    with pytest.raises(RtsegError, match="a key of more than 32 parts"):
        plans.read(tmp_path / "a.toml")


def test_a_deep_plan(tmp_path):
    (tmp_path / "a.toml").write_text("row = " + "[" * 100_000)
    with pytest.raises(RtsegError, match="is not a plan"):
        plans.read(tmp_path / "a.toml")


def test_a_long_plan(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "PLAN_ROWS", 2)
    (tmp_path / "a.toml").write_text('[[row]]\nnetwork = "sgcpnet"\n' * 3)
    with pytest.raises(RtsegError, match="has 3 rows, more than 2"):
        plans.read(tmp_path / "a.toml")


# ---- ONNX


def model(body="output = Identity (x)", **weights):
    text = '<ir_version: 8, opset_import: ["" : 17]> net (float[1,3,16,32] input) => (float[1,4,16,32] output) <float[4,3,3,3] w> ' \
           '{ x = Conv <pads = [1,1,1,1]> (input, w) ' + body + "}"
    found = parser.parse_model(text)
    for name, value in {"w": np.random.default_rng(0).random((4, 3, 3, 3), np.float32), **weights}.items():
        found.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return found


def refused(found, tmp_path, read=graphs.load):
    (tmp_path / "a.onnx").write_bytes(found if isinstance(found, bytes) else found.SerializeToString())
    with pytest.raises(RtsegError) as error:
        read(tmp_path / "a.onnx")
    return error.value.what


def test_many_small_messages_are_counted_before_protobuf_sees_them(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "load_from_string", None)
    monkeypatch.setattr(limits, "ONNX_FIELDS", 1000)
    nodes = b"\x0a\x00" * (limits.ONNX_FIELDS + 1)
    assert "has more than" in refused(b"\x3a" + varint(len(nodes)) + nodes, tmp_path)


def varint(number):
    return (bytes([number & 127 | 128]) + varint(number >> 7)) if number > 127 else bytes([number])


def test_deep_graphs(tmp_path):
    found = b""
    for _ in range(40):
        for field in (b"\x32", b"\x2a", b"\x0a"):                              # AttributeProto.g, NodeProto.attribute, GraphProto.node
            found = field + varint(len(found)) + found
    assert "nested more than" in refused(b"\x3a" + varint(len(found)) + found, tmp_path)


def test_packed_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "ONNX_NUMBERS", 1000)
    found = model()
    found.graph.initializer[0].int64_data.extend([1] * 1001)
    assert "bytes of whole numbers" in refused(found, tmp_path)


@pytest.mark.parametrize("damage", [b"\x3a\x05\x0a", b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x12\x02\xff\xff"])
def test_messages_that_end_where_they_do_not(damage, tmp_path):
    assert "truncated or not an ONNX file" in refused(damage, tmp_path)


@pytest.mark.parametrize("dims", [[1 << 40], [-4, 27], [4, 3, 3, 4], [1] * 70])
def test_a_tensor_that_is_smaller_than_it_says(dims, tmp_path):
    found = model()
    found.graph.initializer[0].dims[:] = dims
    assert "the tensor w is not as large as it says" in refused(found, tmp_path)


def adopted(path):
    return adopt.adopt(path, path.with_name("adopted.onnx"), "imagenet")


@pytest.mark.parametrize("body, weights", [
    ("e = Expand (x, s) r = ReduceMax <axes = [0]> (e) output = Identity (r)", {"s": [10**6, 4, 16, 32]}),
    ("z = ConstantOfShape (s) q = ReduceMax <keepdims = 0> (z) output = Add (x, q)", {"s": [10**10]})])
def test_a_tensor_that_a_graph_would_make(body, weights, tmp_path):
    assert "makes a tensor" in refused(model(body, **weights), tmp_path, adopted)


def test_a_tensor_whose_size_depends_on_the_picture(tmp_path):
    body = "a = ReduceMax <keepdims = 0> (x) b = Abs (a) k = Mul (b, big) i = Cast <to = 7> (k) t = Unsqueeze (i, ax) z = ConstantOfShape (t) " \
           "q = ReduceMax <keepdims = 0> (z) output = Add (x, q)"
    assert "cannot run" in refused(model(body, big=np.float32(1e11), ax=[0]), tmp_path, adopted)


# ---- checkpoints


def test_a_checkpoint_that_unpacks_to_more_than_weights(tmp_path, monkeypatch):
    torch.save({"w": torch.zeros(1 << 20)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert (tmp_path / "b.pth").stat().st_size < 1 << 16
    monkeypatch.setattr(limits, "CHECKPOINT_BYTES", 1 << 20)
    with pytest.raises(RtsegError, match="holds more than"):
        saved.read(tmp_path / "b.pth")


def test_a_tensor_that_is_one_number(tmp_path):
    torch.save({"w": torch.zeros(1).expand(1000, 1000)}, tmp_path / "a.pth")
    with pytest.raises(RtsegError, match="larger than what is stored of it"):
        saved.tensors(saved.read(tmp_path / "a.pth"), "a.pth")


def test_tensors_that_are_one_storage_many_times(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "CHECKPOINT_BYTES", 1 << 20)
    one = torch.zeros(1000).half()
    torch.save({str(number): one for number in range(1000)}, tmp_path / "a.pth")
    with pytest.raises(RtsegError, match="weights of more than"):
        saved.tensors(saved.read(tmp_path / "a.pth"), "a.pth")


class Asks:
    """Pickled as a call."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("call", [(bytearray, (1 << 33,)), (torch.Tensor, (1 << 16, 1 << 15)),
                                  (np._core.multiarray._reconstruct, (np.ndarray, (1 << 33,), b"b")),
                                  (np._core.multiarray.scalar, (np.dtype("V2147483647"),))])
def test_what_a_pickle_may_call_gets_no_more_memory(call, tmp_path):
    torch.save({"w": torch.ones(3), "beside": Asks(*call)}, tmp_path / "a.pth")
    before, found = limits.taken(), None
    try:
        found = saved.read(tmp_path / "a.pth")
    except RtsegError as error:
        assert "\n" not in error.what
    assert limits.taken() - before < limits.MEMORY, found


@pytest.mark.parametrize("form", ["archive", "plain", "both"])
@pytest.mark.parametrize("pickled, words", [
    (b"ctorch._utils\n" + b"r_" * 10_000 + b"\n.", "or 300 letters"), (b"N0" * 2**20 + b"N.", "more than 2,097,152 steps"),
    (b"c" + "ä".encode() * 10_000 + b"\nx\n.", "is truncated or not")], ids=["name", "steps", "letters"])
def test_a_pickle_that_takes_long(pickled, words, form, tmp_path):
    """PyTorch words its refusal of 20,000 letters in 20 s, and of twice as many in eight times that."""
    torch.save({"w": torch.ones(3)}, tmp_path / "a.pth")
    if form == "archive":
        with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(tmp_path / "b.pth", "w") as new:
            for name in old.namelist():
                new.writestr(name, b"\x80\x02" + pickled if name.endswith("data.pkl") else old.read(name))
    else:
        (tmp_path / "b.pth").write_bytes(b"\x80\x02" + pickled + (tmp_path / "a.pth").read_bytes() * (form == "both"))
    with pytest.raises(RtsegError, match=words):
        saved.read(tmp_path / "b.pth")


def test_numpys_own_unpickling_is_not_used(tmp_path, monkeypatch):
    """A dtype takes flags from the file, with which an array's bytes become addresses."""
    seen = []
    monkeypatch.setattr(saved, "number", lambda kind, data: seen.append((type(kind), data)))
    torch.save({"w": torch.ones(3), "best": np.float64(0.5), "log": np.array([None])}, tmp_path / "a.pth", pickle_protocol=2)
    found = saved.read(tmp_path / "a.pth")
    assert type(found["log"]) is saved.Beside and seen[0][0] is saved.Kind


# ---- pictures and archives


def test_a_picture_of_too_many_pixels(tmp_path):
    header = struct.pack(">IIBBBBB", 1 << 14, 1 << 13, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", 0))
    with pytest.raises(RtsegError, match="has 16384 x 8192 pixels"):
        images.read(tmp_path / "a.png")


def test_a_picture_that_a_program_would_read(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    with pytest.raises(RtsegError, match="not an image that can be read"):
        images.read(tmp_path / "a.eps")


def test_an_archive_that_is_larger_than_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(collect.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10}))
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", format=tarfile.GNU_FORMAT) as archive:
        entry = tarfile.TarInfo("engine")
        entry.size = 11
        archive.addfile(entry, io.BytesIO(bytes(11)))
    with pytest.raises(RtsegError, match="unpacks to more than is free"):
        collect.collect(tmp_path / "a.tar.gz")


def test_a_size_below_zero(tmp_path):
    """Its reader would go backwards, for ever."""
    entry = tarfile.TarInfo("a").tobuf(tarfile.GNU_FORMAT)
    entry = bytearray(entry)
    entry[124:136] = b"\xff" * 10 + struct.pack(">h", -1024)
    entry[148:156] = b"        "
    entry[148:156] = b"%06o\0 " % sum(entry)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(bytes(entry) * 2 + bytes(1024)))
    with pytest.raises(RtsegError):
        collect.collect(tmp_path / "a.tar.gz")


# ---- the memory of a block


def test_a_block_gets_no_more_than_its_memory_and_the_rest_is_as_before():
    before = limits.resource.getrlimit(limits.resource.RLIMIT_DATA)
    with pytest.raises(RtsegError, match="asks for more than 1 MiB"), limits.memory("a.bin", 1 << 20):
        bytearray(1 << 30)
    assert limits.resource.getrlimit(limits.resource.RLIMIT_DATA) == before
    bytearray(1 << 28)


def test_blocks_of_threads_end_in_any_order():
    """The limit is the process's: whoever left last put back what another one's block had set, for good."""
    before = limits.resource.getrlimit(limits.resource.RLIMIT_DATA)
    first, second = limits.memory("a.bin", 1 << 30), limits.memory("b.bin", 1 << 20)
    first.__enter__()
    second.__enter__()
    bytearray(1 << 28)                  # the first's is not less for the second
    first.__exit__(None, None, None)
    assert limits.resource.getrlimit(limits.resource.RLIMIT_DATA) != before     # and the second's is not without one
    second.__exit__(None, None, None)
    assert limits.resource.getrlimit(limits.resource.RLIMIT_DATA) == before


def test_sidecars_of_sizes_that_nobody_has(tmp_path):
    from fuzz import seeds
    for changes in ({"resolution": [1 << 20, 1 << 20]}, {"classes": 1 << 40}):
        with pytest.raises(RtsegError, match="damaged"):
            records.from_json({**json.loads(json.dumps(seeds.sidecar().to_json())), **changes}, "a.json")
