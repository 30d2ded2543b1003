"""Leave out the test files that need more than the base install."""

from importlib.util import find_spec

NEEDED = {
    "test_counts.py": "torchmetrics",
    "test_heatmaps.py": "matplotlib",
    "test_measures.py": "netcal",
    "test_ood_detectors.py": "torch",
    "test_parametric.py": "netcal",
}
"""Test file -> package that it compares with, or that its module needs."""

collect_ignore = [file for file, package in NEEDED.items() if find_spec(package) is None]
