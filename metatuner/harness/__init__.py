"""What all methods share: config, benchmarks, lab, policies, budget, cells, evaluation."""
