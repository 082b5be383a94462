# SPDX-License-Identifier: Apache-2.0
"""A virtual environment that sees the `rados`, `rbd` and `libvirt` of the distribution, and nothing else of it.

`--system-site-packages` would mix Debian's libraries into PyPI's; these modules are linked in instead.
`python tools/lab/venv.py bindings ENVIRONMENT` does that for an environment that tox made.
"""

from __future__ import annotations

import contextlib
import hashlib
import pathlib
import sys
from collections.abc import Iterator

if __name__ == "__main__":  # Run as a script before anything is installed.
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from lab.process import LabError, run, turn

SYSTEM_PYTHON = "/usr/bin/python3"
BINDINGS = ("rados.cpython-*.so", "rbd.cpython-*.so")
#: Linked in where it is installed: only hosts with libvirt need it.
LIBVIRT = ("libvirt.py", "libvirtmod.cpython-*.so", "libvirt_qemu.py", "libvirtmod_qemu.cpython-*.so")


def bindings(environment: pathlib.Path) -> None:
    """Link the modules into an environment made from the distribution's Python. Raises LabError."""
    [packages] = (environment / "lib").glob("python3.*/site-packages")
    for pattern in (*BINDINGS, *LIBVIRT):
        found = sorted(pathlib.Path("/usr/lib/python3/dist-packages").glob(pattern))
        if not found and pattern in BINDINGS:
            raise LabError(f"python3-{pattern.partition('.')[0]} is not installed")
        for module in found[:1]:
            link = packages / module.name
            link.unlink(missing_ok=True)
            link.symlink_to(module)


def ensure(environment: pathlib.Path, checkout: pathlib.Path, *more: str, extra: str = "") -> pathlib.Path:
    """Make or update an environment with this checkout, an extra of it and `more` from PyPI; return its `bin`.

    Nothing is done when neither the requirements nor Python have changed. Raises LabError.
    """
    package = f"{checkout}[{extra}]" if extra else str(checkout)
    requirements = (checkout / "setup.cfg").read_text(encoding="utf-8")
    with _made(environment, requirements, "--editable", package, *more) as anew:
        if anew:
            bindings(environment)
    return environment / "bin"


def of_others(environment: pathlib.Path, *names: str) -> pathlib.Path:
    """Make an environment with packages of others from PyPI, once; return its `bin`. Raises LabError."""
    with _made(environment, "", *names):
        return environment / "bin"


@contextlib.contextmanager
def _made(environment: pathlib.Path, requirements: str, *words: str) -> Iterator[bool]:
    """Have an environment with what pip installs when it is told `words`; whether it was made anew.

    The workers of a test run come at the same time: one makes it, the others wait.
    """
    mark = "\n".join([run([SYSTEM_PYTHON, "-V"]), *words, requirements])
    mark = hashlib.sha256(mark.encode()).hexdigest()
    environment.parent.mkdir(parents=True, exist_ok=True)
    with turn(environment.with_name(f"{environment.name}.turn"), timeout=1200):
        stamp = environment / "stamp"
        old = not stamp.exists() or stamp.read_text(encoding="ascii") != mark
        if old:
            run([SYSTEM_PYTHON, "-m", "venv", "--clear", environment], timeout=120)
            pip = [str(environment / "bin" / "pip"), "install", "--quiet", *words]
            try:
                run(pip, timeout=900)
            except LabError:  # pip asks again where nobody answers, and gives up where a mirror says that it is busy.
                run(pip, timeout=900)
        yield old
        stamp.write_text(mark, encoding="ascii")


if __name__ == "__main__":
    bindings(pathlib.Path(sys.argv[2]))
