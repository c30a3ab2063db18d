"""`allaprima serve`: a card behind OpenAI's images endpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from allaprima.cli.options import Backend, Card, Device, Dtype, RayAddress, options_of


def serve(
    card: Card = "emoji",
    calibration: Annotated[Path | None, typer.Option(help="Artifact of calibrate, in place of the card's own.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; others than this machine's want --keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 is any that is free; the address is printed.")] = 8000,
    keys: Annotated[
        Path | None, typer.Option(help="File of NAME KEY, one client a line, not readable by others; or $ALLAPRIMA_KEYS.")
    ] = None,
    allow_anyone: Annotated[
        bool, typer.Option("--allow-anyone", help="Without keys, answer whoever reaches it, not this machine alone.")
    ] = False,
    batch_size: Annotated[
        int, typer.Option(help="Pictures a network call; constant, padded. 1 is soonest for one caller, 16 paints most.")
    ] = 4,
    max_queue: Annotated[int, typer.Option(help="Pictures that may wait; beyond: 429 with Retry-After.")] = 256,
    budget: Annotated[
        float | None, typer.Option(help="Mean cost a picture of requests that don't say; default: the calibration's.")
    ] = None,
    latency_objective: Annotated[
        float | None, typer.Option(help="Seconds: while 95 % take longer, thresholds that callers left open are lowered.")
    ] = None,
    lowest_threshold: Annotated[
        float | None, typer.Option(help="How far; default: to where half as many drafts fall short.")
    ] = None,
    oracle_failure: Annotated[
        str, typer.Option(help="A draft that the oracle fails on: policy (it falls short), accept, regenerate or refuse.")
    ] = "policy",
    oracle_timeout: Annotated[float | None, typer.Option(help="Seconds after which it has failed.")] = None,
    max_pictures: Annotated[int | None, typer.Option(help="Pictures a request (n); default 10.")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Pixels a picture; default four times the card's.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Teacher steps a picture; default 100.")] = None,
    max_per_client: Annotated[int | None, typer.Option(help="A client's pictures at the same time; default 64.")] = None,
    drain_seconds: Annotated[
        float, typer.Option(help="At SIGTERM: time to finish what was accepted; the rest is handed back (503).")
    ] = 60.0,
    traces: Annotated[
        str | None, typer.Option(help="OTLP address for spans, http://.../v1/traces; or $OTEL_EXPORTER_OTLP_ENDPOINT.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="process (here), or ray: pools of workers on a Ray cluster behind the same API.")
    ] = "process",
    ray_address: RayAddress = None,
    pools: Annotated[
        str, typer.Option(help="With --engine ray: student=2,oracle=1,teacher=1-4; a range grows with what is in flight.")
    ] = "",
    backend: Backend = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Serve a card as OpenAI's images API: generations, edits, models, health, metrics (docs/serving.md)."""
    from allaprima.experiments.serve import ServeOptions, serve_command
    from allaprima.models.placement.device_config import DeviceConfig

    device_config = DeviceConfig.of(backend=backend, device=device, dtype=dtype)
    serve_command(options_of(ServeOptions, locals(), device_config=device_config))
