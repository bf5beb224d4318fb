"""Every error that a user can cause: one line that says what is wrong and what to do about it."""


class OptsdError(Exception):
    """What is wrong, and the remedy. Printed as one line, without a traceback, by the suite and the command line.

    >>> str(OptsdError("unknown variant 'int9'", "choose one of: baseline, int8"))
    "unknown variant 'int9'; choose one of: baseline, int8"
    """

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}; {remedy}")
        self.problem, self.remedy = problem, remedy

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.problem, self.remedy)  # from a process of its own it comes as it was raised


class Unsupported(OptsdError):
    """A technique cannot run on this model, device or with that other technique."""


class NothingMatched(OptsdError):
    """A technique would have changed nothing: an optimization that does nothing is a defect, not a success."""


class BadInput(OptsdError):
    """An option, file or value is wrong."""


class NotFound(BadInput):
    """A model, weight file or data file is not where it was looked for."""
