from functools import cache
from itertools import combinations

import numpy as np
import pytest

from mapstack.errors import InputError
from mapstack.phantom import _PATIENT, LABELS, Finding, Phantom, phantom
from mapstack.phantom.canvas import Canvas
from mapstack.phantom.patient import LEFT, RIGHT, draw_patient, lung_outline
from mapstack.phantom.wording import _SENTENCES, describe

DISEASES = [label for label in LABELS if label != "No Finding"]
IN_ONE_LUNG = ["Consolidation", "Lung Lesion", "Atelectasis", "Pleural Effusion", "Pneumothorax"]
SEEDS = range(4)


@cache
def one(seed: int, label: str) -> Phantom:
    return phantom(seed, size=224, labels=[label])


@cache
def normal(seed: int, size: tuple[int, int]) -> np.ndarray:
    return phantom(seed, size=size, labels=[]).pixels


def change(film: Phantom) -> np.ndarray:
    return film.pixels.astype(int) - normal(film.seed, film.pixels.shape)


def side_of(finding: Finding) -> int:
    words = finding.prompt.lower().replace("-", " ").split()
    return ("left" in words) - ("right" in words)


@pytest.fixture(scope="module", params=DISEASES)
def films(request: pytest.FixtureRequest) -> list[Phantom]:
    return [one(seed, request.param) for seed in SEEDS]


def test_the_same_seed_gives_the_same_bytes() -> None:
    first, again, other = phantom(3, size=224), phantom(3, size=224), phantom(4, size=224)
    assert first.pixels.tobytes() == again.pixels.tobytes()
    assert first.report == again.report
    assert [f.box for f in first.findings] == [f.box for f in again.findings]
    assert (first.pixels != other.pixels).mean() > 0.5


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_drawn_labels_are_as_if_they_had_been_asked_for(seed: int) -> None:
    drawn = phantom(seed, size=224)
    asked = phantom(seed, size=224, labels=drawn.labels)
    assert drawn.pixels.tobytes() == asked.pixels.tobytes()
    assert drawn.report == asked.report


@pytest.mark.parametrize("size", [224, 512, (336, 224), (230, 300)])
def test_size_is_height_and_width(size: int | tuple[int, int]) -> None:
    film = phantom(5, size=size, labels=["Consolidation"])
    assert film.pixels.dtype == np.uint8
    assert film.pixels.shape == ((size, size) if isinstance(size, int) else size)
    assert film.findings[0].mask.shape == film.pixels.shape
    assert not change(film)[~film.findings[0].mask].any()


def test_a_larger_film_shows_the_same_patient() -> None:
    small, large = (phantom(8, size=size, labels=["Consolidation"]) for size in (224, 448))
    assert small.report == large.report
    np.testing.assert_allclose(np.multiply(small.findings[0].box, 2), large.findings[0].box, atol=6)
    coarse = large.pixels.reshape(224, 2, 224, 2).mean(axis=(1, 3))
    assert np.abs(coarse - small.pixels).mean() < 4


def test_a_finding_changes_the_picture_inside_its_mask_and_nowhere_else(films: list[Phantom]) -> None:
    for film in films:
        (finding,) = film.findings
        difference = np.abs(change(film))
        assert difference[finding.mask].mean() > 15  # grey values
        assert not difference[~finding.mask].any()


def test_the_box_bounds_the_mask(films: list[Phantom]) -> None:
    for film in films:
        (finding,) = film.findings
        row0, column0, row1, column1 = finding.box
        assert all(type(edge) is int for edge in finding.box)
        inside = np.zeros_like(finding.mask)
        inside[row0:row1, column0:column1] = True
        assert not finding.mask[~inside].any()
        edges = finding.mask[[row0, row1 - 1]].any(axis=1), finding.mask[:, [column0, column1 - 1]].any(axis=0)
        assert np.all(edges)


def test_only_a_pneumothorax_is_darker(films: list[Phantom]) -> None:
    for film in films:
        (finding,) = film.findings
        mean_change = change(film)[finding.mask].mean()
        assert mean_change < 0 if finding.label == "Pneumothorax" else mean_change > 0


