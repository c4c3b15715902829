"""The choice: every engine with every form of the whole, a search over single layers, and a last comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from onebyone.errors import BadInput
from onebyone.tuning.candidates import Candidate, Trial, Workshop
from onebyone.tuning.clock import Clock, Times, Timing
from onebyone.tuning.engines import Engine, EngineSetting
from onebyone.tuning.layer_forms import WINOGRAD, layer_forms
from onebyone.tuning.layer_times import LayerTimes
from onebyone.tuning.local_search import State, search
from onebyone.tuning.network_forms import CHANNELS_LAST, LAYERS
from onebyone.tuning.result import BASELINE
from onebyone.tuning.time_budget import FINAL, PROOF, Budget

FINALISTS = 4
LEAST_ROUNDS = 5  # of the last comparison: by chance, all five favour the slower of two equals once in 32
_SCREENING = 0.015  # of the budget, for one candidate's first timing
_HOPELESS, _KEPT = 1.3, 8  # times the best so far: let go of, and so is what comes after so many
PLAIN = ("original", "conv", "linear")
"""The forms of single layers of which eager mode tells the order."""
Layers = tuple[tuple[str, str], ...]
"""(path, form) of the layers that take a form."""
Attempt = Callable[[Candidate, str | None], Trial]
SPENT = "not tried: the budget was spent before it (give a larger one)"


@dataclass
class Contest:
    """Everything tried, by name. `attempt` builds and judges; it is the workshop's, or a test's."""

    attempt: Attempt
    clock: Clock
    budget: Budget
    tell: Callable[[int, int], object]
    trials: dict[str, Trial] = field(default_factory=dict)
    disturbed: int = 0
    never_quiet: bool = False
    """The last comparison had to make do with disturbed rounds."""
    planned: int = 0

    def enter(self, candidate: Candidate, name: str | None = None) -> Trial:
        """Build, judge and time a candidate against the network as it is."""
        start = self.budget.now()
        trial = self.attempt(candidate, name)
        self.trials[trial.name] = trial
        if trial.run is not None:
            trial = self._screened(trial)
            self.trials[trial.name] = trial
        self.budget.note(_kind(candidate), self.budget.now() - start)
        self._release()
        self.tell(len(self.trials), max(self.planned, len(self.trials)))
        return trial

    def pass_over(self, candidate: Candidate, reason: str = SPENT) -> None:
        """Record a candidate that is not tried."""
        if candidate.name not in self.trials:
            self.trials[candidate.name] = Trial(candidate, candidate.name, refused=reason)

    def alive(self) -> list[Trial]:
        """The trials that can be chosen, the fastest first."""
        return sorted((t for t in self.trials.values() if t.run is not None), key=_share)

    def finals(self, seconds: float) -> list[Trial]:
        """The fastest few and the network as it is, measured once more, together: in the order of these times alone.

        What is not faster than the network as it is beyond the noise of this comparison comes after it.
        """
        entered = {t.name: t for t in (*self.alive()[:FINALISTS], self.trials[BASELINE])}
        times = self._times(entered.values(), seconds, rounds=50, least=LEAST_ROUNDS)
        self.never_quiet = times.kept_disturbed > 0
        for name, trial in entered.items():
            share, around = times.share(name, BASELINE), times.interval(name, BASELINE)
            self.trials[name] = replace(trial, timing=times[name], share=share, share_range=around)
        base = times[BASELINE].median_ms
        for name, trial in self.trials.items():
            if name not in entered and trial.timing is not None:  # as if all had been in the same run
                self.trials[name] = replace(trial, timing=_as_if(trial.timing, _share(trial) * base))
        return sorted((self.trials[n] for n in entered), key=_place)

    def _screened(self, trial: Trial) -> Trial:
        base = self.trials.get(BASELINE)
        rivals = [trial] if base is None or base.run is None or base is trial else [base, trial]
        times = self._times(rivals, self._seconds(1), rounds=8)
        timing, share = times[trial.name], times.share(trial.name, rivals[0].name)
        if base is not None and base.timing is not None and base is not trial:
            timing = _as_if(timing, share * base.timing.median_ms)
        return replace(trial, timing=timing, share=share)

    def confirmed(self, trial: Trial, rival: Trial) -> float:
        """The share of a trial that looks faster than the best so far, from a longer run beside it.

        Of many candidates measured briefly, the one that looks best is too often the one that was lucky.
        """
        if trial.run is None or rival.run is None:
            return _share(trial)
        times = self._times([trial, rival], self._seconds(2), rounds=16)
        share = times.share(trial.name, rival.name) * _share(rival)
        base = self.trials[BASELINE].timing
        timing = _as_if(times[trial.name], share * base.median_ms) if base else times[trial.name]
        self.trials[trial.name] = replace(trial, timing=timing, share=share)
        return share

    def _seconds(self, times: int) -> float:
        """For one comparison: a share of the budget, but enough for a few rounds where there is as much."""
        return times * min(max(0.3, _SCREENING * self.budget.seconds), self.budget.seconds / 10)

    def _times(self, trials: Iterable[Trial], seconds: float, rounds: int, least: int = 3) -> Times:
        calls = {t.name: t.run for t in trials if t.run is not None}
        times = self.clock.interleave(calls, seconds, rounds=rounds, least=least)
        self.disturbed += times.disturbed
        return times

    def _release(self) -> None:
        """Let go of what cannot win any more: programs hold copies of the weights."""
        best = self.alive()
        for place, trial in enumerate(best):
            late = place >= FINALISTS and _share(trial) > _HOPELESS * _share(best[0])
            if trial.name != BASELINE and (late or place >= _KEPT):
                self.trials[trial.name] = replace(trial, model=None, run=None, formed=None)


def _as_if(timing: Timing, median_ms: float) -> Timing:
    """A timing scaled to what it would have been when the network as it is was timed first."""
    factor = median_ms / timing.median_ms if timing.median_ms else 1.0
    return Timing(median_ms, timing.spread_ms * factor, timing.runs)


def _place(trial: Trial) -> tuple[int, float]:
    """Where a finalist stands: what is surely faster than the network as it is, that network, and the others."""
    if trial.name == BASELINE:
        return 1, 1.0
    surely = trial.share_range is not None and trial.share_range[1] < 1
    return (0 if surely else 2), _share(trial)


def _share(trial: Trial) -> float:
    return 1.0 if trial.share is None else trial.share


def _kind(candidate: Candidate) -> str:
    return candidate.engine


def available(
    contest: Contest, engines: Sequence[Engine], forms: Sequence[str], setting: EngineSetting
) -> list[Engine]:
    """The engines that can serve here; the others' candidates are refused with the reason, whatever the budget."""
    able = []
    for engine in engines:
        reason = engine.why_not(setting)
        if reason is None:
            able.append(engine)
            continue
        for form in _forms_for(engine, forms):
            contest.pass_over(Candidate(engine.name, form), reason)
    return able


