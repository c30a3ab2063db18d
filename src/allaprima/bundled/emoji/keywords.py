"""Other words for the concepts: `python -m allaprima.bundled.emoji.keywords --out keywords.txt`.

From npm `emojibase-data` (MIT; labels, tags and shortcodes, American and British English) and `emojilib` (MIT; keywords).
A word that many concepts share ("animal", "face") says nothing about which one is meant, and is left out.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from allaprima.bundled.emoji.npm import Package, fetch, find, read_json
from allaprima.core.errors import AllaprimaError, ModelError

EMOJIBASE = Package("emojibase-data", "17.0.0")
EMOJILIB = Package("emojilib", "4.0.3")
LANGUAGES = ("en", "en-gb")
SHORTCODES = ("emojibase", "joypixels", "iamcal", "github")
MAX_SHARE = 8
"""Concepts that may share a keyword: "car" has 7 and "heart" 8; "animal" has more than 60."""
HEADER = (
    "# Made by `python -m allaprima.bundled.emoji.keywords` from npm {specs} (both MIT).\n"
    "# concept: keyword, keyword, ... Keywords of more than {share} concepts are left out.\n"
)


def plain(text: str) -> str:
    """Lower case, no accents, words of letters and digits with one space between: as concepts are written."""
    letters = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return " ".join(re.findall(r"[a-z0-9]+", letters.replace("'", "").replace("’", "").lower()))


def words_of(concepts: Sequence[str], read: Mapping[str, Any], more: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Every concept's labels, tags, shortcodes and keywords, in the packages' order, before the shared ones are dropped.

    `read` maps a file of emojibase to its JSON; `more` is emojilib's, words by emoji. Raises `ModelError` for a concept
    that has no emoji of that label.
    """
    codes = {plain(e["label"]): e["hexcode"] for e in read["en/data.json"]}
    emojis = {plain(e["label"]): _bare(e["emoji"]) for e in read["en/data.json"]}
    unknown = [c for c in concepts if plain(c) not in codes]
    if unknown:
        raise ModelError(
            f"no emoji is labelled {unknown[0]!r} (of {len(unknown)} such): concepts.txt needs a CLDR short name."
        )
    words: dict[str, list[str]] = {c: [] for c in concepts}
    for language in LANGUAGES:
        by_code = {e["hexcode"]: e for e in read[f"{language}/data.json"]}
        for concept in concepts:
            emoji = by_code.get(codes[plain(concept)], {})
            words[concept] += [emoji.get("label", ""), *emoji.get("tags", [])]
    for name in SHORTCODES:
        shortcodes = read[f"en/shortcodes/{name}.json"]
        for concept in concepts:
            found = shortcodes.get(codes[plain(concept)], [])
            words[concept] += [found] if isinstance(found, str) else found
    by_emoji = {_bare(emoji): list(found) for emoji, found in more.items()}
    for concept in concepts:
        words[concept] += by_emoji.get(emojis[plain(concept)], [])
    return words


def _bare(emoji: str) -> str:
    """Without the variation selector, which one package writes and the other doesn't."""
    return emoji.replace("\ufe0f", "")


def keywords_of(terms: Mapping[str, Sequence[str]], max_share: int = MAX_SHARE) -> dict[str, list[str]]:
    """Clean, without the concept itself, without repeats, without letters, numbers ("cat2") and what many share."""
    clean = {
        c: [k for k in dict.fromkeys(map(plain, ks)) if len(k) > 1 and k != plain(c) and not re.search(r"\d", k)]
        for c, ks in terms.items()
    }
    share = Counter(k for ks in clean.values() for k in ks)
    return {c: [k for k in ks if share[k] <= max_share] for c, ks in clean.items()}


def text_of(keywords: Mapping[str, Sequence[str]]) -> str:
    """Return the file: a header, and a line for each concept."""
    header = HEADER.format(specs=f"{EMOJIBASE.spec} and {EMOJILIB.spec}", share=MAX_SHARE)
    return header + "".join(f"{c}: {', '.join(ks)}".rstrip() + "\n" for c, ks in keywords.items())


def make(folder: Path, concepts: Sequence[str]) -> str:
    """Return the file's text from a folder that holds the packages."""
    place = find(EMOJIBASE, folder)
    files = [f"{language}/data.json" for language in LANGUAGES] + [f"en/shortcodes/{name}.json" for name in SHORTCODES]
    more = read_json(find(EMOJILIB, folder), "dist/emoji-en-US.json")
    return text_of(keywords_of(words_of(concepts, {f: read_json(place, f) for f in files}, more)))


def main() -> int:
    """Command line; errors of ours become one line and exit code 2."""
    from allaprima.bundled.emoji.dataset import known_concepts
    from allaprima.data.images import write_bytes_atomically

    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True, help="the file to write")
    p.add_argument("--packages", type=Path, help="folder of packages already fetched; default: npm pack, at pinned versions")
    args = p.parse_args()
    try:
        if args.packages is not None:
            text = make(args.packages, known_concepts())
        else:
            with tempfile.TemporaryDirectory() as folder:
                fetch([EMOJIBASE, EMOJILIB], Path(folder))
                text = make(Path(folder), known_concepts())
        write_bytes_atomically(args.out, text.encode())
    except AllaprimaError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    lines = [line.partition(": ")[2] for line in text.splitlines() if not line.startswith("#")]
    print(f"{args.out}: {len(lines)} concepts, {sum(len(line.split(', ')) for line in lines if line)} keywords")
    return 0


if __name__ == "__main__":
    sys.exit(main())
