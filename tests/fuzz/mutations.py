"""A valid file -> one that is nearly valid: changed in its structure, which random bytes never reach, or in its bytes.

Each takes the bytes and something like random.Random: hypothesis' own, which it can shrink, or one that atheris seeds.
"""
import gzip
import io
import json
import re
import struct
import tarfile
import zipfile
import zlib
from hashlib import sha256

NUMBERS = (0, 1, -1, 2, 7, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**53, 2**63, 2**64 - 1, 10**30, 10**400, -2**63, 0.5, -0.0, 1e-320,
           1e300, float("inf"), float("nan"))
TEXTS = ("", "x", "..", "../x", "/tmp/rtseg-outside", "a/b", "a\0b", "\x1b[2J", "²", "ß" * 300, "0" * 5000, "x" * 70000, "\ud800", "😀", "-1", "1e9", "null",
         "engine", "onnx", "fp16", "build", "time", "infer", "tensorrt", "input", "output", ".", "C:\\x", "%s", "{0}")
PATHS = ("../x", "/tmp/rtseg-outside", "..", "a/../../x")
OTHERS = (None, True, False, [], {}, [[]], [{}], {"": None}, [0] * 1000, [1.5, 2.5], {"a": {"b": {}}})
MOST = 1 << 20                      # bytes of an input: what grows is not the fuzzing's to find


def value(random):
    """Something that a JSON file can hold, and mostly should not."""
    return random.choice(random.choice((NUMBERS, TEXTS, OTHERS)))


def of_bytes(data, random):
    """Flipped, cut, put in, doubled, or moved."""
    found = bytearray(data)
    for _ in range(random.randrange(1, 5)):
        place = random.randrange(len(found) + 1)
        length = random.choice((1, 1, 2, 4, 8, 64, 1000))
        kind = random.randrange(7)
        if kind == 0 and place < len(found):
            found[place] ^= 1 << random.randrange(8)
        elif kind == 1:
            del found[place:place + length]
        elif kind == 2:
            found[place:place] = bytes(random.randrange(256) for _ in range(min(length, 8)))
        elif kind == 3:
            found[place:place] = found[place:place + length] * random.choice((1, 2, 50))
        elif kind == 4:
            found[place:place + 4] = struct.pack(random.choice(("<I", ">I")), random.choice(NUMBERS[:13]) & 0xFFFFFFFF)
        elif kind == 5:
            found[place:place + 1] = bytes([random.choice((0, 1, 127, 128, 255))])
        else:
            del found[place:]
    return bytes(found)[:MOST]


# ---- JSON


def of_json(data, random):
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return of_bytes(data, random)
    if random.randrange(8) == 0:
        return of_bytes(data, random)
    try:
        for _ in range(random.randrange(1, 4)):
            found = changed(found, random)
        return json.dumps(found).encode()[:MOST]
    except RecursionError:          # nested by several turns
        return data


def changed(found, random):
    """The value with one place in it changed, each as likely."""
    return put(found, random.choice(list(places(found))), random)


def places(found, at=()):
    """The way to every value within a value, and to itself."""
    yield at
    for key in found if isinstance(found, dict) else range(min(len(found), 20)) if isinstance(found, list) else ():
        yield from places(found[key], (*at, key))


def put(found, at, random):
    if not at:
        return other(found, random)
    inner = put(found[at[0]], at[1:], random)
    return {**found, at[0]: inner} if isinstance(found, dict) else [*found[:at[0]], inner, *found[at[0] + 1:]]


def other(found, random):
    """A value in place of this one: of its kind, of any, or with something left out, doubled or renamed."""
    if isinstance(found, (dict, list)) and found and random.randrange(3):
        keys = sorted(found) if isinstance(found, dict) else range(len(found))
        key = random.choice(keys)
        rest = {one: found[one] for one in keys if one != key} if isinstance(found, dict) else [found[one] for one in keys if one != key]
        kind = random.randrange(3)
        if kind == 0:
            return rest
        if isinstance(found, dict):
            return {**(rest if kind == 1 else found), random.choice((*TEXTS[:8], *keys)): found[key]}
        return [*found, found[key]] * kind
    if isinstance(found, (int, float, str)) and random.randrange(2):
        return random.choice(random.choice((TEXTS, PATHS)) if isinstance(found, str) else NUMBERS)
    return random.choice((value(random), value(random), [found], {"x": found}, nested(found, random)))


