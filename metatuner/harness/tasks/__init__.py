"""Benchmarks as lm-eval tasks: `metatuner_<id>.yaml` defines one, `_rows.yaml` holds what all share."""
