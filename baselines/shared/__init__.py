"""Code that several baselines share. Modules that need torch or DSPy are imported within a fit."""
