"""The most that is taken of a file that a stranger may have made: what it says of itself decides neither how much memory nor how much time it gets.

Nothing here is reached by a file of these networks; beside each number stands the largest of them. What is refused is refused by what it would take,
before that is taken.
"""
import os
import re
import resource
import threading
from contextlib import contextmanager
from functools import cache

from .errors import RtsegError

MEMORY = 2 << 30                    # bytes that reading one file may take
JSON_BYTES = 768 << 20              # a GPU's result of 100,000 steps in 100 processes: 780 MB
JSON_DEPTH = 64                     # a result's telemetry: 6
# Of Python 3.10 to 3.13, by planting each kind: an item of a list and a float; a key and its place; an object with its first places; text beside its letters
JSON_TAKES = {b",": 36, b":": 120, b"{": 200, b"[": 90, b'"': 32}
JSON_DIGITS = 20                    # of a whole number: bytes of memory have 13
TEXT_BYTES = 64 << 20               # a list of a million images
TEXT_LINES = 1 << 20                # Cityscapes has 24,998 images
PLAN_BYTES, PLAN_ROWS, PLAN_PARTS = 4 << 20, 10_000, 32      # every network, size, precision and device: some 6,000 rows
CHECKPOINT_BYTES = 3 << 29          # DDRNet-39 1.5x in FP32 with Adam's two moments: 0.9 GB
CHECKPOINT_MEMBERS = 100_000        # DDRNet-39 with its optimizer: 2,500
PICKLE_STEPS, PICKLE_NAME = 1 << 21, 300    # DDRNet-39 with its optimizer: 100,000 steps; of a class that is named: 60 letters
TENSORS = 100_000
ONNX_BYTES = 512 << 20              # DDRNet-39 1.5x in FP32: 0.3 GB
ONNX_FIELDS = 1 << 19               # DDRNet-39 as exporters leave it: 20,000
ONNX_NUMBERS = 32 << 20             # bytes of packed whole numbers, each 8 in memory: shapes and axes
ONNX_DEPTH = 48                     # messages in messages; a graph in a graph is three
SIDES = 16                          # of a tensor; real ones have up to 6
CONSTANT_BYTES = 64 << 20           # of an expression of constants that is computed beforehand: grids of 1024x2048 coordinates have 17 MB
PER_NUMBER = 1024                   # bytes of a tensor for each number that goes in; the float32 logits of 19 classes have 25
TENSOR_BYTES = 2 << 30              # of one that a graph makes; those logits at 1024x2048: 160 MB
PER_PIXEL = 2048                    # bytes that a network may take to run, beside MEMORY: 4.3 GB at 1024x2048
IMAGE_BYTES = 256 << 20
CLASSES = 10_000
NAME = 150                          # letters of a network's name, which is part of names of files
PIXELS = 1 << 26                    # 8192x8192: 32 times 1024x2048; labels in colours take 25 bytes each
ARCHIVE_MEMBERS, ARCHIVE_BYTES = 10_000, 1 << 35    # 60 engines of 500 MB; an engine is read in blocks,
ARCHIVE_TEXT = 1 << 26              # a text is read whole
TELEMETRY_BYTES = 256 << 20         # a row each 0.1 s, 500 bytes: 14 hours
LABEL_BYTES = PIXELS * 8


def refuse(path, what, fix="check that it is the right file"):
    raise RtsegError(f"{path} {what}", fix)


def amount(size):
    """As in: 768 MiB."""
    return f"{size >> 20} MiB" if size < 1 << 30 else f"{size / 2**30:g} GiB"


def data(path, most):
    """The bytes of a file. Raises RtsegError where there are more, before they are read."""
    try:
        with open(path, "rb") as file:
            found = b"" if os.fstat(file.fileno()).st_size > most else file.read(most + 1)      # a pipe does not say how much it has
            larger = len(found) > most or os.fstat(file.fileno()).st_size > most
    except OSError as error:
        raise RtsegError(f"{path}: {error.strerror}") from None
    except ValueError as error:     # a name with a NUL in it
        raise RtsegError(f"{str(path)!r} is no name of a file: {error}") from None
    if larger:
        refuse(path, f"is larger than the {amount(most)} that are taken of such a file")
    return found


