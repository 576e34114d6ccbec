"""What a checkpoint file is, without exporting it."""
from pathlib import Path

from . import checkpoints, saved
from .errors import RtsegError

NEAREST = 3


def inspect(path, model=None, dialect=None):
    """Everything that is known of a file, as plain values. network is None where it fits none; why says the reason then.

    Raises RtsegError where the file holds no weights.
    """
    held = saved.tensors(saved.read(path), path)
    fits = checkpoints.fits(held, model, dialect)
    found = {"file": str(path), "bytes": Path(path).stat().st_size, "containers": held.containers, "prefixes": held.prefixes,
             "tensors": len(held.state), "parameters": sum(v.numel() for k, v in held.state.items() if v.is_floating_point() and "running_" not in k),
             "saved_as": held.kinds, "beside": held.beside, "network": None, "why": "", "fix": ""}
    try:
        fit = checkpoints.choose(fits, path, held)
    except RtsegError as error:
        near = [{"network": f.network.name, "dialect": f.dialect.name, "source": f.dialect.source, "differences": list(checkpoints.differences(f))}
                for f in fits[:NEAREST]]
        return {**found, "why": error.what, "fix": error.fix, "nearest": near}
    normalisation = fit.dialect.normalisation_for(fit.classes)
    arithmetic = {name: getattr(value, "__name__", value) for name, value in {**fit.network.variant, **fit.dialect.variant}.items()}
    return {**found, "network": fit.network.name, "paper": fit.network.paper, "dialect": fit.dialect.name, "source": fit.dialect.source,
            "classes": fit.classes, "dropped": len(fit.dropped), "dropped_keys": sorted({".".join(key.split(".")[:2]) for key in fit.dropped}),
            "arithmetic": arithmetic, "otherwise": checkpoints.otherwise(fit), "enlarged": fit.dialect.enlarge, "multiple": fit.network.grid(fit.dialect),
            "normalisation": {"mean": normalisation.mean, "std": normalisation.std}}
