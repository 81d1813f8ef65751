"""Benchmarks as lm-eval tasks: `metatuner_<id>.yaml` names one, `_rows.yaml` holds what all share."""
