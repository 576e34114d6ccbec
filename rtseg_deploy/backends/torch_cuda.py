"""PyTorch, eager, on the GPU, as the papers' own scripts run it: the image and the result in its memory, and TF32 off, because FP32 is to mean FP32."""
from ..device import runner
from . import torch_eager

DRIVER = "PyTorch finds no GPU", "install NVIDIA's driver and a PyTorch for CUDA; nvidia-smi shows whether the driver works"


def unavailable():
    if reason := torch_eager.unavailable():
        return reason
    import torch

    return None if torch.cuda.is_available() else DRIVER


def open(job):
    return Session(job)


class Session(runner.Stream, torch_eager.Session):
    """A step is enqueued on our stream and waited for, so that events and clocks are as an engine's."""
    name, place, memory = "torch-cuda", "cuda", "device"
    layout = "contiguous_format"    # as all of the papers' scripts: channels last is for tensor cores, which FP32 has not

    def __init__(self, job):
        import torch

        runner.Stream.__init__(self)
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False     # of cuDNN it is on by default
        torch.backends.cudnn.benchmark = True               # tries its algorithms in the warm-up, as TorchSeg and FasterSeg have it
        torch.cuda.set_stream(torch.cuda.ExternalStream(self.stream.value))
        torch_eager.Session.__init__(self, job)

    def feed(self, array):
        torch_eager.Session.feed(self, array)
        self.torch.cuda.synchronize()

    enqueue = torch_eager.Session.step

    def capture(self):
        """PyTorch's own: its memory must know that it is being captured."""
        self.step()
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(graph, stream=self.torch.cuda.current_stream()):
            self.enqueue()
        self.enqueue = graph.replay

    def places(self):
        """(address, type, shape) of the input and the output on the device."""
        self.result = self.result.contiguous()              # for whoever reads it there; as a rule it is
        return [(one.data_ptr(), str(one.dtype).rpartition(".")[2], list(one.shape)) for one in (self.input, self.result)]

    def output(self):
        self.synchronise()
        return torch_eager.Session.output(self)

    def facts(self):
        found = torch_eager.Session.facts(self)
        del found["malloc"]
        return {**found, "cuda": self.torch.version.cuda, "cudnn": self.torch.backends.cudnn.version(), "tf32": False, "cudnn_benchmark": True,
                "gpu": runner.gpu()}

    @staticmethod
    def seconds(event):
        return event.device_time_total / 1e6
