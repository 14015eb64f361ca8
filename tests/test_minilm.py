"""MiniLM with its trained weights at level 1: sentences of any length, and vectors that point where they did."""

import warnings

import pytest
import torch

import tiacc
from tests import minilm
from tests.helpers import use_however_fast
from tiacc import measure
from tiacc.backends import base


@pytest.mark.slow
@torch.no_grad()
def test_sentences_keep_their_vectors_in_half_precision(monkeypatch, tmp_path):
    use_however_fast(monkeypatch)
    monkeypatch.setattr("tiacc.measure.MIN_CALLS", 1)
    model = minilm.model()
    calls = [(ids, torch.ones_like(ids)) for ids in map(minilm.tokens, minilm.sentences())]
    lengths = {ids.shape[1] for ids, _ in calls}
    assert len(calls) == 50 and len(lengths) > 20 and min(lengths) < 8 and max(lengths) > 90
    vectors = torch.cat([model(*call) for call in calls])
    # The network understands: a cat that sleeps is nearer to a cat that bakes bread than to a theorem that does.
    assert vectors[0] @ vectors[40] > vectors[0] @ vectors[46]
    backend = "openvino" if base.backends.get("openvino")().available() else "reference"
    shapes = [{"range,long": ["1*4", "1*24", "1*160"]}] * 2
    path = tmp_path / "minilm.pt"
    with measure.threads(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.trace(model, calls[9])
        _, report = tiacc.optimize(
            scripted, 1, 1, shapes, [calls[0], calls[4], calls[9]], path, backend=backend, half_dtype="bf16", timing_seconds=0.1
        )
        optimized = torch.jit.load(path)
    assert report.achieved_level == 1, report.actions
    assert report.precision.flops > 0.9
    found = torch.cat([optimized(*call) for call in calls])
    assert torch.nn.functional.cosine_similarity(found, vectors).min() >= 0.999
    assert (found @ found.T - vectors @ vectors.T).abs().max() < 0.01
