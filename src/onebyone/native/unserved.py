"""The error of a network that an engine cannot serve."""


class UnservedError(Exception):
    """A network that an engine cannot take; the message says why."""
