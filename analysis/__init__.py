"""From a results folder to statistics, figures and a report.

    results = analysis.load("results/quick")
    table = analysis.cells(results)                                       # one row per cell, with intervals
    analysis.loss_by_regime(analysis.regime_curves(results, table), axes)  # compute, then draw
    analysis.write_report("results/quick")

Functions of `results` and `table` take a study and its `cells`; those of `data` and `ax` draw what the function that
they name has computed. `__init__.pyi` lists the public names. Each is imported when first used, so that
`import analysis` stays fast.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
