# SPDX-License-Identifier: Apache-2.0
"""Every option of cinderlite, by group, with its unit and help; read in `app` and `cmd` only, values are passed down.

Names are Cinder's where Cinder has the option, so that lines of an existing cinder.conf can be carried over; a line
that cinderlite does not know is ignored. There is no global configuration object: `load` returns one.
"""

from __future__ import annotations

import functools
import pathlib
import re
import socket
from collections.abc import Sequence

from keystoneauth1 import loading
from keystonemiddleware import opts as keystonemiddleware_opts
from oslo_config import cfg
from oslo_log import log
from oslo_policy import opts as policy_opts

from cinderlite import errors, private

API = [
    cfg.HostAddressOpt("osapi_volume_listen", default="0.0.0.0", help="IP address on which the API listens."),  # noqa: S104 -- Cinder's default
    cfg.PortOpt("osapi_volume_listen_port", default=8776, help="Port on which the API listens, for both services."),
    cfg.IntOpt("osapi_volume_workers", default=1, min=1, help="Number of API processes."),
    cfg.BoolOpt(
        "api_cpu_affinity",
        default=True,
        help="Whether the threads of an API process that run Python stay on one processor, each process on another "
        "one, which makes them a third faster. Of no use where other programs are kept on all of them.",
    ),
    cfg.IntOpt(
        "api_threads",
        default=8,
        min=1,
        help="Number of requests that one API process works on at a time, without those that may wait for a server. "
        "They share one processor, with who lets requests in: more of them make each slower under load.",
    ),
    cfg.IntOpt(
        "api_slow_threads",
        min=1,
        help="Number of requests that one API process works on at a time of those that may wait for a server, for "
        "another service or for monitors: attach, detach, all of the compute API, snapshots, extend. Twice "
        "api_threads by default.",
    ),
    cfg.IntOpt(
        "api_max_waiting",
        min=0,
        help="Number of requests of each of these two classes that may wait for their turn; one more is refused at "
        "once with 503. Four times api_threads by default.",
    ),
    cfg.FloatOpt(
        "api_max_wait",
        default=5.0,
        min=0.0,
        help="Seconds that a request waits for its turn; then it is refused with 503.",
    ),
    cfg.FloatOpt(
        "client_socket_timeout",
        default=30.0,
        min=0.1,
        help="Seconds within which a client has to send a whole request, and to take the whole answer; else its "
        "connection is closed.",
    ),
    cfg.IntOpt(
        "max_header_line",
        default=16384,
        min=256,
        max=65536,
        help="Longest line of a request's header in bytes; a request with a longer one is refused.",
    ),
    cfg.IntOpt(
        "graceful_shutdown_timeout",
        default=60,
        min=1,
        help="Seconds that running requests are given when the service is told to stop. Jobs leave off meanwhile, for "
        "another process to go on with.",
    ),
    cfg.StrOpt(
        "public_endpoint",
        help="Base URL for the links in answers, such as https://volumes.example.org; "
        "by default that of the request is used.",
    ),
    cfg.BoolOpt(
        "enable_proxy_headers_parsing",
        default=False,
        help="Trust X-Forwarded-For, -Proto, -Host and -Prefix of one proxy. Only behind a proxy that sets them.",
    ),
    cfg.IntOpt("osapi_max_limit", default=1000, min=1, help="Largest number of items in one page of a list."),
    cfg.StrOpt(
        "resource_query_filters_file",
        help="Path of a file in the form of Cinder's resource_filters.json, which says by what members may filter "
        "each list since 3.31; Cinder's own lists by default.",
    ),
    cfg.IntOpt(
        "osapi_max_request_body_size",
        default=114688,
        min=1024,
        help="Largest request body in bytes; a larger one is refused with 413.",
    ),
    cfg.StrOpt(
        "auth_strategy",
        default="keystone",
        choices=[
            ("keystone", "Tokens are checked by keystonemiddleware; see [keystone_authtoken]."),
            ("http_basic", "User name and password, from http_basic_auth_user_file."),
            ("noauth", "Whoever asks is an administrator. For tests on loopback."),
        ],
        help="How callers are known.",
    ),
    cfg.StrOpt(
        "http_basic_auth_user_file",
        default="/etc/cinderlite/users",
        help="File of lines 'user:bcrypt hash:project id:role,role' for auth_strategy = http_basic. "
        "It may not be readable by others than its owner and group.",
    ),
    cfg.BoolOpt(
        "noauth_allow_remote",
        default=False,
        help="Let auth_strategy = noauth listen on an address that is not loopback.",
    ),
    cfg.StrOpt(
        "project_id_regex",
        default=r"[0-9a-f\-]+",
        help="What a project id looks like. The first part of a path that does not match is not taken for one.",
    ),
    cfg.ListOpt(
        "metrics_allowed_networks",
        default=["127.0.0.0/8", "::1/128"],
        help="Networks from which /metrics may be read.",
    ),
    cfg.IntOpt(
        "healthcheck_timeout",
        default=5,
        min=1,
        help="Seconds that /healthcheck waits for Ceph and for the database.",
    ),
]

