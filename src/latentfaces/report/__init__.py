"""A run, a sweep or an evaluation as one page: to look at, to send, to keep."""

from latentfaces.report.evaluation_page import write_evaluation_page
from latentfaces.report.run_page import write_report
from latentfaces.report.sweep_page import write_sweep_report

__all__ = ["write_evaluation_page", "write_report", "write_sweep_report"]
