# results/figures/<paper>/<figure>: the picture, and the plotted numbers beside it.


rule figure:
    input:
        lambda wildcards: experiment_tables(feeding_experiment(wildcards)),
    output:
        svg=report(
            f"{RESULTS}/figures/{{paper}}/{{figure}}.svg",
            caption="../report/figure.rst",
            category="Figures, {paper}",
            labels={"figure": "{figure}"},
        ),
        png=f"{RESULTS}/figures/{{paper}}/{{figure}}.png",
        numbers=f"{RESULTS}/figures/{{paper}}/{{figure}}.parquet",
    log:
        f"{LOGS}/{{paper}}/figures/{{figure}}.log",
    wildcard_constraints:
        paper=none_of([SAMPLE_SHEET], "[a-z0-9]+"),
    conda:
        "../../environment.yml"
    params:
        caption=figure_caption,
        experiment=feeding_experiment,
        module=figure_module,
        fingerprint=lambda wildcards: stage_fingerprint(
            "figures.draw", f"figures.{figure_module(wildcards)}"
        ),
    script:
        "../scripts/draw_figure.py"