def nested(found, random):
    for _ in range(random.choice((3, 40, 500))):
        found = [found]
    return found


def of_lines(data, random):
    """Of a text: cells, lines and words."""
    if random.randrange(4) == 0:
        return of_bytes(data, random)
    text = data.decode(errors="replace")
    for _ in range(random.randrange(1, 4)):
        parts = re.split(r"(\n|[^\w.\-/]+)", text)
        place = random.randrange(len(parts))
        kind = random.randrange(4)
        said = value(random)
        new = str(said) if random.randrange(2) else json.dumps(said)
        parts[place:place + (kind != 1)] = [] if kind == 0 else [parts[random.randrange(len(parts))]] if kind == 2 else [new]
        text = "".join(parts)
    return text.encode(errors="surrogatepass")[:MOST]


# ---- protobuf: [(number, wire type, value)], messages by trial


def fields(data):
    """The fields of a message; None where these bytes are none."""
    found, at = [], 0
    while at < len(data):
        key, at = varint(data, at)
        kind = None if key is None else key & 7
        if kind == 0:
            said, at = varint(data, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
            said, at = data[at:at + length], at + length
        elif kind == 2:
            length, at = varint(data, at)
            said, at = (None, at) if length is None else (data[at:at + length], at + length)
        else:
            return None
        if said is None or at > len(data) or key < 8:
            return None
        found.append((key >> 3, kind, said))
    return found


def varint(data, at):
    value, shift = 0, 0
    while at < len(data) and shift < 70:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at
    return None, at


def written(number):
    number &= (1 << 64) - 1
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def message(found):
    return b"".join(written(number << 3 | kind) + (written(said) if kind == 0 else written(len(said)) + said if kind == 2 else said)
                    for number, kind, said in found)


def of_protobuf(data, random, depth=0):
    found = fields(data)
    if not found or depth == 0 and random.randrange(8) == 0:
        return of_bytes(data, random)
    for _ in range(random.randrange(1, 3) if depth == 0 else 1):
        place = random.randrange(len(found))
        number, kind, said = found[place]
        inner = isinstance(said, bytes) and kind == 2 and len(said) < 1 << 16 and fields(said)
        if inner and random.randrange(5):
            found[place] = (number, kind, of_protobuf(said, random, depth + 1))
            continue
        change = random.randrange(6)
        if change == 0:
            del found[place:place + 1]
        elif change == 1:
            found[place:place] = [found[place]] * random.choice((1, 2, 300))
        elif change == 2:
            found[place] = (number, *found[random.randrange(len(found))][1:])
        elif change == 3:
            found[place] = (random.randrange(1, 16), kind, said)
        elif kind == 0:
            found[place] = (number, kind, int(random.choice(NUMBERS[:16])))
        elif kind == 2:
            found[place] = (number, kind, random.choice((random.choice(TEXTS).encode(errors="surrogatepass"), written(random.choice(NUMBERS[:16])), b"",
                                                         found[random.randrange(len(found))][2] if found[place][1] == 2 else b"", of_bytes(said, random))))
        found = [one for one in found if isinstance(one[2], bytes) or one[1] == 0] or [(1, 0, 1)]
        found = [one if one[1] == 0 or isinstance(one[2], bytes) else (one[0], 0, 0) for one in found]
        found = [(n, k, s) if (k == 0) == isinstance(s, int) else (n, 0, 0) for n, k, s in found]
    return message(found)[:MOST]


# ---- what is packed


def of_checkpoint(data, random):
    if data[8:10] == b'{"':
        return of_safetensors(data, random)
    if not data.startswith(b"PK") or random.randrange(6) == 0:
        return of_pickle(data, random)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = [(name, archive.read(name)) for name in archive.namelist()]
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, OSError, ValueError, EOFError, struct.error, UnicodeDecodeError):
        return of_bytes(data, random)
    if not parts:
        return of_bytes(data, random)
    pickled = [place for place, (name, _) in enumerate(parts) if name.endswith("data.pkl")]
    place = pickled[0] if pickled and random.randrange(4) else random.randrange(len(parts))
    name, inner = parts[place]
    kind = random.randrange(10)
    if kind == 0:
        parts[place] = (random.choice((*TEXTS[1:12], parts[random.randrange(len(parts))][0])), inner)
    elif kind == 1:
        del parts[place]
    else:
        parts[place] = (name, of_pickle(inner, random) if place in pickled else of_bytes(inner, random))
    return zipped(parts, zipfile.ZIP_DEFLATED if random.randrange(6) == 0 else zipfile.ZIP_STORED)


