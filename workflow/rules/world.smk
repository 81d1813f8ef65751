# What all other steps need: nano rows and models if the preset uses them, and the splits of every benchmark.
# Groups are for clusters, where the connected steps of a group are one job. Local runs ignore them.

if BENCH.uses_nano_rows:

    rule world:
        output:
            BENCH.world_files,
        log:
            usage_log("world", "rows"),
        group:
            "prepare"
        conda:
            "../../envs/metatuner.yaml"
        params:
            config=CONFIG,
            key=BENCH.world_key,
            retry=BENCH.retry("world", "rows"),
        shell:
            "metatuner world --config {params.config:q} --attempt={params.retry:q} --log {log:q}"

    rule world_report:
        input:
            BENCH.model_marks,
            BENCH.world_files,
        output:
            json=L.root / "world.json",
            markdown=report(L.root / "world.md", caption="../captions/world.rst", category="The nano world"),
        log:
            usage_log("world", "report"),
        priority: 25  # a minute or two in one process: not last, when nothing could run in parallel
        group:
            "prepare"
        conda:
            "../../envs/metatuner.yaml"
        params:
            config=CONFIG,
            key=BENCH.world_report_key,
        shell:
            "metatuner world-report --config {params.config:q} --log {log:q}"


rule pretrain:
    # The folder's name holds the key of all that the model depends on. The parameters are only those of the world, so a
    # model is trained once for all presets.
    output:
        str(L.cache / "models" / "{role}-{key}" / "pretraining.json"),
    log:
        str(L.cache / "logs" / "pretrain-{role}-{key}.log"),
    priority: 100
    group:
        "prepare"
    conda:
        "../../envs/metatuner.yaml"
    params:
        world=BENCH.world_words,
        retry=lambda wildcards: BENCH.retry("pretrain", f"{wildcards.role}-{wildcards.key}"),
    shell:
        "metatuner pretrain {params.world:q} --role {wildcards.role} --attempt={params.retry:q} --log {log:q}"


rule data:
    input:
        lambda wildcards: BENCH.data_inputs(wildcards.benchmark),
    output:
        pool=L.data("{benchmark}") / "pool.jsonl",
        tune=L.data("{benchmark}") / "tune.jsonl",
        test=L.data("{benchmark}") / "test.jsonl",
        splits=L.data("{benchmark}") / "splits.json",
        digests=L.data("{benchmark}") / "digests.json",
        key=L.data("{benchmark}") / "key.txt",
    log:
        usage_log("data", "{benchmark}"),
    priority: 90
    group:
        "prepare"
    conda:
        "../../envs/metatuner.yaml"
    params:
        config=CONFIG,
        key=lambda wildcards: BENCH.plan.keys.data_key(wildcards.benchmark),
        retry=lambda wildcards: BENCH.retry("data", wildcards.benchmark),
    shell:
        "metatuner data --config {params.config:q} --benchmark {wildcards.benchmark} --attempt={params.retry:q} --log {log:q}"