SERVICE = [
    cfg.StrOpt("host", default=socket.gethostname(), help="Name of this host, as shown in services and pools."),
    cfg.StrOpt(
        "state_path",
        default="/var/lib/cinderlite",
        help="Directory for the embedded database and for locks. API processes of one host share it.",
    ),
    cfg.ListOpt(
        "enabled_backends",
        default=["ceph"],
        help="The configuration groups that describe a back end each: a pool of a Ceph cluster.",
    ),
    cfg.StrOpt("storage_availability_zone", default="nova", help="Availability zone of the volumes."),
    cfg.StrOpt(
        "default_availability_zone",
        help="Zone of a volume that is created without one; storage_availability_zone by default.",
    ),
    cfg.BoolOpt(
        "allow_availability_zone_fallback",
        default=False,
        help="Create a volume that asks for an unknown zone in the default one instead of refusing it.",
    ),
    cfg.StrOpt("default_volume_type", default="__DEFAULT__", help="Name of the type of a volume created without one."),
    cfg.StrOpt("default_group_type", help="Name of the group type that clients are told is the default one."),
    cfg.IntOpt("quota_volumes", default=10, min=-1, help="Volumes a project may have; -1 for no limit."),
    cfg.IntOpt("quota_snapshots", default=10, min=-1, help="Snapshots a project may have; -1 for no limit."),
    cfg.IntOpt("quota_gigabytes", default=1000, min=-1, help="GiB of volumes a project may have; -1 for no limit."),
    cfg.IntOpt("quota_backups", default=10, min=-1, help="Backups a project may have; -1 for no limit."),
    cfg.IntOpt(
        "quota_backup_gigabytes", default=1000, min=-1, help="GiB of backups a project may have; -1 for no limit."
    ),
    cfg.IntOpt("quota_groups", default=10, min=-1, help="Groups a project may have; -1 for no limit."),
    cfg.IntOpt("per_volume_size_limit", default=-1, min=-1, help="Largest size of one volume in GiB; -1 for no limit."),
    cfg.FloatOpt(
        "reconcile_interval",
        default=5.0,
        min=0.1,
        help="Seconds between two passes that finish interrupted operations and compare guests with attachments.",
    ),
    cfg.FloatOpt(
        "operation_lease",
        default=120.0,
        min=1.0,
        help="Seconds after which the work of a process that cannot be asked (on another host) is taken over. "
        "Work of a dead process on the same host is taken over at once.",
    ),
    cfg.FloatOpt(
        "stuck_call_timeout",
        default=600.0,
        min=0.0,
        help="Seconds after which a call to Ceph that was given up (rbd_call_timeout) and does not end has its process "
        "stop as on SIGTERM. The server starts another one, which does what was begun; 0 for never.",
    ),
    cfg.IntOpt(
        "job_threads",
        default=4,
        min=1,
        help="Jobs that move data (backups, images, moves between pools) which one process does at a time.",
    ),
    cfg.IntOpt(
        "volume_copy_bps_limit",
        default=0,
        min=0,
        help="Bytes a second that QEMU copies at most of a volume in use that moves to another pool; 0 for no limit.",
    ),
    cfg.IntOpt(
        "rbd_concurrent_flatten_operations",
        default=3,
        min=1,
        help="Clones of backups, or beyond rbd_max_clone_depth, made whole at a time in a process, beside job_threads.",
    ),
    cfg.IntOpt(
        "deleted_volume_retention",
        default=0,
        min=0,
        help="Seconds for which 'cinderlite-manage volume undelete' can bring a deleted volume back. Its data take up "
        "space until then, but do not count for the project's quota. 0: they are removed at once.",
    ),
    cfg.BoolOpt(
        "snapshots_outlive_volumes",
        default=False,
        help="Let a volume be deleted that has snapshots, which stay and can still make volumes. What the volume had "
        "beyond them is removed, after deleted_volume_retention; the rest when its last snapshot is deleted.",
    ),
    cfg.StrOpt("backup_ceph_pool", help="Pool that backups are kept in; without it there are no backups."),
    cfg.StrOpt(
        "backup_ceph_conf", default="/etc/ceph/ceph.conf", help="Configuration file of the cluster of that pool."
    ),
    cfg.StrOpt("backup_ceph_user", default="cinderlite", help="cephx user for that pool, without 'client.'."),
    cfg.IntOpt("reconcile_batch", default=100, min=1, help="Most rows that one pass takes up of a kind."),
    cfg.FloatOpt(
        "service_down_time", default=60.0, min=1.0, help="Seconds without a sign of life after which a service is down."
    ),
]

