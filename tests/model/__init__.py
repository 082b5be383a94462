# SPDX-License-Identifier: Apache-2.0
"""Random sequences of what can happen to the service, and what must come of them."""
