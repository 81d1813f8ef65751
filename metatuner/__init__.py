"""A reproducibility benchmark harness for MetaTuner (arXiv 2509.24245)."""

__version__ = "0.1.0"
