"""What a fit minimises: functions of one flat vector, with hand-derived gradients."""

from __future__ import annotations

from gplvm_xp.objectives.exact import ExactObjective, Group, groups_of

__all__ = ["ExactObjective", "Group", "groups_of"]