IMAGES = [
    cfg.ListOpt(
        "glance_api_servers",
        default=[],
        help="URLs of the image service, such as http://glance:9292; by default it is looked up in the catalogue.",
    ),
    cfg.StrOpt(
        "glance_catalog_info",
        default="image:glance:publicURL",
        help="Type, name and interface of the image service in the catalogue, if glance_api_servers is not set.",
    ),
    cfg.IntOpt(
        "glance_num_retries",
        default=3,
        min=0,
        help="How often a request to the image service, and the copy of an image, is tried again.",
    ),
    cfg.ListOpt(
        "allowed_direct_url_schemes",
        default=[],
        help="Schemes of image locations that are read without the image service. Only 'file' has an effect: "
        "images on a file system that this host shares with the image service.",
    ),
    cfg.StrOpt(
        "image_conversion_dir",
        help="Directory in which images are converted: it must have room for the file and the disk of each image at "
        "work. By default the directory 'conversion' in state_path.",
    ),
    cfg.IntOpt("image_conversion_address_space_limit", default=1, min=1, help="GiB of memory that qemu-img may have."),
    cfg.IntOpt(
        "image_conversion_cpu_limit",
        default=60,
        min=1,
        help="Seconds of CPU that qemu-img may take to look at an image, and for each GiB of one that it converts.",
    ),
    cfg.BoolOpt(
        "image_conversion_disable",
        default=False,
        help="Refuse images that are not raw, both as sources of volumes and as what volumes are uploaded as.",
    ),
    cfg.ListOpt(
        "vmdk_allowed_types",
        default=["streamOptimized", "monolithicSparse"],
        help="VMDK subformats that volumes may be made from. Those that are more than one file never are.",
    ),
    cfg.StrOpt(
        "cinder_internal_tenant_project_id",
        help="Project that owns the images that are kept; see image_volume_cache_enabled.",
    ),
    cfg.StrOpt("cinder_internal_tenant_user_id", help="User that owns the images that are kept."),
    cfg.BoolOpt(
        "enable_force_upload",
        default=True,
        help="Let os-volume_upload_image with 'force' make an image of a volume in use, from a snapshot of it.",
    ),
]
#: How the service itself logs in at the image service; without auth_type as [keystone_authtoken] says.
GLANCE = [
    cfg.StrOpt("region_name", help="Region of the image service in the catalogue."),
    cfg.StrOpt("auth_type", help="How the service logs in: keystoneauth's name of a plugin, such as password."),
    cfg.StrOpt("auth_section", help="The group that holds the plugin's options, if it is not this one."),
    cfg.StrOpt("cafile", help="File of the authorities that may have signed the certificates of HTTPS."),
    cfg.StrOpt("certfile", help="File of the service's own certificate."),
    cfg.StrOpt("keyfile", help="File of the key of that certificate."),
    cfg.BoolOpt("insecure", default=False, help="Do not check certificates."),
    cfg.IntOpt("timeout", default=60, min=1, help="Seconds to wait for a connection, and for the next byte."),
]

