# The config is resolved and validated, and every target is computed, before any rule is read.
import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PYTHONHASHSEED", "0")  # fixes the order of sets, which libraries write to files
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from metatuner.plan.dag import Dag
from metatuner.errors import UserError
from metatuner.run.clusters import check_slurm, cluster_jobs
from metatuner.run.jobs import memory_of, runs_group, start_server
from metatuner.run.machine import memory_bytes

try:
    BENCH = Dag.from_snakemake(config)
except UserError as error:
    sys.exit(f"metatuner: {error}")

MEMORY = memory_of(BENCH, local=workflow.local_exec)
if workflow.local_exec and "mem_mb" not in workflow.global_resources:
    # No more jobs run side by side than the machine has memory for; a larger one runs alone.
    workflow.register_resource("mem_mb", memory_bytes() // 10**6)


if runs_group(sys.argv):  # no hooks are run there
    start_server(local=True, deployed=bool(workflow.deployment_settings.deployment_method))


onstart:
    # Not run in a dry run, which must not change the config of a live run.
    BENCH.write_config()
    if workflow.executor_plugin.name == "slurm":
        try:
            check_slurm(cluster_jobs(workflow.dag))
        except UserError as error:
            sys.exit(f"metatuner: {error}")
    start_server(local=workflow.local_exec, deployed=bool(workflow.deployment_settings.deployment_method))


L = BENCH.layout
CONFIG = BENCH.config_file
RESULTS = BENCH.result_files
COLLECTED = BENCH.collected_files
VERDICT = L.verdict


wildcard_constraints:
    benchmark="[a-z0-9_]+",
    method="[a-z0-9_.]+",  # or METHOD.VARIANT, if a variant is tuned on its own
    pack="[a-z0-9_]+-[0-9]+",
    role="[a-z0-9_]+",
    key="[0-9a-f]+",


def usage_log(step, name):
    """Where a job's log goes."""
    return f"{L.logs}/{step}/{name}.log"
