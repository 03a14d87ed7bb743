"""`fit`: the demo model, MedCLIP's architecture trained on phantoms with MedCLIP's semantic matching loss."""

import copy
import dataclasses
import hashlib
import json
import logging
import math
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from jaxtyping import Float
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import BertTokenizerFast

from mapstack.images import MEDCLIP
from mapstack.job_configs import FitConfig
from mapstack.models import load_model, normalised
from mapstack.models.medclip import build_medclip, write_medclip
from mapstack.phantom import LABELS
from mapstack.prompts import PromptSet, load_prompt_set, text_groups
from mapstack.readouts import TextReadout
from train_like.errors import DONE
from train_like.model_card import NOTE, write_card
from train_like.phantom_data import (
    Pair,
    PatientOrder,
    PhantomArrays,
    PhantomPairs,
    draw_patients,
    draw_phantoms,
)
from train_like.progress import FitProgress
from train_like.result import Result
from train_like.vocabulary import build_vocabulary

_TEST_SEEDS = 10_000_000  # far from any training seed
_START_WEIGHT = 4.0
# Shares of the steps: until the first pictures are left as they are, from the second on all alterations come.
_PLAIN, _ALTERED = 0.15, 0.5
_KEEP_EVERY = 500  # steps
# The closing steps see most pictures as they are, which is how the model will be asked.
_CLOSING_RATE, _CLOSING_STRENGTH = 0.4, 0.25
_RARE = -3.0  # [logit]: a cell seldom holds a finding


def fit(config: FitConfig) -> Result:
    """Train the demo model, write its checkpoint, and tell its accuracy on phantoms of other seeds."""
    lightning.seed_everything(config.seed, verbose=False)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    prompt_set = load_prompt_set(config.prompts)
    train = draw_patients(config.n_patients, first_seed=config.seed, cache=Path(config.cache))
    test = draw_phantoms(config.n_test, first_seed=config.seed + _TEST_SEEDS, cache=Path(config.cache))
    vocabulary = build_vocabulary([*_sentences(train), *_sentences(test), *_prompts(prompt_set)])
    sizes = {"vision": dict(config.vision), "text": {**config.text, "vocab_size": len(vocabulary)}}
    folder = Path(config.output)
    trained = [PhantomFit(build_medclip("vit", sizes), _tokenizer(vocabulary, folder), config)]
    pairs = PhantomPairs(train, prompt_set, trained[0].n_cells, config.seed)
    _train(trained[0], pairs, config)
    if config.n_closing_steps:
        trained.append(trained[0].closing())
        _train(trained[1], pairs, config)
    write_medclip(folder, trained[-1].averaged(), sizes=sizes, vocabulary=vocabulary, note=NOTE)
    for module in trained:
        module.kept_at.unlink(missing_ok=True)
    accuracy = zero_shot_accuracy(folder, test, prompt_set)
    n_parameters = sum(parameter.numel() for parameter in trained[0].model.parameters())
    seconds = sum(module.seconds for module in trained)
    write_card(folder, config, accuracy, n_parameters=n_parameters, seconds=seconds)
    summary = {
        "output": config.output,
        "accuracy": {name: round(value, 4) for name, value in accuracy.items()},
        "seconds": round(seconds),
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
    }
    return Result(DONE, summary)


