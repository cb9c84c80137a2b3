"""Optimizer parameter groups: which parameter decays, which is frozen, at which learning rate."""

from fastclip.groups.build import param_groups
from fastclip.groups.report import ParamGroups

__all__ = ["ParamGroups", "param_groups"]
