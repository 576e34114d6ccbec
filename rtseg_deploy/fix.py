"""An ONNX file -> one that a target's parser takes, proven by ONNX Runtime to give what the file gives; its sidecar goes with it."""
from dataclasses import replace

import numpy as np
from onnx import helper

from . import check, facts, files, graphs, locks, proof, repairs
from .errors import RtsegError, first_line
from .original import RUNTIME_ERRORS
from .records import read_artifact, sidecar, write_model
from .remarks import bindings, versions, weights_bytes

DRAWS = 3                           # of random inputs, for a file without a sidecar


@locks.writes
def fix(source, path, targets, parser="", tell=lambda step, done: None):
    """Write what `source` becomes for targets by name; returns ([Verdict] of it, [what was done and what was not]).

    With a sidecar it is proven on the pictures that its export was, else on noise. Raises RtsegError, with nothing written, where the
    result is not the same network. What no repair reaches is in the verdicts.
    """
    before = check.read(source)
    graphs.refuse_vast(before, source)
    artifact = read_artifact(source) if sidecar(source).is_file() else None
    if artifact and artifact.kind != "onnx":
        raise RtsegError(f"{source} is an engine, and an ONNX file is rewritten", "name the file that it was built from")
    tell("rewriting", 0.1)
    after, rows = before, []
    for target in map(facts.target, targets):
        after, done = repairs.repaired(after, check.parser_for(target, parser), target.compute_capability, without=untouched(artifact))
        rows += [row for row in done if row not in rows]
    tell("proving it against the file", 0.4)
    try:
        parity = prove_artifact(before, after, artifact, source) if artifact else prove(before, after, source)
    except RUNTIME_ERRORS as error:
        raise RtsegError(f"ONNX Runtime cannot run {source}, so nothing can be proven: {first_line(error)}", "check without --fix") from None
    tell("checking it", 0.8)
    verdicts = check.check(after, targets, parser)
    if artifact:
        write_model(path, after, described(artifact, before, after, parity, rows))
    else:
        files.write(path, after.SerializeToString())
    return verdicts, rows


def untouched(artifact):
    """A sidecar has no name for float pixels from 0 to 255, so an artifact that takes uint8 goes on to."""
    return ("float_input",) if artifact else ()


def described(artifact, before, after, parity, rows):
    """The sidecar: of the same network, from the same checkpoint, as it is now."""
    old = check.old_parser_warnings(before)
    return replace(artifact, opset=graphs.opset_of(after), weights_bytes=weights_bytes(after), versions={**artifact.versions, **versions()},
                   checks={**artifact.checks, "parity": parity, "tensors": bindings(after), "repairs": {"of": artifact.sha256, "rows": rows}},
                   warnings=tuple(line for line in artifact.warnings if line not in old) + check.old_parser_warnings(after))


def prove_artifact(before, after, artifact, source):
    """The parity report against the artifact's own logits, or its old one where labels alone can be compared. Raises RtsegError where they depart."""
    if artifact.output == "labels" and proof.argmax(before) is None:
        prove(before, after, source)
        return artifact.checks["parity"]
    logits = proof.logits(before)
    inputs = proof.pictures(artifact.resolution, artifact.normalisation, artifact.input)
    parity = proof.against(after, lambda picture: logits(picture.fed), inputs, artifact.precision)
    if not parity["ok"]:
        proof.refuse(parity, "the rewritten graph is not the network in the file")
    return parity


def prove(before, after, source):
    """Every output of a file on noise, each to the bar of FP32. Raises RtsegError where one departs, or where a size is free."""
    most, least = proof.BARS["fp32"]
    one, other = proof.session(before), proof.session(after)
    kinds = {value.name: helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type) for value in after.graph.input}
    for seed in range(DRAWS):
        fed = drawn(before, seed, source)
        pairs = zip(one.run(None, fed), other.run(None, {name: array.astype(kinds[name]) for name, array in fed.items()}), before.graph.output)
        for wanted, found, value in pairs:
            same = wanted.shape == found.shape and (close(wanted, found, most) if wanted.dtype.kind == "f" else (wanted == found).mean() >= least)
            if not same:
                raise RtsegError(f"the rewritten graph is not the one in {source}: {value.name} departs", "nothing was written; please report it")
    return {"ok": True, "bar": [most, least], "draws": DRAWS}


def close(wanted, found, most):
    wanted, found = wanted.astype(np.float64), found.astype(np.float64)
    scale = wanted.std() or np.abs(wanted).max(initial=0) or 1.0
    return bool(np.abs(wanted - found).max(initial=0) <= most * scale)  # a number that is not finite is not close


def drawn(model, seed, source):
    """Noise for every input of a model. Raises RtsegError where a side is free."""
    rng, seen, fed = np.random.default_rng(seed), graphs.view(model), {}
    for value in seen.inputs:
        sides, kind = seen.shapes[value.name], helper.tensor_dtype_to_np_dtype(seen.kinds[value.name])
        if sides is None or None in sides:
            raise RtsegError(f"{source}: a side of {value.name} is free, so nothing can be proven", "fix its size first: rtseg-deploy adopt --resolution HxW")
        noise = rng.standard_normal(sides) if kind.kind == "f" else rng.integers(0, 256 if kind == np.uint8 else 2, sides)
        fed[value.name] = noise.astype(kind)
    return fed
