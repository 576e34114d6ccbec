"""DDRNet: deep dual-resolution networks, for inference.

Paper: Hong et al., "Deep Dual-resolution Networks for Real-time and Accurate Semantic Segmentation of Road Scenes", 2021.
Where the paper is silent the authors' code decides (ydhongHIT/DDRNet@de0db31): the last block of a group ends without ReLU and its
readers apply it, the pools of the context module count their padding.
"""
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from ..layers import cb, conv_bn, mean, resize
from . import IMAGENET, Dialect, Lookalike, Network

BRANCH = 128                        # width of the context module's branches


class Basic(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs, outputs, stride=1, last=False):
        super().__init__()
        self.body = nn.Sequential(*conv_bn(inputs, outputs, stride=stride), nn.ReLU(), *conv_bn(outputs, outputs))
        self.shortcut = cb(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else nn.Identity()
        self.last = last

    def forward(self, x):
        y = self.body(x) + self.shortcut(x)
        return y if self.last else F.relu(y)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 to twice the width, and a shortcut; `ends` in ReLU only in sithu31296's reading."""

    def __init__(self, width, stride, ends):
        super().__init__()
        self.body = nn.Sequential(*conv_bn(width, width, 1), nn.ReLU(), *conv_bn(width, width, stride=stride), nn.ReLU(), *conv_bn(width, 2 * width, 1))
        self.shortcut = cb(width, 2 * width, 1, stride)
        self.ends = ends

    def forward(self, x):
        y = self.body(x) + self.shortcut(x)
        return F.relu(y) if self.ends else y


def group(blocks, inputs, outputs, stride=1):
    """Basic blocks, the first with the stride, the last without ReLU."""
    return nn.Sequential(*(Basic(inputs if n == 0 else outputs, outputs, stride if n == 0 else 1, n == blocks - 1) for n in range(blocks)))


def brc(inputs, outputs, kernel=1):
    """BatchNorm, ReLU, convolution."""
    return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False))


