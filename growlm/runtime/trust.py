"""Decide which classes that a file names may be imported: those of packages that the user trusts.

Importing a package runs its code. Classes that a user's own command line and files name are trusted; those named
by a file that came with a run or a checkpoint are built only if the command line names their package again
(`trust=[my_package]`).
"""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence

from growlm.runtime.errors import UserError


def check_trusted(class_path: str, trust: Sequence[str], key: str) -> None:
    """Check that a class which a file names belongs to a package that the user trusts; nothing is imported.

    Args:
        class_path: Full name of the class, `package.module.Class`, as the file has it.
        trust: Packages or modules that the user trusts, with all that lies in them.
        key: Setting that the class belongs to, for messages.

    Raises:
        UserError: If it does not; the message has the setting that would allow it.
    """
    package, _, rest = class_path.partition(".")
    if not rest or not all(part.isidentifier() for part in class_path.split(".")):
        raise UserError(key, class_path, "must be the full name of a class: package.module.Class")
    if not any(class_path == each or class_path.startswith(f"{each}.") for each in trust):
        wanted = ",".join([*trust, package])
        reason = (
            "is named by a file, and building it runs the code of its package; if you trust that package, "
            f"add trust=[{wanted}]"
        )
        raise UserError(key, class_path, reason)


def import_trusted(class_path: str, trust: Sequence[str], key: str) -> type:
    """Import a class that a file names, if it belongs to a package that the user trusts.

    The class itself must be defined in a trusted package: a name that leads through its modules to something they
    imported from elsewhere is refused.

    Args:
        class_path: Full name of the class.
        trust: Packages or modules that the user trusts.
        key: Setting that the class belongs to, for messages.

    Raises:
        UserError: If it is not trusted, cannot be imported, or is not a class.
    """
    check_trusted(class_path, trust, key)
    try:
        found = pkgutil.resolve_name(class_path)
    except Exception as error:  # the package may raise anything
        reason = (
            f"cannot be imported: {error}; install its package, or add its folder to PYTHONPATH"
        )
        raise UserError(key, class_path, reason) from error
    if not isinstance(found, type):
        raise UserError(key, class_path, "is not a class")
    check_trusted(class_path_of(found), trust, key)
    return found


def class_path_of(cls: type) -> str:
    """Return the full name of a class, under which `import_trusted` finds it."""
    return f"{cls.__module__}.{cls.__qualname__}"
