"""A worker: what TensorRT-RTX's own parser says of an ONNX file. In a process of its own, because native code can end it.

    python parser.py job.json result.json
"""
import json
import sys


def ask(path):
    """{"version", "takes", "errors": [{"node", "operator", "reason"}]}"""
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)  # neither may go before the parser does
    parser = trt.OnnxParser(network, logger)
    with open(path, "rb") as file:
        takes = parser.supports_model_v2(file.read(), path)
    errors = [parser.get_error(number) for number in range(parser.num_errors)]
    rows = [{"node": error.node_name(), "operator": error.node_operator(), "reason": first_line(error.desc())} for error in errors]
    return {"version": trt.__version__, "takes": takes, "errors": [row for number, row in enumerate(rows) if row not in rows[:number]]}


def first_line(text):
    """What follows the name of the node, which is beside it already."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("Invalid Node")]
    return (lines or ["no reason was given"])[0][:300]


if __name__ == "__main__":
    with open(sys.argv[1]) as request:
        job = json.load(request)
    answer = {"ok": True, **ask(job["model"])}
    with open(sys.argv[2], "w") as result:
        json.dump(answer, result)
