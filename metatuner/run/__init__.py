"""Jobs: fits, evaluations, searches and timings on real models, each within its limits."""
