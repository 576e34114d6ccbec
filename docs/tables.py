"""Fill the tables of a document: each stands between a line `<!-- rtseg-deploy … -->`, the command that makes it, and `<!-- end -->`.

    python docs/tables.py docs/networks.md docs/matrix.md
"""
import re
import subprocess
import sys
from pathlib import Path


def filled(match):
    table = subprocess.run([sys.executable, "-m", *match[1].replace("rtseg-deploy", "rtseg_deploy", 1).split()], capture_output=True, text=True).stdout
    return f"<!-- {match[1]} -->\n\n`{match[1]}`\n\n{table.strip()}\n\n<!-- end -->"


for path in map(Path, sys.argv[1:]):
    path.write_text(re.sub(r"<!-- (rtseg-deploy .*?) -->.*?<!-- end -->", filled, path.read_text(), flags=re.DOTALL))
