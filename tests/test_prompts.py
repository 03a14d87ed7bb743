from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mapstack.errors import ConfigError, InputError
from mapstack.prompts import (
    MAX_TEXT_LENGTH,
    PromptClass,
    PromptSet,
    TextGroup,
    all_texts,
    load_prompt_set,
    text_fault,
    text_groups,
)

SECRET = "Mrs Canary of ward seven"
EDEMA = PromptClass("Edema", ("Mild edema.", "Severe edema."))
FRACTURE = PromptClass("Fracture", ("Old rib fracture.", "New rib fracture.", "Clavicle fracture."))
NORMAL = PromptClass("No Finding", ("Clear lungs.",))
SET = PromptSet((EDEMA, FRACTURE, NORMAL))


@pytest.fixture
def plain_types() -> Iterator[None]:
    """What a user meets who gives a wrong type, also when the suite runs under jaxtyping's import hook."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def groups(**changes: Any) -> tuple[TextGroup, ...]:
    wanted: dict[str, Any] = {
        "prompt_set": SET,
        "texts": (),
        "use": "prompts",
        "ensemble": "mean",
        "classes": None,
        "against": None,
    }
    return text_groups(**{**wanted, **changes})


def written(folder: Path, content: object) -> Path:
    path = folder / "set.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


# Reading a file


@given(
    st.lists(
        st.lists(
            st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1), min_size=2, max_size=4, unique=True
        ),
        min_size=1,
        max_size=3,
    )
)
def test_what_was_written_is_read_in_its_order(
    tmp_path_factory: pytest.TempPathFactory, content: list[list[str]]
) -> None:
    entries = [
        {"label": f"Class {number}", "prompts": [f"{place} {text}" for place, text in enumerate(texts)]}
        for number, texts in enumerate(content)
    ]
    read = load_prompt_set(written(tmp_path_factory.mktemp("sets"), {"classes": entries}))
    assert [{"label": entry.label, "prompts": list(entry.prompts)} for entry in read.classes] == entries


def test_folded_text_loses_its_final_newline_only(tmp_path: Path) -> None:
    text = "classes:\n  - label: Edema\n    prompts:\n      - >\n        Mild edema\n        at the bases.\n"
    assert load_prompt_set(written(tmp_path, text)).classes[0].prompts == ("Mild edema at the bases.",)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([], "the file is of type list; it must be a mapping with the keys classes; write it as one."),
        ("", "the file is of type NoneType; it must be a mapping with the keys classes; write it as one."),
        ({"classes": []}, "the list of classes is empty; a prompt set needs at least one; add a class."),
        ({"classes": {"Edema": []}}, "classes is of type dict; it must be a list; write each item after a dash."),
        ({"classes": ["Edema"]}, "class 1 is of type str; it must be a mapping with the keys label, prompts; "),
        ({"classes": [{"label": "Edema"}]}, "class 1 has no key 'prompts'; its keys are label, prompts; add it."),
        (
            {"classes": [], SECRET: 1},
            f"key 2 of the file ({len(SECRET)} characters) is unknown; its keys are classes; remove it, or quote",
        ),
        (
            {"classes": [{"label": "Edema", "prompts": ["Mild."], "weights": [1]}]},
            "key 3 of class 1 (7 characters) is unknown; its keys are label, prompts; remove it",
        ),
        (
            {"classes": [{"label": "Edema", "prompts": SECRET}]},
            "class 1: prompts is of type str; it must be a list; write each item after a dash.",
        ),
        (
            {"classes": [{"label": "Edema", "prompts": []}]},
            "class 1: the list of prompts is empty; a class needs at least one; add a sentence.",
        ),
        (
            {"classes": [{"label": "Edema", "prompts": ["Mild.", 3]}]},
            "class 1: prompt 2 is of type int; it must be a text; put it in quotes.",
        ),
        (
            "classes: [{label: No, prompts: [Mild.]}]",
            "class 1: the label is of type bool; it must be a text; put it in quotes.",
        ),
        (
            {"classes": [{"label": "Edema", "prompts": ["Mild.", " \n"]}]},
            "class 1: prompt 2 is blank (0 characters); a text must have a visible character; write one",
        ),
        (
            {"classes": [{"label": "Edema", "prompts": [SECRET * 100]}]},
            "class 1: prompt 1 has 2,400 characters; a text has at most 2,000; shorten it.",
        ),
        (
            {"classes": [{"label": "Edema", "prompts": [SECRET, "Mild.", f" {SECRET.upper()} "]}]},
            f"class 1: prompt 3 ({len(SECRET)} characters) repeats prompt 1; the sentences of a class must differ;",
        ),
        (
            {"classes": [{"label": "Edema", "prompts": ["a"]}, {"label": "edema", "prompts": ["b"]}]},
            "class 2 has the label of class 1; labels must differ, capitals aside; rename one.",
        ),
        (
            {"classes": [{"label": "Edema\nof the lung", "prompts": ["a"]}]},
            "class 1: the label has more than one line; a class label is one line; write it on one.",
        ),
    ],
)
@pytest.mark.usefixtures("plain_types")
def test_wrong_content_is_refused_in_one_sentence(tmp_path: Path, content: object, sentence: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        load_prompt_set(path)
    assert str(caught.value).startswith(f"prompt file '{path}': {sentence}")
    assert SECRET.lower() not in str(caught.value).lower()


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (f"classes:\n  - label: Edema\n    prompts: [{SECRET}: : x]\n", " at line 3, column"),
        (
            f"classes:\n  - label: a\n    prompts: [{SECRET}]\n    label: b\n",
            " at line 2, column 5 (a key comes twice)",
        ),
        (f"classes: [{SECRET}\n", " at line 2, column 1"),
        (f"classes: !!python/object/apply:os.system [{SECRET}]\n", " at line 1, column 10"),
        ("classes: [{label: Edema, prompts: [2020-13-45]}]\n", ""),
        ("classes: " + "[" * 1500, ""),
    ],
)
def test_broken_yaml_is_refused_by_its_place_and_unquoted(tmp_path: Path, text: str, place: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_prompt_set(path)
    assert str(caught.value).startswith(f"prompt file '{path}' is not valid YAML{place}")
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None  # the parser's own message quotes the line
    assert caught.value.__suppress_context__


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml' cannot be read \(no such file or directory\); give the path"):
        load_prompt_set(tmp_path / "gone.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"classes: \xe9")
    with pytest.raises(ConfigError, match=r"latin\.yaml' is not UTF-8 at byte 9; a prompt file is UTF-8; save it so"):
        load_prompt_set(tmp_path / "latin.yaml")


# Texts


def test_text_of_the_longest_length_is_accepted_and_one_more_is_not() -> None:
    assert text_fault("a" * MAX_TEXT_LENGTH) is None
    assert text_fault("a" * (MAX_TEXT_LENGTH + 1)) == "has 2,001 characters; a text has at most 2,000; shorten it."


@pytest.mark.parametrize("text", ["", " ", "\t\n", "\u00a0\u2003", "\u200b", "\x00\x07"])
def test_text_without_a_visible_character_is_blank(text: str) -> None:
    assert str(text_fault(text)).startswith(f"is blank ({len(text)} characters)")


@pytest.mark.parametrize("text", ["?", "Ödem", "肺炎", " edema "])
def test_text_with_a_visible_character_is_accepted(text: str) -> None:
    assert text_fault(text) is None


def test_half_of_a_surrogate_pair_is_refused() -> None:
    assert "valid Unicode" in str(text_fault("edema \ud800"))
    with pytest.raises(InputError, match=r"^text 2 \(7 characters\) holds half of a surrogate pair"):
        groups(prompt_set=None, texts=["edema", "edema \udfff"])


# Groups


def test_free_texts_are_groups_of_one_whatever_use_and_ensemble_say() -> None:
    expected = (TextGroup("Mild edema", ("Mild edema",)), TextGroup("gas", ("gas",)))
    for use in ("labels", "prompts"):
        for ensemble in ("none", "mean", "max"):
            assert groups(prompt_set=None, texts=["Mild edema", "gas"], use=use, ensemble=ensemble) == expected


def test_labels_stand_for_themselves() -> None:
    assert groups(use="labels", ensemble="max") == tuple(TextGroup(label, (label,)) for label in SET.labels)


@pytest.mark.parametrize("ensemble", ["mean", "max"])
def test_ensemble_joins_the_sentences_of_each_class(ensemble: Any) -> None:
    assert groups(ensemble=ensemble) == tuple(
        TextGroup(entry.label, entry.prompts, ensemble) for entry in (EDEMA, FRACTURE, NORMAL)
    )


def test_without_ensemble_each_sentence_is_numbered() -> None:
    found = groups(ensemble="none", classes=["Fracture", "Edema"])
    assert [group.name for group in found] == ["Fracture 1", "Fracture 2", "Fracture 3", "Edema 1", "Edema 2"]
    assert [group.texts for group in found] == [(text,) for text in FRACTURE.prompts + EDEMA.prompts]


def test_contrast_with_a_class_takes_its_texts_and_leaves_it_out() -> None:
    assert groups(against="Fracture", ensemble="max") == (
        TextGroup("Edema rather than Fracture", EDEMA.prompts, "max", FRACTURE.prompts),
        TextGroup("No Finding rather than Fracture", NORMAL.prompts, "max", FRACTURE.prompts),
    )
    (label,) = groups(against="no finding", use="labels", classes=["Edema"])
    assert (label.texts, label.against) == (("Edema",), ("No Finding",))
    sentences = groups(against="No Finding", ensemble="none", classes=["Edema"])
    assert [group.against for group in sentences] == [NORMAL.prompts] * 2


def test_contrast_with_a_free_text() -> None:
    assert groups(against="Old scars.", classes=["Edema"]) == (
        TextGroup("Edema rather than Old scars.", EDEMA.prompts, "mean", ("Old scars.",)),
    )
    # Without a set there are no classes: a label is a text like any other.
    assert groups(prompt_set=None, texts=["air"], against="Edema")[0].against == ("Edema",)


def test_all_texts_come_once_in_first_seen_order() -> None:
    found = all_texts(groups(against="No Finding", ensemble="none"))
    assert found == (EDEMA.prompts[0], NORMAL.prompts[0], EDEMA.prompts[1], *FRACTURE.prompts)
    assert all_texts(()) == ()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prompt_set": None}, "neither a prompt set nor texts are given; one of them says what to explain; give one."),
        (
            {"texts": ["a", "b"]},
            "a prompt set and 2 texts are given; only one of them can say what to explain; leave one out.",
        ),
        ({"prompt_set": None, "texts": ["a"], "classes": ["Edema"]}, "classes are given without a prompt set; they"),
        (
            {"classes": ["Edma"]},
            "class 'Edma' is unknown; choose one of Edema, Fracture, No Finding. Did you mean 'Edema'?",
        ),
        ({"classes": []}, "the list of classes to explain is empty; name at least one, or leave it out for all."),
        (
            {"classes": ["Edema", "Edema"]},
            "class 'Edema' is chosen twice; classes to explain must differ; leave one out.",
        ),
        (
            {"classes": ["Edema"], "against": "edema"},
            "against names a class that is explained; a contrast with itself is zero; name another.",
        ),
        (
            {"prompt_set": PromptSet((EDEMA,)), "against": "Edema"},
            "against names a class that is explained; a contrast",
        ),
    ],
)
def test_wrong_choice_is_refused_in_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        groups(**changes)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"use": "label"}, "use 'label' is unknown; choose one of labels, prompts. Did you mean 'labels'?"),
        ({"ensemble": "median"}, "ensemble 'median' is unknown; choose one of none, mean, max."),
    ],
)
@pytest.mark.usefixtures("plain_types")
def test_unknown_word_is_refused_with_the_nearest(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        groups(**changes)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"texts": SECRET}, "texts is one text of 24 characters; it must be a list of texts; put it in a list."),
        ({"texts": ["a", ""]}, "text 2 is blank (0 characters); a text must have a visible character; "),
        ({"texts": ["a", SECRET * 99]}, "text 2 has 2,376 characters; a text has at most 2,000; shorten it."),
        ({"texts": [SECRET, "a", SECRET]}, "text 3 (24 characters) repeats text 1; texts must differ; leave one out."),
        ({"texts": ["a"], "against": " "}, "against is blank (1 characters); a text must have a visible character; "),
        (
            {"texts": ["a"], "against": SECRET * 99},
            "against has 2,376 characters; a text has at most 2,000; shorten it.",
        ),
        (
            {"texts": ["a", SECRET], "against": SECRET},
            "against (24 characters) is the text of group 2; a contrast with itself is zero; give another text.",
        ),
    ],
)
def test_wrong_text_is_refused_and_never_quoted(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        groups(prompt_set=None, **changes)
    assert str(caught.value).startswith(sentence)
    assert SECRET not in str(caught.value)


@pytest.mark.usefixtures("plain_types")
def test_what_is_no_text_is_refused_by_its_type() -> None:
    with pytest.raises(InputError, match=r"^text 1 is of type int; it must be a text; put it in quotes\.$"):
        groups(prompt_set=None, texts=[7])
    with pytest.raises(InputError, match=r"^against is of type int; it must be a text; put it in quotes\.$"):
        groups(prompt_set=None, texts=["a"], against=7)
