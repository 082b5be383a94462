# SPDX-License-Identifier: Apache-2.0
"""cinderlite in five minutes: installs what is missing, starts everything, moves a volume between two running VMs.

tools/quickstart            do it (again: quick, and nothing that works is changed)
tools/quickstart status     what runs
tools/quickstart stop       end every process it started; the data stay
tools/quickstart destroy    end them and remove the data
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

sys.dont_write_bytecode = True
sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent), str(pathlib.Path(__file__).resolve().parent.parent)]

from lab import packages, venv  # noqa: E402 -- the line above makes it importable
from lab.ceph import Ceph  # noqa: E402
from lab.guest import Guest, accelerator  # noqa: E402
from lab.process import LabError, end, pid_in, port_is_free, run, wait  # noqa: E402

CHECKOUT = pathlib.Path(__file__).resolve().parent.parent
MARKER = "cinderlite-quickstart"
PROJECT = "demo"
BACKUPS = "backups"
CLIENT = "python-openstackclient"
PORT = 8776
#: What would send the demonstration to the caller's own cloud.
FOREIGN = "OS_CLOUD OS_AUTH_URL OS_TOKEN OS_PROJECT_ID OS_PROJECT_NAME OS_USER_ID OS_IDENTITY_API_VERSION"


def say(text: str) -> None:
    """A line of progress."""
    print(f"\033[1m== {text}\033[0m" if sys.stdout.isatty() else f"== {text}", flush=True)


@contextlib.contextmanager
def patience(every: float = 10) -> Iterator[None]:
    """Say now and then that something long goes on."""
    done = threading.Event()
    began = time.monotonic()

    def tell() -> None:
        while not done.wait(every):
            print(f"   … {time.monotonic() - began:.0f} s", flush=True)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


class Quickstart:
    """Everything that lives in one directory."""

    def __init__(self, directory: pathlib.Path, port: int | None, ceph_port: int | None) -> None:
        self.directory = directory
        self.ceph_port = ceph_port
        self.ceph = Ceph(directory / "ceph", port=ceph_port)
        self.guests = [Guest(directory / "guests", name, project=PROJECT) for name in ("vm1", "vm2")]
        self.conf = directory / "cinderlite.conf"
        self.pid = directory / "cinderlite-api.pid"
        self.log = directory / "cinderlite-api.log"
        self.bin = directory / "venv" / "bin"
        self.former_port = self._former_port()
        self.port = port or self.former_port or PORT
        self.url = f"http://127.0.0.1:{self.port}"

    # -- verbs

    def up(self) -> None:
        """Install, start, show."""
        self._claim()
        missing = packages.missing(packages.SETS["quickstart"])
        if missing:
            say(f"Installing with apt: {' '.join(missing)}")
            with patience():
                packages.ensure(missing)
        self._check_ports()
        say("Python environment (about a minute the first time)")
        with patience():
            self._make_environment()
        say("One-node Ceph on loopback")
        with patience():
            self.ceph.start()
            self.ceph.add_pool(BACKUPS)
        self._configure()
        with patience():
            self._start_api()
        self._start_guests()
        self._job()
        self._farewell()

    def stop(self) -> None:
        """End every process that was started."""
        if not (self.directory / MARKER).exists():
            raise LabError(f"there is nothing of tools/quickstart in {self.directory}")
        end(self.pid, str(self.conf), timeout=40)
        for guest in self.guests:
            guest.stop()
        self.ceph.stop()
        say(f"Stopped; the data are in {self.directory}")

    def destroy(self) -> None:
        """End everything and remove the directory, if it is one of ours."""
        if not self.directory.exists():
            say(f"{self.directory} does not exist")
            return
        if not (self.directory / MARKER).exists():
            raise LabError(f"{self.directory} was not made by tools/quickstart; nothing is removed")
        self.stop()
        self.ceph.destroy()
        shutil.rmtree(self.directory)
        say(f"Removed {self.directory}")

    def status(self) -> None:
        """What runs."""
        running = {
            "ceph": self.ceph.running(),
            "cinderlite-api": pid_in(self.pid, str(self.conf)) is not None,
            **{guest.name: guest.running() for guest in self.guests},
        }
        for name, runs in running.items():
            print(f"{name}: {'running' if runs else 'stopped'}")

    # -- steps

    def _claim(self) -> None:
        if self.directory.exists() and not (self.directory / MARKER).exists() and any(self.directory.iterdir()):
            raise LabError(f"{self.directory} exists and was not made by tools/quickstart; choose another --directory")
        if len(str(self.directory)) > 70:
            raise LabError(
                f"{self.directory} is too long a name (a socket's may have 107 characters); choose another --directory"
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        (self.directory / MARKER).touch()

    def _check_ports(self) -> None:
        ours = pid_in(self.pid, str(self.conf)) is not None and self.port == self.former_port
        # The workers of a service that was killed need a moment to notice it.
        patient = 10 if self.pid.exists() else 0
        try:
            wait(lambda: ours or port_is_free(self.port), timeout=patient, what="the port")
        except LabError as error:
            raise LabError(f"port {self.port} is taken by another program; choose another one with --port") from error
        port = self.ceph.port
        if self.ceph_port and port != self.ceph_port:
            raise LabError(
                f"the cluster in {self.directory} was made with port {port}, and a monitor keeps its port: "
                f"leave out --ceph-port, or `tools/quickstart destroy` first"
            )
        try:
            self.ceph.check_ports()
        except LabError as error:
            remedy = "choose another one with --ceph-port" if self.ceph_port else "end that program"
            raise LabError(f"{error}; {remedy}") from error

    def _former_port(self) -> int | None:
        """The port of the run before, which stays unless --port says otherwise."""
        if not self.conf.exists():
            return None
        found = re.search(r"^osapi_volume_listen_port = (\d+)$", self.conf.read_text(encoding="utf-8"), re.MULTILINE)
        return int(found[1]) if found else None

    def _make_environment(self) -> None:
        stamp = self.directory / "venv" / "stamp"
        before = stamp.read_text(encoding="ascii") if stamp.exists() else ""
        venv.ensure(self.directory / "venv", CHECKOUT, CLIENT)
        if before != stamp.read_text(encoding="ascii"):
            # A service from the former environment has lost the files under it.
            end(self.pid, str(self.conf), timeout=40)

    def _start_guests(self) -> None:
        guests = self.directory / "guests"
        if os.access("/dev/kvm", os.R_OK | os.W_OK) and not (guests / "accelerator").exists():
            say("Trying once whether KVM boots a guest here (at most half a minute)")
        word = accelerator(guests)
        say(f"Two Linux guests ({'KVM' if word == 'kvm' else 'emulated; KVM is not proven to work here'})")
        with patience():
            for guest in self.guests:
                guest.accelerator = word
                guest.start(wait_for_os=False)
            for guest in self.guests:
                guest.ready()

    def _configure(self) -> None:
        users, openrc = self.directory / "users", self.directory / "openrc"
        if not users.exists() or not openrc.exists():
            password = secrets.token_urlsafe(16)
            code = "import bcrypt, sys; print(bcrypt.hashpw(sys.stdin.read().encode(), bcrypt.gensalt()).decode())"
            hashed = run([self.bin / "python", "-c", code], stdin=password).strip()
            _private(users, f"{PROJECT}:{hashed}:{PROJECT}:admin\n")
            _private(self.directory / "password", password)
        environment = self._environment((self.directory / "password").read_text(encoding="ascii"))
        lines = [f"unset {FOREIGN}", *(f"export {name}='{value}'" for name, value in environment.items())]
        lines += ['export no_proxy="127.0.0.1${no_proxy:+,$no_proxy}"', f"export PATH='{self.bin}':\"$PATH\""]
        _private(openrc, "\n".join(lines) + "\n")
        _private(self.directory / "clouds.yaml", _clouds(environment))
        self.conf.write_text(
            f"""[DEFAULT]
