"""NAYER kit: data-free knowledge distillation with noisy layers, taught and reproduced.

The files read in the order of the paper: text, generator, classifiers, losses, memory, methods, distill, runs, report.
Nothing happens at import: no download, no global seed, no heavy library.
"""

__version__ = "0.1.0"
