"""The emoji data set from its sources: `python -m allaprima.bundled.emoji.build --out emoji64.tar`.

Four npm packages hold SVG bodies by name. Each body is drawn at 128 pixels, laid on white, halved (Lanczos) to 64, and
stored as `NNNNN.png` + `NNNNN.json`, numbered in the packages' own order. Which icons are kept, and how a name becomes
a concept and a skin tone, is `read_name`; what is held out of training is `split_of`.

`--compare OTHER.tar` prints how the result differs from another data set, and ends with 1 if it does.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import re
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from allaprima.bundled.emoji.npm import Package, fetch, find, read_json
from allaprima.core.errors import AllaprimaError, ModelError, SettingError

# dataset and images, which import torch, are imported where they are used: the rasterising processes need neither.
if TYPE_CHECKING:
    from allaprima.bundled.emoji.dataset import EmojiData

DRAWN, STORED = 128, 64
"""Pixels a side: as rasterised, and as stored."""
TOLERANCE = 2.0
"""Mean absolute difference, of 255, up to which two pictures count as the same but for the rasteriser."""
TEST_PERCENT = 4


@dataclass(frozen=True)
class StylePackage:
    """One style: its package, its licence, and how its names say a skin tone."""

    style: str
    package: Package
    license: str
    toned: bool
    """True: `-dark` and the like end a name and the picture is kept. False: such names say `skin-tone` and are left out."""


SOURCES = (
    StylePackage("noto", Package("@iconify-json/noto", "1.2.9"), "Apache-2.0", toned=False),
    StylePackage("twemoji", Package("@iconify-json/twemoji", "1.2.5"), "CC-BY-4.0", toned=False),
    StylePackage("fluent flat", Package("@iconify-json/fluent-emoji-flat", "1.2.6"), "MIT", toned=True),
    StylePackage("fluent 3d", Package("@iconify-json/fluent-emoji", "1.2.7"), "MIT", toned=True),
)
_TONE = re.compile(r"-(medium-dark|medium-light|dark|light|medium)$")


def read_name(name: str, toned: bool) -> tuple[str, str] | None:
    """An icon's name -> `(concept, skin)`; None for what is left out: flags of countries, and pictures in noto's skin tones.

    In the Fluent sets every name that ends in a tone is read as one, so the three that only look like it
    (`horizontal-traffic-light`, `vertical-traffic-light`, `police-car-light`) become "horizontal traffic" in "light skin":
    a wart of the set that the bundled weights were trained on, kept because the set is meant to be reproduced. Training
    leaves pictures with a skin tone out, so no bundled model has seen them.
    """
    if name.startswith("flag-") or "skin-tone" in name:
        return None
    tone = _TONE.search(name) if toned else None
    if tone is None:
        return name.replace("-", " "), ""
    return name[: tone.start()].replace("-", " "), tone[1].replace("-", " ") + " skin"


def icon_name(concept: str, skin: str) -> str:
    """The inverse of `read_name`."""
    return "-".join([*concept.split(), *skin.removesuffix(" skin").split()])


def split_of(concept: str, style: str, styles: int) -> str:
    """Held out by a hash of concept and style; never the only picture of a concept: nobody would have taught it."""
    held_out = styles > 1 and zlib.crc32(f"{concept}|{style}".encode()) % 100 < TEST_PERCENT
    return "test" if held_out else "train"


@dataclass(frozen=True)
class Icon:
    """A picture to make: its name for messages, its SVG, and what is known of it."""

    name: str
    svg: str
    about: Mapping[str, str]


def svg_of(icon: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    """A drawable SVG from a body and its box; the few boxes that are not square are fitted, not stretched."""

    def side(key: str, default: int) -> Any:
        return icon.get(key, whole.get(key, default))

    box = f"{side('left', 0)} {side('top', 0)} {side('width', 16)} {side('height', 16)}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        f' viewBox="{box}" width="{DRAWN}" height="{DRAWN}">{icon["body"]}</svg>'
    )


def read_icons(folder: Path, say: Callable[[str], None], sources: Sequence[StylePackage] = SOURCES) -> list[Icon]:
    """Every picture of the set, in order, from a folder of packages. Another version or licence is said or refused."""
    found: list[tuple[StylePackage, str, str, str, str]] = []
    for source in sources:
        place = find(source.package, folder)
        version = read_json(place, "package.json").get("version")
        if version != source.package.version:
            say(f"{place} is version {version}; the bundled models' data is {source.package.spec}: pictures may differ.")
        license = read_json(place, "info.json").get("license", {}).get("spdx")
        if license != source.license:
            raise ModelError(
                f"{place} is under {license!r}, and this set expects {source.license!r}: take version"
                f" {source.package.version}, or change SOURCES and NOTICE once you have read the new licence."
            )
        whole = read_json(place, "icons.json")
        for name, icon in whole.get("icons", {}).items():
            read = read_name(name, source.toned)
            if read is not None:
                found.append((source, name, svg_of(icon, whole), *read))
    styles: dict[str, set[str]] = {}
    for source, _, _, concept, _ in found:
        styles.setdefault(concept, set()).add(source.style)
    icons: list[Icon] = []
    for source, name, svg, concept, skin in found:
        split = split_of(concept, source.style, len(styles[concept]))
        about = {"concept": concept, "skin": skin, "style": source.style, "license": source.license, "split": split}
        icons.append(Icon(f"{source.package.name}:{name}", svg, about))
    if not icons:
        raise ModelError(f"the packages in {folder} hold no icon that this set keeps: fetch them again with `npm pack`.")
    return icons


def rasterise(icon: Icon) -> bytes:
    """SVG -> PNG of 64 pixels on white. White goes under the 128-pixel drawing, before it is halved."""
    try:
        import resvg_py  # pyright: ignore[reportMissingImports] (of the `train` extra)
    except ImportError as e:
        raise ModelError("resvg_py, which draws the SVGs, is not installed: `pip install 'allaprima[train]'`.") from e
    try:
        drawn = bytes(resvg_py.svg_to_bytes(svg_string=icon.svg, width=DRAWN, height=DRAWN, skip_system_fonts=True))
    except ValueError as e:
        raise ModelError(f"{icon.name} cannot be drawn: {e}. Fetch its package again, or report the icon.") from e
    picture = Image.open(io.BytesIO(drawn)).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    out = io.BytesIO()
    white.convert("RGB").resize((STORED, STORED), Image.Resampling.LANCZOS).save(out, "PNG", optimize=True)
    return out.getvalue()


@contextmanager
def _mapper(jobs: int) -> Generator[Callable[[Sequence[Icon]], Iterable[bytes]]]:
    """`rasterise` over icons, in order, by this process or by several (the rasteriser holds the interpreter's lock)."""
    if jobs == 1:
        yield lambda icons: map(rasterise, icons)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield lambda icons: pool.map(rasterise, icons, chunksize=16)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def tar_bytes(icons: Sequence[Icon], pictures: Iterable[bytes]) -> bytes:
    """The data set as one archive: same icons and pictures, same bytes (no times, no owners)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for i, (icon, picture) in enumerate(zip(icons, pictures, strict=True)):
            for kind, data in (("png", picture), ("json", json.dumps(dict(icon.about)).encode())):
                member = tarfile.TarInfo(f"{i:05d}.{kind}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def build(folder: Path, out: Path, jobs: int, console: Console) -> None:
    """Packages -> tar, atomically. Raises `ModelError` for packages that cannot be used."""
    from allaprima.data.images import write_bytes_atomically

    if jobs < 1:
        raise SettingError(f"--jobs {jobs} is out of range: at least 1.")
    if not out.parent.is_dir():
        raise SettingError(f"{out.parent} is not a folder: make it, or choose another --out.")
    icons = read_icons(folder, lambda text: console.print(f"[yellow]note:[/] {text}"))
    columns = (
        TextColumn("drawing"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress, _mapper(jobs) as each:
        data = tar_bytes(icons, progress.track(each(icons), total=len(icons)))
    write_bytes_atomically(out, data)


@dataclass(frozen=True)
class DatasetComparison:
    """How one data set differs from another; rows are matched by concept, style and skin."""

    only_here: list[str]
    only_there: list[str]
    other_metadata: list[str]
    moved: int
    """Rows that are in both, under another number."""
    differences: list[float]
    """Mean absolute difference, of 255, of each picture that is in both."""

    @property
    def same(self) -> bool:
        """The same rows, in the same order, and pictures equal but for the rasteriser."""
        rows = self.only_here or self.only_there or self.other_metadata or self.moved
        return not rows and all(d <= TOLERANCE for d in self.differences)

    def lines(self) -> Iterator[str]:
        """What the command prints."""
        for what, rows in (
            ("rows only here", self.only_here),
            ("rows only there", self.only_there),
            ("rows with other metadata", self.other_metadata),
        ):
            few = "; ".join(rows[:5]) + ("; ..." if len(rows) > 5 else "")
            yield f"{what}: {len(rows)}" + (f" ({few})" if rows else "")
        yield f"rows under another number: {self.moved}"
        if not self.differences:
            yield "pictures in both: 0"
            return
        d = sorted(self.differences)
        middle = (d[(len(d) - 1) // 2] + d[len(d) // 2]) / 2
        above = sum(x > TOLERANCE for x in d)
        yield (
            f"pictures in both: {len(d)}; mean absolute difference of 255: median {middle:.4f}, max {d[-1]:.4f},"
            f" above {TOLERANCE:g}: {above} ({above / len(d):.2%}), exactly equal: {d.count(0.0)}"
        )


def compare(here: EmojiData, there: EmojiData) -> DatasetComparison:
    """Rows, metadata and pictures of two data sets."""

    def keyed(data: EmojiData) -> dict[str, int]:
        return {", ".join(part for part in (r.concept, r.skin, r.style) if part): i for i, r in enumerate(data.rows)}

    a, b = keyed(here), keyed(there)
    both = [key for key in a if key in b]
    return DatasetComparison(
        only_here=[key for key in a if key not in b],
        only_there=[key for key in b if key not in a],
        other_metadata=[key for key in both if here.rows[a[key]] != there.rows[b[key]]],
        moved=sum(a[key] != b[key] for key in both),
        differences=[float((here.images[a[k]].float() - there.images[b[k]].float()).abs().mean()) for k in both],
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Fetch, build, compare; returns the exit code."""
    from allaprima.bundled.emoji.dataset import load_tar

    other = None if args.compare is None else load_tar(args.compare)  # first: a wrong path should not cost minutes
    if not (args.keep and args.out.exists()):
        if args.packages is not None:
            build(args.packages, args.out, args.jobs, console)
        else:
            with tempfile.TemporaryDirectory() as folder:
                with console.status("fetching the icon packages with npm"):
                    fetch([s.package for s in SOURCES], Path(folder))
                build(Path(folder), args.out, args.jobs, console)
    here = load_tar(args.out)
    print(
        f"{args.out}: {len(here.rows)} pictures, {sum(r.split == 'test' for r in here.rows)} held out, sha256 {here.sha256}"
    )
    if other is None:
        return 0
    print(f"{args.compare}: {len(other.rows)} pictures, sha256 {other.sha256}")
    found = compare(here, other)
    print("\n".join(found.lines()))
    print(f"files: {'byte-identical' if here.sha256 == other.sha256 else 'not the same bytes'}")
    return 0 if found.same else 1


def main() -> int:
    """Command line of the builder; errors of ours become one line and exit code 2."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True, help="the tar to write")
    p.add_argument("--packages", type=Path, help="folder of packages already fetched; default: npm pack, at pinned versions")
    p.add_argument("--jobs", type=int, default=2, help="processes that draw")
    p.add_argument("--compare", type=Path, metavar="OTHER.tar", help="print how the result differs; end with 1 if it does")
    p.add_argument("--keep", action="store_true", help="if --out is there already, don't build it again")
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        return run(p.parse_args(), console)
    except AllaprimaError as e:
        console.print(f"error: {e}", markup=False)
        return 2


if __name__ == "__main__":
    sys.exit(main())