osapi_volume_listen = 127.0.0.1
osapi_volume_listen_port = {self.port}
auth_strategy = http_basic
http_basic_auth_user_file = {users}
enabled_backends = ceph
state_path = {self.directory}/state
project_id_regex = [0-9a-f\\-]+|{PROJECT}
backup_ceph_pool = {BACKUPS}
backup_ceph_conf = {self.ceph.conf}
backup_ceph_user = {self.ceph.user}

[ceph]
rbd_pool = {self.ceph.pool}
rbd_ceph_conf = {self.ceph.conf}
rbd_user = {self.ceph.user}

[guests]
qmp_socket_directory = {self.guests[0].sockets}
""",
            encoding="utf-8",
        )

    def _environment(self, password: str) -> dict[str, str]:
        return {
            "OS_AUTH_TYPE": "http_basic",
            "OS_USERNAME": PROJECT,
            "OS_PASSWORD": password,
            "OS_ENDPOINT": f"{self.url}/v3",
            "OS_BLOCK_STORAGE_ENDPOINT_OVERRIDE": f"{self.url}/v3",
            "OS_COMPUTE_ENDPOINT_OVERRIDE": f"{self.url}/v2.1",
        }

    def _start_api(self) -> None:
        if pid_in(self.pid, str(self.conf)) is not None and self._healthy():
            return
        end(self.pid, str(self.conf), timeout=40)
        say("cinderlite-api")
        run([self.bin / "cinderlite-manage", "--config-file", self.conf, "db", "upgrade"])
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [self.bin / "cinderlite-api", "--config-file", self.conf],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        self.pid.write_text(str(process.pid), encoding="ascii")

        def healthy() -> bool:
            if process.poll() is not None:
                raise LabError(f"cinderlite-api ended at once; see {self.log}")
            return self._healthy()

        wait(healthy, timeout=60, what=f"cinderlite-api to be healthy; see {self.log}")

    def _healthy(self) -> bool:
        try:
            # Never through the proxy that the environment may name: this is loopback.
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"{self.url}/healthcheck", timeout=10) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    # -- the job

    def _openstack(self, *words: str, quiet: bool = False) -> Any:
        if not quiet:
            print(f"\n$ openstack {' '.join(words)}", flush=True)
        password = (self.directory / "password").read_text(encoding="ascii")
        # Nothing of the caller's own cloud may leak in.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OS_")}
        environment |= self._environment(password) | {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
        answers = words[:2] in (("volume", "create"), ("volume", "show"), ("volume", "list"))
        shape = ["-f", "json"] if answers else []
        with patience():
            said = run([self.bin / "openstack", *words, *shape], timeout=120, env=environment)
        return json.loads(said) if answers else None

    def _job(self) -> None:
        one, two = self.guests
        for old in self._openstack("volume", "list", "--name", "demo", quiet=True):
            self._clear(old["ID"])
        say("The job: a volume becomes a disk, is written in one VM and read in another")
        volume = self._openstack("volume", "create", "--size", "1", "demo")["id"]
        print(f"volume {volume}, an image in Ceph: {', '.join(self.ceph.images())}")
        self._openstack("server", "add", "volume", one.name, "demo")
        device = one.wait_disk(volume)
        print(f"in {one.name} it is {device}, /dev/disk/by-id/virtio-{volume[:20]}")
        print(f"{one.name} writes 8 MiB on it …", flush=True)
        written = one.write(device, volume, 8)
        print(f"sha256 {written}")
        self._openstack("server", "remove", "volume", one.name, "demo")
        one.wait_no_disk(volume)
        self._openstack("server", "add", "volume", two.name, "demo")
        read = two.sha256(two.wait_disk(volume), 8)
        print(f"{two.name} reads {'the same bytes' if read == written else 'OTHER BYTES'}: sha256 {read}")
        if read != written:
            raise LabError("the second guest read other bytes than the first one wrote")
        self._openstack("server", "remove", "volume", two.name, "demo")
        print(f"volume is {self._openstack('volume', 'show', 'demo')['status']}")

    def _clear(self, volume: str) -> None:
        """Remove the volume of a former run, which may have been interrupted anywhere."""
        for attachment in self._openstack("volume", "show", volume, quiet=True)["attachments"]:
            self._openstack("server", "remove", "volume", attachment["server_id"], volume, quiet=True)
        self._openstack("volume", "delete", volume, quiet=True)

    def _farewell(self) -> None:
        here = self.directory
        again = "tools/quickstart" if here == _home() else f"tools/quickstart --directory {here}"
        say("Done. Running:")
        print(f"""  Ceph              {self.ceph.conf}
  cinderlite-api    {self.url} (log {self.log})
  VMs               {", ".join(f"{guest.name} {guest.uuid}" for guest in self.guests)}

