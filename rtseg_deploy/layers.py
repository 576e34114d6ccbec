"""Layers that several networks are built of. Convolutions have no bias and half padding unless it is said."""
from torch import nn
from torch.nn import functional as F


def conv_bn(inputs, outputs, kernel=3, stride=1, groups=1, eps=1e-5):
    """[Convolution, BatchNorm]"""
    return [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs, eps=eps)]


def cb(*sizes, **options):
    """Convolution, BatchNorm."""
    return nn.Sequential(*conv_bn(*sizes, **options))


def cbr(*sizes, **options):
    """Convolution, BatchNorm, ReLU."""
    return nn.Sequential(*conv_bn(*sizes, **options), nn.ReLU())


def mean(x):
    """N x C x H x W -> N x C x 1 x 1.

    It becomes ReduceMean: ONNX Runtime's GlobalAveragePool adds up one by one, 5 times slower and 20 times less precise at 256x512.
    """
    return x.mean((2, 3), keepdim=True)


def resize(x, size, mode):
    """Resize to (height, width). mode: nearest, bilinear, or corners, which is bilinear with aligned corners."""
    if mode == "nearest":
        return F.interpolate(x, size=size, mode="nearest")
    return F.interpolate(x, size=size, mode="bilinear", align_corners=mode == "corners")
