# Fits and evaluations, a pack of them a job. A pack's file lists its keys; what is complete lies in fits/ and cells/ and is
# never computed twice. `retry` changes after a failure, so that failed keys are tried again.

rule warmup:
    # What other methods build on (fits of internal methods); they come first.
    input:
        BENCH.model_marks,
        lambda wildcards: BENCH.fit_inputs(wildcards.pack),
    output:
        L.pack("warmup", "{pack}"),
    params:
        config=CONFIG,
        cells=lambda wildcards: BENCH.fit_keys(wildcards.pack),
        retry=lambda wildcards: BENCH.retry("warmup", wildcards.pack),
    log:
        usage_log("warmup", "{pack}"),
    conda:
        "../../envs/metatuner.yaml"
    priority: 50
    shell:
        "metatuner fit --config {params.config:q} --pack {wildcards.pack} --log {log:q}"


rule fit:
    input:
        BENCH.model_marks,
        lambda wildcards: BENCH.fit_inputs(wildcards.pack),
    output:
        L.pack("fit", "{pack}"),
    params:
        config=CONFIG,
        cells=lambda wildcards: BENCH.fit_keys(wildcards.pack),
        retry=lambda wildcards: BENCH.retry("fit", wildcards.pack),
    log:
        usage_log("fit", "{pack}"),
    conda:
        "../../envs/metatuner.yaml"
    priority: 20
    shell:
        "metatuner fit --config {params.config:q} --pack {wildcards.pack} --log {log:q}"


rule evaluate:
    input:
        BENCH.model_marks,
        lambda wildcards: BENCH.evaluate_inputs(wildcards.pack),
    output:
        L.pack("evaluate", "{pack}"),
    params:
        config=CONFIG,
        cells=lambda wildcards: BENCH.evaluate_keys(wildcards.pack),
        retry=lambda wildcards: BENCH.retry("evaluate", wildcards.pack),
    log:
        usage_log("evaluate", "{pack}"),
    conda:
        "../../envs/metatuner.yaml"
    priority: 10
    shell:
        "metatuner evaluate --config {params.config:q} --pack {wildcards.pack} --log {log:q}"