class DeepAggregation(nn.Module):
    """DAPPM: pools of growing size, each refined with the one before."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.scales = nn.ModuleList(brc(inputs, BRANCH) for _ in range(5))
        self.processes = nn.ModuleList(brc(BRANCH, BRANCH, 3) for _ in range(4))
        self.compression = brc(5 * BRANCH, outputs)
        self.shortcut = brc(inputs, outputs)

    def forward(self, x):
        pooled = [F.avg_pool2d(x, 2 * step + 1, step, step) for step in (2, 4, 8)] + [mean(x)]
        found = [self.scales[0](x)]
        for scale, process, y in zip(self.scales[1:], self.processes, pooled):
            found.append(process(resize(scale(y), x.shape[-2:], "bilinear") + found[-1]))
        return self.compression(torch.cat(found, 1)) + self.shortcut(x)


class PyramidPooling(nn.Module):
    """The PPM of Table X, which is SwiftNet's: a bottleneck, means over grids of 6, 3, 2 and 1 cells (Table IV), all of it joined."""

    def __init__(self, inputs, outputs, grids=(6, 3, 2, 1)):
        super().__init__()
        self.grids = grids
        self.bottleneck = brc(inputs, BRANCH)
        self.levels = nn.ModuleList(brc(BRANCH, BRANCH // len(grids)) for _ in grids)
        self.fuse = brc(2 * BRANCH, outputs)

    def forward(self, x):
        x = self.bottleneck(x)
        means = [resize(level(cell_means(x, grid)), x.shape[-2:], "bilinear") for level, grid in zip(self.levels, self.grids)]
        return self.fuse(torch.cat([x, *means], 1))


def cell_means(x, grid):
    """The adaptive average pool, an axis after the other: ONNX has none for cells of unequal size, and a product needs FP32 GEMM, which
    TensorRT-RTX has not for compute capability 7.5."""
    for axis in (2, 3):
        length = int(x.shape[axis])
        cells = [x.narrow(axis, n * length // grid, -(-(n + 1) * length // grid) - n * length // grid) for n in range(grid)]
        x = torch.cat([cell.mean(axis, keepdim=True) for cell in cells], axis)
    return x


CONTEXTS = {"dappm": DeepAggregation, "ppm": PyramidPooling, "none": brc}


class DDRNet(nn.Module):
    """N x 3 x H x W, normalised RGB -> N x classes x H/8 x W/8 logits; H and W multiples of 8.

    width: of the stem. blocks: in layer1, layer2, each group of stage 3 (a tuple), stage 4; high: the same of the high branch.
    """

    def __init__(self, classes, width, head, blocks=(2, 2, (2,), 2), high=((2,), 2), context="dappm", stem_bias=True, stride5=2, ends=False):
        super().__init__()
        w = width
        stem = [nn.Conv2d(3, w, 3, 2, 1, bias=stem_bias), nn.BatchNorm2d(w), nn.ReLU(), nn.Conv2d(w, w, 3, 2, 1, bias=stem_bias), nn.BatchNorm2d(w)]
        self.stem = nn.Sequential(*stem, nn.ReLU())
        self.layer1 = group(blocks[0], w, w)
        self.layer2 = group(blocks[1], w, 2 * w, 2)
        self.low3 = nn.ModuleList(group(n, 4 * w if i else 2 * w, 4 * w, 1 if i else 2) for i, n in enumerate(blocks[2]))
        self.high3 = nn.ModuleList(group(n, 2 * w, 2 * w) for n in high[0])
        self.down3 = nn.ModuleList(cb(2 * w, 4 * w, 3, 2) for _ in high[0])
        self.up3 = nn.ModuleList(cb(4 * w, 2 * w, 1) for _ in high[0])
        self.low4, self.high4 = group(blocks[3], 4 * w, 8 * w, 2), group(high[1], 2 * w, 2 * w)
        self.down4 = nn.Sequential(*conv_bn(2 * w, 4 * w, 3, 2), nn.ReLU(), *conv_bn(4 * w, 8 * w, 3, 2))
        self.up4 = cb(8 * w, 2 * w, 1)
        self.low5, self.high5 = Bottleneck(8 * w, stride5, ends), Bottleneck(2 * w, 1, ends)
        self.context = CONTEXTS[context](16 * w, 4 * w)
        self.head = nn.Sequential(nn.BatchNorm2d(4 * w), nn.ReLU(), *conv_bn(4 * w, head), nn.ReLU())
        self.classifier = nn.Conv2d(head, classes, 1)

    def forward(self, x):
        low = high = F.relu(self.layer2(F.relu(self.layer1(self.stem(x)))))
        size = high.shape[-2:]
        stages = [*zip(self.low3, self.high3, self.down3, self.up3), (self.low4, self.high4, self.down4, self.up4)]
        for low_group, high_group, down, up in stages:
            low, high = low_group(F.relu(low)), high_group(F.relu(high))
            low, high = low + down(F.relu(high)), high + resize(up(F.relu(low)), size, "bilinear")
        low, high = self.context(self.low5(F.relu(low))), self.high5(F.relu(high))
        return self.classifier(self.head(resize(low, size, "bilinear") + high))


BLOCKS = (
    (r"\.conv1\.", ".body.0."), (r"\.bn1\.", ".body.1."), (r"\.conv2\.", ".body.3."), (r"\.bn2\.", ".body.4."),
    (r"\.conv3\.", ".body.6."), (r"\.bn3\.", ".body.7."),
)

OFFICIAL = Dialect(
    name="official",
    source="ydhongHIT/DDRNet@de0db31",
    normalisation=IMAGENET,
    multiple=8,
    drops=(r"^seghead_extra\.",),
    renames=(
        (r"^final_layer\.bn1\.", "head.0."), (r"^final_layer\.conv1\.", "head.2."), (r"^final_layer\.bn2\.", "head.3."),
        (r"^final_layer\.conv2\.", "classifier."),
        *BLOCKS,
        (r"^conv1\.", "stem."), (r"^(layer5_?)\.0\.", r"\1."), (r"\.downsample\.", ".shortcut."),
        (r"^layer3(?:_1)?\.", "low3.0."), (r"^layer3_2\.", "low3.1."), (r"^layer3_(?:1_)?\.", "high3.0."), (r"^layer3_2_\.", "high3.1."),
        (r"^layer4\.", "low4."), (r"^layer4_\.", "high4."), (r"^layer5\.", "low5."), (r"^layer5_\.", "high5."),
        (r"^down3(?:_1)?\.", "down3.0."), (r"^down3_2\.", "down3.1."),
        (r"^compression3(?:_1)?\.", "up3.0."), (r"^compression3_2\.", "up3.1."), (r"^compression4\.", "up4."),
        (r"^spp\.scale0\.", "context.scales.0."), (r"^spp\.scale(\d)\.1\.", r"context.scales.\1.0."), (r"^spp\.scale(\d)\.3\.", r"context.scales.\1.2."),
        (r"^spp\.process1\.", "context.processes.0."), (r"^spp\.process2\.", "context.processes.1."),
        (r"^spp\.process3\.", "context.processes.2."), (r"^spp\.process4\.", "context.processes.3."), (r"^spp\.", "context."),
    ),
)

# the same keys, without the "model." before them, and another function: loading one as the other degrades it without a word
SITHU = replace(OFFICIAL, name="sithu", source="sithu31296/semantic-segmentation@c2843c9", bare=True, variant={"stride5": 1, "ends": True})

# its own networks are the official ones; its later configurations enlarge as they do, its default and older ones align the corners
CHENJUN2HAO = replace(OFFICIAL, name="chenjun2hao", source="chenjun2hao/DDRNet.pytorch@bc0e193", beside="best_mIoU")
CORNERS = replace(CHENJUN2HAO, name="chenjun2hao-corners", enlarge="corners", beside="", asked=True)

SUPERGRADIENTS = Dialect(
    name="supergradients",
    source="Deci-AI/super-gradients@e0ccacf",
    normalisation=IMAGENET,
    multiple=8,
    drops=OFFICIAL.drops,
    renames=(
        (r"^_backbone\.", ""), (r"^stem\.0\.", "stem."), (r"^stem\.1\.0\.", "stem.3."), (r"^stem\.1\.1\.", "stem.4."),
        (r"^(layer3|down3|compression3)\.0\.", r"\1_1."), (r"^(layer3|down3|compression3)\.1\.", r"\1_2."),
        (r"^layer3_skip\.0\.", "layer3_1_."), (r"^layer3_skip\.1\.", "layer3_2_."),
        (r"^layer(\d)_skip\.", r"layer\1_."), (r"^down4\.0\.", "down4."), (r"^down4\.1\.0\.", "down4.3."), (r"^down4\.1\.1\.", "down4.4."),
        (r"^spp\.branches\.0\.down_scale\.", "spp.scale0."), (r"^spp\.branches\.(\d)\.down_scale\.", r"spp.scale\1."),
        (r"^spp\.branches\.(\d)\.process\.", r"spp.process\1."),
        *OFFICIAL.renames,
    ),
)

MMSEG = Dialect(
    name="mmsegmentation",
    source="open-mmlab/mmsegmentation@v1.2.2",
    normalisation=IMAGENET,
    multiple=8,
    drops=(r"^decode_head\.aux_",),
    variant={"stem_bias": False},
    renames=(
        (r"^decode_head\.head\.0\.bn\.", "head.0."), (r"^decode_head\.head\.0\.conv\.", "head.2."), (r"^decode_head\.head\.1\.", "head.3."),
        (r"^decode_head\.conv_seg\.", "classifier."), (r"^backbone\.", ""),
        (r"^spp\.(.*)\.bn\.", r"spp.\1.0."), (r"^spp\.(.*)\.conv\.", r"spp.\1.2."),
        (r"^spp\.scales\.(\d)\.1\.(\d)\.", r"spp.scales.\1.\2."), (r"^spp\.", "context."),
        (r"\.conv(\d)\.conv\.", r".conv\1."), (r"\.conv(\d)\.bn\.", r".bn\1."), *BLOCKS,
        (r"^stem\.2\.", "layer1."), (r"^stem\.4\.", "layer2."), (r"^stem\.0\.conv\.", "stem.0."), (r"^stem\.0\.bn\.", "stem.1."),
        (r"^stem\.1\.conv\.", "stem.3."), (r"^stem\.1\.bn\.", "stem.4."), (r"\.downsample\.", ".shortcut."),
        (r"^context_branch_layers\.0\.", "low3.0."), (r"^context_branch_layers\.1\.", "low4."), (r"^context_branch_layers\.2\.0\.", "low5."),
        (r"^spatial_branch_layers\.0\.", "high3.0."), (r"^spatial_branch_layers\.1\.", "high4."), (r"^spatial_branch_layers\.2\.0\.", "high5."),
        (r"^compression_1\.", "up3.0."), (r"^compression_2\.", "up4."), (r"^down_1\.", "down3.0."),
        (r"^down_2\.0\.conv\.", "down4.0."), (r"^down_2\.0\.bn\.", "down4.1."), (r"^down_2\.1\.conv\.", "down4.3."), (r"^down_2\.1\.bn\.", "down4.4."),
        (r"\.conv\.", ".0."), (r"\.bn\.", ".1."),
    ),
)

PAPER = "Hong et al., arXiv 2101.06085, DDRNet"
DEEP = {"blocks": (3, 4, (3, 3), 3), "high": ((3, 3), 3)}


def ddrnet(name, dialects=(), note="", **variant):
    return Network(f"ddrnet-{name}", PAPER, DDRNet, multiple=8, variant=variant, dialects=dialects, note=note)


NETWORKS = (
    ddrnet("23-slim", (CHENJUN2HAO, CORNERS, OFFICIAL, SITHU, SUPERGRADIENTS, MMSEG), width=32, head=64),
    ddrnet("23", (CHENJUN2HAO, CORNERS, OFFICIAL, SITHU, SUPERGRADIENTS, MMSEG), width=64, head=128),
    ddrnet("39", (CHENJUN2HAO, CORNERS, OFFICIAL, SUPERGRADIENTS), width=64, head=256, **DEEP),
    ddrnet("39-1.5x", width=96, head=256, **DEEP, note="its code is not public: DDRNet-39 with 1.5 times the width"),
    ddrnet("23-slim-ppm", width=32, head=64, context="ppm", note="Table X names SwiftNet's pyramid; its widths here are DAPPM's branch width over the grids"),
    ddrnet("23-slim-no-context", width=32, head=64, context="none", note="Table X: a 1x1 projection in place of DAPPM"),
)

LOOKALIKES = (
    Lookalike(r"(^|\.)last_layer\.|(^|\.)down5\.", "a DDRNet pre-trained on ImageNet: it classifies, and has no segmentation head",
              "take the checkpoint that was trained on a segmentation set"),
    Lookalike(r"(^|\.)(diff[34]|dfm|layer5_d)\.", "XuJiacong/PIDNet's boundary-branch network, which is no DDRNet",
              "export it with --model package.module:factory"),
)
