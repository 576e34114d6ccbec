"""Every network of the registry: counts against the published ones, and it runs at the sizes that it claims."""
import dataclasses

import pytest
import torch

from rtseg_deploy import checkpoints, listing
from rtseg_deploy.complexity import complexity
from rtseg_deploy.errors import RtsegError
from rtseg_deploy.models import ADE20K, CITYSCAPES, IMAGENET, find, networks
from rtseg_deploy.models.ddrnet import cell_means

# parameters and convolution GMACs of the public implementations, counted with their own code; 19 classes
PARAMETERS = {
    "bisenetv1-x39": 1_541_963, "bisenetv1-r18": 12_894_163, "bisenetv1-r50": 56_873_299, "bisenetv1-r101": 47_638_803,
    "bisenetv2": 3_358_627, "bisenetv2-l": 20_183_347, "bisenetv2-literal": 4_918_531, "bisenetv2-l-literal": 56_437_363,
    "ddrnet-23-slim": 5_695_987, "ddrnet-23": 20_148_947, "ddrnet-39": 32_360_275, "ddrnet-39-1.5x": 70_971_379,
    "sgcpnet": 607_826, "bcpnet": 607_826, "sgcpnet-bk": 433_023, "sgcpnet-td1": 469_543, "sgcpnet-td1-bu": 498_610, "sgcpnet-td1-bu-td2": 518_074,
    "sgcpnet-hfr-td1": 540_863, "sgcpnet-hfr-td1-bu": 588_362, "sgcpnet-sum": 607_799, "sgcpnet-max5": 607_826, "sgcpnet-avg3": 607_826,
}
# the same of an implementation's own form
FORMS = {("bisenetv1-r18", "coincheung"): 13_275_539, ("bisenetv1-r18", "coincheung-2021"): 13_242_259, ("bisenetv1-r18", "coincheung-shuffle"): 13_549_888,
         ("bisenetv1-r18", "mmsegmentation"): 13_275_539, ("bisenetv1-r18", "tramac"): 12_796_499, ("bisenetv1-r101", "mmsegmentation"): 75_865_427,
         ("bisenetv2", "mmsegmentation"): 3_358_883, ("bisenetv2", "coincheung-shuffle"): 4_585_552, ("ddrnet-23-slim", "mmsegmentation"): 5_695_923}
