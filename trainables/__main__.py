"""`python -m trainables [DEVICE]`: the part of `study bench` that needs torch and numpy alone; prints JSON."""

import json
import sys

from trainables.engines.bench import run

print(json.dumps(run(*sys.argv[1:2]), indent=1))
