"""The report's plain answers: sentences that the numbers write."""

from collections.abc import Sequence

from train_like.evaluation.comparisons import CLAIMED, COMPARED
from train_like.evaluation.intervals import MIN_PICTURES
from train_like.evaluation.settings import members
from train_like.evaluation.tables import (
    METRICS,
    Values,
    cell,
    is_above,
    is_below,
    is_enough,
    listed,
    n_of,
    table,
    way_name,
)

_CLAIM_HEADS = {
    "between_texts": "correlation between texts",
    "between_texts_randomised": "correlation between texts, all weights random",
    "hit": "findings hit",
    **{metric: METRICS[metric] for metric in CLAIMED if metric != "hit"},
}


def answers(summary: Values) -> str:
    """Answer what an evaluation is made for."""
    parts = ["## Answers"]
    if summary["localisation"] is not None:
        parts += _located_answers(summary)
    parts += [
        "**Are the stack's maps more specific and better located than conventional ones?** "
        f"{_claim_answer(summary['claims'])}",
        _claim_table(summary["claims"]),
        f"**Does the effect survive weight randomisation?** {_randomised_answer(summary)}",
        "**Are route and stack the same map?** Largest difference between the conventional map and the projected "
        "stack, relative to the maximum: "
        + "; ".join(
            f"{method} {each['largest']:.1e} (n = {each['n']})" for method, each in summary["agreement"].items()
        )
        + ".",
        f"**Would a text without meaning give the same map?** {_control_answer(summary)}",
    ]
    return "\n\n".join(parts)


def _located_answers(summary: Values) -> list[str]:
    best, compared = best_of(summary), summary["localisation"]["against_references"]
    findings = {label: each["hit"] for label, each in best["by_finding"].items() if each["hit"]}
    weakest = min(findings, key=lambda label: findings[label]["mean"])
    of_best = [each for each in compared if each["setting"] == best["setting"]]
    return [
        f"**Where does the best map point?** `{best['setting']}`, chosen on the validation split, hits "
        f"{cell(best['hit'])} of the findings (n = {best['hit']['n']}); its weakest is {weakest} with "
        f"{cell(findings[weakest])} (n = {findings[weakest]['n']}).",
        f"**Is that better than looking at no model?** {_reference_answer(best['setting'], of_best)}",
        _finding_answer(of_best),
        "What each setting does not beat:",
        _reference_table(compared),
        *_between_findings(summary["between_findings"]),
    ]


def best_of(summary: Values) -> Values:
    """Return the best setting's entry."""
    localisation = summary["localisation"]
    best: Values = next(each for each in localisation["settings"] if each["setting"] == localisation["best"])
    return best


def _reference_answer(name: str, compared: Sequence[Values]) -> str:
    """Name where the best setting beats no reference; a difference counts where its interval excludes zero."""
    rule = "A setting beats a reference where the interval of the difference, picture by picture, excludes zero."
    counted = [each for each in compared if is_enough(each)]
    of_metric = {metric: [each for each in counted if each["metric"] == metric] for metric in COMPARED}
    beaten = [metric for metric, found in of_metric.items() if found and all(map(is_above, found))]
    lost = [each for each in counted if not is_above(each)]
    if not counted:
        return f"{rule} {_too_few(compared)}"
    sentences = [f"`{name}` beats every reference method in {_named(beaten)}."] if beaten else []
    sentences += [
        f"In {METRICS[each['metric']]} it does not beat {each['reference']}, {_told(each)}: {cell(each)}."
        for each in lost
    ]
    return " ".join([rule, *sentences])


def _told(difference: Values) -> str:
    return "which is better" if is_below(difference) else "from which it cannot be told"


def _named(metrics: Sequence[str]) -> str:
    return ", ".join(METRICS[metric] for metric in metrics)


def _too_few(values: Sequence[Values | None]) -> str:
    return f"No verdict below {MIN_PICTURES} pictures (n = {n_of(values)})."


def _finding_answer(compared: Sequence[Values]) -> str:
    """Name, finding by finding, where the best setting does not beat which reference."""
    lost: dict[str, list[str]] = {}
    for each in compared:
        for label, difference in each["by_finding"].items():
            if is_enough(difference) and not is_above(difference):
                mark = " (better)" if is_below(difference) else ""
                lost.setdefault(f"{label}, {METRICS[each['metric']]}", []).append(f"{each['reference']}{mark}")
    told = listed(f"{what}: {', '.join(references)}" for what, references in sorted(lost.items()))
    few = {label for each in compared for label, found in each["by_finding"].items() if found and not is_enough(found)}
    unknown = f" No verdict, on fewer than {MIN_PICTURES} pictures: {listed(sorted(few))}." if few else ""
    return f"Finding by finding it does not beat: {told}.{unknown}"


def _reference_table(compared: Sequence[Values]) -> str:
    rows = []
    for setting in dict.fromkeys(each["setting"] for each in compared):
        cells = []
        for metric in COMPARED:
            found = [each for each in compared if (each["setting"], each["metric"]) == (setting, metric)]
            lost = [each["reference"] for each in found if not is_above(each)]
            enough = bool(found) and all(map(is_enough, found))
            cells.append((", ".join(lost) or "beats all") if enough else "too few pictures")
        rows.append([setting, n_of(each for each in compared if each["setting"] == setting), *cells])
    return table(["setting", "n", *(METRICS[metric] for metric in COMPARED)], rows)


