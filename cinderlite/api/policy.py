# SPDX-License-Identifier: Apache-2.0
"""Who may do what: oslo.policy with Cinder's and Nova's rule names and the defaults of the newer role model.

The rules that operations and fields name must stand here (refused at start-up otherwise), so that the generated
sample and the enforcement cannot differ. An operator's `policy.yaml` overrides them by name, as everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from oslo_config import cfg
from oslo_policy import policy

from cinderlite.api.rules import RULES
from cinderlite.context import Context

#: Seconds for which a decision is kept. A request asks for several, the same caller asks again, and each time
#: oslo.policy looks at the operator's files. A change of those is seen this much later.
_KEPT = 1.0


def list_rules() -> list[policy.RuleDefault]:
    """Every rule with its default, for enforcement and for the generated sample."""
    return RULES


def get_enforcer() -> policy.Enforcer:
    """An enforcer for oslo.policy's command-line tools, from the default configuration files."""
    conf = cfg.ConfigOpts()
    conf([], project="cinderlite")
    enforcer = policy.Enforcer(conf)
    enforcer.register_defaults(RULES)
    return enforcer


class Policy:
    """The rules in force."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._enforcer = policy.Enforcer(conf)
        self._enforcer.suppress_default_change_warnings = True
        self._enforcer.suppress_deprecation_warnings = True
        self._enforcer.register_defaults(RULES)
        self._enforcer.load_rules()
        self._decisions: tuple[float, dict[Any, bool]] = (0.0, {})

    def refuse_unknown(self, names: Iterable[str]) -> None:
        """Raise ValueError if an operation or field names a rule that has no default here."""
        missing = sorted(set(names) - {rule.name for rule in RULES})
        if missing:
            raise ValueError(f"no default for the policy rules {missing}")

    def is_admin(self, roles: frozenset[str]) -> bool:
        """Whether somebody with these roles is an administrator."""
        return self._decide("context_is_admin", (), (("roles", roles),))

    def allows(self, ctx: Context, rule: str, target: Any) -> bool:
        """Whether the caller may do `rule` to `target`, any object with project_id and user_id."""
        return self._decide(
            rule,
            (
                ("project_id", getattr(target, "project_id", ctx.project_id)),
                ("user_id", getattr(target, "user_id", ctx.user_id)),
            ),
            (
                ("user_id", ctx.user_id),
                ("project_id", ctx.project_id),
                ("roles", ctx.roles),
                ("service_roles", ctx.service_roles),
                ("is_admin", ctx.is_admin),
            ),
        )

    def _decide(self, *asked: Any) -> bool:
        until, kept = self._decisions
        if time.monotonic() > until:
            kept = {}
            self._decisions = time.monotonic() + _KEPT, kept
        decision = kept.get(asked)
        if decision is None:
            rule, target, caller = asked
            credentials = {key: list(value) if isinstance(value, frozenset) else value for key, value in caller}
            decision = kept[asked] = bool(self._enforcer.enforce(rule, dict(target), credentials))
        return decision
