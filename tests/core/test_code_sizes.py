"""Sizes of files and functions: at most 350 and 60 lines of code, except where a comment `# Long: <reason>` says why."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

import allaprima

ROOT = Path(allaprima.__file__).parent
LINES_OF_A_FILE, LINES_OF_A_FUNCTION = 350, 60
LONG = "# Long: "
NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
}  # fmt: skip


def code_lines(source, tree):
    """Numbers of the lines that hold code: neither blank nor of comments or docstrings."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node):
            lines.difference_update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def explained(lines, before):
    """Whether the comments that end above line `before` (from 1) hold a reason."""
    for line in reversed(lines[: before - 1]):
        if not line.lstrip().startswith("#"):
            return False
        if line.lstrip().startswith(LONG) and line.strip() != LONG.strip():
            return True
    return False


def too_long(source):
    """Names of what is longer than it may be without a reason; a file's own is the empty name."""
    tree, text = ast.parse(source), source.splitlines()
    lines, found = code_lines(source, tree), []
    first = next((n.lineno for n in tree.body if not isinstance(n, ast.Expr)), 1)
    if len(lines) > LINES_OF_A_FILE and not explained(text, first):
        found.append("")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            count = len([n for n in lines if node.lineno <= n <= node.end_lineno])
            if count > LINES_OF_A_FUNCTION and not explained(text, start):
                found.append(node.name)
    return found


def test_files_and_functions_are_short_or_say_why_not():
    found = {str(p.relative_to(ROOT)): too_long(p.read_text(encoding="utf-8")) for p in sorted(ROOT.rglob("*.py"))}
    assert {path: names for path, names in found.items() if names} == {}


BODY = "    x = 1\n" * LINES_OF_A_FUNCTION


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def f():\n" + BODY, ["f"]),
        ("def f():\n    '''Return x.'''\n\n    # A comment.\n" + BODY.removeprefix("    x = 1\n"), []),
        ("# Long: a table.\ndef f():\n" + BODY, []),
        ("# Long: a table.\n# More words.\n@decorated\ndef f():\n" + BODY, []),
        ("# Long:\ndef f():\n" + BODY, ["f"]),
        ("# Long: a table.\n\ndef f():\n" + BODY, ["f"]),
        ("x = 1\n" * (LINES_OF_A_FILE + 1), [""]),
        ("'''A table.'''\n\n# Long: a table.\n" + "x = 1\n" * (LINES_OF_A_FILE + 1), []),
    ],
)
def test_what_counts_as_long_and_as_a_reason(source, found):
    assert too_long(source) == found
