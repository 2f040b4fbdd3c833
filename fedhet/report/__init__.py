"""What a run folder shows: a page for one run, a page that compares several, and tables for the terminal.

Nothing here runs or changes a run; reading run folders for other uses is in `runs`.
"""

from __future__ import annotations

from fedhet.report.aggregate_runs import comparison_rows
from fedhet.report.comparison_page import write_comparison
from fedhet.report.errors import ReportError
from fedhet.report.page import write_report
from fedhet.report.terminal import comparison_table, summary_table

__all__ = ["ReportError", "comparison_rows", "comparison_table", "summary_table", "write_comparison", "write_report"]