ENCRYPTION: list[cfg.Opt] = [
    cfg.StrOpt(
        "key_store",
        default="none",
        choices=[
            ("none", "There are no encrypted volumes."),
            ("database", "In the database of the service, wrapped by the key in key_file."),
            ("castellan", "Where the sections of castellan, such as [key_manager] and [barbican] or [vault], say."),
        ],
        help="Where the keys of encrypted volumes are kept.",
    ),
    cfg.StrOpt(
        "key_file",
        default="/etc/cinderlite/keys",
        help="File of the key that wraps those in the database, which are lost with it: 64 hexadecimal digits, such as "
        "`openssl rand -hex 32` makes. It must have mode 0600 and be the same on every host. Of several lines the "
        "first wraps, and any unwraps. If it is there it also signs what Ceph keeps for `cinderlite-manage rebuild`, "
        "whatever key_store says.",
    ),
]

DATABASE = [
    cfg.StrOpt(
        "connection",
        secret=True,
        help="SQLAlchemy URL of the database; by default the file cinderlite.sqlite in state_path.",
    ),
    cfg.IntOpt("timeout", default=10, min=1, help="Seconds to wait for a lock or a connection of the database."),
]

BACKEND = [
    cfg.StrOpt("volume_backend_name", help="Name of the back end as types refer to it; the group's name by default."),
    cfg.StrOpt(
        "backend_host",
        help="Name of the host in what the pool is called (host@backend#pool); the option host by default. API hosts "
        "on one database call a pool the same: then each of them looks after all of its volumes, whoever made them.",
    ),
    cfg.StrOpt(
        "backend_availability_zone", help="Availability zone of the back end; storage_availability_zone by default."
    ),
    cfg.StrOpt("rbd_pool", default="volumes", help="Pool that holds the images."),
    cfg.StrOpt("rbd_ceph_conf", default="/etc/ceph/ceph.conf", help="Path of the cluster's configuration file."),
    cfg.StrOpt("rbd_user", default="cinderlite", help="cephx user, without 'client.'."),
    cfg.StrOpt("rbd_cluster_name", default="ceph", help="Name of the cluster."),
    cfg.StrOpt("rbd_secret_uuid", help="UUID of the libvirt secret; by default the cluster's fsid."),
    cfg.IntOpt("rados_connect_timeout", default=5, min=1, help="Seconds to wait for a connection to the cluster."),
    cfg.IntOpt("rados_mon_op_timeout", default=5, min=1, help="Seconds to wait for an answer of a monitor."),
    cfg.IntOpt("rados_osd_op_timeout", default=10, min=1, help="Seconds to wait for an answer of an OSD."),
    cfg.IntOpt(
        "rbd_max_clone_depth",
        default=5,
        min=0,
        help="Images that may be below a clone, each one made from the next. A clone with more can be used at once and "
        "is made whole in the background; with 0 every clone is.",
    ),
    cfg.FloatOpt(
        "rbd_call_timeout",
        default=15.0,
        min=0.1,
        help="Seconds after which a whole librbd call is given up by the request that waits for it.",
    ),
    cfg.IntOpt("rbd_threads", default=16, min=1, help="librbd calls that one process runs at a time."),
    cfg.BoolOpt(
        "image_volume_cache_enabled",
        default=False,
        help="Keep each image that was copied as a volume of cinder_internal_tenant_project_id, and clone further "
        "volumes from that.",
    ),
    cfg.IntOpt("image_volume_cache_max_size_gb", default=0, min=0, help="GiB of images that are kept; 0 for no limit."),
    cfg.IntOpt("image_volume_cache_max_count", default=0, min=0, help="Images that are kept; 0 for no limit."),
    cfg.BoolOpt(
        "rbd_namespace_per_project",
        default=False,
        help="Make each project's new volumes in an RBD namespace of the pool that is called like the project's id, so "
        "that a cephx key can be limited to one project; images that are kept for all stay in the default namespace. "
        "Volumes stay where they are when this is changed. os-brick and libvirt 9 cannot open such volumes.",
    ),
    cfg.StrOpt(
        "rbd_attachment_keys",
        default="auto",
        choices=[
            ("auto", "A cephx user for each attachment where rbd_user may make users, else rbd_user itself."),
            (
                "attachment",
                "A cephx user for each attachment, which opens that one image and is removed at the detach.",
            ),
            ("project", "A cephx user for each project's namespace (rbd_namespace_per_project); rbd_user elsewhere."),
            ("service", "rbd_user itself opens all images."),
        ],
        help="As whom servers open the volumes that cinderlite plugs in. `cinderlite-manage ceph check` says whether "
        "rbd_user may make users, and how to let it.",
    ),
    cfg.IntOpt("reserved_percentage", default=0, min=0, max=100, help="Percent of the pool shown as not to be used."),
    cfg.FloatOpt("max_over_subscription_ratio", default=20.0, min=1.0, help="Provisioned size over real size."),
]

