"""FP32 graph -> the same graph with Q/DQ pairs: what is computed in INT8, and with which scales.

onnxruntime.quantization writes them, because it runs beside the onnx and onnxruntime that everything else here needs. NVIDIA's ModelOpt 0.47
holds onnx to 1.21 and onnxruntime-gpu to 1.24, wants CuPy, quantises through the same code, and left SGCPNet 51.5 % mIoU of 54.4.

Where pairs are decides both accuracy and speed (docs/int8.md):
  tensorrt     before the input and the weights of a convolution, nothing after it: activations have one scale, zero point 0; biases stay float
  onnxruntime  around convolutions and what moves between them, uint8 with a zero point, for its CPU kernels multiply uint8 by int8, and a ReLU
               is what uint8 cannot hold; without a pair behind a convolution ONNX Runtime leaves it in FP32
Convolutions of a map of one pixel, the gates of attention, are never quantised: there is nothing to gain, and they cost most of the accuracy.
"""
import contextlib
import io
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from . import files, graphs, passes, proof
from .errors import RtsegError, need

METHODS = ("percentile", "minmax", "entropy")
PERCENTILE = 99.99                  # of magnitudes: see docs/int8.md for others
BINS = 2048                         # of the histogram that it is found in


@dataclass(frozen=True)
class Form:
    """What a runtime wants of a Q/DQ graph."""
    operators: tuple                # that get pairs
    activations: str                # a name of onnxruntime.quantization's QuantType
    options: dict                   # of its QDQQuantizer

    @property
    def symmetric(self):
        return self.options["ActivationSymmetric"]


FORMS = {"tensorrt": Form(("Conv",), "QInt8", {"ActivationSymmetric": True, "QuantizeBias": False, "OpTypesToExcludeOutputQuantization": ["Conv"]}),
         "onnxruntime": Form(("Conv", "Relu", "MaxPool", "Concat", "Add"), "QUInt8", {"ActivationSymmetric": False})}


def quantised(model, feeds, method="percentile", kept=(), form="tensorrt"):
    """A copy of an FP32 model with Q/DQ pairs. Tensors that survive keep their names.

    feeds: inputs as the graph takes them, an iterable that is gone through once. kept: names of convolutions that stay in FP32. form: a name of FORMS.
    """
    return paired(model, measured(model, feeds, method, form), kept, form)


def measured(model, feeds, method="percentile", form="tensorrt", every=False):
    """The range of each tensor that may get a pair, or of `every` tensor, as onnxruntime.quantization's TensorsData. One input is held at a time."""
    calibration = need("onnxruntime.quantization.calibrate")
    chosen = {"minmax": ("MinMax", {}), "entropy": ("Entropy", {}), "percentile": ("Percentile", {"percentile": PERCENTILE, "num_bins": BINS})}
    if method not in chosen:
        raise RtsegError(f"no way to find ranges is called {method!r}", f"the known ones: {', '.join(METHODS)}")
    kind, options = chosen[method]
    with files.scratch() as folder, quiet():
        path = Path(folder, "model.onnx")
        onnx.save(onnx.shape_inference.infer_shapes(model), path)
        calibrator = calibration.create_calibrator(
            path, None if every else list(FORMS[form].operators), str(Path(folder, "augmented.onnx")), calibration.CalibrationMethod[kind],
            extra_options={"symmetric": every or FORMS[form].symmetric, **options})
        for fed in feeds:           # each by itself, or it would keep the tensors of all
            calibrator.collect_data(one_of(calibration, fed))
        return calibrator.compute_data()


def one_of(calibration, fed):
    """A reader of one input, as the calibrator wants it."""
    rows = iter([{"input": fed}])
    return type("One", (calibration.CalibrationDataReader,), {"get_next": lambda self: next(rows, None)})()


@contextlib.contextmanager
def quiet():
    """onnxruntime.quantization prints to stdout how far it is, and logs advice that does not hold here."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def paired(model, data, kept=(), form="tensorrt"):
    """A copy of the model with pairs by ranges that were measured. Raises RtsegError for a name in `kept` that is no convolution's."""
    quantization = need("onnxruntime.quantization")
    known = [node.name for node in model.graph.node if node.op_type == "Conv"]
    if unknown := [name for name in kept if name not in known]:
        raise RtsegError(f"the network has no convolution called {unknown[0]}", f"its names: {', '.join(known[:3])}, …")
    copy, rules = onnx.ModelProto(), FORMS[form]
    copy.CopyFrom(onnx.shape_inference.infer_shapes(model))
    with quiet():
        writer = quantization.QDQQuantizer(
            copy, per_channel=True, reduce_range=False, weight_qType=quantization.QuantType.QInt8, activation_qType=quantization.QuantType[rules.activations],
            tensors_range=data, nodes_to_quantize=[], nodes_to_exclude=[*kept, *of_one_pixel(model)], op_types_to_quantize=list(rules.operators),
            extra_options={"WeightSymmetric": True, **rules.options})
        writer.quantize_model()
        writer.model.topological_sort()     # it appends the pairs at the end
    return passes.checked(writer.model.model)


def of_one_pixel(model):
    """Names of nodes whose result is a map of one pixel."""
    shapes = graphs.view(model).shapes
    return [node.name for node in model.graph.node if (shapes.get(node.output[0]) or [])[2:] == [1, 1]]


def layers(model):
    """Names of the convolutions that can be in INT8, in their order."""
    small, stored = set(of_one_pixel(model)), {tensor.name for tensor in model.graph.initializer}
    return [node.name for node in model.graph.node if node.op_type == "Conv" and node.name not in small and node.input[1] in stored]


def ends(model):
    """Names of the first and the last of layers(): of those with none of them before, and of those with none behind."""
    chosen, names = {}, layers(model)

    def spread(nodes, reads, gives):
        reached = set()             # tensors with a layer on the way
        for node in nodes:
            behind = bool(reached & set(reads(node)))
            if node.name in names and not behind:
                chosen[node.name] = None
            if behind or node.name in names:
                reached.update(gives(node))

    spread(model.graph.node, lambda node: node.input, lambda node: node.output)
    spread(reversed(model.graph.node), lambda node: node.output, lambda node: node.input)
    return [name for name in names if name in chosen]


def in_int8(model):
    """Names of the convolutions of a Q/DQ graph whose input and weights come from pairs."""
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    return [node.name for node in model.graph.node if node.op_type == "Conv" and {makers.get(name) for name in node.input[:2]} == {"DequantizeLinear"}]


def peaks(data):
    """Tensor -> the largest magnitude that its range holds; by name, for the order of the calibrator changes from run to run."""
    return {name: float(np.abs(np.asarray(tensor.range_value, np.float64)).max()) for name, tensor in sorted(data.items())}


def beyond(model, data, fed):
    """How far an input goes beyond the ranges: the median over the tensors of its largest magnitude by theirs. 1 where ranges hold it."""
    held = peaks(data)
    names = [name for name, peak in held.items() if name != "input"]
    found = proof.session(proof.with_outputs(model, names)).run(None, {"input": fed})
    return float(np.median([np.abs(values).max() / max(held[name], 1e-12) for name, values in zip(names, found)]))
