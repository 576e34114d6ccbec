"""OpenVINO Runtime on the CPU, in FP32, input and output bound once: a step is the network alone."""
from datetime import timedelta
from importlib.util import find_spec
from statistics import median

PRECISION = "fp32"                  # that it computes in, where the file has nothing lower


def unavailable():
    if find_spec("openvino") is None:
        return "OpenVINO is not installed", "pip install 'rtseg-deploy[openvino]'"
    return None


def open(job):
    return Session(job)


class Session:
    # LATENCY: one stream. Without a precision hint it computes in BF16 where the CPU can, and "FP32" is to mean FP32.
    name, note, settings = "openvino", "", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}

    def __init__(self, job):
        import openvino

        from ..errors import RtsegError

        if job["described"]["precision"] not in ("fp32", "int8"):
            raise RtsegError(f"{self.name} runs FP32 and INT8 files", "give it the FP32 artifact")
        self.openvino, self.job, self.input = openvino, job, None
        self.compile({**self.settings, "INFERENCE_NUM_THREADS": job["threads"], **(job.get("settings") or {})})

    def compile(self, settings):
        self.settings = settings
        self.compiled = self.openvino.Core().compile_model(self.job["artifact"], "CPU", settings)
        self.request = self.compiled.create_infer_request()

    def feed(self, array):
        if self.input is None:
            self.input = array.copy()       # kept: the tensor is only a view of it
            self.bind()
        elif array is not self.input:
            self.input[...] = array

    def bind(self):
        self.result = self.openvino.Tensor(self.compiled.output(0).element_type, self.compiled.output(0).shape)
        self.request.set_input_tensor(self.openvino.Tensor(self.input, shared_memory=True))
        self.request.set_output_tensor(self.result)

    def step(self):
        self.request.start_async()  # infer() would copy the result
        self.request.wait()

    def output(self):
        return self.result.data

    def facts(self):
        return {"backend": self.name, "note": self.note, "openvino": self.openvino.__version__, "bn": "folded",
                "threads": self.compiled.get_property("INFERENCE_NUM_THREADS"),
                "settings": {**self.settings, **{name: str(self.compiled.get_property(name)) for name in ("NUM_STREAMS", "ENABLE_CPU_PINNING")}},
                "boundary": f"network, its {self.job['described']['input']} input and its output in host memory"}

    def profile(self, steps):
        """Rows of each node that runs, in order: name, kind, seconds, and the layers of the file that it computes."""
        self.compile({**self.settings, "PERF_COUNT": True})
        self.bind()
        seconds, kinds = {}, {}
        for _ in range(steps):
            self.step()
            for info in self.request.get_profiling_info():
                if info.status == info.Status.EXECUTED:
                    kinds[info.node_name] = info.exec_type
                    seconds.setdefault(info.node_name, []).append(info.real_time / timedelta(seconds=1))
        layers = {node.get_friendly_name(): str(node.get_rt_info()["originalLayersNames"].astype(str)).split(",")
                  for node in self.compiled.get_runtime_model().get_ops()}
        return [{"name": name, "kind": kinds[name], "seconds": median(times), "layers": layers.get(name, [])} for name, times in seconds.items()]