@pytest.mark.parametrize("label", IN_ONE_LUNG)
def test_the_patients_left_is_on_the_viewers_right(label: str) -> None:
    sides = set()
    for seed in range(6):
        (finding,) = one(seed, label).findings
        columns = np.nonzero(finding.mask)[1]
        assert side_of(finding) != 0
        assert ((columns > 112) == (side_of(finding) == 1)).mean() > 0.95
        sides.add(side_of(finding))
    assert sides == {-1, 1}


def test_a_device_reaches_farthest_out_on_the_side_that_is_named() -> None:
    named = 0
    for seed in range(9):
        (finding,) = one(seed, "Support Devices").findings
        columns = np.nonzero(finding.mask)[1] - 112
        if side := side_of(finding):
            assert np.sign(columns[np.abs(columns).argmax()]) == side
            named += 1
        else:
            assert np.abs(columns).max() < 0.1 * 224  # a tube in the trachea
    assert 0 < named < 9


@pytest.mark.parametrize("label", ["Consolidation", "Lung Lesion"])
def test_the_zone_is_where_the_finding_is(label: str) -> None:
    heights: dict[str, list[float]] = {"upper": [], "mid": [], "lower": []}
    for seed in range(12):
        (finding,) = one(seed, label).findings
        (zone,) = (zone for zone in heights if zone in finding.prompt.split())
        heights[zone].append(np.nonzero(finding.mask)[0].mean() / 224)
    assert max(heights["upper"]) < 0.42 < min(heights["lower"])
    assert max(heights["upper"]) < np.median(heights["mid"]) < min(heights["lower"])


def lungs(seed: int) -> np.ndarray:
    """Inside the rib cage above the diaphragm, as the patient is drawn from the seed."""
    patient = draw_patient(np.random.default_rng([seed, _PATIENT]))
    canvas = Canvas((224, 224), patient.pose)
    return sum(canvas.fill([lung_outline(patient, side)]) for side in (LEFT, RIGHT)) > 0.5


@pytest.mark.parametrize("label", ["Consolidation", "Lung Lesion", "Atelectasis", "Pneumothorax"])
def test_what_is_found_in_the_lung_lies_in_the_lung(label: str) -> None:
    for seed in range(9):
        (finding,) = one(seed, label).findings
        assert (finding.mask & ~lungs(seed)).sum() < 0.04 * finding.mask.sum()


@pytest.mark.parametrize("seed", [38, 72, 91, 102, 127])
@pytest.mark.parametrize("others", [[], ["Cardiomegaly"]])
def test_a_nodule_finds_room_in_the_lung(seed: int, others: list[str]) -> None:
    """At the apex, over the diaphragm and beside an enlarged heart there is little of it."""
    finding = phantom(seed, size=224, labels=[*others, "Lung Lesion"]).findings[-1]
    assert not (finding.mask & ~lungs(seed)).any()
    assert ((np.nonzero(finding.mask)[1] > 112) == (side_of(finding) == 1)).all()


def test_a_nodule_is_as_large_as_its_word_says() -> None:
    widths: dict[str, list[float]] = {"small": [], "medium-sized": [], "large": []}
    for seed in range(12):
        (finding,) = one(seed, "Lung Lesion").findings
        height, width = (last - first for first, last in zip(finding.box[:2], finding.box[2:], strict=True))
        assert 0.75 < height / width < 1.33  # round
        (word,) = (word for word in widths if word in finding.prompt.lower().replace(",", "").split())
        widths[word].append(np.sqrt(4 * finding.mask.sum() / np.pi))
    small, medium, large = widths.values()
    assert 12 < min(small) <= max(small) < min(medium) <= max(medium) < min(large) <= max(large) < 36  # px


def test_an_enlarged_heart_lies_across_the_midline_and_more_to_the_patients_left() -> None:
    for seed in SEEDS:
        (finding,) = one(seed, "Cardiomegaly").findings
        _, column0, _, column1 = finding.box
        assert 20 < 112 - column0 < column1 - 112


