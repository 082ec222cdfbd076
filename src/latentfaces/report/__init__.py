"""HTML reports of runs and sweeps."""

from latentfaces.report.run_page import write_report
from latentfaces.report.sweep_page import write_sweep_report

__all__ = ["write_report", "write_sweep_report"]
