"""SGCPNet: spatial-detail-guided context propagation, for inference.

Paper: Hao et al., "Real-Time Semantic Segmentation via Spatial-Detail Guided Context Propagation", TNNLS 2022.
Where the paper is silent the authors' code decides (zhouyuan888888/SGCPNet@ead5adf): fusion scalars are relu(w) / (sum + 1e-4),
a swish follows every fusion, squeeze-and-excitation comes after the projection, the context module's BatchNorm has eps 1e-3.
"""
from functools import reduce

import torch
from torch import nn
from torch.nn import functional as F

from ..layers import cb, mean
from . import IMAGENET, Dialect, Lookalike, Network

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


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the mean of the plane."""

    def __init__(self, width):
        super().__init__()
        self.squeeze = cb(width, width // 4, 1)
        self.excite = cb(width // 4, width, 1)

    def forward(self, x):
        gate = F.relu(self.squeeze(mean(x)))
        return x * F.hardsigmoid(self.excite(gate))


class Block(nn.Module):
    """Inverted residual; no activation after the addition, no shortcut where the stride is 2."""

    def __init__(self, kernel, inputs, expanded, outputs, activation, attention, stride):
        super().__init__()
        self.expand = cb(inputs, expanded, 1)
        self.depthwise = cb(expanded, expanded, kernel, stride, groups=expanded)
        self.project = cb(expanded, outputs, 1)
        self.attention = SqueezeExcite(outputs) if attention else nn.Identity()
        self.activation = F.hardswish if activation == "hswish" else F.relu
        self.residual = stride == 1
        self.shortcut = cb(inputs, outputs, 1) if self.residual and inputs != outputs else nn.Identity()

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
    """Sum of maps, weighted where weights are given, each resized (nearest) to the first one's size, then swish."""
    size = maps[0].shape[-2:]
    maps = [m if m.shape[-2:] == size else F.interpolate(m, size=size) for m in maps]
    if weights is not None:
        share = F.relu(weights)
        maps = [w * m for w, m in zip(share / (share.sum() + 1e-4), maps)]
    return F.silu(reduce(torch.add, maps))


def max3(x):
    return F.max_pool2d(x, 3, stride=2, padding=1)


def max5(x):
    return F.max_pool2d(x, 5, stride=2, padding=2)


def avg3(x):
    return F.avg_pool2d(x, 3, stride=2, padding=1)


HALVE = {"max3": max3, "max5": max5, "avg3": avg3}


class Pass(nn.Module):
    """For each level a fusion, its weights where it has any, and a separable convolution. levels: (level, number of terms)."""

    def __init__(self, levels, weighted):
        super().__init__()
        self.levels = [level for level, _ in levels]
        for level, terms in levels:
            self.register_parameter(f"weight{level}", nn.Parameter(torch.ones(terms)) if weighted else None)
            self.add_module(f"conv{level}", Separable())

    def fused(self, level, *maps):
        return getattr(self, f"conv{level}")(fuse(getattr(self, f"weight{level}"), *maps))


class TopDown(Pass):
    """Carry context from the coarsest of five maps to the finest."""

    def __init__(self, weighted):
        super().__init__([(6, 2), (5, 2), (4, 2), (3, 2)], weighted)

    def forward(self, maps):
        """maps: level (3 to 7) -> N x 64 x H/2^level x W/2^level; returns the refined ones of levels 3 to 6."""
        above, out = maps[7], {}
        for level in self.levels:
            above = out[level] = self.fused(level, maps[level], above)
        return out


class BottomUp(Pass):
    """Carry spatial detail from the finest map to the coarsest, with skips from the backbone's laterals."""

    def __init__(self, weighted, halve):
        super().__init__([(4, 3), (5, 3), (6, 3), (7, 2)], weighted)
        self.halve = halve

    def forward(self, skips, refined):
        """skips: levels 4 to 7; refined: levels 3 to 6, from a top-down pass. Returns levels 3 to 7."""
        out = {3: refined[3]}
        for level in self.levels:
            terms = [skips[level]] + ([refined[level]] if level < 7 else []) + [self.halve(out[level - 1])]
            out[level] = self.fused(level, *terms)
        return out


class Backbone(nn.Module):
    """N x 3 x H x W, normalised RGB -> maps of 24, 48 and 96 channels at 1/8, 1/16 and 1/32."""

    def __init__(self):
        super().__init__()
        self.stem = cb(3, 16, 3, stride=2)
        self.stages = nn.ModuleList(nn.Sequential(*(Block(*row) for row in rows)) for rows in STAGES)

    def forward(self, x):
        x = self.stages[0](F.hardswish(self.stem(x)))
        pyramid = []
        for stage in self.stages[1:]:
            x = stage(x)
            pyramid.append(x)
        return pyramid


