"""Python source as sequences of tokens and words that can be compared.

A piece is one token of code or one word of prose, with its line. A segment is a list of pieces
that stand together: what is left out of a file ends a segment.
"""

from __future__ import annotations

import ast
import enum
import io
import keyword
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass

Position = tuple[int, int]
Range = tuple[Position, Position]

LAYOUT = {
    tokenize.ENCODING,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.COMMENT,
    tokenize.ENDMARKER,
}
TABLE_SIZE = 4
WORD = re.compile(r"[a-z0-9_]+")


class Kind(enum.Enum):
    """What a piece is, and so whether its author had a choice."""

    OWN = "own text"
    MARK = "fewer than three different names"
    """A bracket, operator or keyword. A window with hardly a name in it says nothing."""
    PLUMBING = "constructor plumbing"
    """`self.x = x`, `super().__init__(...)` and `f(x=x)`: the names are those of signatures."""
    CONFIG = "config keys"
    """`"x": cfg.A.B`, `x=cfg.A.B` or `y = cfg.A.B`: parameter names and keys, both fixed."""


@dataclass(frozen=True)
class Piece:
    """One token or word."""

    text: str
    line: int
    kind: Kind = Kind.OWN


Segment = list[Piece]


def _tokens(source: str) -> list[tokenize.TokenInfo]:
    found = tokenize.generate_tokens(io.StringIO(source).readline)
    kept = [token for token in found if token.type not in LAYOUT]
    # Trailing commas are a formatter's, not an author's.
    return [
        token
        for token, after in zip(kept, [*kept[1:], None])
        if not (token.string == "," and after is not None and after.string in ")]}")
    ]


def _text(token: tokenize.TokenInfo) -> str:
    if token.type == tokenize.STRING and token.string[0] in "'\"":
        return repr(ast.literal_eval(token.string))
    return token.string


def _is_mark(token: tokenize.TokenInfo) -> bool:
    if token.type == tokenize.OP or keyword.iskeyword(token.string):
        return True
    return token.string in ("self", "cls")


def _start(node: ast.AST) -> Position:
    return node.lineno, node.col_offset


def _end(node: ast.AST) -> Position:
    return node.end_lineno, node.end_col_offset


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _is_table(node: ast.AST) -> bool:
    """Whether a literal holds only constants and (dotted) names, at least TABLE_SIZE of them."""
    leaves = 0
    pending: list[ast.AST | None] = [node]
    while pending:
        item = pending.pop()
        if isinstance(item, ast.Dict):
            pending.extend([*item.keys, *item.values])
        elif isinstance(item, (ast.List, ast.Tuple, ast.Set)):
            pending.extend(item.elts)
        elif isinstance(item, ast.UnaryOp):
            pending.append(item.operand)
        elif isinstance(item, (ast.Constant, ast.Name)):
            leaves += 1
        elif isinstance(item, ast.Attribute):
            pending.append(item.value)
        else:
            return False
    return leaves >= TABLE_SIZE


def _is_config_default(node: ast.AST) -> bool:
    if not isinstance(node, (ast.Assign, ast.AnnAssign)):
        return False
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return any(ast.unparse(target).split(".")[0] in ("_C", "__all__") for target in targets)


def left_out(tree: ast.AST) -> list[Range]:
    """Source ranges that the interface dictates, and docstrings (which are prose)."""
    ranges: list[Range] = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            first = min([node, *node.decorator_list], key=_start)
            # One column to the left takes in the @ of a decorator.
            line, column = _start(first)
            ranges.append(((line, max(column - 1, 0)), _start(node.body[0])))
        elif (
            isinstance(node, (ast.Import, ast.ImportFrom))
            or _is_text(node)
            or _is_config_default(node)
            or (isinstance(node, (ast.Dict, ast.List, ast.Tuple, ast.Set)) and _is_table(node))
        ):
            ranges.append((_start(node), _end(node)))
    return ranges


def _is_config_chain(node: ast.AST) -> bool:
    """Whether it reads `cfg.A.B` or a name bound to a part of a config, such as `head.NAME`."""
    if not isinstance(node, ast.Attribute):
        return False
    names = ast.unparse(node).split(".")
    return names[0].isidentifier() and all(name.isupper() for name in names[1:])


def _is_plumbing(node: ast.Assign) -> bool:
    """Whether it reads `self.x = x`, also `self._x = x`."""
    target, value = node.targets[0], node.value
    return (
        isinstance(target, ast.Attribute)
        and ast.unparse(target.value) == "self"
        and isinstance(value, ast.Name)
        and target.attr.lstrip("_") == value.id.lstrip("_")
    )


def _kinds(tree: ast.AST) -> list[tuple[Range, Kind]]:
    """Ranges whose tokens are of a kind of their own."""
    found: list[tuple[Range, Kind]] = []
    for node in ast.walk(tree):
        span = (_start(node), _end(node)) if hasattr(node, "lineno") else None
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            if _is_plumbing(node):
                found.append((span, Kind.PLUMBING))
            elif isinstance(node.targets[0], ast.Name) and _is_config_chain(node.value):
                found.append((span, Kind.CONFIG))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "super().__init__":
            parts = [*node.args, *(part.value for part in node.keywords)]
            if all(isinstance(part, ast.Name) for part in parts):
                found.append((span, Kind.PLUMBING))
        elif isinstance(node, ast.keyword):
            if _is_config_chain(node.value):
                found.append((span, Kind.CONFIG))
            elif isinstance(node.value, ast.Name) and node.value.id == node.arg:
                found.append((span, Kind.PLUMBING))
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values):
                if isinstance(key, ast.Constant) and _is_config_chain(value):
                    found.append(((_start(key), _end(value)), Kind.CONFIG))
    return found


def _inside(position: Position, ranges: list[Range]) -> bool:
    return any(start <= position < end for start, end in ranges)


def body_segments(source: str) -> list[Segment]:
    """The tokens of function, class and module bodies, without what the interface dictates."""
    tree = ast.parse(source)
    # Columns: ast counts UTF-8 bytes, tokenize characters; escaping makes them equal.
    skipped, special = left_out(tree), _kinds(tree)
    segments: list[Segment] = [[]]
    for token in _tokens(source):
        position = token.start[0], len(token.line[: token.start[1]].encode())
        if _inside(position, skipped):
            if segments[-1]:
                segments.append([])
            continue
        kind = Kind.MARK if _is_mark(token) else Kind.OWN
        if kind is Kind.OWN:
            kind = next((k for span, k in special if _inside(position, [span])), kind)
        segments[-1].append(Piece(_text(token), token.start[0], kind))
    return [segment for segment in segments if segment]


def whole_file(source: str) -> Segment:
    """Every token of a file but comments and layout."""
    return [Piece(_text(token), token.start[0]) for token in _tokens(source)]


def _words(text: str, line: int) -> Iterator[Piece]:
    for offset, row in enumerate(text.splitlines()):
        for word in WORD.findall(row.lower()):
            yield Piece(word, line + offset)


def prose_segments(source: str) -> list[Segment]:
    """The words of each docstring, and of each block of comments on consecutive lines."""
    segments = [
        list(_words(node.value.value, node.lineno))
        for node in ast.walk(ast.parse(source))
        if _is_text(node)
    ]
    last_line = None
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if last_line is None or token.start[0] != last_line + 1:
                segments.append([])
            segments[-1].extend(_words(token.string, token.start[0]))
            last_line = token.start[0]
    return [segment for segment in segments if segment]
