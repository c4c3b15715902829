"""The table of all profiles as Markdown, which docs/targets.md contains."""

from __future__ import annotations

from onebyone.targets.profile import TargetProfile, find_profile, profile_names


def profiles_as_markdown() -> str:
    """One section for each profile: what is preferred, the constraints with their sources, and what is not checked.

    >>> profiles_as_markdown().splitlines()[0]
    '### `4d`'
    """
    return "\n".join(_section(find_profile(name)) for name in profile_names())


def _section(profile: TargetProfile) -> str:
    lines = [f"### `{profile.name}`", "", f"{profile.title}. {_preference(profile)}", ""]
    lines += ["| operators | constraint | status | source |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in profile.rows()]
    if profile.notes:
        lines += ["", "Stated, and not checked:", ""]
        lines += [f"- {n.text} ({_status(n.official)}: {n.source})" for n in profile.notes]
    return "\n".join([*lines, ""])


def _preference(profile: TargetProfile) -> str:
    preferred = profile.preferred
    forms = {"conv": "convolutions", "linear": "matrix products", "any": "no form"}
    places = {"width": "(N, C, 1, S)", "height": "(N, C, S, 1)", "batch": "(N·S, C, 1, 1)"}
    text = f"Prefers {forms[preferred.form]}; tokens {places[preferred.token_axis]}"
    if preferred.width_multiple > 1:
        text += f", the last axis a multiple of {preferred.width_multiple}"
    return f"{text} ({_status(preferred.official)}: {preferred.source})."


def _status(official: bool) -> str:
    return "official" if official else "not official"
