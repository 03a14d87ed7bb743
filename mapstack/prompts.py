"""Texts to explain: the prompt file, and the groups of texts that one map answers.

A prompt can identify a patient: no message here quotes one, a text is named by its position and its length.
"""

import hashlib
import json
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import yaml

from mapstack.errors import ConfigError, InputError, unknown_name

MAX_TEXT_LENGTH = 2000
"""The longest text that is accepted, in characters."""


@dataclass(frozen=True)
class PromptClass:
    """One class of a prompt set.

    Args:
        label: The class label, such as `Pleural Effusion`; one line.
        prompts: Different sentences that describe the class, at least one.

    Raises:
        ConfigError: The label or a prompt is blank, too long or no text, or a prompt comes twice.
    """

    label: str
    prompts: tuple[str, ...]

    def __post_init__(self) -> None:
        fault = text_fault(self.label)
        if fault is None and len(self.label.splitlines()) > 1:
            fault = "has more than one line; a class label is one line; write it on one."
        if fault is not None:
            raise ConfigError(f"the label {fault}")
        if not self.prompts:
            raise ConfigError("the list of prompts is empty; a class needs at least one; add a sentence.")
        first_position: dict[str, int] = {}
        for position, prompt in enumerate(self.prompts, 1):
            fault = text_fault(prompt)
            if fault is not None:
                raise ConfigError(f"prompt {position} {fault}")
            first = first_position.setdefault(_folded(prompt), position)
            if first != position:
                raise ConfigError(
                    f"prompt {position} ({len(prompt)} characters) repeats prompt {first}; "
                    "the sentences of a class must differ; remove one or reword it."
                )


@dataclass(frozen=True)
class PromptSet:
    """The classes of a prompt file, in its order.

    Args:
        classes: Classes with different labels, at least one.

    Raises:
        ConfigError: There is no class, or two share a label.
    """

    classes: tuple[PromptClass, ...]

    def __post_init__(self) -> None:
        if not self.classes:
            raise ConfigError("the list of classes is empty; a prompt set needs at least one; add a class.")
        first_position: dict[str, int] = {}
        for position, entry in enumerate(self.classes, 1):
            first = first_position.setdefault(_folded(entry.label), position)
            if first != position:
                raise ConfigError(
                    f"class {position} has the label of class {first}; labels must differ, capitals aside; rename one."
                )

    @property
    def labels(self) -> tuple[str, ...]:
        """The class labels in the order of the file."""
        return tuple(entry.label for entry in self.classes)


@dataclass(frozen=True)
class TextGroup:
    """The texts that one map answers.

    Args:
        name: What a picture shows: the class label, `LABEL 3` for its third sentence, or the free text itself. The
            last can identify a patient: a name belongs into no log and no file name.
        texts: The texts of the group, at least one.
        ensemble: How the logits of several texts become one: their mean or their maximum.
        against: For a contrast, the texts whose mean logit is subtracted; empty for none.
        is_free: Whether the name may hold a free text, and not only labels of a prompt file.

    Source:
        `mean` and `max` are `ensemble=True` and `ensemble=False` of medclip's `PromptClassifier`. The contrast is
        ours.
    """

    name: str
    texts: tuple[str, ...]
    ensemble: Literal["mean", "max"] = "mean"
    against: tuple[str, ...] = ()
    is_free: bool = field(default=True, compare=False)


def text_fault(text: object) -> str | None:
    """Say what is wrong with a text, without quoting it, or answer None.

    The words follow the name of the text: `prompt 3 is blank; ...`.

    Example:
        >>> text_fault("Mild edema.") is None
        True
        >>> text_fault(" ")
        'is blank (1 characters); a text must have a visible character; write one or leave it out.'
    """
    if not isinstance(text, str):
        return f"is of type {type(text).__name__}; it must be a text; put it in quotes."
    # The length first: the other checks walk the whole text.
    if len(text) > MAX_TEXT_LENGTH:
        return f"has {len(text):,} characters; a text has at most {MAX_TEXT_LENGTH:,}; shorten it."
    if not any(character.isprintable() and not character.isspace() for character in text):
        return f"is blank ({len(text)} characters); a text must have a visible character; write one or leave it out."
    if any("\ud800" <= character <= "\udfff" for character in text):
        return (
            f"({len(text)} characters) holds half of a surrogate pair; a text must be valid Unicode; encode it again."
        )
    return None


