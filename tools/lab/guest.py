# SPDX-License-Identifier: Apache-2.0
"""Small real Linux guests under QEMU: the distribution's kernel, a busybox, and an agent that runs what it is told.

The guest makes the links in /dev/disk/by-id as udev would, so that a test finds a disk the way a Kubernetes node
does. Emulated (TCG) unless KVM has been *proven* to boot a guest here: nested machines often have /dev/kvm and hang.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import lzma
import os
import pathlib
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import time
import uuid as uuids
from collections.abc import Iterator, Sequence
from typing import Any

from lab.process import PATIENCE, LabError, end, pid_in, run, wait

MODULES = ("virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "virtio_console", "shpchp")
#: Further ones of a guest with QEMU's agent, which is there to freeze file systems.
FILE_SYSTEMS = ("crc32c_generic", "ext4")
#: The port by which QEMU's agent is reached.
AGENT_PORT = "org.qemu.guest_agent.0"

_INIT = """\
#!/bin/sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /mnt
/bin/busybox mount -t proc none /proc
/bin/busybox --install -s /bin
mount -t sysfs none /sys; mount -t devtmpfs none /dev
for module in $(cat /modules/order); do insmod /modules/$module 2>/dev/null; done
for word in $(cat /proc/cmdline); do case $word in root=*) root=${word#root=} ;; esac; done
if [ -n "$root" ] && [ ! -e /on-disk ]; then
    while [ ! -b $root ]; do sleep 0.1; done
    mount -t ext4 $root /mnt
    for each in proc sys dev; do mount --move /$each /mnt/$each; done
    exec switch_root /mnt /init
fi
mkdir -p /dev/disk/by-id
while :; do
    port=$(ls /sys/class/virtio-ports 2>/dev/null | head -n 1)
    [ -n "$port" ] && [ -e /dev/$port ] && break
    sleep 0.1
done
exec 3<>/dev/$port
for other in /sys/class/virtio-ports/*; do
    [ "$(cat $other/name)" = org.qemu.guest_agent.0 ] && [ -e /bin/qemu-ga ] || continue
    /bin/qemu-ga -m virtio-serial -p /dev/${other##*/} -t /tmp > /tmp/qemu-ga.log 2>&1 3>&- < /dev/null &
done
# Nobody writes there: waiting for that costs an emulated processor less than starting a sleep ten times a second.
mkfifo /tmp/never; exec 4<>/tmp/never
while :; do
    if read -r line <&3; then
        ( eval "$line" ) > /tmp/out 2>&1 < /dev/null; code=$?
        cat /tmp/out >&3; echo "<<end $code>>" >&3
    else
        read -t 0.1 -r line <&4
    fi
done
"""

#: Prints a line "link device" for each disk, after making the links; the names are those that udev's rules give.
_DISKS = """\
#!/bin/sh
rm -f /dev/disk/by-id/*
for path in /sys/block/vd* /sys/block/sd*; do
    [ -e "$path" ] || continue
    name=${path##*/}; serial=
    case $name in
    vd*) serial=$(cat $path/serial 2>/dev/null); link=virtio-$serial ;;
    sd*) serial=$(tail -c +5 $path/device/vpd_pg80 2>/dev/null); link=scsi-0QEMU_QEMU_HARDDISK_$serial ;;
    esac
    [ -n "$serial" ] || continue
    ln -s ../../$name /dev/disk/by-id/$link
    echo "$link /dev/$name"
