"""A model whose stacks are of low rank."""

import torch
from torch import nn

from tests.toys import CurvedModel, SeededText


class FewFeatures(CurvedModel):
    """An embedding of 40 numbers made of 5 features, so that its stacks are of low rank."""

    def __init__(self) -> None:
        super().__init__(embed_dim=5)
        self.embed_dim = 40
        self.text = SeededText(40)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.tower.append(nn.Tanh())
            self.tower.append(nn.Linear(5, 40).double())
        self.freeze()
