"""The demo model's card: what it is, how it was made, how good it is, what it is not."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from mapstack.job_configs import FitConfig
from mapstack.phantom import LABELS
from train_like.phantom_data import N_FILMS

NOTE = "trained on phantoms: it knows no patients"

_CARD = """\
# The demo model

MedCLIP's architecture, small: a Swin image tower and a BERT text tower with projections to 512 numbers and a learned \
temperature, in MedCLIP's checkpoint layout. {n_parameters:.2f} million parameters.

**It was {note}.** It is there so that everything in this repository can be tried and measured on pictures whose \
truth is known to the pixel. It must not be used on patients, and nothing that it scores says anything about \
MedCLIP's trained weights.

## Data

Synthetic frontal chest X-rays of `mapstack.phantom`, 224 px: {n_patients:,} patients with {n_films} films each, one \
without a finding and three with one or two of {findings}. The texts are the phantoms' own sentences and those of \
`{prompts}`; the tokenizer is a WordPiece vocabulary of their words. Pictures are partly covered, dimmed and \
lightened in training, so that attribution methods ask about pictures of a kind that the model has seen.

## Training

`python -m train_like fit configs/phantom_fit.yaml`: {n_steps:,} steps of {batch_size} films, AdamW with a one-cycle \
rate up to {learning_rate:g}, averaged weights{closing}, seed {seed}; {minutes:.0f} minutes on {machine}. The loss is \
MedCLIP's semantic matching loss (Wang et al., 2022). MedCLIP starts from pretrained towers; in their place a second \
loss, which falls to zero after two thirds of the steps, tells the image tower in which cells of the picture the \
findings lie. So the model was shown where findings are, which MedCLIP was not: its maps may be better located.

## Accuracy

Share of {n_test} phantoms of other seeds on which the class of highest logit (mean over the prompts of the class) is \
one that the phantom has: **{all:.1%}**. Of the phantoms that have a class:

{table}

Where its maps point is told by `make evaluate`.

## Limits

Phantoms are much simpler than patients: no two diseases look alike in them, there is one view, and nothing is \
missing from the texts. Words that the vocabulary does not hold are spelled letter by letter.
"""


def write_card(
    folder: Path, config: FitConfig, accuracy: Mapping[str, float], *, n_parameters: int, seconds: float
) -> None:
    """Write README.md beside a checkpoint.

    Args:
        folder: The checkpoint's.
        config: What it was trained by.
        accuracy: Of all phantoms ("all") and of each class.
        n_parameters: Of both towers.
        seconds: Time of the training.
    """
    rows = [f"| {label} | {accuracy[label]:.1%} |" for label in LABELS if label in accuracy]
    text = _CARD.format(
        note=NOTE,
        n_parameters=n_parameters / 1e6,
        n_patients=config.n_patients,
        n_films=N_FILMS,
        findings=", ".join(LABELS[:-1]),
        prompts=config.prompts,
        n_steps=config.n_steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        seed=config.seed,
        closing=f", then {config.n_closing_steps:,} at two fifths of the rate, on pictures of which few are altered"
        * (config.n_closing_steps > 0),
        minutes=seconds / 60,
        machine="a GPU" if torch.cuda.is_available() else f"{os.cpu_count()} processor cores",
        n_test=config.n_test,
        all=accuracy["all"],
        table="\n".join(["| class | share |", "|---|---|", *rows]),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
