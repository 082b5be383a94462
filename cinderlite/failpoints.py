# SPDX-License-Identifier: Apache-2.0
"""Named points of every operation, at which a test may end the process to see what the others make of what is left.

`TABLE.VERB:begun`, `:stepped` and `:settled` are after the commit that accepts an operation, and before and after the
one that settles it; `ceph.VERB` and `ceph.VERB:done` before and after each call to Ceph, so between any two of a step;
`qmp.COMMAND` before each command to a QEMU; `libvirt.CALL` before each of libvirt's calls that plug, unplug, or keep
what opens an image.

No option, request or environment variable of the service gets here: only a program that starts the service after it
has set `watch`, as `tests/backends/dying_api.py` does.
"""

from __future__ import annotations

from collections.abc import Callable

#: Told each point as it is passed; None, as ever in production: nobody is.
watch: Callable[[str], None] | None = None
