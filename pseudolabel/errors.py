"""Errors that name the file, the record and the remedy."""

from collections.abc import Iterator


class DataError(ValueError):
    """Bad input data. The message says which file and record, and what to do about it.

    Survives pickling, and being built anew from the text of its traceback alone, which is what
    torch does with an exception of a loader process; then the message is all that is left.
    """

    def __init__(self, file: object, problem: str = "", remedy: str = "", record: object = None):
        where = f"{file}" if record is None else f"{file} ({record})"
        if problem:
            message = f"{where}: {problem}. Remedy: {remedy}."
        else:
            message = data_error_in(str(file)) or str(file)
            file = ""
        super().__init__(message)
        self.file = str(file)
        self.problem = problem
        self.remedy = remedy
        self.record = None if record is None else str(record)

    def __reduce__(self) -> tuple:
        # An exception is rebuilt from its `args` by default, which hold the finished message.
        whole = (self.file, self.problem, self.remedy, self.record)
        return type(self), whole if self.problem else self.args


def data_error_in(text: str) -> str | None:
    """The message of the DataError with which the text of a traceback ends.

    Returns:
        None where another error ended it.
    """
    for kind in _kinds(DataError):
        _, mark, message = text.rpartition(f"\n{kind.__module__}.{kind.__qualname__}: ")
        # Frames after it: this error was the cause of another one.
        if mark and "\nTraceback (most recent call last):" not in message:
            return message.strip()
    return None


def _kinds(parent: type) -> Iterator[type]:
    yield parent
    for child in parent.__subclasses__():
        yield from _kinds(child)
