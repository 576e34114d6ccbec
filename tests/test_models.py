"""Every network of the registry: counts against the published ones, and it runs at the sizes that it claims."""
import dataclasses

import pytest
import torch

from rtseg_deploy import checkpoints
from rtseg_deploy.complexity import complexity
from rtseg_deploy.errors import RtsegError
from rtseg_deploy.models import ADE20K, CITYSCAPES, IMAGENET, find, networks

# parameters and convolution GMACs of the public implementations, counted with their own code; 19 classes
PARAMETERS = {"sgcpnet": 607_826, "bisenetv2": 3_358_627}
GMACS = {
    "sgcpnet": {(256, 512): 0.205, (360, 480): 0.276, (360, 640): 0.368, (512, 1024): 0.819, (713, 713): 0.817, (720, 960): 1.085,
                (768, 1536): 1.842, (1024, 1024): 1.637, (1024, 2048): 3.275},
    "bisenetv2": {(256, 512): 6.151, (512, 1024): 24.603, (768, 1536): 55.357, (1024, 1024): 49.207, (1024, 2048): 98.413},
}


@pytest.mark.parametrize("name", networks())
def test_counts_are_the_published_ones(name):
    assert complexity(find(name), (64, 64))["parameters"] == PARAMETERS[name]
    for resolution, gmacs in GMACS[name].items():
        assert round(complexity(find(name), resolution)["macs"] / 1e9, 3) == gmacs


@pytest.mark.parametrize("name", networks())
def test_a_network_runs_at_every_size_it_takes(name):
    network = find(name)
    module = checkpoints.seeded(name, classes=7).module
    height, width = (2 * network.multiple, 5 * network.multiple) if network.multiple > 1 else (41, 203)
    with torch.inference_mode():
        logits = module(torch.zeros(2, 3, height, width))
    assert logits.shape == (2, 7, -(-height // network.stride), -(-width // network.stride))


@pytest.mark.parametrize("name", networks())
def test_dialects_name_existing_variants(name):
    network = find(name)
    for dialect in network.dialects:
        assert checkpoints.shapes(network, dialect, 5)[network.head][0] == 5
        assert dataclasses.is_dataclass(dialect.normalisation_for(19))


def test_normalisation_follows_the_number_of_classes():
    dialect = find("bisenetv2").dialects[0]
    assert dialect.normalisation_for(19) == CITYSCAPES
    assert dialect.normalisation_for(150) == ADE20K
    assert dialect.normalisation_for(11) == IMAGENET
    assert find("sgcpnet").dialects[0].normalisation_for(19) == IMAGENET


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(RtsegError) as error:
        find("unet")
    assert "sgcpnet" in error.value.fix and "bisenetv2" in error.value.fix


def test_seeded_weights_are_the_same_each_time_and_leave_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, other = (checkpoints.seeded("sgcpnet", seed=3).module.state_dict() for _ in range(2))
    assert torch.rand(1) == expected
    assert all(torch.equal(one[key], other[key]) for key in one)
