"""BiSeNet V2: bilateral network with guided aggregation, for inference.

Paper: Yu et al., "BiSeNet V2: Bilateral Network with Guided Aggregation for Real-time Semantic Segmentation", IJCV 2021.
The authors published no code. The public form (CoinCheung/BiSeNet@6b4b67a, mmsegmentation) differs from the paper's text, and neither
gives the paper's 21.15 GMACs at 512x1024: the public form has 24.60, the literal one 17.67 without its head, whose width is not stated.
"""
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from ..layers import cb, cbr, conv_bn, mean, resize
from . import ADE20K, CITYSCAPES, COCO, IMAGENET, Dialect, Lookalike, Network


def separable(width, stride=1, bias=False):
    """Depthwise 3x3, BatchNorm, 1x1."""
    return nn.Sequential(*conv_bn(width, width, stride=stride, groups=width), nn.Conv2d(width, width, 1, bias=bias))


def detail_branch(a):
    """The image at 1/8 with 128 channels of detail; a: the function that scales a width."""
    return nn.Sequential(
        nn.Sequential(cbr(3, a(64), stride=2), cbr(a(64), a(64))),
        nn.Sequential(cbr(a(64), a(64), stride=2), cbr(a(64), a(64)), cbr(a(64), a(64))),
        nn.Sequential(cbr(a(64), a(128), stride=2), cbr(a(128), a(128)), cbr(a(128), a(128))),
    )


