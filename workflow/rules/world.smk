# The ground: nano rows and models where the preset uses them, and the splits of every benchmark.

if BENCH.uses_nano_rows:

    rule world:
        output:
            BENCH.world_files,
        params:
            config=CONFIG,
            key=BENCH.world_key,
        log:
            usage_log("world", "rows"),
        conda:
            "../../envs/metatuner.yaml"
        shell:
            "metatuner world --config {params.config:q} --log {log:q}"

    rule world_report:
        input:
            BENCH.model_marks,
            BENCH.world_files,
        output:
            json=L.root / "world.json",
            markdown=report(L.root / "world.md", caption="../captions/world.rst", category="The nano world"),
        params:
            config=CONFIG,
            key=BENCH.world_report_key,
        log:
            usage_log("world", "report"),
        conda:
            "../../envs/metatuner.yaml"
        priority: 25  # a minute or two in one process: not last, when nothing could run beside it
        shell:
            "metatuner world-report --config {params.config:q} --log {log:q}"


rule pretrain:
    # The folder's name holds the key of all that the model depends on, and the parameters are the world's alone, so a
    # model is trained once for all presets.
    output:
        str(L.cache / "models" / "{role}-{key}" / "pretraining.json"),
    params:
        world=BENCH.world_words,
    log:
        str(L.cache / "logs" / "pretrain-{role}-{key}.log"),
    conda:
        "../../envs/metatuner.yaml"
    priority: 100
    shell:
        "metatuner pretrain {params.world:q} --role {wildcards.role} --log {log:q}"


rule data:
    input:
        lambda wildcards: BENCH.data_inputs(wildcards.benchmark),
    output:
        pool=L.data("{benchmark}") / "pool.jsonl",
        tune=L.data("{benchmark}") / "tune.jsonl",
        test=L.data("{benchmark}") / "test.jsonl",
        splits=L.data("{benchmark}") / "splits.json",
        key=L.data("{benchmark}") / "key.txt",
    params:
        config=CONFIG,
        key=lambda wildcards: BENCH.plan.data_key(wildcards.benchmark),
    log:
        usage_log("data", "{benchmark}"),
    conda:
        "../../envs/metatuner.yaml"
    priority: 90
    shell:
        "metatuner data --config {params.config:q} --benchmark {wildcards.benchmark} --log {log:q}"
