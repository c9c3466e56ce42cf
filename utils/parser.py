"""A parser with errors of one line, which can also read the settings of an earlier run, and the types of its flags."""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import models
from quant import check_bits

from .errors import UserError

# These belong to one start of a run: a run that goes on takes them from its command line alone.
OF_ONE_START = frozenset({"resume", "overwrite", "start_epoch", "init_bit", "scratch", "pretrained", "local_rank", "result",
                          "device", "test", "prof", "evaluate", "cifar_type", "help"})


class Parser(argparse.ArgumentParser):
    """An argument parser with errors of one line, which can also read the settings of an earlier run."""

    def __init__(self, **kwargs: Any):
        self.named: dict[str, argparse.Action] = {}
        super().__init__(**kwargs, allow_abbrev=False)  # a flag that is added later must not change what an old line means

    def add_argument(self, *names: str, **kwargs: Any) -> argparse.Action:
        """Add a flag and keep it by name."""
        action = super().add_argument(*names, **kwargs)
        self.named[action.dest] = action
        return action

    def flags(self, argv: list[str] | None, before: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
        """Return all flags by name: from the command line, else from `before`, else the default.

        Raises:
            UserError: a flag that is unknown, out of range, or excluded by another.
        """
        flags = vars(self.parse_args([*self.words(before), *(sys.argv[1:] if argv is None else argv)]))
        if before.get("directories") and not flags["directories"]:
            flags["directories"] = [Path(str(directory)) for directory in before["directories"]]
        if before.get("dataset") and flags["cifar_type"]:  # `before` names the data set, which would win over -ct
            flags["dataset"] = f"cifar{flags['cifar_type']}"
        return flags

    def words(self, values: Mapping[str, Any]) -> list[str]:
        """Return the words of a command line with these values of flags; those of one start only are left out."""
        words = []
        for name, action in self.named.items():
            value = values.get(name)
            if value is None or not action.option_strings or name in OF_ONE_START or (name, value) == ("dataset", "imagenet"):
                continue
            if name in ("arch", "neuron", "teacher_arch") and models.file_of(str(value)) is not None:
                continue  # a file is imported only where the command line names it
            if name == "data" and values.get("dataset") == "digits":  # it has no place
                continue
            *_, flag = action.option_strings
            if isinstance(action, argparse.BooleanOptionalAction):
                words.append(flag if not value else action.option_strings[0])
            elif action.nargs == 0:
                words += [flag] * (value == action.const)
            elif isinstance(value, list | tuple):
                words += [flag, *map(str, value)]
            else:
                words.append(f"{flag}={value}")
        return words

    def error(self, message: str) -> None:
        """Raise UserError: the message and where to find help."""
        raise UserError(f"{message} ({self.prog} -h lists the flags)")


def number(kind: type, low: float, high: float = float("inf"), what: str = "number") -> Callable[[str], float]:
    """Return an argparse type: a `kind` in [low, high]."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no {what}") from None
        if not low <= value <= high or value == float("inf"):
            limits = f"at least {low}" if high == float("inf") else f"between {low} and {high}"
            raise argparse.ArgumentTypeError(f"{text} is out of range: {what} {limits}")
        return value

    return parse


def bits(text: str) -> int:
    """Parse a bit-width: 2 to 8, or 32 for float."""
    try:
        return check_bits(int(text), "bits")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error) if text.lstrip("-").isdigit() else f"{text!r} is no bit-width") from None


def count(low: int, what: str) -> Callable[[str], float]:
    """Return an argparse type: an integer of at least `low`."""
    return number(int, low, what=what)


def boolean(text: str) -> bool:
    """Parse True or False."""
    values = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return values[text.lower()]
