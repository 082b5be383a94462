# SPDX-License-Identifier: Apache-2.0
"""A virtual environment that sees the distribution's `rados` and `rbd`, and nothing else of the distribution's.

`--system-site-packages` would mix Debian's libraries into PyPI's; the two extension modules are linked in instead.
`python tools/lab/venv.py bindings ENVIRONMENT` does that for an environment that tox made.
"""

from __future__ import annotations

import hashlib
import pathlib
import sys
from collections.abc import Sequence

if __name__ == "__main__":  # Run as a script before anything is installed.
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from lab.process import LabError, run

SYSTEM_PYTHON = "/usr/bin/python3"
BINDINGS = ("rados", "rbd")


def bindings(environment: pathlib.Path) -> None:
    """Link the two modules into an environment made from the distribution's Python. Raises LabError."""
    [packages] = (environment / "lib").glob("python3.*/site-packages")
    for name in BINDINGS:
        found = sorted(pathlib.Path("/usr/lib/python3/dist-packages").glob(f"{name}.cpython-*.so"))
        if not found:
            raise LabError(f"python3-{name} is not installed")
        link = packages / found[0].name
        link.unlink(missing_ok=True)
        link.symlink_to(found[0])


def ensure(environment: pathlib.Path, checkout: pathlib.Path, *more: str) -> pathlib.Path:
    """Make or update an environment with this checkout and `more` packages from PyPI; return its `bin`.

    Nothing is done when neither the requirements nor Python have changed. Raises LabError.
    """
    stamp = environment / "stamp"
    mark = _mark(checkout, more)
    if not stamp.exists() or stamp.read_text(encoding="ascii") != mark:
        run([SYSTEM_PYTHON, "-m", "venv", "--clear", environment], timeout=120)
        run([environment / "bin" / "pip", "install", "--quiet", "--editable", checkout, *more], timeout=900)
        bindings(environment)
        stamp.write_text(mark, encoding="ascii")
    return environment / "bin"


def _mark(checkout: pathlib.Path, more: Sequence[str]) -> str:
    version = run([SYSTEM_PYTHON, "-V"])
    text = "\n".join([version, str(checkout), *more, (checkout / "setup.cfg").read_text(encoding="utf-8")])
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    bindings(pathlib.Path(sys.argv[2]))
