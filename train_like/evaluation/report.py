"""report.md: what was found, in tables and plain sentences that the numbers write."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from train_like.evaluation.charts import short_stage
from train_like.evaluation.randomised import TRAINED
from train_like.evaluation.settings import members

Values = Mapping[str, Any]

_CLAIM_HEADS = {
    "between_texts": "correlation between texts",
    "hit": "findings hit",
    "between_texts_randomised": "correlation between texts, all weights random",
}


def write_report(summary: Values, path: Path) -> None:
    """Write the report of a summary."""
    parts = (_head, _answers, _localisation, _settings, _routes, _faithfulness, _stability, _cascade, _pictures)
    path.write_text("\n\n".join(part(summary) for part in parts) + "\n", encoding="utf-8")


def _head(summary: Values) -> str:
    about, pictures = summary["about"], summary["about"]["pictures"]
    return "\n".join(
        [
            "# Evaluation of maps",
            "",
            f"Model `{about['model']}`: {about['note']}. Weights {about['fingerprint'][:12]}, mapstack "
            f"{about['version']}, seed {about['seed']}, {summary['seconds']} s.",
            "",
            f"Settings and thresholds were chosen on {pictures['validation']} validation pictures "
            f"({pictures['validation_with_regions']} with a region). Localisation rests on {pictures['test']} test "
            f"pictures, routes and faithfulness on {pictures['matrix']}, what costs most on {pictures['axes']}. "
            "Brackets are 95 % intervals of 1,000 bootstrap replicates over pictures; n is how many pictures count.",
            "",
            f"Zero-shot accuracy (the class of highest logit is one that the picture has): "
            f"{cell(about['zero_shot'])}, n = {about['zero_shot']['n']}.",
        ]
    )


def _answers(summary: Values) -> str:
    localisation = summary["localisation"]
    best = next(each for each in localisation["settings"] if each["setting"] == localisation["best"])
    findings = {label: each["hit"] for label, each in best["by_finding"].items() if each["hit"]}
    weakest = min(findings, key=lambda label: findings[label]["mean"])
    return "\n\n".join(
        [
            "## Answers",
            f"**Where does the best map point?** `{best['setting']}`, chosen on the validation split, hits "
            f"{cell(best['hit'])} of the findings; its weakest is {weakest} with {cell(findings[weakest])}.",
            f"**Is that better than looking at no model?** {_reference_answer(summary)}",
            "**Are the stack's maps more specific and better located than conventional ones?** "
            f"{_claim_answer(summary)}",
            _claim_table(summary),
            "**Are route and stack the same map?** Largest difference between the conventional map and the projected "
            "stack, relative to the maximum: "
            + "; ".join(
                f"{method} {each['largest']:.1e} (n = {each['n']})" for method, each in summary["agreement"].items()
            )
            + ".",
            f"**Would a text without meaning give the same map?** {_control_answer(summary, best)}",
        ]
    )


def _reference_answer(summary: Values) -> str:
    compared = summary["localisation"]["against_references"]
    sentences = []
    for setting in dict.fromkeys(each["setting"] for each in compared):
        lost = [each["reference"] for each in compared if each["setting"] == setting and each["low"] <= 0]
        verdict = f"does not beat {', '.join(lost)}" if lost else "beats every reference method"
        sentences.append(f"`{setting}` {verdict}.")
    return "A method beats another where the interval of the difference of hits excludes zero. " + " ".join(sentences)


def _claim_answer(summary: Values) -> str:
    """Say for which ways the paper's claim holds; a difference counts where its interval excludes zero."""
    different = [claim for claim in summary["claims"] if not is_same(claim)]
    specific = [claim for claim in different if claim["between_texts"]["high"] < 0]
    both = [claim for claim in specific if claim["hit"]["low"] > 0]
    same = [way_name(claim) for claim in summary["claims"] if is_same(claim)]
    sentences = [
        f"Both at once: {_listed(way_name(claim) for claim in both)}.",
        f"More specific, though not better located: {_listed(way_name(c) for c in specific if c not in both)}.",
        f"Neither: {_listed(way_name(claim) for claim in different if claim not in specific)}.",
    ]
    if same:
        sentences.append(f"The same map as the conventional one, since the method is linear: {_listed(same)}.")
    return " ".join(sentences)


