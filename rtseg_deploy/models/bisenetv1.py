"""BiSeNet V1: bilateral network with a spatial and a context path, for inference.

Paper: Yu et al., "BiSeNet: Bilateral Segmentation Network for Real-time Semantic Segmentation", ECCV 2018.
Where the paper is silent the authors' code decides (ycszen/TorchSeg@62eeb15): a 3x3 convolution in each attention module, a closing 1x1
in the spatial path, no BatchNorm in the fusion's gate, corners aligned when maps are enlarged.
"""
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from ..layers import cb, cbr, conv_bn, mean, resize
from . import ADE20K, CITYSCAPES, COCO, IMAGENET, Dialect, Lookalike, Network


class Residual(nn.Module):
    """ResNet's blocks: two 3x3, or 1x1, 3x3 and 1x1 to four times the width; the stride is on the (first) 3x3."""

    def __init__(self, inputs, width, stride, bottleneck):
        super().__init__()
        outputs = 4 * width if bottleneck else width
        if bottleneck:
            layers = [*conv_bn(inputs, width, 1), nn.ReLU(), *conv_bn(width, width, stride=stride), nn.ReLU(), *conv_bn(width, outputs, 1)]
        else:
            layers = [*conv_bn(inputs, width, stride=stride), nn.ReLU(), *conv_bn(width, width)]
        self.body = nn.Sequential(*layers)
        self.shortcut = cb(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else nn.Identity()

    def forward(self, x):
        return F.relu(self.body(x) + self.shortcut(x))


class Stages(nn.Module):
    """N x 3 x H x W -> the maps at 1/4, 1/8, 1/16 and 1/32 of a backbone: a stem, a max pool, stages."""

    def __init__(self, stem, widths, stages):
        super().__init__()
        self.stem = stem
        self.widths = widths        # of the four maps
        self.stages = nn.ModuleList(stages)

    def forward(self, x):
        maps = [F.max_pool2d(self.stem(x), 3, stride=2, padding=1)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps if len(maps) == 4 else maps[1:]  # ResNet's first stage stays at 1/4, Xception39 has none there


def resnet(blocks, bottleneck=False, deep=False):
    """ResNet without its classifier; deep: three 3x3 in the place of the 7x7."""
    stem, inputs, stages = cbr(3, 64, 7, 2), 64, []
    if deep:
        stem, inputs = nn.Sequential(*conv_bn(3, 64, 3, 2), nn.ReLU(), *conv_bn(64, 64), nn.ReLU(), *conv_bn(64, 128), nn.ReLU()), 128
    widths = [width * (4 if bottleneck else 1) for width in (64, 128, 256, 512)]
    for width, outputs, count, stride in zip((64, 128, 256, 512), widths, blocks, (1, 2, 2, 2)):
        stages.append(nn.Sequential(*(Residual(inputs if n == 0 else outputs, width, stride if n == 0 else 1, bottleneck) for n in range(count))))
        inputs = outputs
    return Stages(stem, widths, stages)


def separable(inputs, outputs, stride=1, relu=True):
    """Depthwise 3x3 with nothing after it, 1x1, BatchNorm."""
    depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
    return nn.Sequential(depthwise, *conv_bn(inputs, outputs, 1), *([nn.ReLU()] if relu else []))


class Separables(nn.Module):
    """Xception39's block: three separable convolutions to four times the width, and a shortcut."""

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.body = nn.Sequential(separable(inputs, width, stride), separable(width, width), separable(width, 4 * width, relu=False))
        self.shortcut = separable(inputs, 4 * width, stride, relu=False) if stride > 1 else nn.Identity()

    def forward(self, x):
        return F.relu(self.body(x) + self.shortcut(x))


def xception39():
    stages, inputs = [], 8
    for width, count in ((16, 4), (32, 8), (64, 4)):
        stages.append(nn.Sequential(*(Separables(inputs if n == 0 else 4 * width, width, 1 if n else 2) for n in range(count))))
        inputs = 4 * width
    return Stages(cbr(3, 8, 3, 2), [8, 64, 128, 256], stages)


BACKBONES = {
    "xception39": xception39,
    "resnet18": lambda: resnet((2, 2, 2, 2)),
    "resnet50": lambda: resnet((3, 4, 6, 3), bottleneck=True),
    "resnet101": lambda: resnet((3, 4, 23, 3), bottleneck=True),
    "resnet101-deep": lambda: resnet((3, 4, 23, 3), bottleneck=True, deep=True),
}


class Attention(nn.Module):
    """Attention refinement module: a 3x3 convolution, scaled by a gate computed from its mean."""

    def __init__(self, inputs, outputs, relu):
        super().__init__()
        self.conv = cbr(inputs, outputs)
        self.gate = cbr(outputs, outputs, 1) if relu else cb(outputs, outputs, 1)

    def forward(self, x):
        x = self.conv(x)
        return x * torch.sigmoid(self.gate(mean(x)))


# The fusion module's gate, before its sigmoid, as the implementations have it
GATES = {
    "two": lambda w: nn.Sequential(nn.Conv2d(w, w, 1, bias=False), nn.ReLU(), nn.Conv2d(w, w, 1, bias=False)),
    "narrow": lambda w: nn.Sequential(nn.Conv2d(w, w // 4, 1, bias=False), nn.ReLU(), nn.Conv2d(w // 4, w, 1, bias=False)),
    "narrow-bn": lambda w: nn.Sequential(cbr(w, w // 4, 1), cbr(w // 4, w, 1)),
    "one": lambda w: cb(w, w, 1),
    "one-relu": lambda w: cbr(w, w, 1),
}


class Fusion(nn.Module):
    """Feature fusion module: both paths joined by a 1x1, and scaled by a gate computed from the mean."""

    def __init__(self, inputs, outputs, gate):
        super().__init__()
        self.conv = cbr(inputs, outputs, 1)
        self.gate = GATES[gate](outputs)

    def forward(self, *maps):
        x = self.conv(torch.cat(maps, 1))
        return x + x * torch.sigmoid(self.gate(mean(x)))


class BiSeNetV1(nn.Module):
    """N x 3 x H x W, normalised RGB -> N x classes x ceil(H/8) x ceil(W/8) logits; H x W where the classifier's channels become pixels.

    times: of the widths beside the backbone; spatial: whether there is a spatial path, or the backbone's 1/8 stands for it; mode: how
    maps are enlarged (see layers.resize); gate: see GATES; relu: in the attention's gate; shuffle: the classifier gives shuffle^2
    channels a class.
    """

    def __init__(self, classes, backbone, head=64, times=1, spatial=True, mode="corners", gate="two", relu=False, bias=True, shuffle=1):
        super().__init__()
        detail, width, fused = 64 * times, 128 * times, 256 * times
        self.context = BACKBONES[backbone]()
        _, c8, c16, c32 = self.context.widths
        self.spatial = None
        if spatial:
            self.spatial = nn.Sequential(cbr(3, detail, 7, 2), cbr(detail, detail, 3, 2), cbr(detail, detail, 3, 2), cbr(detail, 2 * detail, 1))
        self.globe = cbr(c32, width, 1)
        self.attend32, self.attend16 = Attention(c32, width, relu), Attention(c16, width, relu)
        self.refine32, self.refine16 = cbr(width, width), cbr(width, width)
        self.fusion = Fusion((2 * detail if spatial else c8) + width, fused, gate)
        self.head = cbr(fused, head)
        self.classifier = nn.Conv2d(head, classes * shuffle ** 2, 1, bias=bias)
        self.mode, self.shuffle = mode, shuffle

    def forward(self, x):
        _, f8, f16, f32 = self.context(x)
        up = self.refine32(resize(self.attend32(f32) + self.globe(mean(f32)), f16.shape[-2:], self.mode))
        up = self.refine16(resize(self.attend16(f16) + up, f8.shape[-2:], self.mode))
        logits = self.classifier(self.head(self.fusion(self.spatial(x) if self.spatial else f8, up)))
        return F.pixel_shuffle(logits, self.shuffle) if self.shuffle > 1 else logits


class UShape(nn.Module):
    """Table 2's U-shapes: the context path alone, its last maps joined from the coarsest up; 8s gives logits at 1/8, 4s joins one map more, at 1/4."""

    def __init__(self, classes, fine, backbone="xception39", width=128, head=64):
        super().__init__()
        self.context = BACKBONES[backbone]()
        _, c8, c16, c32 = self.context.widths
        self.sides = nn.ModuleList(cbr(c, width) for c in ([c32, c16, c8] if fine else [c32, c16]))
        self.refines = nn.ModuleList(cbr(width, width) for _ in self.sides)
        self.head = cbr(width, head)
        self.classifier = nn.Conv2d(head, classes, 1)

    def forward(self, x):
        maps = self.context(x)[::-1]
        up = 0
        for side, refine, f, finer in zip(self.sides, self.refines, maps, maps[1:]):
            up = refine(resize(side(f) + up, finer.shape[-2:], "corners"))
        return self.classifier(self.head(up))


class Gate(nn.Module):
    """ooooverflow's attention: a gate of its own width, and no other convolution."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.conv(mean(x)))


class WideFusion(nn.Module):
    """ooooverflow's fusion: a 3x3 straight to the classes, and a gate with biases and no BatchNorm."""

    def __init__(self, inputs, classes):
        super().__init__()
        self.conv = cbr(inputs, classes)
        self.gate = nn.Sequential(nn.Conv2d(classes, classes, 1), nn.ReLU(), nn.Conv2d(classes, classes, 1), nn.Sigmoid())

    def forward(self, x):
        x = self.conv(x)
        return x + x * self.gate(mean(x))


class Concatenated(nn.Module):
    """ooooverflow's reading: N x 3 x H x W -> N x classes x 8 ceil(H/8) x 8 ceil(W/8) logits.

    Maps are joined side by side at 1/8 and not from the coarsest up; the classifier comes after the enlargement.
    """

    def __init__(self, classes, backbone):
        super().__init__()
        self.context = BACKBONES[backbone]()
        _, _, c16, c32 = self.context.widths
        self.spatial = nn.Sequential(cbr(3, 64, 3, 2), cbr(64, 128, 3, 2), cbr(128, 256, 3, 2))
        self.attend16, self.attend32 = Gate(c16), Gate(c32)
        self.fusion = WideFusion(256 + c16 + c32, classes)
        self.classifier = nn.Conv2d(classes, classes, 1)

    def forward(self, x):
        fine = self.spatial(x)
        _, _, f16, f32 = self.context(x)
        size = fine.shape[-2:]
        coarse = [resize(self.attend16(f16), size, "bilinear"), resize(self.attend32(f32) * mean(f32), size, "bilinear")]
        y = self.fusion(torch.cat([fine, *coarse], 1))
        return self.classifier(resize(y, [8 * side for side in size], "bilinear"))


def bisenetv1(classes, form=BiSeNetV1, **variant):
    """BiSeNet V1 in the form that an implementation gives it."""
    return form(classes, **variant)


RESNET = (
    (r"^context\.conv1\.", "context.stem.0."), (r"^context\.bn1\.", "context.stem.1."), (r"^context\.layer1\.", "context.stages.0."),
    (r"^context\.layer2\.", "context.stages.1."), (r"^context\.layer3\.", "context.stages.2."), (r"^context\.layer4\.", "context.stages.3."),
    (r"^(context\.stages.*)\.conv1\.", r"\1.body.0."), (r"^(context\.stages.*)\.bn1\.", r"\1.body.1."),
    (r"^(context\.stages.*)\.conv2\.", r"\1.body.3."), (r"^(context\.stages.*)\.bn2\.", r"\1.body.4."),
    (r"^(context\.stages.*)\.conv3\.", r"\1.body.6."), (r"^(context\.stages.*)\.bn3\.", r"\1.body.7."), (r"\.downsample\.", ".shortcut."),
)
CONV_BN = ((r"\.conv\.(?=\w+$)", ".0."), (r"\.bn\.(?=\w+$)", ".1."))

TORCHSEG = Dialect(
    name="torchseg",
    source="ycszen/TorchSeg@62eeb15",
    normalisation=IMAGENET,
    enlarge="corners",
    drops=(r"^heads\.[01]\.",),
    renames=(
        (r"^spatial_path\.conv_7x7\.", "spatial.0."), (r"^spatial_path\.conv_3x3_1\.", "spatial.1."), (r"^spatial_path\.conv_3x3_2\.", "spatial.2."),
        (r"^spatial_path\.conv_1x1\.", "spatial.3."), (r"^global_context\.1\.", "globe."),
        (r"^arms\.0\.", "attend32."), (r"^arms\.1\.", "attend16."), (r"\.conv_3x3\.(?=\w+\.)", ".conv."),
        (r"^(attend\d+)\.channel_attention\.1\.", r"\1.gate."), (r"^refines\.0\.", "refine32."), (r"^refines\.1\.", "refine16."),
        (r"^ffm\.conv_1x1\.", "fusion.conv."),
        (r"^ffm\.channel_attention\.1\.conv\.", "fusion.gate.0."), (r"^ffm\.channel_attention\.2\.conv\.", "fusion.gate.2."),
        (r"^heads\.2\.conv\.", "head."), (r"^heads\.2\.conv_1x1\.", "classifier."), (r"^context_path\.", "context."),
        (r"^context\.conv1\.(conv|bn)\.", r"context.stem.\1."), (r"^context\.layer1\.(?=.*(proj|residual_branch))", "context.stages.0."),
        (r"^context\.layer2\.(?=.*(proj|residual_branch))", "context.stages.1."), (r"^context\.layer3\.(?=.*(proj|residual_branch))", "context.stages.2."),
        (r"\.proj\.", ".shortcut."), (r"\.residual_branch\.", ".body."), (r"\.point_wise_cbr\.conv\.", ".1."), (r"\.point_wise_cbr\.bn\.", ".2."),
        (r"(\.shortcut|\.body\.\d)\.conv1\.", r"\1.0."),
        *RESNET, *CONV_BN,
    ),
)
DEEP_STEM = replace(TORCHSEG, variant={"backbone": "resnet101-deep"}, renames=(
    (r"^context_path\.conv1\.", "context.stem."), (r"^context_path\.bn1\.", "context.stem.7."), *TORCHSEG.renames))

COINCHEUNG = Dialect(
    name="coincheung",
    source="CoinCheung/BiSeNet@6b4b67a",
    normalisation={19: CITYSCAPES, 171: COCO, 150: ADE20K},
    multiple=32,
    drops=(r"^conv_out(16|32)\.",),
    variant={"mode": "nearest", "gate": "one", "head": 256},
    rows={"conv_out.conv_out.weight": 1, "conv_out16.conv_out.weight": 1, "conv_out32.conv_out.weight": 1},
    renames=(
        (r"^cp\.resnet\.", "context."), (r"^cp\.arm(\d+)\.conv_atten\.", r"attend\1.gate.0."), (r"^cp\.arm(\d+)\.bn_atten\.", r"attend\1.gate.1."),
        (r"^cp\.arm", "attend"), (r"^cp\.conv_head", "refine"), (r"^cp\.conv_avg\.", "globe."),
        (r"^sp\.conv1\.", "spatial.0."), (r"^sp\.conv2\.", "spatial.1."), (r"^sp\.conv3\.", "spatial.2."), (r"^sp\.conv_out\.", "spatial.3."),
        (r"^ffm\.convblk\.", "fusion.conv."), (r"^ffm\.conv\.", "fusion.gate.0."), (r"^ffm\.bn\.", "fusion.gate.1."),
        (r"^ffm\.conv1\.", "fusion.gate.0."), (r"^ffm\.conv2\.", "fusion.gate.2."),
        (r"^conv_out\.conv\.", "head."), (r"^conv_out\.conv_out\.", "classifier."),
        *RESNET, *CONV_BN,
    ),
)
NARROW = replace(COINCHEUNG, name="coincheung-2021", source="CoinCheung/BiSeNet@c0422a1", variant={**COINCHEUNG.variant, "gate": "narrow"})
SHUFFLED = replace(NARROW, name="coincheung-shuffle", source="CoinCheung/BiSeNet@c6d7405", variant={**NARROW.variant, "shuffle": 8},
                   rows={"conv_out.conv_out.weight": 64, "conv_out16.conv_out.weight": 64, "conv_out32.conv_out.weight": 256})
FIRST = replace(NARROW, name="coincheung-2020", source="CoinCheung/BiSeNet@0471e80", multiple=1, enlarge="corners", variant={**NARROW.variant, "bias": False})
FACES = replace(FIRST, name="face-parsing", source="zllrunning/face-parsing.PyTorch@d2e684c", normalisation=IMAGENET,
                variant={**FIRST.variant, "spatial": False})

MMSEG = Dialect(
    name="mmsegmentation",
    source="open-mmlab/mmsegmentation@v1.2.2",
    normalisation=IMAGENET,
    drops=(r"^auxiliary_head\.",),
    variant={"mode": "nearest", "gate": "one-relu", "head": 256},
    renames=(
        (r"^decode_head\.convs\.0\.", "head."), (r"^decode_head\.conv_seg\.", "classifier."),
        (r"^backbone\.context_path\.backbone\.", "context."), (r"^backbone\.context_path\.arm(\d+)\.conv_layer\.", r"attend\1.conv."),
        (r"^backbone\.context_path\.arm(\d+)\.atten_conv_layer\.1\.", r"attend\1.gate."), (r"^backbone\.context_path\.gap_conv\.1\.", "globe."),
        (r"^backbone\.context_path\.conv_head", "refine"),
        (r"^backbone\.spatial_path\.layer1\.", "spatial.0."), (r"^backbone\.spatial_path\.layer2\.", "spatial.1."),
        (r"^backbone\.spatial_path\.layer3\.", "spatial.2."), (r"^backbone\.spatial_path\.layer4\.", "spatial.3."),
        (r"^backbone\.ffm\.conv1\.", "fusion.conv."), (r"^backbone\.ffm\.conv_atten\.0\.", "fusion.gate."),
        *RESNET, *CONV_BN,
    ),
)
WIDE = replace(MMSEG, variant={**MMSEG.variant, "times": 4, "head": 1024})

SITHU = Dialect(
    name="sithu",
    source="sithu31296/semantic-segmentation@c2843c9",
    normalisation=IMAGENET,
    multiple=32,
    drops=(r"^context(16|32)_head\.",),
    variant={"shuffle": 8},
    rows={"output_head.conv_1x1.weight": 64, "context16_head.conv_1x1.weight": 64, "context32_head.conv_1x1.weight": 256},
    renames=(
        (r"^spatial_path\.conv_7x7\.", "spatial.0."), (r"^spatial_path\.conv_3x3_1\.", "spatial.1."), (r"^spatial_path\.conv_3x3_2\.", "spatial.2."),
        (r"^spatial_path\.conv_1x1\.", "spatial.3."), (r"^context_path\.global_context\.1\.", "globe."), (r"^context_path\.refine", "refine"),
        (r"^context_path\.arm(\d+)\.conv_3x3\.", r"attend\1.conv."), (r"^context_path\.arm(\d+)\.attention\.1\.", r"attend\1.gate.0."),
        (r"^context_path\.arm(\d+)\.attention\.2\.", r"attend\1.gate.1."), (r"^context_path\.backbone\.", "context."),
        (r"^ffm\.conv_1x1\.", "fusion.conv."), (r"^ffm\.attention\.1\.", "fusion.gate.0."), (r"^ffm\.attention\.3\.", "fusion.gate.2."),
        (r"^output_head\.conv_3x3\.", "head."), (r"^output_head\.conv_1x1\.", "classifier."),
        *RESNET,
    ),
)

TRAMAC = Dialect(
    name="tramac",
    source="Tramac/awesome-semantic-segmentation-pytorch@d37d2a1",
    normalisation=IMAGENET,
    enlarge="corners",
    drops=(r"^auxlayer[12]\.",),
    variant={"gate": "narrow-bn", "relu": True},
    renames=(
        (r"^spatial_path\.conv7x7\.", "spatial.0."), (r"^spatial_path\.conv3x3_1\.", "spatial.1."), (r"^spatial_path\.conv3x3_2\.", "spatial.2."),
        (r"^spatial_path\.conv1x1\.", "spatial.3."),
        (r"^context_path\.global_context\.gap\.1\.", "globe.0."), (r"^context_path\.global_context\.gap\.2\.", "globe.1."),
        (r"^context_path\.arms\.0\.", "attend32."), (r"^context_path\.arms\.1\.", "attend16."), (r"^(attend\d+)\.conv3x3\.", r"\1.conv."),
        (r"^(attend\d+)\.channel_attention\.1\.", r"\1.gate."), (r"^context_path\.refines\.0\.", "refine32."), (r"^context_path\.refines\.1\.", "refine16."),
        (r"^context_path\.", "context."), (r"^ffm\.conv1x1\.", "fusion.conv."), (r"^ffm\.channel_attention\.1\.", "fusion.gate.0."),
        (r"^ffm\.channel_attention\.2\.", "fusion.gate.1."), (r"^head\.block\.2\.", "classifier."), (r"^head\.block\.0\.", "head."),
        *RESNET, *CONV_BN,
    ),
)

OOOOVERFLOW = Dialect(
    name="ooooverflow",
    source="ooooverflow/BiSeNet@284a8f6",
    normalisation=IMAGENET,
    # the backbone is saved twice, and the attention's bn is not applied
    drops=(r"^context_path\.features\.", r"^supervision[12]\.", r"^attention_refinement_module[12]\.bn\."),
    variant={"form": Concatenated},
    renames=(
        (r"^saptial_path\.convblock1\.", "spatial.0."), (r"^saptial_path\.convblock2\.", "spatial.1."), (r"^saptial_path\.convblock3\.", "spatial.2."),
        (r"^(spatial\.\d)\.conv1\.", r"\1.0."), (r"^attention_refinement_module1\.", "attend16."), (r"^attention_refinement_module2\.", "attend32."),
        (r"^feature_fusion_module\.convblock\.conv1\.", "fusion.conv.0."), (r"^feature_fusion_module\.convblock\.bn\.", "fusion.conv.1."),
        (r"^feature_fusion_module\.conv1\.", "fusion.gate.0."), (r"^feature_fusion_module\.conv2\.", "fusion.gate.2."),
        (r"^conv\.", "classifier."), (r"^context_path\.", "context."),
        *RESNET, (r"^(spatial\.\d)\.bn\.", r"\1.1."),
    ),
)

PAPER = "Yu et al., ECCV 2018, BiSeNet"
PAPERS = replace(Network.reading, enlarge="corners")


def variant(name, dialects=(), build=bisenetv1, stride=8, reading=PAPERS, note="", **arguments):
    return Network(f"bisenetv1-{name}", PAPER, build, stride, variant=arguments, dialects=dialects, reading=reading, note=note)


NETWORKS = (
    variant("x39", (TORCHSEG,), backbone="xception39"),
    variant("r18", (TORCHSEG, COINCHEUNG, NARROW, SHUFFLED, FIRST, FACES, MMSEG, SITHU, TRAMAC, OOOOVERFLOW), backbone="resnet18"),
    variant("r50", (WIDE,), reading=replace(PAPERS, variant=WIDE.variant), backbone="resnet50", note="the paper has none: mmsegmentation's form"),
    variant("r101", (DEEP_STEM, WIDE), reading=replace(PAPERS, variant=DEEP_STEM.variant), backbone="resnet101", head=256),
    variant("u8s", build=UShape, fine=False, note="Table 2 in words alone: no attention, no global context, no spatial path"),
    variant("u4s", build=UShape, stride=4, fine=True, note="Table 2 in words alone: no attention, no global context, no spatial path"),
)

LOOKALIKES = (
    Lookalike(r"^fc\.weight$", "a network pre-trained on ImageNet: it classifies, and has no segmentation head",
              "take the checkpoint that was trained on a segmentation set"),
)
