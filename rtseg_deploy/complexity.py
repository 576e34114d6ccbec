"""How large a network is, counted on its structure: no weights are allocated and nothing is computed."""
from .errors import need


def complexity(network, resolution, classes=19):
    """{"parameters", "macs"} of a network at (height, width).

    macs: multiply-accumulates of its convolutions, bias, BatchNorm, activations and resizes not counted, as most papers do;
    None where the network does not take that size.
    """
    torch = need("torch")
    macs = []

    def count(layer, inputs, result):
        macs.append(result[0].numel() * layer.weight[0].numel())

    with torch.device("meta"):
        module = network.build(classes, **network.dialects[0].variant).eval()
        for layer in module.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.register_forward_hook(count)
        if network.takes(resolution):
            with torch.inference_mode():
                module(torch.empty(1, 3, *resolution))
    return {"parameters": sum(p.numel() for p in module.parameters()), "macs": sum(macs) or None}
