"""torch.compile of the same module on the CPU. Compiling takes a minute, outside the clock.

Channels last and frozen weights were chosen by measuring, on two shared cores: SGCPNet 360x480 takes 9.4 ms with both, 14 with either alone, and
19 in eager mode. Freezing folds each BatchNorm that can be folded, so with BatchNorm kept there is none.
"""
import os
import shutil
import sysconfig
from pathlib import Path

from . import torch_eager

ENVIRONMENT = torch_eager.ENVIRONMENT


def unavailable():
    if reason := torch_eager.unavailable():
        return reason
    if not shutil.which(os.environ.get("CXX") or "g++"):
        return "torch.compile finds no C++ compiler", "sudo apt-get install g++, or name one: CXX=clang++"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "torch.compile finds no Python.h", "sudo apt-get install python3-dev"
    return None


def open(job):
    return Session(job)


class Session(torch_eager.Session):
    name = "torch-compile"

    def __init__(self, job):
        torch_eager.Session.__init__(self, {**job, "bn": "kept"})
        self.bn = job.get("bn") or "folded"
        self.eager = self.module
        self.compile()

    def compile(self, **settings):
        """The module, compiled at its first step."""
        import torch._inductor.config as inductor

        self.torch._dynamo.reset()
        inductor.freezing = self.bn == "folded"
        for name, value in settings.items():
            setattr(inductor.cpp, name, value)
        self.module = self.torch.compile(self.eager, fullgraph=True, dynamic=False)     # fullgraph: what it cannot compile is an error, not eager

    def feed(self, array):
        torch_eager.Session.feed(self, array)
        if self.result is None:
            self.step()

    def facts(self):
        return {**torch_eager.Session.facts(self), "compiled": f"inductor, {'frozen' if self.bn == 'folded' else 'not frozen'}, fullgraph, static sizes"}

    def titles(self):
        return []       # a kernel of its own holds several layers, and PyTorch tells no times of single ones

    def profile(self, steps):
        self.compile(enable_kernel_profile=True)
        self.step()
        return torch_eager.Session.profile(self, steps)
