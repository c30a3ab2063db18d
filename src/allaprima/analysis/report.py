"""The report: one HTML page that fetches nothing, its numbers as JSON and CSV, its figures as PNG for other pages."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from allaprima.analysis.pairs import CONFIRMED, NOT_SEEN, REFUTED, AnalyzedPairs, Finding, Observation
from allaprima.analysis.plots import Panel, close, png_of, svg_of
from allaprima.analysis.style import STYLE
from allaprima.data.images import to_pil, write_bytes_atomically

SHOWN = 6
"""Pairs at each end of a scale."""
SIDE = 256
"""Pixels of a picture in the page at most."""


@dataclass(frozen=True)
class Scale:
    """A measure by which the report shows the pairs at both ends."""

    values: np.ndarray
    low: str
    """What the pairs of the smallest values are."""
    high: str


@dataclass(frozen=True)
class Section:
    """An observation with its figures and the pictures at both ends."""

    seen: Observation
    panels: Sequence[Panel] = ()
    scale: Scale | None = None


def scales_of(pairs: AnalyzedPairs, key: str) -> Scale | None:
    """By which measure an observation's pairs are ordered, as far as it was measured."""
    c = pairs.columns
    known = {
        "distance": ("distance", "nearest pairs", "most distant pairs"),
        "complexity": ("complexity_teacher", "simplest pictures of the teacher", "most complex pictures of the teacher"),
        "length": ("length", "shortest prompts", "longest prompts"),
        "influence": ("influence_student", "prompts that the student leans on least", "prompts that it leans on most"),
        "curvature": (
            "curvature_teacher",
            "least curved trajectories of the teacher",
            "most curved trajectories of the teacher",
        ),
    }
    if key == "decisions":
        return Scale(
            pairs.gap(pairs.truth), "the teacher's picture is better by most", "the student's picture is better by most"
        )
    if key not in known or known[key][0] not in c:
        return None
    column, low, high = known[key]
    return Scale(c[column], low, high)


def ends(values: np.ndarray, prompt: np.ndarray, count: int = SHOWN) -> tuple[list[int], list[int]]:
    """Places of the smallest and of the largest values, each prompt once; the outermost first."""
    order = np.argsort(values, kind="stable").tolist()

    def first(of: Sequence[int]) -> list[int]:
        chosen: dict[int, int] = {}
        for i in of:
            chosen.setdefault(int(prompt[i]), i)
        return list(chosen.values())[:count]

    return first(order), first(order[::-1])


def page(
    title: str, lead: Sequence[str], pairs: AnalyzedPairs, sections: Sequence[Section], about: Mapping[str, Any]
) -> str:
    """Return the whole page."""
    shown = "".join(_section(s, pairs) for s in sections)
    toc = " · ".join(f'<a href="#{s.seen.key}">{html.escape(s.seen.title)}</a>' for s in sections)
    intro = "".join(f"<p>{html.escape(line)}</p>" for line in lead)
    made = html.escape(json.dumps(clean(about), indent=1))
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style><main><h1>{html.escape(title)}</h1>{intro}"
        f"{_table([f for s in sections for f in s.seen.findings])}<nav>{toc}</nav>{shown}"
        f"<h2>What made it</h2><pre>{made}</pre></main></html>\n"
    )


