"""Ray: started or connected, its nodes checked, trials packed onto them, jobs submitted."""

from typing import Literal

Kind = Literal["slurm", "kuberay", "ray-up"]
"""The kinds of cluster manifests; `manifests/` has a template of each."""
