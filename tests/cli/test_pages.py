"""Commands and Python of the pages on cards, GPUs and speed: options, keywords and cards that exist. Nothing is run."""

import ast
import dataclasses
import inspect
import re
import shlex
from pathlib import Path

import pytest
import typer

from allaprima.cli.app import app
from allaprima.models.cards.card import bundled_cards, load_card
from allaprima.models.cards.sizes import weights_of
from allaprima.models.placement.device_config import DeviceConfig
from allaprima.pipeline import AdaptivePipeline

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("gpu", "speed", "cards")
WRITTEN = ("my/card.yaml",)
"""Cards of the reader's own."""


def blocks(page, python):
    """Fenced blocks of a page, Python's or those without a language."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [body for kind, body in found if kind == ("python" if python else "")]


def commands(page):
    lines = "\n".join(blocks(page, False)).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("allaprima ")]


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse_and_name_cards_that_are(page):
    assert commands(page)
    for words in commands(page):
        command, context = typer.main.get_command(app), None
        while hasattr(command, "commands"):
            command, words = command.commands[words[0]], words[1:]
        context = command.make_context(command.name, list(words))
        card = context.params.get("card")
        assert card is None or card in (*bundled_cards(), *WRITTEN), card


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, True)])
def test_python_compiles_and_its_keywords_are_known(page):
    fields = {f.name for f in dataclasses.fields(DeviceConfig)}
    seen = 0
    for block in blocks(page, True):
        for call in (n for n in ast.walk(ast.parse(block)) if isinstance(n, ast.Call)):
            if not ast.unparse(call.func).startswith("AdaptivePipeline."):
                continue
            seen += 1
            known = set(inspect.signature(getattr(AdaptivePipeline, call.func.attr)).parameters) | fields
            assert {k.arg for k in call.keywords} <= known
            card = ast.literal_eval(call.args[0])
            assert card in (*bundled_cards(), *WRITTEN), card
            said = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg in fields}
            DeviceConfig(**said)
    assert seen


def test_the_table_has_the_weights_that_the_cards_have():
    text = (DOCS / "gpu.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \| (\d+) \| ([\d.]+) GiB \|", text, re.MULTILINE)
    assert {"sdxl-turbo-refiner", "sana-sprint", "sdxl-lcm"} <= {name for name, _, _ in rows}
    for name, size, weights in rows:
        assert load_card(name).height == int(size)
        assert f"{weights_of(load_card(name), 'bfloat16').weights / 2**30:.1f}" == weights
