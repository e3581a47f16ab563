"""Studies of real tables against scikit-learn's networks, on the same splits."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier, MLPRegressor

import analysis
from study import run
from study.spec import Spec, check
from study.spec.model import part
from trainables.config import Reading
from trainables.workloads import data

SEEDS = 5


def spec_of(name: str, folder: Path) -> Spec:
    """A study of one of scikit-learn's tables, as CSV."""
    getattr(sklearn.datasets, f"load_{name}")(as_frame=True).frame.to_csv(folder / f"{name}.csv", index=False)
    tables: dict[str, Any] = {
        "name": name,
        "workload": {"data": f"{name}.csv", "label": "target", "model": "mlp"},
        "search": {"width": [16, 64], "depth": [1, 2], "batch_size": 32, "optimizer": ["momentum", "adam"]},
        "lanes": {"rates": 5, "seeds": 3},
        "budget": {"trials": 8, "epochs": 30},
        "tuning": {"sampler": "grid"},
        "confirm": {"top": 1, "seeds": SEEDS},
    }
    return check(tables, name, folder)


def peers(spec: Spec) -> list[float]:
    """Test scores of scikit-learn's network with 100 hidden units at its defaults, with standardised data."""
    workload = spec.workload
    loaded = data.load(workload.data, standardize=True, code=workload.code, reading=part(workload, Reading))
    (x, y), (seen, true) = (
        (split.inputs.numpy(), split.targets.numpy().squeeze()) for split in (loaded.train, loaded.test)
    )
    scores = []
    for seed in range(SEEDS):
        kind = MLPClassifier if workload.metric == "accuracy" else MLPRegressor
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            predicted = kind(random_state=seed, max_iter=200).fit(x, y).predict(seen)
        right = predicted == true if workload.metric == "accuracy" else np.square(predicted - true)
        scores.append(float(np.mean(right)))
    return scores


@pytest.mark.nightly
@pytest.mark.usefixtures("one_worker")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["wine", "breast_cancer", "diabetes", "digits"])
def test_a_study_of_a_table_reaches_scikit_learns_network(name: str, tmp_path: Path) -> None:
    spec = spec_of(name, tmp_path)
    outcome = run(spec, tmp_path / "results", show="quiet")
    results = analysis.load(outcome.folder)
    best = analysis.compare(results, analysis.cells(results)).scored[0]
    theirs, metric, facts = float(np.mean(peers(spec))), spec.workload.metric, spec.workload.facts
    ours, low, high = best.score.estimate, best.score.low, best.score.high
    print(
        f"| {name} | {facts.train} / {facts.validation} / {facts.test} | {metric} | {facts.baselines[metric]:.3f} | "
        f"{ours:.3f} [{low:.3f}, {high:.3f}] ({best.name}) | {theirs:.3f} |"
    )
    assert len(results.trials) == spec.budget.trials
    # The interval covers seeds and test examples, of which there are as few as 27.
    assert (theirs <= high) if metric == "accuracy" else (theirs >= low)
    assert (low > facts.baselines[metric]) if metric == "accuracy" else (high < facts.baselines[metric])
