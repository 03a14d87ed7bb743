"""The texts whose maps are scored: of each class in three forms, and texts that are true of no X-ray."""

from collections.abc import Sequence
from dataclasses import dataclass

from mapstack.errors import ConfigError, unknown_name
from mapstack.prompts import PromptSet
from train_like.evaluation.cases import Case
from train_like.evaluation.settings import FORMS

GIBBERISH = (
    "Blorf zint quaddle merp snivet oon.",
    "Trazel vupinth gorrab ilk desmo fwee.",
    "Yib nockle strand puvo emmelit rasp.",
)
"""Texts without a meaning."""

IRRELEVANT = (
    "The cat sleeps on the warm window sill.",
    "Two slices of bread with butter and jam.",
    "The night train to the coast leaves at eleven.",
)
"""Sentences with a meaning that no X-ray has."""


@dataclass(frozen=True)
class TextKey:
    """Names a text: the form, or the kind of control, and the class label or number."""

    form: str
    name: str


CONTROLS = {
    TextKey(kind, str(number)): (text,)
    for kind, texts in (("gibberish", GIBBERISH), ("irrelevant", IRRELEVANT))
    for number, text in enumerate(texts)
}
"""The texts that are true of no X-ray, one a key."""


class Texts:
    """The texts of a prompt set, by form and class label.

    Args:
        prompt_set: The classes and their sentences.
        against: The class label or free text that contrasts are made with.
        classes: The class labels that are explained; None for all.

    Raises:
        ConfigError: `against` is empty, or a class is not in the set.
    """

    def __init__(self, prompt_set: PromptSet, against: str | None, classes: Sequence[str] | None = None) -> None:
        if not against:
            raise ConfigError(
                "prompts.against is not set; contrasts need the text of a normal picture; set it, such as 'No Finding'."
            )
        for label in classes or ():
            if label not in prompt_set.labels:
                raise ConfigError(unknown_name("class", label, prompt_set.labels))
        self.labels = tuple(label for label in prompt_set.labels if classes is None or label in classes)
        self.against = against
        self._sentences = {entry.label: entry.prompts for entry in prompt_set.classes}

    @property
    def findings(self) -> tuple[str, ...]:
        """The class labels without the one that stands for a normal picture."""
        return tuple(label for label in self.labels if label != self.against)

    def located(self, case: Case) -> list[str]:
        """Return the labels of a picture that have a text and a region."""
        return [region.label for region in case.regions if region.label in self.labels]

    def explained(self, case: Case) -> list[str]:
        """Return the labels whose maps stand for a picture: those that can be located.

        Where there is none, those that the picture has, and of a normal one the class that it is of.
        """
        known = self.located(case) or [label for label in case.labels if label in self.findings]
        return known or [self.against if self.against in self.labels else self.labels[0]]

    def of(self, case: Case, labels: Sequence[str]) -> dict[TextKey, tuple[str, ...]]:
        """Return the texts of some classes in every form, and what they are contrasted with.

        The sentence of a finding is the one that its sample says of it, or the first of its class.
        """
        said = {region.label: region.sentence for region in case.regions}
        chosen: dict[TextKey, tuple[str, ...]] = {}
        for label in dict.fromkeys([*labels, self.against]):
            sentences = self._sentences.get(label, (label,))
            forms = ((label,), (said.get(label) or sentences[0],), sentences)
            for form, texts in zip(FORMS, forms, strict=True):
                chosen[TextKey(form, label)] = texts
        return chosen

    def contrast(self, key: TextKey) -> TextKey:
        """Return what a text is contrasted with: the normal class in the same form, its mean for a single sentence.

        One sentence about a normal picture would deny one finding only.
        """
        return TextKey("label" if key.form == "label" else "ensemble", self.against)
