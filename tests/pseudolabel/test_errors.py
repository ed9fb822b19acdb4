"""A DataError keeps its message through processes that hand on the text of a traceback alone."""

import pickle
import traceback

import pytest

from pseudolabel.errors import DataError, data_error_in
from pseudolabel.image_paths import OutsideError

MESSAGE = "a.json (image 3): is bad. Remedy: mend it."


def text_of(kind, *, cause=False, wrapped=False, after=None):
    """The traceback of an error of this kind: with a cause, in torch's words, as a cause."""
    try:
        try:
            try:
                if cause:
                    raise OSError("truncated")
            finally:
                raise kind("a.json", "is bad", "mend it", "image 3")
        except DataError as error:
            if after is None:
                raise
            raise after from error
    except Exception:
        text = traceback.format_exc()
    return f"Caught {kind.__name__} in a process.\nOriginal {text}" if wrapped else text


@pytest.mark.parametrize("kind", [DataError, OutsideError])
@pytest.mark.parametrize("options", [{}, {"cause": True}, {"wrapped": True}])
def test_message_is_read_from_the_traceback(kind, options):
    text = text_of(kind, **options)
    assert data_error_in(text) == MESSAGE
    rebuilt = kind(text)
    assert str(rebuilt) == MESSAGE
    copy = pickle.loads(pickle.dumps(rebuilt))
    assert (type(copy), str(copy), vars(copy)) == (kind, MESSAGE, vars(rebuilt))


def test_error_that_ended_otherwise_is_none():
    assert data_error_in(text_of(DataError, after=KeyError("bug"))) is None
    assert data_error_in("\nValueError: pseudolabel.errors.DataError: no") is None


def test_text_that_is_no_traceback_is_the_message():
    assert str(DataError("out of order")) == "out of order"
