"""What is searched and where it runs: spec, space, search, results tables, commands.

    spec = study.check({"name": "mine", "workload": {"data": "digits", "model": "mlp"}, ...})  # or study.read("quick")
    outcome = study.run(spec)                                                                # as `study run` does
    results = analysis.load(outcome.folder)

`__init__.pyi` lists the public names. Each is imported when first used, so that `study --help` loads neither torch nor
Ray.
"""

import logging
import warnings

import lazy_loader

# Optuna's tqdm and Ray ask for ipywidgets when they are imported in a notebook; our progress does not need it.
warnings.filterwarnings("ignore", "IProgress not found")
logging.getLogger("ray.widgets.util").setLevel(logging.ERROR)

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