Go on with:         source {here}/openrc; openstack volume list
or:                 OS_CLIENT_CONFIG_FILE={here}/clouds.yaml OS_CLOUD=cinderlite {self.bin}/openstack volume list
End everything:     {again} stop        (with the data: {again} destroy)""")


def _home() -> pathlib.Path:
    """Where everything lies unless --directory says otherwise."""
    chosen = os.environ.get("CINDERLITE_QUICKSTART")
    home = pathlib.Path(chosen) if chosen else pathlib.Path.home() / ".local/share/cinderlite-quickstart"
    return home.expanduser().absolute()


def _private(path: pathlib.Path, text: str) -> None:
    """Write a file that only its owner may read, never for a moment otherwise."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


def _clouds(environment: dict[str, str]) -> str:
    cloud = {
        "auth_type": "http_basic",
        "auth": {
            "endpoint": environment["OS_ENDPOINT"],
            "username": environment["OS_USERNAME"],
            "password": environment["OS_PASSWORD"],
        },
        "block_storage_endpoint_override": environment["OS_BLOCK_STORAGE_ENDPOINT_OVERRIDE"],
        "compute_endpoint_override": environment["OS_COMPUTE_ENDPOINT_OVERRIDE"],
    }
    # JSON is YAML, and needs no library to write.
    return json.dumps({"clouds": {"cinderlite": cloud}}, indent=2) + "\n"


def main() -> int:
    """Run one verb; every failure is one sentence."""
    parser = argparse.ArgumentParser(
        prog="tools/quickstart", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", nargs="?", default="up", choices=["up", "status", "stop", "destroy"])
    parser.add_argument("--directory", type=pathlib.Path, default=_home(), help="where everything lies (%(default)s)")
    parser.add_argument("--port", type=int, help=f"port of the API ({PORT}, or the one of the run before)")
    parser.add_argument("--ceph-port", type=int, help="first of two ports of Ceph's monitor (any free ones)")
    arguments = parser.parse_args()
    began = time.monotonic()
    try:
        quickstart = Quickstart(arguments.directory.expanduser().absolute(), arguments.port, arguments.ceph_port)
        getattr(quickstart, arguments.verb)()
    except (LabError, OSError) as error:
        print(f"tools/quickstart: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ntools/quickstart: interrupted; what runs goes on (tools/quickstart stop ends it)", file=sys.stderr)
        return 130
    if arguments.verb == "up":
        print(f"({time.monotonic() - began:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