def zipped(parts, how=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", how) as archive:
        for name, inner in parts:
            entry = zipfile.ZipInfo(name.encode(errors="replace").decode()[:60000])
            entry.compress_type = how
            archive.writestr(entry, inner)
    return buffer.getvalue()[:MOST]


GLOBALS = (b"numpy.core.multiarray\nscalar", b"numpy\ndtype", b"numpy\nndarray", b"numpy.core.multiarray\n_reconstruct", b"torch._utils\n_rebuild_tensor_v2",
           b"torch._utils\n_rebuild_parameter", b"torch._utils\n_rebuild_qtensor", b"torch._utils\n_rebuild_sparse_tensor", b"collections\nOrderedDict",
           b"collections\nCounter", b"torch\nFloatStorage", b"torch\nHalfStorage", b"torch.storage\nUntypedStorage", b"torch\nSize", b"torch\nTensor",
           b"builtins\nbytearray", b"_codecs\nencode", b"builtins\nset", b"posix\nsystem", b"argparse\nNamespace", b"torch\ndevice", b"torch\nfloat16",
           b"torch._utils\n_rebuild_meta_tensor_no_storage", b"torch._tensor\n_rebuild_from_type_v2", b"torch._utils\n_rebuild_wrapper_subclass",
           b"torch.nn.parameter\nParameter")


def of_pickle(data, random):
    """Numbers, names of what is called, and the order of things."""
    kind = random.randrange(5)
    if kind == 0:
        return of_bytes(data, random)
    if kind == 1:
        spots = [match.span() for match in re.finditer(rb"(?<=c)[\w.]{1,60}\n\w{1,40}(?=\n)", data)]
        new = random.choice(GLOBALS)
    elif kind == 2:
        spots = [match.span() for match in re.finditer(rb"K.|M..|J....", data, re.DOTALL)]
        new = b"J" + struct.pack("<i", random.choice((0, 1, -1, 2**31 - 1, -2**31, 1000, 65536)))
    elif kind == 3:
        spots = [match.span() for match in re.finditer(rb"X....", data, re.DOTALL)]
        new = b"X" + struct.pack("<I", random.choice((0, 1, 5, 2**31, 2**32 - 1)))
    else:
        spots = [match.span() for match in re.finditer(rb"[tRbsue0-2QN()}]", data)]
        new = random.choice((b"t", b"R", b"b", b"s", b"u", b"e", b"0", b"Q", b"N", b"(", b")", b"}", b"]", b"\x85", b"\x81", b"."))
    if not spots:
        return of_bytes(data, random)
    begin, end = random.choice(spots)
    return data[:begin] + new + data[end:]


def of_safetensors(data, random):
    length = int.from_bytes(data[:8], "little")
    if length > len(data) or random.randrange(6) == 0:
        return of_bytes(data, random)
    header = of_json(data[8:8 + length], random)
    return (len(header).to_bytes(8, "little") + header + data[8 + length:])[:MOST]


def of_png(data, random):
    """Chunks with right sums: only what is wrong in them is to be seen."""
    if not data.startswith(b"\x89PNG") or random.randrange(6) == 0:
        return of_bytes(data, random)
    chunks, at = [], 8
    while at + 12 <= len(data):
        length, = struct.unpack(">I", data[at:at + 4])
        chunks.append((data[at + 4:at + 8], data[at + 8:at + 8 + length]))
        at += 12 + length
    if not chunks:
        return of_bytes(data, random)
    place = random.randrange(len(chunks))
    name, inner = chunks[place]
    kind = random.randrange(7)
    if kind == 0:
        del chunks[place]
    elif kind == 1:
        chunks[place:place] = [chunks[random.randrange(len(chunks))]] * random.choice((1, 200))
    elif kind == 2 and name == b"IHDR" and len(inner) >= 13:
        sides = [random.choice((0, 1, 3, 8, 9, 4096, 16384, 2**31 - 1, 2**32 - 1)) for _ in range(2)]
        chunks[place] = (name, struct.pack(">II", *sides) + inner[8:])
    elif kind == 3 and name == b"IHDR" and len(inner) >= 13:
        chunks[place] = (name, inner[:8] + bytes(random.choice((0, 1, 2, 3, 4, 6, 8, 16)) for _ in range(5)))
    elif kind == 4:
        extra = random.choice((b"tRNS", b"PLTE", b"eXIf", b"iCCP", b"zTXt", b"acTL", b"fcTL", b"tEXt", b"iTXt", b"gAMA"))
        chunks[place:place] = [(extra, random.choice((b"", b"\0", b"Exif\0\0MM\0*", bytes(768), b"a\0\0" + zlib.compress(bytes(1 << 20)), inner)))]
    elif kind == 5 and name == b"IDAT":
        chunks[place] = (name, zlib.compress(of_bytes(bytes(random.choice((10, 1000, 1 << 20))), random)))
    else:
        chunks[place] = (name, of_bytes(inner, random))
    return (data[:8] + b"".join(struct.pack(">I", len(inner)) + name + inner + struct.pack(">I", zlib.crc32(name + inner)) for name, inner in chunks))[:MOST]


def of_archive(data, random):
    """Members with right sums, mostly."""
    parts = members(data)
    if not parts or random.randrange(8) == 0:
        return of_bytes(data, random)
    names = [name for name in sorted(parts) if name != "SHA256SUMS"]
    if not names:
        return of_bytes(data, random)
    name = random.choice([one for one in names if one.endswith(".json")] if random.randrange(2) else names) if any(
        one.endswith(".json") for one in names) else random.choice(names)
    kind = random.randrange(8)
    if kind == 0:
        parts[random.choice(TEXTS[1:8])] = parts.pop(name)
    elif kind == 1:
        del parts[name]
    else:
        parts[name] = (of_json if name.endswith(".json") else of_lines if name.endswith("l") else of_bytes)(parts[name], random)
    return archive(parts, link=name if random.randrange(10) == 0 else None)


def members(data):
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as packed:
            return {one.name: packed.extractfile(one).read() for one in packed if one.isreg() and one.size < MOST}
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError):
        return {}


def archive(parts, link=None):
    """A results.tar.gz of these files, with their sums; `link`: one that is a symbolic link instead."""
    parts = {name: inner for name, inner in parts.items() if name != "SHA256SUMS"}
    sums = "".join(f"{sha256(inner).hexdigest()}  {name}\n" for name, inner in sorted(parts.items()))
    parts["SHA256SUMS"] = sums.encode(errors="surrogatepass")
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, inner in sorted(parts.items()):
            entry = tarfile.TarInfo(name.replace("\0", "?").encode(errors="replace").decode())
            entry.size = len(inner)
            if name == link:
                entry.type, entry.linkname, entry.size = tarfile.SYMTYPE, "../outside", 0
            tar.addfile(entry, io.BytesIO(inner))
    return buffer.getvalue()[:MOST]
