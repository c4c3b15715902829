"""Selection of the fastest candidate: every engine with every network form, then a search over single layers, then a
final comparison of the fastest few with the original network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from onebyone.errors import BadInput
from onebyone.tuning.candidates import Candidate, CandidateBuilder, Trial
from onebyone.tuning.clock import Clock, InterleavedTimings, Timing
from onebyone.tuning.engines import Engine, EngineSettings
from onebyone.tuning.layer_forms import WINOGRAD, layer_forms
from onebyone.tuning.layer_times import LayerTimes
from onebyone.tuning.local_search import State, search
from onebyone.tuning.network_forms import CHANNELS_LAST, LAYERS
from onebyone.tuning.result import BASELINE
from onebyone.tuning.time_budget import FINAL_SHARE, PROOF_SHARE, Budget

FINALISTS = 4
MIN_FINAL_ROUNDS = 5
"""Rounds of the final comparison: by chance, all five favour the slower of two equal candidates once in 32 times."""
_FINAL_ROUNDS, _SCREENING_ROUNDS = 50, 8
_SCREENING_SHARE = 0.015  # of the budget, for the first timing of one candidate
_MAX_RELATIVE_TIME = (
    1.3  # candidates this many times slower than the best are released, unless they are finalists
)
_MAX_MODELS = 8  # models kept in memory
_MAX_FORM_RATIO = 3.0  # forms of a layer this many times slower than its fastest are not tried in the network
PLAIN_FORMS = ("original", "conv", "linear")
"""The network forms whose order is taken from eager mode."""
Layers = tuple[tuple[str, str], ...]
"""(path, form) of the layers that take a form."""
Attempt = Callable[[Candidate, str | None], Trial]
BUDGET_SPENT = "not tried: the budget was spent before it (give a larger one)"


@dataclass
class Contest:
    """Trials, by name, and the comparisons between them.

    `attempt` builds and checks a candidate (`CandidateBuilder.attempt`). `disturbed_rounds` counts the timing rounds
    that other processes disturbed. `final_always_disturbed`: the final comparison had to use disturbed rounds.
    `planned` is the number of candidates that are expected, for `report_progress`.
    """

    attempt: Attempt
    clock: Clock
    budget: Budget
    report_progress: Callable[[int, int], object]
    trials: dict[str, Trial] = field(default_factory=dict)
    disturbed_rounds: int = 0
    final_always_disturbed: bool = False
    planned: int = 0

    def enter(self, candidate: Candidate, name: str | None = None) -> Trial:
        """Build and check a candidate, and time it beside the original network."""
        start = self.budget.now()
        trial = self.attempt(candidate, name)
        self.trials[trial.name] = trial
        if trial.run is not None:
            trial = self._screened(trial)
            self.trials[trial.name] = trial
        self.budget.record(candidate.engine, self.budget.now() - start)
        self._release()
        self.report_progress(len(self.trials), max(self.planned, len(self.trials)))
        return trial

    def skip(self, candidate: Candidate, reason: str = BUDGET_SPENT) -> None:
        """Record a candidate that is not tried, with the reason."""
        if candidate.name not in self.trials:
            self.trials[candidate.name] = Trial(candidate, candidate.name, refused=reason)

    def viable(self) -> list[Trial]:
        """Return the trials that can be chosen, the fastest first."""
        return sorted((t for t in self.trials.values() if t.run is not None), key=_relative_time)

    def final_comparison(self, seconds: float) -> list[Trial]:
        """Measure the fastest few and the original network once more, together, and rank them by these times alone.

        Candidates that are not faster than the original beyond the noise of this comparison are ranked after it.
        """
        finalists = {t.name: t for t in (*self.viable()[:FINALISTS], self.trials[BASELINE])}
        timings = self._timings(finalists.values(), seconds, _FINAL_ROUNDS, MIN_FINAL_ROUNDS)
        self.final_always_disturbed = timings.kept_disturbed > 0
        for name, trial in finalists.items():
            self.trials[name] = replace(
                trial,
                timing=timings[name],
                relative_time=timings.ratio(name, BASELINE),
                relative_time_range=timings.ratio_interval(name, BASELINE),
            )
        base = timings[BASELINE].median_ms
        for name, trial in self.trials.items():
            if name not in finalists and trial.timing is not None:
                timing = _rescaled(trial.timing, _relative_time(trial) * base)
                self.trials[name] = replace(trial, timing=timing)
        return sorted((self.trials[name] for name in finalists), key=_rank)

    def _screened(self, trial: Trial) -> Trial:
        """Return the trial with its first timing, taken beside the original network."""
        base = self.trials.get(BASELINE)
        compared = [trial] if base is None or base.run is None or base is trial else [base, trial]
        timings = self._timings(compared, self._screening_seconds(), _SCREENING_ROUNDS)
        timing, relative_time = timings[trial.name], timings.ratio(trial.name, compared[0].name)
        if base is not None and base.timing is not None and base is not trial:
            timing = _rescaled(timing, relative_time * base.timing.median_ms)
        return replace(trial, timing=timing, relative_time=relative_time)

    def _screening_seconds(self) -> float:
        """Return a share of the budget that suffices for a few rounds, unless the whole budget is very small."""
        return min(max(0.3, _SCREENING_SHARE * self.budget.seconds), self.budget.seconds / 10)

    def _timings(
        self, trials: Iterable[Trial], seconds: float, rounds: int, least: int = 3
    ) -> InterleavedTimings:
        calls = {t.name: t.run for t in trials if t.run is not None}
        timings = self.clock.interleave(calls, seconds, rounds=rounds, least=least)
        self.disturbed_rounds += timings.disturbed
        return timings

    def _release(self) -> None:
        """Release models that cannot win any more, because compiled programs hold copies of the weights."""
        ranked = self.viable()
        for rank, trial in enumerate(ranked):
            slow = rank >= FINALISTS and _relative_time(trial) > _MAX_RELATIVE_TIME * _relative_time(
                ranked[0]
            )
            if trial.name != BASELINE and (slow or rank >= _MAX_MODELS):
                self.trials[trial.name] = replace(trial, model=None, run=None, formed=None)


def _rescaled(timing: Timing, median_ms: float) -> Timing:
    """Return a timing with another median and a proportional spread.

    Times of different runs are made comparable so: each is the ratio to the original network in its own run, times
    the original's time in one common run.
    """
    factor = median_ms / timing.median_ms if timing.median_ms else 1.0
    return Timing(median_ms, timing.spread_ms * factor, timing.runs)


def _rank(trial: Trial) -> tuple[int, float]:
    """Rank candidates that are faster than the original beyond the noise, then the original, then all others."""
    if trial.name == BASELINE:
        return 1, 1.0
    faster = trial.relative_time_range is not None and trial.relative_time_range[1] < 1
    return (0 if faster else 2), _relative_time(trial)


def _relative_time(trial: Trial) -> float:
    return 1.0 if trial.relative_time is None else trial.relative_time


def available_engines(
    contest: Contest, engines: Sequence[Engine], forms: Sequence[str], settings: EngineSettings
) -> list[Engine]:
    """Return the engines that can be used; skip candidates of the others with the reason, whatever the budget."""
    available = []
    for engine in engines:
        reason = engine.why_unavailable(settings)
        if reason is None:
            available.append(engine)
            continue
        for form in _forms_for(engine, forms):
            contest.skip(Candidate(engine.name, form), reason)
    return available


def try_network_forms(
    contest: Contest,
    engines: Sequence[Engine],
    forms: Sequence[str],
    dtypes: Sequence[str | None],
    layers: Mapping[str, Layers] | None = None,
) -> None:
    """Try every engine with every form, in turns.

    First the plain forms in eager mode, which builds them at once; their order is the order for the other engines.
    Then each engine's first form, engines that build quickly before the others; then each one's second form, and so
    on. `layers` names the layers that a form applies to if it does not apply to all.
    """
    layers_of = layers or {}

    def candidates(engine: Engine, names: Iterable[str]) -> list[Candidate]:
        dtypes_of = {f: [d for d in dtypes if d is None or f != WINOGRAD] for f in names}
        return [Candidate(engine.name, f, d, layers_of.get(f, ())) for f in dtypes_of for d in dtypes_of[f]]

    eager = [e for e in engines if e.name == "eager"]
    in_order = [*(e for e in reversed(engines) if e.name != "eager"), *eager]
    contest.planned = sum(len(_forms_for(e, forms)) * len(dtypes) for e in in_order)
    base = contest.enter(Candidate("eager", "original"))  # always, so that the choice is never slower than it
    if base.run is None:
        raise BadInput(f"model: its outputs in eager mode are not reproducible: {base.refused}")
    if eager:
        _try(contest, candidates(eager[0], (f for f in forms if f in (*PLAIN_FORMS, WINOGRAD))))
    order = _by_eager_time(contest, forms)
    turns = [candidates(e, _preferred_order(e, order)) for e in in_order]
    for turn in range(max(map(len, turns), default=0)):
        _try(contest, [of_engine[turn] for of_engine in turns if turn < len(of_engine)])


def _try(contest: Contest, candidates: Iterable[Candidate]) -> None:
    for candidate in candidates:
        if candidate.name in contest.trials:
            continue
        if contest.budget.allows(candidate.engine):
            contest.enter(candidate)
        else:
            contest.skip(candidate)


def _forms_for(engine: Engine, forms: Sequence[str]) -> list[str]:
    return [f for f in forms if engine.tries_form(f)]


def _by_eager_time(contest: Contest, forms: Sequence[str]) -> list[str]:
    """Sort the forms that can be built by their eager times; forms not tried yet count as equal to the original."""
    trials = {t.candidate.form: t for t in contest.trials.values() if t.candidate.dtype is None}
    possible = [f for f in forms if f not in trials or trials[f].refused in (None, BUDGET_SPENT)]
    return sorted(possible, key=lambda f: _relative_time(trials[f]) if f in trials else 1.0)


def _preferred_order(engine: Engine, order: Sequence[str]) -> list[str]:
    """Put the original network first for libraries other than PyTorch, which choose memory layouts themselves."""
    forms = _forms_for(engine, order)
    return forms if engine.group == "torch" else sorted(forms, key=lambda f: f != "original")


def layers_faster_in(form: str, times: Sequence[LayerTimes]) -> Layers:
    """Return the layers that are faster in a form than unchanged, as measured (else by the cost model)."""
    groups = [t.group for t in times if form in t.ranking and t.saved_ms(form) > 0]
    return tuple((path, form) for group in groups for path in group.paths)


def search_layers(
    contest: Contest, builder: CandidateBuilder, times: Sequence[LayerTimes], engines: Sequence[Engine]
) -> None:
    """Change the forms of layer groups, starting from the fastest network form, while the budget lasts."""
    by_name = {e.name: e for e in engines}
    ranked = [t for t in contest.viable() if t.candidate.dtype is None]
    options = form_options(times)
    if not ranked or not options or builder.target.program is not None:
        return
    start, engine = ranked[0], ranked[0].candidate.engine
    if engine not in by_name or not by_name[engine].tries_form(LAYERS):
        return
    if not _changes_layers_only(start.candidate.form):
        return
    suffix = CHANNELS_LAST if start.candidate.form.endswith(CHANNELS_LAST) else ""

    def measure(state: State) -> float | None:
        if not contest.budget.allows(engine):
            return None
        candidate = Candidate(engine, LAYERS + suffix, layers=assignment_of(state, times))
        number = sum(t.candidate.form.startswith(LAYERS) for t in contest.trials.values()) + 1
        trial = contest.enter(candidate, f"{candidate.name}#{number}")
        return float("inf") if trial.run is None else _relative_time(trial)

    search(
        initial_state(base_form(start.candidate.form), times, options),
        options,
        lambda index, form: times[index].saved_ms(form),
        measure,
        time=_relative_time(start) if _is_assignment(start) else None,
        margin=_noise(start),
    )


def _changes_layers_only(form: str) -> bool:
    """Return whether a form does nothing but change layers: an assignment of layer forms could not keep more."""
    plain = form.removesuffix(CHANNELS_LAST)
    return plain.removeprefix("native-").removeprefix("graph-") in PLAIN_FORMS


def _is_assignment(trial: Trial) -> bool:
    """Return whether a form equals an assignment of forms to layers (rewritten graphs differ in more than that)."""
    return trial.candidate.form.removesuffix(CHANNELS_LAST) in PLAIN_FORMS


def base_form(form: str) -> str:
    """Return what a network form makes of its layers: "conv", "linear", or "original" (unchanged).

    >>> base_form("graph-conv"), base_form("original+channels_last")
    ('conv', 'original')
    """
    plain = form.removesuffix(CHANNELS_LAST)
    return next((kind for kind in ("conv", "linear") if kind in plain.split("-")), "original")


def form_options(times: Sequence[LayerTimes]) -> dict[int, list[str]]:
    """Return the forms that each group may take: those that single layers can take and that are not far too slow."""
    options = {}
    for index, t in enumerate(times):
        names = [f.name for f in layer_forms(t.group.kind) if f.assignable]
        best = min((t.timings[n].median_ms for n in names if n in t.timings), default=0.0)
        limit = _MAX_FORM_RATIO * best
        names = [n for n in names if n not in t.timings or t.timings[n].median_ms <= limit]
        if t.group.convertible and len(names) > 1:
            options[index] = names
    return options


def initial_state(form: str, times: Sequence[LayerTimes], options: dict[int, list[str]]) -> dict[int, str]:
    """Return the form of each group in a network form: the one that it converts layers to, or unchanged."""
    state = {}
    for index in options:
        names = [f.name for f in layer_forms(times[index].group.kind)]
        state[index] = form if form != "original" and form in names else names[0]
    return state


def assignment_of(state: State, times: Sequence[LayerTimes]) -> Layers:
    """Return (path, form) of every layer that is not unchanged in a state."""
    return tuple(
        (path, form)
        for index, form in sorted(state.items())
        if form != layer_forms(times[index].group.kind)[0].name
        for path in times[index].group.paths
    )


def _noise(trial: Trial) -> float:
    """Return the share by which measurements may differ: a fifth of the relative interquartile range, at least 1 %."""
    t = trial.timing
    return max(0.01, 0.2 * t.spread_ms / t.median_ms) if t else 0.01


def final_seconds(budget: Budget) -> float:
    """Return the seconds that the final comparison may take."""
    seconds = budget.seconds * (1 - PROOF_SHARE) - budget.elapsed
    return max(0.5, min(FINAL_SHARE * budget.seconds, seconds))