def text(path, most=TEXT_BYTES):
    """A text file, without the mark that some editors put before it. Raises RtsegError."""
    try:
        found = data(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RtsegError(f"{path} is not UTF-8 text: {error}", "save it as UTF-8") from None
    if found.count("\n") > TEXT_LINES:
        refuse(path, f"has more than the {TEXT_LINES:,} lines that are taken of such a file")
    return found


class Ceiling:
    """How much memory this process may have: lowered by the first that is inside, put back by the last, in whatever order threads come and go."""

    def __init__(self):
        self.lock, self.inside, self.before = threading.Lock(), 0, None

    def enter(self, most):
        with self.lock:
            if not self.inside:
                self.before = resource.getrlimit(resource.RLIMIT_DATA)
            wanted = max(taken() + most, resource.getrlimit(resource.RLIMIT_DATA)[0] if self.inside else 0)
            if all(limit == resource.RLIM_INFINITY or wanted <= limit for limit in self.before):
                resource.setrlimit(resource.RLIMIT_DATA, (wanted, self.before[1]))
            self.inside += 1

    def leave(self):
        with self.lock:
            self.inside -= 1
            if not self.inside:
                resource.setrlimit(resource.RLIMIT_DATA, self.before)


CEILING = Ceiling()


@contextmanager
def memory(path, most=MEMORY):
    """A block in which this process gets no more than so many bytes in addition. Raises RtsegError where it asks for more.

    For libraries that take what a file asks for. Linux alone holds to it; elsewhere the block just runs.
    """
    CEILING.enter(most)
    try:
        yield
    except MemoryError:
        refuse(path, f"asks for more than {amount(most)} of memory")
    finally:
        CEILING.leave()


def taken():
    """Bytes of this process that count against RLIMIT_DATA; 0 where the system does not say."""
    try:
        with open("/proc/self/status") as file:
            found = re.search(r"VmData:\s*(\d+) kB", file.read())
    except OSError:
        return 0
    return int(found[1]) << 10 if found else 0


# ---- protobuf


def refuse_heavy_messages(found, path, kind, damaged):
    """Raise RtsegError where the messages in these bytes, of that kind (a descriptor), are too many or too deep, or end where they do not.

    Protobuf takes some hundred bytes for a message of two. Its wire format: https://protobuf.dev/programming-guides/encoding
    """
    inside, at, count, numbers = [(len(found), kind)], 0, 0, 0
    try:
        while inside:
            end, kind = inside[-1]
            if at == end:
                inside.pop()
                continue
            key, at = varint(found, at)
            size, at = {0: after_varint, 1: fixed64, 2: varint, 5: fixed32}.get(key & 7, tag)(found, at)
            field = fields(kind).get(key >> 3)
            count, numbers = count + 1, numbers + size * (field == "numbers")
            if at + size > end:
                refuse(path, *damaged)
            if field == "text":
                found[at:at + size].decode()
            if key & 7 == 2 and field not in (None, "numbers", "text"):
                inside.append((at + size, field))
            else:
                at += size
            if count > ONNX_FIELDS or numbers > ONNX_NUMBERS or len(inside) > ONNX_DEPTH:
                refuse(path, f"has more than {ONNX_FIELDS:,} parts or {ONNX_NUMBERS:,} bytes of whole numbers, or is nested more than {ONNX_DEPTH} deep")
    except (IndexError, UnicodeDecodeError):
        refuse(path, *damaged)


@cache
def fields(kind):
    """Number -> the descriptor of a field's messages, "text", or "numbers" where whole ones lie there packed."""
    plain = {number: "text" if field.type == STRING else "numbers" for number, field in kind.fields_by_number.items() if field.type in (STRING, *VARINTS)}
    return plain | {number: field.message_type for number, field in kind.fields_by_number.items() if field.message_type}


STRING, VARINTS = 9, (3, 4, 5, 8, 13, 14, 17, 18)      # int64, uint64, int32, bool, uint32, enum, sint32, sint64: FieldDescriptor.Type


def varint(found, at):
    """(number, where it ends)."""
    value = shift = 0
    while True:
        byte = found[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128 or shift > 63:
            return value, at


def after_varint(found, at):
    return 0, varint(found, at)[1]


def fixed64(found, at):
    return 8, at


def fixed32(found, at):
    return 4, at


def tag(found, at):
    """Of groups, which ONNX has none of."""
    return 0, at


# ---- TOML


PARTS = re.compile(rb"(?<![\w\"'.-])(?:[\w\"'-]+\s*\.\s*){%d}" % PLAN_PARTS)


def light_toml(path):
    """The text of a plan. Raises RtsegError for what Python's reader of TOML takes minutes for: keys of many parts."""
    found = data(path, PLAN_BYTES)
    if PARTS.search(found):
        refuse(path, f"has a key of more than {PLAN_PARTS} parts", "engines/README.md says how a plan looks")
    return found.decode()


# ---- JSON


def light_json(found, path):
    """The text of JSON in these bytes. Raises RtsegError where its value would take too much memory, is nested too deeply, or holds what is no text."""
    text = len(found) * (1 if found.isascii() else 4)
    copies = len(found) * (2 if b"\\" in found else 0)      # without what is escaped
    if max(len(found) + max(text, copies), text + sum(found.count(mark) * size for mark, size in JSON_TAKES.items())) > MEMORY:
        refuse(path, f"would take more than {amount(MEMORY)} of memory")
    plain = found.replace(rb"\\", b"__")
    if depth(plain.replace(rb"\"", b"__"), JSON_DEPTH) > JSON_DEPTH:
        refuse(path, f"is nested more than {JSON_DEPTH} deep")
    if (b"\\ud" in plain or b"\\uD" in plain) and HALF.search(plain):
        refuse(path, "holds text that is none: half of a letter")
    return found.decode()


# no group that repeats is in these: Python's re takes up to 120 bytes for each time
QUOTED, NEITHER = re.compile(rb'"[^"]*"'), bytes(set(range(256)) - set(b'"[]{}'))
# half of a letter beyond 16 bits: no such text can be written to a file or a terminal
HALF = re.compile(rb"\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]", re.DOTALL)


def depth(found, most):
    """How deep brackets are nested outside of quotes, of which none is escaped, counted no further than one more than `most`."""
    deepest = here = 0
    for bracket in QUOTED.sub(b"", found.translate(None, NEITHER)):
        here += 1 if bracket in b"[{" else -1 if bracket in b"]}" else 0
        deepest = max(deepest, here)
        if deepest > most:
            break
    return deepest


def whole(digits):
    """The number that JSON writes so. Raises ValueError for one that no clock, size or count has."""
    if len(digits) > JSON_DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)
