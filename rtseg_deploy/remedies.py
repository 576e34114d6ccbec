"""What doctor prints: each finding with its reason and what mends it, on lines of their own, for commands are long and are to be copied."""
from rich.table import Table
from rich.text import Text


def findings_lines(facts, findings):
    """Renderables, what is to be mended first; facts, findings: of doctor.examine."""
    warnings = sum(finding.severity == "warning" for finding in findings)
    name = facts["model"] or facts["gpu"].get("name") or facts["cpu"] or "this machine"
    yield f"{name}: {warnings} warning{'s' * (warnings != 1)}, {len(findings) - warnings} note{'s' * (len(findings) - warnings != 1)}"
    if findings:
        table = Table.grid(padding=(0, 2))
        for finding in sorted(findings, key=lambda finding: finding.severity != "warning"):
            table.add_row(Text(finding.severity, "yellow" if finding.severity == "warning" else ""), Text(finding.what, "bold"))
            table.add_row("", Text(finding.why))
            table.add_row("", Text(f"→ {finding.fix}"))
        yield table
