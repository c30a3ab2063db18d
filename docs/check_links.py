"""Check that every local link of the Markdown pages leads to a file. Exit code 1 names those that don't."""

import re
import sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
broken = [
    f"{page.relative_to(root)}: {target}"
    for page in [*root.glob("*.md"), *root.glob("docs/**/*.md")]
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    if not re.match(r"[a-z]+:", target) and not (page.parent / target).exists()
]
print("\n".join(broken) or "all local links lead somewhere")
sys.exit(bool(broken))
