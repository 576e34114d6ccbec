"""PyTorch, eager, on the CPU: the checkpoint itself, BatchNorm kept, with the same enlargement and output as the artifact."""
from importlib.util import find_spec

# glibc gives large maps back to the system after every layer and takes them anew: thousands of page faults, up to half the time.
# A fair figure has none of it; the settings must be there when the process starts.
ENVIRONMENT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "8000000000", "MALLOC_TOP_PAD_": "500000000"}


def unavailable():
    if find_spec("torch") is None:
        return "PyTorch is not installed", "pip install 'rtseg-deploy[export]'"
    return None


def open(job):
    return Session(job)


class Session:
    def __init__(self, job):
        import torch

        from .. import checkpoints, own
        from ..deployed import deployed
        from ..errors import RtsegError
        from ..records import from_json

        artifact = from_json(job["described"], "the job")
        if artifact.precision != "fp32":
            raise RtsegError("PyTorch on a CPU has no fast FP16", "time the FP32 artifact with torch-eager")
        torch.set_num_threads(job["threads"])
        self.torch = torch
        self.threads = job["threads"]
        # channels last is PyTorch's faster layout on a CPU: 1.3 (BiSeNetV2) to 1.7 times (SGCPNet) at 512x1024, labels out
        self.layout = torch.channels_last
        trained = own.load(**job["own"]) if job.get("own") else checkpoints.origin(artifact)
        self.kind = artifact.input
        reduced = artifact.network_input if artifact.network_input != artifact.resolution else None
        self.module = deployed(trained, artifact.output, artifact.opset, artifact.input, reduced).to(memory_format=self.layout)
        self.result = None

    def feed(self, array):
        self.input = self.torch.from_numpy(array)
        if self.input.ndim == 4:
            self.input = self.input.to(memory_format=self.layout)

    def step(self):
        with self.torch.inference_mode():
            self.result = self.module(self.input)

    def output(self):
        return self.result.numpy()

    def facts(self):
        return {"backend": "torch-eager", "torch": self.torch.__version__, "threads": self.threads, "malloc": ENVIRONMENT, "layout": str(self.layout),
                "boundary": f"network, its {self.kind} input and its output in host memory"}
