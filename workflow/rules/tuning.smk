# Not part of `all`. `snakemake --cores all tune` searches settings on the tune split and stores the winners in the
# preset's file `tuning.winners`.


rule tune_warmup:
    input:
        BENCH.model_marks,
        lambda wildcards: BENCH.split_files(wildcards.benchmark, "pool"),
    output:
        L.pack("tune", "{benchmark}"),
    log:
        usage_log("tune", "warmup-{benchmark}"),
    conda:
        "../../envs/metatuner.yaml"
    resources:
        **MEMORY["tune_warmup"],
        gpu=1,  # counts only if it is limited: --resources gpu=1
    params:
        config=CONFIG,
        key=lambda wildcards: BENCH.tuning_needs(wildcards.benchmark),
    shell:
        "metatuner tune-warmup --config {params.config:q} --benchmark {wildcards.benchmark} --log {log:q}"


rule tune_one:
    input:
        BENCH.model_marks,
        lambda wildcards: BENCH.tune_inputs(wildcards.method, wildcards.benchmark),
    output:
        L.tune("{method}", "{benchmark}"),
    log:
        usage_log("tune", "{method}-{benchmark}"),
    conda:
        "../../envs/metatuner.yaml"
    resources:
        **MEMORY["tune_one"],
        gpu=1,  # counts only if it is limited: --resources gpu=1
    params:
        config=CONFIG,
        key=lambda wildcards: BENCH.plan.settings.winner_key(wildcards.method, wildcards.benchmark),
    shell:
        "metatuner tune --config {params.config:q} --method {wildcards.method} --benchmark {wildcards.benchmark} --log {log:q}"


rule figure_budget:
    # Score against compute, from the trials; preset nano_budget searches for it.
    input:
        BENCH.tune_files,
    output:
        png=L.figure("figure_budget", "png"),
        pdf=L.figure("figure_budget", "pdf"),
        csv=L.figure("figure_budget", "csv"),
    log:
        usage_log("results", "figure_budget"),
    conda:
        "../../envs/metatuner.yaml"
    params:
        config=CONFIG,
        key=BENCH.figures_key,
    shell:
        "metatuner figure --config {params.config:q} --name figure_budget --log {log:q}"


rule tune:
    input:
        BENCH.tune_files,
    log:
        usage_log("tune", "winners"),
    conda:
        "../../envs/metatuner.yaml"
    params:
        config=CONFIG,
    shell:
        "metatuner winners --config {params.config:q} --log {log:q}"
