"""The processes that peers.py times, one for each contender:  python contenders.py given.json

A contender takes an H x W x 3 uint8 frame in host memory to its H x W uint8 labels there. It has the ways in which it can begin: names of how the frame is
normalised, and, of a peer, "tensor": the network's own input lies there already, and nothing is normalised. Ours goes through the stages of
`bench --protocol end-to-end`; what the peers do is what their documentation shows, with nothing of this project in it.

Answers are lines of JSON: {"ready": true} when the first labels are there, then one for each line that is asked. Whoever asks ends it by closing its input.
"""
import ctypes
import gc
import json
import os
import resource
import signal
import sys
import time
from functools import cache, partial

import numpy as np

from rtseg_deploy.device import runner
from rtseg_deploy.device.turns import PARENT_ENDS

TENSOR = "tensor"


def normalisers(frame, given, target):
    """Way -> function that gives the frame normalised, 1 x 3 x H x W: in `target`, or in an array of its own."""
    centre, scale = constants(given)
    planes, centre, scale = target[0], centre[:, None, None], scale[:, None, None]

    def by_numpy():
        np.subtract(np.ascontiguousarray(frame.transpose(2, 0, 1)), centre, out=planes)     # planes of bytes first: four times as quick as one strided pass
        np.multiply(planes, scale, out=planes)
        return target

    return {"numpy": by_numpy, **by_opencv(frame, given, target)}


def constants(given):
    """(255 mean, 1 / (255 std))."""
    return (255 * np.array(given["mean"])).astype(np.float32), (1 / (255 * np.array(given["std"]))).astype(np.float32)


def by_opencv(frame, given, target):
    try:
        import cv2
    except ImportError:
        return {}
    centre, scale = constants(given)
    tables = [(np.arange(256, dtype=np.float32) - c) * s for c, s in zip(centre, scale)]
    about = cv2.dnn.Image2BlobParams()
    about.mean, about.scalefactor = (*map(float, centre), 0.0), (*map(float, scale), 1.0)

    def by_tables():
        for plane, table, goal in zip(cv2.split(frame), tables, target[0]):
            cv2.LUT(plane, table, dst=goal)
        return target

    return {"cv2.LUT": by_tables, "cv2.dnn": partial(cv2.dnn.blobFromImageWithParams, frame, about)}


class Bound:
    """A runtime with memory bound for its input and its output; its subclasses say how."""
    own = ""                            # the way in which the runtime itself normalises

    def __init__(self, given):
        self.given, self.frame, self.open, self.kept = given, np.load(given["frame"]), cache(self.compiled), []

    def opened(self, way):
        """A step of that way."""
        if way == self.own:
            return self.bound(self.open(True), self.framed())[0]
        array = np.load(self.given["tensor"]) if way == TENSOR else np.empty((1, 3, *self.frame.shape[:2]), np.float32)
        self.kept.append(array)         # what is bound is a view of it
        run, bind = self.bound(self.open(False), array)
        if way == TENSOR:
            return run
        normalise = normalisers(self.frame, self.given, array)[way]

        def step():
            fed = normalise()
            if fed is not array:
                bind(fed)
            run()
        return step


class OnnxRuntime(Bound):
    """ONNX Runtime: all threads, input and output bound."""
    own = "graph"

    def compiled(self, pixels):
        return onnxruntime_session(self.given["pixels" if pixels else "plain"], self.given["threads"])

    def framed(self):
        return self.frame

    def bound(self, session, array):
        run, self.binding, bind = onnxruntime_bound(session, array)
        return run, bind

    def labels(self):
        return self.binding.get_outputs()[0].numpy()[0]

    def facts(self):
        import onnxruntime
        return {"onnxruntime": onnxruntime.__version__, "threads": self.given["threads"], "input and output": "bound", "graph": "torch.onnx.export, opset 17"}


