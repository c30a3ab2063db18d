"""The networks of the pair, untrained: diffusers' and transformers' own classes, as small as the scenes allow."""

from __future__ import annotations

from typing import Any

from torch import nn

from allaprima.bundled.scenes.grammar import words

LATENT_CHANNELS = 32
TOKENS = 16
"""Tokens of a prompt, the beginning and the end included."""
WIDTH = 144
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SCHEDULER_CONFIG: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "sample",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "timestep_spacing": "trailing",
}


def new_autoencoder() -> Any:
    """Return an AutoencoderTiny of factor 16, so that a cell of a scene is one latent.

    The encoder has convolutions only, for `autoencoder.construct_encoder` to fill. In the decoder, convolutions keep the
    variance of what they read and residual blocks begin as the identity: with PyTorch's defaults signals fade in so many
    layers without norms, and seven times as many pictures were needed for the same loss.
    """
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
    from diffusers.models.autoencoders.vae import AutoencoderTinyBlock

    net = AutoencoderTiny(
        encoder_block_out_channels=(64,) * 5,
        decoder_block_out_channels=(32,) * 5,
        num_encoder_blocks=(0,) * 5,
        num_decoder_blocks=(3, 3, 2, 1, 0),
        latent_channels=LATENT_CHANNELS,
    )
    for module in net.decoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in net.decoder.modules():
        if isinstance(module, AutoencoderTinyBlock):
            convolutions: Any = [layer for layer in module.conv if isinstance(layer, nn.Conv2d)]
            for layer in convolutions[:-1]:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(convolutions[-1].weight)
    return net


def new_unet(width: int = WIDTH) -> Any:
    """Return an untrained UNet2DConditionModel of one level, which reads 4x4 latents."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=4,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(width,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def new_text_encoder() -> Any:
    """Return an untrained BertModel for the words of the grammar.

    It reads in both directions. With CLIP's causal reading the word `circle` of `a red circle left of a star` knows nothing
    of what follows it, and relations were not learned.
    """
    from transformers import BertConfig, BertModel

    return BertModel(
        BertConfig(
            vocab_size=len(SPECIAL) + len(list(words())),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=0,
        ),
        add_pooling_layer=False,
    )


def new_tokenizer() -> Any:
    """Return a tokenizer that knows each word of the grammar as one token."""
    from transformers import BertTokenizer

    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *words()))}
    return BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=TOKENS)
