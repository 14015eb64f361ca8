from __future__ import annotations

import pytest
import torch

from tiacc.errors import EngineFormatError
from tiacc.graph.types import Dim, Profile, TensorSpec
from tiacc.runtime import blob


def make(payload: bytes = b"engine bytes") -> torch.Tensor:
    return blob.pack(
        payload,
        backend="reference",
        backend_version="1.2",
        device=torch.device("cpu"),
        inputs=(TensorSpec((Dim("rows", 1, 4, 8), 3), torch.float16),),
        outputs=(TensorSpec((), torch.int64),),
        profiles=(Profile(((1, 3),), ((4, 3),), ((8, 3),)),),
    )


def test_a_round_trip_keeps_header_and_payload() -> None:
    header, payload = blob.unpack(make())
    assert payload == b"engine bytes"
    assert (header.backend, header.backend_version, header.device) == ("reference", "1.2", "cpu")
    assert header.inputs == (TensorSpec((Dim("rows", 1, 4, 8), 3), torch.float16),)
    assert header.outputs == (TensorSpec((), torch.int64),)
    assert header.profiles == (Profile(((1, 3),), ((4, 3),), ((8, 3),)),)


def test_equal_engines_have_equal_bytes_and_keys() -> None:
    assert torch.equal(make(), make())
    assert blob.key_of(make()) == blob.key_of(make()) != blob.key_of(make(b"other bytes"))


def test_any_flipped_bit_is_noticed() -> None:
    good = make()
    for place in range(0, good.numel(), 7):
        bad = good.clone()
        bad[place] ^= 0x10
        try:
            header, payload = blob.unpack(bad)
        except EngineFormatError:
            continue
        assert payload == b"engine bytes", "a damaged payload must not pass"
        assert header.sha256 == blob.unpack(good)[0].sha256


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (torch.zeros(40, dtype=torch.uint8), "not an engine of tiacc"),
        (torch.zeros(3, dtype=torch.uint8), "not an engine of tiacc"),
        (torch.zeros(40), "uint8 tensor"),
        (make()[:30].clone(), "damaged"),
        (torch.cat([make()[:6], torch.tensor([9, 0], dtype=torch.uint8), make()[8:]]), "format 9"),
        (make()[:-1].clone(), "digest"),
    ],
)
def test_what_is_not_an_engine_is_refused_with_the_reason(bad: torch.Tensor, said: str) -> None:
    with pytest.raises(EngineFormatError, match=said):
        blob.unpack(bad)
