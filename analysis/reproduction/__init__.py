"""The source report's numbers beside ours: from the results of its experiments to verdicts, figures and one page.

`source_report.json` holds what the report prints; all else is computed from results folders by the run that makes the
page. Each experiment has a function that returns its `Section`; `write_page` puts all that have been run on one page.
"""

from analysis.reproduction.page import PARTS, SECTIONS, sections, write_page
from analysis.reproduction.section import TRUTH

__all__ = ["PARTS", "SECTIONS", "TRUTH", "sections", "write_page"]
