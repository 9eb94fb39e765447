"""Paths as users give them."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from .errors import LensError
from .words import quoted


def path_of(given: str | Path) -> Path:
    """Return a path with ``~`` and ``~user`` written out.

    Raises:
        LensError: it is empty, or neither text nor a path; there is no such user or home folder; or the path holds what none
            can, or is longer than one can be, as the contents of a file are.
    """
    try:
        path = Path(given).expanduser()
        if b"\0" in os.fsencode(path):  # which raises for half of a character
            raise ValueError("it holds a zero byte")
        if given == "":  # which Path takes for the working folder
            raise ValueError("it is empty; the name of a file or folder would do")
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            path.lstat()
    except TypeError:
        raise LensError(f"a file or folder is named by text or a pathlib.Path, not {type(given).__name__}") from None
    except (RuntimeError, ValueError) as error:
        raise LensError(f"{quoted(str(given))} is no path of a file or folder: {error}") from None
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # whoever opens it says what is wrong with it
            return path
        raise LensError(
            f"{quoted(str(given))} is no path of a file or folder: {error.strerror}; a path would do, not a file's contents"
        ) from None
    return path
