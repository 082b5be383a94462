# SPDX-License-Identifier: Apache-2.0
"""Random sequences of requests, writes and deaths, compared after each step with what must be there.

A few fixed ones each time. To look for more: `MODEL_EXAMPLES=2000 pytest -x tests/model`, other ones each time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
from hypothesis.stateful import run_state_machine_as_test

from conftest import Client
from lab.ceph import Ceph
from model.machine import Machine
from model.stage import CONF, RealStage, Stage
from model.unattended import Unattended

LONG = "MODEL_EXAMPLES" in os.environ

pytestmark = [pytest.mark.timeout(0)] if LONG else []
plain = pytest.mark.parametrize("conf", [CONF], indirect=True)
both = pytest.mark.parametrize(
    "conf", [CONF, CONF | {"snapshots_outlive_volumes": True}], ids=["plain", "outlived"], indirect=True
)


@pytest.fixture
def parts(
    application: Any, conf: Any, databases: Any, database: Any, client: Client, stranger: Client, admin: Client
) -> tuple[Any, ...]:
    """What both stages are made of."""
    return application, conf, databases, database, (client, stranger), admin


@pytest.fixture
def real_stage(ceph: Ceph, parts: tuple[Any, ...]) -> Iterator[RealStage]:
    ceph.empty()
    made = RealStage(ceph, *parts)
    yield made
    made.end()
    ceph.empty()


def play(machine: type[Machine | Unattended], on: Stage, examples: int, steps: int) -> None:
    machine.stage = on
    # On Ceph, and with more than a few steps, it takes longer than to read what happened.
    shrinking = () if isinstance(on, RealStage) or LONG else (hypothesis.Phase.shrink,)
    settings = hypothesis.settings(
        max_examples=int(os.environ.get("MODEL_EXAMPLES", examples)), stateful_step_count=steps, deadline=None,
        database=None, derandomize=not LONG, suppress_health_check=list(hypothesis.HealthCheck),
        phases=(hypothesis.Phase.generate, *shrinking),
    )  # fmt: skip
    run_state_machine_as_test(machine, settings=settings)


@both
def test_sequences(parts: tuple[Any, ...]) -> None:
    play(Machine, Stage(*parts), 4, 25)


@plain
def test_nobody_takes_up_what_died(parts: tuple[Any, ...]) -> None:
    play(Unattended, Stage(*parts), 4, 25)


@plain
@pytest.mark.real
def test_sequences_on_ceph(real_stage: RealStage) -> None:
    play(Machine, real_stage, 4, 16)
