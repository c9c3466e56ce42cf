"""Errors that a user can mend."""


class UserError(Exception):
    """One line that names the offending value and the remedy; scripts print it on stderr and exit with code 2."""


class LostError(UserError):
    """The other processes are gone or silent; the cause is in one of them.

    Attributes:
        patience: seconds that the process stays after its message. torchrun looks at its processes now and then, late on a busy
            machine, and reports the earliest error as the cause; a killed process has no error until torchrun looks. If one
            process has failed, torchrun ends the others meanwhile.
    """

    patience = 30.0
