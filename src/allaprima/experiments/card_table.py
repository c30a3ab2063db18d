"""Tables of cards: which there are, what each needs, under which licences."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from allaprima.models.cards.card import Card, ModelSource, bundled_cards, load_card
from allaprima.models.cards.components import PARTS
from allaprima.models.cards.hub import lacking
from allaprima.models.cards.licences import GATED, licence
from allaprima.models.cards.sizes import Estimate, weights_of
from allaprima.models.cards.sources import CardSource, sources_of

GIB = 2**30


def gib(n: float) -> str:
    """Bytes for people."""
    return f"{n / GIB:.1f} GiB" if n >= GIB / 10 else f"{n / 2**20:.1f} MiB"


def cards_command(dtype: str) -> None:
    """Print the table of bundled cards."""
    console = _wide()
    table = Table("card", "family", "student", "teacher", "licences", "here", f"weights, {dtype}")
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.overflow = "fold"
    for name in bundled_cards():
        card = load_card(name)
        found, size = sources_of(card), weights_of(card, dtype)
        licences = dict.fromkeys((card.student.license, card.teacher.license, card.oracle.license))
        table.add_row(
            name, card.family, _side(card.student), _side(card.teacher), "\n".join(map(_licence, licences)),
            _here(found), _weights(size),
        )  # fmt: skip
    console.print(table)
    console.print(
        "* asks for acceptance before it can be fetched; nc: no commercial use; ?: not known to allow it. Weights"
        " are of all networks, shared ones once; allaprima card show NAME has the rest."
    )


def _wide() -> Console:
    """As wide as the terminal; in a file or a pipe wide enough for a table."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def _side(side: ModelSource) -> str:
    what = side.network or side.lora or side.source or f"{len(side.students)} students"
    what = "its weights" if what.startswith("weights/") else what.split(":")[0].split("@")[0]
    return escape(f"{what}\n{side.steps} steps {side.solver}, w {side.guidance_scale:g}")


def _licence(name: str) -> str:
    mark = "*" if name.lower() in {g.lower() for g in GATED} else ""
    return escape(name) + mark + {True: "", False: " nc", None: " ?"}[licence(name).commercial]


def _here(found: list[CardSource]) -> str:
    missing = [s.whose for s in found if not s.here]
    if not missing:
        return "[green]yes[/]"
    return "no" if len(missing) == len(found) else "without " + ", ".join(missing)


def _weights(size: Estimate) -> str:
    return gib(size.weights) + (f" + {', '.join(p.name for p in size.unknown)}" if size.unknown else "")


def show_card_command(name: str, dtype: str, activations: bool) -> None:
    """Explain one card."""
    console, card = _wide(), load_card(name)
    what = f"{escape(card.family)}, {card.width}x{card.height}"
    console.print(f"[bold]{escape(card.name)}[/] ({what}): {escape(card.description.strip())}")
    console.print(escape(_summary(card)))
    found = sources_of(card)
    table = Table("part", "source", "licence", "here")
    for s in found:
        table.add_row(s.whose, escape(s.text), _licence(s.license), "[green]yes[/]" if s.here else "no")
    console.print(table)
    for name in dict.fromkeys(s.license for s in found):
        known = licence(name)
        console.print(f"  {escape(name)}: {escape(known.name)}; {escape(known.says)}")
    _print_missing(console, found)
    if card.family not in PARTS or card.student.remote is not None or card.teacher.remote is not None:
        console.print("[dim]Memory isn't estimated for models that are called whole, or are a server's.[/]")
        return
    if not activations:
        _print_memory(console, weights_of(card, dtype), dtype)
        return
    # Torch and diffusers, which only activations need.
    from allaprima.models.loading.estimate import estimate

    _print_memory(console, estimate(card, dtype, activations), dtype)


def _summary(card: Card) -> str:
    s, t, c = card.student, card.teacher, card.cascade
    then = f"refines it from {c.sigma_is} {c.sigma:g}" if c.strategy == "refine" else "paints anew from the same noise"
    known = "a threshold comes with it" if card.calibration else "no threshold comes with it: calibrate first"
    return (
        f"The student paints {s.steps} steps of {s.solver} at guidance {s.guidance_scale:g}; a draft that falls short by"
        f" the oracle {card.oracle.kind} goes to the teacher, which {then} with {t.steps} steps of {t.solver} at guidance"
        f" {t.guidance_scale:g}; {known}. Shared: {', '.join(s.share) or 'nothing'}."
    )


def _print_missing(console: Console, found: list[CardSource]) -> None:
    for s in found:
        if s.here:
            continue
        if s.hub is None:
            console.print(f"[yellow]{s.whose}: {escape(str(s.path))} is not there.[/]")
            continue
        partly = "" if not s.path.is_dir() or not lacking(s.path, s.components) else f" (lacks {', '.join(s.missing[:3])})"
        console.print(f"[yellow]{s.whose}: fetched when it is first used{escape(partly)}, or by[/]")
        # One line, however narrow the terminal: it is there to be copied.
        console.print("  " + escape(s.command or ""), soft_wrap=True)


def _print_memory(console: Console, size: Estimate, dtype: str) -> None:
    table = Table("network", "of", "parameters", f"memory, {dtype}")
    for p in size.parts:
        known = (
            ("unknown until its config is here", "?")
            if p.parameters is None
            else (f"{p.parameters:,}", gib(p.numbers * size.size))
        )
        table.add_row(p.name, f"{p.whose}: {escape(p.source)}", *known)
    table.add_row("weights", "", "", gib(size.weights), end_section=size.network is not None)
    if size.network is not None and size.decoder is not None:
        table.add_row("activations", "one network call, one picture", "", gib(size.network))
        table.add_row("activations", "decoding one picture", "", gib(size.decoder))
        table.add_row("together", "weights and the larger of both", "", gib(size.total))
    console.print(table)
    console.print(
        "[dim]Without the oracle, the text encoders' activations, kernels' workspaces and the framework's own memory.[/]"
    )
