"""The commands: each reads its arguments, calls one function and prints what comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import PluginError
from . import Session
from .benching import benching
from .exporting import exporting
from .importing import importing
from .output import notes, results
from .plugins_app import plugins

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Plain help and usage errors: nothing is boxed in or wrapped in a pipe, and the help comes in half the time.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(plugins, name="plugins")

SpecArgument = Annotated[str, typer.Argument(metavar="SPEC", help="A bundled spec's name, or the path of a YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="What to change, as in model.d_model=128.")
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]


@app.callback()
def common(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    packages: Annotated[
        list[str] | None,
        typer.Option("-p", metavar="no:NAME", help="Keep a package from loading; may be given several times."),
    ] = None,
) -> None:
    """Compose transformers from a spec, train them, compare them and ship them to ONNX."""
    context.ensure_object(Session).debug = debug
    for text in packages or ():
        from ..registry.manager import default

        said, colon, name = text.partition(":")
        if said != "no" or not colon or not name:
            raise PluginError(f"-p {text}: '{text}' is not no:NAME, as in -p no:acme")
        default().block(name)
        context.call_on_close(default.cache_clear)  # what the next command in this process may load is its own matter


@app.command()
def show(
    spec: SpecArgument,
    overrides: Overrides = None,
    processes: Annotated[int, typer.Option(min=1, help="That would train it: training is shown as one sees it.")] = 1,
) -> None:
    """Show the model of a spec, allocating no weights.

    It comes as a tree: parameters, FLOPs, state and training memory, and the kernel of each layer.
    """
    from ..registry.show import describe
    from ..registry.spec import load_spec
    from .render import tree

    found = describe(load_spec(spec, overrides or ()), processes)
    results().print(tree(found.tree))
    for line in found.notes:
        print(line)


@app.command()
def train(
    spec: SpecArgument,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="RUN", help="The run's folder; runs/NAME unless given.")
    ] = None,
) -> None:
    """Train the model of a spec, or go on with a run that stopped."""
    from ..registry.spec import load_spec
    from ..training import train as train_run
    from .progress import progress

    loaded = load_spec(spec, overrides or ())
    folder = out or Path("runs") / loaded.name
    with progress(notes()) as shown:
        train_run(loaded, folder, report=shown)
    print(folder)


@app.command(name="eval")
def evaluate(run: RunArgument) -> None:
    """Measure a run's model on the held-out data."""
    from ..training import evaluate as evaluate_run

    for name, value in evaluate_run(run).items():
        print(f"{name} {value:.6g}")


@app.command()
def generate(
    run: RunArgument,
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT", help="What to continue; several go as one batch.")],
    max_new_tokens: Annotated[int, typer.Option(help="The most tokens to write.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Choose among this many of the likeliest.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Choose among the likeliest that reach this probability.")] = None,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: make tokens that occurred less likely.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="End at this text; may be given several times.")] = None,
    draft: Annotated[Path | None, typer.Option(metavar="RUN", help="A cheaper run that proposes tokens.")] = None,
    ahead: Annotated[int, typer.Option(help="How many tokens it proposes at a time.")] = 4,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where a run's model computes.")] = "cpu",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile a run's layers: the first steps take longer, the others less.")
    ] = False,
) -> None:
    """Write text that continues one or more prompts, with a run or with an exported folder.

    With --draft the text is the same, and comes sooner where the cheaper run often guesses right.
    """
    from ..generation import Sampling
    from .render import writer
    from .writing import write

    sampling = Sampling(
        max_new_tokens,
        temperature,
        top_k,
        top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
    )
    with writer(prompts) as on_text:
        how = (lambda path: notes().print(f"steps: {path}")) if compiled else None
        write(run, prompts, sampling, on_text, None if draft is None else (draft, ahead), device=device, compiled=how)


app.command(name="import")(importing)
app.command(name="export")(exporting)
app.command(name="bench")(benching)


@app.command()
def schema(
    of: Annotated[
        Literal["spec", "folder"], typer.Argument(metavar="[spec|folder]", help="A spec, or an exported folder.")
    ] = "spec",
) -> None:
    """Print the JSON Schema of specs, or of what `transom.json` says of an exported folder.

    That of specs holds the options of every installed component, so that editors complete them.
    """
    import json

    if of == "folder":
        from ..deploy.schema import schema as described
    else:
        from ..registry.schema import schema as described

    print(json.dumps(described(), indent=2))
