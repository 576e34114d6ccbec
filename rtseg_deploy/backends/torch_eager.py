"""PyTorch, eager, on the CPU: the checkpoint itself, BatchNorm kept unless it is asked for folded, with the same enlargement and output as the artifact."""
from collections import Counter
from copy import deepcopy
from importlib.util import find_spec
from statistics import median

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
    name, place, memory = "torch-eager", "cpu", "host"
    layout = "channels_last"        # PyTorch's faster one on a CPU: 1.3 (BiSeNetV2) to 1.7 times (SGCPNet) at 512x1024, labels out

    def __init__(self, job):
        import torch

        from ..errors import RtsegError
        from ..records import from_json

        artifact = from_json(job["described"], "the job")
        if artifact.precision != "fp32":
            raise RtsegError(f"{self.name} times FP32 alone", "give it the FP32 artifact")
        torch.set_num_threads(job["threads"])
        self.torch, self.threads, self.kind, self.bn = torch, job["threads"], artifact.input, job.get("bn") or "kept"
        self.format = getattr(torch, self.layout)
        self.module = network(job, artifact, self.bn).to(self.place, memory_format=self.format)
        self.resolution, self.result = artifact.resolution, None

    def feed(self, array):
        self.input = self.torch.from_numpy(array).to(self.place)
        if self.input.ndim == 4:
            self.input = self.input.to(memory_format=self.format)

    def step(self):
        with self.torch.inference_mode():
            self.result = self.module(self.input)

    def output(self):
        return self.result.cpu().numpy()

    def facts(self):
        return {"backend": self.name, "torch": self.torch.__version__, "threads": self.threads, "layout": self.layout, "bn": self.bn, "malloc": ENVIRONMENT,
                "boundary": f"network, its {self.kind} input and its output in {self.memory} memory"}

    def profile(self, steps):
        """Rows of each call of PyTorch, in the order of the calls: name, kind and seconds, by PyTorch's own profiler."""
        from torch.profiler import profile

        with profile() as found:
            for _ in range(steps):
                self.step()
        return rows([event for event in found.events() if is_call(event) and not called(event)], self.titles, steps, self.seconds)

    @staticmethod
    def seconds(event):
        return event.cpu_time_total / 1e6

    def titles(self):
        """[(name as dataflow.of_module has it, kind)] of the calls that a step makes; of an image of bytes it is not known."""
        from ..complexity import calls, titles

        found = calls(deepcopy(self.module).to("meta"), self.resolution)[1] if self.kind == "normalised" else []
        return [(name, call.name) for name, call in zip(titles(found), found)]


def network(job, artifact, bn):
    """The module that computes what the artifact does."""
    from dataclasses import replace

    from .. import checkpoints, own
    from ..deployed import deployed

    trained = own.load(**job["own"]) if job.get("own") else checkpoints.origin(artifact)
    if bn == "folded":
        trained = replace(trained, module=folded(trained.module, artifact.network_input))
    reduced = artifact.network_input if artifact.network_input != artifact.resolution else None
    return deployed(trained, artifact.output, artifact.opset, artifact.input, reduced)


def folded(module, resolution):
    """A copy of a module with each BatchNorm folded that alone reads what a convolution gave; the others, those before an activation, are kept."""
    import torch
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    from ..complexity import calls

    module = deepcopy(module)
    found = calls(deepcopy(module).to("meta"), resolution)[1]
    readers = Counter(id(value) for call in found for value in call.arguments if isinstance(value, torch.Tensor))
    made_by = {id(call.result): call.where.partition(".")[2] for call in found if call.name == "conv2d"}
    once = Counter(call.where for call in found)
    for call in found:
        before, here = made_by.get(id(call.arguments[0])) if call.name == "batch_norm" else None, call.where.partition(".")[2]
        if before and readers[id(call.arguments[0])] == 1 and once[call.where] == 1:
            module.set_submodule(before, fuse_conv_bn_eval(module.get_submodule(before), module.get_submodule(here)))
            module.set_submodule(here, torch.nn.Identity())
    return module


def is_call(event):
    """Whether it is an operation, or a kernel that torch.compile made, and not what launches or surrounds it."""
    return event.device_type.name == "CPU" and ("::" in event.name or "cpp_fused" in event.name)


def called(event):
    """Whether another call made this one."""
    parent = event.cpu_parent
    return parent is not None and (is_call(parent) or called(parent))


def rows(events, titles, steps, seconds):
    """A row for each event of a step, its median over the steps; with the titles of the calls where the events are those calls."""
    from ..complexity import numbered

    names = [event.name.rpartition("::")[2] for event in events]
    each, known = len(names) // steps, titles()
    if names != [kind for _, kind in known] * steps:
        known = list(zip(numbered(names[:each]), names))
    return [{"name": name, "kind": kind, "seconds": median(map(seconds, events[number::each]))} for number, (name, kind) in enumerate(known)]
