"""Commands for signatures: each parses, makes one call for a file, prints."""
import json
import sys

import click

from ..errors import RtsegError
from ..terminal import show
from .group import as_json, cli


@cli.command()
@click.argument("paths", metavar="FILE...", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--key", type=click.Path(exists=True, dir_okay=False),
              help="A private key, or the public half of one that ssh-agent has; one of ~/.ssh if not given.")
@as_json
def sign(paths, key, as_json):
    """Sign bundles, results, artifacts with your SSH key (ssh-keygen -Y sign, namespace rtseg-deploy): FILE.sig is put beside each.

    Of an artifact its sidecar is signed, which holds the artifact's sha256.

    \b
    Example:
      rtseg-deploy sign tx2.tar.gz results/net.json
      rtseg-deploy sign engines/rtx-2080ti/net.fp16.engine --key ~/.ssh/id_ed25519
    """
    from .. import signatures

    made = [str(signatures.sign(path, key)) for path in paths]
    if as_json:
        click.echo(json.dumps([{"file": path, "signature": signature} for path, signature in zip(paths, made)], indent=1))
    else:
        show(*made)


@cli.command("check-signature")
@click.argument("paths", metavar="FILE...", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--signers", required=True, type=click.Path(exists=True, dir_okay=False),
              help="Whose signatures are good, as ssh-keygen reads it (allowed_signers): NAME PUBLIC-KEY in each line.")
@as_json
def check_signature(paths, signers, as_json):
    """Say who signed files, and that they are as they were then. Exit status 1 says that one is not signed, not by a signer, or changed.

    \b
    Example:
      rtseg-deploy check-signature results.tar.gz --signers signers
    """
    from ..report import plain_table

    rows = [checked(path, signers) for path in paths]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    else:
        show(plain_table([{**row, "good": "yes" if row["good"] else "no"} for row in rows]))
    sys.exit(0 if all(row["good"] for row in rows) else 1)


def checked(path, signers):
    """What is known of one file's signature."""
    from .. import signatures

    try:
        found = signatures.check(path, signers)
    except RtsegError as error:
        return {"file": path, "good": False, "signer": "", "key": "", "why": error.line}
    return {"file": path, "good": True, "signer": found.signer, "key": found.key, "why": ""}
