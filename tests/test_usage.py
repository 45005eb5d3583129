"""What the jobs took, from Snakemake's benchmark files."""

import pandas as pd
import pytest

from sgdphases.devices import check_accelerator
from sgdphases.planning import write_note
from sgdphases.usage import collect_usage, summarise_usage, write_usage_page

HEADER = (
    "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"
    "{seconds}\t0:00:01\t{memory}\t1\t1\t1\t0\t0\t1\t{cpu}\n"
)


def measured(results, path, seconds, memory="100.5", cpu="18"):
    file = results / "benchmarks" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(HEADER.format(seconds=seconds, memory=memory, cpu=cpu))


def test_hours_of_devices_are_those_of_the_note(tmp_path):
    shard = "0123456789ab"
    measured(tmp_path, f"l2/fc_sgd/training_{shard}.tsv", 7200, memory="2048")
    measured(tmp_path, "l2/fc_sgd/training_ba9876543210.tsv", 3600)  # without a note
    measured(tmp_path, "datasets/mnist.tsv", 36, memory="-", cpu="-")  # over before it was measured
    folder = tmp_path / f"experiments/l2/fc_sgd/training_shards/{shard}"
    write_note(folder, {}, "v", {"device": "NVIDIA H100", "num_devices": 4})
    usage = collect_usage(tmp_path).set_index("job")
    assert usage.loc[f"training_{shard}", "device"] == "NVIDIA H100"
    assert usage["device_hours"].to_dict()[f"training_{shard}"] == 8.0
    assert usage["hours"].sum() == pytest.approx(3.01)
    assert usage.loc["mnist", "stage"] == "dataset"

    summary = summarise_usage(usage.reset_index())
    assert summary.iloc[-1][["subject", "jobs", "device_hours"]].to_list() == ["all", 3, 8.0]
    assert summary.iloc[-1]["max_memory_mib"] == 2048
    write_usage_page(usage.reset_index(), tmp_path / "usage.html")
    assert "NVIDIA H100" in (tmp_path / "usage.html").read_text(encoding="utf-8")


def test_devices_of_jobs_without_a_note_are_those_of_their_logs(tmp_path, caplog):
    for path in ("diffusion/mnist1m/shard_3", "temperature/tuning/tuning", "l2/ridge/theory"):
        measured(tmp_path, f"{path}.tsv", 1800)
    log = tmp_path / "logs/diffusion/mnist1m/shard_3.log"
    log.parent.mkdir(parents=True)
    log.write_text("waiting for 2 of the GPUs 0, 1\ncomputing on 2 x NVIDIA H100 80GB HBM3 (gpu)\n")
    with caplog.at_level("INFO", "sgdphases"):
        check_accelerator("auto")
    log = tmp_path / "logs/temperature/tuning/tuning.log"
    log.parent.mkdir(parents=True)
    log.write_text(f"{caplog.messages[-1]}\nstep 1\n")
    usage = collect_usage(tmp_path).set_index("job")
    assert usage["device_hours"].to_dict() == {"shard_3": 1.0, "tuning": 0.0, "theory": 0.0}
    assert usage["device"].fillna("").to_dict() == {
        "shard_3": "NVIDIA H100 80GB HBM3",
        "tuning": "cpu",
        "theory": "",
    }


def test_without_benchmarks_there_is_an_empty_table(tmp_path):
    usage = collect_usage(tmp_path)
    assert usage.empty
    write_usage_page(usage, tmp_path / "usage.html")
    usage.to_parquet(tmp_path / "usage.parquet")
    assert "device_hours" in pd.read_parquet(tmp_path / "usage.parquet")
