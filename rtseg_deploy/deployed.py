"""The network as it is deployed: what is exported, and what PyTorch is timed at."""
import torch
from torch import nn

from .layers import resize


class Deployed(nn.Module):
    """A network between the input and the output that were asked for.

    net: normalised N x 3 x H x W -> N x classes x h x w. enlarge: how its logits get to H x W; None leaves them as they are.
    labels: None for logits, or the integer type of 1 x H x W labels. pixels: None for normalised input, or (mean, std, layout) for uint8 RGB.
    """

    def __init__(self, net, enlarge="bilinear", labels=None, pixels=None):
        super().__init__()
        self.net = net
        self.enlarge = enlarge
        self.labels = labels
        self.layout = pixels[2] if pixels else None
        if pixels:
            mean, std = (torch.tensor(values, dtype=torch.float64).reshape(1, 3, 1, 1) for values in pixels[:2])
            self.register_buffer("centre", (255 * mean).float(), persistent=False)
            self.register_buffer("scale", (1 / (255 * std)).float(), persistent=False)

    def logits(self, x):
        """Of normalised input."""
        y = self.net(x)
        if not isinstance(y, torch.Tensor) or y.ndim != 4 or y.shape[0] != x.shape[0] or not y.is_floating_point():
            raise TypeError(f"it gives {described(y)} for one image, not logits N x classes x h x w")
        return y if self.enlarge is None or y.shape[-2:] == x.shape[-2:] else resize(y, x.shape[-2:], self.enlarge)

    def normalised(self, x):
        """uint8 RGB pixels as the network was trained to see them: (x - 255 mean) / (255 std), the same as (x / 255 - mean) / std.

        The cast comes first, because TensorRT takes uint8 nowhere but at an input that is cast at once.
        """
        if self.layout is None:
            return x
        x = x.float()
        return ((x.permute(2, 0, 1)[None] if self.layout == "hwc" else x) - self.centre) * self.scale

    def forward(self, x):
        logits = self.logits(self.normalised(x))
        return logits if self.labels is None else logits.argmax(1).to(self.labels)


class Reduced(nn.Module):
    """A network that is fed a smaller image of (height, width)."""

    def __init__(self, net, resolution):
        super().__init__()
        self.net, self.resolution = net, resolution

    def forward(self, x):
        return self.net(resize(x, self.resolution, "bilinear"))


def described(value):
    """What a module returned, in a few words."""
    if isinstance(value, torch.Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of {'x'.join(map(str, value.shape))}"
    return f"a {type(value).__name__}" + (f" of {len(value)}" if hasattr(value, "__len__") else "")


def deployed(trained, output, opset, kind="normalised", reduced=None):
    """A trained network in evaluation mode, giving "logits" or "labels" at the input's size, or its own "native" logits.

    reduced: the (height, width) that the image is resized to first.

    Labels are uint8, or int32 where that is too small or where the reader is TensorRT 8.2 (opset 13), which knows no uint8.
    """
    labels = torch.int32 if trained.classes > 255 or opset < 14 else torch.uint8
    normalisation = trained.normalisation
    pixels = None if kind == "normalised" else (normalisation.mean, normalisation.std, "hwc" if kind == "rgb8" else "nchw")
    net = Reduced(trained.module, reduced) if reduced else trained.module
    return Deployed(net, None if output == "native" else trained.dialect.enlarge, labels if output == "labels" else None, pixels).eval()
