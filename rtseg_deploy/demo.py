"""Everything once, on what the package carries: a trained SGCPNet and a drawn street."""
from dataclasses import dataclass
from pathlib import Path

from . import checkpoints, images
from .bench import Ask, bench
from .build import build_engine
from .errors import RtsegError
from .export import export
from .predict import predict

CHECKPOINT = Path(__file__).with_name("samples") / "sgcpnet_camvid.pth.tar"
RESOLUTION = 360, 480
TARGET = "rtx-2080ti"


@dataclass(frozen=True)
class Demo:
    """What was made. A file and what it is, each: (path, Artifact), (path, Benchmark)."""
    artifact: tuple
    engines: list
    figures: list
    pictures: tuple
    warnings: list

    def to_json(self):
        return {"artifact": str(self.artifact[0]), "engines": [str(path) for path, _ in self.engines], "pictures": list(map(str, self.pictures)),
                "figures": [{"file": str(path), **figure.to_json(samples=False)} for path, figure in self.figures], "warnings": self.warnings}


def demo(folder, iterations, tell):
    """Run it all into `folder`."""
    path = Path(folder, "sgcpnet-360x480.onnx")
    artifact = export(checkpoints.load(CHECKPOINT), path, RESOLUTION, output="native", tell=titled(tell, "1/4 export"))
    engines, warnings = build_both(path, Path(folder, "engines"), titled(tell, "2/4 engine"))
    ask = Ask(("onnxruntime-cpu", "torch-eager"), iterations=iterations, image=str(images.STREET), results=str(Path(folder, "results")))
    figures = bench(path, ask, titled(tell, "3/4 bench"))
    (pictures,) = predict(path, [images.STREET], folder, tell=titled(tell, "4/4 predict"))
    return Demo((path, artifact), engines, figures, pictures, warnings)


def build_both(path, root, tell):
    """(engines, warnings). No engine is a warning here: there may be no tensorrt-rtx for this platform, and the rest still means something."""
    engines = []
    try:
        for fp16 in (False, True):
            engines.append(build_engine(path, TARGET, fp16, root, tell))
    except RtsegError as error:
        return engines, [f"no engine: {error.line}"]
    return engines, [warning for _, engine in engines for warning in engine.warnings]


def titled(tell, title):
    return lambda step, done: tell(f"{title}: {step}", done)
