"""The models that the sweep `benchmarks.zoo` tries, by name: each makes a module in evaluation mode and its arguments.

Nothing is downloaded: weights are random, and inputs are small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from benchmarks import models, speech

Make = Callable[[], tuple[nn.Module, tuple[Any, ...]]]

FIXED_224 = ("vit_", "swin", "maxvit")
"""What the names of torchvision's models begin with that take images of 224 x 224 alone."""


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TIMM = _names("""
aimv2_large_patch14_224 bat_resnext26ts beit_base_patch16_224 beitv2_base_patch16_224 botnet26t_256 caformer_s18 cait_xxs24_224 coat_tiny
coatnet_pico_rw_224 coatnext_nano_rw_224 convformer_s18 convit_tiny convmixer_768_32 convnext_zepto_rms convnextv2_atto cpubone_nano
crossvit_tiny_240 cs3darknet_focus_s csatv2 cspdarknet53 cspnext_tiny cspresnet50 cspresnext50 darknet17 darknetaa53 davit_tiny
deepseek_vit_412m deit_tiny_patch16_224 densenet121 densenetblur121d dla46x_c dm_nfnet_f0 dpn48b eca_resnext26ts ecaresnet26t
ecaresnetlight ecaresnext26t_32x4d edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientnet_b0 efficientnetv2_rw_t
efficientvim_m1 efficientvit_m0 ese_vovnet19b_slim_dw eva02_tiny_patch14_224 fasternet_t0 fastvit_t8 fbnetc_100 fbnetv3_b flexivit_small
focalnet_tiny_srf gc_efficientnetv2_rw_t gcresnet33ts gcresnext26ts gcvit_xxtiny gemma4_vit_167m gernet_s ghostnet_050 ghostnetv3_050
gmixer_12_224 gmlp_ti16_224 halo2botnet50ts_256 halonet_h1 haloregnetz_b hardcorenas_b hgnet_tiny hgnetv2_b0 hiera_tiny_224 hieradet_small
hrnet_w18_small iformer_t inception_next_atto lambda_resnet26t lamhalobotnet50ts_256 lcnet_035 lcnetv2_small legacy_seresnet18 levit_128s
lowformer_b0 mambaout_femto maxvit_pico_rw_256 maxxvit_rmlp_nano_rw_256 maxxvitv2_nano_rw_256 mixer_s16_224 mixnet_s mnasnet_small
mobilenet_edgetpu_100 mobilenetv3_small_050 mobileone_s1 mobilevit_xxs mobilevitv2_050 mvitv2_tiny naflexvit_base_patch16_parfac_gap
nasnetalarge nest_tiny nextvit_small nf_regnet_b0 nfnet_l0 pit_ti_224 pnasnet5large poolformer_s12 poolformerv2_s12 pvt_v2_b0
qwen3_vit_88m rdnet_tiny regnetv_040 regnetx_002 regnety_002 regnetz_005 repghostnet_050 repvgg_a0 repvit_m1 res2next50 resmlp_12_224
resnest14d resnet10t resnetaa34d resnetblur18 resnetrs50 resnetv2_18 resnext26ts rexnet_100 rexnetr_100 sam2_hiera_tiny
samvit_base_patch16_224 sebotnet33ts_256 sedarknet21 sehalonet33ts selecsls42 semnasnet_050 senet154 sequencer2d_s seresnet18
seresnetaa50d seresnext26ts seresnextaa201d_32x8d shvit_s1 skresnet18 skresnext50_32x4d spnasnet_100 starnet_s050 swiftformer_xs
swin_tiny_patch4_window7_224 swinv2_cr_tiny_224 test_convnext tf_efficientnet_lite0 tiny_vit_5m_224 tinynet_e tnt_s_legacy_patch16_224
tresnet_m twins_svt_small vgg11 visformer_tiny vit_tiny_patch16_224 vitamin_small_224 volo_d1_224 vovnet39a wide_resnet50_2
xception41p xcit_nano_12_p8_224
""")
"""A small model of each of timm's families."""

FEW_BLOCKS = ("aimv2_large_patch14_224", "deepseek_vit_412m", "gemma4_vit_167m", "qwen3_vit_88m")
"""Those of them that are made with four blocks: their smallest model is large."""

