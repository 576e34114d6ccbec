"""SGCPNet: spatial-detail-guided context propagation, for inference.

Paper: Hao et al., "Real-Time Semantic Segmentation via Spatial-Detail Guided Context Propagation", TNNLS 2022.
Where the paper is silent the authors' code decides (zhouyuan888888/SGCPNet@ead5adf): fusion scalars are relu(w) / (sum + 1e-4),
a swish follows every fusion, squeeze-and-excitation comes after the projection, the context module's BatchNorm has eps 1e-3.
"""
import torch
from torch import nn
from torch.nn import functional as F

from . import IMAGENET, Dialect, Network

WIDTH = 64
CONTEXT_EPS = 1e-3

# kernel, in, expanded, out, activation, squeeze-and-excitation, stride: one row a block, one list a stage
STAGES = (
    [(3, 16, 16, 16, "relu", True, 2)],
    [(3, 16, 72, 24, "relu", False, 2), (3, 24, 88, 24, "relu", False, 1)],
    [(5, 24, 96, 40, "hswish", True, 2), (5, 40, 240, 40, "hswish", True, 1), (5, 40, 240, 40, "hswish", True, 1),
     (5, 40, 120, 48, "hswish", True, 1), (5, 48, 144, 48, "hswish", True, 1)],
    [(5, 48, 288, 96, "hswish", True, 2), (5, 96, 576, 96, "hswish", True, 1), (5, 96, 576, 96, "hswish", True, 1)],
)


def conv_bn(inputs, outputs, kernel, stride=1, groups=1):
    """Convolution without bias, then BatchNorm; half padding."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs))


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the mean of the plane.

    mean() becomes ReduceMean; ONNX Runtime's GlobalAveragePool adds up one by one: 5 times slower, 20 times less precise at 256x512.
    """

    def __init__(self, width):
        super().__init__()
        self.squeeze = conv_bn(width, width // 4, 1)
        self.excite = conv_bn(width // 4, width, 1)

    def forward(self, x):
        gate = F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))
        return x * F.hardsigmoid(self.excite(gate))


class Block(nn.Module):
    """Inverted residual; no activation after the addition, no shortcut where the stride is 2."""

    def __init__(self, kernel, inputs, expanded, outputs, activation, attention, stride):
        super().__init__()
        self.expand = conv_bn(inputs, expanded, 1)
        self.depthwise = conv_bn(expanded, expanded, kernel, stride, groups=expanded)
        self.project = conv_bn(expanded, outputs, 1)
        self.attention = SqueezeExcite(outputs) if attention else nn.Identity()
        self.activation = F.hardswish if activation == "hswish" else F.relu
        self.residual = stride == 1
        self.shortcut = conv_bn(inputs, outputs, 1) if self.residual and inputs != outputs else nn.Identity()

    def forward(self, x):
        y = self.activation(self.depthwise(self.activation(self.expand(x))))
        y = self.attention(self.project(y))
        return y + self.shortcut(x) if self.residual else y


def lateral(inputs):
    """1x1 convolution to the context module's width, BatchNorm, no activation."""
    return nn.Sequential(nn.Conv2d(inputs, WIDTH, 1), nn.BatchNorm2d(WIDTH, eps=CONTEXT_EPS))


class Separable(nn.Module):
    """Depthwise 3x3 with nothing after it, 1x1 with bias, BatchNorm, no activation."""

    def __init__(self):
        super().__init__()
        self.depthwise = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH, bias=False)
        self.pointwise = nn.Conv2d(WIDTH, WIDTH, 1)
        self.bn = nn.BatchNorm2d(WIDTH, eps=CONTEXT_EPS)

    def forward(self, x):
        return self.bn(self.pointwise(self.depthwise(x)))


def fuse(weights, *maps):
    """Weighted sum of maps, each resized (nearest) to the first one's size, then swish."""
    share = F.relu(weights)
    share = share / (share.sum() + 1e-4)
    size = maps[0].shape[-2:]
    return F.silu(sum(w * (m if m.shape[-2:] == size else F.interpolate(m, size=size)) for w, m in zip(share, maps)))


def halve(x):
    return F.max_pool2d(x, 3, stride=2, padding=1)


class TopDown(nn.Module):
    """Carry context from the coarsest of five maps to the finest."""

    def __init__(self):
        super().__init__()
        for level in (6, 5, 4, 3):
            self.register_parameter(f"weight{level}", nn.Parameter(torch.ones(2)))
            self.add_module(f"conv{level}", Separable())

    def forward(self, maps):
        """maps: level (3 to 7) -> N x 64 x H/2^level x W/2^level; returns the refined ones of levels 3 to 6."""
        above, out = maps[7], {}
        for level in (6, 5, 4, 3):
            above = out[level] = getattr(self, f"conv{level}")(fuse(getattr(self, f"weight{level}"), maps[level], above))
        return out


