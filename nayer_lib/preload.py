"""What a run imports, for the process that runs of a sweep are forked off: no other file imports this one."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch and BLAS are there: a process that forks has no other thread

try:
    import seaborn  # noqa: F401  for the picture of a run's images
    import sklearn.datasets  # noqa: F401  for the digits
    import torch._dynamo  # noqa: F401  for the first step of an optimiser

    from . import cli  # noqa: F401
except KeyboardInterrupt:  # Ctrl-C is told by the sweep
    raise SystemExit(130) from None
