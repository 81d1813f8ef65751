# The reproduction as one DAG: `snakemake --cores all`. Rules connect steps; the `metatuner` command does the work.
from snakemake.utils import min_version

min_version("9.20")


configfile: "config/default.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/world.smk"
include: "workflow/rules/cells.smk"
include: "workflow/rules/results.smk"
include: "workflow/rules/tuning.smk"


rule all:
    default_target: True
    input:
        RESULTS,
        COLLECTED,
        VERDICT,
