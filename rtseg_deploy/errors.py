"""What a user is told when something cannot be done."""
from importlib import import_module


class RtsegError(Exception):
    """One line for the user: what happened and where, and the fix, if there is one to type."""

    def __init__(self, what, fix=""):
        self.what, self.fix = (" ".join(str(said).splitlines()) for said in (what, fix))    # a name may have lines, and a device's words
        super().__init__(self.what)

    @property
    def line(self):
        return f"{self.what}; {self.fix}" if self.fix else self.what


def first_line(error):
    """Of an exception's message, not longer than a line that is read."""
    return (str(error).strip().splitlines() or ["no reason was given"])[0][:300]


def printable(text):
    """The text without what a terminal would obey: names in files may hold its escapes."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


def one_line(text):
    """The same of what is told in a line: a name with line ends in it would tell others."""
    return printable(text).replace("\n", "?")


EXTRAS = {"torch": "export", "onnx": "export", "onnx_graphsurgeon": "export", "polygraphy": "export", "safetensors": "export",
          "onnxruntime": "cpu", "tensorrt_rtx": "rtx", "cv2": "eval", "distributed": "fleet", "pyarrow": "parquet"}


def need(*modules):
    """Import modules of optional extras and return the last one. Raises RtsegError naming the extra to install."""
    for name in modules:
        try:
            module = import_module(name)
        except ModuleNotFoundError as error:
            extra = EXTRAS.get(name.partition(".")[0])
            raise RtsegError(f"this needs {error.name}, which is not installed", f"pip install 'rtseg-deploy[{extra}]'") from None
    return module
