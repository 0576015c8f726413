"""Run page: one self-contained HTML file about one or more training runs."""

from attnwatch.report.run.page import run_page, write_run_page

__all__ = ["run_page", "write_run_page"]