GUESTS = [
    cfg.StrOpt(
        "qmp_socket_directory",
        default="/run/cinderlite/guests",
        help="Directory of the VMs' monitor sockets NAME.sock, each with an owner file NAME.json beside it. A VM whose "
        "file has its id is there until the file is removed, so it should outlive a restart of the host.",
    ),
    cfg.FloatOpt("qmp_connect_timeout", default=3.0, min=0.1, help="Seconds to wait for a monitor's greeting."),
    cfg.FloatOpt("qmp_command_timeout", default=15.0, min=0.1, help="Seconds to wait for one answer of a monitor."),
    cfg.StrOpt(
        "qmp_tls_ca",
        help="File of the authorities that have signed the certificates of monitors on other hosts, which owner files "
        "name ('monitor': 'host:port'). Without it there are none.",
    ),
    cfg.StrOpt("qmp_tls_cert", help="File of the certificate that is shown to those monitors."),
    cfg.StrOpt("qmp_tls_key", help="File of the key of that certificate."),
    cfg.FloatOpt(
        "qmp_rest",
        default=5.0,
        min=0.0,
        help="Seconds for which operations on a VM whose monitor did not answer are refused at once (503), rather than "
        "each waiting for it; then one of them tries again.",
    ),
    cfg.IntOpt(
        "qmp_mount_timeout",
        default=10,
        min=0,
        help="Seconds for which QEMU waits for Ceph's monitors at most while it opens an image; the VM stands still "
        "meanwhile. For that QEMU is told to read qemu-ceph.conf in qmp_socket_directory, which the service makes of "
        "/etc/ceph/ceph.conf. 0: it reads /etc/ceph/ceph.conf itself, and waits for 300 s unless client_mount_timeout "
        "is set there.",
    ),
    cfg.ListOpt(
        "libvirt_uris",
        default=[],
        help="Hosts whose libvirt domains are servers too, as libvirt names them: qemu:///system, "
        "qemu+tls://h2/system, qemu+ssh://cinderlite@h3/system?no_tty=1. Needs python3-libvirt or the extra 'libvirt'.",
    ),
    cfg.FloatOpt(
        "libvirt_connect_timeout",
        default=5.0,
        min=0.1,
        help="Seconds to wait for a connection to libvirt, and for an answer of it to what only looks.",
    ),
    cfg.FloatOpt(
        "libvirt_call_timeout",
        default=20.0,
        min=0.1,
        help="Seconds after which a call of libvirt is given up by the request that waits for it.",
    ),
    cfg.IntOpt("libvirt_threads", default=5, min=1, help="Calls that one process makes to one libvirt at a time."),
    cfg.FloatOpt(
        "detach_wait",
        default=5.0,
        min=0.0,
        help="Seconds that a detach request waits for the guest; after that the volume stays 'detaching' and the work "
        "goes on in the background.",
    ),
    cfg.FloatOpt(
        "detach_give_up_after",
        default=600.0,
        min=0.0,
        help="Seconds after which a detach is given up that the guest did not grant, and the volume is in use again, "
        "with a user message. With 0 it stays 'detaching' until the guest lets go.",
    ),
    cfg.IntOpt(
        "fence_seconds",
        default=2592000,
        min=3600,
        help="Seconds for which Ceph takes nothing from the clients of a server that a volume was taken from by "
        "os-force_detach. It is renewed while that server cannot be asked, so this must be longer than a host may "
        "hang while no process of the service runs; a client that went on after that could write.",
    ),
    cfg.FloatOpt(
        "guest_gone_after",
        default=60.0,
        min=0.0,
        help="Seconds for which a VM must have ended before its volumes are released: its owner file removed, or its "
        "domain undefined, and its process gone. One that is shut off or restarted has not ended.",
    ),
    cfg.BoolOpt(
        "freeze_file_systems",
        default=False,
        help="Have a VM's guest agent (qemu-guest-agent) freeze its file systems while a snapshot of a volume that we "
        "attached to it is taken. A VM whose agent does not answer gets a snapshot as after a power failure.",
    ),
    cfg.FloatOpt(
        "freeze_timeout",
        default=10.0,
        min=0.1,
        help="Seconds after which frozen file systems are thawed, even if the snapshot is not there yet.",
    ),
    cfg.StrOpt(
        "agent_socket",
        default="{directory}/{name}.agent",
        help="Path of the socket of a VM's guest agent. {directory} is qmp_socket_directory, {name} the name of the "
        "VM's monitor socket without .sock, {id} its UUID.",
    ),
    cfg.FloatOpt("agent_timeout", default=3.0, min=0.1, help="Seconds to wait for a guest agent to answer."),
    cfg.IntOpt("max_disk_devices_to_attach", default=-1, min=-1, help="Volumes a server may hold; -1 for no limit."),
]


