"""The errors that a user can mend."""


class UserError(Exception):
    """One line that names the offending value and the remedy; scripts print it on stderr and exit with code 2."""


class LostError(UserError):
    """The other processes are gone or silent; what mattered happened to one of them.

    Args:
        patience: seconds that the process stays after it has said so. torchrun looks at its processes now and then, on a busy
            machine late, and takes the earliest error for the cause: one that was killed has none before torchrun looks. Where
            one has failed, torchrun ends the others meanwhile.
    """

    def __init__(self, message: str, patience: float = 30.0):
        super().__init__(message)
        self.patience = patience
