"""The page of the experiments shows their results."""

from __future__ import annotations

from pathlib import Path

from scripts.bench.experiments import page


def test_every_experiment_is_run_and_documented() -> None:
    folder = Path(page.__file__).parent
    commands = {file.stem for file in folder.glob("*.py") if "run_experiment(" in file.read_text()}
    commands |= {file.stem for file in folder.glob("*.py") if "add_outputs(parser" in file.read_text()}
    assert commands - {"experiment"} == set(page.EXPERIMENTS)
    text = page.PAGE.read_text()
    assert all(f"python -m scripts.bench.experiments.{name}" in text for name in page.EXPERIMENTS)


def test_page_shows_the_results() -> None:
    text = page.PAGE.read_text()
    assert text == page.with_table(text, page.results_table())
