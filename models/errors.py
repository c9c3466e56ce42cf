"""An error's message in one line, for messages of ours that quote it."""


def reason_of(error: BaseException) -> str:
    """Return the first line of an error's message, at most 150 characters; its kind if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:150]