TEXT = _names("""
albert bart bert bert-generation big_bird biogpt blenderbot-small bloom camembert canine codegen cohere convbert ctrl data2vec-text deberta
deberta-v2 distilbert electra ernie fnet fsmt gemma gemma2 gemma3_text glm gpt2 gpt_bigcode gpt_neox gptj granite helium ibert led llama
longformer longt5 m2m_100 mamba marian mbart megatron-bert mistral mixtral mobilebert modernbert mpnet mpt mt5 nystromformer olmo olmo2
openai-gpt opt pegasus persimmon phi phi3 plbart qwen2 qwen3 rembert roberta roberta-prelayernorm roformer smollm3 stablelm starcoder2
switch_transformers t5 umt5 xglm xlm xlm-roberta xmod yoso
""")
AUDIO = _names("""
audio-spectrogram-transformer data2vec-audio hubert sew speech_to_text unispeech wav2vec2 wav2vec2-bert wav2vec2-conformer wavlm whisper
""")
VISION = _names("""
beit bit clip_vision_model convnext convnextv2 cvt data2vec-vision deit dinov2 dinov2_with_registers donut-swin dpt focalnet glpn
ijepa levit mobilenet_v1 mobilenet_v2 mobilevit mobilevitv2 poolformer pvt pvt_v2 regnet resnet segformer siglip_vision_model swiftformer
swin swinv2 textnet timesformer videomae vit vit_msn vitdet vivit yolos
""")
"""Architectures of `transformers`, by the kind of their input."""

SMALL = {
    "vocab_size": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "max_position_embeddings": 64,
    "hidden_size": 32, "d_model": 32, "num_hidden_layers": 2, "num_layers": 2, "encoder_layers": 2, "decoder_layers": 2,
    "num_decoder_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "num_heads": 4, "intermediate_size": 64, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "d_ff": 64, "head_dim": 8, "d_kv": 8,
    "rotary_dim": 4,
}  # fmt: skip
"""What the configurations are made small with, where they have such a field."""


def image(size: int, *leading: int) -> torch.Tensor:
    return torch.rand(*leading, size, size, generator=torch.Generator().manual_seed(1))


def torchvision_models() -> Iterator[tuple[str, Make]]:
    import torchvision

    zoo = torchvision.models
    for name in zoo.list_models(module=zoo):
        size = 224 if name.startswith(FIXED_224) else 96 if name.startswith("inception") else 64
        yield f"torchvision/{name}", lambda name=name, size=size: (zoo.get_model(name, weights=None), (image(size, 1, 3),))
    for name in zoo.list_models(module=zoo.segmentation):
        options = {"weights": None, "weights_backbone": None}
        yield f"torchvision/{name}", lambda name=name, options=options: (zoo.get_model(name, **options), (image(64, 1, 3),))
    for name in zoo.list_models(module=zoo.video):
        frames, size = (16, 224) if name.startswith(("mvit", "s3d", "swin")) else (8, 64)
        data = lambda frames=frames, size=size: (image(size, 1, 3, frames),)  # noqa: E731
        yield f"torchvision/{name}", lambda name=name, data=data: (zoo.get_model(name, weights=None), data())
    for name in zoo.list_models(module=zoo.quantization):
        size = 96 if "inception" in name else 64
        yield f"torchvision/{name}", lambda name=name, size=size: (zoo.get_model(name, weights=None, quantize=True), (image(size, 1, 3),))
    for name in zoo.list_models(module=zoo.detection):
        yield f"torchvision/{name}", lambda name=name: _detector(name)
    for name in zoo.list_models(module=zoo.optical_flow):
        yield f"torchvision/{name}", lambda name=name: (zoo.get_model(name, weights=None), (image(128, 1, 3), image(128, 1, 3)))


def _detector(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """Return a detector with scores that are as far from each other as a trained one's.

    As the initialiser leaves it, all boxes have about the same score, and rounding decides which of them are returned.
    """
    import torchvision

    options: dict[str, Any] = {} if "ssd" in name else {"min_size": 96, "max_size": 128}
    options |= {"box_score_thresh": 0.0} if "rcnn" in name else {}
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, **options)
    generator = torch.Generator().manual_seed(models.SEED)
    models.randomise(model.backbone, generator)
    models.calibrate(model.backbone, models.images(4, 320, models.SEED), generator)
    data = ([models.images(1, 96, 1)[0]],)
    outputs: dict[nn.Module, list[torch.Tensor]] = {}
    for layer in _score_layers(model.eval()):
        layer.register_forward_hook(lambda layer, _, output: outputs.setdefault(layer, []).append(output))
    with torch.no_grad():
        model(*data)
        for layer, found in outputs.items():
            layer.weight *= 3 / torch.cat([item.flatten() for item in found]).std()
            layer._forward_hooks.clear()
    return model, data


def _score_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers that give a detector's scores."""
    named = [module for name, module in model.named_modules() if name.endswith(("cls_logits", "cls_score"))]
    heads = getattr(getattr(model, "head", None), "classification_head", None)
    per_level = [list(item.modules())[-1] for item in getattr(heads, "module_list", ())]
    return named + per_level


def timm_models() -> Iterator[tuple[str, Make]]:
    import timm

    for name in filter(timm.is_model, TIMM):
        yield f"timm/{name}", lambda name=name: _timm(name)


