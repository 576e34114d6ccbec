"""constraints.txt -> requirements.txt, -rtx.txt and -fuzz.txt: each package that it names or that those bring, by the sha256 of its files.

    make lock

For every Python from 3.10 on and every platform. PyTorch is left out, with the CUDA that its plain wheel brings: which one is installed is the user's
choice, and each has other hashes. Apart are TensorRT-RTX, which is not there for every platform and is built from its source archive, and what only
`make fuzz` needs.
"""
import re
import subprocess
import sys
from pathlib import Path

TORCHS = re.compile(r"torch|triton|cuda-.*|nvidia-(?!ml-py).*")
APART = {"tensorrt": "requirements-rtx.txt", "atheris": "requirements-fuzz.txt"}
HEAD = "# Made by `make lock` from constraints.txt. Use it with: pip install --no-deps --require-hashes -r {}\n"


def main():
    uv = [Path(sys.executable).with_name("uv"), "pip", "compile", "--quiet", "--universal", "--python-version", "3.10"]
    compiled = subprocess.run([*uv, "--generate-hashes", "--no-annotate", "--no-header", "constraints.txt"], check=True, capture_output=True, text=True).stdout
    packages = [text for text in re.split(r"(?m)^(?=\S)", compiled)[1:] if not TORCHS.fullmatch(text.partition("==")[0])]
    write("requirements.txt", [text for text in packages if not text.startswith(tuple(APART))])
    for name, path in APART.items():
        write(path, [text for text in packages if text.startswith(name)])


def write(path, texts):
    Path(path).write_text(HEAD.format(path) + "".join(texts))


if __name__ == "__main__":
    main()
