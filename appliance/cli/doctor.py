"""`hob doctor`: what this machine is, what runs on it, what is missing and what to do."""

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from appliance.config import load_settings
from appliance.doctor import Report, examine
from appliance.hardware.describe import detect
from appliance.models import Models

MARKS = {"ok": "[green]ok[/]", "warning": "[yellow]look[/]", "problem": "[red]fix[/]"}


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """Say what this machine is, which models fit, what is missing. Exit code 1: something must be fixed."""
    from builder.compile.targets import detect_target  # the compiler's side is imported only here

    settings = load_settings()
    report = examine(settings, detect(), detect_target().key, Models(settings).directories())
    if as_json:
        click.echo(report.model_dump_json(indent=2))
    else:
        show(report, Console(highlight=False))
    context.exit(0 if report.healthy else 1)


def show(report: Report, console: Console) -> None:
    """Print the report for people."""
    machine = report.hardware
    facts = Table.grid(padding=(0, 2))
    if machine.board:
        facts.add_row("Machine", escape(machine.board))
    facts.add_row("Processor", escape(f"{machine.cpu}, {machine.cores} cores, {machine.architecture}"))
    facts.add_row("Extensions", " ".join(machine.features) or "none that Hob uses")
    facts.add_row("Compiles for", report.target)
    facts.add_row("Largest model", f"about {report.largest_model_billion:g} billion weights (q4f16_1)")
    console.print(facts)
    console.print()
    checks = Table.grid(padding=(0, 2))
    for finding in report.findings:
        checks.add_row(MARKS[finding.status], escape(finding.check), escape(finding.detail))
        if finding.hint:
            checks.add_row("", "", f"[dim]{escape(finding.hint)}[/]")
    console.print(checks)
