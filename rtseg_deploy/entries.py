"""A result file of `bench` or `eval` -> one row: what it is of, where and when, and its figure."""
import re

from . import backends, files, results
from .errors import RtsegError
from .records import FORMAT, PRECISIONS, has, size

ACCURACY = "accuracy"
AGAIN = "evaluate it again with rtseg-deploy eval"
WHOLE = {"artifact": {"model": str, "precision": str, "resolution": list}, "file": str, "backend": str, "notes": list, "stages": dict,
         "data": {"name": str, "split": str, "pictures": int, "digest": str}, "scores": {"iou": dict, "boundary": dict, "pixels": int}}
FRACTIONS = ("miou", "miou_all", "pixel_accuracy", "boundary_f")
SHORT = 10                          # letters of its sha256 that a result is called by
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"


def entry(path):
    """The columns that archive.py keeps. Raises RtsegError where the file is no result, or is damaged."""
    value, digest = files.read_json(path), files.sha256(path)
    if value.get("kind") == ACCURACY:
        value = sound(path, value)
        environment, found = value.get("environment") or {}, of_accuracy(value)
    elif value.get("kind") != results.KIND:
        raise RtsegError(f"{path} is no result")
    else:
        result = results.sound(path, value, digest)
        environment, found = result.runs[0]["environment"], of_figure(result)
    when = str(environment.get("time"))
    return {**dict.fromkeys(("protocol", "status", "figure", "data", "conditions"), ""),
            **dict.fromkeys(("fps", "fps_low", "fps_high", "ms", "miou", "iterations", "processes")), **found, "id": digest[:SHORT], "sha256": digest,
            "kind": value["kind"], "network": value["artifact"]["model"],
            "precision": backends.computes(value["artifact"]["precision"], value["backend"]), "input": value["artifact"].get("input", ""),
            "output": value["artifact"].get("output", ""), "backend": value["backend"], "time": when if re.fullmatch(TIME, when, re.ASCII) else ""}


def of_figure(result):
    from . import compare  # with it comes numpy, which takes as long as to show a result

    value, statistics = result.value, result.statistics
    return {"resolution": size(result.resolution), "protocol": value["protocol"], "device": result.machine, "status": value["status"],
            "figure": value["figure"], "configuration": known_by(compare.configuration(value)),
            "conditions": known_by(compare.conditions(value)), "fps": statistics["fps"], "fps_low": statistics.get("fps_low"),
            "fps_high": statistics.get("fps_high"), "ms": result.ms, "iterations": len(result.runs[0]["seconds"]), "processes": len(result.runs)}


def of_accuracy(value):
    artifact, data = value["artifact"], value["data"]
    what = [artifact["model"], artifact["resolution"], artifact["precision"], value["backend"], data["digest"]]
    device = results.machine(value.get("environment") or {}, backends.on_gpu(value["backend"]))
    return {"resolution": size(artifact["resolution"]), "device": device, "configuration": known_by(what), "miou": value["scores"]["miou"],
            "data": f"{data['name']} {data['split']}, {data['pictures']} pictures"}


def known_by(value):
    return files.key(value)[:16]


# ---- a result of eval


def sound(path, value):
    """The value of a result of eval. Raises RtsegError where it is none."""
    if value.get("format") != FORMAT:
        raise RtsegError(f"{path} is of format {value.get('format')}, and this version reads {FORMAT}", AGAIN)
    if not whole(value):
        raise RtsegError(f"{path} is damaged", AGAIN)
    return value


def whole(value):
    """Whether it holds what is shown of it."""
    if not has(value, WHOLE) or not isinstance(value.get("environment"), (dict, type(None))):
        return False
    scores = value["scores"]
    parts = [*(scores.get(name, "") for name in FRACTIONS), *scores["iou"].values(), *scores["boundary"].values(), value.get("waited_share", "")]
    return (results.whole_size(value["artifact"]["resolution"]) and value["artifact"]["precision"] in PRECISIONS
            and scores["iou"].keys() == scores["boundary"].keys() and all(part is None or results.number(part) and 0 <= part <= 1 for part in parts)
            and all(map(results.number, [scores["pixels"], value["data"]["pictures"], value.get("memory_bytes") or 0, *value["stages"].values()]))
            and "memory_bytes" in value and all(isinstance(note, str) for note in value["notes"]))
