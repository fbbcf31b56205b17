"""How many fits of a study are still to be made, and how long they take on this machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pipelines.console import Console, counted
from pipelines.study.cells import Sharing, Summary, summaries
from pipelines.study.choices import Choice, choose_rates, standings
from pipelines.study.plan import CellId, Plan
from wsi.specs import Config


def new_fits(plan: Plan) -> int:
    """Return the final fits of seeds that did not tune the rate."""
    of_seed = len(plan.configs) * sum(map(len, plan.folds.values()))
    return of_seed * (len(plan.seeds) - plan.rate_seeds)


def estimate(sharing: Sharing, config: Config, console: Console, *, only_rates: bool) -> None:
    """Say how long all will take, by the fits that are done, or by the first ones."""
    cells = sharing.plan.rate_cells()
    done = summaries(sharing.plan, cells)
    if not done:
        done = sharing.complete(cells[: max(2, sharing.jobs)], "first fits")
    left = left_to_fit(sharing.plan, done, config, only_rates=only_rates)
    say_hours(left, mean_seconds(done.values()), sharing.jobs, console)


def left_to_fit(
    plan: Plan, done: Mapping[CellId, Summary], config: Config, *, only_rates: bool
) -> int:
    """Return how many fits are to be made, `done` being those of the rates that are there."""
    missing = len(plan.rate_cells()) - len(done)
    if only_rates:
        return missing
    if missing:
        return missing + new_fits(plan)
    lower = config.fit.monitor == "loss"
    final = plan.final_cells(rates_of(choose_rates(standings(done), plan.rates, lower=lower)))
    return len(final) - len(summaries(plan, final))


def rates_of(chosen: Mapping[str, Mapping[str, Choice]]) -> dict[str, dict[str, float]]:
    """Return the chosen rate of every arm, by selection."""
    return {s: {arm: choice.rate for arm, choice in arms.items()} for s, arms in chosen.items()}


def mean_seconds(done: Iterable[Summary]) -> float:
    """Return what one of these fits took."""
    seconds = [summary["seconds"] for summary in done]
    return sum(seconds) / len(seconds)


def say_hours(todo: int, each: float, jobs: int, console: Console) -> None:
    """Say how long fits take, and that other work on the machine counts."""
    hours = todo * each / jobs / 3600
    console.say(
        f"{counted(todo, 'fit')} to do at {each:.2g} s each: about {hours:.2g} hours with "
        f"--jobs {jobs} as measured under this machine's load"
    )


def say_rest(
    sharing: Sharing,
    tuned: Mapping[CellId, Summary],
    chosen: Mapping[str, Mapping[str, Choice]],
    console: Console,
) -> None:
    """Say how long the rest will take, now that many fits have been made."""
    final = sharing.plan.final_cells(rates_of(chosen))
    todo = len(final) - len(summaries(sharing.plan, final))
    if todo:
        say_hours(todo, mean_seconds(tuned.values()), sharing.jobs, console)
