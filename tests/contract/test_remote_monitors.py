# SPDX-License-Identifier: Apache-2.0
"""Monitors over TCP with TLS: a real QEMU behind one, and who may not speak to it."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import os
import pathlib
import signal
import ssl
import subprocess
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cinderlite import errors
from cinderlite.guests import remote
from cinderlite.guests.qmp import QmpHypervisor
from lab.process import free_ports, wait

real = pytest.mark.real


class Authority:
    """Signs certificates, into files named as QEMU wants them."""

    def __init__(self, directory: pathlib.Path) -> None:
        directory.mkdir()
        self.directory = directory
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = _name("authority")
        certificate = _builder(self.name, self.name, self.key, is_authority=True).sign(self.key, hashes.SHA256())
        (directory / "ca-cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def sign(self, kind: str, address: str = "127.0.0.1") -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        made = _builder(_name(kind), self.name, key, is_authority=False).add_extension(names, critical=False)
        certificate = made.sign(self.key, hashes.SHA256())
        (self.directory / f"{kind}-cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        plain = serialization.NoEncryption()
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        (self.directory / f"{kind}-key.pem").write_bytes(pem)

    def context(self, authorities: pathlib.Path | None = None) -> ssl.SSLContext:
        names = [str(self.directory / f"client-{part}.pem") for part in ("cert", "key")]
        return remote.context(str(authorities or self.directory / "ca-cert.pem"), *names)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(subject: x509.Name, issuer: x509.Name, key: Any, *, is_authority: bool) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign", "encipher_only",
         "decipher_only"), False,
    )  # fmt: skip
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=not is_authority, key_cert_sign=is_authority, **usage), critical=True
        )
    )


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority(tmp_path_factory.mktemp("tls") / "pki")
    for kind in ("server", "client"):
        made.sign(kind)
    return made


class Vm:
    """A QEMU with nothing but a monitor, on a port."""

    def __init__(self, authority: Authority) -> None:
        self.id, self.port = str(uuid.uuid4()), free_ports(1)
        creds = f"tls-creds-x509,id=tls0,dir={authority.directory},endpoint=server,verify-peer=on"
        self.process = subprocess.Popen(
            ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35,accel=tcg",
             "-S", "-m", "32", "-uuid", self.id, "-name", "guest=far", "-object", creds,
             "-chardev", f"socket,id=qmp,host=127.0.0.1,port={self.port},server=on,wait=off,tls-creds=tls0",
             "-mon", "chardev=qmp,mode=control"],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


@pytest.fixture
def vm(authority: Authority, directory: pathlib.Path) -> Iterator[Vm]:
    made = Vm(authority)
    said = {"id": made.id, "project_id": "p", "monitor": f"127.0.0.1:{made.port}"}
    (directory / "far.json").write_text(json.dumps(said), encoding="ascii")
    yield made
    made.kill()


@pytest.fixture
def directory(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "guests").mkdir()
    return tmp_path / "guests"


@contextlib.contextmanager
def over(directory: pathlib.Path, tls: ssl.SSLContext | None) -> Iterator[QmpHypervisor]:
    made = QmpHypervisor(
        directory, connect_timeout=2.0, command_timeout=2.0, host="h", locks=directory.parent, refresh=0.0, rest=0.0,
        tls=tls,
    )  # fmt: skip
    with contextlib.closing(made):
        yield made


def status(hypervisor: QmpHypervisor) -> str:
    [found] = hypervisor.servers()
    return found.status


@real
@pytest.mark.timeout(60)
def test_a_vm_on_another_host_is_a_server_like_any(authority: Authority, vm: Vm, directory: pathlib.Path) -> None:
    with over(directory, authority.context()) as hypervisor:
        wait(lambda: status(hypervisor) == "PAUSED", timeout=20, what="QEMU to listen")
        guest = hypervisor.find(vm.id)
        assert (guest.server.name, guest.server.host, guest.disks()) == ("far", "127.0.0.1", frozenset())
        assert "127.0.0.1" in hypervisor.hosts
        os.kill(vm.process.pid, signal.SIGSTOP)
        try:
            with pytest.raises(errors.GuestUnreachable):
                guest.disks()
        finally:
            os.kill(vm.process.pid, signal.SIGCONT)
        assert guest.disks() == frozenset()
        vm.kill()
        with pytest.raises(errors.GuestGone):
            guest.disks()
        time.sleep(0.1)
        assert status(hypervisor) == "SHUTOFF"


@real
@pytest.mark.timeout(60)
def test_who_cannot_prove_who_he_is_gets_no_word(
    authority: Authority, vm: Vm, directory: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    other = Authority(tmp_path / "other")
    other.sign("client")
    trusted = authority.directory / "ca-cert.pem"
    with over(directory, authority.context()) as hypervisor:
        wait(lambda: status(hypervisor) == "PAUSED", timeout=20, what="QEMU to listen")
    # It does not believe us; we do not believe it; we are not to speak to any.
    for tls in (other.context(trusted), authority.context(other.directory / "ca-cert.pem"), None):
        with over(directory, tls) as hypervisor:
            assert status(hypervisor) == "ERROR"
            with pytest.raises(errors.GuestUnreachable):
                hypervisor.find(vm.id).disks()


def test_addresses() -> None:
    assert remote.parse("host7.example.org:4444") == ("host7.example.org", 4444)
    assert remote.parse("[2001:db8::7]:1") == ("2001:db8::7", 1)
    for wrong in ("host7", "host7:0", "host7:65536", "host7:12:34", "a b:1", "host7:-1", "/run/x.sock"):
        with pytest.raises(ValueError, match="not the address"):
            remote.parse(wrong)


def test_files_that_are_none_are_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(errors.CinderliteError, match="qmp_tls_ca"):
        remote.context(str(tmp_path / "none"), "", "")


def test_an_owner_file_with_nonsense_for_a_monitor_is_a_server_that_cannot_be_reached(directory: pathlib.Path) -> None:
    named = str(uuid.uuid4())
    said = {"id": named, "project_id": "p", "monitor": "nonsense"}
    (directory / "far.json").write_text(json.dumps(said), encoding="ascii")
    with over(directory, None) as hypervisor:
        assert status(hypervisor) == "ERROR"
        with pytest.raises(errors.GuestUnreachable, match="nonsense"):
            hypervisor.find(named).disks()
