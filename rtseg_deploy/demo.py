"""Everything once, on what the package carries: a trained SGCPNet and a drawn street."""
from dataclasses import dataclass
from pathlib import Path

from . import checkpoints, images
from .bench import bench
from .build import build_engine
from .errors import RtsegError
from .export import export
from .predict import predict
from .report import artifact_table, bench_table, engines_table, remarks

CHECKPOINT = Path(__file__).with_name("samples") / "sgcpnet_camvid.pth.tar"
RESOLUTION = 360, 480
TARGET = "rtx-2080ti"


@dataclass(frozen=True)
class Shown:
    tables: list
    warnings: list


def demo(folder, iterations, tell):
    """Run it all into `folder`; returns what to print."""
    path = Path(folder, "sgcpnet-360x480.onnx")
    artifact = export(checkpoints.load(CHECKPOINT), path, RESOLUTION, tell=titled(tell, "1/4 export"))
    warnings, engines = [], []
    try:
        for fp16 in (False, True):
            engines.append(build_engine(path, TARGET, fp16, Path(folder, "engines"), titled(tell, "2/4 engine")))
    except RtsegError as error:     # no wheel of tensorrt-rtx for this platform, say: the rest still means something
        warnings.append(f"no engine: {error.what}; {error.fix}")
    figures = bench(path, ["onnxruntime-cpu", "torch-eager"], iterations, images.STREET, results=Path(folder, "results"), tell=titled(tell, "3/4 bench"))
    pictures = predict(path, [images.STREET], folder, tell=titled(tell, "4/4 predict"))
    warnings += dict.fromkeys(warning for _, engine in engines for warning in engine.warnings)
    tables = [artifact_table(path, artifact)] + ([engines_table(engines)] if engines else []) + [bench_table(figures), *remarks(figures)]
    return Shown(tables + ["", "pictures:", *(f"  {file}" for pair in pictures for file in pair)], warnings)


def titled(tell, title):
    return lambda step, done: tell(f"{title}: {step}", done)