def load_prompt_set(path: str | PathLike[str]) -> PromptSet:
    """Read a prompt file.

    Args:
        path: A YAML file with one key, `classes`: a list of mappings with the keys `label` and `prompts`.

    Raises:
        ConfigError: The file is missing, is no such YAML, or breaks a rule of `PromptSet` or `PromptClass`.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_StrictLoader)  # a SafeLoader
        return PromptSet(tuple(_classes(content)))
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise ConfigError(f"prompt file '{path}' cannot be read ({reason}); give the path of a YAML file.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"prompt file '{path}' is not UTF-8 at byte {error.start}; a prompt file is UTF-8; save it so."
        ) from error
    except ConfigError as error:
        raise ConfigError(f"prompt file '{path}': {error}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        # ValueError: what looks like a date or a number and is none. Not `from error`: the message quotes the line.
        raise ConfigError(
            f"prompt file '{path}' is not valid YAML{_place(error)}; it needs one list named classes; "
            "correct it, and quote a sentence that holds ': ' or ' #'."
        ) from None


def text_groups(
    *,
    prompt_set: PromptSet | None,
    texts: Sequence[str],
    use: Literal["labels", "prompts"],
    ensemble: Literal["none", "mean", "max"],
    classes: Sequence[str] | None,
    against: str | None,
) -> tuple[TextGroup, ...]:
    """Group texts so that each group is answered by one map.

    Args:
        prompt_set: The classes to explain; or None with `texts`.
        texts: Free texts, each a group of its own, for which `use` and `ensemble` mean nothing; or empty with
            `prompt_set`.
        use: `labels`: each class by its label alone. `prompts`: each class by its sentences.
        ensemble: `mean` or `max`: one group per class. `none`: one group per sentence.
        classes: Labels of the classes to keep, in the wished order; None for all.
        against: The other side of a contrast, for every group: a class label of the set, which stands for its label
            or its sentences as `use` says, or a free text. Where all classes are kept, the one named here is left
            out: against itself it is zero everywhere.

    Raises:
        ConfigError: Both or neither of `prompt_set` and `texts` are given, a choice or a class is unknown, or a class
            is contrasted with itself.
        InputError: A text is blank, too long, repeated or no text, or is contrasted with itself.

    Example:
        >>> edema = PromptClass("Edema", ("Mild edema.", "Severe edema."))
        >>> wanted = {"texts": (), "use": "prompts", "classes": None, "against": None}
        >>> [group.name for group in text_groups(prompt_set=PromptSet((edema,)), ensemble="none", **wanted)]
        ['Edema 1', 'Edema 2']
    """
    _check_choice("use", use, ("labels", "prompts"))
    _check_choice("ensemble", ensemble, ("none", "mean", "max"))
    _check_sequence("texts", texts)
    if prompt_set is None:
        if not texts:
            raise ConfigError("neither a prompt set nor texts are given; one of them says what to explain; give one.")
        if classes is not None:
            raise ConfigError("classes are given without a prompt set; they select from one; leave them out.")
        return tuple(_contrast(_free_groups(texts), against, None))
    if texts:
        raise ConfigError(
            f"a prompt set and {len(texts)} texts are given; only one of them can say what to explain; leave one out."
        )
    rival = _rival(prompt_set, against)
    chosen = [entry for entry in _chosen(prompt_set, classes) if classes is not None or entry is not rival]
    if not chosen or rival in chosen:
        raise ConfigError("against names a class that is explained; a contrast with itself is zero; name another.")
    groups = [group for entry in chosen for group in _class_groups(entry, use, ensemble)]
    rival_texts = None if rival is None else _class_groups(rival, use, "mean")[0].texts
    return tuple(_contrast(groups, against, rival_texts))


def all_texts(groups: Sequence[TextGroup]) -> tuple[str, ...]:
    """List every text of the groups once, contrasts included, in the order in which they are first seen.

    Example:
        >>> all_texts([TextGroup("a", ("a", "b"), against=("c",)), TextGroup("b", ("b", "d"), against=("c",))])
        ('a', 'b', 'c', 'd')
    """
    return tuple(dict.fromkeys(text for group in groups for text in group.texts + group.against))


def digest_groups(groups: Sequence[TextGroup]) -> str:
    """Return a sha256 over all that decides the logits of groups, and over their order.

    Example:
        >>> left, right = TextGroup("a", ("a",)), TextGroup("b", ("b",))
        >>> digest_groups([left, right]) == digest_groups([right, left])
        False
    """
    plain = [[group.name, group.texts, group.ensemble, group.against] for group in groups]
    return hashlib.sha256(json.dumps(plain).encode("ascii")).hexdigest()


class _StrictLoader(yaml.SafeLoader):
    """A SafeLoader that refuses what the stock one passes over: a key that comes twice, the last one winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(keys) != len(set(keys)):
            raise yaml.MarkedYAMLError(problem="a key comes twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def _classes(content: object) -> Iterator[PromptClass]:
    """Turn the parsed YAML into classes."""
    entries = _listed("classes", _mapping("the file", content, ("classes",))["classes"])
    for position, entry in enumerate(entries, 1):
        fields = _mapping(f"class {position}", entry, ("label", "prompts"))
        try:
            # A folded YAML text ends in a newline that is none of its words.
            prompts = [_stripped(prompt) for prompt in _listed("prompts", fields["prompts"])]
            yield PromptClass(_stripped(fields["label"]), tuple(prompts))
        except ConfigError as error:
            raise ConfigError(f"class {position}: {error}") from error


def _mapping(name: str, value: object, keys: tuple[str, ...]) -> dict[str, Any]:
    """Check that a value is a mapping with exactly these keys."""
    if not isinstance(value, dict):
        raise ConfigError(
            f"{name} is of type {type(value).__name__}; it must be a mapping with the keys {', '.join(keys)}; "
            "write it as one."
        )
    for key in keys:
        if key not in value:
            raise ConfigError(f"{name} has no key '{key}'; its keys are {', '.join(keys)}; add it.")
    for position, key in enumerate(value, 1):
        if key not in keys:
            # The key is not quoted: a sentence with ': ' in it is parsed as one.
            raise ConfigError(
                f"key {position} of {name} ({len(str(key))} characters) is unknown; its keys are {', '.join(keys)}; "
                "remove it, or quote a sentence that holds ': '."
            )
    return value


def _listed(name: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigError(f"{name} is of type {type(value).__name__}; it must be a list; write each item after a dash.")
    return value


def _stripped(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


def _place(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = " (a key comes twice)" if getattr(error, "problem", None) == "a key comes twice" else ""
    return f" at line {mark.line + 1}, column {mark.column + 1}{problem}" if mark else ""


def _folded(text: str) -> str:
    """Bring texts that a tokenizer can hardly tell apart to one form: capitals and spaces aside."""
    return " ".join(text.split()).casefold()


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(unknown_name(name, value, choices))


def _check_sequence(name: str, value: object) -> None:
    # A string is a sequence of texts of one character each: explained one by one, it would go unnoticed.
    if isinstance(value, str):
        raise InputError(
            f"{name} is one text of {len(value)} characters; it must be a list of texts; put it in a list."
        )


def _free_groups(texts: Sequence[str]) -> Iterator[TextGroup]:
    first_position: dict[str, int] = {}
    for position, text in enumerate(texts, 1):
        fault = text_fault(text)
        if fault is not None:
            raise InputError(f"text {position} {fault}")
        first = first_position.setdefault(text, position)
        if first != position:
            raise InputError(
                f"text {position} ({len(text)} characters) repeats text {first}; texts must differ; leave one out."
            )
        yield TextGroup(text, (text,))


def _chosen(prompt_set: PromptSet, classes: Sequence[str] | None) -> Iterator[PromptClass]:
    if classes is None:
        yield from prompt_set.classes
        return
    _check_sequence("classes", classes)
    if not classes:
        raise ConfigError("the list of classes to explain is empty; name at least one, or leave it out for all.")
    by_label = {entry.label: entry for entry in prompt_set.classes}
    for position, label in enumerate(classes, 1):
        if label not in by_label:
            raise ConfigError(unknown_name("class", label, prompt_set.labels))
        if label in classes[: position - 1]:
            raise ConfigError(f"class '{label}' is chosen twice; classes to explain must differ; leave one out.")
        yield by_label[label]


def _class_groups(entry: PromptClass, use: str, ensemble: str) -> list[TextGroup]:
    if use == "labels":
        return [TextGroup(entry.label, (entry.label,), is_free=False)]
    if ensemble == "none":
        numbered = enumerate(entry.prompts, 1)
        return [TextGroup(f"{entry.label} {number}", (text,), is_free=False) for number, text in numbered]
    return [TextGroup(entry.label, entry.prompts, "max" if ensemble == "max" else "mean", is_free=False)]


def _rival(prompt_set: PromptSet, against: str | None) -> PromptClass | None:
    """Find the class that `against` names; None for a free text or no contrast."""
    wanted = _folded(against) if isinstance(against, str) else None
    return next((entry for entry in prompt_set.classes if _folded(entry.label) == wanted), None)


def _contrast(
    groups: Sequence[TextGroup] | Iterator[TextGroup], against: str | None, texts: tuple[str, ...] | None
) -> Iterator[TextGroup]:
    """Set `texts`, or else the free text `against`, against every group."""
    if against is None:
        yield from groups
        return
    fault = text_fault(against)
    if fault is not None:
        raise InputError(f"against {fault}")
    for position, group in enumerate(groups, 1):
        if group.texts == (against,):
            raise InputError(
                f"against ({len(against)} characters) is the text of group {position}; a contrast with itself is zero; "
                "give another text."
            )
        name, is_free = f"{group.name} rather than {against}", group.is_free or texts is None
        yield TextGroup(name, group.texts, group.ensemble, texts or (against,), is_free)
