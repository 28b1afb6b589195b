"""Write report.html: one run, or several side by side, in one file that opens offline."""

from growlm.reporting.html.report_writer import Report, read_report, write_page, write_report

__all__ = ["Report", "read_report", "write_page", "write_report"]
