"""The errors that a user can mend."""


class UserError(Exception):
    """One line that names the offending value and the remedy; scripts print it on stderr and exit with code 2."""


class LostError(UserError):
    """The other processes are gone or silent; what mattered happened to one of them."""
