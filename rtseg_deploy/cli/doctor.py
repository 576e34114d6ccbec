"""The command that says what stands against a figure."""
import json

import click

from ..terminal import progress, show
from .group import as_json, cli, on


@cli.command()
@on
@as_json
def doctor(on, as_json):
    """Say what would make a figure taken here, or on a device, untrustworthy, and the command that mends it. It changes nothing itself.

    A warning is to be mended before a figure is believed, a note to be said with it. Exit status 0 also with findings.

    \b
    Example:
      rtseg-deploy doctor
      rtseg-deploy doctor --on ssh://nano@tx2
    """
    from .. import ssh
    from ..doctor import examine

    with progress() as tell:
        facts, findings = examine(ssh.place(on), tell)
    if as_json:
        click.echo(json.dumps({"facts": facts, "findings": [finding.to_json() for finding in findings]}, indent=1))
    else:
        from ..remedies import findings_lines
        show(*findings_lines(facts, findings))
