"""The errors that a user is meant to read."""


class VeilmarkError(Exception):
    """Base of every error that names a file or value and the remedy.

    The command line prints its message alone, without a traceback (unless ``--debug``), and exits with 1.
    """


class ConfigError(VeilmarkError):
    """A config key that does not exist, or a value out of its range."""


class DataError(VeilmarkError):
    """A data file that is missing, unreadable or inconsistent."""


class WeightsError(VeilmarkError):
    """Weights that are missing, unsafe to read, or of another architecture."""
