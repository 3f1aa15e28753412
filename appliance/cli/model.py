"""`hob model`: the library of models, and its workbench: convert, compile, probe."""

import json
from pathlib import Path

import click

from appliance.cli import adding, library
from appliance.cli.options import settings_options
from appliance.cli.progress import Bar
from appliance.cli.telling import Teller, say, spoken
from appliance.config import Settings, load_settings
from appliance.errors import InvalidRequestError
from appliance.models import Models
from builder.compile.quantise import QUANTISATIONS


@click.group("model")
def command() -> None:
    """Add, list, check, copy and remove models; convert, compile and probe them."""


for verb in (*adding.VERBS, *library.VERBS):
    command.add_command(verb)


@command.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path), required=False)
@click.option("--quantization", type=click.Choice(list(QUANTISATIONS)), default="q4f16_1", show_default=True)
@click.option("--context", type=click.IntRange(1), help="Tokens of context; the checkpoint's own by default.")
def convert(source: Path, out: Path | None, quantization: str, context: int | None) -> None:
    """Make an MLC directory from the checkpoint SOURCE: a directory or file of weights.

    safetensors, PyTorch, GGUF and ONNX are told apart by content. Without OUT it goes where Hob finds it,
    into its own models folder.
    """
    from builder.compile.convert import convert as convert_checkpoint

    models = load_settings().data_dir / "models"
    name = source.resolve().name if source.is_dir() else source.resolve().stem
    out = out or models / f"{name}-{quantization}"
    with Bar(f"Converting {source} to {quantization} ...") as bar:
        convert_checkpoint(source, out, quantization, bar, context_window_size=context)
    click.echo(str(out))
    if not out.resolve().is_relative_to(models.resolve()):
        click.echo(f"To use it, move it into {models}.", err=True)


@command.command("compile")
@click.argument("model", metavar="DIR")
@click.option("--target", default="auto", show_default=True, help="Processor or GPU to compile for.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")
@settings_options("kernels")
def compile_(model: str, target: str, as_json: bool, kernels: str | None) -> None:
    """Compile the model in DIR, or the installed one of that name, and print the library's path."""
    with spoken(as_json):
        _, path = _compiled(model, target, load_settings(kernels=kernels), as_json=as_json)
        if as_json:
            say({"model": model, "library": str(path)})
        else:
            click.echo(str(path))


@command.command()
@click.argument("model", metavar="DIR")
@click.option("--ids", required=True, help="Prompt as token ids: 1,2,3.")
@click.option("--new", type=int, default=32, show_default=True, help="Tokens to generate.")
@click.option("--target", default="auto", show_default=True, help="Processor or GPU to compile for.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@settings_options("kernels", "threads")
def probe(
    model: str, ids: str, new: int, target: str, as_json: bool, kernels: str | None, threads: str | None
) -> None:
    """Continue a prompt greedily and show ids, the best logits of each step, and timings.

    For holding two engines, kernels or libraries side by side: no chat template, no sampling.
    """
    from appliance.engine.probe import probe as run

    prompt = _token_ids(ids)
    settings = load_settings(kernels=kernels, threads=threads)
    directory, path = _compiled(model, target, settings, as_json=False)
    found = run(directory, path, prompt, new, threads=settings.threads)
    if as_json:
        click.echo(json.dumps(found.describe()))
        return
    click.echo("step    token  logit      next best")
    for step, best in enumerate(found.top):
        others = "  ".join(f"{score.token}:{score.logit:.3f}" for score in best[1:])
        click.echo(f"{step:>4} {best[0].token:>8}  {best[0].logit:<9.4f}  {others}")
    click.echo(
        f"load {found.load:.3f} s, prefill {found.prefill_tokens_per_second:,.1f} tok/s,"
        f" decode {found.decode_tokens_per_second:,.1f} tok/s, {found.rss / 2**20:,.0f} MiB"
    )


def _compiled(model: str, target: str, settings: Settings, *, as_json: bool) -> tuple[Path, Path]:
    """The directory of a model, given by path or installed name, and its library, compiled if need be."""
    from builder.compile import compile_model
    from builder.compile.mlc import MLCDirectory
    from builder.compile.targets import parse_target

    directory = Path(model) if Path(model).exists() else Models(settings).get(model).directory
    MLCDirectory.open(directory).verify()
    teller = Teller(f"Compiling {directory.name} ...", as_json)
    try:
        path = compile_model(
            directory,
            settings.data_dir / "libraries",
            target=parse_target(target),
            kernels=settings.kernels,
            progress=teller,
        )
    finally:
        teller.stop()
    return directory, path


def _token_ids(text: str) -> list[int]:
    """Token ids out of "1,2,3".

    Raises:
        InvalidRequestError: something else.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidRequestError(
            f"--ids {text!r} are not token ids", param="ids", hint="Give numbers with commas: --ids 1,2,3"
        ) from error
