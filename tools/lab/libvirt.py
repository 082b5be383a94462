# SPDX-License-Identifier: Apache-2.0
"""A libvirt daemon of its own in a directory, without systemd, and the lab's guests as its domains.

It runs as libvirt does for a plain user, so that nothing of the machine's own libvirt is touched: as whoever starts it,
or as `nobody` if that is root, to whom libvirt would give the machine's directories. Its guests outlive it, as they do.
"""

from __future__ import annotations

import os
import pathlib
import pwd
import shutil
import signal
import uuid as uuids
from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from lab import guest
from lab.process import LabError, end, pid_in, run, wait

_DAEMON = 'log_outputs = "3:file:{directory}/log"\n'
_QEMU = 'security_driver = "none"\nstdio_handler = "file"\n'

_DOMAIN = """\
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name><uuid>{uuid}</uuid>
  <metadata>{metadata}</metadata>
  <memory unit='MiB'>{memory}</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type>{boot}</os>
  <features><acpi/></features>
  <cpu mode='maximum'/>
  <on_reboot>restart</on_reboot>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    {ports}
    <controller type='usb' model='none'/>
    <controller type='virtio-serial' index='0'>
      <address type='pci' domain='0' bus='0' slot='0x10' function='0'/>
    </controller>
    {scsi}
    <serial type='file'><source path='{directory}/console'/></serial>
    <channel type='unix'>
      <source mode='bind' path='{directory}/agent.sock'/><target type='virtio' name='lab.agent'/>
    </channel>
    {agent}
    <memballoon model='none'/>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-qmp'/><qemu:arg value='unix:{directory}/private.sock,server=on,wait=off'/>
  </qemu:commandline>
</domain>
"""


