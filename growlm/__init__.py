"""growlm grows language models while they train."""

import os

# How long an idle OpenMP thread spins before it sleeps; read when torch is first loaded. The default makes
# training tens of times slower as soon as another process needs a core, and is no faster otherwise.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

__version__ = "0.1.0"
