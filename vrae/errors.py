"""What a user can get wrong, as exceptions whose text is the whole message: what, where, the value, the remedy.

`ValueError` and `assert` stay for programmers. The command line prints a `UserError` as one line and exits with its code.
"""


class UserError(Exception):
    """Something outside the program is wrong: an argument, a file, a model folder. Exit code 2."""

    exit_code = 2


class DataError(UserError):
    """A corpus, or a row of one, is not what it should be. The message starts with `file:line:` where there is one."""


class ConfigError(UserError):
    """A setting, or a combination of settings, makes no sense."""


class ModelError(UserError):
    """A model folder or checkpoint is missing, damaged or of another format."""


class DivergenceError(UserError):
    """Training produced non-finite numbers several steps in a row. Exit code 3."""

    exit_code = 3
