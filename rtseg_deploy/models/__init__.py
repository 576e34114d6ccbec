"""The networks: one file a family, each with its variants and the checkpoint dialects of its public implementations.

A family's file defines `NETWORKS`; being in this folder registers it. A dialect is data: it says how an implementation's keys
become ours and which arithmetic its weights were trained with. A family may define `LOOKALIKES`: files that are taken for its own.
"""
import math
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module

from ..errors import RtsegError, need


@dataclass(frozen=True)
class Normalisation:
    """What weights were trained to see: (x / 255 - mean) / std, channels in RGB order."""
    mean: tuple
    std: tuple


# Every public implementation trains with ImageNet's statistics, except CoinCheung/BiSeNet (configs/ and lib/data at 6b4b67a)
IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CITYSCAPES = Normalisation((0.3257, 0.3690, 0.3223), (0.2112, 0.2148, 0.2115))
COCO = Normalisation((0.46962251, 0.4464104, 0.40718787), (0.27469736, 0.27012361, 0.28515933))
ADE20K = Normalisation((0.49343230, 0.46819794, 0.43106043), (0.25680755, 0.25506608, 0.27422913))


@dataclass(frozen=True)
class Dialect:
    """How one public implementation names and means a network's weights."""
    name: str
    source: str                                          # repository@commit
    normalisation: Normalisation | Mapping               # or, by number of classes
    renames: tuple[tuple[str, str], ...] = ()            # ordered (pattern, replacement): its keys -> ours
    drops: tuple[str, ...] = ()                          # its keys that inference has no use for
    variant: Mapping = field(default_factory=dict)       # arguments of the network's builder: the arithmetic
    rows: Mapping = field(default_factory=dict)          # its heads: key -> rows for each class; our classifier.weight and 1 if not given
    multiple: int = 1                                    # it takes heights and widths that are multiples of this
    enlarge: str = "bilinear"                            # how its logits get to the input's size: bilinear, or corners (aligned)
    bare: bool = False                                   # it saves keys without a "model." before them
    beside: str = ""                                     # it saves a value of that name beside the weights
    asked: bool = False                                  # considered only where it is asked for by name

    def normalisation_for(self, classes):
        """What the weights expect of an image; ImageNet's statistics where the implementation names none for so many classes."""
        if isinstance(self.normalisation, Normalisation):
            return self.normalisation
        return self.normalisation.get(classes, IMAGENET)


@dataclass(frozen=True)
class Network:
    """A network that can be built, and everything that decides whether a checkpoint is one."""
    name: str
    paper: str
    build: Callable                                      # build(classes, **variant) -> nn.Module giving logits at 1/stride
    stride: int = 8
    multiple: int = 1                                    # height and width must be multiples of this
    variant: Mapping = field(default_factory=dict)       # arguments of the builder that make it this network
    dialects: tuple[Dialect, ...] = ()                   # none: no public weights are known
    reading: Dialect = Dialect("seeded", "the paper", IMAGENET)  # the arithmetic of the paper, for random weights
    note: str = ""                                       # what about it is our reading, where the paper is silent

    def module(self, classes, dialect=None):
        """The network with fresh weights, in a dialect's arithmetic (the paper's if none is given)."""
        return self.build(classes, **{**self.variant, **(dialect or self.reading).variant})

    def takes(self, resolution, dialect):
        """Whether an image of (height, width) fits the network's strides, and the implementation's."""
        return not any(side % self.grid(dialect) for side in resolution)

    def grid(self, dialect):
        """What height and width must be multiples of."""
        return math.lcm(self.multiple, dialect.multiple)


@dataclass(frozen=True)
class Lookalike:
    """A file that shares keys with a network and is none of ours."""
    key: str                                             # pattern of a key that gives it away
    what: str
    fix: str


@cache
def families():
    """The modules of this folder."""
    need("torch")
    return [import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]


@cache
def networks():
    """Name -> Network, of every family in this folder, in the order of the files."""
    return {network.name: network for family in families() for network in family.NETWORKS}


def lookalikes():
    """Every Lookalike that a family warns of."""
    return [row for family in families() for row in getattr(family, "LOOKALIKES", ())]


def find(name):
    """The network of that name. Raises RtsegError with the known names."""
    try:
        return networks()[name]
    except KeyError:
        raise RtsegError(f"no network is called {name!r}", f"the known ones: {', '.join(networks())}") from None