@pytest.mark.parametrize("pair", list(combinations(DISEASES, 2)), ids="+".join)
def test_any_two_findings_go_together(pair: tuple[str, str]) -> None:
    film = phantom(6, size=224, labels=pair)
    assert sorted(film.labels) == sorted(pair) == sorted(finding.label for finding in film.findings)
    assert film.report == " ".join(finding.prompt for finding in film.findings)
    difference = np.abs(change(film))
    union = np.logical_or(*(finding.mask for finding in film.findings))
    assert not difference[~union].any()
    for finding in film.findings:
        assert finding.mask.sum() > 100
        assert difference[finding.mask].mean() > 12
    if set(pair) <= set(IN_ONE_LUNG):
        assert sorted(side_of(finding) for finding in film.findings) == [-1, 1]
        assert not np.logical_and(*(finding.mask for finding in film.findings)).any()


def test_a_normal_film_has_a_sentence_and_no_finding() -> None:
    empty, named = phantom(2, size=224, labels=[]), phantom(2, size=224, labels=["No Finding"])
    assert empty.pixels.tobytes() == named.pixels.tobytes()
    for film in (empty, named):
        assert film.labels == ("No Finding",)
        assert film.findings == ()
        assert film.report in _SENTENCES["No Finding"]["plain"]


def test_a_film_is_black_in_air_dark_in_the_lungs_and_bright_in_the_middle_and_below() -> None:
    for seed in SEEDS:
        pixels = normal(seed, (224, 224)).astype(float)
        air, lungs = pixels[:12, 4:40].mean(), pixels[80:110, [*range(40, 70), *range(160, 185)]].mean()
        middle, abdomen = pixels[100:130, 102:122].mean(), pixels[200:, 70:150].mean()
        assert air < 25 < lungs < middle - 60
        assert middle < abdomen


def test_drawn_films_are_normal_single_and_double() -> None:
    films = [phantom(seed, size=224) for seed in range(16)]
    counts = [len(film.findings) for film in films]
    assert set(counts) == {0, 1, 2}
    assert 1 <= counts.count(0) <= 6
    assert {label for film in films for label in film.labels} == set(LABELS)


class Nth(np.random.Generator):
    def __init__(self, index: int) -> None:
        super().__init__(np.random.PCG64())
        self.index = index

    def integers(self, n: int) -> int:
        return self.index % n


@pytest.mark.parametrize("label", LABELS)
def test_every_sentence_is_whole(label: str) -> None:
    facts = {"side": "left", "zone": "upper", "size": "small", "intensity": "faint"}
    facts |= {"kind": "linear", "bands": "two bands"}
    for variant, sentences in _SENTENCES[label].items():
        written = {describe(label, variant, facts, Nth(index)) for index in range(len(sentences))}
        assert len(written) == len(sentences) >= 4
        for sentence in written:
            assert sentence[0].isupper()
            assert sentence.endswith(".")
            assert not set("{}") & set(sentence)
            assert label == "No Finding" or label in ("Cardiomegaly", "Support Devices") or "left" in sentence.lower()


def test_articles_follow_the_word() -> None:
    facts = {"side": "right", "zone": "mid", "size": "extensive", "intensity": "dense"}
    assert "There is a dense extensive" in describe("Consolidation", "plain", facts, Nth(1))
    assert "There is an extensive dense" in describe("Lung Lesion", "nodule", facts, Nth(1))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"labels": ["Nodule"]}, "label 'Nodule' is unknown; choose one of Cardiomegaly, "),
        ({"labels": ["Consolidations"]}, "Did you mean 'Consolidation'?"),
        ({"labels": ["No Finding", "Atelectasis"]}, "labels No Finding, Atelectasis do not go together; "),
        ({"labels": ["Atelectasis", "Atelectasis"]}, "labels Atelectasis, Atelectasis do not go together; "),
        ({"labels": DISEASES[:3]}, "one or two different findings"),
        ({"size": 200}, "size 200 x 200 px is out of range; each side of a phantom is 224 to 512 px"),
        ({"size": (224, 513)}, "size 224 x 513 px is out of range"),
        ({"size": (224, 337)}, "the longer one at most 1.5 times the shorter"),
        ({"seed": -1}, "seed -1 is negative; a seed is an integer of at least 0; choose another."),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError) as refused:
        phantom(**{"seed": 0, **arguments})
    assert sentence in str(refused.value)
