"""Gradient and parameter norms as training metrics: reports of one step, and a monitor of a run."""

from fastclip.norms.monitor.monitor import NormMonitor
from fastclip.norms.report import NormReport, grad_norms, param_norms
from fastclip.norms.stats import TensorStats

__all__ = ["NormMonitor", "NormReport", "TensorStats", "grad_norms", "param_norms"]
