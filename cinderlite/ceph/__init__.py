# SPDX-License-Identifier: Apache-2.0
"""The storage cluster: the only place that imports librados and librbd.

`cluster.Cluster` is what the rest of the program uses; `images` holds the steps it runs. Nothing here knows volumes,
projects or states. What a newcomer gets wrong first: importing `rados` or `rbd` at the top of a module. They come with
the distribution, not from PyPI, so everything else, and every test on fakes, has to run without them.
"""
