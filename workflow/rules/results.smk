# From cells to scores, tables and figures. `tables` and `figures` redraw from the files at hand, whatever else changed.

rule scores:
    input:
        BENCH.pack_files,
    output:
        scores=L.scores,
        settings=L.settings,
    params:
        config=CONFIG,
        key=BENCH.scores_key,
    log:
        usage_log("results", "scores"),
    conda:
        "../../envs/metatuner.yaml"
    shell:
        "metatuner scores --config {params.config:q} --log {log:q}"


rule table_1:
    input:
        L.scores,
    output:
        csv=L.table("table_1", "csv"),
        md=report(L.table("table_1", "md"), caption="../captions/table_1.rst", category="Tables"),
        tex=L.table("table_1", "tex"),
    params:
        config=CONFIG,
        key=BENCH.analysis_key,
    log:
        usage_log("results", "table_1"),
    conda:
        "../../envs/metatuner.yaml"
    shell:
        "metatuner table --config {params.config:q} --name table_1 --log {log:q}"


rule figure_main:
    input:
        L.scores,
    output:
        png=report(L.figure("figure_main", "png"), caption="../captions/figure_main.rst", category="Figures"),
        pdf=L.figure("figure_main", "pdf"),
    params:
        config=CONFIG,
        key=BENCH.analysis_key,
    log:
        usage_log("results", "figure_main"),
    conda:
        "../../envs/metatuner.yaml"
    shell:
        "metatuner figure --config {params.config:q} --name figure_main --log {log:q}"


rule provenance:
    input:
        L.scores,
    output:
        L.provenance,
    params:
        config=CONFIG,
        key=BENCH.scores_key,
    log:
        usage_log("results", "provenance"),
    conda:
        "../../envs/metatuner.yaml"
    shell:
        "metatuner provenance --config {params.config:q} --log {log:q}"


rule verdict:
    # Last, after everything that can be made of the cells at hand: fails if any cell failed, and names it.
    input:
        RESULTS,
    output:
        L.verdict,
    params:
        config=CONFIG,
    log:
        usage_log("results", "verdict"),
    conda:
        "../../envs/metatuner.yaml"
    shell:
        "metatuner verdict --config {params.config:q} --log {log:q}"


rule tables:
    # No input: it reads scores.csv and cells as they are.
    params:
        config=CONFIG,
    log:
        usage_log("results", "tables"),
    conda:
        "../../envs/metatuner.yaml"
    shell:
        "metatuner table --config {params.config:q} --name all --log {log:q}"


rule figures:
    params:
        config=CONFIG,
    log:
        usage_log("results", "figures"),
    conda:
        "../../envs/metatuner.yaml"
    shell:
        "metatuner figure --config {params.config:q} --name all --log {log:q}"
