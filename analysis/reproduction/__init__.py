"""The source report's numbers beside ours: from the results of its experiments to verdicts, figures and one page.

`source_report.toml` holds the numbers that the report prints, its claims and their rules, and all prose of the page;
everything else is computed from results folders when the page is made.
"""

from analysis.reproduction.page import EXPERIMENTS, sections, write_page

__all__ = ["EXPERIMENTS", "sections", "write_page"]
