"""The one exception for a user's mistake: its text is a sentence that says what was expected, what came, what to do."""

ERROR_FILE = "error.txt"
"""In the folder of a job of a sweep: why it failed."""


class InvalidInput(ValueError):
    """Raised for wrong files, shapes, values or settings; the commands print its text and exit with code 2.

    >>> raise InvalidInput("lambda must be at least 0, got -1")
    Traceback (most recent call last):
    ...
    catalyzer.errors.InvalidInput: lambda must be at least 0, got -1
    """
