"""Errors that a user can act on: each prints as one line that says what is wrong, where, and what to do."""


class FlgenError(Exception):
    """Something outside the program stops the run: a missing file, a full disk, a damaged checkpoint."""

    exit_status = 1


class UsageError(FlgenError):
    """The command line, the configuration or a call asks for something impossible."""

    exit_status = 2


class EveryProcessError(FlgenError):
    """What every process of a job finds at once: one of each node says it."""