def _claim_table(summary: Values) -> str:
    rows = [
        [way_name(claim), str(claim["between_texts"]["n"]), *(cell(claim[key]) for key in _CLAIM_HEADS)]
        for claim in summary["claims"]
        if not is_same(claim)
    ]
    note = "Stack less conventional, for the same method and sign, on the same pictures (class ensembles)."
    return f"{note}\n\n" + table(["way", "n", *_CLAIM_HEADS.values()], rows)


def _control_answer(summary: Values, best: Values) -> str:
    # An aggregate is linear in no text; the first method in it stands for it.
    method, sign = members(best["method"])[0], "absolute" if best["sign"] == "absolute" else "signed"
    way = next(
        each
        for each in summary["routes"].values()
        if each["method"] == method and each["sign"] == sign and each["route"] == "conventional"
    )
    return " ".join(
        f"The map of {told} correlates {cell(way['controls'][kind]['correlation'])} with that of the true text, and "
        f"its peak lies in the finding in {cell(way['controls'][kind]['hit'])} (`{way_name(way)}`, n = {way['n']})."
        for kind, told in (("gibberish", "gibberish"), ("irrelevant", "an irrelevant sentence"))
        if way["controls"][kind]["correlation"] is not None
    )


def is_same(claim: Values) -> bool:
    """Say whether a way's maps are those of the conventional route up to rounding."""
    return all(abs(claim[key][end]) < 1e-4 for key in ("between_texts", "hit") for end in ("low", "high"))


def way_name(way: Values) -> str:
    """Write a method with its route and sign.

    Example:
        >>> way_name({"method": "gradient", "route": "stack_raw", "sign": "absolute"})
        'gradient, stack raw, absolute'
    """
    return f"{way['method']}, {way['route'].replace('_', ' ')}, {way['sign']}"


def _listed(names: Iterable[str]) -> str:
    return "; ".join(names) or "none"


def _localisation(summary: Values) -> str:
    settings = summary["localisation"]["settings"]
    heads = ("hit rate", "pointing game (15 px)", "mIoU (tuned)", "mIoU (Otsu)", "relevance mass", "relevance rank")
    metrics = ("hit", "pointing", "iou", "iou_otsu", "mass", "rank")
    rows = [[each["setting"], *(cell(each[metric]) for metric in metrics)] for each in settings]
    labels = sorted({label for each in settings for label in each["by_finding"]})
    by_finding = [
        [each["setting"], *(cell(each["by_finding"].get(label, {}).get("hit")) for label in labels)]
        for each in settings
    ]
    overlaps = [
        [each["setting"], *(cell(each["by_finding"].get(label, {}).get("iou")) for label in labels)]
        for each in settings
        if not each["is_reference"]
    ]
    return "\n\n".join(
        [
            "## Localisation",
            "The chosen setting of each method and sign, and methods that look at no model; means over findings.",
            table(["setting", *heads], rows),
            "Hit rate by finding.",
            table(["setting", *labels], by_finding),
            "mIoU by finding, at the threshold chosen on the validation split.",
            table(["setting", *labels], overlaps),
        ]
    )


def _settings(summary: Values) -> str:
    ranked = sorted(summary["localisation"]["every_setting"], key=lambda each: -each.get("mean", -1))
    rows = [[each["setting"], cell(each)] for each in ranked if "mean" in each]
    return "\n\n".join(
        [
            "## Every setting of the chosen candidates",
            "Hit rate, mean over findings: what text form, contrast, sign and smoothing do. Told after the choice; the "
            "best of so many is better than it will be on other pictures.",
            table(["setting", "hit rate"], rows),
        ]
    )


