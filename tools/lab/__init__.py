# SPDX-License-Identifier: Apache-2.0
"""A laboratory of real parts: a one-node Ceph, small Linux guests, the packages and the environment they need.

Both `tools/quickstart` and the test suite use it. Only the standard library: it runs before anything is installed.
"""