def _table(findings: Sequence[Finding]) -> str:
    if not findings:
        return ""
    rows = "".join(
        f"<tr><td>{f.observation or ''}</td><td>{html.escape(f.claim)}</td><td>{_badge(f.verdict)}</td>"
        f"<td>{html.escape(f.statistic)} <b>{_number(f.interval.mean)}</b> <span class=i>{_number(f.interval.low)} to"
        f" {_number(f.interval.high)}</span></td></tr>"
        for f in findings
    )
    return (
        "<div class=wide><table><thead><tr><th>no.</th><th>what the paper saw</th><th>on this pair</th>"
        f"<th>measure, 95 % interval</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _badge(verdict: str) -> str:
    kind = {CONFIRMED: "yes", REFUTED: "no", NOT_SEEN: "open"}[verdict]
    return f'<span class="badge {kind}">{verdict}</span>'


def _number(value: float) -> str:
    return "no value" if math.isnan(value) else f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def _section(section: Section, pairs: AnalyzedPairs) -> str:
    seen = section.seen
    parts = [f'<section id="{seen.key}"><h2>{html.escape(seen.title)}</h2><p class=paper>{html.escape(seen.paper)}</p>']
    if seen.missing:
        parts.append(f"<p class=missing>Not measured: {html.escape(seen.missing)}</p></section>")
        return "".join(parts)
    parts += [
        f"<p>{_badge(f.verdict)} {html.escape(f.claim[0].upper() + f.claim[1:])}: {html.escape(f.number)}.</p>"
        for f in seen.findings
    ]
    parts += [f"<p>{html.escape(fact)}</p>" for fact in seen.facts]
    if section.panels:
        figures = "".join(
            f'<figure role="img" aria-label="{html.escape(shows)}">{svg_of(figure, f"{seen.key}-{name}")}'
            f"<figcaption>{html.escape(shows)}</figcaption></figure>"
            for name, shows, figure in section.panels
        )
        parts.append(f"<div class=panels>{figures}</div>")
    if seen.note:
        parts.append(f"<p class=note>{html.escape(seen.note)}</p>")
    if section.scale is not None:
        low, high = ends(section.scale.values, pairs.prompt)
        for text, chosen in ((section.scale.low, low), (section.scale.high, high)):
            parts.append(_strip(text, chosen, section.scale.values, pairs))
    return "".join(parts) + "</section>"


def _strip(text: str, chosen: Sequence[int], values: np.ndarray, pairs: AnalyzedPairs) -> str:
    cells = "".join(
        f'<figure class=pair><div><img alt="student" src="{_inline(pairs.student[i])}">'
        f'<img alt="teacher" src="{_inline(pairs.teacher[i])}"></div>'
        f"<figcaption>{html.escape(_short(pairs.prompts[int(pairs.prompt[i])]))}<br>"
        f"<span class=i>{values[i]:.4g}</span></figcaption></figure>"
        for i in chosen
    )
    heading = html.escape(text[0].upper() + text[1:])
    return f"<h3>{heading}</h3><p class=note>Left the student, right the teacher.</p><div class=strip>{cells}</div>"


def _short(prompt: str) -> str:
    return prompt if len(prompt) <= 80 else prompt[:77] + "..."


def _inline(image: Tensor) -> str:
    """`(3, H, W)` uint8 as a data URL; large pictures are made smaller."""
    picture = to_pil(image.float() / 255)
    if max(picture.size) > SIDE:
        picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=88, method=6)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def clean(value: Any) -> Any:
    """JSON-ready, without nan, which JSON doesn't have."""
    if isinstance(value, Mapping):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [clean(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table_of(pairs: AnalyzedPairs) -> str:
    """CSV: a row a pair, a column a measure."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = list(pairs.columns)
    writer.writerow(["prompt", "seed", *names, "preferred"])
    sides = {1: "student", 0: "neither", -1: "teacher"}
    for i, won in enumerate(pairs.outcome.tolist()):
        values = [f"{pairs.columns[n][i]:.8g}" for n in names]
        writer.writerow([pairs.prompts[int(pairs.prompt[i])], int(pairs.seed[i]), *values, sides[won]])
    return text.getvalue()


def write(
    folder: Path,
    title: str,
    lead: Sequence[str],
    pairs: AnalyzedPairs,
    sections: Sequence[Section],
    about: Mapping[str, Any],
) -> None:
    """`report.html`, `report.json`, `pairs.csv` and `figures/*.png` in a folder; the figures are closed after."""
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    found = {s.seen.key: s.seen.row() for s in sections}
    text = json.dumps(clean({"about": about, "labels": pairs.labels, "observations": found}), indent=1, allow_nan=False)
    write_bytes_atomically(folder / "report.json", (text + "\n").encode())
    write_bytes_atomically(folder / "pairs.csv", table_of(pairs).encode())
    write_bytes_atomically(folder / "report.html", page(title, lead, pairs, sections, about).encode())
    for section in sections:
        for name, _, figure in section.panels:
            write_bytes_atomically(folder / "figures" / f"{name}.png", png_of(figure))
        close(section.panels)
