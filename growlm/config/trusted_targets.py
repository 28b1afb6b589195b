"""Check the classes that only the `config.yaml` of a resumed run names.

Classes that the user's own command line and files name are the user's own business. A run that is resumed may
be somebody else's: of what its config names, growlm builds classes of the packages below, and what packages define
that the command line names with `trust=[my_package]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from growlm.config.instantiate import find_object
from growlm.runtime.errors import UserError
from growlm.runtime.trust import check_trusted

Target = tuple[str, str]
"""Key of a `_target_`, and its value."""

SHIPPED_PACKAGES = (
    "growlm",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.profilers",
    "torch.optim",
)
"""Packages whose classes a file may name, if they are defined there: a module's imports would lead anywhere."""
ALWAYS_OWN = ("data._target_", "tokenizer._target_")
"""Keys for which these packages have no classes."""


def check_targets_of_file(targets: Iterable[Target], trust: Sequence[str]) -> None:
    """Check that everything a file names may be built; nothing outside trusted packages is imported.

    Args:
        targets: What the file names.
        trust: Packages that the user trusts; `my_package` covers `my_package.callbacks.Mine`.

    Raises:
        UserError: For the first that may not be built; the message has the packages of all of them.
    """
    targets = [target for target in targets if not _is_shipped(*target)]
    refused = [target for target in targets if not _is_covered(*target, trust)]
    if refused:
        key, path = refused[0]
        others = [other for other in list_packages(refused) if not _is_covered(key, path, [other])]
        check_trusted(path, [*trust, *others], key)
    for key, path in targets:
        found = find_object(key, path)
        module = getattr(found, "__module__", None)
        name = getattr(found, "__qualname__", None)
        if module is None or name is None:
            raise UserError(key, path, "is neither a class nor a function")
        if not _is_shipped(key, f"{module}.{name}"):
            check_trusted(f"{module}.{name}", trust, key)


def list_packages_to_trust(targets: Iterable[Target]) -> list[str]:
    """Return the packages that a command must trust to build from a file what is in the config of this run."""
    return list_packages(target for target in targets if not _is_shipped(*target))


def list_packages(targets: Iterable[Target]) -> list[str]:
    """Return the packages of classes, each once."""
    return list(dict.fromkeys(path.partition(".")[0] for _, path in targets))


def _is_covered(key: str, path: str, trust: Sequence[str]) -> bool:
    try:
        check_trusted(path, trust, key)
    except UserError:
        return False
    return True


def _is_shipped(key: str, path: str) -> bool:
    """Return whether a path names a class of the shipped packages that is defined in one of them."""
    if key in ALWAYS_OWN or not _lies_in_shipped_package(path):
        return False
    found = find_object(key, path)
    return isinstance(found, type) and _lies_in_shipped_package(found.__module__)


def _lies_in_shipped_package(path: str) -> bool:
    return any(path == each or path.startswith(f"{each}.") for each in SHIPPED_PACKAGES)
