"""`hob doctor`: what this machine is, what runs on it, what is missing and what to do."""

import asyncio
from datetime import datetime

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from appliance import __version__
from appliance.cli.progress import Bar
from appliance.config import Settings, load_settings
from appliance.doctor import Report, examine
from appliance.domain import Hardware
from appliance.errors import HobError
from appliance.hardware import tier
from appliance.hardware.describe import detect
from appliance.hardware.memory import memory
from appliance.hardware.tier import Measurement
from appliance.models import Models
from appliance.shipped import GUIDE

MARKS = {"ok": "[green]ok[/]", "warning": "[yellow]look[/]", "problem": "[red]fix[/]"}


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--measure", is_flag=True, help="Measure anew how fast this machine is.")
@click.pass_context
def command(context: click.Context, as_json: bool, measure: bool) -> None:
    """Say what this machine is, which models fit, what is missing. Exit code 1: something must be fixed."""
    from builder.compile.targets import detect_target  # the compiler's side is imported only here

    settings = load_settings()
    hardware = detect()
    if measure:
        measured: Measurement | None = asyncio.run(_measured(settings, hardware))
    else:
        measured = tier.read(settings.data_dir)
        if measured and measured.machine != tier.fingerprint(hardware, measured.target, __version__):
            measured = None  # of other hardware, or of an earlier release
    models = Models(settings).directories()
    report = examine(settings, hardware, detect_target().key, models, memory(), measured)
    if as_json:
        click.echo(report.model_dump_json(indent=2))
    else:
        show(report, Console(highlight=False))
    context.exit(0 if report.healthy else 1)


async def _measured(settings: Settings, hardware: Hardware) -> Measurement:
    """Measure with the built-in model, on the first device that runs it, and keep what was found.

    Raises:
        HobError: no device runs it, or other programs leave no time.
    """
    from appliance.measuring import TooBusyError, measure

    models = Models(settings)
    with Bar("Measuring ...") as bar:
        installed = models.get(GUIDE)
        while True:
            reference = await models.reference(installed, bar)
            try:
                found = await measure(hardware, reference, settings.threads)
            except TooBusyError:
                raise
            except HobError as error:
                models.trials.failed(reference.target, GUIDE, error.message, error.hint)
                continue
            settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            tier.write(settings.data_dir, found)
            return found


def show(report: Report, console: Console) -> None:
    """Print the report for people."""
    machine = report.hardware
    facts = Table.grid(padding=(0, 2))
    if machine.board:
        facts.add_row("Machine", escape(machine.board))
    facts.add_row("Processor", escape(f"{machine.cpu}, {machine.cores} cores, {machine.architecture}"))
    facts.add_row("Extensions", " ".join(machine.features) or "none that Hob uses")
    facts.add_row("Compiles for", report.target)
    for place, device in enumerate(one for one in report.devices if one.usable):
        label = "Else on" if place else "Computes on"
        facts.add_row(label, escape(f"{device.target}, {device.name}: {device.reason}"))
    for device in report.devices:
        if not device.usable:
            name = f", {device.name}" if device.name else ""
            facts.add_row("Not on", escape(f"{device.kind}{name}: {device.reason}"), style="dim")
    facts.add_row("Speed", escape(_speed(report.measured)))
    facts.add_row("Largest model", f"about {report.largest_model_billion:g} billion weights (q4f16_1)")
    console.print(facts)
    console.print()
    checks = Table.grid(padding=(0, 2))
    for finding in report.findings:
        checks.add_row(MARKS[finding.status], escape(finding.check), escape(finding.detail))
        if finding.hint:
            checks.add_row("", "", f"[dim]{escape(finding.hint)}[/]")
    console.print(checks)


def _speed(measured: Measurement | None) -> str:
    """What was measured, in a line."""
    if measured is None:
        return "not measured yet: hob doctor --measure"
    parts = []
    if measured.tier is not None:
        parts.append(f"{measured.tier}, fluent up to about {measured.fluent:.1f} billion weights")
    if measured.bandwidth is not None:
        parts.append(f"memory {measured.bandwidth:.1f} GB/s")
    if measured.decode is not None and measured.prefill is not None:
        parts.append(
            f"{measured.model} reads {measured.prefill:,.0f}, writes {measured.decode:,.0f} tokens/s"
        )
    return f"{'; '.join(parts)} ({measured.target}, {datetime.fromtimestamp(measured.date):%Y-%m-%d})"
