"""The network as it is deployed: what is exported, and what PyTorch is timed at."""
import torch
from torch import nn
from torch.nn import functional as F


class Deployed(nn.Module):
    """Logits enlarged to the input's size (bilinear, align_corners=False), or the labels made from them.

    net: N x 3 x H x W -> N x classes x H/8 x W/8. labels: None for logits, or the integer type of 1 x H x W labels.
    """

    def __init__(self, net, labels=None):
        super().__init__()
        self.net = net
        self.labels = labels

    def logits(self, x):
        return F.interpolate(self.net(x), size=x.shape[-2:], mode="bilinear", align_corners=False)

    def forward(self, x):
        logits = self.logits(x)
        return logits if self.labels is None else logits.argmax(1).to(self.labels)


def deployed(trained, output, opset):
    """A trained network in evaluation mode, giving "logits" or "labels".

    Labels are uint8, or int32 where that is too small or where the reader is TensorRT 8.2 (opset 13), which knows no uint8.
    """
    labels = torch.int32 if trained.classes > 255 or opset < 14 else torch.uint8
    return Deployed(trained.module, labels if output == "labels" else None).eval()
