# SPDX-License-Identifier: Apache-2.0
"""Images of a Glance: talking to it (`glance`), and what is in their files (`formats`).

The only place that imports openstacksdk, and late: a service without a Glance never pays for it.
"""

from __future__ import annotations

import dataclasses

from cinderlite.images.formats import Converter
from cinderlite.images.glance import Glance, Image, Location

__all__ = ["Converter", "Glance", "Image", "Images", "Location"]


@dataclasses.dataclass(frozen=True, slots=True)
class Images:
    """The image service, how its files are converted, and how often a copy is tried again when it does not answer."""

    glance: Glance
    converter: Converter
    tries: int
    #: Whether `force` makes an image also of a volume in use.
    force_upload: bool = True
