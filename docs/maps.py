"""Draw the README's picture: two methods, three sentences, one synthetic X-ray.

    python docs/maps.py

writes docs/maps.png. The X-ray has an effusion (lower right in the picture) and a consolidation, and no pneumothorax.
"""

from pathlib import Path

import mapstack
from mapstack.figures import grid_figure, save
from mapstack.phantom import phantom

ROOT = Path(__file__).parents[1]
METHODS = (
    {"name": "occlusion", "sliding_window_shapes": 32, "strides": 16, "baseline": "mean"},
    {"name": "integrated_gradients", "n_steps": "auto"},
)
TEXTS = ("left pleural effusion", "consolidation of the lung", "pneumothorax")


def main() -> None:
    """Explain and draw."""
    x_ray = phantom(seed=9007, labels=["Pleural Effusion", "Consolidation"])
    answers = [
        mapstack.explain(
            x_ray.pixels,
            TEXTS,
            against="Normal frontal chest radiograph without any abnormality.",
            checkpoint=ROOT / "model_store" / "phantom-medclip",
            method=method,
        )
        for method in METHODS
    ]
    logits = answers[0].logits.tolist()
    figure = grid_figure(
        x_ray.pixels,
        [answer.method.replace("_", " ") for answer in answers],
        [f"{text}: {logit:+.1f}" for text, logit in zip(TEXTS, logits, strict=True)],
        [[each.numpy() for each in answer.original_maps()] for answer in answers],
        title="Each sentence rather than a normal chest: what speaks for it (red) and against it (blue)",
        unit="logit per pixel",
        boxes=[finding.box for finding in x_ray.findings],
        caption="A synthetic X-ray and a model that was trained on such. Above the maps, how much better (logit) the "
        "sentence fits than that of a normal chest. Outlined: the consolidation and the effusion.",
    )
    save(figure, ROOT / "docs" / "maps.png", dpi=110)


if __name__ == "__main__":
    main()
