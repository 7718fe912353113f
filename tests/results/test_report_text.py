"""The terminal report shows the right numbers and says what is missing."""

import pytest

from vllm_relational.records import CacheForecast, RunReport
from vllm_relational.results.report_text import is_dry_run, render_text, saving


def make_report(**changes) -> RunReport:
    facts = {
        "question": "Is this positive? {comments}",
        "model": "some/model",
        "planner": "row_sort",
        "field_order": ("description", "comments"),
        "num_rows": 1300,
        "num_distinct": 1200,
        "num_asked": 1100,
        "num_resumed": 100,
        "num_failed": 0,
        "failures": {},
        "predicted": CacheForecast(100_000, 80_000),
        "original": CacheForecast(100_000, 10_000),
        "ceiling": 0.875,
        "token_counts": "exact",
        "measured_prompt_tokens": 100_000,
        "measured_cached_tokens": 75_000,
        "output_tokens": 2345,
        "stage_seconds": {"plan": 0.25, "ask": 55.0},
    }
    return RunReport(**{**facts, **changes})


def dry_run(**changes) -> RunReport:
    stages = {"plan": 0.25}
    missing = {"measured_prompt_tokens": None, "measured_cached_tokens": None, "output_tokens": 0}
    return make_report(**{**missing, "stage_seconds": stages, **changes})


def cells(text: str, label: str) -> list[str]:
    """The words after ``label`` on the line that starts with it."""
    (line,) = [line for line in text.splitlines() if line.startswith(label + "  ")]
    return line[len(label) :].split()


def test_prompt_tokens_computed_tokens_and_hit_rates():
    text = render_text(make_report())
    assert cells(text, "measured") == ["100,000", "25,000", "75.0%"]
    assert cells(text, "predicted") == ["100,000", "20,000", "80.0%"]
    assert cells(text, "original order, predicted") == ["100,000", "90,000", "10.0%"]
    assert cells(text, "ceiling of any order") == ["87.5%"]


def test_loaded_tokens_are_shown_where_there_are_any():
    assert cells(render_text(make_report(measured_loaded_tokens=5120)), "prompt tokens loaded")[0] == "5,120,"
    assert "loaded" not in render_text(make_report())


def test_rows_speed_and_stages():
    text = render_text(make_report())
    assert cells(text, "rows") == ["1,300"]
    assert cells(text, "distinct rows")[:3] == ["1,200", "(100", "duplicates"]
    assert cells(text, "asked in this run") == ["1,100"]
    assert cells(text, "resumed from the checkpoint") == ["100"]
    assert cells(text, "distinct rows a second") == ["20.0"]
    assert cells(text, "output tokens") == ["2,345"]
    assert cells(text, "seconds") == ["plan", "0.250,", "ask", "55.00"]
    assert cells(text, "fields, first row asked") == ["description,", "comments"]


def test_each_failure_reason_has_its_line():
    text = render_text(make_report(num_failed=7, failures={"null cell": 5, "prompt too long": 2}))
    assert cells(text, "failed") == ["7"]
    assert cells(text, "  null cell") == ["5"]
    assert cells(text, "  prompt too long") == ["2"]
    assert "duplicates or failed rows not sent" in text


def test_saving_uses_measured_counts():
    assert saving(make_report()) == pytest.approx(90_000 / 25_000)
    assert render_text(make_report()).startswith("Computes 3.60x fewer prompt tokens than the original order.\n")


def test_saving_compares_equal_prompts_when_some_were_not_measured():
    half = make_report(measured_prompt_tokens=50_000, measured_cached_tokens=37_500)
    assert saving(half) == pytest.approx(3.6)


def test_a_loss_is_called_one():
    text = render_text(make_report(measured_cached_tokens=0, original=CacheForecast(100_000, 50_000)))
    assert text.startswith("Computes 2.00x more prompt tokens")


def test_no_difference_is_called_none():
    text = render_text(make_report(measured_cached_tokens=10_000))
    assert text.startswith("Computes as many prompt tokens as the original order.")


def test_dry_run_says_so_and_uses_the_prediction():
    report = dry_run()
    text = render_text(report)
    assert is_dry_run(report)
    assert text.startswith("Predicted to compute 4.50x fewer prompt tokens")
    assert "not measured: dry run" in text
    assert cells(text, "to ask") == ["1,100"]
    assert "None" not in text


def test_engine_that_reports_no_cached_tokens():
    text = render_text(make_report(measured_cached_tokens=None))
    assert cells(text, "measured") == ["100,000", "not", "reported", "not", "reported"]
    assert text.startswith("Predicted to compute 4.50x fewer")
    assert "dry run" not in text


def test_everything_resumed():
    nothing = CacheForecast(0, 0)
    text = render_text(
        make_report(num_asked=0, predicted=nothing, original=nothing, ceiling=0.0, measured_prompt_tokens=None)
    )
    assert text.startswith("No prompt was needed.")
    assert "not measured: no row was asked" in text


def test_estimated_counts_are_called_estimated():
    assert "not exact" not in render_text(make_report())
    assert "(estimated: 4 bytes a token)" in render_text(make_report(token_counts="estimated: 4 bytes a token"))


def test_text_is_narrow_plain_and_takes_markup_literally():
    text = render_text(make_report(question="[red]word[/red] :smile: " * 40, failures={"[bold]odd": 1}, num_failed=1))
    assert max(map(len, text.splitlines())) <= 100
    assert "\x1b" not in text
    assert "[red]word[/red] :smile:" in text
    assert "[bold]odd" in text