def run_wholes(
    contest: Contest,
    engines: Sequence[Engine],
    forms: Sequence[str],
    dtypes: Sequence[str | None],
    layers: Mapping[str, Layers] | None = None,
) -> None:
    """Every engine with every form, in turns: first the order of the plain forms is taken from eager mode, which builds
    them at once; then each engine's first, those that are quick to build before the others; then each one's second, …

    `layers` names the layers that a form turns where it does not turn all.
    """
    chosen = layers or {}

    def candidates(engine: Engine, names: Iterable[str]) -> list[Candidate]:
        types = {f: [d for d in dtypes if d is None or f != WINOGRAD] for f in names}
        return [Candidate(engine.name, f, d, chosen.get(f, ())) for f in types for d in types[f]]

    eager = [e for e in engines if e.name == "eager"]
    wanted = [*(e for e in reversed(engines) if e.name != "eager"), *eager]
    contest.planned = sum(len(_forms_for(e, forms)) * len(dtypes) for e in wanted)
    base = contest.enter(Candidate("eager", "original"))  # always: what is chosen is never slower than it
    if base.run is None:
        raise BadInput(f"model: eager mode does not give what it gave first: {base.refused}")
    if eager:
        _try(contest, candidates(eager[0], (f for f in forms if f in (*PLAIN, WINOGRAD))))
    order = _by_eager(contest, forms)
    turns = [candidates(e, _preferred(e, order)) for e in wanted]
    for place in range(max(map(len, turns), default=0)):
        _try(contest, [row[place] for row in turns if place < len(row)])


def _try(contest: Contest, candidates: Iterable[Candidate]) -> None:
    for candidate in candidates:
        if candidate.name in contest.trials:
            continue
        if contest.budget.allows(_kind(candidate)):
            contest.enter(candidate)
        else:
            contest.pass_over(candidate)


def _forms_for(engine: Engine, forms: Sequence[str]) -> list[str]:
    return [f for f in forms if engine.wants(f)]


def _by_eager(contest: Contest, forms: Sequence[str]) -> list[str]:
    """The forms that can be built, in the order of their eager times; of those not tried yet, as if none mattered."""
    known = {t.candidate.form: t for t in contest.trials.values() if t.candidate.dtype is None}
    possible = [f for f in forms if f not in known or known[f].refused in (None, SPENT)]
    return sorted(possible, key=lambda f: _share(known[f]) if f in known else 1.0)


