"""report.md: what was found, in tables and plain sentences that the numbers write."""

from collections.abc import Sequence
from pathlib import Path

from mapstack.metrics.chexlocalize import MIMIC_LABELS
from train_like.evaluation.answers import answers, best_of
from train_like.evaluation.charts import short_stage
from train_like.evaluation.intervals import MIN_PICTURES
from train_like.evaluation.randomised import TRAINED
from train_like.evaluation.tables import METRICS, Values, cell, n_of, table, way_name

_OVERLAPS = ("mass", "rank", "iou_otsu")
_PUBLISHED = (
    ("radiologists (as quoted in arXiv 2509.18015)", "0.801"),
    ("task-specific CNN with Grad-CAM (ibid.)", "0.599"),
)


def write_report(summary: Values, path: Path) -> None:
    """Write the report of a summary."""
    parts = [_head, answers, _routes, _faithfulness, _stability, _cascade, _pictures]
    if summary["localisation"] is not None:
        parts[2:2] = [_localisation, _settings]
    if summary["about"]["ground_truth"] and summary["localisation"] is not None:
        parts[2:2] = [_chexlocalize]
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
            _resting(pictures),
            "Brackets are 95 % intervals of 1,000 bootstrap replicates over pictures; n is how many pictures count; "
            f"below {MIN_PICTURES} there is no interval and no verdict.",
            "",
            f"Zero-shot accuracy (the class of highest logit is one that the picture has): "
            f"{cell(about['zero_shot'])}, n = {about['zero_shot']['n']}.",
        ]
    )


def _resting(pictures: Values) -> str:
    costly = f"routes and faithfulness rest on {pictures['matrix']}, what costs most on {pictures['axes']}."
    if not pictures["validation"]:
        return (
            f"Evaluated without regions: of {pictures['test']} pictures nothing is located and no setting chosen; "
            f"methods are as configured; {costly}"
        )
    return (
        f"Settings and thresholds were chosen on {pictures['validation']} validation pictures "
        f"({pictures['validation_with_regions']} with a finding). Localisation rests on the "
        f"{pictures['test_with_regions']} of {pictures['test']} test pictures that have a finding; {costly}"
    )


def _chexlocalize(summary: Values) -> str:
    """Write the table in the form in which the benchmark is published."""
    best = best_of(summary)
    mask = next(each for each in summary["localisation"]["settings"] if each["method"] == "mean mask of the label")
    labels = [label for label in MIMIC_LABELS.values() if label in best["by_finding"]]
    heads = ["", "hit rate, mean over findings", "mIoU, mean over findings", *labels]
    rows = [[name, rate, *[""] * (1 + len(labels))] for name, rate in _PUBLISHED]
    for name, each in (
        (f"`{summary['about']['model']}`, {best['setting']}", best),
        ("mean mask of the label, which looks at no image", mask),
    ):
        by_finding = [each["by_finding"].get(label, {}) for label in labels]
        rows.append(
            [
                name,
                cell(each["hit"]),
                cell(each["iou"]),
                *(f"{cell(found.get('hit'))}; {cell(found.get('iou'))}" for found in by_finding),
            ]
        )
    counts = [f"{label} (n = {n_of([best['by_finding'][label]['hit']])})" for label in labels]
    return "\n\n".join(
        [
            "## CheXlocalize",
            f"Means are over {len(labels)} findings: {', '.join(counts)}; the published ones are over nine: compare "
            "finding by finding. Of each finding the hit rate, then the mIoU at the threshold of the validation split.",
            table(heads, rows),
        ]
    )


def _localisation(summary: Values) -> str:
    settings = summary["localisation"]["settings"]
    rows = [
        [each["setting"], n_of(each[metric] for metric in METRICS), *(cell(each[metric]) for metric in METRICS)]
        for each in settings
    ]
    labels = sorted({label for each in settings for label in each["by_finding"]})
    return "\n\n".join(
        [
            "## Localisation",
            "The chosen setting of each method and sign, and methods that look at no model; means over findings.",
            table(["setting", "n", *METRICS.values()], rows),
            "Hit rate by finding.",
            _by_finding(settings, labels, "hit"),
            "mIoU by finding, at the threshold chosen on the validation split.",
            _by_finding(settings, labels, "iou"),
        ]
    )


