"""A PixArt of captioned shapes in the latents of an autoencoder, saved as a PixArtAlphaPipeline with its small T5.

    python docs/journeys/train_pixart.py --out outside

writes outside/shapes-pipeline, the pipeline, and outside/prompts.txt, a line per prompt.
"""

import argparse
from itertools import product
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
from latent_training import encoded, train_autoencoder, train_denoiser
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

COLOURS = {"red": (1.0, -1.0, -1.0), "green": (-1.0, 1.0, -1.0), "blue": (-1.0, -1.0, 1.0)}
SHAPES = ("circle", "square", "cross")
PROMPTS = tuple(f"a {colour} {shape}" for colour, shape in product(COLOURS, SHAPES))
NUM_TOKENS = 120  # As PixArt-alpha's pipeline pads its prompts.


def shapes(num: int) -> tuple[Tensor, Tensor]:
    """(pictures of shape num 3 16 16 in [-1, 1] on black, the index of each one's prompt)."""
    place = torch.arange(16.0)
    y = place[:, None] - 7.5 - torch.randint(-2, 3, (num, 1, 1))
    x = place[None] - 7.5 - torch.randint(-2, 3, (num, 1, 1))
    square, radius = torch.maximum(x.abs(), y.abs()) < 5, (x.square() + y.square()).sqrt()
    circle, cross = (radius < 5.5) & (radius > 3), square & (torch.minimum(x.abs(), y.abs()) < 1.5)
    index = torch.arange(num) % len(PROMPTS)
    inside = torch.stack([circle, square, cross])[index % len(SHAPES), torch.arange(num)]
    colour = torch.tensor(list(COLOURS.values()))[index // len(SHAPES)]
    return torch.where(inside[:, None], colour[:, :, None, None], -1.0), index


def text_encoder() -> tuple[PreTrainedTokenizerFast, T5EncoderModel]:
    """A tokenizer of whole words, and a small T5 that stays as it was drawn."""
    words = ("<pad>", "</s>", "<unk>", *sorted({word for prompt in PROMPTS for word in prompt.split()}))
    plain = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, **names)
    config = T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=len(words))
    return tokenizer, T5EncoderModel(config).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=3000)
    parser.add_argument("--autoencoder-iterations", type=int, default=600)
    options = parser.parse_args()
    torch.manual_seed(0)
    pictures, index = shapes(1800)
    vae = train_autoencoder(pictures, iterations=options.autoencoder_iterations)
    tokenizer, encoder = text_encoder()
    tokens = tokenizer([*PROMPTS, ""], padding="longest", return_tensors="pt")  # Last, the empty prompt.
    with torch.no_grad():
        text = encoder(**tokens.to(encoder.device)).last_hidden_state
    network = PixArtTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=12,
        num_layers=3,
        sample_size=8,
        out_channels=4,
        cross_attention_dim=48,
        caption_channels=32,
        use_additional_conditions=False,
    )

    def predict(x_t: Tensor, t: Tensor, chosen: Tensor) -> Tensor:
        prompt = index[chosen].where(torch.rand(len(t)) > 0.1, len(PROMPTS))  # No prompt at times, for guidance.
        given = {"encoder_hidden_states": text[prompt], "encoder_attention_mask": tokens.attention_mask[prompt]}
        return network(x_t, timestep=t, **given, added_cond_kwargs={"resolution": None, "aspect_ratio": None}).sample

    average = train_denoiser(network, predict, encoded(vae, pictures), iterations=options.iterations)
    parts = {"tokenizer": tokenizer, "text_encoder": encoder, "vae": vae, "transformer": average}
    PixArtAlphaPipeline(**parts, scheduler=DPMSolverMultistepScheduler()).save_pretrained(
        options.out / "shapes-pipeline"
    )
    (options.out / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")


if __name__ == "__main__":
    main()