def _between_findings(found: Sequence[Values]) -> list[str]:
    if not found:
        return []
    kinds = list(found[0]["kinds"])
    rows = [
        [
            each["setting"],
            str(each["n"]),
            str(each["n_pairs"]),
            *(cell(each["kinds"][kind][side]) for kind in kinds for side in ("in_a", "in_b")),
        ]
        for each in found
    ]
    heads = [f"{kind}: peak in {side}" for kind in kinds for side in ("A only", "B only")]
    return [
        "**On a picture of two findings, A and B, does the map of A point to A?** Each ordered pair counts, with the "
        "text form and smoothing of the setting; the rest of the peaks lie in neither or in both.",
        table(["setting", "n", "pairs", *heads], rows),
    ]


def _claim_answer(claims: Sequence[Values]) -> str:
    """Say for which ways the paper's claim holds; a difference counts where its interval excludes zero."""
    counted = [claim for claim in claims if is_enough(claim["between_texts"])]
    different = [claim for claim in counted if not is_same(claim)]
    specific = [claim for claim in different if is_below(claim["between_texts"])]
    both = [claim for claim in specific if is_above(claim["hit"])]
    sentences = [
        f"Both at once (a peak inside the finding more often): {listed(map(way_name, both))}.",
        f"More specific, though not better located: {listed(way_name(c) for c in specific if c not in both)}.",
        f"Neither: {listed(way_name(claim) for claim in different if claim not in specific)}.",
    ]
    same = [way_name(claim) for claim in counted if is_same(claim)]
    if same:
        sentences.append(f"The same map as the conventional one, since the method is linear: {listed(same)}.")
    few = [way_name(claim) for claim in claims if claim not in counted]
    if few:
        sentences.append(f"No verdict, on fewer than {MIN_PICTURES} pictures: {listed(few)}.")
    return " ".join(sentences)


def _claim_table(claims: Sequence[Values]) -> str:
    rows = [
        [way_name(claim), n_of([claim["between_texts"]]), *(_counted(claim, key) for key in _CLAIM_HEADS)]
        for claim in claims
        if not is_same(claim)
    ]
    note = (
        "Stack less conventional, for the same method and sign, on the same pictures (class ensembles, no contrast, no "
        "smoothing); a cell tells its own n where it is not the row's."
    )
    return f"{note}\n\n" + table(["way", "n", *_CLAIM_HEADS.values()], rows)


def _counted(claim: Values, key: str) -> str:
    values, row = claim[key], claim["between_texts"]
    is_other = values is not None and is_enough(values) and values["n"] != row["n"]
    return cell(values) + (f" (n = {values['n']})" if is_other else "")


def _randomised_answer(summary: Values) -> str:
    """Say whether the stack's maps are more specific with random weights, too."""
    claims = [claim for claim in summary["claims"] if not is_same(claim)]
    specific = [claim for claim in claims if claim["between_texts"]["mean"] < 0 and claim["sign"] == "absolute"]
    counted = [
        claim for claim in specific if is_below(claim["between_texts"]) and is_enough(claim["between_texts_randomised"])
    ]
    there = [claim for claim in counted if is_below(claim["between_texts_randomised"])]
    gone = [claim for claim in counted if claim not in there]
    open_ = [way_name(claim) for claim in specific if claim not in counted]
    sentences = []
    if there:
        sentences.append(
            "Yes, and that speaks against it: with every weight of the image tower random, stack maps of different "
            "texts are still less alike than conventional ones, so that the difference comes from the arithmetic of "
            f"the projection and not from what was learned: {listed(map(_before_and_after, there))}."
        )
    if gone:
        sentences.append(f"No, with random weights it is gone: {listed(map(_before_and_after, gone))}.")
    if not counted:
        sentences.append("There is no effect whose survival could be told.")
    if open_:
        sentences.append(f"Not told (not measured, or too few pictures): {listed(open_)}.")
    return " ".join([*sentences, *_survivors(summary["cascade"])])


def _before_and_after(claim: Values) -> str:
    after = claim["between_texts_randomised"]
    return f"{way_name(claim)} ({cell(claim['between_texts'])} trained, {cell(after)} random, n = {after['n']})"


def _survivors(cascade: Values) -> list[str]:
    """Say how alike each map is to the trained model's at the end of the cascade."""
    last = {name: ways["spearman"][-1] for name, ways in cascade["ways"].items() if ways["spearman"]}
    told = [f"{name.removesuffix(', ensemble')} {each['mean']:.2f}" for name, each in last.items() if each]
    if not told:
        return []
    return [f"Rank correlation of maps with the trained model's (n = {n_of(last.values())}): {listed(told)}."]


def _control_answer(summary: Values) -> str:
    method, sign = next(iter(summary["routes"].values()))["method"], "signed"
    if summary["localisation"] is not None:
        # An aggregate is linear in no text; the first method in it stands for it.
        best = best_of(summary)
        method, sign = members(best["method"])[0], "absolute" if best["sign"] == "absolute" else "signed"
    way = next(
        each
        for each in summary["routes"].values()
        if each["method"] == method and each["sign"] == sign and each["route"] == "conventional"
    )
    return " ".join(
        _told_of_control(way, way["controls"][kind], told)
        for kind, told in (("gibberish", "gibberish"), ("irrelevant", "an irrelevant sentence"))
        if way["controls"][kind]["correlation"] is not None
    )


def _told_of_control(way: Values, control: Values, told: str) -> str:
    hits = f", and its peak lies in the finding in {cell(control['hit'])}" if control["hit"] is not None else ""
    return (
        f"The map of {told} correlates {cell(control['correlation'])} with that of the true text{hits} "
        f"(`{way_name(way)}`, n = {way['n']})."
    )


def is_same(claim: Values) -> bool:
    """Say whether a way's maps are those of the conventional route up to rounding."""
    measured = [claim[key] for key in ("between_texts", "hit") if claim[key] is not None]
    return all(abs(each[end]) < 1e-4 for each in measured for end in ("low", "high"))
