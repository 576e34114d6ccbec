"""BiSeNet V2: bilateral network with guided aggregation, width 1.0, for inference.

Paper: Yu et al., "BiSeNet V2: Bilateral Network with Guided Aggregation for Real-time Semantic Segmentation", IJCV 2021.
The authors published no code. This is the public form (CoinCheung/BiSeNet@6b4b67a), which is heavier than the paper's:
24.60 GMACs at 512x1024 where the paper prints 21.15. Its head of 1024 channels is that author's choice; the paper names none.
"""
import torch
from torch import nn
from torch.nn import functional as F

from . import ADE20K, CITYSCAPES, COCO, Dialect, Network


def conv_bn(inputs, outputs, kernel=3, stride=1, groups=1):
    """Convolution without bias, then BatchNorm; half padding."""
    return [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)]


def cbr(inputs, outputs, kernel=3, stride=1):
    """Convolution, BatchNorm, ReLU."""
    return nn.Sequential(*conv_bn(inputs, outputs, kernel, stride), nn.ReLU())


def separable(width, outputs, stride=1):
    """Depthwise 3x3, BatchNorm, 1x1."""
    return nn.Sequential(*conv_bn(width, width, stride=stride, groups=width), nn.Conv2d(width, outputs, 1, bias=False))


def detail_branch():
    """The image at 1/8 with 128 channels of detail."""
    return nn.Sequential(
        nn.Sequential(cbr(3, 64, stride=2), cbr(64, 64)),
        nn.Sequential(cbr(64, 64, stride=2), cbr(64, 64), cbr(64, 64)),
        nn.Sequential(cbr(64, 128, stride=2), cbr(128, 128), cbr(128, 128)),
    )


class Stem(nn.Module):
    """1/4 of the image by two ways, joined: strided convolutions, and a max pool."""

    def __init__(self):
        super().__init__()
        self.first = cbr(3, 16, stride=2)
        self.left = nn.Sequential(cbr(16, 8, 1), cbr(8, 16, stride=2))
        self.fuse = cbr(32, 16)

    def forward(self, x):
        x = self.first(x)
        return self.fuse(torch.cat([self.left(x), F.max_pool2d(x, 3, stride=2, padding=1)], 1))


class GatherExpand(nn.Module):
    """Gather-and-expansion layer: 3x3, grouped 3x3 to six times the width, 1x1 back. Only stride 2 has a shortcut with weights."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        wide = 6 * inputs
        self.gather = cbr(inputs, inputs)
        expand = conv_bn(inputs, wide, stride=stride, groups=inputs)
        self.expand = nn.Sequential(*expand, *(conv_bn(wide, wide, groups=wide) if stride == 2 else []), nn.ReLU())
        self.project = nn.Sequential(*conv_bn(wide, outputs, 1))
        self.shortcut = nn.Identity()
        if stride == 2:
            self.shortcut = nn.Sequential(*separable(inputs, outputs, 2), nn.BatchNorm2d(outputs))

    def forward(self, x):
        return F.relu(self.project(self.expand(self.gather(x))) + self.shortcut(x))


class ContextEmbedding(nn.Module):
    """Adds the mean of the whole plane to every pixel."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(128)
        self.mean = cbr(128, 128, 1)
        self.last = cbr(128, 128)

    def forward(self, x):
        return self.last(x + self.mean(self.bn(x.mean((2, 3), keepdim=True))))


class GuidedAggregation(nn.Module):
    """Each branch gates the other. `mode` is how the semantic map is enlarged: implementations differ, and weights depend on it."""

    def __init__(self, mode):
        super().__init__()
        self.mode = mode
        self.detail = separable(128, 128)
        self.detail_down = nn.Sequential(*conv_bn(128, 128, stride=2))  # then an average pool that counts its padding
        self.semantic_up = nn.Sequential(*conv_bn(128, 128))
        self.semantic = separable(128, 128)
        self.last = cbr(128, 128)

    def forward(self, detail, semantic):
        size = detail.shape[-2:]
        fine = self.detail(detail) * torch.sigmoid(F.interpolate(self.semantic_up(semantic), size=size, mode=self.mode))
        coarse = F.avg_pool2d(self.detail_down(detail), 3, stride=2, padding=1) * torch.sigmoid(self.semantic(semantic))
        return self.last(fine + F.interpolate(coarse, size=size, mode=self.mode))


class BiSeNetV2(nn.Module):
    """N x 3 x H x W, normalised RGB -> N x classes x H/8 x W/8 logits; H and W multiples of 32."""

    def __init__(self, classes, mode="nearest"):
        super().__init__()
        self.detail = detail_branch()
        self.semantic = nn.Sequential(
            Stem(), GatherExpand(16, 32, 2), GatherExpand(32, 32, 1), GatherExpand(32, 64, 2), GatherExpand(64, 64, 1),
            GatherExpand(64, 128, 2), GatherExpand(128, 128, 1), GatherExpand(128, 128, 1), GatherExpand(128, 128, 1),
            ContextEmbedding())
        self.aggregate = GuidedAggregation(mode)
        self.head = cbr(128, 1024)
        self.classifier = nn.Conv2d(1024, classes, 1)

    def forward(self, x):
        return self.classifier(self.head(self.aggregate(self.detail(x), self.semantic(x))))


COINCHEUNG = Dialect(
    name="coincheung",
    source="CoinCheung/BiSeNet@6b4b67a",
    normalisation={19: CITYSCAPES, 171: COCO, 150: ADE20K},
    variant={"mode": "nearest"},
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

NETWORKS = (
    Network(name="bisenetv2", paper="Yu et al., IJCV 2021, BiSeNet V2", build=BiSeNetV2, head="classifier.weight",
            stride=8, multiple=32, dialects=(COINCHEUNG,)),
)
