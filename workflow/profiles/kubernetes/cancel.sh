#!/usr/bin/env bash
# cancel.sh JOB...: stops Jobs and removes them.
set -euo pipefail
kubectl delete --wait=false "$@"
