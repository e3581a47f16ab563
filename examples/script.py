"""A study from a plain script: search, comparison, and the best network as a torch module."""

import torch

import analysis
import study

spec = study.read("own_csv.toml", {"name": "from-a-script", "budget": {"trials": 4, "epochs": 10}})
outcome = study.run(spec)

results = analysis.load(outcome.folder)
for entry in analysis.compare(results, analysis.cells(results)).entries:
    score = entry.score  # on fresh seeds
    print(entry.name, f"{score.estimate:.3f} [{score.low:.3f}, {score.high:.3f}]" if score else entry.reason)

network = study.model(outcome.folder)  # takes raw inputs: centimetres, in the order of the columns
print(network(torch.tensor([[5.1, 3.5, 1.4, 0.2]])).softmax(1))
