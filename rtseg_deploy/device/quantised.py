"""INT8 in TensorRT: the scales from a table, and how many layers compute in it. Python 3.6, beside runner.py, with the jobs that ask for INT8.

With a table the calibrator has no image. TensorRT takes a table only where its first line names its own version and algorithm, so that line
is written here.
"""
import json
import re


def set_table(trt, config, path):
    """Make a builder's settings read the table at `path` instead of calibrating; returns what must be held until the engine is built."""
    digits = [int(part) for part in re.findall(r"\d+", trt.__version__)[:3]]
    # 8.6.1 calls itself 8601, and 10.13.3 calls itself 101303
    number = digits[0] * (1000 if digits[0] < 10 else 10000) + digits[1] * 100 + digits[2]
    with open(path) as file:
        lines = file.read().splitlines()[1:]
    table = "\n".join(["TRT-%d-EntropyCalibration2" % number] + lines + [""]).encode()
    base = trt.IInt8EntropyCalibrator2

    class FromTable(base):
        def __init__(self):
            base.__init__(self)     # by name: the bindings know no super()

        def get_batch_size(self):
            return 1

        def get_batch(self, names):
            return None             # no image: where the table is not taken the build fails, and does not calibrate with nothing

        def read_calibration_cache(self):
            return table

        def write_calibration_cache(self, cache):
            pass

    scales = FromTable()
    config.int8_calibrator = scales
    return scales


def counted(trt, network, engine, layers, refuse):
    """What is known of the layers, with how many compute in INT8: of the engine, where the builder was free to choose, or of the network. None is refused."""
    found, converters = (of_engine(trt, engine), ()) if engine else of_network(trt, network)
    refuse(not found, "INT8 was asked for, and no layer of the engine computes in INT8", "give it an INT8 graph or a table: rtseg-deploy calibrate")
    single = [name for name in layers["fp32_names"] if name not in set(found).union(converters)]
    return dict(layers, fp32=len(single), fp32_names=single, int8=len(found))


def of_engine(trt, engine):
    """Names of the layers that read INT8, by the inspector; not those that only convert it."""
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    rows = [row for row in json.loads(text)["Layers"] if isinstance(row, dict) and row.get("LayerType") != "Reformat"]
    return [row["Name"] for row in rows if any(re.search(r"\bint8", read.get("Format/Datatype", ""), re.IGNORECASE) for read in row.get("Inputs", []))]


def of_network(trt, network):
    """Names of the layers whose image and weights are both dequantised: in a strongly typed network those compute in INT8. And of those that convert."""
    layers = [network.get_layer(number) for number in range(network.num_layers)]
    exact = {layer.get_output(0).name for layer in layers if layer.type == trt.LayerType.DEQUANTIZE}
    found = [layer.name for layer in layers if layer.num_inputs > 1 and {layer.get_input(0).name, layer.get_input(1).name} <= exact]
    return found, [layer.name for layer in layers if layer.type in (trt.LayerType.QUANTIZE, trt.LayerType.DEQUANTIZE)]
