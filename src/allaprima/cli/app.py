"""The command line as one typer app: the verbs, each from its own file, with an example of its use."""

from __future__ import annotations

from typing import Annotated

import typer

from allaprima.cli import (
    analyze,
    calibrate,
    card,
    control,
    convert_oracle,
    distill,
    edit,
    evaluate,
    finetune_oracle,
    frontier,
    generate,
    plan,
    risk,
    serve,
    show,
    study,
)

EXAMPLES = {
    generate.generate: '"red apple, noto" "cat face, fluent 3d" --budget 15 --out out/first',
    edit.edit: 'apple.png "red apple, fluent 3d" --strengths 0.4,0.6,0.8 --out out/edited',
    control.control: 'sketch.png "owl, fluent 3d" --net out/edges --map canny --out out/controlled',
    show.show: "out/first/images/00000.png --repeat",
    calibrate.calibrate: "--budget 15 --table",
    risk.risk: "judged.csv --alpha 0.3 --delta 0.1",
    finetune_oracle.finetune_oracle: "pairs.csv --out out/oracle",
    convert_oracle.convert_oracle: "imagereward ImageReward.pt --tokenizer bert-base-uncased --out oracles/reward",
    frontier.frontier: "--quick --prompts 60 --out out/frontier",
    analyze.analyze: "--prompts 200 --seeds 2 --out out/analysis",
    evaluate.evaluate: "out/first --metrics judge,oracle_score --against out/teacher",
    distill.distill: "consistency teacher=emoji loop.max_train_steps=200 --out runs/student",
    serve.serve: "--port 8000, then: curl 127.0.0.1:8000/v1/images/generations"
    """ -H 'Content-Type: application/json' -d '{"prompt": "red apple, noto"}'""",
    plan.plan: "plan.yaml --p95 4 --plot plan.png",
    card.cards: "",
}
"""The verbs in the order of the help, with the arguments of an example."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="A few-step student paints first, an oracle looks, and a teacher retouches only what falls short.",
)


@app.callback(invoke_without_command=True)
def top(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    """Text to image within a budget."""
    if version:
        from allaprima._version import __version__

        typer.echo(f"allaprima {__version__}")
        raise typer.Exit


for verb, arguments in EXAMPLES.items():
    name = verb.__name__.replace("_", "-")
    app.command(name, epilog=f"Example: allaprima {name} {arguments}".rstrip())(verb)
app.add_typer(card.card_app, name="card")
app.add_typer(study.study_app, name="study")
