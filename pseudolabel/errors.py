"""Errors that name the file, the record and the remedy."""


class DataError(ValueError):
    """Bad input data. The message says which file and record, and what to do about it.

    Survives pickling, so that a worker process can raise it.
    """

    def __init__(self, file: object, problem: str, remedy: str, record: object = None):
        where = f"{file}" if record is None else f"{file} ({record})"
        super().__init__(f"{where}: {problem}. Remedy: {remedy}.")
        self.file = str(file)
        self.problem = problem
        self.remedy = remedy
        self.record = None if record is None else str(record)

    def __reduce__(self) -> tuple:
        # An exception is rebuilt from its `args` by default, which hold the finished message.
        return type(self), (self.file, self.problem, self.remedy, self.record)
