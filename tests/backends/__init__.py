# SPDX-License-Identifier: Apache-2.0
"""The real parts that the suite starts by itself."""