class Stem(nn.Module):
    """1/4 of the image by two ways, joined: strided convolutions, and a max pool."""

    def __init__(self, width, fuse_kernel):
        super().__init__()
        self.first = cbr(3, width, stride=2)
        self.left = nn.Sequential(cbr(width, width // 2, 1), cbr(width // 2, width, stride=2))
        self.fuse = cbr(2 * width, width, fuse_kernel)

    def forward(self, x):
        x = self.first(x)
        return self.fuse(torch.cat([self.left(x), F.max_pool2d(x, 3, stride=2, padding=1)], 1))


class GatherExpand(nn.Module):
    """Gather-and-expansion layer. Public form: 3x3, grouped 3x3 to `times` the width, 1x1 back; literal: 3x3 to that width, depthwise 3x3, 1x1.

    Only stride 2 has a shortcut with weights, and one depthwise 3x3 more.
    """

    def __init__(self, inputs, outputs, stride, times, literal):
        super().__init__()
        wide = times * inputs
        self.gather = cbr(inputs, wide if literal else inputs)
        expand = conv_bn(wide if literal else inputs, wide, stride=stride, groups=wide if literal else inputs)
        self.expand = nn.Sequential(*expand, *(conv_bn(wide, wide, groups=wide) if stride == 2 else []), *([] if literal else [nn.ReLU()]))
        self.project = cb(wide, outputs, 1)
        self.shortcut = nn.Identity()
        if stride == 2:
            self.shortcut = nn.Sequential(*conv_bn(inputs, inputs, stride=2, groups=inputs), *conv_bn(inputs, outputs, 1))

    def forward(self, x):
        return F.relu(self.project(self.expand(self.gather(x))) + self.shortcut(x))


class ContextEmbedding(nn.Module):
    """Adds the mean of the whole plane to every pixel."""

    def __init__(self, width):
        super().__init__()
        self.bn = nn.BatchNorm2d(width)
        self.mean = cbr(width, width, 1)
        self.last = cbr(width, width)

    def forward(self, x):
        return self.last(x + self.mean(self.bn(mean(x))))


class GuidedAggregation(nn.Module):
    """Each branch gates the other. `mode` is how the semantic map is enlarged: implementations differ, and weights depend on it."""

    def __init__(self, width, mode, bias):
        super().__init__()
        self.mode = mode
        self.detail = separable(width, bias=bias)
        self.detail_down = cb(width, width, stride=2)  # then an average pool that counts its padding
        self.semantic_up = cb(width, width)
        self.semantic = separable(width, bias=bias)
        self.last = cbr(width, width)

    def forward(self, detail, semantic):
        size = detail.shape[-2:]
        fine = self.detail(detail) * torch.sigmoid(resize(self.semantic_up(semantic), size, self.mode))
        coarse = F.avg_pool2d(self.detail_down(detail), 3, stride=2, padding=1) * torch.sigmoid(self.semantic(semantic))
        return self.last(fine + resize(coarse, size, self.mode))


class BiSeNetV2(nn.Module):
    """N x 3 x H x W, normalised RGB -> N x classes x H/8 x W/8 logits, or H x W where the classifier's channels are shuffled to pixels.

    width (alpha), depth (d), ratio (lambda) and times (epsilon) are the paper's; literal and fuse_kernel choose between its text and the
    public form; mode is how maps are enlarged (see layers.resize); shuffle: the classifier gives shuffle^2 channels a class.
    """

    def __init__(self, classes, width=1.0, depth=1, ratio=0.25, times=6, literal=False, fuse_kernel=3, head=1024, mode="bilinear", bias=False, shuffle=1):
        super().__init__()

        def a(channels):
            return round(channels * width)

        stem, s3, s4, s5 = a(64 * ratio), a(128 * ratio), a(64), a(128)
        stages = [(stem, s3, 2 * depth), (s3, s4, 2 * depth), (s4, s5, 4 * depth)]
        layers = [GatherExpand(i if n == 0 else o, o, 2 if n == 0 else 1, times, literal) for i, o, count in stages for n in range(count)]
        self.detail = detail_branch(a)
        self.semantic = nn.Sequential(Stem(stem, fuse_kernel), *layers, ContextEmbedding(s5))
        self.aggregate = GuidedAggregation(s5, mode, bias)
        self.head = cbr(s5, head)
        self.classifier = nn.Conv2d(head, classes * shuffle ** 2, 1)
        self.shuffle = shuffle

    def forward(self, x):
        logits = self.classifier(self.head(self.aggregate(self.detail(x), self.semantic(x))))
        return F.pixel_shuffle(logits, self.shuffle) if self.shuffle > 1 else logits


COINCHEUNG = Dialect(
    name="coincheung",
    source="CoinCheung/BiSeNet@6b4b67a",
    normalisation={19: CITYSCAPES, 171: COCO, 150: ADE20K},
    multiple=32,
    variant={"mode": "nearest"},
    rows={"head.conv_out.1.weight": 1},
    drops=(r"^aux(2|3|4|5_4)\.",),
    renames=(
        (r"^detail\.S1\.", "detail.0."), (r"^detail\.S2\.", "detail.1."), (r"^detail\.S3\.", "detail.2."),
        (r"^segment\.S1S2\.conv\.", "semantic.0.first."), (r"^segment\.S1S2\.", "semantic.0."),
        (r"^segment\.S3\.0\.", "semantic.1."), (r"^segment\.S3\.1\.", "semantic.2."),
        (r"^segment\.S4\.0\.", "semantic.3."), (r"^segment\.S4\.1\.", "semantic.4."),
        (r"^segment\.S5_4\.0\.", "semantic.5."), (r"^segment\.S5_4\.1\.", "semantic.6."),
        (r"^segment\.S5_4\.2\.", "semantic.7."), (r"^segment\.S5_4\.3\.", "semantic.8."),
        (r"^segment\.S5_5\.", "semantic.9."), (r"\.conv_gap\.", ".mean."), (r"\.conv_last\.", ".last."),
        (r"^(semantic\.\d)\.conv1\.", r"\1.gather."), (r"\.dwconv1?\.", ".expand."),
        (r"\.dwconv2\.0\.", ".expand.2."), (r"\.dwconv2\.1\.", ".expand.3."), (r"\.conv2\.", ".project."),
        (r"^bga\.left1\.", "aggregate.detail."), (r"^bga\.left2\.", "aggregate.detail_down."),
        (r"^bga\.right1\.", "aggregate.semantic_up."), (r"^bga\.right2\.", "aggregate.semantic."), (r"^bga\.conv\.", "aggregate.last."),
        (r"^head\.conv_out\.1\.", "classifier."), (r"^head\.conv\.", "head."),
        (r"\.conv\.weight$", ".0.weight"), (r"\.bn\.(?=\w+$)", ".1."), (r"^semantic\.9\.1\.", "semantic.9.bn."),
    ),
)

SHUFFLED = replace(
    COINCHEUNG, name="coincheung-shuffle", source="CoinCheung/BiSeNet@c6d7405", variant={"mode": "nearest", "shuffle": 8},
    rows={"head.conv_out.0.weight": 64, "aux2.conv_out.1.weight": 16, "aux3.conv_out.1.weight": 64},
    renames=((r"^head\.conv_out\.0\.", "classifier."), *COINCHEUNG.renames))

OLD = replace(
    COINCHEUNG, name="coincheung-2020", source="CoinCheung/BiSeNet@0471e80", variant={"mode": "corners"}, enlarge="corners", multiple=1,
    rows={"head.conv_out.weight": 1}, renames=((r"^head\.conv_out\.", "classifier."), *COINCHEUNG.renames))

# an older file that its repository kept: the same keys as in 2020, enlarged otherwise
NEAREST = replace(OLD, name="coincheung-2020-nearest", source="CoinCheung/BiSeNet@c6d7405", variant={"mode": "nearest"}, enlarge="bilinear", asked=True)

MMSEG = Dialect(
    name="mmsegmentation",
    source="open-mmlab/mmsegmentation@v1.2.2",
    normalisation=IMAGENET,
    drops=(r"^auxiliary_head\.",),
    variant={"bias": True},
    renames=(
        (r"^decode_head\.convs\.0\.", "head."), (r"^decode_head\.conv_seg\.", "classifier."),
        (r"^backbone\.detail\.detail_branch\.", "detail."), (r"^backbone\.semantic\.", "semantic."),
        (r"^semantic\.stage1\.conv_first\.", "semantic.0.first."), (r"^semantic\.stage1\.convs\.", "semantic.0.left."),
        (r"^semantic\.stage1\.fuse_last\.", "semantic.0.fuse."),
        (r"^semantic\.stage2\.0\.", "semantic.1."), (r"^semantic\.stage2\.1\.", "semantic.2."),
        (r"^semantic\.stage3\.0\.", "semantic.3."), (r"^semantic\.stage3\.1\.", "semantic.4."),
        (r"^semantic\.stage4\.0\.", "semantic.5."), (r"^semantic\.stage4\.1\.", "semantic.6."),
        (r"^semantic\.stage4\.2\.", "semantic.7."), (r"^semantic\.stage4\.3\.", "semantic.8."), (r"^semantic\.stage4_CEBlock\.", "semantic.9."),
        (r"\.gap\.1\.", ".bn."), (r"\.conv_gap\.", ".mean."), (r"\.conv_last\.", ".last."),
        (r"^(semantic\.\d)\.conv1\.", r"\1.gather."), (r"\.dwconv\.0\.conv\.", ".expand.0."), (r"\.dwconv\.0\.bn\.", ".expand.1."),
        (r"\.dwconv\.1\.conv\.", ".expand.2."), (r"\.dwconv\.1\.bn\.", ".expand.3."), (r"\.conv2\.0\.", ".project."),
        (r"\.(shortcut|detail_dwconv|semantic_dwconv)\.0\.depthwise_conv\.", r".\1."),
        (r"\.(shortcut|detail_dwconv|semantic_dwconv)\.0\.pointwise_conv\.conv\.", r".\1.2."), (r"\.shortcut\.0\.pointwise_conv\.bn\.", ".shortcut.3."),
        (r"^backbone\.bga\.", "aggregate."), (r"\.detail_dwconv\.", ".detail."), (r"\.semantic_dwconv\.", ".semantic."),
        (r"\.detail_down\.0\.", ".detail_down."), (r"\.semantic_conv\.0\.", ".semantic_up."), (r"^aggregate\.conv\.", "aggregate.last."),
        (r"\.conv\.(?=\w+$)", ".0."), (r"\.bn\.(?=\w+$)", ".1."), (r"^semantic\.9\.1\.", "semantic.9.bn."),
    ),
)

SITHU = Dialect(
    name="sithu",
    source="sithu31296/semantic-segmentation@c2843c9",
    normalisation=IMAGENET,
    multiple=32,
    drops=(r"^aux\d_head\.",),
    variant=SHUFFLED.variant,
    rows={"output_head.conv_out.0.weight": 64, "aux2_head.conv_out.1.weight": 16},
    renames=(
        (r"^detail_branch\.", "detail."), (r"^semantic_branch\.", "segment."), (r"^aggregation_layer\.", "bga."), (r"^output_head\.", "head."),
        (r"\.conv_3x3\.", ".conv."), (r"\.S5_1\.", ".S5_4."), (r"^segment\.S5_2\.inner\.1\.", "segment.S5_5.bn."),
        (r"^segment\.S5_2\.inner\.2\.", "segment.S5_5.conv_gap."), (r"^segment\.S5_2\.conv\.", "segment.S5_5.conv_last."),
        (r"\.inner\.0\.", ".conv1."), (r"\.outer\.", ".shortcut."),
        (r"\.inner\.1\.(\d\.)", r".dwconv.\1"), (r"(\.[1-3])\.inner\.2\.", r"\1.conv2.0."), (r"(\.[1-3])\.inner\.3\.", r"\1.conv2.1."),
        (r"\.inner\.1\.", ".dwconv.0."), (r"\.inner\.2\.", ".dwconv.1."), (r"\.inner\.3\.", ".dwconv2."),
        (r"\.inner\.4\.", ".conv2.0."), (r"\.inner\.5\.", ".conv2.1."),
        *SHUFFLED.renames,
    ),
)

PAPER = "Yu et al., IJCV 2021, BiSeNet V2"
LITERAL = {"literal": True, "fuse_kernel": 1}
LITERALLY = "the layers as the paper's text has them; its head's width is not stated"


def variant(name, note="", **arguments):
    return Network(f"bisenetv2-{name}", PAPER, BiSeNetV2, variant=arguments, note=note)


NETWORKS = (
    Network("bisenetv2", PAPER, BiSeNetV2, dialects=(COINCHEUNG, SHUFFLED, OLD, NEAREST, MMSEG, SITHU)),
    variant("l", width=2.0, depth=3),
    variant("literal", LITERALLY, **LITERAL, head=64),
    variant("l-literal", LITERALLY, **LITERAL, head=256, width=2.0, depth=3),
    *(variant(f"w{width}", LITERALLY, **LITERAL, head=256, width=width) for width in (1.25, 1.5, 1.75, 2.0)),  # Table 5
    *(variant(f"d{depth}", LITERALLY, **LITERAL, head=64, depth=depth) for depth in (2, 3, 4)),
)

LOOKALIKES = (
    Lookalike(r"^(detail|segment|bga)$", "CoinCheung/BiSeNet's ImageNet backbone for BiSeNetV2, without a segmentation head",
              "take the checkpoint of the trained network"),
)
