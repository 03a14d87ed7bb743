"""The sentences: what a radiologist would write of a finding."""

from collections.abc import Mapping

import numpy as np

# By label and variant. Every sentence of a set is true of every finding that the set is chosen for.
_SENTENCES: dict[str, dict[str, tuple[str, ...]]] = {
    "Consolidation": {
        "plain": (
            "{Size} area of {intensity} consolidation in the {side} {zone} lung zone.",
            "There is {a_intensity} {size} airspace opacity in the {side} {zone} zone, consistent with consolidation.",
            "{Intensity} ill-defined consolidation projects over the {side} {zone} lung.",
            "{Size} {intensity} consolidative opacity in the {zone} zone of the {side} lung.",
        ),
        "with bronchi": (
            "{Size} area of {intensity} consolidation with air bronchograms in the {side} {zone} lung zone.",
            "{Intensity} consolidation in the {zone} zone of the {side} lung, {size}, with visible air bronchograms.",
            "{Size} {intensity} airspace consolidation containing air bronchograms in the {side} {zone} zone.",
            "Air bronchograms within {a_size} {intensity} consolidation of the {side} {zone} lung.",
        ),
    },
    "Lung Lesion": {
        "nodule": (
            "{Size} {intensity} round nodule in the {side} {zone} lung zone.",
            "There is {a_size} {intensity} solitary pulmonary nodule in the {zone} zone of the {side} lung.",
            "{Intensity} rounded opacity in the {side} {zone} zone, compatible with {a_size} lung nodule.",
            "Solitary {size} nodule projecting over the {side} {zone} lung; it is {intensity}.",
        ),
        "mass": (
            "{Size} {intensity} round mass in the {side} {zone} lung zone.",
            "There is {a_size} {intensity} solitary pulmonary mass in the {zone} zone of the {side} lung.",
            "{Intensity} rounded opacity in the {side} {zone} zone, compatible with {a_size} lung mass.",
            "Solitary {size} mass projecting over the {side} {zone} lung; it is {intensity}.",
        ),
    },
    "Pleural Effusion": {
        "small": (
            "Small {side} pleural effusion blunting the costophrenic angle.",
            "Blunting of the {side} costophrenic angle in keeping with a small pleural effusion.",
            "There is a small amount of pleural fluid at the {side} lung base.",
            "Small free-flowing {side} pleural effusion with a meniscus at the lower lung zone.",
        ),
        "moderate": (
            "Moderate {side} pleural effusion with a meniscus, obscuring the hemidiaphragm.",
            "Moderate amount of {side} pleural fluid layering at the base, with a meniscus along the lateral wall.",
            "There is a moderate {side} pleural effusion; the {side} hemidiaphragm is no longer visible.",
            "Homogeneous opacity of the {side} lower zone with a meniscus, a moderate pleural effusion.",
        ),
        "large": (
            "Large {side} pleural effusion opacifying the lower hemithorax.",
            "There is a large {side} pleural effusion reaching the mid lung zone.",
            "Dense homogeneous opacity of the lower {side} hemithorax with a meniscus, a large pleural effusion.",
            "Large amount of {side} pleural fluid obscuring the hemidiaphragm and the lower lung.",
        ),
    },
    "Cardiomegaly": {
        "mild": (
            "Mild cardiomegaly with slight prominence of the left heart border.",
            "The heart is mildly enlarged.",
            "Mild enlargement of the cardiac silhouette.",
            "Cardiothoracic ratio slightly above one half, in keeping with mild cardiomegaly.",
        ),
        "moderate": (
            "Moderate cardiomegaly.",
            "The heart is moderately enlarged to both sides of the midline.",
            "Moderate global enlargement of the cardiac silhouette.",
            "Cardiothoracic ratio of about 0.6, in keeping with moderate cardiomegaly.",
        ),
        "severe": (
            "Severe cardiomegaly with the heart reaching toward the left lateral chest wall.",
            "Markedly enlarged heart with a cardiothoracic ratio well above one half.",
            "Severe global enlargement of the cardiac silhouette.",
            "The heart is severely enlarged.",
        ),
    },
    "Pneumothorax": {
        "small": (
            "Small {side} apical pneumothorax with a thin visible pleural line.",
            "There is a small {side} pneumothorax at the apex.",
            "Thin visceral pleural line at the {side} apex, without lung markings beyond it, a small pneumothorax.",
            "Small {side} pneumothorax, most conspicuous in the upper zone.",
        ),
        "moderate": (
            "Moderate {side} pneumothorax with absent lung markings beyond the lung edge.",
            "There is a moderate {side} pneumothorax along the apex and the lateral chest wall.",
            "Moderate {side} pneumothorax, most conspicuous in the upper zone, with a visible pleural line.",
            "Visceral pleural line displaced from the {side} chest wall, a moderate pneumothorax.",
        ),
        "large": (
            "Large {side} pneumothorax with partial collapse of the lung.",
            "There is a large {side} pneumothorax; no lung markings are seen peripherally.",
            "Large {side} pneumothorax extending from the apex down the lateral chest wall.",
            "The {side} lung is retracted from the chest wall by a large pneumothorax.",
        ),
    },
    "Atelectasis": {
        "single": (
            "{Intensity} {kind} atelectasis at the {side} lung base.",
            "Single band of {intensity} {kind} atelectasis in the {side} lower lung zone.",
            "There is {intensity} {kind} atelectasis in the {side} lower zone.",
            "{Kind} opacity at the {side} base in keeping with {intensity} subsegmental atelectasis.",
        ),
        "several": (
            "{Intensity} {kind} atelectasis at the {side} lung base, with {bands}.",
            "{Bands} of {intensity} {kind} atelectasis in the {side} lower lung zone.",
            "There are {bands} of {intensity} {kind} atelectasis at the {side} base.",
            "Several near-parallel {kind} opacities at the {side} base in keeping with {intensity} atelectasis.",
        ),
    },
    "Support Devices": {
        "tracheal tube": (
            "Endotracheal tube in the midline with its tip above the carina.",
            "The tip of the endotracheal tube projects over the trachea, above the carina.",
            "Endotracheal tube in standard position.",
            "An endotracheal tube is in place.",
        ),
        "catheter": (
            "{Side} central venous catheter with its tip over the superior vena cava.",
            "{Side} internal jugular line ending over the superior vena cava.",
            "A {side} jugular central venous catheter is in place.",
            "Central line inserted from the {side} side of the neck, with its tip over the superior vena cava.",
        ),
        "pacemaker": (
            "{Side}-sided pacemaker with a lead projecting over the heart.",
            "Pacemaker generator over the {side} upper chest, with a lead ending near the cardiac apex.",
            "{Side} chest wall pacing device with a lead overlying the heart.",
            "A {side} pectoral pacemaker is in place.",
        ),
        "chest tube": (
            "{Side} chest tube in good position, directed toward the apex.",
            "{Side} pleural drain entering laterally, with its tip in the upper zone.",
            "A {side} intercostal chest tube is in place.",
            "Chest tube projecting over the {side} hemithorax, with its tip near the apex.",
        ),
    },
    "No Finding": {
        "plain": (
            "Both lungs are clear, without opacity, nodule or pleural fluid.",
            "The heart is normal in size, and both costophrenic angles are sharp; no acute abnormality.",
            "Clear lungs; there is no pneumothorax, and no tube or line is in place.",
            "Normal frontal chest radiograph without any abnormality.",
            "No acute cardiopulmonary abnormality.",
            "Lungs are well aerated and clear, and the cardiomediastinal silhouette is normal.",
        ),
    },
}


def describe(label: str, variant: str, facts: Mapping[str, str], generator: np.random.Generator) -> str:
    """Write one sentence about a finding.

    Args:
        label: The class label.
        variant: The set of sentences that is true of it.
        facts: The word for each gap; a gap that begins with a capital gets the word with one, `{a_size}` the word with
            its article.
        generator: Chooses the sentence.

    Example:
        >>> facts = {"side": "left", "zone": "mid", "size": "small", "intensity": "dense"}
        >>> describe("Lung Lesion", "nodule", facts, np.random.default_rng(0))
        'Solitary small nodule projecting over the left mid lung; it is dense.'
    """
    sentences = _SENTENCES[label][variant]
    words = dict(facts)
    for gap, word in facts.items():
        words[gap.capitalize()] = word[:1].upper() + word[1:]
        words[f"a_{gap}"] = f"{'an' if word[:1] in 'aeiou' else 'a'} {word}"
    return sentences[int(generator.integers(len(sentences)))].format(**words)
