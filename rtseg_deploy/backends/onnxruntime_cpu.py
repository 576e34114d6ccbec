"""ONNX Runtime on the CPU, input and output bound once: a step is the network alone."""
from importlib.util import find_spec


def unavailable():
    if find_spec("onnxruntime") is None:
        return "ONNX Runtime is not installed", "pip install 'rtseg-deploy[cpu]'"
    return None


def open(job):
    return Session(job)


class Session:
    def __init__(self, job):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = job["threads"]
        options.log_severity_level = 3
        self.version = onnxruntime.__version__
        self.threads = job["threads"]
        self.kind = job["described"]["input"]
        self.half = job["described"]["precision"] == "fp16"
        self.session = onnxruntime.InferenceSession(job["artifact"], options, providers=["CPUExecutionProvider"])
        self.binding = self.session.io_binding()

    def feed(self, array):
        self.binding.bind_cpu_input("input", array)
        self.binding.bind_output("output", "cpu")

    def step(self):
        self.session.run_with_iobinding(self.binding)

    def output(self):
        return self.binding.copy_outputs_to_cpu()[0]

    def facts(self):
        return {"backend": "onnxruntime-cpu", "onnxruntime": self.version, "threads": self.threads,
                "boundary": f"network: {self.kind} input and its output in host memory",
                "note": "ONNX Runtime has few FP16 kernels for CPUs and computes the rest in FP32, with casts" if self.half else ""}
