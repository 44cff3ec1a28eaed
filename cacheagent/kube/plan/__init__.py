"""The controller's decisions: `plan(world, now)`, a pure function of small rules."""

from cacheagent.kube.plan.changes import Change, Note, Unused
from cacheagent.kube.plan.planning import Plan, plan
from cacheagent.kube.plan.world import Memory, PlanSettings, World

__all__ = ["Change", "Memory", "Note", "Plan", "PlanSettings", "Unused", "World", "plan"]
