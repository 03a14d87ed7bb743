"""The prompt files that are shipped."""

import re
from pathlib import Path

import pytest

from mapstack.prompts import PromptSet, load_prompt_set

FOLDER = Path(__file__).parent.parent / "configs" / "prompts"


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


@pytest.fixture(scope="module")
def mimic() -> PromptSet:
    return load_prompt_set(FOLDER / "mimic_cxr.yaml")


def test_mimic_file_holds_the_fourteen_classes_with_ten_different_sentences_each(mimic: PromptSet) -> None:
    assert mimic.labels == (
        "No Finding",
        "Enlarged Cardiomediastinum",
        "Cardiomegaly",
        "Lung Lesion",
        "Lung Opacity",
        "Edema",
        "Consolidation",
        "Pneumonia",
        "Atelectasis",
        "Pneumothorax",
        "Pleural Effusion",
        "Pleural Other",
        "Fracture",
        "Support Devices",
    )
    assert [len(entry.prompts) for entry in mimic.classes] == [10] * 14
    sentences = [prompt for entry in mimic.classes for prompt in entry.prompts]
    assert len(set(sentences)) == 140
    assert max(map(len, sentences)) <= 200
    assert all(re.fullmatch(r"[A-Z][^.]*(\.\d[^.]*)?\.", sentence) for sentence in sentences)


LOCATION = words(
    "right left bilateral both sides bases bibasilar biapical upper lower middle mid apical central midline "
    "mediastinum mediastinal paratracheal perihilar lungs thoracic lingula lingular atrium ventricle hemidiaphragm "
    "carina heart"
)
INTENSITY = words(
    "mild mildly moderate moderately severe severely marked markedly small large massive trace tiny minimal slight "
    "slightly subtle faint dense extensive complete early borderline innumerable numerous satisfactory nondisplaced "
    "displaced good well much intact thick healed"
)
PATHOLOGY = {
    "Enlarged Cardiomediastinum": "widening widened dilatation enlarged mediastinal",
    "Cardiomegaly": "cardiomegaly enlarged enlargement",
    "Lung Lesion": "nodule nodules mass lesion granuloma",
    "Lung Opacity": "opacity opacities opacification",
    "Edema": "edema",
    "Consolidation": "consolidation",
    "Pneumonia": "pneumonia bronchopneumonia",
    "Atelectasis": "atelectasis collapse",
    "Pneumothorax": "pneumothorax pneumothoraces hydropneumothorax",
    "Pleural Effusion": "effusion effusions hemothorax",
    "Pleural Other": "thickening plaque plaques pleural pleura fibrothorax",
    "Fracture": "fracture fractures",
    "Support Devices": "tube catheter pacemaker port defibrillator",
}


@pytest.mark.parametrize("label", PATHOLOGY)
def test_sentences_of_a_finding_name_pathology_location_and_intensity(mimic: PromptSet, label: str) -> None:
    sentences = [words(prompt) for prompt in mimic.classes[mimic.labels.index(label)].prompts]
    assert all(sentence & words(PATHOLOGY[label]) for sentence in sentences)
    assert sum(bool(sentence & LOCATION) for sentence in sentences) >= 9
    assert sum(bool(sentence & INTENSITY) for sentence in sentences) >= 8
    assert any("right" in sentence for sentence in sentences)
    assert any("left" in sentence for sentence in sentences)


def test_phantom_file_uses_the_labels_of_the_mimic_file(mimic: PromptSet) -> None:
    phantom = load_prompt_set(FOLDER / "phantom.yaml")
    assert set(phantom.labels) == {
        "Consolidation",
        "Lung Lesion",
        "Pleural Effusion",
        "Cardiomegaly",
        "Pneumothorax",
        "Support Devices",
        "Atelectasis",
        "No Finding",
    } & set(mimic.labels)
    assert len(phantom.labels) == 8
    assert [len(entry.prompts) for entry in phantom.classes] == [4] * 8
