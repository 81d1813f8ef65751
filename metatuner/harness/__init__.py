"""What all methods share: benchmarks, models and their answers, lab, policies, budget, registry."""