class PhantomFit(lightning.LightningModule):
    """MedCLIP under its semantic matching loss, with a start that its pretrained towers give the official one.

    MedCLIP starts from towers that were trained on millions of pictures and sentences; from nothing its loss stands
    still for hundreds of steps, since the embeddings of all pictures are alike. Here a second loss starts the image
    tower: each cell of each stage tells which findings lie there. Its weight falls to zero after two thirds of the
    steps, and what reads the cells is thrown away.

    Args:
        model: Upstream's `MedCLIPModel`.
        tokenizer: For the sentences.
        config: Steps and rates.
        is_closing: Whether these are the closing steps.

    Attributes:
        n_steps: Of the optimiser.
        seconds: Time of the training, that before a stop included.
        kept_at: File of what a stopped training goes on from.

    Source:
        Wang et al., "MedCLIP: contrastive learning from unpaired medical images and text", EMNLP 2022, eq. 4 to 8:
        the targets are the softmax of the similarity of label vectors, the loss their cross-entropy with the softmax
        of the logits, both ways.
    """

    def __init__(
        self, model: Any, tokenizer: BertTokenizerFast, config: FitConfig, *, is_closing: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.is_closing = is_closing
        self.n_steps = config.n_closing_steps if is_closing else config.n_steps
        self.kept_at = _kept_at(config, is_closing)
        self._average = copy.deepcopy(model).requires_grad_(False)
        swin = model.vision_model.model.config
        # What transformers gives of a stage is already merged into the cells of the next.
        widths = [swin.embed_dim * 2**stage for stage in range(1, len(swin.depths))]
        self.n_cells = math.ceil(swin.image_size / swin.patch_size / 2)
        self._readers = nn.ModuleList(_reader(width) for width in [*widths, swin.hidden_size])
        self._tokenizer = tokenizer
        self.seconds = 0.0
        self._since = time.perf_counter()
        self._config = config

    def transfer_batch_to_device(self, batch: list[Pair], device: torch.device, dataloader_idx: int) -> list[Pair]:
        """Leave the pairs as they are: Lightning refuses frozen dataclasses, and `training_step` moves the tensors."""
        return batch

    def training_step(self, pairs: list[Pair], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        tower = self.model.vision_model
        pixel_values = torch.stack([pair.pixel_values for pair in pairs]).to(self.device)
        found = tower.model(pixel_values.expand(-1, 3, -1, -1), output_hidden_states=True)
        logits = self.model.logit_scale.clamp(0, 4.6052).exp() * (
            normalised(tower.projection_head(found["pooler_output"])) @ self._embed(sentences := _different(pairs)).T
        )
        said = torch.stack([next(pair.said for pair in pairs if pair.sentence == each) for each in sentences])
        seen = torch.stack([pair.seen for pair in pairs])
        loss = semantic_matching_loss(logits, seen.to(self.device), said.to(self.device))
        self.log("loss", loss)
        if self._start_weight() == 0:
            return loss
        stages = [*found["hidden_states"][1:-1], found["last_hidden_state"]]
        return loss + self._start_weight() * self._start_loss(stages, pairs)

    def closing(self) -> "PhantomFit":
        """Return the training that goes on from the averaged weights for the closing steps."""
        model = copy.deepcopy(self.model)
        model.load_state_dict(self.averaged())
        return PhantomFit(model, self._tokenizer, self._config, is_closing=True)

    def _embed(self, sentences: list[str]) -> Float[Tensor, "texts embed_dim"]:
        """Embed sentences as inference does, each without padding: upstream's mean would run over the padding."""
        tokens = self._tokenizer(sentences, padding=True, truncation=True, max_length=77, return_tensors="pt")
        tokens = tokens.to(self.device)
        tower = self.model.text_model
        layers = tower.model(**tokens)["hidden_states"]
        mean_layer = (layers[1] + layers[2] + layers[-1]) / 3
        is_token = tokens["attention_mask"][..., None]
        pooled = (mean_layer * is_token).sum(dim=1) / is_token.sum(dim=1)
        return normalised(tower.projection_head(pooled))

    def _start_loss(self, stages: list[Float[Tensor, "pictures _ _"]], pairs: list[Pair]) -> Tensor:
        shares = torch.stack([pair.cells for pair in pairs]).to(self.device)
        total = torch.zeros((), device=self.device)
        for stage, read in zip(stages, self._readers, strict=True):
            side = math.isqrt(stage.shape[1])
            # A thin catheter fills little of a cell, the less the larger the cell is.
            truth = (F.adaptive_avg_pool2d(shares, side) * (4 * self.n_cells / side)).clamp(max=1).flatten(2).mT
            each = F.binary_cross_entropy_with_logits(read(stage), truth, reduction="none")
            total = total + each.sum(dim=2).mean()
        return total

    def _start_weight(self) -> float:
        return 0.0 if self.is_closing else _START_WEIGHT * max(0.0, 1 - 1.5 * self.global_step / self.n_steps)

    def on_train_batch_start(self, *_: Any) -> None:
        """Alter more and more pictures; the loader reads in this process, so that it is obeyed at once."""
        loader: Any = self.trainer.train_dataloader
        loader.dataset.strength = self.strength()

    def strength(self) -> float:
        """Return how often the pictures of this step are altered (see `PhantomPairs`)."""
        if self.is_closing:
            return _CLOSING_STRENGTH
        return min(1.0, max(0.0, (self.global_step / self.n_steps - _PLAIN) / (_ALTERED - _PLAIN)))

    def on_train_batch_end(self, *_: Any) -> None:
        """Move the running average of the weights, which is what is kept."""
        decay = min(0.998, (1 + self.global_step) / (10 + self.global_step))
        with torch.no_grad():
            for kept, new in zip(self._average.parameters(), self.model.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)

    def on_train_start(self) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def on_train_end(self) -> None:
        """Stop it."""
        self.seconds += time.perf_counter() - self._since

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the time."""
        checkpoint["seconds"] = self.seconds + time.perf_counter() - self._since

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with it."""
        self.seconds = checkpoint.get("seconds", 0.0)

    def averaged(self) -> dict[str, Tensor]:
        """Return the averaged weights."""
        return dict(self._average.state_dict())

    def configure_optimizers(self) -> Any:
        """Return AdamW with a one-cycle schedule."""
        rate = self._config.learning_rate * (_CLOSING_RATE if self.is_closing else 1.0)
        optimiser = torch.optim.AdamW(self.parameters(), lr=rate, weight_decay=self._config.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=self.n_steps, pct_start=0.1)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def semantic_matching_loss(
    logits: Float[Tensor, "pictures texts"],
    seen: Float[Tensor, "pictures labels"],
    said: Float[Tensor, "texts labels"],
    *,
    sharpness: float = 10.0,
) -> Float[Tensor, ""]:
    """Return MedCLIP's loss: cross-entropy with soft targets, both ways.

    Args:
        logits: Of each picture with each text.
        seen: The labels of each picture.
        said: The labels of each text.
        sharpness: What the similarity of label vectors [0, 1] is multiplied by before the softmax. With 1, upstream's
            value, targets are nearly uniform in a batch of few labels.

    Example:
        >>> right, labels = torch.eye(2) * 20, torch.eye(2)
        >>> semantic_matching_loss(right, labels, labels) < semantic_matching_loss(-right, labels, labels)
        tensor(True)
    """
    similarity = F.normalize(seen, dim=1) @ F.normalize(said, dim=1).T * sharpness
    by_picture = F.cross_entropy(logits, similarity.softmax(dim=1))
    by_text = F.cross_entropy(logits.T, similarity.T.softmax(dim=1))
    return (by_picture + by_text) / 2


@torch.no_grad()
def zero_shot_accuracy(folder: Path, phantoms: PhantomArrays, prompt_set: PromptSet) -> dict[str, float]:
    """Tell on what share of phantoms the class of highest logit is one that they have: of all, and of each class.

    The logit of a class is the mean over its prompts, as `PromptClassifier` does.
    """
    model = load_model("medclip-vit", folder)
    groups = text_groups(
        prompt_set=prompt_set, texts=(), use="prompts", ensemble="mean", classes=list(LABELS), against=None
    )
    readout = TextReadout(groups, model.text)
    hits: dict[str, list[bool]] = {"all": [], **{label: [] for label in LABELS}}
    for start in tqdm(range(0, len(phantoms), 16), desc="accuracy", file=sys.stderr):
        pixels = torch.from_numpy(phantoms.pixels[start : start + 16])[:, None].float() / 255
        best = readout(model.embed_images(MEDCLIP.normalize(pixels))).argmax(dim=1).tolist()
        for choice, labels in zip(best, phantoms.labels[start : start + 16].tolist(), strict=True):
            true = [label for label in labels if label >= 0] or [len(LABELS) - 1]
            for name in ("all", *(LABELS[label] for label in true)):
                hits[name].append(choice in true)
    return {name: sum(each) / len(each) for name, each in hits.items() if each}


def _train(module: PhantomFit, pairs: PhantomPairs, config: FitConfig) -> None:
    loader = DataLoader(
        pairs, batch_size=config.batch_size, sampler=PatientOrder(len(pairs)), drop_last=True, collate_fn=list
    )
    path = module.kept_at
    keep = ModelCheckpoint(path.parent, path.stem, every_n_train_steps=_KEEP_EVERY, enable_version_counter=False)
    if module.is_closing:  # so that it can be repeated by itself
        lightning.seed_everything(config.seed + 1, verbose=False)
    pairs.strength = module.strength()  # the loader fetches the first batch before any hook runs
    trainer = lightning.Trainer(
        accelerator="auto",
        devices=1,
        max_steps=module.n_steps,
        logger=False,
        enable_model_summary=False,
        callbacks=[FitProgress(), keep],
        gradient_clip_val=1.0,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The 'train_dataloader' does not have many workers")
        warnings.filterwarnings("ignore", message=".*is deprecated, use `isinstance")
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        # The order of the pictures is drawn anew on the way.
        warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch")
        trainer.fit(module, loader, ckpt_path=path if path.exists() else None)


def _kept_at(config: FitConfig, is_closing: bool) -> Path:
    """Return where a fit of this configuration keeps what it needs to go on after a stop."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(config), sort_keys=True).encode()).hexdigest()
    return Path(config.cache) / f"fit-{digest[:12]}{'-closing' * is_closing}.ckpt"


def _reader(width: int) -> nn.Module:
    linear = nn.Linear(width, len(LABELS) - 1)
    nn.init.constant_(linear.bias, _RARE)
    return nn.Sequential(nn.LayerNorm(width), linear)


def _different(pairs: list[Pair]) -> list[str]:
    return list(dict.fromkeys(pair.sentence for pair in pairs))


def _sentences(phantoms: PhantomArrays) -> list[str]:
    return [sentence for row in phantoms.sentences for sentence in row]


def _prompts(prompt_set: PromptSet) -> list[str]:
    return [text for entry in prompt_set.classes for text in (entry.label, *entry.prompts)]


def _tokenizer(vocabulary: Sequence[str], folder: Path) -> BertTokenizerFast:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    return BertTokenizerFast(vocab_file=str(folder / "vocab.txt"))
