"""All imports of a run, for the process from which a sweep forks its runs: no other file imports this one."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch and BLAS are imported: a process that forks must have one thread

try:
    import sklearn.datasets  # noqa: F401  for the digits
    import torch._dynamo  # noqa: F401  for the first step of an optimiser
    import torchvision.utils  # noqa: F401  for the picture of a run's images

    from . import cli  # noqa: F401
except KeyboardInterrupt:  # the sweep reports Ctrl-C
    raise SystemExit(130) from None