class BottomUp(nn.Module):
    """Carry spatial detail from the finest map to the coarsest, with skips from the backbone's laterals."""

    def __init__(self):
        super().__init__()
        for level, terms in ((4, 3), (5, 3), (6, 3), (7, 2)):
            self.register_parameter(f"weight{level}", nn.Parameter(torch.ones(terms)))
            self.add_module(f"conv{level}", Separable())

    def forward(self, skips, refined):
        """skips: levels 4 to 7; refined: levels 3 to 6, from a top-down pass. Returns levels 3 to 7."""
        out = {3: refined[3]}
        for level in (4, 5, 6, 7):
            terms = [skips[level]] + ([refined[level]] if level < 7 else []) + [halve(out[level - 1])]
            out[level] = getattr(self, f"conv{level}")(fuse(getattr(self, f"weight{level}"), *terms))
        return out


class SGCPNet(nn.Module):
    """N x 3 x H x W, normalised RGB -> N x classes x ceil(H/8) x ceil(W/8) logits; any H and W."""

    def __init__(self, classes):
        super().__init__()
        self.stem = conv_bn(3, 16, 3, stride=2)
        self.stages = nn.ModuleList(nn.Sequential(*(Block(*row) for row in rows)) for rows in STAGES)
        self.widen = nn.ModuleList([nn.Conv2d(24, 40, 1), nn.Conv2d(48, 112, 1), nn.Conv2d(96, 320, 1)])
        self.lateral3, self.lateral4, self.lateral5, self.lateral6 = lateral(40), lateral(112), lateral(320), lateral(320)
        self.skip4, self.skip5 = lateral(112), lateral(320)
        self.down1, self.up, self.down2 = TopDown(), BottomUp(), TopDown()
        self.classifier = nn.Conv2d(WIDTH, classes, 1)

    def forward(self, x):
        x = self.stages[0](F.hardswish(self.stem(x)))
        pyramid = []
        for stage, widen in zip(self.stages[1:], self.widen):
            x = stage(x)
            pyramid.append(widen(x))
        c3, c4, c5 = pyramid
        p6 = halve(self.lateral6(c5))
        maps = {3: self.lateral3(c3), 4: self.lateral4(c4), 5: self.lateral5(c5), 6: p6, 7: halve(p6)}
        refined = self.down1(maps)
        refined = self.up({4: self.skip4(c4), 5: self.skip5(c5), 6: p6, 7: maps[7]}, refined)
        return self.classifier(self.down2(refined)[3])


OFFICIAL = Dialect(
    name="official",
    source="zhouyuan888888/SGCPNet@ead5adf",
    normalisation=IMAGENET,
    renames=(
        (r"^l1\.", "stem."),
        (r"^l2\.", "stages.0.0."), (r"^l3\.", "stages.1."), (r"^l4\.", "stages.2."), (r"^l5\.", "stages.3."),
        (r"\.se\.se\.1\.", ".attention.squeeze.0."), (r"\.se\.se\.2\.", ".attention.squeeze.1."),
        (r"\.se\.se\.4\.", ".attention.excite.0."), (r"\.se\.se\.5\.", ".attention.excite.1."),
        (r"^(stages.*)\.conv1\.", r"\1.expand.0."), (r"^(stages.*)\.bn1\.", r"\1.expand.1."),
        (r"^(stages.*)\.conv2\.", r"\1.depthwise.0."), (r"^(stages.*)\.bn2\.", r"\1.depthwise.1."),
        (r"^(stages.*)\.conv3\.", r"\1.project.0."), (r"^(stages.*)\.bn3\.", r"\1.project.1."),
        (r"^conv3\.", "widen.0."), (r"^conv4\.", "widen.1."), (r"^conv5\.", "widen.2."),
        (r"^sgcp\.td\.", "down2."),
        (r"^sgcp\.td_bu\.unit\.0\.p(\d)_down_channel_2\.", r"skip\1."),
        (r"^sgcp\.td_bu\.unit\.0\.p(\d)_down_channel\.", r"lateral\1."),
        (r"^sgcp\.td_bu\.unit\.0\.p5_to_p6\.", "lateral6."),
        (r"^(lateral|skip)(\d)\.0\.conv\.", r"\1\2.0."),
        (r"^sgcp\.td_bu\.unit\.0\.(conv\d_up|p\d_w1)", r"down1.\1"),
        (r"^sgcp\.td_bu\.unit\.0\.(conv\d_down|p\d_w2)", r"up.\1"),
        (r"\.p(\d)_w[12]$", r".weight\1"),
        (r"\.conv(\d)_(?:up|down)\.", r".conv\1."),
        (r"\.(depthwise|pointwise)_conv\.conv\.", r".\1."),
    ),
)

NETWORKS = (
    Network(name="sgcpnet", paper="Hao et al., TNNLS 2022, SGCPNet", build=SGCPNet, head="classifier.weight",
            stride=8, multiple=1, dialects=(OFFICIAL,)),
)
