"""The contact sheet: draft, score, decision and final side by side, for people who would rather look than read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

PAPER, INK, FAINT = (250, 249, 246), (34, 34, 34), (130, 130, 130)
COLOURS = {"accept": (34, 139, 84), "refine": (204, 122, 0), "regenerate": (190, 50, 60)}
PICTURE, GAP, LINE = 128, 14, 18


@dataclass(frozen=True)
class SheetRow:
    """One prompt's line on the sheet."""

    prompt: str
    draft: Image.Image | None
    final: Image.Image
    score: float | None
    threshold: float | None
    decision: str
    source: Image.Image | None = None
    """The picture that was edited, shown before the draft."""


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _fit(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + "...", font=font) > width:
        text = text[:-1]
    return text.rstrip() + "..."


def contact_sheet(rows: Sequence[SheetRow], title: str = "", columns: int = 4) -> Image.Image:
    """All rows on one picture; each cell holds the draft, an arrow with the decision, and the final picture."""
    columns = max(1, min(columns, len(rows)))
    arrow = 74
    before = PICTURE + GAP if any(r.source is not None for r in rows) else 0
    cell_w, cell_h = before + 2 * PICTURE + arrow + GAP, PICTURE + 2 * LINE + GAP
    top = 40 if title else GAP
    lines = -(-len(rows) // columns)
    sheet = Image.new("RGB", (columns * cell_w + GAP, lines * cell_h + top + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((GAP, 10), title, fill=INK, font=_font(17))
    for i, row in enumerate(rows):
        x, y = GAP + (i % columns) * cell_w, top + (i // columns) * cell_h
        _cell(sheet, draw, row, x, y, arrow, before)
    return sheet


def _cell(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, row: SheetRow, x: int, y: int, arrow: int, before: int
) -> None:  # fmt: skip
    colour = COLOURS.get(row.decision, INK)
    small, normal = _font(12), _font(14)
    draw.text((x, y), _fit(draw, row.prompt, normal, before + 2 * PICTURE + arrow - GAP), fill=INK, font=normal)
    y += LINE + 4
    size = (PICTURE, PICTURE)
    if row.source is not None:
        sheet.paste(row.source.convert("RGB").resize(size, Image.Resampling.LANCZOS), (x, y))
    x += before
    right = x + PICTURE + arrow
    if row.draft is None:
        draw.rectangle((x, y, x + PICTURE - 1, y + PICTURE - 1), outline=(225, 222, 215))
        draw.text((x + 28, y + PICTURE // 2 - 8), "no draft", fill=FAINT, font=normal)
    else:
        sheet.paste(row.draft.resize(size, Image.Resampling.LANCZOS), (x, y))
    sheet.paste(row.final.resize(size, Image.Resampling.LANCZOS), (right, y))
    draw.rectangle((right - 2, y - 2, right + PICTURE + 1, y + PICTURE + 1), outline=colour, width=2)
    middle, centre = y + PICTURE // 2, x + PICTURE + arrow // 2
    draw.line((centre - 22, middle, centre + 20, middle), fill=colour, width=3)
    draw.polygon([(centre + 16, middle - 6), (centre + 16, middle + 6), (centre + 26, middle)], fill=colour)
    draw.text((centre, middle - 14), row.decision, fill=colour, font=small, anchor="mm")
    if row.score is not None:
        draw.text((centre, middle + 16), f"{row.score:.3f}", fill=INK, font=normal, anchor="mm")
    if row.threshold is not None:
        draw.text((centre, middle + 33), f"of {row.threshold:.3f}", fill=FAINT, font=small, anchor="mm")
