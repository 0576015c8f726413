"""Run page: one HTML file about one or more training runs, that loads nothing from elsewhere."""

from attnwatch.report.run.page import run_page, write_run_page

__all__ = ["run_page", "write_run_page"]
