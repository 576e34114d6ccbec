"""An FP16 file as a device computes it, on ONNX Runtime's CPU: every FP16 tensor is rounded (fp16.simulated). For labels, never for times."""
from importlib.util import find_spec

NEEDED = "onnxruntime", "onnx", "onnx_graphsurgeon", "polygraphy"


def unavailable():
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        return f"{missing[0]} is not installed, and simulating FP16 needs it", "pip install 'rtseg-deploy[export,cpu]'"
    return None


def open(job):
    return Session(job)


class Session:
    def __init__(self, job):
        from .. import fp16, graphs, proof
        from ..errors import RtsegError

        if job["action"] in ("time", "profile"):
            raise RtsegError("simulated-fp16 computes what FP16 gives, at no speed of its own", "time the file with --backend onnxruntime-cpu, or its engine")
        if job["described"]["precision"] != "fp16":
            raise RtsegError("simulated-fp16 takes FP16 files", "make one with: rtseg-deploy export --precision fp16")
        self.session, self.job = proof.session(fp16.simulated(graphs.whole(job["artifact"])), job["threads"]), job

    def feed(self, array):
        self.input = array

    def step(self):
        self.result, = self.session.run(None, {"input": self.input})

    def output(self):
        return self.result

    def facts(self):
        return {"backend": "simulated-fp16", "note": "a simulation of FP16: each result rounded, sums in FP32; its times mean nothing",
                "boundary": f"network, its {self.job['described']['input']} input and its output in host memory"}