def _routes(summary: Values) -> str:
    forms = list(next(iter(summary["routes"].values()))["hit"])
    localised, specific = [], []
    for way in summary["routes"].values():
        name = way_name(way)
        localised.append([name, str(way["n"]), *(cell(way["hit"][form]) for form in forms)])
        specific.append(
            [
                name,
                *(cell(each) for each in way["between_texts"].values()),
                cell(way["ssim"]),
                *(
                    cell(way["controls"][kind][what])
                    for kind in ("gibberish", "irrelevant")
                    for what in ("correlation", "hit")
                ),
                cell(way["outside_body"]),
            ]
        )
    heads = [f"correlation between texts ({form})" for form in next(iter(summary["routes"].values()))["between_texts"]]
    heads += ["SSIM (ensemble)", "gibberish: correlation", "gibberish: hits", "irrelevant: correlation"]
    return "\n\n".join(
        [
            "## Methods, routes, signs and text forms",
            "Share of findings hit, without smoothing.",
            table(["way", "n", *forms], localised),
            "How alike the maps of different texts on one picture are, and what texts that are true of no X-ray give. "
            "A control hits where its map peaks inside the finding.",
            table(["way", *heads, "irrelevant: hits", "outside the body"], specific),
        ]
    )


def _faithfulness(summary: Values) -> str:
    metrics = ("deletion", "insertion", "infidelity", "completeness")
    rows = [[name, *(cell(each[metric]) for metric in metrics)] for name, each in summary["faithfulness"].items()]
    heads = ["deletion AUC (lower)", "insertion AUC (higher)", "infidelity (lower)", "completeness residual (lower)"]
    return "\n\n".join(
        [
            "## Faithfulness",
            "The class ensemble of the first finding of each picture; areas in logits, pixels replaced by a blur; "
            "infidelity with the best scale (Captum's `normalize`); the residual where a map claims completeness.",
            table(["map", *heads], rows),
        ]
    )


def _stability(summary: Values) -> str:
    rows = [
        [method, cell(each["max_sensitivity"]), f"{each['same_seed']:.1e}", cell(each["other_seed"])]
        for method, each in summary["stability"].items()
    ]
    heads = ["method", "max-sensitivity (lower)", "same seed: largest difference", "other seed: correlation"]
    return "\n\n".join(["## Stability", table(heads, rows)])


def _cascade(summary: Values) -> str:
    cascade = summary["cascade"]
    tables = []
    for metric, told in (
        (
            "spearman",
            "Rank correlation with the trained model's map: a map that survives does not explain the weights.",
        ),
        ("ssim", "Structural similarity with the trained model's map."),
        ("between_texts", "Correlation between the maps of different texts on one picture."),
        ("hit", "Hit rate."),
    ):
        rows = [[name, *(cell(point) for point in ways[metric])] for name, ways in cascade["ways"].items()]
        tables += [told, table(["map", *map(short_stage, cascade["stages"])], rows)]
    return "\n\n".join(
        [
            "## Weight randomisation",
            f"From `{TRAINED}` on, each column randomises one stage more, from the embedding back to the picture.",
            *tables,
        ]
    )


def _pictures(summary: Values) -> str:
    shown = [*summary["charts"], *(f"best/{name}" for name in summary["gallery"])]
    return "\n\n".join(["## Pictures", *(f"![{name}](figures/{name}.png)" for name in shown)])


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(values: Values | None) -> str:
    """Write a mean with its interval.

    Example:
        >>> cell({"mean": 0.5, "low": 0.25, "high": 0.75}), cell(None)
        ('0.50 [0.25, 0.75]', '')
    """
    if values is None:
        return ""
    return f"{values['mean']:.2f} [{values['low']:.2f}, {values['high']:.2f}]"
