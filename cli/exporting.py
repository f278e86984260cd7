"""The command `transom export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import InputError


def exporting(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="The folder of a run.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="What to change, as in export.logits=all.")
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="DIR", help="The folder to write.")] = None,
    to: Annotated[
        Literal["onnx", "hf"], typer.Option(help="A graph, or the weights as a Hugging Face checkpoint.")
    ] = "onnx",
    opset: Annotated[int | None, typer.Option(help="Of the ONNX standard: 24, or 23 for ONNX Runtime 1.23.")] = None,
    gate: Annotated[
        str | None, typer.Option(metavar="MEASURE=LIMIT,...", help="What the report must keep to besides.")
    ] = None,
    check: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write nothing: run the report of an exported folder anew.")
    ] = None,
    provider: Annotated[
        str | None, typer.Option(metavar="NAME", help="With --check: the one provider to run on, not all.")
    ] = None,
) -> None:
    """Write a run's model as ONNX, its state included, or as a Hugging Face checkpoint.

    The folder of a graph also gets a report on where the graph agrees with PyTorch. KEY=VALUE changes what the spec
    says of `export`, as in export.logits=all, export.precision=fp16 or export.quantize=int4.

    --gate says what else fails an export, as in rms=1e-3,argmax=0.999: the most of error, rms, ties, kl (nats) and
    loss (nats more than the exact graph's), the least of argmax. --check takes PyTorch's numbers from the folder, and
    needs no torch.
    """
    if check is not None:
        if run is not None or out is not None:
            raise InputError(f"{run or out}: goes with an export; --check {check} takes no RUN and no -o")
        from ..deploy import check as check_folder

        print(check_folder(check, provider=provider, gate=gate))
        return
    if run is None or out is None:
        raise InputError(
            "an export takes RUN, the folder of a run, and --out DIR, the one to write; or else --check DIR"
        )
    if provider is not None:
        raise InputError(f"--provider {provider}: goes with --check; an export is checked on every provider")
    overrides = [*(overrides or ()), *([] if opset is None else [f"export.opset={opset}"])]
    if to == "hf":
        if given := [*overrides, *([f"--gate {gate}"] if gate else ())]:
            raise InputError(f"{given[0]}: goes with a graph; --to hf takes no changes")
        from ..interop import export_checkpoint

        print(export_checkpoint(run, out))
        return
    from ..deploy import export as export_run
    from ..deploy import export_settings
    from ..training import Samples

    settings = export_settings(run, overrides) if overrides else None
    print(export_run(run, out, settings=settings, samples=Samples(run), gate=gate or ""))
    print(out)
