#!/usr/bin/env bash
# Puts the project itself, and with it the `metatuner` command, into the conda environment. Untested, as is that.
set -euo pipefail
python -m pip install --no-deps -e .