class BackboneOnly(nn.Module):
    """Table VI's BK: logits at 1/32."""

    def __init__(self, classes):
        super().__init__()
        self.backbone = Backbone()
        self.classifier = nn.Conv2d(96, classes, 1)

    def forward(self, x):
        return self.classifier(self.backbone(x)[-1])


class SGCPNet(nn.Module):
    """N x 3 x H x W, normalised RGB -> N x classes x ceil(H/8) x ceil(W/8) logits; any H and W.

    The options are Table VI's: widened features (HFR), number of passes (1: top-down, 2: and bottom-up, 3: and top-down), weights of the
    sums, kind of pool.
    """

    def __init__(self, classes, widened=True, passes=3, weighted=True, pool="max3"):
        super().__init__()
        self.backbone = Backbone()
        self.halve = HALVE[pool]
        w3, w4, w5 = (40, 112, 320) if widened else (24, 48, 96)
        self.widen = nn.ModuleList([nn.Conv2d(24, w3, 1), nn.Conv2d(48, w4, 1), nn.Conv2d(96, w5, 1)] if widened else [nn.Identity() for _ in range(3)])
        self.lateral3, self.lateral4, self.lateral5, self.lateral6 = lateral(w3), lateral(w4), lateral(w5), lateral(w5)
        self.down1 = TopDown(weighted)
        if passes > 1:
            self.skip4, self.skip5 = lateral(w4), lateral(w5)
            self.up = BottomUp(weighted, self.halve)
        self.down2 = TopDown(weighted) if passes > 2 else None
        self.passes = passes
        self.classifier = nn.Conv2d(WIDTH, classes, 1)

    def forward(self, x):
        c3, c4, c5 = (widen(c) for widen, c in zip(self.widen, self.backbone(x)))
        p6 = self.halve(self.lateral6(c5))
        maps = {3: self.lateral3(c3), 4: self.lateral4(c4), 5: self.lateral5(c5), 6: p6, 7: self.halve(p6)}
        maps = {**maps, **self.down1(maps)}
        if self.passes > 1:
            maps = self.up({4: self.skip4(c4), 5: self.skip5(c5), 6: p6, 7: maps[7]}, maps)
        return self.classifier((self.down2(maps) if self.down2 else maps)[3])


OFFICIAL = Dialect(
    name="official",
    source="zhouyuan888888/SGCPNet@ead5adf",
    normalisation=IMAGENET,
    renames=(
        (r"^l1\.", "backbone.stem."), (r"^l2\.", "backbone.stages.0.0."),
        (r"^l3\.", "backbone.stages.1."), (r"^l4\.", "backbone.stages.2."), (r"^l5\.", "backbone.stages.3."),
        (r"\.se\.se\.1\.", ".attention.squeeze.0."), (r"\.se\.se\.2\.", ".attention.squeeze.1."),
        (r"\.se\.se\.4\.", ".attention.excite.0."), (r"\.se\.se\.5\.", ".attention.excite.1."),
        (r"^(backbone.*)\.conv1\.", r"\1.expand.0."), (r"^(backbone.*)\.bn1\.", r"\1.expand.1."),
        (r"^(backbone.*)\.conv2\.", r"\1.depthwise.0."), (r"^(backbone.*)\.bn2\.", r"\1.depthwise.1."),
        (r"^(backbone.*)\.conv3\.", r"\1.project.0."), (r"^(backbone.*)\.bn3\.", r"\1.project.1."),
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

PAPER = "Hao et al., TNNLS 2022, SGCPNet"
UNUSED = "its bottom-up pass does not reach the output: PyTorch computes it, a compiled graph drops it"


def ablation(name, note="", build=SGCPNet, stride=8, **variant):
    """A row of Table VI."""
    return Network(f"sgcpnet-{name}", PAPER, build, stride, variant=variant, note=note)


NETWORKS = (
    Network("sgcpnet", PAPER, SGCPNet, dialects=(OFFICIAL,)),
    Network("bcpnet", "Hao et al., 2020, BCPNet", SGCPNet, dialects=(OFFICIAL,), note="the same graph: parameters and FLOPs of both papers are equal"),
    ablation("bk", build=BackboneOnly, stride=32, note="a 1x1 classifier on the backbone's last map"),
    ablation("td1", widened=False, passes=1),
    ablation("td1-bu", UNUSED, widened=False, passes=2),
    ablation("td1-bu-td2", widened=False),
    ablation("hfr-td1", passes=1),
    ablation("hfr-td1-bu", UNUSED, passes=2),
    ablation("sum", weighted=False),
    ablation("max5", pool="max5"),
    ablation("avg3", pool="avg3"),
)

LOOKALIKES = (
    Lookalike(r"(^|\.)(bneck\.\d|linear[34])\.", "a MobileNet V3 pre-trained on ImageNet: it classifies, and has no segmentation head",
              "take the checkpoint that was trained on a segmentation set"),
)