GMACS = {
    "sgcpnet": {(256, 512): 0.205, (360, 480): 0.276, (360, 640): 0.368, (512, 1024): 0.819, (713, 713): 0.817, (720, 960): 1.085,
                (768, 1536): 1.842, (1024, 1024): 1.637, (1024, 2048): 3.275},
    "bisenetv1-r18": {(256, 512): 6.483, (360, 480): 8.686, (360, 640): 11.581, (512, 1024): 25.931, (713, 713): 25.737, (720, 960): 34.321,
                      (768, 1536): 58.344, (1024, 1024): 51.862, (1024, 2048): 103.723},
    "bisenetv1-x39": {(256, 512): 1.735, (360, 480): 2.299, (360, 640): 3.065, (512, 1024): 6.941, (713, 713): 6.840, (720, 960): 9.157,
                      (768, 1536): 15.616, (1024, 1024): 13.881, (1024, 2048): 27.762},
    "bisenetv1-r50": {(256, 512): 49.399, (360, 480): 65.611, (512, 1024): 197.588, (713, 713): 195.510, (1024, 2048): 790.344},
    "bisenetv1-r101": {(256, 512): 27.252, (360, 480): 36.533, (512, 1024): 109.008, (713, 713): 107.795, (1024, 2048): 436.032},
    "ddrnet-23-slim": {(256, 512): 2.268, (360, 480): 3.037, (360, 640): 4.043, (512, 1024): 9.070, (720, 960): 12.014, (1024, 2048): 36.281},
    "ddrnet-23": {(256, 512): 8.941, (360, 480): 11.967, (512, 1024): 35.765, (720, 960): 47.352, (1024, 2048): 143.061},
    "ddrnet-39": {(256, 512): 17.570, (360, 480): 23.471, (512, 1024): 70.279, (1024, 1024): 140.558, (1024, 2048): 281.116},
    "bisenetv2-l": {(512, 1024): 86.184}, "bisenetv2-literal": {(512, 1024): 18.280}, "bisenetv2-l-literal": {(512, 1024): 107.271},
    "bisenetv2": {(360, 480): 8.126, (713, 713): 24.226, (720, 960): 32.453,
                  (256, 512): 6.151, (512, 1024): 24.603, (768, 1536): 55.357, (1024, 1024): 49.207, (1024, 2048): 98.413},
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_counts_are_the_published_ones(name):
    assert complexity(find(name), (64, 64))["parameters"] == PARAMETERS[name]
    for resolution, gmacs in GMACS.get(name, {}).items():
        assert round(complexity(find(name), resolution)["macs"] / 1e9, 3) == gmacs


@pytest.mark.parametrize("name, dialect", FORMS)
def test_an_implementations_own_form_has_its_count(name, dialect):
    network = find(name)
    dialect = next(d for d in network.dialects if d.name == dialect)
    assert complexity(network, (64, 64), dialect=dialect)["parameters"] == FORMS[name, dialect.name]


def test_every_figure_of_the_papers_is_met_or_has_its_reason():
    """Within 1 %, counted as its paper counts; the counting itself is held by the figures that it meets."""
    rows = listing.papers(lambda step, done: None)
    assert {"bcpnet", "bisenetv1-x39", "bisenetv2", "ddrnet-39", "sgcpnet"} <= {row["network"] for row in rows}
    for row in rows:
        far = [row[column] for column in ("Δ M %", "Δ GFLOPs %") if row[column] and abs(float(row[column])) > 1]
        assert bool(far) == bool(row["reason"]) and "?" not in row["reason"], row
    met = [row["network"] for row in rows if row["its GFLOPs"] and not row["reason"]]
    assert met.count("sgcpnet") == 8 and met.count("bcpnet") == 6 and {"ddrnet-23-slim", "ddrnet-23", "ddrnet-39", "bisenetv1-r18"} <= set(met)


@pytest.mark.parametrize("size", [(16, 32), (5, 7), (12, 20)])
def test_means_of_cells_are_the_adaptive_pool(size):
    x = torch.randn(2, 3, *size)
    for grid in (6, 3, 2, 1):
        if min(size) >= grid:
            assert torch.allclose(cell_means(x, grid), torch.nn.functional.adaptive_avg_pool2d(x, grid), atol=1e-6)


def test_memory_is_counted_too():
    count = complexity(find("sgcpnet"), (512, 1024))
    assert count["weights_bytes"] == 4 * 607_826
    assert count["all_macs"] > count["macs"] and count["activation_bytes"] > 4 * 16 * 256 * 512

@pytest.mark.parametrize("name", networks())
def test_a_network_runs_at_every_size_it_takes(name):
    network = find(name)
    module = checkpoints.seeded(name, classes=7).module
    height, width = (2 * network.multiple, 5 * network.multiple) if network.multiple > 1 else (41, 203)
    with torch.inference_mode():
        logits = module(torch.zeros(2, 3, height, width))
    assert logits.shape == (2, 7, -(-height // network.stride), -(-width // network.stride))
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", networks())
def test_dialects_name_existing_variants(name):
    network = find(name)
    for dialect in network.dialects:
        assert checkpoints.shapes(network, dialect, 5)[checkpoints.HEAD][0] == 5 * dialect.variant.get("shuffle", 1) ** 2
        assert dataclasses.is_dataclass(dialect.normalisation_for(19))
    assert len({dialect.name for dialect in network.dialects}) == len(network.dialects)


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
