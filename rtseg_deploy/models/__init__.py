"""The networks: one file a family, each with its variants and the checkpoint dialects of its public implementations.

A family's file defines `NETWORKS`; being in this folder registers it. A dialect is data: it says how an implementation's keys
become ours and which arithmetic its weights were trained with.
"""
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
    renames: tuple[tuple[str, str], ...]                 # ordered (pattern, replacement): its keys -> ours
    drops: tuple[str, ...] = ()                          # its keys that inference has no use for
    variant: Mapping = field(default_factory=dict)       # arguments of the network's builder: the arithmetic

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
    head: str                                            # the key whose first dimension is the number of classes
    stride: int
    multiple: int                                        # height and width must be multiples of this
    dialects: tuple[Dialect, ...]

    def takes(self, resolution):
        """Whether an image of (height, width) fits the network's strides."""
        return not any(side % self.multiple for side in resolution)


@cache
def networks():
    """Name -> Network, of every family in this folder, in the order of the names."""
    need("torch")
    families = [import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    return {network.name: network for family in families for network in family.NETWORKS}


def find(name):
    """The network of that name. Raises RtsegError with the known names."""
    try:
        return networks()[name]
    except KeyError:
        raise RtsegError(f"no network is called {name!r}", f"the known ones: {', '.join(networks())}") from None
