# SPDX-License-Identifier: Apache-2.0
"""How the volumes of a type, and one volume, are encrypted."""

from __future__ import annotations

from cinderlite.context import World
from scenarios import Call

OPERATIONS = [
    "volume/encryption.show",
    "volume/encryption.create",
    "volume/encryption.show_key",
    "volume/encryption.update",
    "volume/encryption.delete",
    "volume/encryption.show_of_volume",
    "volume/encryption.show_key_of_volume",
]


def play(call: Call, world: World) -> None:
    del world
    kind = call("POST", "/v3/types", {"volume_type": {"name": "secret"}})["volume_type"]["id"]
    of_type = f"/v3/types/{kind}/encryption"
    luks = {"provider": "luks", "control_location": "front-end", "cipher": "aes-xts-plain64", "key_size": 128}
    made = call("POST", of_type, {"encryption": luks})["encryption"]
    call("PUT", f"{of_type}/{made['encryption_id']}", {"encryption": {"key_size": 256}})
    call("GET", of_type)
    call("GET", f"{of_type}/cipher")
    volume = call("POST", "/v3/volumes", {"volume": {"size": 1, "volume_type": "secret"}})["volume"]["id"]
    call("GET", f"/v3/volumes/{volume}/encryption")
    call("GET", f"/v3/volumes/{volume}/encryption/cipher")
    unused = call("POST", "/v3/types", {"volume_type": {"name": "unused"}})["volume_type"]["id"]
    made = call("POST", f"/v3/types/{unused}/encryption", {"encryption": luks})["encryption"]
    call("DELETE", f"/v3/types/{unused}/encryption/{made['encryption_id']}")
