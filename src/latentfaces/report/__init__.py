"""HTML reports of runs and sweeps."""

from latentfaces.report.page import format_number
from latentfaces.report.run_page import write_report
from latentfaces.report.sweep_page import write_sweep_report

__all__ = ["format_number", "write_report", "write_sweep_report"]