def _preferred(engine: Engine, order: Sequence[str]) -> list[str]:
    """An engine of a library of its own lays its values out itself: the network as it is first."""
    forms = _forms_for(engine, order)
    return forms if engine.group == "torch" else sorted(forms, key=lambda f: f != "original")


def faster_as(form: str, times: Sequence[LayerTimes]) -> Layers:
    """The layers that are faster in a form than in their own, measured by themselves (else by the cost model)."""
    groups = [t.group for t in times if form in t.ranking and t.saved_ms(form) > 0]
    return tuple((path, form) for group in groups for path in group.paths)


def search_layers(
    contest: Contest, workshop: Workshop, times: Sequence[LayerTimes], engines: Sequence[Engine]
) -> None:
    """Flip groups of alike layers, from the best whole of PyTorch's engines, while the budget lasts."""
    named = {e.name: e for e in engines}
    best = [t for t in contest.alive() if t.candidate.dtype is None]
    options = options_of(times)
    if not best or not options or workshop.subject.program is not None:
        return
    start, engine = best[0], best[0].candidate.engine
    if engine not in named or not named[engine].wants(LAYERS) or not _of_layers(start.candidate.form):
        return
    suffix = CHANNELS_LAST if start.candidate.form.endswith(CHANNELS_LAST) else ""
    known = base_form(start.candidate.form)

    def measure(state: State) -> float | None:
        if not contest.budget.allows(engine):
            return None
        candidate = Candidate(engine, LAYERS + suffix, layers=assignment_of(state, times))
        number = sum(t.candidate.form.startswith(LAYERS) for t in contest.trials.values()) + 1
        trial = contest.enter(candidate, f"{candidate.name}#{number}")
        return float("inf") if trial.run is None else _share(trial)

    search(
        start_state(known, times, options),
        options,
        lambda index, form: times[index].saved_ms(form),
        measure,
        time=_share(start) if _same_layers(start) else None,
        margin=_noise(start),
    )


def _of_layers(form: str) -> bool:
    """Whether a form turns layers and does no more: an assignment of layers could not keep what others do besides."""
    plain = form.removesuffix(CHANNELS_LAST)
    return plain.removeprefix("native-").removeprefix("graph-") in PLAIN


def _same_layers(trial: Trial) -> bool:
    """Whether its form is an assignment of single layers (graph rewrites do more than that)."""
    return trial.candidate.form.removesuffix(CHANNELS_LAST) in PLAIN


def base_form(form: str) -> str:
    """Which way a form turns its layers: "original", "conv" or "linear".

    >>> base_form("graph-conv"), base_form("original+channels_last")
    ('conv', 'original')
    """
    plain = form.removesuffix(CHANNELS_LAST)
    return next((way for way in ("conv", "linear") if way in plain.split("-")), "original")


def options_of(times: Sequence[LayerTimes]) -> dict[int, list[str]]:
    """The forms that each group may take: those that can be given to single layers and are no hopeless loss."""
    found = {}
    for index, t in enumerate(times):
        names = [f.name for f in layer_forms(t.group.kind) if f.assignable]
        best = min((t.timings[n].median_ms for n in names if n in t.timings), default=0.0)
        names = [n for n in names if n not in t.timings or t.timings[n].median_ms <= 3 * best]
        if t.group.convertible and len(names) > 1:
            found[index] = names
    return found


def start_state(form: str, times: Sequence[LayerTimes], options: dict[int, list[str]]) -> dict[int, str]:
    """The form of each group in a whole: its own, or the one that the whole turns it to."""
    state = {}
    for index in options:
        own = layer_forms(times[index].group.kind)[0].name
        names = [f.name for f in layer_forms(times[index].group.kind)]
        state[index] = form if form != "original" and form in names else own
    return state


def assignment_of(state: State, times: Sequence[LayerTimes]) -> Layers:
    """The paths of all layers that are not in their own form, with the form they take."""
    return tuple(
        (path, form)
        for index, form in sorted(state.items())
        if form != layer_forms(times[index].group.kind)[0].name
        for path in times[index].group.paths
    )


def _noise(trial: Trial) -> float:
    """The share that two measurements of one thing may differ by: a fifth of the quartiles' distance, 1 % at least."""
    t = trial.timing
    return max(0.01, 0.2 * t.spread_ms / t.median_ms) if t else 0.01


def final_seconds(budget: Budget) -> float:
    """What the last comparison may take."""
    return max(0.5, min(FINAL * budget.seconds, budget.seconds * (1 - PROOF) - budget.elapsed))