#: A line of a configuration file that is for nobody else's eyes: any password or token (castellan's are root_token_id
#: and approle_secret_id, but its send_service_user_token says yes or no), also that in a database's URL.
_SECRET = re.compile(
    r"^\s*(\w*(password|secret|token)(_id|_key)?\s*[=:]\s*(?!(?i:true|false)\s*$)\S"
    r"|connection\s*[=:].*://[^/@\s]*:[^@\s]+@)",
    re.MULTILINE,
)


def list_opts() -> list[tuple[str, list[cfg.Opt]]]:
    """All options by group, for the generated sample."""
    return [
        ("DEFAULT", API + SERVICE + IMAGES),
        ("glance", GLANCE),
        ("encryption", ENCRYPTION),
        ("database", DATABASE),
        ("ceph", BACKEND),
        ("guests", GUESTS),
    ]


@functools.cache
def _of_libraries() -> list[tuple[str | None, list[cfg.Opt]]]:
    """The options of what else reads the configuration; a library copies all of its own for each who asks."""
    return [*keystonemiddleware_opts.list_auth_token_opts(), *policy_opts.list_opts()]


def load(argv: Sequence[str], *, default_files: list[str] | None = None) -> cfg.ConfigOpts:
    """Read the configuration that the command line `argv` (without the program's name) names.

    Raises errors.CinderliteError with a sentence when the values do not fit together.
    """
    conf = cfg.ConfigOpts()
    log.register_options(conf)
    for group, options in list_opts():
        if group != "ceph":
            conf.register_opts(options, None if group == "DEFAULT" else group)
    for section, options in _of_libraries():
        conf.register_opts(options, section)
    conf(list(argv), project="cinderlite", prog="cinderlite", default_config_files=default_files)
    if not conf.enabled_backends or len(set(conf.enabled_backends)) != len(conf.enabled_backends):
        raise errors.CinderliteError("enabled_backends must name one group or several, each once")
    try:
        conf.guests.agent_socket.format(directory="", name="", id="")
    except (LookupError, ValueError) as error:
        raise errors.CinderliteError("agent_socket may name {directory}, {name} and {id} only") from error
    for name in conf.enabled_backends:
        conf.register_opts(BACKEND, name)
    _refuse_open_files(conf)
    return conf


def _refuse_open_files(conf: cfg.ConfigOpts) -> None:
    """Refuse files with secrets that others may read; what reads the key file and the users' looks at them itself."""
    named = {"[guests] qmp_tls_key": conf.guests.qmp_tls_key}
    for group in ("glance", "keystone_authtoken"):
        # Without a file of its own the key is in that of the certificate.
        name = "keyfile" if conf[group].keyfile else "certfile"
        named[f"[{group}] {name}"] = conf[group][name]
    for option, path in named.items():
        if path:
            private.refuse_open(pathlib.Path(path), f"the key that {option} names")
    for place in map(pathlib.Path, (*conf.config_file, *conf.config_dir)):
        for file in sorted(place.glob("*.conf")) if place.is_dir() else [place]:
            if private.is_open(file) and _SECRET.search(file.read_text(encoding="utf-8")):
                private.refuse_open(file, "passwords")


def logs_in(conf: cfg.ConfigOpts) -> bool:
    """Whether it is said how the service logs in at Keystone, without which that can be asked nothing."""
    loading.register_auth_conf_options(conf, "keystone_authtoken")
    return bool(conf.keystone_authtoken.auth_type or conf.keystone_authtoken.auth_section)


def database_url(conf: cfg.ConfigOpts) -> str:
    """The database to use: the configured one, or the embedded one in state_path."""
    return conf.database.connection or f"sqlite:///{pathlib.Path(conf.state_path) / 'cinderlite.sqlite'}"
