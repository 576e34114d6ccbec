"""Fill the tables of a document: each stands between a line `<!-- rtseg-deploy … -->`, the command that makes it, and `<!-- end -->`.

    python docs/tables.py docs/networks.md docs/matrix.md

It ends, with the document as it was, where a command fails or prints no table.
"""
import re
import subprocess
import sys
from pathlib import Path


def filled(match):
    command = [sys.executable, "-m", *match[1].replace("rtseg-deploy", "rtseg_deploy", 1).split()]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    table = result.stdout
    if result.returncode or table.count("\n|") < 2:
        sys.exit(f"{match[1]} ended with status {result.returncode} and {'a' if table.strip() else 'no'} table")
    return f"<!-- {match[1]} -->\n\n`{match[1]}`\n\n{table.strip()}\n\n<!-- end -->"


for path in map(Path, sys.argv[1:]):
    path.write_text(re.sub(r"<!-- (rtseg-deploy .*?) -->.*?<!-- end -->", filled, path.read_text(), flags=re.DOTALL))
