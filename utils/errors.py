"""The error that a user can mend."""


class UserError(Exception):
    """One line that names the offending value and the remedy; scripts print it on stderr and exit with code 2."""
