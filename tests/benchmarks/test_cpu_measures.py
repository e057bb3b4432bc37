"""Run the CPU measures with toy inputs: all contestants run, and they do the same work."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

from benchmarks.cpu import (
    data_preparation,
    data_scale,
    data_stages,
    merge,
    packing,
    start_up,
)
from benchmarks.cpu.data_preparation_worker import STAGE_OF_FILE
from benchmarks.cpu.sampling import (
    Contestant,
    CouldNotRun,
    Sample,
    run_on_one_thread,
    take_turns,
)
from benchmarks.cpu.stages import OTHER
from benchmarks.record import Case

MEASURES = {
    each.MEASURE: each
    for each in (start_up, data_preparation, data_stages, data_scale, packing, merge)
}
COSTS = ("cpu_seconds", "wall_seconds")


@cache
def measure(name: str) -> tuple[Case, ...]:
    return tuple(MEASURES[name].measure(toy=True))


def select(cases: Iterable[Case], **fields: str) -> list[Case]:
    return [
        case
        for case in cases
        if all(getattr(case, name) == value for name, value in fields.items())
    ]


def check_costs_are_positive(cases: Iterable[Case]) -> None:
    for case in cases:
        for cost in COSTS:
            assert all(sample > 0 for sample in case.measurements[cost].samples), case


def check_same_number_of_samples(cases: Iterable[Case]) -> None:
    assert len({case.num_samples for case in cases}) == 1


def test_help_version_and_a_faulty_recipe_are_compared_with_trl_and_bare_python() -> None:
    cases = measure("start_up")
    measured = select(cases, status="measured")
    check_costs_are_positive(measured)
    check_same_number_of_samples(measured)
    assert [case.reason for case in cases if case.status != "measured"] == [
        "TRL's command line has no option --version"
    ]
    for subject in ("--help", "--version", "recipe with five faults"):
        assert len(select(measured, subject=subject, role="ours")) == 1
        assert len(select(measured, subject=subject, role="limit")) == 1
    refused = select(measured, subject="recipe with five faults", role="ours")[0]
    assert refused.facts["faults_named"] == 5


@pytest.mark.usefixtures("shared_data")
def test_the_shares_of_all_preparation_stages_add_up_to_one() -> None:
    for case in measure("data_stages"):
        shares = {name: each.median for name, each in case.measurements.items() if "_share" in name}
        assert {f"{stage}_share" for stage in (*STAGE_OF_FILE.values(), OTHER)} == set(shares)
        assert sum(shares.values()) == pytest.approx(1)
        assert case.measurements["rate_of_bare_tokenizer"].median > 0
        assert case.facts["same_rows_and_tokens_as_the_tokenizer"]


def test_preparation_is_measured_at_every_size_and_then_found_in_the_cache() -> None:
    cases = measure("data_scale")
    assert [case.facts["rows"] for case in cases] == list(data_scale.TOY_SIZES)
    for case in cases:
        assert case.measurements["second_preparation_seconds"].median > 0
        assert case.measurements["peak_rss_bytes"].median > 0


@pytest.mark.usefixtures("shared_data")
def test_trl_and_lora_sft_prepare_the_same_tokens_and_trl_learns_one_more_newline() -> None:
    cases = measure("data_preparation")
    measured = select(cases, status="measured")
    check_costs_are_positive(measured)
    check_same_number_of_samples(measured)
    assert [case.contestant for case in cases if case.status != "measured"] == ["TRL"]
    for case in measured:
        assert case.measurements["tokens_per_cpu_second"].median > 0
    for case in select(measured, role="ours"):
        assert case.facts["source_rows_kept"] == case.facts["source_rows_read"]
    for case in select(measured, role="peer"):
        assert case.facts["same_rows_and_tokens_as_lora_sft"]
        assert case.facts["labels"].startswith("both learn the same tokens, except the newline")


@pytest.mark.usefixtures("shared_data")
def test_rewritten_history_makes_more_rows_but_as_many_learned_tokens() -> None:
    ours = {case.subject: case.facts for case in select(measure("data_preparation"), role="ours")}
    whole, rewritten = ours["multi-turn chats"], ours["multi-turn chats, history rewritten"]
    assert rewritten["rows"] > whole["rows"]
    assert rewritten["learned_tokens"] == whole["learned_tokens"]


def test_without_the_data_folder_every_case_is_skipped_and_names_the_variable_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LORA_SFT_DATA", str(tmp_path / "missing"))
    cases = list(data_preparation.measure(toy=True))
    assert {case.status for case in cases} == {"skipped"}
    assert {case.reason for case in cases} == {"set LORA_SFT_DATA to the folder with the real data"}
    assert {case.role for case in cases} == {"ours", "peer"}


def test_packing_is_at_most_as_dense_as_the_limit_and_denser_than_padding() -> None:
    cases = measure("packing")
    subjects = {case.subject for case in cases}
    assert len(subjects) == 6
    assert {case.status for case in cases} == {"measured"}
    for subject in subjects:
        ours, trl, padded, least = (
            case.measurements["utilisation"].median for case in select(cases, subject=subject)
        )
        assert 0 < padded < trl <= ours <= least <= 1
    check_costs_are_positive(select(cases, role="ours"))
    check_costs_are_positive(select(cases, contestant="TRL, best fit decreasing"))


def test_lora_sft_and_peft_merge_to_the_same_model() -> None:
    cases = measure("merge")
    assert {case.status for case in cases} == {"measured"}
    check_costs_are_positive(cases)
    check_same_number_of_samples(cases)
    for case in [*select(cases, role="ours"), *select(cases, role="peer")]:
        apart = case.facts["largest_difference_between_outputs"]
        moved = case.facts["largest_difference_from_base"]
        assert moved > 0
        assert apart <= moved / 50
        assert case.facts["tensors_compared"] == 21
        assert case.facts["base_shards"] == 3


def test_a_failing_contestant_gives_a_failed_case_and_the_others_still_run() -> None:
    def fail() -> dict[str, Sample]:
        raise CouldNotRun("it broke")

    contestants = (
        Contestant("broken", "peer", ("a",), fail),
        Contestant("whole", "ours", ("a",), lambda: {"a": Sample({"cpu_seconds": 1.0})}),
    )
    broken, whole = take_turns(contestants, 2)
    assert (broken.status, broken.reason, broken.num_samples) == ("failed", "it broke", 0)
    assert whole.measurements["cpu_seconds"].samples == (1.0, 1.0)


def test_contestants_take_turns() -> None:
    order: list[str] = []

    def make(name: str) -> Contestant:
        def run() -> dict[str, Sample]:
            order.append(name)
            return {"a": Sample({"cpu_seconds": 1.0})}

        return Contestant(name, "peer", ("a",), run)

    assert len(list(take_turns([make("one"), make("two")], 2))) == 2
    assert order == ["one", "two", "one", "two"]


def test_an_unexpected_exit_code_counts_as_a_failed_run() -> None:
    with pytest.raises(CouldNotRun, match="exit code 1, not 0"):
        run_on_one_thread(["false"])
