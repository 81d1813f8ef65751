# From cells to scores, tables and figures. `tables` and `figures` redraw from existing files, whatever else changed.


rule scores:
    input:
        BENCH.plan.packs.files,
    output:
        scores=L.scores,
        settings=L.settings,
        methods=L.methods,
        searches=L.searches,
        queries=L.query_scores,
        digests=L.digests,
    log:
        usage_log("results", "scores"),
    group:
        "results"
    conda:
        "../../envs/metatuner.yaml"
    params:
        config=CONFIG,
        key=BENCH.scores_key,
        retry=BENCH.retry("results", "scores"),  # also if config.json is not this config
    shell:
        "metatuner scores --config {params.config:q} --attempt={params.retry:q} --log {log:q}"


# One target per table and per figure, by its name: `snakemake table_3`.
for name in BENCH.tables:

    rule:
        name:
            name
        input:
            BENCH.table_inputs(name),
        output:
            csv=L.table(name, "csv"),
            md=report(L.table(name, "md"), caption="../captions/table.rst", category="Tables"),
            tex=L.table(name, "tex"),
            json=L.table(name, "json"),
        log:
            usage_log("results", name),
        group:
            "results"
        conda:
            "../../envs/metatuner.yaml"
        params:
            config=CONFIG,
            name=name,
            key=BENCH.tables_key,
        shell:
            "metatuner table --config {params.config:q} --name {params.name} --log {log:q}"


for name in BENCH.figures:

    rule:
        name:
            name
        input:
            L.scores,
        output:
            png=report(L.figure(name, "png"), caption="../captions/figure.rst", category="Figures"),
            pdf=L.figure(name, "pdf"),
        log:
            usage_log("results", name),
        group:
            "results"
        conda:
            "../../envs/metatuner.yaml"
        params:
            config=CONFIG,
            name=name,
            key=BENCH.figures_key,
        shell:
            "metatuner figure --config {params.config:q} --name {params.name} --log {log:q}"


if BENCH.draws_framework:

    rule figure_2:
        # Drawn from the config, not measured.
        output:
            png=report(L.figure("figure_2", "png"), caption="../captions/figure_2.rst", category="Figures"),
            pdf=L.figure("figure_2", "pdf"),
        log:
            usage_log("results", "figure_2"),
        group:
            "results"
        conda:
            "../../envs/metatuner.yaml"
        params:
            config=CONFIG,
            key=BENCH.framework_key,
        shell:
            "metatuner figure --config {params.config:q} --name figure_2 --log {log:q}"


if BENCH.timings:

    rule efficiency:
        # Times on this machine, as ratios within one process. Only Table 5, a claim and the report depend on them.
        input:
            BENCH.model_marks,
            BENCH.efficiency_inputs,
        output:
            L.efficiency,
        log:
            usage_log("results", "efficiency"),
        priority: 15
        group:
            "results"
        conda:
            "../../envs/metatuner.yaml"
        resources:
            **MEMORY["efficiency"],
            gpu=1,  # counts only if it is limited: --resources gpu=1
        params:
            config=CONFIG,
            key=BENCH.efficiency_key,
        shell:
            "metatuner efficiency --config {params.config:q} --log {log:q}"


rule claims:
    input:
        scores=L.scores,
        searches=L.searches,
        efficiency=BENCH.timings,
    output:
        csv=L.claims("csv"),
        parts=L.claims("parts.csv"),
        md=report(L.claims("md"), caption="../captions/claims.rst", category="Claims"),
    log:
        usage_log("results", "claims"),
    group:
        "results"
    conda:
        "../../envs/metatuner.yaml"
    params:
        config=CONFIG,
        key=BENCH.claims_key,
    shell:
        "metatuner claims --config {params.config:q} --log {log:q}"


rule html_report:
    # One file with the results; `snakemake --report` makes another one, on how the run went.
    input:
        BENCH.report_inputs,
    output:
        L.report,
    log:
        usage_log("results", "report"),
    group:
        "results"
    conda:
        "../../envs/metatuner.yaml"
    params:
        config=CONFIG,
        key=BENCH.report_key,
    shell:
        "metatuner report --config {params.config:q} --log {log:q}"


rule provenance:
    input:
        L.scores,
    output:
        L.provenance,
    log:
        usage_log("results", "provenance"),
    group:
        "results"
    conda:
        "../../envs/metatuner.yaml"
    params:
        config=CONFIG,
        key=BENCH.scores_key,
    shell:
        "metatuner provenance --config {params.config:q} --log {log:q}"


rule verdict:
    # Runs last, after everything that can be made from the existing cells. Fails if any cell failed, and names it.
    # On a cluster it runs where Snakemake does: a failure in a group would remove the group's files.
    input:
        RESULTS,
    output:
        L.verdict,
    log:
        usage_log("results", "verdict"),
    localrule: True
    conda:
        "../../envs/metatuner.yaml"
    params:
        config=CONFIG,
    shell:
        "metatuner verdict --config {params.config:q} --log {log:q}"


rule tables:
    log:
        usage_log("results", "tables"),
    conda:
        "../../envs/metatuner.yaml"
    # No input: it reads the existing scores.csv and cells.
    params:
        config=CONFIG,
    shell:
        "metatuner table --config {params.config:q} --name all --log {log:q}"


rule figures:
    log:
        usage_log("results", "figures"),
    conda:
        "../../envs/metatuner.yaml"
    params:
        config=CONFIG,
    shell:
        "metatuner figure --config {params.config:q} --name all --log {log:q}"
