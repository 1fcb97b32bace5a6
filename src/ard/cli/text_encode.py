"""ard text encode: prompts to what a text encoder makes of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ard.cli.options import print_plan
from ard.core.devices import DeviceName, resolve_device
from ard.core.progress import progress_bar
from ard.text.encoded import TextManifest, cleaned, encode_prompts, is_encoded
from ard.text.encoder import EncoderPrecision, find_text_encoder, num_cut, open_tokenizer, text_encoder
from ard.text.prompts import read_prompts


@dataclass(frozen=True, kw_only=True)
class TextEncode:
    """Encode prompts once, for teachers and students that read text.

    The other commands take the folder with --text and need no encoder. Each different prompt is kept under its hash,
    in bfloat16 and without padding, and the empty prompt, which guidance needs, with them. A killed run goes on with
    the same command. For instance:

        ard text encode --prompts prompts.txt --encoder PixArt-Sigma-XL-2-1024-MS --out runs/text
        ard text encode --prompts captions.jsonl --encoder t5-v1_1-xxl --max-tokens 120 --out runs/text
    """

    prompts: Path
    """A .txt with a prompt per line; a .jsonl whose objects have a prompt, text or caption; a .csv or .tsv, or the
    folder of a Hugging Face data set as save_to_disk writes it, with such a column. One may be empty."""
    encoder: Path
    """A PixArt pipeline's folder, or a local folder with a T5 and its tokenizer, as Hugging Face saves them."""
    out: Path
    """Folder of the encoded prompts."""
    max_tokens: int | None = None
    """Longer prompts are cut to so many tokens. None: what the pipeline reads, 120 for PixArt-alpha, 300 for -Sigma."""
    precision: EncoderPrecision = "float32"
    """What the encoder computes with; bfloat16 needs half the memory."""
    device: DeviceName = "auto"
    """Where to compute."""
    dry_run: bool = False
    """Print the resolved configuration and do nothing."""

    def run(self) -> None:
        """Encode and publish."""
        prompts = read_prompts(self.prompts)
        card = find_text_encoder(self.encoder, max_tokens=self.max_tokens, precision=self.precision)
        device = resolve_device(self.device)
        texts = [cleaned(prompt) for prompt in prompts]
        cut = num_cut(open_tokenizer(card), texts, max_tokens=card.max_tokens)
        manifest = TextManifest(
            encoder=card.identity(),
            source=self.encoder.resolve().name,
            width=card.width,
            max_tokens=card.max_tokens,
            prompts=prompts,
        )
        different = len(set(texts))
        told = f"{len(prompts):,} prompts, {different:,} different ones" + _told(texts, cut, card.max_tokens)
        if self.dry_run:
            return print_plan({"encoder": card, "prompts": told, "device": str(device), "out": self.out})
        if is_encoded(self.out, manifest):
            return print(f"text {self.out} is there already: {told}")
        with (
            text_encoder(card, device) as encode,
            progress_bar(manifest.total, "text encode", unit="prompt") as bar,
        ):
            encode_prompts(self.out, manifest, encode, progress=bar.update)
        print(f"text {self.out}: {told}, at most {card.max_tokens} tokens each")


def _told(texts: Sequence[str], cut: int, max_tokens: int) -> str:
    """What of the prompts was hardly meant."""
    empty = texts.count("")
    told = f"; {cut:,} of {len(texts):,} prompts were cut at {max_tokens} tokens" if cut else ""
    return told + (f"; {empty:,} of {len(texts):,} prompts are empty" if empty else "")