done
"""


def kernel() -> pathlib.Path:
    """The newest cloud kernel of the distribution. Raises LabError."""
    found = [
        path
        for path in pathlib.Path("/boot").glob("vmlinuz-*-cloud-amd64")
        if (pathlib.Path("/lib/modules") / path.name.removeprefix("vmlinuz-") / "modules.dep").exists()
    ]
    if not found:
        raise LabError("no kernel for the guests: install linux-image-cloud-amd64")
    # 6.1.0-56 is newer than 6.1.0-9.
    return max(found, key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)])


def _module_files(release: str, wanted: tuple[str, ...]) -> list[pathlib.Path]:
    """The modules that a guest needs with all that they depend on, in the order of loading."""
    root = pathlib.Path("/lib/modules") / release
    needs: dict[str, list[str]] = {}
    for line in (root / "modules.dep").read_text(encoding="utf-8").splitlines():
        path, _, others = line.partition(":")
        needs[path] = others.split()
    by_name = {pathlib.PurePath(path).name.split(".")[0].replace("-", "_"): path for path in needs}
    ordered: list[str] = []

    def add(path: str) -> None:
        for other in needs[path]:
            add(other)
        if path not in ordered:
            ordered.append(path)

    for name in wanted:
        if name in by_name:  # The others are part of the kernel itself.
            add(by_name[name])
    return [root / path for path in ordered]


def _plain(path: pathlib.Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    return gzip.decompress(data) if path.suffix == ".gz" else data


def _program(name: str) -> dict[str, pathlib.Path]:
    """A program of this machine with the libraries that it needs: where each is to be → where it is."""
    found = shutil.which(name, path="/usr/sbin:/usr/bin")
    if found is None:
        raise LabError(f"no {name} for the guests: install qemu-guest-agent")
    needs = re.findall(r"(/\S+) \(0x", run(["ldd", found], timeout=10))
    return {f"bin/{name}": pathlib.Path(found)} | {path.lstrip("/"): pathlib.Path(path) for path in needs}


def initramfs(directory: pathlib.Path, *, agent: bool = False) -> pathlib.Path:
    """The guests' file system for the newest kernel, made once and kept in `directory`; with QEMU's `agent` or not."""
    release = kernel().name.removeprefix("vmlinuz-")
    modules = MODULES + FILE_SYSTEMS if agent else MODULES
    recipe = hashlib.sha256("\n".join([_INIT, _DISKS, *modules]).encode()).hexdigest()[:8]
    made = directory / f"initramfs-{release}-{recipe}.gz"
    if made.exists():
        return made
    root = directory / f"initramfs-{release}-{recipe}"
    _fill(root, modules, agent=agent)
    listing = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*"))) + "\n"
    try:
        packed = subprocess.run(
            ["cpio", "--quiet", "-o", "-H", "newc"],
            input=listing.encode(),
            capture_output=True,
            check=True,
            cwd=root,
            timeout=60,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise LabError(f"cpio could not pack the guests' file system: {error}") from error
    partial = directory / f"{made.name}.part"
    partial.write_bytes(gzip.compress(packed.stdout, 1))
    partial.rename(made)
    shutil.rmtree(root)
    return made


def root_disk(path: pathlib.Path, mark: str, mib: int = 16) -> None:
    """Make the image of a disk, an ext4 with the guests' programs, that a `Guest` with a `root` runs from.

    The file /on-disk there holds `mark`.
    """
    root = path.with_suffix(".root")
    _fill(root, MODULES, agent=False)
    for name in ("proc", "sys", "dev", "tmp", "mnt"):
        (root / name).mkdir()
    (root / "on-disk").write_text(mark, encoding="ascii")
    run(["/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-d", str(root), str(path), f"{mib}M"], timeout=60)
    shutil.rmtree(root)


def boot_sector(text: str) -> bytes:
    """A disk's first sector with a program that writes a text to the serial port, for a firmware to boot."""
    # xor ax,ax; mov ds,ax; cld; mov si,0x7c16; mov dx,0x3f8; 1: lodsb; test al,al; jz 2f; out dx,al; jmp 1b; 2: hlt;
    # jmp 2b
    program = bytes.fromhex("31c08ed8fcbe167cbaf803ac84c07403eeebf8f4ebfd") + text.encode("ascii") + b"\0"
    return program.ljust(510, b"\0") + b"\x55\xaa"


def _fill(root: pathlib.Path, modules: tuple[str, ...], *, agent: bool) -> None:
    """Put the guests' programs, and the modules of the newest kernel, into an empty directory."""
    release = kernel().name.removeprefix("vmlinuz-")
    shutil.rmtree(root, ignore_errors=True)
    (root / "bin").mkdir(parents=True)
    (root / "modules").mkdir()
    shutil.copy2("/bin/busybox", root / "bin" / "busybox")
    for name, text in (("init", _INIT), ("bin/disks", _DISKS)):
        (root / name).write_text(text, encoding="ascii")
        (root / name).chmod(0o755)
    (root / "bin" / "sh").symlink_to("busybox")
    names = []
    for path, program in (_program("qemu-ga") if agent else {}).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(program, root / path)
    for module in _module_files(release, modules):
        name = module.name.split(".ko")[0] + ".ko"
        (root / "modules" / name).write_bytes(_plain(module))
        names.append(name)
    (root / "modules" / "order").write_text("\n".join(names), encoding="ascii")