def _timm(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    import timm

    model = timm.create_model(name, pretrained=False, **({"depth": 4} if name in FEW_BLOCKS else {}))
    needs_own_size = model.pretrained_cfg.get("fixed_input_size", False) or name.startswith("bat_") or "halo" in name
    small = 56 if name == "deepseek_vit_412m" else 64
    return model, (image(model.pretrained_cfg["input_size"][-1] if needs_own_size else small, 1, 3),)


class Recurrent(nn.Module):
    """A recurrent layer; of its states the outputs are enough."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.layer = kind(12, 16, **options)

    def forward(self, x: torch.Tensor, state: torch.Tensor | None = None) -> torch.Tensor:
        return self.layer(x, state)[0] if state is not None else self.layer(x)[0]


def stacks() -> Iterator[tuple[str, Make]]:
    """Recurrent layers in every option, torch's own transformer, and stacks as speech is recognised with."""
    x = torch.randn(5, 5, 12, generator=torch.Generator().manual_seed(2))
    kinds: list[tuple[type[nn.RNNBase], dict[str, Any]]] = [
        (nn.RNN, {}), (nn.RNN, {"nonlinearity": "relu"}), (nn.LSTM, {}), (nn.LSTM, {"proj_size": 8}), (nn.GRU, {}),
    ]  # fmt: skip
    for kind, extra in kinds:
        for layers in (1, 2):
            for bidirectional in (False, True):
                for batch_first in (False, True):
                    for bias in (False, True):
                        flags = {"bidirectional": bidirectional, "batch_first": batch_first, "bias": bias}
                        options = {"num_layers": layers, **flags, **extra}
                        told = "".join(f" {key}" for key, value in flags.items() if value) + "".join(f" {key}" for key in extra.values())
                        name = f"nn/{kind.__name__}{told}, {layers} layer{'s' if layers > 1 else ''}"
                        yield name, lambda kind=kind, options=options: (Recurrent(kind, **options), (x,))
    for kind in (nn.RNN, nn.GRU):
        yield f"nn/{kind.__name__} with a state", lambda kind=kind: (Recurrent(kind), (x, torch.ones(1, 5, 16)))
        yield f"nn/{kind.__name__} without a batch", lambda kind=kind: (Recurrent(kind), (x[0],))
    for batch_first in (False, True):
        for norm_first in (False, True):
            for activation in ("relu", "gelu"):
                options = {"batch_first": batch_first, "norm_first": norm_first, "activation": activation}
                name = f"nn/Transformer {activation}{' batch_first' * batch_first}{' norm_first' * norm_first}"
                yield name, lambda options=options: (nn.Transformer(12, 2, 2, 2, 24, **options), (x, x))
    for name, kind in speech.STACKS.items():
        yield f"nn/{name}", lambda kind=kind: (kind(), (torch.randn(2, 100, speech.FEATURES, generator=torch.Generator().manual_seed(3)),))


class First(nn.Module):
    """The first output of a model of `transformers`, which is its hidden states."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.model(**dict(zip(self.names, inputs)), return_dict=False)[0]


def transformers_models() -> Iterator[tuple[str, Make]]:
    """Small configurations of the architectures of `transformers`."""
    import transformers

    for name in (*TEXT, *AUDIO, *VISION):
        if name in transformers.CONFIG_MAPPING:
            yield f"transformers/{name}", lambda name=name: _transformer(name)


def _transformer(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    import transformers

    kind = transformers.CONFIG_MAPPING[name]
    default = kind()
    small = {} if name.startswith("convnext") else SMALL
    config = kind(**{key: value for key, value in small.items() if isinstance(getattr(default, key, None), int)})
    if name == "xmod":
        config.default_language = config.languages[0]
    model = transformers.AutoModel.from_config(config)
    generator = torch.Generator().manual_seed(4)
    words = torch.randint(3, 128, (2, 16), generator=generator)
    if name in TEXT:
        inputs = {"input_ids": words}
    elif name in VISION:
        size = _image_size(config)
        frames = (getattr(config, "num_frames", 8),) if name in ("timesformer", "videomae", "vivit") else ()
        inputs = {"pixel_values": torch.rand(1, *frames, getattr(config, "num_channels", 3), size, size, generator=generator)}
    elif model.main_input_name == "input_values":
        spectrum = (getattr(config, "max_length", 0), getattr(config, "num_mel_bins", 0))
        inputs = {"input_values": torch.randn(1, *(spectrum if all(spectrum) and "spectrogram" in name else (4000,)), generator=generator)}
    else:
        frames = 2 * getattr(config, "max_source_positions", 0)
        sizes = {"whisper": (getattr(config, "num_mel_bins", 80), frames), "wav2vec2-bert": (50, 160)}
        inputs = {"input_features": torch.randn(1, *sizes.get(name, (50, 80)), generator=generator)}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = words[: len(next(iter(inputs.values())))]
    return First(model, tuple(inputs)), tuple(inputs.values())


def _image_size(config: Any) -> int:
    size = getattr(config, "image_size", 64)
    size = size[0] if isinstance(size, (list, tuple)) else size
    return int(size) if size and size <= 256 else 64


def all_models() -> dict[str, Make]:
    return {name: make for source in (stacks, transformers_models, torchvision_models, timm_models) for name, make in source()}
