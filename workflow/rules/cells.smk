# Fits and evaluations, one pack per job. A pack's file lists its keys. Finished keys are in fits/ and cells/ and never
# computed twice. `retry` changes after a failure, so that failed keys are tried again. Packs that the main experiment
# needs have their own rules, which differ only in priority.

FIRST_FITS = BENCH.first_packs(BENCH.plan.packs.fits)
FIRST_EVALUATIONS = BENCH.first_packs(BENCH.plan.packs.evaluations)


rule warmup:
    # Fits of internal methods. Other methods build on them, so they come first.
    input:
        BENCH.model_marks,
        lambda wildcards: BENCH.fit_inputs(wildcards.pack),
    output:
        L.pack("warmup", "{pack}"),
    log:
        usage_log("warmup", "{pack}"),
    wildcard_constraints:
        pack=FIRST_FITS,
    priority: 50
    group:
        "cells"
    conda:
        "../../envs/metatuner.yaml"
    resources:
        **MEMORY["fit"],
        gpu=1,  # counts only if it is limited: --resources gpu=1
    params:
        config=CONFIG,
        cells=lambda wildcards: BENCH.fit_keys(wildcards.pack),
        retry=lambda wildcards: BENCH.retry("warmup", wildcards.pack),
    shell:
        "metatuner fit --config {params.config:q} --pack {wildcards.pack} --attempt={params.retry:q} --log {log:q}"


use rule warmup as warmup_later with:
    wildcard_constraints:
        pack=rf"(?!(?:{FIRST_FITS})\.)[a-z0-9_]+-[0-9]+",  # followed by .json
    priority: 30


rule fit:
    input:
        BENCH.model_marks,
        lambda wildcards: BENCH.fit_inputs(wildcards.pack),
    output:
        L.pack("fit", "{pack}"),
    log:
        usage_log("fit", "{pack}"),
    wildcard_constraints:
        pack=FIRST_FITS,
    priority: 40
    group:
        "cells"
    conda:
        "../../envs/metatuner.yaml"
    resources:
        **MEMORY["fit"],
        gpu=1,  # counts only if it is limited: --resources gpu=1
    params:
        config=CONFIG,
        cells=lambda wildcards: BENCH.fit_keys(wildcards.pack),
        retry=lambda wildcards: BENCH.retry("fit", wildcards.pack),
    shell:
        "metatuner fit --config {params.config:q} --pack {wildcards.pack} --attempt={params.retry:q} --log {log:q}"


use rule fit as fit_later with:
    wildcard_constraints:
        pack=rf"(?!(?:{FIRST_FITS})\.)[a-z0-9_]+-[0-9]+",  # followed by .json
    priority: 20


rule evaluate:
    input:
        BENCH.model_marks,
        lambda wildcards: BENCH.evaluate_inputs(wildcards.pack),
    output:
        L.pack("evaluate", "{pack}"),
    log:
        usage_log("evaluate", "{pack}"),
    wildcard_constraints:
        pack=FIRST_EVALUATIONS,
    priority: 35
    group:
        "cells"
    conda:
        "../../envs/metatuner.yaml"
    resources:
        **MEMORY["evaluate"],
        gpu=1,  # counts only if it is limited: --resources gpu=1
    params:
        config=CONFIG,
        cells=lambda wildcards: BENCH.evaluate_keys(wildcards.pack),
        retry=lambda wildcards: BENCH.retry("evaluate", wildcards.pack),
    shell:
        "metatuner evaluate --config {params.config:q} --pack {wildcards.pack} --attempt={params.retry:q} --log {log:q}"


use rule evaluate as evaluate_later with:
    wildcard_constraints:
        pack=rf"(?!(?:{FIRST_EVALUATIONS})\.)[a-z0-9_]+-[0-9]+",  # followed by .json
    priority: 10