def onnxruntime_session(path, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def onnxruntime_bound(session, array):
    """(function that runs once, binding, function that binds another input): as ONNX Runtime's documentation shows I/O binding."""
    binding, goal = session.io_binding(), session.get_outputs()[0].name
    bind = partial(binding.bind_cpu_input, session.get_inputs()[0].name)
    bind(array)
    binding.bind_output(goal)
    session.run_with_iobinding(binding)
    binding.bind_ortvalue_output(goal, binding.get_outputs()[0])    # kept, or each run would take memory anew
    return partial(session.run_with_iobinding, binding), binding, bind


class OpenVINO(Bound):
    """OpenVINO for latency, in FP32 or in the precision that it chooses itself."""
    own = "PrePostProcessor"

    def compiled(self, pixels):
        import openvino

        core, settings = openvino.Core(), {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": self.given["threads"], **self.given["settings"]}
        model = core.read_model(self.given["plain"])
        return core.compile_model(self.taking_pixels(model) if pixels else model, "CPU", settings)

    def taking_pixels(self, model):
        import openvino
        from openvino.preprocess import PrePostProcessor

        steps, std = PrePostProcessor(model), 255 * np.array(self.given["std"])
        steps.input().tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
        steps.input().model().set_layout(openvino.Layout("NCHW"))
        steps.input().preprocess().convert_element_type(openvino.Type.f32).mean((255 * np.array(self.given["mean"])).tolist()).scale(std.tolist())
        return steps.build()

    def framed(self):
        return self.frame[None]

    def bound(self, compiled, array):
        import openvino

        request = compiled.create_infer_request()
        self.model, self.result = compiled, openvino.Tensor(compiled.output(0).element_type, compiled.output(0).shape)

        def bind(array):
            request.set_input_tensor(openvino.Tensor(array, shared_memory=True))

        def run():
            request.start_async()       # infer() would copy the result
            request.wait()
        bind(array)
        request.set_output_tensor(self.result)
        return run, bind

    def labels(self):
        return self.result.data[0]

    def facts(self):
        import openvino
        asked = ("PERFORMANCE_HINT", "INFERENCE_PRECISION_HINT", "INFERENCE_NUM_THREADS", "NUM_STREAMS")
        return {"openvino": openvino.__version__, **{name: str(self.model.get_property(name)) for name in asked}, "graph": "torch.onnx.export, opset 17"}


class Torch:
    """PyTorch, eager or compiled: the package's own session of it, whose settings were searched, with the labels in the module."""
    own = "torch"

    def __init__(self, given):
        from rtseg_deploy.backends import open_session

        self.given, self.frame = given, np.load(given["frame"])
        self.session = open_session(job_here())

    def opened(self, way):
        """All inputs are alike, inference tensors in channels last: for another kind of one torch.compile would compile anew."""
        import torch

        with torch.inference_mode():
            if way == TENSOR:
                tensor = torch.from_numpy(np.load(self.given["tensor"])).contiguous(memory_format=torch.channels_last)
                return partial(self.step, lambda: tensor)
            return partial(self.step, self.by_torch(torch) if way == self.own else self.by_numpy(torch))

    def by_torch(self, torch):
        frame, (centre, scale) = torch.from_numpy(self.frame)[None], map(torch.from_numpy, constants(self.given))

        def normalise(pixels):
            return pixels.float().sub_(centre).mul_(scale).permute(0, 3, 1, 2)      # as channels last lie in memory: nothing is moved
        call = torch.compile(normalise, fullgraph=True, dynamic=False) if self.session.name == "torch-compile" else normalise
        call(frame)
        return partial(call, frame)

    def by_numpy(self, torch):
        height, width, _ = self.frame.shape
        rows, buffer = self.frame.reshape(height, -1), np.empty((height, 3 * width), np.float32)
        centre, scale = (np.tile(values, width) for values in constants(self.given))
        tensor = torch.from_numpy(buffer).reshape(1, height, width, 3).permute(0, 3, 1, 2)

        def normalise():
            np.subtract(rows, centre, out=buffer)
            np.multiply(buffer, scale, out=buffer)
            return tensor
        return normalise

    def step(self, normalise):
        with self.session.torch.inference_mode():
            self.session.input = normalise()
        self.session.step()

    def labels(self):
        return self.session.output()[0]

    def facts(self):
        return self.session.facts()


class Ours:
    """A worker's session within its stages, in the folder of its job."""
    own = "stages"

    def __init__(self, given):
        job = job_here()
        self.stages = runner.framed(job, open_worker(job))
        self.stages.feed(np.load(job["inputs"][0]))

    def opened(self, _):
        return self.step

    def step(self):
        self.stages.samples.clear()
        self.stages.step()

    def labels(self):
        return self.stages.output()[0]

    def facts(self):
        return self.stages.facts()


def job_here():
    """The job of the folder in which this runs; it brings the modules that it needs."""
    sys.path.insert(0, os.getcwd())
    with open("job.json") as file:
        return json.load(file)


def open_worker(job):
    if job["backend"] in runner.SESSIONS:
        return runner.own_session(job)
    from rtseg_deploy.backends import open_session
    return open_session(job)


KINDS = {kind.__name__: kind for kind in (OnnxRuntime, OpenVINO, Torch, Ours)}


def serve(contender, given, ask, tell, clock=time.perf_counter):
    """Answer lines of `ask`: {"way", "frames"} with the seconds of so many steps and the page faults in them, {"labels": path} with the facts."""
    opened = cache(contender.opened)
    opened(given["way"])()
    gc.collect()
    gc.disable()                        # as in a worker
    tell({"ready": True})
    for line in ask:
        asked = json.loads(line)
        if "labels" in asked:
            np.save(asked["labels"], contender.labels())
            tell({"facts": contender.facts(), "memory_bytes": 1024 * int(runner.line_of("/proc/self/status", r"VmHWM:\s*(\d+)") or 0)})
            continue
        step = opened(asked["way"])
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        seconds = runner.clock_steps(step, asked["frames"], clock)
        tell({"seconds": seconds, "faults": (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults) / asked["frames"]})


def main(path, kinds=KINDS, clock=time.perf_counter):
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)                       # what libraries print is no answer

    def tell(value):
        print(json.dumps(value, default=str), file=answers, flush=True)

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_ENDS, signal.SIGKILL)        # what is stopped would outlive whoever stopped it
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"       # as in a worker
    with open(path) as file:
        given = json.load(file)
    serve(kinds[given["kind"]](given), given, sys.stdin, tell, clock)


if __name__ == "__main__":
    main(sys.argv[1])
