"""The error for a network that an inference engine cannot run."""


class UnsupportedError(Exception):
    """An engine cannot run a network; the message gives the reason, such as the name of the operator."""
