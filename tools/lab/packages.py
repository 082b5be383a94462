# SPDX-License-Identifier: Apache-2.0
"""Debian packages: which ones the lab needs, and installing those that are missing.

`python3 tools/lab/packages.py quickstart|test` installs; nothing is asked, nothing that is there is touched.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterable

if __name__ == "__main__":  # Run as a script before anything is installed.
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from lab.process import LabError, turn

PYTHON = ("python3", "python3-venv", "ca-certificates")
CEPH = ("ceph-mon", "ceph-osd", "ceph-mgr", "ceph-common", "python3-rados", "python3-rbd")
QEMU = ("qemu-system-x86", "qemu-block-extra", "qemu-utils", "seabios", "ipxe-qemu")
LIBVIRT = ("libvirt-daemon", "libvirt-daemon-driver-qemu", "libvirt-clients", "python3-libvirt")
DATABASES = ("postgresql", "mariadb-server-core", "mariadb-client-core")
GUEST = ("linux-image-cloud-amd64", "busybox-static", "cpio")
AGENT = ("qemu-guest-agent", "e2fsprogs")
PROCESSES = ("procps",)
KEYSTONE = ("python3-keystone",)
GLANCE = ("python3-glance",)
CLIENTS = ("python3-openstackclient", "python3-cinderclient")

SETS = {
    "quickstart": (*PYTHON, *CEPH, *QEMU, *GUEST),
    # All at once and first: beside an installation, which writes with care, a Ceph hardly answers.
    "test": (
        *(*PYTHON, *CEPH, *QEMU, *LIBVIRT, *GUEST, *AGENT, *DATABASES, *PROCESSES),
        *(*KEYSTONE, *GLANCE, *CLIENTS),
    ),
}

#: The package would make a database server and run it for good; the suite only wants the program.
NO_CLUSTER = """
configuration=/etc/postgresql-common/createcluster.conf
[ -e $configuration ] || { mkdir -p ${configuration%/*} && echo create_main_cluster = false > $configuration; }
"""


def missing(names: Iterable[str]) -> list[str]:
    """Those of the packages that are not installed."""
    names = list(names)
    if shutil.which("dpkg-query") is None:
        raise LabError("this needs Debian 12: there is no dpkg here")
    shown = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Abbrev}\n", *names],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    there = {line.split()[0] for line in shown.stdout.splitlines() if line.split()[1:] == ["ii"]}
    return [name for name in names if name not in there]


def ensure(names: Iterable[str], *, synced: bool = True) -> list[str]:
    """Install what is missing and return it. Raises LabError.

    What is not `synced` is there in half the time, and a power cut meanwhile can leave half of it.
    """
    names = list(names)
    if not missing(names):
        return []
    # The workers of a test run come at the same time, and apt's own lock of its lists is not waited for.
    with turn(pathlib.Path(__file__), timeout=1200):
        return _install(missing(names), synced=synced)


def _install(wanted: list[str], *, synced: bool) -> list[str]:
    if not wanted:
        return []
    prefix = []
    if os.geteuid() != 0:
        if shutil.which("sudo") is None:
            raise LabError(f"run this as root, or install sudo, or install by hand: {' '.join(wanted)}")
        prefix = ["sudo", "--"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    quiet = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y", "-o", "Dpkg::Use-Pty=0"]
    quiet += ["-o", "DPkg::Lock::Timeout=300"]  # A fresh machine often updates itself in the background.
    quiet += ["-o", "Acquire::Retries=3"]
    quiet += [] if synced else ["-o", "Dpkg::Options::=--force-unsafe-io"]
    if "postgresql" in wanted:
        subprocess.run([*prefix, "sh", "-c", NO_CLUSTER], check=False, timeout=60)
    for words in (["update"], ["install", "--no-install-recommends", *wanted]):
        try:
            done = subprocess.run(
                [*prefix, *quiet, *words], env=environment, capture_output=True, text=True, check=False,
                stdin=subprocess.DEVNULL, timeout=1200,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise LabError(f"apt-get {words[0]} did not end within 20 minutes") from error
        if done.returncode != 0:
            said = (done.stdout + done.stderr).splitlines()
            complaints = [line for line in said if line.startswith("E: ")] or said[-5:]
            raise LabError(f"apt-get {words[0]} failed: {' '.join(complaints)}")
    return wanted


def main() -> int:
    """Install the set that the command line names."""
    try:
        names = missing(SETS[sys.argv[1]])
        if names:
            print(f"Installing {' '.join(names)}", flush=True)
        ensure(names, synced=sys.argv[1] != "test")
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
