"""A reproducibility benchmark harness for MetaTuner (arXiv 2509.24245)."""
