"""Stacks as speech is recognised, separated and spoken with, small, from `torch.nn` alone: ``(N, frames, features)`` → ``(N, …)``."""

from __future__ import annotations

import torch
from torch import nn

FEATURES = 40


class DeepSpeech2(nn.Module):
    """Convolutions over time and frequency, recurrent layers both ways, log-probabilities (Amodei et al., 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 8, (11, 21), (2, 2), (5, 10)), nn.BatchNorm2d(8), nn.Hardtanh(0, 20),
            nn.Conv2d(8, 8, (11, 11), (1, 2), (5, 5)), nn.BatchNorm2d(8), nn.Hardtanh(0, 20),
        )  # fmt: skip
        self.recurrent = nn.GRU(80, 32, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(64, 29)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.convolutions(x[:, None]).transpose(1, 2).flatten(2)
        return self.head(self.recurrent(x)[0]).log_softmax(-1)


class ConformerBlock(nn.Module):
    """Half a feed-forward layer, attention, a gated depthwise convolution, half a feed-forward layer (Gulati et al., 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.after = (
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.SiLU(), nn.Dropout(0.1), nn.Linear(4 * width, width))
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.convolution = nn.Sequential(
            nn.Conv1d(width, 2 * width, 1), nn.GLU(1), nn.Conv1d(width, width, 15, padding=7, groups=width), nn.BatchNorm1d(width),
            nn.SiLU(), nn.Conv1d(width, width, 1),
        )  # fmt: skip
        self.convolution_norm, self.last = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + 0.5 * self.before(x)
        normal = self.norm(x)
        x = x + self.attention(normal, normal, normal, need_weights=False)[0]
        x = x + self.convolution(self.convolution_norm(x).transpose(1, 2)).transpose(1, 2)
        return self.last(x + 0.5 * self.after(x))


class Conformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.subsample = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU())
        self.project = nn.Linear(72, 32)
        self.blocks = nn.Sequential(ConformerBlock(32), ConformerBlock(32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.project(self.subsample(x[:, None]).transpose(1, 2).flatten(2)))


class TimeDelayNetwork(nn.Module):
    """Dilated convolutions and statistics over time: a vector for a speaker (Snyder et al., 2018)."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((FEATURES, 64, 5, 1), (64, 64, 3, 2), (64, 64, 3, 3), (64, 128, 1, 1))
        self.frames = nn.Sequential(
            *(nn.Sequential(nn.Conv1d(a, b, k, dilation=d), nn.ReLU(), nn.BatchNorm1d(b)) for a, b, k, d in sizes)
        )
        self.head = nn.Linear(256, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.frames(x.transpose(1, 2))
        return nn.functional.normalize(self.head(torch.cat([x.mean(2), x.std(2)], 1)))


class WaveNet(nn.Module):
    """Causal convolutions with gates and skips (van den Oord et al., 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(FEATURES, 32, 1)
        self.gates = nn.ModuleList(nn.Conv1d(32, 64, 2, dilation=2**i) for i in range(5))
        self.outs = nn.ModuleList(nn.Conv1d(32, 32, 1) for _ in range(5))
        self.last = nn.Conv1d(32, 64, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x.transpose(1, 2))
        total = torch.zeros_like(x)
        for gate, out in zip(self.gates, self.outs):
            signal, strength = gate(nn.functional.pad(x, (gate.dilation[0], 0))).chunk(2, 1)
            skip = out(signal.tanh() * strength.sigmoid())
            total, x = total + skip, x + skip
        return self.last(total.relu())


class ConvTasNet(nn.Module):
    """An encoder, a mask for each of two speakers, a decoder by transposed convolution (Luo and Mesgarani, 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv1d(1, 32, 16, 8, bias=False)
        self.norm = nn.GroupNorm(1, 32)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(32, 64, 1), nn.PReLU(), nn.GroupNorm(1, 64), nn.Conv1d(64, 64, 3, padding=2**i, dilation=2**i, groups=64),
                nn.PReLU(), nn.GroupNorm(1, 64), nn.Conv1d(64, 32, 1),
            )
            for i in range(3)
        )  # fmt: skip
        self.mask = nn.Conv1d(32, 64, 1)
        self.decoder = nn.ConvTranspose1d(32, 1, 16, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = self.encoder(x.flatten(1)[:, None])
        hidden = self.norm(mixed)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        masks = self.mask(hidden).sigmoid().unflatten(1, (2, 32))
        return self.decoder((masks * mixed[:, None]).flatten(0, 1)).unflatten(0, (x.shape[0], 2))


class Speller(nn.Module):
    """A recurrent encoder that halves time, and a decoder of cells that attends to it, step by step (Chan et al., 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.listen = nn.LSTM(FEATURES, 16, bidirectional=True, batch_first=True)
        self.halve = nn.LSTM(64, 16, bidirectional=True, batch_first=True)
        self.query = nn.Linear(32, 32)
        self.cell = nn.LSTMCell(64, 32)
        self.spell = nn.Linear(32, 29)
        self.embed = nn.Embedding(29, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heard = self.listen(x)[0]
        heard = self.halve(heard.reshape(x.shape[0], x.shape[1] // 2, 64))[0]
        state = cell = torch.zeros(x.shape[0], 32)
        word = torch.zeros(x.shape[0], dtype=torch.int64)
        scores = []
        for _ in range(6):
            weights = torch.bmm(heard, self.query(state)[:, :, None]).softmax(1)
            state, cell = self.cell(torch.cat([self.embed(word), (weights * heard).sum(1)], 1), (state, cell))
            scores.append(self.spell(state).log_softmax(-1))
            word = scores[-1].argmax(-1)
        return torch.stack(scores, 1)


STACKS: dict[str, type[nn.Module]] = {
    "DeepSpeech 2": DeepSpeech2, "Conformer": Conformer, "x-vector": TimeDelayNetwork, "WaveNet": WaveNet, "Conv-TasNet": ConvTasNet,
    "Listen, attend and spell": Speller,
}  # fmt: skip
