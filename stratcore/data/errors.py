"""The one error that bad input data raises."""

from __future__ import annotations


class DataError(ValueError):
    """Bad input data, in one line: the file, the row, column or key, what was expected, what was got."""

    def __init__(self, message: object) -> None:
        super().__init__(" ".join(str(message).split()))
