# SPDX-License-Identifier: Apache-2.0
"""What `core` expects of its two worlds, tried on the fakes and on the real ones."""
