"""Rows of an archive of results for a person, and as a file for another program."""
from pathlib import Path

from . import files
from .archive import NUMBERS, TEXTS
from .errors import RtsegError, need
from .report import milliseconds


def texts(row):
    """What a table has of a row."""
    return {"id": row["id"], "time, UTC": moment(row), "network": f"{row['network']} {row['resolution']}", "precision": row["precision"],
            "backend": row["backend"], "protocol": row["protocol"] or row["data"], "device": row["device"], **figures(row),
            "mIoU %": "" if row["miou"] is None else f"{100 * row['miou']:.2f}", "status": row["status"]}


def moment(row):
    return row["time"][:16].replace("T", " ")


def figures(row):
    """Of the speed; empty where there is none."""
    ends = "" if row["fps_low"] is None else f"{row['fps_low']:,.1f} to {row['fps_high']:,.1f}"
    return {"FPS": "" if row["fps"] is None else f"{row['fps']:,.1f}", "95 %": ends, "ms": "" if row["ms"] is None else milliseconds(row["ms"])}


def write(rows, path):
    """Write all that rows have as CSV or Parquet, as the name of the file says. Raises RtsegError."""
    if not rows:
        raise RtsegError("no result fits, so that there is nothing to write", "see what there is with: rtseg-deploy results list")
    if Path(path).suffix == ".csv":
        from . import page  # with it come the pictures of a report

        files.write(path, page.lines(rows))
    elif Path(path).suffix == ".parquet":
        arrow, parquet = need("pyarrow"), need("pyarrow.parquet")
        kinds = {"file": arrow.string(), **dict.fromkeys(TEXTS, arrow.string()), **dict.fromkeys(NUMBERS, arrow.float64())}
        with files.replacing(path) as temporary:
            parquet.write_table(arrow.Table.from_pylist(rows, arrow.schema(list(kinds.items()))), temporary)
    else:
        raise RtsegError(f"{path} is neither .csv nor .parquet", "choose by the name: -o results.csv or -o results.parquet")