def _by_finding(settings: Sequence[Values], labels: Sequence[str], metric: str) -> str:
    found = {label: [each["by_finding"].get(label, {}).get(metric) for each in settings] for label in labels}
    heads = [f"{label} (n = {n_of(column)})" for label, column in found.items()]
    rows = [
        [each["setting"], *(cell(column[row]) for column in found.values())]
        for row, each in enumerate(settings)
        if any(column[row] for column in found.values()) or not each["is_reference"]
    ]
    return table(["setting", *heads], rows)


def _settings(summary: Values) -> str:
    ranked = sorted(summary["localisation"]["every_setting"], key=lambda each: -each.get("mean", -1))
    rows = [[each["setting"], cell(each)] for each in ranked if "mean" in each]
    return "\n\n".join(
        [
            "## Every setting of the chosen candidates",
            f"Hit rate, mean over findings (n = {n_of(each for each in ranked if 'n' in each)}): what text form, "
            "contrast, sign and smoothing do. Told after the choice; the best of so many is better than it will be on "
            "other pictures.",
            table(["setting", "hit rate"], rows),
        ]
    )


def _routes(summary: Values) -> str:
    forms = list(next(iter(summary["routes"].values()))["hit"])
    localised, specific = [], []
    for way in summary["routes"].values():
        name = way_name(way)
        overlaps = [cell(way["overlap"][metric]) for metric in _OVERLAPS]
        localised.append([name, str(way["n"]), *(cell(way["hit"][form]) for form in forms), *overlaps])
        specific.append(
            [
                name,
                str(way["n"]),
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
    of_places = [
        "Share of findings hit, without smoothing; of the ensemble without contrast the overlaps, too.",
        table(["way", "n", *forms, *(METRICS[metric] for metric in _OVERLAPS)], localised),
    ]
    return "\n\n".join(
        [
            "## Methods, routes, signs and text forms",
            *(of_places if summary["localisation"] is not None else []),
            "How alike the maps of different texts on one picture are, and what texts that are true of no X-ray give. "
            "A control hits where its map peaks inside the finding.",
            table(["way", "n", *heads, "irrelevant: hits", "outside the body"], specific),
        ]
    )


def _faithfulness(summary: Values) -> str:
    metrics = ("deletion", "insertion", "infidelity", "completeness")
    rows = [
        [name, n_of([each["deletion"]]), *(cell(each[metric]) for metric in metrics)]
        for name, each in summary["faithfulness"].items()
    ]
    heads = ["deletion AUC (lower)", "insertion AUC (higher)", "infidelity (lower)", "completeness residual (lower)"]
    return "\n\n".join(
        [
            "## Faithfulness",
            "The class ensemble of the first finding of each picture; areas in logits, pixels replaced by a blur; "
            "infidelity with the best scale (Captum's `normalize`); the residual where a map claims completeness. The "
            "best setting is scored beside the plain maps, by the same logit.",
            table(["map", "n", *heads], rows),
        ]
    )


def _stability(summary: Values) -> str:
    rows = [
        [
            method,
            n_of([each["max_sensitivity"]]),
            cell(each["max_sensitivity"]),
            f"{each['same_seed']:.1e}",
            cell(each["other_seed"]),
        ]
        for method, each in summary["stability"].items()
    ]
    heads = ["method", "n", "max-sensitivity (lower)", "same seed: largest difference", "other seed: correlation"]
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
        points = [point for ways in cascade["ways"].values() for point in ways[metric]]
        if not any(points):
            continue  # without regions there are no hits
        told = f"{told} n = {n_of(points)}."
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
    return "\n\n".join(
        [
            "## Pictures",
            *map(_linked, shown),
            "The paper's figures: Fig. 1, each method applied to the final output; Fig. 2, one stack projected on "
            "texts, in the paper's wording (absolute gradients of the raw embedding) and by the best candidate "
            "(signed, normalised).",
            *map(_linked, summary["paper"]),
        ]
    )


def _linked(name: str) -> str:
    return f"![{name}](figures/{name}.png)"