class Libvirt:
    """One daemon; `directory` must be one that anybody may pass through, with a short path."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory.absolute()
        self._conf = self.directory / "libvirtd.conf"
        self._pid_file = self.directory / "pid"
        self._run = self.directory / "run"
        self.socket = self._run / "libvirt" / "libvirt-sock"
        self.uri = f"qemu:///session?socket={self.socket}"

    # -- life

    def start(self) -> None:
        """Start it if it does not run. Raises LabError."""
        if self.running():
            return
        settings = self.directory / "home" / ".config" / "libvirt"
        for path in (settings, self._run):
            path.mkdir(parents=True, exist_ok=True)
        self._conf.write_text(_DAEMON.format(directory=self.directory), encoding="ascii")
        (settings / "qemu.conf").write_text(_QEMU, encoding="ascii")
        self.give(self.directory)
        environment = {"PATH": os.environ["PATH"] + ":/usr/sbin", "HOME": str(self.directory / "home")}
        environment |= {"XDG_RUNTIME_DIR": str(self._run), "LC_ALL": "C.UTF-8"}
        words = ["libvirtd", "--daemon", "--config", str(self._conf), "--pid-file", str(self._pid_file)]
        run([*_as_user(), *words], env=environment, cwd=self.directory)
        wait(self.running, timeout=10, what="libvirtd to start")

    def give(self, directory: pathlib.Path) -> None:
        """Make a directory with all that is in it the daemon's."""
        if os.geteuid() != 0:
            return
        owner = pwd.getpwnam("nobody")
        for path in (directory, *directory.rglob("*")):
            os.chown(path, owner.pw_uid, owner.pw_gid, follow_symlinks=False)

    def stop(self) -> None:
        """End the daemon, not its guests."""
        end(self._pid_file, str(self._conf))

    def kill(self) -> None:
        """End the daemon as a crash would."""
        end(self._pid_file, str(self._conf), kill=True)

    def freeze(self) -> None:
        """Stop the whole process, as on a host that hangs."""
        self._signal(signal.SIGSTOP)

    def unfreeze(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def running(self) -> bool:
        """Whether the process lives and listens."""
        return pid_in(self._pid_file, str(self._conf)) is not None and self.socket.exists()

    def destroy(self) -> None:
        """End the daemon and remove its data; its guests must have been ended before."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def pid_file(self, name: str) -> pathlib.Path:
        """Where libvirt notes the process of a running domain."""
        return self._run / "libvirt" / "qemu" / "run" / f"{name}.pid"

    def connection(self) -> Any:
        """A connection that is not cinderlite's."""
        import libvirt

        return libvirt.open(self.uri)

    def secrets(self) -> set[str]:
        """The ids of what disks are opened with."""
        connection = self.connection()
        try:
            return {one.UUIDString() for one in connection.listAllSecrets()}
        finally:
            connection.close()

    def _signal(self, number: signal.Signals) -> None:
        pid = pid_in(self._pid_file, str(self._conf))
        if pid is None:  # And never 0, which would be this process with its whole group.
            raise LabError("libvirtd does not run")
        os.kill(pid, number)


def _as_user() -> list[str]:
    return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.geteuid() == 0 else []


class Domain(guest.Guest):
    """One VM of a daemon's: a `Guest` that libvirt starts and ends. Without `keep` it is forgotten at its end."""

    def __init__(
        self,
        libvirt: Libvirt,
        name: str,
        *,
        metadata: str | None = None,
        keep: bool = True,
        owner: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(libvirt.directory, name, **{"uuid": str(uuids.uuid4()), **options})
        self.libvirt = libvirt
        self.keep = keep
        self.metadata = ours(owner or {"project": self.project, "user": "lab"}) if metadata is None else metadata
        self._pid_file = libvirt.pid_file(name)
        self._mark = str(libvirt.directory)

    # -- life

    def start(self, *, wait_for_os: bool = True) -> None:
        """Define and start it, or start what is defined, if it does not run. Raises LabError."""
        if self.running():
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        xml = self._xml()  # It makes the guests' file system too.
        self.libvirt.give(self.directory)
        import libvirt

        connection = self.libvirt.connection()
        try:
            if not self.keep:
                connection.createXML(xml)
            else:
                self._defined(connection, xml).create()
        except libvirt.libvirtError as error:
            raise LabError(f"libvirt does not start {self.name}: {error}") from error
        finally:
            connection.close()
        self.libvirt.give(self.directory)
        if wait_for_os and self.guest_os:
            self.ready()

    def define(self) -> None:
        """Make libvirt know it without starting it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        xml = self._xml()
        self.libvirt.give(self.directory)
        connection = self.libvirt.connection()
        self._defined(connection, xml)
        connection.close()

    def stop(self) -> bool:
        """End the VM as its power switch does; True if it ran."""
        if not self.running():
            return False
        self.tell("destroy")
        return True

    def kill(self) -> None:
        """End the VM as a crash would, and wait until libvirt has seen that."""
        end(self._pid_file, self._mark, kill=True)
        connection = self.libvirt.connection()
        names = [domain.UUIDString() for domain in connection.listAllDomains()]
        if self.uuid in names:
            wait(lambda: not connection.lookupByUUIDString(self.uuid).isActive(), timeout=10, what="libvirt to see it")
        connection.close()

    def forget(self) -> None:
        """End the VM, if it runs, and have libvirt forget it."""
        self.stop()
        connection = self.libvirt.connection()
        for domain in connection.listAllDomains():
            if domain.UUIDString() == self.uuid:
                domain.undefine()
        connection.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def pid(self) -> int | None:
        """The QEMU process, None if it does not run."""
        return pid_in(self._pid_file, self._mark)

    def pause(self) -> None:
        """Stop the guest's processors."""
        self.tell("suspend")

    def resume(self) -> None:
        """Let the guest's processors go on, if they were stopped."""
        import libvirt

        if self.tell("state")[0] == libvirt.VIR_DOMAIN_PAUSED:
            self.tell("resume")

    def tell(self, verb: str, *arguments: Any) -> Any:
        """Call a method of libvirt's domain over a connection that is not cinderlite's."""
        connection = self.libvirt.connection()
        try:
            return getattr(connection.lookupByUUIDString(self.uuid), verb)(*arguments)
        finally:
            connection.close()

    # -- inside

    def _defined(self, connection: Any, xml: str) -> Any:
        for domain in connection.listAllDomains():
            if domain.UUIDString() == self.uuid:
                return domain
        return connection.defineXML(xml)

    def _xml(self) -> str:
        boot = ""
        if self.guest_os:
            command = escape("console=ttyS0 quiet panic=1")
            image = guest.initramfs(self.images, agent=self.agent_socket is not None)
            boot = f"<kernel>{guest.kernel()}</kernel><initrd>{image}</initrd>"
            boot += f"<cmdline>{command}</cmdline>"
        ports = "".join(
            f"<controller type='pci' index='{number}' model='pcie-root-port'/>" for number in range(1, self.ports + 1)
        )
        scsi = ""
        if self.scsi:
            address = "<address type='pci' domain='0' bus='0' slot='0x11' function='0'/>"
            scsi = f"<controller type='scsi' index='0' model='virtio-scsi'>{address}</controller>"
        agent = ""
        if self.agent_socket:  # libvirt chooses its own.
            agent = f"<channel type='unix'><target type='virtio' name='{guest.AGENT_PORT}'/></channel>"
        return _DOMAIN.format(
            name=escape(self.name), uuid=self.uuid, memory=self.memory, boot=boot, scsi=scsi, metadata=self.metadata,
            agent=agent,
            ports=f"<controller type='pci' index='0' model='pcie-root'/>{ports}", directory=self.directory,
        )  # fmt: skip


def ours(owner: Mapping[str, str]) -> str:
    """The metadata by which cinderlite knows whose a domain is."""
    said = " ".join(f"{key}={quoteattr(value)}" for key, value in owner.items())
    flavor = "<c:flavor id='lab' name='lab' vcpus='1' ram='160' disk='0'/>"
    return f"<c:server xmlns:c='urn:cinderlite:server:1' {said}>{flavor}</c:server>"
