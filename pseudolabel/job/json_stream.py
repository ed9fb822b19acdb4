"""A JSON file read element by element: memory does not grow with the length of its lists."""

import codecs
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from json.decoder import WHITESPACE
from pathlib import Path
from typing import IO, Any

from pseudolabel.checks import quote
from pseudolabel.errors import DataError

CHUNK = 1 << 20
# Characters behind a number that show where it ends.
LOOKAHEAD = 3


@dataclass(frozen=True)
class Section:
    """A list that stays in the file.

    Attributes:
        offset: byte of its opening bracket.
    """

    offset: int


class JsonFile:
    """The top level of a JSON file; its long lists are iterated, never held.

    NaN and infinity are read, so that the caller can name their place.

    Args:
        path: a JSON object, or a list of anything.
        streamed: keys whose lists stay in the file.

    Attributes:
        head: the object's keys in order, with a `Section` for each streamed list; empty for a list.
        rows: the `Section` of a file that is one list, else None.

    Raises:
        DataError: the file is missing or unreadable, not JSON, or neither object nor list.
    """

    def __init__(self, path: str | Path, streamed: tuple[str, ...] = ("images", "annotations")):
        self.path = Path(path)
        self.head: dict[str, Any] = {}
        self.rows: Section | None = None
        with self._cursor() as cursor:
            first = cursor.peek()
            if first == "[":
                self.rows = _skip_list(cursor)
            elif first == "{":
                self._read_head(cursor, streamed)
            else:
                cursor.value()
            cursor.expect_end()
        if self.rows is None and first != "{":
            raise DataError(
                path, "holds no JSON object", "give an instances file with images and annotations"
            )

    def iterate(self, section: Section) -> Iterator[Any]:
        """The elements of a list, in order.

        Raises:
            DataError: the file has been damaged since it was opened.
        """
        with self._cursor(section.offset) as cursor:
            yield from cursor.elements()

    def _read_head(self, cursor: "_Cursor", streamed: tuple[str, ...]) -> None:
        cursor.take("{")
        while cursor.peek() != "}":
            if cursor.peek() != '"':
                raise cursor.error("expecting a key in double quotes")
            key = cursor.value()
            if key in self.head:
                # `json.loads` would keep the last list alone.
                raise cursor.error(f"the key {quote(key)} occurs twice")
            cursor.take(":")
            if key in streamed and cursor.peek() == "[":
                self.head[key] = _skip_list(cursor)
            else:
                self.head[key] = cursor.value()
            cursor.comma_before("}")
        cursor.take("}")

    @contextmanager
    def _cursor(self, offset: int = 0) -> Iterator["_Cursor"]:
        path = self.path
        try:
            with open(path, "rb") as file:
                yield _Cursor(file, offset)
        except FileNotFoundError as error:
            raise DataError(path, "the file does not exist", "check the path") from error
        except OSError as error:
            raise DataError(path, f"cannot be read ({error.strerror})", "check the path") from error
        except DataError:
            raise
        except (ValueError, RecursionError) as error:
            raise DataError(path, f"not valid JSON ({error})", "write the file again") from error


def _skip_list(cursor: "_Cursor") -> Section:
    section = Section(cursor.offset())
    for _ in cursor.elements():
        pass
    return section


class _Cursor:
    """A place in a JSON text of which only the next piece is in memory."""

    def __init__(self, file: IO[bytes], offset: int):
        if offset == 0 and file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
            offset = len(codecs.BOM_UTF8)
        file.seek(offset)
        self._file, self._fed, self._text, self._at = file, offset, "", 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._json = json.JSONDecoder()

    def offset(self) -> int:
        """The byte of the file at which the cursor stands."""
        undecoded = len(self._utf8.getstate()[0])
        return self._fed - undecoded - len(self._text[self._at :].encode())

    def error(self, problem: str) -> ValueError:
        return ValueError(f"{problem} at byte {self.offset()}")

    def peek(self) -> str:
        """The next character that is no space; "" at the end."""
        while True:
            self._at = WHITESPACE.match(self._text, self._at).end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def take(self, mark: str) -> None:
        """Steps over a bracket, comma or colon."""
        if self.peek() != mark:
            raise self.error(f"expecting {mark!r}")
        self._at += 1

    def value(self) -> Any:
        """The value at the cursor, which moves behind it."""
        self.peek()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # It may be cut off by the end of the piece.
                if not self._more():
                    raise self.error(error.msg.lower()) from None
                continue
            # A number may go on in the next piece: "12", "12." and "12e-" are cut off.
            length = end - self._at
            if end + LOOKAHEAD <= len(self._text) or not self._more():
                self._at += length
                return value

    def elements(self) -> Iterator[Any]:
        """The elements of the list at the cursor, which ends behind it."""
        self.take("[")
        while self.peek() != "]":
            yield self.value()
            self.comma_before("]")
        self.take("]")

    def comma_before(self, close: str) -> None:
        """Steps over a comma between two elements; there is none after the last."""
        if self.peek() == close:
            return
        self.take(",")
        if self.peek() == close:
            raise self.error(f"unexpected {close!r} after a comma")

    def expect_end(self) -> None:
        if self.peek():
            raise self.error("extra data")

    def _more(self) -> bool:
        rest = self._text[self._at :]
        # A long value is read in growing pieces: few attempts to decode it.
        block = self._file.read(max(CHUNK, len(rest)))
        self._fed += len(block)
        self._text, self._at = rest + self._utf8.decode(block, final=not block), 0
        return bool(block)
