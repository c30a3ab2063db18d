"""The report: one HTML page with its pictures inside, and the same numbers as CSV and Parquet."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from allaprima._version import __version__
from allaprima.core.errors import SettingError
from allaprima.data.images import write_bytes_atomically
from allaprima.evaluation.intervals import Interval
from allaprima.study.annotators import Quality, qualities
from allaprima.study.create import PICTURES
from allaprima.study.curve import draw
from allaprima.study.outcomes import by_pair
from allaprima.study.results import Comparison, agreement, compare, differences, strengths
from allaprima.study.store.store import StudyStore
from allaprima.study.tables import write_csv, write_parquet
from allaprima.study.votes import Vote
from allaprima.study.win_probability import Calibrated, calibrate

SHOWN = 6
"""Pairs shown at each end."""
STYLE = """
:root{color-scheme:light dark;font:16px/1.5 system-ui,sans-serif}
body{max-width:64rem;margin:0 auto;padding:1rem}
table{border-collapse:collapse;margin:.5rem 0 1.5rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .75rem;text-align:left;border-bottom:1px solid #8886}
.bar{position:relative;width:12rem;height:1rem;background:#8883}
.bar i{position:absolute;top:.375rem;height:.25rem;background:#2a6fb0}
.bar b{position:absolute;top:.125rem;width:.25rem;height:.75rem;background:#d04a2a}
.bar u{position:absolute;left:50%;top:0;height:1rem;border-left:1px dashed currentColor}
.pairs{display:grid;grid-template-columns:repeat(auto-fill,minmax(14rem,1fr));gap:1rem}
.pairs img{width:48%}
.pairs p{margin:0;font-size:.875rem}
.scroll{overflow-x:auto}
.curve{max-width:100%}
"""


def write_report(
    store: StudyStore, folder: Path, out: Path, level: float = 0.95, drop_flagged: bool = False,
    scores: Mapping[tuple[str, str], float] | None = None,
) -> list[str]:  # fmt: skip
    """`report.html`, `results` and `annotators` as .csv and .parquet; says what was found, a line each.

    `scores`: an oracle's, by file and prompt, to be held against the votes. Raises `SettingError` where nobody has voted.
    """
    if not 0 < level < 1:
        raise SettingError(f"level={level}: a share between 0 and 1 is due, for example 0.95.")
    asked, rules = store.questions, store.rules
    votes = store.votes()
    people = qualities(votes, store.votes(("gold",)), asked.main)
    flagged = {q.annotator for q in people if q.flags}
    if drop_flagged:
        votes = [v for v in votes if v.annotator not in flagged]
    if not votes:
        raise SettingError("there are no votes to report: allaprima study serve collects them.")
    # Without somebody's votes, or before the end, pairs have fewer: then more than half of what there is decides.
    complete = sum(len(of) >= rules.votes for of in by_pair(votes).values())
    least = rules.votes if complete and not drop_flagged else 1
    tables: list[Any] = compare(votes, asked, level, least) if asked.compares else differences(votes, asked, level, least)
    rows = [t.row() for t in tables]
    write_csv(out / "results.csv", rows)
    write_parquet(out / "results.parquet", rows)
    annotator_rows = [{**vars(q), "flags": "; ".join(q.flags)} for q in people]
    write_csv(out / "annotators.csv", annotator_rows)
    write_parquet(out / "annotators.parquet", annotator_rows)
    alpha = agreement(votes, asked)
    oracle = None if scores is None or not asked.compares else _against(votes, scores, asked.main, level)
    about = store.about
    parts = [
        f"<h1>{escape(str(about['name']))}</h1>", _summary(store, votes, flagged, drop_flagged, complete, least),
        _comparisons(tables, level, str(about["distance"])) if asked.compares else _differences(rows),
        _strengths(votes, asked.main, level, least) if asked.compares else "",
        "<h2>Agreement</h2><p>Krippendorff's alpha, nominal: 1 is full agreement, 0 is chance.</p>",
        _table(["question", "alpha"], [[q, _number(a)] for q, a in alpha.items()]),
        _annotators(people), "" if oracle is None else _oracle(oracle),
        _gallery(votes, folder, asked.main) if asked.compares else "",
    ]  # fmt: skip
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Study</title><style>{STYLE}</style><body>{''.join(parts)}"
    )
    write_bytes_atomically(out / "report.html", page.encode("utf-8", "replace"))
    return _said(tables, people, alpha[asked.main], oracle) if asked.compares else [f"{len(votes)} votes"]


def _summary(store: StudyStore, votes: Sequence[Vote], flagged: set[int], dropped: bool, complete: int, least: int) -> str:
    counts, about = store.counts(), store.about
    doubt = f" {len(flagged)} are flagged, their votes {'left out' if dropped else 'counted'}." if flagged else ""
    few = (
        ""
        if least > 1 or store.rules.votes == 1
        else " Not every pair has all of its votes: more than half of those there are decides."
    )
    return (
        f"<p>{len(votes)} votes of {len({v.annotator for v in votes})} people on {len(by_pair(votes))} of {counts['pairs']}"
        f" pairs ({complete} complete, {store.rules.votes} votes a pair).{doubt}{few} Methods:"
        f" {escape(', '.join(map(str, about['methods'])))}. Seed {about['seed']}, allaprima {__version__}.</p>"
    )


def _comparisons(found: Sequence[Comparison], level: float, distance: str) -> str:
    head = [
        "question",
        "first",
        "second",
        "pairs",
        "wins",
        "ties",
        "losses",
        "win rate of the first",
        "",
        "sign test",
        "anytime",
    ]
    made = ""
    for title, some in (
        ("Who is preferred", [c for c in found if c.band is None]),
        (f"By band of distance ({escape(distance)})", [c for c in found if c.band is not None]),
    ):
        if not some:
            continue
        banded = some[0].band is not None
        rows = [
            [
                c.question, escape(c.methods[0]), escape(c.methods[1]),
                *([f"{20 * c.band}-{20 * c.band + 20} %"] if c.band is not None else []),
                c.wins + c.ties + c.losses, c.wins, c.ties, c.losses, _interval(c.rate), _bar(c.rate), f"{c.sign_p:.3g}",
                f"{c.anytime.low:.3f}..{c.anytime.high:.3f}",
            ]
            for c in some
        ]  # fmt: skip
        made += f"<h2>{title}</h2>" + _table([*head[:3], *(["band"] if banded else []), *head[3:]], rows)
    return made + (
        f"<p>A pair's answer is what more than half of its votes say, else a tie. Win rate: ties one half, Wilson's"
        f" {100 * level:g} % interval. Sign test: two-sided, ties left out. Anytime: an interval that holds at every moment"
        " together (docs/study.md), for studies that stop when enough is known.</p>"
    )


def _differences(rows: Sequence[Mapping[str, Any]]) -> str:
    body = [
        [
            r["question"],
            escape(r["method"]),
            r["pairs"],
            _interval(i := Interval(r["different"], r["low"], r["high"])),
            _bar(i),
        ]
        for r in rows
    ]
    return "<h2>How often two seeds differ</h2>" + _table(["in", "method", "pairs", "share found different", ""], body)


def _strengths(votes: Sequence[Vote], question: str, level: float, least: int) -> str:
    found = strengths(votes, question, level, least)
    rows = [[escape(s.method), _interval(s.share), _bar(s.share)] for s in found]
    return (
        f"<h2>Strengths (Bradley-Terry, {question})</h2>" + _table(["method", "share of strength", ""], rows)
        + f"<p>By evalica; intervals {100 * level:g} %, prompts resampled; half a tie added between every two methods.</p>"
    )  # fmt: skip


def _annotators(people: Sequence[Quality]) -> str:
    rows = [
        [
            q.annotator, q.votes, f"{q.gold_right} of {q.gold}", f"{q.median_seconds:.1f} s", _number(q.left_share),
            f"{q.agreed} of {q.compared}", escape("; ".join(q.flags)) or "none",
        ]
        for q in people
    ]  # fmt: skip
    head = ["annotator", "votes", "checks passed", "median time", "left chosen", "agrees with the nearest other", "doubts"]
    return "<h2>Annotators</h2>" + _table(head, rows)


def _against(votes: Sequence[Vote], scores: Mapping[tuple[str, str], float], question: str, level: float) -> Calibrated:
    value = {"a": 1.0, "tie": 0.5, "b": 0.0}
    pairs = list(by_pair(votes).values())
    a, b = ([scores[(of[0].files[i], of[0].prompt)] for of in pairs] for i in (0, 1))
    shares = [sum(value[v.answers[question]] for v in of) / len(of) for of in pairs]
    return calibrate(a, b, shares, [of[0].prompt for of in pairs], level)


def _oracle(c: Calibrated) -> str:
    rows = [
        ["full reference, [E(first) > E(second)]", _interval(c.full_reference)],
        [f"no reference, [E(first) > tau], best k = {c.no_reference_k:g} %, chosen on these votes", _number(c.no_reference)],
        ["always the more preferred method", _number(c.always_the_same)],
        ["log loss of win probability on held-out prompts (nothing known: .693)", _number(c.log_loss)],
        ["slope: P(first preferred) = 1 / (1 + exp(-slope (E(first) - E(second))))", _number(c.slope)],
    ]
    return (
        f"<h2>The oracle against the votes</h2><p>{c.pairs} pairs with a preference.</p>" + _table(["", ""], rows)
        + f'<img class=curve alt="Probability of being preferred over the difference of scores" src="{_data(draw(c))}">'
    )  # fmt: skip


def _gallery(votes: Sequence[Vote], folder: Path, question: str) -> str:
    """Pairs on which people were surest, for the first method and for the second."""
    value = {"a": 1.0, "tie": 0.5, "b": 0.0}
    pairs = [(sum(value[v.answers[question]] for v in of) / len(of), of[0]) for of in by_pair(votes).values()]
    pairs.sort(key=lambda p: p[0])
    made = ""
    for title, some in (("First preferred", pairs[::-1][:SHOWN]), ("Second preferred", pairs[:SHOWN])):
        cells = "".join(
            f"<div><p>{escape(v.prompt)}</p>{''.join(_picture(folder / PICTURES / n) for n in v.files)}"
            f"<p>{escape(v.methods[0])} | {escape(v.methods[1])}: {100 * share:.0f} % for the first</p></div>"
            for share, v in some
        )
        made += f"<h2>{title}</h2><div class=pairs>{cells}</div>"
    return made


def _picture(path: Path) -> str:
    try:
        return f'<img alt="" src="{_data(path.read_bytes())}">'
    except OSError:
        return "<em>(picture gone)</em>"


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _said(found: Sequence[Comparison], people: Sequence[Quality], alpha: float, oracle: Calibrated | None) -> list[str]:
    made = [
        f"{c.question}: {c.methods[0]} over {c.methods[1]} {_interval(c.rate)},"
        f" {c.wins} wins, {c.ties} ties, {c.losses} losses"
        for c in found
        if c.band is None
    ]
    made.append(
        f"agreement (alpha) {_number(alpha)}; {sum(bool(q.flags) for q in people)} of {len(people)} annotators flagged"
    )
    if oracle is not None:
        made.append(f"the oracle agrees with the votes: {_interval(oracle.full_reference)} of {oracle.pairs} pairs")
    return made


def _number(x: float) -> str:
    return "none" if x != x else f"{x:.3f}"


def _interval(i: Interval) -> str:
    return f"{i.mean:.3f} ({i.low:.3f}..{i.high:.3f})"


def _bar(i: Interval) -> str:
    return (
        f'<div class=bar><u></u><i style="left:{100 * i.low:.1f}%;width:{100 * (i.high - i.low):.1f}%"></i>'
        f'<b style="left:calc({100 * i.mean:.1f}% - .125rem)"></b></div>'
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    top = "".join(f"<th>{h}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{x}</td>" for x in row) + "</tr>" for row in rows)
    return f"<div class=scroll><table><tr>{top}</tr>{body}</table></div>"