class Guest:
    """One VM. `directory` holds what belongs to it, `sockets` the monitor and owner file for cinderlite.

    `ports` empty hot-plug ports (q35 only), `scsi` a virtio-scsi controller, `memory` in MiB. One that is `kept` stays
    a server while it is off, until it is forgotten; the others end with their process. With `root`, such as "/dev/vda",
    the guest runs from that disk, which `root_disk` has made. `title` is what its tenant calls it, if not by its name.
    `kernel_words` and `arguments` are further ones, for the guest's kernel and for QEMU.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        name: str,
        *,
        project: str = "demo",
        sockets: pathlib.Path | None = None,
        uuid: str | None = None,
        machine: str = "q35",
        ports: int = 4,
        scsi: bool = False,
        memory: int = 160,
        guest_os: bool = True,
        accelerator: str = "tcg",
        agent: bool = False,
        kept: bool = False,
        root: str = "",
        title: str = "",
        kernel_words: str = "",
        arguments: Sequence[str] = (),
    ) -> None:
        directory = directory.absolute()  # QEMU changes to / when it goes into the background.
        self.directory = directory / name
        self.sockets = sockets.absolute() if sockets else directory / "sockets"
        self.name = name
        self.title = title or name
        self.project = project
        self.machine, self.ports, self.scsi, self.memory = machine, ports, scsi, memory
        self.guest_os = guest_os
        self.accelerator = accelerator
        self.kept = kept
        self.root = root
        self.kernel_words = kernel_words
        self.arguments = list(arguments)
        #: Where QEMU's agent is reached, as cinderlite looks for it; None without one.
        self.agent_socket = self.sockets / f"{name}.agent" if agent else None
        self.images = directory
        self.uuid = uuid or self._kept_uuid() or str(uuids.uuid4())
        self.socket = self.sockets / f"{name}.sock"
        self._private = self.directory / "private.sock"
        self._agent = self.directory / "agent.sock"
        self._pid_file = self.directory / "pid"

    # -- life

    def start(self, *, wait_for_os: bool = True) -> None:
        """Start the VM if it does not run. Raises LabError."""
        if self.running():
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        self.sockets.mkdir(parents=True, exist_ok=True)
        for path in self._own_sockets():
            path.unlink(missing_ok=True)
        self.announce()
        run(self._arguments(), timeout=30)
        # A monitor is root over its VM. -daemonize sets a umask of its own, 027: nobody else could write to the
        # sockets before this line either.
        for path in self._own_sockets():
            path.chmod(0o600)
        if wait_for_os and self.guest_os:
            self.ready()

    def ready(self, timeout: float = 90) -> None:
        """Wait until the guest's agent answers."""
        wait(self._answers, timeout=timeout, what=f"guest {self.name} to boot")

    def stop(self) -> bool:
        """End the VM; True if it ran."""
        return end(self._pid_file, str(self.directory))

    def renew(self) -> None:
        """Start it anew unless it runs and has no disk of a volume's: a test that failed can leave it so."""
        if self.running():
            self.resume()
            # Not by its nodes: QEMU tells nothing of them while one is of an image that it is fenced from.
            if not any(name.startswith("volume-") for name in self._added("/machine/peripheral")):
                return
            self.stop()
        self.start()

    def kill(self) -> None:
        """End the VM as a crash would."""
        end(self._pid_file, str(self.directory), kill=True)

    def forget(self) -> None:
        """End the VM and remove what belongs to it, as an orchestrator that deletes a server."""
        self.kill()
        for path in (*self._own_sockets(), self.socket.with_suffix(".json")):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def pid(self) -> int | None:
        """The QEMU process, None if it does not run."""
        return pid_in(self._pid_file, str(self.directory))

    def running(self) -> bool:
        """Whether the QEMU process lives."""
        return self.pid is not None

    def freeze(self) -> None:
        """Stop the whole QEMU process, its monitors included, as on a host that hangs."""
        self._signal(signal.SIGSTOP)

    def unfreeze(self) -> None:
        """Let the QEMU process go on."""
        self._signal(signal.SIGCONT)

    # -- inside the guest

    def run(self, command: str, timeout: float = 30) -> str:
        """Run a line of shell in the guest and return what it printed. Raises LabError.

        The answer stands between two marks of its own: one that comes late, after a time-out, is not taken for the
        next command's.
        """
        if "\n" in command:
            raise LabError("the guest's agent takes one line")
        mark = f"<<{secrets.token_hex(4)}"
        line = f"echo '{mark} begin'; (eval {shlex.quote(command)}); echo '{mark} '$?\n"
        ending = re.compile(re.escape(mark).encode() + rb" (\d+)\n<<end \d+>>\n$")
        said = b""
        with self._connected(self._agent, PATIENCE * timeout, command) as agent:
            agent.sendall(line.encode())
            while not (found := ending.search(said)):
                part = agent.recv(65536)
                if not part:
                    raise LabError(f"guest {self.name} closed its agent's channel")
                said += part
        text = said[: found.start()].decode(errors="replace").partition(f"{mark} begin\n")[2]
        if found[1] != b"0":
            raise LabError(f"in guest {self.name} {command!r} failed ({found[1].decode()}): {text.strip()}")
        return text

    def disks(self) -> dict[str, str]:
        """Links in /dev/disk/by-id → devices."""
        return dict(line.split(maxsplit=1) for line in self.run("disks").splitlines())

    def find(self, volume_id: str) -> str | None:
        """The device whose serial number is a volume's id, as a Kubernetes node finds it; None if there is none."""
        for link, device in self.disks().items():
            if link in (f"virtio-{volume_id[:20]}", f"scsi-0QEMU_QEMU_HARDDISK_{volume_id}"):
                return device
        return None

    def wait_disk(self, volume_id: str, timeout: float = 20) -> str:
        """Wait for a volume's disk to appear and return its device."""
        wait(lambda: self.find(volume_id) is not None, timeout=timeout, what=f"disk {volume_id} in {self.name}")
        return self.find(volume_id) or ""

    def wait_no_disk(self, volume_id: str, timeout: float = 20) -> None:
        """Wait for a volume's disk to be gone."""
        wait(lambda: self.find(volume_id) is None, timeout=timeout, what=f"disk {volume_id} to leave {self.name}")

    def write(self, device: str, seed: str, mib: int = 4) -> str:
        """Write a pattern that follows from `seed` to the start of a device and return the sha256 of what was read."""
        word = shlex.quote(seed)
        self.run(f"yes {word} | dd of={device} bs=1M count={mib} iflag=fullblock conv=fsync 2>/dev/null", timeout=120)
        return self.sha256(device, mib)

    def sha256(self, device: str, mib: int = 4) -> str:
        """The sha256 of a device's start, read past the guest's cache."""
        self.run("sync; echo 3 > /proc/sys/vm/drop_caches")
        return self.run(f"dd if={device} bs=1M count={mib} 2>/dev/null | sha256sum", timeout=120).split()[0]

    # -- from outside

    def qmp(self, command: str, timeout: float = 15, **arguments: Any) -> Any:
        """One command over a monitor that is not cinderlite's. Raises LabError with QEMU's complaint."""
        said: dict[str, Any] = {"event": "none yet"}
        with (
            self._connected(self._private, timeout, command) as monitor,
            monitor.makefile("rw", encoding="utf-8") as stream,
        ):
            stream.readline()
            for word, values in (("qmp_capabilities", {}), (command, arguments)):
                stream.write(json.dumps({"execute": word, "arguments": values}) + "\n")
                stream.flush()
                while "event" in (said := json.loads(stream.readline() or '{"error": {"desc": "QEMU has ended"}}')):
                    pass
        if "error" in said:
            raise LabError(f"{command}: {said['error']['desc']}")
        return said["return"]

    def pause(self) -> None:
        """Stop the guest's processors; its monitor goes on answering."""
        self.qmp("stop")

    def resume(self) -> None:
        """Let the guest's processors go on."""
        self.qmp("cont")

    def holdings(self) -> dict[str, set[str]]:
        """Devices, block nodes and objects that were added at run time: what must be the same after a roll-back."""
        return {
            "devices": self._added("/machine/peripheral"),
            "objects": self._added("/objects"),
            "nodes": {node["node-name"] for node in self.qmp("query-named-block-nodes")},
        }

    def _added(self, path: str) -> set[str]:
        return {one["name"] for one in self.qmp("qom-list", path=path) if one["type"] != "string"}

    # -- inside

    @contextlib.contextmanager
    def _connected(self, path: pathlib.Path, timeout: float, command: str) -> Iterator[socket.socket]:
        """A connection on which no wait lasts longer than `timeout`; every failure on it is a LabError."""
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as connection:
            connection.settimeout(timeout)
            try:
                connection.connect(str(path))
                yield connection
            except OSError as error:
                raise LabError(f"guest {self.name} did not answer to {command!r}: {error}") from error

    def _own_sockets(self) -> list[pathlib.Path]:
        return [path for path in (self.socket, self._private, self._agent, self.agent_socket) if path]

    def _signal(self, number: signal.Signals) -> None:
        pid = self.pid
        if pid is None:  # And never 0, which would be this process with its whole group.
            raise LabError(f"guest {self.name} does not run")
        os.kill(pid, number)

    def _kept_uuid(self) -> str | None:
        path = self.directory / "uuid"
        return path.read_text(encoding="ascii") if path.exists() else None

    def _answers(self) -> bool:
        if not self.running():
            raise LabError(f"guest {self.name} ended while it booted; see {self.directory}/console")
        try:
            return self.run("echo ready", timeout=3).strip() == "ready"
        except LabError:
            return False

    def announce(self) -> None:
        """Write down whose the VM is; one that is kept is a server from now on."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.sockets.mkdir(parents=True, exist_ok=True)
        (self.directory / "uuid").write_text(self.uuid, encoding="ascii")
        flavor = {"id": "lab", "name": "lab", "vcpus": 1, "ram": self.memory, "disk": 0}
        owner = {"project_id": self.project, "user_id": "lab", "flavor": flavor, "metadata": {}}
        owner |= {"id": self.uuid} if self.kept else {}
        self.socket.with_suffix(".json").write_text(json.dumps(owner), encoding="ascii")

    def _arguments(self) -> list[str]:
        words = [
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-daemonize",
            "-machine", f"{self.machine},accel={self.accelerator}", "-m", str(self.memory),
            "-cpu", "host" if self.accelerator == "kvm" else "max",
            "-uuid", self.uuid, "-name", f"guest={self.title}", "-pidfile", str(self._pid_file),
            "-qmp", f"unix:{self.socket},server=on,wait=off", "-qmp", f"unix:{self._private},server=on,wait=off",
            "-serial", f"file:{self.directory}/console",
            "-device", "virtio-serial-pci,id=serial0",
            "-chardev", f"socket,id=agent,path={self._agent},server=on,wait=off",
            "-device", "virtserialport,bus=serial0.0,chardev=agent,name=lab.agent",
        ]  # fmt: skip
        if self.agent_socket:
            words += ["-chardev", f"socket,id=qga,path={self.agent_socket},server=on,wait=off"]
            words += ["-device", f"virtserialport,bus=serial0.0,chardev=qga,name={AGENT_PORT}"]
        if self.machine == "q35":
            for number in range(1, self.ports + 1):
                words += ["-device", f"pcie-root-port,id=port{number},chassis={number},slot={number}"]
        if self.scsi:
            words += ["-device", "virtio-scsi-pci,id=scsi0"]
        if self.guest_os:
            root = f"root={self.root}" if self.root else ""
            command = f"console=ttyS0 quiet panic=1 {root} {self.kernel_words}"
            words += [
                "-kernel",
                str(kernel()),
                "-initrd",
                str(initramfs(self.images, agent=self.agent_socket is not None)),
            ]
            words += ["-append", command]
        return words + self.arguments

    def console(self) -> str:
        """What was written to the serial port."""
        return (self.directory / "console").read_text(encoding="utf-8", errors="replace")


def accelerator(directory: pathlib.Path) -> str:
    """ "kvm" if a guest has really booted with it on this machine, else "tcg"; tried once and noted in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    note = directory / "accelerator"
    if note.exists():
        return note.read_text(encoding="ascii").strip()
    word = "tcg"
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        trial = Guest(directory / "trial", "trial", ports=1, accelerator="kvm")
        with contextlib.suppress(LabError):
            trial.start(wait_for_os=False)
            trial.ready(timeout=20)
            # One that boots and then hangs has been seen too.
            for _ in range(3):
                trial.run("sha256sum /bin/busybox", timeout=10)
                time.sleep(0.2)
            word = "kvm"
        trial.forget()
        shutil.rmtree(directory / "trial", ignore_errors=True)
    note.write_text(word + "\n", encoding="ascii")
    return word
