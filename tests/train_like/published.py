"""What MedCLIP's and Bio_ClinicalBERT's publishers serve, in sizes of the tests."""

import io
import zipfile

import torch

from tests.toys import SMALL_TEXT, VOCABULARY

# A word for each row of the table, as of Bio_ClinicalBERT.
WORD_LIST = [*VOCABULARY, *(f"[unused{number}]" for number in range(SMALL_TEXT["vocab_size"] - len(VOCABULARY)))]
ZIP, WORDS = "/pytrial/medclip-vit-pretrained.zip", "/resolve/main/vocab.txt"


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def saved(weights: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    return buffer.getvalue()
