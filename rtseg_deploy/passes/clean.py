"""What export leaves behind and no runtime needs: Identity nodes, shape arithmetic, constant expressions, equal initialisers."""
import onnx_graphsurgeon as gs
import onnxruntime
from polygraphy.backend.onnx import fold_constants, infer_shapes
from polygraphy.logger import G_LOGGER

from .. import limits


def constants(model):
    """The model with every expression of constants, shapes included, replaced by its value (Polygraphy does it).

    Shapes are inferred by ONNX: ONNX Runtime's symbolic inference overlooks the axes of a Resize and gives its result another rank.
    """
    onnxruntime.set_default_logger_severity(3)  # it evaluates the expressions, and warns of each that it does not simplify first
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        return fold_constants(infer_shapes(model, allow_onnxruntime=False), allow_onnxruntime_shape_inference=False, size_threshold=limits.CONSTANT_BYTES)


def tidy(graph):
    """Bypass Identity, share equal initialisers, drop what nothing uses, order the nodes."""
    for node in [n for n in graph.nodes if n.op == "Identity"]:
        bypass(node, graph)
    share(graph)
    graph.cleanup(remove_unused_graph_inputs=False).toposort()


def bypass(node, graph):
    """Let the consumers of an Identity read its input. One that joins an input of the graph to an output has to stay."""
    source, result = node.inputs[0], node.outputs[0]
    if result in graph.outputs:
        if isinstance(source, gs.Constant) or source in graph.inputs or source in graph.outputs:
            return
        producer = source.inputs[0]
        for consumer in list(source.outputs):
            consumer.inputs = [result if tensor is source else tensor for tensor in consumer.inputs]
        node.outputs.clear()
        producer.outputs = [result if tensor is source else tensor for tensor in producer.outputs]
        return
    for consumer in list(result.outputs):
        consumer.inputs = [source if tensor is result else tensor for tensor in consumer.inputs]
    node.outputs.clear()


def share(graph):
    """Keep one of the initialisers that are equal in type, shape and bytes; none that differ keep one name."""
    first, names = {}, set()
    for node in graph.nodes:
        for index, tensor in enumerate(node.inputs):
            if isinstance(tensor, gs.Constant):
                key = (tensor.values.dtype.str, tensor.values.shape, tensor.values.tobytes())
                node.inputs[index] = first.setdefault(key, tensor)
    for tensor in first.values():
        while tensor.name in names:
            tensor.name += "_"
        names.add(tensor.name)
